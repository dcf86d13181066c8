"""Byte-level BPE, compared with `tokenizers` and `tiktoken` on tokenizers trained here and on random merges."""

import json
import random
from itertools import product

import pytest
import tiktoken
import tokenizers
from make_tokenizers import BYTE_LEVEL, LLAMA3_PATTERN, family_texts, tiktoken_file, train_byte_level, write
from tiktoken.load import load_tiktoken_bpe
from transformers.convert_slow_tokenizer import TikTokenConverter

from minillava.errors import UserError
from minillava.inputs.byte_bpe import rank_tokens
from minillava.inputs.tokenizer import Tokenizer


@pytest.fixture(scope="module", params=BYTE_LEVEL)
def stored(request) -> dict:
    return train_byte_level(request.param)


def test_ids_equal_those_of_tokenizers(stored, tmp_path):
    mine = Tokenizer.from_pretrained(write(tmp_path, tokenizer=stored))
    theirs = tokenizers.Tokenizer.from_str(json.dumps(stored))
    used = set()
    for special in (True, False):
        theirs.encode_special_tokens = not special
        for text in family_texts(5000 if special else 2000, 1):
            ids = mine.encode(text, special=special)
            assert ids == theirs.encode(text, add_special_tokens=False).ids, repr(text)
            assert mine.decode(ids) == text
            used.update(ids)
    assert len(used) > 0.6 * mine.vocab_size == 0.6 * theirs.get_vocab_size()


def test_the_pattern_of_llama_3_is_that_of_transformers():
    assert TikTokenConverter().pattern == LLAMA3_PATTERN


@pytest.mark.parametrize("pattern", [LLAMA3_PATTERN, r"\p{L}+|\p{N}"])
def test_a_split_that_removes_all_but_its_matches_is_read_as_tokenizers_reads_it(tmp_path, pattern):
    """As in conversions from tiktoken: "Removed" with "invert" is "Isolated" where the pattern covers all text."""
    stored = train_byte_level("Llama-3")
    isolated = Tokenizer.from_pretrained(write(tmp_path, tokenizer=stored))
    split = stored["pre_tokenizer"]["pretokenizers"][0]
    split |= {"pattern": {"Regex": pattern}, "behavior": "Removed", "invert": True}
    mine = Tokenizer.from_pretrained(write(tmp_path, tokenizer=stored))
    theirs = tokenizers.Tokenizer.from_str(json.dumps(stored))
    dropped = 0
    for text in family_texts(1000, 2):
        ids = mine.encode(text)
        assert ids == theirs.encode(text, add_special_tokens=False).ids, repr(text)
        dropped += ids != isolated.encode(text)
    assert (dropped > 500) == (pattern != LLAMA3_PATTERN) and (dropped == 0) == (pattern == LLAMA3_PATTERN)


def bare(merges: list[tuple[str, str]], vocab: dict[str, int], ignore_merges: bool) -> dict:
    model = {"type": "BPE", "vocab": vocab, "merges": merges, "ignore_merges": ignore_merges, "dropout": None}
    model |= {"unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None}
    model |= {"fuse_unk": False, "byte_fallback": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    parts = {"normalizer": None, "pre_tokenizer": byte_level, "post_processor": None, "decoder": byte_level}
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], **parts, "model": model}


STRINGS = ["".join(letters) for length in range(1, 8) for letters in product("abc", repeat=length)]


def test_any_list_of_merges_gives_the_ids_of_tokenizers(tmp_path):
    """The lists hold merges that are never applied, several merges for one token, and merges listed before those that
    make their parts. Ids are unordered, and some tokens have no merge: only ignore_merges finds them."""
    rng = random.Random(0)
    unreached = whole_words = 0
    for number in range(120):
        pieces, merges = ["a", "b", "c"], []
        for _ in range(rng.randrange(3, 14)):
            merges.append((rng.choice(pieces), rng.choice(pieces)))
            pieces.append("".join(merges[-1]))
        merges = list(dict.fromkeys(merges))
        if number % 4 > 1:
            rng.shuffle(merges)
        tokens = sorted({*pieces, *rng.sample(STRINGS[:100], 5), *map(chr, range(0x21, 0x7F))})
        ids = rng.sample(range(500), len(tokens))
        stored = bare(merges, dict(zip(tokens, ids)), ignore_merges=number % 2 == 0)
        theirs = tokenizers.Tokenizer.from_str(json.dumps(stored))
        mine = Tokenizer.from_pretrained(write(tmp_path, tokenizer=stored))
        ranks = rank_tokens([(left.encode(), right.encode()) for left, right in merges])
        unreached += len(ranks) - 256 < len({"".join(merge) for merge in merges})
        whole_words += number % 2 == 0 and any(token.encode() not in ranks for token in tokens)
        for text in rng.sample(STRINGS, 200):
            assert mine.encode(text) == theirs.encode(text).ids, (merges, text)
    assert unreached >= 10 and whole_words >= 10


def test_a_list_of_every_pair_that_is_not_token_by_token_keeps_its_order(tmp_path):
    """Both pairs of "abc" are listed, but the one that BPE uses comes after "cd"."""
    merges = [("a", "b"), ("a", "bc"), ("c", "d"), ("ab", "c"), ("b", "c")]
    tokens = sorted({*map(chr, range(0x21, 0x7F)), *map("".join, merges)})
    stored = bare(merges, {token: index for index, token in enumerate(tokens)}, ignore_merges=False)
    mine = Tokenizer.from_pretrained(write(tmp_path, tokenizer=stored))
    expected = tokenizers.Tokenizer.from_str(json.dumps(stored)).encode("abcd").ids
    assert mine.encode("abcd") == expected == [tokens.index("ab"), tokens.index("cd")]


@pytest.mark.parametrize("family", ["GPT-2", "Llama-3"])
def test_a_character_newer_than_the_unicode_of_tokenizers_is_no_letter_here_either(tmp_path, family):
    """`regex` may know newer letters than `tokenizers`: whether a word is joined with one shows if it is a letter."""
    stored = train_byte_level(family)
    mine = Tokenizer.from_pretrained(write(tmp_path, tokenizer=stored))
    theirs = tokenizers.Tokenizer.from_str(json.dumps(stored))
    for code in range(0x18C00, 0x19200):  # Tangut, to which new Unicode versions add letters
        text = f"'ll{chr(code)}'ll the{chr(code)}the"
        assert mine.encode(text) == theirs.encode(text, add_special_tokens=False).ids, hex(code)


# --- Llama-3's tokenizer.model


@pytest.fixture(scope="module")
def llama3(tmp_path_factory):
    return write(tmp_path_factory.mktemp("llama3"), model=tiktoken_file())


# As in Meta's llama3/tokenizer.py: the names and their order.
LLAMA3_SPECIAL = [
    "<|begin_of_text|>", "<|end_of_text|>", *[f"<|reserved_special_token_{i}|>" for i in range(4)],
    "<|start_header_id|>", "<|end_header_id|>", "<|reserved_special_token_4|>", "<|eot_id|>",
    *[f"<|reserved_special_token_{i}|>" for i in range(5, 251)],
]  # fmt: skip


def test_llama_3_file_gives_tiktokens_ids(llama3):
    mine = Tokenizer.from_pretrained(llama3)
    ranks = load_tiktoken_bpe(str(llama3 / "tokenizer.model"))
    special = {name: len(ranks) + index for index, name in enumerate(LLAMA3_SPECIAL)}
    theirs = tiktoken.Encoding("llama3", pat_str=LLAMA3_PATTERN, mergeable_ranks=ranks, special_tokens=special)
    assert mine.special == special and mine.vocab_size == len(ranks) + 256
    assert (mine.bos_id, mine.eos_id, mine.add_bos) == (len(ranks), len(ranks) + 1, True)
    for text in family_texts(5000, 2):
        assert mine.encode(text) == theirs.encode(text, allowed_special="all"), repr(text)
        assert mine.encode(text, special=False) == theirs.encode_ordinary(text)
        assert mine.decode(mine.encode(text)) == text


def test_llama_3_saved_as_json_gives_the_same_ids(llama3, tmp_path):
    """The saved file lists every pair that makes a token, as the tokenizer.json of Llama 3 on the hub does."""
    first = Tokenizer.from_pretrained(llama3)
    first.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.model").unlink()
    again = Tokenizer.from_pretrained(tmp_path)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert len(first._read.merges) > 1.2 * len({"".join(pair) for pair in first._read.merges})
    for text in family_texts(2000, 3):
        ids = first.encode(text)
        assert again.encode(text) == ids == theirs.encode(text, add_special_tokens=False).ids, repr(text)


def test_adding_a_token_keeps_the_bpe_unless_text_could_become_it(llama3):
    """Reading Llama 3's merges takes a second, so they are read once."""
    mine = Tokenizer.from_pretrained(llama3)
    model = mine._model
    mine.add_special_tokens(["<image>", "<pad>"])
    assert mine._model is model and mine.encode("<image>") == [mine.image_id]
    mine.add_special_tokens(["the"])
    assert mine._model is not model and mine.special["the"] in mine.encode("the")
    assert mine.special["the"] not in mine.encode("the", special=False)


def test_llama_3_names_in_the_configuration_count(llama3, tmp_path):
    """Llama-3.1 names some of Llama-3's reserved tokens."""
    first = Tokenizer.from_pretrained(llama3).special["<|begin_of_text|>"]
    token = {"content": "<|finetune_right_pad_id|>", "special": True}
    config = {"added_tokens_decoder": {str(first + 4): token}}
    folder = write(tmp_path, model=(llama3 / "tokenizer.model").read_bytes(), tokenizer_config=config)
    mine = Tokenizer.from_pretrained(folder)
    assert mine.pad_id == first + 4 and "<|reserved_special_token_2|>" not in mine.special
    assert mine.vocab_size == first + 256


# --- Faults


def test_a_byte_without_a_token_is_left_out_before_merging_as_by_tokenizers(stored, tmp_path):
    """0xF0 begins every character beyond U+FFFF; 0xA9 is the second byte of é, so one byte of it is left."""
    for ignore_merges in (False, True):
        gone = ("ð", "©", "Ĩ", "Î", "±")  # 0xF0, 0xA9, 0x06, and both bytes of α
        vocab = {t: index for t, index in stored["model"]["vocab"].items() if not any(c in t for c in gone)}
        merges = [merge for merge in stored["model"]["merges"] if not any(c in "".join(merge) for c in gone)]
        model = {**stored["model"], "vocab": vocab, "merges": merges, "ignore_merges": ignore_merges}
        changed = {**stored, "model": model}
        mine = Tokenizer.from_pretrained(write(tmp_path, tokenizer=changed))
        theirs = tokenizers.Tokenizer.from_str(json.dumps(changed))
        texts = ["the cat 🙂", "\x06", "th\x06e", "théthe", "é", "🙂🙂", "thαe caαt", *family_texts(3000, 4)]
        ids = [mine.encode(text) for text in texts]
        assert ids == [theirs.encode(text, add_special_tokens=False).ids for text in texts]
        assert sum(mine.decode(row) != text for row, text in zip(ids, texts)) > 100


UNKNOWN = {
    "normalizer NFC": {"normalizer": {"type": "NFC"}},
    "pre-tokenizer ByteLevel": {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}},
    "pre-tokenizer Punctuation": {
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Punctuation"}, {"type": "ByteLevel"}]}
    },
    "pre-tokenizer Split": {
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": "a"}, "behavior": "Removed", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False},
            ],
        }
    },
    "not a regular expression": {
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": "(a"}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False},
            ],
        }
    },
    "post-processor BertProcessing": {"post_processor": {"type": "BertProcessing", "sep": ["a", 1], "cls": ["b", 2]}},
}


@pytest.mark.parametrize("words", UNKNOWN)
def test_what_is_not_supported_is_named(stored, tmp_path, words):
    with pytest.raises(UserError, match=rf"tokenizer\.json: .*{words}"):
        Tokenizer.from_pretrained(write(tmp_path, tokenizer={**stored, **UNKNOWN[words]}))
