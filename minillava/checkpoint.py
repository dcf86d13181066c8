"""Folders in Hugging Face's format -> models: LLaVA folders (llava-hf) and CLIP towers.

Reads the tensor names that transformers writes, the variants in files on the hub, and the layout of the LLaVA authors'
own folders. A model is built without memory (on PyTorch's meta device) and then filled tensor by tensor, in the
requested dtype and on the requested device. outline.py reads the folders' other files, language_model.py reads decoders
and saving.py writes the folders.
"""

import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import torch

from minillava.config import LlavaConfig, TextConfig, VisionConfig
from minillava.errors import UserError
from minillava.files import standing
from minillava.formats import adapter_config
from minillava.formats.model_folder import read_config, refuse_lora
from minillava.formats.tensors import Dtype, Unfilled, fill, list_tensors, rename
from minillava.hub import Folder, resolve_folder
from minillava.inputs.processor import Processor
from minillava.inputs.templates import TEMPLATES, Template
from minillava.inputs.tokenizer import Tokenizer
from minillava.language_model import load_weights
from minillava.model import lora
from minillava.model.contrastive import Clip
from minillava.model.decoder import Decoder
from minillava.model.llava import Llava
from minillava.model.projector import PROJECTORS, LinearProjector, MLPProjector
from minillava.model.vision import VisionTower
from minillava.outline import (
    adapt,
    building,
    end_ids,
    image_processor,
    join_outlines,
    make_room_for_image,
    read_adapter,
    read_llava,
    read_outline,
    read_vision,
)

# Rules (pattern, replacement) from tensor names in files to ours. The first that matches a name is applied, once.
LLAVA_NAMES = (
    (r"^(?:model\.)?vision_tower\.(?:vision_model\.)?", "vision_tower."),
    (r"^(?:model\.)?multi_modal_projector\.", "multi_modal_projector."),
    (r"^(?:language_model\.)?lm_head\.", "language_model.lm_head."),
    (r"^(?:model\.language_model|language_model\.model)\.", "language_model."),
)
ORIGINAL_NAMES = (
    (r"^model\.vision_tower\.vision_tower\.(?:vision_model\.)?", "vision_tower."),
    (r"^model\.mm_projector\.0\.", "multi_modal_projector.linear_1."),
    (r"^model\.mm_projector\.2\.", "multi_modal_projector.linear_2."),
    (r"^model\.mm_projector\.", "multi_modal_projector."),
    (r"^lm_head\.", "language_model.lm_head."),
    (r"^model\.", "language_model."),
)
VISION_NAMES = ((r"^vision_model\.", ""),)
CLIP_OTHERS = ("text_model.", "text_projection.", "visual_projection.", "logit_scale")  # other tensors of a CLIP folder
ADAPTER_NAMES = ((rf"^{re.escape(adapter_config.PREFIX)}", ""),)


def load(folder: Folder, device: str = "cpu", dtype: Dtype = None, vision: Folder | None = None) -> Llava:
    """Read a LLaVA folder with its tokenizer, in float32 unless ``dtype`` is given. Raises UserError.

    Besides llava-hf's layout, two others are read. A folder of the LLaVA authors' code names a CLIP folder, which must
    be next to it unless ``vision`` gives its path; its tokenizer and embedding gain an <image> token. An adapter
    folder, as training with LoRA writes it, names the base model; the adapter is merged into the base's weights.
    """
    folder = resolve_folder(folder)
    refuse_lora(folder)
    if adapter_config.is_adapter(folder):
        return _load_adapter(folder, device, dtype, vision)
    if "mm_vision_tower" in read_config(folder):
        model = _load_original(folder, device, dtype, vision)
    else:
        _refuse_vision(vision, folder)
        with building(folder):
            model = Llava(read_llava(folder))
        _, model.processor = read_outline(folder)
        _fill_hf(model, folder, LLAVA_NAMES, device, dtype)
    _check_tokenizer(model.processor.tokenizer, model.config, folder)
    return model.eval()


def _refuse_vision(vision: Folder | None, folder: Path) -> None:
    if vision:
        raise UserError(f"{folder}: has a vision tower of its own, so --vision must be left out")


def _fill_hf(model: Llava, folder: Path, names: tuple, device: str, dtype: Dtype) -> None:
    """Fill the parameters of ``model`` that are on the meta device, and its projection.

    The files always store two layers for the projection. For a linear one there is no activation between them, and they
    are folded into one.
    """
    with torch.device("meta"):
        model.multi_modal_projector = MLPProjector(model.config.vision.hidden_size, model.config.decoder.hidden_size)
    fill(model, rename(list_tensors(folder), names), folder, device, dtype)
    if model.config.projector == "linear":
        model.multi_modal_projector = _fold(model.multi_modal_projector)


@torch.no_grad()
def _fold(two: MLPProjector) -> LinearProjector:
    """linear_2(linear_1(x)), without an activation between, as one layer: W = W2 W1, bias = W2 b1 + b2."""
    first, second = two.linear_1, two.linear_2
    one = LinearProjector(first.in_features, second.out_features).to(first.weight)
    one.weight.copy_(second.weight.float() @ first.weight.float())
    one.bias.copy_(second.weight.float() @ first.bias.float() + second.bias.float())
    return one


def _load_adapter(folder: Path, device: str, dtype: Dtype, vision: Folder | None) -> Llava:
    """The base that the adapter names, with the adapter's projection and with its LoRA, if any, merged into the
    decoder."""
    model = load_unmerged(folder, device, dtype, vision)
    lora.merge_lora(model.language_model)
    return model


def load_unmerged(folder: Path, device: str = "cpu", dtype: Dtype = None, vision: Folder | None = None) -> Llava:
    """The base that the adapter in ``folder`` names, with the adapter's projection and with its LoRA in layers of their
    own, which can learn more. Raises UserError."""
    config = read_adapter(folder)
    try:
        if isinstance(config.base, adapter_config.Towers):
            _refuse_vision(vision, folder)
            model = join(*config.base, dtype, device)
        else:
            model = load(config.base, device, dtype, vision)
    except UserError as error:
        raise UserError(f"{folder / adapter_config.CONFIG}: base model {error}") from None
    if config.rank:
        with torch.device("meta"):
            lora.add_lora(model.language_model, config.rank, config.alpha)
    _fill_hf(model, folder, ADAPTER_NAMES, device, dtype)
    adapt(model.processor, folder, model.config.vision)
    return model.eval()


def _load_original(folder: Path, device: str, dtype: Dtype, clip: Folder | None) -> Llava:
    """Read a folder of the LLaVA authors' code.

    The folder ``clip`` has the vision tower's config, and its weights if ``folder`` does not have them.
    """
    tokenizer = Tokenizer.from_pretrained(folder, original=True)
    with building(folder) as config:
        clip = resolve_folder(clip) if clip else _clip_beside(folder, config["mm_vision_tower"])
        vision = read_vision(clip)
        model = Llava(LlavaConfig.from_original(config, vision))
    tensors = rename(list_tensors(folder), ORIGINAL_NAMES)
    if not any(name.startswith("vision_tower.") for name in tensors):
        model.vision_tower = load_vision(clip, device, dtype)
    fill(model, tensors, folder, device, dtype)
    add_image_token(model.language_model, tokenizer)
    model.config.image_token_id = tokenizer.image_id
    image = replace(image_processor(clip, vision), do_pad=config.get("image_aspect_ratio") == "pad")
    template = _guess_template(folder, config)
    ends = end_ids(folder, model.config.decoder)
    model.processor = Processor(tokenizer, image, model.config.num_image_tokens, template, ends)
    return model


def _guess_template(folder: Path, config: dict) -> Template:
    """The template by the last part of the model's name, as in the authors' code; a line on stderr names it.

    Their folders do not store it. The name is the one in config.json or else that of ``folder``.
    """
    name = re.split(r"[/\\]", str(config.get("_name_or_path") or folder.resolve().name).rstrip("/\\"))[-1]
    template = "llama-2" if "llama-2" in name.lower() else "v1" if "v1" in name.lower() else "v0"
    others = ", ".join(other for other in TEMPLATES if other != template)
    print(f"{folder}: no template is stored; {template} is taken from the name {name!r}; "
          f"--template gives another: {others}", file=sys.stderr)  # fmt: skip
    return TEMPLATES[template]


def _clip_beside(folder: Path, name: str) -> Path:
    """The CLIP folder next to ``folder`` with the last part of the name in config.json, ``name``.

    For "openai/clip-vit-large-patch14-336" it is "clip-vit-large-patch14-336". Raises UserError if it does not exist.
    """
    last = str(name).split("/")[-1]
    found = folder.resolve().parent / last
    if last in ("", ".", "..") or not os.path.isdir(standing(found)):
        raise UserError(f"{folder}/config.json: vision tower {name!r} is not at {found}; give its path with --vision")
    return standing(found)


def _check_tokenizer(tokenizer: Tokenizer, config: LlavaConfig, folder: Path) -> None:
    """Raise UserError if tokenizer and model disagree on the id of <image>, or there are more tokens than rows."""
    image, rows = config.image_token_id, config.decoder.vocab_size
    if tokenizer.image_id != image:
        raise UserError(f"{folder}: <image> has the id {image} in config.json, {tokenizer.image_id} in the tokenizer")
    others = tokenizer.vocab_size - (image >= rows)  # only <image> needs no row: visual tokens take its place
    if others > rows:
        raise UserError(f"{folder}: the tokenizer has {others} tokens, but the embedding only {rows} rows")


def join(
    vision: Folder,
    decoder: Folder,
    projector: str = "linear",
    vision_feature_layer: int = -2,
    dtype: Dtype = None,
    device: str = "cpu",
) -> Llava:
    """A CLIP folder and a LLaMA (a folder or a GGUF file) -> a LLaVA with an untrained projection. Raises UserError.

    The decoder's tokenizer and embedding gain an <image> and a padding token if they lack them.
    """
    config, processor = join_outlines(adapter_config.Towers(vision, decoder, projector, vision_feature_layer))
    with torch.device("meta"), Unfilled():
        model = Llava(config, processor)
    projection = PROJECTORS[projector](config.vision.hidden_size, config.decoder.hidden_size)
    model.multi_modal_projector = projection.to(device)
    model.vision_tower = load_vision(vision, device, dtype)
    model.language_model = load_weights(decoder, device, dtype)
    add_image_token(model.language_model, processor.tokenizer)
    return model


def add_image_token(decoder: Decoder, tokenizer: Tokenizer) -> None:
    """Add an <image> and a padding token to a text-only LLaMA that lacks them, and rows to its embedding."""
    rows = make_room_for_image(tokenizer, decoder.config.vocab_size)
    if rows > decoder.config.vocab_size:
        decoder.grow(rows)


def load_vision(folder: Folder, device: str = "cpu", dtype: Dtype = None) -> VisionTower:
    """Read CLIP's vision tower, from a folder with only this tower or with both. Raises UserError."""
    folder = resolve_folder(folder)
    with building(folder):
        tower = VisionTower(read_vision(folder))
    tensors = {name: tensor for name, tensor in list_tensors(folder).items() if not name.startswith(CLIP_OTHERS)}
    fill(tower, rename(tensors, VISION_NAMES), folder, device, dtype)
    return tower


def load_clip(folder: Folder) -> tuple[Clip, Processor]:
    """Read both CLIP towers, the image processor and the tokenizer of the text tower. Raises UserError."""
    folder = resolve_folder(folder)
    with building(folder) as config:
        clip = Clip(VisionConfig.from_dict(config["vision_config"]), TextConfig.from_dict(config["text_config"]))
    fill(clip, rename(list_tensors(folder), ()), folder)
    vision = clip.vision_model.config
    return clip, Processor(Tokenizer.from_pretrained(folder), image_processor(folder, vision), vision.num_patches)
