"""Estimate the number of tokens of a build from its prompts. Nothing is sent."""

import re
from collections.abc import Iterable

from data.teachers import Request

PIECE = re.compile(r"[^\W\d_]+|\d{1,3}|[^\w\s]|_")


def count_tokens(text: str) -> int:
    """About how many tokens the text has for a language model.

    Counts words, groups of up to three digits, and punctuation marks, as most tokenizers split a text first. An exact
    count needs the model's vocabulary, which would have to be downloaded.
    """
    return len(PIECE.findall(text))


def estimate(requests: Iterable[Request]) -> tuple[int, int]:
    """Tokens of all prompts, and of all replies if each is as long as the mean answer in its prompt's examples."""
    fixed: dict[tuple, tuple[int, float]] = {}  # all but the last message is the same for one kind and question
    prompts = replies = 0.0
    for request in requests:
        *before, context = request.messages
        if (request.kind, request.question) not in fixed:
            answers = [count_tokens(m["content"]) for m in before if m["role"] == "assistant"]
            length = sum(count_tokens(m["content"]) for m in before)
            fixed[request.kind, request.question] = length, sum(answers) / max(len(answers), 1)
        length, reply = fixed[request.kind, request.question]
        prompts += length + count_tokens(context["content"])
        replies += reply
    return round(prompts), round(replies)
