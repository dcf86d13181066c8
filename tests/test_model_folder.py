"""Folders of kinds that cannot be read: one line says what each is and what to do."""

import json
from pathlib import Path

import pytest
import torch

from minillava import load, save
from minillava.checkpoint import load_vision
from minillava.errors import UserError
from minillava.inputs.tokenizer import Tokenizer
from minillava.language_model import load_decoder
from minillava.saving import write_decoder

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"  # fmt: skip  # noqa: E501


@pytest.fixture
def saved(tiny_model, tmp_path) -> Path:
    save(tiny_model, tmp_path / "model")
    return tmp_path / "model"


def refusal(read, folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        read(folder)
    text = str(caught.value)
    assert "\n" not in text and text.startswith(str(folder))
    return text


@pytest.mark.parametrize(
    "name",
    ["config.json", "model.safetensors", "pytorch_model.bin", "tokenizer.json", "tokenizer.model",
     "tokenizer_config.json", "preprocessor_config.json", "generation_config.json", "chat_template.jinja"],
)  # fmt: skip
def test_a_git_lfs_pointer_in_place_of_any_file_is_named(saved, name):
    if name.startswith("pytorch"):
        (saved / "model.safetensors").unlink()
    if name == "tokenizer.model":
        (saved / "tokenizer.json").unlink()
    (saved / name).write_text(POINTER)
    text = refusal(load, saved)
    assert text.startswith(f"{saved}/{name}: a Git-LFS pointer") and "git lfs pull" in text


def test_a_git_lfs_pointer_in_place_of_a_shard_or_an_adapter_is_named(tiny_model, saved):
    index = {"weight_map": {"x": "model-1.safetensors"}}
    (saved / "model.safetensors").unlink()
    (saved / "model.safetensors.index.json").write_text(json.dumps(index))
    (saved / "model-1.safetensors").write_text(POINTER)
    assert refusal(load, saved).startswith(f"{saved}/model-1.safetensors: a Git-LFS pointer")
    (saved / "adapter_config.json").write_text(POINTER)
    assert refusal(load, saved).startswith(f"{saved}/adapter_config.json: a Git-LFS pointer")


@pytest.mark.parametrize("part", [None, "text_config"])
@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "compressed-tensors"])
def test_quantised_weights_are_refused(saved, part, method):
    config = json.loads((saved / "config.json").read_text())
    (config[part] if part else config)["quantization_config"] = {"quant_method": method, "bits": 4}
    (saved / "config.json").write_text(json.dumps(config))
    text = refusal(load, saved)
    assert f"config.json: the weights are quantised ({method})" in text and "float16" in text


def test_a_quantised_decoder_is_refused(tiny_model, tmp_path):
    write_decoder(tiny_model.language_model, tiny_model.processor.tokenizer, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": {"bits": 4}}))
    assert "quantised" in refusal(load_decoder, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": None}))
    load_decoder(tmp_path)


@pytest.mark.parametrize("read", [load, load_decoder, load_vision])
def test_metas_own_format_is_refused(tmp_path, read):
    (tmp_path / "params.json").write_text('{"dim": 4096, "n_layers": 32, "n_heads": 32, "vocab_size": -1}')
    torch.save({"norm.weight": torch.ones(4)}, tmp_path / "consolidated.00.pth")
    text = refusal(read, tmp_path)
    assert "Meta's own format" in text and "-hf" in text and "convert_llama_weights_to_hf.py" in text


@pytest.mark.parametrize("has_config", [True, False])
def test_lora_of_the_authors_code_is_refused(tmp_path, has_config):
    """As its finetune_lora.sh leaves it."""
    modules = ["q_proj", "v_proj", "mm_projector.0"]
    config = {"peft_type": "LORA", "base_model_name_or_path": "lmsys/vicuna-7b-v1.5", "r": 128, "lora_alpha": 256}
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "target_modules": modules}))
    torch.save({"x": torch.ones(2)}, tmp_path / "adapter_model.bin")
    torch.save({"base_model.model.model.mm_projector.0.bias": torch.ones(2)}, tmp_path / "non_lora_trainables.bin")
    if has_config:
        (tmp_path / "config.json").write_text('{"model_type": "llava", "mm_vision_tower": "openai/clip"}')
    for read in (load, load_decoder):
        text = refusal(read, tmp_path)
        assert "LoRA matrices of the LLaVA authors' code" in text and "merge_lora_weights.py" in text
    (tmp_path / "non_lora_trainables.bin").unlink()  # any other adapter of peft
    text = refusal(load, tmp_path)
    assert text.startswith(f"{tmp_path}/adapter_config.json: target_modules is") and "merge the adapter" in text


def test_an_adapter_is_no_decoder(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "an adapter, not a whole model; merge it" in refusal(load_decoder, tmp_path)


def test_a_projector_without_a_model_is_refused(tmp_path, saved):
    (tmp_path / "config.json").write_text('{"model_type": "llava", "mm_vision_tower": "openai/clip"}')
    torch.save({"model.mm_projector.0.bias": torch.ones(2)}, tmp_path / "mm_projector.bin")
    text = refusal(load, tmp_path)
    assert "only a projector (mm_projector.bin)" in text and "give a folder of a whole model" in text
    torch.save({}, saved / "mm_projector.bin")  # their whole models have it next to the weights
    load(saved)


@pytest.mark.parametrize("part", ["vision_config", "text_config"])
def test_a_config_without_one_of_its_parts_is_refused(saved, part):
    config = json.loads((saved / "config.json").read_text())
    del config[part]
    (saved / "config.json").write_text(json.dumps(config))
    assert f"config.json: there is no {part}, so this is not a LLaVA folder" in refusal(load, saved)


def test_a_language_model_by_itself_is_refused_where_a_llava_is_wanted(tiny_model, tmp_path):
    write_decoder(tiny_model.language_model, tiny_model.processor.tokenizer, tmp_path)
    assert "model_type is 'llama', not 'llava'; a language model by itself is given with --decoder" in refusal(
        load, tmp_path
    )


def test_tokenizer_files_by_themselves_are_judged_the_same_way(tmp_path):
    (tmp_path / "tokenizer.model").write_text(POINTER)
    assert "a Git-LFS pointer" in refusal(Tokenizer.from_pretrained, tmp_path)
