"""Hub ids: huggingface_hub downloads them to a folder; without it or without a network, the error is one line."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from minillava import load
from minillava.errors import UserError
from minillava.hub import resolve_folder

NAME = "someone/some-llava.v1"


@pytest.fixture
def hub(tmp_path, monkeypatch) -> SimpleNamespace:
    """A fake huggingface_hub: ``content`` lists the files in the repository, ``calls`` the downloads requested."""
    cache = tmp_path / "cache"
    cache.mkdir()
    hub = SimpleNamespace(content=[], calls=[], cache=cache)

    def snapshot_download(name: str, allow_patterns: list[str]) -> str:
        hub.calls.append((name, allow_patterns))
        for file in hub.content:
            if any(Path(file).match(pattern) for pattern in allow_patterns):
                (cache / file).touch()
        return str(cache)

    hub.snapshot_download = snapshot_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    return hub


def refusal(name) -> str:
    with pytest.raises(UserError) as caught:
        resolve_folder(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_existing_folder_is_used_whatever_its_name(tmp_path, monkeypatch, hub):
    (tmp_path / NAME).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve_folder(NAME) == Path(NAME) and resolve_folder(tmp_path) == tmp_path
    assert not hub.calls


@pytest.mark.parametrize("name", ["nowhere", "/no/where", "./no/where", "../a", "a/b/c", "a/", "/a", "a b/c", "a/.."])
def test_what_is_no_hub_id_is_not_asked_for(hub, name):
    assert refusal(name).endswith("no such folder") and not hub.calls


@pytest.mark.parametrize("name", [NAME, Path(NAME)])
def test_an_id_is_downloaded_without_pickles_where_there_are_safetensors(hub, name):
    hub.content = ["config.json", "model-1.safetensors", "pytorch_model.bin", "flax_model.msgpack", "tokenizer.model"]
    assert resolve_folder(name) == hub.cache
    assert {path.name for path in hub.cache.iterdir()} == {"config.json", "model-1.safetensors", "tokenizer.model"}
    assert {asked for asked, _ in hub.calls} == {NAME}


def test_pickles_are_downloaded_where_there_is_nothing_else(hub):
    hub.content = ["config.json", "pytorch_model.bin", "flax_model.msgpack"]
    resolve_folder(NAME)
    assert {path.name for path in hub.cache.iterdir()} == {"config.json", "pytorch_model.bin"}


def test_without_the_package_a_line_says_how_to_get_the_folder(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for name in (NAME, "out/toy"):
        text = refusal(name)
        assert text.startswith(f"{name}: no such folder; if it is an id on the Hugging Face hub")
        assert "pip install huggingface_hub" in text


def test_that_there_is_no_such_folder_is_said_before_the_hub_is_asked(hub, capsys):
    def snapshot_download(name: str, allow_patterns: list[str]) -> str:
        assert capsys.readouterr().err == "out/toy: no such folder here; looking for it on the Hugging Face hub\n"
        raise OSError

    hub.snapshot_download = snapshot_download
    assert refusal("out/toy").startswith("out/toy: no such folder; downloading it from the Hugging Face hub failed")


def test_offline_a_line_says_how_to_get_the_folder():
    """With the real package, in offline mode."""
    text = refusal(NAME)
    assert text.startswith(f"{NAME}: no such folder") and "give its path" in text and "pip install" not in text


def test_load_takes_an_id(hub, tiny_model):
    hub.content = ["config.json"]
    with pytest.raises(UserError, match=re.escape("cache/config.json")):
        load(NAME)
