"""Loops in place of next() and setdefault()."""

import re

from minillava.errors import UserError
from minillava.formats.tensors import CONSTANTS


def rename(tensors, rules):
    result, before = {}, {}
    for old, tensor in tensors.items():
        if CONSTANTS.search(old):
            continue
        new = old
        for pattern, replacement in rules:
            if re.search(pattern, old):
                new = re.sub(pattern, replacement, old)
                break
        if new in result:
            raise UserError(f"{before[new]} and {old} are the same tensor")
        result[new], before[new] = tensor, old
    return result


def split(sizes, limit):
    shards, used = [[]], 0
    for name in sizes:
        if shards[-1] and used + sizes[name] > limit:
            shards, used = [*shards, []], 0
        shards[-1] = [*shards[-1], name]
        used += sizes[name]
    return shards
