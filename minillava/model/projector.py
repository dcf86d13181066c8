"""The projection H_v = W Z_v, from the vision tower's features to the decoder's embedding space (paper, eq. 1)."""

import torch.nn.functional as F
from torch import Tensor, nn


class LinearProjector(nn.Linear):
    """The paper's W, with a bias as in the authors' code: (..., vision hidden) -> (..., decoder hidden)."""


class MLPProjector(nn.Module):
    """LLaVA-1.5's projector (Liu et al. 2023, arXiv 2310.03744): linear, GELU, linear; the same shapes."""

    def __init__(self, vision_size: int, decoder_size: int):
        super().__init__()
        self.linear_1 = nn.Linear(vision_size, decoder_size)
        self.linear_2 = nn.Linear(decoder_size, decoder_size)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear_2(F.gelu(self.linear_1(features)))


PROJECTORS = {"linear": LinearProjector, "mlp": MLPProjector}
