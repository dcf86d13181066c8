"""GGUF files: weights equal those of the `gguf` package bit for bit, and hostile files are refused."""

import random
import resource
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from make_gguf import finish, small_llama, write_small

from minillava.errors import UserError
from minillava.formats.gguf import read_gguf

KINDS = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 8, "BF16": 30}


def quantised(path: Path, kinds: list[str]) -> dict[str, np.ndarray]:
    """Write tensors of several shapes in ``kinds`` with the gguf package; returns its own reading of them."""
    rng, writer = np.random.default_rng(0), gguf.GGUFWriter(path, "llama")
    for kind in kinds:
        number = gguf.GGMLQuantizationType(KINDS[kind])
        for shape in ((7, 64), (32,), (2, 3, 96), (5, 32)):
            weights = (rng.standard_normal(shape) * 10.0 ** rng.integers(-4, 4, shape)).astype(np.float32)
            name = f"{kind}{'x'.join(map(str, shape))}"
            writer.add_tensor(name, gguf.quantize(weights, number), raw_dtype=number)
    finish(writer)
    return {
        tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type).reshape(tensor.shape[::-1])
        for tensor in gguf.GGUFReader(path).tensors
    }


@pytest.mark.parametrize("kinds", [*([kind] for kind in KINDS), list(KINDS)], ids="+".join)
def test_weights_equal_those_of_the_gguf_package_bit_for_bit(tmp_path, kinds):
    theirs = quantised(tmp_path / "x.gguf", kinds)
    ours = read_gguf(tmp_path / "x.gguf").tensors
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        weights = tensor.read()
        assert weights.dtype == torch.float32 and weights.shape == tensor.shape == theirs[name].shape
        assert np.array_equal(weights.numpy().view(np.uint32), theirs[name].view(np.uint32))


def test_key_values_of_every_type_are_read(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    values = {"general.architecture": "llama", "string": "é ▁\n", "yes": True, "no": False, "empty": "", "real": 0.1}
    numbers = {"uint8": 200, "int8": -7, "uint16": 2**16 - 1, "int16": -(2**15), "uint32": 2**32 - 1}
    numbers |= {"int32": -(2**31), "uint64": 2**64 - 1, "int64": -(2**63), "float32": 0.25, "float64": 0.1}
    lists = {"strings": ["a", "ß", ""], "integers": [1, -2, 3], "fractions": [0.5, -1.25], "truths": [True, False]}
    for key, value in numbers.items():
        getattr(writer, f"add_{key}")(key, value)
    for key, value in lists.items():
        writer.add_array(key, value)
    for key in ("string", "empty"):
        writer.add_key_value(key, values[key], gguf.GGUFValueType.STRING)
    writer.add_bool("yes", True)
    writer.add_bool("no", False)
    writer.add_float64("real", 0.1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    found = read_gguf(tmp_path / "x.gguf").values
    assert found == values | numbers | lists
    assert found["yes"] is True and [type(item) for item in found["truths"]] == [bool, bool]


def test_the_data_begins_where_the_files_own_alignment_says(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_custom_alignment(256)
    weights = {"a": np.arange(5, dtype=np.float32), "b": np.arange(6, dtype=np.float32).reshape(2, 3)}
    for name, tensor in weights.items():
        writer.add_tensor(name, tensor)
    finish(writer)
    for name, tensor in read_gguf(tmp_path / "x.gguf").tensors.items():
        assert np.array_equal(tensor.read().numpy(), weights[name])


# --- Hostile files


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def header(tensors: int = 0, values: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, values)


def entry(name: str, shape: tuple, kind: int = 0, offset: int = 0) -> bytes:
    return string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


HOSTILE = {
    "empty": (b"", "truncated, or a false length"),
    "another file": (b"PK\x03\x04" + bytes(100), "does not begin with GGUF"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0) + bytes(64), "version 50331648"),
    "version 1": (header(version=1) + bytes(64), "version 1, not 2 or 3"),
    "2^60 tensors": (header(tensors=2**60), "truncated, or a false length"),
    "2^60 values": (header(values=2**60), "truncated, or a false length"),
    "a string of 2^62 bytes": (header(values=1) + struct.pack("<Q", 2**62), "truncated, or a false length"),
    "a key that is not UTF-8": (
        header(values=1) + struct.pack("<Q", 2) + b"\xff\xfe" + struct.pack("<II", 4, 1),
        "can't decode byte 0xff",
    ),
    "a value that is not UTF-8": (
        header(values=1) + string("a") + struct.pack("<IQ", 8, 2) + b"\xc3\x28",
        "can't decode byte 0xc3",
    ),
    "a value of an unknown type": (header(values=1) + string("a") + struct.pack("<I", 99), "unknown type 99"),
    "an array of 2^61 numbers": (header(values=1) + string("a") + struct.pack("<IIQ", 9, 4, 2**61), "false length"),
    "an array of 2^61 strings": (
        header(values=1) + string("a") + struct.pack("<IIQ", 9, 8, 2**61) + bytes(64),
        "an array of 2305843009213693952 strings",
    ),
    "an array of arrays": (header(values=1) + string("a") + struct.pack("<IIQIQ", 9, 9, 1, 4, 0), "unsupported type 9"),
    "a key twice": (header(values=2) + (string("a") + struct.pack("<II", 4, 1)) * 2, "the key 'a' is there twice"),
    "alignment 0": (
        header(values=1) + string("general.alignment") + struct.pack("<II", 4, 0),
        "general.alignment is 0",
    ),
    "alignment as text": (
        header(values=1) + string("general.alignment") + struct.pack("<I", 8) + string("32"),
        "general.alignment is '32'",
    ),
    "a shape of 2^60": (header(tensors=1) + entry("w", (2**60, 2**60)) + bytes(64), "'w' reaches beyond the end"),
    "a shape of 0": (header(tensors=1) + entry("w", (0, 3)) + bytes(64), "'w' has the shape (3, 0)"),
    "no dimensions": (header(tensors=1) + entry("w", ()) + bytes(64), "'w' has the shape ()"),
    "2^31 dimensions": (header(tensors=1) + string("w") + struct.pack("<I", 2**31) + bytes(64), "'w' has 2147483648"),
    "an offset beyond the file": (
        header(tensors=1) + entry("w", (4,), offset=2**63) + bytes(64),
        "'w' reaches beyond the end",
    ),
    "an unknown type of tensor": (header(tensors=1) + entry("w", (256,), kind=12) + bytes(256), "'w' is of type 12"),
    "a row that is no whole block": (
        header(tensors=1) + entry("w", (48, 2), kind=8) + bytes(256),  # three blocks in all
        "'w' has the shape (2, 48), in blocks of 32",
    ),
    "a tensor twice": (header(tensors=2) + entry("w", (4,)) * 2 + bytes(128), "tensor 'w' is there twice"),
    "tensors that share their data": (
        header(tensors=9) + b"".join(entry(f"w{i}", (64, 64)) for i in range(9)) + bytes(64 * 64 * 4 + 64),
        "its tensors overlap",
    ),
    "a long name": (header(tensors=1) + entry("w" * 5000, (256,), kind=12) + bytes(256), "is of type 12"),
}


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as error:
        read_gguf(path)
    text = str(error.value)
    assert text.startswith(f"{path}: ") and "\n" not in text and len(text) < 400
    return text


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_get_one_line_and_little_memory(tmp_path, name):
    path = tmp_path / "x.gguf"
    path.write_bytes(HOSTILE[name][0])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    text = refusal(path)
    assert "not a GGUF file that is supported" in text and HOSTILE[name][1] in text
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    assert refusal(tmp_path / "none.gguf") == f"{tmp_path}/none.gguf: No such file or directory"
    assert refusal(tmp_path) == f"{tmp_path}: Is a directory"


def test_a_file_that_is_cut_anywhere_gets_one_line(tmp_path):
    whole = write_small(tmp_path / "small.gguf", small_llama()).read_bytes()
    path = tmp_path / "cut.gguf"
    for length in [*range(0, 200, 7), *random.Random(0).sample(range(200, len(whole)), 40), len(whole) - 1]:
        path.write_bytes(whole[:length])
        refusal(path)
