"""What is compared, and how each row of a table is trained. ``experiments.py`` runs it.

A row is a function from a ``Bench`` to a trained model. All rows of all comparisons train twice from the same two
towers, first on captions, then on instructions, with the same numbers of examples.
"""

import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import torch

from lessons.roads import blip2, flamingo, frozen, kosmos
from minillava.checkpoint import join
from minillava.inputs.conversations import ConversationDataset
from minillava.model.llava import Llava
from minillava.training.loop import Run, train
from minillava.training.machine import default_workers
from minillava.training.recipes import TOY, Recipe
from minillava.training.tasks import Task, llava_task

# train.py's recipes. That of stage 1 is for a projection only; what else learns from captions learns as in stage 2.
PROJECTION, ANSWERS = TOY["stage1"], TOY["stage2"]
CAPTIONS = replace(ANSWERS, batch_size=PROJECTION.batch_size)


@dataclass
class Bench:
    """What a row of a table is trained with: towers, picture-book, folder for its results, seed, number of steps.

    ``steps`` are those on instructions; those on captions are half as many. ``spent`` collects what trainings took.
    """

    towers: Path
    data: Path
    out: Path
    seed: int
    steps: int
    device: str = "cpu"
    spent: list[dict] = field(default_factory=list)

    def llava(self) -> Llava:
        """The two towers with a random projection, which depends on the seed, as do random weights made after it."""
        torch.manual_seed(self.seed)
        return join(self.towers / "vision", self.towers / "decoder")

    def captions(self, model: Llava) -> ConversationDataset:
        return ConversationDataset(self.data / "captions.json", self.data, model.processor)

    def instructions(self, model: Llava) -> ConversationDataset:
        return ConversationDataset(self.data / "instruct.json", self.data, model.processor)

    def train(self, part: str, task: Task, recipe: Recipe) -> None:
        """Train a task, or go on where its training was interrupted."""
        steps = max(1, self.steps // 2) if part == "captions" else self.steps
        out = self.out / part
        run = Run(out, self.seed, out.exists(), steps, self.device, workers=default_workers(self.device, 1))
        train(task, replace(recipe, epochs=steps), run)  # at least one step an epoch, so max_steps is what ends it
        log = [json.loads(line) for line in (self.out / f"{part}.metrics.jsonl").read_text().splitlines()]
        clock = [0.0, *(row["seconds"] for row in log)]
        # The median step, so that neither a break nor another program on the machine counts.
        seconds = steps * statistics.median(after - before for before, after in pairwise(clock))
        learns = sum(parameter.numel() for parameter in task.model.parameters() if parameter.requires_grad)
        self.spent.append({"part": part, "loss": log[-1]["loss"], "seconds": round(seconds, 1), "learns": learns})


def llava(bench: Bench) -> Llava:
    """The paper: the projection learns from captions, then the projection and the decoder from instructions."""
    model = bench.llava()
    bench.train("captions", llava_task(model, bench.captions(model), stage=1), PROJECTION)
    bench.train("instructions", llava_task(model, bench.instructions(model), stage=2), ANSWERS)
    return model


def projection(bench: Bench) -> Llava:
    """LLaVA's projection in front of a decoder that stays frozen, as it does on three of the four other roads."""
    model = bench.llava()
    bench.train("captions", llava_task(model, bench.captions(model), stage=1), PROJECTION)
    bench.train("instructions", llava_task(model, bench.instructions(model), stage=1), PROJECTION)
    return model


def frozen_road(bench: Bench) -> Llava:
    model = frozen.Frozen(bench.llava())
    bench.train("captions", frozen.frozen_task(model, bench.captions(model)), CAPTIONS)
    bench.train("instructions", frozen.frozen_task(model, bench.instructions(model)), ANSWERS)
    return model


def flamingo_road(bench: Bench) -> Llava:
    model = flamingo.Flamingo(bench.llava())
    bench.train("captions", flamingo.flamingo_task(model, bench.captions(model)), CAPTIONS)
    bench.train("instructions", flamingo.flamingo_task(model, bench.instructions(model)), ANSWERS)
    return model


def blip2_road(bench: Bench) -> Llava:
    """The Q-Former learns from captions without the decoder, then from instructions in front of it."""
    start = bench.llava()
    vocabulary = start.config.decoder.vocab_size + 2  # [CLS] and [DEC]
    config = blip2.QFormerConfig(vocab_size=vocabulary, source_size=start.config.vision.hidden_size)
    first = blip2.FirstTraining(start.vision_tower, config)
    bench.train("captions", blip2.first_task(first, bench.captions(start)), CAPTIONS)
    model = blip2.Blip2(start, first.qformer)
    bench.train("instructions", blip2.blip2_task(model, bench.instructions(model)), ANSWERS)
    return model


def kosmos_road(bench: Bench) -> Llava:
    """Documents of one to three pictures with their captions, then instructions; all of the model learns."""
    model = kosmos.Kosmos(bench.llava())
    documents = kosmos.Documents(bench.captions(model))
    # As many captions in a batch, so fewer documents
    fewer = round(CAPTIONS.batch_size * len(documents) / len(documents.captions))
    bench.train("captions", kosmos.kosmos_task(model, documents), replace(CAPTIONS, batch_size=fewer))
    bench.train("instructions", kosmos.kosmos_task(model, bench.instructions(model)), ANSWERS)
    return model


Row = Callable[[Bench], Llava]


@dataclass(frozen=True)
class Comparison:
    """A table: its title and, by name, how each row is trained. The other rows are compared with the first."""

    title: str
    rows: dict[str, Row]


COMPARISONS = {
    "roads": Comparison(
        "The roads not taken, each from the same towers with the same number of examples",
        {
            "LLaVA": llava,
            "LLaVA, decoder frozen": projection,
            "Frozen": frozen_road,
            "Flamingo": flamingo_road,
            "BLIP-2": blip2_road,
            "Kosmos-1": kosmos_road,
        },
    ),
}
