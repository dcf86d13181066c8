"""Unusual texts, and tokenizers of every family, trained on them with `tokenizers` and `sentencepiece`."""

import io
import json
import random
import re
from base64 import b64encode
from pathlib import Path

import sentencepiece
import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from minillava.formats.byte_characters import all_to_bytes, to_characters
from minillava.inputs.sentencepiece_bpe import Where
from minillava.inputs.tokenizer import SPECIAL_TOKENS

WORDS = ["the", "cat", "sat", "on", "a", "mat", "that", "others", "then", "it's", "we'll", "they've", "42", "1999"]
MARKS = [".", ",", "?!", "##", "  ", "\n", "\n\n", "\t", " - ", "... "]
# Fuzzed strings are made of these and of single characters.
PIECES = [
    *WORDS, *MARKS, *SPECIAL_TOKENS, "#", "####", "<", "<image", "image>", "<<image>>", "<pad", "</s", "/s>", " ",
    "   ", "\r\n", "\0", "\x0b\x0c", "\x1c\x1f", "\x7f\x85\xa0", "\u180e\u200b\u2028\u3000", "'s", "'S", "'ll",
    "½²", "e\u0301", "\ufeff", "héé", "你好", "🙂👩\u200d👩\u200d👧", "Straße",
]  # fmt: skip
FAMILY_PIECES = [
    *PIECES, "<s>", "<unk>", "<0x0A>", "<0x41>", "▁", "▁▁the", " ▁", "     ", "  the", "the  ", "<|begin_of_text|>",
    "<|eot_id|>", "<|reserved_special_token_7|>", "<|", "|>", "'ſ", "'LL", "K", "１２３", "1234567", "٣٤٥",
    "\U0001d7ce", "\r\n\r\n  x", "\U000323b0", "\U0001e6c0",
]  # fmt: skip


def corpus(seed: int, words: int) -> str:
    """Made-up text that contains no special token."""
    rng = random.Random(seed)
    text = "".join(rng.choice(WORDS) + (" " if rng.random() < 0.7 else rng.choice(MARKS)) for _ in range(words))
    return without_special(text)


def without_special(text: str) -> str:
    return re.sub("|".join(SPECIAL_TOKENS), "", text)


def fuzzed(count: int, seed: int, pieces: list[str] = PIECES) -> list[str]:
    """Strings of ``pieces`` and of characters from every plane, without surrogates, which are not characters."""
    rng = random.Random(seed)

    def character() -> str:
        code = rng.randrange(rng.choice((0x80, 0x800, 0x10000, 0x110000)))
        return "" if 0xD800 <= code < 0xE000 else chr(code)

    return [
        "".join(rng.choice(pieces) if rng.random() < 0.6 else character() for _ in range(rng.randrange(25)))
        for _ in range(count)
    ]


def family_texts(count: int, seed: int) -> list[str]:
    return fuzzed(count, seed, FAMILY_PIECES)


def training_texts() -> list[str]:
    """Texts without special tokens and byte tokens, which would be merged as words, and without single characters."""
    rng = random.Random(0)
    texts = [corpus(0, 600), *("".join(rng.choices(FAMILY_PIECES, k=12)) for _ in range(400))]
    return [re.sub(r"\0|###|<(/?s|unk|image|pad|0x..|\|.*?\|)>", " ", text) for text in texts]


# As in Meta's llama3/tokenizer.py; test_byte_bpe.py compares it with transformers'.
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
BYTE_LEVEL = {
    "GPT-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "Llama-3": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    ),
    "SmolLM2": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
}


def train_byte_level(family: str) -> dict:
    """The contents of a tokenizer.json, trained by `tokenizers`."""
    theirs = tokenizers.Tokenizer(models.BPE())
    # SmolLM2 trains with GPT-2's splitting: merges of several digits show whether digits are split afterwards.
    theirs.pre_tokenizer, theirs.decoder = BYTE_LEVEL["GPT-2" if family == "SmolLM2" else family], decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1200,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>", "</s>", "<|begin_of_text|>"],
        show_progress=False,
    )
    theirs.train_from_iterator(training_texts(), trainer)
    theirs.pre_tokenizer = BYTE_LEVEL[family]
    stored = json.loads(theirs.to_str())
    stored["model"]["ignore_merges"] = family == "Llama-3"
    return stored


def byte_merges() -> list[tuple[bytes, bytes]]:
    """The merges of a byte-level BPE, trained by `tokenizers`."""
    stored = train_byte_level("GPT-2")["model"]
    to_byte = all_to_bytes(stored["vocab"])
    return [(to_byte[left], to_byte[right]) for left, right in stored["merges"]]


def tiktoken_file() -> bytes:
    """A tokenizer.model like Llama-3's: per token a line of base64 and rank, the 256 single bytes first."""
    model = train_byte_level("Llama-3")["model"]
    to_byte = {to_characters(bytes([byte])): byte for byte in range(256)}
    merged = [bytes(to_byte[character] for character in left + right) for left, right in model["merges"]]
    tokens = [bytes([byte]) for byte in range(256)] + merged
    return b"".join(b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens))


def sentencepiece_file(**options) -> bytes:
    """A tokenizer.model trained by `sentencepiece` with LLaMA's settings, overridden by ``options``."""
    settings = {
        "model_type": "bpe",
        "vocab_size": 900,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
        "split_digits": True,
        "split_by_unicode_script": False,
        "hard_vocab_limit": False,
        "character_coverage": 0.995,
        "minloglevel": 2,
        "num_threads": 1,
    } | options
    lines = (line for text in training_texts() for line in text.split("\n") if line)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=lines, model_writer=model, **settings)
    return model.getvalue()


ESCAPE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
LEGACY = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, ESCAPE]}


def train_llama(normalizer: dict | None, pre_tokenizer: dict | None) -> dict:
    """A tokenizer.json like LLaMA's, trained by `tokenizers`: byte fallback, three special tokens."""
    special, fallback = ["<unk>", "<s>", "</s>"], [f"<0x{byte:02X}>" for byte in range(256)]
    theirs = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    theirs.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=special + fallback, limit_alphabet=150, max_token_length=12, show_progress=False
    )
    theirs.train_from_iterator([line for text in training_texts() for line in text.split("\n")], trainer)
    stored = json.loads(theirs.to_str())
    stored["added_tokens"] = [token for token in stored["added_tokens"] if token["content"] in special]
    steps = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]
    decoder = {"type": "Sequence", "decoders": steps}
    return {**stored, "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "decoder": decoder}


def write(folder: Path, **files: dict | bytes) -> Path:
    """Write each of ``files`` into ``folder``: ``model`` as tokenizer.model, any other NAME as NAME.json."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = folder / ("tokenizer.model" if name == "model" else f"{name}.json")
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return folder


class WholeTexts:
    """A model of a tokenizer that makes one token of every text, and another one of the same text in another place. So
    the ids tell into which texts something was cut, and whether encode() was given the ids before each."""

    adds_space, missing = False, b""

    def __init__(self):
        self.texts: list[tuple[str, Where]] = []

    def normalize(self, text: str, where: Where) -> str:
        return text

    def encode(self, text: str, where: Where) -> list[int]:
        if (text, where) not in self.texts:
            self.texts.append((text, where))
        return [1000 + self.texts.index((text, where))]
