"""Captions -> sentences that can be said again: the little grammar that the scripted teacher reads.

People write captions in four ways, and each is told again in its own:

    A man (is) riding a wave.      "A man is riding a wave."                  a clause: it answers "What is the man doing?"
    A kitchen with a white oven    "The picture shows a kitchen with ..."     a noun and what goes with it
    A man rides a wave             "A man rides a wave."                      a sentence: said as it stands
    Close up of pizza              "Close up of pizza."                       anything else: said as it stands

Nothing is guessed: what does not clearly fit one of the first two ways is left in its writer's words.
"""

import random
import re
from dataclasses import dataclass
from functools import cached_property

from data.picturebook.language import sentence, with_article
from data.teachers.scripted.words import (
    ANIMALS,
    DOING,
    FINITE,
    MEN,
    OTHER_NAMES,
    PAIRS,
    PEOPLE,
    STATES,
    STAYING,
    USES,
    WOMEN,
    plural,
)

NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
ONE = frozenset(("a", "an", "one", "the", "this", "another"))
MANY = frozenset((*NUMBERS, "some", "several", "many", "few", "multiple", "various", "these", "numerous"))
HERDS = {"group": False, "herd": False, "flock": False, "bunch": False, "crowd": False, "team": False, "row": False,
         "couple": True, "pair": True, "lot": True, "number": True}  # fmt: skip
PREPOSITIONS = frozenset("""of in on at with by near next under over above below behind beside between inside outside
around along down up from to into onto through across against for about beneath among amongst off toward towards
without atop alongside during after before as like while where who that which and or but""".split())
COLOURS = frozenset("""black white red blue green yellow orange brown gray grey pink purple tan beige silver gold golden
maroon turquoise teal""".split())
SHADES = frozenset(("light", "dark", "bright", "pale"))
PICTURES = frozenset("""picture photo photograph image view shot close close-up closeup painting drawing scene selfie
portrait collage display""".split())
# A caption with one of these speaks of its writer's task and not of the picture: it is never told.
ABOUT_THE_TASK = re.compile(
    r"\b(captions?|captioning|bounding|annotat\w+|unable to|can ?(no|')t see|can not see|no (image|picture|photo))\b", re.I
)
# With one of these an answer sounds as if it spoke of its sources, or of itself: told only where there is no other.
BETTER_NOT = re.compile(r"\b(box(es)?|descri\w+|coordinates?|I|i|I'm|my|me)\b")
PRETENDED = re.compile(
    r"\b(toys?|statues?|sculptures?|fake|model|miniature|paintings?|drawings?|cartoon|stuffed|figurines?|plastic|"
    r"mural|poster|lego|cardboard|shaped|reflection)\b",
    re.I,
)

_SINGULAR = PEOPLE | ANIMALS | {name.split()[-1] for name in (*USES, *OTHER_NAMES)} | frozenset().union(
    *OTHER_NAMES.values()
)
_PLURAL = {plural(noun) for noun in _SINGULAR}
_LIVING = PEOPLE | ANIMALS | {plural(noun) for noun in PEOPLE | ANIMALS}


@dataclass(frozen=True)
class Clause:
    """Who does what: "a man in red", "man", is, "riding a wave"."""

    subject: str
    noun: str
    be: str
    action: str

    @property
    def verb(self) -> str:
        return next(word for word in self.action.split() if word in DOING | STATES)

    @property
    def alive(self) -> bool:
        return self.noun in _LIVING and "teddy" not in self.subject.split()

    @property
    def told(self) -> str:
        return f"{self.subject} {self.be} {self.action}"

    @property
    def definite(self) -> str:
        """ "the man in red", "the two dogs", "the people"."""
        words = self.subject.split()
        if words[0] in ("some", "several", "many", "multiple", "various", "numerous"):
            words[0] = "the"
        elif words[0] in ("a", "an", "another", "one"):
            words[0] = "the"
        elif words[0] not in ("the", "this", "these"):
            words.insert(0, "the")
        return re.sub(r"\band (a|an|another) ", "and the ", " ".join(words))


@dataclass(frozen=True)
class Caption:
    """One caption, its spaces and its end put right."""

    text: str

    @cached_property
    def words(self) -> list[str]:
        return re.findall(r"[\w'’-]+|[^\w\s]", self.text.lower())

    @cached_property
    def clause(self) -> Clause | None:
        return _clause(re.findall(r"[\w'’-]+|[^\w\s]", _lower_first(self.text)))

    @property
    def noun_phrase(self) -> str | None:
        """ "a kitchen with a white oven", of a caption that is no sentence."""
        words = self.words
        if len(words) < 2 or words[0] not in ONE | MANY or words[0] in ("this", "these") or not self._one_sentence:
            return None
        finite = [i for i, word in enumerate(words) if word in FINITE and words[i - 1] not in ("who", "that", "which")]
        return None if finite or _hidden_verb(words) else _lower_first(self.text)

    @property
    def _one_sentence(self) -> bool:
        return not re.search(r"[.!?;:]\s", self.text)

    def told(self) -> str:
        """The caption as a sentence of an answer."""
        if self.clause and self._one_sentence:
            return sentence(self.clause.told)
        if self.noun_phrase and self.words[1] not in PICTURES:
            return f"The picture shows {self.noun_phrase}."
        return self.text[0].upper() + self.text[1:] + ("" if self.text[-1] in "!?" else ".")

    @cached_property
    def content(self) -> frozenset[str]:
        """Its words that mean something by themselves."""
        return frozenset(word for word in self.words if len(word) > 2 and word not in PREPOSITIONS | ONE | MANY)

    @cached_property
    def claims(self) -> dict[tuple[str, str], str]:
        """What it says that another caption may contradict: {("people", "number"): "two", ("bus", "colour"): "red"}."""
        said = {}
        for i, word in enumerate(self.words):
            if word in NUMBERS:
                noun = next((w for w in self.words[i + 1 : i + 5] if w in _PLURAL or w in PREPOSITIONS), "")
                if noun in _PLURAL:
                    said["people" if noun in _LIVING and noun not in map(plural, ANIMALS) else noun, "number"] = word
        said |= {(noun, "colour"): colour for noun, colour in colours(self.words)}
        men, women = set(MEN) & set(self.words), set(WOMEN) & set(self.words)
        if bool(men) != bool(women):
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
    captions.sort(key=lambda c: -_rank(c, captions))
    kept: list[Caption] = []
    for caption in captions:
        if all(caption.agrees(before) for before in kept):
            kept.append(caption)
    return kept


def _rank(caption: Caption, captions: list[Caption]) -> float:
    shared = sum(len(caption.content & other.content) / (len(caption.content | other.content) or 1) for other in captions)
    return shared + (1 if caption.clause else 0.7 if caption.noun_phrase else 0)


def _tidy(text: str) -> str:
    text = " ".join(text.split()).rstrip(" .,;:-")
    text = re.sub(r"\s+([,.;!?])", r"\1", text)
    text = text.lower() if text.isupper() else text
    if text.split(" ")[0].lower() in _SINGULAR - PAIRS:  # "Man riding a wave"
        text = with_article(text[0].lower() + text[1:])
    return text if re.search(r"\w{2}", text) else ""


def _lower_first(text: str) -> str:
    first = text.split(maxsplit=1)[0]
    return text[0].lower() + text[1:] if first.lower() in ONE | MANY | _PLURAL | _SINGULAR | {"there"} else text


def _hidden_verb(words: list[str]) -> bool:
    """Whether "a man hoists a fish" has a verb that nobody listed: a word in -s where "a" wants a noun without it."""
    for word, after in zip(words[1:6], words[2:]):
        if word in PREPOSITIONS or word in DOING or words[0] not in ("a", "an"):
            return False
        if re.search(r"[^su]s$", word) and word not in ("tennis",) and after in ONE | MANY | PREPOSITIONS - {"of", "with"}:
            return True
    return False


def colours(words: list[str]) -> list[tuple[str, str]]:
    """("bus", "red and white"): what a caption says is of a colour. A noun must close its phrase, so that "red fire
    truck" says nothing of fire."""
    found = []
    for i, noun in enumerate(words):
        ends = i + 1 == len(words) or words[i + 1] in PREPOSITIONS | DOING | STATES | FINITE | {",", "."}
        if i == 0 or words[i - 1] not in COLOURS or not ends or not noun.isalpha() or noun in COLOURS | PREPOSITIONS:
            continue
        start = i - 1
        while start > 0 and words[start - 1] in COLOURS | SHADES | {"and", ","}:
            start -= 1
        while words[start] in ("and", ","):
            start += 1
        if noun not in PICTURES | FINITE | DOING:
            found.append((noun, " ".join(words[start:i]).replace(" ,", ",")))
    return found


def _clause(words: list[str]) -> Clause | None:
    lower = [word.lower() for word in words]
    if lower[:2] in (["there", "is"], ["there", "are"]):
        words, lower = words[2:], lower[2:]
    head = _head(lower)
    if head is None:
        return None
    many = lower[head] in _PLURAL and lower[head] not in _SINGULAR or lower[0] in MANY
    if herd := next((word for word in lower[:head] if word in HERDS), None):
        many = HERDS[herd]
    alive = lower[head] in _LIVING
    noun, verb = lower[head], head + 1
    if lower[verb : verb + 1] == ["and"]:
        second = _head(lower[verb + 1 :])
        if second is None:
            return None
        verb, many = verb + 2 + second, True
        alive = alive and lower[verb - 1] in _LIVING
    end = verb
    if lower[verb : verb + 1] in (["who"], ["that"], ["which"]):
        verb += 1
        if lower[verb : verb + 1] not in (["is"], ["are"]):
            return None
    elif alive and lower[verb : verb + 1] and lower[verb] in ("in", "on", "with"):
        verb = end = _after_attribute(lower, verb)
    if lower[verb : verb + 1] in (["is"], ["are"]):
        many = lower[verb] == "are"
        verb += 1
    while verb < len(lower) and re.fullmatch(r"\w+ly|just|all|each|both|together|also", lower[verb]):
        verb += 1
    if verb >= len(lower) or lower[verb] not in DOING | STATES:
        return None
    start = verb - 1 if lower[verb - 1].endswith("ly") else verb
    end = min(end, start)
    rest = words[start:]
    if any(word in ".!?;:" for word in rest) or any(w in ("is", "are") for w in lower[verb:]):
        return None
    subject = words[:end]
    if not many and lower[0] not in ONE or lower[0] in HERDS:
        subject = with_article(_join(subject)[0].lower() + _join(subject)[1:]).split()
    return Clause(_join(subject), noun, "are" if many else "is", _join(rest))


def _head(words: list[str]) -> int | None:
    """Where the noun is that a phrase is about: "a group of young [women] playing", "a baseball [player]"."""
    for i, word in enumerate(words[:8]):
        if word in HERDS and words[i + 1 : i + 2] == ["of"] or word == "of" and i and words[i - 1] in HERDS:
            continue
        if word in _SINGULAR | _PLURAL and not words[i + 1 : i + 2]:
            return i
        if word in _SINGULAR | _PLURAL and words[i + 1] in PREPOSITIONS | DOING | STATES | FINITE | {","}:
            return i
        if word in _SINGULAR | _PLURAL and words[i + 1].endswith("ly"):
            return i
        if word in PREPOSITIONS | FINITE | {",", "."} | PICTURES or (word in DOING and i and words[i - 1] not in ONE | MANY):
            return None
    return None


def _after_attribute(words: list[str], start: int) -> int:
    """The end of "in a red shirt", from its preposition on: where a verb follows. Not past a second living being, who
    might be the one that does it."""
    for i in range(start + 1, min(start + 10, len(words))):
        if words[i] in _LIVING or words[i] in ("who", "that", "which", ",", "while"):
            return start
        if words[i] in ("is", "are"):
            return i
        before = words[i - 1]
        if words[i] in DOING and before not in ONE | MANY | PREPOSITIONS | COLOURS | {"his", "her", "their", "its"}:
            return i
    return start


def _join(words: list[str]) -> str:
    return re.sub(r" ([,’'])", r"\1", " ".join(words)).rstrip(" ,")


def draw(captions: list[Caption], rng: random.Random) -> Caption:
    """One of the best three."""
    return rng.choice(captions[:3])
