"""The questions of heldout_words.json and heldout_frames.json: every type, in wordings that no training contains."""

import random
from collections import Counter

from data.picturebook import nouns
from data.picturebook.questions import Question
from data.picturebook.scene import Scene
from data.picturebook.talk import FOLLOW_UPS, MAKERS, WEIGHTS
from data.picturebook.unseen_wordings import UNSEEN
from data.picturebook.wordings import typed

PER_TYPE = 160  # rows of each type in each of the two files
LEANING = ("it", "and", "sure", "else")  # types of follow-ups
FURTHER = {  # type -> makers with other names whose questions have this type
    "existence": ("several existence", "something of a colour"),
    "count": ("count of some",),
    "colour": ("colour or",),
    "setting": ("setting or not",),
    "check": ("check count",),
    "relation": ("further",),
}
TYPES = (*(kind for kind in MAKERS if kind not in sum(FURTHER.values(), ())), *LEANING)


def new_composition(question: Question, rng: random.Random) -> str:
    """The question in a wording that is put together from the training's parts and kept out of it."""
    return question.ask(rng, held_out=True)


class UnseenFrames:
    """Words questions in the frames of unseen_wordings.py; all frames of a form have their turn."""

    def __init__(self):
        self.used = Counter()

    def __call__(self, question: Question, rng: random.Random) -> str:
        frames = UNSEEN[question.form]
        self.used[question.form] += 1
        return typed(frames[self.used[question.form] % len(frames)], question.slots, rng)


def questions_of(kind: str, scene: Scene, rng: random.Random, unseen_nouns: bool) -> list[Question]:
    """A question of a type, after the one that it leans on if it is a follow-up; [] if the scene allows none.

    With ``unseen_nouns``, things that this world does not have are those kept out of the training.
    """
    if kind in LEANING:
        [make] = rng.choices(list(MAKERS.values()), list(WEIGHTS.values()))
        last = make(scene, rng)
        question = last and rng.choice(list(FOLLOW_UPS.values()))(scene, rng, last)
        return [last, question] if question and question.kind == kind else []
    names = (kind, *FURTHER.get(kind, ()))
    [name] = rng.choices(names, [WEIGHTS[name] for name in names])
    noun = rng.choice(nouns.everyday()[1]) if unseen_nouns and kind in ("absent", "missing", "say") else None
    question = MAKERS[name](scene, rng, noun)
    return [question] if question else []
