"""softmax(Q K^T / sqrt(d)) V, the one operation that the vision tower, the text tower and the decoder share."""

import torch
import torch.nn.functional as F
from torch import Tensor

# What a mask adds where a token must not look. Not -inf: a row of padding may see nothing, and softmax of nothing but
# -inf is not a number. Within float16's range.
CLOSED = -30000.0


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """Scaled dot-product attention.

    q (B, heads, T, d), k and v (B, kv_heads, S, d): where there are fewer key heads, each serves as many query heads in
    a row (grouped-query attention). ``mask`` is added to the scores, 0 to see and CLOSED not to, and broadcasts to
    (B, heads, T, S). ``causal`` stands for causal_mask(T), where T is S and there is no other mask: a fused kernel
    leaves out what it hides. Returns (B, heads, T, d).

    A fused kernel never holds the scores of a whole row, and takes half the time in float32. In bfloat16 on a CPU the
    formula is written out: there the kernel takes two to four times as long with its way back, ten for one query.
    """
    if q.is_cuda or q.dtype == torch.float32:
        mask = None if mask is None else mask.to(q.dtype)
        shared = q.shape[1] != k.shape[1]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=shared)
    if causal:
        mask = causal_mask(q.shape[2], device=q.device)
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
