"""The files of a tokenizer's folder, and the vocabulary, added tokens and special tokens that they define together.

``tokenizer.json`` holds nearly everything. ``tokenizer_config.json`` names the bos, eos and padding tokens; older
folders have ``special_tokens_map.json`` and ``added_tokens.json`` for that. If a folder has only a ``tokenizer.model``,
it is converted to the equivalent tokenizer.json.
"""

import itertools
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from minillava.errors import UserError
from minillava.formats import tokenizer_json
from minillava.formats.json_object import parse_json_object, read_bytes
from minillava.formats.tokenizer_json import AddedToken
from minillava.formats.tokenizer_model import convert

IMAGE, PAD, END = "<image>", "<pad>", "</s>"
JSON, CONFIG, MODEL = "tokenizer.json", "tokenizer_config.json", "tokenizer.model"
MAP, ADDED = "special_tokens_map.json", "added_tokens.json"
LARGEST = 50 << 20  # maximum bytes of a file; the largest tokenizer.json of these families has 17 MB
# The names to look for, in this order, if no file says which token has the role.
USUAL = {
    "bos_token": ("<s>", "<|begin_of_text|>", "<|endoftext|>"),
    "eos_token": (END, "<|end_of_text|>", "<|endoftext|>"),
    "pad_token": (PAD, "<|finetune_right_pad_id|>"),
}
# The classes for which transformers uses tokenizer.json unchanged; for others it rebuilds parts of the tokenizer.
OBEDIENT = ("PreTrainedTokenizerFast", "TokenizersBackend")
# A key that we write to tokenizer_config.json. Its value MODEL says that tokenizer.json was converted from that file,
# which lies next to it and has the ranks of the merges.
RANKS = "merge_ranks"


class TokenizerFiles(NamedTuple):
    """A folder's tokenizer, as ``interpret`` reads it.

    source: the file that errors about ``stored`` name
    stored: the contents of tokenizer.json
    vocab, merges: token to id; pairs in order of rank
    ranks: of a tokenizer.model, the rank of each token that is not special; else None
    tokens: the added tokens by name
    roles: the names of "bos_token", "eos_token" and "pad_token", in this order (None if there is none)
    files: what to write to save the tokenizer, by file name: bytes, or a dict to be written as JSON
    byte_level: tokens are made of bytes; else of characters
    ignore_merges: a word that is in the vocabulary becomes that one token, without applying merges
    add_bos: the bos token is put before a text
    """

    source: Path
    stored: dict
    vocab: dict[str, int]
    merges: list[tuple[str, str]]
    ranks: dict[str, int] | None
    tokens: dict[str, AddedToken]
    roles: dict[str, str | None]
    files: dict[str, bytes | dict]
    byte_level: bool
    ignore_merges: bool
    add_bos: bool


def read_files(folder: str | os.PathLike, original: bool = False) -> dict[str, bytes]:
    """The contents of a tokenizer's files by name. Raises UserError for a file that cannot be read or is too large.

    ``original``: as the LLaVA authors' code reads them, tokenizer.model instead of tokenizer.json, "legacy" by default.
    """
    paths = [Path(folder, name) for name in (JSON, CONFIG, MODEL, MAP, ADDED)]
    files = {path.name: read_bytes(path, LARGEST) for path in paths if os.path.exists(path)}
    if original:
        config = parse_json_object(Path(folder, CONFIG), files.get(CONFIG, b"{}"))
        files[CONFIG] = dump({"legacy": True, **config})
        if MODEL in files:
            files.pop(JSON, None)
    return files


def interpret(folder: Path, files: dict[str, bytes]) -> TokenizerFiles:
    """Combine the files. Raises UserError, naming the file in ``folder``, if one is invalid or contradicts another."""
    config, older, oldest = (parse_json_object(folder / name, files.get(name, b"{}")) for name in (CONFIG, MAP, ADDED))
    obedient = JSON in files and config.get("tokenizer_class") in OBEDIENT
    source, ranks = folder / (JSON if JSON in files else MODEL), None
    if JSON not in files or config.get(RANKS) == MODEL:
        if MODEL not in files:
            what = f"{MODEL}: No such file" if JSON in files else f"{JSON}: No such file, nor a {MODEL} next to it"
            raise UserError(f"{folder}/{what}")
        with blame(folder / MODEL):
            converted = convert(files[MODEL], config)
        stored, ranks = converted.stored, converted.ranks
        config = {**converted.roles, **config}
    if JSON in files:
        stored = parse_json_object(source, files[JSON])

    with blame(source):
        vocab, merges, ignore_merges = tokenizer_json.read_bpe(stored["model"])
        added = [(source, token["id"], token) for token in stored["added_tokens"]]
        listed = {token["content"] for token in stored["added_tokens"]}
    with blame(folder / CONFIG):
        more = (config.get("added_tokens_decoder") or {}).items()
        added += [(folder / CONFIG, int(index), token) for index, token in more]
    added += [(folder / ADDED, index, {"content": content}) for content, index in oldest.items()]
    tokens: dict[str, AddedToken] = {}
    for path, index, entry in added:
        with blame(path):
            token = AddedToken.from_dict(index, entry)
            # The flags are those of the file read first; the id must be the same in all files.
            first = tokens.setdefault(token.content, token)
            for known in (first.id, vocab.get(token.content, index)):
                if known != index:
                    raise UserError(f"added token {token.content!r:.80} has two ids, {known} and {index}")
    with blame(folder / CONFIG):
        roles = {role: _role(role, config, older, tokens) for role in USUAL}
        for role, name in roles.items():
            if name and name not in tokens:
                if name not in vocab:
                    raise UserError(f"{role} {name!r:.80} is not in the vocabulary")
                tokens[name] = AddedToken(name, vocab[name])
        bos = roles["bos_token"]
        if JSON not in files and bos in listed and config.get("add_bos_token", True):
            stored["post_processor"] = tokenizer_json.put_first(bos, tokens[bos].id)
    with blame(source):
        names: dict[int, str] = {}
        for name, index in {**vocab, **{name: token.id for name, token in tokens.items()}}.items():
            if names.setdefault(index, name) != name:
                raise UserError(f"tokens {names[index]!r:.80} and {name!r:.80} have the same id, {index}")
        byte_level = '"ByteLevel"' in json.dumps(stored.get("pre_tokenizer"))
        add_bos = tokenizer_json.puts_first(stored.get("post_processor"), bos)
    # Make them special, so that typing a token's name in a prompt neither ends an answer nor inserts a picture.
    tokens |= {name: tokens[name]._replace(special=True) for name in (*roles.values(), IMAGE) if name in tokens}

    if unlisted := [token for name, token in tokens.items() if name not in listed]:
        tokenizer_json.include(stored, unlisted)
    if unlisted or JSON not in files:
        files = {**files, JSON: stored}
    if not obedient:
        named = {role: name for role, name in roles.items() if name}
        named |= {RANKS: MODEL} if ranks and not byte_level else {}
        config = {**config, **named, "tokenizer_class": OBEDIENT[0]}
    files = {**files, CONFIG: config}
    flags = (byte_level, ignore_merges, add_bos)
    return TokenizerFiles(source, stored, vocab, merges, ranks, tokens, roles, files, *flags)


def extend(read: TokenizerFiles, names: Iterable[str], start: int) -> TokenizerFiles:
    """Add ``names`` as special tokens.

    A name that is an added token already is skipped. A name in the vocabulary keeps its id; the others get ids from
    ``start`` up. If PAD is among ``names``, it becomes the padding token unless there is one.
    """
    names, ids = list(dict.fromkeys(names)), itertools.count(start)
    new = {
        name: AddedToken(name, read.vocab[name] if name in read.vocab else next(ids), special=True)
        for name in names
        if name not in read.tokens
    }
    model = {**read.stored["model"], "vocab": dict(read.vocab)}
    stored = {**read.stored, "added_tokens": list(read.stored["added_tokens"]), "model": model}
    tokenizer_json.include(stored, new.values())
    roles = read.roles | ({"pad_token": PAD} if PAD in names and not read.roles["pad_token"] else {})
    config = read.files[CONFIG] | {role: name for role, name in roles.items() if name != read.roles[role]}
    # tokenizer.model lacks the new tokens. It is left out unless its ranks are needed.
    kept = {name: content for name, content in read.files.items() if name != MODEL or RANKS in config}
    files = {**kept, JSON: stored, CONFIG: config}
    return read._replace(stored=stored, vocab=model["vocab"], tokens=read.tokens | new, roles=roles, files=files)


def write_files(folder: Path, vocab: dict[str, int], merges: list[tuple[str, str]], special: dict[int, str]) -> None:
    """Write tokenizer.json and tokenizer_config.json of a byte-level BPE with GPT-2's split into words.

    ``special``: the names of the special tokens by id.
    """
    words = tokenizer_json.byte_level_part(use_regex=True)
    stored = tokenizer_json.bpe_file({"vocab": vocab, "merges": merges}, special, pre_tokenizer=words, decoder=words)
    config = {"tokenizer_class": OBEDIENT[0], "eos_token": END, "pad_token": PAD}
    config |= {"extra_special_tokens": {"image_token": IMAGE}, "clean_up_tokenization_spaces": False}
    config["model_max_length"] = 1024
    folder.mkdir(parents=True, exist_ok=True)
    (folder / JSON).write_bytes(dump(stored))
    (folder / CONFIG).write_bytes(dump(config))


@contextmanager
def blame(path: Path) -> Iterator[None]:
    """Turn errors raised while interpreting a file into a UserError that names the file."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise UserError(f"{path}: not a supported kind of tokenizer ({error!r:.200})") from None


def dump(value: dict) -> bytes:
    """JSON, formatted as in Hugging Face's files."""
    return json.dumps(value, ensure_ascii=False, indent=1).encode()


def _role(role: str, config: dict, older: dict, tokens: dict[str, AddedToken]) -> str | None:
    """The name of the token with the role "bos_token", "eos_token" or "pad_token"; None if there is none."""
    named = config.get(role) or older.get(role)
    if named is None and role not in config:
        return next((name for name in USUAL[role] if name in tokens), None)
    return (named["content"] if isinstance(named, dict) else named) or None
