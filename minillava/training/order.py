"""Which rows are in which batch, and which rank computes them. The batches depend only on seed and step."""

import random
from collections.abc import Callable, Iterator
from functools import lru_cache

from torch.utils.data import Sampler

from minillava.training.distributed import Team
from minillava.training.recipes import Recipe


@lru_cache(maxsize=2)  # the order of an epoch is needed in each of its steps
def batch_order(length: int, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """The batches of one epoch: every row once, shuffled. The last batch may be shorter."""
    rng = random.Random(f"{seed} {epoch}")
    order = list(range(length))
    rng.shuffle(order)
    return [order[start : start + batch_size] for start in range(0, length, batch_size)]


class Order(Sampler[list[tuple[int, int, int]]]):
    """A batch sampler that yields this rank's micro-batches of ``steps`` in order, as lists of (seed, epoch, row).

    A batch is a random draw. If it is cut into micro-batches, rows of similar ``size`` share one, to reduce padding.
    The gradient of a step does not depend on the cut.
    """

    def __init__(self, length: int, size: Callable[[int], int], recipe: Recipe, seed: int, team: Team):
        """``length`` is the number of rows, ``size(row)`` the approximate length of one."""
        self.length, self.size, self.recipe, self.seed, self.team = length, size, recipe, seed, team
        self.per_epoch = -(-length // recipe.batch_size)
        self.steps = range(0)

    def batch(self, step: int) -> list[int]:
        """The rows of a step's batch, over all ranks; sorted by size if the batch is divided."""
        epoch, place = divmod(step, self.per_epoch)
        rows = batch_order(self.length, self.recipe.batch_size, self.seed, epoch)[place]
        return sorted(rows, key=self.size) if self.recipe.accumulation > 1 or self.team.size > 1 else rows

    def micro_batches(self, step: int) -> list[list[int]]:
        """This rank's rows in each micro-batch of a step; [] where this rank has none."""
        rows = self.batch(step)
        return self.team.share(rows, -(-len(rows) // self.recipe.accumulation))

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        """A rank without rows gets the batch's first row as a dummy: the all-reduce of gradients needs every rank."""
        for step in self.steps:
            for rows in self.micro_batches(step):
                yield [(self.seed, step // self.per_epoch, row) for row in rows or self.batch(step)[:1]]
