"""Rows that a training does not learn from: their loss, and a few answers to them, while it goes on.

The loss of the rows that are learnt falls as long as a training runs. The loss of held-out rows shows how well the
model does on rows that it has never seen; where it begins to rise, the model learns the others by heart. The model with
the lowest one is kept in the folder ``out``.best, and losses and answers in ``out``.heldout.jsonl.
"""

import math
from pathlib import Path
from textwrap import shorten

import torch

from minillava.errors import UserError
from minillava.files import read_steps, write_jsonl
from minillava.saving import replace_folder
from minillava.training.distributed import Team
from minillava.training.resume import describe_data, whole_tensors
from minillava.training.tasks import Task

MOST, SHOWN = 256, 3  # rows whose loss is computed, and whose answers are shown


def spread_out(length: int, most: int) -> list[int]:
    """The indices of all ``length`` rows, or of ``most`` of them at equal distances."""
    count = min(length, most)
    return [index * length // count for index in range(count)]


class Heldout:
    """The held-out rows of a training, and what was found: ``losses``, by the number of steps done."""

    def __init__(self, task: Task, size: int, out: Path, team: Team, device: str, autocast: torch.autocast, done: int):
        """``task.loss`` is the one that the ranks share; ``size`` is the number of rows in a micro-batch.

        If ``done`` steps are done, the losses up to there are read from the file, except those of other rows.
        """
        self.task, self.size, self.team, self.device, self.autocast = task, size, team, device, autocast
        self.rows, self.data = spread_out(len(task.heldout), MOST), describe_data(task.heldout)
        self.log, self.best = (out.with_name(f"{out.name}.{end}") for end in ("heldout.jsonl", "best"))
        found = read_steps(self.log, done) if done else []
        self.lines = [line for line in found if line.get("data") == self.data]

    @property
    def losses(self) -> dict[int, float]:
        return {line["step"]: line["loss"] for line in self.lines}

    def measure(self, step: int) -> str:
        """Compute the loss after ``step`` steps and write it down; keep the model if it is the best so far.

        Every rank calls this. Returns lines of text that say what was found. Raises UserError, naming file and row.
        """
        # Blocks compiled for training would be compiled once more for this.
        with torch.no_grad(), self.autocast, torch.compiler.set_stance("force_eager"):
            loss = self._loss()
            shown = [] if self.team.shard else self.team.together(self._answers)
        best = loss < min(self.losses.values(), default=math.inf)
        if best:
            tensors = whole_tensors(self.task.model)
            self.team.on_first(lambda: replace_folder(self.best, lambda new: self.task.write(tensors, new)))
        self.lines.append({"step": step, "loss": loss, "data": self.data, "answers": shown})
        if self.team.is_first:
            write_jsonl(self.log, self.lines)
        said = [f"held-out loss {loss:.3f} after {step:,} steps{', the lowest so far' if best else ''}"]
        if step == 0:
            left_out = "; no answers are shown with --shard" if self.team.shard else ""
            said.append(f"  of {len(self.rows):,} of the {len(self.task.heldout):,} held-out rows{left_out}")
        for one in shown:
            question, answer, reference = (shorten(text, 70, placeholder="...") for text in one.values())
            said.append(f'  "{question}": "{answer}"; in the file: "{reference}"')
        return "\n".join(said)

    def _loss(self) -> float:
        """The mean loss over all tokens of the rows that have one."""
        total, weight = 0.0, 0
        for rows in self.team.share(self.rows, self.size):
            keys = [(0, 0, row) for row in rows or self.rows[:1]]  # a rank without rows computes one with weight 0
            batch = self.team.together(lambda keys=keys: self.task.collate([self.task.heldout[key] for key in keys]))
            labels = self.task.weight(batch) if rows else 0
            total += self.task.loss({name: value.to(self.device) for name, value in batch.items()}).item() * labels
            weight += labels
        total, weight = self.team.total(total), self.team.total(weight)
        if not math.isfinite(total):
            raise UserError(f"{self.task.name}: the loss of held-out rows is {total / weight}")
        return total / weight

    def _answers(self) -> list[dict[str, str]]:
        return self.task.answer(spread_out(len(self.task.heldout), SHOWN)) if self.team.is_first else []
