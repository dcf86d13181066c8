"""The scripted teacher says nothing that its context does not support.

Picture-book contexts: every answer is checked by test_picturebook.py's checker, which reads the scene and shares no
code with the teacher. COCO's form: ``coco_contexts.jsonl``, written for these tests, and contexts put together at
random; ``check`` below reads every number, place, colour and object of an answer and looks for it in the context.
"""

import json
import random
import re
from collections import Counter
from pathlib import Path

import pytest
from test_picturebook import QUESTIONS, check_description, is_true

from data.contexts import Box, Context, read_contexts
from data.picturebook import write
from data.picturebook.read import scene_of
from data.picturebook.scene import UNSEEN_PAIRS, sample_scene
from data.prompts import KINDS
from data.teachers import Request
from data.teachers.scripted import Scripted
from data.teachers.scripted.words import plural

COCO = Path(__file__).with_name("coco_contexts.jsonl")
TEACHER = Scripted()


def reply(kind: str, context: Context, seed: int) -> str:
    return TEACHER.reply(
        Request(kind, context, "Describe the following image in detail" if kind == "detail" else None, seed)
    )


def turns_of(text: str) -> list[tuple[str, str]]:
    """The reply's turns; fails where its form is not the paper's."""
    blocks = text.split("\n===\n")
    assert len(blocks) % 2 == 0 and "\n" not in "".join(blocks)
    for i, block in enumerate(blocks):
        assert block.startswith(("Question: ", "Answer: ")[i % 2]), block
    contents = [block.split(": ", 1)[1] for block in blocks]
    return list(zip(contents[::2], contents[1::2]))


# ---- picture-book contexts ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """1050 scenes, and their contexts as they stand in a file."""
    rng = random.Random(0)
    scenes = [sample_scene(rng) for _ in range(1050)]
    path = tmp_path_factory.mktemp("world") / "contexts.jsonl"
    path.write_text("".join(json.dumps(write._context(scene, i)) + "\n" for i, scene in enumerate(scenes)))
    return list(zip(scenes, read_contexts(path)))


def test_ten_thousand_answers_about_the_picture_book_are_true(scenes):
    answers, forms = 0, Counter()
    for seed, (scene, context) in enumerate(scenes):
        check_description(scene, reply("detail", context, seed))
        (reason,) = turns_of(reply("reasoning", context, seed))
        for question, answer in [*turns_of(reply("conversation", context, seed)), reason]:
            assert is_true(scene, question, answer), (question, answer)
            assert (question, answer) == reason or not any(pair in question for pair in UNSEEN_PAIRS)
            forms.update(form for form in QUESTIONS if re.fullmatch(form, question))
            answers += 1
        answers += 1
    assert answers >= 10_000
    assert forms.keys() == QUESTIONS.keys(), "some form of question is never asked"


def test_scene_comes_back_from_its_context(scenes):
    assert all(scene_of(context) == scene for scene, context in scenes)


def test_a_context_that_is_not_quite_a_scene_is_none(scenes):
    _, context = scenes[0]
    others = [
        Context("", "", context.captions[:4], context.boxes),
        Context("", "", context.captions[::-1], context.boxes),
        Context("", "", context.captions, context.boxes[1:]),
        Context("", "", context.captions, (*context.boxes[:-1], Box("lion", (0, 0, 1, 1)))),
        Context("", "", (), ()),
    ]
    assert [scene_of(other) for other in others] == [None] * 5


# ---- COCO's form --------------------------------------------------------------------------------------------------

# All the words that an answer may have without the context: none of them names a thing that might be in a picture.
PLAIN_WORDS = """
a about addition afloat again aim air all alone along also among an and animal another anybody are as at attention
away baking balance bathing be become been before being belongings beside besides both bottom bred busy but buying
by calling calm can cannot carry carrying catching caution chance cleaning clicking cold colour come comes comfort
commonest control cooking could country cross cuddling cutting daily danger dangerous decorating distance do does
doing done down downhill dressing drink drinking dry drying ease easier eat eaten eating edible eight else enough
ever everybody everything falls far fast fills firefighting five fixed flying follows footing for formally found
four free from front game generally gentleness get getting gives gliding go goes going good graze grazing guess
halt hand hands hard hardly has have heating heavy here higher hitting holds how i in inside is it itself journey
keep keeping keeps kept kind larger last laying learning least leaves leaving left light like likely line little
loads long look looking looks lot lower lying made make making many matters may means meant middle might mixing
moment more most move moving much must near nearer need never next no not nothing notice now of often on once one
only open or other out outdoors outside over packing parks passing patience paying pedalling pets picture pictures
place play playing point pointing practice probably programmes prove put quick quickly rather reach reactions read
reading ready reason relax remembering rest resting ridden ride right roasting rolling route run said same say
scene see seems seen seldom selling serving setting settling seven several shade show shown shows side sitting six
size skiing sleeping slow small so some somebody something soon sooner space speed spending sport spot stamina
steady stirring stop strength studying such suggests sunshine sure surfing swim switching take taken takes tame
tamed tell telling texting than that the them there these they thing things this thousands three throwing time
timing tired to toasting together too took top traffic travelling tricks true turn two typing under until up upper
used usually viewer wait wake wanted warm warms was washing watching way weather well wet what whatever when where
which while who whoever why wild will with words working worth would years you
"""
PLAIN = frozenset(PLAIN_WORDS.split())
NUMBERS = {"zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8}
SOURCES = re.compile(r"\b(captions?|box(es)?|bounding|coordinates?|descriptions?|context|annotat\w+)\b", re.I)
NO_NUMBER = (
    r"one (?:can|could|is|of|such|on|in|at|and|hand|alone|most|comes|eats)\b|one's|the (?:nearer )?one\b|the other"
)
SIDES = {"left": (0, 1), "right": (0, -1), "top": (1, 1), "upper": (1, 1), "bottom": (1, -1), "lower": (1, -1)}


def words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", re.sub(r"['’]s\b", "", text.lower()))


def named(context: Context) -> set[str]:
    """Every word of the context, its plural, and "snow" for "snowy"."""
    known = set(words(context.text()))
    for box in context.boxes:
        known |= set(words(plural(box.category)))
    return known | {plural(word) for word in known} | {word.removesuffix("y") for word in known}


def thing(context: Context, words: str) -> Box:
    """The one box that "the dining table" or "a dog" means."""
    name = re.sub(r"^(the|a|an) ", "", words.lower())
    found = [b for b in context.boxes if name in (b.category, *b.category.split()[-1:])]
    assert len(found) == 1 and not found[0].crowd, f"{words}: {len(found)} of them"
    return found[0]


def is_at(box: Box, place: str) -> bool:
    """Whether the middle of a box lies on the sides that "in the upper left" names, or near the middle."""
    x1, y1, x2, y2 = box.bbox
    offset = ((x1 + x2) / 2 - 0.5, (y1 + y2) / 2 - 0.5)
    sides = [SIDES[word] for word in place.split() if word in SIDES]
    return all(offset[axis] * side < -0.1 for axis, side in sides) if sides else max(map(abs, offset)) <= 0.2


PLACE = r"((?:in|on|at) the (?:upper |lower )?(?:left|right|top|bottom|middle))"


def check(context: Context, question: str, answer: str) -> None:
    """Fails where question or answer says what the context does not support."""
    told = " ".join(context.captions).lower()
    for figure, number in zip("2345678", list(NUMBERS)[2:]):
        told = re.sub(rf"\b{figure} ", f"{number} ", told)
    known = named(context)
    said = f"{question} {answer}"
    if not re.search(r"\bbox", told):
        assert not SOURCES.search(said)
    assert set(re.findall(r"\d+", said)) <= set(re.findall(r"\d+", context.text())), said
    for word in words(said):
        assert word in known or word in PLAIN, f"{word!r} is not in the context: {said}"
    # numbers of things: from the captions, or else the boxes' number
    for number, rest in re.findall(
        r"\b(one|two|three|four|five|six|seven|eight) ((?:\w+ ?){1,2})", re.sub(NO_NUMBER, "", answer.lower())
    ):
        if f"{number} {rest.split()[0]}" in told or number == "one":
            continue
        groups = Counter(box.category for box in context.boxes if not box.crowd)
        fits = [
            c for c in groups if rest.startswith(plural(c.split()[-1] if c in ("dining table", "sports ball") else c))
        ]
        assert fits and groups[fits[0]] == NUMBERS[number], f"{number} {rest}: {groups}"
    if match := re.fullmatch(r"How many (.+?) (?:are there|can you see in the picture)\?", question):
        (noun,) = match.groups()
        found = [b for b in context.boxes if noun.lower() in (plural(b.category), plural(b.category.split()[-1]))]
        if several := re.fullmatch(rf"There are several {noun}\.", answer):
            assert several and (len(found) > 5 or any(b.crowd for b in found))
        else:
            assert NUMBERS[re.search(rf"\b({'|'.join(NUMBERS)})\b", answer)[1]] == len(found), said
            assert not any(b.crowd for b in found)
    # places
    for name, place in re.findall(
        rf"\b((?:The|the|a|an|A|An) [a-z ]+?) is {PLACE}(?=[.,]| of the picture| and)", answer
    ):
        if (
            any(name.lower().removeprefix("the ").endswith(b.category.split()[-1]) for b in context.boxes)
            and f"{place}" not in told
        ):
            assert is_at(thing(context, name), place), said
    if match := re.fullmatch(r"Where in the picture are the two (.+)\?", question):
        found = [b for b in context.boxes if match[1].lower() in (plural(b.category), plural(b.category.split()[-1]))]
        first, second = re.fullmatch(rf"One is {PLACE} and the other is {PLACE}\.", answer).groups()
        assert len(found) == 2 and any(is_at(a, first) and is_at(b, second) for a, b in (found, found[::-1])), said
    for name, side, other in re.findall(r"(The [a-z ]+) is on the (left|right) of (the [a-z ]+)\.", answer):
        if other != "the picture":
            a, b = thing(context, name).bbox, thing(context, other).bbox
            assert (a[0] + a[2] < b[0] + b[2]) == (side == "left"), said
    if match := re.fullmatch(r"Which is higher up in the picture, (the .+) or (the .+)\?", question):
        a, b = (thing(context, name).bbox for name in match.groups())
        higher = match[1] if a[1] + a[3] < b[1] + b[3] else match[2]
        assert answer.lower() == f"{higher} is higher up in the picture.".lower()
    if match := re.fullmatch(r"The ([a-z ]+) takes up more of the picture than (the [a-z ]+)\.", answer):
        size = [
            (x2 - x1) * (y2 - y1)
            for x1, y1, x2, y2 in (thing(context, f"the {n}").bbox for n in (match[1], match[2][4:]))
        ]
        assert size[0] > size[1], said

    for name in re.findall(
        r"(?:Of all these,|Most likely) (the [a-z ]+?)(?: takes? up the most space|\. It takes up far more space)",
        answer,
    ):
        size = Counter()
        for box in context.boxes:
            size[box.category] += (box.bbox[2] - box.bbox[0]) * (box.bbox[3] - box.bbox[1])
        (largest, _), *_ = size.most_common()
        last = largest.split()[-1]
        assert re.sub(r"^the (one |two |three |four |five )?", "", name.lower()).split()[-1] in (last, plural(last)), (
            said
        )


def check_form(context: Context, seed: int) -> list[str]:
    """All three kinds of reply, well-formed and supported."""
    texts = [reply(kind, context, seed) for kind in KINDS]
    turns = turns_of(texts[0])
    assert len({question for question, _ in turns}) == len(turns) <= 6
    (reason,) = turns_of(texts[2])
    assert re.search(
        r"\b(probably|may|might|perhaps|likely|suggests|usually|takes|seldom|rather|generally)\b", reason[1], re.I
    ), reason
    assert "\n" not in texts[1] and not texts[1][0].islower() and texts[1][-1] in ".!?"
    for question, answer in [*turns, reason, ("", texts[1])]:
        assert not question or (question[0].isupper() and question[-1] == "?"), question
        assert not answer[0].islower() and answer[-1] in ".!?" and "  " not in answer and ".." not in answer, answer
        assert not re.search(r"\b(\w+) \1\b|\ba [aeio]\w|\ban [bcdfgjklmnpqrstvwz]|\s[.,?]", f"{question} {answer}"), (
            answer
        )
        check(context, question, answer)
    return texts


@pytest.mark.parametrize("context", list(read_contexts(COCO)), ids=lambda context: context.id)
def test_contexts_in_cocos_form_are_answered_with_what_is_there(context):
    for seed in range(8):
        check_form(context, seed)


def test_contexts_put_together_at_random_are_answered_with_what_is_there():
    """Captions of one picture with up to 60 boxes of any categories anywhere: nothing fits together."""
    rng = random.Random(0)
    contexts = list(read_contexts(COCO))
    categories = sorted({box.category for context in contexts for box in context.boxes})
    for seed in range(400):
        boxes = []
        for _ in range(rng.choice((0, 1, 2, 5, 12, 60))):
            (x1, x2), (y1, y2) = (sorted(round(rng.random(), 3) for _ in range(2)) for _ in range(2))
            boxes.append(Box(rng.choice(categories), (x1, y1, x2, y2), crowd=rng.random() < 0.05))
        texts = rng.choice(contexts).captions[: rng.randint(0, 5)]
        context = Context(str(seed), "x.jpg", texts, tuple(boxes))
        if boxes or any(text.strip() and not re.search("picture here|the image", text) for text in texts):
            check_form(context, seed)


def test_same_request_same_reply_and_other_seeds_other_words():
    for context in read_contexts(COCO):
        for kind in KINDS:
            assert reply(kind, context, 5) == reply(kind, context, 5)
        if len(context.captions) > 2 and len(context.boxes) > 3:
            assert len({reply("conversation", context, seed) for seed in range(10)}) >= 7
            assert len({reply("detail", context, seed) for seed in range(10)}) >= 3
            assert len({reply("reasoning", context, seed) for seed in range(10)}) >= 3


def test_a_context_of_nothing_gets_an_empty_reply():
    assert {reply(kind, Context("1", "1.jpg", (), ()), 0) for kind in KINDS} == {""}


@pytest.mark.parametrize(
    "noun, many",
    [("person", "people"), ("sheep", "sheep"), ("skis", "skis"), ("scissors", "scissors"), ("knife", "knives"),
     ("bus", "buses"), ("mouse", "mice"), ("bench", "benches"), ("wine glass", "wine glasses"), ("couch", "couches"),
     ("toothbrush", "toothbrushes"), ("baby", "babies"), ("toy", "toys"), ("cup", "cups"), ("broccoli", "broccoli"),
     ("sandwich", "sandwiches"), ("TV", "TVs"), ("teddy bear", "teddy bears")],
)  # fmt: skip
def test_plurals(noun, many):
    assert plural(noun) == many


OVERVIEWS = ("What does the picture show?", "What can be seen in the picture?", "What is in this picture?")


def answers_of(context: Context, kind: str = "conversation") -> dict[str, str]:
    """Every question that 60 seeds ask, and its last answer."""
    return {question: answer for seed in range(60) for question, answer in turns_of(reply(kind, context, seed))}


def boxes(category: str, count: int) -> tuple[Box, ...]:
    return tuple(Box(category, (0.06 * i, 0.4, 0.06 * i + 0.05, 0.6)) for i in range(count))


def test_many_are_several_and_captions_that_count_otherwise_silence_the_count():
    def counts(captions, found):
        asked = answers_of(Context("1", "1.jpg", captions, found))
        return {answer for question, answer in asked.items() if question.startswith("How many")}

    assert counts(("On a street.",), boxes("person", 14)) == {"There are several people."}
    assert counts(("On a street.",), (*boxes("person", 2), Box("person", (0, 0, 1, 1), crowd=True))) == {
        "There are several people."
    }
    assert all("three people" in answer for answer in counts(("On a street.",), boxes("person", 3)))
    more = "A woman with three children", "Two men and two women"
    for caption in ("Two men on a street.", "Five people.", "A crowd of people", "many people", *more):
        assert counts((caption,), boxes("person", 3)) == set(), caption
    assert counts(("A group of people",), boxes("person", 1)) == set()


@pytest.mark.parametrize(
    "caption, question, answer",
    [
        (
            "A man in a red hat holding a kite",
            "What is the man in a red hat doing?",
            "The man in a red hat is holding a kite.",
        ),
        ("two dogs playing in the snow.", "What are the two dogs doing?", "The two dogs are playing in the snow."),
        ("A group of people are walking", "What are the group of people doing?", "The group of people are walking."),
        ("Woman happily eating a cake", "What is the woman doing?", "The woman is happily eating a cake."),
        ("There is a cat that is sleeping on a bed", "What is the cat doing?", "The cat is sleeping on a bed."),
        (
            "A boy and a girl riding horses",
            "What are the boy and the girl doing?",
            "The boy and the girl are riding horses.",
        ),
        ("A bus parked by a tree", "Where is the bus?", "The bus is parked by a tree."),
        ("A tall woman wearing a hat", "What is the tall woman wearing?", "The tall woman is wearing a hat."),
        ("A cat with a blue collar", "What colour is the collar?", "The collar is blue."),
        ("A black and white dog in a field", "What colour is the dog?", "The dog is black and white."),
        ("A dog runs on the beach", "Where does the scene take place?", "It takes place on the beach."),
        ("A laptop on top of a desk", "Where is the laptop?", "The laptop is on top of a desk."),
        ("A family sitting at a table", "What is the family doing?", "The family is sitting at a table."),
        (
            "2 women on bikes riding away",
            "What are the two women on bikes doing?",
            "The two women on bikes are riding away.",
        ),
        ("A lot of people walking around", "What are the people doing?", "The people are walking around."),
        ("Man & boy fishing", "What are the man and boy doing?", "The man and boy are fishing."),
        (
            "Traffic lights hanging above a road",
            "Where are the traffic lights?",
            "The traffic lights are hanging above a road.",
        ),
    ],
)
def test_what_a_caption_says_is_asked_about(caption, question, answer):
    assert answers_of(Context("1", "1.jpg", (caption,), ())).get(question) == answer


@pytest.mark.parametrize(
    "caption, told",
    [
        (
            "A street with cars driving and people walking",
            "The picture shows a street with cars driving and people walking.",
        ),
        ("A smiling man", "The picture shows a smiling man."),
        ("A man at a skiing competition", "The picture shows a man at a skiing competition."),
        ("A woman with a dog sitting on a bench", "The picture shows a woman with a dog sitting on a bench."),
        ("A man in black running shorts", "The picture shows a man in black running shorts."),
        ("A surfer on a wave", "The picture shows a surfer on a wave."),
        ("two ducks on a pond .", "The picture shows two ducks on a pond."),
        ("dog in a elevator", "The picture shows a dog in an elevator."),
        ("A close up of a cat laying on a bed", "A close up of a cat laying on a bed."),
        ("A dog has been sleeping", "A dog has been sleeping."),
        ("the cat wants to go too", "The cat wants to go too."),
        ("the plane flew away", "The plane flew away."),
        ("An elderly woman tosses bread", "An elderly woman tosses bread."),
        ("Two boats, one is red", "Two boats, one is red."),
        ("Scissors, tape and paper", "The picture shows scissors, tape and paper."),
        ("a stuffed bear in a toy shopping cart", "The picture shows a stuffed bear in a toy shopping cart."),
        ("a girl bottle feeding a goat", "The picture shows a girl bottle feeding a goat."),
        ("one sheep staring and another eating", "The picture shows one sheep staring and another eating."),
        ('A bear "reading" w/ glasses', 'The picture shows a bear "reading" with glasses.'),
        ("Both cats are sleeping", "Both cats are sleeping."),
        ("a man rides a horse", "A man rides a horse."),
        ("A man hoists a fish on a boat", "A man hoists a fish on a boat."),
        ("A DOG. IT SLEEPS!", "A dog. it sleeps!"),
        ("Tired of it", "Tired of it."),
    ],
)
def test_a_caption_that_is_no_clear_clause_is_left_in_its_writers_words(caption, told):
    asked = answers_of(Context("1", "1.jpg", (caption,), ()))
    assert not any(" doing?" in question for question in asked)
    assert {answer for question, answer in asked.items() if question in OVERVIEWS} == {told}


def test_description_of_boxes_alone_tells_places_sides_and_the_largest():
    found = (Box("couch", (0.3, 0.1, 1.0, 0.9)), Box("cup", (0.1, 0.7, 0.2, 0.8)), Box("cup", (0.8, 0.1, 0.9, 0.2)))
    text = reply("detail", Context("1", "1.jpg", (), found), 0)
    assert text == (
        "In the picture, a couch fills much of the picture. Of the two cups, one is in the lower left and the other in "
        "the upper right. Of all these, the couch takes up the most space."
    )


def test_the_smaller_of_two_is_not_called_farther_where_sizes_differ():
    pair = (Box("bear", (0.1, 0.1, 0.4, 0.9)), Box("bear", (0.7, 0.4, 0.8, 0.5)))
    nearer = "Which of the two bears is probably nearer to the viewer, and why?"
    assert nearer in answers_of(Context("1", "1.jpg", ("Bears in a river.",), pair), "reasoning")
    assert nearer not in answers_of(Context("1", "1.jpg", ("A bear and a baby bear.",), pair), "reasoning")


@pytest.mark.parametrize(
    "caption, not_of",
    [
        ("A red fire truck on a street", "fire"),
        ("A black and white photo of a man", "photo"),
        ("A man in a red shirt and a man in a blue shirt", "shirt"),
    ],
)
def test_colours_that_are_not_sure_are_not_asked_about(caption, not_of):
    assert not any(
        f"colour is the {not_of}?" in question for question in answers_of(Context("1", "1.jpg", (caption,), ()))
    )


def test_captions_that_contradict_one_another_are_not_told_together():
    captions = ("A man riding a red bike", "A woman riding a blue bike", "A person riding a bike")
    for seed in range(60):
        for kind in KINDS:
            text = reply(kind, Context("1", "1.jpg", captions, ()), seed).lower()
            assert not ({"man", "woman"} <= set(words(text)) or {"red", "blue"} <= set(words(text)))


def test_captions_that_sound_like_sources_are_told_only_where_there_is_no_other():
    def told(*captions):
        return " ".join(reply(kind, Context("1", "1.jpg", captions, ()), seed) for kind in KINDS for seed in range(20))

    assert "box" not in told("A cat in a box", "A cat on the floor", "I see a cat") and "I see" not in told(
        "I see a cat", "A cat"
    )
    assert "box" in told("A cat in a box")


def test_things_that_are_shown_several_times_are_not_counted():
    for caption in ("A woman looking in a mirror", "Four photos of a man", "The reflection of a man in a window"):
        asked = answers_of(Context("1", "1.jpg", (caption,), boxes("person", 4)))
        assert not any("four people" in answer for answer in asked.values())


@pytest.mark.parametrize(
    "caption, word",
    [
        ("A bird cage in a room", "animal"),
        ("A dog bed on the floor", "animal"),
        ("A plate of snow peas", "weather"),
        ("A man in a rain coat", "weather"),
        ("Two eggs, sunny side up", "weather"),
    ],
)
def test_what_only_gives_something_its_name_is_not_taken_to_be_there(caption, word):
    for text, there in ((caption, False), ("A bird in a snowy street", True)):
        context = Context("1", "1.jpg", (text,), ())
        asked = " ".join([*answers_of(context), *answers_of(context, "reasoning")])
        assert (word in asked) == there


def test_no_question_is_told_where_there_is_another_caption():
    for seed in range(20):
        assert "?" not in reply("detail", Context("1", "1.jpg", ("Is this a ship?", "A ship."), ()), seed)


def test_captions_about_the_task_are_not_told():
    captions = ("There is no image here to provide a caption for.", "I can't see it", "A red umbrella on a beach")
    for seed in range(20):
        for kind in KINDS:
            text = reply(kind, Context("1", "1.jpg", captions, ()), seed)
            assert "caption" not in text and "can't" not in text
