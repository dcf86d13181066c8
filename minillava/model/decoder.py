"""The language model: a LLaMA decoder (Touvron et al. 2023, arXiv 2302.13971), from embeddings to hidden states.

- RMSNorm instead of LayerNorm: it subtracts no mean and has no bias.
- Rotary positions (RoPE, Su et al. 2021): queries and keys are rotated by an angle that grows with their position, so
  positions enter a dot product only as the distance between query and key.
- Grouped-query attention: several query heads share one key head and one value head.
- SwiGLU (Shazeer 2020): down(silu(gate(x)) * up(x)).
- A KV cache keeps the keys and values of earlier tokens, so each step of generation runs only the newest token.

Attribute names are LLaMA's tensor names without prefixes. The letters in shapes are in ``model/__init__.py``.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minillava.config import DecoderConfig
from minillava.model.attention import CLOSED, attend


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis, computed in float32. Returns the shape and dtype of x."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).to(x.dtype)


def rope_frequencies(config: DecoderConfig, device: torch.device | None = None) -> Tensor:
    """The angle in radians by which RoPE rotates each pair of coordinates per position: (d / 2,), float32.

    Pair i is (i, i + d / 2) of a query or key. It rotates by base ** (-2 i / d). Models extended to a longer context
    rotate more slowly: "linear" scaling divides every angle by ``factor``. "llama3" scaling (Llama 3.1) divides only
    slow pairs, those that make few full turns within the original context; fast pairs keep their angle, and the pairs
    in between get an interpolated one.
    """
    frequencies = config.rope_theta ** (-torch.arange(0, config.head_dim, 2, device=device).float() / config.head_dim)
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    if scaling["rope_type"] == "linear":
        return frequencies / scaling["factor"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = frequencies * scaling["original_max_position_embeddings"] / (2 * math.pi)  # full turns in that context
    kept = ((turns - low) / (high - low)).clamp(0, 1)  # 1: keep the angle; 0: divide it
    return frequencies * (kept + (1 - kept) / scaling["factor"])


def rope_tables(positions: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """positions (B, T), frequencies (d / 2,) -> cos and sin, each (B, 1, T, d), float32.

    Pairs are (i, i + d / 2). The first half of sin is negated, so rotate() is x * cos + swap_halves(x) * sin.
    """
    angles = positions[:, None, :, None].float() * frequencies  # (B, 1, T, d / 2)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate every pair (a, b) of x (B, heads, T, d) by its angle: (a cos - b sin, b cos + a sin)."""
    partners = x.roll(x.shape[-1] // 2, dims=-1)  # the two halves swapped
    return torch.addcmul(x * cos, partners, sin).to(x.dtype)  # x * cos + partners * sin


class KVCache:
    """The keys and values of earlier tokens: for each layer two tensors (B, kv_heads, capacity, d)."""

    def __init__(self, config: DecoderConfig, batch: int, capacity: int, dtype: torch.dtype, device: torch.device):
        shape = (config.num_hidden_layers, 2, batch, config.num_key_value_heads, capacity, config.head_dim)
        self.store = torch.zeros(shape, dtype=dtype, device=device)  # (layers, 2, B, kv_heads, capacity, d)
        self.length = 0  # tokens stored; increased after all layers have stored theirs

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's k and v (B, kv_heads, T, d); return all its keys and values so far, (B, kv_heads, S, d)."""
        end = self.length + k.shape[2]
        keys, values = self.store[layer]  # views: writing to them fills the cache
        keys[:, :, self.length : end] = k
        values[:, :, self.length : end] = v
        return keys[:, :, :end], values[:, :, :end]


def visible(attention_mask: Tensor, past: int = 0) -> Tensor:
    """attention_mask (B, S) -> bool (B, T, S): whether new token i sees token j of its row, with T = S - past.

    New token i is at place past + i of its row. It sees token j if j <= past + i, j is not padding, and both belong to
    the same conversation.
    """
    new = attention_mask[:, past:]  # (B, T)
    see = (new[:, :, None] == attention_mask[:, None, :]) & (attention_mask > 0)[:, None]  # (B, T, S)
    return see.tril(diagonal=past)


class Attention(nn.Module):
    """Grouped-query self-attention with rotary positions, (B, T, hidden) -> (B, T, hidden)."""

    def __init__(self, config: DecoderConfig, layer: int):
        super().__init__()
        self.config, self.layer = config, layer
        query_size = config.num_attention_heads * config.head_dim
        key_size = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, key_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, key_size, bias=False)
        self.o_proj = nn.Linear(query_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None, cache: KVCache | None) -> Tensor:
        def heads(y: Tensor) -> Tensor:
            return y.unflatten(-1, (-1, self.config.head_dim)).transpose(1, 2)  # (B, heads or kv_heads, T, d)

        # Positions enter through q and k only; values are not rotated.
        q, k = rotate(heads(self.q_proj(x)), *rope), rotate(heads(self.k_proj(x)), *rope)
        v = heads(self.v_proj(x))  # (B, kv_heads, T, d)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)  # (B, kv_heads, S, d)
        single = x.shape[1] == 1  # a single new token may see every token before it, so it needs no causal mask
        out = attend(q, k, v, mask) if single or mask is not None else attend(q, k, v, causal=True)  # (B, heads, T, d)
        return self.o_proj(out.transpose(1, 2).flatten(2))  # (B, T, heads * d) -> (B, T, hidden)


class MLP(nn.Module):
    """SwiGLU, (B, T, hidden) -> (B, T, hidden)."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))  # inside: (B, T, intermediate)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); (B, T, hidden) -> (B, T, hidden)."""

    def __init__(self, config: DecoderConfig, layer: int):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None, cache: KVCache | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rope, mask, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Embeddings (B, T, hidden) in, hidden states (B, T, hidden) out; ``lm_head`` turns those into logits (B, T, V)."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        if config.num_attention_heads % config.num_key_value_heads:
            heads, shared = config.num_attention_heads, config.num_key_value_heads
            raise ValueError(f"{heads} query heads are not a multiple of {shared} key heads")
        if config.head_dim % 2:
            raise ValueError(f"head_dim {config.head_dim} is odd: rotary positions rotate pairs")
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, index) for index in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight

    def forward(self, embeddings: Tensor, attention_mask: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """Embeddings (B, T, hidden) of the new tokens -> their hidden states after the last norm (B, T, hidden).

        attention_mask (B, S) covers the tokens in the cache and the new ones: 0 for padding, k for the row's k-th
        conversation. Conversations in one row do not see each other, and each counts its positions from 0. Without a
        mask the row is one conversation without padding.
        """
        past = cache.length if cache is not None else 0
        length = embeddings.shape[1]
        mask, positions = None, torch.arange(past, past + length, device=embeddings.device)[None]  # (1, T)
        if attention_mask is None and past and length > 1:
            # is_causal lets query i see keys 0..i only, so two or more new tokens after a cache need an explicit mask.
            # A mask filled with 1 means one conversation without padding.
            attention_mask = embeddings.new_ones(1, past + length)
        if attention_mask is not None:
            see = visible(attention_mask, past)  # (B, T, S)
            positions = (see.sum(dim=-1) - 1).clamp(min=0)  # (B, T): tokens of the same conversation before this one
            mask = torch.zeros_like(see, dtype=torch.float32).masked_fill(~see, CLOSED)[:, None]  # (B, 1, T, S)
        rope = rope_tables(positions, rope_frequencies(self.config, embeddings.device))  # for all layers
        x = embeddings
        for layer in self.layers:
            x = layer(x, rope, mask, cache)  # (B, T, hidden)
        if cache is not None:
            cache.length += length  # here, and not in append(): all layers write to the same places
        return self.norm(x)

    @torch.no_grad()
    def grow(self, vocab_size: int) -> None:
        """Enlarge the embedding and the head to ``vocab_size`` rows.

        A new row is the mean of the old rows, so its logit is the mean of the old logits, never the largest.
        """

        def grown(weight: Tensor) -> nn.Parameter:
            mean = weight.mean(dim=0, keepdim=True, dtype=torch.float32).to(weight.dtype)
            return nn.Parameter(torch.cat([weight, mean.expand(vocab_size - len(weight), -1)]))

        self.embed_tokens.weight = grown(self.embed_tokens.weight)
        tied = self.config.tie_word_embeddings
        self.lm_head.weight = self.embed_tokens.weight if tied else grown(self.lm_head.weight)
        self.config.vocab_size = self.embed_tokens.num_embeddings = self.lm_head.out_features = vocab_size
