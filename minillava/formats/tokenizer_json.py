"""The parts of ``tokenizer.json`` as plain values, and the contents of a new file.

The format is that of Hugging Face's ``tokenizers`` library, and it is read as that library reads it. Every family has a
BPE vocabulary with merges, and added tokens ("<s>", "<image>"), which are cut out of a text first. The normalizer then
changes the rest of the text and the pre-tokenizer splits it, before merges join its characters.
"""

from collections.abc import Iterable
from typing import NamedTuple

import regex

from minillava.errors import UserError

SPACE = "▁"  # how SentencePiece writes a space
LONGEST = 1000  # maximum characters of a token: every way to split one into two may be tried
MOST_IDS = 1 << 22  # of a vocabulary: a row of the embedding may be made for each


def read_bpe(model: dict) -> tuple[dict[str, int], list[tuple[str, str]], bool]:
    """A tokenizer.json's "model" -> (token to id, merges in order of rank, "ignore_merges").

    Raises UserError unless it is BPE without dropout, subword prefix and word suffix.
    """
    if model.get("type", "BPE") != "BPE" or "merges" not in model:  # old files have no type
        raise UserError(f"the model is {model.get('type')!r:.80}, not BPE with merges")
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(option):
            raise UserError(f"the model's {option} is {model[option]!r:.80}, which is not supported")
    vocab = model["vocab"]
    for token, index in vocab.items():
        if type(index) is not int or not 0 <= index < MOST_IDS:
            check_id(f"token {token!r:.80}", index)
    merges = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]]
    for left, right in merges:
        joined = left + right
        if len(joined) > LONGEST:
            raise UserError(f"a merge makes a token of {len(joined)} characters; the maximum is {LONGEST}")
        if not (left in vocab and right in vocab and joined in vocab):
            missing = next(token for token in (left, right, joined) if token not in vocab)
            raise UserError(f"merge {left!r:.80} {right!r:.80} needs {missing!r:.80}, which is not in the vocabulary")
    if len(set(merges)) < len(merges):
        raise UserError("a merge is listed twice")
    return vocab, merges, bool(model.get("ignore_merges"))


def check_id(what: str, index: object) -> None:
    """Raises UserError unless ``index`` is an int from 0 up to MOST_IDS. ``what`` names the token."""
    if type(index) is not int or not 0 <= index < MOST_IDS:
        raise UserError(f"{what} has the id {index!r:.80}, not a whole number from 0 up to {MOST_IDS:,}")


class AddedToken(NamedTuple):
    """A token that is cut out of the text before BPE.

    special: special tokens can also be read as ordinary text
    lstrip, rstrip: the white space to its left or right is removed with it
    normalized: it is searched for in the text after normalization, not before
    """

    content: str
    id: int
    special: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False

    @classmethod
    def from_dict(cls, index: int, token: dict) -> "AddedToken":
        """From an entry of tokenizer.json's "added_tokens", or of "added_tokens_decoder". Raises UserError."""
        content = token["content"]
        if not isinstance(content, str) or not content:
            raise UserError(f"an added token has the content {content!r:.80}")
        check_id(f"added token {content!r:.80}", index)
        if token.get("single_word"):
            raise UserError(f"added token {content!r:.80} is marked single_word, which is not supported")
        return cls(content, index, *(bool(token.get(name)) for name in cls._fields[2:]))


def include(stored: dict, tokens: Iterable[AddedToken]) -> None:
    """Add added tokens to the contents of a tokenizer.json, in place.

    All added tokens are entered into the vocabulary too. `tokenizers` gives new ids, from the vocabulary's size up, to
    those that are not in it, whatever ids the file gives them.
    """
    stored["added_tokens"] += [{**token._asdict(), "single_word": False} for token in tokens]
    stored["model"]["vocab"] |= {token["content"]: token["id"] for token in stored["added_tokens"]}


def puts_first(post_processor: dict | None, bos: str | None) -> bool:
    """Whether the "post_processor" puts the bos token before a text. Raises UserError for an unsupported type."""
    for part in _parts(post_processor, "processors"):
        if part["type"] == "TemplateProcessing":
            first = part["single"][0].get("SpecialToken")
            if first and first["id"] == bos:
                return True
        elif part["type"] != "ByteLevel":
            raise UserError(f"post-processor {part['type']} is not supported")
    return False


def put_first(bos: str, index: int) -> dict:
    """A "post_processor" that puts the bos token before each text."""
    one = [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    two = [{"SpecialToken": {"id": bos, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}]
    special = {bos: {"id": bos, "ids": [index], "tokens": [bos]}}
    return {"type": "TemplateProcessing", "single": one, "pair": one + two, "special_tokens": special}


def _parts(part: dict | None, key: str) -> list[dict]:
    """The steps of a part: for a "Sequence" those listed under ``key``, flattened; none if it is null."""
    if part is None:
        return []
    return [step for one in part[key] for step in _parts(one, key)] if part["type"] == "Sequence" else [part]


# --- Byte-level BPE's parts


def split_patterns(stored: dict) -> tuple[list[tuple[str, bool]], bool]:
    """The pre-tokenizer: (how it splits the text, in order; whether GPT-2's split into words follows).

    Each step is a regular expression and whether the text between its matches is kept; a pattern that matches
    everything leaves none.

    Raises UserError if there is a normalizer, or if the pre-tokenizer is not a ByteLevel, by itself or after Split and
    Digits steps.
    """
    if normalizer := stored.get("normalizer"):
        raise UserError(f"normalizer {normalizer['type']} is not supported with byte-level BPE")
    *steps, last = _parts(stored["pre_tokenizer"], "pretokenizers")
    if last["type"] != "ByteLevel" or last.get("add_prefix_space"):
        raise _unsupported(last)
    patterns = []
    for step in steps:
        how = (step.get("behavior"), bool(step.get("invert")))
        if step["type"] == "Split" and how in (("Isolated", False), ("Removed", True)):
            patterns.append((_expression("pre-tokenizer", step["pattern"]), how[0] == "Isolated"))
        elif step["type"] == "Digits":
            patterns.append((r"\p{N}" if step.get("individual_digits") else r"\p{N}+", True))
        else:
            raise _unsupported(step)
    return patterns, last.get("use_regex", True)


def _unsupported(step: dict) -> UserError:
    return UserError(f"pre-tokenizer {step['type']} with these settings is not supported: {step!r:.200}")


def _expression(where: str, pattern: dict) -> str:
    """The regular expression of {"Regex": ...} or {"String": ...}. Raises UserError if it is invalid."""
    [(form, text)] = pattern.items()
    expression = text if form == "Regex" else regex.escape(text)
    try:
        regex.compile(expression)
    except regex.error as error:
        raise UserError(f"{where}: {text!r:.80} is not a regular expression ({error})") from None
    return expression


# --- SentencePiece's parts


def byte_token(byte: int) -> str:
    """The name of a byte in the vocabulary: "<0x0A>"."""
    return f"<0x{byte:02X}>"


def byte_ids(model: dict) -> list[int]:
    """The ids of the 256 byte tokens. Raises UserError if "model" lacks one of them, or has no byte_fallback."""
    if not model.get("byte_fallback"):
        raise UserError("the tokenizer has neither a ByteLevel pre-tokenizer nor byte_fallback")
    ids = [model["vocab"].get(byte_token(byte)) for byte in range(256)]
    if None in ids:
        raise UserError(f"byte_fallback is set, but the vocabulary lacks {byte_token(ids.index(None))}")
    return ids


def normalizer_steps(normalizer: dict | None) -> list[tuple[str, str, bool]]:
    """The "normalizer" as steps to apply in order: (regular expression, replacement, whether it puts a space first).

    Raises UserError for anything but Prepend, Replace and sequences of them.
    """
    steps = []
    for step in _parts(normalizer, "normalizers"):
        if step["type"] == "Prepend":
            pattern, replacement, adds_space = r"(?s)\A(?=.)", step["prepend"], True
        elif step["type"] == "Replace":
            pattern, replacement = _expression("normalizer", step["pattern"]), step["content"]
            # transformers writes this step before a Metaspace, which adds no space to a text that begins with one.
            adds_space = pattern == rf"\A{SPACE}"
        else:
            raise UserError(f"normalizer {step['type']} is not supported with SentencePiece BPE")
        steps.append((pattern, replacement.replace("\\", r"\\"), adds_space))
    return steps


def metaspace(pre_tokenizer: dict | None) -> tuple[str | None, bool]:
    """The "pre_tokenizer" -> (prepend scheme, whether the text is split at spaces); (None, False) if it is null.

    The scheme is "always", "first" or "never". Raises UserError for anything but a Metaspace.
    """
    if pre_tokenizer is None:
        return None, False
    step, *more = _parts(pre_tokenizer, "pretokenizers")
    if more or step["type"] != "Metaspace" or step["replacement"] != SPACE:
        raise _unsupported(pre_tokenizer)
    scheme = step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never")
    if scheme not in ("always", "first", "never"):
        raise UserError(f"prepend_scheme {scheme!r:.80} is not one of always, first, never")
    return scheme, bool(step.get("split", True))


# --- A new file


def bpe_file(model: dict, special: dict[int, str], **parts: dict | None) -> dict:
    """The contents of a tokenizer.json.

    model: "vocab", "merges" and the options that are on
    special: the names of the special tokens by id
    parts: the "normalizer", "pre_tokenizer", "post_processor" and "decoder"; the first three may be left out
    """
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": index, "content": content, **flags} for index, content in special.items()]
    none = dict.fromkeys(("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"))
    off = dict.fromkeys(("fuse_unk", "byte_fallback", "ignore_merges"), False)
    stored = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added}
    stored |= {"normalizer": None, "pre_tokenizer": None, "post_processor": None, **parts}
    return stored | {"model": {"type": "BPE", **none, **off, **model}}


def byte_level_part(use_regex: bool) -> dict:
    """A ByteLevel part. ``use_regex``: whether it splits a text into words as GPT-2 does."""
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}
