"""The language model: a LLaMA decoder (Touvron et al. 2023), from embeddings to the next token.

- RMSNorm instead of LayerNorm: no mean, no bias;
- rotary positions (RoPE): queries and keys are turned by an angle that grows with their position, so that their
  product depends on the distance between them;
- grouped-query attention: several query heads share one key and value head;
- SwiGLU: down(silu(gate(x)) * up(x));
- a KV cache: keys and values of the past are kept, so each new token costs one pass of length one.

Attribute names are those of the tensors in LLaMA's checkpoints.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minillava.config import DecoderConfig
from minillava.model.attention import CLOSED, attend


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).to(x.dtype)


def rope_frequencies(config: DecoderConfig, device: torch.device | None = None) -> Tensor:
    """How far each pair of a head turns from one position to the next, in radians: (head_dim / 2,), float32.

    Pair i turns by theta ** (-2 i / head_dim). Models made to read further than they were first trained to turn more
    slowly: "linear" divides all by ``factor``; "llama3" (Llama 3.1) leaves the pairs that turn often within the first
    context as they are, divides those that hardly turn by ``factor``, and fades from the one to the other between.
    """
    frequencies = config.rope_theta ** (-torch.arange(0, config.head_dim, 2, device=device).float() / config.head_dim)
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    if scaling["rope_type"] == "linear":
        return frequencies / scaling["factor"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = frequencies * scaling["original_max_position_embeddings"] / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * (kept + (1 - kept) / scaling["factor"])


def rope_tables(positions: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """positions (B, T), frequencies (head_dim / 2,) -> cos and sin, each (B, 1, T, head_dim), float32.

    The two members of a pair stand half a head apart; sin has the sign with which a member takes from the other.
    """
    angles = positions[:, None, :, None].float() * frequencies  # (B, 1, T, head_dim / 2)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn every pair of x (B, heads, T, head_dim) by its angle: (a cos - b sin, b cos + a sin)."""
    partners = x.roll(x.shape[-1] // 2, dims=-1)
    return torch.addcmul(x * cos, partners, sin).to(x.dtype)


class KVCache:
    """Keys and values of the tokens so far, one pair of (B, kv_heads, capacity, head_dim) a layer."""

    def __init__(self, config: DecoderConfig, batch: int, capacity: int, dtype: torch.dtype, device: torch.device):
        shape = (config.num_hidden_layers, 2, batch, config.num_key_value_heads, capacity, config.head_dim)
        self.store = torch.zeros(shape, dtype=dtype, device=device)
        self.length = 0  # tokens held; the decoder moves it on once all layers have written

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k and v (B, kv_heads, T, head_dim) after the past of ``layer``; return past and present together."""
        end = self.length + k.shape[2]
        keys, values = self.store[layer]
        keys[:, :, self.length : end] = k
        values[:, :, self.length : end] = v
        return keys[:, :, :end], values[:, :, :end]


def visible(attention_mask: Tensor, past: int = 0) -> Tensor:
    """attention_mask (B, S) -> (B, T, S): whether the i-th of the T = S - past new tokens sees token j of the row.

    It does where both are of the same conversation, j is no padding, and j does not come later.
    """
    new = attention_mask[:, past:]
    see = (new[:, :, None] == attention_mask[:, None, :]) & (attention_mask > 0)[:, None]
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
            return y.unflatten(-1, (-1, self.config.head_dim)).transpose(1, 2)  # (B, heads, T, head_dim)

        q, k = rotate(heads(self.q_proj(x)), *rope), rotate(heads(self.k_proj(x)), *rope)
        v = heads(self.v_proj(x))
        if cache is not None:
            k, v = cache.append(self.layer, k, v)
        single = x.shape[1] == 1  # it sees all that came before
        out = attend(q, k, v, mask) if single or mask is not None else attend(q, k, v, causal=True)
        return self.o_proj(out.transpose(1, 2).flatten(2))  # (B, T, hidden)


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

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
    """Embeddings in, hidden states out; ``lm_head`` turns hidden states into logits."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        if config.num_attention_heads % config.num_key_value_heads:
            heads, shared = config.num_attention_heads, config.num_key_value_heads
            raise ValueError(f"{heads} query heads cannot share {shared} key heads evenly")
        if config.head_dim % 2:
            raise ValueError(f"head_dim {config.head_dim} is odd: rotary positions turn pairs")
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, index) for index in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight

    def forward(
        self, embeddings: Tensor, attention_mask: Tensor | None = None, cache: KVCache | None = None
    ) -> Tensor:
        """Embeddings (B, T, hidden) of the new tokens -> final hidden states (B, T, hidden).

        attention_mask (B, S) covers the tokens in the cache and the new ones: 0 is padding, and k is conversation k of
        the row. Each conversation sees itself only, at positions from 0. Without a mask a row is one conversation.
        """
        past = cache.length if cache is not None else 0
        length = embeddings.shape[1]
        mask, positions = None, torch.arange(past, past + length, device=embeddings.device)[None]  # (1, T)
        if attention_mask is None and past and length > 1:
            attention_mask = embeddings.new_ones(1, past + length)
        if attention_mask is not None:
            see = visible(attention_mask, past)  # (B, T, S)
            positions = (see.sum(dim=-1) - 1).clamp(min=0)  # (B, T)
            mask = torch.zeros_like(see, dtype=torch.float32).masked_fill(~see, CLOSED)[:, None]  # (B, 1, T, S)
        rope = rope_tables(positions, rope_frequencies(self.config, embeddings.device))
        x = embeddings
        for layer in self.layers:
            x = layer(x, rope, mask, cache)  # (B, T, hidden)
        if cache is not None:
            cache.length += length
        return self.norm(x)

    @torch.no_grad()
    def grow(self, vocab_size: int) -> None:
        """Add rows to the embedding and the head: the mean of the old ones, so a new token is never the likeliest."""

        def grown(weight: Tensor) -> nn.Parameter:
            mean = weight.mean(dim=0, keepdim=True, dtype=torch.float32).to(weight.dtype)
            return nn.Parameter(torch.cat([weight, mean.expand(vocab_size - len(weight), -1)]))

        self.embed_tokens.weight = grown(self.embed_tokens.weight)
        tied = self.config.tie_word_embeddings
        self.lm_head.weight = self.embed_tokens.weight if tied else grown(self.lm_head.weight)
        self.config.vocab_size = self.embed_tokens.num_embeddings = self.lm_head.out_features = vocab_size
