"""Models <-> folders in Hugging Face's form: LLaVA folders (llava-hf), CLIP vision towers, LLaMA decoders.

Our tensors are stored under the names that transformers writes, so it opens what we save. On reading, the spellings
that hub files use are accepted too. A tensor that is missing, left over or of another shape is an error that names it.
"""

import json
import os
import re
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from minillava.config import DecoderConfig, LlavaConfig, TextConfig, VisionConfig
from minillava.contrastive import Clip
from minillava.conversation import TEMPLATES, chat_template
from minillava.decoder import Decoder
from minillava.errors import UserError
from minillava.image import MEAN, STD
from minillava.llava import Llava
from minillava.tokenizer import Tokenizer
from minillava.vision import VisionTower

WEIGHTS = "model.safetensors"

# How files spell the parts -> how we do. The first rule that fits a name is applied, once.
LLAVA_NAMES = (
    (r"^(?:model\.)?vision_tower\.(?:vision_model\.)?", "vision_tower."),
    (r"^(?:model\.)?multi_modal_projector\.", "multi_modal_projector."),
    (r"^language_model\.lm_head\.|^lm_head\.", "language_model.lm_head."),
    (r"^(?:model\.language_model\.|language_model\.model\.)", "language_model."),
)
VISION_NAMES = ((r"^vision_model\.", ""),)
CLIP_OTHERS = ("text_model.", "text_projection.", "visual_projection.", "logit_scale")  # not the vision tower's
DECODER_NAMES = ((r"^model\.", ""),)


def load(folder: str | os.PathLike, device: str = "cpu", dtype: torch.dtype | None = None) -> Llava:
    """Read a LLaVA folder, tokenizer included; float32 unless ``dtype`` says otherwise. Raises UserError."""
    folder = Path(folder)
    config = read_config(folder)
    if config.get("model_type") != "llava":
        raise UserError(f"{folder}/config.json: model_type is {config.get('model_type')!r}, not 'llava'")
    tokenizer = Tokenizer.from_pretrained(folder)
    model = _parse(lambda values: Llava(LlavaConfig.from_dict(values), tokenizer), config, folder)
    tensors = _rename(read_tensors(folder), LLAVA_NAMES)
    if model.config.projector == "linear":
        _fold_projector(tensors, folder)
    _fill(model, tensors, folder)
    try:
        return model.to(device, dtype or torch.float32).eval()
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {device}: {str(error).splitlines()[0]}") from None


def load_vision(folder: str | os.PathLike) -> VisionTower:
    """Read CLIP's vision tower, from a folder that holds it alone or both towers."""
    folder = Path(folder)
    config = read_config(folder)
    config = config.get("vision_config", config)
    tower = _parse(lambda values: VisionTower(VisionConfig.from_dict(values)), config, folder)
    tensors = {name: tensor for name, tensor in read_tensors(folder).items() if not name.startswith(CLIP_OTHERS)}
    _fill(tower, _rename(tensors, VISION_NAMES), folder)
    return tower


def load_decoder(folder: str | os.PathLike) -> tuple[Decoder, Tokenizer]:
    """Read a LLaMA decoder and its tokenizer."""
    folder = Path(folder)
    decoder = _parse(lambda values: Decoder(DecoderConfig.from_dict(values)), read_config(folder), folder)
    _fill(decoder, _rename(read_tensors(folder), DECODER_NAMES), folder)
    return decoder, Tokenizer.from_pretrained(folder)


def load_clip(folder: str | os.PathLike) -> tuple[Clip, Tokenizer]:
    """Read both CLIP towers and the tokenizer of the text tower."""
    folder = Path(folder)
    config = read_config(folder)
    clip = _parse(
        lambda c: Clip(VisionConfig.from_dict(c["vision_config"]), TextConfig.from_dict(c["text_config"])),
        config,
        folder,
    )
    _fill(clip, read_tensors(folder), folder)
    return clip, Tokenizer.from_pretrained(folder)


def save(model: Llava, folder: str | os.PathLike, dtype: torch.dtype | None = None) -> None:
    """Write a LLaVA folder that transformers opens. The folder is replaced as a whole or not at all."""
    replace_folder(folder, lambda new: write_llava(model, new, dtype))


def write_llava(model: Llava, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write the files of a LLaVA folder as ``LlavaForConditionalGeneration`` has them."""
    tensors = {}
    for name, tensor in model.state_dict().items():
        if name.startswith("language_model.") and not name.startswith("language_model.lm_head"):
            name = name.replace("language_model.", "language_model.model.", 1)
        tensors[name] = tensor
    if model.config.projector == "linear":  # transformers knows two layers: ours, then one that changes nothing
        size = model.config.decoder.hidden_size
        for kind in ("weight", "bias"):
            tensors[f"multi_modal_projector.linear_1.{kind}"] = tensors.pop(f"multi_modal_projector.{kind}")
        like = tensors["multi_modal_projector.linear_1.weight"]
        tensors["multi_modal_projector.linear_2.weight"] = torch.eye(size, dtype=like.dtype)
        tensors["multi_modal_projector.linear_2.bias"] = torch.zeros(size, dtype=like.dtype)
    _write(folder, model.config.to_dict(), tensors, model.tokenizer, dtype, _processor_files(model))


def write_clip(clip: Clip, tokenizer: Tokenizer, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write both CLIP towers as ``CLIPModel`` has them."""
    vision, text = clip.vision_model.config, clip.text_model.config
    config = {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": vision.projection_dim,
        "vision_config": vision.to_dict(),
        "text_config": text.to_dict(),
    }
    files = {"preprocessor_config.json": _image_processor(vision.image_size)}
    _write(folder, config, clip.state_dict(), tokenizer, dtype, files)


def write_decoder(decoder: Decoder, tokenizer: Tokenizer, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write a decoder as ``LlamaForCausalLM`` has it, its tokenizer beside it."""
    config = {"architectures": ["LlamaForCausalLM"], **decoder.config.to_dict()}
    tensors = {
        name if name.startswith("lm_head.") else f"model.{name}": tensor
        for name, tensor in decoder.state_dict().items()
    }
    _write(folder, config, tensors, tokenizer, dtype, {})


def read_config(folder: Path) -> dict:
    """The folder's config.json as a dict. Raises UserError where there is no folder, no file, or no JSON object."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    return read_json_object(folder / "config.json")


def read_json_object(path: Path) -> dict:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: not a JSON object")
    return value


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of ``model.safetensors``. Raises UserError for a file that is missing, cut short or broken."""
    path = folder / WEIGHTS
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a whole safetensors file ({error})") from None


def replace_folder(folder: str | os.PathLike, fill) -> None:
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
    tensors = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in tensors.items()}
    if config.get("tie_word_embeddings"):  # stored once, as the embedding
        tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith("lm_head.weight")}
    stored = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    for name, content in {"config.json": {**config, "dtype": stored}, **files}.items():
        text = content if isinstance(content, str) else json.dumps(content, indent=2) + "\n"
        (folder / name).write_text(text, encoding="utf-8")
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def _image_processor(size: int) -> dict:
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": 3,  # bicubic
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(MEAN),
        "image_std": list(STD),
        "do_convert_rgb": True,
    }


def _processor_files(model: Llava) -> dict[str, dict | str]:
    """What transformers' AutoProcessor and generate() read beside the weights."""
    vision = model.config.vision
    files: dict[str, dict | str] = {
        "preprocessor_config.json": _image_processor(vision.image_size),
        "processor_config.json": {
            "processor_class": "LlavaProcessor",
            "patch_size": vision.patch_size,
            "num_additional_image_tokens": 1,  # the class token
            "vision_feature_select_strategy": "default",
            "image_token": "<image>",
        },
        "generation_config.json": {"max_new_tokens": 256, "do_sample": False},
    }
    if model.tokenizer is not None:
        stop = model.tokenizer.encode(TEMPLATES[model.template].stop)
        files["generation_config.json"] |= {
            "eos_token_id": [model.tokenizer.eos_id, *(stop if len(stop) == 1 else [])],
            "pad_token_id": model.tokenizer.pad_id,
        }
        files["chat_template.jinja"] = chat_template(model.template)
    return files


def _parse(from_dict, config: dict, folder: Path):
    try:
        return from_dict(config)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder}/config.json: {type(error).__name__} {error}") from None
    except ValueError as error:
        raise UserError(f"{folder}/config.json: {error}") from None


def _rename(tensors: dict[str, Tensor], rules: tuple[tuple[str, str], ...]) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in tensors.items():
        for pattern, ours in rules:
            name, count = re.subn(pattern, ours, name)
            if count:
                break
        renamed[name] = tensor
    return renamed


def _fold_projector(tensors: dict[str, Tensor], folder: Path) -> None:
    """linear_2(linear_1(x)) -> one W, in place: W = W2 W1, b = W2 b1 + b2."""
    names = [f"multi_modal_projector.linear_{layer}.{kind}" for layer in (1, 2) for kind in ("weight", "bias")]
    for name in names:
        if name not in tensors:
            raise UserError(f"{folder}/{WEIGHTS}: tensor {name} is missing")
    w1, b1, w2, b2 = (tensors.pop(name).float() for name in names)
    tensors["multi_modal_projector.weight"] = w2 @ w1
    tensors["multi_modal_projector.bias"] = w2 @ b1 + b2


def _fill(module: nn.Module, tensors: dict[str, Tensor], folder: Path) -> None:
    """Copy ``tensors`` into ``module``; every name and shape must fit."""
    path = folder / WEIGHTS
    wanted = module.state_dict()
    for name in wanted:
        embedding = name.replace("lm_head", "embed_tokens")
        if embedding != name and wanted[name].data_ptr() == wanted[embedding].data_ptr() and embedding in tensors:
            tensors.setdefault(name, tensors[embedding])
    for name in sorted(wanted.keys() - tensors.keys()):
        raise UserError(f"{path}: tensor {name} is missing")
    for name in sorted(tensors.keys() - wanted.keys()):
        if name.endswith("position_ids"):  # a constant that old CLIP files carry
            continue
        raise UserError(f"{path}: tensor {name} is left over")
    for name, parameter in wanted.items():
        found = tensors[name]
        if found.shape != parameter.shape:
            raise UserError(f"{path}: tensor {name} has shape {tuple(found.shape)}, not {tuple(parameter.shape)}")
        parameter.copy_(found)
