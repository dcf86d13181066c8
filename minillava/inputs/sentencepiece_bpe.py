"""SentencePiece's BPE with byte fallback, written out: the tokenizer of LLaMA 1 and 2, Vicuna and TinyLlama.

- The text is not split into words. It is one sequence of characters, with every space written as "▁", and merges may
  join characters across words.
- A character without a token becomes its UTF-8 bytes, written "<0xE2>" and so on, so every text can be encoded.
- A space is added before the text, so that a word gets the same token at the beginning as after a space. LLaMA
  tokenizers differ in where they add it.
- A "▁" in the text is decoded to a space. It is the only character that decoding does not restore.
"""

import re
from enum import Enum
from heapq import heapify, heappop, heappush

import regex

from minillava.formats.tokenizer_files import TokenizerFiles
from minillava.formats.tokenizer_json import SPACE, byte_ids, metaspace, normalizer_steps


class Where(Enum):
    """Where in the whole text a piece of ordinary text is."""

    START = "at the beginning"
    AFTER_TOKEN = "after an added token"
    INSIDE = "after other text"


class SentencePieceBPE:
    """Encodes text without added tokens. ``token_bytes`` maps ids to bytes. ``adds_space`` says whether encoding adds a
    space before a text."""

    def __init__(self, files: TokenizerFiles):
        """Merges never make an added token. Raises UserError if ``files`` ask for something unsupported."""
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
        """The normalised text. With Where.INSIDE, no space is added before it."""
        for pattern, replacement, adds_space in self._steps:
            if not (adds_space and where is Where.INSIDE):
                text = pattern.sub(replacement, text)
        return text

    def encode(self, text: str, where: Where) -> list[int]:
        """Ids of a text that normalize() has returned."""
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
        """Join neighbouring tokens: always the merge of lowest rank, and the leftmost of those with the same rank.

        A heap holds possible merges. Each step takes the first one, and skips it if a token of its pair has been joined
        with another since. ``after`` and ``before`` link the remaining tokens, so a step takes O(log n) time.
        """
        end = len(ids)
        after, before = list(range(1, end + 1)), list(range(-1, end - 1))

        def possible(i: int) -> tuple[int, int, int] | None:
            """(rank, i, joined id) if the token at i can be joined with the next one, else None."""
            if i < 0 or after[i] == end:
                return None
            merge = self._merges.get((ids[i], ids[after[i]]))
            return merge and (merge[0], i, merge[1])

        heap = [merge for i in range(end) if (merge := possible(i))]
        heapify(heap)
        while heap:
            merge = heappop(heap)
            _, i, joined = merge
            if ids[i] < 0 or possible(i) != merge:  # one of the two has been joined with another token
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
