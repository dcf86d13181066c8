"""Each turn as three texts in which special tokens are written as NUL, number, NUL; errors in other words."""

import re

from minillava.errors import UserError
from minillava.inputs.conversation import IGNORE, WORDS
from minillava.inputs.templates import TEMPLATES, Template
from minillava.inputs.tokenizer import IMAGE, MARK, Tokenizer


def encode_conversation(
    conversations: list[dict],
    tokenizer: Tokenizer,
    template: Template = TEMPLATES["v0"],
    num_image_tokens: int = 64,
    image_first: bool = True,
) -> tuple[list[int], list[int]]:
    if not isinstance(conversations, list) or not conversations:
        raise UserError("no turns")
    for index, turn in enumerate(conversations):
        right = isinstance(turn, dict) and turn.get("from") == ["human", "gpt"][index % 2]
        if not right or not isinstance(turn.get("value"), str) or turn["value"].count(IMAGE) > (index == 0):
            raise UserError(f"not allowed: turn {index}")
    if template.picture_only and (IMAGE not in conversations[0]["value"] or len(conversations) > 2):
        raise UserError("one caption, please")

    def mark(name: str) -> str:
        if name not in tokenizer.special and name in WORDS:
            return name
        if name not in tokenizer.special:
            raise UserError(f"{name}?")
        return f"\0{tokenizer.special[name]}\0"

    def marked(text: str) -> str:
        return MARK.sub(lambda found: mark(found[0]), text)

    ids: list[int] = []
    labels: list[int] = []
    for index, turn in enumerate(conversations):
        text = turn["value"]
        if index % 2:
            before, after = marked(template.before_answer), marked(template.after_answer + template.stop)
            texts = [(before + text + after, True), (marked(template.after_stop), False)]
        else:
            if template.picture_only:
                text = IMAGE
            elif index == 0 and IMAGE in text:
                words = text.replace(IMAGE, "").strip()
                text = f"{IMAGE}\n{words}" if image_first else f"{words}\n{IMAGE}"
            text = mark(IMAGE).join(text.split(IMAGE)) if IMAGE in text else text
            before, after = template.human if index else template.opening, template.after_question + template.assistant
            texts = [(marked(before) + text + marked(after), False)]
        for text, learn in texts:
            for place, piece in enumerate(re.split("\0(\\d+)\0", text)):
                new = [int(piece)] if place % 2 else tokenizer.encode(piece, False, ids) if piece else []
                new *= num_image_tokens if new == [tokenizer.image_id] else 1
                ids.extend(new)
                labels.extend(new if learn else [IGNORE] * len(new))
    if tokenizer.add_bos and ids[0] != tokenizer.bos_id:
        ids.insert(0, tokenizer.bos_id)
        labels.insert(0, IGNORE)
    return ids, labels
