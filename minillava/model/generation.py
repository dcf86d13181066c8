"""Generating an answer token by token: sampling, KV cache, stops, streaming.

The prompt goes through the decoder once ("prefill"), which fills the cache with its keys and values. After that, each
pass has only the newest token as input.
"""

import codecs
from collections.abc import Container, Iterable, Iterator

import torch
from torch import Tensor

from minillava.inputs.tokenizer import Tokenizer
from minillava.model.decoder import Decoder, KVCache


def nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """probabilities (B, V) with 0 for what top-p sampling leaves out (Holtzman et al. 2020, arXiv 1904.09751).

    It keeps the smallest set of most likely tokens whose probabilities sum to at least ``top_p``.
    """
    ordered, order = probabilities.sort(dim=-1, descending=True)
    before = ordered.cumsum(dim=-1) - ordered  # the probability of all likelier tokens
    return torch.zeros_like(probabilities).scatter(-1, order, ordered.masked_fill(before >= top_p, 0))


def sample(logits: Tensor, temperature: float, top_p: float = 1.0) -> Tensor:
    """logits (B, V) -> ids (B,): the argmax at temperature 0, else a draw from softmax(logits / temperature).

    With ``top_p`` below 1 the draw is from the nucleus() of these probabilities.
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    probabilities = (logits.float() / temperature).softmax(dim=-1)
    if top_p < 1:
        probabilities = nucleus(probabilities, top_p)  # their sum need not be 1 for multinomial()
    return torch.multinomial(probabilities, num_samples=1).squeeze(1)


@torch.inference_mode()
def generate_ids(
    decoder: Decoder,
    embeddings: Tensor,
    attention_mask: Tensor | None = None,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
) -> Iterator[Tensor]:
    """Yield ids (B,), one new token per row and step, after a prompt given as embeddings (B, T, hidden).

    Rows shorter than T are padded on the left; attention_mask (B, T) is 0 at the padding. This never stops early:
    collect() and stream_text() look for stops.
    """
    batch, length = embeddings.shape[:2]
    cache = KVCache(decoder.config, batch, length + max_new_tokens, embeddings.dtype, embeddings.device)
    for _ in range(max_new_tokens):
        hidden = decoder(embeddings, attention_mask, cache)  # (B, T, hidden), T = 1 from the second pass on
        ids = sample(decoder.lm_head(hidden[:, -1]), temperature, top_p)  # (B,)
        yield ids
        embeddings = decoder.embed_tokens(ids[:, None])  # (B, 1, hidden)
        if attention_mask is not None:
            attention_mask = torch.cat([attention_mask, torch.ones_like(attention_mask[:, :1])], dim=1)


def collect(steps: Iterable[Tensor], stop_ids: Iterable[int], fill: int) -> Tensor:
    """Gather the steps of generate_ids() into (B, n), and end when every row has one of ``stop_ids``.

    A row keeps its stop token; after it comes ``fill``. ``steps`` must not be empty.
    """
    stops = set(stop_ids)
    columns: list[list[int]] = []
    done: set[int] = set()
    for ids in steps:
        columns.append([fill if row in done else index for row, index in enumerate(ids.tolist())])
        done |= {row for row, index in enumerate(columns[-1]) if index in stops}
        if len(done) == len(ids):
            break
    return torch.tensor(columns, device=ids.device).T


def stream_text(steps: Iterable[Tensor], tokenizer: Tokenizer, stop: str, stop_ids: Container[int]) -> Iterator[str]:
    """Steps of ids (1,) -> pieces of text, until the string ``stop`` or one of ``stop_ids``, which are not yielded.

    Special tokens are left out. A character of several tokens is yielded whole. Text that may be the beginning of
    ``stop`` is held back until later tokens show whether it is.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    special = set(tokenizer.special.values())
    held = ""
    for ids in steps:
        index = ids.item()
        if index in stop_ids:
            break
        if index in special:
            continue
        held += decoder.decode(tokenizer.decode_bytes([index]))
        if stop in held:
            yield held[: held.index(stop)]
            return
        keep = max(n for n in range(len(stop)) if held.endswith(stop[:n]))
        if len(held) > keep:
            yield held[: len(held) - keep]
            held = held[len(held) - keep :]
    yield held + decoder.decode(b"", final=True)
