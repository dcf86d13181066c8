"""Tensors in a folder's files: safetensors or PyTorch's .bin, in one file or in shards with an index.

- Reading goes tensor by tensor: a file is mapped, one tensor is copied out of it in the dtype asked for, and the file
  is let go again. What is resident is the model and one tensor more, whatever the size of the files.
- A .bin file is a pickle; it is read with ``weights_only``, so it holds tensors alone or is refused, and runs no code.
- Every tensor of the model must be there, and nothing else; what does not fit is an error that names it.
"""

import json
import re
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from minillava.errors import UserError
from minillava.formats.json_object import read_json_object

WEIGHTS = "model.safetensors"
ADAPTER = "adapter_model.safetensors"
# The first that is there is read; each may be shards with NAME.index.json.
KINDS = (WEIGHTS, "pytorch_model.bin", ADAPTER)
SHARD_BYTES = 5 * 10**9  # at most so many in a file that we write
STORED = "stored"
Dtype = torch.dtype | Literal["stored"] | None  # of what is read; "stored" is each tensor's own, None is float32
# Not weights: what each position's number is, and RoPE's angles, which follow from the config.
CONSTANTS = re.compile(r"(?:^|\.)(?:position_ids|rotary_emb\.inv_freq)$")


class Unfilled(TorchFunctionMode):
    """Within this, beside ``torch.device("meta")``, modules are built without memory, for ``fill`` to fill.

    Normal numbers are not drawn, since there is nowhere to put them and PyTorch would import 80 MB of code to do it.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        return kwargs["tensor"] if function is nn.init.normal_ else function(*args, **(kwargs or {}))


class Stored(NamedTuple):
    """A tensor that lies in ``file`` under ``name``."""

    file: Path
    name: str
    shape: tuple[int, ...]

    def read(self) -> Tensor:
        """The file is opened anew for each tensor: pages of a mapping stay resident for as long as it lasts."""
        if self.file.suffix == ".bin":
            return _open_bin(self.file)[self.name]
        with safe_open(self.file, framework="pt") as file:
            return file.get_tensor(self.name)


def find_weights(folder: Path) -> Path:
    """The file that holds the folder's tensors, or the index of its shards. Raises UserError where there is none."""
    first, *others = (folder / f"{kind}{end}" for kind in KINDS for end in ("", ".index.json"))
    for path in (first, *others):
        if path.exists():
            return path
    raise UserError(f"{first}: no such file, nor {', '.join(path.name for path in others)}")


def list_tensors(folder: Path) -> dict[str, Stored]:
    """The folder's tensors by name, out of one file or of all shards that its index names. Their data is not read yet.

    Raises UserError for a file that is missing, cut short or broken, or holds anything else than tensors.
    """
    path = find_weights(folder)
    if path.suffix != ".json":
        return _list_file(path)
    places = read_json_object(path).get("weight_map")
    if not isinstance(places, dict):
        raise UserError(f"{path}: no weight_map from tensors to files")
    for file in places.values():
        if not re.fullmatch(r"\w[\w.-]*\.(safetensors|bin)", str(file)):
            raise UserError(f"{path}: its weight_map has {file!r}, not the name of a weight file in this folder")
    tensors: dict[str, Stored] = {}
    for file in sorted(set(places.values())):
        for name, tensor in _list_file(path.with_name(file)).items():
            if (other := tensors.setdefault(name, tensor)) is not tensor:
                raise UserError(f"{tensor.file}: tensor {name!r} is in {other.file.name} too")
    for name, file in places.items():
        if name not in tensors or tensors[name].file.name != file:
            raise UserError(f"{path.with_name(file)}: tensor {name!r} is missing, which {path.name} promises")
    return tensors


def rename(tensors: dict[str, Stored], rules: tuple[tuple[str, str], ...]) -> dict[str, Stored]:
    """The tensors by our names. The first of ``rules`` (pattern, replacement) that fits a name is applied, once."""
    renamed: dict[str, Stored] = {}
    for name, tensor in tensors.items():
        if CONSTANTS.search(name):
            continue
        rule = next((rule for rule in rules if re.search(rule[0], name)), ("", ""))
        name = re.sub(*rule, name)
        if (other := renamed.setdefault(name, tensor)) is not tensor:
            raise UserError(f"{tensor.file}: tensors {other.name!r} and {tensor.name!r} are both {name}")
    return renamed


@torch.no_grad()
def fill(module: nn.Module, tensors: dict[str, Stored], folder: Path, device: str = "cpu", dtype: Dtype = None) -> None:
    """Give the parameters that ``module`` has on the meta device their values, in ``dtype`` (float32) on ``device``.

    ``tensors``, those of ``folder``, go by the parameters' names. A parameter of two names, as a tied head is, may be
    stored under either or both. Raises UserError, before anything is read, for a tensor that is missing, left over or
    of another shape, and for a device that is not there.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {device}: {str(error).splitlines()[0]}") from None
    wanted = {name: p for name, p in module.named_parameters(remove_duplicate=False) if p.is_meta}
    stored: dict[nn.Parameter, list[Stored]] = {parameter: [] for parameter in wanted.values()}
    for name, parameter in wanted.items():
        if found := tensors.get(name):
            if found.shape != parameter.shape:
                raise UserError(f"{found.file}: tensor {name} has shape {found.shape}, not {tuple(parameter.shape)}")
            stored[parameter].append(found)
    for name, parameter in wanted.items():
        if not stored[parameter]:
            raise UserError(f"{find_weights(folder)}: tensor {name} is missing")
    for name in sorted(tensors.keys() - wanted.keys()):
        raise UserError(f"{tensors[name].file}: tensor {tensors[name].name!r} is left over")
    # The largest first: a tensor in its file and its copy are resident together while little else is.
    for parameter, (first, *others) in sorted(stored.items(), key=lambda item: -item[0].numel()):
        value = first.read()
        for other in others:
            if not torch.equal(other.read().to(value.dtype), value):
                raise UserError(f"{other.file}: tensor {other.name} differs from {first.name}, to which it is tied")
        if not value.is_floating_point():
            raise UserError(f"{first.file}: tensor {first.name} is of {value.dtype}, not of fractions")
        kind = value.dtype if dtype == STORED else dtype or torch.float32
        copy = nn.Parameter(torch.empty(value.shape, dtype=kind, device=device).copy_(value))
        torch.utils.swap_tensors(parameter, copy)  # in place, so that tied parameters stay tied


def write_tensors(folder: Path, tensors: dict[str, Tensor], dtype: torch.dtype | None = None) -> None:
    """Write model.safetensors, or shards of at most SHARD_BYTES and their index, in ``dtype`` or each in its own.

    No more than one shard at a time is converted, so a large model is not held twice.
    """
    shards: list[dict[str, Tensor]] = [{}]
    room, total = SHARD_BYTES, 0
    for name, tensor in tensors.items():
        size = tensor.numel() * (dtype or tensor.dtype).itemsize
        if size > room and shards[-1]:
            shards.append({})
            room = SHARD_BYTES
        shards[-1][name] = tensor
        room, total = room - size, total + size
    count = len(shards)
    files = [WEIGHTS] if count == 1 else [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
    for file, shard in zip(files, shards):
        converted = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in shard.items()}
        save_file(converted, folder / file, metadata={"format": "pt"})
    if count > 1:
        places = {name: file for file, shard in zip(files, shards) for name in shard}
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _list_file(path: Path) -> dict[str, Stored]:
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.suffix == ".bin":
        shapes = {name: tensor.shape for name, tensor in _open_bin(path).items()}
    else:
        try:
            with safe_open(path, framework="pt") as file:
                shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 (no dict)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: not a whole safetensors file ({error})") from None
    return {name: Stored(path, name, tuple(shape)) for name, shape in shapes.items()}


def _open_bin(path: Path) -> dict[str, Tensor]:
    try:
        tensors = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        if not all(isinstance(name, str) and tensor.layout == torch.strided for name, tensor in tensors.items()):
            raise TypeError
    except Exception as error:  # one cut short or foreign fails in torch, zipfile or pickle, each in its own way
        raise UserError(f"{path}: not a PyTorch file of tensors and nothing else ({type(error).__name__})") from None
    return tensors
