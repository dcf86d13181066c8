"""One row of LLaVA JSON -> token ids and labels: the paper's sequence, eq. 1 and the mask of eq. 2.

    A chat between a curious human and ... questions.###
    Human: <image>
    What colour is the fish?###
    Assistant: Red.###
    Human: ...

Only an answer and the stop after it bear loss; everywhere else the label is -100. Labels are made together with the
ids, segment by segment, so that they cannot fall out of step.
"""

import hashlib
from dataclasses import dataclass

from minillava.errors import UserError
from minillava.tokenizer import IMAGE, STOP, Tokenizer

IGNORE = -100
SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)


@dataclass(frozen=True)
class Template:
    """How a conversation is written down. ``human`` goes before a question and ``assistant`` before an answer; the stop
    and ``after_stop`` follow the system message, each question and each answer."""

    system: str
    human: str
    assistant: str
    stop: str
    after_stop: str


TEMPLATES = {
    "v0": Template(SYSTEM, "Human: ", "Assistant:", STOP, "\n"),  # paper, table 2
    "brief": Template("", "", "Assistant:", STOP, "\n"),  # stage 1: X_q, X_v <STOP> \n Assistant: X_a <STOP> \n
}


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

    Each <image> becomes ``num_image_tokens`` placeholder ids. A conversation that ends on a question ends, encoded, on
    "Assistant:", ready to be continued. Raises UserError for turns that do not alternate human, gpt, human, ...
    """
    style = TEMPLATES[template]
    stop = tokenizer.encode(style.stop)
    after = tokenizer.encode(style.after_stop)
    input_ids: list[int] = []
    labels: list[int] = []

    def add(ids: list[int], learn: bool = False) -> None:
        input_ids.extend(ids)
        labels.extend(ids if learn else [IGNORE] * len(ids))

    if style.system:
        add(tokenizer.encode(style.system) + stop + after)
    for index, turn in enumerate(_checked(conversations)):
        if index % 2 == 0:
            question = arrange(turn["value"], image_first) if index == 0 else turn["value"]
            add(_with_images(style.human + question, tokenizer, num_image_tokens) + stop + after)
            add(tokenizer.encode(style.assistant))
        else:
            add(tokenizer.encode(" " + turn["value"], special=False) + stop, learn=True)
            add(after)
    return input_ids, labels


def _with_images(text: str, tokenizer: Tokenizer, num_image_tokens: int) -> list[int]:
    ids: list[int] = []
    for index, piece in enumerate(text.split(IMAGE)):
        if index:
            ids += [tokenizer.image_id] * num_image_tokens
        ids += tokenizer.encode(piece, special=False)
    return ids


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
