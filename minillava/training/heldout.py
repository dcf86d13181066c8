"""Rows that a training does not learn from: their loss, and a few answers to them, while it goes on.

The loss of the rows that are learnt falls as long as a training runs. The loss of held-out rows shows how well the
model does on rows that it has never seen; where it begins to rise, the model learns the others by heart. The model with
the lowest one is kept in the folder ``out``.best, and losses and answers in ``out``.heldout.jsonl. A training without
held-out rows of the user's only answers a few questions, a few times.
"""

import math
from collections.abc import Callable
from textwrap import shorten

import torch

from minillava.errors import UserError
from minillava.files import read_steps, write_jsonl
from minillava.saving import replace_folder
from minillava.training.answers import spread_out
from minillava.training.resume import describe_data, whole_tensors
from minillava.training.tasks import Task

MOST, PRINTED = 256, 3  # rows whose loss is computed, and whose answers are printed
HALVINGS = 7  # of the steps, after which questions are asked if nothing else is measured


class Heldout:
    """The held-out rows of a training, and what was found: ``lines`` {"step", "loss", "data", "answers"}, and "scores"
    after the last step."""

    def __init__(self, task: Task, run, size: int, autocast: torch.autocast, done: int, total: int, every: int):
        """``task.loss`` is the one that the ranks share; ``run`` is loop.py's. ``size`` is the number of rows in a
        micro-batch, ``every`` that of the steps between two measurements.

        If ``done`` of ``total`` steps are done, the lines up to there are read from the file, except those about other
        rows.
        """
        self.task, self.size, self.team, self.device, self.autocast = task, size, run.team, run.device, autocast
        self.rows, self.data = spread_out(len(task.heldout), MOST), describe_data(task.heldout)
        self.total, self.every, out = total, every, run.out
        self.log, self.best = (out.with_name(f"{out.name}.{end}") for end in ("heldout.jsonl", "best"))
        whole = {"answers": list, "data": str} | ({"loss": float} if task.measured else {})
        found = read_steps(self.log, done, whole) if done else []
        self.lines = [line for line in found if line["data"] == self.data]

    @property
    def losses(self) -> dict[int, float]:
        return {line["step"]: line["loss"] for line in self.lines if "loss" in line}

    def is_due(self, step: int) -> bool:
        """Whether to measure after ``step`` steps. If only questions are asked, that is more often at first, when more
        changes."""
        if self.task.measured:
            return step % self.every == 0 or step == self.total
        return not self.team.shard and step in (0, *(self.total >> halvings for halvings in range(HALVINGS + 1)))

    def measure(self, step: int, say: Callable[[str], None]) -> None:
        """Measure after ``step`` steps and write it down; keep the model if its loss is the lowest so far.

        Every rank calls this. ``say`` prints what was found, if the loss was computed. Raises UserError, naming file
        and row.
        """
        # Blocks compiled for training would be compiled once more for this.
        with torch.no_grad(), self.autocast, torch.compiler.set_stance("force_eager"):
            loss = self._loss() if self.task.measured else math.nan
            asked = {"answers": []} if self.team.shard else self.team.together(lambda: self._ask(step))
        best = loss < min(self.losses.values(), default=math.inf)
        if best:
            tensors = whole_tensors(self.task.model)
            self.team.on_first(lambda: replace_folder(self.best, lambda new: self.task.write(tensors, new)))
        self.lines.append({"step": step} | ({"loss": loss} if self.task.measured else {}) | {"data": self.data} | asked)
        if self.team.is_first:
            write_jsonl(self.log, self.lines)
        if self.task.measured:
            self._say(step, say, best)

    def _say(self, step: int, say: Callable[[str], None], best: bool) -> None:
        line = self.lines[-1]
        said = [f"held-out loss {line['loss']:.3f} after {step:,} steps{', the lowest so far' if best else ''}"]
        if step == 0:
            left_out = "; no answers are shown with --shard" if self.team.shard else ""
            said.append(f"  of {len(self.rows):,} of the {len(self.task.heldout):,} held-out rows{left_out}")
        for one in line["answers"][:PRINTED]:
            question, answer, reference = (
                shorten(one[key], 70, placeholder="...") for key in ("question", "answer", "reference")
            )
            said.append(f'  "{question}": "{answer}"; in the file: "{reference}"')
        say("\n".join(said))

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

    def _ask(self, step: int) -> dict:
        """{"answers": lines}, and "scores" after the last step. Only the first rank asks."""
        if not self.team.is_first:
            return {"answers": []}
        scores = {"scores": self.task.questions.scores(self.size)} if step == self.total else {}
        return {"answers": self.task.questions.answers(self.size)} | scores
