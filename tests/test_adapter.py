"""Stage 1 of a large model saves only what it has learnt, as an adapter of its two towers, and everything reads it.

The tests compare it with the whole folder that the same training writes of a small model.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_join import rows, run, towers  # noqa: F401  rows and towers are fixtures

import chat
import train
from minillava import Llava, load, merge
from minillava.errors import UserError
from minillava.formats.adapter_config import CONFIG, AdapterConfig, Towers, read_config, to_dict
from minillava.formats.tensors import ADAPTER, WEIGHTS
from minillava.model.lora import is_learnt
from minillava.outline import read_outline
from minillava.training import tasks

PROJECTION = "base_model.model.model.multi_modal_projector"
LEARNT = {f"{PROJECTION}.linear_{number}.{kind}" for number in (1, 2) for kind in ("weight", "bias")}


@pytest.fixture
def trained(towers, rows, tmp_path, monkeypatch):  # noqa: F811
    """A function: train stage 1 on the two towers, as a large or as a small model, into a folder."""

    def stage_1(out: str, large: bool, *more: str) -> Path:
        monkeypatch.setattr(tasks, "LARGE", 0 if large else 10**9)
        given = ["--vision", towers[0], "--decoder", towers[1], "--vision-feature-layer", "-1"]
        run(monkeypatch, train, "--stage", 1, *given, *common(tmp_path / out, rows), *more)
        return tmp_path / out / "stage1"

    return stage_1


def common(out: Path, rows: Path) -> list:  # noqa: F811
    return ["--data", rows, "--out", out, "--batch-size", 2, "--dtype", "float32", "--max-steps", 2, "--device", "cpu"]


def assert_same(one: Llava, other: Llava) -> None:
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    assert one.config == other.config and one.processor.template == other.processor.template
    assert (one.processor.image, one.processor.stop_ids) == (other.processor.image, other.processor.stop_ids)


@pytest.mark.parametrize("projector", ["linear", "mlp"])
def test_it_holds_only_the_projection_and_loads_as_the_whole_model(trained, towers, projector):  # noqa: F811
    small, whole = (trained(name, large, "--projector", projector) for name, large in (("a", True), ("b", False)))
    assert not (small / WEIGHTS).exists() and (whole / WEIGHTS).exists() and not (whole / CONFIG).exists()
    assert load_file(small / ADAPTER).keys() == LEARNT
    stored = json.loads((small / CONFIG).read_text())
    places = {"vision": "../../clip", "decoder": "../../vicuna"}
    assert stored["base_towers"] == {**places, "projector": projector, "vision_feature_layer": -1}
    assert stored["base_model_name_or_path"] is None and "r" not in stored and "peft_type" not in stored
    assert_same(load(small), load(whole))
    config, processor = read_outline(small)
    assert config == read_outline(whole)[0] and processor.template == read_outline(whole)[1].template
    assert processor.tokenizer.vocab_size == 902


def test_stage_2_goes_on_from_it(trained, rows, tmp_path, monkeypatch):  # noqa: F811
    """With the whole decoder, which is saved whole, and with LoRA, whose adapter names the same two towers."""
    for name, large in (("a", True), ("b", False)):
        trained(name, large)
        run(monkeypatch, train, "--stage", 2, *common(tmp_path / name, rows))
        stage_1 = tmp_path / name / "stage1"
        run(monkeypatch, train, "--stage", 2, "--model", stage_1, "--lora", 2, *common(tmp_path / f"{name}-lora", rows))
    assert (tmp_path / "a" / "stage2" / WEIGHTS).read_bytes() == (tmp_path / "b" / "stage2" / WEIGHTS).read_bytes()
    small, other = (tmp_path / f"{name}-lora" / "stage2" for name in "ab")
    assert load_file(small / ADAPTER).keys() == load_file(other / ADAPTER).keys() > LEARNT
    assert any(map(is_learnt, load_file(small / ADAPTER)))
    stored = json.loads((small / CONFIG).read_text())
    assert stored["base_towers"]["decoder"] == "../../vicuna" and stored["base_model_name_or_path"] is None
    assert json.loads((other / CONFIG).read_text())["base_model_name_or_path"] == "../../b/stage1"
    assert_same(load(small), load(other))
    with pytest.raises(UserError, match="--lora 3, but its LoRA has rank 2; take that, or merge it first"):
        run(monkeypatch, train, "--stage", 2, "--model", small, "--lora", 3, *common(tmp_path / "c", rows))
    # A decoder that LoRA has changed is in no folder, so stage 1 on top of it is saved whole.
    run(monkeypatch, train, "--stage", 1, "--model", small, *common(tmp_path / "d", rows))
    assert (tmp_path / "d" / "stage1" / WEIGHTS).exists()


def test_lora_that_has_learnt_can_learn_more_for_the_same_towers(trained, rows, tmp_path, monkeypatch):  # noqa: F811
    trained("a", True)
    run(monkeypatch, train, "--stage", 2, "--lora", 2, *common(tmp_path / "a", rows))
    first = tmp_path / "a" / "stage2"
    more = ["--stage", 2, "--model", first, "--lora", 2, *common(tmp_path / "more", rows)]
    run(monkeypatch, train, *more, "--learning-rate", 1e-6)
    second = tmp_path / "more" / "stage2"
    assert json.loads((second / CONFIG).read_text())["base_towers"]["decoder"] == "../../vicuna"
    old, new = load_file(first / ADAPTER), load_file(second / ADAPTER)
    assert old.keys() == new.keys()
    for name, tensor in old.items():  # two steps at this rate change a little; random matrices would differ by far more
        assert ((new[name] - tensor).abs().max() > 0) == ("linear_2" not in name), name  # the identity, for a linear W
        assert torch.allclose(new[name], tensor, atol=1e-4), name
    before, after = load(first), load(second)
    for name, tensor in before.state_dict().items():  # nothing else has changed
        learnt = "projector" in name or (name.endswith("_proj.weight") and name.startswith("language_model"))
        assert torch.equal(tensor, after.state_dict()[name]) != learnt, name


def test_stage_1_on_a_large_llava_is_an_adapter_of_that(trained, rows, tmp_path, monkeypatch):  # noqa: F811
    whole = trained("b", False)
    monkeypatch.setattr(tasks, "LARGE", 0)
    run(monkeypatch, train, "--stage", 1, "--model", whole, *common(tmp_path / "again", rows))
    folder = tmp_path / "again" / "stage1"
    assert load_file(folder / ADAPTER).keys() == LEARNT
    assert json.loads((folder / CONFIG).read_text())["base_model_name_or_path"] == "../../b/stage1"
    ours, before = load(folder).state_dict(), load(whole).state_dict()
    changed = {name for name, tensor in ours.items() if not torch.equal(tensor, before[name])}
    assert changed == {"multi_modal_projector.weight", "multi_modal_projector.bias"}


def test_chat_merge_plan_and_resuming_read_it(trained, rows, tmp_path, monkeypatch, capsys):  # noqa: F811
    small, whole = trained("a", True), trained("b", False)
    asked = ["--image", tmp_path / "a.png", "--prompt", "What is it?", "--max-new-tokens", 8]
    said = []
    for folder in (small, whole):
        capsys.readouterr()
        run(monkeypatch, chat, "--model", folder, *asked)
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] != "\n"
    run(monkeypatch, merge, small, tmp_path / "merged")
    assert_same(load(tmp_path / "merged"), load(whole))
    plans = []
    for name in "ab":
        capsys.readouterr()
        run(monkeypatch, train, "--stage", 2, "--plan", "--out", tmp_path / name, "--memory", 8)
        plans.append(capsys.readouterr().out)
    assert plans[0] == plans[1] and "parameters" in plans[0]
    before = (small / ADAPTER).read_bytes()
    trained("a", True, "--resume")
    assert (small / ADAPTER).read_bytes() == before


def test_it_moves_with_its_towers(trained, towers, tmp_path):  # noqa: F811
    before = load(trained("out", True))
    (tmp_path / "elsewhere").mkdir()
    for folder in (*towers, tmp_path / "out"):
        shutil.move(folder, tmp_path / "elsewhere" / folder.name)
    folder = tmp_path / "elsewhere" / "out" / "stage1"
    assert_same(load(folder), before)
    for name in ("clip", "vicuna", "out/stage1"):  # as a save leaves them that is killed between its two renames
        if (tmp_path / "elsewhere" / name).exists():
            (tmp_path / "elsewhere" / name).rename(tmp_path / "elsewhere" / f"{name}.old")
    assert_same(load(folder), before)
    (tmp_path / "elsewhere" / "out" / "stage1.old").rename(folder)
    shutil.rmtree(tmp_path / "elsewhere" / "vicuna.old")
    with pytest.raises(UserError, match=rf"^{folder}/{CONFIG}: base model \.\./\.\./vicuna: no such folder"):
        load(folder)


@pytest.mark.parametrize("base", [Towers("openai/clip", "smollm2", "mlp", -1), "llava-hf/llava-1.5-7b-hf"])
def test_hub_ids_and_packages_keep_their_names(tmp_path, base):
    (tmp_path / CONFIG).write_text(json.dumps(to_dict(AdapterConfig(base), tmp_path)))
    assert read_config(tmp_path) == AdapterConfig(base)


def test_its_folder_may_be_behind_a_link(trained, tmp_path):
    """The paths in it are those of the real folder."""
    (tmp_path / "large" / "disk").mkdir(parents=True)
    (tmp_path / "out").symlink_to(tmp_path / "large" / "disk")
    folder = trained("out", True)
    assert json.loads((folder / CONFIG).read_text())["base_towers"]["vision"] == "../../../clip"
    load(folder)


def test_vision_is_refused_next_to_it(trained, towers):  # noqa: F811
    with pytest.raises(UserError, match="has a vision tower of its own"):
        load(trained("out", True), vision=towers[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision": 3}, "must have vision (str), decoder (str), projector (str), vision_feature_layer (int)"),
        ({"extra": ""}, "base_towers must have vision"),
        ({"vision_feature_layer": True}, "base_towers must have vision"),
        ({"projector": "pixel"}, "projector is 'pixel', not 'linear' or 'mlp'"),
        ({"projector": "mlp"}, None),  # two layers are stored for a linear one too, so it only lacks GELU
        ({"vision": "nowhere"}, "base model nowhere: no such folder"),
        ({"decoder": "../../clip"}, "clip/config.json: "),
    ],
)
def test_towers_that_make_no_sense_are_named(trained, change, message):
    folder = trained("out", True)
    stored = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**stored, "base_towers": {**stored["base_towers"], **change}}))
    if message is None:
        assert load(folder).config.projector == "mlp"
        return
    with pytest.raises(UserError) as error:
        load(folder)
    assert str(error.value).startswith(f"{folder / CONFIG}: ") and message in str(error.value)


def test_base_towers_must_be_an_object(trained):
    folder = trained("out", True)
    for value in ([], "x", {}):
        (folder / CONFIG).write_text(json.dumps({"base_towers": value}))
        with pytest.raises(UserError, match="base_towers must have vision"):
            load(folder)
