"""A language model behind any OpenAI-compatible endpoint (OpenAI, vLLM, Ollama, llama.cpp's server) as the teacher.

The package ``openai`` does the talking, and asks again after lost connections, time-outs, rate limits and errors of
the server: after 0.5, 1, 2, 4, 8, 8, ... seconds, or as long as the server's Retry-After says. What it leaves to its
callers is a body that is broken or no chat completion.
"""

import os
import re
import time

from data.teachers import Request
from minillava.errors import UserError

RETRIES = 8  # more than half a minute of waiting in all


class Reply(str):
    """The text of a reply that knows its price: ``tokens`` of the prompt and of the completion."""

    tokens: tuple[int, int] = (0, 0)


class NoReply(Exception):
    """The endpoint has no usable reply to this one request: ``reason`` in a few words, ``tokens`` as in Reply."""

    def __init__(self, reason: str, tokens: tuple[int, int] = (0, 0)):
        super().__init__(reason)
        self.reason, self.tokens = reason, tokens


class OpenAITeacher:
    """``reply`` may be called from many threads at once.

    ``timeout`` in seconds is for one reply; ``pause`` is the wait after a broken body.
    """

    def __init__(self, model: str, base_url: str | None = None, timeout: float = 300.0, pause: float = 2.0):
        """The key is read from OPENAI_API_KEY; where ``base_url`` is given none is needed.

        Raises UserError where the package or the key is missing, or ``base_url`` is no address.
        """
        try:
            import openai
        except ImportError:
            raise UserError("--teacher openai needs a package: pip install openai") from None
        if base_url and not re.match(r"https?://\w", base_url):
            raise UserError(f"--base-url {base_url}: an address such as http://localhost:8000/v1 is wanted")
        key = os.environ.get("OPENAI_API_KEY", "").strip() or (base_url and "none")
        if not key:
            raise UserError("OPENAI_API_KEY is not set; give it, or the --base-url of an endpoint that needs no key")
        self.model, self.pause, self._openai = model, pause, openai
        self._client = openai.OpenAI(api_key=key, base_url=base_url, timeout=timeout, max_retries=RETRIES)

    def reply(self, request: Request) -> Reply:
        """Ask. Raises NoReply where asking for something else may still succeed, UserError where it cannot."""
        openai = self._openai
        for _ in range(RETRIES + 1):
            try:
                completion = self._client.chat.completions.create(model=self.model, messages=request.messages)
                choice, usage = completion.choices[0], completion.usage
                text, end = choice.message.content, choice.finish_reason
                tokens = (int(usage.prompt_tokens or 0), int(usage.completion_tokens or 0)) if usage else (0, 0)
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:  # too long, or not allowed
                raise NoReply(_one_line(error)) from None
            except openai.OpenAIError as error:
                raise UserError(f"{self._client.base_url}: {_one_line(error)}") from None
            except (ValueError, TypeError, AttributeError, IndexError):  # half of a body, or no chat completion
                time.sleep(self.pause)
                continue
            if not isinstance(text, str) or end in ("length", "content_filter"):
                raise NoReply(f"no whole text (finish_reason {end})", tokens)
            reply = Reply(text)
            reply.tokens = tokens
            return reply
        raise UserError(f"{self._client.base_url}: its replies are no chat completions")


def _one_line(error: Exception) -> str:
    cause = f": {error.__cause__}" if error.__cause__ else ""
    return " ".join(f"{error}{cause}".split())[:300]
