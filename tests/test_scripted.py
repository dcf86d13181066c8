"""What the scripted teacher says about a picture-book scene is true, and it refuses all other pictures.

Every answer is checked by oracle.py, which reads the scene and shares no code with the teacher.
"""

import json
import random

import pytest
from oracle import is_old, is_true, read, right_answer, upper
from test_picturebook import check_description

from data.contexts import Box, Context, read_contexts
from data.picturebook import write
from data.picturebook.read import scene_of
from data.picturebook.scene import UNSEEN_PAIRS, sample_scene
from data.prompts import KINDS
from data.teachers import Request
from data.teachers.scripted import Scripted
from minillava.errors import UserError

TEACHER = Scripted()


def reply(kind: str, context: Context, seed: int) -> str:
    return TEACHER.reply(
        Request(kind, context, "Describe the following image in detail" if kind == "detail" else None, seed)
    )


def turns_of(text: str) -> list[tuple[str, str]]:
    """The (question, answer) pairs of a reply; fails if it does not have the paper's form."""
    blocks = text.split("\n===\n")
    assert len(blocks) % 2 == 0 and "\n" not in "".join(blocks)
    for i, block in enumerate(blocks):
        assert block.startswith(("Question: ", "Answer: ")[i % 2]), block
    contents = [block.split(": ", 1)[1] for block in blocks]
    return list(zip(contents[::2], contents[1::2]))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """1050 scenes, each with its context as read from a file."""
    rng = random.Random(0)
    scenes = [sample_scene(rng) for _ in range(1050)]
    path = tmp_path_factory.mktemp("world") / "contexts.jsonl"
    path.write_text("".join(json.dumps(write._context(scene, i)) + "\n" for i, scene in enumerate(scenes)))
    return list(zip(scenes, read_contexts(path)))


def test_five_thousand_answers_about_the_picture_book_are_true(scenes):
    answers, old = 0, 0
    for seed, (scene, context) in enumerate(scenes):
        check_description(scene, reply("detail", context, seed))
        (reason,) = turns_of(reply("reasoning", context, seed))
        for question, answer in [*turns_of(reply("conversation", context, seed)), reason]:
            assert is_true(scene, answer), (question, answer)
            if is_old(question):
                assert answer == upper(right_answer(scene, *read(question)))
                old += 1
            assert (question, answer) == reason or not any(pair in question.lower() for pair in UNSEEN_PAIRS)
            answers += 1
        answers += 1
    assert answers >= 5_000 and old >= 100


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


def test_same_request_same_reply_and_other_seeds_other_words(scenes):
    for _, context in scenes[:50]:
        for kind in KINDS:
            assert reply(kind, context, 5) == reply(kind, context, 5)
        for kind in ("conversation", "reasoning"):
            assert len({reply(kind, context, seed) for seed in range(10)}) >= 3


def test_a_picture_that_is_not_of_the_book_is_refused_by_its_id(scenes):
    _, context = scenes[0]
    photograph = ("A dog on a sofa.",), (Box("dog", (0.1, 0.2, 0.5, 0.9)),)
    for captions, boxes in (photograph, (context.captions[:4], context.boxes), ((), ())):
        for kind in KINDS:
            with pytest.raises(UserError, match=r"^picture '000042' .*picture-book only.*--teacher openai$"):
                reply(kind, Context("000042", "42.jpg", captions, boxes), 0)
