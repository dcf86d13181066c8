"""Training with LoRA equals that of full matrices updated along their low rank; adapters are saved, loaded, merged."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from conftest import PowerCut, batch_of
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_generation import prompt
from torch import nn
from torch.utils.data import default_collate

from minillava import Llava, Processor, load, merge, save
from minillava.errors import UserError, run_program
from minillava.formats.adapter_config import CONFIG
from minillava.formats.tensors import ADAPTER
from minillava.inputs.conversation import IGNORE
from minillava.inputs.image import ImageProcessor
from minillava.inputs.rejected import Rejected
from minillava.inputs.templates import TEMPLATES
from minillava.model.lora import LoraLinear, add_lora, merge_lora
from minillava.saving import replace_folder, write_adapter
from minillava.training.loop import Run, train
from minillava.training.recipes import Recipe
from minillava.training.tasks import llava_task

RANK, ALPHA = 3, 12.0


class Rows:
    """A data set of eight random rows, each with a picture; the row's index is the seed."""

    files, options = (), {}

    def __init__(self, model: Llava):
        self.config, self.rejected = model.config, Rejected("rows")

    def __len__(self) -> int:
        return 8

    def size(self, index: int) -> int:
        return 1

    def __getitem__(self, key: tuple[int, int, int]) -> dict[str, torch.Tensor]:
        image, patches, size = self.config.image_token_id, self.config.num_image_tokens, self.config.vision.image_size
        rng = torch.Generator().manual_seed(key[2])
        words = torch.randint(10, 60, (12,), generator=rng)
        ids = torch.cat([words[:2], torch.full((patches,), image), words[2:]])
        labels = ids.clone()
        labels[: patches + 4] = IGNORE
        return {"input_ids": ids, "labels": labels, "pixel_values": torch.randn(3, size, size, generator=rng)}

    def collate(self, examples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        return default_collate(examples)


def with_lora(model: Llava) -> Llava:
    """Add LoRA to the decoder with a B that is not zero, as after training."""
    add_lora(model.language_model, RANK, ALPHA)
    for part in model.modules():
        if isinstance(part, LoraLinear):
            nn.init.normal_(part.lora_B.weight, std=0.1)
    return model.eval()


def logits(model: Llava) -> torch.Tensor:
    batch = batch_of(Rows(model), [0, 1])
    with torch.no_grad():
        return model(batch["input_ids"], batch["pixel_values"])[0]


@pytest.fixture
def base(tiny_model, tmp_path) -> Path:
    save(tiny_model, tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def adapter(base, tmp_path) -> Path:
    model = with_lora(load(base))
    replace_folder(tmp_path / "adapter", lambda new: write_adapter(model, base, new))
    return tmp_path / "adapter"


def test_training_equals_that_of_full_matrices_updated_along_their_low_rank(tiny_model, base):
    """The reference trains full matrices: from the gradient of each one it updates A and B by hand, then sets the
    matrix to W + scale B A."""
    ours, plain, rate, scale = with_lora(load(base)), load(base), 0.05, ALPHA / RANK
    factors = {}
    for name, layer in ours.named_modules():
        if isinstance(layer, LoraLinear):
            matrix = plain.get_submodule(name).weight
            factors[matrix] = [matrix.detach().clone(), layer.lora_A.weight.clone(), layer.lora_B.weight.clone()]
    plain.requires_grad_(False)
    for matrix, (w, a, b) in factors.items():
        matrix.requires_grad_(True).data.copy_(w + scale * b @ a)
    learnt = [p for p in ours.language_model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(learnt, rate)
    assert len(learnt) == 2 * len(factors)
    losses = []
    for step in range(6):
        batch = batch_of(Rows(ours), [step % 8, (step + 3) % 8])
        pair = [m(batch["input_ids"], batch["pixel_values"], labels=batch["labels"])[1] for m in (ours, plain)]
        for loss in pair:
            loss.backward()
        losses.append([loss.item() for loss in pair])
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for matrix, factor in factors.items():
                w, a, b = factor
                factor[1], factor[2] = a - rate * scale * b.T @ matrix.grad, b - rate * scale * matrix.grad @ a.T
                matrix.copy_(w + scale * factor[2] @ factor[1])
                matrix.grad = None
    for left, right in losses:
        assert left == pytest.approx(right, abs=1e-5)
    assert losses[0][0] - losses[-1][0] > 0.1  # the loss does fall
    merge_lora(ours.language_model)
    for name, matrix in plain.named_parameters():
        torch.testing.assert_close(ours.get_parameter(name), matrix, rtol=1e-5, atol=1e-5)


def test_only_low_rank_matrices_and_the_projection_learn(base, tmp_path):
    model = load(base)
    task = llava_task(model, Rows(model), 2, RANK, base)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(task, Recipe(1e-2, 4, 2, optimizer="muon"), Run(tmp_path / "out", dtype=torch.float32))
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if "lora_" in name or name.startswith("multi_modal_projector.")}
    assert all(p.grad is None for name, p in model.named_parameters() if name not in moved)


def test_what_training_leaves_is_small_and_loads_as_what_was_trained(base, tmp_path):
    model = load(base)
    task = llava_task(model, Rows(model), 2, RANK, base)
    task.model.processor.template = TEMPLATES["chatml"]
    task.model.processor.image = image = model.processor.image.fitting("pad", 24)  # the base crops
    train(task, Recipe(1e-2, 4, 2), Run(tmp_path / "out", dtype=torch.float32))
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {ADAPTER, CONFIG, "chat_template.jinja", "preprocessor_config.json", "trainer_state.pt"}
    learnt = 4 * sum(p.numel() for p in model.parameters() if p.requires_grad)
    identity = 4 * (32 * 32 + 32)  # the second layer that transformers expects in a linear projector
    assert learnt < (tmp_path / "out" / ADAPTER).stat().st_size < learnt + identity + 5000
    loaded = load(tmp_path / "out")
    torch.testing.assert_close(logits(loaded), logits(model.eval()), rtol=0, atol=1e-5)
    assert loaded.processor.template == TEMPLATES["chatml"] and not loaded.training
    assert loaded.processor.image == image != load(base).processor.image
    assert loaded.processor.tokenizer.vocab_size == model.processor.tokenizer.vocab_size


def test_names_are_those_that_peft_gives_the_modules_of_transformers(tiny_model, adapter):
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    with torch.device("meta"):
        theirs = LlavaForConditionalGeneration(LlavaConfig(**tiny_model.config.to_dict()))
    config = json.loads((adapter / CONFIG).read_text())
    expected = {}
    for name, module in theirs.named_modules():  # peft matches targets by full name, saved modules by ending
        if re.fullmatch(config["target_modules"], name):
            expected[f"base_model.model.{name}.lora_A.weight"] = (RANK, module.in_features)
            expected[f"base_model.model.{name}.lora_B.weight"] = (module.out_features, RANK)
        if any(name.endswith(saved) for saved in config["modules_to_save"]):
            for part, tensor in module.state_dict().items():
                expected[f"base_model.model.{name}.{part}"] = tuple(tensor.shape)
    with safe_open(adapter / ADAPTER, "pt") as file:
        stored = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (no dict)
    assert stored == expected and len(stored) == 2 * 7 * 2 + 4
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (RANK, ALPHA, "../base")


def test_an_adapter_and_its_base_can_be_moved_together(base, adapter, tmp_path):
    before = logits(load(adapter))
    (tmp_path / "elsewhere").mkdir()
    for folder in (base, adapter):
        shutil.move(folder, tmp_path / "elsewhere" / folder.name)
    assert torch.equal(logits(load(tmp_path / "elsewhere" / "adapter")), before)
    shutil.rmtree(tmp_path / "elsewhere" / "base")
    with pytest.raises(UserError, match=r"\.\./base: no such folder"):
        load(tmp_path / "elsewhere" / "adapter")


def test_an_adapter_of_a_model_with_a_projection_of_two_layers(tiny_config, tokenizer, randomise, tmp_path):
    tiny_config.projector = "mlp"
    processor = Processor(tokenizer, ImageProcessor.for_size(24), tiny_config.num_image_tokens)
    save(randomise(Llava(tiny_config, processor)), tmp_path / "base")
    model = with_lora(load(tmp_path / "base"))
    randomise(model.multi_modal_projector)
    replace_folder(tmp_path / "adapter", lambda new: write_adapter(model, tmp_path / "base", new))
    torch.testing.assert_close(logits(load(tmp_path / "adapter")), logits(model), rtol=0, atol=1e-5)


def test_merging_leaves_a_plain_folder(adapter, tmp_path, monkeypatch, capsys):
    def run(*arguments: Path) -> None:
        monkeypatch.setattr(sys, "argv", ["merge", *map(str, arguments)])
        run_program(merge.main)

    run(adapter, tmp_path / "plain")
    assert capsys.readouterr().err == ""
    assert not any("lora" in name for name in load_file(tmp_path / "plain" / "model.safetensors"))
    torch.testing.assert_close(logits(load(tmp_path / "plain")), logits(load(adapter)), rtol=0, atol=1e-6)
    for again, words in (
        ((adapter, tmp_path / "plain"), "already exists"),
        ((tmp_path / "plain", tmp_path / "twice"), "nothing to merge"),
    ):
        with pytest.raises(SystemExit) as end:
            run(*again)
        [line] = capsys.readouterr().err.splitlines()
        assert end.value.code == 2 and words in line
    assert not (tmp_path / "twice").exists()


def test_a_model_with_unmerged_lora_is_not_saved(tiny_model, tmp_path):
    with pytest.raises(ValueError, match="merge_lora"):
        save(with_lora(tiny_model), tmp_path / "out")
    assert not (tmp_path / "out").exists()


LAYER = "base_model.model.model.language_model.layers.1.mlp.up_proj.lora_B.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop(LAYER), r"layers\.1\.mlp\.up_proj\.lora_B\.weight is missing"),
        (lambda tensors: tensors.update(extra=torch.zeros(1)), "tensor 'extra' is left over"),
        (lambda tensors: tensors.update({LAYER: torch.zeros(48, 2)}), r"lora_B\.weight has shape \(48, 2\), not"),
        (lambda tensors: tensors.update({LAYER: torch.zeros(48, 3, dtype=torch.int32)}), "not a floating-point one"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(adapter, change, message):
    tensors = load_file(adapter / ADAPTER)
    change(tensors)
    save_file(tensors, adapter / ADAPTER)
    with pytest.raises(UserError, match=message) as error:
        load(adapter)
    assert ADAPTER in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"use_rslora": True}, "use_rslora is True; only False is supported"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern"),
        ({"r": 0}, "r is 0, not a positive number"),
        ({"r": 2.5}, "r is 2.5"),
        ({"lora_alpha": "x"}, "lora_alpha is 'x'"),
        ({"lora_alpha": float("inf")}, "lora_alpha is inf"),
        ({"base_model_name_or_path": None}, "base_model_name_or_path is None"),
        ({"base_model_name_or_path": "../nowhere"}, "nowhere: no such folder"),
        ({"base_model_name_or_path": "."}, "is an adapter too"),
        ({"r": 10**5}, "lora_A.weight has shape"),
        ({"r": 10**12}, "r is 1000000000000"),
    ],
)
def test_a_setting_that_would_be_computed_wrongly_is_named(adapter, values, message):
    config = json.loads((adapter / CONFIG).read_text())
    (adapter / CONFIG).write_text(json.dumps(config | values))
    with pytest.raises(UserError, match=re.escape(message)) as error:
        load(adapter)
    assert "\n" not in str(error.value)


def test_a_resumed_run_ends_like_an_unbroken_one(base, tmp_path, cut_power):
    recipe = Recipe(1e-2, 2, 2, save_every=3)

    def make():
        torch.manual_seed(0)
        model = load(base)
        return llava_task(model, Rows(model), 2, RANK, base)

    train(make(), recipe, Run(tmp_path / "whole"))
    task = make()
    cut_power(task)
    with pytest.raises(PowerCut):
        train(task, recipe, Run(tmp_path / "broken"))
    train(make(), recipe, Run(tmp_path / "broken", resume=True))
    assert (tmp_path / "broken" / ADAPTER).read_bytes() == (tmp_path / "whole" / ADAPTER).read_bytes()
    other = load(base)
    with pytest.raises(UserError, match=r"lora_A\.weight is missing, left over or of another shape"):
        task = llava_task(other, Rows(other), 2, RANK + 1, base)
        train(task, recipe, Run(tmp_path / "broken", resume=True))


def test_what_lora_learnt_is_in_the_answer(lively_model):
    model = lively_model
    run = (prompt(model, "What is it?"), torch.randn(1, 3, 24, 24))
    before = model.generate(*run, max_new_tokens=20, stop_ids=[])
    add_lora(model.language_model, rank=2, alpha=4.0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    apart = model.generate(*run, max_new_tokens=20, stop_ids=[])
    merge_lora(model.language_model)
    assert model.generate(*run, max_new_tokens=20, stop_ids=[]).equal(apart) and not apart.equal(before)
