"""Chats of a language model: the questions, its answers, the rows, and how they are mixed."""

import json
import random
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from data import chats
from data.picturebook.talk import BEYOND
from data.rows import conversation, write_rows
from minillava import Processor
from minillava.inputs.conversation import IGNORE
from minillava.inputs.conversations import ConversationDataset, check_row
from minillava.language_model import TextModel
from minillava.talk import make_turns

ASKED = ["What is it?", "Is it a small red fish?", "a tree", "Is the boat at the top, or near the bottom?", "blue",
         "The big green tree is in the middle."]  # fmt: skip
TALKS = [[(text, "")] for text in ASKED]
TALKS += [[(first, "a fish"), (second, "")] for first in ASKED[:3] for second in ASKED[:3]]


@pytest.fixture
def model(lively_model, tokenizer, monkeypatch) -> TextModel:
    """A tiny language model whose answers may have 12 tokens; about half of them have one that ends them."""
    monkeypatch.setattr(chats, "LENGTH", 12)
    model = TextModel(lively_model.language_model, Processor(tokenizer, None, 0))
    whole, ends = [greedy(model, talk[-1][0], talk[:-1]) for talk in TALKS], []
    first = {ids[0] for ids in whole}
    while sum(bool({*ids} & {*ends}) for ids in whole) < len(TALKS) / 2:
        ends.append(next(ids[5] for ids in whole if not {*ids} & {*ends} and ids[5] not in first))
    model.processor.end_ids = tuple(ends)
    return model


def greedy(model: TextModel, question: str, history: list[tuple[str, str]] | None = None) -> list[int]:
    """The greedy answer's first 12 ids, of one row without padding and without a cache."""
    ids = torch.tensor([model.processor.encode(make_turns(question, history or [], False))[0]])
    length, decoder = ids.shape[1], model.language_model
    with torch.no_grad():
        for _ in range(12):
            ids = torch.cat([ids, decoder.lm_head(decoder(decoder.embed_tokens(ids))[:, -1:]).argmax(-1)], dim=1)
    return ids[0, length:].tolist()


def expected(model: TextModel, ids: list[int]) -> str | None:
    stops = [i for i, index in enumerate(ids) if index in model.processor.stop_ids]
    return model.processor.tokenizer.decode(ids[: stops[0]]).strip() or None if stops else None


def question_of(row: dict) -> str:
    return row["conversations"][0]["value"]


def test_each_topic_fills_each_frame_of_its_kind():
    frames = {"thing": ("What is {}?", "Why {}?"), "place": ("Where is {}?",)}
    topics = {"thing": ("tea", "ice"), "place": ("Peru",)}
    asked = chats.questions(frames, topics, random.Random(1))
    assert sorted(asked) == ["What is ice?", "What is tea?", "Where is Peru?", "Why ice?", "Why tea?"]
    assert asked == chats.questions(frames, topics, random.Random(1))
    for frames, topics in ((chats.FRAMES, chats.TOPICS), (chats.HELDOUT_FRAMES, chats.HELDOUT_TOPICS)):
        asked = chats.questions(frames, topics, random.Random(0))
        assert frames.keys() == topics.keys() and all(
            frame.count("{}") == 1 for kind in frames.values() for frame in kind
        )
        assert len(asked) == len(set(asked)) == sum(len(frames[kind]) * len(topics[kind]) for kind in frames)
        assert asked != sorted(asked) and not any("{" in question for question in asked)
        assert asked != [f.format(t) for kind in frames for f in frames[kind] for t in topics[kind]]


def test_topics_and_frames_are_in_one_set_only():
    for ours, held in ((chats.FRAMES, chats.HELDOUT_FRAMES), (chats.TOPICS, chats.HELDOUT_TOPICS)):
        assert not set(sum(ours.values(), ())) & set(sum(held.values(), ()))


@pytest.mark.parametrize("batch_size", [1, 4, 128])
def test_answers_are_the_models_greedy_ones_and_those_without_end_are_none(model, batch_size):
    """In batches of questions of unequal length. Earlier turns are part of the prompt."""
    found = list(chats.answers(model, TALKS, batch_size))
    assert found == [expected(model, greedy(model, talk[-1][0], talk[:-1])) for talk in TALKS]
    assert None in found and any(found[: len(ASKED)]) and len({*found[len(ASKED) :]}) > 1


def test_an_answer_is_cut_at_its_first_end_and_an_empty_one_is_none(model, monkeypatch):
    end, fill = model.processor.stop_ids[-1], model.processor.tokenizer.pad_id
    word = model.processor.tokenizer.encode(" red")
    rows = [[*word, end, fill, end], [end, fill, fill, fill], [*word, *word, *word, *word][:4]]
    monkeypatch.setattr(chats, "collect", lambda steps, stops, fill: torch.tensor(rows))
    assert list(chats.answers(model, [[("a", "")]] * 3)) == ["red", None, None]


def test_an_answer_has_at_most_so_many_tokens(model, monkeypatch):
    lengths = []
    monkeypatch.setattr(chats, "collect", lambda steps, *rest: lengths.append(len(list(steps))) or torch.zeros(1, 1))
    assert list(chats.answers(model, [[("a", "")]])) == [None] and lengths == [12]


def fake(replies: dict[str, str | None], seen: list):
    def answers(model, asked):
        seen.extend(asked)
        return [replies.get(turns[-1][0], "more") for turns in asked]

    return answers


def test_a_question_without_an_answer_is_left_out_and_a_third_is_asked_again(monkeypatch):
    seen, asked = [], [f"q{number}" for number in range(300)]
    replies = {question: None if question.endswith("7") else question.upper() for question in asked}
    monkeypatch.setattr(chats, "answers", fake(replies | {"Why?": None}, seen))
    found = chats.chats(None, asked, True, random.Random(0))
    assert [turns[0] for turns in found] == [(q, replies[q]) for q in asked if replies[q]]
    again = [turns for turns in seen if len(turns) == 2]
    assert 60 < len(again) < 120 and {turns[1][0] for turns in again} == set(chats.MORE)
    assert all(turns[0] == (turns[0][0], replies[turns[0][0]]) and turns[1][1] == "" for turns in again)
    longer = [turns for turns in found if len(turns) == 2]
    assert {turns[0] for turns in longer} == {turns[0] for turns in again if turns[1][0] != "Why?"}
    assert {turns[1][1] for turns in longer} == {"more"} and not any(turns[1][0] == "Why?" for turns in longer)
    assert all(len(turns) == 1 for turns in chats.chats(None, asked, False, random.Random(0)))


def test_rows_have_no_picture_and_can_be_trained_on(model, tmp_path):
    talks = [[("What is it?", "a fish")], [("Who?", "the big boat"), ("Why?", "at the top")]]
    rows = chats.rows_of("chat", talks)
    assert [row["id"] for row in rows] == ["chat-0000", "chat-0001"] and {row["type"] for row in rows} == {"chat"}
    assert [turn["value"] for turn in rows[1]["conversations"]] == ["Who?", "the big boat", "Why?", "at the top"]
    assert [turn["from"] for turn in rows[1]["conversations"]] == ["human", "gpt"] * 2
    assert not any("image" in row for row in rows)
    write_rows(tmp_path / "chats.json", rows)
    dataset = ConversationDataset(tmp_path / "chats.json", tmp_path, model.processor)
    examples = [dataset[0, 0, index] for index in range(len(dataset))]
    assert len(examples) == 2 and not any("pixel_values" in example for example in examples)
    for example, talk in zip(examples, talks):
        learnt = [index for index in example["labels"] if index != IGNORE]
        text = model.processor.tokenizer.decode(learnt)
        assert all(answer in text for _, answer in talk) and "What" not in text


@pytest.mark.parametrize(("pictures", "talks"), [(23, 3), (4, 3), (3, 3), (8, 1)])
def test_after_every_four_rows_comes_a_chat_all_in_turn_and_again(tmp_path, pictures, talks):
    told = [
        {"id": f"p{n}", "image": f"{n}.png", "conversations": conversation([("?", str(n))])} for n in range(pictures)
    ]
    write_rows(tmp_path / "rows.json", told)
    said = chats.rows_of("chat", [[(f"q{n}", "a"), ("Why?", "b")] for n in range(talks)])
    write_rows(tmp_path / "chats.json", said)
    count = chats.mix(tmp_path / "rows.json", tmp_path / "chats.json", tmp_path / "out.json")
    rows = json.loads((tmp_path / "out.json").read_text())
    assert count == len(rows) == pictures + pictures // 4
    assert [row for row in rows if row["id"][0] == "p"] == told
    assert [row.get("type") == "chat" for row in rows] == [place % 5 == 4 for place in range(len(rows))]
    for number, chat in enumerate(rows[4::5]):
        asked = said[number % talks]
        if number % 2:  # with the picture of the row before
            assert chat["image"] == f"{4 * number + 3}.png" and chat["conversations"][0]["from"] == "human"
            assert chat["conversations"][0]["value"] == f"<image>\n{asked['conversations'][0]['value']}"
            assert chat["conversations"][1:] == asked["conversations"][1:] and chat["id"] == asked["id"]
        else:
            assert chat == asked


REFUSED = {  # a question that the picture-book refuses -> whether a language model learns that
    "What is the capital of Rome?": False, "How much is 3 times four?": False, "Do peachs sleep?": False,
    "WHAT'S DEMOCRACY?": False, "Who was the first king of Spain??": False, "Help me. Who invented a button": False,
    "Why is the Boat there": True, "who owns the red thing": True, "What day is it?": True, "What is your name": True,
    "IS THIS PHOTO PRETTY?": True, "what will happen tomorrow": True,
}  # fmt: skip


def test_questions_about_the_world_are_refused_in_no_row(tmp_path):
    turns = [(question, BEYOND) for question in REFUSED] + [("Is a king here?", "No.")]
    rows = [turns, turns[:2], turns[6:8], [turns[-1], *turns[:2]], turns[2:4]]
    rows = [
        {"id": str(n), "things": ["red boat"], "image": "a.png", "conversations": conversation(turns)}
        for n, turns in enumerate(rows)
    ]
    write_rows(tmp_path / "rows.json", rows)
    write_rows(tmp_path / "chats.json", chats.rows_of("chat", [[("Who?", "the boat")]]))
    assert chats.mix(tmp_path / "rows.json", tmp_path / "chats.json", tmp_path / "out.json") == 3
    kept = json.loads((tmp_path / "out.json").read_text())
    assert [row["id"] for row in kept] == ["0", "2", "3"] and kept[1] == rows[2]
    here = [question for question, learnt in REFUSED.items() if learnt]
    expected = conversation([*((question, BEYOND) for question in here), turns[-1]])
    assert kept[0] == rows[0] | {"conversations": expected}
    assert kept[2]["conversations"] == conversation(turns[-1:])


def test_rows_in_jsonl_are_mixed_too_and_batches_have_both(tmp_path, tiny_model):
    Image.new("RGB", (24, 24), "red").save(tmp_path / "a.png")
    told = [{"id": str(n), "image": "a.png", "conversations": conversation([("What?", "a fish")])} for n in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in told))
    write_rows(tmp_path / "chats.json", chats.rows_of("chat", [[("Who?", "the boat")]]))
    assert chats.mix(tmp_path / "rows.jsonl", tmp_path / "chats.json", tmp_path / "out.json") == 10
    dataset = ConversationDataset(tmp_path / "out.json", tmp_path, tiny_model.processor)
    batch = dataset.collate([dataset[0, 0, index] for index in range(5)])
    assert len(batch["input_ids"]) == 5 and len(batch["pixel_values"]) == 4
    assert tiny_model(batch["input_ids"], batch["pixel_values"], None, batch["labels"])[1].isfinite()


def test_the_program_writes_both_files_and_says_how_many_are_left_out(monkeypatch, tmp_path, capsys):
    seen = []
    monkeypatch.setattr(chats, "load_text_model", lambda name, device: (name, device))
    monkeypatch.setattr(chats, "answers", fake({"Hello!": None}, seen))
    monkeypatch.setattr(sys, "argv", ["chats", "--out", str(tmp_path), "--decoder", "mine", "--device", "cpu"])
    chats.main()
    asked, held = (json.loads((tmp_path / name).read_text()) for name in ("chats.json", "chats_heldout.json"))
    number = len(chats.SINGLE) + sum(len(chats.FRAMES[kind]) * len(chats.TOPICS[kind]) for kind in chats.FRAMES)
    assert len(asked) == number - 1 and len(held) == chats.HELDOUT
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{number - 1:,} of {number:,} chats") and lines[1].startswith("200 held-out chats")
    assert {row["id"].rpartition("-")[0] for row in held} == {"heldout-chat"}
    known = chats.questions(chats.HELDOUT_FRAMES, chats.HELDOUT_TOPICS, random.Random(0))
    assert set(map(question_of, held)) <= set(known)
    assert all(len(row["conversations"]) == 2 for row in held) and any(len(row["conversations"]) == 4 for row in asked)
    assert set(map(question_of, asked)) >= set(chats.SINGLE) - {"Hello!"}


# ---- the shipped chats ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped() -> dict[str, list[dict]]:
    folder = Path(__file__).parents[1] / "data"
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in ("chats", "chats_heldout")}


def test_the_shipped_chats_can_be_trained_on_and_have_no_picture(shipped, tokenizer):
    processor = Processor(tokenizer, None, 0)
    assert len(shipped["chats"]) >= 600 and 100 <= len(shipped["chats_heldout"]) <= chats.HELDOUT
    for rows in shipped.values():
        assert len({row["id"] for row in rows}) == len(rows)
        for row in rows:
            check_row(row, processor)
            assert "image" not in row and "<image>" not in str(row) and row["type"] == "chat"
            assert all(turn["value"].strip() for turn in row["conversations"])
    assert all(len(row["conversations"]) == 2 for row in shipped["chats_heldout"])


def test_the_shipped_chats_ask_what_the_program_asks_and_nothing_twice(shipped):
    rng = random.Random(0)
    asked = {*chats.SINGLE, *chats.questions(chats.FRAMES, chats.TOPICS, rng)}
    held = set(chats.questions(chats.HELDOUT_FRAMES, chats.HELDOUT_TOPICS, rng))
    for name, known in (("chats", asked), ("chats_heldout", held)):
        found = [question_of(row) for row in shipped[name]]
        assert len(set(found)) == len(found) and set(found) <= known
    assert not asked & held
    more = [row["conversations"][2]["value"] for row in shipped["chats"] if len(row["conversations"]) == 4]
    assert 1 / 5 < len(more) / len(shipped["chats"]) < 2 / 5 and set(more) == set(chats.MORE)


def test_the_shipped_chats_lie_next_to_the_program():
    assert Path(chats.__file__).parent / "chats.json" == chats.CHATS
