"""Replies are parsed into turns or refused with a reason; answers that mention the captions or boxes they were written
from, as if there were no picture, are detected."""

import random

import pytest

from data.picturebook import language, talk
from data.picturebook.scene import sample_scene
from data.replies import Malformed, names_its_source, parse

TWO = "Question: What is it?\n===\nAnswer: A dog.\nIt is brown.\n===\nQuestion: Where?\n===\nAnswer: On a bed."
TURNS = [("What is it?", "A dog.\nIt is brown."), ("Where?", "On a bed.")]


@pytest.mark.parametrize(
    "reply",
    [
        TWO,
        f"\n{TWO}\n===\n",
        f"===\n{TWO}",
        TWO.replace("\n", "\r\n").replace("dog.\r\n", "dog.\n"),
        TWO.replace("===", " =====  "),
        TWO.replace("Answer: ", "Answer:\n"),
        f"<think>Question: or an answer?\n===</think>\n{TWO}",
    ],
)
def test_a_conversation_is_cut_at_its_separators(reply):
    assert parse("conversation", None, reply) == TURNS


def test_complex_reasoning_is_one_pair_and_a_description_the_whole_reply():
    assert parse("reasoning", None, TWO.partition("\n===\nQuestion: Where")[0]) == TURNS[:1]
    assert parse("detail", "Describe it.", " A dog.\n\nA bed. \n") == [("Describe it.", "A dog.\n\nA bed.")]


@pytest.mark.parametrize(
    "kind, reply, reason",
    [
        ("conversation", "", "empty reply"),
        ("conversation", " \n", "empty reply"),
        ("conversation", "<think>Well.</think>", "empty reply"),
        ("conversation", "===\n===", "no question"),
        ("conversation", "A dog lies on a bed.", "block 1"),
        ("conversation", f"Here you are:\n{TWO}", "block 1"),
        ("conversation", f"```\n{TWO}\n```", "block 1"),
        ("conversation", TWO.replace("\n===\n", "\n"), "block 1"),
        ("conversation", TWO.replace("===\nQuestion", "Question"), "block 2"),
        ("conversation", TWO.replace("Question: Where?\n===\n", ""), "block 3"),
        ("conversation", TWO[: TWO.rindex("===")], "the last question has no answer"),
        ("conversation", TWO.replace("Where?", ""), "empty question"),
        ("conversation", TWO.replace("A dog.\nIt is brown.", ""), "empty question or answer"),
        ("conversation", f"{TWO}\n===\nQuestion: what is it?\n===\nAnswer: A dog.", "a question occurs twice"),
        ("conversation", TWO.replace("a bed", "<image>"), "<image>"),
        ("conversation", TWO.replace("dog", "d\ud83dg"), "a broken character"),
        ("detail", "A d\ufffdg.", "a broken character"),
        ("reasoning", TWO, "2 questions"),
        ("reasoning", "A dog.", "block 1"),
        ("detail", "", "empty reply"),
        ("detail", TWO, "not only a description"),
        ("detail", "Answer: A dog.", "not only a description"),
        ("detail", "A dog.\n===\nA bed.", "not only a description"),
        ("detail", "<image> A dog.", "<image>"),
    ],
)
def test_another_form_is_refused_with_its_reason(kind, reply, reason):
    with pytest.raises(Malformed, match=reason):
        parse(kind, "Describe it.", reply)


@pytest.mark.parametrize(
    "text",
    [
        "The caption says that the dog is brown.",
        "As stated in the captions, it rains.",
        "One of the five captions mentions a bus.",
        "According to the bounding box, the dog is on the left.",
        "The bounding boxes overlap.",
        "According to the box of the dog, it is large.",
        "Based on the boxes, there are two people.",
        "The description mentions a kite.",
        "The descriptions do not specify the colour.",
        "From the descriptions, one can tell that it is a kitchen.",
        "The second sentence clearly states that they are surfing.",
        "Based on the given information, it is a birthday.",
        "The details provided suggest a party.",
        "It cannot be told from the provided context.",
        "Judging by the coordinates, the cup is near the edge.",
        "The dog is at [0.12, 0.3, 0.5, 0.9].",
        "It spans from 0.125 to 0.480 across the picture.",
        "Its x-coordinate is small.",
        "The object detection found three chairs.",
        "The image description names a train.",
        "The context does not say who took the picture.",
        "As described in these sentences, a man waits.",
    ],
)
def test_an_answer_that_names_its_source_is_noticed(text):
    assert names_its_source(("What is it?", text))
    assert names_its_source((text, "A dog."))


@pytest.mark.parametrize(
    "text",
    [
        "The man carries a box of fruit.",
        "From the box, a child takes a toy.",
        "Based on the boxes stacked in the room, someone is moving house.",
        "The boxes suggest that someone is moving house.",
        "The captain of the boat wears a baseball cap.",
        "It is a poster with a caption in red letters.",
        "The sign says that parking is not allowed.",
        "The dog fits the description of a sheepdog.",
        "In the context of a wedding, the cake is likely meant for the guests.",
        "The coach coordinates the players, whose outfits are coordinated.",
        "According to the clock, it is half past 3.",
        "Based on the position of the sun, it is evening.",
        "A smoke detector hangs from the ceiling.",
        "The bus costs $1.50, or 0.5 of the usual price (in 2019, 1 in 3 took it).",
        "The information given on the board helps travellers.",
        "Bento boxes are provided at the counter; each box holds 2 dishes.",
        "The context suggests a birthday: there is a cake.",
        "It is a boxing ring, and the boxers are tired.",
    ],
)
def test_words_with_a_plain_meaning_are_left_alone(text):
    assert not names_its_source((text, text))


def test_nothing_that_is_said_of_the_picture_book_is_taken_for_a_source():
    rng = random.Random(0)
    for _ in range(300):
        scene = sample_scene(rng)
        turns = [("Tell me.", language.description(scene)), *talk.conversation(scene, rng, 600)]
        assert not any(names_its_source(turn) for turn in turns)
