"""The tokenizer: merges against a naive count and Hugging Face's trainer, ids against Hugging Face's encoder."""

import copy
import json
import random
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import tokenizers
from make_tokenizers import WholeTexts, byte_merges, corpus, fuzzed

from minillava.errors import UserError
from minillava.inputs.sentencepiece_bpe import Where
from minillava.inputs.tokenizer import SPECIAL_TOKENS, Tokenizer, _join, train_bpe, write_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tokenizer with merges of letters, spaces, punctuation and characters of several bytes: not of train_bpe, so
    that encoding and decoding can be judged without it."""
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, byte_merges())
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
        assert pieces == expected, "every occurrence of the pair is joined, in place, from left to right"


def test_a_joined_piece_is_not_joined_again():
    pieces = [b"a", b"a", b"a", b"a", b"a"]
    _join(pieces, (b"a", b"a"))
    assert pieces == [b"aa", b"aa", b"a"], "after joining two pieces go on behind them"


@pytest.mark.parametrize("seed", range(4))
def test_merges_equal_a_naive_count_ties_included(seed):
    text = corpus(seed, 200)
    merges, ties = naive_bpe(ascii_words(text), 290)
    assert ties > 0 and len(merges) == 34
    got = train_bpe(text, 290)
    assert got[:1] == merges[:1], "the first merge is the pair that occurs most often, counted within words"
    assert len(got) == 34, "vocab_size - 256 merges are learnt"
    assert got == merges, "after each merge pairs are counted again; of equal counts the first in byte order is joined"


def test_runs_of_one_letter_are_joined_from_the_left():
    text = " aaa aaaa aaaaa aaaaaaa" * 3
    assert train_bpe(text, 300) == naive_bpe(ascii_words(text), 300)[0], "runs of a letter are joined from the left"
    assert train_bpe("aaa aaa", 257) == [(b"a", b"a")], "a pair may occur several times in a word"


def test_a_word_counts_as_often_as_it_occurs():
    text = " ab" * 3 + " cd" * 2 + " ce" * 2  # " a" and "ab" three times, " c" four times
    assert train_bpe(text, 257) == [(b" ", b"c")], "a pair counts once for each time that its word occurs"


def test_of_equal_counts_the_first_in_byte_order_is_joined():
    assert train_bpe("zy zy\nba ba\n", 257) == [(b"b", b"a")], "of equally frequent pairs the first in byte order wins"


def test_words_begin_as_single_bytes():
    assert train_bpe("é é", 257) == [(b"\xc3", b"\xa9")], "the first pieces of a word are its bytes, not its characters"


def test_pairs_do_not_cross_words():
    assert train_bpe("a.a.a.a.", 300) == [], "SPLIT makes words of letters and of punctuation: no pair crosses them"


def test_training_ends_when_no_pair_occurs_twice():
    assert train_bpe("ab", 300) == [], "a pair that occurs once is not joined"
    assert train_bpe("ab ab", 300)[:1] != [], "a pair that occurs twice is joined"


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

    got = [(written(left), written(right)) for left, right in train_bpe(text, 256 + len(merges))]
    assert got == learnt, "the merges are those of Hugging Face's trainer"


def test_vocabulary_is_never_larger_than_asked():
    text = corpus(0, 200)
    assert train_bpe(text, 256) == [], "256 tokens are the single bytes: no merge"
    assert len(train_bpe(text, 300)) == 44, "vocab_size counts the 256 single bytes too"
    assert 256 + len(train_bpe(text, 100_000)) < 1000, "training ends when no pair occurs twice"
    assert train_bpe("", 300) == [], "an empty text has no merges"


def test_order_of_lines_does_not_matter(tmp_path):
    lines = corpus(3, 400).splitlines()
    shuffled = random.Random(0).sample(lines, len(lines))
    write_tokenizer(tmp_path / "one", train_bpe("\n.".join(lines) + "\n.", 400))
    write_tokenizer(tmp_path / "two", train_bpe("\n.".join(shuffled) + "\n.", 400))
    assert lines != shuffled
    for name in ("tokenizer.json", "tokenizer_config.json"):
        one, two = ((tmp_path / folder / name).read_bytes() for folder in ("one", "two"))
        assert one == two, "the merges do not depend on the order of the lines: of equal counts bytes decide"


def test_ids_equal_hugging_faces(folder, tokenizer):
    theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    used = Counter()
    for text in fuzzed(1000, 1):
        ids = tokenizer.encode(text)
        assert ids == theirs.encode(text, add_special_tokens=False).ids, f"{text!r} has the ids of tokenizers"
        used.update(ids)
    assert len(used) > 0.4 * tokenizer.vocab_size  # the texts do use the merges


def test_any_text_comes_back_as_it_was(tokenizer):
    for text in [*fuzzed(500, 2), "".join(map(chr, [*range(0, 0xD800, 7), *range(0xE000, 0x110000, 29)]))]:
        for special in (True, False):
            ids = tokenizer.encode(text, special=special)
            assert tokenizer.decode_bytes(ids) == text.encode(), "the bytes of the ids are those of the text"
            assert tokenizer.decode(ids) == text, "a text that is encoded and decoded comes back"


def test_without_special_marks_are_ordinary_text(tokenizer):
    special = set(tokenizer.special.values())
    for text in [*SPECIAL_TOKENS, *fuzzed(300, 3)]:
        found = special & set(tokenizer.encode(text, special=False))
        assert not found, "with special=False the name of a special token is ordinary text"
    for text in SPECIAL_TOKENS:
        assert tokenizer.encode(text) == [tokenizer.special[text]], "otherwise it is that one token"


def test_special_tokens_follow_the_merges(folder, tokenizer):
    merges = json.loads((folder / "tokenizer.json").read_text())["model"]["merges"]
    first = 256 + len(merges)
    assert tokenizer.special == {"###": first, "<image>": first + 1, "<pad>": first + 2, "</s>": first + 3}
    assert (tokenizer.image_id, tokenizer.pad_id, tokenizer.eos_id) == (first + 1, first + 2, first + 3)
    assert tokenizer.vocab_size == first + 4


def test_a_special_token_is_decoded_to_its_name(tokenizer):
    for text, index in tokenizer.special.items():
        assert tokenizer.decode([index]) == text, "a special token decodes to its name"


def test_every_id_has_its_own_bytes(tokenizer):
    everything = [tokenizer.decode_bytes([index]) for index in range(tokenizer.vocab_size)]
    assert len(set(everything)) == tokenizer.vocab_size, "each id has bytes, and no two ids have the same"


def test_the_bytes_of_several_ids_are_joined(tokenizer):
    parts = [tokenizer.decode_bytes([index]) for index in (7, 260, 9)]
    assert all(isinstance(part, bytes) for part in parts), "decode_bytes returns bytes"
    assert tokenizer.decode_bytes(iter((7, 260, 9))) == b"".join(parts), "the bytes of all ids are joined, in order"
    assert tokenizer.decode_bytes([]) == b"", "no ids have no bytes"


def test_a_character_may_span_several_tokens(tokenizer):
    assert tokenizer.decode("é".encode()) == "é", "the bytes of all ids are joined before they are read as UTF-8"


def test_text_that_names_special_tokens_can_be_trained_on(tmp_path):
    """Markdown is full of "###": a merge of that name must not be confused with the special token."""
    text = "### A title\n<image> and <pad>, </s>### " * 5
    write_tokenizer(tmp_path, train_bpe(text, 400))
    tokenizer = Tokenizer.from_pretrained(tmp_path)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    ids = tokenizer.encode(text)
    assert max(ids) < tokenizer.vocab_size == theirs.get_vocab_size()
    assert ids == theirs.encode(text, add_special_tokens=False).ids, "no merge has the name of a special token"
    assert tokenizer.decode(ids) == tokenizer.decode(tokenizer.encode(text, special=False)) == text


def test_names_of_special_tokens_part_the_words_of_a_training_text():
    got = set(train_bpe("ab<image>cd\n" * 3, 300))
    assert got == {(b"a", b"b"), (b"c", b"d")}, "the name of a special token in the text counts as a newline"


def test_merges_are_stored_in_the_order_in_which_they_were_learnt(tmp_path):
    for number, merges in enumerate(([(b"a", b"b"), (b"b", b"c")], [(b"b", b"c"), (b"a", b"b")])):
        write_tokenizer(tmp_path / str(number), merges)
        parts = [(b"ab", b"c"), (b"a", b"bc")][number]
        tokenizer = Tokenizer.from_pretrained(tmp_path / str(number))
        found = tuple(tokenizer.decode_bytes([index]) for index in tokenizer.encode("abc"))
        assert found == parts, "the merge that was learnt first is applied first"


def test_half_a_character_decodes_to_the_replacement_mark(tokenizer):
    assert tokenizer.decode([0xF0]) == "\ufffd", "bytes that are no UTF-8 become U+FFFD: errors='replace'"


def numbered(tokenizer: Tokenizer) -> Tokenizer:
    """The same tokenizer with a model that makes one token of every text, in small letters, and another one of the same
    text in another place. Its bos has the id 1."""
    model = WholeTexts()
    model.normalize = lambda text, where: text.lower()
    tokenizer = copy.copy(tokenizer)
    tokenizer._model, tokenizer.bos_id = model, 1
    return tokenizer


PLACES = {
    "nothing": ([], Where.START),
    "only the bos": ([1], Where.START),
    "the bos and a text": ([1, 5], Where.INSIDE),
    "a text and the id of the bos": ([5, 1], Where.INSIDE),
    "a special token and a text": (["###", 5], Where.INSIDE),
    "a special token": (["###"], Where.AFTER_TOKEN),
    "a text and a special token": ([5, "###"], Where.AFTER_TOKEN),
}


@pytest.mark.parametrize("before", PLACES)
def test_the_place_of_a_text_depends_on_the_ids_before_it(tokenizer, before):
    after, where = PLACES[before]
    stop, own = tokenizer.special["###"], numbered(tokenizer)
    after = [stop if index == "###" else index for index in after]
    texts = own._model.texts

    def read(ids: list[int]) -> list:
        return [index if index == stop else texts[index - 1000] for index in ids]

    got = read(own.encode("Red###Fish######", after=after))
    assert [part if part == stop else part[0] for part in got] == ["red", stop, "fish", stop, stop], (
        "special tokens are cut out first; each text between them is normalised and goes to the model"
    )
    assert got[0][1] == where, f"a text after {before} has the place {where}"
    assert got[2][1] == Where.AFTER_TOKEN, "a text after a special token of the same text has the place AFTER_TOKEN"
    got = read(own.encode("###Red", after=after))
    assert got == [stop, ("red", Where.AFTER_TOKEN)], "a text after a special token has the place AFTER_TOKEN"


def test_after_a_picture_the_authors_tokenizer_begins_again(folder):
    own = numbered(Tokenizer.from_pretrained(folder, original=True))
    own.encode("Red", after=[1, own.image_id])
    assert own._model.texts[-1][1] == Where.FRESH, "with self._original a text after self.image_id has the place FRESH"


@pytest.mark.parametrize(
    "adds_space, texts", [(False, [" red", "  red", "red", ""]), (True, ["red", " red", "red", ""])]
)
def test_the_space_that_a_model_adds_first_is_removed(folder, adds_space, texts):
    tokenizer = Tokenizer.from_pretrained(folder)
    ids = [list(text.encode()) for text in (" red", "  red", "red", "")]  # the first 256 ids are the single bytes
    tokenizer._model = WholeTexts()
    tokenizer._model.adds_space = adds_space
    got = [tokenizer.decode(row) for row in ids]
    assert got == texts, "one space at the beginning is removed if self._model.adds_space, and no other"


def test_an_id_without_a_token_has_no_bytes(tokenizer):
    got = tokenizer.decode_bytes([ord("a"), tokenizer.vocab_size, ord("b")])  # the first 256 ids are the single bytes
    assert got == b"ab", "an id without a token gives no bytes, and no error"


def test_saving_writes_the_files_that_were_read(folder, tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        path.name: path.read_bytes() for path in folder.iterdir()
    }


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
