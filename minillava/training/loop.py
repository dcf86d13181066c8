"""The training loop, the same for all trainings.

A ``Task`` (tasks.py) holds the model, what learns, the data, the loss and how to save the result. A ``Recipe``
(recipes.py) sets the length of the training, the learning rate and the memory. A ``Run`` sets the output folder and the
device. The loop does the rest: order of the rows, optimizers, schedule, accumulation, metrics and checkpoints.
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
from minillava.training.distributed import SINGLE, Team, hold_gradients
from minillava.training.machine import has_fast_bfloat16, keep_memory
from minillava.training.optimizers import build_optimizers, schedule
from minillava.training.order import Order
from minillava.training.plot import draw_loss
from minillava.training.recipes import Recipe
from minillava.training.resume import restore, save
from minillava.training.tasks import Task


@dataclass(frozen=True)
class Run:
    """Where a training is written and on what it runs.

    ``out`` is the checkpoint folder; ``out``.metrics.jsonl and ``out``.loss.png are written next to it. ``bfloat16``
    computes the matrix products in bfloat16; None does so if the device is faster that way or the recipe is compact.
    ``resume`` continues from the last checkpoint, and ends with the same weights as a run without a break. ``team`` is
    the ranks that share the work; up to rounding, the result does not depend on their number.
    """

    out: Path
    seed: int = 0
    resume: bool = False
    max_steps: int | None = None
    device: str = "cpu"
    bfloat16: bool | None = None
    team: Team = SINGLE


def train(task: Task, recipe: Recipe, run: Run) -> None:
    """Run a task to its end. Every rank calls this.

    Raises UserError if ``run.out`` exists and ``run.resume`` is not set, if there is no checkpoint of this run to
    resume from, and if the loss is not finite.
    """
    keep_memory()
    out, team, device = run.out, run.team, run.device
    team.on_first(lambda: recover_folder(out))
    bfloat16 = recipe.compact or has_fast_bfloat16(device) if run.bfloat16 is None else run.bfloat16
    # Each weight is in one matrix product per forward pass, so caching its bfloat16 copy would only take memory.
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
        raise UserError(f"{out} already exists: continue with --resume, or choose another folder with --out")
    log = out.with_name(f"{out.name}.metrics.jsonl") if team.is_first else Path(os.devnull)
    log.parent.mkdir(parents=True, exist_ok=True)

    order.steps, start = range(done, total), time.perf_counter()
    batches = iter(DataLoader(task.dataset, batch_sampler=order, collate_fn=task.collate))
    with (
        tqdm(total=total, initial=done, desc=task.name, unit="step", disable=None if team.is_first else True) as bar,
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
    if metrics and team.is_first:
        draw_loss(out.with_name(f"{out.name}.loss.png"), f"{task.name}: loss (nats)", [m["loss"] for m in metrics])
        if "padding" in metrics[0]:
            print(f"{task.name}: {fmean(m['padding'] for m in metrics):.0%} of the computed positions were padding")
    task.model.eval()


def accumulate(task: Task, micro: list[dict[str, Tensor]], shares: list[list[int]], run: Run, autocast) -> float:
    """Forward and backward passes of one batch, in this rank's micro-batches; returns the loss of the whole batch.

    Each micro-batch's mean loss is weighted by its number of terms (``task.weight``), so the gradient is that of the
    whole batch at once. Where a rank has no rows (its share is empty), its dummy row has weight 0.
    """
    team = run.team
    weights = [task.weight(batch) if rows else 0 for batch, rows in zip(micro, shares)]
    total, loss = team.total(sum(weights)), 0.0
    for number, (batch, weight) in enumerate(zip(micro, weights), 1):
        with autocast, hold_gradients(task.loss, number < len(micro)):
            part = task.loss({name: value.to(run.device) for name, value in batch.items()}) * (weight / total)
        (part * team.size).backward()  # DDP and FSDP2 average over ranks; this makes it a sum
        loss += part.item()
    return team.total(loss)


def padding(micro: list[dict[str, Tensor]], shares: list[list[int]], team: Team) -> dict[str, float]:
    """{"padding": share of padding (dummy rows too) in the batch's positions}; {} for batches without "lengths"."""
    if "lengths" not in micro[0]:
        return {}
    tokens = team.total(sum(batch["lengths"].sum().item() for batch, rows in zip(micro, shares) if rows))
    return {"padding": 1 - tokens / team.total(sum(batch["input_ids"].numel() for batch in micro))}


def prepare(model: nn.Module, compact: bool, checkpointing: bool) -> None:
    """Set the dtype of the model's weights and, with ``checkpointing``, activation checkpointing in its decoder.

    Trainable weights are float32: an optimizer step is often too small to change a bfloat16 weight. Frozen weights are
    bfloat16 if ``compact``, and otherwise keep their dtype.
    """
    for parameter in model.parameters():
        if parameter.requires_grad or compact:
            parameter.data = parameter.data.to(torch.float32 if parameter.requires_grad else torch.bfloat16)
    for part in model.modules():
        if checkpointing and isinstance(part, Block):  # save only a block's input; recompute the rest going backward
            part.forward = partial(checkpoint, part.forward, use_reentrant=False, preserve_rng_state=False)
