"""Byte-level BPE, the tokenizer of GPT-2, SmolLM2, Llama 3 and of our own model. tiktoken runs it.

"Byte-level" means that BPE starts from single bytes. If all 256 are tokens, every text can be encoded. Some
vocabularies lack the bytes of control characters; as in `tokenizers`, such bytes of a text are skipped.

tiktoken does not take a list of merges. It takes a rank for each token, and always joins the two neighbours whose
joined token has the lowest rank. ``rank_tokens`` computes ranks that give the same result as the merges.
"""

from functools import cache
from itertools import chain, groupby, pairwise
from math import inf

import regex
import tiktoken

from minillava.formats.byte_characters import all_to_bytes
from minillava.formats.tokenizer_files import TokenizerFiles
from minillava.formats.tokenizer_json import split_patterns

# GPT-2's split into words: contractions; then letters, digits or other characters, each with an optional space before
# them; then whitespace.
SPLIT = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""

WORDS_KEPT = 1 << 14  # how many words are cached with their ids: texts repeat a small number of words


def rank_tokens(merges: list[tuple[bytes, bytes]]) -> dict[bytes, int]:
    """A rank for each token, with which tiktoken gives the same tokens as the merges applied in order.

    Several merges may make the same token, from different pairs. BPE joins the bytes of a token in the same order
    everywhere in a text, so only one of these merges is ever the last step that makes it. The rank of a token is 256 +
    the place of that merge in the list. If BPE, given only the bytes of a token, does not end with that one token, the
    token has no rank.

    If the list has every pair of each token (see _has_every_pair), the tokens are numbered from 256 instead.
    """
    tokens = list(dict.fromkeys(map(b"".join, merges)))
    ranks = {bytes([byte]): byte for byte in range(256)}
    if _has_every_pair(merges, tokens):
        return ranks | {token: 256 + place for place, token in enumerate(tokens)}
    order = {pair: 256 + place for place, pair in enumerate(merges)}
    for token in tokens:
        rank = _last_merge(token, order)
        if rank is not None:
            ranks[token] = rank
    return ranks


def _has_every_pair(merges: list[tuple[bytes, bytes]], tokens: list[bytes]) -> bool:
    """Whether ``merges`` is grouped by token and has, for each token, all pairs that form it. Files converted from
    tiktoken's format are like this.

    The order of the tokens is then enough to rank them. If each token has only one pair, this returns False, and
    rank_tokens() uses the place of each merge in the list.
    """
    if len(merges) == len(tokens) or sum(1 for _ in groupby(map(b"".join, merges))) > len(tokens):
        return False
    known = {bytes([byte]) for byte in range(256)}.union(tokens, chain.from_iterable(merges))
    pairs = sum(token[:cut] in known and token[cut:] in known for token in tokens for cut in range(1, len(token)))
    return pairs == len(merges)


def _last_merge(token: bytes, order: dict[tuple[bytes, bytes], int]) -> int | None:
    """The rank of the last merge when BPE encodes the bytes of ``token``, or None if several tokens remain."""
    parts = [token[i : i + 1] for i in range(len(token))]
    ranks = [order.get(pair, inf) for pair in pairwise(parts)]  # of joining each part with the next
    rank = None
    while ranks:
        rank = min(ranks)
        if rank == inf:
            return None
        i = ranks.index(rank)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
        del ranks[i]
        for place in (i - 1, i):
            if 0 <= place < len(ranks):
                ranks[place] = order.get((parts[place], parts[place + 1]), inf)
    return rank


class ByteBPE:
    """Encodes ordinary text. tokenizer.py has cut out the added tokens before.

    ``token_bytes`` maps ids to bytes; ``missing`` are the bytes without a token. ``adds_space`` is False: this kind of
    BPE adds no space before a text.
    """

    adds_space = False

    def __init__(self, files: TokenizerFiles):
        """Raises UserError if ``files`` ask for something unsupported."""
        # Added tokens are left out, so ordinary text never becomes one. An added token whose name is one character is
        # kept, because it is the only token of the byte that this character spells.
        added = {token for token in files.tokens if len(token) > 1}
        names = [name for name in files.vocab if name not in added]
        # Merges may have an added token as a part.
        spelled = all_to_bytes([*names, *added.intersection(chain.from_iterable(files.merges))])
        ids = {spelled[name]: files.vocab[name] for name in names}
        if files.ranks:  # a file in tiktoken's format
            ranks = {spelled[name]: rank for name, rank in files.ranks.items() if name not in added}
        else:
            ranks = rank_tokens([(spelled[a], spelled[b]) for a, b in files.merges if a + b not in added])
        self.token_bytes = {index: token for token, index in ids.items()}
        self._ids = {rank: ids[token] for token, rank in ranks.items() if token in ids}
        self.missing = bytes(byte for byte in range(256) if bytes([byte]) not in ids)
        # With ignore_merges, a word that equals a token is encoded as that token, even if no merge makes it.
        self._whole = ids if files.ignore_merges else {}
        patterns, gpt2_split = split_patterns(files.stored)
        patterns += [(SPLIT, True)] if gpt2_split else []
        self._patterns = [(regex.compile(pattern), keep) for pattern, keep in patterns]
        self._encoding = _word_encoding(ranks, "")  # words are split here, with the patterns
        self._known: dict[str, list[int]] = {}

    def normalize(self, text: str, where: object) -> str:
        """Return the text unchanged."""
        return text

    def encode(self, text: str, where: object) -> list[int]:
        """Ids of ``text``; ``where`` does not matter. A byte that the vocabulary lacks is left out before merging."""
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
        known = word.encode().translate(None, self.missing)
        return [self._ids[rank] for rank in self._encoding._encode_single_piece(known)] if known else []


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
    unassigned = _word_encoding({bytes([byte]): byte for byte in range(256)}, r"\p{Cn}+")  # encodes only what matches
    newer = bytes(unassigned.encode_ordinary(assigned)).decode()
    return dict.fromkeys(map(ord, newer), "\uffff")
