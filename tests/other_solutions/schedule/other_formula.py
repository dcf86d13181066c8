"""The square of a cosine of half the angle, and the factor by a condition."""

import math


def schedule(step, total, recipe):
    rising = round(total * recipe.warmup) or 1
    if step + 1 <= rising:
        return (step + 1) / rising
    return math.cos(math.pi / 2 * (step - rising) / (total - rising)) ** 2


def set_rate(optimizers, rate):
    for group in [group for optimizer in optimizers for group in optimizer.param_groups]:
        group["lr"] = rate * group["factor"] if "factor" in group else rate
