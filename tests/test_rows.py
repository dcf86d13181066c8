"""Rows read by offset equal those of json.load for any formatting, and files that json.load refuses are refused."""

import bz2
import gzip
import json
import lzma
import multiprocessing
import pickle
import random
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from data.rows import write_rows
from minillava.errors import UserError
from minillava.formats import llava_json as module
from minillava.formats.llava_json import Rows, scan

TEXTS = [
    "plain",
    "",
    'a "quote", a \\ and a \\" after it',
    "} ] , { [ : within a text",
    '{"id": 1}, {"id": 2}]',
    "line\nbreak\r\n\ttab \0 null",
    "é ß 中文 😀 \u2028 \u2029 \x85 \ufeff",
    "\ud83d",  # half a surrogate pair, which JSON can write as an escape
    "\\u0041 \\n",
    "<image>\nWhat is it?",
]


def random_value(rng: random.Random, depth: int = 0):
    kind = rng.randrange(7 if depth < 3 else 5)
    if kind == 5:
        return [random_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind == 6:
        return {rng.choice(TEXTS): random_value(rng, depth + 1) for _ in range(rng.randrange(4))}
    return (rng.choice(TEXTS), rng.randrange(-(10**20), 10**20), rng.random() * 1e30, None, rng.random() < 0.5)[kind]


def random_rows(rng: random.Random) -> list[dict]:
    return [{rng.choice(TEXTS): random_value(rng) for _ in range(rng.randrange(5))} for _ in range(rng.randint(1, 12))]


def as_text(rows: list[dict], rng: random.Random) -> str:
    """JSON with random indentation, separators and white space. Lone surrogates, not in UTF-8, are escaped."""
    indent = rng.choice([None, None, 0, 2, "\t"])
    separators = rng.choice([None, (",", ":"), (" , ", " : "), (",\r\n", ":\t")])
    text = json.dumps(rows, indent=indent, separators=separators, ensure_ascii=rng.random() < 0.5)
    text = text.replace("\ud83d", "\\ud83d")
    return rng.choice(["", " ", "\n\n", "\r\n\t"]) + text + rng.choice(["", "\n", " \r\n "])


@pytest.mark.parametrize("chunk", [1, 7, 64, 1 << 20])
def test_rows_are_those_of_json_load(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(module, "CHUNK", chunk)
    rng = random.Random(chunk)
    path = tmp_path / "rows.json"
    for _ in range(150):
        text = as_text(random_rows(rng), rng)
        path.write_bytes(text.encode())
        with open(path, encoding="utf-8") as file:
            true = json.load(file)
        rows = Rows(path)
        assert len(rows) == len(true) and list(rows) == true
        order = rng.sample(range(len(true)), len(true))
        assert [rows[i] for i in order] == [true[i] for i in order]
        for start, end, row in scan(path):
            assert json.loads(text.encode()[start:end]) == row


def test_what_json_load_refuses_is_refused_and_nothing_else(tmp_path):
    """Files with a few bytes lost, doubled or changed give the rows of json.loads, or an error of one line."""
    rng = random.Random(0)
    path = tmp_path / "rows.json"
    outcomes = {"read": 0, "refused": 0}
    for _ in range(3000):
        data = bytearray(as_text(random_rows(rng), rng).encode())
        for _ in range(rng.randint(1, 3)):
            place = rng.randrange(len(data))
            change = rng.choice([b"", b"", data[place : place + 1] * 2, bytes([rng.randrange(256)]), b'"', b"]", b"}"])
            data[place : place + rng.choice([0, 1, 1, 20])] = change
            if not data:
                break
        path.write_bytes(data)
        try:
            true = json.loads(data.decode())
        except ValueError:
            true = None
        if isinstance(true, list) and true and all(isinstance(row, dict) for row in true):
            assert repr(list(Rows(path))) == repr(true)  # json reads NaN, which is not equal to itself
            outcomes["read"] += 1
        else:
            with pytest.raises(UserError) as error:
                Rows(path)
            assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 200


GOOD = '{"id": 1}'
WRONG = {  # content -> what the message says after the file's name
    "": "an empty file",
    " \n": "an empty file",
    "\ufeff": "an empty file",
    "[]": "an empty list",
    "[ \n ]": "an empty list",
    "[": "not JSON at row 0, line 1",
    f"[{GOOD}": "not JSON at row 0, line 1",
    f"[{GOOD},": "not JSON at row 1, line 1",
    f"[{GOOD},\n": "not JSON at row 1, line 2",
    f"[{GOOD},\n{GOOD},\n]": "not JSON at row 2, line 3",
    f"[\n{GOOD}\n{GOOD}]": "not JSON at row 0, line 3",
    f"[\n{GOOD},\n,{GOOD}]": "not JSON at row 1, line 3",
    f"[{GOOD},\n\n" + '{"a":\n\n"b}]': "not JSON at row 1, line 5",
    f"[{GOOD},\n" + "{'a': 1}]": "not JSON at row 1, line 2",
    f"[{GOOD}]\n\nand so on": "not JSON at row 0, line 3",
    f"[{GOOD}]]": "not JSON at row 0, line 1",
    '{"id": 1': "not JSON at row 0, line 1",
    f"{GOOD}\n\n" + '{"id": 2': "not JSON at row 1, line 3",
    f"{GOOD},\n{GOOD}": "not JSON at row 0, line 2: expected a row or the end of the file after it",
    f"{GOOD}\n[{GOOD}]": "not JSON at row 0, line 2",
    f"{GOOD}\n{GOOD}\n]": "not JSON at row 1, line 3",
    f",{GOOD}": "not a list of rows: it begins with ',{",
    "5": "not a list of rows: it begins with '5'",
    "image,caption\na.jpg,A fish.": "not a list of rows, but a table (CSV or TSV): it begins with 'image,caption'",
    "a.jpg\tA fish.\n": "not a list of rows, but a table (CSV or TSV): it begins with 'a.jpg\\tA fish.'",
    "\x1b[2J" + "x" * 100: "not a list of rows: it begins with '\\x1b[2J" + "x" * 36 + "'",
    f"{GOOD}\n12": "row 1: not an object",
    f"[{GOOD}, 12]": "row 1: not an object",
    f"[{GOOD}, {GOOD}, [{GOOD}]]": "row 2: not an object",
    f"[null, {GOOD}]": "row 0: not an object",
    f"[{GOOD},\n" + '{"a": ' + "[" * 200_000: "not JSON at row 1, line 2",
    f"[{GOOD},\n" + '{"a": ' + "7" * 5000 + "}]": "not JSON at row 1, line 2",
    "\ufeff[" + GOOD + ", 12]": "row 1: not an object",
}


@pytest.mark.parametrize("chunk", [3, 1 << 20])
@pytest.mark.parametrize("content", WRONG, ids=lambda content: repr(content[:30]))
def test_fault_is_named_by_row_and_line(tmp_path, monkeypatch, content, chunk):
    monkeypatch.setattr(module, "CHUNK", chunk)
    path = tmp_path / "rows.json"
    path.write_text(content, encoding="utf-8", newline="")
    with pytest.raises(UserError) as error:
        Rows(path)
    assert str(error.value).startswith(f"{path}: {WRONG[content]}") and "\n" not in str(error.value)


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_jsonl_has_the_same_rows_as_the_list(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(module, "CHUNK", chunk)
    rng = random.Random(chunk)
    path = tmp_path / "rows.jsonl"
    for _ in range(50):
        rows = random_rows(rng)
        lines = [json.dumps(row, ensure_ascii=rng.random() < 0.5).replace("\ud83d", "\\ud83d") for row in rows]
        path.write_text(
            rng.choice(["\n", "\r\n", "\n\n"]).join(lines) + rng.choice(["", "\n"]), encoding="utf-8", newline=""
        )
        assert list(Rows(path)) == rows


@pytest.mark.parametrize("text", [f"[{GOOD},\n{GOOD}]", f"{GOOD}\n{GOOD}\n", '[{"é": 1}, {"id": "\ufeff"}]'])
def test_a_byte_order_mark_is_passed_over(tmp_path, text):
    path = tmp_path / "rows.json"
    path.write_bytes(text.encode("utf-8-sig"))
    marked = Rows(path)
    path = tmp_path / "plain.json"
    path.write_bytes(text.encode())
    assert list(marked) == list(Rows(path)) and len(marked) == 2


PACKED = {
    "gzip": (gzip.compress, "compressed with gzip; unpack it first"),
    "bzip2": (bz2.compress, "compressed with bzip2; unpack it first"),
    "xz": (lzma.compress, "compressed with xz; unpack it first"),
    "UTF-16": (lambda data: data.decode().encode("utf-16"), "UTF-16; save it as UTF-8"),
    "UTF-16 LE": (lambda data: data.decode().encode("utf-16-le"), "UTF-16; save it as UTF-8"),
    "UTF-16 BE": (lambda data: data.decode().encode("utf-16-be"), "UTF-16; save it as UTF-8"),
    "Git-LFS": (lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git-LFS pointer"),
}


@pytest.mark.parametrize("kind", PACKED)
def test_files_of_another_kind_are_named_as_what_they_are(tmp_path, kind):
    pack, what = PACKED[kind]
    path = tmp_path / "rows.json"
    path.write_bytes(pack(f"[{GOOD}]".encode()))
    with pytest.raises(UserError) as error:
        Rows(path)
    assert str(error.value).startswith(f"{path}: {what}")


def test_a_zip_archive_is_named(tmp_path):
    path = tmp_path / "rows.json"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("rows.json", f"[{GOOD}]")
    with pytest.raises(UserError, match="a zip archive; unpack it first"):
        Rows(path)


def test_one_object_that_is_too_long_for_a_row_is_told_from_a_row(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text('{"data": [' + ", ".join(['{"conversations": []}'] * 40_000) + "]}")
    with pytest.raises(UserError, match="the file must be a list of rows, not one object"):
        Rows(path)
    path.write_text('{"a": "' + "b" * (2 * module.MAX_ROW) + '"}')
    with pytest.raises(UserError, match="the file must be a list of rows, not one object"):
        Rows(path)


def test_any_amount_of_white_space_is_passed_over(tmp_path):
    path = tmp_path / "rows.json"
    space = " " * (2 * module.MAX_ROW) + "\n"
    path.write_text(space.join(["", "[", GOOD, ",", GOOD, "]", ""]))
    assert list(Rows(path)) == [{"id": 1}] * 2
    path.write_text(space.join(["", GOOD, GOOD, ""]))
    assert list(Rows(path)) == [{"id": 1}] * 2
    path.write_text(space.join(["", GOOD, GOOD, "x"]))
    with pytest.raises(UserError, match="not JSON at row 2, line 4"):
        Rows(path)


def test_a_row_s_size_is_that_of_its_bytes(tmp_path):
    rows = Rows(write(tmp_path / "rows.json", 60))
    assert [rows.size(i) for i in (0, 49)] == [len(json.dumps(rows[i])) for i in (0, 49)]
    (tmp_path / "rows.json").write_text('[{"id": "\xe9"}]', encoding="utf-8")
    assert Rows(tmp_path / "rows.json").size(-1) == 12


def test_bytes_that_are_no_utf8_are_found_in_their_row(tmp_path):
    path = tmp_path / "rows.json"
    path.write_bytes(b'[{"id": "\xc3\xa9"},\n{"id": "\xe9"},\n{"id": 3}]')
    with pytest.raises(UserError, match=r"rows\.json: not JSON at row 1, line 2: bytes that are not UTF-8"):
        Rows(path)


def test_row_that_is_too_long_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 100)
    monkeypatch.setattr(module, "MAX_ROW", 5000)
    path = tmp_path / "rows.json"
    path.write_text(f'[{GOOD}, {{"a": "{"b" * 4000}"}}]')
    assert len(Rows(path)[1]["a"]) == 4000
    path.write_text(f'[{GOOD}, {{"a": "{"b" * 400_000}"}}]')
    with pytest.raises(UserError, match=r"row 1, line 1: no end within 5,000 characters"):
        Rows(path)
    monkeypatch.setattr(module, "CHUNK", 1 << 20)
    with pytest.raises(UserError, match=r"row 1: longer than 5,000 characters"):
        Rows(path)


def test_missing_and_unfit_files_are_named(tmp_path):
    for path, why in ((tmp_path / "nowhere.json", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(UserError, match=f"{path.name}: {why}"):
            Rows(path)


def write(path: Path, count: int) -> Path:
    write_rows(path, ({"id": index, "text": "é" * (index % 50)} for index in range(count)))
    return path


def test_index_counts_from_both_ends(tmp_path):
    rows = Rows(write(tmp_path / "rows.json", 10))
    assert [rows[i]["id"] for i in (0, 9, -1, -10)] == [0, 9, 9, 0]
    for beyond in (10, -11):
        with pytest.raises(IndexError):
            rows[beyond]


def test_check_sees_every_row_and_its_complaint_names_the_row(tmp_path):
    path = write(tmp_path / "rows.json", 10)
    seen = []
    Rows(path, lambda index, row: seen.append((index, row["id"])))
    assert seen == [(index, index) for index in range(10)]

    def refuse(index: int, row: dict) -> None:
        if row["id"] == 7:
            raise UserError("no seven")

    with pytest.raises(UserError, match=r"rows\.json: row 7: no seven"):
        Rows(path, refuse)


def test_file_that_changes_afterwards_is_refused(tmp_path):
    path = write(tmp_path / "rows.json", 10)
    rows = Rows(path)
    write(path, 11)
    with pytest.raises(UserError, match=r"rows\.json: has changed"):
        rows[3]
    path.unlink()
    with pytest.raises(UserError, match=r"rows\.json: No such file"):
        rows[3]


def read_some(rows: Rows, seed: int) -> bool:
    order = [random.Random(seed).randrange(len(rows)) for _ in range(2000)]
    return all(rows[index] == {"id": index, "text": "é" * (index % 50)} for index in order)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_worker_processes_read_at_the_same_time(tmp_path, method):
    rows = Rows(write(tmp_path / "rows.json", 500))
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert all(pool.starmap(read_some, [(rows, seed) for seed in range(4)]))


def test_a_file_is_never_whole_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 1 << 16)
    path = tmp_path / "rows.json"
    write_rows(path, ({"id": index, "text": str(index) * 200} for index in range(8000)))
    size = path.stat().st_size
    assert size > 5_000_000
    tracemalloc.start()
    rows = Rows(path)
    assert rows[7999]["id"] == 7999
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < size / 8 and held < 300_000  # the index of 8,000 rows takes 128,000 bytes
    assert len(pickle.dumps(rows)) < 200_000
