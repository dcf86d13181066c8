"""Each argument of train.py and chat.py without effect is refused, with a line that names it and says why."""

import itertools
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import chat
import train
from minillava.config import PRETRAINED
from minillava.errors import UserError
from minillava.training.distributed import SINGLE
from minillava.training.resume import STATE

VALUES = {
    "lora": "4",
    "accumulation": "2",
    "vision_feature_layer": "-1",
    "image_place": "first",
    "projector": "mlp",
    "template": "v1",
    "memory": "8",
    "max_length": "9",
    "max_rejected": "9",
    "eval_every": "5",
    "pictures": "300",
    "preset": "paper",
}
SWITCHES = ("from_scratch", "pack", "checkpointing", "shard", "plan", "resume")


def parsed(monkeypatch, *arguments: str | Path):
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, arguments)])
    return train.parse()


def option(name: str) -> list[str]:
    written = f"--{name.replace('_', '-')}"
    return [written] if name in SWITCHES else [written, VALUES.get(name, "x")]


STAGE_0 = ["model", *train.TOWERS, "template", "data", "image_folder", "image_place", "heldout"]
STAGE_0 += ["max_length", "max_rejected"]
CASES = [
    *((["--stage", "0"], name) for name in (*STAGE_0, "pack", "shard", "lora", "plan", "memory", "from_scratch")),
    *((["--stage", "0", "--preset", preset], "preset") for preset in ("paper", "consumer", "llava-7b")),
    (["--stage", "1"], "lora"),
    *((["--stage", "1", "--model", "m"], name) for name in (*train.TOWERS, "from_scratch")),
    *((["--stage", "2", "--model", "m"], name) for name in (*train.TOWERS, "from_scratch")),
    (["--stage", "1", "--vision", "v", "--decoder", "d"], "from_scratch"),
    (["--stage", "2", "--preset", "paper"], "from_scratch"),
    *((["--stage", stage], name) for stage in "12" for name in ("image_folder", "eval_every")),
    (["--stage", "2", "--accumulation", "2"], "memory"),
    (["--stage", "2", "--checkpointing"], "memory"),
]


@pytest.mark.parametrize(("others", "name"), CASES, ids=lambda value: value if isinstance(value, str) else "")
def test_an_argument_without_effect_is_named(monkeypatch, others, name):
    arguments = others if name == "preset" else [*others, *option(name)]
    with pytest.raises(UserError, match=f"^--{name.replace('_', '-')}[: ]") as error:
        train.check(parsed(monkeypatch, *arguments))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--stage", "0", "--learning-rate", "0.1", "--batch-size", "8", "--epochs", "2", "--accumulation", "2"],
        ["--stage", "1", "--vision", "v", "--from-scratch", "--projector", "mlp", "--pack", "--image-place", "first"],
        ["--stage", "2", "--preset", "paper", "--projector", "mlp", "--data", "d", "--image-folder", "i"],
        ["--stage", "2", "--lora", "4", "--pack", "--checkpointing", "--template", "v1", "--shard"],
        ["--stage", "2", "--model", "m", "--heldout", "h", "--image-folder", "i", "--eval-every", "5"],
        ["--stage", "2", "--plan", "--accumulation", "4", "--memory", "8"],
    ],
)
def test_arguments_with_effect_are_taken(monkeypatch, arguments):
    train.check(parsed(monkeypatch, *arguments))


def test_a_folder_of_pictures_is_for_training_from_scratch(monkeypatch, tmp_path):
    folder = ("--data", tmp_path)
    for arguments in (["--stage", "0"], ["--stage", "1", "--from-scratch"], ["--stage", "2", "--from-scratch"]):
        train.check(parsed(monkeypatch, *arguments, *folder))
        for name in ("pictures", "image_folder"):
            with pytest.raises(UserError, match=f"^--{name.replace('_', '-')}: "):
                train.check(parsed(monkeypatch, *arguments, *folder, *option(name)))
    for arguments in (["--stage", "1"], ["--stage", "2", "--model", "m"]):
        with pytest.raises(UserError, match=f"^--data: {tmp_path} is a folder, for --from-scratch; name a file"):
            train.check(parsed(monkeypatch, *arguments, *folder))


def test_what_is_not_given_has_its_default(monkeypatch):
    a = parsed(monkeypatch, "--stage", "1")
    assert (a.projector, a.vision_feature_layer, a.image_place, a.pictures) == ("linear", -2, "random", 20000)
    assert (a.out, a.vision, a.decoder) == (Path("out/toy"), None, None)
    a = parsed(monkeypatch, "--stage", "1", "--preset", "paper", "--decoder", "mine")
    assert (a.vision, a.decoder) == ("openai/clip-vit-large-patch14", "mine")


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["--epochs", "2.5"], {"epochs": 2.5, "save_every": 250, "save_minutes": 15, "learning_rate": 3e-3}),
        (["--save-every", "40"], {"save_every": 40, "save_minutes": float("inf")}),
        (["--save-every", "2.5m"], {"save_every": float("inf"), "save_minutes": 2.5}),
        (["--eval-every", "7", "--heldout", "h"], {"eval_every": 7}),
    ],
)
def test_the_recipe_is_what_the_arguments_say(monkeypatch, arguments, found):
    recipe = train.recipe_of("stage2", parsed(monkeypatch, "--stage", "2", *arguments))
    assert {name: getattr(recipe, name) for name in found} == found


@pytest.mark.parametrize(("accumulation", "refused"), [(15, False), (16, True), (99, True)])
def test_packing_needs_two_rows_in_a_micro_batch(monkeypatch, tmp_path, accumulation, refused):
    a = parsed(monkeypatch, "--stage", "2", "--model", "m", "--pack", "--accumulation", accumulation, "--out", tmp_path)
    a.team, a.device, trained = SINGLE, "cpu", []
    monkeypatch.setitem(train.STAGES, "stage2", lambda a: SimpleNamespace(model=None))
    monkeypatch.setattr(train, "train", lambda *arguments: trained.append(arguments))
    if refused:
        with pytest.raises(UserError, match=r"^--pack: a micro-batch has only one row to pack"):
            train.run_stage("stage2", a, keep=False)
    else:
        train.run_stage("stage2", a, keep=False)
    assert bool(trained) != refused


def test_a_template_without_questions_has_no_place_for_the_image(monkeypatch, tmp_path):
    shipped = str(PRETRAINED / "llava")
    a = parsed(monkeypatch, "--stage", "1", "--model", shipped, "--template", "v1", "--image-place", "first")
    with pytest.raises(UserError, match=r"^--image-place: in this template"):
        train.stage_task(1, a)


def test_epochs_and_held_out_rows_are_for_the_requested_stage_only(monkeypatch, tmp_path):
    """Stage 1, which stage 2 needs first, is trained as its recipe says."""
    seen = {}
    arguments = ("--epochs", "9", "--heldout", "h", "--eval-every", "3", "--save-every", "4", "--out", tmp_path)
    a = parsed(monkeypatch, "--stage", "2", *arguments)
    a.team, a.device = SINGLE, "cpu"
    for name in ("stage1", "stage2"):
        monkeypatch.setitem(train.STAGES, name, lambda a: SimpleNamespace(model=None, heldout=a.heldout))
    monkeypatch.setattr(train, "train", lambda task, recipe, run: seen.update({run.out.name: (task, recipe)}))
    train.run_stage("stage2", a, keep=False)
    found = {name: (task.heldout, recipe.epochs, recipe.eval_every) for name, (task, recipe) in seen.items()}
    assert found == {"stage1": (None, 0.5, 100), "stage2": (Path("h"), 9, 3)}
    assert {recipe.save_every for _, recipe in seen.values()} == {4}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *itertools.product(["--epochs", "--learning-rate", "--memory"], ["0", "-1", "nan", "inf", "two"]),
        *itertools.product(["--save-every"], ["0", "m", "-5m", "0m", "5 minutes", "2.5", "nanm"]),
        *itertools.product(["--eval-every"], ["0", "1.5"]),
    ],
)
def test_numbers_that_make_no_sense_are_refused(monkeypatch, capsys, name, value):
    with pytest.raises(SystemExit) as end:
        parsed(monkeypatch, "--stage", "2", name, value)
    assert end.value.code == 2 and f"argument {name}: " in capsys.readouterr().err


# ---- what the folder holds already ----------------------------------------------------------------------------------


def state(step: int, **settings: str) -> dict:
    towers = {"vision": settings.pop("vision", ""), "decoder": settings.pop("decoder", "")}
    settings = {"steps": "4", "projector": "linear", "vision_feature_layer": "-2", **settings}
    return {"step": step, "settings": settings, "towers": towers, "parameters": {}, "optimizers": {}, "scaler": {}}


@pytest.fixture
def refused(monkeypatch, tmp_path):
    """A function: arguments of train.py -> the line with which they are refused, or None."""

    def check(*arguments: str | Path) -> str | None:
        a = parsed(monkeypatch, *arguments, "--out", tmp_path / "out")
        try:
            train.check(a)
            train.check_folders(a)
        except UserError as error:
            return str(error)
        return None

    return check


def put(folder: Path, name: str, content: dict) -> None:
    (folder / "out" / name).mkdir(parents=True, exist_ok=True)
    torch.save(content, folder / "out" / name / STATE)


def test_towers_that_a_finished_stage_1_does_not_have_are_refused(refused, tmp_path):
    for name in ("clip", "llama", "other"):
        (tmp_path / name).mkdir()
    put(tmp_path, "stage1", state(4, vision=str(tmp_path / "clip"), decoder="smollm2"))
    assert refused("--stage", "2") is None
    assert refused("--stage", "2", "--vision", tmp_path / "llama" / ".." / "clip", "--decoder", "smollm2") is None
    assert refused("--stage", "2", "--projector", "linear", "--vision-feature-layer", "-2") is None
    out = tmp_path / "out" / "stage1"
    for name, value, made in (
        ("vision", tmp_path / "other", tmp_path / "clip"),
        ("decoder", tmp_path / "llama", "smollm2"),
        ("projector", "mlp", "linear"),
        ("vision-feature-layer", "-1", "-2"),
    ):
        line = refused("--stage", "2", f"--{name}", value)
        assert line == f"--{name} {value}: {out} is trained with {made}; choose another --out"
    assert refused("--stage", "1", "--projector", "mlp") is None  # train() says that stage 1 is there already
    put(tmp_path, "stage1", state(3))  # not finished, so it is resumed, and compared then
    assert refused("--stage", "2", "--projector", "mlp") is None


def test_pictures_are_refused_where_none_are_drawn(refused, tmp_path):
    given = ("--pictures", "3")
    assert refused("--stage", "1", *given) is None
    line = "--pictures: none are drawn, since --data is given"
    assert refused("--stage", "1", "--data", "d", *given) == line
    assert refused("--stage", "2", "--data", "d", "--model", "m", *given) == line
    assert refused("--stage", "2", "--data", "d", *given) is None  # stage 1 is trained first, on the picture-book
    assert refused("--stage", "1", "--from-scratch", "--data", "d", *given) is None
    put(tmp_path, "stage1", state(4))
    assert refused("--stage", "2", "--data", "d", *given) == line
    world = tmp_path / "out" / "data"
    world.mkdir()
    (world / "contexts.jsonl").write_text("{}\n" * 4)
    assert refused("--stage", "2", *given) == f"--pictures 3: {world} has 4 already; choose another --out"
    assert refused("--stage", "2", "--pictures", "4") is None and refused("--stage", "2") is None


def test_there_must_be_something_to_resume(refused, tmp_path):
    line = refused("--stage", "2", "--resume")
    assert line == f"{tmp_path / 'out' / 'stage2'}: no such folder, so there is nothing to resume"
    put(tmp_path, "stage1", state(3))  # the command was stopped in stage 1
    assert refused("--stage", "2", "--resume") is None
    put(tmp_path, "stage1", state(4))  # before the first save of stage 2
    assert refused("--stage", "2", "--resume") is None
    assert "stage2: no such folder" in refused("--stage", "2", "--model", "m", "--resume")
    put(tmp_path, "stage2", state(1))
    assert refused("--stage", "2", "--resume") is None
    shutil.rmtree(tmp_path / "out")
    assert "decoder: no such folder" in refused("--stage", "0", "--resume")
    scratch = ("--stage", "2", "--from-scratch", "--resume")
    assert "stage2: no such folder" in refused(*scratch)
    for last in ("vision", "notes", "decoder", "stage1"):
        put(tmp_path, last, state(2))
        assert refused("--stage", "0", "--resume") is None and refused(*scratch) is None
        put(tmp_path, last, state(4))  # before the first save of the next one
        assert refused("--stage", "0", "--resume") is None and refused(*scratch) is None
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "out" / "data").mkdir(parents=True)  # before the first save of all
    assert refused("--stage", "0", "--resume") is None and refused(*scratch) is None
    assert "nothing to resume" in refused("--stage", "2", "--resume")  # with the shipped towers


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--decoder", "smollm2", "--model", "m"], "it takes no --model"),
        (["--decoder", "smollm2", "--vision", "v"], "it takes no --model, --vision"),
        (["--decoder", "smollm2", "--image", "i"], "it takes no --model, --vision, --image or --no-image"),
        (["--decoder", "smollm2", "--no-image"], "it takes no --model, --vision, --image or --no-image"),
        (["--image", "i", "--no-image"], "--no-image: --image names a picture"),
        (["--no-image", "--seed", "1"], "--seed has no effect here"),
        (["--decoder", "smollm2", "--seed", "1"], "--seed has no effect here"),
        (["--image", "i", "--seed", "1"], "--seed has no effect here"),
        (["--image", "i", "--seed", "1", "--temperature", "0.5"], None),
        (["--seed", "1"], None),
        (["--decoder", "smollm2", "--seed", "1", "--temperature", "1"], None),
    ],
)
def test_chat_refuses_arguments_without_effect(monkeypatch, capsys, arguments, line):
    monkeypatch.setattr(sys, "argv", ["chat.py", *arguments])
    if line is None:
        chat.parse()
        return
    with pytest.raises(SystemExit) as end:
        chat.parse()
    assert end.value.code == 2 and line in capsys.readouterr().err


def test_every_argument_is_in_the_help_and_readme_names_only_such(monkeypatch, capsys):
    """Commands in README and data/README are made of arguments that exist."""
    monkeypatch.setattr(sys, "argv", ["train.py", "--help"])
    with pytest.raises(SystemExit):
        train.parse()
    known = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    root = Path(train.__file__).parent
    text = "\n".join((root / name).read_text(encoding="utf-8") for name in ("README.md", "data/README.md"))
    commands = re.findall(r"(?:^|`)(?:\$ )?python train\.py((?:[^`\n]|\\\n)*)", text.replace("\\\n", " "), re.MULTILINE)
    assert len(commands) > 10
    for command in commands:
        assert set(re.findall(r"--[a-z-]+", command)) <= known, command
