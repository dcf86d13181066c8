"""A tokenizer's folder: the files in it, and what they say together of added tokens and their roles.

``tokenizer.json`` says nearly all. ``tokenizer_config.json`` adds which token is the bos, eos and padding; older
folders have ``special_tokens_map.json`` and ``added_tokens.json`` for that. A folder with a ``tokenizer.model`` alone
is read as the tokenizer.json that says the same.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from minillava.errors import UserError
from minillava.formats.json_object import parse_json_object
from minillava.tokenizer_json import AddedToken, include, read_bpe
from minillava.tokenizer_model import convert

IMAGE, PAD, END = "<image>", "<pad>", "</s>"
JSON, CONFIG, MODEL = "tokenizer.json", "tokenizer_config.json", "tokenizer.model"
MAP, ADDED = "special_tokens_map.json", "added_tokens.json"
LARGEST = 100 << 20  # bytes of a file; the largest tokenizer.json of these families has 17 MB
# What a token is called where no file says which it is.
USUAL = {
    "bos_token": ("<s>", "<|begin_of_text|>", "<|endoftext|>"),
    "eos_token": (END, "<|end_of_text|>", "<|endoftext|>"),
    "pad_token": (PAD, "<|finetune_right_pad_id|>"),
}
# The classes with which transformers takes tokenizer.json as it is; others rebuild parts of it as they think fit.
OBEDIENT = ("PreTrainedTokenizerFast", "TokenizersBackend")


@dataclass
class TokenizerFiles:
    """What ``interpret`` makes of a folder. ``tokens`` are the added ones by name, ``roles`` the names of "bos_token",
    "eos_token" and "pad_token" (None where there is none), ``files`` what to write to have the tokenizer again."""

    stored: dict
    vocab: dict[str, int]
    merges: list[tuple[str, str]]
    tokens: dict[str, AddedToken]
    roles: dict[str, str | None]
    files: dict[str, bytes]


def read_files(folder: str | os.PathLike) -> dict[str, bytes]:
    """The contents of a tokenizer's files by name. Raises UserError for one that cannot be read or is too large."""
    files = {}
    for name in (JSON, CONFIG, MODEL, MAP, ADDED):
        path = Path(folder) / name
        try:
            with path.open("rb") as file:
                files[name] = file.read(LARGEST + 1)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from None
        if len(files[name]) > LARGEST:
            raise UserError(f"{path}: more than {LARGEST} bytes, too many for a tokenizer")
    return files


def interpret(folder: str | os.PathLike, files: dict[str, bytes]) -> TokenizerFiles:
    """What the files say together. Raises UserError, which names the file in ``folder``, where they make no sense."""
    folder = Path(folder)
    config, older, more = (parse_json_object(folder / name, files.get(name, b"{}")) for name in (CONFIG, MAP, ADDED))
    obedient = JSON in files and config.get("tokenizer_class") in OBEDIENT
    if JSON in files:
        source = folder / JSON
        stored = parse_json_object(source, files[JSON])
    elif MODEL in files:
        source = folder / MODEL
        with blame(source):
            stored, named = convert(files[MODEL], config)
        config = {**{role: name for role, name in named.items() if name}, **config}
        files = {**files, JSON: dump(stored)}
    else:
        raise UserError(f"{folder / JSON}: No such file, nor a {MODEL} beside it")

    tokens: dict[str, AddedToken] = {}
    with blame(source):
        vocab, merges = read_bpe(stored["model"])
        for token in stored["added_tokens"]:
            _add(tokens, vocab, AddedToken.from_dict(token["id"], token))
    listed = set(tokens)
    with blame(folder / CONFIG):
        for index, token in (config.get("added_tokens_decoder") or {}).items():
            _add(tokens, vocab, AddedToken.from_dict(int(index), token))
    with blame(folder / ADDED):
        for content, index in more.items():
            _add(tokens, vocab, AddedToken.from_dict(index, {"content": content}))
    with blame(folder / CONFIG):
        roles = {role: _role(role, config, older, tokens) for role in USUAL}
        for role, name in roles.items():
            if name and name not in tokens:
                if name not in vocab:
                    raise UserError(f"{role} {name!r} is not in the vocabulary")
                tokens[name] = AddedToken(name, vocab[name])
    with blame(source):
        _check_ids(tokens, vocab)
    for name in (*roles.values(), IMAGE):
        if name in tokens:  # nobody is to end an answer, or bring in a picture, by writing so
            tokens[name] = replace(tokens[name], special=True)

    if unlisted := [token for name, token in tokens.items() if name not in listed]:
        include(stored, unlisted)
        files = {**files, JSON: dump(stored)}
    if not obedient:
        named = {role: name for role, name in roles.items() if name}
        files = {**files, CONFIG: dump({**config, **named, "tokenizer_class": OBEDIENT[0]})}
    return TokenizerFiles(stored, vocab, merges, tokens, roles, files)


def extend(files: dict[str, bytes], tokens: list[AddedToken], pad: str | None) -> dict[str, bytes]:
    """The files with more tokens, and with ``pad`` as the padding token unless it is None."""
    stored, config = json.loads(files[JSON]), json.loads(files[CONFIG])
    include(stored, tokens)
    if pad is not None:
        config["pad_token"] = pad
    # A tokenizer.model no longer says what the tokenizer is.
    kept = {name: content for name, content in files.items() if name != MODEL}
    return {**kept, JSON: dump(stored), CONFIG: dump(config)}


@contextmanager
def blame(path: Path) -> Iterator[None]:
    """Turn what goes wrong in making sense of a file into a UserError that names it."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise UserError(f"{path}: not a tokenizer of a known form ({error!r:.200})") from None


def dump(value: dict) -> bytes:
    """JSON as Hugging Face's files have it."""
    return json.dumps(value, ensure_ascii=False, indent=1).encode()


def _add(tokens: dict[str, AddedToken], vocab: dict[str, int], token: AddedToken) -> None:
    """Add a token unless it is there: the file read first says how it is treated. Its id must be the same."""
    first = tokens.setdefault(token.content, token)
    for known in (first.id, vocab.get(token.content, token.id)):
        if known != token.id:
            raise UserError(f"added token {token.content!r} has two ids, {known} and {token.id}")


def _role(role: str, config: dict, older: dict, tokens: dict[str, AddedToken]) -> str | None:
    """The name of the token that is the "bos_token", "eos_token" or "pad_token"."""
    named = config.get(role) or older.get(role)
    if named is None and role not in config:
        return next((name for name in USUAL[role] if name in tokens), None)
    return named["content"] if isinstance(named, dict) else named


def _check_ids(tokens: dict[str, AddedToken], vocab: dict[str, int]) -> None:
    names = {index: token for token, index in vocab.items()}
    for name, token in tokens.items():
        if names.setdefault(token.id, name) != name:
            raise UserError(f"tokens {names[token.id]!r} and {name!r} have the same id, {token.id}")
