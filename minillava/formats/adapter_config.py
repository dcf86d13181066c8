"""adapter_config.json, the file of the peft library that says what an adapter is added to, and with which numbers."""

import os
from pathlib import Path
from typing import NamedTuple

from minillava.errors import UserError
from minillava.formats.json_object import read_json_object

CONFIG = "adapter_config.json"
PREFIX = "base_model.model.model."  # of tensors' names: peft's two wrappers, then LlavaForConditionalGeneration's model
# What else adapter_config.json says, and what we compute where it says so.
FIXED = {
    "peft_type": "LORA",
    # A pattern, not names alone: the vision tower has layers called q_proj too.
    "target_modules": r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)",
    "modules_to_save": ["multi_modal_projector"],
    "bias": "none",
    **dict.fromkeys(("fan_in_fan_out", "use_rslora", "use_dora"), False),
    "rank_pattern": {},
    "alpha_pattern": {},
}


class AdapterConfig(NamedTuple):
    """What adapter_config.json says: where the weights lie that the adapter adds to, and LoRA's two numbers."""

    base: str
    rank: int
    alpha: float


def is_adapter(folder: str | os.PathLike) -> bool:
    return (Path(folder) / CONFIG).exists()


def to_dict(config: AdapterConfig) -> dict:
    """The contents of adapter_config.json."""
    base, rank, alpha = config
    return {**FIXED, "base_model_name_or_path": base, "r": rank, "lora_alpha": alpha, "lora_dropout": 0.0}


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
