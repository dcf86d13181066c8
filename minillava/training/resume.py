"""Saving a training and resuming it: the checkpoint folder also holds trainer_state.pt."""

import json
from pathlib import Path

import torch
from torch.amp import GradScaler
from torch.distributed.checkpoint import state_dict

from minillava.errors import UserError
from minillava.saving import recover_folder, replace_folder

STATE = "trainer_state.pt"
# Whole tensors on rank 0; the other ranks get nothing.
WHOLE = state_dict.StateDictOptions(full_state_dict=True, cpu_offload=True)


def is_finished(out: Path) -> bool:
    """Whether ``out`` holds a training that ran to its end."""
    recover_folder(out)
    if not (out / STATE).exists():
        return False
    state = _read_state(out)
    return state["step"] >= state["total"]


def save(task, optimizers: list[torch.optim.Optimizer], scaler: GradScaler, run, step: int, total: int) -> None:
    """Write the model, and what resuming needs, into ``run.out``, which is replaced as a whole or not at all."""
    tensors = state_dict.get_model_state_dict(task.model, options=WHOLE)
    moments = state_dict.get_optimizer_state_dict(task.model, optimizers, options=WHOLE)
    learns = [name for name, parameter in task.model.named_parameters() if parameter.requires_grad]

    def fill(folder: Path) -> None:
        task.write(tensors, folder)
        learnt = {name: tensors[name] for name in learns}
        state = {"step": step, "total": total, "seed": run.seed, "parameters": learnt, "optimizers": moments}
        state["scaler"] = scaler.state_dict()  # {} unless the training is in float16
        torch.save(state, folder / STATE)

    run.team.on_first(lambda: replace_folder(run.out, fill))


def restore(
    task, optimizers: list[torch.optim.Optimizer], scaler: GradScaler, run, total: int
) -> tuple[int, list[dict]]:
    """Load ``run.out`` into the model and the optimizers; returns the number of steps done, and their metrics.

    Raises UserError if there is no checkpoint to resume from, or if it is another run's.
    """
    state = _read_state(run.out)
    if state["seed"] != run.seed or state["total"] != total:
        its, ours = f"{state['total']} steps with seed {state['seed']}", f"{total} steps with seed {run.seed}"
        raise UserError(f"{run.out / STATE}: saved by a run of {its}; this run has {ours}")
    saved = state["parameters"]
    learning = {name: parameter for name, parameter in task.model.named_parameters() if parameter.requires_grad}
    for name in sorted(learning.keys() | saved.keys()):
        if name not in learning or name not in saved or saved[name].shape != learning[name].shape:
            raise UserError(f"{run.out / STATE}: tensor {name} is missing, left over or of another shape")
    options = state_dict.StateDictOptions(full_state_dict=True, strict=False)  # frozen weights are not saved
    state_dict.set_model_state_dict(task.model, saved, options=options)
    try:
        state_dict.set_optimizer_state_dict(task.model, optimizers, state["optimizers"], options=options)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{run.out / STATE}: the optimizer state does not fit ({type(error).__name__})") from None
    if state.get("scaler"):
        scaler.load_state_dict(state["scaler"])
    log = run.out.with_name(f"{run.out.name}.metrics.jsonl")
    lines = log.read_text(encoding="utf-8").splitlines()[: state["step"]]  # one per step; a kill may tear a later one
    return state["step"], [json.loads(line) for line in lines]


def _read_state(out: Path) -> dict:
    path = out / STATE
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file, so there is nothing to resume") from None
    except Exception as error:  # a truncated or foreign file raises various errors of torch, zipfile and pickle
        raise UserError(f"{path}: not a training state ({type(error).__name__})") from None
