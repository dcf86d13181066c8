"""``tokenizer.model`` -> the equivalent ``tokenizer.json``.

Two kinds of file have this name: SentencePiece's (LLaMA-1 and -2, Vicuna), a protobuf message, and Llama-3's in
tiktoken's format, which has one line per token with the token in base64 and its rank.
"""

import base64
import io
import math
import struct
from collections.abc import Container, Iterable, Iterator
from typing import NamedTuple

from minillava.errors import UserError
from minillava.formats.byte_characters import CHARACTER_TO_BYTE, to_characters
from minillava.formats.tokenizer_json import LONGEST, SPACE, bpe_file, byte_level_part

# Llama-3's split into words: GPT-2's, but with at most three digits together, and newlines kept with what they end.
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
# The named ones of its 256 special tokens, by place; the others are numbered.
LLAMA3_NAMES = {0: "begin_of_text", 1: "end_of_text", 6: "start_header_id", 7: "end_header_id", 9: "eot_id"}
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6  # types of SentencePiece pieces
BPE = 2  # a type of SentencePiece model
DAMAGED = "the file is damaged, truncated, or not a SentencePiece model"


class Converted(NamedTuple):
    """What a ``tokenizer.model`` says.

    stored: the equivalent tokenizer.json
    roles: the names of "bos_token", "eos_token" and "pad_token", if any
    ranks: the rank of each token. SentencePiece's is by score: 0 for the highest, and the same for equal scores, which
        the merges of tokenizer.json cannot have
    """

    stored: dict
    roles: dict[str, str]
    ranks: dict[str, int]


def convert(content: bytes, config: dict) -> Converted:
    """Read the file's content.

    ``config`` is tokenizer_config.json; its "legacy" and "add_prefix_space" are settings that the file lacks.
    Raises UserError if the file is damaged or of another kind than LLaMA's.
    """
    return (_sentencepiece if content[:1] == b"\n" else _tiktoken)(content, config)


def _all_merges(tokens: Iterable[str], known: Container[str]) -> list[tuple[str, str]]:
    """Every pair of ``known`` tokens that joins into one of ``tokens``, in the order of ``tokens``.

    SentencePiece and tiktoken have no list of merges: they join any two neighbours that form a token.
    """
    merges = []
    for token in tokens:
        if len(token) > LONGEST:
            raise UserError(f"a token of {len(token)} characters, {token[:20]!r}...; the maximum is {LONGEST}")
        for cut in range(1, len(token)):
            if (left := token[:cut]) in known and (right := token[cut:]) in known:
                merges.append((left, right))
    return merges


def _sentencepiece(content: bytes, config: dict) -> Converted:
    # Field numbers and defaults are those of sentencepiece_model.proto.
    fields = list(_fields(content))
    pieces = [dict(_fields(message)) for field, message in fields if field == 1]
    settings = {field: dict(_fields(message)) for field, message in fields if field in (2, 3)}
    if len(settings) < 2:
        raise UserError("no trainer and normalizer settings after the pieces: is the file truncated?")
    trainer, normalizer = settings[2], settings[3]
    if trainer.get(3, 1) != BPE:
        raise UserError(f"a SentencePiece model of type {trainer.get(3, 1)}, not BPE ({BPE})")
    if not trainer.get(35, 0):
        raise UserError("a SentencePiece model without byte_fallback")
    if normalizer.get(2) or not normalizer.get(5, 1) or trainer.get(24, 0):
        name = normalizer.get(1, b"").decode(errors="replace")
        raise UserError(f"SentencePiece normalisation {name!r} is not supported, only 'identity' with escaped spaces")

    vocab: dict[str, int] = {}
    special, scores = {}, {}
    for index, piece in enumerate(pieces):
        token, kind = piece[1].decode("utf-8"), piece.get(3, NORMAL)
        if token in vocab:
            raise UserError(f"pieces {vocab[token]} and {index} are both {token!r}")
        vocab[token] = index
        if kind in (UNKNOWN, CONTROL):
            special[index] = token
        elif kind == NORMAL:
            [score] = struct.unpack("<f", piece.get(2, bytes(4)))
            if math.isnan(score):
                raise UserError(f"piece {token!r} has a score that is not a number")
            scores[token] = score, math.copysign(1, score)  # sentencepiece 0.2.3 puts -0.0 below 0.0; 0.2.0 did not
        elif kind != BYTE:
            raise UserError(f"piece {token!r} is of type {kind}, which is not supported")
    places = {score: place for place, score in enumerate(sorted(set(scores.values()), reverse=True))}
    ranks = {token: places[score] for token, score in scores.items()}
    # Of pieces with the same rank, longer ones go first in tokenizer.json. For runs of one character, such as LLaMA's
    # runs of spaces, this gives the same tokens as SentencePiece, which joins the leftmost pair of equal rank.
    merges = _all_merges(sorted(ranks, key=lambda token: (ranks[token], -len(token))), ranks)

    adds_space = bool(normalizer.get(3, 1)) and config.get("add_prefix_space") is not False
    # The default of "legacy" is false in transformers' LlamaTokenizer; SentencePiece itself behaves as if it were true.
    legacy = config.get("legacy", "Llama" not in str(config.get("tokenizer_class")))
    steps = [_replace("String", " ", SPACE)]
    if legacy and adds_space:
        steps = [{"type": "Prepend", "prepend": SPACE}, *steps]
    if normalizer.get(4, 1):  # remove_extra_whitespaces
        before = [_replace("Regex", r"\A +", ""), _replace("Regex", " {2,}", " ")]
        steps = [*before, *steps, _replace("Regex", rf"{SPACE}+\z", "")]
    back = [_replace("String", SPACE, " "), {"type": "ByteFallback"}, {"type": "Fuse"}]
    if adds_space:
        back.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    parts = {"normalizer": {"type": "Sequence", "normalizers": steps}}
    parts["decoder"] = {"type": "Sequence", "decoders": back}
    if not legacy:
        scheme = "first" if adds_space else "never"
        parts["pre_tokenizer"] = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": False}
    stored = bpe_file({"byte_fallback": True, "vocab": vocab, "merges": merges}, special, **parts)
    roles = {"bos_token": trainer.get(41, 1), "eos_token": trainer.get(42, 2), "pad_token": trainer.get(43, -1)}
    return Converted(stored, {role: special[index] for role, index in roles.items() if index in special}, ranks)


def _replace(form: str, pattern: str, content: str) -> dict:
    return {"type": "Replace", "pattern": {form: pattern}, "content": content}


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield a protobuf message's (field number, value). A value is an int, or the bytes of a text, float or message."""
    rest = io.BytesIO(message)

    def take(count: int) -> bytes:
        taken = rest.read(min(count, len(message)))
        if len(taken) < count:
            raise UserError(DAMAGED)
        return taken

    def number() -> int:
        """Read a varint: seven bits per byte, lowest first; the eighth bit is set if another byte follows."""
        value = 0
        for shift in range(0, 70, 7):
            [byte] = take(1)
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise UserError(DAMAGED)

    while rest.tell() < len(message):
        field, kind = divmod(number(), 8)
        if kind not in (0, 1, 2, 5):
            raise UserError(DAMAGED)
        yield field, number() if kind == 0 else take({1: 8, 5: 4}.get(kind) or number())


def _tiktoken(content: bytes, config: dict) -> Converted:
    vocab: dict[str, int] = {}
    for number, line in enumerate(content.splitlines()):
        try:
            code, rank = line.split()
            token = to_characters(base64.b64decode(code, validate=True))
            if not token or token in vocab or int(rank) != number:
                raise ValueError
        except ValueError:
            raise UserError(f"line {number + 1} is not a new token in base64 with the rank {number}") from None
        vocab[token] = number
    if not content.endswith(b"\n") or not vocab.keys() >= CHARACTER_TO_BYTE.keys():
        raise UserError(f"the file ends after line {len(vocab)}: is it truncated?")
    model = {"ignore_merges": True, "vocab": vocab, "merges": _all_merges(vocab, vocab)}
    others = (f"reserved_special_token_{number}" for number in range(256))
    names = [LLAMA3_NAMES.get(place) or next(others) for place in range(256)]
    special = {len(vocab) + place: f"<|{name}|>" for place, name in enumerate(names)}
    roles = {"bos_token": special[len(vocab)], "eos_token": special[len(vocab) + 1]}
    named = config.get("added_tokens_decoder") or {}
    special |= {int(index): token["content"] for index, token in named.items() if int(index) in special}
    split = {"type": "Split", "pattern": {"Regex": LLAMA3_SPLIT}, "behavior": "Isolated", "invert": False}
    words = {"type": "Sequence", "pretokenizers": [split, byte_level_part(use_regex=False)]}
    stored = bpe_file(model, special, pre_tokenizer=words, decoder=byte_level_part(use_regex=False))
    return Converted(stored, roles, dict(vocab))
