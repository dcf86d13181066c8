"""Files that are no files, values that no model has, and the short forms of tests/hard: one line each, nothing else."""

import importlib
import json
import os
import runpy
import shutil
import signal
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from data.captions import read_captions
from data.contexts import read_contexts
from data.filter_captions import filter_captions
from minillava import load
from minillava.checkpoint import load_vision
from minillava.config import PRETRAINED
from minillava.errors import UserError
from minillava.formats.gguf import read_gguf
from minillava.formats.llava_json import Rows
from minillava.formats.tensors import list_tensors
from minillava.formats.text_file import read_lines
from minillava.inputs.image import open_image
from minillava.inputs.tokenizer import Tokenizer
from minillava.language_model import load_text_model
from minillava.outline import read_outline
from minillava.saving import write_adapter

HARD = Path(__file__).parent / "hard"


@pytest.fixture
def no_hang():
    """A file that is opened though it is none may never end."""

    def end(*_):
        raise TimeoutError("a hang")

    old = signal.signal(signal.SIGALRM, end)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, old)


@pytest.mark.parametrize(("name", "count"), [("pictures", 200), ("rows", 40), ("folders", 25)])
def test_short_forms_find_nothing(monkeypatch, capsys, name, count):
    monkeypatch.setattr(sys, "argv", [name, "--count", str(count), "--seed", "1"])
    monkeypatch.syspath_prepend(str(HARD))
    monkeypatch.setattr(importlib.import_module("guarded"), "SECONDS", 30.0)  # other tests may run at the same time
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(HARD / f"{name}.py"), run_name="__main__")
    table = capsys.readouterr().out
    assert end.value.code == 0, table
    assert len(table.splitlines()) > 5 and "hang" not in table


# What reads a file of the user's, by the name that the file needs.
READERS = {
    "picture.png": open_image,
    "rows.json": Rows,
    "rows.jsonl": Rows,
    "text.txt": read_lines,
    "captions.tsv": lambda path: list(read_captions(path)),
    "captions.csv": lambda path: list(read_captions(path)),
    "captions.json": lambda path: filter_captions(path, path.with_name("out.json")),
    "contexts.jsonl": lambda path: list(read_contexts(path)),
    "captions_val.json": lambda path: list(read_contexts(path)),
    "model.gguf": load_text_model,
    "other.gguf": read_gguf,
    "model.safetensors": lambda path: list_tensors(path.parent),
    "pytorch_model.bin": lambda path: list_tensors(path.parent),
}


def put(path: Path, kind: str) -> None:
    """A pipe, a link to a device without end, or a folder, in the place of ``path``."""
    path.unlink(missing_ok=True)
    {"pipe": os.mkfifo, "device": lambda path: path.symlink_to("/dev/zero"), "folder": Path.mkdir}[kind](path)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
@pytest.mark.parametrize("name", READERS)
def test_what_is_no_file_is_not_opened(tmp_path, no_hang, name, kind):
    path = tmp_path / name
    put(path, kind)
    with pytest.raises(UserError) as error:
        READERS[name](path)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)
    assert kind == "folder" or str(error.value) == f"{path}: a pipe, a device or a socket, not a file"


@pytest.fixture
def llava(tmp_path) -> Path:
    return shutil.copytree(PRETRAINED / "llava", tmp_path / "llava")


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_no_file_of_a_model_s_folder_is_opened_if_it_is_none(llava, no_hang, kind):
    for path in sorted(llava.iterdir()):
        whole = path.read_bytes()
        put(path, kind)
        with pytest.raises(UserError, match=path.name) as error:
            load(llava)
        assert "\n" not in str(error.value)
        path.rmdir() if kind == "folder" else path.unlink()
        path.write_bytes(whole)


def test_links_to_regular_files_are_followed(tmp_path):
    Image.new("RGB", (4, 4), "red").save(tmp_path / "a.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "a.png")
    assert open_image(tmp_path / "link.png").size == (4, 4)


def test_a_file_that_is_too_large_for_its_kind_is_refused(tmp_path):
    for name, read in (("a.png", open_image), ("text.txt", read_lines)):
        with open(tmp_path / name, "wb") as file:
            file.truncate(2 << 30)  # a sparse file takes no disk space
        with pytest.raises(UserError, match=rf"{name}: more than 1,073,741,824 bytes"):
            read(tmp_path / name)


EVIL = (10**400, 10**30, True, -1, 0, float("nan"), float("inf"), "9" * 400, "x", [], [[]], {"x": 1}, 1e308)
# What the values are tried on, and which of them the key may have.
KEYS = {
    ("config.json", "text_config", "hidden_size"): (),
    ("config.json", "text_config", "vocab_size"): (),
    ("config.json", "text_config", "num_key_value_heads"): (),
    ("config.json", "text_config", "max_position_embeddings"): (),
    ("config.json", "text_config", "rms_norm_eps"): (),
    ("config.json", "text_config", "rope_theta"): (),
    ("config.json", "text_config", "tie_word_embeddings"): (True, False),
    ("config.json", "text_config", "eos_token_id"): (-1, 0, []),
    ("config.json", "vision_config", "image_size"): (),
    ("config.json", "vision_config", "patch_size"): (),
    ("config.json", "vision_config", "num_channels"): (),
    ("config.json", "vision_config", "num_attention_heads"): (),
    ("config.json", "vision_config", "hidden_act"): (),
    ("config.json", "vision_config", "layer_norm_eps"): (),
    ("config.json", "image_token_index"): (),
    ("config.json", "vision_feature_layer"): (-1, 0),
    ("config.json", "projector_hidden_act"): (),
    ("generation_config.json", "eos_token_id"): (-1, 0, []),
    ("preprocessor_config.json", "size"): (),
    ("preprocessor_config.json", "image_std"): (),
    ("preprocessor_config.json", "image_mean"): (-1, 0),
    ("preprocessor_config.json", "resample"): (0,),
    ("tokenizer.json", "added_tokens", 0, "id"): (),
    ("tokenizer.json", "model", "vocab", "a"): (),
}


@pytest.mark.parametrize("place", KEYS, ids=lambda place: " ".join(map(str, place)))
def test_values_that_no_model_has_are_named_by_file_and_key(llava, place):
    name, *keys = place
    whole = (llava / name).read_text()
    for value in EVIL:
        if any(value == good and type(value) is type(good) for good in KEYS[place]):
            continue
        config = json.loads(whole)
        part = config
        for key in keys[:-1]:
            part = part[key]
        part[keys[-1]] = value
        (llava / name).write_text(json.dumps(config))
        with pytest.raises(UserError) as error:
            read_outline(llava)
            load(llava)
        text = str(error.value)
        assert str(llava / name) in text or f"{llava}: " in text, text
        assert "\n" not in text and len(text) < 500
        named = {"image_token_index": "image", "added_tokens": "added token", "a": "'a'"}
        assert any(named.get(key, str(key)) in text or str(key) in text for key in keys), text


@pytest.mark.parametrize(("image", "patch"), [(1_000_000, 1), (8, 16)])
def test_a_grid_without_patches_or_with_too_many_is_refused(llava, image, patch):
    config = json.loads((llava / "config.json").read_text())
    config["vision_config"] |= {"image_size": image, "patch_size": patch}
    (llava / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=rf"image_size {image} and patch_size {patch} do not make a grid"):
        read_outline(llava)


@pytest.mark.parametrize("value", [10**400, True, -1, 0, float("nan"), "x", [1]], ids=lambda value: str(value)[:9])
@pytest.mark.parametrize("key", ["r", "lora_alpha", "vision_feature_layer"])
def test_values_that_no_adapter_has_are_named(tmp_path, key, value):
    towers = {"vision": str(PRETRAINED / "vision"), "decoder": str(PRETRAINED / "decoder"), "projector": "mlp"}
    config = {"base_towers": towers | {"vision_feature_layer": -2}, "r": 4, "lora_alpha": 4, "peft_type": "LORA"}
    if key == "vision_feature_layer":
        value = 99 if value in (-1, 0) else value
        config["base_towers"][key] = value
    else:
        config[key] = value
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=rf"{key} (is|\()"):
        read_outline(tmp_path)


@pytest.mark.parametrize("base", ["", "..no", "x\0y", "y" * 5000, "a/" * 3000])
def test_a_base_that_cannot_be_a_folder_is_named(tmp_path, base):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    with pytest.raises(UserError) as error:
        load(tmp_path)
    assert str(tmp_path) in str(error.value) and len(str(error.value)) < 600


def test_a_configuration_nested_deeply_is_refused(llava):
    (llava / "config.json").write_text('{"a": ' + "[" * 900 + "]" * 900 + "}")
    with pytest.raises(UserError, match=r"config\.json: nested more than 30 deep"):
        load(llava)


def test_a_tokenizer_with_far_more_tokens_than_rows_is_refused(tmp_path):
    folder = shutil.copytree(PRETRAINED / "decoder", tmp_path / "decoder")
    stored = json.loads((folder / "tokenizer.json").read_text())
    stored["added_tokens"].append({**stored["added_tokens"][0], "content": "<far>", "id": 4_000_000})
    (folder / "tokenizer.json").write_text(json.dumps(stored))
    assert Tokenizer.from_pretrained(folder).vocab_size == 4_000_001
    towers = {"vision": str(PRETRAINED / "vision"), "decoder": str(folder), "projector": "mlp"}
    config = {"base_towers": towers | {"vision_feature_layer": -2}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="the tokenizer has 4,000,001 tokens, but the embedding only"):
        read_outline(tmp_path)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_not_finite_are_named_by_file_and_tensor(llava, number):
    tensors = load_file(llava / "model.safetensors")
    for name in (min(tensors), max(tensors)):  # of the decoder, of the tower
        changed = tensors[name].clone()
        changed.view(-1)[-1] = number
        save_file(tensors | {name: changed}, llava / "model.safetensors")
        with pytest.raises(UserError) as error:
            load(llava)
        assert str(error.value) == (
            f"{llava / 'model.safetensors'}: tensor {name} has a number that is not finite in torch.float32"
        )


@pytest.mark.parametrize(("name", "read"), [("vision", load_vision), ("decoder", load_text_model)])
def test_numbers_that_are_not_finite_are_named_in_towers_and_decoders(tmp_path, name, read):
    folder = shutil.copytree(PRETRAINED / name, tmp_path / name)
    tensors = load_file(folder / "model.safetensors")
    last = max(name for name in tensors if not name.startswith(("text", "visual", "logit")))
    tensors[last] = tensors[last].clone()
    tensors[last].view(-1)[0] = float("nan")
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=rf"pytorch_model\.bin: tensor {last} has a number that is not finite"):
        read(folder)


def test_numbers_that_are_not_finite_are_named_in_adapters(llava, tmp_path):
    model = load(llava)
    model.multi_modal_projector.bias.data[0] = float("nan")
    (tmp_path / "adapter").mkdir()
    write_adapter(model, llava, tmp_path / "adapter")
    with pytest.raises(UserError, match=r"adapter_model\.safetensors: tensor .*1\.bias has a number that is not"):
        load(tmp_path / "adapter")


def test_numbers_that_the_dtype_cannot_hold_are_refused(llava):
    tensors = load_file(llava / "model.safetensors")
    name = "language_model.model.norm.weight"
    save_file(tensors | {name: tensors[name].float() + 70_000}, llava / "model.safetensors")
    assert load(llava).language_model.norm.weight.min() > 60_000
    with pytest.raises(UserError, match=rf"tensor {name} has a number that is not finite in torch\.float16"):
        load(llava, dtype=torch.float16)


def test_a_compressed_pickle_is_refused(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.zeros(1000)}, path)
    with zipfile.ZipFile(path) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in parts.items():
            file.writestr(name, content + bytes(100_000) if name.endswith("data.pkl") else content)
    with pytest.raises(UserError, match=r"pytorch_model\.bin: not a PyTorch file .*\(ValueError\)"):
        list_tensors(tmp_path)


@pytest.mark.parametrize("tensor", [torch.zeros(1).expand(10**9), torch.zeros(9, device="meta")], ids=["one", "none"])
def test_a_pickle_of_more_numbers_than_it_holds_is_refused(tmp_path, tensor):
    torch.save({"a": tensor}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin: not a PyTorch file with only tensors in it"):
        list_tensors(tmp_path)
