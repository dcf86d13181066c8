"""Byte-level BPE, as GPT-2, SmolLM2, Llama-3 and our own tokenizer have it, run by tiktoken.

"Byte-level" means that every byte is a token to begin with, so no text is unknown.

tiktoken knows no list of merges. It has a rank for each token, and joins the two neighbours that make the token of
lowest rank, whichever two they are. ``rank_tokens`` finds ranks with which that comes to the same.
"""

from functools import cache
from itertools import pairwise

import regex
import tiktoken

from minillava.errors import UserError
from minillava.formats.byte_characters import to_bytes
from minillava.formats.tokenizer_files import TokenizerFiles
from minillava.formats.tokenizer_json import split_patterns

# GPT-2's split into words: contractions, letters, digits, other signs, each with one space before it; then spaces.
SPLIT = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""

WORDS_KEPT = 1 << 14  # in memory: a text's words are few and come again and again


def rank_tokens(merges: list[tuple[bytes, bytes]]) -> dict[bytes, int]:
    """Ranks with which tiktoken joins what the merges, in order, would join.

    Where two tokens stand side by side in any text, BPE has come to just these two on their stretch of it, as it would
    on that stretch alone. It comes to two tokens once at most, so of all the ways to cut a token in two, one alone ever
    stands in a text. If that one is a merge, its place in the list is the token's rank; if not, no merge makes it.
    """
    order = {pair: 256 + place for place, pair in enumerate(merges)}
    ranks = {bytes([byte]): byte for byte in range(256)}
    for token in {left + right for left, right in merges}:
        rank = _last_merge(token, order)
        if rank is not None:
            ranks[token] = rank
    return ranks


def _last_merge(token: bytes, order: dict[tuple[bytes, bytes], int]) -> int | None:
    """The rank of the merge with which BPE on the bytes of ``token`` ends, or None if it ends in several tokens."""
    parts, rank = [token[i : i + 1] for i in range(len(token))], None
    while len(parts) > 1:
        found = [order.get(pair) for pair in pairwise(parts)]
        rank = min((rank for rank in found if rank is not None), default=None)
        if rank is None:
            return None
        i = found.index(rank)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return rank


class ByteBPE:
    """A byte-level BPE. ``token_bytes`` maps ids to bytes; ``adds_space`` is False, as there is no such thing here."""

    adds_space = False

    def __init__(self, files: TokenizerFiles):
        """Added tokens never come out of ordinary text. Raises UserError for what is not supported."""
        # An added token of one byte is the byte too: text could not be written without it.
        added = {token for token in files.tokens if len(token) > 1}
        ids = {to_bytes(token): index for token, index in files.vocab.items() if token not in added}
        ranks = rank_tokens([(to_bytes(a), to_bytes(b)) for a, b in files.merges if a + b not in added])
        self.token_bytes = {index: token for token, index in ids.items()}
        self._ids = {rank: ids[token] for token, rank in ranks.items() if token in ids}
        # With ignore_merges, a word that is a token as a whole is that token, even one that no merge makes.
        self._whole = ids if files.ignore_merges else {}
        patterns, gpt2_split = split_patterns(files.stored)
        self._patterns = [regex.compile(pattern) for pattern in patterns + ([SPLIT] if gpt2_split else [])]
        self._encoding = _word_encoding(ranks, "(?s:.+)")
        self._known: dict[str, list[int]] = {}

    def normalize(self, text: str, where: object) -> str:
        """The text itself."""
        return text

    def encode(self, text: str, where: object) -> list[int]:
        """Ids of ``text``, the same wherever it stands. Raises UserError for a byte that the vocabulary lacks."""
        words = [text]
        for pattern in self._patterns:  # each cuts what the one before it left
            words = [part for word in words for part in _cut(pattern, word)]
        ids = []
        for word in words:
            known = self._known.get(word)
            if known is None:
                known = self._encode_word(word)
                if len(self._known) < WORDS_KEPT:
                    self._known[word] = known
            ids += known
        return ids

    def _encode_word(self, word: str) -> list[int]:
        if (whole := self._whole.get(word.encode())) is not None:
            return [whole]
        try:
            return [self._ids[rank] for rank in self._encoding.encode_ordinary(word)]
        except KeyError as error:
            raise UserError(f"the tokenizer has no token for the byte {error.args[0]:#04x} in {word!r:.50}") from None


def _word_encoding(ranks: dict[bytes, int], pattern: str) -> tiktoken.Encoding:
    return tiktoken.Encoding("words", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})


def _cut(pattern: regex.Pattern, text: str) -> list[str]:
    """The matches of ``pattern`` and what lies between them, in order."""
    known = text if text.isascii() else text.translate(_newer_characters())
    places = [place for match in pattern.finditer(known) for place in match.span()]
    return [text[start:end] for start, end in pairwise([0, *places, len(text)]) if start < end]


@cache
def _newer_characters() -> dict[int, str]:
    """Characters that `regex` knows but the older Unicode of tiktoken and `tokenizers` does not -> one unknown to all.

    Otherwise a letter that is new to Unicode would be a letter here and a sign there, and words would differ.
    """
    assigned = "".join(regex.findall(r"\P{Cn}+", "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)]))))
    unassigned = _word_encoding({bytes([byte]): byte for byte in range(256)}, r"\p{Cn}+")  # drops what does not match
    newer = bytes(unassigned.encode_ordinary(assigned)).decode()
    return dict.fromkeys(map(ord, newer), "\uffff")
