"""The attention weights of every layer and head of a decoder: which tokens it looks at."""

import torch
from torch import Tensor, nn

from minillava.model.attention import causal_mask
from minillava.model.decoder import Decoder, rope_frequencies, rope_tables, rotate


@torch.no_grad()
def attention_weights(decoder: Decoder, embeddings: Tensor) -> Tensor:
    """softmax(Q K^T / sqrt(d)) for embeddings (1, T, hidden): (layers, query heads, T, T).

    The decoder does not return its weights. Hooks keep the outputs of q_proj and k_proj in a forward pass; rotation,
    mask and softmax are computed again from them.
    """
    caught: dict[nn.Module, Tensor] = {}
    parts = [part for block in decoder.layers for part in (block.self_attn.q_proj, block.self_attn.k_proj)]
    hooks = [part.register_forward_hook(lambda part, _, output: caught.update({part: output[0]})) for part in parts]
    decoder(embeddings)
    for hook in hooks:
        hook.remove()
    config, length = decoder.config, embeddings.shape[1]
    cos, sin = rope_tables(torch.arange(length)[None], rope_frequencies(config))

    def turned(part: nn.Module) -> Tensor:
        heads = caught[part].unflatten(-1, (-1, config.head_dim)).transpose(0, 1)  # (heads, T, head_dim)
        return rotate(heads, cos[0], sin[0])

    weights = []
    for block in decoder.layers:
        q, k = turned(block.self_attn.q_proj), turned(block.self_attn.k_proj)
        q = q.unflatten(0, (config.num_key_value_heads, -1))  # (key heads, query heads of each, T, head_dim)
        scores = q @ k[:, None].transpose(-1, -2) * config.head_dim**-0.5
        weights.append((scores + causal_mask(length)).softmax(dim=-1).flatten(0, 1))
    return torch.stack(weights)
