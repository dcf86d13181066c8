"""``python tests/benchmarks/plan.py``: the memory that ``train.py --plan`` computes, against what a training takes.

Each shape is trained for two steps (in the second, the optimizer state exists from the start) with random weights and
rows in a separate process. Its peak resident memory (VmHWM) is measured, less the memory after the imports. This is
done twice. "as trained": the loop has glibc keep freed memory, which leaves gaps; compared with the whole plan.
"tensors": glibc returns large blocks to the system at once, so only tensors are resident; compared with the plan
without its reserve. With ``--device cuda`` only "tensors" is measured, by PyTorch's allocator. ``--json`` adds a line
of JSON.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from models import CLIP_B, SMOLLM2_135M, random_task, resident

from minillava.config import DecoderConfig, LlavaConfig, VisionConfig
from minillava.training import loop
from minillava.training.plan import Setting, plan
from minillava.training.recipes import CLIP_L_336, PRESETS, TINYLLAMA, Recipe

GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # glibc maps larger blocks separately, unless keep_memory() forbids it


@dataclass
class Shape:
    vision: VisionConfig
    decoder: DecoderConfig
    stage: int
    recipe: Recipe
    bfloat16: bool

    def setting(self, gpu: bool) -> Setting:
        config = LlavaConfig(self.vision, self.decoder, image_token_id=self.decoder.vocab_size)
        return Setting(config, self.stage, self.recipe, self.bfloat16, gpu)


toy, laptop = PRESETS["toy"].recipes["stage2"], PRESETS["laptop"]
SHAPES = {
    "picture-book, stage 2, Muon, float32": Shape(
        VisionConfig(), DecoderConfig(), 2, replace(toy, batch_size=96), bfloat16=False
    ),
    "135M, stage 1, float32": Shape(CLIP_B, SMOLLM2_135M, 1, Recipe(1e-3, 4, 1), bfloat16=False),
    "135M, stage 2, bfloat16": Shape(CLIP_B, SMOLLM2_135M, 2, Recipe(1e-4, 4, 1, length=320), bfloat16=True),
    "laptop, stage 2 with LoRA, float32": Shape(
        laptop.vision,
        laptop.decoder,
        2,
        replace(laptop.recipes["stage2"], batch_size=2, length=256),
        bfloat16=False,
    ),
    "8 layers of 1.1B, LoRA 64, checkpointing": Shape(
        CLIP_L_336,
        replace(TINYLLAMA, num_hidden_layers=8),
        2,
        Recipe(1e-4, 2, 1, accumulation=2, checkpointing=True, compact=True, lora=64, length=704),
        bfloat16=True,
    ),
}


def measure(shape: Shape, device: str, give_back: bool) -> int:
    """The peak memory of two steps in this process, in bytes."""
    if give_back:
        loop.keep_memory = lambda: None
    setting, before = shape.setting(gpu=device == "cuda"), resident("VmRSS")
    task = random_task(setting, device)
    task.write = lambda tensors, folder: None  # an adapter cannot be written without a processor
    with tempfile.TemporaryDirectory() as folder:
        dtype = torch.bfloat16 if shape.bfloat16 else torch.float32
        run = loop.Run(Path(folder) / "out", max_steps=2, device=device, dtype=dtype)
        loop.train(task, shape.recipe, run)
    return torch.cuda.max_memory_allocated() if device == "cuda" else resident("VmHWM") - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--measure", choices=SHAPES, help=argparse.SUPPRESS)  # both for the separate process
    parser.add_argument("--give-back", action="store_true", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.measure:
        print(measure(SHAPES[a.measure], a.device, a.give_back))
        return
    rows = []
    kinds = ("tensors",) if a.device == "cuda" else ("tensors", "as trained")
    print(f"{'GiB':<50}" + "".join(f"{kind:>10}{'planned':>9}{'ratio':>7}" for kind in kinds))
    for name, shape in SHAPES.items():
        planned = plan(shape.setting(gpu=a.device == "cuda"))
        rows.append({"shape": name, **planned})
        print(f"{name:<50}", end="", flush=True)
        for kind in kinds:
            command = [sys.executable, __file__, "--measure", name, "--device", a.device]
            if kind == "tensors":
                command.append("--give-back")
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=GIVE_BACK | os.environ)
            measured = int(output.stdout.splitlines()[-1])
            estimated = planned["peak"] - (planned["reserve"] if kind == "tensors" else 0)
            rows[-1][kind] = measured
            print(f"{measured / 2**30:>10.2f}{estimated / 2**30:>9.2f}{estimated / measured:>7.2f}", end="", flush=True)
        print()
    if a.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
