"""SentencePiece BPE with byte fallback against `sentencepiece`, `tokenizers` and a naive BPE."""

import json
import random
import re
import time
from itertools import pairwise

import pytest
import sentencepiece
import sentencepiece.sentencepiece_model_pb2 as sentencepiece_model_pb2
import tokenizers
import torch
from make_tokenizers import ESCAPE, LEGACY, family_texts, sentencepiece_file, train_llama, write

from minillava.errors import UserError
from minillava.inputs.conversation import encode_conversation
from minillava.inputs.sentencepiece_bpe import Where
from minillava.inputs.templates import TEMPLATES
from minillava.inputs.tokenizer import Tokenizer
from minillava.model.generation import stream_text


def metaspace(scheme: str, split: bool = False) -> dict:
    return {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split}


# What transformers 5 makes of a legacy tokenizer.model.
DOUBLED = {
    "type": "Sequence",
    "normalizers": [ESCAPE, {"type": "Replace", "pattern": {"Regex": r"\A▁"}, "content": "▁▁"}],
}
FORMS = {
    "legacy": (LEGACY, None),
    "without prefix": (ESCAPE, None),
    "first": (None, metaspace("first")),
    "always": (None, metaspace("always")),
    "never": (None, metaspace("never")),
    "split": (None, metaspace("first", split=True)),
    "doubled": (DOUBLED, {"type": "Sequence", "pretokenizers": [metaspace("always")]}),
}
WITHOUT_SPACE = ("without prefix", "never")


@pytest.fixture(scope="module")
def trained() -> dict:
    return train_llama(None, None)


def in_form(trained: dict, form: str) -> dict:
    normalizer, pre_tokenizer = FORMS[form]
    steps = trained["decoder"]["decoders"]  # the last one removes the leading space
    decoder = {"type": "Sequence", "decoders": steps[:-1] if form in WITHOUT_SPACE else steps}
    return {**trained, "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "decoder": decoder}


@pytest.mark.parametrize("form", FORMS)
def test_ids_equal_those_of_tokenizers(trained, tmp_path, form):
    stored = in_form(trained, form)
    mine = Tokenizer.from_pretrained(write(tmp_path, tokenizer=stored))
    theirs = tokenizers.Tokenizer.from_str(json.dumps(stored))
    used = set()
    for special in (True, False):
        theirs.encode_special_tokens = not special
        for text in family_texts(300 if special else 100, 1):
            ids = mine.encode(text, special=special)
            want = theirs.encode(text, add_special_tokens=False).ids
            assert ids == want, f"{text!r} has the ids of tokenizers, where spaces are added as {form!r} says"
            assert mine.decode(ids) == theirs.decode(ids, skip_special_tokens=False), "decoding gives the text again"
            used.update(ids)
    assert len(used) > 0.3 * mine.vocab_size


FILES = {
    "LLaMA's settings": {},
    "no dummy prefix": {"add_dummy_prefix": False},
    "spaces removed": {"remove_extra_whitespaces": True},
}


@pytest.fixture(scope="module", params=FILES)
def model_file(request) -> bytes:
    return sentencepiece_file(**FILES[request.param])


def test_ids_equal_those_of_sentencepiece(model_file, tmp_path):
    mine = Tokenizer.from_pretrained(write(tmp_path, model=model_file))
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model_file)
    assert mine.special == {"<unk>": 0, "<s>": 1, "</s>": 2} and mine.vocab_size == theirs.vocab_size()
    assert (mine.bos_id, mine.eos_id, mine.pad_id) == (theirs.bos_id(), theirs.eos_id(), None)
    used = set()
    for text in family_texts(500, 3):
        ids = mine.encode(text, special=False)
        assert ids == theirs.encode(text), f"{text!r} has the ids of sentencepiece"
        used.update(ids)
    assert len(used) > 0.3 * mine.vocab_size


@pytest.fixture(scope="module")
def llama_file() -> bytes:
    return sentencepiece_file()


@pytest.fixture(scope="module")
def llama(tmp_path_factory, llama_file) -> Tokenizer:
    return Tokenizer.from_pretrained(write(tmp_path_factory.mktemp("llama"), model=llama_file))


def test_legacy_text_between_special_tokens_is_a_text_of_its_own(llama, llama_file):
    theirs = sentencepiece.SentencePieceProcessor(model_proto=llama_file)
    for one, two in zip(family_texts(100, 10), family_texts(100, 11)):
        assert llama.encode(one, special=False, after=[1]) == theirs.encode(one), "after the bos a text begins"
        one, two = (re.sub("</?s>|<unk>", "", text) for text in (one, two))
        want = [*theirs.encode(one), 2, *theirs.encode(two)]
        assert llama.encode(f"{one}</s>{two}") == want, "a legacy tokenizer puts a space after a special token"


def test_any_text_comes_back_as_it_was(llama):
    everything = "".join(map(chr, [*range(0, 0xD800, 13), *range(0xE000, 0x110000, 97)]))
    for text in [*family_texts(200, 4), everything]:
        text = text.replace("▁", "")  # ▁ decodes to a space
        assert llama.decode(llama.encode(text, special=False)) == text, "no character is lost"


def test_a_lone_surrogate_becomes_the_replacement_mark(llama, tokenizer):
    for mine in (llama, tokenizer):
        assert mine.decode(mine.encode("a\ud83d b")) == "a\ufffd b", "half of a surrogate pair becomes U+FFFD"
        assert mine.encode("\ud83d\ude42") == mine.encode("🙂"), "a surrogate pair is one character"


def test_encoding_time_does_not_grow_quadratically(llama):
    """A loop that looks at all pairs after each merge takes seconds for these texts, a heap a few hundredths."""
    start = time.process_time()
    for text in ("a" * 4000, "the cat sat on a mat" * 200):
        llama.encode(text)
    slow = time.process_time() - start > 1
    assert not slow, "the next merge comes from a heap: looking at all pairs again is too slow for a long text"


def test_a_character_is_its_token_or_its_bytes(trained, tmp_path):
    mine = Tokenizer.from_pretrained(write(tmp_path, tokenizer=trained))
    vocab = trained["model"]["vocab"]
    for text in family_texts(300, 5):
        expected = []
        for character in text:
            names = [f"<0x{byte:02X}>" for byte in character.encode()]
            expected += [character] if character in vocab else names
        found = list(mine._model._characters(text))
        assert found == expected, "a character is its own token, or the names of its UTF-8 bytes, the first byte first"


def test_with_ranks_a_character_without_a_token_stays_a_character(llama):
    assert "Q" not in llama._model._vocab and "☃" not in llama._model._vocab
    found = list(llama._model._characters("aQ☃"))
    assert found == ["a", "Q", "☃"], "with a tokenizer.model all characters stay: encode() makes bytes after merging"


@pytest.mark.parametrize("form", ["legacy", "without prefix", "doubled"])
def test_a_text_is_normalised_as_tokenizers_normalises_it(trained, tmp_path, form):
    stored = in_form(trained, form)
    model = Tokenizer.from_pretrained(write(tmp_path, tokenizer=stored))._model
    theirs = tokenizers.Tokenizer.from_str(json.dumps(stored)).normalizer
    for text in family_texts(300, 6):
        expected = theirs.normalize_str(text)
        for where in (Where.START, Where.AFTER_TOKEN):
            assert model.normalize(text, where) == expected, "each step replaces what its pattern finds, in order"
        inside = model.normalize(text, Where.INSIDE)
        assert inside == text.replace(" ", "▁"), "inside a text the step that adds the space is left out"


def naive(ids: list[str], merges: list[tuple[str, str]]) -> list[str]:
    """BPE that looks at all pairs again after each merge."""
    while possible := [(merges.index(pair), i) for i, pair in enumerate(pairwise(ids)) if pair in merges]:
        _, i = min(possible)
        ids = [*ids[:i], ids[i] + ids[i + 1], *ids[i + 2 :]]
    return ids


def test_any_list_of_merges_gives_what_naive_bpe_gives(trained, tmp_path):
    """Merges are in random order: some come before the merges that make their parts."""
    rng = random.Random(0)
    for _ in range(40):
        pieces, merges = ["a", "b", "c"], []
        for _ in range(rng.randrange(3, 14)):
            merges.append((rng.choice(pieces), rng.choice(pieces)))
            pieces.append("".join(merges[-1]))
        merges = rng.sample(list(dict.fromkeys(merges)), len(set(merges)))
        tokens = list(dict.fromkeys([*pieces, *(f"<0x{byte:02X}>" for byte in range(256))]))
        model = {**trained["model"], "vocab": {token: i for i, token in enumerate(tokens)}, "merges": merges}
        stored = {**trained, "added_tokens": [], "model": model}
        mine = Tokenizer.from_pretrained(write(tmp_path, tokenizer=stored))
        for _ in range(50):
            text = "".join(rng.choices("abc", k=rng.randrange(12)))
            found = mine._model._merge(list(text))
            assert found == naive(list(text), merges), (
                "the pair of lowest rank is joined first, the leftmost of several, until no pair can be joined"
            )


def test_merges_make_no_added_token(trained, tmp_path):
    """Otherwise ordinary text could produce it."""
    name = next("".join(merge) for merge in trained["model"]["merges"] if "▁" not in "".join(merge))
    token = {**trained["added_tokens"][-1], "id": trained["model"]["vocab"][name], "content": name}
    stored = {**trained, "added_tokens": [*trained["added_tokens"], token]}
    plain, mine = (
        Tokenizer.from_pretrained(write(tmp_path / n, tokenizer=t)) for n, t in (("a", trained), ("b", stored))
    )
    assert plain.encode(name, special=False)[-1:] == mine.encode(name)[-1:] == [token["id"]]
    assert token["id"] not in mine.encode(name, special=False)


@pytest.mark.parametrize("form", FORMS)
def test_a_text_in_parts_has_the_ids_of_the_whole(trained, tmp_path, form):
    """Parts end where no merge can cross: at a special token, or at a character that is encoded as bytes."""
    mine = Tokenizer.from_pretrained(write(tmp_path, tokenizer=in_form(trained, form)))
    rng, seam = random.Random(0), "\U0010fffd"
    spaces = 0
    for texts in zip(*(family_texts(60, seed) for seed in range(3))):
        parts = [part for text in texts for part in (text + seam, rng.choice(["<s>", seam]))]
        ids, alone = [], []
        for part in parts:
            ids += mine.encode(part, after=ids)
            alone += mine.encode(part)
        assert ids == mine.encode("".join(parts)), "a text after others gets a space where the whole has one"
        spaces += alone != ids
    assert (spaces > 0) == (form not in WITHOUT_SPACE)  # "after" does make a difference


def test_a_text_after_only_the_bos_is_at_the_beginning(trained, tmp_path):
    mine = Tokenizer.from_pretrained(write(tmp_path, tokenizer=in_form(trained, "first")))
    assert mine.encode("the cat", after=[mine.bos_id]) == mine.encode("the cat")
    assert mine.encode("the cat", after=[mine.eos_id]) != mine.encode("the cat")


@pytest.mark.parametrize("config", [{}, {"tokenizer_class": "LlamaTokenizer"}, {"legacy": False}, {"legacy": True}])
def test_the_authors_layout_encodes_what_follows_a_picture_from_a_fresh_start(llama_file, tmp_path, config):
    """The authors' tokenizer_image_token() cuts a prompt at <image> and encodes each part by itself, with the tokenizer
    of transformers 4, which is legacy unless the folder says otherwise and encodes the texts between special tokens one
    by one, each with a space in front (without legacy, only the first text of a part)."""
    theirs = sentencepiece.SentencePieceProcessor(model_proto=llama_file)
    folder = write(tmp_path, model=llama_file, tokenizer_config=config)
    mine = Tokenizer.from_pretrained(folder, original=True)
    mine.add_special_tokens(["<image>"])
    turns = [
        {"from": "human", "value": "<image>\nWhat is this?"},
        {"from": "gpt", "value": "The cat."},
        {"from": "human", "value": "Others?"},
        {"from": "gpt", "value": "that mat"},
    ]
    for image_first in (True, False):
        ids, _ = encode_conversation(turns, mine, TEMPLATES["v1"], num_image_tokens=3, image_first=image_first)
        question = "<image>\nWhat is this?" if image_first else "What is this?\n<image>"
        system = TEMPLATES["v1"].opening
        text = f"{system}{question} ASSISTANT: The cat.</s>USER: Others? ASSISTANT: that mat</s>"
        expected = [1]
        for number, part in enumerate(text.split("<image>")):
            expected += [mine.image_id] * 3 * (number > 0)
            for place, between in enumerate(part.split("</s>")):
                expected += [2] * (place > 0)
                if config == {"legacy": False} and place and between:  # no space in front: encoded behind a character
                    expected += theirs.encode("!" + between)[len(theirs.encode("!")) :]
                else:
                    expected += theirs.encode(between)
        assert ids == expected
        space, after = theirs.piece_to_id("▁"), ids.index(mine.image_id) + 3
        assert not image_first or ids[after : after + 2] == [space, theirs.piece_to_id("<0x0A>")]


# Scores as they are in files: LLaMA's runs of spaces share one, tokens added later have 0.
TIES = {
    "runs of spaces": lambda rng, index, piece: -1e9 if set(piece.piece) == {"▁"} else piece.score,
    "tokens of score 0": lambda rng, index, piece: 0.0 if index % 5 == 0 else piece.score,
    "three scores": lambda rng, index, piece: -float(rng.randrange(3)),
    "one score": lambda rng, index, piece: 0.0,
}
ADDED_LATER = ["mat mat", "héé", "你好", "🙂👩", "###", "▁▁▁", "hersthers", "q🙂"]  # some with unknown characters


@pytest.fixture(scope="module")
def tied_models():
    """LLaMA-like models with equal scores, edited in the protobuf: name -> contents of tokenizer.model."""
    models = {}
    for name, score in TIES.items():
        model, rng = sentencepiece_model_pb2.ModelProto(), random.Random(name)
        model.ParseFromString(sentencepiece_file(add_dummy_prefix=True))
        for index, piece in enumerate(model.pieces):
            if piece.type == piece.NORMAL:
                piece.score = score(rng, index, piece)
        known = {piece.piece for piece in model.pieces}
        for text in ADDED_LATER if name != "runs of spaces" else []:
            if text.replace(" ", "▁") not in known:
                model.pieces.add(piece=text.replace(" ", "▁"), score=0.0)
        models[name] = model.SerializeToString()
    return models


def spm_texts(count: int) -> list[str]:
    """Fuzzed strings without names of special tokens, which `sentencepiece` reads as text, with many ties to decide."""
    rng = random.Random(11)
    texts = [re.sub(r"<(/?s|unk)>|\0", "", text) for text in family_texts(count // 2, 12)]
    pieces = ["▁", " ", "  ", "      ", "the", "he", "hers", "mat", "a", "aa", "x", *ADDED_LATER]
    return texts + ["".join(rng.choices(pieces, k=rng.randrange(1, 14))) for _ in range(count - len(texts))]


@pytest.mark.parametrize("name", TIES)
def test_pieces_of_equal_score_are_joined_as_by_sentencepiece(tied_models, tmp_path, name):
    """Of equal scores the leftmost pair is joined first; also after <image> is added, and after saving and loading."""
    theirs = sentencepiece.SentencePieceProcessor(model_proto=tied_models[name])
    mine = Tokenizer.from_pretrained(write(tmp_path / "theirs", model=tied_models[name]))
    texts = spm_texts(800)
    expected = [theirs.encode(text) for text in texts]
    assert [mine.encode(text) for text in texts] == expected, "of pairs with one rank the leftmost is joined first"
    mine.add_special_tokens(["<image>", "<pad>"])
    texts, expected = texts[::8], expected[::8]
    assert [mine.encode(text, special=False) for text in texts] == expected
    for place in ("once", "twice"):
        (tmp_path / place).mkdir()
        mine.save_pretrained(tmp_path / place)
        mine = Tokenizer.from_pretrained(tmp_path / place)
        assert [mine.encode(text, special=False) for text in texts] == expected
    assert mine.encode("<image>") == [mine.image_id] == [len(theirs)]


def test_runs_of_spaces_are_the_same_in_the_saved_tokenizer_json(tied_models, tmp_path):
    """tokenizer.json has no equal ranks, but longer runs first gives what the leftmost pair first gives."""
    Tokenizer.from_pretrained(write(tmp_path, model=tied_models["runs of spaces"])).save_pretrained(tmp_path)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    spm = sentencepiece.SentencePieceProcessor(model_proto=tied_models["runs of spaces"])
    for length in range(1, 60):
        text = "the" + " " * length + "mat"
        assert theirs.encode(text, add_special_tokens=False).ids == spm.encode(text), length


def test_a_model_whose_ranks_are_missing_is_named(tied_models, tmp_path):
    mine = Tokenizer.from_pretrained(write(tmp_path, model=tied_models["one score"]))
    mine.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.model").unlink()
    with pytest.raises(UserError, match=r"tokenizer\.model: No such file"):
        Tokenizer.from_pretrained(tmp_path)


def test_a_stream_shows_whole_characters(llama):
    text = "the cat 中文字 🚀✨ \U00013000\U00013001 Привет!"
    ids = llama.encode("so", special=False)
    rest = llama.encode(text, special=False, after=ids)
    assert len(rest) > len(text)  # characters of several tokens
    pieces = list(stream_text((torch.tensor([index]) for index in rest), llama, "###", [llama.eos_id]))
    assert "".join(pieces) == text and "\ufffd" not in "".join(pieces)
    assert all(piece in text for piece in pieces) and len(pieces) > 20
