"""``python tests/benchmarks/gpu.py``: the speed, utilisation and memory of training a preset on one GPU.

Uses random weights and rows of the preset's sizes, and the training loop of ``train.py``: micro-batches of the longest
rows with a picture in each, as many as plan.py says that the card holds; compiled blocks; gradient clipping and the
optimizer step. The first step is not counted. ``--memory 24`` is a hard limit: a training that needs more GiB fails,
even if the card has them. ``--peer`` measures transformers in the same way: the same shapes, dtypes, optimizer, limit
and micro-batches, or smaller ones if those do not fit.

Prints tokens per second, visual tokens included; the peak memory of PyTorch's allocator (tensors only, and with the
gaps between them) and what ``--plan`` computes; and model FLOP utilisation, the operations that the model needs
(counted as in flops.py) over those that the card could do in that time in bfloat16. ``--device cpu --preset toy`` runs
the same on any machine, without utilisation. ``--all FILE`` measures the presets ``consumer`` and ``llava-7b`` one
after another, each in a process of its own, and appends a line of JSON to FILE after each.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from unittest.mock import patch

import torch
from flops import PEAKS, step_flops
from models import RandomRows, first_rows, random_task, resident
from torch import nn
from train_step import learning

from minillava.config import LlavaConfig
from minillava.training import loop
from minillava.training.plan import GIB, Setting, fill, plan
from minillava.training.recipes import PRESETS, Recipe

# The order matters if time is short.
ALL = (
    ["--preset", "consumer", "--stage", "2"],
    ["--preset", "consumer", "--stage", "2", "--memory", "24"],
    ["--preset", "consumer", "--stage", "2", "--memory", "24", "--peer"],
    ["--preset", "llava-7b", "--stage", "2"],
    ["--preset", "llava-7b", "--stage", "2", "--memory", "24"],
    ["--preset", "consumer", "--stage", "1"],
    ["--preset", "llava-7b", "--stage", "1"],
)


def setting_of(name: str, stage: int, device: str, memory: float) -> Setting:
    """The preset's sizes and recipe, in micro-batches that fill ``memory`` GiB of a GPU."""
    preset, cuda = PRESETS[name], device == "cuda"
    config = LlavaConfig(
        preset.vision,
        preset.decoder,
        "linear" if name in ("toy", "paper") else "mlp",
        image_token_id=preset.decoder.vocab_size - 1,
    )
    setting = Setting(config, stage, preset.recipes[f"stage{stage}"], bfloat16=cuda, gpu=cuda)
    if not cuda:
        return setting
    return Setting(config, stage, fill(setting, memory) or setting.recipe, bfloat16=True, gpu=True)


def step_seconds(setting: Setting, steps: int, device: str, compile: bool | None) -> list[float]:
    """The seconds of each step but the first in a run of the loop that saves nothing."""
    task = random_task(setting, device)
    with tempfile.TemporaryDirectory() as folder, patch.object(loop, "save"):
        out = Path(folder) / "out"
        loop.train(task, setting.recipe, loop.Run(out, max_steps=steps + 1, device=device, compile=compile))
        lines = out.with_name("out.metrics.jsonl").read_text().splitlines()
    ends = [json.loads(line)["seconds"] for line in lines]
    return [after - before for before, after in pairwise(ends)]


def peer_seconds(setting: Setting, steps: int, device: str) -> tuple[list[float], Recipe]:
    """The same for transformers, and the recipe with the micro-batches that fit."""
    recipe, step = setting.recipe, peer_step(setting, device)
    while True:
        try:
            step(recipe)
            break
        except torch.OutOfMemoryError:
            if recipe.accumulation == recipe.batch_size:
                raise
            recipe = replace(recipe, accumulation=min(2 * recipe.accumulation, recipe.batch_size))
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        step(recipe)
        seconds.append(time.perf_counter() - start)
    return seconds, recipe


def peer_step(setting: Setting, device: str) -> Callable[[Recipe], None]:
    """A function that takes one step of transformers' model with random weights, in a recipe's micro-batches."""
    from transformers import LlavaConfig as TheirConfig
    from transformers import LlavaForConditionalGeneration

    with torch.device("meta"):
        model = LlavaForConditionalGeneration(TheirConfig(**setting.config.to_dict())).train()
    learns = {id(p) for p in learning(model, setting.stage, setting.config.projector == "mlp")}
    cuda = device == "cuda"
    for module in model.modules():
        for name, p in list(module._parameters.items()):
            if p is not None:
                dtype = torch.bfloat16 if cuda and id(p) not in learns else torch.float32
                data = torch.randn(p.shape, dtype=dtype, device=device) * 0.02
                module._parameters[name] = nn.Parameter(data, requires_grad=p.requires_grad)
        for name, buffer in list(module._buffers.items()):
            if buffer is not None and buffer.is_meta:
                module._buffers[name] = torch.arange(buffer.numel(), device=device).view(buffer.shape).to(buffer.dtype)
    if setting.recipe.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, 1e-5, (0.9, 0.98), weight_decay=0.0, fused=cuda or None)

    def step(recipe: Recipe) -> None:
        optimizer.zero_grad()
        task = argparse.Namespace(dataset=(rows := RandomRows(setting)), collate=rows.collate)
        batch = first_rows(task, -(-recipe.batch_size // recipe.accumulation))
        batch = {key: value.to(device) for key, value in batch.items()}
        for _ in range(recipe.accumulation):
            with torch.autocast(device, torch.bfloat16, enabled=cuda):
                loss = model(**batch, use_cache=False).loss / recipe.accumulation
            loss.backward()
        nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        loss.item()  # waits until the GPU has finished

    return step


def measure(a: argparse.Namespace) -> dict:
    cuda = a.device == "cuda"
    total = torch.cuda.get_device_properties(0).total_memory / GIB if cuda else 0
    free = torch.cuda.mem_get_info()[0] / GIB if cuda else 0
    memory = min(a.memory or free, free)
    if cuda:
        torch.cuda.set_per_process_memory_fraction(memory / total)
    setting = setting_of(a.preset, a.stage, a.device, memory)
    recipe = setting.recipe
    if a.peer:
        seconds, recipe = peer_seconds(setting, a.steps, a.device)
        setting = Setting(setting.config, a.stage, recipe, setting.bfloat16, setting.gpu)
    else:
        seconds = step_seconds(setting, a.steps, a.device, a.compile)
    name = torch.cuda.get_device_name() if cuda else "CPU"
    peak = next((value for key, value in PEAKS.items() if key in name), None) if cuda else None
    flops, second = recipe.accumulation * step_flops(setting), median(seconds)
    return {
        "side": "transformers" if a.peer else "minillava",
        "preset": a.preset,
        "stage": a.stage,
        "device": name,
        "rows": setting.rows,
        "accumulation": recipe.accumulation,
        "checkpointing": recipe.checkpointing,
        "length": setting.length,
        "lora": recipe.lora,
        "step_seconds": second,
        "tokens_per_second": recipe.accumulation * setting.rows * setting.length / second,
        "flops_per_step": flops,
        "flops_per_second": flops / second,
        "utilisation": flops / second / peak if peak else None,
        "memory": memory,
        "peak_bytes": torch.cuda.max_memory_allocated() if cuda else resident("VmHWM"),
        "reserved_bytes": torch.cuda.max_memory_reserved() if cuda else None,
        "planned": plan(setting),
    }


def show(r: dict) -> None:
    rows = f"{r['accumulation']} x {r['rows']} rows of {r['length']} tokens"
    learns = f", LoRA {r['lora']}" if r["lora"] else ""
    again = ", activation checkpointing" if r["checkpointing"] else ""
    print(f"{r['side']}, {r['preset']}, stage {r['stage']}{learns}, on {r['device']}: {rows} per step{again}")
    print(f"{'step':<24}{r['step_seconds']:>10.2f} s")
    print(f"{'tokens per second':<24}{r['tokens_per_second']:>10,.0f}")
    print(f"{'operations per second':<24}{r['flops_per_second'] / 1e12:>10.2f} TFLOP/s")
    used = "unknown: no peak known for this device" if r["utilisation"] is None else f"{r['utilisation']:>10.1%}"
    print(f"{'model FLOP utilisation':<24}{used}")
    print(f"{'peak memory':<24}{r['peak_bytes'] / GIB:>10.2f} GiB")
    if r["reserved_bytes"] is not None:
        print(f"{'with gaps':<24}{r['reserved_bytes'] / GIB:>10.2f} GiB of {r['memory']:.1f}")
    print(f"{'planned':<24}{r['planned']['peak'] / GIB:>10.2f} GiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", choices=PRESETS, default="consumer")
    parser.add_argument("--stage", type=int, choices=(1, 2), default=2)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--memory", type=float, help="hard limit on a GPU, in GiB (default: what is free)")
    parser.add_argument("--steps", type=int, default=3, help="steps measured, after a first one (default %(default)s)")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="default: as train.py")
    parser.add_argument("--peer", action="store_true", help="measure transformers instead (not with LoRA)")
    parser.add_argument("--all", type=Path, metavar="FILE", help="measure the presets for one card")
    parser.add_argument("--json", action="store_true", help="print a line of JSON too")
    a = parser.parse_args()
    if a.device == "cuda" and not torch.cuda.is_available():
        sys.exit("gpu.py: no CUDA device here; run it on the CPU with --device cpu --preset toy")
    if a.all:
        for arguments in ALL:
            done = subprocess.run([sys.executable, __file__, *arguments, "--json"], stdout=subprocess.PIPE, text=True)
            print(done.stdout, flush=True)
            with open(a.all, "a", encoding="utf-8") as file:
                file.write((done.stdout.splitlines() or ["{}"])[-1] + "\n")
        return
    result = measure(a)
    show(result)
    if a.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
