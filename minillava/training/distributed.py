"""Training one model with several processes (ranks), started by ``torchrun --nproc_per_node=N train.py ...``.

Every rank runs the same program on its share of each batch's rows. The gradients are summed over all ranks, and every
rank takes the same optimizer step: the one that a single process would take, up to rounding. There are two ways to
hold the model:

- DDP: each rank holds the whole model;
- FSDP2 (``--shard``): each rank holds a shard of every parameter, of its gradient and of its optimizer state, and the
  parameters of a block are gathered when the block runs. This takes less memory and more communication.

Only rank 0 prints and writes files. A checkpoint holds whole tensors, so it can be resumed with any number of ranks.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from minillava.errors import UserError
from minillava.model import decoder, vision

Result = TypeVar("Result")
Loss = Callable[[dict[str, Tensor]], Tensor]
TIMEOUT = timedelta(days=7)  # the other ranks wait while rank 0 draws the picture-book or trains the towers


class LossModule(nn.Module):
    """A model and its loss as one module, because DDP and FSDP2 hook into a module's ``forward``."""

    def __init__(self, model: nn.Module, loss: Loss):
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.loss(batch)


@dataclass(frozen=True)
class Team:
    """The processes that train together, as seen by one of them: its ``rank``, and the world ``size``."""

    rank: int = 0
    size: int = 1
    shard: bool = False

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def share(self, rows: list[int], size: int) -> list[list[int]]:
        """This rank's rows of a batch, in micro-batches of at most ``size`` rows.

        Every rank gets the same number of micro-batches, because collective operations need every rank; so some
        micro-batches may be empty.
        """
        step = size * self.size
        return [rows[start : start + step][self.rank :: self.size] for start in range(0, len(rows), step)]

    def spread(self, model: nn.Module, loss: Loss, device: str) -> Loss:
        """Move ``model`` to ``device``, or shard it over the ranks. Returns ``loss``, wrapped so that its backward pass
        leaves on every rank the mean of all ranks' gradients. Every trainable parameter needs a gradient on each rank.
        """
        if self.shard:
            mesh = init_device_mesh(torch.device(device).type, (self.size,))
            for part in model.modules():
                if isinstance(part, (decoder.Block, vision.Block)):
                    fully_shard(part, mesh=mesh)
            return fully_shard(LossModule(model, loss), mesh=mesh)
        model.to(device)
        if self.size == 1:
            return loss
        return DistributedDataParallel(LossModule(model, loss), gradient_as_bucket_view=True)

    def total(self, number: float) -> float:
        """The sum of ``number`` over all ranks. It is an all-reduce, so each rank waits here for the others."""
        if self.size == 1:
            return number
        value = torch.tensor(number, dtype=torch.float64)
        dist.all_reduce(value)
        return value.item()

    def together(self, work: Callable[[], Result]) -> Result:
        """The result of ``work``, which each rank does for itself. A UserError on one rank is raised on every rank, so
        that all end at the same place."""
        if self.size == 1:
            return work()
        error = result = None
        try:
            result = work()
        except UserError as its:
            error = str(its)
        if self.total(error is not None):
            errors: list[str | None] = [None] * self.size
            dist.all_gather_object(errors, error)
            raise UserError(next(filter(None, errors)))
        return result

    def on_first(self, work: Callable[[], None]) -> None:
        """Run ``work`` on rank 0 while the other ranks wait. Its UserError is raised on every rank."""
        self.together(lambda: work() if self.is_first else None)


SINGLE = Team()


def hold_gradients(loss: Loss, hold: bool) -> AbstractContextManager:
    """A context for a forward pass. With ``hold``, DDP adds up its gradients locally, without an all-reduce."""
    return loss.no_sync() if hold and isinstance(loss, DistributedDataParallel) else nullcontext()


def own_device(device: str) -> str:
    """The device of this rank: ``device``, or under torchrun with "cuda" the GPU whose index is the local rank.

    Raises UserError if ``device`` names one GPU ("cuda:1") under torchrun.
    """
    number = os.environ.get("LOCAL_RANK")
    if number is None or not device.startswith("cuda"):
        return device
    if device != "cuda":
        raise UserError(f"--device {device}: under torchrun each process uses its own GPU; pass --device cuda")
    return f"cuda:{number}"


@contextmanager
def started(device: str, shard: bool) -> Iterator[Team]:
    """Join the process group that torchrun started and yield this rank's Team; without torchrun, yield SINGLE.

    A UserError or OSError on one rank ends all ranks: it is raised on the first rank that has one, and the others exit
    with code 2 and print nothing. Raises UserError for ``shard`` without torchrun.
    """
    if "LOCAL_RANK" not in os.environ:
        if shard:
            raise UserError("--shard: needs torchrun; start with torchrun --nproc_per_node=N train.py ...")
        yield SINGLE
        return
    backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
    store, rank, size = next(dist.rendezvous("env://"))
    dist.init_process_group(backend, timeout=TIMEOUT, store=store, rank=rank, world_size=size)
    if rank:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  open until the process ends
    try:
        yield Team(rank, size, shard)
        dist.destroy_process_group()
    except (UserError, OSError, RuntimeError) as error:  # RuntimeError: another rank has ended, the connection is lost
        own = int(not isinstance(error, RuntimeError))
        if store.add("errors", own) > own:
            sys.exit(2)
        raise
