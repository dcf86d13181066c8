"""``python tests/benchmarks/train_step.py``: one training step and its memory, against transformers.

A step is the forward pass, the loss, the backward pass, AdamW's step and zero_grad. Both sides have the same weights
and dtype (float32), the same batch of picture-book rows (one picture each; loss only on the answers; no attention mask,
because padding is on the right), the same trainable parameters (the projection, in stage 2 the decoder too) and the
same optimizer. They run in alternation in one process, where glibc keeps freed memory, as in minillava's loop. Their
losses are compared at every step. ``--compile`` compiles minillava's blocks, as ``train.py --compile`` does.

Memory is measured in a separate process for each side: the peak resident memory of two steps (in the second, the
optimizer state exists from the start), less the memory before the first, with libraries and weights loaded.
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

from minillava.training.machine import compile_blocks, keep_memory
from minillava.training.tasks import choose_what_learns

# Rows per batch: the toy recipes', and what two cores compute in seconds.
ROWS = {("toy", 1): 32, ("toy", 2): 16, ("135m", 1): 4, ("135m", 2): 4}
SIDES = ("minillava", "transformers")


def learning(model: nn.Module, stage: int, mlp: bool) -> list[nn.Parameter]:
    """The trainable parameters of transformers' model: the same as choose_what_learns() selects in ours."""
    model.requires_grad_(False)
    model.model.multi_modal_projector.requires_grad_(True)
    if not mlp:  # the format has a second layer: an identity, frozen
        model.model.multi_modal_projector.linear_2.requires_grad_(False)
    if stage == 2:
        model.model.language_model.requires_grad_(True)
        model.lm_head.requires_grad_(True)
    return [p for p in model.parameters() if p.requires_grad]


def steps(size: str, stage: int, compile: bool = False) -> dict[str, Callable[[], Callable[[], float]]]:
    """For each side, a function that builds its step; a step returns the loss."""
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
        compile_blocks(source, compile)
        return maker(lambda: source(**batch)[1], [p for p in source.parameters() if p.requires_grad])

    def theirs() -> Callable[[], float]:
        model = opened_by_transformers(source).train()
        trainable = learning(model, stage, source.config.projector == "mlp")
        return maker(lambda: model(**batch, use_cache=False).loss, trainable)

    return dict(zip(SIDES, (ours, theirs)))


def memory(size: str, stage: int, side: str) -> int:
    """The peak memory of two steps of one side in this process, in bytes."""
    step = steps(size, stage)[side]()
    before = resident("VmRSS")
    step()
    step()
    return resident("VmHWM") - before


def measure(size: str, stage: int, rounds: int, compile: bool) -> dict:
    keep_memory()
    made = steps(size, stage, compile)
    theirs, ours = made["transformers"](), made["minillava"]()  # ours last: theirs starts from its saved weights
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
    parser.add_argument("--compile", action="store_true", help="compile minillava's blocks")
    parser.add_argument("--json", action="store_true", help="print a line of JSON too")
    parser.add_argument("--memory", choices=SIDES, help=argparse.SUPPRESS)  # for the separate process
    a = parser.parse_args()
    if a.memory:
        print(memory(a.size[0], a.stage[0], a.memory))
        return
    print(f"{'':<22}{'ms per step':^27}{'peak MB of a step':^27}{'losses':>9}")
    print(f"{'':<22}" + f"{'ours':>9}{'theirs':>9}{'ratio':>7}  " * 2 + f"{'differ':>9}")
    results = []
    for size in a.size:
        for stage in a.stage:
            r = measure(size, stage, a.rounds, a.compile)
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
