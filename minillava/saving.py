"""Models -> folders in Hugging Face's form, under the names that transformers writes, so that it opens what we save."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from minillava.formats import adapter_config
from minillava.formats.tensors import ADAPTER, write_tensors
from minillava.inputs.image import ImageProcessor
from minillava.inputs.templates import TEMPLATE_FILE, chat_template
from minillava.inputs.tokenizer import IMAGE, Tokenizer
from minillava.model import lora
from minillava.model.contrastive import Clip
from minillava.model.decoder import Decoder
from minillava.model.llava import Llava

Tensors = dict[str, Tensor] | None  # a model's, by their names, where it does not hold them itself, being in slices


def save(model: Llava, folder: str | os.PathLike, dtype: torch.dtype | None = None) -> None:
    """Write a LLaVA folder that transformers opens. The folder is replaced as a whole or not at all."""
    replace_folder(folder, lambda new: write_llava(model, new, dtype))


def write_llava(model: Llava, folder: Path, dtype: torch.dtype | None = None, tensors: Tensors = None) -> None:
    """Write the files of a LLaVA folder as ``LlavaForConditionalGeneration`` has them."""
    tensors = _tensors_hf(model, tensors)
    if any(map(lora.is_learnt, tensors)):
        raise ValueError("the model has LoRA beside its weights: merge_lora() it first, or write_adapter()")
    inside = re.compile(r"^language_model\.(?!lm_head\.)")
    tensors = {inside.sub("language_model.model.", name): tensor for name, tensor in tensors.items()}
    vision, processor = model.config.vision, model.processor
    image = processor.image if processor else ImageProcessor.for_size(vision.image_size)
    ends = {"eos_token_id": processor.stop_ids, "pad_token_id": processor.tokenizer.pad_id} if processor else {}
    files = {
        "config.json": model.config.to_dict(),
        # What transformers' AutoProcessor and generate() read beside the weights
        "preprocessor_config.json": image.to_dict(),
        "processor_config.json": {
            "processor_class": "LlavaProcessor",
            "patch_size": vision.patch_size,
            "num_additional_image_tokens": 1,  # the class token
            "vision_feature_select_strategy": model.config.vision_feature_select_strategy,
            "image_token": IMAGE,
        },
        "generation_config.json": {"max_new_tokens": 256, "do_sample": False, **ends},
    }
    if processor:
        files[TEMPLATE_FILE] = chat_template(processor.template)
    _write(folder, files, tensors, processor and processor.tokenizer, dtype)


def write_adapter(model: Llava, base: str | os.PathLike, folder: Path, tensors: Tensors = None) -> None:
    """Write what LoRA and the projection have learnt, as the peft library does, to be added to ``base``.

    ``base`` is a hub id, or a folder, which is written down as it lies from here: the two can be moved together.
    """
    place = Path(os.path.relpath(base, folder)).as_posix() if Path(base).is_dir() else os.fspath(base)
    learnt = {
        adapter_config.PREFIX + name: tensor.detach().cpu().contiguous()
        for name, tensor in _tensors_hf(model, tensors).items()
        if name.startswith("multi_modal_projector.") or lora.is_learnt(name)
    }
    save_file(learnt, folder / ADAPTER, metadata={"format": "pt"})
    linear = model.language_model.layers[0].self_attn.q_proj
    config = adapter_config.to_dict(adapter_config.AdapterConfig(place, linear.lora_A.out_features, linear.alpha))
    _write_files(folder, {adapter_config.CONFIG: config, TEMPLATE_FILE: chat_template(model.processor.template)})


def _tensors_hf(model: Llava, tensors: Tensors) -> dict[str, Tensor]:
    """The model's tensors; a linear projection as two layers, as transformers has them, the second changing nothing."""
    tensors, projector = dict(tensors or model.state_dict()), "multi_modal_projector"
    if model.config.projector == "linear":
        weight, bias = tensors.pop(f"{projector}.weight"), tensors.pop(f"{projector}.bias")
        tensors |= {f"{projector}.linear_1.weight": weight, f"{projector}.linear_1.bias": bias}
        tensors[f"{projector}.linear_2.weight"] = torch.eye(len(bias)).to(bias)
        tensors[f"{projector}.linear_2.bias"] = torch.zeros_like(bias)
    return tensors


def write_clip(
    clip: Clip, tokenizer: Tokenizer, folder: Path, dtype: torch.dtype | None = None, tensors: Tensors = None
) -> None:
    """Write both CLIP towers as ``CLIPModel`` has them."""
    vision, text = clip.vision_model.config, clip.text_model.config
    config = {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": vision.projection_dim,
        "vision_config": vision.to_dict(),
        "text_config": text.to_dict(),
    }
    files = {"config.json": config, "preprocessor_config.json": ImageProcessor.for_size(vision.image_size).to_dict()}
    _write(folder, files, tensors or clip.state_dict(), tokenizer, dtype)


def write_decoder(
    decoder: Decoder, tokenizer: Tokenizer, folder: Path, dtype: torch.dtype | None = None, tensors: Tensors = None
) -> None:
    """Write a decoder as ``LlamaForCausalLM`` has it, its tokenizer beside it."""
    config = {"architectures": ["LlamaForCausalLM"], **decoder.config.to_dict()}
    inside = re.compile(r"^(?!lm_head\.)")
    tensors = {inside.sub("model.", name): tensor for name, tensor in (tensors or decoder.state_dict()).items()}
    _write(folder, {"config.json": config}, tensors, tokenizer, dtype)


def _write(folder: Path, files: dict, tensors: dict[str, Tensor], tokenizer: Tokenizer | None, dtype) -> None:
    """Write ``files``, whose config.json says nothing of the dtype yet, and beside them weights and tokenizer."""
    config = files["config.json"]
    if config.get("tie_word_embeddings"):  # stored once, as the embedding
        tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith("lm_head.weight")}
    write_tensors(folder, tensors, dtype)
    config["dtype"] = str(dtype or next(iter(tensors.values())).dtype).removeprefix("torch.")
    _write_files(folder, files)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def _write_files(folder: Path, files: dict[str, dict | str]) -> None:
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content, indent=2) + "\n"
        (folder / name).write_text(text, encoding="utf-8")


def replace_folder(folder: str | os.PathLike, fill: Callable[[Path], None]) -> None:
    """Call ``fill(new)`` on a fresh folder, then put it in ``folder``'s place.

    A kill at any moment leaves the old folder or the new one whole: the old one steps aside to ``folder.old`` before
    the new one takes its name, and ``recover_folder`` undoes the moment between.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    new, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    recover_folder(folder)
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    fill(new)
    for path in new.iterdir():  # on disk before it counts
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    if folder.exists():
        os.replace(folder, old)
    os.replace(new, folder)
    shutil.rmtree(old, ignore_errors=True)


def recover_folder(folder: str | os.PathLike) -> None:
    """Finish what a kill inside ``replace_folder`` left: ``folder.old`` is the last whole state, or superfluous."""
    folder = Path(folder)
    old = folder.with_name(folder.name + ".old")
    if old.exists() and not folder.exists():
        os.replace(old, folder)
    shutil.rmtree(old, ignore_errors=True)
