"""GGUF, the one-file format of llama.cpp, as plain values: key-values and tensors, dequantised while they are read.

A file has, in little-endian numbers: a header ("GGUF", version, number of tensors, number of key-values); the
key-values; a table with name, shape, type and offset of each tensor; and, aligned to 32 bytes, the tensors' data.

A quantised tensor is stored in blocks of 32 weights. With d and m in float16 and q an integer for each weight:

    Q8_0    d, 32 q of 8 bits       34 bytes    weight = d q
    Q4_0    d, 32 q of 4 bits       18 bytes    weight = d (q - 8)
    Q4_1    d, m, 32 q of 4 bits    20 bytes    weight = d q + m

A byte with two q of 4 bits has weight i in its low half and weight i + 16 in its high half.
"""

import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from minillava.errors import UserError
from minillava.files import check_regular

# Types of key-values: numbers by their letter in struct and numpy, and two others.
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9


class Kind(NamedTuple):
    """A type of tensor: ``weights`` in a block of ``size`` bytes, and how blocks (n, size) uint8 become float32."""

    name: str
    weights: int
    size: int
    read: Callable[[np.ndarray], np.ndarray]


def _halves(blocks: np.ndarray, at: int) -> np.ndarray:
    """The float16 at byte ``at`` of each block, as float32 (n, 1)."""
    return blocks[:, at : at + 2].copy().view("<f2").astype(np.float32)


def _nibbles(blocks: np.ndarray) -> np.ndarray:
    """The q of 4 bits in the last 16 bytes of each block, as float32 (n, 32)."""
    return np.concatenate([blocks[:, -16:] & 15, blocks[:, -16:] >> 4], axis=1).astype(np.float32)


KINDS = {
    0: Kind("F32", 1, 4, lambda blocks: blocks.view("<f4")),
    1: Kind("F16", 1, 2, lambda blocks: blocks.view("<f2").astype(np.float32)),
    2: Kind("Q4_0", 32, 18, lambda blocks: _halves(blocks, 0) * (_nibbles(blocks) - 8)),
    3: Kind("Q4_1", 32, 20, lambda blocks: _halves(blocks, 0) * _nibbles(blocks) + _halves(blocks, 2)),
    8: Kind("Q8_0", 32, 34, lambda blocks: _halves(blocks, 0) * blocks[:, 2:].view(np.int8).astype(np.float32)),
    30: Kind("BF16", 1, 2, lambda blocks: (blocks.view("<u2").astype(np.uint32) << 16).view(np.float32)),
}


class GgufTensor(NamedTuple):
    """A tensor in ``file`` whose data begins at byte ``start``. ``shape`` is PyTorch's: the file has it reversed.

    With ``heads``, its rows are a query or key matrix of so many heads, in llama.cpp's order.
    """

    file: Path
    name: str
    shape: tuple[int, ...]
    kind: Kind
    start: int
    heads: int = 0

    def read(self) -> Tensor:
        """The weights, float32, with the rows in Hugging Face's order."""
        count = math.prod(self.shape) // self.kind.weights
        blocks = np.fromfile(self.file, np.uint8, count * self.kind.size, offset=self.start)
        weights = torch.from_numpy(self.kind.read(blocks.reshape(count, self.kind.size)).reshape(self.shape))
        if self.heads:  # in each head rows 0, d / 2, 1, d / 2 + 1, ... -> 0, 1, ..., d - 1
            weights = weights.unflatten(0, (self.heads, -1, 2)).transpose(1, 2).flatten(0, 2)
        return weights


class Gguf(NamedTuple):
    values: dict[str, object]
    tensors: dict[str, GgufTensor]


def read_gguf(path: Path) -> Gguf:
    """The key-values and tensors of a file; the tensors' data is not read yet.

    Raises UserError, naming the file, if it is missing, truncated, or has a type that is not supported. Memory is
    at most a small multiple of the size of the file, whatever lengths it claims; so is that of all its tensors.
    """
    check_regular(path)
    try:
        with open(path, "rb") as file:
            return _Reader(path, file).read()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except (UnicodeDecodeError, ValueError, struct.error) as error:
        raise UserError(f"{path}: not a GGUF file that is supported ({error})") from None


class _Reader:
    """Reads a file from its beginning. Each length is compared with the bytes left before anything is allocated."""

    def __init__(self, path: Path, file):
        self.path, self.file, self.size = path, file, path.stat().st_size
        self.left = self.size

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise ValueError(f"it ends at byte {self.size}, in the middle of its values: truncated, or a false length")
        self.left -= count
        return self.file.read(count)

    def number(self, letter: str) -> int | float | bool:
        return struct.unpack(f"<{letter}", self.take(struct.calcsize(f"<{letter}")))[0]

    def string(self) -> str:
        return self.take(self.number("Q")).decode("utf-8")

    def value(self) -> object:
        kind = self.number("I")
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            raise ValueError(f"a value of the unknown type {kind}")
        kind, count = self.number("I"), self.number("Q")
        if kind == STRING:
            if count * 8 > self.left:  # each has 8 bytes of length
                raise ValueError(f"an array of {count} strings in a file of {self.size} bytes")
            return [self.string() for _ in range(count)]
        if kind not in SCALARS:
            raise ValueError(f"an array of the unsupported type {kind}")
        return np.frombuffer(self.take(count * struct.calcsize(f"<{SCALARS[kind]}")), f"<{SCALARS[kind]}").tolist()

    def read(self) -> Gguf:
        if self.take(4) != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        if (version := self.number("I")) not in (2, 3):
            raise ValueError(f"version {version}, not 2 or 3")
        count_tensors, count_values = self.number("Q"), self.number("Q")
        values: dict[str, object] = {}
        for _ in range(count_values):
            key = self.string()
            if key in values:
                raise ValueError(f"the key {key!r:.80} is there twice")
            values[key] = self.value()
        table = []
        for _ in range(count_tensors):
            name, dimensions = self.string(), self.number("I")
            if dimensions > 4:
                raise ValueError(f"tensor {name!r:.80} has {dimensions} dimensions")
            shape = tuple(self.number("Q") for _ in range(dimensions))[::-1]
            table.append((name, shape, self.number("I"), self.number("Q")))
        alignment = values.get("general.alignment", 32)
        if type(alignment) is not int or not 0 < alignment <= 1 << 16:
            raise ValueError(f"general.alignment is {alignment!r}")
        data = math.ceil((self.size - self.left) / alignment) * alignment
        tensors: dict[str, GgufTensor] = {}
        total = 0
        for name, shape, number, offset in table:
            if name in tensors:
                raise ValueError(f"tensor {name!r:.80} is there twice")
            if number not in KINDS:
                names = ", ".join(kind.name for kind in KINDS.values())
                raise ValueError(f"tensor {name!r:.80} is of type {number}, which is none of {names}")
            kind, start = KINDS[number], data + offset
            weights = math.prod(shape)
            if not shape or not weights or shape[-1] % kind.weights:
                raise ValueError(f"tensor {name!r:.80} has the shape {shape}, in blocks of {kind.weights}")
            size = weights // kind.weights * kind.size
            if start + size > self.size:
                raise ValueError(f"tensor {name!r:.80} reaches beyond the end of the file: truncated?")
            total += size
            tensors[name] = GgufTensor(self.path, name, shape, kind, start)
        if total > self.size:  # a small file could fill the memory otherwise
            raise ValueError("its tensors overlap")
        return Gguf(values, tensors)
