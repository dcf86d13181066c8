"""pytest in forks of one process that has imported what is slow to import: a run costs its tests and little more."""

import contextlib
import io
import multiprocessing
import resource
from collections.abc import Callable
from multiprocessing.connection import Connection

import conftest  # noqa: F401  keeps transformers quiet, and offline
import pytest
import sentencepiece  # noqa: F401
import tokenizers  # noqa: F401
from transformers import (  # noqa: F401
    AutoTokenizer,
    CLIPModel,
    LlamaForCausalLM,
    LlamaTokenizer,
    LlavaForConditionalGeneration,
    convert_slow_tokenizer,
)

SECONDS = 60  # of computing, after which a run is taken to have no end


def run_pytest(arguments: list[str], prepare: Callable[[], None]) -> tuple[int | None, str]:
    """Call ``prepare``, then pytest, in a fork. Returns pytest's exit code and what it printed; (None, "") for a run
    without an end."""
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(arguments, prepare, send))
    process.start()
    send.close()  # the fork has its own
    try:
        return receive.recv()
    except EOFError:
        return None, ""
    finally:
        process.join()


def _child(arguments: list[str], prepare: Callable[[], None], send: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        prepare()
        code = pytest.main(["-p", "no:cacheprovider", *arguments])
    send.send((int(code), printed.getvalue()))
