"""Attention, softmax(q k^T / sqrt(d)) v: one function for the vision tower, the text tower and the decoder."""

import torch
import torch.nn.functional as F
from torch import Tensor

# Added to the score of a token that must not be seen. It is finite because a padding token may see no token at all,
# and a softmax over nothing but -inf gives NaN. float16 can represent it: its lowest value is -65504.
CLOSED = -30000.0


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """q (B, heads, T, d), k and v (B, kv_heads, S, d) -> (B, heads, T, d).

    With fewer key heads than query heads, each key head serves several consecutive query heads (grouped-query
    attention, Ainslie et al. 2023). ``mask`` is added to the scores and broadcasts to (B, heads, T, S): 0 where a token
    is seen, CLOSED where it is not. ``causal=True`` means ``mask=causal_mask(T)``, for T = S; a fused kernel then skips
    the scores that the mask would hide.
    """
    # PyTorch's fused kernel never stores all the scores, and in float32 takes half the time of the formula below. With
    # bfloat16 on a CPU it is slower than the formula: 2 to 4 times with its backward pass, 10 times for a single query.
    # On a GPU no fused kernel takes a single query, groups and a mask together.
    grouped = q.shape[1] != k.shape[1]
    if q.dtype == torch.float32 or (q.is_cuda and not (grouped and mask is not None and q.shape[2] == 1)):
        mask = None if mask is None else mask.to(q.dtype)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped)

    # The formula, written out.
    if causal:
        mask = causal_mask(q.shape[2], device=q.device)
    (batch, heads, length, size), (kv_heads, seen) = q.shape, k.shape[1:3]
    # Query heads that share a key head are laid end to end, as if they were one head with more positions.
    rows = heads // kv_heads * length
    q_rows = (q * size**-0.5).reshape(batch, kv_heads, rows, size)  # (B, kv_heads, rows, d)
    scores = (q_rows @ k.transpose(-1, -2)).view(batch, heads, length, seen)  # (B, heads, T, S)
    if mask is not None:
        scores = scores + mask.to(scores.dtype)
    weights = scores.softmax(dim=-1).to(v.dtype)  # (B, heads, T, S)
    return (weights.view(batch, kv_heads, rows, seen) @ v).view(q.shape)  # (B, heads, T, d)


def causal_mask(length: int, past: int = 0, device: torch.device | None = None) -> Tensor:
    """(T, S) with T = length and S = past + length. Entry (i, j) is 0 if j <= past + i, else CLOSED."""
    return torch.full((length, past + length), CLOSED, device=device).triu(diagonal=past + 1)
