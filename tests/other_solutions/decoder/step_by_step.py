"""The norm as transformers writes it, rotation by halves, a mask filled in a loop, heads repeated before attention."""

import math

import torch
from torch import Tensor

from minillava.config import DecoderConfig
from minillava.model.attention import CLOSED, attend


class RMSNorm:
    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.float32)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


def rope_frequencies(config: DecoderConfig, device: torch.device | None = None) -> Tensor:
    pairs = torch.arange(config.head_dim // 2, device=device, dtype=torch.float32)
    frequencies = torch.exp(-2 * pairs / config.head_dim * math.log(config.rope_theta))
    scaling = config.rope_scaling
    if not scaling:
        return frequencies
    if scaling["rope_type"] == "linear":
        return frequencies / scaling["factor"]
    turns = frequencies * scaling["original_max_position_embeddings"] / (2 * math.pi)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    share = (turns - low) / (high - low)
    between = share * frequencies + (1 - share) * frequencies / scaling["factor"]
    slow = torch.where(turns <= low, frequencies / scaling["factor"], between)
    return torch.where(turns >= high, frequencies, slow)


def rope_tables(positions: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    angles = torch.einsum("bt,i->bti", positions.float(), frequencies).unsqueeze(1)
    sign = torch.cat([-torch.ones_like(frequencies), torch.ones_like(frequencies)])
    return torch.cos(angles).repeat(1, 1, 1, 2), torch.sin(angles).repeat(1, 1, 1, 2) * sign


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    return (x * cos + torch.cat([b, a], dim=-1) * sin).type_as(x)


class KVCache:
    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        new = k.shape[2]
        self.store[layer, 0, :, :, self.length : self.length + new] = k
        self.store[layer, 1, :, :, self.length : self.length + new] = v
        return tuple(self.store[layer, :, :, :, : self.length + new].unbind(0))


class MLP:
    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate_proj(x)
        return self.down_proj(gate * torch.sigmoid(gate) * self.up_proj(x))


def visible(attention_mask: Tensor, past: int = 0) -> Tensor:
    rows, seen = attention_mask.shape
    see = torch.zeros(rows, seen - past, seen, dtype=torch.bool, device=attention_mask.device)
    for new in range(seen - past):
        own = attention_mask[:, past + new, None]
        see[:, new, : past + new + 1] = (attention_mask[:, : past + new + 1] == own) & (own != 0)
    return see


class Attention:
    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None, cache: KVCache | None) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = (
            layer(x).view(batch, length, -1, self.config.head_dim).permute(0, 2, 1, 3)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate(q, *rope), rotate(k, *rope)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)
        group = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        if mask is None and length > 1:
            mask = torch.full((length, length), CLOSED, device=x.device).triu(1)
        return self.o_proj(attend(q, k, v, mask).permute(0, 2, 1, 3).reshape(batch, length, -1))


class Decoder:
    def forward(self, embeddings: Tensor, attention_mask: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """Always with a mask."""
        past = 0 if cache is None else cache.length
        rows, length = embeddings.shape[:2]
        if attention_mask is None:
            attention_mask = torch.ones(rows, past + length, dtype=torch.long, device=embeddings.device)
        see = visible(attention_mask, past)
        positions = (see.sum(dim=-1) - 1).clamp(min=0)
        mask = torch.where(see, 0.0, CLOSED).unsqueeze(1)
        rope = rope_tables(positions, rope_frequencies(self.config, embeddings.device))
        x = embeddings
        for layer in self.layers:
            x = layer.forward(x, rope, mask, cache)
        if cache is not None:
            cache.length = past + length
        return self.norm(x)
