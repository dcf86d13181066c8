"""Complex reasoning: what for, why, what next, which of two: a step from what is there to what it suggests.

Every maker yields ``(question, answer)`` pairs: what is seen, what it means in general (``words.py``), and a
conclusion that is hedged. None names a thing that is not in the context.
"""

import random
from collections.abc import Iterator

from data.picturebook.language import listing, sentence, with_article
from data.teachers.scripted import captions as telling
from data.teachers.scripted.grammar import HUMAN, Clause
from data.teachers.scripted.view import View, area, middle, place
from data.teachers.scripted.words import (
    CALLS_FOR,
    FOODS,
    HEAVY,
    LIGHT,
    NEXT,
    OCCASIONS,
    PLACES_FOR,
    SOCIABLE,
    TAME,
    USES,
    capital,
    listed,
)

WEATHER = {  # word -> (what is seen, what it suggests, why)
    "snow": ("there is snow", "it is probably cold", "snow does not last long where it is warm"),
    "snowy": ("all is snowy", "it is probably cold", "snow does not last long where it is warm"),
    "rain": ("there is rain", "everything outside is probably wet", "rain leaves little dry"),
    "rainy": ("it is rainy", "everything outside is probably wet", "rain leaves little dry"),
    "sunny": ("it is sunny", "it may well be warm", "sunshine warms whatever it falls on"),
}
OUTSIDE = listed(  # "snow peas" and an egg's "sunny side" are no weather
    """covered day days afternoon morning evening night weather sky skies slope slopes hill hills hillside mountain
    mountains street road path trail field park beach area ground landscape forest terrain"""
)
CALM = frozenset(("sitting", "sleeping", "reading", "lying", "laying", "resting"))
UNEQUAL = listed(
    """baby small little tiny big large giant adult young older mother father calf child children kid kids boy girl son
    toddler"""
)  # what a caption says of two that are not of one size


def reasoning(view: View, rng: random.Random) -> tuple[str, str]:
    """One question and its answer; there is always one."""
    makers = (
        occasion, purpose, place_purpose, tame, herd, food, distance, subject, skill, next_moment, weather, lifting,
        bustle,
    )  # fmt: skip
    kinds = [turns for make in makers if (turns := list(make(view, rng)))]
    if len(kinds) < 2:
        kinds.append(list(motive(view, rng)))
    return rng.choice(rng.choice(kinds))


def occasion(view: View, rng: random.Random) -> Iterator[tuple[str, str]]:
    """What things point to that serve one end and are seen together."""
    for what, categories in OCCASIONS.items():
        found = [group for group in view.groups if group.category in categories]
        if len(found) < 2 or view.pretended:
            continue
        shown = listing([group.some for group in found[:4]])
        both = "Both" if len(found) == 2 else "All of these"
        seen = f"There {found[0].be} {shown}. {both} have to do with {what}, and that is hardly by chance."
        yield (
            rng.choice(("What probably goes on in this place?", "What might this place be used for?")),
            f"{seen} So it is likely that {what} {'go' if ' and ' in what else 'goes'} on here.",
        )
        yield (
            f"What suggests that the scene has to do with {what}?",
            f"{seen} One such thing alone would say little; several together make it likely.",
        )


def purpose(view: View, rng: random.Random) -> Iterator[tuple[str, str]]:
    """Why a thing may be there: what it is for, and what else there is that fits."""
    for group in view.groups:
        if group.category not in USES or view.pretended:
            continue
        kind, are, it = (group.names, "are", "them") if group.many else (group.some, "is", "it")
        question = rng.choice(
            (f"Why might there be {group.some} in the picture?", f"What might {group.the} be there for?")
        )
        general = f"{capital(kind)} {are} made for {USES[group.category]}."
        company = [
            (what, other)
            for what, categories in OCCASIONS.items()
            for other in view.groups
            if group.category in categories and other.category in categories and other is not group
        ]
        if company:
            what, other = rng.choice(company)
            also = f"There {other.be} also {other.some}, and both have to do with {what}"
            yield question, f"{general} {also}, so {group.the} {are} probably there for that."
        elif view.people and view.people.single:
            yield question, f"{general} The person may have used {it}, or may be about to."
        else:
            used = rng.choice((f"has used {it}, or is about to", f"will need {it} before long"))
            yield question, f"{general} So somebody probably {used}."


def place_purpose(view: View, rng: random.Random) -> Iterator[tuple[str, str]]:
    """What such a place is for."""
    if view.setting and not view.pretended:
        told = next(caption.told() for caption in view.captions if view.setting in caption.text.lower())
        yield (
            "What does one usually come to a place like this for?",
            f"{told} {capital(with_article(view.setting))} is generally for {PLACES_FOR[view.setting]}, so that is "
            "probably what one usually comes here for.",
        )


def tame(view: View, rng: random.Random) -> Iterator[tuple[str, str]]:
    """Whether an animal is tame, by its kind."""
    for group in view.groups:
        if group.category in TAME and not view.pretended:
            is_tame, why = TAME[group.category]
            yield (
                f"{capital(group.be)} {group.the} more likely tame or wild?",
                f"{'Most likely tame' if is_tame else 'Probably wild, or at least not tame'}: {why}. Looks alone "
                "cannot prove it, but for most of the kind it is true.",
            )


def herd(view: View, rng: random.Random) -> Iterator[tuple[str, str]]:
    """Why animals of one kind are together."""
    for group in view.groups:
        if group.category in SOCIABLE and len(group.boxes) > 1 and not view.pretended:
            yield (
                f"Why might the {group.names} be together?",
                f"There are {group.some}. {capital(group.names)} often keep together: several notice "
                "danger sooner than one alone. That is probably so here as well.",
            )


def food(view: View, rng: random.Random) -> Iterator[tuple[str, str]]:
    """What becomes of food."""
    for group in view.groups:
        if group.category in FOODS and not view.pretended:
            will = "they will" if group.many else "it will"
            general = f"{capital(group.names)} are" if group.many else f"{capital(group.some)} is"
            yield (
                f"What will probably become of {group.the}?",
                f"Most likely {will} be eaten before long. {general} meant for eating, and nothing edible keeps "
                "for ever.",
            )


def distance(view: View, rng: random.Random) -> Iterator[tuple[str, str]]:
    """Which of two of a kind is nearer: probably the one that is much larger on the picture."""
    for group in view.groups:
        if len(group.boxes) != 2 or not group.counted or view.pretended or not UNEQUAL.isdisjoint(view.told):
            continue
        small, large = sorted(group.boxes, key=area)
        here, there = place(large), place(small)
        if area(large) > 3 * area(small) > 0 and here and there and here != there:
            yield (
                f"Which of the two {group.names} is probably nearer to the viewer, and why?",
                f"Probably the one {here}. It takes up much more of the picture than the one {there}, and of two "
                f"{group.names} of about the same size the nearer one looks larger.",
            )


def subject(view: View, rng: random.Random) -> Iterator[tuple[str, str]]:
    """What the picture is most likely about: what is by far the largest in it."""
    if len(view.groups) < 2 or not view.groups[0].single or view.groups[0].area < 1.5 * view.groups[1].area:
        return
    first, second = view.groups[:2]
    if view.mentions(first) < max(map(view.mentions, view.groups)):  # a bed may only be what a cat lies on
        return
    central = max(abs(value - 0.5) for value in middle(first.boxes[0])) < 0.2
    yield (
        rng.choice(("What is the picture most likely about, and why?", "What was the picture probably taken for?")),
        f"Most likely {first.the}. It takes up far more space than {second.the}{' and is near the middle' * central}, "
        "and who takes a picture usually gives the most space to what matters most.",
    )


def skill(view: View, rng: random.Random) -> Iterator[tuple[str, str]]:
    """What it takes to do what somebody does."""
    for clause in _clauses(view):
        if clause.verb in CALLS_FOR and clause.noun in HUMAN:
            yield (
                f"What does it take to do what {clause.definite} {clause.be} doing?",
                f"{sentence(f'{clause.definite} {clause.be} {clause.action}')} To do that well takes "
                f"{CALLS_FOR[clause.verb]}. It is likely that {clause.definite} {clause.be} used to it, or "
                f"{clause.be} learning it now.",
            )


def next_moment(view: View, rng: random.Random) -> Iterator[tuple[str, str]]:
    """What may come after what is shown."""
    for clause in _clauses(view):
        if clause.verb in NEXT and clause.alive:
            limit = rng.choice(
                (
                    "A picture holds one moment only, so that is a likely guess and no more.",
                    "That is at least what usually follows; the picture itself cannot tell.",
                )
            )
            yield (
                f"What might {clause.definite} do next?",
                f"At this moment {clause.told}. From there, {clause.definite} {NEXT[clause.verb]}. {limit}",
            )


def weather(view: View, rng: random.Random) -> Iterator[tuple[str, str]]:
    for word, (seen, guess, why) in WEATHER.items():
        if view.tells(word, before=OUTSIDE) and not view.pretended:
            question = rng.choice(("What can one guess about the weather?", "What may it be like to be outside there?"))
            yield question, f"{capital(seen)}, so {guess}: {why}."
            return


def lifting(view: View, rng: random.Random) -> Iterator[tuple[str, str]]:
    """Which of two things is easier to carry: what everybody knows of their kinds."""
    light = [group for group in view.singles if group.category in LIGHT]
    heavy = [group for group in view.singles if group.category in HEAVY]
    if light and heavy and not view.pretended:
        one, other = rng.choice(light), rng.choice(heavy)
        first, second = rng.sample((one.the, other.the), 2)
        yield (
            f"Which would be easier to carry away, {first} or {second}?",
            f"Most likely {one.the}. {capital(one.some)} is usually small and light enough for one hand, while "
            f"{other.some} is far too heavy for that.",
        )


def bustle(view: View, rng: random.Random) -> Iterator[tuple[str, str]]:
    """Whether it is busy or calm: by how many people there are, and what the only one does."""
    question = rng.choice(("Does the scene look busy or calm?", "Is this more likely a busy moment or a calm one?"))
    clauses = [caption.clause for caption in view.captions if caption.clause]
    calm = [clause for clause in clauses if clause.noun in HUMAN and all(c.verb in CALM for c in clauses)]
    if view.people and view.people.crowded:
        yield question, "Rather busy. There are several people, and where many come together a lot is usually going on."
    elif view.people and view.people.single and calm:
        yield question, f"Rather calm. There is only one person, and {calm[0].told}, so little seems to be going on."


def motive(view: View, rng: random.Random) -> Iterator[tuple[str, str]]:
    """Why the picture may have been taken: for contexts that allow hardly any other step."""
    if view.captions:
        shown = telling.draw(view.captions, rng).told()
    else:
        shown = f"There {view.groups[0].be} {view.groups[0].some}."
    yield (
        rng.choice(("Why might somebody have taken this picture?", "What may have been the reason for this picture?")),
        f"{shown} Whoever took the picture probably found that worth remembering, or wanted to show it; pictures are "
        "seldom taken of what means nothing to anybody.",
    )


def _clauses(view: View) -> list[Clause]:
    return [caption.clause for caption in view.captions if caption.clause][:2]
