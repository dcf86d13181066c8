"""First the whole row as spans of text and special tokens, then their ids and labels."""

from minillava.errors import UserError
from minillava.inputs.conversation import IGNORE, IMAGE_MARK, WORDS, check_turns, place_image
from minillava.inputs.templates import TEMPLATES, Template
from minillava.inputs.tokenizer import IMAGE, MARK, Tokenizer


def encode_conversation(
    conversations: list[dict],
    tokenizer: Tokenizer,
    template: Template = TEMPLATES["v0"],
    num_image_tokens: int = 64,
    image_first: bool = True,
) -> tuple[list[int], list[int]]:
    check_turns(conversations, template)
    spans = []  # [text or id of a special token, its number in the text's parts, whether it has a loss]
    for number, turn in enumerate(conversations):
        said = turn["value"]
        if number == 0:
            said = IMAGE if template.picture_only else place_image(said, image_first)
        if number % 2 == 0:
            asked = template.opening if number == 0 else template.human
            parts = [(asked, MARK, 0), (said, IMAGE_MARK, 0), (template.after_question + template.assistant, MARK, 0)]
        else:
            end = template.after_answer + template.stop
            parts = [(template.before_answer, MARK, 1), (said, IMAGE_MARK, 1), (end, MARK, 1)]
            parts.append((template.after_stop, MARK, 2))
        for text, marks, part in parts:
            for piece in marks.split(text):
                place = number, part
                is_mark = marks.fullmatch(piece) and not (piece in WORDS and piece not in tokenizer.special)
                if is_mark and piece not in tokenizer.special:
                    raise UserError(f"no {piece}")
                if is_mark:
                    spans.append([tokenizer.special[piece], place, part == 1])
                elif spans and isinstance(spans[-1][0], str) and spans[-1][1] == place:
                    spans[-1][0] += piece
                elif piece:
                    spans.append([piece, place, part == 1])

    ids, labels = [tokenizer.bos_id] if tokenizer.add_bos else [], [IGNORE] if tokenizer.add_bos else []
    for number, (span, _, learn) in enumerate(spans):
        if isinstance(span, str):
            new = tokenizer.encode(span, special=False, after=ids)
        else:
            new = [span] * (num_image_tokens if span == tokenizer.image_id else 1)
            if number == 0 and ids == new:  # the template's own bos
                continue
        ids += new
        labels += new if learn else [IGNORE] * len(new)
    return ids, labels
