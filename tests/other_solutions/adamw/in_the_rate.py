"""The corrections are in the rate, as in the paper's last line of section 2; gradients are set to zero, not to None."""

from collections.abc import Iterable

import torch
from torch import Tensor


class AdamW:
    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ):
        self.parameters, self.steps = [*parameters], 0
        self.lr, self.betas, self.eps, self.weight_decay = lr, betas, eps, weight_decay
        self.m1, self.m2 = ([torch.zeros(p.shape) for p in self.parameters] for _ in range(2))

    def zero_grad(self) -> None:
        for p in self.parameters:
            if p.grad is not None:
                p.grad = torch.zeros_like(p.grad)

    @torch.no_grad()
    def step(self) -> None:
        self.steps += 1
        one, two = (1 - beta**self.steps for beta in self.betas)
        for number, p in enumerate(self.parameters):
            if p.grad is None:
                continue
            self.m1[number] = self.betas[0] * self.m1[number] + (1 - self.betas[0]) * p.grad
            self.m2[number] = self.betas[1] * self.m2[number] + (1 - self.betas[1]) * p.grad.square()
            down = self.m2[number].sqrt() + self.eps * two**0.5
            p.copy_(p * (1 - self.lr * self.weight_decay) - self.lr * two**0.5 / one * self.m1[number] / down)
