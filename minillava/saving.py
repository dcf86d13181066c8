"""Models -> folders in Hugging Face's form, under the names that transformers writes, so that it opens what we save."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from minillava.formats import adapter_config
from minillava.formats.adapter_config import AdapterConfig
from minillava.formats.tensors import ADAPTER, write_tensors
from minillava.inputs.image import ImageProcessor
from minillava.inputs.templates import TEMPLATE_FILE, chat_template
from minillava.inputs.tokenizer import Tokenizer
from minillava.model import lora
from minillava.model.contrastive import Clip
from minillava.model.decoder import Decoder
from minillava.model.llava import Llava


def save(model: Llava, folder: str | os.PathLike, dtype: torch.dtype | None = None) -> None:
    """Write a LLaVA folder that transformers opens. The folder is replaced as a whole or not at all."""
    replace_folder(folder, lambda new: write_llava(model, new, dtype))


def write_llava(
    model: Llava, folder: Path, dtype: torch.dtype | None = None, tensors: dict[str, Tensor] | None = None
) -> None:
    """Write the files of a LLaVA folder as ``LlavaForConditionalGeneration`` has them.

    ``tensors`` here and below: the model's, by their names, where it does not hold them itself, being in slices.
    """
    stored = {}
    for name, tensor in _tensors_hf(model, tensors).items():
        if lora.is_learnt(name):
            raise ValueError("the model has LoRA beside its weights: merge_lora() it first, or write_adapter()")
        if name.startswith("language_model.") and not name.startswith("language_model.lm_head"):
            name = name.replace("language_model.", "language_model.model.", 1)
        stored[name] = tensor
    tokenizer = model.processor and model.processor.tokenizer
    _write(folder, model.config.to_dict(), stored, tokenizer, dtype, _processor_files(model))


def write_adapter(
    model: Llava, base: str | os.PathLike, folder: Path, tensors: dict[str, Tensor] | None = None
) -> None:
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
    config = adapter_config.to_dict(AdapterConfig(place, linear.lora_A.out_features, linear.alpha))
    (folder / adapter_config.CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / TEMPLATE_FILE).write_text(chat_template(model.processor.template), encoding="utf-8")


def _tensors_hf(model: Llava, tensors: dict[str, Tensor] | None) -> dict[str, Tensor]:
    """The model's tensors; a linear projection as two layers, as transformers has them, the second changing nothing."""
    tensors = dict(tensors or model.state_dict())
    if model.config.projector == "linear":
        size = model.config.decoder.hidden_size
        for kind in ("weight", "bias"):
            tensors[f"multi_modal_projector.linear_1.{kind}"] = tensors.pop(f"multi_modal_projector.{kind}")
        like = tensors["multi_modal_projector.linear_1.weight"]
        tensors["multi_modal_projector.linear_2.weight"] = torch.eye(size, dtype=like.dtype)
        tensors["multi_modal_projector.linear_2.bias"] = torch.zeros(size, dtype=like.dtype)
    return tensors


def write_clip(
    clip: Clip,
    tokenizer: Tokenizer,
    folder: Path,
    dtype: torch.dtype | None = None,
    tensors: dict[str, Tensor] | None = None,
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
    files = {"preprocessor_config.json": ImageProcessor.for_size(vision.image_size).to_dict()}
    _write(folder, config, tensors or clip.state_dict(), tokenizer, dtype, files)


def write_decoder(
    decoder: Decoder,
    tokenizer: Tokenizer,
    folder: Path,
    dtype: torch.dtype | None = None,
    tensors: dict[str, Tensor] | None = None,
) -> None:
    """Write a decoder as ``LlamaForCausalLM`` has it, its tokenizer beside it."""
    config = {"architectures": ["LlamaForCausalLM"], **decoder.config.to_dict()}
    stored = {
        name if name.startswith("lm_head.") else f"model.{name}": tensor
        for name, tensor in (tensors or decoder.state_dict()).items()
    }
    _write(folder, config, stored, tokenizer, dtype, {})


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


def _write(
    folder: Path, config: dict, tensors: dict[str, Tensor], tokenizer, dtype, files: dict[str, dict | str]
) -> None:
    if config.get("tie_word_embeddings"):  # stored once, as the embedding
        tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith("lm_head.weight")}
    write_tensors(folder, tensors, dtype)
    stored = str(dtype or next(iter(tensors.values())).dtype).removeprefix("torch.")
    for name, content in {"config.json": {**config, "dtype": stored}, **files}.items():
        text = content if isinstance(content, str) else json.dumps(content, indent=2) + "\n"
        (folder / name).write_text(text, encoding="utf-8")
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def _processor_files(model: Llava) -> dict[str, dict | str]:
    """What transformers' AutoProcessor and generate() read beside the weights."""
    vision, processor = model.config.vision, model.processor
    image = processor.image if processor else ImageProcessor.for_size(vision.image_size)
    files: dict[str, dict | str] = {
        "preprocessor_config.json": image.to_dict(),
        "processor_config.json": {
            "processor_class": "LlavaProcessor",
            "patch_size": vision.patch_size,
            "num_additional_image_tokens": 1,  # the class token
            "vision_feature_select_strategy": model.config.vision_feature_select_strategy,
            "image_token": "<image>",
        },
        "generation_config.json": {"max_new_tokens": 256, "do_sample": False},
    }
    if processor:
        ends = {"eos_token_id": processor.stop_ids, "pad_token_id": processor.tokenizer.pad_id}
        files["generation_config.json"] |= ends
        files[TEMPLATE_FILE] = chat_template(processor.template)
    return files
