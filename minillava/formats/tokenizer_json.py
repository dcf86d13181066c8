"""What every ``tokenizer.json`` has, whatever its family: a BPE vocabulary with merges, and added tokens.

Added tokens ("<s>", "<image>") are cut out of a text before anything else looks at it. The file is Hugging Face's
``tokenizers`` format; what is read here is read as that library reads it.
"""

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from minillava.errors import UserError

# The characters of Unicode's White_Space property. str.isspace knows four more, the separators U+001C to U+001F.
WHITESPACE = "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"  # fmt: skip  # noqa: E501
LONGEST = 1000  # characters of a token, since what makes it is tried step by step
SPACES = re.compile(f"[{WHITESPACE}]*")


def read_bpe(model: dict) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A tokenizer.json's "model" -> (token to id, merges in order of rank). Raises UserError unless it is plain BPE."""
    kind = model.get("type", "BPE")  # old files do not name it
    if kind != "BPE" or "merges" not in model:
        raise UserError(f"the model is {kind!r}, not BPE with merges")
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(option):
            raise UserError(f"the model's {option} is {model[option]!r}, which is not supported")
    vocab = model["vocab"]
    tokens: dict[int, str] = {}
    for token, index in vocab.items():
        if type(index) is not int or index < 0:
            raise UserError(f"token {token!r} has the id {index!r}, not a whole number from 0 up")
        if index in tokens:
            raise UserError(f"tokens {tokens[index]!r} and {token!r} have the same id, {index}")
        tokens[index] = token
    merges = []
    for merge in model["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        if len(left) + len(right) > LONGEST:
            raise UserError(f"a merge makes a token of {len(left) + len(right)} characters; {LONGEST} are the most")
        for token in (left, right, left + right):
            if token not in vocab:
                raise UserError(f"merge {left!r} {right!r} needs {token!r}, which is not in the vocabulary")
        merges.append((left, right))
    if len(set(merges)) < len(merges):
        raise UserError("a merge is listed twice")
    return vocab, merges


def bpe_file(
    vocab: dict[str, int], merges: list[tuple[str, str]], special: dict[int, str], model: dict, **parts: dict | None
) -> dict:
    """A tokenizer.json's contents. ``special`` names special tokens by id; ``model`` holds options that are not off,
    ``parts`` the "normalizer", "pre_tokenizer", "post_processor" and "decoder" that there are."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": index, "content": content, **flags} for index, content in special.items()],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        **parts,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            **model,
            "vocab": vocab,
            "merges": merges,
        },
    }


@dataclass(frozen=True)
class AddedToken:
    """A token that is cut out of the text. ``lstrip`` and ``rstrip`` swallow the white space beside it; ``normalized``
    looks for it after normalisation; a ``special`` one can be left as ordinary text."""

    content: str
    id: int
    special: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False

    @classmethod
    def from_dict(cls, index: int, token: dict) -> "AddedToken":
        """From an entry of tokenizer.json's "added_tokens", or of "added_tokens_decoder". Raises UserError."""
        content = token["content"]
        if not isinstance(content, str) or not content:
            raise UserError(f"an added token has the content {content!r}")
        if type(index) is not int or index < 0:
            raise UserError(f"added token {content!r} has the id {index!r}, not a whole number from 0 up")
        if token.get("single_word"):
            raise UserError(f"added token {content!r} is marked single_word, which is not supported")
        flags = {name: bool(token.get(name)) for name in ("special", "lstrip", "rstrip", "normalized")}
        return cls(content, index, **flags)


def include(stored: dict, tokens: Iterable[AddedToken]) -> None:
    """Enter added tokens into a tokenizer.json's contents.

    All of them into the vocabulary too: those that are not there are numbered anew by `tokenizers`, from the
    vocabulary's size up, whatever ids the file gives them.
    """
    stored["added_tokens"] += [{**asdict(token), "single_word": False} for token in tokens]
    stored["model"]["vocab"] |= {token["content"]: token["id"] for token in stored["added_tokens"]}


class Splitter:
    """Cuts a text at added tokens. Where several begin at the same place, the longest counts."""

    def __init__(self, tokens: dict[str, AddedToken]):
        """``tokens``: what to look for in the text -> the token."""
        self._tokens = tokens
        longest_first = sorted(tokens, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def split(self, text: str, special: bool) -> list[str | int]:
        """Stretches of text and, between them, ids of added tokens. Without ``special``, special ones stay text."""
        parts: list[str | int] = []
        end = 0
        for match in self._pattern.finditer(text):
            token = self._tokens[match.group()]
            if token.special and not special:
                continue
            before = text[end : match.start()]
            parts.append(before.rstrip(WHITESPACE) if token.lstrip else before)
            parts.append(token.id)
            end = match.end()
            if token.rstrip:
                end = SPACES.match(text, end).end()
        parts.append(text[end:])
        return [part for part in parts if part != ""]
