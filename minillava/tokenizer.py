"""Text <-> token ids by byte-level byte-pair encoding.

- Training is by hand (``train_bpe``): split the text into words, then again and again join the commonest pair.
- The result is stored as ``tokenizer.json`` in the form that Hugging Face's ``tokenizers`` reads.
- Encoding is tiktoken's work; it is the same algorithm, in Rust.

"Byte-level" means that every byte is a token to begin with, so no text is unknown. In the file, bytes are written as
printable characters (GPT-2's table): a space is "Ġ".
"""

import json
import os
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import regex
import tiktoken

from minillava.errors import UserError

# GPT-2's split into words: contractions, letters, digits, other signs, each with one space before it; then spaces.
SPLIT = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
STOP, IMAGE, PAD, END = "###", "<image>", "<pad>", "</s>"
SPECIAL_TOKENS = (STOP, IMAGE, PAD, END)


def _byte_characters() -> dict[int, str]:
    """GPT-2's table: printable bytes stand for themselves, the others for characters from 256 up."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    table = {byte: chr(byte) for byte in printable}
    hidden = [byte for byte in range(256) if byte not in table]
    return table | {byte: chr(256 + index) for index, byte in enumerate(hidden)}


BYTE_TO_CHARACTER = _byte_characters()
CHARACTER_TO_BYTE = {character: byte for byte, character in BYTE_TO_CHARACTER.items()}


def train_bpe(text: str, vocab_size: int) -> list[tuple[bytes, bytes]]:
    """Learn the merges of a byte-level BPE with ``vocab_size`` entries, the 256 bytes among them.

    Sennrich et al. 2016: count all adjacent pairs within words, join the commonest, count again. Ties go to the pair
    that comes first in byte order, so the same text always gives the same merges. Stops early when no pair occurs
    twice. The names of SPECIAL_TOKENS in the text are passed over: they are tokens already.
    """
    for token in SPECIAL_TOKENS:
        text = text.replace(token, "\n")
    words = [
        ([bytes([byte]) for byte in word.encode()], count)
        for word, count in Counter(regex.findall(SPLIT, text)).items()
    ]
    merges: list[tuple[bytes, bytes]] = []
    while 256 + len(merges) < vocab_size:
        pairs: Counter[tuple[bytes, bytes]] = Counter()
        for pieces, count in words:
            for pair in pairwise(pieces):
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
    """Join every occurrence of ``pair`` in ``pieces``, in place, from the left."""
    i = 0
    while i < len(pieces) - 1:
        if (pieces[i], pieces[i + 1]) == pair:
            pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]
        i += 1


def write_tokenizer(folder: str | os.PathLike, merges: list[tuple[bytes, bytes]]) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json``: 256 bytes, the merges in order, then SPECIAL_TOKENS."""

    def characters(token: bytes) -> str:
        return "".join(BYTE_TO_CHARACTER[byte] for byte in token)

    tokens = [bytes([byte]) for byte in range(256)] + [left + right for left, right in merges]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": len(tokens) + i, "content": content, **flags} for i, content in enumerate(SPECIAL_TOKENS)
        ],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {characters(token): index for index, token in enumerate(tokens)},
            "merges": [[characters(left), characters(right)] for left, right in merges],
        },
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": PAD,
        "extra_special_tokens": {"image_token": IMAGE},
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1024,
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False, indent=1), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")


class Tokenizer:
    """Text to ids and back. Attributes: ``vocab_size`` and the ids ``image_id``, ``pad_id``, ``eos_id``."""

    def __init__(self, ranks: dict[bytes, int], special: dict[str, int], files: dict[str, str]):
        self._encoding = tiktoken.Encoding("minillava", pat_str=SPLIT, mergeable_ranks=ranks, special_tokens=special)
        self._files = files
        self.special = special
        self.vocab_size = len(ranks) + len(special)
        self.image_id, self.pad_id, self.eos_id = special[IMAGE], special[PAD], special[END]
        self.bos_id, self.add_bos = None, False

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike) -> "Tokenizer":
        """Read ``tokenizer.json`` (byte-level BPE) from a folder. Raises UserError where it is missing or not that."""
        path = Path(folder) / "tokenizer.json"
        try:
            text = path.read_text(encoding="utf-8")
            stored = json.loads(text)
            vocab = stored["model"]["vocab"]
            special = {token["content"]: token["id"] for token in stored["added_tokens"]}
            special_ids = set(special.values())
            ranks = {
                bytes(CHARACTER_TO_BYTE[character] for character in token): index
                for token, index in vocab.items()
                if index not in special_ids
            }
            files = {path.name: text}
            config = path.with_name("tokenizer_config.json")
            if config.exists():
                files[config.name] = config.read_text(encoding="utf-8")
            if missing := [token for token in SPECIAL_TOKENS if token not in special]:
                raise UserError(f"{path}: no special token {', '.join(missing)}")
            return cls(ranks, special, files)
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise UserError(f"{path}: not UTF-8") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path}: not a byte-level BPE tokenizer with {', '.join(SPECIAL_TOKENS)} ({error!r})"
            ) from None

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write the files this tokenizer was read from."""
        for name, text in self._files.items():
            (Path(folder) / name).write_text(text, encoding="utf-8")

    def encode(self, text: str, special: bool = True, after: Sequence[int] = ()) -> list[int]:
        """Ids of ``text``. With ``special=False`` a "###" or "<image>" in it is ordinary text, not a token.

        ``after``, the ids that stand before the text, changes nothing in byte-level BPE.
        """
        if special:
            return self._encoding.encode(text, allowed_special="all")
        return self._encoding.encode_ordinary(text)

    def decode(self, ids: list[int]) -> str:
        """Text of ``ids``; bytes that are no UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: list[int]) -> bytes:
        """The bytes behind ``ids``: what a stream needs, since one character may span several tokens."""
        return self._encoding.decode_bytes(ids)
