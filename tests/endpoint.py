"""A local chat-completions endpoint that fails on request, for tests of programs that use one."""

import contextlib
import hashlib
import json
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from data import prompts
from data.contexts import Context


def written(kind: str, prompt: str) -> str:
    """A well-formed reply that depends only on ``kind`` and ``prompt``."""
    word = hashlib.sha256(prompt.encode()).hexdigest()[:6]
    if kind == "detail":
        return f"A picture of {word}."
    pair = f"Question: What is {word}?\n===\nAnswer: It is {word}."
    return f"{pair}\n===\nQuestion: Is it?\n===\nAnswer: Yes, {word} it is." if kind == "conversation" else pair


class Endpoint:
    """``with Endpoint(behave) as endpoint``: serves at ``endpoint.url``.

    ``behave(prompt, times)`` decides how a request is answered: ``prompt`` is its last message, ``times`` how often it
    was sent before for the same kind of row. It returns "ok", "late" ("ok", once the test sets ``release``), the name
    of a method of Handler, an HTTP status, or the text to reply. ``answered`` counts the replies of "ok" and "late" by
    (kind, prompt); ``asked`` lists (seconds, kind, prompt, messages).
    """

    def __init__(self, behave: Callable[[str, int], str | int] = lambda prompt, times: "ok"):
        self.behave, self.lock, self.release = behave, threading.Lock(), threading.Event()
        self.asked: list[tuple[float, str, str, list]] = []
        self.answered: Counter = Counter()
        self.keys: set[str | None] = set()
        self.kinds = {prompts.messages(kind, Context("", "", (), ()))[0]["content"]: kind for kind in prompts.KINDS}

    def __enter__(self):
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"endpoint": self}))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.release.set()
        self.server.shutdown()
        self.server.server_close()


class Handler(BaseHTTPRequestHandler):
    endpoint: Endpoint
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # otherwise each reply takes 40 ms

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        kind = self.endpoint.kinds[body["messages"][0]["content"]]
        prompt = body["messages"][-1]["content"]
        with self.endpoint.lock:
            times = sum(asked[1:3] == (kind, prompt) for asked in self.endpoint.asked)
            self.endpoint.asked.append((time.monotonic(), kind, prompt, body["messages"]))
            self.endpoint.keys.add(self.headers["Authorization"])
        what = self.endpoint.behave(prompt, times)
        if what == "late":
            self.endpoint.release.wait(300)
        if what in ("ok", "late"):
            with self.endpoint.lock:
                self.endpoint.answered[kind, prompt] += 1
            self.send(200, self.completion(written(kind, prompt)))
        elif isinstance(what, int):
            self.send(what, json.dumps({"error": {"message": f"status {what}\nis meant"}}))
        elif hasattr(self, what):
            getattr(self, what)()
        else:
            self.send(200, self.completion(what))

    def completion(self, text: str | None, end: str = "stop") -> str:
        choice = {"index": 0, "finish_reason": end, "message": {"role": "assistant", "content": text}}
        usage = {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107}
        return json.dumps({"id": "1", "object": "chat.completion", "created": 1, "choices": [choice], "usage": usage})

    def send(self, status: int, text: str, kind: str = "application/json", **headers: str):
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(text.encode())), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(text.encode())

    def limited(self):
        self.send(429, "{}", Retry_After="1")

    def slow(self):
        """Hang up without a reply, after a while."""
        self.endpoint.release.wait(1)
        self.close_connection = True

    def half(self):
        self.send(200, self.completion("A picture.")[:60])

    def broken_off(self):
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b'{"id": "1", "choices": [{"ind')
        self.close_connection = True

    def page(self):
        self.send(200, "<html>busy</html>", "text/html")

    def other(self):
        self.send(200, '{"error": {"message": "overloaded"}}')

    def reset(self):
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def cut(self):
        self.send(200, self.completion("A picture of a", "length"))

    def silent(self):
        self.send(200, self.completion(None))

    def hold(self):
        """Do not answer before the test ends."""
        self.endpoint.release.wait(300)
        self.close_connection = True

    def handle(self):
        with contextlib.suppress(OSError, ValueError):  # the client may be gone: some tests kill it
            super().handle()

    def log_message(self, *_):
        pass
