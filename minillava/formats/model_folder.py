"""``config.json`` of a model's folder. Folders of kinds that cannot be read are refused with what they are."""

from pathlib import Path

from minillava.errors import UserError
from minillava.formats import adapter_config
from minillava.formats.json_object import read_json_object
from minillava.formats.tensors import has_weights


def read_config(folder: Path) -> dict:
    """The contents of config.json. Raises UserError if there is none, or if the folder is of another kind."""
    path = folder / "config.json"
    refuse_lora(folder)
    if not path.exists():
        if (folder / "params.json").exists():
            raise UserError(
                f"{folder}: a model in Meta's own format (params.json); take the folder in transformers' format, whose "
                "name on the hub often ends in -hf, or convert it (transformers: convert_llama_weights_to_hf.py)"
            )
        if adapter_config.is_adapter(folder):
            raise UserError(f"{folder}: an adapter, not a whole model; merge it into its base model first")
    if (folder / "mm_projector.bin").exists() and not has_weights(folder):
        raise UserError(
            f"{folder}: only a projector (mm_projector.bin), which the LLaVA authors' code saves after stage 1, but no "
            "language model; give a folder of a whole model"
        )
    config = read_json_object(path)
    for part in (config, config.get("text_config"), config.get("vision_config")):
        how = part.get("quantization_config") if isinstance(part, dict) else None
        if how:
            method = how.get("quant_method") if isinstance(how, dict) else how
            raise UserError(
                f"{path}: the weights are quantised ({method}), which is not supported; take the model's folder with "
                "weights in float16, bfloat16 or float32"
            )
    return config


def refuse_lora(folder: Path) -> None:
    """Raise UserError if the folder is LoRA of the LLaVA authors' code: not a whole model, nor an adapter as ours."""
    if (folder / "non_lora_trainables.bin").exists():
        raise UserError(
            f"{folder}: LoRA matrices of the LLaVA authors' code (non_lora_trainables.bin), not a whole model; merge "
            "them into their base model with that code (scripts/merge_lora_weights.py) and give the merged folder"
        )
