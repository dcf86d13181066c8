"""Saving a training and resuming it: the checkpoint folder also holds trainer_state.pt."""

import hashlib
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.distributed.checkpoint import state_dict
from torch.utils.data import Dataset

from minillava.errors import UserError
from minillava.files import check_regular, read_steps
from minillava.formats.tensors import refuse_compressed
from minillava.saving import recover_folder, replace_folder
from minillava.training.recipes import Recipe

STATE = "trainer_state.pt"
KEYS = {"step": int, "settings": dict, "parameters": dict, "optimizers": dict, "scaler": dict, "towers": dict}
# Parts of a recipe that do not change what is learnt. The number of steps is compared in place of the epochs.
FREE = ("epochs", "accumulation", "checkpointing", "length", "save_every", "save_minutes", "eval_every")
LONGER = (
    "the learning rate falls to zero over all steps, so those already taken fit only the old number; to train longer, "
    "start from the result, with --model and another --out"
)
# Whole tensors on rank 0; the other ranks get nothing.
WHOLE = state_dict.StateDictOptions(full_state_dict=True, cpu_offload=True)


def is_finished(out: Path) -> bool:
    """Whether ``out`` holds a training that ran to its end."""
    recover_folder(out)
    if not (out / STATE).exists():
        return False
    state = read_state(out)
    return state["step"] >= int(state["settings"]["steps"])


def settings_of(task, recipe: Recipe, run, total: int) -> dict[str, str]:
    """All that decides the result of a training of ``total`` steps, as text by name. A resumed run must have the same.

    Not among it: the device, the number of ranks, sharding, workers, micro-batches and activation checkpointing, which
    change only the rounding. Call it before the weights are moved or converted.
    """
    chosen = {name: value for name, value in asdict(recipe).items() if name not in FREE}
    chosen |= {"steps": total, "seed": run.seed, "dtype": str(run.dtype).removeprefix("torch.")}
    chosen |= {"data": describe_data(task.dataset), **task.dataset.options, **task.options}
    chosen["frozen weights"] = fingerprint(task.model)
    return {name: str(value) for name, value in chosen.items()}


def describe_data(dataset: Dataset) -> str:
    """The number of rows of a dataset, and the size and the SHA-256 of its files."""
    size, digest = 0, hashlib.sha256()
    for path in dataset.files:
        with open(path, "rb") as file:
            while piece := file.read(1 << 20):
                size += len(piece)
                digest.update(piece)
    return f"{len(dataset):,} rows, {size:,} bytes, sha256 {digest.hexdigest()[:16]}"


def fingerprint(model: nn.Module) -> str:
    """A digest of the first numbers of each frozen tensor: another tower has another."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            digest.update(name.encode() + parameter.detach().flatten()[:256].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def whole_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The model's tensors by name on rank 0, also if they are sharded. Every rank calls this."""
    return state_dict.get_model_state_dict(model, options=WHOLE)


def save(
    task, optimizers: list[torch.optim.Optimizer], scaler: GradScaler, run, step: int, settings: dict[str, str]
) -> None:
    """Write the model, and what resuming needs, into ``run.out``, which is replaced as a whole or not at all."""
    tensors = whole_tensors(task.model)
    moments = state_dict.get_optimizer_state_dict(task.model, optimizers, options=WHOLE)
    learns = [name for name, parameter in task.model.named_parameters() if parameter.requires_grad]

    def fill(folder: Path) -> None:
        task.write(tensors, folder)
        learnt = {name: tensors[name] for name in learns}
        state = {"step": step, "settings": settings, "parameters": learnt, "optimizers": moments}
        state["towers"] = task.towers
        state["scaler"] = scaler.state_dict()  # {} unless the training is in float16
        with open(folder / STATE, "wb") as file:  # torch's own writing does not say that the disk is full
            try:
                torch.save(state, file)
            except RuntimeError as error:  # torch cannot finish the file after an error of the system, which says why
                raise error.__context__ if isinstance(error.__context__, OSError) else error from None

    run.team.on_first(lambda: replace_folder(run.out, fill))


def restore(
    task, optimizers: list[torch.optim.Optimizer], scaler: GradScaler, run, settings: dict[str, str]
) -> tuple[int, list[dict]]:
    """Load ``run.out`` into the model and the optimizers; returns the number of steps done, and their metrics.

    Raises UserError if there is no checkpoint to resume from, or if it is another run's.
    """
    state = read_state(run.out)
    if others := differences(state["settings"], settings):
        raise UserError(f"{run.out / STATE}: this run is not the one saved there: {'; '.join(others)}")
    saved = state["parameters"]
    learning = {name: parameter for name, parameter in task.model.named_parameters() if parameter.requires_grad}
    for name in sorted(learning.keys() | saved.keys()):
        if name not in learning or name not in saved or saved[name].shape != learning[name].shape:
            raise UserError(f"{run.out / STATE}: tensor {name} is missing, left over or of another shape")
    options = state_dict.StateDictOptions(full_state_dict=True, strict=False)  # frozen weights are not saved
    state_dict.set_model_state_dict(task.model, saved, options=options)
    try:
        state_dict.set_optimizer_state_dict(task.model, optimizers, state["optimizers"], options=options)
        if state["scaler"]:
            scaler.load_state_dict(state["scaler"])
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        raise UserError(f"{run.out / STATE}: the optimizer state does not fit ({type(error).__name__})") from None
    return state["step"], read_metrics(run, state["step"])


def read_metrics(run, done: int) -> list[dict]:
    """The lines of the first ``done`` steps in the run's metrics, which hold only numbers. Steps that are missing there
    are counted and said: the checkpoint does not need them."""
    log = run.out.with_name(f"{run.out.name}.metrics.jsonl")
    found = read_steps(log, done, {"loss": float})
    if run.team.is_first and len(found) < done:
        print(f"{run.out.name}: {log}: {done - len(found):,} of {done:,} steps are missing; it goes on without them")
    return [{name: value for name, value in line.items() if type(value) in (int, float)} for line in found]


def differences(saved: dict[str, str], ours: dict[str, str]) -> list[str]:
    """What differs between the settings of two runs, one text each. Long values are not quoted."""
    found = []
    for name in sorted(saved.keys() | ours.keys()):
        one, other = saved.get(name, "none"), ours.get(name, "none")
        if one != other:
            found.append(f"another {name}" if len(one + other) > 150 else f"{name} was {one}, is {other}")
            if name == "steps":
                found[-1] += f" ({LONGER})"
    return found


def read_state(out: Path) -> dict:
    """The contents of trainer_state.pt in ``out``. Raises UserError if it is missing, broken or of an older version."""
    path = out / STATE
    if not path.exists():
        raise UserError(f"{path}: no such file, so there is nothing to resume")
    check_regular(path)
    try:
        refuse_compressed(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a truncated or foreign file raises various errors of torch, zipfile and pickle
        raise UserError(f"{path}: not a training state ({type(error).__name__})") from None
    if not is_state(state):
        raise UserError(f"{path}: not a training state of this version; start again in another folder (--out)")
    return state


def is_state(state: object) -> bool:
    """Whether a file's contents have the parts of a training state."""
    if not isinstance(state, dict) or any(type(state.get(key)) is not kind for key, kind in KEYS.items()):
        return False
    settings, tensors = state["settings"], state["parameters"].values()
    texts = [*settings, *settings.values(), *state["towers"], *state["towers"].values(), *state["parameters"]]
    whole = all(isinstance(text, str) for text in texts) and all(isinstance(tensor, Tensor) for tensor in tensors)
    return whole and settings.get("steps", "").isdecimal() and 0 <= state["step"] <= int(settings["steps"])
