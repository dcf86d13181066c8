"""SentencePiece BPE on many texts, next to transformers' LlamaTokenizer, and files that are faulty or not supported."""

import json

import pytest
import sentencepiece
import tokenizers
from make_tokenizers import family_texts, sentencepiece_file, train_llama, write
from test_sentencepiece_bpe import FORMS, in_form, metaspace
from transformers import LlamaTokenizer

from minillava.errors import UserError
from minillava.inputs.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def trained() -> dict:
    return train_llama(None, None)


@pytest.fixture(scope="module")
def llama_file() -> bytes:
    return sentencepiece_file()


@pytest.mark.parametrize("form", FORMS)
def test_ids_of_many_texts_equal_those_of_tokenizers(trained, tmp_path, form):
    stored = in_form(trained, form)
    mine = Tokenizer.from_pretrained(write(tmp_path, tokenizer=stored))
    theirs = tokenizers.Tokenizer.from_str(json.dumps(stored))
    used = set()
    for text in family_texts(4000, 21):
        ids = mine.encode(text)
        assert ids == theirs.encode(text, add_special_tokens=False).ids, repr(text)
        used.update(ids)
    assert len(used) > 0.5 * mine.vocab_size


def test_ids_of_many_texts_equal_those_of_sentencepiece(llama_file, tmp_path):
    mine = Tokenizer.from_pretrained(write(tmp_path, model=llama_file))
    theirs = sentencepiece.SentencePieceProcessor(model_proto=llama_file)
    used = set()
    for text in family_texts(5000, 22):
        ids = mine.encode(text, special=False)
        assert ids == theirs.encode(text), repr(text)
        used.update(ids)
    assert len(used) > 0.5 * mine.vocab_size


def test_long_texts_are_encoded_too(llama_file, tmp_path):
    """Texts of 100,000 characters. If the time grew quadratically, this test would not end."""
    mine = Tokenizer.from_pretrained(write(tmp_path, model=llama_file))
    theirs = sentencepiece.SentencePieceProcessor(model_proto=llama_file)
    for text in ("a" * 100_000, "the cat sat on a mat" * 5_000):
        assert mine.encode(text) == theirs.encode(text)


@pytest.mark.parametrize("options", [{}, {"legacy": False}, {"add_prefix_space": False}])
def test_other_than_legacy_ids_equal_those_of_transformers(llama_file, tmp_path, options):
    """The ids equal those of LlamaTokenizer, given the same vocabulary and merges."""
    config = {"tokenizer_class": "LlamaTokenizer", **options}
    mine = Tokenizer.from_pretrained(write(tmp_path, model=llama_file, tokenizer_config=config))
    mine.save_pretrained(tmp_path)
    model = json.loads((tmp_path / "tokenizer.json").read_bytes())["model"]
    theirs = LlamaTokenizer(vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]], **options)
    for text in family_texts(1000, 12):
        assert mine.encode(text) == theirs(text, add_special_tokens=False).input_ids, repr(text)


FAULTS = {
    "no bytes": ("neither a ByteLevel .* nor byte_fallback", lambda model: {**model, "byte_fallback": False}),
    "a byte missing": (
        "the vocabulary lacks <0x0A>",
        lambda model: {**model, "vocab": {k: v for k, v in model["vocab"].items() if k != "<0x0A>"}},
    ),
    "dropout": ("dropout is 0.1", lambda model: {**model, "dropout": 0.1}),
    "another model": ("'WordPiece', not BPE", lambda model: {**model, "type": "WordPiece"}),
    "two tokens, one id": ("have the same id, 0", lambda model: {**model, "vocab": {**model["vocab"], "new": 0}}),
    "a negative id": ("'new' has the id -1", lambda model: {**model, "vocab": {**model["vocab"], "new": -1}}),
    "a boolean id": ("'a' has the id True", lambda model: {**model, "vocab": {**model["vocab"], "a": True}}),
    "a token too long": ("a token of 1001 characters", lambda model: {**model, "merges": [["a", "a" * 1000]]}),
    "a merge twice": ("listed twice", lambda model: {**model, "merges": model["merges"][:1] * 2}),
    "a merge without its token": ("needs '▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁", lambda model: {**model, "merges": [["▁" * 30, "a"]]}),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_in_the_model_are_named(trained, tmp_path, fault):
    words, change = FAULTS[fault]
    with pytest.raises(UserError, match=rf"tokenizer\.json: .*{words}"):
        Tokenizer.from_pretrained(write(tmp_path, tokenizer={**trained, "model": change(trained["model"])}))


@pytest.mark.parametrize(
    "part",
    [
        {"normalizer": {"type": "NFKC"}},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"pre_tokenizer": {**metaspace("first"), "replacement": "_"}},
        {"pre_tokenizer": metaspace("sometimes")},
        {"normalizer": {"type": "Replace", "pattern": {"Regex": "("}, "content": ""}},
    ],
)
def test_what_is_not_supported_is_named(trained, tmp_path, part):
    with pytest.raises(UserError, match=r"tokenizer\.json: (normalizer|pre-tokenizer|prepend_scheme)"):
        Tokenizer.from_pretrained(write(tmp_path, tokenizer={**trained, **part}))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"byte_fallback": False}, "without byte_fallback"),
        ({"model_type": "unigram"}, "of type 1, not BPE"),
        ({"normalization_rule_name": "nmt_nfkc"}, "'nmt_nfkc' is not supported"),
        ({"user_defined_symbols": ["<image>"]}, "'<image>' is of type 4"),
        ({"treat_whitespace_as_suffix": True}, "normalisation"),
    ],
)
def test_sentencepiece_models_unlike_llamas_are_refused(tmp_path, options, words):
    with pytest.raises(UserError, match=rf"tokenizer\.model: .*{words}"):
        Tokenizer.from_pretrained(write(tmp_path, model=sentencepiece_file(**options)))
