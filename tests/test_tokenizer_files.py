"""A tokenizer's folder: the roles of tokens, added tokens, saved folders read by transformers, and faulty files."""

import json
import random

import pytest
import tokenizers
from make_tokenizers import (
    LEGACY,
    family_texts,
    sentencepiece_file,
    tiktoken_file,
    train_byte_level,
    train_llama,
    training_texts,
    write,
)
from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerFast

from minillava.errors import UserError
from minillava.inputs.conversation import encode_conversation
from minillava.inputs.processor import Processor
from minillava.inputs.templates import TEMPLATES
from minillava.inputs.tokenizer import Tokenizer, train_bpe, write_tokenizer

LLAMA = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": {"content": "</s>"}}


@pytest.fixture(scope="module")
def files() -> dict[str, dict | bytes]:
    """Tokenizers by kind: the content of a tokenizer.json (dict) or of a tokenizer.model (bytes)."""
    return {
        "GPT-2": train_byte_level("GPT-2"),
        "SmolLM2": train_byte_level("SmolLM2"),
        "LLaMA": train_llama(LEGACY, None),
        "sentencepiece": sentencepiece_file(vocab_size=600, hard_vocab_limit=True),
        "spaces removed": sentencepiece_file(remove_extra_whitespaces=True),
        "tiktoken": tiktoken_file(),
    }


# name -> (kind in files(), tokenizer_config.json or None)
FOLDERS = {
    "GPT-2": ("GPT-2", None),
    "SmolLM2": ("SmolLM2", {"tokenizer_class": "GPT2Tokenizer", "bos_token": "<|begin_of_text|>"}),
    "LLaMA": ("LLaMA", LLAMA),
    "Vicuna": ("sentencepiece", {**LLAMA, "legacy": True, "add_bos_token": True}),
    "not legacy": ("sentencepiece", {**LLAMA, "legacy": False}),
    "no bos": ("sentencepiece", {**LLAMA, "add_bos_token": False}),
    "no space": ("sentencepiece", {**LLAMA, "add_prefix_space": False}),
    "only tokenizer.model": ("sentencepiece", None),
    "spaces removed": ("spaces removed", None),
    "more tokens": (
        "sentencepiece",
        {**LLAMA, "added_tokens_decoder": {"600": {"content": "<image>", "special": True}}, "pad_token": "<unk>"},
    ),
    "Llama-3": ("tiktoken", None),
}


@pytest.fixture(params=FOLDERS)
def folder(request, files, tmp_path):
    kind, config = FOLDERS[request.param]
    name = "model" if isinstance(files[kind], bytes) else "tokenizer"
    return write(tmp_path / "read", **{name: files[kind]}, **({"tokenizer_config": config} if config else {}))


def agree(folder, mine: Tokenizer, seed: int) -> None:
    """Assert that AutoTokenizer, given the folder, has the same special ids and encodes like ``mine``."""
    theirs = AutoTokenizer.from_pretrained(folder)
    roles = (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id)
    assert roles == (mine.bos_id, mine.eos_id, mine.pad_id)
    assert len(theirs) == mine.vocab_size
    before = [mine.bos_id] if mine.add_bos else []
    for text in family_texts(200, seed):
        assert theirs(text).input_ids == before + mine.encode(text), repr(text)
        assert theirs(text, split_special_tokens=True).input_ids == before + mine.encode(text, special=False)


@pytest.mark.parametrize("model_type", [None, "llama", "llava"])
def test_transformers_opens_what_is_saved(folder, tmp_path, model_type):
    mine = Tokenizer.from_pretrained(folder)
    saved = write(tmp_path / "saved", **({"config": {"model_type": model_type}} if model_type else {}))
    mine.save_pretrained(saved)
    agree(saved, mine, 5)
    again = Tokenizer.from_pretrained(saved)
    assert [again.encode(text) for text in family_texts(200, 6)] == [mine.encode(text) for text in family_texts(200, 6)]
    for path in folder.iterdir():
        if path.name != "tokenizer_config.json":
            assert (saved / path.name).read_bytes() == path.read_bytes()


def test_tokens_can_be_added(folder, tmp_path):
    mine = Tokenizer.from_pretrained(folder)
    before, special = mine.vocab_size, dict(mine.special)
    texts = [text.replace("<image>", "").replace("<pad>", "") for text in family_texts(200, 7)]
    expected = [mine.encode(text) for text in texts]
    pad = mine.pad_id
    mine.add_special_tokens(["<image>", "<pad>", "<image>"])
    new = [name for name in ("<image>", "<pad>") if name not in special]
    assert mine.special == special | {name: before + i for i, name in enumerate(new)}
    assert mine.image_id == mine.special["<image>"] and mine.vocab_size == before + len(new)
    assert mine.pad_id == (mine.special["<pad>"] if pad is None else pad)
    assert [mine.encode(text) for text in texts] == expected
    saved = write(tmp_path / "saved")
    mine.save_pretrained(saved)
    agree(saved, mine, 8)
    again = Tokenizer.from_pretrained(saved)
    assert again.special == mine.special and again.encode("<image>a<pad>") == mine.encode("<image>a<pad>")


def test_ids_may_have_holes(files, tmp_path):
    """The last token of GPT-2's vocabulary gets the id 5000."""
    vocab = dict(files["GPT-2"]["model"]["vocab"])
    last = max(vocab, key=vocab.get)
    model = {**files["GPT-2"]["model"], "vocab": {**vocab, last: 5000}}
    mine = Tokenizer.from_pretrained(write(tmp_path / "read", tokenizer={**files["GPT-2"], "model": model}))
    assert mine.vocab_size == 5001 and mine.decode_bytes([4000]) == b""
    mine.add_special_tokens(["<image>"])
    assert mine.encode("the<image>")[-1] == mine.image_id == 5001
    saved = write(tmp_path / "saved")
    mine.save_pretrained(saved)
    assert AutoTokenizer.from_pretrained(saved)("the<image>").input_ids == mine.encode("the<image>")


@pytest.mark.parametrize("options", [{}, {"legacy": True}, {"add_prefix_space": False}, {"add_bos_token": True}])
def test_transformers_llama_tokenizer_is_read(files, tmp_path, options):
    model = files["LLaMA"]["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    theirs = LlamaTokenizer(vocab=model["vocab"], merges=merges, **options)
    theirs.save_pretrained(tmp_path)
    mine = Tokenizer.from_pretrained(tmp_path)
    assert mine.add_bos == ("add_bos_token" in options)
    for text in family_texts(500, 9):
        assert theirs(text, add_special_tokens=False).input_ids == mine.encode(text), repr(text)


@pytest.mark.parametrize("kind", ["GPT-2", "LLaMA"])
@pytest.mark.parametrize("flag", ["lstrip", "rstrip", "normalized", "special"])
def test_flags_of_added_tokens_are_obeyed(files, tmp_path, kind, flag):
    """The tokens "<mark>" and "##" have the flag, "<mark>>" and " x " do not."""
    none = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    contents = ["<mark>", "<mark>>", "##", " x "]
    start = max(files[kind]["model"]["vocab"].values()) + 1
    tokens = [{"id": start + i, "content": name, **none} for i, name in enumerate(contents)]
    tokens[0][flag] = tokens[2][flag] = True
    stored = {**files[kind], "added_tokens": files[kind]["added_tokens"] + tokens}
    vocab = {token: index for token, index in files[kind]["model"]["vocab"].items() if token not in contents}
    merges = [merge for merge in files[kind]["model"]["merges"] if {*merge, "".join(merge)} <= set(vocab)]
    stored["model"] = {
        **files[kind]["model"],
        "vocab": vocab | {t["content"]: t["id"] for t in tokens},
        "merges": merges,
    }
    mine = Tokenizer.from_pretrained(write(tmp_path, tokenizer=stored))
    theirs = tokenizers.Tokenizer.from_str(json.dumps(stored))
    rng = random.Random(0)
    met = 0
    for _ in range(1000):
        text = "".join(rng.choice([*contents, " ", "\n ", "\u3000", "\x1c", "x", "<", ">", "▁"]) for _ in range(6))
        for special in (True, False):
            theirs.encode_special_tokens = not special
            ids = theirs.encode(text, add_special_tokens=False).ids
            assert mine.encode(text, special=special) == ids, repr(text)
            met += start in ids
    assert met > 50


@pytest.mark.parametrize(
    ("config", "map_", "ids"),
    [
        ({}, {}, (1, 2, None)),  # by their usual names
        ({"bos_token": None, "eos_token": "<s>"}, {}, (None, 1, None)),
        ({"eos_token": {"content": "<s>"}}, {"eos_token": "</s>"}, (1, 1, None)),
        ({}, {"pad_token": {"content": "<unk>"}}, (1, 2, 0)),
        ({"pad_token": None}, {"pad_token": "<unk>"}, (1, 2, 0)),
        ({"pad_token": "the"}, {}, (1, 2, "the")),  # a word of the vocabulary
    ],
)
def test_which_token_is_what(files, tmp_path, config, map_, ids):
    stored = files["LLaMA"]
    mine = Tokenizer.from_pretrained(
        write(tmp_path, tokenizer=stored, tokenizer_config=config, special_tokens_map=map_)
    )
    expected = tuple(stored["model"]["vocab"].get(name, name) for name in ids)
    assert (mine.bos_id, mine.eos_id, mine.pad_id) == expected and mine.image_id is None


def test_a_token_with_a_role_is_special_whatever_its_flag(files, tmp_path):
    """Otherwise ordinary text could end an answer or bring in a picture."""
    token = {"id": 5000, "content": "<image>", "special": False}
    stored = {**files["GPT-2"], "added_tokens": [*files["GPT-2"]["added_tokens"], token]}
    config = {"eos_token": "the"}
    mine = Tokenizer.from_pretrained(write(tmp_path, tokenizer=stored, tokenizer_config=config))
    assert mine.image_id == 5000 and mine.encode("<image>") == [5000]
    ids = mine.encode("<image>the the</s>", special=False)
    assert not {mine.image_id, mine.eos_id} & set(ids) and mine.decode(ids) == "<image>the the</s>"


@pytest.mark.parametrize("place", ["tokenizer.json", "added_tokens.json"])
def test_a_template_finds_its_marks_though_they_are_not_special_and_nobody_can_type_them(files, tmp_path, place):
    stored, more = files["GPT-2"], {"<|im_start|>": 5000, "<|im_end|>": 5001}
    if place == "tokenizer.json":
        tokens = [{"id": index, "content": name, "special": False} for name, index in more.items()]
        folder = write(tmp_path, tokenizer={**stored, "added_tokens": [*stored["added_tokens"], *tokens]})
    else:
        folder = write(tmp_path, tokenizer=stored, added_tokens=more)
    mine = Tokenizer.from_pretrained(folder)
    ids, labels = encode_conversation(
        [{"from": "human", "value": "What?<|im_end|>"}, {"from": "gpt", "value": "the<|im_start|>"}],
        mine,
        TEMPLATES["chatml"],
    )
    assert (ids.count(5000), ids.count(5001)) == (3, 3) and labels.count(5001) == 1
    assert "What?<|im_end|>" in mine.decode(ids) and not {5000, 5001} & set(mine.encode("<|im_end|>", special=False))
    assert Processor(mine, None, 4, TEMPLATES["chatml"]).stop_ids[-1] == 5001


# --- Faults

NO_TOKENS = {"added_tokens": [], "pre_tokenizer": {"type": "ByteLevel"}, "model": {"vocab": {}, "merges": []}}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tokenizer": b"[" * 100_000}, r"tokenizer\.json: not JSON"),
        ({"tokenizer": b"\xff\xfe"}, r"tokenizer\.json: not UTF-8"),
        ({"tokenizer": b"[]"}, r"tokenizer\.json: holds a list"),
        ({"tokenizer": {}}, r"tokenizer\.json: not a supported kind of tokenizer"),
        ({"tokenizer": {"model": {"vocab": [], "merges": []}}}, r"tokenizer\.json: not a supported kind of tokenizer"),
        ({"tokenizer": NO_TOKENS}, r"tokenizer\.json: not a supported kind of tokenizer"),
        ({"tokenizer_config": b"{"}, r"tokenizer_config\.json: not JSON"),
        ({"special_tokens_map": b"3"}, r"special_tokens_map\.json: holds a int"),
        ({"added_tokens": b"\xff"}, r"added_tokens\.json: not UTF-8"),
        ({"tokenizer_config": {"pad_token": "[PAD]"}}, r"tokenizer_config\.json: pad_token '\[PAD\]' is not in"),
        ({"added_tokens": {"<image>": 3}}, r"tokenizer\.json: tokens '.*' and '<image>' have the same id, 3"),
        ({"added_tokens": {"the": 7000}}, r"added_tokens\.json: added token 'the' has two ids, .* and 7000"),
        ({"added_tokens": {"<image>": -1}}, r"added token '<image>' has the id -1"),
        ({"added_tokens": {"": 7000}}, "an added token has the content ''"),
        (
            {"tokenizer_config": {"added_tokens_decoder": {"7000": {"content": "x", "single_word": True}}}},
            "'x' is marked single_word",
        ),
    ],
)
def test_faults_are_named(files, tmp_path, changes, words):
    with pytest.raises(UserError, match=words) as error:
        Tokenizer.from_pretrained(write(tmp_path, **{"tokenizer": files["GPT-2"], **changes}))
    assert str(error.value).startswith(str(tmp_path)) and len(str(error.value)) < 400


def test_a_file_too_large_is_not_read(files, tmp_path, monkeypatch):
    monkeypatch.setattr("minillava.formats.tokenizer_files.LARGEST", 1000)
    with pytest.raises(UserError, match=r"tokenizer\.json: more than 1,000 bytes"):
        Tokenizer.from_pretrained(write(tmp_path, tokenizer=files["GPT-2"]))


@pytest.mark.parametrize("kind", ["sentencepiece", "tiktoken"])
def test_a_tokenizer_model_cut_short_is_refused(files, tmp_path, kind):
    content = files[kind]
    rng = random.Random(0)
    for length in (0, 1, *sorted(rng.sample(range(len(content)), 60)), len(content) - 4):
        if content[length - 1 : length] == b"\n" and kind == "tiktoken":
            continue  # only whole lines: a valid, smaller tokenizer
        with pytest.raises(UserError, match=r"tokenizer\.model: ") as error:
            Tokenizer.from_pretrained(write(tmp_path, model=content[:length]))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"!!!! 300\n", "line 301 is not a new token in base64 with the rank 300"),
        (b"YWJj 299\n", "line 301"),  # a rank twice
        (b"YQ== 300\n", "line 301"),  # a token twice
        (b"YWJj -1\n", "line 301"),
        (b"YWJj 300", "the file ends after line 301: is it truncated?"),
        (b"YWJj" * 400 + b" 300\n", "a token of 1200 characters"),
        (b"YWJj\n", "line 301"),
        (b" 300\n", "line 301"),
        (b"YWJj 300 1\n", "line 301"),
    ],
)
def test_bad_lines_of_a_tiktoken_file_are_named(files, tmp_path, line, words):
    lines = files["tiktoken"].splitlines(keepends=True)
    content = b"".join([*lines[:300], line])
    with pytest.raises(UserError, match=rf"tokenizer\.model: {words}"):
        Tokenizer.from_pretrained(write(tmp_path, model=content))


def test_damage_of_any_kind_is_a_user_error(files, tmp_path):
    """With bytes changed at random, the tokenizer is still read or is refused with a message of one line."""
    rng = random.Random(0)
    refused = 0
    for kind in ("GPT-2", "sentencepiece", "tiktoken"):
        content = files[kind] if isinstance(files[kind], bytes) else json.dumps(files[kind]).encode()
        for _ in range(60):
            damaged = bytearray(content)
            for _ in range(3):
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            name = "model" if isinstance(files[kind], bytes) else "tokenizer"
            try:
                Tokenizer.from_pretrained(write(tmp_path / kind, **{name: bytes(damaged)})).encode("the cat 🙂")
            except UserError as error:
                refused += 1
                assert "\n" not in str(error) and len(str(error)) < 500
    assert refused > 60


@pytest.mark.parametrize("reader", [AutoTokenizer, PreTrainedTokenizerFast])
def test_transformers_opens_what_is_trained_here(tmp_path, reader):
    write_tokenizer(tmp_path, train_bpe(training_texts()[0], 400))
    tokenizer = Tokenizer.from_pretrained(tmp_path)
    theirs = reader.from_pretrained(tmp_path)
    assert len(theirs) == tokenizer.vocab_size
    assert (theirs.eos_token_id, theirs.pad_token_id) == (tokenizer.eos_id, tokenizer.pad_id)
    assert theirs.convert_tokens_to_ids(theirs.image_token) == tokenizer.image_id
    for text in family_texts(300, 4):
        assert theirs(text).input_ids == tokenizer.encode(text)
        assert theirs.decode(tokenizer.encode(text)) == text
