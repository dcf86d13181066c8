"""``python tests/benchmarks/pictures.py``: how fast pictures of real size are read, and how long training waits.

Draws 1,000 JPEGs of 640 x 480 pixels with a caption each. First, the rows of stage 1 are read as in training, with
different numbers of workers: decoding, resizing to 336 pixels and tokenising, in rows per second. Then the preset is
trained on them for some steps, with random weights and the workers that ``train.py`` takes, and the share of the time
is printed in which the loop waited for data (the first step, in which the workers start, is not counted).
"""

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from gpu import setting_of
from models import PRETRAINED, Processor, Tokenizer, random_task
from PIL import Image
from torch.utils.data import DataLoader

from minillava.inputs.conversations import ConversationDataset
from minillava.inputs.image import ImageProcessor
from minillava.training import loop
from minillava.training.distributed import SINGLE
from minillava.training.machine import default_workers
from minillava.training.order import Order
from minillava.training.plan import GIB
from minillava.training.recipes import PRESETS, Recipe


def draw(folder: Path, count: int) -> Path:
    """Write ``count`` JPEGs, about 60 kB each, and rows with captions; returns the path of the rows."""
    rng, rows = np.random.default_rng(0), []
    for index in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).resize((640, 480))
        grain = rng.normal(0, 6, (480, 640, 3))
        pixels = np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.jpg", quality=80)
        turns = [{"from": "human", "value": "<image>\nDescribe the image concisely."}]
        turns.append({"from": "gpt", "value": "A man and a woman sit at a table in front of a small white house."})
        rows.append({"id": str(index), "image": f"{index}.jpg", "conversations": turns})
    (folder / "rows.json").write_text(json.dumps(rows))
    return folder / "rows.json"


def rows_per_second(dataset: ConversationDataset, workers: int) -> float:
    """All rows once, in batches of 16, after a first batch."""
    order = Order(len(dataset), dataset.size, Recipe(1e-3, 16, 1), 0, SINGLE)
    order.steps = range(order.per_epoch)
    batches = iter(DataLoader(dataset, batch_sampler=order, collate_fn=dataset.collate, num_workers=workers))
    next(batches)
    start = time.perf_counter()
    rows = sum(len(batch["input_ids"]) for batch in batches)
    return rows / (time.perf_counter() - start)


def waited(path: Path, preset: str, steps: int, device: str) -> tuple[float, float]:
    """Train stage 1 of the preset on the rows; returns the share of the time spent waiting, and seconds per step."""
    free = torch.cuda.mem_get_info()[0] / GIB if device == "cuda" else 0
    setting = setting_of(preset, 1, device, free)
    task, config = random_task(setting, device), setting.config
    image = ImageProcessor.for_size(config.vision.image_size)
    processor = Processor(Tokenizer.from_pretrained(PRETRAINED / "llava"), image, config.num_image_tokens)
    dataset = ConversationDataset(path, path.parent, processor.for_captions())
    task.model.config.image_token_id = processor.tokenizer.image_id
    task = replace(task, dataset=dataset, collate=dataset.collate, size=dataset.size)
    run = loop.Run(path.parent / "out", max_steps=steps + 1, device=device, workers=default_workers(device, 1))
    with patch.object(loop, "save"):
        loop.train(task, replace(setting.recipe, epochs=10**6), run)
    lines = [json.loads(line) for line in (path.parent / "out.metrics.jsonl").read_text().splitlines()]
    spent = lines[-1]["seconds"] - lines[0]["seconds"]
    return sum(line["waited"] for line in lines[1:]) / spent, spent / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", choices=PRESETS, default="consumer")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--count", type=int, default=1000, help="pictures (default %(default)s)")
    parser.add_argument("--workers", type=int, nargs="*", help="(default 0 and powers of two up to the cores)")
    parser.add_argument("--steps", type=int, default=6, help="training steps, after a first one (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="print a line of JSON too")
    a = parser.parse_args()
    if a.device == "cuda" and not torch.cuda.is_available():
        sys.exit("pictures.py: no CUDA device here; run it on the CPU with --device cpu --preset toy")
    cores = os.cpu_count() or 1
    numbers = [0, *(2**n for n in range(cores.bit_length()) if 2**n <= cores)] if a.workers is None else a.workers
    result: dict = {"cores": cores, "rows_per_second": {}}
    with tempfile.TemporaryDirectory() as folder:
        path = draw(Path(folder), a.count)
        tokenizer = Tokenizer.from_pretrained(PRETRAINED / "llava")
        dataset = ConversationDataset(path, folder, Processor(tokenizer, ImageProcessor.for_size(336), 576))
        for number in numbers:
            speed = result["rows_per_second"][number] = rows_per_second(dataset, number)
            print(f"{number:>2} workers: {speed:>7.1f} rows per second", flush=True)
        result["waited"], result["step_seconds"] = waited(path, a.preset, a.steps, a.device)
    print(f"{a.preset}, stage 1: {result['step_seconds']:.2f} s per step, {result['waited']:.1%} waiting for data")
    if a.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
