"""The noun phrases of captions: "A man riding the brown horse." contains "man" and "brown horse".

The paper uses spaCy. So does this module if spaCy and its small English model are installed. Otherwise it uses the
rules below, which know no grammar: a phrase is a run of words between words that cannot belong to one.
Both give phrases in lower case, without "a", "the", "two", "his".
"""

import re
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import TypeVar

MODEL = "en_core_web_sm"
T = TypeVar("T")
Chunker = Callable[[Iterable[tuple[str, T]]], Iterator[tuple[list[str], T]]]


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


DETERMINERS = words(
    """a an the this these those my your his her its our their some any no every each all both another other several
    many few one two three four five six seven eight nine ten hundred thousand"""
)
BREAKS = words(
    """about above across after against along alongside amid among and around as aside at atop away back because before
    behind below beneath beside between beyond but by despite down during except for from how if in inside instead
    into like near next not of off on onto or out outside over past since so than that then there through throughout
    till to together toward towards under underneath until up upon via what when where which while who whose why
    with within without he she it they them we us i you him himself herself itself themselves someone something
    anyone anything everyone everything nobody nothing just also too very more most only even ever never still yet
    again here now soon is are was were be been being am has have had having do does did done can could will would
    may might must shall should isn't aren't doesn't don't it's that's appear appears arrive arrives attend attends
    carry carries catch catches celebrate celebrates climb climbs come comes cut cuts drink drinks drive drives eat
    eats enjoy enjoys fill fills fly flies get gets give gives go goes hang hangs hit hits hold holds jump jumps
    kick kicks lay lays lead leads lean leans leave leaves let lets lie lies look looks made make makes mean means
    perform performs play plays pose poses prepare prepares pull pulls push pushes put puts reach reaches read reads
    ride rides run runs say says see sees seen sell sells set shown shows sit sits smile smiles speak speaks stand
    stands stare stares take taken takes talk talks taught tell tells throw throws try tries turn turns use uses
    wait waits walk walks wear wears worn sat stood ran rode held wore lay hung flew ate drank took"""
)
ADJECTIVES = words(  # a phrase cannot end with one: in "the ball is red", "red" is not a phrase
    """red blue green yellow white black brown grey gray pink purple golden dark bright big small large little tiny
    huge long short tall high low old young new wooden full empty open closed beautiful happy different same own"""
)
NOUNS = words(  # nouns that end like a participle or an adverb
    """building buildings ceiling clothing morning evening wedding painting drawing railing ring king wing string
    spring swing sling thing feeling meeting parking crossing landing opening lighting bedding frosting pudding
    stocking bed bread shed seed speed breed weed steed feed family butterfly dragonfly belly jelly lily assembly
    bully"""
)
WORD = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]+)*|\S")
DETERMINER, BREAK, ADJECTIVE, PARTICIPLE, NOUN = range(5)


@lru_cache(maxsize=1 << 16)
def _kind(word: str) -> int:
    if word in NOUNS:
        return NOUN
    if word in DETERMINERS:
        return DETERMINER
    if word in BREAKS or not word[0].isalpha() or (len(word) > 4 and word.endswith("ly")):
        return BREAK
    if word in ADJECTIVES:
        return ADJECTIVE
    return PARTICIPLE if len(word) > 4 and word.endswith(("ing", "ed")) else NOUN


def by_rule(caption: str) -> list[str]:
    """The caption's distinct noun phrases, in order.

    Words like "running" and "dressed" count as verbs, which end a phrase, unless a determiner comes before them.
    """
    phrases: dict[str, None] = {}
    phrase: list[str] = []
    before = BREAK
    for word in [*WORD.findall(caption.lower().replace("’", "'")), "."]:
        kind = _kind(word)
        if kind in (NOUN, ADJECTIVE) or (kind == PARTICIPLE and before == DETERMINER):
            phrase.append(word)
        else:
            while phrase and _kind(phrase[-1]) != NOUN:
                phrase.pop()
            if phrase:
                phrases[" ".join(phrase)] = None
            phrase = []
        before = kind
    return list(phrases)


def find_chunker() -> tuple[str, Chunker]:
    """The noun phrase finder to use: its name, and a function from (caption, anything) pairs to (phrases, anything)."""
    try:
        import spacy

        nlp = spacy.load(MODEL, exclude=["ner", "lemmatizer"])
    except (ImportError, OSError):  # no spaCy, or no model
        return f"this program's own rules, because spaCy's {MODEL} is not installed", _chunk_by_rule
    return f"spaCy's {MODEL}", lambda pairs: _chunk_with_spacy(nlp, pairs)


def _chunk_by_rule(pairs: Iterable[tuple[str, T]]) -> Iterator[tuple[list[str], T]]:
    for caption, other in pairs:
        yield by_rule(caption), other


def _chunk_with_spacy(nlp, pairs: Iterable[tuple[str, T]]) -> Iterator[tuple[list[str], T]]:
    for doc, other in nlp.pipe(pairs, as_tuples=True):
        phrases: dict[str, None] = {}
        for chunk in doc.noun_chunks:
            words = [token.lower_ for token in chunk if token.pos_ not in ("DET", "PRON", "NUM", "PUNCT", "SPACE")]
            if words:
                phrases[" ".join(words)] = None
        yield list(phrases), other
