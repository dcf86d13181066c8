"""LoRA: fine-tuning a large decoder through small matrices (Hu et al. 2021, arXiv 2106.09685).

A linear layer W (out, in) is frozen, and what it learns is kept apart, as a product of low rank r:

    y = x W^T + (alpha / r) x A^T B^T        A (r, in), B (out, r)

- A starts random and B at zero, so the model begins as it was;
- gradients and the optimiser's state exist for A and B alone: r (in + out) numbers where W has in x out;
- afterwards (alpha / r) B A is added to W, and nothing of LoRA remains.

What is learnt is saved in an adapter folder, in the form of the peft library: adapter_model.safetensors and
adapter_config.json. Of the latter, the part that is ours is here; checkpoint.py writes and reads the tensors.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from minillava.decoder import Decoder
from minillava.errors import UserError
from minillava.formats.json_object import read_json_object

ALPHA = 2  # alpha / r in training: 256 / 128 in the authors' scripts/v1_5/finetune_lora.sh
CONFIG = "adapter_config.json"
# What else adapter_config.json says, and what we compute where it says so.
FIXED = {
    "peft_type": "LORA",
    # A pattern, not names alone: the vision tower has layers called q_proj too.
    "target_modules": r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)",
    "modules_to_save": ["multi_modal_projector"],
    "bias": "none",
    "fan_in_fan_out": False,
    "use_rslora": False,
    "use_dora": False,
    "rank_pattern": {},
    "alpha_pattern": {},
}


class LoraLinear(nn.Linear):
    """A linear layer with a product of low rank beside it, (..., in) -> (..., out)."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float):
        super().__init__(base.in_features, base.out_features, base.bias is not None, device="meta")
        self.weight, self.bias = base.weight, base.bias
        self.lora_A = nn.Linear(base.in_features, rank, bias=False)  # PyTorch's own start is Kaiming's, uniform
        self.lora_B = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.lora_B.weight)
        self.alpha, self.scale = alpha, alpha / rank

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.scale * self.lora_B(self.lora_A(x))

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The plain layer that computes the same: W + scale B A, in W's dtype."""
        plain = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        product = self.lora_B.weight.float() @ self.lora_A.weight.float()
        plain.weight = nn.Parameter((self.weight.float() + self.scale * product).to(self.weight.dtype))
        plain.bias = self.bias
        return plain


def add_lora(decoder: Decoder, rank: int, alpha: float) -> None:
    """Freeze ``decoder`` and put low-rank matrices beside every linear layer in its blocks; they alone learn."""
    decoder.requires_grad_(False)
    for layer in decoder.layers:
        for part in (layer.self_attn, layer.mlp):
            for name, linear in list(part.named_children()):
                setattr(part, name, LoraLinear(linear, rank, alpha))


def merge_lora(decoder: Decoder) -> None:
    """Add what was learnt to the weights, and take the low-rank matrices away."""
    for part in list(decoder.modules()):
        for name, linear in list(part.named_children()):
            if isinstance(linear, LoraLinear):
                setattr(part, name, linear.merged())


def is_learnt(name: str) -> bool:
    """Whether a tensor of this name is one of LoRA's matrices."""
    return ".lora_A." in name or ".lora_B." in name


@dataclass(frozen=True)
class AdapterConfig:
    """What adapter_config.json says: where the weights lie that the adapter adds to, and LoRA's two numbers."""

    base: str
    rank: int
    alpha: float


def is_adapter(folder: str | os.PathLike) -> bool:
    return (Path(folder) / CONFIG).exists()


def config_of(decoder: Decoder, base: str) -> dict:
    """The adapter_config.json of a decoder with LoRA."""
    linear = decoder.layers[0].self_attn.q_proj
    sizes = {"r": linear.lora_A.out_features, "lora_alpha": linear.alpha, "lora_dropout": 0.0}
    return {**FIXED, "base_model_name_or_path": base, **sizes}


def read_config(folder: Path) -> AdapterConfig:
    """Raises UserError for a file that is broken, or asks for what is not computed here."""
    path = folder / CONFIG
    values = read_json_object(path)
    for name, only in FIXED.items():
        if values.get(name, only) != only:
            raise UserError(f"{path}: {name} is {values[name]!r}; only {only!r} is known")
    base, rank, alpha = (values.get(name) for name in ("base_model_name_or_path", "r", "lora_alpha"))
    if not isinstance(base, str):
        raise UserError(f"{path}: base_model_name_or_path is {base!r}, not a folder")
    for name, value, kinds in (("r", rank, int), ("lora_alpha", alpha, (int, float))):
        if not isinstance(value, kinds) or not 0 < value < float("inf"):
            raise UserError(f"{path}: {name} is {value!r}, not a positive number")
    return AdapterConfig(base, rank, alpha)
