"""A start for the projection of a decoder that can talk: a picture's visual tokens become the words for their patches.

A random W gives visual tokens that are like no word, and stage 1 needs thousands of captions to bring them there. Where
the words for each patch of some pictures are known (words.json of the picture-book), W is the solution of

    min_W  sum over patches  | W z - e |^2

with z the patch's feature and e the mean embedding of its words.
"""

from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minillava.errors import UserError
from minillava.formats.llava_json import scan
from minillava.inputs.conversations import pad
from minillava.inputs.image import find_picture, open_image
from minillava.model.llava import Llava
from minillava.training.tasks import mean_of_words

PICTURES = 500


def start_projection(model: Llava, world: Path) -> float:
    """Set the projection of ``model`` by least squares on PICTURES pictures of ``world``. Returns the share of the
    embeddings' variance that it explains. Raises UserError if ``world`` has other patches than the vision tower."""
    z, e = [], []
    both = zip(scan(world / "captions.json"), scan(world / "words.json"))
    for (_, _, picture), (_, _, words) in islice(both, PICTURES):
        if (cells := len(words["patch_words"])) != model.config.num_image_tokens:
            has = f"{cells} cells a picture, the tower gives {model.config.num_image_tokens} visual tokens"
            raise UserError(f"{world / 'words.json'}: has {has}; W cannot start from least squares")
        z.append(features(model, model.processor.image(open_image(find_picture(world, picture["image"])))))
        e.append(embeddings_of(model, words["patch_words"]))
    return fit(model.multi_modal_projector, torch.cat(z), torch.cat(e))


@torch.no_grad()
def features(model: Llava, pixels: Tensor) -> Tensor:
    """pixels (3, H, W) -> Z_v (patches, vision hidden): what the projection reads."""
    layer, strategy = model.config.vision_feature_layer, model.config.vision_feature_select_strategy
    return model.vision_tower(pixels[None], layer, strategy)[0]


@torch.no_grad()
def embeddings_of(model: Llava, patch_words: list[str]) -> Tensor:
    """The words of each patch -> the mean of their embeddings (patches, decoder hidden)."""
    ids = [model.processor.tokenizer.encode(f" {text}", special=False) for text in patch_words]
    return mean_of_words(model.language_model.embed_tokens, pad(ids, -1)[None])[0]


@torch.no_grad()
def fit(projector: nn.Module, z: Tensor, e: Tensor) -> float:
    """Solve for the projection's last layer: z (N, vision hidden), e (N, decoder hidden). An MLP's first layer stays
    random; its outputs after GELU are the features. Returns the share of the variance of ``e`` that is explained."""
    linear = projector
    if not isinstance(projector, nn.Linear):
        z, linear = F.gelu(projector.linear_1(z)), projector.linear_2
    ones = torch.ones(len(z), 1, dtype=torch.float64)
    inputs, targets = torch.cat([z.double(), ones], dim=1), e.double()
    # "gelsd", by singular values, has a solution also where features depend on each other. (vision hidden + 1, decoder
    # hidden)
    solution = torch.linalg.lstsq(inputs, targets, driver="gelsd").solution
    linear.weight.copy_(solution[:-1].T)
    linear.bias.copy_(solution[-1])
    left = (targets - inputs @ solution).square().sum() / (targets - targets.mean(dim=0)).square().sum()
    return 1 - left.item()
