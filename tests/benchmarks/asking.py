"""``python tests/benchmarks/asking.py [--model FOLDER]``: what the held-out files do not show.

Talks of five turns about fresh scenes, of which at least two lean on the turn before; the model's own answers are the
talk so far. And questions whether there is a thing: about everyday nouns that are not in the training, and about things
that are there. All questions are worded as in ``heldout_words.json``, which the training has not seen, and judged by
meaning. ``--json`` adds a line of JSON.
"""

import argparse
import json
import random
import sys
from collections import defaultdict
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from data.picturebook import nouns  # noqa: E402
from data.picturebook.draw import draw_scene  # noqa: E402
from data.picturebook.heldout import LEANING, new_composition  # noqa: E402
from data.picturebook.questions import MORE, QUESTIONS, Question  # noqa: E402
from data.picturebook.scene import Scene, sample_scene  # noqa: E402
from data.picturebook.talk import FOLLOW_UPS, MAKERS, WEIGHTS  # noqa: E402
from minillava import PRETRAINED, load  # noqa: E402
from minillava.evaluate import Question as Asked  # noqa: E402
from minillava.evaluate import means, words  # noqa: E402

TURNS = 5


def five_turns(scene: Scene, rng: random.Random) -> list[Question]:
    """Questions of a talk. The second and the fourth lean on the one before; the others may."""
    while True:
        talk: list[Question] = []
        for turn in range(TURNS):
            [make] = rng.choices(list(MAKERS.values()), list(WEIGHTS.values()))
            lean = rng.choice(list(FOLLOW_UPS.values()))
            question = lean(scene, rng, talk[-1]) if turn % 2 else make(scene, rng)
            if question is None:
                break
            talk.append(question)
        if len(talk) == TURNS:
            return talk


def is_right(question: Question, text: str, answer: str) -> bool:
    """Whether an answer has the meaning and no word that is neither in the right answer nor in the question."""
    need = [list(choices) for choices in question.need]
    asked = Asked(0, None, torch.empty(0), question.answer, "", [], need, list(question.refuse), frozenset(words(text)))
    return means(asked, answer, KNOWN)


def known_words() -> set[str]:
    """The words of many right answers."""
    rng = random.Random(0)
    answers = [make(sample_scene(rng), rng) for _ in range(300) for make in MAKERS.values()]
    return {word for question in answers if question and question.kind != "say" for word in words(question.answer)}


KNOWN = known_words()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=PRETRAINED / "llava")
    parser.add_argument("--scenes", type=int, default=150, help="talks; as many questions about absent things")
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--json", action="store_true")
    a = parser.parse_args()
    model, rng = load(a.model), random.Random(a.seed)
    right: dict[str, list[bool]] = defaultdict(list)
    absent = [noun for noun in nouns.everyday()[1] if noun.number == "one"]
    for number in range(a.scenes):
        scene = sample_scene(rng)
        picture = model.encode_image(draw_scene(scene, rng))
        history: list[tuple[str, str]] = []
        for turn, question in enumerate(five_turns(scene, rng)):
            text = new_composition(question, rng)
            answer = model.chat(picture, text, history=history, max_new_tokens=100)
            history.append((text, answer))
            hit = is_right(question, " ".join(said for pair in history for said in pair), answer)
            right["first turn" if turn == 0 else "later turns"].append(hit)
            if question.kind in LEANING:
                right["of these, follow-ups"].append(hit)
        for name, noun in (("absent things", absent[number % len(absent)]), ("things that are there", None)):
            question = MORE["absent"](scene, rng, noun) if noun else None
            while question is None or (noun is None and question.need[0] != ("yes",)):
                question = QUESTIONS["existence"](scene, rng)
            text = new_composition(question, rng)
            right[name].append(is_right(question, text, model.chat(picture, text, max_new_tokens=100)))
    scores = {name: sum(hits) / len(hits) for name, hits in right.items()}
    for name, score in scores.items():
        print(f"{name:<24} {len(right[name]):>5} {score:>7.1%}")
    print(f"{min(len(absent), a.scenes)} nouns that are not in the training")
    if a.json:
        print(json.dumps({name: round(score, 4) for name, score in scores.items()}))


if __name__ == "__main__":
    main()
