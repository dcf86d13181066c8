"""A language model behind any OpenAI-compatible endpoint (OpenAI, vLLM, Ollama, llama.cpp's server) as the teacher.

The package ``openai`` sends the requests. It retries after lost connections, time-outs, rate limits and server errors,
waiting 0.5, 1, 2, 4, 8, 8, ... seconds or as long as the server's Retry-After says. This module retries after a
response that is broken or not a chat completion. ``timeout`` bounds the time in all.
"""

import os
import re
import threading
import time
from concurrent.futures import Future, TimeoutError  # a class of its own before Python 3.11

from data.journal import MOST_TOKENS
from data.teachers import Request
from minillava.errors import UserError

RETRIES = 8  # more than half a minute of waiting in total


class Reply(str):
    """The text of a reply, with the number of ``tokens`` used: (of the prompt, of the completion)."""

    tokens: tuple[int, int] = (0, 0)


class NoReply(Exception):
    """The endpoint gives no usable reply to this request. ``reason``: why, in a few words; ``tokens``: as in Reply."""

    def __init__(self, reason: str, tokens: tuple[int, int] = (0, 0)):
        super().__init__(reason)
        self.reason, self.tokens = reason, tokens


class OpenAITeacher:
    """``reply`` may be called from many threads at once.

    ``timeout``: seconds for one reply, all retries included; ``pause``: seconds to wait after a broken response.
    """

    def __init__(self, model: str, base_url: str | None = None, timeout: float = 300.0, pause: float = 2.0):
        """The key is read from OPENAI_API_KEY; none is needed if ``base_url`` is given.

        Raises UserError if the package or the key is missing, or ``base_url`` or the key cannot be right.
        """
        try:
            import openai
        except ImportError:
            raise UserError("--teacher openai needs a package: pip install openai") from None
        from data.teachers.client import Client

        if base_url and not re.match(r"https?://\w", base_url):
            raise UserError(f"--base-url {base_url}: must be an address such as http://localhost:8000/v1")
        key = os.environ.get("OPENAI_API_KEY", "").strip() or (base_url and "none")
        if not key:
            raise UserError("OPENAI_API_KEY is not set; set it, or give --base-url for an endpoint that needs no key")
        if not (key.isascii() and key.isprintable()):
            raise UserError("OPENAI_API_KEY has a character that no key has")
        self.model, self.timeout, self.pause, self._openai = model, timeout, pause, openai
        try:
            self._client = openai.OpenAI(
                api_key=key, base_url=base_url, timeout=timeout, max_retries=RETRIES, http_client=Client()
            )
        except Exception as error:  # an address, a proxy or certificates that the package cannot use
            raise UserError(f"{base_url or 'OpenAI'}: {_one_line(error)}") from None

    def reply(self, request: Request) -> Reply:
        """Ask for a reply. Raises NoReply if only this request fails, UserError if others would fail too.

        The request runs in a separate thread, which is abandoned after ``timeout``: the package restarts its own
        timeout with every byte, so a slow server could keep it waiting for ever.
        """
        result: Future[Reply] = Future()

        def ask() -> None:
            try:
                result.set_result(self._ask(request))
            except Exception as error:
                result.set_exception(error)

        threading.Thread(target=ask, daemon=True).start()
        try:
            return result.result(self.timeout)
        except TimeoutError:
            where = self._client.base_url
            raise UserError(f"{where}: no whole reply within {self.timeout:g} s (--timeout)") from None

    def _ask(self, request: Request) -> Reply:
        openai = self._openai
        for _ in range(RETRIES + 1):
            try:
                completion = self._client.chat.completions.create(model=self.model, messages=request.messages)
                choice, usage = completion.choices[0], completion.usage
                text, end = choice.message.content, str(choice.finish_reason)[:40]
                tokens = (_count(usage.prompt_tokens), _count(usage.completion_tokens)) if usage else (0, 0)
            except NoReply:
                raise
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:  # prompt too long or not allowed
                raise NoReply(_one_line(error)) from None
            except openai.OpenAIError as error:
                raise UserError(f"{self._client.base_url}: {_one_line(error)}") from None
            except Exception:  # truncated, or not a chat completion: the package may fail in any way
                time.sleep(self.pause)
                continue
            if not isinstance(text, str) or end in ("length", "content_filter"):
                raise NoReply(f"incomplete text (finish_reason {end})", tokens)
            reply = Reply(text)
            reply.tokens = tokens
            return reply
        raise UserError(f"{self._client.base_url}: its replies are not chat completions")


def _count(tokens: object) -> int:
    """A number of tokens as the endpoint gives it; 0 if it is none."""
    return int(tokens) if isinstance(tokens, int | float) and 0 <= tokens <= MOST_TOKENS else 0


def _one_line(error: Exception) -> str:
    cause = f": {error.__cause__}" if error.__cause__ else ""
    return " ".join(f"{error}{cause}".split())[:300]
