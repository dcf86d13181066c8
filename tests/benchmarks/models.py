"""Shared by the benchmarks: models of known sizes with random weights, also in transformers; inputs; timing."""

import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

# Set before transformers is imported: no warnings, no requests to the hub, no progress bars.
os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from data.picturebook.draw import draw_scene  # noqa: E402
from data.picturebook.language import captions  # noqa: E402
from data.picturebook.scene import sample_scene  # noqa: E402
from data.picturebook.talk import LENGTH, conversation  # noqa: E402
from minillava import PRETRAINED, Llava, Processor, Tokenizer, load, save  # noqa: E402
from minillava.config import DecoderConfig, LlavaConfig, VisionConfig  # noqa: E402
from minillava.formats.tensors import Unfilled  # noqa: E402
from minillava.inputs.conversation import IGNORE  # noqa: E402
from minillava.inputs.conversations import pad_rows  # noqa: E402
from minillava.inputs.image import ImageProcessor  # noqa: E402
from minillava.inputs.rejected import Rejected  # noqa: E402
from minillava.training.loop import prepare  # noqa: E402
from minillava.training.plan import Setting  # noqa: E402
from minillava.training.recipes import TINYLLAMA, VICUNA_7B  # noqa: E402
from minillava.training.tasks import Task, llava_task  # noqa: E402

CLIP_B = VisionConfig(768, 3072, 12, 12, image_size=224, patch_size=16)
SMOLLM2_135M = DecoderConfig(49152, 576, 1536, 30, 9, 3, 64, tie_word_embeddings=True)
SIZES = {  # toy is the shipped model
    "toy": None,
    "135m": (CLIP_B, SMOLLM2_135M),
    "1.1b": (CLIP_B, TINYLLAMA),
    "7b": (CLIP_B, VICUNA_7B),
}


def build(size: str, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Llava:
    """The shipped model, or one with random weights, the shipped tokenizer and more embeddings than it has tokens."""
    if size == "toy":
        return load(PRETRAINED / "llava", device, dtype)
    vision, decoder = SIZES[size]
    tokenizer = Tokenizer.from_pretrained(PRETRAINED / "llava")
    processor = Processor(tokenizer, ImageProcessor.for_size(vision.image_size), vision.num_patches)
    with torch.device("meta"), Unfilled():
        model = Llava(LlavaConfig(vision, decoder, "mlp", image_token_id=tokenizer.image_id), processor)
    fill_at_random(model.to(dtype), device)
    return model.eval()


def fill_at_random(model: Llava, device: str) -> None:
    """Allocate a model that is on the meta device, with random weights that keep the scale of activations."""
    torch.manual_seed(0)
    model.to_empty(device=device)
    if model.config.decoder.tie_word_embeddings:
        model.language_model.lm_head.weight = model.language_model.embed_tokens.weight
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.fill_(1)
            else:
                parameter.normal_(std=parameter[0].numel() ** -0.5)


def opened_by_transformers(model: Llava, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The model as LlavaForConditionalGeneration reads it from the folder that save() writes."""
    from transformers import LlavaForConditionalGeneration

    with tempfile.TemporaryDirectory() as folder:
        save(model, Path(folder) / "model")
        their = LlavaForConditionalGeneration.from_pretrained(Path(folder) / "model", dtype=dtype)
        return their.eval().to(model.device)


def real_batch(model: Llava, rows: int, stage: int) -> dict[str, Tensor]:
    """A batch of picture-book rows as in training: captions in stage 1, conversations in stage 2."""
    rng = random.Random(0)
    pairs, pictures = [], []
    for _ in range(rows):
        scene = sample_scene(rng)
        pictures.append(model.processor.image(draw_scene(scene, rng)))
        told = [("Describe the image concisely.", captions(scene)[0])]
        said = told if stage == 1 else conversation(scene, rng, LENGTH)
        row = [{"from": who, "value": text} for pair in said for who, text in zip(("human", "gpt"), pair)]
        row[0]["value"] = f"<image>\n{row[0]['value']}"
        pairs.append(model.processor.encode(row))
    return {**pad_rows(pairs, model.processor.tokenizer.pad_id), "pixel_values": torch.stack(pictures)}


class RandomRows:
    """A dataset of random rows: a picture, then text tokens that all have loss."""

    files, options = (), {}

    def __init__(self, setting: Setting):
        self.setting, self.rejected = setting, Rejected("rows")

    def __len__(self) -> int:
        return 1000

    def size(self, index: int) -> int:
        return 1  # all rows have the same length

    def __getitem__(self, key: tuple[int, int, int]) -> dict[str, Tensor]:
        s, size = self.setting, self.setting.config.vision.image_size
        ids = torch.randint(0, s.config.image_token_id, (s.length,))  # no image token in the text
        ids[: -s.labels] = s.config.image_token_id
        labels = ids.clone()
        labels[: -s.labels] = IGNORE
        return {"input_ids": ids, "labels": labels, "pixel_values": torch.randn(3, size, size)}

    def collate(self, examples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        return default_collate(examples)


def first_rows(task: Task, rows: int) -> dict[str, Tensor]:
    """A batch of the first rows of a task's data."""
    return task.collate([task.dataset[0, 0, row] for row in range(rows)])


def random_task(setting: Setting, device: str) -> Task:
    """A training of ``setting`` with random rows, and random weights on ``device`` in their training dtypes."""
    recipe = setting.recipe
    with torch.device("meta"), Unfilled():
        model = Llava(setting.config)
        task = llava_task(model, RandomRows(setting), setting.stage, recipe.lora, base="base")
    prepare(model, torch.bfloat16 if recipe.compact and setting.bfloat16 else None, checkpointing=False)
    fill_at_random(model, device)
    return task


def alternate(rounds: int, **functions: Callable[[], object]) -> dict[str, list[float]]:
    """Seconds that each function takes. All are called in turn ``rounds`` times, after one call of each not counted.

    Other load on the machine affects all of them about equally, so ratios within a round are more reliable than
    seconds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for round_ in range(rounds + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if round_:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def resident(key: str) -> int:
    """This process's resident memory in bytes: now (VmRSS) or its peak (VmHWM)."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024
