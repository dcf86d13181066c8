"""SentencePiece's BPE with byte fallback, implemented here without the library: the tokenizer of LLaMA 1 and 2, Vicuna
and TinyLlama.

- The text is one sequence of characters, with every space written as "▁". In most of these tokenizers it is not split
  into words, so merges may join characters across words.
- A character without a token becomes its UTF-8 bytes, written "<0xE2>" and so on, so every text can be encoded.
- A space is added before the text, so that a word gets the same token at the beginning as after a space. LLaMA
  tokenizers differ in where they add it.
- If the text itself contains a "▁", decoding gives a space in its place.
"""

import re
from enum import Enum
from heapq import heapify, heappop, heappush

import regex

from minillava.formats.tokenizer_files import TokenizerFiles
from minillava.formats.tokenizer_json import SPACE, byte_ids, byte_token, metaspace, normalizer_steps


class Where(Enum):
    """Where a piece of ordinary text is in the whole text."""

    START = "at the beginning"
    AFTER_TOKEN = "after an added token"
    INSIDE = "after other text"
    FRESH = "after a picture, in the LLaVA authors' code: a space is added even if the text begins with one"


class SentencePieceBPE:
    """Encodes ordinary text. tokenizer.py has cut out the added tokens before.

    ``token_bytes`` maps ids to bytes. ``adds_space`` says whether encoding adds a space before a text.
    """

    missing = b""

    def __init__(self, files: TokenizerFiles):
        """Merges never make an added token. Raises UserError if ``files`` ask for something unsupported."""
        self._vocab, self._byte_ids = files.vocab, byte_ids(files.stored["model"])
        self.token_bytes = {index: token.replace(SPACE, " ").encode() for token, index in self._vocab.items()}
        self.token_bytes |= {index: bytes([byte]) for byte, index in enumerate(self._byte_ids)}
        self._whole = self._vocab if files.ignore_merges else {}
        # A tokenizer.model has ranks; otherwise there are merges.
        self._ranks = files.ranks and {piece: rank for piece, rank in files.ranks.items() if piece not in files.tokens}
        merges = [] if files.ranks else files.merges
        self._merges = {pair: rank for rank, pair in enumerate(merges) if "".join(pair) not in files.tokens}
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
            wanted = where in (Where.START, Where.FRESH) or (where is Where.AFTER_TOKEN and self._scheme == "always")
            if wanted and self._scheme != "never" and (where is Where.FRESH or not text.startswith(SPACE)):
                text = SPACE + text
        words = re.split(rf"(?!\A)(?={SPACE})", text) if self._splits else [text]
        ids = []
        for word in words:
            for token in [word] if word in self._whole else self._merge(self._characters(word)):
                index = self._vocab.get(token)
                ids += [index] if index is not None else [self._byte_ids[byte] for byte in token.encode()]
        return ids

    def _characters(self, text: str) -> list[str]:
        """The characters of ``text``. With a tokenizer.json, characters without a token become bytes here, before
        merging. With a tokenizer.model, encode() does this after merging."""
        if self._ranks is not None:
            return list(text)
        parts: list[str] = []
        for character in text:
            parts += [character] if character in self._vocab else map(byte_token, character.encode())
        return parts

    def _rank(self, left: str, right: str) -> int | None:
        """The rank of joining two neighbours, or None if they are not joined.

        In a tokenizer.model, any two neighbours that form a piece are joined. A tokenizer.json lists pairs.
        """
        return self._merges.get((left, right)) if self._ranks is None else self._ranks.get(left + right)

    def _merge(self, tokens: list[str]) -> list[str]:
        """Join neighbouring tokens: always the pair of lowest rank, and the leftmost of those with the same rank.

        A heap holds pairs that can be joined. Each step takes the first one, and skips it if a token of the pair has
        been joined with another since. ``after`` and ``before`` link the remaining tokens: a step takes O(log n) time.
        """
        end = len(tokens)
        after, before = list(range(1, end + 1)), list(range(-1, end - 1))

        def pair_at(i: int) -> tuple[int, int, str] | None:
            """(rank, i, joined token) if the token at i is joined with the next one, else None."""
            if i < 0 or after[i] == end:
                return None
            left, right = tokens[i], tokens[after[i]]
            rank = self._rank(left, right)
            return None if rank is None else (rank, i, left + right)

        heap = [pair for i in range(end) if (pair := pair_at(i))]
        heapify(heap)
        while heap:
            pair = heappop(heap)
            _, i, joined = pair
            if not tokens[i] or pair_at(i) != pair:  # one of the two has been joined with another token
                continue
            gone = after[i]
            tokens[i], tokens[gone] = joined, ""
            after[i] = after[gone]
            if after[i] < end:
                before[after[i]] = i
            for place in (before[i], i):
                if new := pair_at(place):
                    heappush(heap, new)
        return [token for token in tokens if token]
