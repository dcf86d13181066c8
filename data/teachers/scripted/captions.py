"""Captions -> sentences that can be said again.

People write captions in four ways, and each is told in its own:

    A man (is) riding a wave       "A man is riding a wave."                a clause: also answers "What is he doing?"
    A kitchen with a white oven    "The picture shows a kitchen with ..."   a noun and what goes with it
    A man rides a wave             "A man rides a wave."                    a sentence: said as it stands
    Close up of pizza              "Close up of pizza."                     anything else: said as it stands
"""

import random
import re
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from data.picturebook.language import sentence, with_article
from data.teachers.scripted.grammar import (
    COLOURS,
    HUMAN,
    MANY,
    NUMBERS,
    ONE,
    OPENERS,
    PICTURES,
    PLURAL,
    POSSESSIVES,
    PREPOSITIONS,
    SINGULAR,
    Clause,
    clause_of,
    colours_of,
    has_hidden_verb,
    words_of,
)
from data.teachers.scripted.words import DOING, FINITE, MEN, PAIRS, PLACES, WOMEN, capital

# A caption with one of these speaks of its writer's task and not of the picture: it is never told.
ABOUT_THE_TASK = re.compile(
    r"\b(captions?|captioning|bounding|annotat\w+|unable to|can ?(no|')t see|can not see|no (image|picture|photo))\b",
    re.I,
)
# With one of these an answer sounds as if it spoke of its sources, or of itself, or asks back: told only where there is
# no other.
BETTER_NOT = re.compile(r"\b(box(es)?|descri\w+|coordinates?|I|i|I'm|[Mm]y|me|[Ww]e|[Oo]ur)\b|\?")
PRETENDED = re.compile(
    r"\b(toys?|statues?|sculptures?|fake|model|miniature|paintings?|painted|drawings?|drawn|cartoon|stuffed|plastic|"
    r"figurines?|dolls?|mannequins?|bronze|carved|inflatable|replica|mural|graffiti|poster|legos?|cardboard|costumes?|"
    r"shaped|like an?|reflect\w*|collage)\b",
    re.I,
)
# One thing may be shown several times: boxes do not say how many there are.
REPEATED = re.compile(r"\b(mirrors?|reflect\w*|collage|pictures|photos|photographs|images|sequence|series)\b", re.I)
_PLACE = re.compile(
    rf"(?:^|\b(in|on|at|of) )(an?|the) ((?:[\w-]+ )?)({'|'.join(PLACES)})"
    r"(?= (?:with|and|that|in|on|at|near|by|of|next|under|during|while|holding|filled|has|is)\b|[ ,.]*$|,)",
    re.I,
)


@dataclass(frozen=True)
class Caption:
    """One caption, its spaces and its end put right."""

    text: str

    @cached_property
    def words(self) -> list[str]:
        return words_of(self.text.lower())

    @cached_property
    def clause(self) -> Clause | None:
        return clause_of(words_of(_lower_first(self.text)))

    @cached_property
    def noun_phrase(self) -> str | None:
        """ "a kitchen with a white oven", of a caption that is no sentence and does not call itself a picture."""
        words = self.words
        if len(words) < 2 or words[0] in ("this", "these") or words[0] not in ONE | MANY | PLURAL:
            return None
        # after these, "wave" and "watch" are nouns
        leading = (PREPOSITIONS | ONE | MANY | POSSESSIVES | COLOURS) - {"one", "another"}
        verbs = FINITE.intersection(word for before, word in pairwise(words) if before not in leading)
        if verbs or not {".", "!", "?", ";", ":"}.isdisjoint(words) or has_hidden_verb(words):
            return None
        return None if words[1] in PICTURES else _lower_first(self.text)

    def told(self) -> str:
        """The caption as a sentence of an answer."""
        if self.clause:
            return sentence(self.clause.told)
        if self.noun_phrase:
            return f"The picture shows {self.noun_phrase}."
        return capital(self.text) + "." * (self.text[-1] not in "!?")

    @cached_property
    def places(self) -> list[tuple[str, str, str]]:
        """The kinds of place it names as the scene's: ("in", "a small kitchen", "kitchen"); for "a kitchen with ..."
        and "a view of a kitchen" the first is "of"."""
        return [
            (where.lower() or "of", f"{article} {adjective}{name}".lower(), name.lower())
            for where, article, adjective, name in _PLACE.findall(self.text)
            if adjective.strip().lower() not in PREPOSITIONS | DOING | {"top", "side", "edge", "middle", "back"}
        ]

    @cached_property
    def content(self) -> frozenset[str]:
        """Its words that mean something by themselves."""
        return frozenset(word for word in self.words if len(word) > 2 and word not in PREPOSITIONS | ONE | MANY)

    @cached_property
    def claims(self) -> dict[tuple[str, str], str]:
        """What it says that another caption may contradict: {("people", "number"): "two", ("bus", "colour"): "red"}."""
        said = {(noun, "colour"): colour for noun, colour in colours_of(self.words)}
        for i, number in enumerate(self.words):
            if number in NUMBERS:
                noun = next((w for w in self.words[i + 1 : i + 5] if w in PLURAL | PREPOSITIONS), "")
                if noun in PLURAL:
                    said["people" if noun in HUMAN else noun, "number"] = number
        men, women = not set(MEN).isdisjoint(self.words), not set(WOMEN).isdisjoint(self.words)
        if men != women:
            said["person", "sex"] = "man" if men else "woman"
        return said

    def agrees(self, other: "Caption") -> bool:
        return all(other.claims.get(key, value) == value for key, value in self.claims.items())


def read(texts: tuple[str, ...]) -> list[Caption]:
    """The captions that can be said again, best first: the one that has most in common with the others, and then those
    that do not contradict one said before."""
    texts = tuple(text for text in texts if not ABOUT_THE_TASK.search(text))
    usable = [text for text in texts if not BETTER_NOT.search(text)] or texts
    captions = [Caption(tidy) for text in dict.fromkeys(usable) if (tidy := _tidy(text))]
    captions.sort(key=lambda caption: -_rank(caption, captions))
    kept: list[Caption] = []
    for caption in captions:
        if all(caption.agrees(before) for before in kept):
            kept.append(caption)
    return kept


def draw(captions: list[Caption], rng: random.Random) -> Caption:
    """One of the best three."""
    return rng.choice(captions[:3])


def _rank(caption: Caption, captions: list[Caption]) -> float:
    """The share of words in common with each of the others; a caption that is easily told again gains as much as an
    equal one would give it."""
    shared = (len(caption.content & c.content) / max(1, len(caption.content | c.content)) for c in captions)
    return sum(shared) + (1 if caption.clause else 0.7 if caption.noun_phrase else 0)


def _tidy(text: str) -> str:
    """No end mark, no space before marks, no capitals throughout, no "w/" and "&", "an elephant", and "A man" for a
    bare "Man"; empty where no word means anything by itself."""
    text = re.sub(r"\s+([,.;!?])", r"\1", " ".join(text.split())).rstrip(" .,;:-")
    text = re.sub(r"\bw/ ?", "with ", re.sub(r"\bw/o\b", "without", text)).replace(" & ", " and ")
    text = text.lower() if text.isupper() else text
    text = re.sub(r"\b([Aa]) (?=(?!one\b|once|eu)[aeio]|umb)", r"\1n ", text)
    if text.split(" ")[0].lower() in SINGULAR - PAIRS - PLURAL:
        text = with_article(text if text[1:2].isupper() else text[0].lower() + text[1:])
    meant = [word for word in words_of(text.lower()) if len(word) > 1 and word not in PREPOSITIONS | ONE | MANY]
    return text if meant else ""


def _lower_first(text: str) -> str:
    """Without the capital of its first word, unless that may be a name."""
    first = words_of(text)[0].lower()
    return text[0].lower() + text[1:] if first in ONE | MANY | OPENERS and not text[1:2].isupper() else text
