"""Text <-> token ids, with the tokenizers of LLaMA-like language models.

- ``train_bpe`` trains a byte-level BPE: split the text into words, then join the most frequent pair, again and again.
- ``write_tokenizer`` stores the result as ``tokenizer.json``, in the format of Hugging Face's ``tokenizers``.
- ``Tokenizer`` reads such a file, or a ``tokenizer.model``. It first cuts a text at added tokens such as "<image>"; the
  text between them goes to byte-level BPE (``byte_bpe.py``) or to SentencePiece BPE (``sentencepiece_bpe.py``).
"""

import itertools
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import regex

from minillava.formats.byte_characters import to_characters
from minillava.formats.tokenizer_files import (
    END,
    IMAGE,
    PAD,
    TokenizerFiles,
    blame,
    dump,
    extend,
    interpret,
    read_files,
    write_files,
)
from minillava.formats.tokenizer_json import AddedToken
from minillava.inputs.byte_bpe import SPLIT, ByteBPE
from minillava.inputs.sentencepiece_bpe import SentencePieceBPE, Where

STOP = "###"
MARK = re.compile(r"(<\|\w+\|>|</?s>|###)")  # special tokens in chat templates
SPECIAL_TOKENS = (STOP, IMAGE, PAD, END)
# The characters with Unicode's White_Space property. str.isspace accepts four more, U+001C to U+001F.
WHITESPACE = "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"  # fmt: skip  # noqa: E501
SPACES = re.compile(f"[{WHITESPACE}]*")


def train_bpe(text: str, vocab_size: int) -> list[tuple[bytes, bytes]]:
    """Learn the merges of a byte-level BPE with ``vocab_size`` tokens, including the 256 single bytes.

    Sennrich et al. 2016, algorithm 1: count all adjacent pairs within words, join the most frequent pair, count again.
    Of equally frequent pairs the first in byte order is joined, so the same text always gives the same merges. Training
    stops early when no pair occurs twice. The names of SPECIAL_TOKENS in the text count as newlines.
    """
    for token in SPECIAL_TOKENS:
        text = text.replace(token, "\n")
    words = [
        ([bytes([byte]) for byte in word.encode()], count)
        for word, count in Counter(regex.findall(SPLIT, text)).items()
    ]
    merges: list[tuple[bytes, bytes]] = []
    while 256 + len(merges) < vocab_size:
        # Count the pairs of all words, then join the most frequent one everywhere.
        pairs: Counter[tuple[bytes, bytes]] = Counter()
        for pieces, count in words:
            for pair in itertools.pairwise(pieces):
                pairs[pair] += count
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        if pairs[best] < 2:
            break
        merges.append(best)
        for pieces, _ in words:
            _join(pieces, best)
    return merges


def _join(pieces: list[bytes], pair: tuple[bytes, bytes]) -> None:
    """Join every occurrence of ``pair`` in ``pieces``, in place, from left to right."""
    i = 0
    while i < len(pieces) - 1:
        if (pieces[i], pieces[i + 1]) == pair:
            pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]
        i += 1


def write_tokenizer(folder: str | os.PathLike, merges: list[tuple[bytes, bytes]]) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json``. Ids: 256 bytes, the merges in order, SPECIAL_TOKENS."""
    tokens = [bytes([byte]) for byte in range(256)] + [left + right for left, right in merges]
    vocab = {to_characters(token): index for index, token in enumerate(tokens)}
    pairs = [(to_characters(left), to_characters(right)) for left, right in merges]
    special = dict(enumerate(SPECIAL_TOKENS, start=len(tokens)))
    write_files(Path(folder), vocab, pairs, special)


class Splitter:
    """Cuts a text at added tokens. Of several that begin at the same place, the longest is taken."""

    def __init__(self, tokens: dict[str, AddedToken]):
        """``tokens``: the added tokens, by the string to look for."""
        self._tokens = tokens
        longest_first = sorted(tokens, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def split(self, text: str, special: bool) -> list[str | int]:
        """``text`` in pieces: ordinary text (str) and ids of added tokens (int), in order.

        With ``special=False``, special tokens are ordinary text.
        """
        parts: list[str | int] = []
        end = 0
        for match in self._pattern.finditer(text):
            token = self._tokens[match.group()]
            if special or not token.special:
                before = text[end : match.start()]
                parts += [before.rstrip(WHITESPACE) if token.lstrip else before, token.id]
                end = SPACES.match(text, match.end()).end() if token.rstrip else match.end()
        return [part for part in (*parts, text[end:]) if part != ""]


class Tokenizer:
    """Text to ids and back.

    ``special`` maps the names of special tokens to ids. ``bos_id``, ``eos_id``, ``pad_id`` and ``image_id`` are None if
    there is no such token. ``add_bos`` says whether the model expects the bos token before a text; ``encode`` does not
    add it. ``vocab_size`` is the highest id + 1; some ids below it may have no token.
    """

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike, original: bool = False) -> "Tokenizer":
        """Read a folder's tokenizer.json or, if it has none, its tokenizer.model (SentencePiece's or Llama 3's).

        ``original``, for a folder of the LLaVA authors' code, changes three things. tokenizer.model is preferred to
        tokenizer.json. The tokenizer is "legacy" (see encode()) unless the folder says otherwise; this was the default
        of transformers 4. Text after a picture is encoded as Where.FRESH says.

        Raises UserError, naming the file, if it is missing, damaged or of a kind that is not supported.
        """
        return cls(Path(folder), read_files(folder, original), original)

    def __init__(self, folder: Path, files: dict[str, bytes], original: bool = False):
        """``files`` maps file names to contents. ``folder`` is only named in error messages."""
        self._original = original
        self._use(interpret(folder, files))

    def _use(self, read: TokenizerFiles, model: ByteBPE | SentencePieceBPE | None = None) -> None:
        # A template's special tokens are special even if the files do not say so. So if a user types such a token,
        # encode(special=False) treats it as ordinary text.
        tokens = {name: t._replace(special=t.special or bool(MARK.fullmatch(name))) for name, t in read.tokens.items()}
        with blame(read.source):
            self._model = model or (ByteBPE if read.byte_level else SentencePieceBPE)(read)
            self._bytes = self._model.token_bytes | {t.id: name.encode() for name, t in read.tokens.items()}
            self.vocab_size = max(self._bytes) + 1
        self.add_bos = read.add_bos
        self.special = {name: token.id for name, token in tokens.items() if token.special}
        self.bos_id, self.eos_id, self.pad_id = map(self.special.get, read.roles.values())
        self.image_id = self.special.get(IMAGE)
        self._read = read
        self._added_ids = {token.id for token in read.tokens.values()}
        # Added tokens that are marked "normalized" are looked for in the normalised text, after all others have been
        # cut out of the text as given.
        plain = {name: token for name, token in tokens.items() if not token.normalized}
        other = {name: token for name, token in tokens.items() if token.normalized}
        self._plain = Splitter(plain)
        self._normalized = Splitter({self._model.normalize(name, Where.START): token for name, token in other.items()})

    def add_special_tokens(self, names: Iterable[str]) -> None:
        """Add ``names`` as special tokens.

        One that is an added token already is skipped; those that are not in the vocabulary get new ids, from
        ``vocab_size`` up. A "<pad>" among them becomes the padding token, if there is none.
        """
        names = list(names)
        # The BPE is built again only if it could make one of the new tokens from ordinary text.
        model = None if any(name in self._read.vocab for name in names) else self._model
        self._use(extend(self._read, names, self.vocab_size), model)

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write this tokenizer's files. transformers' AutoTokenizer gives the same ids from their tokenizer.json and
        tokenizer_config.json."""
        for name, content in self._read.files.items():
            (Path(folder) / name).write_bytes(dump(content) if isinstance(content, dict) else content)

    def encode(self, text: str, special: bool = True, after: Sequence[int] = ()) -> list[int]:
        """Ids of ``text``. With ``special=False``, a "###" or "<image>" in it is ordinary text, not a token.

        The text follows the ids ``after``. Byte-level BPE ignores them. SentencePiece adds a space before a text that
        comes first (``after`` is empty or only the bos), and none before a text that follows ordinary ids. After an
        added token, tokenizers that transformers calls "legacy" add a space and others do not.
        """
        # A lone half of a surrogate pair is not a character; replace it by U+FFFD.
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        if not after or (len(after) == 1 and after[0] == self.bos_id):
            where = Where.START
        elif self._original and after[-1] == self.image_id:
            where = Where.FRESH
        else:
            where = Where.AFTER_TOKEN if after[-1] in self._added_ids else Where.INSIDE
        ids = []
        for stretch in self._plain.split(text, special):
            if isinstance(stretch, str):
                for part in self._normalized.split(self._model.normalize(stretch, where), special):
                    ids += self._model.encode(part, where) if isinstance(part, str) else [part]
                    where = Where.AFTER_TOKEN
            else:
                ids.append(stretch)
            where = Where.AFTER_TOKEN
        return ids

    def count_unknown(self, text: str) -> int:
        """How many characters of ``text`` encode() leaves out, wholly or in part, since the vocabulary lacks a byte."""
        missing = set(self._model.missing)
        return sum(not missing.isdisjoint(character.encode("utf-8", "replace")) for character in text) if missing else 0

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ``ids``. Bytes that are not UTF-8 become U+FFFD; the space that SentencePiece adds before a text is
        removed."""
        text = self.decode_bytes(ids).decode("utf-8", errors="replace")
        return text[1:] if self._model.adds_space and text.startswith(" ") else text

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of ``ids``. Streaming needs bytes, since one character may span several tokens.

        An id without a token gives no bytes: a model may have more embeddings than its tokenizer has tokens.
        """
        return b"".join(self._bytes.get(index, b"") for index in ids)
