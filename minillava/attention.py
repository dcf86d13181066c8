"""softmax(Q K^T / sqrt(d)) V, the one operation that the vision tower, the text tower and the decoder share."""

import torch
import torch.nn.functional as F
from torch import Tensor

# What a mask adds where a token must not look. Not -inf: a row of padding may see nothing, and softmax of nothing but
# -inf is not a number. Within float16's range.
CLOSED = -30000.0


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention.

    q (B, heads, T, d), k and v (B, kv_heads, S, d): where there are fewer key heads, each serves as many query heads in
    a row (grouped-query attention). ``mask`` is added to the scores, 0 to see and CLOSED not to, and broadcasts to
    (B, heads, T, S). Returns (B, heads, T, d).

    On a CPU it is written out: the fused kernel's backward pass takes six times as long in bfloat16 at these sizes.
    """
    if q.is_cuda:
        mask = None if mask is None else mask.to(q.dtype)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=q.shape[1] != k.shape[1])
    (batch, heads, length, size), (shared, seen) = q.shape, k.shape[1:3]
    together = heads // shared * length  # heads that share keys, as if they were more positions
    rows = (q * size**-0.5).reshape(batch, shared, together, size)
    scores = (rows @ k.transpose(-1, -2)).view(batch, heads, length, seen)
    if mask is not None:
        scores = scores + mask.to(scores.dtype)
    weights = scores.softmax(dim=-1).to(v.dtype)
    return (weights.view(batch, shared, together, seen) @ v).view(q.shape)


def causal_mask(length: int, past: int = 0, device: torch.device | None = None) -> Tensor:
    """(length, past + length): position i, which stands at past + i, sees 0 .. past + i."""
    return torch.full((length, past + length), CLOSED, device=device).triu(diagonal=past + 1)
