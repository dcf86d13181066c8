"""One row of LLaVA JSON -> token ids and labels: the paper's sequence, eq. 1 and the mask of eq. 2.

    A chat between a curious human and ... questions.###
    Human: <image>
    What colour is the fish?###
    Assistant: Red.###
    Human: ...

Other models write the same conversation otherwise; each way is a ``Template``. Only an answer and the stop after it
bear loss; everywhere else the label is -100. Labels are made together with the ids, so that they cannot fall out of
step.

Text is encoded in the longest pieces that this allows: from one special token to the next, cut only where an answer
begins and after its stop. So the ids are those of the whole text encoded at once, except where a tokenizer would have
joined across a cut: an answer that itself begins with a space or an empty line may differ.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from minillava.errors import UserError
from minillava.tokenizer import IMAGE, STOP, Tokenizer

IGNORE = -100
SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
VISION_SYSTEM = (  # the LLaVA authors' for LLaMA 2 and 3
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)


@dataclass(frozen=True)
class Template:
    """How a conversation is written down. In a row, for each turn, stand

        opening or human, QUESTION, after_question, assistant, before_answer, ANSWER, after_answer, stop, after_stop

    and the loss is on ``before_answer`` up to and with ``stop``. A beginning-of-text token is written here only where
    the model family's own chat template writes it; otherwise the tokenizer decides (``add_bos``).
    """

    opening: str = ""  # before the first question: the system message too
    human: str = ""  # before each later question
    after_question: str = ""
    assistant: str = ""  # where an answer is wanted, the prompt ends on this
    before_answer: str = ""
    after_answer: str = ""
    stop: str = ""  # the model learns to write it, and generation ends at it
    after_stop: str = ""
    picture_only: bool = False  # the question's words are left out: one picture, one caption


TEMPLATES = {
    "v0": Template(  # paper, table 2
        opening=f"{SYSTEM}###\nHuman: ",
        human="Human: ",
        after_question="###\n",
        assistant="Assistant:",
        before_answer=" ",
        stop=STOP,
        after_stop="\n",
    ),
    "brief": Template(  # stage 1: X_q, X_v <STOP> \n Assistant: X_a <STOP> \n
        after_question="###\n", assistant="Assistant:", before_answer=" ", stop=STOP, after_stop="\n"
    ),
    "v1": Template(  # Vicuna 1.1 and later, LLaVA-1.5
        opening=f"{SYSTEM.replace('human', 'user')} USER: ",
        human="USER: ",
        after_question=" ",
        assistant="ASSISTANT:",
        before_answer=" ",
        stop="</s>",
    ),
    "llama-2": Template(
        opening=f"<s>[INST] <<SYS>>\n{VISION_SYSTEM}\n<</SYS>>\n\n",
        human="<s>[INST] ",
        after_question=" ",
        assistant="[/INST]",
        before_answer=" ",
        after_answer=" ",
        stop="</s>",
    ),
    "llama-3": Template(
        opening=(
            f"<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{VISION_SYSTEM}<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\n"
        ),
        human="<|start_header_id|>user<|end_header_id|>\n\n",
        after_question="<|eot_id|>",
        assistant="<|start_header_id|>assistant<|end_header_id|>\n\n",
        stop="<|eot_id|>",
    ),
    "chatml": Template(  # Qwen, SmolLM2
        opening="<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n",
        human="<|im_start|>user\n",
        after_question="<|im_end|>\n",
        assistant="<|im_start|>assistant\n",
        stop="<|im_end|>",
        after_stop="\n",
    ),
    "plain": Template(stop="\n", picture_only=True),  # LLaVA-1.5's stage 1: the picture, its caption, a new line
}
# What the chat template in a checkpoint of a family holds. Nobody but us writes v0, brief and plain there.
SIGNS = {
    "v1": ("ASSISTANT:",),
    "llama-2": ("[INST]", "<<SYS>>"),
    "llama-3": ("<|start_header_id|>", "<|eot_id|>"),
    "chatml": ("<|im_start|>", "<|im_end|>"),
}
MARK = re.compile(r"(<\|\w+\|>|</?s>|###)")  # special tokens in templates
IMAGE_MARK = re.compile(f"({IMAGE})")  # the only one that counts in what people write


def image_goes_first(seed: int, epoch: int, row: int) -> bool:
    """Eq. 1's coin: [X_v, X_q] if True, [X_q, X_v] if False; decided by its arguments alone."""
    return hashlib.sha256(f"{seed} {epoch} {row}".encode()).digest()[0] % 2 == 0


def arrange(question: str, image_first: bool) -> str:
    """Put the picture's mark before or after the question (eq. 1). Text without a mark comes back as it is."""
    if IMAGE not in question:
        return question
    text = question.replace(IMAGE, "").strip()
    return f"{IMAGE}\n{text}" if image_first else f"{text}\n{IMAGE}"


def encode_conversation(
    conversations: list[dict],
    tokenizer: Tokenizer,
    template: str = "v0",
    num_image_tokens: int = 64,
    image_first: bool = True,
) -> tuple[list[int], list[int]]:
    """A row's turns -> (input_ids, labels), two lists of equal length.

    Each <image> becomes ``num_image_tokens`` placeholder ids. A conversation that ends on a question ends, encoded,
    ready to be continued: in v0 on "Assistant:". Raises UserError for turns that do not alternate human, gpt, human,
    ..., for an unknown template, and for one whose special tokens the tokenizer lacks.
    """
    if template not in TEMPLATES:
        raise UserError(f"no template {template!r}: there are {', '.join(TEMPLATES)}")
    style = TEMPLATES[template]
    turns = _checked(conversations)
    if style.picture_only and (len(turns) > 2 or IMAGE not in turns[0]["value"]):
        raise UserError(f"template {template!r} is for one picture and one caption")
    input_ids: list[int] = []
    labels: list[int] = []

    def write(*parts: tuple[str, re.Pattern], learn: bool = False) -> None:
        for text, is_mark in _runs(parts, tokenizer):
            if is_mark:
                ids = [tokenizer.special[text]] * (num_image_tokens if text == IMAGE else 1)
            else:
                ids = tokenizer.encode(text, special=False, after=input_ids)
            input_ids.extend(ids)
            labels.extend(ids if learn else [IGNORE] * len(ids))

    for index, turn in enumerate(turns):
        if index % 2 == 0:
            question = arrange(turn["value"], image_first) if index == 0 else turn["value"]
            write(
                (style.human if index else style.opening, MARK),
                (IMAGE if style.picture_only else question, IMAGE_MARK),
                (style.after_question + style.assistant, MARK),
            )
        else:
            write(
                (style.before_answer, MARK),
                (turn["value"], IMAGE_MARK),
                (style.after_answer + style.stop, MARK),
                learn=True,
            )
            write((style.after_stop, MARK))
    if tokenizer.add_bos and input_ids[:1] != [tokenizer.bos_id]:
        return [tokenizer.bos_id, *input_ids], [IGNORE, *labels]
    return input_ids, labels


def chat_template(name: str) -> str:
    """A template in transformers' language, jinja, for ``chat_template.jinja``.

    A message's content is a text or a list of parts of type "text" and "image"; pictures are written before the words.
    """
    style = TEMPLATES[name]

    def say(text: str) -> str:
        return "{{ " + json.dumps(text) + " }}" if text else ""

    words = "{% for part in parts if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    picture = say(IMAGE if style.picture_only else f"{IMAGE}\n")
    return "".join(
        (
            "{% for message in messages %}",
            "{% if message['role'] != ['user', 'assistant'][loop.index0 % 2] %}",
            "{{ raise_exception('the roles must be user, assistant, user, and so on') }}",
            "{% endif %}",
            "{% set content = message['content'] %}",
            "{% set parts = [{'type': 'text', 'text': content}] if content is string else content %}",
            "{% if message['role'] == 'user' %}",
            f"{{% if loop.first %}}{say(style.opening)}{{% else %}}{say(style.human)}{{% endif %}}",
            f"{{% for part in parts if part['type'] == 'image' %}}{picture}{{% endfor %}}",
            "" if style.picture_only else words,
            say(style.after_question),
            "{% else %}",
            say(style.assistant + style.before_answer),
            words,
            say(style.after_answer + style.stop + style.after_stop),
            "{% endif %}",
            "{% endfor %}",
            f"{{% if add_generation_prompt %}}{say(style.assistant)}{{% endif %}}",
        )
    )


def recognise(text: str) -> str | None:
    """The name of the template that a checkpoint's chat template (jinja) is, or is a form of; None for one unknown."""
    ours = [name for name in TEMPLATES if chat_template(name) == text]
    others = [name for name, signs in SIGNS.items() if all(sign in text for sign in signs)]
    return next(iter(ours + others), None)


def _runs(parts: tuple[tuple[str, re.Pattern], ...], tokenizer: Tokenizer) -> Iterator[tuple[str, bool]]:
    """Parts, each with the pattern of its marks -> marks and, as long as may be, the texts between: (text, is_mark)."""
    text = ""
    for part, marks in parts:
        for index, piece in enumerate(marks.split(part)):  # text, mark, text, ..., mark, text
            if index % 2 == 0 or (piece == STOP and STOP not in tokenizer.special):  # LLaMA has no token for ###
                text += piece
                continue
            if piece not in tokenizer.special:
                raise UserError(f"the conversation needs the token {piece}, which the tokenizer lacks")
            if text:
                yield text, False
            yield piece, True
            text = ""
    if text:
        yield text, False


def _checked(conversations: list[dict]) -> list[dict]:
    if not isinstance(conversations, list) or not conversations:
        raise UserError("'conversations' must be a list of turns")
    for index, turn in enumerate(conversations):
        speaker = ("human", "gpt")[index % 2]
        if not isinstance(turn, dict) or turn.get("from") != speaker or not isinstance(turn.get("value"), str):
            raise UserError(f"turn {index} must be {{'from': '{speaker}', 'value': text}}")
        if turn["value"].count(IMAGE) > 1:
            raise UserError(f"turn {index} holds {IMAGE} more than once: a conversation is about one picture")
        if index and IMAGE in turn["value"]:
            raise UserError(f"turn {index} holds {IMAGE}, which belongs in the first turn alone")
    return conversations
