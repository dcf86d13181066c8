"""One of two ranks that train together; test_distributed.py starts both with torchrun on a temporary folder.

test_distributed.py also calls ``run`` itself, for the trainings with one process.
"""

import os
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch

from minillava.checkpoint import load
from minillava.errors import UserError
from minillava.inputs.conversations import ConversationDataset
from minillava.training import loop
from minillava.training.distributed import Team, started
from minillava.training.recipes import Recipe
from minillava.training.tasks import Task, llava_task

# Seven rows per batch in four micro-batches of at most two rows: the ranks take 2 + 2 and 2 + 1 rows. The dataset has
# one row more than seven batches, so in the last batch of each epoch one rank has no row.
RECIPE = Recipe(learning_rate=3e-3, batch_size=7, epochs=10, accumulation=4, save_every=20)
STEPS, FEW = 30, 10
LORA = replace(RECIPE, lora=3, checkpointing=True, compact=True)
MUON = replace(RECIPE, optimizer="muon")
MEASURED = replace(RECIPE, eval_every=4)


class PowerCut(BaseException):
    """No Exception: nothing is saved before it."""


class Missing(ConversationDataset):
    """In the second epoch, row 9 cannot be read."""

    def __getitem__(self, key: tuple[int, int, int]) -> dict:
        if key[1:] == (1, 9):
            raise UserError("row 9 is missing")
        return super().__getitem__(key)


def make(folder: Path, stage: int, lora: int = 0, measured: bool = False, missing: bool = False) -> Task:
    """The training of a small LLaVA, always the same."""
    model = load(folder / "model")
    dataset = (Missing if missing else ConversationDataset)(folder / "rows.json", folder, model.processor)
    heldout = ConversationDataset(folder / "heldout.json", folder, model.processor, "first") if measured else None
    torch.manual_seed(0)
    return llava_task(model, dataset, stage, lora, folder / "model", heldout=heldout)


def run(
    folder: Path,
    name: str,
    stage: int,
    recipe: Recipe,
    team: Team,
    cut: bool = False,
    resume: bool = False,
    missing: bool = False,
) -> None:
    """Train into ``folder``/``name``. ``cut`` simulates a power cut between the first and the second checkpoint."""
    task, schedule = make(folder, stage, recipe.lora, recipe is MEASURED, missing), loop.schedule
    steps = STEPS if recipe is RECIPE else FEW

    def rate(step: int, *others) -> float:
        if cut and step == 23:
            raise PowerCut
        return schedule(step, *others)

    with patch.object(loop, "schedule", rate), suppress(PowerCut):
        dtype = torch.bfloat16 if recipe.compact else torch.float32
        loop.train(task, recipe, loop.Run(folder / name, 0, resume, steps, dtype=dtype, team=team))


def watch_writes(folder: Path) -> list[str]:
    """A list that collects, from now on, every change to files under ``folder`` by this process."""
    seen = []

    def hook(event: str, arguments: tuple) -> None:
        writes = event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir") or (
            event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        )
        if writes and str(arguments[0]).startswith(str(folder)):
            seen.append(f"{event} {arguments[0]}")

    sys.addaudithook(hook)
    return seen


def main(folder: Path, team: Team) -> None:
    torch.set_num_threads(1)
    writes = watch_writes(folder)
    for shard in (False, True):
        kind = "sharded" if shard else "ddp"
        with_shard = replace(team, shard=shard)
        for stage in (1, 2):
            run(folder, f"{kind}{stage}", stage, RECIPE, with_shard)
        run(folder, f"{kind}-lora", 2, LORA, with_shard)
        run(folder, f"{kind}-muon", 2, MUON, with_shard)
        run(folder, f"{kind}-cut", 2, RECIPE, with_shard, cut=True)
        run(folder, f"single-cut-{kind}", 2, RECIPE, with_shard, resume=True)
        run(folder, f"{kind}-measured", 2, MEASURED, with_shard)
        try:
            run(folder, f"{kind}-missing", 2, RECIPE, with_shard, missing=True)
        except UserError as error:
            print(f"process {team.rank} ended: {error}", file=sys.stderr)
    print(f"process {team.rank} made {len(writes)} changes", file=sys.stderr)


if __name__ == "__main__":
    with started("cpu", shard=False) as team:
        main(Path(sys.argv[1]), team)
