"""Which rows are in which batch, and which process computes them: decided by seed and step alone."""

import random
from collections.abc import Callable, Iterator
from functools import lru_cache

from torch.utils.data import Sampler

from minillava.training.distributed import Team
from minillava.training.recipes import Recipe


@lru_cache(maxsize=2)  # the epoch at hand, and the next one for workers that run ahead
def batch_order(length: int, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """The batches of one epoch: every row once, shuffled; a last short batch is kept."""
    rng = random.Random(f"{seed} {epoch}")
    order = list(range(length))
    rng.shuffle(order)
    return [order[start : start + batch_size] for start in range(0, length, batch_size)]


class Order(Sampler[list[tuple[int, int, int]]]):
    """A batch sampler: this process's micro-batches in ``steps``, one after the other, as keys (seed, epoch, row).

    A batch is a random draw. Where it is cut into micro-batches, rows of like ``size`` share one, so that they hold
    little padding; what a step learns does not depend on the cut.
    """

    def __init__(self, length: int, size: Callable[[int], int], recipe: Recipe, seed: int, team: Team):
        """``length`` is the number of rows, ``size(row)`` about how long one is."""
        self.length, self.size, self.recipe, self.seed, self.team = length, size, recipe, seed, team
        self.per_epoch = -(-length // recipe.batch_size)
        self.steps = range(0)

    def batch(self, step: int) -> list[int]:
        """The rows of a step's batch, of all processes."""
        epoch, place = divmod(step, self.per_epoch)
        rows = batch_order(self.length, self.recipe.batch_size, self.seed, epoch)[place]
        return sorted(rows, key=self.size) if self.recipe.accumulation > 1 or self.team.size > 1 else rows

    def micro_batches(self, step: int) -> list[list[int]]:
        """This process's rows in each micro-batch of a step; [] where there are fewer rows than processes."""
        rows = self.batch(step)
        return self.team.share(rows, -(-len(rows) // self.recipe.accumulation))

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        """A process without rows gets one all the same: it must take part when gradients are added up."""
        for step in self.steps:
            for rows in self.micro_batches(step):
                yield [(self.seed, step // self.per_epoch, row) for row in rows or self.batch(step)[:1]]
