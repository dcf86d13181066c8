"""The learning rate of each step: warm-up, half a cosine, and the groups of parameters that get it."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from minillava.training.optimizers import schedule, set_rate
from minillava.training.recipes import Recipe


def factors(total: int, warmup: float) -> list[float]:
    recipe = Recipe(learning_rate=0.5, batch_size=1, epochs=1, warmup=warmup)
    return [schedule(step, total, recipe) for step in range(total)]


@pytest.mark.parametrize("total, warmup, steps", [(100, 0.1, 10), (1000, 0.03, 30), (70, 0.03, 2), (10, 0.5, 5)])
def test_warm_up_is_a_line_that_ends_at_one(total, warmup, steps):
    found = factors(total, warmup)
    assert found[0] > 0, "the first step has a learning rate: a rate of 0 would waste it"
    assert found[0] == pytest.approx(1 / steps), "the first step has 1 / (steps of the warm-up)"
    line = [(step + 1) / steps for step in range(steps)]
    assert found[:steps] == pytest.approx(line), "in the warm-up the factor grows by the same amount in each step"
    assert found[steps - 1] == pytest.approx(1), "the last step of the warm-up has the full rate"


@pytest.mark.parametrize("total, warmup, steps", [(100, 0.1, 10), (1000, 0.03, 30), (70, 0.03, 2), (10, 0.5, 5)])
def test_after_it_comes_half_a_cosine(total, warmup, steps):
    found = factors(total, warmup)
    assert found[steps] == pytest.approx(1), "the cosine begins at 1, in the first step after the warm-up"
    assert all(one >= other for one, other in pairwise(found[steps:])), "after the warm-up the factor never grows"
    for step in range(steps, total):
        x = (step - steps) / (total - steps)
        sentence = "x goes from 0 in the first step after the warm-up to almost 1 in the last"
        assert found[step] == pytest.approx(math.cos(math.pi * x / 2) ** 2, abs=1e-9), sentence  # = (1 + cos(pi x)) / 2


def test_the_rate_ends_near_zero():
    last = factors(1000, 0.03)[-1]
    assert 0 < last < 1e-4, "in the last step the factor is nearly 0, and not below 0"


def test_half_way_down_it_is_half():
    assert factors(100, 0.1)[55] == pytest.approx(0.5), "in the middle of the cosine the factor is 1 / 2"


def test_there_is_always_a_step_of_warm_up():
    assert factors(10, 0.0)[:2] == pytest.approx([1, 1]), "the warm-up is at least one step, with the full rate"
    assert factors(1, 0.03) == pytest.approx([1]), "a training of one step has the full rate"
    assert factors(2, 0.03) == pytest.approx([1, 1]), "a training of two steps has a warm-up of one"


def test_a_part_of_a_step_is_rounded():
    assert factors(50, 0.03)[:2] == pytest.approx([0.5, 1]), "3 % of 50 steps are 1.5: round() makes 2"
    assert factors(40, 0.03)[0] == pytest.approx(1), "3 % of 40 steps are 1.2: round() makes 1"


def test_the_result_is_a_factor_and_not_the_rate():
    assert max(factors(100, 0.1)) == pytest.approx(1), "the largest factor is 1: train() multiplies it by the rate"


def optimizers() -> list[torch.optim.Optimizer]:
    """An optimizer with two groups, of which one has a factor, and another optimizer."""
    weights = [nn.Parameter(torch.zeros(2)) for _ in range(3)]
    groups = [{"params": weights[:1], "factor": 3.0}, {"params": weights[1:2]}]
    return [torch.optim.AdamW(groups, lr=0.7), torch.optim.SGD(weights[2:], lr=0.7)]


def test_every_group_gets_the_rate_times_its_factor():
    ours = optimizers()
    for rate in (0.1, 0.02):  # the second time shows whether the factor is applied to the rate before
        set_rate(ours, rate)
        [[fast, slow], [other]] = (optimizer.param_groups for optimizer in ours)
        assert slow["lr"] == pytest.approx(rate), "a group without a factor gets the rate"
        assert fast["lr"] == pytest.approx(3 * rate), 'a group with a "factor" gets the rate times it, in each call'
        assert other["lr"] == pytest.approx(rate), "every optimizer gets the rate"
        assert fast["factor"] == 3.0, "the factor of a group stays"
