"""Several processes that train one model together, as ``torchrun --nproc_per_node=N train.py ...`` starts them.

All run the same program. Of each batch every process takes its share of the rows; the gradients of all are added up,
and all make the same step, the one that a single process would make, up to rounding. Two ways to hold the model:

- DDP: each process has the whole of it;
- FSDP2 (``--shard``): each has a slice of every parameter, of its gradient and of the optimiser's state, and a block is
  put together when its turn comes. Takes less memory, and more traffic.

The first process alone prints and writes. A checkpoint holds whole tensors, so any number of processes goes on with it.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from minillava.errors import UserError
from minillava.model import decoder, vision

Loss = Callable[[dict[str, Tensor]], Tensor]
PATIENCE = timedelta(days=7)  # the others wait while the first draws the picture-book, or trains the towers


class LossModule(nn.Module):
    """A model and its loss as one module: DDP and FSDP2 act where a module's forward begins and ends."""

    def __init__(self, model: nn.Module, loss: Loss):
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.loss(batch)


@dataclass(frozen=True)
class Team:
    """The processes that train together, as one of them sees it: it is number ``rank`` of ``size``."""

    rank: int = 0
    size: int = 1
    shard: bool = False

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def share(self, rows: list[int], size: int) -> list[list[int]]:
        """This process's rows of a batch, in micro-batches of at most ``size``.

        Every process gets as many micro-batches, since all add up their gradients after each; so some may be empty.
        """
        step = size * self.size
        return [rows[start : start + step][self.rank :: self.size] for start in range(0, len(rows), step)]

    def spread(self, model: nn.Module, loss: Loss, device: str) -> Loss:
        """Move ``model`` to where it is trained. Returns ``loss``, whose way back then gives every process the mean of
        all processes' gradients. Every parameter that learns must have one, on each process."""
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
        """The sum of ``number`` over all processes. Each waits here for the others."""
        if self.size == 1:
            return number
        value = torch.tensor(number, dtype=torch.float64)
        dist.all_reduce(value)
        return value.item()

    def first_alone(self, work: Callable[[], None]) -> None:
        """``work`` is done by the first process, while the others wait."""
        if self.leads:
            work()
        self.total(0)


ALONE = Team()


def hold_gradients(loss: Loss, hold: bool) -> AbstractContextManager:
    """A forward pass in here leaves DDP's gradients to be added up later, with those of the next micro-batch."""
    return loss.no_sync() if hold and isinstance(loss, DistributedDataParallel) else nullcontext()


def own_device(device: str) -> str:
    """The device of this process: of several on a machine, each takes the GPU of its number. Raises UserError."""
    number = os.environ.get("LOCAL_RANK")
    if number is None or not device.startswith("cuda"):
        return device
    if device != "cuda":
        raise UserError(f"--device {device}: with torchrun each process takes a GPU of its own, so say cuda")
    return f"cuda:{number}"


@contextmanager
def started(device: str, shard: bool) -> Iterator[Team]:
    """The team that torchrun has started this process in; ALONE without torchrun.

    A UserError in one process ends them all: it is raised in the first that has one, and the others end without a word.
    """
    if "LOCAL_RANK" not in os.environ:
        if shard:
            raise UserError("--shard: started alone; start it with torchrun --nproc_per_node=N train.py ...")
        yield ALONE
        return
    backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
    store, rank, size = next(dist.rendezvous("env://"))
    dist.init_process_group(backend, timeout=PATIENCE, store=store, rank=rank, world_size=size)
    if rank:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  open until the process ends
    try:
        yield Team(rank, size, shard)
        dist.destroy_process_group()
    except (UserError, RuntimeError) as error:  # RuntimeError: a process that ends breaks the connection to the others
        own = int(isinstance(error, UserError))
        if store.add("errors", own) > own:
            sys.exit(2)
        raise
