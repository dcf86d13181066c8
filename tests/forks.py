"""pytest in forks of one process that has imported the slow modules: a run takes little more time than its tests."""

import contextlib
import io
import multiprocessing
import resource
from collections.abc import Callable
from multiprocessing.connection import Connection

import conftest  # noqa: F401  keeps transformers quiet and offline
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

SECONDS = 60  # of CPU time, after which a run is killed


def run_pytest(arguments: list[str], prepare: Callable[[], None]) -> tuple[int | None, str]:
    """Call ``prepare``, then pytest, in a fork. Returns pytest's exit code and output, or (None, "") if the fork is
    killed, as it is after SECONDS."""
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
