"""Byte-level BPE, the tokenizer of GPT-2, SmolLM2, Llama 3 and of our own model. tiktoken runs it.

"Byte-level" means that BPE starts from single bytes, each of which is a token, so every text can be encoded.

tiktoken does not take a list of merges. It takes a rank for each token, and always joins the two neighbours whose
joined token has the lowest rank. ``rank_tokens`` computes ranks that give the same result as the merges.
"""

from functools import cache
from itertools import pairwise

import regex
import tiktoken

from minillava.errors import UserError
from minillava.formats.byte_characters import to_bytes
from minillava.formats.tokenizer_files import TokenizerFiles
from minillava.formats.tokenizer_json import split_patterns

# GPT-2's split into words: contractions; then letters, digits or other characters, each with an optional space before
# them; then whitespace.
SPLIT = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""

WORDS_KEPT = 1 << 14  # how many words are cached with their ids: texts repeat a small number of words


def rank_tokens(merges: list[tuple[bytes, bytes]]) -> dict[bytes, int]:
    """A rank for each token, with which tiktoken gives the same tokens as the merges applied in order.

    Several merges may make the same token, from different pairs. Only one of them is ever used: BPE works on the bytes
    of that token the same way wherever they are, so it always reaches the same pair before it joins them. The place of
    that merge in the list is the token's rank. If BPE does not join the bytes of a token, it has no rank.
    """
    order = {pair: 256 + place for place, pair in enumerate(merges)}
    ranks = {bytes([byte]): byte for byte in range(256)}
    for token in {left + right for left, right in merges}:
        rank = _last_merge(token, order)
        if rank is not None:
            ranks[token] = rank
    return ranks


def _last_merge(token: bytes, order: dict[tuple[bytes, bytes], int]) -> int | None:
    """The rank of the last merge when BPE encodes the bytes of ``token``, or None if it ends in several tokens."""
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
    """Encodes text without added tokens. ``token_bytes`` maps ids to bytes. ``adds_space`` is False: this kind of BPE
    adds no space before a text."""

    adds_space = False

    def __init__(self, files: TokenizerFiles):
        """Raises UserError if ``files`` ask for something unsupported."""
        # Ordinary text never becomes an added token, except one of a single byte: that byte has no other token.
        added = {token for token in files.tokens if len(token) > 1}
        ids = {to_bytes(token): index for token, index in files.vocab.items() if token not in added}
        ranks = rank_tokens([(to_bytes(a), to_bytes(b)) for a, b in files.merges if a + b not in added])
        self.token_bytes = {index: token for token, index in ids.items()}
        self._ids = {rank: ids[token] for token, rank in ranks.items() if token in ids}
        # With ignore_merges, a word that equals a token is encoded as that token, even if no merge makes it.
        self._whole = ids if files.ignore_merges else {}
        patterns, gpt2_split = split_patterns(files.stored)
        patterns += [(SPLIT, True)] if gpt2_split else []
        self._patterns = [(regex.compile(pattern), keep) for pattern, keep in patterns]
        self._encoding = _word_encoding(ranks, "(?s:.+)")
        self._known: dict[str, list[int]] = {}

    def normalize(self, text: str, where: object) -> str:
        """Return the text unchanged."""
        return text

    def encode(self, text: str, where: object) -> list[int]:
        """Ids of ``text``; ``where`` does not matter. Raises UserError for a byte that the vocabulary lacks."""
        words = [text]
        for pattern, keep in self._patterns:  # each splits the results of the one before
            words = [part for word in words for part in _cut(pattern, word, keep)]
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


def _cut(pattern: regex.Pattern, text: str, keep: bool) -> list[str]:
    """Split ``text`` into the matches of ``pattern`` and, with ``keep``, the texts between them, in order."""
    known = text if text.isascii() else text.translate(_newer_characters())
    spans = [match.span() for match in pattern.finditer(known)]
    if keep:
        spans = pairwise([0, *(place for span in spans for place in span), len(text)])
    return [text[start:end] for start, end in spans if start < end]


@cache
def _newer_characters() -> dict[int, str]:
    """A str.translate table for characters that are newer than the Unicode version of tiktoken and `tokenizers`.

    `regex` has a newer Unicode version, in which such a character may be a letter, so words would be split differently.
    The table replaces them by U+FFFF, which is unassigned in every version.
    """
    assigned = "".join(regex.findall(r"\P{Cn}+", "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)]))))
    unassigned = _word_encoding({bytes([byte]): byte for byte in range(256)}, r"\p{Cn}+")  # drops what does not match
    newer = bytes(unassigned.encode_ordinary(assigned)).decode()
    return dict.fromkeys(map(ord, newer), "\uffff")
