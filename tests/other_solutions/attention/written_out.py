"""The formula for every dtype, with key heads repeated."""

import torch
from torch import Tensor

from minillava.model.attention import CLOSED


def causal_mask(length: int, past: int = 0, device: torch.device | None = None) -> Tensor:
    mask = torch.zeros(length, past + length, device=device)
    for row in range(length):
        mask[row, past + row + 1 :] = CLOSED
    return mask


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    scores = torch.einsum("bhtd,bhsd->bhts", q, k) / q.shape[-1] ** 0.5
    if causal:
        mask = causal_mask(q.shape[2], device=q.device)
    if mask is not None:
        scores = scores.float() + mask
    return scores.softmax(dim=-1).to(v.dtype) @ v
