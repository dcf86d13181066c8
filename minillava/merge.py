"""``python -m minillava.merge ADAPTER OUT``: merge a LoRA adapter with its base model into one plain LLaVA folder."""

import argparse
from pathlib import Path

import torch

from minillava.checkpoint import load
from minillava.errors import UserError, run_program
from minillava.formats.adapter_config import CONFIG, is_adapter
from minillava.hub import find_shipped
from minillava.saving import save


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("adapter", type=find_shipped, help="adapter folder, written by train.py --lora, or smol")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the weights")
    arguments = parser.parse_args()
    if not is_adapter(arguments.adapter):
        raise UserError(f"{Path(arguments.adapter, CONFIG)}: no such file, so there is nothing to merge")
    if arguments.out.exists():
        raise UserError(f"{arguments.out} already exists")
    save(load(arguments.adapter, dtype=getattr(torch, arguments.dtype)), arguments.out)


if __name__ == "__main__":
    run_program(main)
