"""A language model behind any OpenAI-compatible endpoint (OpenAI, vLLM, Ollama, llama.cpp's server) as the teacher.

The package ``openai`` sends the requests. It retries after lost connections, time-outs, rate limits and server errors,
waiting 0.5, 1, 2, 4, 8, 8, ... seconds or as long as the server's Retry-After says. This module retries after a
response that is broken or not a chat completion.
"""

import os
import re
import time

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

    ``timeout``: seconds for one reply; ``pause``: seconds to wait after a broken response.
    """

    def __init__(self, model: str, base_url: str | None = None, timeout: float = 300.0, pause: float = 2.0):
        """The key is read from OPENAI_API_KEY; none is needed if ``base_url`` is given.

        Raises UserError if the package or the key is missing, or ``base_url`` is not a URL.
        """
        try:
            import openai
        except ImportError:
            raise UserError("--teacher openai needs a package: pip install openai") from None
        if base_url and not re.match(r"https?://\w", base_url):
            raise UserError(f"--base-url {base_url}: must be an address such as http://localhost:8000/v1")
        key = os.environ.get("OPENAI_API_KEY", "").strip() or (base_url and "none")
        if not key:
            raise UserError("OPENAI_API_KEY is not set; set it, or give --base-url for an endpoint that needs no key")
        self.model, self.pause, self._openai = model, pause, openai
        self._client = openai.OpenAI(api_key=key, base_url=base_url, timeout=timeout, max_retries=RETRIES)

    def reply(self, request: Request) -> Reply:
        """Ask for a reply. Raises NoReply if only this request fails, UserError if others would fail too."""
        openai = self._openai
        for _ in range(RETRIES + 1):
            try:
                completion = self._client.chat.completions.create(model=self.model, messages=request.messages)
                choice, usage = completion.choices[0], completion.usage
                text, end = choice.message.content, choice.finish_reason
                tokens = (int(usage.prompt_tokens or 0), int(usage.completion_tokens or 0)) if usage else (0, 0)
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:  # prompt too long or not allowed
                raise NoReply(_one_line(error)) from None
            except openai.OpenAIError as error:
                raise UserError(f"{self._client.base_url}: {_one_line(error)}") from None
            except (ValueError, TypeError, AttributeError, IndexError):  # truncated, or not a chat completion
                time.sleep(self.pause)
                continue
            if not isinstance(text, str) or end in ("length", "content_filter"):
                raise NoReply(f"incomplete text (finish_reason {end})", tokens)
            reply = Reply(text)
            reply.tokens = tokens
            return reply
        raise UserError(f"{self._client.base_url}: its replies are not chat completions")


def _one_line(error: Exception) -> str:
    cause = f": {error.__cause__}" if error.__cause__ else ""
    return " ".join(f"{error}{cause}".split())[:300]
