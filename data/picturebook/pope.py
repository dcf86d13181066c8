"""Questions whether a thing is in a picture, in the form of POPE (Li et al. 2023, arXiv 2305.10355).

Half of a picture's questions are about kinds of things that it shows, half about kinds that it does not, chosen in one
of three ways. A model that guesses from what is frequent, or from what goes together, is worse on the second and third.
"""

import random
from collections import Counter
from collections.abc import Iterator
from itertools import permutations

from data.picturebook.scene import KINDS, Scene

MOST = 3  # kinds there, and as many kinds that are not there, for each picture
WAYS = {
    "random": "any kind that is not there",
    "popular": "the most frequent kinds in the training pictures that are not there",
    "adversarial": "the kinds not there that training pictures show most often together with the kinds that are",
}


def kinds_of(scene: Scene) -> list[str]:
    return sorted({thing.kind for thing in scene.things})


def questions(train: list[Scene], scenes: list[Scene], way: str, rng: random.Random) -> Iterator[tuple[int, str, str]]:
    """(number of the scene, kind, "yes" or "no") for each of ``scenes``. ``way``: one of WAYS."""
    frequent = Counter(kind for scene in train for kind in kinds_of(scene))
    together = Counter(pair for scene in train for pair in permutations(kinds_of(scene), 2))
    for number, scene in enumerate(scenes):
        there = kinds_of(scene)
        chosen = rng.sample(there, min(MOST, len(there)))
        absent = rng.sample([kind for kind in KINDS if kind not in there], len(KINDS) - len(there))
        if way == "popular":
            absent.sort(key=lambda kind: -frequent[kind])
        elif way == "adversarial":
            absent.sort(key=lambda kind: -sum(together[kind, other] for other in there))
        for kind, other in zip(chosen, absent):
            yield number, kind, "yes"
            yield number, other, "no"
