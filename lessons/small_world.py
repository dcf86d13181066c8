"""Data and training on the scale of a lesson: a few scenes and pictures, batches about them, trainings of seconds."""

import random
from collections.abc import Iterable

import torch
from PIL import Image
from torch import Tensor, nn

from data.picturebook import language
from data.picturebook.draw import draw_scene
from data.picturebook.scene import Scene, Thing, sample_scene
from data.picturebook.talk import conversation
from data.requests import BRIEF_REQUESTS
from minillava.checkpoint import join
from minillava.config import PRETRAINED
from minillava.inputs.conversation import image_goes_first
from minillava.inputs.conversations import pad, pad_rows
from minillava.inputs.processor import Processor
from minillava.model.llava import Llava
from minillava.training.optimizers import build_optimizers, schedule
from minillava.training.recipes import Recipe
from minillava.training.tasks import mean_of_words


def drawn_scenes(count: int, seed: int) -> tuple[list[Scene], list[Image.Image]]:
    """``count`` scenes and a picture of each; the seed decides all of them."""
    rng = random.Random(seed)
    scenes = [sample_scene(rng) for _ in range(count)]
    return scenes, [draw_scene(scene, rng) for scene in scenes]


def wide_picture() -> Image.Image:
    """960 x 320 pixels of sea: a red fish on the left, a white boat in the middle, a yellow sun on the right."""
    wide = Image.new("RGB", (960, 320))
    for place, (colour, kind) in enumerate((("red", "fish"), ("white", "boat"), ("yellow", "sun"))):
        thing = Thing(kind, colour, "large", row=1, column=1, box=(0.28, 0.28, 0.72, 0.72))
        part = draw_scene(Scene("sea", (thing,)), random.Random(0))  # the same shades and horizon in each part
        wide.paste(part.resize((320, 320), Image.Resampling.BICUBIC), (320 * place, 0))
    return wide


def small_batch(
    processor: Processor, pictures: list[Image.Image], talks: list[list[tuple[str, str]]]
) -> dict[str, Tensor]:
    """Pictures, and a list of (question, answer) for each -> input_ids and labels (B, T), pixel_values (B, 3, H, W)."""
    rows = []
    for index, talk in enumerate(talks):
        turns = [{"from": speaker, "value": text} for pair in talk for speaker, text in zip(("human", "gpt"), pair)]
        turns[0]["value"] = f"<image>\n{turns[0]['value']}"
        rows.append(processor.encode(turns, image_goes_first(seed=0, epoch=0, row=index)))
    pixel_values = torch.stack([processor.image(picture) for picture in pictures])
    return pad_rows(rows, processor.tokenizer.pad_id) | {"pixel_values": pixel_values}


def captions(model: Llava, count: int, seed: int) -> dict[str, Tensor]:
    """A batch as in stage 1: for each of ``count`` pictures a brief request and a caption."""
    scenes, pictures = drawn_scenes(count, seed)
    rng = random.Random(seed)
    talks = [[(rng.choice(BRIEF_REQUESTS), rng.choice(language.captions(scene)))] for scene in scenes]
    return small_batch(model.processor.for_captions(), pictures, talks)


def conversations(model: Llava, count: int, seed: int) -> dict[str, Tensor]:
    """A batch as in stage 2: a conversation of a few turns about each of ``count`` pictures."""
    scenes, pictures = drawn_scenes(count, seed)
    rng = random.Random(seed)
    return small_batch(model.processor, pictures, [conversation(scene, rng, 120) for scene in scenes])


def joined_towers() -> Llava:
    """The shipped vision tower and decoder with an untrained projection, the same in every call."""
    torch.manual_seed(0)
    return join(PRETRAINED / "vision", PRETRAINED / "decoder")


def short_training(
    model: Llava, parts: list[nn.Module], batches: Iterable[dict[str, Tensor]], recipe: Recipe, steps: int
) -> list[float]:
    """Train only ``parts`` of the model, with one batch in each of ``steps`` steps. Returns the losses, in nats."""
    model.requires_grad_(False)
    for part in parts:
        part.requires_grad_(True)
    optimizers = build_optimizers({name: p for name, p in model.named_parameters() if p.requires_grad}, recipe)
    losses = []
    for step, batch in zip(range(steps), batches):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * schedule(step, steps, recipe)
            optimizer.zero_grad()
        _, loss = model(**batch)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        losses.append(loss.item())
    return losses


def features_and_words(model: Llava, scenes: list[Scene], pictures: list[Image.Image]) -> tuple[Tensor, Tensor]:
    """For every patch of all pictures: the features that W reads, (patches, vision hidden), and the mean embedding of
    the words for what the patch shows, (patches, decoder hidden)."""
    config, tokenizer = model.config, model.processor.tokenizer
    pixel_values = torch.stack([model.processor.image(picture) for picture in pictures])
    grid = config.vision.image_size // config.vision.patch_size
    cells = [cell for scene in scenes for cell in language.words_by_patch(scene, grid)]
    word_ids = pad([tokenizer.encode(f" {cell}", special=False) for cell in cells], -1)  # (patches, longest)
    with torch.no_grad():
        features = model.vision_tower(pixel_values, config.vision_feature_layer).flatten(0, 1)
        return features, mean_of_words(model.language_model.embed_tokens, word_ids[:, None])[:, 0]


def fitted_projection(model: Llava, scenes: list[Scene], pictures: list[Image.Image]) -> nn.Linear:
    """The W and b that map the tower's features to the words for what each patch shows with the least squared error."""
    features, words = features_and_words(model, scenes, pictures)
    ones = torch.ones(len(features), 1)
    solution = torch.linalg.lstsq(torch.cat([features, ones], dim=1), words).solution  # (vision hidden + 1, hidden)
    projection = nn.Linear(features.shape[1], words.shape[1])
    projection.weight.data, projection.bias.data = solution[:-1].T.contiguous(), solution[-1]
    return projection
