"""``python tests/benchmarks/cost.py``: how the time of a training step grows with the rows' length and with pictures.

Stage 2 with random weights and rows: first rows of increasing length with one picture each, then batches with an
increasing number of pictures and rows of one length. The table gives the time of each step and the operations it needs
(flops.py). Below it is the exponent, the slope of a line through the logarithms, of the measured times and of the
operations: 1 if a doubled size takes twice as long, 2 if four times. For small sizes the measured exponent is lower,
because part of each step takes the same time at every size.
"""

import argparse
import json
import math
from statistics import median

import torch
from flops import step_flops
from models import alternate, first_rows, random_task
from plan import Shape

from minillava.config import DecoderConfig, VisionConfig
from minillava.training.machine import keep_memory
from minillava.training.recipes import Recipe

VISION = VisionConfig(256, 1024, 4, 4, image_size=64, patch_size=8)  # 64 visual tokens
DECODER = DecoderConfig(1024, 256, 704, 4, 4, 4, 64, tie_word_embeddings=False)


def shape_of(rows: int, length: int) -> Shape:
    return Shape(VISION, DECODER, 2, Recipe(1e-4, rows, 1, length=length), bfloat16=False)


def exponent(sizes: list[int], costs: list[float]) -> float:
    """The slope of log(cost) over log(size), by least squares."""
    x, y = [math.log(size) for size in sizes], [math.log(cost) for cost in costs]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y)) / sum((a - mean_x) ** 2 for a in x)


def measure(what: str, sizes: list[int], rounds: int) -> dict:
    """Median seconds of a step, and its operations, at each size. The sizes run in alternation."""
    settings, steps = {}, {}
    for size in sizes:
        rows, length = (2, size) if what == "length" else (size, 128)
        settings[str(size)] = setting = shape_of(rows, length).setting(gpu=False)
        task = random_task(setting, "cpu")
        optimizer = torch.optim.AdamW([p for p in task.model.parameters() if p.requires_grad], 1e-4)
        batch = first_rows(task, rows)

        def step(task=task, optimizer=optimizer, batch=batch) -> None:
            task.loss(batch).backward()
            optimizer.step()
            optimizer.zero_grad()

        steps[str(size)] = step
    seconds = [median(values) for values in alternate(rounds, **steps).values()]
    flops = [step_flops(setting) for setting in settings.values()]
    return {
        "what": what,
        "sizes": sizes,
        "seconds": seconds,
        "flops": flops,
        "exponent": exponent(sizes, seconds),
        "exponent_of_flops": exponent(sizes, flops),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 256, 512, 1024, 2048])
    parser.add_argument("--pictures", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--rounds", type=int, default=5, help="(default %(default)s)")
    parser.add_argument("--json", action="store_true", help="print a line of JSON too")
    a = parser.parse_args()
    keep_memory()
    results = []
    for what, sizes in (("length", a.lengths), ("pictures", a.pictures)):
        r = measure(what, sizes, a.rounds)
        results.append(r)
        print(f"{what:<10}{'ms per step':>12}{'GFLOP':>10}{'GFLOP/s':>10}")
        for size, seconds, flops in zip(sizes, r["seconds"], r["flops"]):
            print(f"{size:<10}{seconds * 1e3:>12.1f}{flops / 1e9:>10.2f}{flops / seconds / 1e9:>10.1f}")
        print(f"{'exponent':<10}{r['exponent']:>12.2f}{r['exponent_of_flops']:>10.2f}\n", flush=True)
    if a.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
