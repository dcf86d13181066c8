"""The server: what it answers to, where it listens, how it ends."""

import contextlib
import re
import socket
from collections.abc import Callable

import gradio as gr
import uvicorn
from fastapi import FastAPI
from PIL import Image
from starlette.responses import PlainTextResponse

from minillava.errors import UserError
from minillava.model.llava import Llava
from minillava.web.page import STYLE, build
from minillava.web.visits import MOST_BYTES, Chat

# All paths that the page asks for. Gradio has many more, among them other servers' pages and files on this machine.
SERVED = re.compile(
    r"/(config|theme\.css|favicon\.ico|manifest\.json|(assets|static)/.*"
    r"|gradio_api/(startup-events|queue/join|queue/data|cancel|reset|heartbeat/\w+))?"
)
POLICY = "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'"  # a browser then loads nothing from elsewhere


class Gate:
    """ASGI: answers to SERVED only, takes no more than a picture's worth of data, and sends POLICY with everything."""

    def __init__(self, app: Callable):
        self.app = app

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])

        async def send_with_policy(message: dict) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY.encode())]
            await send(message)

        app = self.app
        if scope["type"] != "http" or not SERVED.fullmatch(scope["path"]):
            app = PlainTextResponse("not found", 404)
        elif b"transfer-encoding" in headers or int(headers.get(b"content-length", 0)) > MOST_BYTES * 3 // 2:
            app = PlainTextResponse("too large", 413)
        await app(scope, receive, send_with_policy)


def make_server(chat: Chat, temperature: float, top_p: float) -> uvicorn.Server:
    """A server of the page: ``run(sockets=[listen(...)])`` runs it."""
    app = gr.mount_gradio_app(
        FastAPI(),
        build(chat, temperature, top_p),
        "/",
        footer_links=[],
        run_history=False,
        show_error=False,
        theme=gr.themes.Default(font="system-ui", font_mono="monospace"),  # the default is downloaded
        css_paths=STYLE,
    )
    # Open pages keep a connection; it is cut a second after Ctrl-C. uvicorn would log that as an error.
    return uvicorn.Server(uvicorn.Config(Gate(app), log_level="critical", timeout_graceful_shutdown=1))


def listen(host: str, port: int) -> socket.socket:
    """Raises UserError if ``host`` is no address of this machine, or the port is taken or not allowed."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()
    except OSError as error:
        raise UserError(f"--host {host}, --port {port}: {error.strerror or error}") from None
    return listener


def serve(
    model: Llava,
    draw: Callable[[int], Image.Image],
    host: str,
    port: int,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
) -> None:
    """Serve the page until Ctrl-C. ``draw`` draws the scene of a seed. Raises UserError as listen() does."""
    listener = listen(host, port)
    address = "[{}]:{}" if listener.family == socket.AF_INET6 else "{}:{}"
    print("open http://" + address.format(*listener.getsockname()[:2]) + " in a browser; Ctrl-C ends", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        make_server(Chat(model, draw, max_new_tokens), temperature, top_p).run(sockets=[listener])
