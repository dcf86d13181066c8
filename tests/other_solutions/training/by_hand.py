"""Clipping by hand; the weights are divided by their sum before the passes."""

import torch

from minillava.training.distributed import hold_gradients


def accumulate(task, micro, shares, run, autocast, scaler) -> float:
    task.model.zero_grad(set_to_none=True)
    counts = [len(rows) and task.weight(batch) for batch, rows in zip(micro, shares)]
    everything = run.team.total(sum(counts))
    losses = []
    for place, batch in enumerate(micro):
        moved = {key: tensor.to(run.device) for key, tensor in batch.items()}
        with hold_gradients(task.loss, place + 1 < len(micro)), autocast:
            mean = task.loss(moved)
        part = mean * counts[place] / everything
        scaler.scale(run.team.size * part).backward()
        losses.append(part.detach())
    return run.team.total(torch.stack(losses).sum().item())


def clip(optimizers, parameters, scaler, longest: float = 1.0) -> float:
    for optimizer in optimizers:
        scaler.unscale_(optimizer)
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    length = sum(float(grad.square().sum()) for grad in grads) ** 0.5
    if length > longest:
        for grad in grads:
            grad *= longest / length
    return length


def update(optimizers, scaler) -> None:
    [scaler.step(optimizer) for optimizer in optimizers]
    scaler.update()
