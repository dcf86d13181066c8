"""The questions that can be asked about a scene have the right answers, and conversations lean on what was said.

``oracle.py`` finds the answers from the scene alone.
"""

import random
import re
from collections import Counter

import pytest
from oracle import RIGHT, UNKNOWN, claim_about, counted, is_old, is_true, read, right_answer, told, upper, where

from data.picturebook import nouns, talk
from data.picturebook.questions import NEAR, Question
from data.picturebook.scene import UNSEEN_PAIRS, Scene, Thing, sample_scene
from minillava import evaluate

SCENES = 2000
FOLLOW_UPS = 40_000
SAID = {form: answer for form, (answer, _) in talk.TALK.items()} | {
    "beyond": "I cannot tell that from the picture.",
    "beyond the thing": "I cannot tell that from the picture.",
    "how do you know": "I see it in the picture.",
}
BOX = (0.01, 0.01, 0.43, 0.43)


def expected(scene: Scene, question: Question, last: Question | None) -> str:
    """The right answer, for a follow-up from the question before it."""
    form, slots = question.form, question.slots
    if form in SAID:
        return SAID[form]
    if form == "say":
        return f"{slots['word']}."
    if form in RIGHT:
        answer = right_answer(scene, form, slots)
        absent = re.fullmatch(r"(?:no, )?there (?:is|are) no (.+) in the picture\.", answer)
        if absent and absent[1] not in ("people", *trained_words()) and not named(absent[1]):
            unknown = UNKNOWN[form in ("existence many", "existence mass")]
            return upper(f"{'no, ' if answer.startswith('no') else ''}{unknown}.")
        return upper(answer)
    thing = last.told[0] if last and len(last.told) == 1 else None
    if form == "it colour":
        return f"The {thing.kind} is {thing.colour}."
    if form in ("it position", "it size"):
        fact = thing.size if form == "it size" else where(thing)
        return re.sub(f"The ({names(thing)}) is .*", rf"The \1 is {fact}.", question.answer)
    if form == "it check":
        words = re.search(f"[Tt]he ({names(thing)}) is", question.answer)[1]
        return upper(f"{claim_about(scene, thing, words, slots['is'])}.")
    if form == "it near":
        words = re.match(f"The ({names(thing)}) is", question.answer)[1]
        return upper(right_answer(scene, "near", {"the": f"the {words}", "rel": slots["rel"]}))
    if form == "and the":
        base = {"colour": "colour", "position": "position", "size": "size"}[last.asks]
        absent = question.answer.startswith(("There is no", "I do"))
        return expected(scene, Question("", base, slots, "", ()), None) if not absent else question.answer
    if form == "and a":
        return expected(scene, Question("", "existence", slots, "", ()), None)
    if form in ("and many", "and at"):
        return upper(right_answer(scene, {"and many": "count", "and at": "at"}[form], slots))
    if form == "how many are there":
        return upper(f"{counted(list(last.told))}.")
    if form == "else":
        rest = [t for t in scene.things if t not in last.told]
        return f"There {'are' if len(rest) > 1 else 'is'} also {told(rest)}." if rest else "No, nothing else."
    statement = re.sub("^(Yes|No), ", "", last.answer).removesuffix(".")
    if last.kind in ("existence", "and") and last.answer.startswith("Yes, a"):
        statement = f"there {'are' if len(last.told) > 1 else 'is'} {statement}"
    keep = statement.startswith("I ")
    plain = statement if keep else statement[0].lower() + statement[1:]
    return upper({"sure": "yes, ", "again": "", "no it is": "no, "}[form] + f"{plain}.")


def trained_words() -> set[str]:
    return {noun.word for noun in nouns.everyday()[0]}


def named(words: str) -> bool:
    """Whether a name is of this world: "red car", "large boats", "animals"."""
    kinds = "house|tree|boat|fish|sun|moon|star|car|ball|flower|bird|cloud|animal|vehicle|plant|building"
    return bool(re.fullmatch(rf"(\w+ )?({kinds})s?", words))


def names(thing: Thing) -> str:
    return f"{thing.kind}|{thing.colour} {thing.kind}|{thing.colour} thing"


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    rng = random.Random(1)
    return [sample_scene(rng) for _ in range(SCENES)]


@pytest.fixture(scope="module")
def asked(scenes) -> list[tuple[Scene, Question]]:
    """A question of every maker about every scene that allows it."""
    rng = random.Random(2)
    made = [(scene, make(scene, rng)) for scene in scenes for make in talk.MAKERS.values()]
    return [(scene, question) for scene, question in made if question]


@pytest.fixture(scope="module")
def followed(scenes) -> list[tuple[Scene, Question, Question]]:
    """(scene, question, follow-up) of all kinds; some follow a follow-up."""
    rng, found = random.Random(3), []
    for _ in range(FOLLOW_UPS):
        scene = rng.choice(scenes)
        last = rng.choice(list(talk.MAKERS.values()))(scene, rng)
        question = last and rng.choice(list(talk.FOLLOW_UPS.values()))(scene, rng, last)
        if question:
            found.append((scene, last, question))
            if further := rng.choice(list(talk.FOLLOW_UPS.values()))(scene, rng, question):
                found.append((scene, question, further))
    return found


def test_every_question_has_the_right_answer(asked):
    for scene, question in asked:
        assert question.answer == expected(scene, question, None), f"{question} {scene}"
    assert {question.form for _, question in asked} == {*RIGHT, *SAID} - {"how do you know"}


def test_every_answer_alone_is_true(asked, followed):
    for scene, question in asked + [(scene, question) for scene, _, question in followed]:
        assert is_true(scene, question.answer), f"{question} {scene}"


def test_every_follow_up_has_the_right_answer(followed):
    for scene, last, question in followed:
        assert question.answer == expected(scene, question, last), f"{last}\n{question}\n{scene}"
    forms = Counter(question.form for _, _, question in followed)
    assert len(forms) == 15 and min(forms.values()) > 50


def test_a_right_answer_has_its_meaning_and_a_wrong_one_has_not(asked, followed):
    """Wrong are the answers to the same form of question, with the same slots, about other scenes."""
    answers: dict[str, dict[str, None]] = {}
    questions = [question for _, question in asked] + [question for _, _, question in followed]
    for question in questions:
        answers.setdefault(f"{question.form} {question.slots}", {})[question.answer] = None
    everything = {word for question in questions for word in evaluate.words(question.answer)}
    wrong = 0
    for question in questions:
        judged = evaluate.Question(0, None, None, question.answer, "", [], question.need, question.refuse)
        assert evaluate.means(judged, question.answer, everything), question
        for answer in list(answers[f"{question.form} {question.slots}"])[:8]:
            if answer != question.answer and question.form not in ("sure", "again", "no it is", "and the"):
                wrong += 1
                assert not evaluate.means(judged, answer, everything) or same_meaning(answer, question.answer), (
                    f"{answer} for {question}"
                )
    assert wrong > 5_000


def same_meaning(one: str, other: str) -> bool:
    """Whether answers differ only in what was not asked: a name, the order, or the reason for a verdict."""
    if ", so " in one:
        return re.split(", so |: ", one)[-1] == re.split(", so |: ", other)[-1]
    if one.startswith("Yes, "):
        return other.startswith("Yes, ")
    facts = "yes|no|none|nothing|not|red|orange|yellow|green|blue|purple|white|small|large"
    return len({frozenset(re.findall(rf"\b(?:{facts})\b", text.lower())) for text in (one, other)}) == 1


def test_half_of_the_verdicts_are_yes(asked):
    for kind in ("existence", "check", "compare", "day"):
        said = [re.search(r"\b(yes|no)\b", q.answer.lower()) for _, q in asked if q.kind == kind]
        verdicts = Counter(match[1] for match in said if match)
        assert 0.35 < verdicts["yes"] / verdicts.total() < 0.65, kind


def test_what_is_next_to_a_thing_is_asked_only_where_no_corner_touches(scenes):
    rng = random.Random(5)
    questions = [talk.MAKERS["near"](scene, rng) for scene in scenes]
    assert {q.slots["rel"] for q in questions if q} == {f"<{word}>" for word in NEAR}


def test_conversations_are_true_and_ask_nothing_twice(scenes):
    rng, lengths = random.Random(4), Counter()
    for scene in scenes:
        turns = talk.conversation(scene, rng, 600)
        lengths[len(turns)] += 1
        assert sum(len(q) + len(a) for q, a in turns) <= 600 and len(dict(turns)) == len(turns)
        for question, answer in turns:
            assert is_true(scene, answer), (question, answer)
            if is_old(question):
                assert answer == upper(right_answer(scene, *read(question)))
    assert lengths.keys() == {1, 2, 3, 4, 5} and min(lengths.values()) > 50


def test_a_short_conversation_has_a_turn(scenes):
    rng = random.Random(6)
    assert all(talk.conversation(scene, rng, 120) for scene in scenes)


def test_a_conversation_names_no_pair_that_it_must_not_name():
    rng = random.Random(7)
    scenes = [sample_scene(rng, "required") for _ in range(500)]
    free, kept = (
        "\n".join(question for scene in scenes for question, _ in talk.conversation(scene, rng, 600, without)).lower()
        for without in (frozenset(), UNSEEN_PAIRS)
    )
    assert all(pair in free for pair in UNSEEN_PAIRS)
    assert not any(pair in kept for pair in UNSEEN_PAIRS)


def test_a_truth_stays_when_somebody_insists():
    scene, rng = Scene("sea", (Thing("car", "red", "large", 0, 0, BOX),)), random.Random(0)
    question = talk.QUESTIONS["colour"](scene, rng)
    for _ in range(50):
        insisting = talk.no_it_is(scene, rng, question)
        assert insisting.slots["is"] != "red" and insisting.answer == "No, the car is red."


def test_nouns_of_the_training_and_those_kept_out_of_it_are_apart():
    train, kept = nouns.everyday()
    assert len([noun for noun in train if noun.number == "one"]) >= 240
    assert len([noun for noun in kept if noun.number == "one"]) >= 60
    words = [{noun.word for noun in group} for group in (train, kept)]
    assert not words[0] & words[1]
    assert all(noun.known for noun in train) and not any(noun.known for noun in kept)
    plurals = {noun.word for noun in train if noun.number == "many"}
    assert {"dogs", "foxes", "puppies", "people", "traffic lights"} <= plurals | {noun.word for noun in kept}


def test_made_up_nouns_are_many_and_name_nothing():
    rng = random.Random(0)
    words = {nouns.made_up(rng) for _ in range(20_000)}
    real = {noun.word for group in nouns.everyday() for noun in group}
    assert len(words) > 15_000 and not words & real
    assert all(re.fullmatch("[a-z]{4,12}", word) for word in words)
