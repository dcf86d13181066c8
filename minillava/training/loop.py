"""ONE loop for all trainings.

A ``Task`` (tasks.py) says what learns, from which data, by which loss and how it is saved; a ``Recipe`` (recipes.py)
for how long, how fast and in how much memory; a ``Run`` where to, and on which machine. The rest (order, optimiser,
schedule, accumulation, metrics, checkpoints) is the same for all, and here.
"""

import json
import math
import os
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader
from tqdm import tqdm

from minillava.errors import UserError
from minillava.model.decoder import Block
from minillava.saving import recover_folder
from minillava.training.distributed import ALONE, Team, hold_gradients
from minillava.training.machine import has_fast_bfloat16, keep_memory
from minillava.training.optimizers import build_optimizers, schedule
from minillava.training.order import Order
from minillava.training.plot import draw_loss
from minillava.training.recipes import Recipe
from minillava.training.resume import restore, save
from minillava.training.tasks import Task


@dataclass(frozen=True)
class Run:
    """Where a training goes and on what it runs.

    ``out`` is the checkpoint folder that it leaves, beside ``out``.metrics.jsonl and ``out``.loss.png. ``bfloat16``
    runs the matrix products in bfloat16 over float32 weights; None means where the machine does it faster, or the
    recipe is compact. With ``resume`` it goes on from its last checkpoint, and ends with the weights it would have had
    without a break. ``team`` are the processes that share the work; the results do not depend on how many.
    """

    out: Path
    seed: int = 0
    resume: bool = False
    max_steps: int | None = None
    device: str = "cpu"
    bfloat16: bool | None = None
    team: Team = ALONE


def train(task: Task, recipe: Recipe, run: Run) -> None:
    """Run a task to its end. Every process of a team calls this.

    Raises UserError where ``run.out`` is there already and ``run.resume`` is not asked for, or is another run's.
    """
    keep_memory()
    out, team, device = run.out, run.team, run.device
    team.first_alone(lambda: recover_folder(out))
    bfloat16 = recipe.compact or has_fast_bfloat16(device) if run.bfloat16 is None else run.bfloat16
    # Each weight is used once, so its bfloat16 copy need not be kept for a second time.
    autocast = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bfloat16, cache_enabled=False)
    prepare(task.model, recipe.compact and bfloat16, recipe.checkpointing)
    task = replace(task, loss=team.spread(task.model, task.loss, device))
    trainable = {name: p for name, p in task.model.train().named_parameters() if p.requires_grad}
    optimizers = build_optimizers(trainable, recipe)
    order = Order(len(task.dataset), task.size, recipe, run.seed, team)
    total = max(1, round(recipe.epochs * order.per_epoch))
    total = min(total, run.max_steps or total)
    done, metrics = 0, []
    if run.resume:
        done, metrics = restore(task, optimizers, run, total)
    elif out.exists():
        raise UserError(f"{out} is there already: --resume goes on with it, --out chooses another folder")
    log = out.with_name(f"{out.name}.metrics.jsonl") if team.leads else Path(os.devnull)
    log.parent.mkdir(parents=True, exist_ok=True)

    order.steps, start = range(done, total), time.perf_counter()
    batches = iter(DataLoader(task.dataset, batch_sampler=order, collate_fn=task.collate))
    with (
        tqdm(total=total, initial=done, desc=task.name, unit="step", disable=None if team.leads else True) as bar,
        open(log, "w", buffering=1, encoding="utf-8") as file,
    ):
        file.writelines(json.dumps(row) + "\n" for row in metrics)
        for step in order.steps:
            rate = recipe.learning_rate * schedule(step, total, recipe)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = rate
                optimizer.zero_grad(set_to_none=True)
            shares = order.micro_batches(step)
            micro = [next(batches) for _ in shares]
            loss = accumulate(task, micro, shares, run, autocast)
            if not math.isfinite(loss):
                raise UserError(f"{task.name}: the loss is {loss} at step {step}; a smaller --learning-rate may help")
            nn.utils.clip_grad_norm_(trainable.values(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
            task.after_step()
            metrics.append({"step": step + 1, "loss": loss, "learning_rate": rate, **padding(micro, shares, team)})
            file.write(json.dumps({**metrics[-1], "seconds": round(time.perf_counter() - start, 2)}) + "\n")
            bar.update()
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            if (step + 1) % recipe.save_every == 0 or step + 1 == total:
                save(task, optimizers, run, step + 1, total)
    if metrics and team.leads:
        draw_loss(out.with_name(f"{out.name}.loss.png"), f"{task.name}: loss (nats)", [m["loss"] for m in metrics])
        if "padding" in metrics[0]:
            print(f"{task.name}: {fmean(m['padding'] for m in metrics):.0%} of what was computed was padding")
    task.model.eval()


def accumulate(task: Task, micro: list[dict[str, Tensor]], shares: list[list[int]], run: Run, autocast) -> float:
    """Backward over one batch in micro-batches, shared by the team; returns the batch's loss.

    Each is weighted by what its mean is over, so the gradient is that of the whole batch at once. One whose share of
    rows is empty weighs nothing.
    """
    team = run.team
    weights = [task.weight(batch) if rows else 0 for batch, rows in zip(micro, shares)]
    total, loss = team.total(sum(weights)), 0.0
    for number, (batch, weight) in enumerate(zip(micro, weights), 1):
        with autocast, hold_gradients(task.loss, number < len(micro)):
            part = task.loss({name: value.to(run.device) for name, value in batch.items()}) * (weight / total)
        (part * team.size).backward()  # the team takes the mean of its gradients; what is wanted is their sum
        loss += part.item()
    return team.total(loss)


def padding(micro: list[dict[str, Tensor]], shares: list[list[int]], team: Team) -> dict[str, float]:
    """{"padding": share of the team's positions that hold no token}; batches without lengths have none."""
    if "lengths" not in micro[0]:
        return {}
    tokens = team.total(sum(batch["lengths"].sum().item() for batch, rows in zip(micro, shares) if rows))
    return {"padding": 1 - tokens / team.total(sum(batch["input_ids"].numel() for batch in micro))}


def prepare(model: nn.Module, compact: bool, checkpointing: bool) -> None:
    """Set how much memory the model takes: the dtype of its weights, and what its decoder keeps for the way back.

    What learns is float32: a step is often smaller than a bfloat16's last digit. What is frozen is bfloat16 if
    ``compact``, else as it is.
    """
    for parameter in model.parameters():
        if parameter.requires_grad or compact:
            parameter.data = parameter.data.to(torch.float32 if parameter.requires_grad else torch.bfloat16)
    for part in model.modules():
        if checkpointing and isinstance(part, Block):  # keep a block's input only; compute the rest again going back
            part.forward = partial(checkpoint, part.forward, use_reentrant=False, preserve_rng_state=False)
