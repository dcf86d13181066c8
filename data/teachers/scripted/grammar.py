"""The little grammar that the scripted teacher reads captions with: who does what, and what is of which colour.

It is right or silent: what does not clearly fit gives None, and the caption is then left in its writer's words.
"""

import re
from dataclasses import dataclass
from itertools import pairwise

from data.picturebook.language import with_article
from data.teachers.scripted.words import (
    ANIMALS,
    DOING,
    FINITE,
    FOODS,
    OTHER_NAMES,
    PEOPLE,
    STATES,
    USES,
    listed,
    plural,
)

NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
DIGITS = {str(number): word for number, word in enumerate(NUMBERS, 2)}
ONE = frozenset(("a", "an", "one", "the", "this", "another"))
UNCOUNTED = frozenset(("some", "several", "many", "multiple", "various", "numerous"))
MANY = frozenset((*NUMBERS, *UNCOUNTED, "few", "these"))
HERDS = {  # "a group of people" -> whether it is many
    "group": False, "herd": False, "flock": False, "bunch": False, "crowd": False, "team": False, "row": False,
    "couple": True, "pair": True, "lot": True, "number": True,
}  # fmt: skip
PREPOSITIONS = listed(
    """of in on at with by near next under over above below behind beside between inside outside around along down up
    from to into onto through across against for about beneath among amongst off toward towards without atop alongside
    during after before as like while where who that which and or but"""
)
POSSESSIVES = frozenset(("his", "her", "their", "its"))
COLOURS = listed(
    """black white red blue green yellow orange brown gray grey pink purple tan beige silver gold golden maroon
    turquoise teal"""
)
SHADES = frozenset(("light", "dark", "bright", "pale"))
PICTURES = listed(
    """picture photo photograph image view shot close close-up closeup painting drawing scene selfie portrait collage
    display"""
)
SINGULAR = (
    PEOPLE | ANIMALS | {name.split()[-1] for name in (*USES, *OTHER_NAMES)} | frozenset().union(*OTHER_NAMES.values())
)
PLURAL = frozenset(map(plural, SINGULAR))
NOUNS = SINGULAR | PLURAL
OPENERS = (
    NOUNS
    | {word for name in (*USES, *FOODS) for word in name.split()}
    | listed(  # no names, if with a capital
        "young old large small big little tall long elderly smiling colorful city street school train double there"
    )
)
THING_FOR = listed(  # after these "shopping" is no action: "a shopping cart"
    """cart carts bag bags lot pool board boards room area stick sticks pole rod machine gear suit suits trunks shorts
    shoes boots outfit rink zoo strip pin chair utensils station tower wheel glass glasses"""
)
ENDERS = PREPOSITIONS | DOING | STATES | FINITE | {",", "."}  # after them a noun phrase is over
NO_NOUNS = COLOURS | PREPOSITIONS | PICTURES | FINITE | DOING | HERDS.keys()
HUMAN = PEOPLE | {plural(noun) for noun in PEOPLE}
LIVING = HUMAN | ANIMALS | {plural(noun) for noun in ANIMALS}


def words_of(text: str) -> list[str]:
    """Words and marks: "2 men, riding" -> two, men, ",", riding."""
    return [DIGITS.get(word, word) for word in re.findall(r"[\w'’-]+|[^\w\s]", text)]


@dataclass(frozen=True)
class Clause:
    """Who does what: "a man in red", whose noun is "man", is, "riding a wave"."""

    subject: str
    noun: str
    be: str
    action: str

    @property
    def verb(self) -> str:
        return next(word for word in self.action.split() if word in DOING | STATES)

    @property
    def alive(self) -> bool:
        return self.noun in LIVING and "teddy" not in self.subject.split()

    @property
    def told(self) -> str:
        return f"{self.subject} {self.be} {self.action}"

    @property
    def definite(self) -> str:
        """ "the man in red", "the two dogs", "the people"."""
        words = self.subject.split()
        if words[1:3] in (["lot", "of"], ["number", "of"]):
            words = [words[0], *words[3:]]
        if words[0] in UNCOUNTED or words[0] in ("a", "an", "another", "one"):
            words[0] = "the"
        elif words[0] not in ("the", "this", "these"):
            words.insert(0, "the")
        return re.sub(r"\band (a|an|another) ", "and the ", " ".join(words))


def clause_of(words: list[str]) -> Clause | None:
    """ "A man in red (is) riding a wave." as a clause; None for whatever else a caption may be."""
    if not all(re.match(r"[\w,]", word) for word in words):
        return None
    lower = [word.lower() for word in words]
    if lower[:2] in (["there", "is"], ["there", "are"]):
        words, lower = words[2:], lower[2:]
    head = _head(lower)
    if head is None:
        return None
    noun, end = lower[head], head + 1
    many = lower[0] in MANY or (noun in PLURAL and not (noun in SINGULAR and lower[0] in ONE))  # "sheep" is both
    if lower[0] in ("all", "both", "each", "every", "most", "no"):
        return None
    if herd := next((word for word in lower[:head] if word in HERDS), None):
        many = HERDS[herd]
    elif many and lower[0] in ("a", "an"):  # "a women"
        return None
    if lower[end : end + 1] == ["and"]:
        second = _head(lower[end + 1 :])
        if second is None:
            return None
        end, many = end + 2 + second, True
    verb = end
    if lower[end : end + 1] in (["who"], ["that"], ["which"]):
        verb += 1
        if lower[verb : verb + 1] not in (["is"], ["are"]):
            return None
    elif noun in LIVING and lower[end : end + 1] in (["in"], ["on"], ["with"]):
        verb = end = _after_attribute(lower, end)
    if lower[verb : verb + 1] in (["is"], ["are"]):
        many = lower[verb] == "are"
        verb += 1
    while verb < len(lower) and re.fullmatch(r"\w+ly|just|all|each|both|together|also", lower[verb]):
        verb += 1
    if not _acts(lower, verb) and STATES.isdisjoint(lower[verb : verb + 1]):
        return None
    start = verb - 1 if verb > end and lower[verb - 1].endswith("ly") else verb  # a "family" is no adverb
    if not {"is", "are"}.isdisjoint(lower[verb:]) or ("and", "another") in pairwise(lower[verb:]):
        return None
    subject = _join(words[: min(end, start)])
    if lower[0] in HERDS or (noun in SINGULAR and not many and lower[0] not in ONE | MANY | POSSESSIVES):
        subject = with_article(subject[0].lower() + subject[1:])
    return Clause(subject, noun, "are" if many else "is", _join(words[start:]))


def _head(words: list[str]) -> int | None:
    """Where the noun is that a phrase is about: "a group of young [women] playing", "a baseball [player]"."""
    for i, word in enumerate(words[:8]):
        after = words[i + 1] if i + 1 < len(words) else ","
        if (word in HERDS and after == "of") or (word == "of" and i and words[i - 1] in HERDS):
            continue
        if word not in LIVING and not LIVING.isdisjoint(words[:i]):  # a "girl bottle" is two things
            return None
        if word in NOUNS and (after in ENDERS or after.endswith("ly")):
            return i
        acting = i and _acts(words, i) and words[i - 1] not in ONE | MANY  # not "a smiling man"
        if acting or word in PREPOSITIONS | FINITE | PICTURES | {",", "."}:
            return None
    return None


def _after_attribute(words: list[str], start: int) -> int:
    """The end of "in a red shirt", which begins at ``start``: where a verb follows. Not past a second living being,
    who might be the one that does it."""
    for i in range(start + 1, min(start + 10, len(words))):
        if words[i] in LIVING or words[i] in ("who", "that", "which", ",", "while"):
            return start
        if words[i] in ("is", "are"):
            return i
        if _acts(words, i) and words[i - 1] not in ONE | MANY | PREPOSITIONS | COLOURS | POSSESSIVES:
            return i
    return start


def _acts(words: list[str], i: int) -> bool:
    """Whether the word there is "riding" and the like, and does not belong to a thing's name."""
    return words[i : i + 1] != [] and words[i] in DOING and THING_FOR.isdisjoint(words[i + 1 : i + 2])


def _join(words: list[str]) -> str:
    return re.sub(r" ([,’'])", r"\1", " ".join(words)).rstrip(" ,")


def has_hidden_verb(words: list[str]) -> bool:
    """Whether "a man hoists a fish" has a verb not listed here: a word in -s after a noun without it or after "a"."""
    for before, word, after in zip(words, words[1:7], words[2:]):
        if word in PREPOSITIONS | DOING:
            return False
        follows = before in SINGULAR and word not in PLURAL
        if not re.search(r"[^sui]s$", word) or not (follows or words[0] in ("a", "an")):
            continue
        if (follows and before in LIVING - PLURAL) or after in ONE | MANY | PREPOSITIONS - {"of", "with"}:
            return True
    return False


def colours_of(words: list[str]) -> list[tuple[str, str]]:
    """("bus", "red and white"): what is said to be of a colour. A noun must close its phrase, so that "red fire truck"
    says nothing of fire."""
    found = []
    for i, noun in enumerate(words):
        after = words[i + 1] if i + 1 < len(words) else "."
        if i == 0 or words[i - 1] not in COLOURS or after not in ENDERS or not noun.isalpha() or noun in NO_NOUNS:
            continue
        start = i - 1
        while start > 0 and words[start - 1] in COLOURS | SHADES | {"and", ","}:
            start -= 1
        while words[start] in ("and", ","):
            start += 1
        found.append((noun, " ".join(words[start:i]).replace(" ,", ",")))
    return found
