"""A folder's path, or an id on the Hugging Face hub ("owner/name") -> a folder."""

import os
import re
from pathlib import Path

from minillava.errors import UserError

Folder = str | os.PathLike  # a path, or an id on the hub


def resolve_folder(name: Folder) -> Path:
    """``name`` itself where it is a folder; else, where it looks like a hub id, the folder it is downloaded to.

    Downloading needs the package huggingface_hub and a network. Raises UserError where there is no folder to be had.
    """
    folder, name = Path(name), os.fspath(name)
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name):
        raise UserError(f"{name}: no such folder")
    try:
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(name, allow_patterns=["*.json", "*.jinja", "*.model", "*.safetensors"]))
        if not any(folder.glob("*.safetensors")):  # older repositories have pickles alone
            snapshot_download(name, allow_patterns=["*.bin"])
        return folder
    except ImportError:
        why = "no package to fetch it from the Hugging Face hub (pip install huggingface_hub)"
    except (OSError, ValueError) as error:
        why = f"the Hugging Face hub does not give it ({type(error).__name__})"
    raise UserError(f"{name}: no such folder, and {why}; download it in another way and give its path")
