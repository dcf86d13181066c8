"""``python tests/benchmarks/gpu.py``: the speed, utilisation and memory of training a preset on one GPU.

Uses random weights and rows of the preset's sizes, and whole steps as in ``train.py``: the preset's micro-batches of
its longest rows, with a picture in each, then gradient clipping and the optimizer step. The first step is not counted.
``--memory 24`` is a hard limit: a training that needs more GiB fails, even if the card has them.

Prints tokens per second, visual tokens included; the peak memory of PyTorch's allocator (tensors only, and with the
gaps between them) and what ``--plan`` computes; and model FLOP utilisation, the operations that the model needs
(counted as in flops.py) over those that the card could do in that time in bfloat16. ``--device cpu --preset toy`` runs
the same on any machine, without utilisation.
"""

import argparse
import json
import math
import sys
import time

import torch
from flops import PEAKS, step_flops
from models import first_rows, random_task, resident
from torch import nn

from minillava.config import LlavaConfig
from minillava.training.loop import prepare
from minillava.training.optimizers import build_optimizers
from minillava.training.plan import GIB, Setting, plan
from minillava.training.recipes import PRESETS


def measure(name: str, stage: int, steps: int, device: str, memory: float) -> dict:
    preset, cuda = PRESETS[name], device == "cuda"
    recipe = preset.recipes[f"stage{stage}"]
    config = LlavaConfig(
        preset.vision,
        preset.decoder,
        "linear" if name in ("toy", "paper") else "mlp",
        image_token_id=preset.decoder.vocab_size,
    )
    setting = Setting(config, stage, recipe, bfloat16=cuda, gpu=cuda)
    if cuda:
        torch.cuda.set_per_process_memory_fraction(
            min(1.0, memory * GIB / torch.cuda.get_device_properties(0).total_memory)
        )
    task = random_task(setting, device)
    prepare(task.model, None, recipe.checkpointing)
    model = task.model.train()
    trainable = {key: p for key, p in model.named_parameters() if p.requires_grad}
    optimizers = build_optimizers(trainable, recipe)
    batch = {key: value.to(device) for key, value in first_rows(task, setting.rows).items()}

    def step() -> None:
        for _ in range(recipe.accumulation):
            with torch.autocast(device, torch.bfloat16, enabled=cuda, cache_enabled=False):
                loss = task.loss(batch) / recipe.accumulation
            loss.backward()
        nn.utils.clip_grad_norm_(trainable.values(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        assert math.isfinite(loss.item())  # item() also waits until the GPU has finished

    step()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    seconds = (time.perf_counter() - start) / steps
    device_name = torch.cuda.get_device_name() if cuda else "CPU"
    peak = next((value for key, value in PEAKS.items() if key in device_name), None) if cuda else None
    flops = recipe.accumulation * step_flops(setting)
    return {
        "preset": name,
        "stage": stage,
        "device": device_name,
        "rows": setting.rows,
        "accumulation": recipe.accumulation,
        "length": setting.length,
        "lora": recipe.lora,
        "step_seconds": seconds,
        "tokens_per_second": recipe.accumulation * setting.rows * setting.length / seconds,
        "flops_per_step": flops,
        "flops_per_second": flops / seconds,
        "utilisation": flops / seconds / peak if peak else None,
        "peak_bytes": torch.cuda.max_memory_allocated() if cuda else resident("VmHWM"),
        "reserved_bytes": torch.cuda.max_memory_reserved() if cuda else None,
        "planned": plan(setting),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", choices=PRESETS, default="consumer")
    parser.add_argument("--stage", type=int, choices=(1, 2), default=2)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--memory", type=float, default=24, help="hard limit on a GPU, in GiB (default %(default)s)")
    parser.add_argument("--steps", type=int, default=3, help="steps measured, after a first one (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="print a line of JSON too")
    a = parser.parse_args()
    if a.device == "cuda" and not torch.cuda.is_available():
        sys.exit("gpu.py: no CUDA device here; run it on the CPU with --device cpu --preset toy")
    r = measure(a.preset, a.stage, a.steps, a.device, a.memory)
    rows = f"{r['accumulation']} x {r['rows']} rows of {r['length']} tokens"
    learns = f", LoRA {r['lora']}" if r["lora"] else ""
    print(f"{r['preset']}, stage {r['stage']}{learns}, on {r['device']}: {rows} per step")
    print(f"{'step':<24}{r['step_seconds']:>10.2f} s")
    print(f"{'tokens per second':<24}{r['tokens_per_second']:>10,.0f}")
    print(f"{'operations per second':<24}{r['flops_per_second'] / 1e12:>10.2f} TFLOP/s")
    used = "unknown: no peak known for this device" if r["utilisation"] is None else f"{r['utilisation']:>10.1%}"
    print(f"{'model FLOP utilisation':<24}{used}")
    print(f"{'peak memory':<24}{r['peak_bytes'] / GIB:>10.2f} GiB")
    if r["reserved_bytes"] is not None:
        print(f"{'with gaps':<24}{r['reserved_bytes'] / GIB:>10.2f} GiB of {a.memory:g}")
    print(f"{'planned':<24}{r['planned']['peak'] / GIB:>10.2f} GiB")
    if a.json:
        print(json.dumps(r))


if __name__ == "__main__":
    main()
