"""adapter_config.json of the peft library: which model an adapter is added to, and LoRA's rank and alpha.

Two things are ours. An adapter may hold a projection and no LoRA; the file then has none of peft's keys for it. And the
base may be two towers that only the adapter's projection joins: "base_towers" names them, and
"base_model_name_or_path" is null.
"""

import os
from pathlib import Path
from typing import NamedTuple

from minillava.errors import UserError
from minillava.files import standing
from minillava.formats.json_object import read_json_object

CONFIG = "adapter_config.json"
LARGEST = 1_000_000  # LoRA's rank and alpha are smaller
# Prefix of the tensor names: peft's two wrappers, then the "model" of LlavaForConditionalGeneration.
PREFIX = "base_model.model.model."
# The other keys of adapter_config.json with LoRA, and the only values that are supported.
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


class Towers(NamedTuple):
    """A base of two models: a vision tower, a folder or a hub id, and a decoder, which may also be a GGUF file or
    "smollm2"; what kind of projection joins them, and which layer of the tower it reads."""

    vision: str
    decoder: str
    projector: str  # "linear" or "mlp"
    vision_feature_layer: int


class AdapterConfig(NamedTuple):
    """The values of adapter_config.json that vary. ``base``: the base model, a folder or a hub id, or its two towers.
    ``rank``: LoRA's; 0 if the adapter has only a projection."""

    base: str | Towers
    rank: int = 0
    alpha: float = 0.0


def is_adapter(folder: str | os.PathLike) -> bool:
    return os.path.exists(standing(folder) / CONFIG)


def to_dict(config: AdapterConfig, folder: Path) -> dict:
    """The contents of adapter_config.json in ``folder``. Files and folders in it are relative to ``folder``, so that
    all can move together."""

    def place(name: str) -> str:
        if not os.path.exists(standing(name)):
            return name  # a hub id or a package
        return Path(os.path.relpath(os.path.realpath(name), os.path.realpath(folder))).as_posix()

    base, rank, alpha = config
    if isinstance(base, Towers):
        towers = base._replace(vision=place(base.vision), decoder=place(base.decoder))
        values = {"base_model_name_or_path": None, "base_towers": towers._asdict()}
    else:
        values = {"base_model_name_or_path": place(base)}
    return {**values, **FIXED, "r": rank, "lora_alpha": alpha, "lora_dropout": 0.0} if rank else values


def read_config(folder: Path) -> AdapterConfig:
    """Read adapter_config.json. Files and folders in it become paths from the working directory.

    Raises UserError if it is broken or asks for something that is not supported.
    """
    path = folder / CONFIG
    values = read_json_object(path)

    def place(name: str) -> str:
        return os.fspath(folder / name) if os.path.exists(standing(folder / name)) else name

    for name, only in FIXED.items():
        if values.get(name, only) != only:
            what = f"{name} is {values[name]!r:.80}; only {only!r} is supported"
            raise UserError(f"{path}: {what}; merge the adapter into its base model with the code that made it")
    base, towers = values.get("base_model_name_or_path"), values.get("base_towers")
    if towers is not None:
        kinds = Towers.__annotations__
        if not isinstance(towers, dict) or {name: type(value) for name, value in towers.items()} != kinds:
            wanted = ", ".join(f"{name} ({kind.__name__})" for name, kind in kinds.items())
            raise UserError(f"{path}: base_towers must have {wanted}")
        if towers["projector"] not in ("linear", "mlp"):
            raise UserError(f"{path}: projector is {towers['projector']!r:.80}, not 'linear' or 'mlp'")
        base = Towers(**towers | {name: place(towers[name]) for name in ("vision", "decoder")})
    elif isinstance(base, str):
        base = place(base)
    else:
        raise UserError(f"{path}: base_model_name_or_path is {base!r:.80}, not a hub id or a folder")
    if not {"peft_type", "r", "lora_alpha"} & values.keys():
        return AdapterConfig(base)
    rank, alpha = values.get("r"), values.get("lora_alpha")
    for name, value, kinds in (("r", rank, (int,)), ("lora_alpha", alpha, (int, float))):
        if type(value) not in kinds or not 0 < value < LARGEST:
            raise UserError(f"{path}: {name} is {value!r:.80}, not a positive number below {LARGEST:,}")
    return AdapterConfig(base, rank, alpha)
