"""The four trainings: contrastive, next-token, stage 1 and stage 2.

Each defines what learns and what is frozen, the data, the loss, and how the result is saved.
"""

import math
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from minillava.formats.adapter_config import Towers
from minillava.inputs.conversation import IGNORE
from minillava.inputs.conversations import ConversationDataset
from minillava.inputs.regions import RegionDataset
from minillava.model.contrastive import Clip, clip_loss
from minillava.model.decoder import Decoder
from minillava.model.llava import Llava, next_token_loss, splice
from minillava.model.lora import ALPHA_PER_RANK, add_lora, has_lora, is_learnt
from minillava.saving import write_adapter, write_clip, write_decoder, write_llava
from minillava.training.answers import Questions

LARGE = 20_000_000  # frozen parameters (40 to 80 MB) above which stage 1 saves an adapter


def count_labels(batch: dict[str, Tensor]) -> int:
    """The number of tokens in a batch that have loss."""
    return (batch["labels"][:, 1:] != IGNORE).sum().item()


@dataclass
class Task:
    """What learns (``model``'s parameters that require gradients), the data, the loss, and how to save the result."""

    name: str
    model: nn.Module
    dataset: Dataset  # dataset[seed, epoch, row] is an example
    collate: Callable[[list[dict]], dict[str, Tensor]]
    loss: Callable[[dict[str, Tensor]], Tensor]  # the mean over a batch
    write: Callable[[dict[str, Tensor], Path], None]  # takes the model's tensors by name, and a folder
    weight: Callable[[dict[str, Tensor]], int] = count_labels  # number of terms in that mean
    size: Callable[[int], int] = lambda row: 0  # approximate length of a row; rows of similar size share a micro-batch
    after_step: Callable[[], None] = lambda: None
    options: dict[str, object] = field(default_factory=dict)  # further choices on which the result depends, by name
    towers: dict[str, str] = field(default_factory=dict)  # where stage 1's vision tower and decoder came from
    heldout: Dataset | None = None  # rows like those of ``dataset``, which are not learnt
    questions: Questions | None = None  # about held-out rows
    measured: bool = True  # whether the loss of held-out rows is computed, and the best model kept


def contrastive_task(clip: Clip, dataset: RegionDataset) -> Task:
    """Train both CLIP towers."""

    def write(tensors: dict[str, Tensor], folder: Path) -> None:
        write_clip(clip, dataset.processor, folder, tensors=tensors)

    def after_step() -> None:
        clip.logit_scale.data.clamp_(max=math.log(100))  # CLIP's limit: logits are scaled by at most 100

    loss = partial(clip_loss, clip)
    return Task("vision", clip, dataset, dataset.collate, loss, write, weight=lambda batch: 1, after_step=after_step)


def next_token_task(name: str, decoder: Decoder, dataset: ConversationDataset) -> Task:
    """Train only the decoder, on text and on pictures given as words."""
    tokenizer = dataset.processor.tokenizer

    def loss(batch: dict[str, Tensor]) -> Tensor:
        embeddings = decoder.embed_tokens(batch["input_ids"])
        if "word_ids" in batch:
            told = mean_of_words(decoder.embed_tokens, batch["word_ids"])
            embeddings = splice(embeddings, batch["input_ids"], tokenizer.image_id, told)
        return next_token_loss(decoder, decoder(embeddings), batch["labels"])[1]

    def write(tensors: dict[str, Tensor], folder: Path) -> None:
        write_decoder(decoder, tokenizer, folder, tensors=tensors)

    return Task(name, decoder, dataset, dataset.collate, loss, write, size=dataset.size)


def mean_of_words(embedding: nn.Embedding, word_ids: Tensor) -> Tensor:
    """word_ids (pictures, patches, words), -1 for no word -> each patch's mean embedding (pictures, patches, hidden).

    These are the visual tokens that an ideal projection would give: the decoder's embeddings of what a patch shows.
    """
    there = (word_ids >= 0).unsqueeze(-1)
    return (embedding(word_ids.clamp(min=0)) * there).sum(dim=2) / there.sum(dim=2)


def choose_what_learns(model: Llava, stage: int, lora: int = 0) -> None:
    """Stage 1 trains only W. Stage 2 trains W and the decoder or, with ``lora`` as their rank, W and low-rank matrices
    added to the decoder's. The vision tower is frozen in both (paper, section 4.2)."""
    model.requires_grad_(False)
    model.multi_modal_projector.requires_grad_(True)
    if stage == 2 and lora:
        learn_updates(model.language_model, lora)
    elif stage == 2:
        model.language_model.requires_grad_(True)


def learn_updates(decoder: Decoder, rank: int) -> None:
    """Train low-rank updates of the decoder's matrices: those that it has or, if it has none, new ones of ``rank``."""
    if not has_lora(decoder):
        add_lora(decoder, rank, ALPHA_PER_RANK * rank)
    for name, parameter in decoder.named_parameters():
        parameter.requires_grad_(is_learnt(name))


def llava_task(
    model: Llava,
    dataset: ConversationDataset,
    stage: int,
    lora: int = 0,
    base: str | os.PathLike | Towers = "",
    pack: bool = False,
    heldout: ConversationDataset | None = None,
    kinds: Collection[str] = (),
    measured: bool = True,
) -> Task:
    """Stage 1 or 2 on ``model``. With ``pack``, several conversations share a row.

    ``base`` is the folder, the hub id or the towers that the model was loaded from. What is saved is an adapter for it,
    with ``lora`` and for stage 1 of a large model; otherwise, and without ``base``, the whole model. ``kinds``: types
    of the rows of ``heldout`` about which questions are asked, if not of all. ``measured`` is as in Task.
    """
    choose_what_learns(model, stage, lora)
    frozen = sum(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad)
    whole = not lora and (stage == 2 or not base or frozen < LARGE)
    # A batch without pictures passes zero pictures through the tower and W, so that W gets a gradient, of zero: the
    # all-reduce needs a gradient of the same parameters on every rank.
    no_pictures = torch.empty(0, model.config.vision.num_channels, *[model.config.vision.image_size] * 2)

    def loss(batch: dict[str, Tensor]) -> Tensor:
        pictures, mask = batch.get("pixel_values", no_pictures), batch.get("attention_mask")
        return model(batch["input_ids"], pictures, mask, batch["labels"])[1]

    def write(tensors: dict[str, Tensor], folder: Path) -> None:
        if whole:
            write_llava(model, folder, tensors=tensors)
        else:
            write_adapter(model, base, folder, tensors)

    layer = model.config.vision_feature_layer
    options = {"pack": pack, "projector": model.config.projector, "vision_feature_layer": layer}
    # Packed rows have no ``size``: short ones fill the space that long ones leave.
    packed = {"collate": dataset.collate_packed} if pack else {"collate": dataset.collate, "size": dataset.size}
    towers = {"vision": base.vision, "decoder": base.decoder} if isinstance(base, Towers) else {}
    questions = Questions(model, heldout, kinds) if heldout else None
    return Task(f"stage{stage}", model, dataset, loss=loss, write=write, options=options, towers=towers,
                heldout=heldout, questions=questions, measured=measured, **packed)  # fmt: skip


def initialise(module: nn.Module) -> None:
    """Random weights for a tower trained from scratch: normal, with a standard deviation of 0.02 for embeddings and
    1 / sqrt(inputs) for matrices. Biases are zero.

    The last matrix of every attention and MLP starts at zero, so each block at first passes its input on unchanged. A
    decoder's word embeddings have a standard deviation of 1.0: attention learns to find words that are distinct from
    the first step on. Its logits start near zero. If the head is the embedding, the norm before it sees to that.
    """
    shared = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
    for name, part in module.named_modules():
        if isinstance(part, Decoder) and id(part.lm_head.weight) in shared:
            nn.init.constant_(part.norm.weight, 0.02)
        elif isinstance(part, nn.Embedding):
            nn.init.normal_(part.weight, std=1.0 if name.endswith("embed_tokens") else 0.02)
        elif isinstance(part, (nn.Linear, nn.Conv2d)) and id(part.weight) not in shared:
            starts_at_zero = name.endswith(("o_proj", "down_proj", "out_proj", "fc2", "lm_head"))
            nn.init.normal_(part.weight, std=0.0 if starts_at_zero else part.weight[0].numel() ** -0.5)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
