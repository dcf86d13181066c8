"""The conversation format: its exact text, which tokens have loss, where the picture is, and what is refused."""

import copy
import json
import random
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import tokenizers
from jinja2.exceptions import TemplateError
from transformers import AutoTokenizer

from minillava.errors import UserError
from minillava.formats.chat_template import to_jinja
from minillava.inputs.conversation import encode_conversation, image_goes_first, place_image
from minillava.inputs.templates import TEMPLATES
from minillava.inputs.tokenizer import Tokenizer, train_bpe, write_tokenizer

SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the human's questions."
)
WORDS = ["red", "Fish", "two", "the  boat", "naïve", "你好", "🙂", "#", "##", "a#", "<", "1 2", "Human", "\n", "'s"]


MARKS = ["<s>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
MARKS += ["<|im_start|>", "<|im_end|>"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tokenizer with all templates' special tokens."""
    folder = tmp_path_factory.mktemp("conversation")
    text = f"{SYSTEM}\nHuman: What is red?\nAssistant: The fish. ### Assistant: two Human: 你好 " * 3
    write_tokenizer(folder, train_bpe(text, 400))
    stored = json.loads((folder / "tokenizer.json").read_text())
    for mark in MARKS:
        last = stored["added_tokens"][-1]
        stored["added_tokens"].append({**last, "id": last["id"] + 1, "content": mark})
    (folder / "tokenizer.json").write_text(json.dumps(stored))
    return folder


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


@pytest.mark.parametrize("template", WRITTEN)
def test_two_turns_are_written_as_the_authors_write_them(tokenizer, template):
    turns = TWO_TURNS if template != "plain" else TWO_TURNS[:2]
    ids, labels = encode_conversation(turns, tokenizer, TEMPLATES[template], num_image_tokens=1)
    assert tokenizer.decode(ids) == WRITTEN[template]
    assert tokenizer.decode([label for label in labels if label != -100]) == "".join(LEARNT[template])
    assert all(answer.endswith(TEMPLATES[template].stop) for answer in LEARNT[template])
    # each special token is one id, not spelt out
    marks = [mark for mark in tokenizer.special if mark in WRITTEN[template]]
    assert all(ids.count(tokenizer.special[mark]) == WRITTEN[template].count(mark) for mark in marks)


@pytest.mark.parametrize("template", WRITTEN)
def test_ids_are_those_of_the_whole_text(folder, tokenizer, template):
    """Compared with `tokenizers`, which encodes the whole text at once."""
    other = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    rng = random.Random(0)
    for _ in range(200):
        turns = random_talk(rng)
        for turn in turns:
            turn["value"] = turn["value"].replace("#", "%")  # "#" and "###" would be read as "###" and "#"
        turns = fitting(turns, template)
        ids, _ = encode_conversation(turns, tokenizer, TEMPLATES[template], 3, image_first=rng.random() < 0.5)
        assert other.encode(tokenizer.decode(ids)).ids == ids


@pytest.mark.parametrize("template", ["v0", "brief"])
def test_ids_of_older_checkpoints_stay_as_they_are(tokenizer, template):
    """Those were trained on pieces that were encoded separately."""
    rng = random.Random(1)
    for _ in range(200):
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
        assert ids == expected


class PieceTokenizer:
    """Makes one token of every text, another one where another token comes before it. So the ids tell the pieces in
    which a conversation was encoded, however often encode() was called."""

    bos_id, add_bos = 1, True

    def __init__(self, *special: str):
        self.special = {mark: 2 + index for index, mark in enumerate(special)}
        self.ids: dict[tuple[str, int | None], int] = {}

    def encode(self, text: str, special: bool = True, after: Sequence[int] = ()) -> list[int]:
        assert not special
        key = text, None if list(after) in ([], [self.bos_id]) else after[-1]  # the text begins after a bos too
        return [self.ids.setdefault(key, 100 + len(self.ids))] if text else []

    def pieces(self, ids: list[int]) -> list[str | int]:
        """Each text, and the ids of special tokens. Each text must have been encoded after the token before it."""
        keys = {index: key for key, index in self.ids.items()}
        for index, before in zip(ids, [None, *ids]):
            assert index not in keys or keys[index][1] == before
        return [keys[index][0] if index in keys else index for index in ids]


def test_pieces_go_from_one_special_token_to_the_next():
    stop, image = 2, 3
    tokenizer = PieceTokenizer("</s>", "<image>")
    [bos, *ids], labels = encode_conversation(TWO_TURNS, tokenizer, TEMPLATES["v1"], num_image_tokens=2)
    assert bos == tokenizer.bos_id
    assert tokenizer.pieces(ids) == [
        SYSTEM.replace("human", "user") + " USER: ",
        image,
        image,
        "\nWhat is this? ASSISTANT:",
        " A red fish.",
        stop,
        "USER: Where is it? ASSISTANT:",
        " In the sea.",
        stop,
    ]
    assert labels == [-100] * 5 + [ids[4], stop, -100, ids[7], stop]


def test_stop_that_is_no_special_token_is_text():
    """As in LLaMA's vocabulary, which has no ###."""
    tokenizer = PieceTokenizer()
    ids, _ = encode_conversation(talk("What?", "A fish.", "Where?"), tokenizer, TEMPLATES["v0"])
    assert tokenizer.pieces(ids[1:]) == [
        f"{SYSTEM}###\nHuman: What?###\nAssistant:",
        " A fish.###",
        "\n",
        "Human: Where?###\nAssistant:",
    ]


@pytest.mark.parametrize("template", WRITTEN)
def test_one_token_begins_the_text_where_the_tokenizer_wants_it(tokenizer, template):
    turns = TWO_TURNS[:2]
    without, labels = encode_conversation(turns, tokenizer, TEMPLATES[template])
    name = "<|begin_of_text|>" if template == "llama-3" else "<s>"
    eager = copy.copy(tokenizer)
    eager.bos_id, eager.add_bos = tokenizer.special[name], True
    ids, eager_labels = encode_conversation(turns, eager, TEMPLATES[template])
    if template in ("llama-2", "llama-3"):  # written by the template itself
        assert (ids, eager_labels) == (without, labels) and ids[0] == eager.bos_id
    else:
        assert (ids, eager_labels) == ([eager.bos_id, *without], [-100, *labels])
    assert ids.count(eager.bos_id) == 1


def test_stage_1_has_the_form_of_the_brief_template(tokenizer):
    note = "X_q, X_v <STOP> \n Assistant: X_a <STOP> \n"
    asked, caption = "Describe the image concisely.", "A red fish at sea."
    text = note.replace(", ", "\n").replace(" <STOP> ", "###").replace("\n A", "\nA")
    text = text.replace("X_q", asked).replace("X_v", "<image>").replace("X_a", caption)
    turns = talk(f"<image>\n{asked}", caption)
    ids, labels = encode_conversation(turns, tokenizer, TEMPLATES["brief"], num_image_tokens=1, image_first=False)
    assert tokenizer.decode(ids) == text == f"{asked}\n<image>###\nAssistant: {caption}###\n"
    assert tokenizer.decode([label for label in labels if label != -100]) == f" {caption}###"


def test_labels_are_the_answers_and_their_stops(tokenizer):
    ids, labels = encode_conversation(TWO_TURNS, tokenizer, num_image_tokens=5)
    assert len(ids) == len(labels)
    assert all(label in (-100, index) for index, label in zip(ids, labels))
    assert tokenizer.decode([label for label in labels if label != -100]) == " A red fish.### In the sea.###"


@pytest.mark.parametrize("template", ANSWERS)
def test_labels_agree_with_a_search_through_the_text(tokenizer, template):
    """Byte by byte: the loss covers exactly the text from an answer's beginning to the end of its stop."""
    rng = random.Random(0)
    for _ in range(300):
        turns = fitting(random_talk(rng), template)
        ids, labels = encode_conversation(turns, tokenizer, TEMPLATES[template], 3, image_first=rng.random() < 0.5)
        assert len(ids) == len(labels)
        tokens = [tokenizer.decode_bytes([index]) for index in ids]
        mask = [label != -100 for label, token in zip(labels, tokens) for _ in token]
        found = list(re.finditer(ANSWERS[template], b"".join(tokens), re.DOTALL))
        first = LEARNT[template][0]
        expected = [first.replace("A red fish.", turn["value"]) for turn in turns[1::2]]
        assert [match[1].decode() for match in found] == expected
        learnt = {place for match in found for place in range(*match.span(1))}
        assert mask == [place in learnt for place in range(len(mask))]
        assert all(label in (-100, index) for index, label in zip(ids, labels))


@pytest.mark.parametrize("written", ["<image>\nWhat is this?", "What is this?\n<image>", "What is <image>this?"])
def test_picture_goes_before_or_behind_the_question(written):
    assert place_image(written, image_first=True) == "<image>\nWhat is this?"
    assert place_image(written, image_first=False) == "What is this?\n<image>"
    assert place_image(" What? ", image_first=True) == place_image(" What? ", image_first=False) == " What? "


@pytest.mark.parametrize("template", ["v0", "brief"])
@pytest.mark.parametrize("written", ["<image>\nWhat is this?", "What is this?\n<image>", "What is <image>this?"])
def test_picture_is_where_the_coin_says(tokenizer, template, written):
    for number in (1, 7, 64):
        for first, text in ((True, "IMAGES\nWhat is this?###"), (False, "What is this?\nIMAGES###")):
            ids, _ = encode_conversation(talk(written, "A fish."), tokenizer, TEMPLATES[template], number, first)
            assert ids.count(tokenizer.image_id) == number
            assert text.replace("IMAGES", "<image>" * number) in tokenizer.decode(ids)


def test_only_the_first_question_depends_on_the_coin(tokenizer):
    before, after = (
        tokenizer.decode(encode_conversation(TWO_TURNS, tokenizer, image_first=first)[0]).split("###")
        for first in (True, False)
    )
    assert [one == other for one, other in zip(before, after)] == [True, False, True, True, True, True]


def test_without_a_picture_the_coin_changes_nothing(tokenizer):
    turns = talk("What is red?", "A fish.")
    encoded = encode_conversation(turns, tokenizer, image_first=True)
    assert encoded == encode_conversation(turns, tokenizer, image_first=False)
    assert tokenizer.image_id not in encoded[0]


@pytest.mark.parametrize("template", WRITTEN)
def test_a_question_at_the_end_leaves_the_answer_to_be_written(tokenizer, template):
    turns = TWO_TURNS if template != "plain" else TWO_TURNS[:2]
    ids, labels = encode_conversation(turns[:-1], tokenizer, TEMPLATES[template], num_image_tokens=1)
    whole, whole_labels = encode_conversation(turns, tokenizer, TEMPLATES[template], num_image_tokens=1)
    assert whole[: len(ids)] == ids and whole_labels[: len(ids)] == labels
    rest = WRITTEN[template].removeprefix(tokenizer.decode(ids))
    assert rest.strip() == LEARNT[template][-1].strip()


@pytest.mark.parametrize("template", sorted(set(WRITTEN) - {"plain"}))
@pytest.mark.parametrize("mark", ["###", "<pad>", "</s>", "<s>", *MARKS[3:], "<image>###\nAssistant: No.###"])
def test_text_cannot_bring_in_special_tokens(tokenizer, mark, template):
    plain, _ = encode_conversation(TWO_TURNS, tokenizer, TEMPLATES[template], num_image_tokens=2)
    special = [index for index in plain if index in tokenizer.special.values()]
    asked = mark.replace("<image>", "")
    for turns in (
        talk(f"<image>\nWhat {asked} is this?", "A red fish.", "Where is it?", "In the sea."),
        talk(f"{mark if mark != asked else '<image>'} What?", "A red fish.", f"Where {asked}is it?", "In the sea."),
        talk("<image>\nWhat is this?", f"A {asked} fish{asked}.", "Where is it?", asked),
    ):
        ids, _ = encode_conversation(turns, tokenizer, TEMPLATES[template], num_image_tokens=2)
        assert [index for index in ids if index in tokenizer.special.values()] == special
        assert all(turn["value"].replace("<image>", "").strip() in tokenizer.decode(ids) for turn in turns)


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
    with pytest.raises(UserError) as error:
        encode_conversation(turns, tokenizer)
    assert "\n" not in str(error.value)


def test_error_names_the_turn(tokenizer):
    with pytest.raises(UserError, match=r"\b2\b"):
        encode_conversation([*talk("What?", "A fish."), {"from": "gpt", "value": "Yes."}], tokenizer)


LACKING = [("v1", "<image>"), ("llama-2", "<s>"), ("llama-3", "<|begin_of_text|>"), ("chatml", "<|im_start|>")]


@pytest.mark.parametrize("template, mark", LACKING)
def test_token_that_the_tokenizer_lacks_is_named(template, mark):
    with pytest.raises(UserError, match=re.escape(mark)):
        encode_conversation(TWO_TURNS, PieceTokenizer("</s>"), TEMPLATES[template])


def test_plain_is_for_one_picture_and_one_caption(tokenizer):
    for turns in (TWO_TURNS, talk("What is this?", "A fish.")):
        with pytest.raises(UserError, match="picture"):
            encode_conversation(turns, tokenizer, TEMPLATES["plain"])


def messages(turns: list[dict], as_parts: bool) -> list[dict]:
    """Turns as messages for transformers."""
    out = []
    for turn in turns:
        content = turn["value"].replace("<image>", "").strip()
        if as_parts:
            content = [{"type": "text", "text": content}, *([{"type": "image"}] if "<image>" in turn["value"] else [])]
        out.append({"role": "user" if turn["from"] == "human" else "assistant", "content": content})
    return out


@pytest.mark.parametrize("template", WRITTEN)
def test_chat_template_writes_the_same_text(folder, tokenizer, template):
    other = AutoTokenizer.from_pretrained(folder)
    odd = talk("<image>\nIs \"{{ x }}\" 'it'? {% if %}", "It is \\n {# no #}.", "你好?", "🙂")
    for turns in (TWO_TURNS, TWO_TURNS[:3], TWO_TURNS[:2], TWO_TURNS[:1], odd, talk(*"abcd")):
        has_picture = "<image>" in turns[0]["value"]
        if template == "plain" and (not has_picture or len(turns) > 2):
            continue
        ids, _ = encode_conversation(turns, tokenizer, TEMPLATES[template], num_image_tokens=1)
        for as_parts in (True,) if has_picture else (True, False):
            text = other.apply_chat_template(
                messages(turns, as_parts),
                chat_template=to_jinja(vars(TEMPLATES[template])),
                add_generation_prompt=len(turns) % 2 == 1,
                tokenize=False,
            )
            assert text == tokenizer.decode(ids)


@pytest.mark.parametrize("roles", [["system", "user"], ["assistant"], ["user", "user"], ["user", "assistant", "tool"]])
def test_chat_template_refuses_what_we_cannot_write(folder, roles):
    said = [{"role": role, "content": "Yes."} for role in roles]
    with pytest.raises(TemplateError, match="roles must be user, assistant"):
        AutoTokenizer.from_pretrained(folder).apply_chat_template(said, chat_template=to_jinja(vars(TEMPLATES["v1"])))


def test_coin_does_not_change_from_version_to_version():
    """The values are stored here, because a run resumed with a later version must see the same rows."""
    assert "".join("qv"[image_goes_first(0, 0, row)] for row in range(16)) == "vqvqqvvvvqqqvqvq"


def test_coin_is_fair_and_other_epochs_and_seeds_toss_it_again():
    first = [image_goes_first(0, 0, row) for row in range(10_000)]
    for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1)):
        tosses = [image_goes_first(seed, epoch, row) for row in range(10_000)]
        assert 0.48 < sum(tosses) / len(tosses) < 0.52
        same = sum(one == other for one, other in zip(first, tosses)) / len(first)
        assert same == 1 if (seed, epoch) == (0, 0) else 0.48 < same < 0.52


def test_coin_of_a_row_says_nothing_about_the_rows_after_it():
    tosses = [image_goes_first(3, 2, row) for row in range(10_000)]
    for step in range(1, 9):
        pairs = list(zip(tosses, tosses[step:]))
        assert all(0.23 < pairs.count(pair) / len(pairs) < 0.27 for pair in set(pairs)) and len(set(pairs)) == 4


def test_coin_of_a_row_is_tossed_anew_each_epoch():
    heads = [sum(image_goes_first(0, epoch, row) for epoch in range(40)) for row in range(200)]
    assert min(heads) > 5 and max(heads) < 35 and 18 < sum(heads) / len(heads) < 22
