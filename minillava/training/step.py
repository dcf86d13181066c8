"""One step of a training, in this order: the gradient of a batch, from its micro-batches; clipping; the update.

The scaler is for float16 (see loop.precision). In other dtypes it is disabled: it returns the loss as it is, and
``scaler.step(optimizer)`` is ``optimizer.step()``.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from minillava.training.distributed import hold_gradients

if TYPE_CHECKING:  # loop.py imports this file
    from minillava.training.loop import Run
    from minillava.training.tasks import Task


def accumulate(
    task: "Task", micro: list[dict[str, Tensor]], shares: list[list[int]], run: "Run", autocast, scaler: GradScaler
) -> float:
    """Forward and backward passes of one batch, in this rank's micro-batches; returns the loss of the whole batch.

    Each micro-batch's mean loss is weighted by its number of terms (``task.weight``), so the gradient is that of the
    whole batch at once. The gradient of the step before is dropped. ``shares`` has the rows of each micro-batch: where
    a rank has no rows (its share is empty), its dummy row has weight 0.
    """
    team = run.team
    for parameter in task.model.parameters():
        parameter.grad = None
    weights = [task.weight(batch) if rows else 0 for batch, rows in zip(micro, shares)]
    total, loss = team.total(sum(weights)), torch.zeros((), device=run.device)
    for number, (batch, weight) in enumerate(zip(micro, weights), 1):
        batch = {name: value.to(run.device, non_blocking=True) for name, value in batch.items()}
        with autocast, hold_gradients(task.loss, number < len(micro)):
            part = task.loss(batch) * (weight / total)
        scaler.scale(part * team.size).backward()  # DDP and FSDP2 average over ranks; this makes it a sum
        loss += part.detach()  # not item(), which would wait for the GPU at every micro-batch
    return team.total(loss.item())


def clip(
    optimizers: list[Optimizer], parameters: Iterable[nn.Parameter], scaler: GradScaler, longest: float = 1.0
) -> float:
    """Shorten the gradient to ``longest``, if it is longer. Returns its length before. Every rank calls this.

    The gradient is one vector of the gradients of all parameters, so all are multiplied by the same factor. What
    ``scaler.scale`` has multiplied is divided again first.
    """
    for optimizer in optimizers:
        scaler.unscale_(optimizer)
    length = nn.utils.clip_grad_norm_(parameters, longest)
    return (length.full_tensor() if isinstance(length, DTensor) else length).item()  # it may be sharded over the ranks


def update(optimizers: list[Optimizer], scaler: GradScaler) -> None:
    """One step of each optimizer. The scaler leaves out a step whose gradient was too large for float16."""
    for optimizer in optimizers:
        scaler.step(optimizer)
    scaler.update()
