"""The optimizers, AdamW and Muon, and the learning-rate schedule."""

import math

import torch
from torch import nn

from minillava.training.recipes import Recipe


def build_optimizers(trainable: dict[str, nn.Parameter], recipe: Recipe) -> list[torch.optim.Optimizer]:
    """AdamW for all; or Muon for the matrices inside blocks and AdamW for the rest (embeddings, norms, projections)."""
    matrices = [p for name, p in trainable.items() if recipe.optimizer == "muon" and p.ndim == 2 and "layers." in name]
    others = [p for p in trainable.values() if not any(p is matrix for matrix in matrices)]
    fused = others[0].is_cuda or None  # PyTorch's default on GPUs needs memory for a copy of all trainable weights
    rate, decay = recipe.learning_rate, recipe.weight_decay
    optimizers = [torch.optim.AdamW(others, rate, (0.9, 0.98), weight_decay=decay, fused=fused)]
    if matrices:
        optimizers.append(torch.optim.Muon(matrices, rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"))
    return optimizers


def schedule(step: int, total: int, recipe: Recipe) -> float:
    """The factor on the learning rate at ``step`` of ``total``: linear warm-up, then half a cosine down to zero."""
    warmup = max(1, round(recipe.warmup * total))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
