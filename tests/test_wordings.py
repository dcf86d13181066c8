"""The grammar of wordings, and that the two held-out files ask in ways that no training can."""

import random
import re
from collections import Counter

import pytest

from data.picturebook import wordings
from data.picturebook.talk import MAKERS
from data.picturebook.unseen_wordings import UNSEEN, VERBS
from data.picturebook.wordings import FRAMES, PARTS, compose, draw, first, is_held_out, normal, parse, slip, typed

SLOTS = {
    "the": "the red car", "other": "the tree", "a": "a dog", "many": "red things", "colour": "red", "at": "<top left>",
    "one": "<above>", "two": "<below>", "rel": "<next to>", "most": "[biggest|largest]", "gone": "red things",
    "not": "red", "is": "<small>", "start": "left", "end": "right", "word": "dog", "place": "the sea", "some": "two",
    "single": "car", "way": "<higher>", "bare": "dog", "more": "<bigger>", "size": "<big>",
}  # fmt: skip


def all_texts(text: str) -> set[str]:
    """Every text of a frame, by rewriting its innermost choices one at a time."""
    todo, done = [text], set()
    while todo:
        text = todo.pop()
        if part := re.search("<(.+?)>", text):
            todo.append(text.replace(part[0], f"[{PARTS[part[1]]}]", 1))
        elif choice := re.search(r"\[([^\[\]]*)\]", text):
            todo += [text[: choice.start()] + taken + text[choice.end() :] for taken in choice[1].split("|")]
        else:
            done.add(text)
    return done


@pytest.mark.parametrize(
    "frame, texts",
    [
        ("plain", {"plain"}),
        ("a|b", {"a", "b"}),
        ("[a|b|]c", {"ac", "bc", "c"}),
        ("x [a|b [c|d]] y", {"x a y", "x b c y", "x b d y"}),
        ("how <big> is {the}", {"how big is {the}", "how large is {the}"}),
    ],
)
def test_a_frame_stands_for_its_texts(frame, texts):
    rng = random.Random(0)
    assert {draw(parse(frame), rng.choice) for _ in range(300)} == texts
    assert draw(parse("[a|b] [c|d|]"), first) == "a c"


def test_every_frame_draws_what_it_stands_for():
    rng = random.Random(0)
    for frames in FRAMES.values():
        for frame in frames:
            texts = all_texts(frame)
            assert all(draw(parse(frame), rng.choice) in texts for _ in range(20)), frame
            assert not [text for text in texts if re.search(r"[\[\]|<>]|  |^ | $| [?.]", text)], frame


def pattern_of(text: str) -> str:
    """A frame as a regular expression over its normal texts, in which a slot is {}."""
    out = ""
    for token in re.findall(r"<.+?>|[\[\]|]|\{\w+\}|[^\[\]|{}<>]+", text):
        if token[0] == "<":
            out += f"(?:{pattern_of(PARTS[token[1:-1]])})"
        elif token[0] == "{":
            out += r"\{\}"
        else:
            out += {"[": "(?:", "]": ")", "|": "|"}.get(token) or re.sub(r"[^\w' ]", "", token.lower()).replace(
                " ", " *"
            )
    return out


def test_no_training_frame_makes_an_unseen_wording():
    trained = [re.compile(f" *(?:{pattern_of(frame)}) *") for frames in FRAMES.values() for frame in frames]
    opener = re.compile(f" *(?:{pattern_of('<opener>')}) +")
    for form, frames in FRAMES.items():  # the patterns do match what they stand for
        for frame in frames[:3]:
            text = f" {normal(re.sub(r'{[a-z]+}', '{}', sorted(all_texts(frame))[0]))} "
            assert any(pattern.fullmatch(text) for pattern in trained), form
    for templates in UNSEEN.values():
        for template in templates:
            text = f" {normal(re.sub(r'{[a-z]+}', '{}', template))} "
            for part in {text, text[match.end() - 1 :] if (match := opener.match(text)) else text}:
                assert not [pattern.pattern for pattern in trained if pattern.fullmatch(part)], template


def test_unseen_frames_are_many_and_have_verbs_of_their_own():
    assert UNSEEN.keys() == FRAMES.keys() - {"brief"}
    assert sum(map(len, UNSEEN.values())) >= 150
    text = " ".join(frame for frames in FRAMES.values() for frame in frames) + " ".join(PARTS.values())
    assert not [verb for verb in VERBS if re.search(rf"\b{verb}", text)]
    used = " ".join(frame for frames in UNSEEN.values() for frame in frames)
    assert all(verb in used for verb in VERBS)


@pytest.mark.parametrize("form", FRAMES)
def test_forms_have_many_wordings_and_the_slots_of_their_questions(form):
    rng = random.Random(form)
    drawn = {compose(form, rng) for _ in range(3000)}
    assert len(drawn) > 100 and all(text in drawn or not is_held_out(text) for text in drawn)
    for frame in [*FRAMES[form], *UNSEEN.get(form, [])]:
        assert set(re.findall(r"{(\w+)}", frame)) <= set(SLOTS)


def test_types_of_questions_have_thousands_of_wordings():
    rng = random.Random(0)
    for form in ("existence", "colour", "at", "count", "position", "size", "relation", "check", "near", "list"):
        assert len({normal(compose(form, rng)) for _ in range(30_000)}) > 1000, form


def test_one_wording_in_sixteen_is_kept_out_of_the_training():
    rng = random.Random(0)
    drawn = [draw(parse(rng.choice(FRAMES[form])), rng.choice) for form in FRAMES for _ in range(300)]
    assert 1 / 25 < sum(map(is_held_out, drawn)) / len(drawn) < 1 / 10
    trained = {normal(compose(form, rng)) for form in FRAMES for _ in range(300)}
    assert not trained & {normal(compose(form, rng, held_out=True)) for form in FRAMES for _ in range(100)}


def test_people_type_in_many_ways():
    rng = random.Random(0)
    asked = [typed("what is the colour of {the}", {"the": "the red car"}, rng) for _ in range(4000)]
    found = Counter()
    for text in asked:
        assert "red car" in text.lower()  # a name is never mistyped
        found["lower"] += text == text.lower()
        found["upper"] += text == text.upper()
        found["american"] += "color" in text.lower()
        found["short"] += text.lower().startswith(("what's", "whats"))
        found["bare"] += text[-1] == "r" or text[-1] == "R"
        letters = (
            text.lower().replace("what's", "what is").replace("whats", "what is").replace("color", "colour").rstrip("?")
        )
        found["slip"] += letters != "what is the colour of the red car"
    shares = {name: count / len(asked) for name, count in found.items()}
    assert 0.2 < shares["lower"] < 0.4 and 0.03 < shares["upper"] < 0.07 and 0.35 < shares["american"] < 0.55
    assert 0.3 < shares["short"] < 0.5 and 0.15 < shares["bare"] < 0.35 and 0.02 < shares["slip"] < 0.11


def test_a_slip_changes_one_longer_word_outside_the_slots():
    rng = random.Random(0)
    for _ in range(300):
        before, after = "where exactly is {the} now", slip("where exactly is {the} now", rng)
        changed = [(one, other) for one, other in zip(before.split(), after.split()) if one != other]
        assert len(after.split()) == 5 and len(changed) <= 1
        assert all(len(one) >= 5 and one[0] == other[0] and one[-1] == other[-1] for one, other in changed)
    assert slip("is it {the}", rng) == "is it {the}"


def test_old_wordings_are_those_of_the_old_files_alone():
    assert {form for form, texts in wordings.CLASSIC.items() for text in texts} <= FRAMES.keys()
    rng = random.Random(0)
    assert wordings.ask_plainly("at", {"at": "<top left>"}, rng) == "What is in the top left?"
    assert MAKERS.keys() >= {"existence", "talk", "say"}
