"""ONE loop for all trainings: contrast, next token, stage 1, stage 2.

A ``Task`` says what learns, from which data, by which loss and how it is saved; a ``Recipe`` says for how long and how
fast. The rest (order, optimiser, schedule, accumulation, metrics, checkpoints, resuming) is the same for all, and here.
"""

import ctypes
import json
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from minillava.checkpoint import recover_folder, replace_folder, write_clip, write_decoder, write_llava
from minillava.contrastive import Clip, clip_loss
from minillava.conversation import IGNORE
from minillava.dataset import batch_order
from minillava.decoder import Decoder
from minillava.errors import UserError
from minillava.llava import Llava, answer_loss, splice
from minillava.plot import draw_loss
from minillava.tokenizer import Tokenizer

STATE = "trainer_state.pt"


@dataclass(frozen=True)
class Recipe:
    """How long and how fast. ``minutes`` is what it takes on two CPU cores, for the estimate shown; 0 is unknown."""

    learning_rate: float
    batch_size: int
    epochs: float
    warmup: float = 0.03  # share of the steps; paper, appendix
    optimizer: str = "adamw"  # "adamw", or "muon" for the matrices inside the blocks
    weight_decay: float = 0.0
    accumulation: int = 1  # micro-batches a step; batch_size counts them all
    save_every: int = 250  # steps
    minutes: float = 0.0


# From zero on two CPU cores. Muon learns shapes in far fewer steps than AdamW does.
TOY = {
    "vision": Recipe(learning_rate=3e-3, batch_size=128, epochs=4.25, optimizer="muon", minutes=6),
    "notes": Recipe(learning_rate=4e-3, batch_size=16, epochs=0.8, optimizer="muon", minutes=3),
    "decoder": Recipe(learning_rate=5e-3, batch_size=16, epochs=1.2, optimizer="muon", minutes=10),
    "stage1": Recipe(learning_rate=5e-3, batch_size=32, epochs=0.5, minutes=2),
    "stage2": Recipe(learning_rate=3e-3, batch_size=16, epochs=1.05, optimizer="muon", minutes=8),
}
# The paper's, section 4.2 and appendix: Adam without weight decay, cosine, 3 % warm-up.
PAPER = {
    "stage1": Recipe(learning_rate=2e-3, batch_size=128, epochs=1),
    "stage2": Recipe(learning_rate=2e-5, batch_size=32, epochs=3),
}
PRESETS = {"toy": TOY, "paper": PAPER}


@dataclass
class Task:
    """What learns (``model``'s parameters that require a gradient), from what, by which loss, and how it is saved."""

    name: str
    model: nn.Module
    dataset: object  # has batch(indices, epoch) and a length
    loss: Callable[[dict[str, Tensor]], Tensor]
    write: Callable[[Path], None]


def contrastive_task(clip: Clip, dataset, tokenizer: Tokenizer) -> Task:
    """Train both CLIP towers."""
    return Task(
        "vision", clip, dataset, lambda b: clip_loss(clip, b), lambda folder: write_clip(clip, tokenizer, folder)
    )


def next_token_task(name: str, decoder: Decoder, dataset, tokenizer: Tokenizer) -> Task:
    """Train the decoder alone, on text and on pictures told in words."""

    def loss(batch: dict[str, Tensor]) -> Tensor:
        embeddings = decoder.embed_tokens(batch["input_ids"])
        if "word_ids" in batch:
            told = mean_of_words(decoder.embed_tokens, batch["word_ids"])
            embeddings = splice(embeddings, batch["input_ids"], tokenizer.image_id, told)
        return answer_loss(decoder, decoder(embeddings), batch["labels"])

    return Task(name, decoder, dataset, loss, lambda folder: write_decoder(decoder, tokenizer, folder))


def mean_of_words(embedding: nn.Embedding, word_ids: Tensor) -> Tensor:
    """word_ids (pictures, patches, words), -1 for no word -> each patch's mean embedding (pictures, patches, hidden).

    The visual tokens that an ideal projection would give: what the patch shows, in the decoder's own words.
    """
    there = (word_ids >= 0).unsqueeze(-1)
    return (embedding(word_ids.clamp(min=0)) * there).sum(dim=2) / there.sum(dim=2)


def llava_task(model: Llava, dataset, stage: int) -> Task:
    """Stage 1 trains W alone; stage 2 trains W and the decoder. The vision tower is frozen in both (paper, 4.2)."""
    model.requires_grad_(False)
    model.multi_modal_projector.requires_grad_(True)
    if stage == 2:
        model.language_model.requires_grad_(True)

    def loss(batch: dict[str, Tensor]) -> Tensor:
        return model(batch["input_ids"], batch.get("pixel_values"), labels=batch["labels"]).loss

    return Task(f"stage{stage}", model, dataset, loss, lambda folder: write_llava(model, folder))


def train(
    task: Task,
    recipe: Recipe,
    out: Path,
    seed: int = 0,
    resume: bool = False,
    max_steps: int | None = None,
    device: str = "cpu",
    bfloat16: bool | None = None,
) -> None:
    """Run a task and leave ``out`` (a checkpoint folder), ``out``.metrics.jsonl and ``out``.loss.png.

    ``bfloat16`` runs the matrix products in bfloat16 over float32 weights; None means where the machine does it faster.
    With ``resume`` a run goes on from its last checkpoint, and ends with the weights it would have had without a break.
    Raises UserError where ``out`` is there already and ``resume`` is not asked for, or where it is another run's.
    """
    keep_memory()
    recover_folder(out)
    model, dataset = task.model.to(device).train(), task.dataset
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizers = build_optimizers(trainable, recipe)
    per_epoch = math.ceil(len(dataset) / recipe.batch_size)
    total = max(1, round(recipe.epochs * per_epoch))
    total = min(total, max_steps or total)
    step, metrics = 0, []
    if resume:
        step, metrics = _restore(out, trainable, optimizers, total, seed)
    elif out.exists():
        raise UserError(f"{out} is there already: --resume goes on with it, --out chooses another folder")
    if bfloat16 is None:
        bfloat16 = has_fast_bfloat16(device)
    autocast = torch.autocast(torch.device(device).type, torch.bfloat16) if bfloat16 else nullcontext()
    log = out.with_name(f"{out.name}.metrics.jsonl")
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("".join(json.dumps(row) + "\n" for row in metrics), encoding="utf-8")

    epoch, batches, start = -1, [], time.perf_counter()
    with (
        tqdm(total=total, initial=step, desc=task.name, unit="step", disable=None) as bar,
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
            loss = _accumulate(task, batches[step % per_epoch], epoch, recipe.accumulation, device, autocast)
            if not math.isfinite(loss):
                raise UserError(f"{task.name}: the loss is {loss} at step {step}; a smaller --learning-rate may help")
            nn.utils.clip_grad_norm_(trainable.values(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
            if isinstance(model, Clip):
                model.logit_scale.data.clamp_(max=math.log(100))  # CLIP's bound on the temperature
            step += 1
            metrics.append({"step": step, "loss": loss, "learning_rate": recipe.learning_rate * rate})
            file.write(json.dumps({**metrics[-1], "seconds": round(time.perf_counter() - start, 2)}) + "\n")
            bar.update()
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            if step % recipe.save_every == 0 or step == total:
                _save(task, out, trainable, optimizers, step, total, seed)
    if metrics:
        draw_loss(
            out.with_name(f"{out.name}.loss.png"),
            f"{task.name}: loss (nats)",
            [m["step"] for m in metrics],
            [m["loss"] for m in metrics],
        )
    model.eval()


def _accumulate(task: Task, indices: list[int], epoch: int, parts: int, device: str, autocast) -> float:
    """Backward over one batch in ``parts`` micro-batches; returns the batch's loss.

    Each is weighted by the tokens that bear loss in it, so the gradient is that of the whole batch at once.
    """
    size = math.ceil(len(indices) / parts)
    micro = [task.dataset.batch(indices[i : i + size], epoch) for i in range(0, len(indices), size)]
    weights = [(b["labels"][:, 1:] != IGNORE).sum().item() if "labels" in b else 1 for b in micro]
    loss = 0.0
    for batch, weight in zip(micro, weights):
        with autocast:
            part = task.loss({name: value.to(device) for name, value in batch.items()}) * (weight / sum(weights))
        part.backward()
        loss += part.item()
    return loss


def build_optimizers(trainable: dict[str, nn.Parameter], recipe: Recipe) -> list[torch.optim.Optimizer]:
    """AdamW for all; or Muon for the matrices inside blocks and AdamW for the rest (embeddings, norms, projections)."""
    matrices = [p for name, p in trainable.items() if recipe.optimizer == "muon" and p.ndim == 2 and "layers." in name]
    others = [p for p in trainable.values() if not any(p is matrix for matrix in matrices)]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(others, recipe.learning_rate, (0.9, 0.98), weight_decay=recipe.weight_decay)
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


def _save(task: Task, out: Path, trainable, optimizers, step: int, total: int, seed: int) -> None:
    def fill(folder: Path) -> None:
        task.write(folder)
        state = {
            "step": step,
            "total": total,
            "seed": seed,
            "parameters": {name: p.detach() for name, p in trainable.items()},
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        }
        torch.save(state, folder / STATE)

    replace_folder(out, fill)


def _read_state(out: Path) -> dict:
    path = out / STATE
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file, so there is nothing to resume") from None
    except Exception as error:  # a cut-short or foreign file fails in torch, zipfile or pickle, each in its own way
        raise UserError(f"{path}: not a training state ({type(error).__name__})") from None


def _restore(out: Path, trainable, optimizers, total: int, seed: int) -> tuple[int, list[dict]]:
    state = _read_state(out)
    if state["seed"] != seed or state["total"] != total:
        its, ours = f"{state['total']} steps with seed {state['seed']}", f"{total} steps with seed {seed}"
        raise UserError(f"{out / STATE}: from a run of {its}, not {ours}")
    saved = state["parameters"]
    for name, parameter in trainable.items():
        if name not in saved or saved[name].shape != parameter.shape:
            raise UserError(f"{out / STATE}: tensor {name} is missing or has another shape")
        parameter.data.copy_(saved[name])
    for optimizer, values in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(values)
    log = out.with_name(f"{out.name}.metrics.jsonl")
    lines = log.read_text(encoding="utf-8").splitlines()[: state["step"]]  # a line a step; a kill may tear a later one
    return state["step"], [json.loads(line) for line in lines]


def adjust(recipe: Recipe, learning_rate: float | None, batch_size: int | None, accumulation: int | None) -> Recipe:
    """A recipe with what the command line changes."""
    changes = {"learning_rate": learning_rate, "batch_size": batch_size, "accumulation": accumulation}
    return replace(recipe, **{name: value for name, value in changes.items() if value is not None})
