"""``python tests/benchmarks/ablations.py --run out/toy``: what each choice of the recipe is worth.

Trains stages 1 and 2 again from the towers and the picture-book of a finished run, each time with one thing changed and
for the same number of steps, and evaluates on the first rows of ``heldout.json``. Prints a table; ``--json`` adds a
line of JSON.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from minillava.checkpoint import join, load, load_clip  # noqa: E402
from minillava.evaluate import evaluate  # noqa: E402
from minillava.saving import replace_folder, save, write_clip  # noqa: E402
from minillava.training.tasks import initialise  # noqa: E402


def random_vision(run: Path, folder: Path) -> None:
    """A vision tower of the same shape that has learned nothing."""
    clip, processor = load_clip(run / "vision")
    initialise(clip)
    replace_folder(folder, lambda new: write_clip(clip, processor, new))


def fresh_projection(run: Path, folder: Path) -> None:
    """The two towers with an untrained W, for stage 2 without stage 1."""
    save(join(run / "vision", run / "decoder"), folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--run", type=Path, required=True, help="a finished run of train.py, with data, vision, decoder"
    )
    parser.add_argument("--out", type=Path, default=Path("out/ablations"))
    parser.add_argument("--steps", type=int, default=600, help="steps of stage 2, and at most of stage 1")
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--json", action="store_true")
    a = parser.parse_args()
    run, a.out = a.run.resolve(), a.out.resolve()
    torch.manual_seed(0)
    a.out.mkdir(parents=True, exist_ok=True)
    random_vision(run, a.out / "random-vision")
    fresh_projection(run, a.out / "no-stage-1")
    rows = json.loads((run / "data" / "heldout.json").read_text(encoding="utf-8"))[: a.questions]
    (a.out / "questions.json").write_text(json.dumps(rows), encoding="utf-8")
    towers = ["--vision", str(run / "vision"), "--decoder", str(run / "decoder")]
    variants = {
        "as it is": towers,
        "random vision tower": ["--vision", str(a.out / "random-vision"), *towers[2:]],
        "no stage 1": ["--model", str(a.out / "no-stage-1")],
        "last layer": [*towers, "--vision-feature-layer", "-1"],
        "image always first": [*towers, "--image-place", "first"],
    }
    scores = {}
    for name, arguments in variants.items():
        out = a.out / name.replace(" ", "-") / "run"
        out.mkdir(parents=True, exist_ok=True)
        if not (out / "data").exists():
            (out / "data").symlink_to(run / "data")
        command = [sys.executable, "train.py", "--stage", "2", "--max-steps", str(a.steps), "--out", str(out.resolve())]
        subprocess.run([*command, *arguments], cwd=ROOT, check=True)
        scores[name] = evaluate(load(out / "stage2"), a.out / "questions.json", run / "data")
    for name, score in scores.items():
        print(f"{name:<22} {score['accuracy']:.1%}")
    if a.json:
        print(json.dumps({name: round(score["accuracy"], 4) for name, score in scores.items()}))


if __name__ == "__main__":
    main()
