"""``python tests/benchmarks/train_step.py``: one training step and its memory, against transformers.

A step is the forward pass, the loss, the backward pass, AdamW's step and zero_grad. Both sides have the same weights
and dtype (float32), the same batch of picture-book rows (a picture each; answers alone bear loss; no mask, since the
padding stands on the right), the same parameters that learn (the projection, in stage 2 the decoder too) and the same
optimiser, and take turns in one process, with glibc told to keep what is freed, as minillava's loop has it. Their
losses are compared at every step.

Memory is the largest resident size of a process that takes two steps (the second finds the optimiser's state there),
less what it holds before the first, when library and weights are there; one process for each side.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from statistics import median

import torch
from models import alternate, build, opened_by_transformers, real_batch, resident
from torch import Tensor, nn

from minillava.training.machine import keep_memory
from minillava.training.tasks import choose_what_learns

# Rows a batch: the toy recipes', and what two cores do in seconds.
ROWS = {("toy", 1): 32, ("toy", 2): 16, ("135m", 1): 4, ("135m", 2): 4}
SIDES = ("minillava", "transformers")


def learning(model: nn.Module, stage: int, mlp: bool) -> list[nn.Parameter]:
    """What learns in transformers' model: what choose_what_learns() chooses in ours."""
    model.requires_grad_(False)
    model.model.multi_modal_projector.requires_grad_(True)
    if not mlp:  # the second layer is there for the form's sake
        model.model.multi_modal_projector.linear_2.requires_grad_(False)
    if stage == 2:
        model.model.language_model.requires_grad_(True)
        model.lm_head.requires_grad_(True)
    return [p for p in model.parameters() if p.requires_grad]


def steps(size: str, stage: int) -> dict[str, Callable[[], Callable[[], float]]]:
    """For each side what makes its step, which gives the loss."""
    source = build(size)
    batch = real_batch(source, ROWS[size, stage], stage)

    def maker(loss_of: Callable[[], Tensor], trainable: list[nn.Parameter]) -> Callable[[], float]:
        optimizer = torch.optim.AdamW(trainable, 1e-4, weight_decay=0.0)

        def step() -> float:
            loss = loss_of()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return loss.item()

        return step

    def ours() -> Callable[[], float]:
        choose_what_learns(source.train(), stage)
        return maker(lambda: source(**batch)[1], [p for p in source.parameters() if p.requires_grad])

    def theirs() -> Callable[[], float]:
        model = opened_by_transformers(source).train()
        trainable = learning(model, stage, source.config.projector == "mlp")
        return maker(lambda: model(**batch, use_cache=False).loss, trainable)

    return dict(zip(SIDES, (ours, theirs)))


def memory(size: str, stage: int, side: str) -> int:
    """Bytes that two steps of one side take at most, in this process."""
    step = steps(size, stage)[side]()
    before = resident("VmRSS")
    step()
    step()
    return resident("VmHWM") - before


def measure(size: str, stage: int, rounds: int) -> dict:
    keep_memory()
    made = steps(size, stage)
    theirs, ours = made["transformers"](), made["minillava"]()  # ours last: it is the one whose weights are saved
    losses: dict[str, list[float]] = {side: [] for side in SIDES}
    seconds = alternate(
        rounds,
        minillava=lambda: losses["minillava"].append(ours()),
        transformers=lambda: losses["transformers"].append(theirs()),
    )
    peaks = {}
    for side in SIDES:
        command = [sys.executable, __file__, "--size", size, "--stage", str(stage), "--memory", side]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        peaks[side] = int(output.splitlines()[-1])
    return {
        "size": size,
        "stage": stage,
        "rows": ROWS[size, stage],
        "threads": torch.get_num_threads(),
        "seconds": {side: median(values) for side, values in seconds.items()},
        "ratio": median(b / a for a, b in zip(*seconds.values())),
        "peak_bytes": peaks,
        "peak_ratio": peaks["minillava"] / peaks["transformers"],
        "loss_difference": max(abs(a - b) / b for a, b in zip(*losses.values())),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=("toy", "135m"), nargs="+", default=["toy", "135m"])
    parser.add_argument("--stage", type=int, choices=(1, 2), nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=7, help="(default %(default)s)")
    parser.add_argument("--json", action="store_true", help="print a line of JSON too")
    parser.add_argument("--memory", choices=SIDES, help=argparse.SUPPRESS)  # what a process of its own is told
    a = parser.parse_args()
    if a.memory:
        print(memory(a.size[0], a.stage[0], a.memory))
        return
    print(f"{'':<22}{'ms a step':^27}{'peak MB of a step':^27}{'losses':>9}")
    print(f"{'':<22}" + f"{'ours':>9}{'theirs':>9}{'ratio':>7}  " * 2 + f"{'differ':>9}")
    results = []
    for size in a.size:
        for stage in a.stage:
            r = measure(size, stage, a.rounds)
            results.append(r)
            name = f"{size}, stage {stage}, {r['rows']} rows"
            print(f"{name:<22}", end="")
            print("".join(f"{seconds * 1e3:>9.1f}" for seconds in r["seconds"].values()), end="")
            print(f"{r['ratio']:>7.2f}  " + "".join(f"{b / 1e6:>9.1f}" for b in r["peak_bytes"].values()), end="")
            print(f"{r['peak_ratio']:>7.2f}  {r['loss_difference']:>9.1e}", flush=True)
    if a.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
