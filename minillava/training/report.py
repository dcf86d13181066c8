"""What a training leaves next to its checkpoint, and updates while it goes on:

``out``.metrics.jsonl   a line for each step
``out``.loss.png        a chart of the loss, at each save
``out``.report.html     a page about the training: how far it is, curves, what the model answers, settings

``report.js`` draws the page from the data that data() collects here.
"""

import math
import platform
import shlex
import signal
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, is_dataclass
from importlib import metadata
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING

import torch
from torch import nn

from minillava.config import PRETRAINED
from minillava.files import append_jsonl, write_jsonl, write_whole
from minillava.inputs.rejected import Rejected
from minillava.page import fill
from minillava.training.heldout import Heldout
from minillava.training.plot import draw_loss, falls_far, in_figures, running_mean, ticks
from minillava.training.progress import in_words
from minillava.training.recipes import Recipe
from minillava.training.signals import ENDING
from minillava.training.tasks import Task

if TYPE_CHECKING:
    from minillava.training.loop import Run

TEMPLATE = PRETRAINED.parent / "training" / "report"  # .html and .js
PAUSE = 10  # seconds between two pages, at least; and PATIENCE times as long as writing one takes
PATIENCE = 100
POINTS = 2000  # of a curve in the page, about
COLUMNS = 12  # answers to a question in the page, at most


@dataclass
class Report:
    """The files about a training of ``total`` steps; ``metrics`` are the lines of the steps that are done.

    As a context it writes the page at both ends, and into it an error that ends the context. Errors of the operating
    system, such as a full disk, are raised, but not in place of another error. Only the first rank writes.
    """

    task: Task
    recipe: Recipe
    run: "Run"
    total: int
    settings: dict[str, str]  # of resume.settings_of()
    dtype: torch.dtype
    metrics: list[dict]
    heldout: Heldout | None
    rejected: list[Rejected]

    def __post_init__(self):
        self.writes, self.due = self.run.team.is_first, 0.0  # time of the next page
        self.cards = self.task.questions.cards() if self.writes and self.heldout and not self.run.team.shard else []
        if self.writes:
            write_jsonl(self.path_of("metrics.jsonl"), self.metrics)
            print(f"{self.run.out.name}: watch it in {self.path_of('report.html')}", flush=True)

    def path_of(self, name: str) -> Path:
        return self.run.out.with_name(f"{self.run.out.name}.{name}")

    def add(self, line: dict) -> None:
        """A step has ended."""
        self.metrics.append(line)
        if self.writes:
            append_jsonl(self.path_of("metrics.jsonl"), line)
            if time.monotonic() >= self.due:
                self.write("running")

    def draw(self) -> None:
        """The training is saved."""
        if self.writes:
            title = f"{self.task.name}: loss (nats)"
            draw_loss(self.path_of("loss.png"), title, self.losses(), self.heldout.losses if self.heldout else None)
            self.write("running")

    def __enter__(self) -> "Report":
        if self.writes:
            self.write("running")
        return self

    def __exit__(self, _, error: BaseException | None, __) -> None:
        if not self.writes:
            return
        try:
            self.write(*(end_of(error) if error else ["finished" if self.done == self.total else "running"]))
        except OSError:
            if error is None:
                raise

    def write(self, state: str, why: str = "") -> None:
        """Write the page. ``state``: "running", "finished", "stopped" or "failed"."""
        start = time.monotonic()
        page = fill(TEMPLATE, self.data(state, why)).encode()
        write_whole(self.path_of("report.html"), lambda file: file.write(page))
        end = time.monotonic()
        self.due = end + max(PAUSE, PATIENCE * (end - start))

    @property
    def done(self) -> int:
        return self.metrics[-1]["step"] if self.metrics else 0

    def losses(self) -> dict[int, float]:
        return {line["step"]: line["loss"] for line in self.metrics}

    def padding(self) -> float | None:
        """The share of padding in all batches; None if the batches have no lengths."""
        shares = [line["padding"] for line in self.metrics if "padding" in line]
        return fmean(shares) if shares else None

    def data(self, state: str, why: str) -> dict:
        """All that the page shows."""
        times = spent(self.metrics)
        chosen = {name: value for name, value in self.settings.items() if name not in ("data", "dtype")}
        rest = median(times[-100:]) * (self.total - self.done) if times and state == "running" else 0
        return {
            "name": self.task.name,
            "state": state,
            "why": why,
            "step": self.done,
            "steps": self.total,
            "written": round(time.time()),
            "left": in_words(rest) if rest else "",
            "charts": self.charts(),
            "cards": [card | {"answers": self.answers_to(card["row"])} for card in self.cards],
            "scores": self.heldout.lines[-1].get("scores", {}) if self.heldout and self.heldout.lines else {},
            "tables": {
                "Time": self.times(times),
                "What learns": parts_of(self.task.model),
                "Rows": self.rows(),
                "Machine": in_rows(self.machine()),
                "Sizes": sizes_of(self.task.model),
                "Recipe": in_rows(asdict(self.recipe) | chosen),
            },
        }

    def charts(self) -> list[dict]:
        if not self.metrics:
            return []
        loss, gradient, rate = (
            {line["step"]: line[name] for line in self.metrics if isinstance(line.get(name), float)}
            for name in ("loss", "gradient_norm", "learning_rate")
        )
        heldout = self.heldout.losses if self.heldout else {}
        return [
            chart_of("Loss (nats)", loss, {"held-out rows": heldout} if heldout else {}),
            chart_of("Length of the gradient, before it is clipped to 1", gradient),
            chart_of("Learning rate", {}, {"learning rate": rate}),
        ]

    def answers_to(self, row: int) -> list[list]:
        """[step, answer] for a row that is shown. Of many, the first, the last, and some at equal distances."""
        found = [
            [line["step"], str(answer.get("answer"))]
            for line in self.heldout.lines
            for answer in line["answers"]
            if isinstance(answer, dict) and answer.get("row") == row
        ]
        if len(found) <= COLUMNS:
            return found
        return [found[index * (len(found) - 1) // (COLUMNS - 1)] for index in range(COLUMNS)]

    def times(self, times: list[float]) -> list[list[str]]:
        if not times:
            return []
        waited = sum(line.get("waited", 0) for line in self.metrics)
        return [
            ["steps and measuring", in_words(sum(times))],
            ["a step (median)", f"{median(times):.2g} seconds"],
            ["waited for data", f"{waited:.2g} seconds, {waited / max(1e-9, sum(times)):.1%}"],
        ]

    def rows(self) -> list[list[str]]:
        """What was read: files, their number of rows and SHA-256, padding, rows that are left out."""
        datasets = {"learnt": self.task.dataset} | ({"held out": self.heldout.task.heldout} if self.heldout else {})
        rows = [[name, ", ".join(map(str, getattr(dataset, "files", [])))] for name, dataset in datasets.items()]
        rows.insert(1, ["", self.settings["data"]])
        rows += [["", self.heldout.data]] if self.heldout else []
        padding = self.padding()
        rows += [] if padding is None else [["padding", f"{padding:.0%} of the computed positions"]]
        return rows + [["", line] for rejected in self.rejected for line in rejected.report()]

    def machine(self) -> dict[str, object]:
        run, compiled = self.run, any(part._compiled_call_impl for part in self.task.model.modules())
        cuda = torch.device(run.device).type == "cuda"
        return {
            "command": shlex.join([Path(sys.orig_argv[0]).name, *sys.orig_argv[1:]]),
            "device": torch.cuda.get_device_name(run.device) if cuda else run.device,
            "matrix products in": str(self.dtype).removeprefix("torch."),
            "blocks compiled": "yes" if compiled else "no",
            "threads": torch.get_num_threads(),
            "workers": run.workers,
            "processes": f"{run.team.size}{', sharded' if run.team.shard else ''}",
            **versions(),
        }


def end_of(error: BaseException) -> tuple[str, str]:
    """The state of a training that ``error`` ends, and why. Signals end it as signals.stop() says."""
    if isinstance(error, KeyboardInterrupt):
        return "stopped", "by Ctrl-C"
    if isinstance(error, SystemExit) and error.code in {128 + number for number in ENDING}:
        return "stopped", f"by {signal.Signals(error.code - 128).name}"
    return "failed", str(error) or type(error).__name__


def chart_of(title: str, noisy: dict[int, float], others: dict[str, dict[int, float]] | None = None) -> dict:
    """A chart of values by step: ``noisy`` ones with their running mean, and ``others`` by name.

    The axes are those of plot.py; ticks of a logarithmic axis are logarithms. "lost": steps whose value is not finite.
    """
    kept = {step: value for step, value in noisy.items() if math.isfinite(value)}
    mean = running_mean(list(kept.values()))
    curves = {"each step": kept, "running mean": dict(zip(kept, mean))} if kept else {}
    curves |= others or {}
    steps, values = [], []
    for curve in curves.values():
        steps += curve.keys()
        values += curve.values()
    log = bool(kept) and falls_far(mean, values)
    across, up = ticks(steps or [0]), ticks(list(map(math.log10, values)) if log else values or [0.0], log)
    return {
        "title": title,
        "log": log,
        "x": {"high": max(steps, default=1), "ticks": [[tick, in_figures(tick)] for tick in across]},
        "y": {"low": up[0], "high": up[-1], "ticks": [[tick, in_figures(tick, log)] for tick in up]},
        "lines": [{"name": name, "points": thin(list(curve.items()))} for name, curve in curves.items()],
        "lost": [step for step in noisy if step not in kept][:POINTS],
    }


def thin(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """About POINTS of the points at most. Of each stretch the lowest and the highest stay, so that no spike is lost."""
    size = max(1, -(-2 * len(points) // POINTS))
    kept = {points[0], points[-1]} if points else set()
    for start in range(0, len(points), size):
        stretch = points[start : start + size]
        kept |= {min(stretch, key=lambda point: point[1]), max(stretch, key=lambda point: point[1])}
    return [(step, float(f"{value:.4g}")) for step, value in sorted(kept)]


def spent(metrics: list[dict]) -> list[float]:
    """The seconds of each step. "seconds" counts from the start or, in a resumed training, from there."""
    times = [line.get("seconds", 0.0) for line in metrics]
    return [now - before if now >= before else now for before, now in zip([0.0, *times], times)]


def parts_of(model: nn.Module) -> list[list[str]]:
    """Of each part of a model, how many parameters it has, and how many of them learn."""
    counts: dict[str, list[int]] = {}
    for name, parameter in model.named_parameters():
        for part in (name.split(".")[0], "all"):
            count = counts.setdefault(part, [0, 0])
            count[0] += parameter.numel()
            count[1] += parameter.numel() * parameter.requires_grad
    counts["all"] = counts.pop("all")  # last
    return [[part, f"{learning:,} of {total:,} parameters"] for part, (total, learning) in counts.items()]


def sizes_of(model: nn.Module) -> list[list[str]]:
    """The numbers that a model is built from: its configuration, or those of its parts."""
    parts = {name: getattr(part, "config", None) for name, part in (("", model), *model.named_children())}
    found = {name: asdict(config) for name, config in parts.items() if is_dataclass(config)}
    return in_rows(found.get("", found))


def versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "torch": torch.__version__}
    with suppress(metadata.PackageNotFoundError):  # a checkout that is not installed has none
        found["minillava"] = metadata.version("minillava")
    return found


def in_rows(values: dict[str, object]) -> list[list[str]]:
    """Names and values as the rows of a table. A dict as a value is on one line."""

    def text(value: object) -> str:
        return ", ".join(f"{key} {one}" for key, one in value.items()) if isinstance(value, dict) else str(value)

    return [[name, text(value)] for name, value in values.items()]
