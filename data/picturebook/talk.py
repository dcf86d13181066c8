"""Conversations about a scene: questions, follow-ups that lean on the question before, and talk around them."""

import random
from collections.abc import Callable
from dataclasses import replace

from data.picturebook import nouns
from data.picturebook.language import sentence, with_article
from data.picturebook.questions import (
    MORE,
    NO,
    QUESTIONS,
    YES,
    Question,
    absent,
    all_of,
    called,
    count,
    counting,
    missing,
    numbers,
    other_colours,
    other_kinds,
    other_places,
    others,
    placed,
)
from data.picturebook.scene import COLOURS, KINDS, SIZES, Scene, Thing
from data.picturebook.wordings import CLASSIC

LENGTH = 600  # maximum characters of a conversation: rows of similar length need little padding
TALK = {  # form -> the answer, and words of which it must have one
    "hello": ("Hello! Ask me about the picture.", ("hello", "hi")),
    "thanks": ("You are welcome.", ("welcome",)),
    "bye": ("Goodbye!", ("goodbye", "bye")),
    "how are you": ("I am fine, thank you.", ("fine", "well")),
    "who are you": ("I am a small program that looks at pictures.", ("program",)),
    "what can you do": ("I can tell you what is in the picture, where it is, and its colour and size.", ("picture",)),
    "praise": ("Thank you.", ("thank", "thanks")),
}
BEYOND = "I cannot tell that from the picture."


def talk(scene, rng, subject=None):
    """Greetings, thanks, and questions about the program itself."""
    [form] = rng.choices(list(TALK), (3, 3, 1, 1, 2, 1, 1))
    answer, words = TALK[form]
    return Question("talk", form, {}, answer, (words,), (*COLOURS, *KINDS))


def beyond(scene, rng, subject=None):
    """A question that no picture answers."""
    thing, word = rng.choice(scene.things), nouns.made_up(rng) if rng.random() < 0.5 else None
    form = "beyond" if rng.random() < 0.65 else "beyond the thing"
    if word is None:
        word = rng.choice([noun.word for noun in nouns.everyday()[0] if noun.number == "one"])
    slots = {"the": f"the {called(thing, scene, rng)}", "colour": thing.colour}
    slots |= {"a": with_article(word), "many": f"{word}s"}
    return Question("beyond", form, slots, BEYOND, (("cannot", "can't", "not", "don't"),), (*COLOURS, *KINDS, *YES))


def say(scene, rng, subject=None):
    """A word to repeat. It teaches the model to copy, also words that it has never met."""
    noun = subject or nouns.absent(rng)
    word = rng.choice((*COLOURS, *KINDS)) if subject is None and rng.random() < 0.2 else noun.word
    return Question("say", "say", {"word": word}, f"{word}.", ((word,),))


# ---- follow-ups: each returns a Question that leans on ``last``, or None ---------------------------------------------


def about_it(scene: Scene, rng: random.Random, last: Question) -> Question | None:
    """The colour, place or size of the thing that was told of, what is near it, or whether it is so."""
    if last.subject is None:
        return None
    form, thing = rng.choice(("colour", "position", "size", "near", "check")), last.subject
    if form == "colour":
        said = f"the {thing.kind} is {thing.colour}"
        wrong = (*other_colours([thing]), *other_kinds(thing.kind))
        return Question("it", "it colour", {}, sentence(said), ((thing.colour,),), wrong, (thing,), "", said)
    turn = (QUESTIONS | MORE)[form](scene, rng, thing)
    return turn and replace(turn, kind="it", form=f"it {form}", told=(thing,))


def and_another(scene: Scene, rng: random.Random, last: Question) -> Question | None:
    """The same question about another thing ("and the tree?"), name, number or place."""
    if last.asks in ("colour", "position", "size"):
        rest = [thing for thing in scene.things if thing is not last.subject]
        if rng.random() < 0.15:
            turn = missing(scene, rng)
            return replace(turn, kind="and", form="and the") if turn and "the" in turn.slots else None
        turn = QUESTIONS[last.asks](scene, rng, rng.choice(rest)) if rest else None
        return turn and replace(turn, kind="and", form="and the")
    if last.asks == "existence":
        turn = absent(scene, rng) if rng.random() < 0.3 else QUESTIONS["existence"](scene, rng)
        return replace(turn, kind="and", form="and a") if "a" in turn.slots else None
    if last.asks == "count":
        return replace(count(scene, rng), kind="and", form="and many")
    if last.asks == "place":
        turn = MORE["place"](scene, rng)
        return replace(turn, kind="and", form="and at") if turn.form == "at" else None
    return None


def are_you_sure(scene: Scene, rng: random.Random, last: Question) -> Question | None:
    """The answer is said again, without the verdict that it began with."""
    if last.kind in ("talk", "beyond", "say"):
        return None
    if rng.random() < 0.1:
        return Question("sure", "how do you know", {}, "I see it in the picture.", (("see",),))
    if not last.said or last.kind == "sure":
        return None
    need = tuple(words for words in last.need if words not in (YES, NO))
    refuse = tuple(word for word in last.refuse if word not in (*YES, *NO))
    if not need:  # only a verdict was needed; now it is the last word of the clause, or that there is none
        need = ((last.said.split()[-1],),) if last.told else (NO,)
    if rng.random() < 0.5:
        form, answer = "again", sentence(last.said)
    else:
        form, answer, need = "sure", sentence(f"yes, {last.said}"), (("yes", "sure"), *need)
    return replace(last, kind="sure", form=form, slots={}, answer=answer, need=need, refuse=refuse, asks="")


def no_it_is(scene: Scene, rng: random.Random, last: Question) -> Question | None:
    """Somebody insists on something wrong; the truth stays."""
    thing = last.subject
    if thing is None or last.asks not in ("colour", "position", "size"):
        return None
    if last.asks == "colour":
        claim = rng.choice(other_colours([thing]))
    elif last.asks == "size":
        [claim] = [f"<{'big' if size == 'large' else 'small'}>" for size in SIZES if size != thing.size]
    else:
        claim = f"<{rng.choice(other_places([thing]))}>"
    return replace(
        last, kind="sure", form="no it is", slots={"is": claim}, answer=sentence(f"no, {last.said}"), asks=""
    )


def anything_else(scene: Scene, rng: random.Random, last: Question) -> Question | None:
    """The things that the last answer did not tell of."""
    if not last.told or last.kind in ("count", "else"):
        return None
    rest = tuple(thing for thing in scene.things if thing not in last.told)
    if not rest:
        return Question("else", "else", {}, "No, nothing else.", (NO,), (*KINDS, *COLOURS, *YES))
    said = f"there {'is' if len(rest) == 1 else 'are'} also {placed(rest)}"
    return Question("else", "else", {}, sentence(said), all_of(rest), others(rest), rest, "", said)


def how_many(scene: Scene, rng: random.Random, last: Question) -> Question | None:
    """The number of the things that were told of."""
    if last.form not in ("existence many", "anything of a colour", "list") or not last.told:
        return None
    need, refuse = numbers(len(last.told))
    refuse = (*refuse, *other_places(last.told))
    said = counting(last.told)
    return Question("and", "how many are there", {}, sentence(said), need, refuse, last.told, "count", said)


FOLLOW_UPS: dict[str, Callable] = {  # types of follow-ups; "and" and "sure" have two makers each
    "it": about_it,
    "and": and_another,
    "how many": how_many,
    "sure": are_you_sure,
    "no it is": no_it_is,
    "else": anything_else,
}

# How often each type of question is asked. Counting and reasoning, whose answers depend on the most things, are asked
# twice as often as colours or places, existence too: a model learns "yes" and "no" slowly.
WEIGHTS = {
    "existence": 3,
    "colour": 2,
    "kind": 2,
    "count": 4,
    "position": 2,
    "relation": 2.8,
    "size": 2,
    "setting": 1.2,
    "reasoning": 5,
    "several existence": 2,
    "something of a colour": 1,
    "count of some": 1.5,
    "check count": 1.5,
    "colour or": 0.5,
    "setting or not": 0.8,
    "place": 2.5,
    "further": 0.8,
    "near": 2.5,
    "compare": 3.5,
    "check": 6,
    "day": 0.8,
    "about": 0.8,
    "describe": 0.5,
    "list": 2,
    "colours": 0.8,
    "extreme": 2.5,
    "several": 1.5,
    "absent": 3,
    "missing": 2,
    "talk": 3,
    "beyond": 2,
    "say": 2.5,
}
MAKERS = QUESTIONS | MORE | {"talk": talk, "beyond": beyond, "say": say}
PLAIN = 0.25  # share of the old wordings among questions that have one


def conversation(
    scene: Scene, rng: random.Random, length: int, without: frozenset[str] = frozenset(), number: int | None = None
) -> list[tuple[str, str]]:
    """Questions in the training's wordings and their answers: ``number`` turns or one to five, no question twice, at
    most ``length`` characters in total. No question names a pair of ``without``."""
    number = number or rng.choices(range(1, 6), (1, 1, 2, 4, 8))[0]
    turns: dict[str, str] = {}
    last = None
    for _ in range(20 * number):
        if len(turns) == number:
            break
        if last and rng.random() < 0.35:
            question = rng.choice(list(FOLLOW_UPS.values()))(scene, rng, last)
        elif not last and rng.random() < 0.08:
            question = talk(scene, rng)  # people often begin with a greeting
        else:
            [make] = rng.choices(list(MAKERS.values()), list(WEIGHTS.values()))
            question = make(scene, rng)
        if question is None:
            continue
        text = worded(question, rng)
        used = len(text) + len(question.answer)
        if used <= length and text not in turns and not any(pair in text.lower() for pair in without):
            turns[text] = question.answer
            length -= used
            last = question
    return list(turns.items())


def worded(question: Question, rng: random.Random) -> str:
    """A question in one of the training's wordings, old or composed."""
    if question.kind in QUESTIONS and question.form in CLASSIC and rng.random() < PLAIN:
        return question.ask_plainly(rng)
    return question.ask(rng)


def ask(kind: str, scene: Scene, rng: random.Random, subject: Thing | None = None) -> tuple[str, str] | None:
    """A question of one of the nine old types, in an old wording, and its answer."""
    question = QUESTIONS[kind](scene, rng, subject)
    return question and (question.ask_plainly(rng), question.answer)
