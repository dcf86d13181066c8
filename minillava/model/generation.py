"""Writing an answer one token at a time: sampling, stops, the KV cache, streaming.

The prompt goes through the decoder once ("prefill"), leaving its keys and values in the cache; each new token then
costs one pass of length one.
"""

import codecs
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from minillava.inputs.tokenizer import Tokenizer
from minillava.model.decoder import Decoder, KVCache


def sample(logits: Tensor, temperature: float) -> Tensor:
    """logits (B, V) -> next ids (B,): the likeliest at temperature 0, else drawn from softmax(logits / temperature)."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    probabilities = (logits.float() / temperature).softmax(dim=-1)
    return torch.multinomial(probabilities, num_samples=1).squeeze(1)


@torch.inference_mode()
def generate_ids(
    decoder: Decoder,
    embeddings: Tensor,
    attention_mask: Tensor | None = None,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
) -> Iterator[Tensor]:
    """Yield the next ids (B,), step by step, after a prompt of embeddings (B, T, hidden).

    Rows shorter than T are padded on the left, where attention_mask (B, T) is 0.
    """
    batch, length = embeddings.shape[:2]
    cache = KVCache(decoder.config, batch, length + max_new_tokens, embeddings.dtype, embeddings.device)
    for _ in range(max_new_tokens):
        hidden = decoder(embeddings, attention_mask, cache)  # (B, T, hidden), T = 1 from the second pass on
        ids = sample(decoder.lm_head(hidden[:, -1]), temperature)  # (B,)
        yield ids
        embeddings = decoder.embed_tokens(ids[:, None])
        if attention_mask is not None:
            attention_mask = torch.cat([attention_mask, torch.ones_like(attention_mask[:, :1])], dim=1)


def collect(steps: Iterable[Tensor], stop_ids: Iterable[int], fill: int) -> Tensor:
    """Gather steps of ids (B,) into (B, N) until every row has met one of ``stop_ids``.

    A row keeps its stop; what comes after it is ``fill``. ``steps`` must not be empty.
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


def stream_text(steps: Iterable[Tensor], tokenizer: Tokenizer, stop: str) -> Iterator[str]:
    """Steps of ids (1,) -> pieces of text, up to the stop string or the end token, neither of them shown.

    A character that spans several tokens comes out whole, and text that may be the beginning of the stop is held back
    until it is not.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    held = ""
    for ids in steps:
        if ids.item() == tokenizer.eos_id:
            break
        held += decoder.decode(tokenizer.decode_bytes([ids.item()]))
        if stop in held:
            yield held[: held.index(stop)]
            return
        keep = max(n for n in range(len(stop)) if held.endswith(stop[:n]))
        if len(held) > keep:
            yield held[: len(held) - keep]
            held = held[len(held) - keep :]
    yield held + decoder.decode(b"", final=True)
