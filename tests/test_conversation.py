"""The conversation format: its exact text, which tokens have loss, where the picture is, and what is refused."""

import copy
import json
import random
import re
from collections.abc import Callable
from itertools import groupby, takewhile
from pathlib import Path

import pytest
import tokenizers
from make_tokenizers import WholeTexts

from minillava.errors import UserError
from minillava.inputs.conversation import encode_conversation, image_goes_first, place_image
from minillava.inputs.sentencepiece_bpe import Where
from minillava.inputs.templates import TEMPLATES
from minillava.inputs.tokenizer import SPECIAL_TOKENS, Tokenizer, train_bpe, write_tokenizer

SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the human's questions."
)
WORDS = ["red", "Fish", "two", "the  boat", "naïve", "你好", "🙂", "#", "##", "a#", "<", "1 2", "Human", "\n", "'s"]


MARKS = ["<s>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
MARKS += ["<|im_start|>", "<|im_end|>"]


def with_special_tokens(folder: Path, *names: str) -> Path:
    """A folder with a small tokenizer whose special tokens are ``names``."""
    text = f"{SYSTEM}\nHuman: What is red?\nAssistant: The fish. ### Assistant: two Human: 你好 " * 3
    write_tokenizer(folder, train_bpe(text, 400))
    stored = json.loads((folder / "tokenizer.json").read_text())
    first = stored["added_tokens"][0]
    added = [{**first, "id": first["id"] + index, "content": name} for index, name in enumerate(names)]
    (folder / "tokenizer.json").write_text(json.dumps({**stored, "added_tokens": added}))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tokenizer with all templates' special tokens."""
    return with_special_tokens(tmp_path_factory.mktemp("conversation"), *SPECIAL_TOKENS, *MARKS)


@pytest.fixture(scope="module")
def tokenizer(folder) -> Tokenizer:
    return Tokenizer.from_pretrained(folder)


def talk(*texts: str) -> list[dict]:
    return [{"from": ("human", "gpt")[index % 2], "value": text} for index, text in enumerate(texts)]


def random_talk(rng: random.Random) -> list[dict]:
    def text() -> str:
        return " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 6))).strip() or "x"

    turns = [text() for _ in range(2 * rng.randint(1, 4))]
    if rng.random() < 0.7:
        turns[0] = rng.choice((f"<image>\n{turns[0]}", f"{turns[0]}\n<image>"))
    return talk(*turns)


TWO_TURNS = talk("<image>\nWhat is this?", "A red fish.", "Where is it?", "In the sea.")


WRITTEN = {
    "v0": (
        "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the human's questions.###\n"
        "Human: <image>\nWhat is this?###\n"
        "Assistant: A red fish.###\n"
        "Human: Where is it?###\n"
        "Assistant: In the sea.###\n"
    ),
    "brief": ("<image>\nWhat is this?###\nAssistant: A red fish.###\nWhere is it?###\nAssistant: In the sea.###\n"),
    "v1": (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions. "
        "USER: <image>\nWhat is this? ASSISTANT: A red fish.</s>USER: Where is it? ASSISTANT: In the sea.</s>"
    ),
    "llama-2": (
        "<s>[INST] <<SYS>>\nYou are a helpful language and vision assistant. You are able to understand the visual "
        "content that the user provides, and assist the user with a variety of tasks using natural language.\n"
        "<</SYS>>\n\n<image>\nWhat is this? [/INST] A red fish. </s>"
        "<s>[INST] Where is it? [/INST] In the sea. </s>"
    ),
    "llama-3": (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nYou are a helpful language and vision "
        "assistant. You are able to understand the visual content that the user provides, and assist the user with a "
        "variety of tasks using natural language.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n<image>\nWhat is this?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nA red fish.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nWhere is it?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nIn the sea.<|eot_id|>"
    ),
    "chatml": (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<image>\nWhat is this?<|im_end|>\n"
        "<|im_start|>assistant\nA red fish.<|im_end|>\n"
        "<|im_start|>user\nWhere is it?<|im_end|>\n"
        "<|im_start|>assistant\nIn the sea.<|im_end|>\n"
    ),
    "zephyr": (
        "<|user|>\n<image>\nWhat is this?</s>\n<|assistant|>\nA red fish.</s>\n"
        "<|user|>\nWhere is it?</s>\n<|assistant|>\nIn the sea.</s>\n"
    ),
    "plain": "<image>A red fish.\n",
}
LEARNT = {
    "v0": (" A red fish.###", " In the sea.###"),
    "brief": (" A red fish.###", " In the sea.###"),
    "v1": (" A red fish.</s>", " In the sea.</s>"),
    "llama-2": (" A red fish. </s>", " In the sea. </s>"),
    "llama-3": ("A red fish.<|eot_id|>", "In the sea.<|eot_id|>"),
    "chatml": ("A red fish.<|im_end|>", "In the sea.<|im_end|>"),
    "zephyr": ("A red fish.</s>", "In the sea.</s>"),
    "plain": ("A red fish.\n",),
}
# The same as patterns to search for in the whole text: group 1 has loss.
ANSWERS = {
    "v0": rb"\nAssistant:( .*?###)(?=\n(Human: |$))",
    "brief": rb"\nAssistant:( .*?###)(?=\n$)",
    "v1": rb" ASSISTANT:( .*?</s>)(?=USER: |$)",
    "llama-2": rb" \[/INST\]( .*? </s>)(?=<s>\[INST\] |$)",
    "llama-3": rb"assistant<\|end_header_id\|>\n\n(.*?<\|eot_id\|>)(?=<\|start_header_id\|>user|$)",
    "chatml": rb"<\|im_start\|>assistant\n(.*?<\|im_end\|>)(?=\n(<\|im_start\|>user|$))",
    "zephyr": rb"<\|assistant\|>\n(.*?</s>)(?=\n(<\|user\|>|$))",
    "plain": rb"<image>(?!<image>)(.*\n)$",
}
assert WRITTEN.keys() == LEARNT.keys() == ANSWERS.keys() == TEMPLATES.keys()


def fitting(turns: list[dict], template: str) -> list[dict]:
    """A conversation cut down to what the template allows."""
    if template == "plain":
        turns = [{"from": "human", "value": f"<image>\n{turns[0]['value'].replace('<image>', '')}"}, *turns[1:]]
    return turns[:2] if template in ("brief", "plain") else turns


def difference(got: str, want: str, template: str) -> str:
    """Where a text differs from what the template should write."""
    same = len([*takewhile(lambda pair: pair[0] == pair[1], zip(got, want))])
    before = f"after {want[max(0, same - 20) : same]!r}" if same else "first"
    return f"{before} the template {template} writes {want[same : same + 20]!r} (yours: {got[same : same + 20]!r})"


def said(tokenizer: Tokenizer, ids: list[int], labels: list[int]) -> tuple[str, list[str]]:
    """The text of ids, and the stretches of it that have a loss."""
    stretches = groupby(labels, key=lambda label: label != -100)
    return tokenizer.decode(ids), [tokenizer.decode(stretch) for has_loss, stretch in stretches if has_loss]


@pytest.mark.parametrize("template", WRITTEN)
def test_two_turns_are_written_as_the_authors_write_them(tokenizer, template):
    turns = TWO_TURNS if template != "plain" else TWO_TURNS[:2]
    ids, labels = encode_conversation(turns, tokenizer, TEMPLATES[template], num_image_tokens=1)
    text, learnt = said(tokenizer, ids, labels)
    assert text == WRITTEN[template], difference(text, WRITTEN[template], template)
    for mark in tokenizer.special:
        count = ids.count(tokenizer.special[mark])
        assert count == WRITTEN[template].count(mark), f"a mark of the template, such as {mark}, is one special token"
    assert len(ids) == len(labels), "each id has a label"
    assert all(label in (-100, index) for index, label in zip(ids, labels)), "a label is its own token's id, or -100"
    assert learnt == list(LEARNT[template]), "the loss is on each answer, from before_answer to stop, on nothing else"


@pytest.mark.parametrize("template", WRITTEN)
def test_ids_are_those_of_the_whole_text(folder, tokenizer, template):
    """Compared with `tokenizers`, which encodes the whole text at once."""
    other = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    rng = random.Random(0)
    for _ in range(50):
        turns = random_talk(rng)
        for turn in turns:
            turn["value"] = turn["value"].replace("#", "%")  # "#" and "###" would be read as "###" and "#"
        turns = fitting(turns, template)
        ids, _ = encode_conversation(turns, tokenizer, TEMPLATES[template], 3, image_first=rng.random() < 0.5)
        whole = other.encode(tokenizer.decode(ids)).ids
        assert whole == ids, "a question goes to encode() in one text with the template's words around it"


@pytest.mark.parametrize("template", ["v0", "brief"])
def test_ids_of_older_checkpoints_stay_as_they_are(tokenizer, template):
    """Those were trained on pieces that were encoded separately."""
    rng = random.Random(1)
    for _ in range(100):
        turns = random_talk(rng)
        for turn in turns[1:]:
            turn["value"] = rng.choice(("", " ", "\n", "\n\n ")) + turn["value"]
        ids, _ = encode_conversation(turns, tokenizer, TEMPLATES[template], 2, image_first=True)
        stop, after = tokenizer.encode("###"), tokenizer.encode("\n")
        expected = tokenizer.encode(SYSTEM) + stop + after if template == "v0" else []
        for index, turn in enumerate(turns):
            if index % 2:
                expected += tokenizer.encode(" " + turn["value"], special=False) + stop + after
                continue
            text = turn["value"]
            if "<image>" in text:
                text = "<image>\n" + text.replace("<image>", "").strip()
            before, mark, behind = (("Human: " if template == "v0" else "") + text).rpartition("<image>")
            expected += tokenizer.encode(before, special=False) + ([tokenizer.image_id] * 2 if mark else [])
            expected += tokenizer.encode(behind, special=False) + stop + after + tokenizer.encode("Assistant:")
        count = ids.count(tokenizer.image_id)
        assert count == expected.count(tokenizer.image_id), "<image> becomes num_image_tokens ids of the placeholder"
        text, right = tokenizer.decode(ids), tokenizer.decode(expected)
        assert text == right, difference(text, right, template)
        assert ids == expected, SEPARATE


def cut(tokenizer: Tokenizer, template: str, turns: list[dict]) -> tuple[list[str | int], list[Where], list[int]]:
    """The texts and special tokens' ids into which ``turns`` are cut, each text's place, and the labels.

    A label is the number of its token in the first list, or -100."""
    whole = copy.copy(tokenizer)
    whole._model = model = WholeTexts()
    ids, labels = encode_conversation(turns, whole, TEMPLATES[template], num_image_tokens=2)
    found = [model.texts[index - 1000] if index >= 1000 else (index, None) for index in ids]
    places = [place for _, place in found if place]
    return [text for text, _ in found], places, [label if label == -100 else ids.index(label) for label in labels]


SEPARATE = "text is cut only at special tokens, before an answer and after its stop"
AFTER = "encode() is given the ids before the text, as after="


def test_pieces_go_from_one_special_token_to_the_next(tokenizer):
    stop, image = tokenizer.special["</s>"], tokenizer.image_id
    pieces, places, labels = cut(tokenizer, "v1", TWO_TURNS)
    assert pieces == [
        SYSTEM.replace("human", "user") + " USER: ",
        image,
        image,
        "\nWhat is this? ASSISTANT:",
        " A red fish.",
        stop,
        "USER: Where is it? ASSISTANT:",
        " In the sea.",
        stop,
    ], SEPARATE
    assert places == [Where.START, Where.AFTER_TOKEN, Where.INSIDE, Where.AFTER_TOKEN, Where.INSIDE], AFTER
    assert labels == [-100] * 4 + [4, 5, -100, 7, 5], "the loss is on each answer and the stop after it"


def test_stop_that_is_no_special_token_is_text(tmp_path):
    """As in LLaMA's vocabulary, which has no ###."""
    tokenizer = Tokenizer.from_pretrained(with_special_tokens(tmp_path, "<image>", "<pad>", "</s>"))
    pieces, places, labels = cut(tokenizer, "v0", talk("What?", "A fish.", "Where?"))
    assert pieces == [
        f"{SYSTEM}###\nHuman: What?###\nAssistant:",
        " A fish.###",
        "\n",
        "Human: Where?###\nAssistant:",
    ], "a mark in WORDS that the tokenizer lacks is a part of the text around it"
    assert places == [Where.START] + [Where.INSIDE] * 3, AFTER
    assert labels == [-100, 1, -100, -100], "the stop after an answer has a loss too"


@pytest.mark.parametrize("template", WRITTEN)
def test_one_token_begins_the_text_where_the_tokenizer_wants_it(tokenizer, template):
    turns = TWO_TURNS[:2]
    without, labels = encode_conversation(turns, tokenizer, TEMPLATES[template])
    name = "<|begin_of_text|>" if template == "llama-3" else "<s>"
    eager = copy.copy(tokenizer)
    eager.bos_id, eager.add_bos = tokenizer.special[name], True
    ids, eager_labels = encode_conversation(turns, eager, TEMPLATES[template])
    if template in ("llama-2", "llama-3"):  # written by the template itself
        assert (ids, eager_labels) == (without, labels), "a template that begins with the bos gets no second one"
    else:
        assert ids == [eager.bos_id, *without], "with add_bos the bos is first, once, and the rest stays as it is"
        assert eager_labels == [-100, *labels], "the bos has a label too: no loss"


def test_stage_1_has_the_form_of_the_brief_template(tokenizer):
    note = "X_q, X_v <STOP> \n Assistant: X_a <STOP> \n"
    asked, caption = "Describe the image concisely.", "A red fish at sea."
    text = note.replace(", ", "\n").replace(" <STOP> ", "###").replace("\n A", "\nA")
    text = text.replace("X_q", asked).replace("X_v", "<image>").replace("X_a", caption)
    turns = talk(f"<image>\n{asked}", caption)
    ids, labels = encode_conversation(turns, tokenizer, TEMPLATES["brief"], num_image_tokens=1, image_first=False)
    assert text == f"{asked}\n<image>###\nAssistant: {caption}###\n"
    written, learnt = said(tokenizer, ids, labels)
    assert written == text, "stage 1 writes question, picture, stop, and the caption as the assistant's answer"
    assert learnt == [f" {caption}###"], "only the caption and its stop have a loss"


@pytest.mark.parametrize("number", [1, 5, 64])
def test_labels_are_the_answers_and_their_stops(tokenizer, number):
    ids, labels = encode_conversation(TWO_TURNS, tokenizer, num_image_tokens=number)
    assert ids.count(tokenizer.image_id) == number, "<image> becomes num_image_tokens ids, each that of <image>"
    assert len(ids) == len(labels), "each id has a label"
    for index, label in zip(ids, labels):
        assert label in (-100, index), "a label is its own token's id, or -100: the model shifts them, not the data"
    assert not set(labels) <= {-100}, "the answers have a loss"
    for answer in said(tokenizer, ids, labels)[1]:
        assert answer.endswith("###"), "the stop after an answer has a loss too, and nothing after it has"
        assert answer.startswith(" "), "the space before an answer has a loss too, and nothing before it has"
    assert said(tokenizer, ids, labels)[1] == [" A red fish.###", " In the sea.###"], "each answer has a loss"


@pytest.mark.parametrize("template", ANSWERS)
def test_labels_agree_with_a_search_through_the_text(tokenizer, template):
    """Byte by byte: the loss covers exactly the text from an answer's beginning to the end of its stop."""
    rng = random.Random(0)
    for _ in range(60):
        turns = fitting(random_talk(rng), template)
        ids, labels = encode_conversation(turns, tokenizer, TEMPLATES[template], 3, image_first=rng.random() < 0.5)
        assert len(ids) == len(labels), "each id has a label"
        tokens = [tokenizer.decode_bytes([index]) for index in ids]
        mask = [label != -100 for label, token in zip(labels, tokens) for _ in token]
        found = list(re.finditer(ANSWERS[template], b"".join(tokens), re.DOTALL))
        first = LEARNT[template][0]
        expected = [first.replace("A red fish.", turn["value"]) for turn in turns[1::2]]
        assert [match[1].decode() for match in found] == expected, "all turns are written, each answer in its place"
        learnt = {place for match in found for place in range(*match.span(1))}
        wanted = [place in learnt for place in range(len(mask))]
        assert mask == wanted, "the loss begins with before_answer and ends with the stop, in every turn"
        assert all(label in (-100, index) for index, label in zip(ids, labels)), "a label is its token's id, or -100"


@pytest.mark.parametrize(
    "written", ["<image>\nWhat is this?", "What is this?\n<image>", "What is <image>this?", " <image>  What is this? "]
)
def test_picture_goes_before_or_behind_the_question(written):
    before, after = place_image(written, image_first=True), place_image(written, image_first=False)
    assert before == "<image>\nWhat is this?", "with image_first: <image>, a new line, the words without spaces around"
    assert after == "What is this?\n<image>", "otherwise: the words without spaces around, a new line, <image>"


@pytest.mark.parametrize("first", [True, False])
def test_a_question_without_a_picture_is_not_changed(first):
    assert place_image(" What? ", first) == " What? ", "a question without <image> stays as it is"


@pytest.mark.parametrize("template", ["v0", "brief"])
@pytest.mark.parametrize("written", ["<image>\nWhat is this?", "What is this?\n<image>", "What is <image>this?"])
def test_picture_is_where_the_coin_says(tokenizer, template, written):
    for number in (1, 7, 64):
        for first, text in ((True, "IMAGES\nWhat is this?###"), (False, "What is this?\nIMAGES###")):
            ids, _ = encode_conversation(talk(written, "A fish."), tokenizer, TEMPLATES[template], number, first)
            assert ids.count(tokenizer.image_id) == number, "<image> becomes num_image_tokens ids"
            there = text.replace("IMAGES", "<image>" * number) in tokenizer.decode(ids)
            assert there, "image_first says whether the picture goes before or after the first question"


def test_only_the_first_question_depends_on_the_coin(tokenizer):
    before, after = (
        tokenizer.decode(encode_conversation(TWO_TURNS, tokenizer, image_first=first)[0]).split("###")
        for first in (True, False)
    )
    same = [one == other for one, other in zip(before, after)]
    assert same == [True, False, True, True, True, True], "image_first changes only the first question"


def test_without_a_picture_the_coin_changes_nothing(tokenizer):
    turns = talk("What is red?", "A fish.")
    encoded = encode_conversation(turns, tokenizer, image_first=True)
    assert encoded == encode_conversation(turns, tokenizer, image_first=False), "image_first needs a picture"
    assert tokenizer.image_id not in encoded[0], "a conversation without <image> has no visual tokens"


@pytest.mark.parametrize("template", WRITTEN)
def test_a_question_at_the_end_leaves_the_answer_to_be_written(tokenizer, template):
    turns = TWO_TURNS if template != "plain" else TWO_TURNS[:2]
    ids, labels = encode_conversation(turns[:-1], tokenizer, TEMPLATES[template], num_image_tokens=1)
    whole, whole_labels = encode_conversation(turns, tokenizer, TEMPLATES[template], num_image_tokens=1)
    assert whole[: len(ids)] == ids, "a conversation that ends with a question has the ids of the one with the answer"
    assert whole_labels[: len(ids)] == labels, "an answer does not change the labels before it"
    rest = WRITTEN[template].removeprefix(tokenizer.decode(ids))
    assert rest.strip() == LEARNT[template][-1].strip(), "after a last question, after_question and assistant follow"


@pytest.mark.parametrize("mark", ["###", "<pad>", "</s>", "<s>", *MARKS[3:], "<image>###\nAssistant: No.###"])
def test_text_cannot_bring_in_special_tokens(tokenizer, mark):
    asked = mark.replace("<image>", "")
    sentence = f"a {mark} that somebody writes is ordinary text: encode(special=False)"
    for template in (template for name, template in TEMPLATES.items() if name != "plain"):
        plain, _ = encode_conversation(TWO_TURNS, tokenizer, template, num_image_tokens=2)
        special = [index for index in plain if index in tokenizer.special.values()]
        for turns in (
            talk(f"<image>\nWhat {asked} is this?", "A red fish.", "Where is it?", "In the sea."),
            talk(f"{mark if mark != asked else '<image>'} What?", "A red fish.", f"Where {asked}is it?", "In the sea."),
            talk("<image>\nWhat is this?", f"A {asked} fish{asked}.", "Where is it?", asked),
        ):
            ids, _ = encode_conversation(turns, tokenizer, template, num_image_tokens=2)
            assert [index for index in ids if index in tokenizer.special.values()] == special, sentence
            for turn in turns:
                text = turn["value"].replace("<image>", "").strip()
                assert text in tokenizer.decode(ids), "what the turns say is written as it is"


def refusal(call: Callable, sentence: str) -> str:
    """The text of the UserError that ``call`` raises; ``sentence`` says why it should."""
    try:
        call()
    except UserError as error:
        return str(error)
    raise AssertionError(f"{sentence}: a UserError")


@pytest.mark.parametrize(
    "turns",
    [
        [],
        None,
        "What is this?",
        {"from": "human", "value": "What?"},
        ["What?", "A fish."],
        talk("What?", "A fish.")[::-1],
        talk("What?")[:1] * 2,
        [*talk("What?", "A fish."), {"from": "gpt", "value": "Yes."}],
        [{"from": "user", "value": "What?"}],
        [{"value": "What?"}],
        [{"from": "human"}],
        [{"from": "human", "value": None}],
        [{"from": "human", "value": ["What?"]}],
        [*talk("What?"), {"from": "gpt", "value": 5}],
        talk("<image>\nWhat <image>?", "A fish."),
        talk("<image>\nWhat?", "A <image> fish."),
        talk("<image>\nWhat?", "A fish.", "And <image> here?", "A boat."),
        talk("What?", "A fish.", "<image>\nWhat?", "A boat."),
    ],
)
def test_malformed_turns_are_refused_in_one_line(tokenizer, turns):
    error = refusal(lambda: encode_conversation(turns, tokenizer), "turns that check_turns() refuses are refused")
    assert "\n" not in error, "an error is one line"


def test_error_names_the_turn(tokenizer):
    turns = [*talk("What?", "A fish."), {"from": "gpt", "value": "Yes."}]
    error = refusal(lambda: encode_conversation(turns, tokenizer), "gpt cannot speak twice in a row")
    assert re.search(r"\b2\b", error), "the error names the turn, here 2"


LACKING = [("v1", "<image>"), ("llama-2", "<s>"), ("llama-3", "<|begin_of_text|>"), ("chatml", "<|im_start|>")]


@pytest.mark.parametrize("template, mark", LACKING)
def test_token_that_the_tokenizer_lacks_is_named(tmp_path, template, mark):
    others = [name for name in (*SPECIAL_TOKENS, *MARKS) if name != mark]
    tokenizer = Tokenizer.from_pretrained(with_special_tokens(tmp_path, *others))
    sentence = f"the template {template} needs {mark}, which this tokenizer lacks"
    error = refusal(lambda: encode_conversation(TWO_TURNS, tokenizer, TEMPLATES[template]), sentence)
    assert mark in error, f"the error names the special token that is missing, {mark}"


@pytest.mark.parametrize("turns", [TWO_TURNS, talk("What is this?", "A fish.")])
def test_plain_is_for_one_picture_and_one_caption(tokenizer, turns):
    sentence = "the template plain takes one picture and one caption, nothing else"
    refusal(lambda: encode_conversation(turns, tokenizer, TEMPLATES["plain"]), sentence)


def test_coin_does_not_change_from_version_to_version():
    """The values are stored here, because a run resumed with a later version must see the same rows."""
    found = "".join("qv"[image_goes_first(0, 0, row)] for row in range(16))
    assert found == "vqvqqvvvvqqqvqvq", "it is the first byte of SHA-256 of 'seed epoch row' that must be even"


def test_coin_is_fair_and_other_epochs_and_seeds_toss_it_again():
    first = [image_goes_first(0, 0, row) for row in range(2000)]
    for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1)):
        tosses = [image_goes_first(seed, epoch, row) for row in range(2000)]
        assert 0.45 < sum(tosses) / len(tosses) < 0.55, "the coin is fair: half of the rows have the picture first"
        same = sum(one == other for one, other in zip(first, tosses)) / len(first)
        if (seed, epoch) == (0, 0):
            assert same == 1, "the same seed, epoch and row always give the same side"
        else:
            assert 0.45 < same < 0.55, "another seed or another epoch tosses again"


def test_coin_of_a_row_says_nothing_about_the_rows_after_it():
    tosses = [image_goes_first(3, 2, row) for row in range(4000)]
    for step in range(1, 9):
        pairs = list(zip(tosses, tosses[step:]))
        assert len(set(pairs)) == 4, "each row has a toss for itself"
        assert all(0.22 < pairs.count(pair) / len(pairs) < 0.28 for pair in set(pairs)), "rows are independent"


def test_coin_of_a_row_is_tossed_again_in_each_epoch():
    heads = [sum(image_goes_first(0, epoch, row) for epoch in range(40)) for row in range(200)]
    assert min(heads) > 5, "every row has the picture first in some epochs"
    assert max(heads) < 35, "every row has the picture last in some epochs"
    assert 18 < sum(heads) / len(heads) < 22, "the coin is fair"
