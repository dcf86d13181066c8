"""SentencePiece's BPE with byte fallback, by hand: LLaMA-1 and -2, Vicuna and TinyLlama have it.

There are no words: a whole text is one sequence of characters, in which "▁" stands for a space, and merges run over
all of it. A character that is no token becomes its UTF-8 bytes, "<0xE2>" and so on, so no text is unknown.

A space that is not in the text is put before it, so that a word is the same token at the beginning and after a space.
When it is put is where LLaMA tokenizers differ. "▁" itself decodes to a space: the one character that does not return.
"""

import re
from enum import Enum
from heapq import heapify, heappop, heappush

import regex

from minillava.errors import UserError
from minillava.formats.tokenizer_files import TokenizerFiles
from minillava.formats.tokenizer_model import SPACE, byte_token


class Where(Enum):
    """Where a stretch of text stands."""

    START = "at the beginning"
    AFTER_TOKEN = "after an added token"
    INSIDE = "after other text"


class SentencePieceBPE:
    """``token_bytes`` maps ids to bytes; ``adds_space`` says whether a space is put before a text."""

    def __init__(self, files: TokenizerFiles):
        """Added tokens are never made by merges. Raises UserError for what is not supported."""
        if not files.stored["model"].get("byte_fallback"):
            raise UserError("the model has neither bytes for tokens (ByteLevel) nor byte_fallback")
        self._vocab = files.vocab
        if missing := [token for token in map(byte_token, range(256)) if token not in self._vocab]:
            raise UserError(f"byte_fallback without the token {missing[0]}")
        self._byte_ids = [self._vocab[byte_token(byte)] for byte in range(256)]
        self.token_bytes = {index: token.replace(SPACE, " ").encode() for token, index in self._vocab.items()}
        self.token_bytes |= {index: bytes([byte]) for byte, index in enumerate(self._byte_ids)}
        self._whole = self._vocab if files.stored["model"].get("ignore_merges") else {}
        self._merges = {
            (self._vocab[left], self._vocab[right]): (rank, self._vocab[left + right])
            for rank, (left, right) in enumerate(files.merges)
            if left + right not in files.tokens
        }
        self._steps = _normalizer_steps(files.stored.get("normalizer"))
        self._scheme, self._splits = _metaspace(files.stored.get("pre_tokenizer"))
        self.adds_space = self._scheme in ("always", "first") or any(adds for _, _, adds in self._steps)

    def normalize(self, text: str, where: Where) -> str:
        """The text as added tokens marked "normalized" are looked for in it. The space is left out inside a text."""
        for pattern, replacement, adds_space in self._steps:
            if not (adds_space and where is Where.INSIDE):
                text = pattern.sub(replacement, text)
        return text

    def encode(self, text: str, where: Where) -> list[int]:
        """Ids of a normalised text."""
        if self._scheme is not None:
            text = text.replace(" ", SPACE)
            wanted = where is Where.START or (where is Where.AFTER_TOKEN and self._scheme == "always")
            if wanted and self._scheme != "never" and not text.startswith(SPACE):
                text = SPACE + text
        words = re.split(rf"(?!\A)(?={SPACE})", text) if self._splits else [text]
        ids = []
        for word in words:
            ids += [self._whole[word]] if word in self._whole else self._merge(self._characters(word))
        return ids

    def _characters(self, text: str) -> list[int]:
        ids = []
        for character in text:
            index = self._vocab.get(character)
            ids += [index] if index is not None else [self._byte_ids[byte] for byte in character.encode()]
        return ids

    def _merge(self, ids: list[int]) -> list[int]:
        """Join neighbours, the merge of lowest rank first, of equal ones the leftmost.

        A heap holds every merge that was possible when it was put there; each step takes the first one that still is.
        ``after`` and ``before`` link what is left, so that a step costs no more than its share of the heap.
        """
        end = len(ids)
        after, before = list(range(1, end + 1)), list(range(-1, end - 1))

        def possible(i: int) -> tuple[int, int, int] | None:
            """(rank, place, joined id) of the merge of what stands at i and what follows it."""
            if i < 0 or after[i] == end:
                return None
            merge = self._merges.get((ids[i], ids[after[i]]))
            return merge and (merge[0], i, merge[1])

        heap = [merge for i in range(end) if (merge := possible(i))]
        heapify(heap)
        while heap:
            merge = heappop(heap)
            _, i, joined = merge
            if ids[i] < 0 or possible(i) != merge:  # one of the two has been joined with something else
                continue
            gone = after[i]
            ids[i], ids[gone] = joined, -1
            after[i] = after[gone]
            if after[i] < end:
                before[after[i]] = i
            for place in (before[i], i):
                if new := possible(place):
                    heappush(heap, new)
        return [index for index in ids if index >= 0]


def _normalizer_steps(normalizer: dict | None) -> list[tuple[regex.Pattern, str, bool]]:
    """A tokenizer.json's "normalizer" -> (pattern, replacement, whether it adds the space) to be applied in order."""
    if normalizer is None:
        return []
    kind = normalizer["type"]
    if kind == "Sequence":
        return [step for part in normalizer["normalizers"] for step in _normalizer_steps(part)]
    if kind == "Prepend":
        return [(regex.compile(r"\A(?=.)", regex.DOTALL), _literal(normalizer["prepend"]), True)]
    if kind == "Replace":
        [(form, pattern)] = normalizer["pattern"].items()
        try:
            compiled = regex.compile(pattern if form == "Regex" else regex.escape(pattern, literal_spaces=True))
        except regex.error as error:
            raise UserError(f"normalizer: {pattern!r} is not a regular expression ({error})") from None
        # transformers writes this one before a Metaspace, which adds no space before a text that begins with one.
        return [(compiled, _literal(normalizer["content"]), pattern == rf"\A{SPACE}")]
    raise UserError(f"normalizer {kind} is not supported with SentencePiece BPE")


def _literal(text: str) -> str:
    return text.replace("\\", r"\\")


def _metaspace(pre_tokenizer: dict | None) -> tuple[str | None, bool]:
    """A tokenizer.json's "pre_tokenizer" -> (prepend scheme or None, whether the text is split at spaces)."""
    if pre_tokenizer is None:
        return None, False
    if pre_tokenizer["type"] == "Sequence" and len(pre_tokenizer["pretokenizers"]) == 1:
        [pre_tokenizer] = pre_tokenizer["pretokenizers"]
    if pre_tokenizer["type"] != "Metaspace" or pre_tokenizer["replacement"] != SPACE:
        kind = pre_tokenizer["type"]
        raise UserError(f"pre-tokenizer {kind} with these settings is not supported: {pre_tokenizer!r:.200}")
    scheme = pre_tokenizer.get("prepend_scheme", "always" if pre_tokenizer.get("add_prefix_space", True) else "never")
    if scheme not in ("always", "first", "never"):
        raise UserError(f"prepend_scheme {scheme!r} is not one of always, first, never")
    return scheme, bool(pre_tokenizer.get("split", True))
