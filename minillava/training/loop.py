"""The training loop, the same for all trainings.

A ``Task`` (tasks.py) holds the model, what learns, the data, the loss and how to save the result. A ``Recipe``
(recipes.py) sets the length of the training, the learning rate and the memory. A ``Run`` sets the output folder and the
device. The loop does the rest: order of the rows, optimizers, schedule, steps (step.py), metrics and checkpoints.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset

from minillava.errors import UserError
from minillava.inputs.rejected import Rejected
from minillava.model.decoder import Block
from minillava.saving import recover_folder
from minillava.training.distributed import SINGLE, Team
from minillava.training.heldout import Heldout
from minillava.training.machine import compile_blocks, compiling_pays, fastest_dtype, keep_memory
from minillava.training.optimizers import build_optimizers, schedule, set_rate
from minillava.training.order import Order
from minillava.training.progress import Progress
from minillava.training.recipes import Recipe
from minillava.training.report import Report
from minillava.training.resume import restore, save, settings_of
from minillava.training.signals import held_signals, ignore_signals, stop
from minillava.training.step import accumulate, clip, update
from minillava.training.tasks import Task

FEW = 50  # steps, fewer than which are hardly meant
SMALLER = "a smaller --learning-rate may help"


@dataclass(frozen=True)
class Run:
    """Where a training is written and on what it runs.

    ``out`` is the checkpoint folder; report.py says what is written next to it. ``dtype`` is that of the matrix
    products; None: the fastest, or bfloat16 if the recipe is compact. ``compile``: whether to compile the blocks; None:
    if that saves time. ``workers`` are processes that prepare batches; the result does not depend on their number.
    ``resume`` continues from the last checkpoint, and ends with the same weights as a run without a break. ``team`` is
    the ranks that share the work; up to rounding, the result does not depend on their number.
    """

    out: Path
    seed: int = 0
    resume: bool = False
    max_steps: int | None = None
    device: str = "cpu"
    dtype: torch.dtype | None = None
    compile: bool | None = None
    workers: int = 0
    team: Team = SINGLE


def train(task: Task, recipe: Recipe, run: Run) -> None:
    """Run a task to its end. Every rank calls this.

    Whatever ends it before saves it first, as far as it has come: Ctrl-C, SIGTERM, SIGHUP, and errors (of several
    ranks, those that all of them have). Raises UserError if ``run.out`` exists and ``run.resume`` is not set, if there
    is no checkpoint of this run to resume from, if a row or a picture cannot be read, if a loss or a gradient is not
    finite, if a checkpoint cannot be saved, and for a sharded training in float16.
    """
    keep_memory()
    out, team, device = run.out, run.team, run.device
    team.on_first(lambda: recover_folder(out))
    dtype, autocast, scaler = precision(recipe, run)
    order = Order(len(task.dataset), task.size, recipe, run.seed, team)
    total = number_of_steps(order, recipe, run)
    settings = settings_of(task, recipe, run, total)
    prepare(task.model, dtype if recipe.compact else None, recipe.checkpointing)
    compiled = compiling_pays(device, total) if run.compile is None else run.compile
    compile_blocks(task.model, compiled)
    task = replace(task, loss=team.spread(task.model, task.loss, device))
    trainable = {name: p for name, p in task.model.train().named_parameters() if p.requires_grad}
    optimizers = build_optimizers(trainable, recipe)
    done, metrics = 0, []
    if run.resume:
        done, metrics = restore(task, optimizers, scaler, run, settings)
    elif out.exists():
        raise UserError(f"{out} already exists: continue with --resume, or choose another folder with --out")
    team.on_first(lambda: out.parent.mkdir(parents=True, exist_ok=True))
    rejected = [list_rejected(task.dataset, out.with_name(f"{out.name}.rejected.jsonl"), run)]
    if task.heldout:
        rejected.append(list_rejected(task.heldout, out.with_name(f"{out.name}.heldout.rejected.jsonl"), run))
    rows = -(-recipe.batch_size // recipe.accumulation)
    heldout = Heldout(task, run, rows, autocast, done, total, recipe.eval_every) if task.heldout else None
    report = Report(task, recipe, run, total, settings, dtype, metrics, heldout, [one for one, _ in rejected])

    if compiled:
        with report:
            compile_now(task, order, run, autocast, scaler)
    order.steps, start = range(done, total), time.perf_counter()
    loader = DataLoader(
        task.dataset,
        batch_sampler=order,
        collate_fn=task.collate,
        num_workers=run.workers,
        worker_init_fn=ignore_signals,
        pin_memory=torch.device(device).type == "cuda",
    )
    # Steps in the checkpoint; its time; whether weights are changing or being saved: an error then must not save them.
    saved, saved_at, busy = done, start, False

    def keep() -> bool:
        """Save, unless a weight is not finite: the last checkpoint then stays. Returns whether it is saved."""
        nonlocal saved, saved_at, busy
        if team.total(sum(not is_finite(p) for p in trainable.values())):
            return False
        busy = True
        save(task, optimizers, scaler, run, done, settings)
        saved, saved_at, busy = done, time.perf_counter(), False
        report.draw()
        return True

    with (
        Progress(task.name, done, total, team.is_first) as progress,
        held_signals() as signals,
        report,
    ):
        batches = iter(loader)
        try:
            if heldout and not done and heldout.is_due(0):
                heldout.measure(0, progress.say)
            for step in order.steps:
                rate = recipe.learning_rate * schedule(step, total, recipe)
                set_rate(optimizers, rate)
                shares = order.micro_batches(step)
                asked = time.perf_counter()
                micro = team.together(lambda shares=shares: [next_batch(batches) for _ in shares])
                waited = time.perf_counter() - asked
                loss = accumulate(task, micro, shares, run, autocast, scaler)
                gradient = clip(optimizers, trainable.values(), scaler)
                if not math.isfinite(loss) or not (math.isfinite(gradient) or scaler.is_enabled()):
                    found = f"the loss is {loss} at step {step}, the length of its gradient {gradient}"
                    raise UserError(f"{task.name}: {found}; {batch_in_words(task.dataset, order, step)}; {SMALLER}")
                busy = True
                update(optimizers, scaler)
                task.after_step()
                done, busy = step + 1, False
                line = {"step": done, "loss": loss, "gradient_norm": gradient, "learning_rate": rate}
                line |= padding(micro, shares, team)
                line |= {"seconds": round(time.perf_counter() - start, 2), "waited": round(waited, 4)}  # for data
                report.add(line)
                progress.update(done, loss)
                if heldout and heldout.is_due(done):
                    heldout.measure(done, progress.say)
                minutes = (time.perf_counter() - saved_at) / 60
                due = team.total(team.is_first and minutes >= recipe.save_minutes)
                stopped = team.total(len(signals))
                if (due or stopped or done % recipe.save_every == 0 or done == total) and not keep():
                    found = f"weights are not finite after step {step}"
                    raise UserError(f"{task.name}: {found}; {batch_in_words(task.dataset, order, step)}; {SMALLER}")
                if stopped:
                    stop(signals)
        except BaseException as error:
            # A save takes all ranks, and of errors only a UserError is raised on all of them. KeyboardInterrupt and
            # SystemExit come from stop(), after a save.
            alike = isinstance(error, UserError) or (team.size == 1 and isinstance(error, Exception))
            try:
                if done > saved and alike and not busy:
                    keep()
            finally:
                if saved:
                    progress.say(f"{out} is saved as it was after {saved:,} of {total:,} steps; --resume continues")
            raise
        finally:
            end_workers(batches)
    if signals:  # that came during the last save
        stop(signals)
    if team.is_first and (share := report.padding()) is not None:
        print(f"{task.name}: {share:.0%} of the computed positions were padding")
    for one, known in rejected:
        say(run, one.report(since=known))
    task.model.eval()


def end_workers(batches: Iterator) -> None:
    """End the worker processes, which ignore the signal by which Python ends them. An error keeps the iterator alive,
    with the frames that it went through, so PyTorch does not do it by itself."""
    if hasattr(batches, "_shutdown_workers"):  # else this process prepares them itself
        batches._shutdown_workers()


def is_finite(parameter: Tensor) -> bool:
    """Whether all numbers are finite, of a sharded parameter those of this rank."""
    local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
    return bool(local.isfinite().all())


def batch_in_words(dataset: Dataset, order: Order, step: int) -> str:
    """The rows of a step's batch, eight of them at most."""
    rows = sorted(order.batch(step))
    return f"its batch: {', '.join(map(dataset.where, rows[:8]))}{' and others' if len(rows) > 8 else ''}"


def list_rejected(dataset: Dataset, file: Path, run: Run) -> tuple[Rejected, int]:
    """List in ``file`` which rows are cut or left out, and print how many. From here on, every rank and every worker
    process adds to the file. Returns the rows, and the number of those that are listed now."""
    rejected = dataset.rejected
    run.team.on_first(lambda: rejected.write(file, keep=run.resume))
    rejected.file = file
    say(run, rejected.report())
    return rejected, len(rejected.lines())


def say(run: Run, lines: list[str]) -> None:
    for line in lines:
        print(f"{run.out.name}: {line}", flush=True)


def number_of_steps(order: Order, recipe: Recipe, run: Run) -> int:
    """The number of steps of a training. It is printed, and so is how to get more if it is small."""
    name, rows, size = run.out.name, order.length, min(order.length, recipe.batch_size)
    steps = max(1, round(recipe.epochs * order.per_epoch))
    total = min(steps, run.max_steps or steps)
    times = f"{total / order.per_epoch:.2g} times through {rows:,} rows"
    print(f"{name}: training into {run.out}: {total:,} step{'s' * (total > 1)} of {size} rows, {times}", flush=True)
    if total == steps < FEW:
        more = -(-2 * FEW // order.per_epoch)
        print(f"{name}: few steps teach little; --epochs {more} trains {more * order.per_epoch}", flush=True)
    return total


def precision(recipe: Recipe, run: Run) -> tuple[torch.dtype, torch.autocast, GradScaler]:
    """The dtype of the matrix products, the context that computes them in it, and the scaler of the loss.

    Small gradients would be zero in float16. So the scaler multiplies the loss, and divides the gradients before the
    step. In other dtypes it does nothing. Raises UserError for a sharded training in float16.
    """
    kind, dtype = torch.device(run.device).type, run.dtype or fastest_dtype(run.device)
    if recipe.compact and run.dtype is None and dtype == torch.float32:
        dtype = torch.bfloat16
    if dtype == torch.float16 and run.team.shard:
        raise UserError("--shard: needs bfloat16 or float32; choose one with --dtype")
    # Each weight is in one matrix product per forward pass, so caching its bfloat16 copy would only take memory.
    autocast = torch.autocast(kind, dtype, enabled=dtype != torch.float32, cache_enabled=False)
    return dtype, autocast, GradScaler(kind, enabled=dtype == torch.float16)


def next_batch(batches: Iterator[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The next micro-batch. A UserError from a worker process gets its own message back, without the traceback."""
    try:
        return next(batches)
    except UserError as error:
        raise UserError(str(error).strip().rpartition("UserError: ")[2]) from None


def compile_now(task: Task, order: Order, run: Run, autocast, scaler: GradScaler) -> None:
    """Compute the first batch, so that the blocks are compiled before the first step, and say how long that took.

    A resumed run does it with the same batch, so it gets the same code, and the same rounding. If there is no C++
    compiler, the training goes on without compiled blocks.
    """
    start, order.steps = time.perf_counter(), range(1)
    print(f"{task.name}: compiling the blocks, which may take a minute", flush=True)
    micro = [task.collate([task.dataset[key] for key in keys]) for keys in order]
    try:
        accumulate(task, micro, order.micro_batches(0), run, autocast, scaler)
        print(f"{task.name}: compiled in {time.perf_counter() - start:.0f} s", flush=True)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        print(f"{task.name}: the blocks cannot be compiled here, training goes on without ({reason})", flush=True)
        compile_blocks(task.model, compile=False)
    for parameter in task.model.parameters():
        parameter.grad = None


def padding(micro: list[dict[str, Tensor]], shares: list[list[int]], team: Team) -> dict[str, float]:
    """{"padding": share of padding (dummy rows too) in the batch's positions}; {} for batches without "lengths"."""
    if "lengths" not in micro[0]:
        return {}
    tokens = team.total(sum(batch["lengths"].sum().item() for batch, rows in zip(micro, shares) if rows))
    return {"padding": 1 - tokens / team.total(sum(batch["input_ids"].numel() for batch in micro))}


def prepare(model: nn.Module, frozen: torch.dtype | None, checkpointing: bool) -> None:
    """Set the dtype of the model's weights and, with ``checkpointing``, activation checkpointing in its decoder.

    Trainable weights are float32: an optimizer step is often too small to change a bfloat16 weight. ``frozen`` is the
    dtype of frozen weights; None: they keep theirs.
    """
    for parameter in model.parameters():
        dtype = torch.float32 if parameter.requires_grad else frozen
        if dtype is not None:
            parameter.data = parameter.data.to(dtype)
    for part in model.modules():
        if checkpointing and isinstance(part, Block):  # save only a block's input; recompute the rest going backward
            part.forward = partial(checkpoint, part.forward, use_reentrant=False, preserve_rng_state=False)
