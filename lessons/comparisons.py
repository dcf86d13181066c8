"""What is compared, and how each row of a table is trained. ``experiments.py`` runs it.

All rows of all tables train from the same two towers, first on captions, then on instructions, with the same numbers of
examples. A row's name says everywhere the same, so a row that is in several tables is trained once.
"""

import json
import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from lessons.roads import blip2, flamingo, frozen, kosmos
from lessons.scene_judge import ask_about
from minillava.checkpoint import join
from minillava.inputs.conversation import IGNORE
from minillava.inputs.conversations import ConversationDataset
from minillava.model.llava import Llava
from minillava.saving import recover_folder
from minillava.training.loop import Run, train
from minillava.training.machine import default_workers
from minillava.training.recipes import TOY, Recipe
from minillava.training.tasks import Task, initialise, llava_task

# train.py's recipes. That of stage 1 is for a projection only; what else learns from captions learns as in stage 2.
PROJECTION, ANSWERS = TOY["stage1"], TOY["stage2"]
CAPTIONS = replace(ANSWERS, batch_size=PROJECTION.batch_size)


@dataclass(frozen=True)
class Row:
    """A row of a table: how a model is trained, and what is changed from the paper's LLaVA.

    ``tower``: False for a vision tower with random weights. ``image_place``: where training puts the picture; questions
    are asked with the picture before them, unless it is "last". ``shares``: the share of the instructions of each type
    that is used; None for all, {} for no stage 2. ``all_tokens``: all tokens have a loss, not only those of answers.
    ``answer_first``: "a, so b." becomes "B: a.", also in the questions that are asked.
    """

    train: Callable[["Bench"], Llava]
    projector: str = "linear"
    layer: int = -2
    tower: bool = True
    image_place: str = "random"
    stage1: bool = True
    shares: dict[str, float] | None = None
    all_tokens: bool = False
    answer_first: bool = False


@dataclass
class Bench:
    """What a row is trained with: towers, picture-book, folder for its results, seed, number of steps.

    ``steps`` are those on instructions; those on captions are half as many. ``spent`` collects what trainings took.
    """

    row: Row
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
        model = join(self.towers / "vision", self.towers / "decoder", self.row.projector, self.row.layer)
        if not self.row.tower:
            initialise(model.vision_tower)
        return model

    def captions(self, model: Llava) -> ConversationDataset:
        return self.dataset(self.data / "captions.json", model)

    def instructions(self, model: Llava) -> ConversationDataset:
        rows = json.loads((self.data / "instruct.json").read_text(encoding="utf-8"))
        if self.row.shares is not None:
            rng = random.Random(self.seed)
            rows = [row for row in rows if rng.random() < self.row.shares.get(row["type"], 0)]
        return self.dataset(self.written("instructions.json", rows), model)

    def questions(self, number: int) -> Path:
        """A file of the first rows of heldout.json."""
        rows = json.loads((self.data / "heldout.json").read_text(encoding="utf-8"))[:number]
        return self.written("questions.json", rows)

    def judged(self, pictures: int) -> Path:
        """A file of questions of each type of response about held-out pictures, for the judge."""
        rows = json.loads((self.data / "heldout.json").read_text(encoding="utf-8"))
        return self.written("judged.json", ask_about(rows, pictures))

    def written(self, name: str, rows: list[dict]) -> Path:
        """A file with ``rows``, whose answers come before their reasons if the row of the table says so."""
        for turn in (turn for row in rows for turn in row["conversations"]):
            if self.row.answer_first and turn["from"] == "gpt":
                turn["value"] = answer_first(turn["value"])
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / name).write_text(json.dumps(rows), encoding="utf-8")
        return self.out / name

    def dataset(self, path: Path, model: Llava) -> ConversationDataset:
        return ConversationDataset(path, self.data, model.processor, self.row.image_place)

    def train(self, part: str, task: Task, recipe: Recipe) -> None:
        """Train a task, or go on where its training was interrupted."""
        if self.row.all_tokens:
            image_id = task.model.config.image_token_id
            task = replace(task, collate=lambda examples: loss_everywhere(task.dataset.collate(examples), image_id))
        steps = max(1, self.steps // 2) if part == "captions" else self.steps
        out = self.out / part
        recover_folder(out)  # after a kill while it was written
        run = Run(out, self.seed, out.exists(), steps, self.device, workers=default_workers(self.device, 1))
        train(task, replace(recipe, epochs=steps), run)  # at least one step an epoch, so max_steps is what ends it
        log = [json.loads(line) for line in (self.out / f"{part}.metrics.jsonl").read_text().splitlines()]
        clock = [0.0, *(row["seconds"] for row in log)]
        # The median step, so that neither a break nor another program on the machine counts.
        seconds = steps * statistics.median(after - before for before, after in pairwise(clock))
        learns = sum(parameter.numel() for parameter in task.model.parameters() if parameter.requires_grad)
        self.spent.append({"part": part, "loss": log[-1]["loss"], "seconds": round(seconds, 1), "learns": learns})


def answer_first(text: str) -> str:
    """ "One on the left, one on the right, so two." -> "Two: one on the left, one on the right." """
    reason, so, answer = text.rstrip(".").rpartition(", so ")
    return f"{answer[:1].upper()}{answer[1:]}: {reason[:1].lower()}{reason[1:]}." if so else text


def loss_everywhere(batch: dict[str, Tensor], image_id: int) -> dict[str, Tensor]:
    """A batch in which all tokens of text have a loss, the questions' too."""
    ids = batch["input_ids"]  # (B, T)
    there = torch.arange(ids.shape[1]) < batch["lengths"][:, None]
    return batch | {"labels": ids.masked_fill(~there | (ids == image_id), IGNORE)}


def llava(bench: Bench) -> Llava:
    """The paper: the projection learns from captions, then the projection and the decoder from instructions."""
    model, row = bench.llava(), bench.row
    if row.stage1:
        bench.train("captions", llava_task(model, bench.captions(model), stage=1), PROJECTION)
    if row.shares != {}:
        bench.train("instructions", llava_task(model, bench.instructions(model), stage=2), ANSWERS)
    return model


def projection(bench: Bench) -> Llava:
    """LLaVA's projection in front of a decoder that stays frozen, as it does on three of the four other roads."""
    model = bench.llava()
    bench.train("captions", llava_task(model, bench.captions(model), stage=1), PROJECTION)
    recipe = replace(PROJECTION, batch_size=ANSWERS.batch_size)
    bench.train("instructions", llava_task(model, bench.instructions(model), stage=1), recipe)
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


@dataclass(frozen=True)
class Comparison:
    """A table: its title and its rows by name. The first is LLaVA as in the paper; the others are compared with it."""

    title: str
    others: dict[str, Row]

    @property
    def rows(self) -> dict[str, Row]:
        return {"LLaVA": Row(llava), **self.others}


COMPARISONS = {
    "mix": Comparison(
        "Kinds of instructions",
        {
            "detail, reasoning": Row(llava, shares={"detail": 1, "reasoning": 1}),
            "5 % detail, 10 % reasoning": Row(llava, shares={"conversation": 1, "detail": 0.05, "reasoning": 0.1}),
            "conversation only": Row(llava, shares={"conversation": 1}),
            "no stage 2": Row(llava, shares={}),
        },
    ),
    "stage1": Comparison("With stage 1, and without", {"no stage 1": Row(llava, stage1=False)}),
    "tower": Comparison(
        "What the projection reads",
        {"last layer": Row(llava, layer=-1), "a tower without training": Row(llava, tower=False)},
    ),
    "place": Comparison(
        "Where the picture is",
        {"picture before": Row(llava, image_place="first"), "picture after": Row(llava, image_place="last")},
    ),
    "order": Comparison("Reason first, or answer first", {"answer first": Row(llava, answer_first=True)}),
    "projector": Comparison("A linear projection, or LLaVA-1.5's MLP", {"MLP": Row(llava, projector="mlp")}),
    "loss": Comparison("Loss on answers, or on all tokens", {"loss on all tokens": Row(llava, all_tokens=True)}),
    "roads": Comparison(
        "The roads not taken",
        {
            "LLaVA, decoder frozen": Row(projection),
            "Frozen": Row(frozen_road),
            "Flamingo": Row(flamingo_road),
            "BLIP-2": Row(blip2_road),
            "Kosmos-1": Row(kosmos_road),
        },
    ),
}
