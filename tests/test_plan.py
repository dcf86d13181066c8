"""The planned memory of a training, compared with what autograd and the optimizers hold, and with transformers."""

import argparse
import re
import shutil
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import train
from minillava.config import LlavaConfig
from minillava.errors import UserError, run_program
from minillava.model.llava import Llava
from minillava.training.distributed import SINGLE
from minillava.training.loop import prepare
from minillava.training.optimizers import build_optimizers
from minillava.training.plan import GIB, LORA_RANK, Setting, describe, fill, kept_bytes, plan, settings
from minillava.training.recipes import PRESETS, Recipe
from minillava.training.tasks import choose_what_learns

ROOT = Path(__file__).parent.parent
ROWS, LENGTH = 3, 25


def setting_of(config: LlavaConfig, stage: int, bfloat16: bool = False, **recipe) -> Setting:
    return Setting(config, stage, Recipe(1e-3, ROWS, 1, length=LENGTH, **recipe), bfloat16, gpu=False)


def kept_by_autograd(s: Setting) -> int:
    """Bytes that autograd holds between the forward and the backward pass, without parameters."""
    model = Llava(s.config)
    choose_what_learns(model, s.stage, s.recipe.lora)
    prepare(model, torch.bfloat16 if s.recipe.compact and s.bfloat16 else None, s.recipe.checkpointing)
    ids = torch.randint(10, 60, (ROWS, LENGTH))
    ids[:, : s.config.num_image_tokens] = s.config.image_token_id
    labels = ids.masked_fill(ids == s.config.image_token_id, -100)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved: dict[int, torch.Tensor] = {}

    def pack(tensor):
        if (place := tensor.untyped_storage().data_ptr()) not in own:
            saved[place] = tensor
        return tensor

    autocast = torch.autocast("cpu", torch.bfloat16, cache_enabled=False) if s.bfloat16 else nullcontext()
    size = s.config.vision.image_size
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), autocast:
        model(ids, torch.randn(ROWS, 3, size, size), labels=labels)
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize(
    ("stage", "recipe"),
    [
        (1, {}),
        (1, {"compact": True}),
        (2, {}),
        (2, {"compact": True}),
        (2, {"lora": 5}),
        (2, {"lora": 5, "compact": True}),
    ],
)
@pytest.mark.parametrize("projector", ["linear", "mlp"])
def test_activations_are_what_autograd_keeps(tiny_config, stage, recipe, bfloat16, checkpointing, projector):
    """Except the tables of rotary angles, and masks and label positions, which take a few bytes per token."""
    tiny_config.projector = projector
    s = setting_of(tiny_config, stage, bfloat16, checkpointing=checkpointing, **recipe)
    small = 8 * LENGTH * tiny_config.decoder.head_dim + 40 * ROWS * LENGTH
    assert 0 <= kept_by_autograd(s) - (kept_bytes(s) + plan(s)["logits"] / 3) < small


@pytest.mark.parametrize(("stage", "optimizer", "lora"), [(1, "adamw", 0), (2, "muon", 0), (2, "adamw", 3)])
def test_weights_gradients_and_optimiser_are_what_one_step_leaves(tiny_config, stage, optimizer, lora):
    s = setting_of(tiny_config, stage, bfloat16=True, compact=True, optimizer=optimizer, lora=lora)
    model = Llava(tiny_config)
    choose_what_learns(model, stage, lora)
    prepare(model, torch.bfloat16, checkpointing=False)
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for parameter in learning.values():
        parameter.grad = torch.ones_like(parameter)
    state = 0
    for one in build_optimizers(learning, s.recipe):
        one.step()
        state += sum(t.nbytes for values in one.state.values() for t in values.values() if t.ndim)
    planned = plan(s)
    assert planned["weights"] == sum(p.nbytes for p in model.parameters())
    assert planned["gradients"] == sum(p.grad.nbytes for p in learning.values())
    assert planned["optimizer"] == state
    assert (planned["parameters"], planned["learning"]) == (
        sum(p.numel() for p in model.parameters()),
        sum(p.numel() for p in learning.values()),
    )


@pytest.mark.parametrize("name", ["consumer", "llava-7b", "smol", "laptop"])
def test_presets_have_the_sizes_that_transformers_counts(name):
    from transformers import LlavaConfig as TheirConfig
    from transformers import LlavaForConditionalGeneration

    preset = PRESETS[name]
    config = LlavaConfig(preset.vision, preset.decoder, projector="mlp", image_token_id=32000)
    with torch.device("meta"):
        theirs = LlavaForConditionalGeneration(TheirConfig(**config.to_dict()))
    planned = plan(Setting(config, 2, Recipe(1e-5, 1, 1), True, True))
    assert planned["parameters"] == sum(p.numel() for p in theirs.parameters())


def test_the_paper_s_values_are_the_presets():
    for name in ("paper", "consumer", "llava-7b"):
        one, two = (PRESETS[name].recipes[stage] for stage in ("stage1", "stage2"))
        assert (one.learning_rate, one.batch_size, one.epochs) == (2e-3, 128, 1)
        assert (two.learning_rate, two.batch_size, two.epochs) == (2e-5, 32, 3)
        for recipe in (one, two):
            assert (recipe.warmup, recipe.weight_decay, recipe.optimizer) == (0.03, 0.0, "adamw")
            assert recipe.checkpointing and recipe.compact and recipe.batch_size % recipe.accumulation == 0
    assert PRESETS["llava-7b"].recipes["stage2"].lora and not PRESETS["consumer"].recipes["stage2"].lora


@pytest.fixture
def run(monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """A function: arguments of ``train.py --plan`` -> exit code, standard output, standard error."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["train.py", "--plan", *map(str, arguments)])
        code = 0
        try:
            run_program(train.main)
        except SystemExit as end:
            code = end.code
        return (code, *capsys.readouterr())

    return run


@pytest.mark.parametrize("preset", ["consumer", "llava-7b"])
def test_presets_for_one_card_fit_it(run, preset, tmp_path):
    for stage in ("1", "2"):
        code, printed, errors = run("--preset", preset, "--stage", stage, "--out", tmp_path / "none")
        assert (code, errors) == (0, "")
        assert printed.splitlines()[-1].startswith("fits in 24 GiB; without --accumulation and --checkpointing, ")
    assert not list(tmp_path.iterdir())


def test_what_does_not_fit_is_told_the_nearest_setting_that_does(tiny_config):
    recipe = Recipe(1e-3, 32, 1, length=60)

    def setting(recipe: Recipe) -> Setting:
        return Setting(tiny_config, 2, recipe, bfloat16=True, gpu=False)

    def told(recipe: Recipe, gib: float) -> str:
        return describe(setting(recipe), gib).splitlines()[-1]

    peaks = [plan(setting(r))["peak"] / GIB for r in settings(recipe, 2)]
    assert told(recipe, peaks[0] * 1.001).startswith("fits in")
    for memory in (peak * 1.0001 for peak in peaks if peak < peaks[0]):
        nearest = next(r for r, peak in zip(settings(recipe, 2), peaks) if peak <= memory)
        line = told(recipe, memory)
        assert line.startswith("does not fit in")
        assert f"--accumulation {nearest.accumulation}" in line
        assert ("--checkpointing" in line) == nearest.checkpointing
        assert ("--lora" in line) == bool(nearest.lora)
        assert told(nearest, memory).startswith("fits in")  # the named setting does fit
    assert "neither does any other setting" in told(recipe, min(peaks) * 0.999)


def test_a_card_is_filled_with_the_largest_micro_batch_and_without_checkpointing_if_that_fits(tiny_config):
    start = Recipe(1e-3, 6, 1, accumulation=3, checkpointing=True, length=60)
    ways = [replace(start, checkpointing=c, accumulation=n) for c in (False, True) for n in (1, 2, 4, 6)]
    peaks = [plan(Setting(tiny_config, 2, way, bfloat16=True, gpu=True))["peak"] / GIB for way in ways]
    setting = Setting(tiny_config, 2, start, bfloat16=True, gpu=True)
    for memory in (peak * 1.0001 for peak in peaks):
        assert fill(setting, memory) == next(way for way, peak in zip(ways, peaks) if peak <= memory)
    assert fill(setting, min(peaks) * 0.9999) is None


@pytest.mark.parametrize(("free", "given", "memory"), [(70, None, 70), (70, 24, 24), (20, 24, 20)])
def test_training_fills_what_is_free_or_less_if_asked(monkeypatch, tiny_config, capsys, free, given, memory):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free * GIB, 80 * GIB))
    asked = []
    monkeypatch.setattr(train, "fill", lambda setting, memory: asked.append(memory) or setting.recipe)
    recipe = Recipe(1e-3, 6, 1, accumulation=3)
    options = {"device": "cuda", "team": SINGLE, "dtype": None, "memory": given, "checkpointing": None}
    for accumulation in (None, 3):
        a = argparse.Namespace(**options, accumulation=accumulation)
        assert train.fill_card(1, tiny_config, recipe, a) == recipe
    assert asked == [memory]
    assert capsys.readouterr().out.count("3 x 2 rows, activation checkpointing off; the fewest") == 1


def test_memory_is_not_ignored(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--stage", "1", "--device", "cpu", "--memory", "8"])
    with pytest.raises(UserError, match="--memory: needs --plan"):
        train.main()


def test_settings_go_from_what_costs_time_to_what_learns_something_else():
    kinds = [(r.lora, r.checkpointing, r.accumulation) for r in settings(Recipe(1e-3, 6, 1, accumulation=2), 2)]
    assert kinds == [(lora, c, n) for lora in (0, LORA_RANK) for c in (False, True) for n in (2, 4, 6)]
    kinds = [(r.lora, r.checkpointing, r.accumulation) for r in settings(Recipe(1e-3, 4, 1, checkpointing=True), 1)]
    assert kinds == [(0, True, n) for n in (1, 2, 4)]


def test_full_fine_tuning_of_seven_billion_is_sent_to_lora(run, tmp_path):
    code, printed, _ = run("--preset", "paper", "--stage", "2", "--out", tmp_path / "none")
    assert code == 0 and "--lora 128" in printed.splitlines()[-1]
    assert re.search(r"of which 6,7\d\d\.\d M learn", printed)


def test_sizes_are_read_from_folders_without_their_weights(run, tmp_path):
    folder = ROOT / "minillava" / "pretrained" / "llava"
    (tmp_path / "model").mkdir()
    shutil.copy(folder / "config.json", tmp_path / "model")
    code, printed, errors = run("--stage", "2", "--model", tmp_path / "model", "--device", "cpu", "--dtype", "float32")
    assert code == 0, errors
    stored = load_file(folder / "model.safetensors")
    count = sum(t.numel() for name, t in stored.items() if not name.startswith("multi_modal_projector.linear_2."))
    assert printed.startswith(f"stage 2: {count / 1e6:.1f} M parameters")
    assert re.search(rf"^weights +{4 * count / GIB:.2f} GiB$", printed, re.MULTILINE)
    code, _, errors = run("--stage", "2", "--out", tmp_path / "none", "--vision", tmp_path / "nowhere")
    assert code == 2 and "nowhere/config.json: No such file" in errors
    code, _, errors = run("--stage", "0")
    assert code == 2 and "--plan: stage 0" in errors


def test_the_readme_shows_what_is_printed(run, tmp_path):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    _, printed, _ = run("--stage", "2", "--preset", "consumer", "--memory", "16", "--out", tmp_path / "none")
    assert f"--preset consumer --memory 16\n{printed}```" in readme
    for preset in ("consumer", "llava-7b", "paper"):
        (row,) = (line for line in readme.splitlines() if line.startswith(f"| `{preset}` |"))
        peaks = []
        for stage in ("1", "2"):
            _, printed, _ = run("--stage", stage, "--preset", preset, "--out", tmp_path / "none")
            peaks.append(float(re.search(r"^peak +(\S+) GiB", printed, re.MULTILINE)[1]))
        assert f"| {peaks[0]:.1f} and {peaks[1]:.1f} GiB" in row
