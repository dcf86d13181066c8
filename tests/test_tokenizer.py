"""The tokenizer: merges against a naive count and Hugging Face's trainer, ids against Hugging Face's encoder."""

import json
import random
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import tokenizers
from make_tokenizers import corpus, fuzzed, without_special
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from minillava.errors import UserError
from minillava.inputs.sentencepiece_bpe import Where
from minillava.inputs.tokenizer import SPECIAL_TOKENS, Tokenizer, _join, train_bpe, write_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tokenizer with merges of letters, spaces, punctuation and characters of several bytes."""
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, train_bpe(corpus(0, 600) + without_special("".join(fuzzed(200, 0))) * 2, 900))
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder) -> Tokenizer:
    return Tokenizer.from_pretrained(folder)


def joined(pieces: list[bytes], pair: tuple[bytes, bytes]) -> list[bytes]:
    done: list[bytes] = []
    rest = list(pieces)
    while rest:
        if tuple(rest[:2]) == pair:
            done.append(b"".join(rest[:2]))
            del rest[:2]
        else:
            done.append(rest.pop(0))
    return done


def naive_bpe(words: list[str], vocab_size: int) -> tuple[list[tuple[bytes, bytes]], int]:
    """Merges, counting all pairs again for each one, and how many of them were chosen among equal counts."""
    pieces = [[bytes([byte]) for byte in word.encode()] for word in words]
    merges, ties = [], 0
    while 256 + len(merges) < vocab_size:
        ranking = Counter(pair for word in pieces for pair in pairwise(word)).most_common()
        best = sorted(pair for pair, count in ranking if count == ranking[0][1])
        if not best or ranking[0][1] < 2:
            break
        ties += len(best) > 1
        merges.append(best[0])
        pieces = [joined(word, best[0]) for word in pieces]
    return merges, ties


def ascii_words(text: str) -> list[str]:
    """GPT-2's split, written for ASCII."""
    words = re.findall(r"'(?:[sdmt]|ll|ve|re)| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+", text)
    assert "".join(words) == text
    return words


def test_a_pair_is_joined_wherever_it_occurs_from_the_left():
    rng = random.Random(0)
    for _ in range(300):
        pieces = [rng.choice((b"a", b"b", b"ab")) for _ in range(rng.randrange(9))]
        pair = rng.choice(((b"a", b"a"), (b"a", b"b"), (b"ab", b"a")))
        expected = joined(pieces, pair)
        _join(pieces, pair)
        assert pieces == expected


@pytest.mark.parametrize("seed", range(4))
def test_merges_equal_a_naive_count_ties_included(seed):
    text = corpus(seed, 200)
    merges, ties = naive_bpe(ascii_words(text), 290)
    assert ties > 0 and len(merges) == 34
    assert train_bpe(text, 290) == merges


def test_runs_of_one_letter_are_joined_from_the_left():
    text = " aaa aaaa aaaaa aaaaaaa" * 3
    assert train_bpe(text, 300) == naive_bpe(ascii_words(text), 300)[0]
    assert train_bpe("aaa aaa", 257) == [(b"a", b"a")]


@pytest.mark.parametrize("seed", range(5))
def test_merges_equal_hugging_faces_trainer_where_nothing_ties(seed):
    """Each family of words has a common beginning ("ab", "abc", "abcd", ...), so later pairs are rarer. Pairs of the
    first family occur 3 n times, those of the second 3 n + 1 times, those of the third 3 n + 2 times: no ties."""
    rng = random.Random(seed)
    words = []
    for family, letters in enumerate(("abcdef", " ghijkl", "mnopq")):
        words += [letters] * family
        words += [letters[:n] for n in range(2, len(letters) + 1) for _ in range(3 * rng.randint(1, 30))]
    text = "\n".join(words)
    merges, ties = naive_bpe(ascii_words(text), 300)
    assert ties == 0 and len(merges) == 15

    theirs = tokenizers.Tokenizer(tokenizers.models.BPE())
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=256 + len(merges), initial_alphabet=alphabet, min_frequency=2, show_progress=False
    )
    theirs.train_from_iterator([text], trainer)
    learnt = [tuple(pair) for pair in json.loads(theirs.to_str())["model"]["merges"]]

    def written(token: bytes) -> str:
        return token.decode().replace(" ", "Ġ").replace("\n", "Ċ")

    assert [(written(left), written(right)) for left, right in train_bpe(text, 256 + len(merges))] == learnt


def test_vocabulary_is_never_larger_than_asked():
    text = corpus(0, 200)
    assert train_bpe(text, 256) == []
    assert len(train_bpe(text, 300)) == 44
    assert 256 + len(train_bpe(text, 100_000)) < 1000  # in the end no pair occurs twice
    assert train_bpe("", 300) == train_bpe("abc", 300) == []


def test_order_of_lines_does_not_matter(tmp_path):
    lines = corpus(3, 400).splitlines()
    shuffled = random.Random(0).sample(lines, len(lines))
    write_tokenizer(tmp_path / "one", train_bpe("\n.".join(lines) + "\n.", 400))
    write_tokenizer(tmp_path / "two", train_bpe("\n.".join(shuffled) + "\n.", 400))
    assert lines != shuffled
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_ids_equal_hugging_faces(folder, tokenizer):
    theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    used = Counter()
    for text in fuzzed(4000, 1):
        ids = tokenizer.encode(text)
        assert ids == theirs.encode(text, add_special_tokens=False).ids, repr(text)
        used.update(ids)
    assert len(used) > 0.5 * tokenizer.vocab_size  # the texts do use the merges


def test_any_text_comes_back_as_it_was(tokenizer):
    for text in [*fuzzed(2000, 2), "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000, 7)]))]:
        for special in (True, False):
            ids = tokenizer.encode(text, special=special)
            assert tokenizer.decode(ids) == text and tokenizer.decode_bytes(ids) == text.encode()


def test_without_special_marks_are_ordinary_text(tokenizer):
    special = set(tokenizer.special.values())
    for text in [*SPECIAL_TOKENS, *fuzzed(2000, 3)]:
        assert not special & set(tokenizer.encode(text, special=False))
    assert all(special & set(tokenizer.encode(text)) for text in SPECIAL_TOKENS)


def test_special_tokens_follow_the_merges(folder, tokenizer):
    merges = json.loads((folder / "tokenizer.json").read_text())["model"]["merges"]
    first = 256 + len(merges)
    assert tokenizer.special == {"###": first, "<image>": first + 1, "<pad>": first + 2, "</s>": first + 3}
    assert (tokenizer.image_id, tokenizer.pad_id, tokenizer.eos_id) == (first + 1, first + 2, first + 3)
    assert tokenizer.vocab_size == first + 4
    for text, index in tokenizer.special.items():
        assert tokenizer.encode(text) == [index] and tokenizer.decode([index]) == text


def test_every_id_has_its_own_bytes(tokenizer):
    assert len({tokenizer.decode_bytes([index]) for index in range(tokenizer.vocab_size)}) == tokenizer.vocab_size


def test_text_that_names_special_tokens_can_be_trained_on(tmp_path):
    """Markdown is full of "###": a merge of that name must not be confused with the special token."""
    text = "### A title\n<image> and <pad>, </s>### " * 5
    write_tokenizer(tmp_path, train_bpe(text, 400))
    tokenizer = Tokenizer.from_pretrained(tmp_path)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    ids = tokenizer.encode(text)
    assert max(ids) < tokenizer.vocab_size == theirs.get_vocab_size()
    assert ids == theirs.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids) == tokenizer.decode(tokenizer.encode(text, special=False)) == text


def test_names_of_special_tokens_part_the_words_of_a_training_text():
    assert set(train_bpe("ab<image>cd\n" * 3, 300)) == {(b"a", b"b"), (b"c", b"d")}


def test_merges_are_stored_in_the_order_in_which_they_were_learnt(tmp_path):
    for number, merges in enumerate(([(b"a", b"b"), (b"b", b"c")], [(b"b", b"c"), (b"a", b"b")])):
        write_tokenizer(tmp_path / str(number), merges)
        parts = [(b"ab", b"c"), (b"a", b"bc")][number]
        tokenizer = Tokenizer.from_pretrained(tmp_path / str(number))
        assert tuple(tokenizer.decode_bytes([index]) for index in tokenizer.encode("abc")) == parts


def test_half_a_character_decodes_to_the_replacement_mark(tokenizer):
    half = next(index for index in range(tokenizer.vocab_size) if tokenizer.decode_bytes([index]) == b"\xf0")
    assert tokenizer.decode([half]) == "\ufffd"


class Recorder:
    """A model that records its calls."""

    adds_space = True

    def __init__(self):
        self.asked: list[tuple[str, Where]] = []

    def normalize(self, text: str, where: Where) -> str:
        return text.lower()

    def encode(self, text: str, where: Where) -> list[int]:
        self.asked.append((text, where))
        return [ord(text[0])]


def test_the_place_of_a_text_depends_on_the_ids_before_it(folder):
    tokenizer = Tokenizer.from_pretrained(folder)
    stop, tokenizer._model, tokenizer.bos_id = tokenizer.special["###"], Recorder(), 1
    for after, where in (
        ([], Where.START),
        ([1], Where.START),
        ([5, 1], Where.INSIDE),
        ([1, 5], Where.INSIDE),
        ([stop, 5], Where.INSIDE),
        ([5, stop], Where.AFTER_TOKEN),
        ([stop], Where.AFTER_TOKEN),
    ):
        tokenizer._model.asked.clear()
        assert tokenizer.encode("Red###Fish######", after=after) == [ord("r"), stop, ord("f"), stop, stop]
        assert tokenizer._model.asked == [("red", where), ("fish", Where.AFTER_TOKEN)], after
        tokenizer._model.asked.clear()
        assert tokenizer.encode("###Red", after=after) == [stop, ord("r")]
        assert tokenizer._model.asked == [("red", Where.AFTER_TOKEN)]


def test_the_space_that_a_model_adds_first_is_removed(folder):
    tokenizer = Tokenizer.from_pretrained(folder)
    ids = {text: tokenizer.encode(text) for text in (" red", "  red", "red", "")}
    assert [tokenizer.decode(ids[text]) for text in ids] == list(ids)
    tokenizer._model = Recorder()
    assert [tokenizer.decode(ids[text]) for text in ids] == ["red", " red", "red", ""]


def test_an_id_without_a_token_has_no_bytes(tokenizer):
    a, b = tokenizer.encode("a") + tokenizer.encode("b")
    assert tokenizer.decode_bytes([a, tokenizer.vocab_size, b]) == b"ab"


def test_saving_writes_the_files_that_were_read(folder, tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        path.name: path.read_bytes() for path in folder.iterdir()
    }


@pytest.mark.parametrize("reader", [AutoTokenizer, PreTrainedTokenizerFast])
def test_transformers_opens_the_folder(folder, tokenizer, reader):
    theirs = reader.from_pretrained(folder)
    assert len(theirs) == tokenizer.vocab_size
    assert (theirs.eos_token_id, theirs.pad_token_id) == (tokenizer.eos_id, tokenizer.pad_id)
    assert theirs.convert_tokens_to_ids(theirs.image_token) == tokenizer.image_id
    for text in fuzzed(300, 4):
        assert theirs(text).input_ids == tokenizer.encode(text)
        assert theirs.decode(tokenizer.encode(text)) == text


def changed(stored: dict, **changes) -> bytes:
    return json.dumps({**stored, **changes}).encode()


BROKEN = {
    "no file": lambda stored: None,
    "empty": lambda stored: b"",
    "cut off": lambda stored: json.dumps(stored).encode()[:-20],
    "no UTF-8": lambda stored: b"\xff\xfe\n" * 5000,
    "a number": lambda stored: b"5",
    "a list": lambda stored: b"[1, 2]",
    "no model": lambda stored: b"{}",
    "no vocabulary": lambda stored: changed(stored, model={"type": "BPE"}),
    "a unigram model": lambda stored: changed(stored, model={"type": "Unigram", "vocab": [["a", -1.5], ["b", -2.5]]}),
    "no dict": lambda stored: changed(stored, model={"vocab": None}),
    "ids that are texts": lambda stored: changed(stored, model={"vocab": {"a": "0"}, "merges": []}),
    "special tokens without ids": lambda stored: changed(stored, added_tokens=[{"content": "###"}]),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_broken_tokenizer_is_named_in_one_short_line(folder, tmp_path, fault):
    content = BROKEN[fault](json.loads((folder / "tokenizer.json").read_text(encoding="utf-8")))
    if content is not None:
        (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(UserError) as error:
        Tokenizer.from_pretrained(tmp_path)
    message = str(error.value)
    assert len(message) < 400
    assert str(tmp_path / "tokenizer.json") in message and "\n" not in message


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere.tokenizer\.json: No such file"):
        Tokenizer.from_pretrained(tmp_path / "nowhere")
