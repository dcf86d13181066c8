"""The names of tensors in files -> ours, and large models in several files. test_weights.py has damaged files."""

import json
from pathlib import Path

import pytest
import torch
from expect import same
from safetensors.torch import load_file

from minillava.errors import UserError
from minillava.formats import tensors as module
from minillava.formats.tensors import Stored, list_tensors, rename, split, write_tensors

RULES = (
    (r"^(?:model\.)?vision_tower\.(?:vision_model\.)?", "vision_tower."),
    (r"^(?:language_model\.)?lm_head\.", "language_model.lm_head."),
    (r"^(?:model\.language_model|language_model\.model)\.", "language_model."),
    (r"^model\.layers\.(\d+)", r"language_model.layers.\1"),
)
OURS = {
    "vision_tower.vision_model.embeddings.class_embedding": "vision_tower.embeddings.class_embedding",
    "model.vision_tower.pre_layrnorm.weight": "vision_tower.pre_layrnorm.weight",
    "vision_tower.encoder.layers.0.mlp.fc1.weight": "vision_tower.encoder.layers.0.mlp.fc1.weight",
    "language_model.lm_head.weight": "language_model.lm_head.weight",
    "language_model.model.layers.1.mlp.up_proj.weight": "language_model.layers.1.mlp.up_proj.weight",
    "model.language_model.norm.weight": "language_model.norm.weight",
    "model.layers.12.mlp.up_proj.weight": "language_model.layers.12.mlp.up_proj.weight",
    "multi_modal_projector.linear_1.bias": "multi_modal_projector.linear_1.bias",
}


def stored(*names: str) -> dict[str, Stored]:
    return {name: Stored(Path(f"{number}.safetensors"), name, (2, 3)) for number, name in enumerate(names)}


def test_names_become_ours():
    found = rename(stored(*OURS), RULES)
    for theirs, ours in OURS.items():
        assert ours in found, f"{theirs} becomes {ours}"
        assert found[ours].name == theirs, f"{ours} is still the tensor {theirs} of its file"
    assert len(found) == len(OURS), "each tensor has one name"
    assert list(found) == list(OURS.values()), "the tensors stay in their order"


def test_a_name_without_a_rule_stays():
    names = ["multi_modal_projector.linear_1.bias", "x.vision_tower.y"]
    assert list(rename(stored(*names), RULES)) == names, "a name in which no rule is found stays as it is"
    assert list(rename(stored(*names), ())) == names, "without rules every name stays as it is"


def test_only_the_first_rule_is_applied_and_only_once():
    rules = ((r"^a\.", "b."), (r"^b\.", "c."), (r"^a\.", "d."))
    found = list(rename(stored("a.a.x", "b.x"), rules))
    assert found[0] == "b.a.x", "the first rule that is found is applied, and no other after it"
    assert found[1] == "c.x", "a rule that is not found is passed over"


def test_a_rule_is_a_pattern():
    rules = ((r"layers\.(\d+)\.old", r"blocks.\1.new"),)
    assert list(rename(stored("x.layers.12.old.weight"), rules)) == ["x.blocks.12.new.weight"], (
        "a rule is a regular expression, found anywhere in the name, and its replacement may have groups: re.sub"
    )


@pytest.mark.parametrize("name", ["position_ids", "vision_tower.embeddings.position_ids", "x.rotary_emb.inv_freq"])
def test_tensors_that_are_no_weights_are_left_out(name):
    found = rename(stored("a.weight", name), RULES)
    assert list(found) == ["a.weight"], f"{name} is no weight (CONSTANTS), so it is left out"


def test_a_weight_with_such_a_word_in_its_name_stays():
    names = ["position_ids.weight", "x.position_ids_2"]
    assert list(rename(stored(*names), ())) == names, "CONSTANTS are whole names, at the end"


def test_two_tensors_with_one_name_are_an_error():
    names = ["model.language_model.norm.weight", "language_model.model.norm.weight"]
    try:
        rename(stored(*names), RULES)
    except UserError as error:
        assert "\n" not in str(error), "an error is one line"
        assert all(name in str(error) for name in names), "the error names both tensors"
    else:
        raise AssertionError("two tensors that get the same name are a UserError: one would be lost")


def parts(sizes: list[int], limit: int) -> list[list[int]]:
    """What split() makes of tensors of these sizes: the sizes in each shard."""
    names = {f"tensor {number}": size for number, size in enumerate(sizes)}
    shards = split(names, limit)
    found = [name for shard in shards for name in shard]
    assert found == list(names), "every tensor is in one shard, in the order in which they come"
    return [[names[name] for name in shard] for shard in shards]


@pytest.mark.parametrize(
    "sizes, limit, want, sentence",
    [
        ([3, 3, 3], 10, [[3, 3, 3]], "what fits into one shard is in one"),
        ([5, 5], 10, [[5, 5]], "a shard may be full: exactly limit bytes are allowed"),
        ([5, 6], 10, [[5], [6]], "a shard has at most limit bytes"),
        ([4, 4, 4, 4], 10, [[4, 4], [4, 4]], "each shard has room for limit bytes"),
        ([2, 30, 2], 10, [[2], [30], [2]], "a tensor larger than the limit has a shard for itself"),
        ([30], 10, [[30]], "no shard is empty"),
        ([30, 40], 10, [[30], [40]], "no shard is empty"),
        ([8, 1, 5, 4, 7], 10, [[8, 1], [5, 4], [7]], "a shard is filled before the next one begins"),
        ([8, 5, 2], 10, [[8], [5, 2]], "a tensor goes into the newest shard: the order stays"),
        ([2, 9, 3], 10, [[2], [9], [3]], "a new shard has room for limit bytes, whatever was left of the one before"),
        ([0, 0], 10, [[0, 0]], "a tensor without numbers needs no room"),
    ],
)
def test_tensors_are_split_into_shards(sizes, limit, want, sentence):
    assert parts(sizes, limit) == want, sentence


def test_no_tensors_are_one_empty_shard():
    assert split({}, 10) == [[]], "there is at least one shard, as a folder has at least one file"


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    """Tensors of 40, 48, 4 and 20 bytes."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"a": (10,), "b": (3, 4), "c": (), "d": (5,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def test_a_small_model_is_one_file(tmp_path, weights):
    write_tensors(tmp_path, weights)
    names = [path.name for path in tmp_path.iterdir()]
    assert names == ["model.safetensors"], "tensors that fit are in model.safetensors, without an index"
    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == weights.keys(), "each tensor is in the file by its name"
    for name, tensor in weights.items():
        same(found[name], tensor, "a tensor is stored as it is", 0, 0)


def test_a_large_model_is_several_files_and_an_index(tmp_path, weights, monkeypatch):
    monkeypatch.setattr(module, "SHARD_BYTES", 64)
    write_tensors(tmp_path, weights)
    shards = {"model-00001-of-00003.safetensors": ["a"], "model-00002-of-00003.safetensors": ["b", "c"],
              "model-00003-of-00003.safetensors": ["d"]}  # fmt: skip
    names = {path.name for path in tmp_path.iterdir()}
    index = tmp_path / "model.safetensors.index.json"
    assert names == {*shards, index.name}, "the shards are model-00001-of-00003.safetensors and so on, with an index"
    for file, tensors in shards.items():
        found = load_file(tmp_path / file)
        assert sorted(found) == tensors, "each file holds the tensors of its shard: at most SHARD_BYTES, in their order"
        for name in tensors:
            same(found[name], weights[name], "a tensor is stored as it is", 0, 0)
    told = json.loads(index.read_text())
    want = {name: file for file, tensors in shards.items() for name in tensors}
    assert told["weight_map"] == want, "weight_map says which file each tensor is in"
    assert told["metadata"]["total_size"] == 112, "total_size is the number of bytes of all tensors"


def test_what_is_written_can_be_listed(tmp_path, weights, monkeypatch):
    monkeypatch.setattr(module, "SHARD_BYTES", 64)
    write_tensors(tmp_path, weights)
    found = list_tensors(tmp_path)
    assert found.keys() == weights.keys(), "list_tensors() finds all tensors through the index"
    for name, tensor in weights.items():
        same(found[name].read(), tensor, "what is written can be read again", 0, 0)


def test_tensors_are_converted_and_their_size_is_that_in_the_file(tmp_path, weights, monkeypatch):
    monkeypatch.setattr(module, "SHARD_BYTES", 64)
    write_tensors(tmp_path, weights, torch.bfloat16)
    names = [path.name for path in tmp_path.iterdir()]
    assert names == ["model.safetensors"], "a tensor's size is that in the dtype it is written in: 56 bytes fit into 64"
    for name, tensor in load_file(tmp_path / "model.safetensors").items():
        same(tensor, weights[name].bfloat16(), "with a dtype the tensors are converted to it", 0, 0)


def test_without_a_dtype_each_tensor_keeps_its_own(tmp_path):
    mixed = {"a": torch.ones(3, dtype=torch.float64), "b": torch.ones(3, dtype=torch.float16)}
    write_tensors(tmp_path, mixed)
    for name, tensor in load_file(tmp_path / "model.safetensors").items():
        same(tensor, mixed[name], "without a dtype each tensor keeps its own", 0, 0)


def test_a_view_and_a_parameter_can_be_written(tmp_path):
    odd = {"view": torch.arange(6.0).view(2, 3).T, "parameter": torch.nn.Parameter(torch.ones(2))}
    try:
        write_tensors(tmp_path, odd)
    except (ValueError, RuntimeError):
        raise AssertionError(
            "a tensor is detached, moved to the CPU and made contiguous before it is written"
        ) from None
    found = load_file(tmp_path / "model.safetensors")
    same(found["view"], odd["view"].contiguous(), "a view is written as it is seen", 0, 0)
