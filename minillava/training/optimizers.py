"""The optimizers, AdamW and Muon, and the learning-rate schedule."""

import math

import torch
from torch import Tensor, nn

from minillava.training.machine import has_fast_bfloat16
from minillava.training.recipes import Recipe


class Muon(torch.optim.Optimizer):
    """Momentum, made orthogonal (Jordan et al. 2024; scaled as in Liu et al. 2025, arXiv 2502.16982).

    Adam gives each number of a matrix the same weight, Muon each direction: a step moves a matrix equally far along all
    its singular vectors, strong or weak. torch.optim.Muon takes the same steps, but always multiplies in bfloat16: on a
    CPU without instructions for it, that takes ten times as long as float32.
    """

    def __init__(self, matrices: list[Tensor], lr: float, weight_decay: float, momentum: float = 0.9):
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            rate, momentum = group["lr"], group["momentum"]
            for matrix in group["params"]:
                state = self.state[matrix]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(matrix.grad)
                mean = state["momentum_buffer"].lerp_(matrix.grad, 1 - momentum)
                direction = orthogonalise(matrix.grad.lerp(mean, momentum))  # Nesterov: one step ahead of the mean
                matrix.mul_(1 - rate * group["weight_decay"])
                # 0.2 sqrt(longer side): the numbers of a step are then about as large as AdamW's.
                matrix.add_(direction, alpha=-rate * 0.2 * math.sqrt(max(matrix.shape)))


def orthogonalise(matrix: Tensor, steps: int = 5) -> Tensor:
    """U S V^T -> about U V^T, by Newton-Schulz: each step is a polynomial of the singular values, 0 to 1, that moves
    them towards 1. After five steps most are between 0.7 and 1.2, which is enough for a direction."""
    x = matrix.to(torch.bfloat16 if has_fast_bfloat16(matrix.device) else torch.float32)
    x = x / x.norm().clamp(min=1e-7)  # no singular value is above 1
    wide = x if x.shape[0] <= x.shape[1] else x.T
    for _ in range(steps):
        square = wide @ wide.T  # (n, n), with n the shorter side
        wide = 3.4445 * wide + (-4.7750 * square + 2.0315 * square @ square) @ wide
    return (wide if x.shape[0] <= x.shape[1] else wide.T).to(matrix.dtype)


def build_optimizers(trainable: dict[str, nn.Parameter], recipe: Recipe) -> list[torch.optim.Optimizer]:
    """AdamW for all; or Muon for the matrices inside blocks and AdamW for the rest (embeddings, norms, projections)."""
    matrices = [p for name, p in trainable.items() if recipe.optimizer == "muon" and p.ndim == 2 and "layers." in name]
    others = [p for p in trainable.values() if not any(p is matrix for matrix in matrices)]
    fused = others[0].is_cuda or None  # PyTorch's default on GPUs needs memory for a copy of all trainable weights
    rate, decay = recipe.learning_rate, recipe.weight_decay
    factor = recipe.other_rate if matrices else 1.0
    others = [{"params": others, "factor": factor}]  # set_rate() multiplies the group's learning rate by it
    optimizers = [torch.optim.AdamW(others, rate, (0.9, 0.98), weight_decay=decay, fused=fused)]
    if matrices:
        optimizers.append(Muon(matrices, rate, decay))
    return optimizers


def schedule(step: int, total: int, recipe: Recipe) -> float:
    """The factor on the learning rate at ``step`` of ``total``: linear warm-up, then half a cosine down to zero."""
    warmup = max(1, round(recipe.warmup * total))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def set_rate(optimizers: list[torch.optim.Optimizer], rate: float) -> None:
    """Give every group of parameters the learning rate ``rate``, times the group's own "factor" if it has one."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("factor", 1.0)
