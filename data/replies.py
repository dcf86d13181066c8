"""A teacher's reply -> turns of a conversation; and which turns mention the captions or boxes.

A reply must have the form that the prompts show. For a conversation: blocks "Question: ..." and "Answer: ..." with a
line "===" between any two. For complex reasoning: one such pair. For a detailed description: only the answer.
"""

import re

SEPARATOR = re.compile(r"^[ \t]*={3,}[ \t]*$", re.MULTILINE)
HEAD = re.compile(r"^[ \t]*(Question|Answer):", re.MULTILINE)
BROKEN = re.compile("[\ud800-\udfff\ufffd]")
THOUGHTS = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)  # the thinking of reasoning models

# An answer must read as if the teacher saw the picture. Words that also have an ordinary meaning (a box of fruit, a
# description that fits, the context of a wedding) match only if they are named as a source of information.
_BY = "(?:according to|based on|judging by|judging from|as per)"
_TEXTS = "(?:descriptions?|sentences?|annotations?|coordinates)"
_SAY = "(?:say|mention|state|describe|indicate|suggest|specif|note|list|tell|show|imply|confirm)"
_GIVEN = "(?:information|context|sentences?|annotations?|boxes)"
SOURCE = re.compile(
    "|".join(
        (
            r"(?<!\ba )\bcaptions?\b",  # but "a poster with a caption"
            r"\b(?:bounding[ -]?box|bbox)(?:es)?\b",
            r"\b(?:image|picture|photo|scene|textual|provided|given) descriptions?\b",
            rf"\b{_TEXTS} (?:\w+ly |also |does not |do not )?{_SAY}",
            r"\bcontext (?:says|mentions|states|lists|describes|does not)\b",
            rf"\b(?:{_BY}|from|\w+ed (?:in|by)) (?:(?:the|these|this|its|all) )?(?:\w+ )?{_TEXTS}\b",
            rf"\b{_BY} (?:the|these|its) (?:\w+ )?box(?:es)?(?:[,.;:]|$| of\b| around\b)",
            rf"\b(?:provided|given) {_GIVEN}\b|\bprovided details\b",
            rf"\b(?:{_GIVEN}|details) (?:provided|given)\b(?! (?:by|on|at|in)\b)",
            r"\b(?:the|its|their|these|box|normali[sz]ed) coordinates\b|\b[xy][ -]coordinates?\b",
            r"\bobject[ -](?:detections?|detectors?|lists?)\b|\blist of objects\b|\bdetected (?:objects|boxes)\b",
            r"[\[(] ?[01]?\.\d+ ?,|\b[01]\.\d{3}\b",  # numbers as in boxes
        )
    ),
    re.IGNORECASE,
)


class Malformed(Exception):
    """The reply does not have the required form. The message is the reason, in a few words."""


def parse(kind: str, question: str | None, reply: str) -> list[tuple[str, str]]:
    """The (question, answer) turns of a reply to a request of ``kind``. Raises Malformed.

    ``question``: the request for a detailed description; not used for other kinds.
    """
    reply = THOUGHTS.sub("", reply.replace("\r\n", "\n")).strip()
    if not reply:
        raise Malformed("an empty reply")
    if BROKEN.search(reply):
        raise Malformed("contains a broken character")
    if "<image>" in reply:
        raise Malformed("contains <image>, the placeholder of a picture")
    if kind == "detail":
        if SEPARATOR.search(reply) or HEAD.search(reply):
            raise Malformed("has questions or separators, not only a description")
        return [(question, reply)]
    turns = _turns(reply)
    if kind == "reasoning" and len(turns) > 1:
        raise Malformed(f"{len(turns)} questions instead of one")
    return turns


def _turns(reply: str) -> list[tuple[str, str]]:
    blocks = [block.strip() for block in SEPARATOR.split(reply)]
    said = [block for block in blocks if block]  # there may be a separator before the first block and after the last
    texts = []
    for index, block in enumerate(said):
        head = ("Question", "Answer")[index % 2]
        if HEAD.findall(block) != [head] or not block.startswith(head):
            raise Malformed(f"block {index + 1} is not one '{head}: ...'")
        texts.append(block.removeprefix(f"{head}:").strip())
    if not texts or len(texts) % 2:
        raise Malformed("the last question has no answer" if texts else "no question")
    if not all(texts):
        raise Malformed("an empty question or answer")
    questions = texts[::2]
    if len({question.casefold() for question in questions}) < len(questions):  # a small model may go round in circles
        raise Malformed("a question occurs twice")
    return list(zip(questions, texts[1::2]))


def names_its_source(turn: tuple[str, str]) -> bool:
    """Whether the question or the answer names captions, boxes or coordinates as its source of information."""
    return any(SOURCE.search(" ".join(text.split())) for text in turn)
