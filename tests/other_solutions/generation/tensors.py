"""Stops gathered in tensors, bytes in place of an incremental decoder."""

from collections.abc import Container, Iterable, Iterator

import torch
from torch import Tensor

from minillava.inputs.tokenizer import Tokenizer
from minillava.model.decoder import Decoder, KVCache


def nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    ordered, order = probabilities.sort(dim=-1)
    drop = ordered.cumsum(dim=-1) <= 1 - top_p  # the unlikeliest, as long as enough is left
    drop[:, -1] = False
    return probabilities.masked_fill(torch.zeros_like(drop).scatter(-1, order, drop), 0)


def sample(logits: Tensor, temperature: float, top_p: float = 1.0) -> Tensor:
    if temperature == 0:
        return logits.max(dim=-1).indices
    probabilities = torch.softmax(logits.double() / temperature, dim=-1)
    if top_p < 1:
        probabilities = nucleus(probabilities, top_p)
    return torch.multinomial(probabilities, 1)[:, 0]


def collect(steps: Iterable[Tensor], stop_ids: Iterable[int], fill: int) -> Tensor:
    columns, done, stops = [], None, torch.tensor([*stop_ids], dtype=torch.long)
    for ids in steps:
        done = torch.zeros_like(ids, dtype=torch.bool) if done is None else done
        columns.append(torch.where(done, fill, ids))
        done = done | torch.isin(columns[-1], stops)
        if done.all():
            break
    return torch.stack(columns, dim=1)


@torch.inference_mode()
def generate_ids(
    decoder: Decoder,
    embeddings: Tensor,
    attention_mask: Tensor | None = None,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
) -> Iterator[Tensor]:
    rows, length = embeddings.shape[:2]
    if attention_mask is None:
        attention_mask = torch.ones(rows, length, dtype=torch.long, device=embeddings.device)
    whole = torch.nn.functional.pad(attention_mask, (0, max_new_tokens), value=1)
    cache = KVCache(decoder.config, rows, length + max_new_tokens, embeddings.dtype, embeddings.device)
    for step in range(max_new_tokens):
        hidden = decoder(embeddings, whole[:, : length + step], cache)
        ids = sample(decoder.lm_head(hidden)[:, -1], temperature, top_p)
        yield ids
        embeddings = decoder.embed_tokens(ids)[:, None]


def stream_text(steps: Iterable[Tensor], tokenizer: Tokenizer, stop: str, stop_ids: Container[int]) -> Iterator[str]:
    data, shown = b"", 0
    for ids in steps:
        index = int(ids[0])
        if index in stop_ids:
            break
        if index in tokenizer.special.values():
            continue
        data += tokenizer.decode_bytes([index])
        text = data.decode("utf-8", errors="ignore")
        if (at := text.find(stop)) >= 0:
            if at > shown:
                yield text[shown:at]
            return
        end = next((place for place in range(shown, len(text)) if stop.startswith(text[place:])), len(text))
        if end > shown:
            yield text[shown:end]
            shown = end
    if rest := data.decode("utf-8", errors="replace")[shown:]:
        yield rest
