"""The vision tower f_v: CLIP's ViT (Radford et al. 2021), from pixels to a grid of features.

- A strided convolution turns each square patch into one vector; a class token goes before the patches.
- Positions are learned.
- A LayerNorm comes before the first block. Most ViTs lack it; CLIP's files spell it ``pre_layrnorm``.
- Blocks are pre-norm: x + attention(norm(x)), then x + mlp(norm(x)).
- LLaVA reads the patches after the second-to-last block and drops the class token (paper, table 8).

Attribute names are CLIP's tensor names without prefixes. The letters in shapes are in ``model/__init__.py``.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minillava.config import TextConfig, VisionConfig
from minillava.model.attention import attend


def quick_gelu(x: Tensor) -> Tensor:
    """OpenAI's approximation of GELU: x * sigmoid(1.702 x)."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": F.gelu}


class Embeddings(nn.Module):
    """pixel_values (B, 3, H, W) -> (B, 1 + patches, hidden): the class token, then the patches row by row."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.class_embedding = nn.Parameter(nn.init.normal_(torch.empty(config.hidden_size), std=0.02))
        # Stride = kernel size: each patch is multiplied by the same matrix, and patches do not overlap.
        self.patch_embedding = nn.Conv2d(
            config.num_channels, config.hidden_size, config.patch_size, stride=config.patch_size, bias=False
        )
        self.position_embedding = nn.Embedding(1 + config.num_patches, config.hidden_size)

    def forward(self, pixel_values: Tensor) -> Tensor:
        # (B, hidden, H / patch_size, W / patch_size) -> (B, patches, hidden)
        patches = self.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        first = self.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)  # (B, 1, hidden)
        return torch.cat([first, patches], dim=1) + self.position_embedding.weight  # (B, 1 + patches, hidden)


class Attention(nn.Module):
    """Multi-head self-attention, (B, T, hidden) -> (B, T, hidden). In the vision tower, T is 1 + patches."""

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

        out = attend(heads(self.q_proj(x)), heads(self.k_proj(x)), heads(self.v_proj(x)), mask)  # (B, heads, T, d)
        return self.out_proj(out.transpose(1, 2).flatten(2))  # (B, T, heads * d) -> (B, T, hidden)


class MLP(nn.Module):
    """Two linear layers, applied to each token by itself: (B, T, hidden) -> (B, T, hidden)."""

    def __init__(self, config: VisionConfig | TextConfig):
        super().__init__()
        self.activation = ACTIVATIONS[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))  # inside: (B, T, intermediate)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); (B, T, hidden) -> (B, T, hidden)."""

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
    """The blocks, one after another. With ``num_layers``, only the first ones."""

    def __init__(self, config: VisionConfig | TextConfig):
        super().__init__()
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))

    def forward(self, x: Tensor, mask: Tensor | None = None, num_layers: int | None = None) -> Tensor:
        for layer in self.layers[:num_layers]:
            x = layer(x, mask)  # (B, T, hidden)
        return x


class VisionTower(nn.Module):
    """CLIP's vision transformer: pixel_values (B, 3, H, W) -> Z_v (B, patches, hidden)."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        if config.image_size % config.patch_size:
            raise ValueError(f"image_size {config.image_size} is not a multiple of patch_size {config.patch_size}")
        if config.hidden_size % config.num_attention_heads:
            heads = config.num_attention_heads
            raise ValueError(f"hidden_size {config.hidden_size} is not a multiple of {heads} attention heads")
        if config.hidden_act not in ACTIVATIONS:
            raise ValueError(f"hidden_act {config.hidden_act!r} is not one of {', '.join(ACTIVATIONS)}")
        self.config = config
        self.embeddings = Embeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.encoder = Encoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)  # for CLIP; LLaVA skips it

    def hidden_state(self, pixel_values: Tensor, layer: int = -1) -> Tensor:
        """pixel_values (B, 3, H, W) -> (B, 1 + patches, hidden), the output of block ``layer``.

        Blocks are numbered from 1; 0 is the input of the first block, -1 the output of the last one. Blocks after
        ``layer`` are not computed.
        """
        size = self.config.image_size
        if pixel_values.shape[1:] != (self.config.num_channels, size, size):
            channels = self.config.num_channels
            raise ValueError(f"pixel_values must be (B, {channels}, {size}, {size}), not {tuple(pixel_values.shape)}")
        depth = len(self.encoder.layers)
        count = layer if layer >= 0 else depth + 1 + layer  # how many blocks to run
        if not 0 <= count <= depth:
            raise ValueError(f"there is no layer {layer}: the tower has {depth} blocks")
        x = self.embeddings(pixel_values)  # (B, 1 + patches, hidden)
        return self.encoder(self.pre_layrnorm(x), num_layers=count)

    def forward(self, pixel_values: Tensor, layer: int = -2, strategy: str = "default") -> Tensor:
        """The features Z_v that LLaVA reads: (B, patches, hidden), or (B, 1 + patches, hidden) with "full", which keeps
        the class token."""
        features = self.hidden_state(pixel_values, layer)  # (B, 1 + patches, hidden)
        return features if strategy == "full" else features[:, 1:]
