"""``python -m lessons.does_it_look [MODEL ...]``: does a model look at the picture, or does it guess?

A model answers held-out questions with their pictures, blind and with other pictures (``minillava.evaluate``), POPE's
questions, and questions about pairs of colour and kind that stage 2 never showed. MODEL is ``toy`` (the shipped model),
``smol``, or a row of the roads' comparison, as ``lessons.experiments roads`` has trained it with seed 0.

Writes ``lessons/results/looks.json``, and from all that is in it the page ``does-it-look.md`` and its drawing. Without
MODEL it only writes the page again.
"""

import argparse
import json
import tempfile
from collections import Counter
from pathlib import Path

import torch

from data.picturebook.pope import WAYS
from lessons.comparisons import COMPARISONS, Bench
from lessons.experiments import RESULTS, draw, markdown, towers_of
from minillava.checkpoint import load
from minillava.config import PRETRAINED
from minillava.errors import UserError, run_program
from minillava.evaluate import evaluate
from minillava.model.llava import Llava

ROADS = COMPARISONS["roads"].rows
MODELS = ("toy", "smol", *ROADS)

Tally = dict[str, list[int]]  # difficulty -> [right answers, questions]


def model_of(name: str, run: Path, steps: int, device: str) -> Llava:
    """The model of a name. Raises UserError if it is a road that is not trained yet."""
    if name not in ROADS:
        return load("smol" if name == "smol" else PRETRAINED / "llava", device)
    folder = run / "experiments" / f"{steps} steps" / name / "0"
    if not (folder / "result.json").exists():
        raise UserError(f"{folder}: not trained yet; python -m lessons.experiments roads trains it")
    return ROADS[name].train(Bench(ROADS[name], towers_of(run), run / "data", folder, 0, steps, device))


def looks(model: Llava, data: Path, every: int) -> dict:
    """All that the page tells of a model, from the questions about each ``every``-th picture of each file in ``data``.

    "heldout" and "unseen" are evaluate()'s results, "pope" its "pope" by the way in which absent things were chosen;
    "count" and "position" are tallies by difficulty.
    """
    with tempfile.TemporaryDirectory() as folder:

        def ask(name: str) -> tuple[list[dict], dict]:
            rows = json.loads((data / name).read_text(encoding="utf-8"))
            chosen = set(sorted({row["image"] for row in rows})[::every])
            rows = [row for row in rows if row["image"] in chosen]
            (Path(folder) / name).write_text(json.dumps(rows), encoding="utf-8")
            return rows, evaluate(model, Path(folder) / name, data, answers=True)

        rows, heldout = ask("heldout.json")
        found = {"heldout": heldout, "unseen": ask("unseen.json")[1]}
        found["pope"] = {way: ask(f"pope_{way}.json")[1]["pope"] for way in WAYS}
    lines = heldout.pop("answers")
    found["unseen"].pop("answers")
    counts = [
        (line["reference"].lower().split().count("one"), line["right"]) for line in lines if line["type"] == "count"
    ]
    places = [(len(rows[line["row"]]["things"]), line["right"]) for line in lines if line["type"] == "position"]
    return found | {"count": tally(counts), "position": tally(places)}


def tally(answers: list[tuple[int, bool]]) -> Tally:
    """The numbers of right answers and of questions of each difficulty, from (difficulty, right)."""
    asked, right = Counter(hard for hard, _ in answers), Counter(hard for hard, hit in answers if hit)
    return {str(hard): [right[hard], asked[hard]] for hard in sorted(asked)}


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def shares(tallies: Tally, columns: list[str]) -> list[str]:
    """The share of right answers and the number of questions of each difficulty; empty where nothing was asked."""
    found = (tallies.get(hard, [0, 0]) for hard in columns)
    return [f"{percent(right / asked)} ({asked})" if asked else "" for right, asked in found]


def on_the_same_types(found: dict) -> float:
    """The share of right answers about held-out pictures, for those types of questions that unseen.json has."""
    numbers, kinds = found["heldout"]["types"], found["unseen"]["types"]
    right = sum(found["heldout"]["by_type"][kind] * numbers[kind] for kind in kinds)
    return right / sum(numbers[kind] for kind in kinds)


def page(found: dict[str, dict]) -> str:
    """The page, in Markdown. ``found``: what looks() found, by model."""
    heldout = {name: one["heldout"] for name, one in found.items()}
    seeing = [["", "questions", "right, %", "blind, %", "shuffled, %", "by looking, %"]]
    for name, one in heldout.items():
        looking = (one["accuracy"] - one["blind"]) / (1 - one["blind"])
        cells = [percent(share) for share in (one["accuracy"], one["blind"], one["shuffled"], looking)]
        seeing.append([name, f"{one['questions']:,}", *cells])
    kinds = sorted({kind for one in heldout.values() for kind in one["types"]})
    types = [["right (blind), %", *kinds]]
    for name, one in heldout.items():
        types.append([name, *(f"{percent(one['by_type'][k])} ({percent(one['blind_by_type'][k])})" for k in kinds)])
    pope = [["accuracy / F1 / said yes, %", *WAYS, "blind, random"]]
    for name, one in found.items():
        views = [*(one["pope"][way]["normal"] for way in WAYS), one["pope"]["random"]["blind"]]
        pope.append([name, *(" / ".join(percent(view[key]) for key in ("accuracy", "f1", "yes")) for view in views)])
    tables = {}
    for kind in ("count", "position"):
        hard = sorted({hard for one in found.values() for hard in one[kind]})
        tables[kind] = [
            ["right, % (questions)", *hard],
            *([name, *shares(one[kind], hard)] for name, one in found.items()),
        ]
    unseen = [["", "known pairs, %", "unseen pairs, %", "unseen pairs, blind, %", "questions about these"]]
    for name, one in found.items():
        cells = (on_the_same_types(one), one["unseen"]["accuracy"], one["unseen"]["blind"])
        unseen.append([name, *map(percent, cells), f"{one['unseen']['questions']:,}"])
    return f"""# Does it look?

A model that talks about pictures may be guessing. Each table below is a way to find out. All questions are about
pictures that no training has seen; `python -m lessons.does_it_look` asks them and writes this page. "toy" is the
shipped model, trained by the whole recipe. The rows from "LLaVA" on are those of
[lessons/experiments.py](../experiments.py): short trainings with one seed, for all of them 200 steps on captions and
400 on instructions.

## With the picture, without it, and with another

"Blind" shows an empty picture, "shuffled" the picture of another question. What is right then is guessed. "By looking"
is (right - blind) / (1 - blind): of what cannot be guessed, the share that is answered right. An answer is right if
every word is.

![Bars: the column "right" below; marks on them: the column "blind"](looks.png)

{markdown(seeing)}

By type of question, with the picture and, in brackets, without:

{markdown(types)}

## Is it there? POPE's form

Half of the questions ask for a kind of thing that is in the picture, half for one that is not: any ("random"), the
most frequent in training ("popular"), or the one that goes most often with what is there ("adversarial"); see
[POPE](https://arxiv.org/abs/2305.10355). A model that says yes too often says it to more than 50 %. In the picture-book
all kinds are about equally frequent and go together by chance, so the three should differ little.

{markdown(pope)}

## Harder and easier

Counting, by the number of things to count:

{markdown(tables["count"])}

Where is it? By the number of things in the picture:

{markdown(tables["position"])}

## Combinations that stage 2 never showed

Stage 2 shows no red fish and no orange car, among others. Questions about such things, and the same types of
questions about pairs that it shows:

{markdown(unseen)}
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m lessons.does_it_look", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("models", nargs="*", metavar="MODEL", help=f"any of {'; '.join(MODELS)}")
    add("--run", type=Path, default=Path("out/toy"), help="folder with data/ and experiments/ (default %(default)s)")
    add("--steps", type=int, default=400, help="of the experiments (default %(default)s)")
    add("--every", type=int, default=4, help="ask only about each N-th picture (default %(default)s)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    a = parser.parse_args()
    if unknown := set(a.models) - set(MODELS):
        parser.error(f"no model {', '.join(sorted(unknown))}: choose from {'; '.join(MODELS)}")
    if a.every < 1:
        parser.error("--every must be at least 1")
    file = RESULTS / "looks.json"
    found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    for name in a.models:
        found[name] = looks(model_of(name, a.run, a.steps, a.device), a.run / "data", a.every)
        file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if not found:
        parser.error("nothing is stored yet: name a model")
    found = {name: found[name] for name in MODELS if name in found}
    (RESULTS / "does-it-look.md").write_text(page(found), encoding="utf-8")
    bars = {name: [one["heldout"]] for name, one in found.items()}
    draw("Held-out pictures", bars).save(RESULTS / "looks.png", optimize=True)
    print(RESULTS / "does-it-look.md")


if __name__ == "__main__":
    run_program(main)
