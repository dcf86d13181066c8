"""How many floating-point operations a training step needs, counted from the configuration.

A product of (n, k) and (k, m) takes 2 n k m operations: n k m multiplications and as many additions. Only matrix
products are counted. In the backward pass a product takes as many operations again for the gradient of its input, and
as many for the gradient of its weights if they learn. So, for rows of T tokens, of which ``labels`` have loss:

- the vision tower: only the forward pass, because it is frozen, and only the blocks up to the layer that W reads;
- the projection: forward pass, gradients of its weights, and, if it has two layers, of the second layer's input;
- the decoder's matrices: forward pass, gradients of their inputs, because the projection learns through them, and of
  their weights if they learn (6 operations per parameter and token: Kaplan et al. 2020, section 2.1); LoRA's two
  matrices always count three times;
- the head: the same, at the positions that have loss;
- attention: q k^T and the weights times v take 2 T^2 width each, and twice that in the backward pass. All T^2 scores
  are counted, as is usual (Chowdhery et al. 2022, appendix B), although the causal mask hides about half.

What activation checkpointing recomputes is not counted. "Model FLOP utilisation" is the number of these operations per
second, divided by the device's peak according to its maker.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from minillava.training.plan import Setting

# Dense bfloat16 operations per second from the makers' data sheets, by a part of the device's name.
PEAKS = {
    "H200": 989e12,
    "H100": 989e12,  # SXM
    "A100": 312e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}


def step_flops(s: Setting) -> int:
    """Operations of the forward and backward pass of one micro-batch. The optimizer step is negligible."""
    return vision_flops(s) + projection_flops(s) + decoder_flops(s) + head_flops(s)


def vision_flops(s: Setting) -> int:
    v, layer = s.config.vision, s.config.vision_feature_layer
    blocks = layer if layer >= 0 else v.num_hidden_layers + 1 + layer
    tokens = v.num_patches + 1
    matrices = 4 * v.hidden_size**2 + 2 * v.hidden_size * v.intermediate_size
    block = 2 * tokens * matrices + 4 * tokens**2 * v.hidden_size
    return s.rows * (2 * v.num_patches * v.num_channels * v.patch_size**2 * v.hidden_size + blocks * block)


def projection_flops(s: Setting) -> int:
    from_size, to_size = s.config.vision.hidden_size, s.config.decoder.hidden_size
    products = 2 * from_size * to_size + (3 * to_size**2 if s.config.projector == "mlp" else 0)
    return 2 * s.rows * s.config.num_image_tokens * products


def decoder_flops(s: Setting) -> int:
    c, block = s.config.decoder, s.model.language_model.layers[0]
    matrices = sum(2 * (3 if p.requires_grad else 2) * p.numel() for p in block.parameters() if p.ndim == 2)
    attention = 12 * s.length**2 * c.num_attention_heads * c.head_dim
    return s.rows * c.num_hidden_layers * (s.length * matrices + attention)


def head_flops(s: Setting) -> int:
    c = s.config.decoder
    return 2 * s.rows * s.labels * c.vocab_size * c.hidden_size * (3 if s.whole else 2)
