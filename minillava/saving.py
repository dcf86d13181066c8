"""Models -> folders in Hugging Face's format, with the tensor names of transformers, so that it can open them."""

import json
import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from minillava.errors import UserError, in_words
from minillava.formats import adapter_config, chat_template
from minillava.formats.tensors import ADAPTER, write_file, write_tensors
from minillava.inputs.image import ImageProcessor
from minillava.inputs.processor import Processor
from minillava.inputs.tokenizer import IMAGE, Tokenizer
from minillava.model import lora
from minillava.model.contrastive import Clip
from minillava.model.decoder import Decoder
from minillava.model.llava import Llava

Tensors = dict[str, Tensor] | None  # a model's whole tensors by name, if its own parameters are sharded


def save(model: Llava, folder: str | os.PathLike, dtype: torch.dtype | None = None) -> None:
    """Write a LLaVA folder that transformers can open. The folder is replaced completely or not at all."""
    replace_folder(folder, lambda new: write_llava(model, new, dtype))


def write_llava(model: Llava, folder: Path, dtype: torch.dtype | None = None, tensors: Tensors = None) -> None:
    """Write the files of a LLaVA folder in the layout of ``LlavaForConditionalGeneration``."""
    tensors = _tensors_hf(model, tensors)
    if any(map(lora.is_learnt, tensors)):
        raise ValueError("the model has unmerged LoRA matrices: call merge_lora() first, or use write_adapter()")
    inside = re.compile(r"^language_model\.(?!lm_head\.)")
    tensors = {inside.sub("language_model.model.", name): tensor for name, tensor in tensors.items()}
    vision, processor = model.config.vision, model.processor
    image = processor.image if processor else ImageProcessor.for_size(vision.image_size)
    ends = {"eos_token_id": processor.stop_ids, "pad_token_id": processor.tokenizer.pad_id} if processor else {}
    files = {
        "config.json": model.config.to_dict(),
        # The files below are read by transformers' AutoProcessor and generate().
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
        files[chat_template.FILE] = chat_template.to_jinja(vars(processor.template))
    _write(folder, files, tensors, processor and processor.tokenizer, dtype)


def write_adapter(
    model: Llava, base: str | os.PathLike | adapter_config.Towers, folder: Path, tensors: Tensors = None
) -> None:
    """Write the projection, and the LoRA matrices if there are any, as an adapter for ``base``.

    The format is that of the peft library. ``base`` is a hub id, a folder, or the two towers that were joined. The chat
    template and the image processor, which may differ from the base's, are in the same folder.
    """
    tensors = _tensors_hf(model, tensors)
    learnt = {
        adapter_config.PREFIX + name: tensor.detach().cpu().contiguous()
        for name, tensor in tensors.items()
        if name.startswith("multi_modal_projector.") or lora.is_learnt(name)
    }
    write_file(folder / ADAPTER, learnt)
    config = adapter_config.AdapterConfig(base if isinstance(base, adapter_config.Towers) else os.fspath(base))
    if any(map(lora.is_learnt, tensors)):
        linear = model.language_model.layers[0].self_attn.q_proj
        config = config._replace(rank=linear.lora_A.out_features, alpha=linear.alpha)
    values = adapter_config.to_dict(config, folder)
    image, template = model.processor.image.to_dict(), chat_template.to_jinja(vars(model.processor.template))
    _write_files(
        folder, {adapter_config.CONFIG: values, "preprocessor_config.json": image, chat_template.FILE: template}
    )


def _tensors_hf(model: Llava, tensors: Tensors) -> dict[str, Tensor]:
    """The model's tensors. A linear projection becomes two layers, as in transformers; the second is the identity."""
    tensors, projector = dict(tensors or model.state_dict()), "multi_modal_projector"
    if model.config.projector == "linear":
        weight, bias = tensors.pop(f"{projector}.weight"), tensors.pop(f"{projector}.bias")
        tensors |= {f"{projector}.linear_1.weight": weight, f"{projector}.linear_1.bias": bias}
        tensors[f"{projector}.linear_2.weight"] = torch.eye(len(bias)).to(bias)
        tensors[f"{projector}.linear_2.bias"] = torch.zeros_like(bias)
    return tensors


def write_clip(
    clip: Clip, processor: Processor, folder: Path, dtype: torch.dtype | None = None, tensors: Tensors = None
) -> None:
    """Write both CLIP towers, the tokenizer and the image processor in the layout of ``CLIPModel``."""
    vision, text = clip.vision_model.config, clip.text_model.config
    config = {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": vision.projection_dim,
        "vision_config": vision.to_dict(),
        "text_config": text.to_dict(),
    }
    files = {"config.json": config, "preprocessor_config.json": processor.image.to_dict()}
    _write(folder, files, tensors or clip.state_dict(), processor.tokenizer, dtype)


def write_decoder(
    decoder: Decoder, tokenizer: Tokenizer, folder: Path, dtype: torch.dtype | None = None, tensors: Tensors = None
) -> None:
    """Write a decoder and its tokenizer in the layout of ``LlamaForCausalLM``."""
    config = {"architectures": ["LlamaForCausalLM"], **decoder.config.to_dict()}
    inside = re.compile(r"^(?!lm_head\.)")
    tensors = {inside.sub("model.", name): tensor for name, tensor in (tensors or decoder.state_dict()).items()}
    _write(folder, {"config.json": config}, tensors, tokenizer, dtype)


def _write(folder: Path, files: dict, tensors: dict[str, Tensor], tokenizer: Tokenizer | None, dtype) -> None:
    """Write ``files``, adding the dtype to their config.json, and the weights and the tokenizer."""
    config = files["config.json"]
    if config.get("tie_word_embeddings"):  # tied weights: stored once, as the embedding
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
    """Call ``fill(new)`` with an empty new folder, then replace ``folder`` by it.

    If the process is killed at any moment, the old or the new folder is complete. The old one is renamed to
    ``folder.old`` before the new one gets its name; after a kill between the two, ``recover_folder`` renames it back,
    and ``hub.resolve_folder`` reads it there. Raises UserError if the disk is full or cannot be written: the old folder
    then stays.
    """
    folder = Path(folder)
    new, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        recover_folder(folder)
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        fill(new)
        for path in new.iterdir():  # written to disk before the rename
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        if folder.exists():
            os.replace(folder, old)
        os.replace(new, folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(new, ignore_errors=True)
        with suppress(OSError):
            recover_folder(folder)
        reason = in_words(error) if isinstance(error, OSError) else str(error)
        raise UserError(f"{folder}: cannot be saved: {reason}") from None
    shutil.rmtree(old, ignore_errors=True)


def recover_folder(folder: str | os.PathLike) -> None:
    """Clean up after a kill in ``replace_folder``: rename ``folder.old`` if ``folder`` is missing, else delete it."""
    folder = Path(folder)
    old = folder.with_name(folder.name + ".old")
    if old.exists() and not folder.exists():
        os.replace(old, folder)
    shutil.rmtree(old, ignore_errors=True)
