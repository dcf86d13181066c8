"""AdamW by hand: Adam (Kingma and Ba 2015, arXiv 1412.6980) with decoupled weight decay (Loshchilov and Hutter 2019,
arXiv 1711.05101). ``torch.optim.AdamW`` takes the same steps."""

from collections.abc import Iterable

import torch
from torch import Tensor


class AdamW:
    """Each number w of a parameter, with the gradient g and the learning rate ``lr``, in step t = 1, 2, ...:

        w  = w - lr * weight_decay * w
        m1 = beta1 * m1 + (1 - beta1) * g            the first moment: a running mean of g
        m2 = beta2 * m2 + (1 - beta2) * g^2          the second moment: a running mean of g^2
        w  = w - lr * m1' / (sqrt(m2') + eps)

    The moments start at 0, so they are too small at first. The bias correction makes up for that: m1' is
    m1 / (1 - beta1^t), and m2' is m2 / (1 - beta2^t). A number moves by about lr, whether its gradients are large or
    small. The weight decay is not a part of g, where m2 would divide it too: it is decoupled.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ):
        """``lr`` may be changed between two steps, as a schedule does."""
        self.parameters = list(parameters)
        self.lr, self.betas, self.eps, self.weight_decay = lr, betas, eps, weight_decay
        self.steps = 0  # taken so far
        self.m1 = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.m2 = [torch.zeros_like(parameter) for parameter in self.parameters]

    def zero_grad(self) -> None:
        """Drop the gradients: backward() adds to those that are there."""
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Change each parameter in place. One without a gradient stays as it is."""
        self.steps += 1
        beta1, beta2 = self.betas
        for parameter, m1, m2 in zip(self.parameters, self.m1, self.m2):
            g = parameter.grad
            if g is None:
                continue
            parameter -= self.lr * self.weight_decay * parameter
            m1 += (1 - beta1) * (g - m1)  # = beta1 * m1 + (1 - beta1) * g
            m2 += (1 - beta2) * (g * g - m2)
            mean = m1 / (1 - beta1**self.steps)
            square = m2 / (1 - beta2**self.steps)
            parameter -= self.lr * mean / (square.sqrt() + self.eps)
