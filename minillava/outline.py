"""Config and processor of a model's folder in Hugging Face's format, or of a GGUF file, without its weights."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from minillava.config import DecoderConfig, LlavaConfig, VisionConfig
from minillava.errors import UserError
from minillava.formats import chat_template, gguf_llama
from minillava.formats.gguf import read_gguf
from minillava.formats.json_object import JSON_BYTES, read_bytes, read_json_object
from minillava.formats.model_folder import read_config
from minillava.formats.tensors import Unfilled
from minillava.hub import Folder, resolve_folder
from minillava.inputs.image import ImageProcessor
from minillava.inputs.processor import Processor
from minillava.inputs.templates import TEMPLATES, Template
from minillava.inputs.tokenizer import Tokenizer


def read_outline(folder: Folder) -> tuple[LlavaConfig, Processor]:
    """A llava-hf folder's config and processor, without reading its weights.

    Raises UserError, as do the three functions below.
    """
    folder = resolve_folder(folder)
    config = read_llava(folder)
    image, tokenizer = image_processor(folder, config.vision), Tokenizer.from_pretrained(folder)
    ends = end_ids(folder, config.decoder)
    return config, Processor(tokenizer, image, config.num_image_tokens, read_template(folder, tokenizer), ends)


def read_llava(folder: Folder) -> LlavaConfig:
    """The config of a llava-hf folder. Reads only config.json; this function and the two below download nothing."""
    with building(folder, "llava") as config:
        return LlavaConfig.from_dict(config)


def read_vision(folder: Folder) -> VisionConfig:
    """The config of a CLIP folder's vision tower."""
    with building(folder, "clip", "clip_vision_model") as config:
        return VisionConfig.from_dict(config.get("vision_config", {}) if config["model_type"] == "clip" else config)


def read_decoder(source: Folder) -> DecoderConfig:
    """The config of a LLaMA folder or a GGUF file."""
    with building(source) as config:
        return DecoderConfig.from_dict(config)


def end_ids(source: Folder, config: DecoderConfig) -> tuple[int, ...]:
    """The end tokens in generation_config.json and in ``config``. Each has one id, a list of ids, or none."""
    path, ids = Path(source, "generation_config.json"), []
    more = read_json_object(path).get("eos_token_id") if path.exists() else None
    for value in (more, config.eos_token_id):
        ids += value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(index) is int for index in ids):
        raise UserError(f"{source}: eos_token_id must be one id or a list of ids, not {ids}")
    return tuple(dict.fromkeys(ids))


@contextmanager
def building(source: Folder, *types: str) -> Iterator[dict]:
    """Context that gives the contents of a folder's config.json, or the same from a GGUF file.

    Its model_type must be one of ``types``, if any. Modules built in this context take no memory. An error raised in it
    becomes a UserError that names the file.
    """
    path = Path(source)
    if path.is_file():
        config = gguf_llama.config(path, gguf_llama.read_llama(path))
    else:
        config, path = read_config(path), path / "config.json"
    try:
        if types and config.get("model_type") not in types:
            hint = "; a language model by itself is given with --decoder" if config.get("model_type") == "llama" else ""
            raise ValueError(f"model_type is {config.get('model_type')!r}, not {types[0]!r}{hint}")
        with torch.device("meta"), Unfilled():
            yield config
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError, OverflowError) as error:
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__} "  # ValueErrors need no type
        raise UserError(f"{path}: {kind}{str(error).splitlines()[0]}") from None


def image_processor(folder: Path, vision: VisionConfig) -> ImageProcessor:
    """The image processor in the folder's files, or CLIP's default for ``vision`` if there is none.

    Raises UserError if its pictures do not have the size that the tower reads.
    """
    path = folder / "processor_config.json"
    inside = path.exists() and "image_processor" in read_json_object(path)
    if not inside and not (folder / "preprocessor_config.json").exists():
        return ImageProcessor.for_size(vision.image_size)
    image, size = ImageProcessor.from_pretrained(folder), vision.image_size
    if (made := image.output_size) != (size, size):
        raise UserError(f"{folder}: its image processor makes pictures of {made}, its tower reads {size} x {size}")
    return image


def read_template(source: Path, tokenizer: Tokenizer) -> Template:
    """The chat template of a folder or a GGUF file; "v0" (the paper's) if it has none."""
    path, text = source / chat_template.FILE, None
    if source.is_file():
        text = read_gguf(source).values.get("tokenizer.chat_template")
    elif path.exists():
        text = read_bytes(path, JSON_BYTES).decode("utf-8", errors="replace")
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        if text is None and (source / name).exists():
            text = read_json_object(source / name).get("chat_template")
    if isinstance(text, list):  # several, by name
        named = [one for one in text if isinstance(one, dict) and one.get("name") == "default"]
        text = named[0].get("template", text) if named else text
    return TEMPLATES["v0"] if text is None else find_template(text, tokenizer, source)


def find_template(text: object, tokenizer: Tokenizer, source: Path) -> Template:
    """The Template of a chat template in jinja, ``text``.

    If ``text`` is not known word for word, a line on stderr, which names ``source``, says which template is used: that
    of the family whose marks it has, or else "v0".
    """
    styles = {name: vars(template) for name, template in TEMPLATES.items()}
    names = {index: name for name, index in tokenizer.special.items()}
    bos, eos = names.get(tokenizer.bos_id), names.get(tokenizer.eos_id)
    found = chat_template.recognise(text, styles, bos, eos) if isinstance(text, str) else None
    if not (found and found.exact):
        name, what = "v0", "is unknown; v0 is used"
        if found:
            name, opening = found.family, found.style["opening"]
            what = f"is not known word for word; it has the marks of {name}, which is used, beginning {opening!r}"
        others = ", ".join(other for other in TEMPLATES if other != name)
        print(f"{source}: the chat template {what}; --template gives another: {others}", file=sys.stderr)
    return Template(**found.style) if found else TEMPLATES["v0"]
