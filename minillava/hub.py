"""A folder's path, or an id on the Hugging Face hub ("owner/name") -> a folder."""

import os
import re
import sys
from pathlib import Path

from minillava.errors import UserError

Folder = str | os.PathLike  # a path, or an id on the hub


def resolve_folder(name: Folder) -> Path:
    """``name`` itself if it is a folder; else, if it looks like a hub id, the folder that it is downloaded to.

    Downloading needs the package huggingface_hub and a network. Raises UserError if neither gives a folder.
    """
    folder, name = Path(name), os.fspath(name)
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name):
        raise UserError(f"{name}: no such folder")
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
    raise UserError(f"{name}: no such folder; {why}, or download it yourself and give its path")
