"""The tensors of a model folder: safetensors or PyTorch's .bin, in one file or in shards with an index.

- Tensors are read one at a time: the file is memory-mapped, one tensor is copied out of it in the requested dtype, and
  the file is closed. Memory holds the model and one more tensor, whatever the size of the files.
- A .bin file is a pickle. It is read with ``weights_only``: no code in it runs, and a file with anything else than
  tensors is refused. One in the format that torch wrote before 1.6 cannot be memory-mapped: its tensors are all read
  when they are listed.
- The files must hold every tensor of the model and no other. The error names the tensor that does not fit.
"""

import json
import re
from pathlib import Path
from typing import Literal, NamedTuple
from zipfile import ZipFile, is_zipfile

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from minillava.errors import UserError
from minillava.files import check_regular
from minillava.formats.json_object import read_json_object, refuse_pointer

WEIGHTS = "model.safetensors"
ADAPTER = "adapter_model.safetensors"
# The first of these that exists is read. Each may be split into shards, listed in NAME.index.json.
KINDS = (WEIGHTS, "pytorch_model.bin", ADAPTER)
SHARD_BYTES = 5 * 10**9  # maximum size of a file that we write
STORED = "stored"
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)  # nothing is computed in those of 8 bits
Dtype = torch.dtype | Literal["stored"] | None  # to convert to; "stored" keeps each tensor's own, None is float32
# Not weights: the numbers of the positions, and RoPE's inverse frequencies, which follow from the config.
CONSTANTS = re.compile(r"(?:^|\.)(?:position_ids|rotary_emb\.inv_freq)$")


class Unfilled(TorchFunctionMode):
    """Context for building modules without memory, used together with ``torch.device("meta")``; ``fill`` fills them.

    It skips nn.init.normal_: a meta tensor cannot hold numbers, and PyTorch would import 80 MB of code for the call.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        return kwargs["tensor"] if function is nn.init.normal_ else function(*args, **(kwargs or {}))


class Stored(NamedTuple):
    """A tensor in ``file``, under the name ``name``. ``value``: the tensor, if it is in memory already."""

    file: Path
    name: str
    shape: tuple[int, ...]
    value: Tensor | None = None

    def read(self) -> Tensor:
        """Read the tensor. Opens the file for each one, since a mapping's pages stay in memory while it is open."""
        if self.value is not None:
            return self.value
        if self.file.suffix == ".bin":
            return _open_bin(self.file)[self.name]
        with safe_open(self.file, framework="pt") as file:
            return file.get_tensor(self.name)


def has_weights(folder: Path) -> bool:
    """Whether the folder has a file with tensors, or an index of shards."""
    return any(path.exists() for path in _places(folder))


def _places(folder: Path) -> list[Path]:
    return [folder / f"{kind}{end}" for kind in KINDS for end in ("", ".index.json")]


def find_weights(folder: Path) -> Path:
    """The file with the folder's tensors, or the index of its shards. Raises UserError if there is none.

    A GGUF file in place of a folder is that file.
    """
    if folder.is_file():
        return folder
    first, *others = _places(folder)
    for path in (first, *others):
        if path.exists():
            return path
    raise UserError(f"{first}: no such file, nor {', '.join(path.name for path in others)}")


def list_tensors(folder: Path) -> dict[str, Stored]:
    """The folder's tensors by name, from its one file or from all shards in its index. Their data is not read yet.

    Raises UserError for a file that is missing, truncated or broken, or that holds anything else than tensors.
    """
    path = find_weights(folder)
    if path.suffix != ".json":
        return _list_file(path)
    places = read_json_object(path).get("weight_map")
    if not isinstance(places, dict):
        raise UserError(f"{path}: no weight_map of tensors to files")
    for file in places.values():
        if not re.fullmatch(r"\w[\w.-]*\.(safetensors|bin)", str(file)):
            raise UserError(f"{path}: weight_map names {file!r:.80}, not the name of a weight file in this folder")
    tensors: dict[str, Stored] = {}
    for file in sorted(set(places.values())):
        for name, tensor in _list_file(path.with_name(file)).items():
            if (other := tensors.setdefault(name, tensor)) is not tensor:
                raise UserError(f"{tensor.file}: tensor {name!r} is also in {other.file.name}")
    for name, file in places.items():
        if name not in tensors or tensors[name].file.name != file:
            raise UserError(f"{path.with_name(file)}: tensor {name!r} is missing, though {path.name} lists it")
    return tensors


def rename(tensors: dict[str, Stored], rules: tuple[tuple[str, str], ...]) -> dict[str, Stored]:
    """The tensors by our names. ``rules`` are (pattern, replacement); the first that matches a name is applied, once.

    Tensors that are not weights (CONSTANTS) are left out. Raises UserError if two tensors get the same name.
    """
    renamed: dict[str, Stored] = {}
    for name, tensor in tensors.items():
        if CONSTANTS.search(name):
            continue
        rule = next((rule for rule in rules if re.search(rule[0], name)), ("", ""))
        name = re.sub(*rule, name)
        if (other := renamed.setdefault(name, tensor)) is not tensor:
            raise UserError(f"{tensor.file}: tensors {other.name!r} and {tensor.name!r} are both read as {name}")
    return renamed


@torch.no_grad()
def fill(module: nn.Module, tensors: dict[str, Stored], folder: Path, device: str = "cpu", dtype: Dtype = None) -> None:
    """Fill the parameters of ``module`` that are on the meta device, in ``dtype`` (None: float32) on ``device``.

    ``tensors`` are those of ``folder``, by the parameters' names. Tied weights are one parameter with two names; they
    may be stored under either name or both. Raises UserError, before any data is read, for a tensor that is missing,
    left over or of another shape, and for a device that is not available; and, while reading, for tied weights that
    differ and for a tensor that is not of FLOATS, or has a number that is not finite in ``dtype``.
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
        raise UserError(f"{tensors[name].file}: tensor {tensors[name].name!r} is left over: no such parameter")
    # Largest first: a tensor and its copy are in memory together, best while most of the model is not there yet.
    for parameter, (first, *others) in sorted(stored.items(), key=lambda item: -item[0].numel()):
        value = first.read()
        for other in others:
            if not torch.equal(other.read().to(value.dtype), value):
                raise UserError(f"{other.file}: tensor {other.name} differs from {first.name}, to which it is tied")
        if value.dtype not in FLOATS:
            raise UserError(f"{first.file}: tensor {first.name} has dtype {value.dtype}, not a floating-point one")
        kind = value.dtype if dtype == STORED else dtype or torch.float32
        copy = nn.Parameter(torch.empty(value.shape, dtype=kind, device=device).copy_(value))
        if not torch.stack(torch.aminmax(copy)).isfinite().all():  # NaN is the minimum and the maximum
            raise UserError(f"{first.file}: tensor {first.name} has a number that is not finite in {kind}")
        torch.utils.swap_tensors(parameter, copy)  # in place, so that tied parameters stay tied


def split(sizes: dict[str, int], limit: int) -> list[list[str]]:
    """The names of tensors in shards of at most ``limit`` bytes, in their order; at least one shard.

    ``sizes``: the bytes of each tensor. One that is larger than the limit has a shard for itself.
    """
    shards: list[list[str]] = [[]]
    room = limit
    for name, size in sizes.items():
        if size > room and shards[-1]:
            shards.append([])
            room = limit
        shards[-1].append(name)
        room -= size
    return shards


def write_tensors(folder: Path, tensors: dict[str, Tensor], dtype: torch.dtype | None = None) -> None:
    """Write model.safetensors, or shards of at most SHARD_BYTES and their index, in ``dtype`` (None: each tensor's).

    Shard 2 of 3 is model-00002-of-00003.safetensors. One shard is converted at a time, so a large model is never in
    memory twice.
    """
    sizes = {name: tensor.numel() * (dtype or tensor.dtype).itemsize for name, tensor in tensors.items()}
    shards = split(sizes, SHARD_BYTES)
    count = len(shards)
    files = [WEIGHTS] if count == 1 else [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
    for file, shard in zip(files, shards):
        converted = {name: tensors[name].detach().to("cpu", dtype).contiguous() for name in shard}
        write_file(folder / file, converted)
    if count > 1:
        places = {name: file for file, shard in zip(files, shards) for name in shard}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": places}
        (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def write_file(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write one safetensors file. Its mode follows the umask: ``save_file`` makes files that only the owner reads."""
    path.touch()
    mode = path.stat().st_mode & 0o777
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(mode)


def _list_file(path: Path) -> dict[str, Stored]:
    check_regular(path)
    with path.open("rb") as file:
        refuse_pointer(path, file.read(100))
    if path.suffix == ".bin":
        mapped = is_zipfile(path)
        tensors = _open_bin(path, mapped, first=True)
        return {
            name: Stored(path, name, tuple(tensor.shape), None if mapped else tensor)
            for name, tensor in tensors.items()
        }
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 (no dict)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a complete safetensors file ({error})") from None
    return {name: Stored(path, name, tuple(shape)) for name, shape in shapes.items()}


def refuse_compressed(path: Path) -> None:
    """Raise ValueError for a file of torch that is compressed: torch compresses none, and it may fill the memory."""
    if is_zipfile(path):
        with ZipFile(path) as file:
            if sum(part.file_size for part in file.infolist()) > path.stat().st_size:
                raise ValueError("compressed")


def _open_bin(path: Path, mapped: bool = True, first: bool = False) -> dict[str, Tensor]:
    """``first``: check that the file is not one that is small and fills the memory."""
    try:
        if first:
            refuse_compressed(path)
        tensors = torch.load(path, map_location="cpu", mmap=mapped, weights_only=True)
        if not all(isinstance(name, str) and tensor.layout == torch.strided for name, tensor in tensors.items()):
            raise TypeError
        if any(tensor.is_meta for tensor in tensors.values()):
            raise ValueError("without data")
        # Two tensors may share their data: an embedding and the head that is tied to it.
        if first and sum(tensor.nbytes for tensor in tensors.values()) > 2 * path.stat().st_size:
            raise ValueError("larger than the file")
    except Exception as error:  # for a truncated or foreign file, torch, zipfile and pickle raise errors of many types
        raise UserError(f"{path}: not a PyTorch file with only tensors in it ({type(error).__name__})") from None
    return tensors
