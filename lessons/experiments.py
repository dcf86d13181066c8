"""``python -m lessons.experiments [NAME ...]``: train and compare, row by row, what ``comparisons.py`` lists.

Each row of a table is trained with several seeds and answers held-out questions. A table gives means over the seeds
and, in brackets, the lowest and the highest. Where these ranges of two rows overlap, their difference counts as none.
A second table has the scores of ``scene_judge.py``, relative to the teacher's answers, as the paper's table 4.

Prints the tables, and writes ``lessons/results/NAME.json`` and a drawing, ``NAME.png``. What is trained already is
kept: after an interruption, the same command goes on. A row that several comparisons share is trained once.
"""

import argparse
import json
from pathlib import Path
from statistics import fmean

import torch
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from data.picturebook.write import write_world
from lessons.comparisons import COMPARISONS, Bench
from lessons.scene_judge import TYPES, judge
from minillava.config import PRETRAINED
from minillava.errors import run_program
from minillava.evaluate import evaluate
from minillava.training.plot import BLUE, FAINT, INK
from minillava.training.progress import in_words

RESULTS = Path(__file__).parent / "results"
QUESTIONS = 1000  # rows of heldout.json
JUDGED = 100  # pictures about which the scene's judge asks
PICTURES = 20000  # of the picture-book, if it is not drawn yet
PACE = 0.9  # seconds that a run, with its questions, takes on one CPU core for each step of --steps


def result_of(bench: Bench) -> dict:
    """What a row gets with one seed: evaluate()'s scores, what the training took, and the judge's scores.

    An earlier result is kept. If it has no judge's scores, the trained model is read from its folder and judged.
    """
    file = bench.out / "result.json"
    result = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if "relative" not in result:
        model = bench.row.train(bench)
        place = "last" if bench.row.image_place == "last" else "first"
        if not result:
            result = evaluate(model, bench.questions(QUESTIONS), bench.data, image_place=place)
            side = model.config.vision.image_size
            with torch.inference_mode():
                result["visual_tokens"] = model.encode_images(torch.zeros(1, 3, side, side)).shape[1]
            result |= {"learns": bench.spent[-1]["learns"], "seconds": sum(part["seconds"] for part in bench.spent)}
            result["parts"] = bench.spent
        result["relative"] = judge(model, bench.judged(JUDGED), bench.data, place)
        file.write_text(json.dumps(result), encoding="utf-8")
    return result


def kept(name: str) -> dict[str, list[dict]]:
    """The results of each row of a comparison, one for each seed, as they were last written."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["rows"]


def spread(results: list[dict], key: str) -> tuple[float, float, float]:
    """Mean, lowest and highest over the seeds."""
    values = [result[key] for result in results]
    return fmean(values), min(values), max(values)


def described(result: dict) -> float:
    """Of the things in the pictures, the share that descriptions name, less the wrong ones that they name."""
    return result["recall"] * (2 - 1 / result["precision"]) if result.get("precision") else 0.0


def difference(results: list[dict], first: list[dict]) -> str:
    """The difference in accuracy from the first row, in points; "none" if the ranges over the seeds overlap.

    One seed has no range, so nothing is said of a difference: "?".
    """
    if len(results) == 1:
        return "?"
    (mean, low, high), (other, lowest, highest) = spread(results, "accuracy"), spread(first, "accuracy")
    return "none" if low <= highest and lowest <= high else f"{100 * (mean - other):+.1f}"


def least_seen(found: dict[str, list[dict]]) -> str:
    """By how much every row is better with the pictures than blind: the least, of all rows and seeds, in points."""
    margins = {name: min(one["accuracy"] - one["blind"] for one in results) for name, results in found.items()}
    name = min(margins, key=margins.get)
    return f"With the pictures, each row gets at least {100 * margins[name]:.1f} points more than blind ({name})."


def table(found: dict[str, list[dict]]) -> list[list[str]]:
    """The head and the rows of a table, as text. ``found``: the results of each row, one for each seed."""
    first = next(iter(found.values()))
    kinds = sorted(first[0]["types"])
    head = ["", "right, %", "blind, %", "difference", *kinds, "things named", "learn", "visual tokens", "minutes"]
    lines = []
    for name, results in found.items():
        shares = [[100 * share for share in spread(results, key)] for key in ("accuracy", "blind")]
        cells = [f"{mean:.1f} ({low:.1f} to {high:.1f})" for mean, low, high in shares]
        cells.append("" if results is first else difference(results, first))
        cells += [f"{100 * fmean(result['by_type'][kind] for result in results):.0f}" for kind in kinds]
        cells.append(f"{100 * fmean(map(described, results)):.0f}")
        cells += [f"{results[0]['learns']:,}", str(results[0]["visual_tokens"])]
        # The fastest seed: another program on the machine can only make a run slower.
        lines.append([name, *cells, f"{spread(results, 'seconds')[1] / 60:.1f}"])
    return [head, *lines]


def relative_table(found: dict[str, list[dict]]) -> list[list[str]]:
    """The head and the rows of a table with the judge's scores in percent of the teacher's, as text."""
    kinds = (*TYPES, "all")
    lines = [["relative to the teacher, %", *kinds]]
    for name, results in found.items():
        shares = [[100 * share for share in spread([one["relative"] for one in results], kind)] for kind in kinds]
        lines.append([name, *(f"{mean:.1f} ({low:.1f} to {high:.1f})" for mean, low, high in shares)])
    return lines


def markdown(lines: list[list[str]]) -> str:
    """A table in Markdown. The first of the lines is its head."""
    head, *rest = lines
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rest))


def draw(title: str, found: dict[str, list[dict]]) -> Image.Image:
    """A bar for each row: the mean, a line over the seeds' range, and a mark where the blind mean is."""
    left, right, top, step = 190, 700, 44, 34
    sheet = Image.new("RGB", (760, top + step * len(found) + 34), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)

    def x(share: float) -> float:
        return left + (right - left) * share

    bottom = top + step * len(found)
    over = ", over the seeds' range" if max(map(len, found.values())) > 1 else ""
    pen.text((12, 12), f"{title}: right answers{over}; orange: without the picture", INK, font)
    for tick in range(0, 101, 20):
        pen.line([(x(tick / 100), top), (x(tick / 100), bottom)], FAINT)
        pen.text((x(tick / 100), bottom + 14), f"{tick} %", INK, font, "mm")
    for number, (name, results) in enumerate(found.items()):
        y = top + step * number + step // 2
        mean, low, high = spread(results, "accuracy")
        blind = x(spread(results, "blind")[0])
        pen.text((left - 10, y), name, INK, font, "rm")
        pen.rectangle([left, y - 9, x(mean), y + 9], BLUE)
        pen.line([(x(low), y), (x(high), y)], INK, 3)
        pen.line([(blind, y - 13), (blind, y + 13)], "orange", 3)
    return sheet


def towers_of(run: Path) -> Path:
    """The folder of the towers: a run's own if it has them, else the shipped ones."""
    return run if (run / "vision").exists() and (run / "decoder").exists() else PRETRAINED


def compare(name: str, run: Path, out: Path, seeds: int, steps: int, device: str) -> None:
    """Train what is missing of a comparison, then print and write its results."""
    comparison, found = COMPARISONS[name], {}
    folders = [out / f"{steps} steps" / title / str(seed) for title in comparison.rows for seed in range(seeds)]
    missing = sum(not (folder / "result.json").exists() for folder in folders)
    left = f", about {in_words(missing * steps * PACE)} on one CPU core" if missing else ""
    print(f"{name}: {missing} of {len(folders)} runs are missing{left}", flush=True)
    with tqdm(total=seeds * len(comparison.rows), desc=name, unit="run", disable=None) as bar:
        for title, row in comparison.rows.items():
            found[title] = []
            for seed in range(seeds):
                folder = out / f"{steps} steps" / title / str(seed)
                found[title].append(result_of(Bench(row, towers_of(run), run / "data", folder, seed, steps, device)))
                bar.update()
    print(f"\n{comparison.title}; seeds: {seeds}, steps: {steps}\n")
    print(markdown(table(found)), least_seen(found), markdown(relative_table(found)), sep="\n\n")
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({"seeds": seeds, "steps": steps, "rows": found}, indent=1)
    (RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    draw(comparison.title, found).save(RESULTS / f"{name}.png", optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m lessons.experiments", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help=f"one or more of {', '.join(COMPARISONS)} (default: all)")
    add(
        "--run",
        type=Path,
        default=Path("out/toy"),
        help="folder with data/, which is drawn if it is missing, and with "
        "vision/ and decoder/ if they are not to be the shipped ones (default %(default)s)",
    )
    add("--out", type=Path, help="folder for what is trained (default RUN/experiments)")
    add("--seeds", type=int, default=3)
    add("--steps", type=int, default=400, help="on instructions; half as many on captions (default %(default)s)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    a = parser.parse_args()
    if unknown := set(a.names) - set(COMPARISONS):
        parser.error(f"no comparison {', '.join(sorted(unknown))}: choose from {', '.join(COMPARISONS)}")
    if a.seeds < 1 or a.steps < 1:
        parser.error("--seeds and --steps must be at least 1")
    if not (a.run / "data").exists():
        print(f"data: drawing {PICTURES} pictures into {a.run / 'data'}, about 1 minute", flush=True)
        write_world(a.run / "data", PICTURES, 0)
    for name in a.names or COMPARISONS:
        compare(name, a.run, a.out or a.run / "experiments", a.seeds, a.steps, a.device)


if __name__ == "__main__":
    run_program(main)
