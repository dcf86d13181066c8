"""The vision tower f_v: CLIP's ViT (Radford et al. 2021), from pixels to a grid of features.

- a picture becomes square patches, each a vector by one strided convolution, with a class token before them;
- learned positions; a LayerNorm before the first block (an oddity of CLIP's, spelled ``pre_layrnorm`` in its files);
- pre-norm blocks: x + attention(norm(x)), then x + mlp(norm(x));
- LLaVA takes the grid of the layer before the last and drops the class token (paper, section 4.1).

Attribute names are those of the tensors in CLIP's checkpoints.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minillava.config import TextConfig, VisionConfig
from minillava.model.attention import attend


def quick_gelu(x: Tensor) -> Tensor:
    """OpenAI's cheap GELU: x * sigmoid(1.702 x)."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": F.gelu}


class Embeddings(nn.Module):
    """pixel_values (B, 3, H, W) -> (B, 1 + patches, hidden): class token first, patches in reading order."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.class_embedding = nn.Parameter(nn.init.normal_(torch.empty(config.hidden_size), std=0.02))
        self.patch_embedding = nn.Conv2d(
            config.num_channels, config.hidden_size, config.patch_size, stride=config.patch_size, bias=False
        )
        self.position_embedding = nn.Embedding(1 + config.num_patches, config.hidden_size)

    def forward(self, pixel_values: Tensor) -> Tensor:
        patches = self.patch_embedding(pixel_values).flatten(2).transpose(1, 2)  # (B, patches, hidden)
        first = self.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
        return torch.cat([first, patches], dim=1) + self.position_embedding.weight


class Attention(nn.Module):
    """Multi-head self-attention, (B, T, hidden) -> (B, T, hidden)."""

    def __init__(self, config: VisionConfig | TextConfig):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        def heads(y: Tensor) -> Tensor:
            return y.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, heads, T, d)

        out = attend(heads(self.q_proj(x)), heads(self.k_proj(x)), heads(self.v_proj(x)), mask)
        return self.out_proj(out.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, config: VisionConfig | TextConfig):
        super().__init__()
        self.activation = ACTIVATIONS[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: VisionConfig | TextConfig):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = Attention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x), mask)
        return x + self.mlp(self.layer_norm2(x))


class Encoder(nn.Module):
    """A stack of blocks."""

    def __init__(self, config: VisionConfig | TextConfig):
        super().__init__()
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))

    def forward(self, x: Tensor, mask: Tensor | None = None, num_layers: int | None = None) -> Tensor:
        for layer in self.layers[:num_layers]:
            x = layer(x, mask)
        return x


class VisionTower(nn.Module):
    """CLIP's vision transformer."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        if config.image_size % config.patch_size:
            raise ValueError(f"image_size {config.image_size} is no multiple of patch_size {config.patch_size}")
        if config.hidden_size % config.num_attention_heads:
            raise ValueError(f"{config.num_attention_heads} heads cannot share hidden_size {config.hidden_size} evenly")
        if config.hidden_act not in ACTIVATIONS:
            raise ValueError(f"hidden_act {config.hidden_act!r} is not one of {', '.join(ACTIVATIONS)}")
        self.config = config
        self.embeddings = Embeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.encoder = Encoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def hidden_state(self, pixel_values: Tensor, layer: int = -1) -> Tensor:
        """pixel_values (B, 3, H, W) -> (B, 1 + patches, hidden) after ``layer`` blocks; -1 is the last, 0 is none.

        Blocks after ``layer`` are not computed.
        """
        size = self.config.image_size
        if pixel_values.shape[1:] != (self.config.num_channels, size, size):
            raise ValueError(f"pixel_values must be (B, 3, {size}, {size}), not {tuple(pixel_values.shape)}")
        depth = len(self.encoder.layers)
        count = layer if layer >= 0 else depth + 1 + layer
        if not 0 <= count <= depth:
            raise ValueError(f"layer {layer} is not there: the tower has {depth} blocks")
        return self.encoder(self.pre_layrnorm(self.embeddings(pixel_values)), num_layers=count)

    def forward(self, pixel_values: Tensor, layer: int = -2, strategy: str = "default") -> Tensor:
        """The features that LLaVA reads: the grid (B, patches, hidden); with "full", the class token before it too."""
        features = self.hidden_state(pixel_values, layer)
        return features if strategy == "full" else features[:, 1:]
