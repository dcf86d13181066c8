"""Patches cut out by hand, heads by einsum, blocks counted in a loop; errors in other words."""

import torch
import torch.nn.functional as F
from torch import Tensor

from minillava.model.attention import attend


def quick_gelu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-1.702 * x))


class Embeddings:
    def forward(self, pixel_values: Tensor) -> Tensor:
        weight = self.patch_embedding.weight
        size = weight.shape[-1]
        patches = F.unfold(pixel_values, size, stride=size).mT @ weight.flatten(1).T
        patches = patches + self.position_embedding.weight[1:]
        first = self.class_embedding + self.position_embedding.weight[0]
        return torch.cat([first.repeat(len(patches), 1, 1), patches], dim=1)


class Attention:
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        batch, length, hidden = x.shape
        q, k, v = (
            layer(x).reshape(batch, length, self.num_heads, hidden // self.num_heads).permute(0, 2, 1, 3)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(attend(q, k, v, mask).permute(0, 2, 1, 3).reshape(batch, length, hidden))


class Block:
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        after = self.self_attn(self.layer_norm1(x), mask) + x
        return self.mlp.forward(self.layer_norm2(after)) + after


class Encoder:
    def forward(self, x: Tensor, mask: Tensor | None = None, num_layers: int | None = None) -> Tensor:
        for index, layer in enumerate(self.layers):
            if num_layers is not None and index >= num_layers:
                break
            x = layer.forward(x, mask)
        return x


class VisionTower:
    def hidden_state(self, pixel_values: Tensor, layer: int = -1) -> Tensor:
        blocks = len(self.encoder.layers)
        if layer < -blocks - 1 or layer > blocks:
            raise ValueError(f"no block {layer}")
        if pixel_values.ndim != 4 or pixel_values.shape[1] != 3:
            raise ValueError("pixel_values: colours")
        if {*pixel_values.shape[2:]} != {self.config.image_size}:
            raise ValueError("pixel_values: size")
        return self.encoder(self.pre_layrnorm(self.embeddings(pixel_values)), None, layer % (blocks + 1))

    def forward(self, pixel_values: Tensor, layer: int = -2, strategy: str = "default") -> Tensor:
        start = 0 if strategy == "full" else 1
        return self.hidden_state(pixel_values, layer).narrow(1, start, self.config.num_patches + 1 - start)
