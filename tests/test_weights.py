"""Weight files: shards and pickles give the same model as one safetensors file, large models are saved in shards, and
errors name the damaged file or tensor."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM, LlavaForConditionalGeneration

from minillava import load, save
from minillava.errors import UserError
from minillava.formats import json_object
from minillava.formats import tensors as tensor_files
from minillava.language_model import load_decoder
from minillava.model import lora
from minillava.saving import write_adapter, write_decoder

ROOT = Path(__file__).parents[1]
SAFE, BIN = "model.safetensors", "pytorch_model.bin"
NORM = "language_model.model.norm.weight"


@pytest.fixture
def folder(tiny_model, tmp_path) -> Path:
    save(tiny_model, tmp_path / "model")
    return tmp_path / "model"


def shard(folder: Path, kind: str, shards: int = 3) -> list[Path]:
    """Replace model.safetensors by one file named ``kind``, or by ``shards`` files of that kind with an index."""
    tensors = load_file(folder / SAFE)
    (folder / SAFE).unlink()
    stem, end = kind.split(".")
    files = [kind] if shards == 1 else [f"{stem}-{i}-of-{shards}.{end}" for i in range(1, shards + 1)]
    places = {name: files[i % shards] for i, name in enumerate(sorted(tensors))}
    for file in files:
        part = {name: tensors[name] for name in tensors if places[name] == file}
        torch.save(part, folder / file) if end == "bin" else save_file(part, folder / file)
    if shards > 1:
        (folder / f"{kind}.index.json").write_text(json.dumps({"weight_map": places}))
    return [folder / file for file in files]


def change(folder: Path, edit) -> None:
    tensors = load_file(folder / SAFE)
    edit(tensors)
    save_file(tensors, folder / SAFE)


def edit_index(folder: Path, edit) -> None:
    path = folder / f"{SAFE}.index.json"
    index = json.loads(path.read_text())
    edit(index)
    path.write_text(json.dumps(index))


def assert_refused(folder: Path, *names: str) -> None:
    with pytest.raises(UserError) as caught:
        load(folder)
    text = str(caught.value)
    assert "\n" not in text
    for name in names:
        assert name in text


def assert_same(ours: torch.nn.Module, other: torch.nn.Module) -> None:
    wanted = other.state_dict()
    assert ours.state_dict().keys() == wanted.keys()
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, wanted[name]), name


# Reading


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("kind", [SAFE, BIN])
def test_every_kind_of_file_gives_the_same_model(tiny_model, folder, kind, shards):
    shard(folder, kind, shards)
    assert_same(load(folder), tiny_model)


@pytest.mark.parametrize("shards", [1, 3])
def test_pickles_of_torch_before_1_6_are_read(tiny_model, folder, monkeypatch, shards):
    """Files that are no zip archives, such as OpenAI's CLIP on the hub."""
    save_now = torch.save
    monkeypatch.setattr(torch, "save", lambda part, path: save_now(part, path, _use_new_zipfile_serialization=False))
    paths = shard(folder, BIN, shards)
    assert not any(zipfile.is_zipfile(path) for path in paths)
    model = load(folder)
    for path in paths:
        path.unlink()
    assert_same(model, tiny_model)


def test_shards_that_transformers_writes_are_read(tiny_model, folder):
    theirs = LlavaForConditionalGeneration.from_pretrained(folder)
    (folder / SAFE).unlink()
    theirs.save_pretrained(folder, max_shard_size="40KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    assert_same(load(folder), tiny_model)


def test_safetensors_are_read_before_a_pickle(tiny_model, folder):
    (folder / BIN).write_bytes(b"no tensors")
    assert_same(load(folder), tiny_model)


@pytest.mark.parametrize("kind", [SAFE, BIN])
def test_what_is_loaded_holds_on_to_no_file(tiny_model, folder, kind):
    (path,) = shard(folder, kind, 1)
    model = load(folder)
    with open(path, "r+b") as file:
        file.write(b"\xff" * path.stat().st_size)
    assert_same(model, tiny_model)


def test_constants_in_old_files_are_passed_over(tiny_model, folder):
    def add(tensors: dict[str, torch.Tensor]) -> None:
        tensors["language_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(6)
        tensors["vision_tower.vision_model.embeddings.position_ids"] = torch.arange(10)[None]

    change(folder, add)
    assert_same(load(folder), tiny_model)


@pytest.mark.parametrize("embedding", [True, False])
def test_a_tied_head_stored_in_addition_to_or_instead_of_the_embedding(tiny_model, folder, embedding):
    def add(tensors: dict[str, torch.Tensor]) -> None:
        name = "language_model.model.embed_tokens.weight"
        tensors["language_model.lm_head.weight"] = tensors[name].clone()
        if not embedding:
            del tensors[name]

    change(folder, add)
    model = load(folder)
    assert_same(model, tiny_model)
    assert model.language_model.lm_head.weight is model.language_model.embed_tokens.weight


def test_peak_memory_while_loading_is_little_more_than_the_weights():
    """In a separate process. A float32 copy would add twice the weights' size, a mapping kept open their size once."""
    command = [sys.executable, ROOT / "tests/benchmarks/load.py", "--megabytes", "600", "--json"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    result = json.loads(output.splitlines()[-1])
    assert result["weight_bytes"] > 500e6
    assert result["peak_bytes"] - result["before_bytes"] < 1.1 * result["weight_bytes"]


# Writing


def test_a_large_model_is_written_in_shards_that_transformers_opens(tiny_model, tmp_path, monkeypatch):
    limit = 30_000
    monkeypatch.setattr(tensor_files, "SHARD_BYTES", limit)
    folder = tmp_path / "model"
    save(tiny_model, folder, torch.bfloat16)
    shards = {path.name: load_file(path) for path in folder.glob("*.safetensors")}
    assert len(shards) > 3 and not (folder / SAFE).exists()
    assert sorted(shards) == [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    sizes = {name: sum(t.nbytes for t in tensors.values()) for name, tensors in shards.items()}
    assert all(size <= limit or len(shards[name]) == 1 for name, size in sizes.items())
    index = json.loads((folder / f"{SAFE}.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(sizes.values())
    assert index["weight_map"] == {name: file for file, tensors in shards.items() for name in tensors}
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    theirs, report = LlavaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    ours = load(folder, dtype=torch.bfloat16)
    assert torch.equal(theirs.lm_head.weight, ours.language_model.lm_head.weight)
    assert_same(ours, tiny_model.to(torch.bfloat16))


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_files_have_the_mode_that_the_umask_says(tiny_model, tmp_path, monkeypatch, umask):
    monkeypatch.setattr(tensor_files, "SHARD_BYTES", 30_000)
    before = os.umask(umask)
    try:
        save(tiny_model, tmp_path / "model", torch.bfloat16)
        lora.add_lora(tiny_model.language_model, 2, 4)
        (tmp_path / "adapter").mkdir()
        write_adapter(tiny_model, tmp_path / "model", tmp_path / "adapter")
    finally:
        os.umask(before)
    files = [*(tmp_path / "model").iterdir(), *(tmp_path / "adapter").iterdir()]
    assert sum(path.suffix == ".safetensors" for path in files) > 3
    assert {path.name: path.stat().st_mode & 0o777 for path in files} == {path.name: 0o666 & ~umask for path in files}


def test_a_decoder_in_shards_goes_to_transformers_and_back(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(tensor_files, "SHARD_BYTES", 30_000)
    write_decoder(tiny_model.language_model, tiny_model.processor.tokenizer, tmp_path)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    theirs, report = LlamaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert_same(load_decoder(tmp_path)[0], tiny_model.language_model)
    assert torch.equal(theirs.model.norm.weight, tiny_model.language_model.norm.weight)


# Damage


def test_a_folder_without_weights_names_what_is_looked_for(folder):
    (folder / SAFE).unlink()
    assert_refused(folder, f"{folder}/{SAFE}", "no such file", BIN, f"{SAFE}.index.json")


@pytest.mark.parametrize("kind", [SAFE, BIN])
def test_a_missing_shard_is_named(folder, kind):
    shard(folder, kind)[1].unlink()
    stem, end = kind.split(".")
    assert_refused(folder, f"{folder}/{stem}-2-of-3.{end}", "No such file")


@pytest.mark.parametrize("keep", [0, 50, 0.5, 0.99])
@pytest.mark.parametrize("kind", [SAFE, BIN, "old " + BIN])
def test_a_shard_cut_short_is_named(folder, kind, keep):
    path = shard(folder, kind.removeprefix("old "))[2]
    if kind.startswith("old"):
        torch.save(torch.load(path), path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if keep < 1 else keep])
    assert_refused(folder, str(path), "not a")


@pytest.mark.parametrize(
    "file", ["../other.safetensors", "/etc/passwd", "sub/model.safetensors", "..", "", "model.pt", ".x.bin", 3, None]
)
def test_an_index_that_names_anything_but_a_weight_file_in_its_folder_is_refused(folder, file):
    shard(folder, SAFE)
    save_file({NORM: torch.ones(32)}, folder.parent / "other.safetensors")
    edit_index(folder, lambda index: index["weight_map"].update({NORM: file}))
    assert_refused(folder, f"{folder}/{SAFE}.index.json", "weight_map" if file in (3, None) else repr(file))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": []}', "[" * 100_000])
def test_an_invalid_index_is_named(folder, content):
    shard(folder, SAFE)
    (folder / f"{SAFE}.index.json").write_text(content)
    assert_refused(folder, f"{folder}/{SAFE}.index.json")


def test_a_json_file_too_large_is_named(folder, monkeypatch):
    monkeypatch.setattr(json_object, "JSON_BYTES", 100)
    assert_refused(folder, f"{folder}/config.json", "larger")


def test_a_tensor_that_the_index_promises_and_its_shard_lacks_is_named(folder):
    shard(folder, SAFE)
    edit_index(folder, lambda index: index["weight_map"].update(ghost="model-2-of-3.safetensors"))
    assert_refused(folder, f"{folder}/model-2-of-3.safetensors", "'ghost'", "missing")


def test_a_tensor_in_two_shards_is_named(folder):
    first, second, _ = shard(folder, SAFE)
    twice = sorted(load_file(first))[0]
    save_file({**load_file(second), twice: load_file(first)[twice]}, second)
    assert_refused(folder, str(second), repr(twice), first.name)


@pytest.mark.parametrize("kind", [SAFE, BIN])
def test_a_renamed_tensor_is_named(folder, kind):
    change(folder, lambda tensors: tensors.update({"language_model.model.gnome.weight": tensors.pop(NORM)}))
    shard(folder, kind)
    index = folder / f"{kind}.index.json"
    assert_refused(folder, str(index), "language_model.norm.weight", "missing")


def test_a_tensor_left_over_is_named_with_its_shard(folder):
    change(folder, lambda tensors: tensors.update({"language_model.model.gnome.weight": torch.ones(2)}))
    shard(folder, SAFE)
    assert_refused(folder, "language_model.model.gnome.weight", "left over", "-of-3.safetensors")


def test_a_tensor_of_another_shape_is_named_with_its_shard(folder):
    change(folder, lambda tensors: tensors.update({NORM: torch.ones(31)}))
    (holder,) = (path for path in shard(folder, SAFE) if NORM in load_file(path))
    assert_refused(folder, str(holder), "language_model.norm.weight", "(31,)", "(32,)")


def test_a_tensor_of_whole_numbers_is_named(folder):
    change(folder, lambda tensors: tensors.update({NORM: torch.ones(32, dtype=torch.int8)}))
    assert_refused(folder, f"{folder}/{SAFE}", NORM, "int8")


def test_two_spellings_of_one_tensor_are_named(folder):
    other = "model.language_model.norm.weight"
    change(folder, lambda tensors: tensors.update({other: tensors[NORM].clone()}))
    assert_refused(folder, f"{folder}/{SAFE}", repr(NORM), repr(other))


def test_a_head_that_differs_from_the_embedding_it_is_tied_to_is_named(folder):
    def add(tensors: dict[str, torch.Tensor]) -> None:
        tensors["language_model.lm_head.weight"] = tensors["language_model.model.embed_tokens.weight"] + 1

    change(folder, add)
    assert_refused(folder, "language_model.lm_head.weight", "language_model.model.embed_tokens.weight", "tied")


class Trap:
    """Unpickling it creates a folder."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_run_code_is_refused_and_runs_none(folder, tmp_path, zipped):
    tensors = load_file(folder / SAFE)
    (folder / SAFE).unlink()
    trap = {**tensors, "trap": Trap(tmp_path / "sprung")}
    torch.save(trap, folder / BIN, _use_new_zipfile_serialization=zipped)
    assert_refused(folder, f"{folder}/{BIN}")
    assert not (tmp_path / "sprung").exists()
    torch.load(folder / BIN, weights_only=False)  # the trap does work
    assert (tmp_path / "sprung").exists()


@pytest.mark.parametrize("content", [[torch.ones(2)], {"state_dict": {NORM: torch.ones(2)}}, {3: torch.ones(2)}, 5])
def test_a_pickle_of_anything_but_named_tensors_is_refused(folder, content):
    (folder / SAFE).unlink()
    torch.save(content, folder / BIN)
    assert_refused(folder, f"{folder}/{BIN}", "not a PyTorch file")


def test_a_sparse_tensor_is_refused(folder):
    (path,) = shard(folder, BIN, 1)
    torch.save({**torch.load(path), NORM: torch.ones(32).to_sparse()}, path)
    assert_refused(folder, str(path), "not a PyTorch file")
