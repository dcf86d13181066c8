"""Config and processor of a model's folder in Hugging Face's format, or of a GGUF file, without its weights."""

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from minillava.config import DecoderConfig, LlavaConfig, VisionConfig
from minillava.errors import UserError
from minillava.formats import adapter_config, chat_template, config_json, gguf_llama
from minillava.formats.gguf import read_gguf
from minillava.formats.json_object import JSON_BYTES, read_bytes, read_json_object
from minillava.formats.model_folder import read_config
from minillava.formats.tensors import Unfilled
from minillava.hub import Folder, resolve_decoder, resolve_folder
from minillava.inputs.image import ImageProcessor
from minillava.inputs.processor import Processor
from minillava.inputs.templates import TEMPLATES, Template
from minillava.inputs.tokenizer import IMAGE, PAD, Tokenizer

MOST_NEW = 1000  # rows that an embedding may gain: some tokenizers have a few tokens more than their model


def read_outline(folder: Folder) -> tuple[LlavaConfig, Processor]:
    """Config and processor of a llava-hf folder or of an adapter, without reading weights.

    Raises UserError, as do the functions below.
    """
    folder = resolve_folder(folder)
    if adapter_config.is_adapter(folder):
        base = read_adapter(folder).base
        towers = isinstance(base, adapter_config.Towers)
        config, processor = join_outlines(base) if towers else read_outline(base)
        adapt(processor, folder, config.vision)
        return config, processor
    config = read_llava(folder)
    image, tokenizer = image_processor(folder, config.vision), Tokenizer.from_pretrained(folder)
    ends = end_ids(folder, config.decoder)
    return config, Processor(tokenizer, image, config.num_image_tokens, read_template(folder, tokenizer), ends)


def join_outlines(towers: adapter_config.Towers) -> tuple[LlavaConfig, Processor]:
    """Config and processor of two towers joined by a projection.

    The tokenizer gains an <image> and a padding token if it lacks them, and the decoder's vocabulary room for them.
    """
    vision, source = resolve_folder(towers.vision), resolve_decoder(towers.decoder)
    seen, decoder, tokenizer = read_vision(vision), read_decoder(source), read_tokenizer(source)
    try:
        config_json.layer_from_json(towers._asdict(), "vision_feature_layer", seen.num_hidden_layers)
    except ValueError as error:
        raise UserError(f"{vision}: {error}") from None
    decoder.vocab_size = make_room_for_image(tokenizer, decoder.vocab_size)
    config = LlavaConfig(seen, decoder, towers.projector, tokenizer.image_id, towers.vision_feature_layer)
    image, ends = image_processor(vision, seen), end_ids(source, decoder)
    return config, Processor(tokenizer, image, config.num_image_tokens, read_template(source, tokenizer), ends)


def read_adapter(folder: Path) -> adapter_config.AdapterConfig:
    """adapter_config.json of ``folder``. Its base must not be an adapter too."""
    config = adapter_config.read_config(folder)
    if isinstance(config.base, str) and adapter_config.is_adapter(config.base):
        base = config.base
        raise UserError(f"{folder}: base model {base} is an adapter too; merge that first (python -m minillava.merge)")
    return config


def adapt(processor: Processor, folder: Path, vision: VisionConfig) -> None:
    """Give the processor of an adapter's base the template and the image processor in the adapter's ``folder``."""
    if (folder / chat_template.FILE).exists():
        processor.template = read_template(folder, processor.tokenizer)
    if (folder / "preprocessor_config.json").exists():
        processor.image = image_processor(folder, vision)


def read_tokenizer(source: Path) -> Tokenizer:
    """The tokenizer of a model's folder or of a GGUF file."""
    if source.is_file():
        return Tokenizer(source, gguf_llama.tokenizer(source, gguf_llama.read_llama(source)))
    return Tokenizer.from_pretrained(source)


def make_room_for_image(tokenizer: Tokenizer, rows: int) -> int:
    """Add an <image> and a padding token to ``tokenizer`` if it lacks them. Returns how many rows the embedding needs,
    which has ``rows``: no more, or a multiple of 64 as in llava-hf's folders."""
    missing = [name for name, index in ((IMAGE, tokenizer.image_id), (PAD, tokenizer.pad_id)) if index is None]
    if missing:
        tokenizer.add_special_tokens(missing)
    if tokenizer.vocab_size > rows + MOST_NEW:
        raise UserError(f"the tokenizer has {tokenizer.vocab_size:,} tokens, but the embedding only {rows:,} rows")
    return rows if tokenizer.vocab_size <= rows else math.ceil(tokenizer.vocab_size / 64) * 64


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
    try:
        config_json.check_ids("eos_token_id", more)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    for value in (more, config.eos_token_id):
        ids += value if isinstance(value, list) else [] if value is None else [value]
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
        raise UserError(f"{path}: {kind}{str(error).splitlines()[0]:.300}") from None


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
