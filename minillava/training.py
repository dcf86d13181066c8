"""ONE loop for all trainings: contrast, next token, stage 1, stage 2.

A ``Task`` says what learns, from which data, by which loss and how it is saved; a ``Recipe`` (recipes.py) for how long,
how fast and in how much memory. The rest (order, optimiser, schedule, accumulation, metrics, checkpoints, resuming) is
the same for all, and here.
"""

import ctypes
import json
import math
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from minillava.checkpoint import recover_folder, replace_folder, write_adapter, write_clip, write_decoder, write_llava
from minillava.contrastive import Clip, clip_loss
from minillava.conversation import IGNORE
from minillava.dataset import batch_order
from minillava.decoder import Decoder
from minillava.distributed import ALONE, Team, hold_gradients
from minillava.errors import UserError
from minillava.llava import Llava, answer_loss, before_labels, splice
from minillava.lora import ALPHA, add_lora
from minillava.plot import draw_loss
from minillava.recipes import Recipe
from minillava.tokenizer import Tokenizer

STATE = "trainer_state.pt"


@dataclass
class Task:
    """What learns (``model``'s parameters that require a gradient), from what, by which loss, and how it is saved."""

    name: str
    model: nn.Module
    dataset: object  # has batch(indices, epoch) and a length
    loss: Callable[[dict[str, Tensor]], Tensor]
    write: Callable[[dict[str, Tensor], Path], None]  # the model's tensors by their names, to a folder


def contrastive_task(clip: Clip, dataset, tokenizer: Tokenizer) -> Task:
    """Train both CLIP towers."""

    def write(tensors: dict[str, Tensor], folder: Path) -> None:
        write_clip(clip, tokenizer, folder, tensors=tensors)

    return Task("vision", clip, dataset, lambda batch: clip_loss(clip, batch), write)


def next_token_task(name: str, decoder: Decoder, dataset, tokenizer: Tokenizer) -> Task:
    """Train the decoder alone, on text and on pictures told in words."""

    def loss(batch: dict[str, Tensor]) -> Tensor:
        embeddings = decoder.embed_tokens(batch["input_ids"])
        if "word_ids" in batch:
            told = mean_of_words(decoder.embed_tokens, batch["word_ids"])
            embeddings = splice(embeddings, batch["input_ids"], tokenizer.image_id, told)
        hidden = decoder(embeddings, where=before_labels(batch["labels"]))
        return answer_loss(decoder, hidden, batch["labels"])

    def write(tensors: dict[str, Tensor], folder: Path) -> None:
        write_decoder(decoder, tokenizer, folder, tensors=tensors)

    return Task(name, decoder, dataset, loss, write)


def mean_of_words(embedding: nn.Embedding, word_ids: Tensor) -> Tensor:
    """word_ids (pictures, patches, words), -1 for no word -> each patch's mean embedding (pictures, patches, hidden).

    The visual tokens that an ideal projection would give: what the patch shows, in the decoder's own words.
    """
    there = (word_ids >= 0).unsqueeze(-1)
    return (embedding(word_ids.clamp(min=0)) * there).sum(dim=2) / there.sum(dim=2)


def choose_what_learns(model: Llava, stage: int, lora: int = 0) -> None:
    """Stage 1 trains W alone; stage 2 trains W and the decoder, or low-rank matrices beside the decoder's (``lora`` is
    their rank). The vision tower is frozen in both (paper, 4.2)."""
    model.requires_grad_(False)
    model.multi_modal_projector.requires_grad_(True)
    if stage == 2 and lora:
        add_lora(model.language_model, lora, ALPHA * lora)
    elif stage == 2:
        model.language_model.requires_grad_(True)


def llava_task(model: Llava, dataset, stage: int, lora: int = 0, base: str | os.PathLike | None = None) -> Task:
    """Stage 1 or 2 on ``model``. With ``lora`` an adapter to ``base``, where the model is from, is saved."""
    choose_what_learns(model, stage, lora)
    # Rows of text alone pass the tower and W with no pictures, so W has a gradient, of zero: every process of a team
    # must have the same gradients to add up.
    no_pictures = torch.empty(0, model.config.vision.num_channels, *[model.config.vision.image_size] * 2)

    def loss(batch: dict[str, Tensor]) -> Tensor:
        pictures, segments = batch.get("pixel_values", no_pictures), batch.get("segments")
        return model(batch["input_ids"], pictures, labels=batch["labels"], segments=segments).loss

    def write(tensors: dict[str, Tensor], folder: Path) -> None:
        if lora:
            write_adapter(model, base, folder, tensors)
        else:
            write_llava(model, folder, tensors=tensors)

    return Task(f"stage{stage}", model, dataset, loss, write)


def train(
    task: Task,
    recipe: Recipe,
    out: Path,
    seed: int = 0,
    resume: bool = False,
    max_steps: int | None = None,
    device: str = "cpu",
    bfloat16: bool | None = None,
    team: Team = ALONE,
) -> None:
    """Run a task and leave ``out`` (a checkpoint folder), ``out``.metrics.jsonl and ``out``.loss.png.

    ``bfloat16`` runs the matrix products in bfloat16 over float32 weights; None means where the machine does it faster,
    or the recipe is compact. A compact recipe holds frozen weights in bfloat16 too, and saves them so.
    With ``resume`` a run goes on from its last checkpoint, and ends with the weights it would have had without a break.
    ``team`` are the processes that share the work, each of which calls this; the results do not depend on how many.
    Raises UserError where ``out`` is there already and ``resume`` is not asked for, or where it is another run's.
    """
    keep_memory()
    team.first_alone(lambda: recover_folder(out))
    if bfloat16 is None:
        bfloat16 = recipe.compact or has_fast_bfloat16(device)
    autocast = nullcontext()
    if bfloat16:  # each weight is used once, so its bfloat16 copy need not be kept for a second time
        autocast = torch.autocast(torch.device(device).type, torch.bfloat16, cache_enabled=False)
    prepare(task.model, recipe.compact and bfloat16, recipe.checkpointing)
    task = replace(task, loss=team.spread(task.model, task.loss, device))
    model, dataset = task.model.train(), task.dataset
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizers = build_optimizers(trainable, recipe)
    per_epoch = math.ceil(len(dataset) / recipe.batch_size)
    total = max(1, round(recipe.epochs * per_epoch))
    total = min(total, max_steps or total)
    step, metrics = 0, []
    if resume:
        step, metrics = _restore(out, trainable, optimizers, total, seed, team)
    elif out.exists():
        raise UserError(f"{out} is there already: --resume goes on with it, --out chooses another folder")
    log = out.with_name(f"{out.name}.metrics.jsonl") if team.leads else Path(os.devnull)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("".join(json.dumps(row) + "\n" for row in metrics), encoding="utf-8")

    epoch, batches, start = -1, [], time.perf_counter()
    with (
        tqdm(total=total, initial=step, desc=task.name, unit="step", disable=None if team.leads else True) as bar,
        open(log, "a", buffering=1, encoding="utf-8") as file,
    ):
        while step < total:
            if step // per_epoch != epoch:
                epoch = step // per_epoch
                batches = batch_order(len(dataset), recipe.batch_size, seed, epoch)
            rate = schedule(step, total, recipe)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = recipe.learning_rate * rate
                optimizer.zero_grad(set_to_none=True)
            loss, padding = _accumulate(
                task, batches[step % per_epoch], epoch, recipe.accumulation, device, autocast, team
            )
            if not math.isfinite(loss):
                raise UserError(f"{task.name}: the loss is {loss} at step {step}; a smaller --learning-rate may help")
            nn.utils.clip_grad_norm_(trainable.values(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
            if isinstance(model, Clip):
                model.logit_scale.data.clamp_(max=math.log(100))  # CLIP's bound on the temperature
            step += 1
            metrics.append({"step": step, "loss": loss, "learning_rate": recipe.learning_rate * rate, **padding})
            file.write(json.dumps({**metrics[-1], "seconds": round(time.perf_counter() - start, 2)}) + "\n")
            bar.update()
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            if step % recipe.save_every == 0 or step == total:
                _save(task, out, trainable, optimizers, step, total, seed, team)
    if metrics and team.leads:
        draw_loss(
            out.with_name(f"{out.name}.loss.png"),
            f"{task.name}: loss (nats)",
            [m["step"] for m in metrics],
            [m["loss"] for m in metrics],
        )
        shares = [m["padding"] for m in metrics if "padding" in m]
        if shares:
            print(f"{task.name}: {sum(shares) / len(shares):.0%} of what was computed was padding")
    model.eval()


def _accumulate(
    task: Task, indices: list[int], epoch: int, parts: int, device: str, autocast, team: Team = ALONE
) -> tuple[float, dict[str, float]]:
    """Backward over one batch in ``parts`` micro-batches, shared by the team; returns the batch's loss, and "padding",
    the share of its positions that held none of its tokens.

    Each is weighted by the tokens that bear loss in it, so the gradient is that of the whole batch at once.
    """
    if parts > 1 or team.size > 1:
        indices = task.dataset.arrange(indices, epoch)
    shares = team.share(indices, math.ceil(len(indices) / parts))
    # A process that is left without rows works on one that weighs nothing: all must be there when gradients are added.
    micro = [task.dataset.batch(rows or indices[:1], epoch) for rows in shares]
    weights = [count_labels(batch) if rows else 0 for batch, rows in zip(micro, shares)]
    total, loss = team.total(sum(weights)), 0.0
    for number, (batch, weight) in enumerate(zip(micro, weights), 1):
        with autocast, hold_gradients(task.loss, number < len(micro)):
            part = task.loss({name: value.to(device) for name, value in batch.items()}) * (weight / total)
        (part * team.size).backward()  # the team takes the mean of its gradients; what is wanted is their sum
        loss += part.item()
    return team.total(loss), measure_padding(micro, shares, team)


def measure_padding(micro: list[dict[str, Tensor]], shares: list[list[int]], team: Team) -> dict[str, float]:
    """{"padding": share of the team's positions that hold no token}; pictures without conversations have none."""
    if "lengths" not in micro[0]:
        return {}
    tokens = team.total(sum(batch["lengths"].sum().item() for batch, rows in zip(micro, shares) if rows))
    return {"padding": 1 - tokens / team.total(sum(batch["input_ids"].numel() for batch in micro))}


def count_labels(batch: dict[str, Tensor]) -> int:
    """How many tokens of a batch bear loss; contrast has none, and its micro-batches weigh the same."""
    return (batch["labels"][:, 1:] != IGNORE).sum().item() if "labels" in batch else 1


def prepare(model: nn.Module, compact: bool, checkpointing: bool) -> None:
    """Set how much memory the model takes: the dtype of its weights, and what its decoder keeps for the way back.

    What learns is float32: a step is often smaller than a bfloat16's last digit. What is frozen is bfloat16 if
    ``compact``, else as it is.
    """
    for parameter in model.parameters():
        if parameter.requires_grad or compact:
            parameter.data = parameter.data.to(torch.float32 if parameter.requires_grad else torch.bfloat16)
    for part in model.modules():
        if isinstance(part, Decoder):
            part.checkpointing = checkpointing


def build_optimizers(trainable: dict[str, nn.Parameter], recipe: Recipe) -> list[torch.optim.Optimizer]:
    """AdamW for all; or Muon for the matrices inside blocks and AdamW for the rest (embeddings, norms, projections)."""
    matrices = [p for name, p in trainable.items() if recipe.optimizer == "muon" and p.ndim == 2 and "layers." in name]
    others = [p for p in trainable.values() if not any(p is matrix for matrix in matrices)]
    fused = others[0].is_cuda or None  # PyTorch's choice for GPUs holds a copy of all that learns while it steps
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(others, recipe.learning_rate, (0.9, 0.98), weight_decay=recipe.weight_decay, fused=fused)
    ]
    if matrices:
        optimizers.append(
            torch.optim.Muon(
                matrices, recipe.learning_rate, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw"
            )
        )
    return optimizers


def schedule(step: int, total: int, recipe: Recipe) -> float:
    """The share of the learning rate at ``step``: up in a line over the warm-up, then down half a cosine to zero."""
    warmup = max(1, round(recipe.warmup * total))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def initialise(module: nn.Module) -> None:
    """Fresh weights for a tower trained from zero: normal, 0.02 for embeddings and 1 / sqrt(inputs) for matrices.

    The last matrix of every attention and MLP starts at zero, so a block begins by passing its input on unchanged. A
    decoder's word embeddings start large (1.0) and its head at zero: words that stay distinct from the first step on
    are what attention learns to find.
    """
    for name, part in module.named_modules():
        if isinstance(part, nn.Embedding):
            nn.init.normal_(part.weight, std=1.0 if name.endswith("embed_tokens") else 0.02)
        elif isinstance(part, (nn.Linear, nn.Conv2d)):
            starts_at_zero = name.endswith(("o_proj", "down_proj", "out_proj", "fc2", "lm_head"))
            nn.init.normal_(part.weight, std=0.0 if starts_at_zero else part.weight[0].numel() ** -0.5)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def has_fast_bfloat16(device: str) -> bool:
    """GPUs, and CPUs with bfloat16 instructions (AVX512-BF16 or AMX), where it is two to four times float32's speed."""
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported()
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def keep_memory() -> None:
    """Tell glibc to keep freed memory: giving it back and asking anew, page by page, slows every step on a CPU."""
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # not Linux, or another C library
        return
    mallopt(-4, 0)  # M_MMAP_MAX: no block of its own for a large tensor
    mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def is_finished(out: Path) -> bool:
    """Whether ``out`` holds a training that ran to its end."""
    recover_folder(out)
    if not (out / STATE).exists():
        return False
    state = _read_state(out)
    return state["step"] >= state["total"]


def _save(task: Task, out: Path, trainable, optimizers, step: int, total: int, seed: int, team: Team) -> None:
    tensors = team.whole(task.model.state_dict())
    states = team.whole([optimizer.state_dict() for optimizer in optimizers])

    def fill(folder: Path) -> None:
        task.write(tensors, folder)
        state = {
            "step": step,
            "total": total,
            "seed": seed,
            "parameters": {name: tensors[name] for name in trainable},
            "optimizers": states,
        }
        torch.save(state, folder / STATE)

    team.first_alone(lambda: replace_folder(out, fill))


def _read_state(out: Path) -> dict:
    path = out / STATE
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file, so there is nothing to resume") from None
    except Exception as error:  # a cut-short or foreign file fails in torch, zipfile or pickle, each in its own way
        raise UserError(f"{path}: not a training state ({type(error).__name__})") from None


def _restore(out: Path, trainable, optimizers, total: int, seed: int, team: Team) -> tuple[int, list[dict]]:
    state = _read_state(out)
    if state["seed"] != seed or state["total"] != total:
        its, ours = f"{state['total']} steps with seed {state['seed']}", f"{total} steps with seed {seed}"
        raise UserError(f"{out / STATE}: from a run of {its}, not {ours}")
    saved = state["parameters"]
    for name, parameter in trainable.items():
        if name not in saved or saved[name].shape != parameter.shape:
            raise UserError(f"{out / STATE}: tensor {name} is missing or has another shape")
        parameter.data.copy_(team.slice_like(saved[name], parameter))
    for optimizer, values in zip(optimizers, state["optimizers"], strict=True):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for index, moments in values["state"].items():
            for name, value in moments.items():
                if name != "step":
                    moments[name] = team.slice_like(value, parameters[index])
        optimizer.load_state_dict(values)
    log = out.with_name(f"{out.name}.metrics.jsonl")
    lines = log.read_text(encoding="utf-8").splitlines()[: state["step"]]  # a line a step; a kill may tear a later one
    return state["step"], [json.loads(line) for line in lines]
