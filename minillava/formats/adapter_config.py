"""adapter_config.json of the peft library: which model an adapter is added to, and LoRA's rank and alpha."""

import os
from pathlib import Path
from typing import NamedTuple

from minillava.errors import UserError
from minillava.formats.json_object import read_json_object

CONFIG = "adapter_config.json"
# Prefix of the tensor names: peft's two wrappers, then the "model" of LlavaForConditionalGeneration.
PREFIX = "base_model.model.model."
# The other keys of adapter_config.json, with the only values that are supported.
FIXED = {
    "peft_type": "LORA",
    # A regular expression instead of plain names, because the vision tower has layers called q_proj too.
    "target_modules": r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)",
    "modules_to_save": ["multi_modal_projector"],
    "bias": "none",
    **dict.fromkeys(("fan_in_fan_out", "use_rslora", "use_dora"), False),
    "rank_pattern": {},
    "alpha_pattern": {},
}


class AdapterConfig(NamedTuple):
    """The values of adapter_config.json that vary. ``base``: the base model, as a hub id or a path relative to the
    adapter's folder."""

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
    """Read adapter_config.json. Raises UserError if it is broken or asks for something that is not supported."""
    path = folder / CONFIG
    values = read_json_object(path)
    for name, only in FIXED.items():
        if values.get(name, only) != only:
            what = f"{name} is {values[name]!r}; only {only!r} is supported"
            raise UserError(f"{path}: {what}; merge the adapter into its base model with the code that made it")
    base, rank, alpha = (values.get(name) for name in ("base_model_name_or_path", "r", "lora_alpha"))
    if not isinstance(base, str):
        raise UserError(f"{path}: base_model_name_or_path is {base!r}, not a hub id or a folder")
    for name, value, kinds in (("r", rank, int), ("lora_alpha", alpha, (int, float))):
        if not isinstance(value, kinds) or not 0 < value < float("inf"):
            raise UserError(f"{path}: {name} is {value!r}, not a positive number")
    return AdapterConfig(base, rank, alpha)
