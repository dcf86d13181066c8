"""One row of LLaVA JSON -> token ids and labels: the input sequence of the paper's table 2 and its loss mask.

    A chat between a curious human and ... questions.###
    Human: <image>
    What colour is the fish?###
    Assistant: Red.###
    Human: ...

Other model families write a conversation differently; each way is a ``Template`` (templates.py). Only answers and the
stops after them have a loss (paper, eq. 3), with the spaces that the template puts around them; everywhere else the
label is -100. Ids and labels are made in the same step, so they always match.

Text is cut at special tokens and between three parts, which repeat for each question: the question with the template's
text around it; the answer with the space before it and its stop; the text after the stop. Each piece is encoded in one
call. The ids are the same as if the whole text were encoded in one call, unless the tokenizer would have joined
characters across such a cut: an answer that begins with a space or an empty line may get other ids.
"""

import hashlib
import re
from collections.abc import Iterator

from minillava.errors import UserError
from minillava.inputs.templates import TEMPLATES, Template
from minillava.inputs.tokenizer import IMAGE, MARK, STOP, Tokenizer

IGNORE = -100
IMAGE_MARK = re.compile(f"({IMAGE})")  # the only special token in a row's own text; the others stay ordinary text there
# Marks that are ordinary text if the tokenizer lacks them, as LLaMA's does.
WORDS = (STOP, "<|system|>", "<|user|>", "<|assistant|>")


def image_goes_first(seed: int, epoch: int, row: int) -> bool:
    """Whether a row's picture goes before the question: [X_v, X_q] if True, [X_q, X_v] if False (paper, eq. 2).

    The result is random, but always the same for the same arguments.
    """
    return hashlib.sha256(f"{seed} {epoch} {row}".encode()).digest()[0] % 2 == 0


def place_image(question: str, image_first: bool) -> str:
    """Move <image> before or after the question's words (paper, eq. 2). A question without <image> is unchanged."""
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
    """A row's turns -> (input_ids, labels), two lists of equal length T.

    <image> becomes ``num_image_tokens`` placeholder ids. If the last turn is a question, the ids end where the answer
    should begin: in v0 after "Assistant:". Raises UserError, naming the turn, if the speakers are not human, gpt,
    human, ... in this order or <image> is in a wrong place; and, naming the token, if the tokenizer lacks a special
    token of the template. Those in WORDS may be missing; they are then ordinary text.
    """
    check_turns(conversations, template)
    input_ids: list[int] = []
    labels: list[int] = []

    def write(*parts: tuple[str, re.Pattern], learn: bool = False) -> None:
        """Append ``parts`` to both lists. Each is (text, pattern): what the pattern matches becomes a special token.

        With ``learn``, the labels are the ids; otherwise they are IGNORE.
        """
        for text, is_mark in _runs(parts, tokenizer):
            if is_mark:
                ids = [tokenizer.special[text]] * (num_image_tokens if text == IMAGE else 1)
            else:
                ids = tokenizer.encode(text, special=False, after=input_ids)  # SentencePiece needs ``after``
            input_ids.extend(ids)
            labels.extend(ids if learn else [IGNORE] * len(ids))

    for index, turn in enumerate(conversations):
        if index % 2 == 0:  # a question: no loss
            question = place_image(turn["value"], image_first) if index == 0 else turn["value"]
            write(
                (template.human if index else template.opening, MARK),
                (IMAGE if template.picture_only else question, IMAGE_MARK),
                (template.after_question + template.assistant, MARK),
            )
        else:  # an answer and its stop: loss
            write(
                (template.before_answer, MARK),
                (turn["value"], IMAGE_MARK),
                (template.after_answer + template.stop, MARK),
                learn=True,
            )
            write((template.after_stop, MARK))
    if tokenizer.add_bos and input_ids[:1] != [tokenizer.bos_id]:  # some templates begin with it themselves
        return [tokenizer.bos_id, *input_ids], [IGNORE, *labels]
    return input_ids, labels


def _runs(parts: tuple[tuple[str, re.Pattern], ...], tokenizer: Tokenizer) -> Iterator[tuple[str, bool]]:
    """Split ``parts`` into special tokens ("marks") and the text between them. Yields (string, is_mark).

    Each part is a text and the pattern of its marks. Text between two marks is one string, also across parts.
    """
    text = ""
    for part, marks in parts:
        for index, piece in enumerate(marks.split(part)):  # text, mark, text, ..., mark, text
            if index % 2 == 0 or (piece in WORDS and piece not in tokenizer.special):
                text += piece
                continue
            if piece not in tokenizer.special:
                raise UserError(f"the template needs the special token {piece}, which the tokenizer lacks")
            if text:
                yield text, False
            yield piece, True
            text = ""
    if text:
        yield text, False


def check_turns(conversations: list[dict], template: Template) -> None:
    """Check the speakers and the place of <image>. Raises UserError, naming the turn."""
    if not isinstance(conversations, list) or not conversations:
        raise UserError("'conversations' must be a list of turns")
    for index, turn in enumerate(conversations):
        speaker = ("human", "gpt")[index % 2]
        if not isinstance(turn, dict) or turn.get("from") != speaker or not isinstance(turn.get("value"), str):
            raise UserError(f"turn {index} must be {{'from': '{speaker}', 'value': text}}")
        if turn["value"].count(IMAGE) > 1:
            raise UserError(f"turn {index} contains {IMAGE} more than once: a conversation is about one picture")
        if index and IMAGE in turn["value"]:
            raise UserError(f"turn {index} contains {IMAGE}, which may only be in the first turn")
    if template.picture_only and (len(conversations) > 2 or IMAGE not in conversations[0]["value"]):
        raise UserError("the template 'plain' is for one picture and one caption")
