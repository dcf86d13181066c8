"""Detailed descriptions: what the captions tell, then where the boxes put things, then what else there is."""

import random

from data.picturebook.language import NUMBERS, listing, sentence
from data.teachers.scripted import captions as telling
from data.teachers.scripted.conversation import beside
from data.teachers.scripted.view import Group, View, place
from data.teachers.scripted.words import capital

MOST_PLACED = 5  # categories whose place is told; the others are only named
FILLS = 0.5  # of the picture


def description(view: View, rng: random.Random) -> str:
    """A paragraph of two to ten sentences."""
    sentences = _told(view, rng)
    placed = [group for group in view.groups if _placed(group, view)][:MOST_PLACED]
    sentences += _joined([_placed(group, view) for group in placed], rng)
    if rest := [group for group in view.groups if group not in placed]:
        shown = listing([group.some for group in rest])
        also = " also" if sentences else ""
        sentences.append(rng.choice((f"One can{also} see {shown}.", f"There {rest[0].be}{also} {shown}.")))
    pairs = [(a, b) for a in view.singles for b in view.singles if a is not b and beside(a, b)]
    if pairs:
        a, b = rng.choice(pairs)
        sentences.append(f"{capital(a.the)} is on the {beside(a, b)} of {b.the}.")
    if len(view.groups) > 1 and view.groups[0].area > 2 * view.groups[1].area and not view.groups[0].crowded:
        group = view.groups[0]
        take = "take" if group.many else "takes"
        sentences.append(f"Of all these, {group.the} {take} up the most room.")
    return " ".join(sentences)


def _told(view: View, rng: random.Random) -> list[str]:
    """Up to three captions: one as it stands, and what others add to it, as another way of putting it."""
    if not view.captions:
        return []
    first = telling.draw(view.captions, rng)
    sentences, said = [first.told()], set(first.content)
    leads = ["Put another way, ", "One could also say that ", "Or, in other words, "]
    rng.shuffle(leads)
    for caption in view.captions:
        clause = caption.clause.told if caption.clause else None
        new = caption.content - said
        if caption is first or len(new) < 2 or len(sentences) == 3:
            continue
        if clause and "." not in caption.text:
            sentences.append(f"{leads.pop()}{clause}.")
        elif caption.noun_phrase and caption.words[1] not in telling.PICTURES:
            sentences.append(f"{leads.pop()}this is {caption.noun_phrase}.")
        said |= new
    return sentences


def _placed(group: Group, view: View) -> str | None:
    """ "the dog is on the left", "of the two dogs, one is ...", "there are several people, most of them ...": or None
    where places are not sure."""
    places = [place(box) for box in group.boxes]
    known = group.the if view.mentioned(group) else group.some
    if group.counted and len(places) == 1:
        if group.area >= FILLS:
            return f"{known} fills much of the picture"
        return places[0] and f"{known} is {places[0]}"
    if group.counted and len(places) == 2 and None not in places and places[0] != places[1]:
        return f"of the two {group.names}, one is {places[0]} and the other {places[1]}"
    if group.counted and len(places) == 3 and None not in places and len(set(places)) == 3:
        return f"of the three {group.names}, one is {places[0]}, one {places[1]} and one {places[2]}"
    if group.crowded or len(places) > 2:
        left = [box for box in group.boxes if "left" in (place(box) or "")]
        right = [box for box in group.boxes if "right" in (place(box) or "")]
        number = f"{NUMBERS[len(places)]} {group.names}" if group.counted else group.some
        for side, found in (("left", left), ("right", right)):
            if len(found) * 2 > len(places) and len(places) > 2:
                return f"there are {number}, most of them on the {side}"
        if left and right:
            return f"there are {number}, from the left of the picture to the right"
    return None


def _joined(parts: list[str], rng: random.Random) -> list[str]:
    """Sentences of one or two parts each."""
    sentences = []
    while parts:
        simple = len(parts) > 1 and not any("," in part for part in parts[:2])
        taken, parts = (parts[:2], parts[2:]) if simple and rng.random() < 0.7 else (parts[:1], parts[1:])
        sentences.append(sentence(rng.choice((", and ", ", while ")).join(taken)))
    return sentences
