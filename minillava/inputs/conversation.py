"""One row of LLaVA JSON -> token ids and labels: the paper's sequence, eq. 1 and the mask of eq. 2.

    A chat between a curious human and ... questions.###
    Human: <image>
    What colour is the fish?###
    Assistant: Red.###
    Human: ...

Other models write the same conversation otherwise; each way is a ``Template`` (templates.py). Only an answer and the
stop after it bear loss; everywhere else the label is -100. Labels are made together with the ids, so that they cannot
fall out of step.

Text is encoded in the longest pieces that this allows: from one special token to the next, cut only where an answer
begins and after its stop. So the ids are those of the whole text encoded at once, except where a tokenizer would have
joined across a cut: an answer that itself begins with a space or an empty line may differ.
"""

import hashlib
import re
from collections.abc import Iterator

from minillava.errors import UserError
from minillava.inputs.templates import TEMPLATES, Template
from minillava.inputs.tokenizer import IMAGE, STOP, Tokenizer

IGNORE = -100
MARK = re.compile(r"(<\|\w+\|>|</?s>|###)")  # special tokens in templates
IMAGE_MARK = re.compile(f"({IMAGE})")  # the only one that counts in what people write


def image_goes_first(seed: int, epoch: int, row: int) -> bool:
    """Eq. 1's coin: [X_v, X_q] if True, [X_q, X_v] if False; decided by its arguments alone."""
    return hashlib.sha256(f"{seed} {epoch} {row}".encode()).digest()[0] % 2 == 0


def place_image(question: str, image_first: bool) -> str:
    """Put the picture's mark before or after the question (eq. 1). Text without a mark comes back as it is."""
    if IMAGE not in question:
        return question
    text = question.replace(IMAGE, "").strip()
    return f"{IMAGE}\n{text}" if image_first else f"{text}\n{IMAGE}"


def encode_conversation(
    conversations: list[dict],
    tokenizer: Tokenizer,
    template: Template = TEMPLATES["v0"],
    num_image_tokens: int = 64,
    image_first: bool = True,
) -> tuple[list[int], list[int]]:
    """A row's turns -> (input_ids, labels), two lists of equal length.

    Each <image> becomes ``num_image_tokens`` placeholder ids. A conversation that ends on a question ends, encoded,
    ready to be continued: in v0 on "Assistant:". Raises UserError for turns that do not alternate human, gpt, human,
    ..., and for a template whose special tokens the tokenizer lacks.
    """
    turns = _checked(conversations)
    if template.picture_only and (len(turns) > 2 or IMAGE not in turns[0]["value"]):
        raise UserError("the template 'plain' is for one picture and one caption")
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
            question = place_image(turn["value"], image_first) if index == 0 else turn["value"]
            write(
                (template.human if index else template.opening, MARK),
                (IMAGE if template.picture_only else question, IMAGE_MARK),
                (template.after_question + template.assistant, MARK),
            )
        else:
            write(
                (template.before_answer, MARK),
                (turn["value"], IMAGE_MARK),
                (template.after_answer + template.stop, MARK),
                learn=True,
            )
            write((template.after_stop, MARK))
    if tokenizer.add_bos and input_ids[:1] != [tokenizer.bos_id]:
        return [tokenizer.bos_id, *input_ids], [IGNORE, *labels]
    return input_ids, labels


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
