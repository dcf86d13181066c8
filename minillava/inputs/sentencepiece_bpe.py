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

from minillava.formats.tokenizer_files import TokenizerFiles
from minillava.formats.tokenizer_json import SPACE, byte_ids, metaspace, normalizer_steps


class Where(Enum):
    """Where a stretch of text stands."""

    START = "at the beginning"
    AFTER_TOKEN = "after an added token"
    INSIDE = "after other text"


class SentencePieceBPE:
    """``token_bytes`` maps ids to bytes; ``adds_space`` says whether a space is put before a text."""

    def __init__(self, files: TokenizerFiles):
        """Added tokens are never made by merges. Raises UserError for what is not supported."""
        self._vocab, self._byte_ids = files.vocab, byte_ids(files.stored["model"])
        self.token_bytes = {index: token.replace(SPACE, " ").encode() for token, index in self._vocab.items()}
        self.token_bytes |= {index: bytes([byte]) for byte, index in enumerate(self._byte_ids)}
        self._whole = self._vocab if files.ignore_merges else {}
        self._merges = {
            (self._vocab[left], self._vocab[right]): (rank, self._vocab[left + right])
            for rank, (left, right) in enumerate(files.merges)
            if left + right not in files.tokens
        }
        steps = normalizer_steps(files.stored.get("normalizer"))
        self._steps = [(regex.compile(pattern), *rest) for pattern, *rest in steps]
        self._scheme, self._splits = metaspace(files.stored.get("pre_tokenizer"))
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
