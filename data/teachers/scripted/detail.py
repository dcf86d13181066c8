"""Detailed descriptions: what the captions tell, then where the boxes put things, then what else there is."""

import random

from data.picturebook.language import NUMBERS, listing, sentence
from data.teachers.scripted import captions as telling
from data.teachers.scripted.view import Group, View, comes_first, place
from data.teachers.scripted.words import capital

MOST_PLACED = 5  # categories whose place is told; the others are only named
FILLS = 0.5  # of the picture
LEADS = ("Put another way, ", "One could also say that ", "Or, in other words, ")


def description(view: View, rng: random.Random) -> str:
    """A paragraph, as long as the context is rich."""
    sentences = _told(view, rng)
    placed = [group for group in view.groups if _placed(group, view)][:MOST_PLACED]
    sentences += _joined([_placed(group, view) for group in placed], rng)
    # what a caption has told of already would sound like one more
    if rest := [group for group in view.groups if group not in placed and not view.mentions(group)]:
        shown = listing([group.some for group in rest])
        also = " also" * bool(sentences)
        sentences.append(rng.choice((f"One can{also} see {shown}.", f"There {rest[0].be}{also} {shown}.")))
    pairs = [(a, b) for a in view.singles for b in view.singles if a is not b and comes_first(a, b, axis=0)]
    if pairs:
        a, b = rng.sample(rng.choice(pairs), 2)
        sentences.append(f"{capital(a.the)} is on the {'left' if comes_first(a, b, axis=0) else 'right'} of {b.the}.")
    if len(view.groups) > 1 and view.groups[0].area > 2 * view.groups[1].area and not view.groups[0].crowded:
        largest = view.groups[0]
        sentences.append(f"Of all these, {largest.the} {'take' if largest.many else 'takes'} up the most space.")
    # where no caption says that what follows is a picture
    return (
        " ".join(sentences) if view.captions else f"In the picture, {sentences[0][0].lower()}" + " ".join(sentences)[1:]
    )


def _told(view: View, rng: random.Random) -> list[str]:
    """Up to three captions: one as it stands, and what others add to it, as another way of putting it."""
    if not view.captions:
        return []
    first = telling.draw(view.captions, rng)
    sentences, said = [first.told()], set(first.content)
    leads = rng.sample(LEADS, len(LEADS))
    for caption in view.captions:
        told = caption.clause.told if caption.clause else f"this is {caption.noun_phrase}"
        if (caption.clause or caption.noun_phrase) and len(caption.content - said) > 1 and len(sentences) < 3:
            sentences.append(f"{leads.pop()}{told}.")
            said |= caption.content
    return sentences


def _placed(group: Group, view: View) -> str | None:
    """ "the dog is on the left", "of the two dogs, one is ...", "there are several people, most of them ...": or None
    where places are not sure."""
    places = [place(box) for box in group.boxes]
    if group.single:
        known = group.the if view.mentions(group) else group.some
        if group.area >= FILLS:
            return f"{known} fills much of the picture"
        return places[0] and f"{known} is {places[0]}"
    apart = group.counted and None not in places and len(set(places)) == len(places)
    if apart and len(places) == 2:
        return f"of the two {group.names}, one is {places[0]} and the other {places[1]}"
    if apart and len(places) == 3:
        return f"of the three {group.names}, one is {places[0]}, one {places[1]} and one {places[2]}"
    if len(places) > 2:
        on = {side: sum(side in (where or "") for where in places) for side in ("left", "right")}
        shown = f"{NUMBERS[len(places)]} {group.names}" if group.counted else group.some
        for side, number in on.items():
            if 2 * number > len(places):
                return f"there {group.be} {shown}, most of {'them' if group.many else 'it'} on the {side}"
        if all(on.values()):
            return f"there {group.be} {shown} on the left and on the right"
    return None


def _joined(parts: list[str], rng: random.Random) -> list[str]:
    """Sentences of one or two parts each."""
    sentences = []
    while parts:
        simple = len(parts) > 1 and not any("," in part for part in parts[:2])
        taken, parts = (parts[:2], parts[2:]) if simple and rng.random() < 0.7 else (parts[:1], parts[1:])
        sentences.append(sentence(rng.choice((", and ", ", while ")).join(taken)))
    return sentences
