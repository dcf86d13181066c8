"""Servers that are broken or mean harm, for tests of ``data.instruct``: each function of SERVERS is what one sends."""

import contextlib
import functools
import gzip
import json
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable

ROW = "Question: What is it?\n===\nAnswer: A dog."
SERVERS: dict[str, Callable[[socket.socket], None]] = {}


def server(behave: Callable[[socket.socket], None]) -> Callable[[socket.socket], None]:
    SERVERS[behave.__name__] = behave
    return behave


def send(to: socket.socket, body: bytes, status: str = "200 OK", **headers: object) -> None:
    said = {"Content_Type": "application/json", "Content_Length": len(body), "Connection": "close", **headers}
    lines = [f"HTTP/1.1 {status}", *(f"{name.replace('_', '-')}: {value}" for name, value in said.items())]
    to.sendall("\r\n".join([*lines, "", ""]).encode("latin-1") + body)


def completion(text: object = ROW, usage: str = '{"prompt_tokens": 9, "completion_tokens": 9}', end="stop") -> bytes:
    choice = {"index": 0, "finish_reason": end, "message": {"role": "assistant", "content": text}}
    return f'{{"id": "1", "object": "chat.completion", "choices": [{json.dumps(choice)}], "usage": {usage}}}'.encode()


def trouble(message: str) -> bytes:
    return json.dumps({"error": {"message": message}}).encode()


@functools.cache
def bomb(megabytes: int, begin: bytes = b"\x1f\x8b\x08\0\0\0\0\0\0\xff", twice: bool = False) -> bytes:
    """So many megabytes of spaces in a thousandth of that, as gzip or as the format that begins with ``begin``.

    ``twice``: compressed once more, to a few kilobytes.
    """
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(b" " * 2**20) + packer.flush(zlib.Z_FULL_FLUSH)
    return gzip.compress(begin + block * megabytes) if twice else begin + block * megabytes


@server
def good(to):
    send(to, completion())


@server
def good_gzip(to):
    send(to, gzip.compress(completion()), Content_Encoding="gzip")


@server
def headers_by_the_byte(to):
    for byte in b"HTTP/1.1 200 OK\r\nX-Long: " + b"a" * 3600:
        to.sendall(bytes([byte]))
        time.sleep(0.5)


@server
def body_by_the_byte(to):
    send(to, b"", Content_Length=3600)
    for _ in range(3600):
        to.sendall(b" ")
        time.sleep(0.5)


@server
def nothing(to):
    time.sleep(3600)


@server
def hangs_up(to):
    to.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@server
def gzip_bomb(to):
    send(to, bomb(5300), Content_Encoding="gzip")


@server
def gzip_bomb_401(to):
    send(to, bomb(5300), "401 Unauthorized", Content_Encoding="gzip")


@server
def gzip_in_gzip(to):
    send(to, bomb(5300, twice=True), Content_Encoding="gzip, gzip")


@server
def not_gzip(to):
    send(to, completion(), Content_Encoding="gzip")


@server
def brotli(to):
    send(to, b"\x0b\x02\x80text\x03", Content_Encoding="br")


@server
def charset_that_unpacks(to):
    send(to, bomb(900, b"\x78\xda"), "401 Unauthorized", Content_Type="text/plain; charset=zlib")


@server
def fifty_megabytes(to):
    send(to, completion("a" * 50_000_000))


@server
def fifty_megabytes_500(to):
    send(to, b"a" * 50_000_000, "500 Oops")


@server
def body_without_end(to):
    send(to, b"", Content_Length=10**15)
    while True:
        to.sendall(b" " * 65536)


@server
def headers_without_end(to):
    to.sendall(b"HTTP/1.1 200 OK\r\n")
    while True:
        to.sendall(b"X-More: and more\r\n")


@server
def informs_without_end(to):
    while True:
        to.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")


@server
def longer_than_a_row(to):
    send(to, completion(ROW + "a" * 900_000))


@server
def brackets(to):
    send(to, b"[" * 200_000)


@server
def brackets_401(to):
    send(to, b"[" * 200_000, "401 Unauthorized")


@server
def small_objects(to):
    send(to, b'{"choices": [' + b"[]," * 340_000 + b"[]]}")


@server
def infinite_usage(to):
    send(to, completion(usage='{"prompt_tokens": 1e400, "completion_tokens": NaN}'))


@server
def usage_of_300_digits(to):
    send(to, completion(usage=f'{{"prompt_tokens": {"9" * 300}, "completion_tokens": -{"9" * 300}}}'))


@server
def usage_of_5000_digits(to):
    send(to, completion(usage=f'{{"prompt_tokens": {"9" * 5000}, "completion_tokens": 1}}'))


@server
def usage_of_other_types(to):
    send(to, completion(usage='{"prompt_tokens": [1], "completion_tokens": {"a": "\\u001b[31m"}}'))


@server
def null(to):
    send(to, b"null")


@server
def no_choices(to):
    send(to, b'{"choices": null, "usage": []}')


@server
def text_of_another_type(to):
    send(to, completion([{"type": "text", "text": ROW}]))


@server
def page(to):
    send(to, b"<html>\x1b[31mbusy</html>", Content_Type="text/html")


@server
def half(to):
    send(to, completion()[:50])


@server
def content_length_too_large(to):
    send(to, completion(), Content_Length=10_000)


@server
def content_length_negative(to):
    send(to, completion(), Content_Length=-5)


@server
def redirect_to_another_host(to):
    send(to, b"", "307 Elsewhere", Location="http://\x1b[31m.invalid/v1")


@server
def redirect_to_itself(to):
    send(to, b"", "308 Here", Location="/v1/chat/completions")


@server
def always_500(to):
    send(to, trouble("\x1b[31mbroken"), "500 \x80\x9b31m")


@server
def escapes_401(to):
    send(to, trouble("\x1b]0;title\x07\x1b[2Jno\r\nkey\x9b31m\u202e"), "401 Unauthorized")


@server
def escapes_400(to):
    send(to, trouble("\x1b]0;title\x07\x1b[2Jtoo\r\nlong\x9b31m"), "400 Bad")


@server
def escapes_in_the_end(to):
    send(to, completion(None, end="\x1b[2J" * 1000))


@server
def not_utf_8(to):
    send(to, completion().replace(b"dog", b"d\xff\xfeg"))


@server
def not_utf_8_401(to):
    send(to, b"\xff\xfe\x9b31m", "401 Unauthorized")


@server
def half_a_character(to):
    send(to, completion("Question: What?\n===\nAnswer: A d\ud83dg."))


@server
def retry_in_a_minute(to):
    send(to, b"{}", "429 Later", Retry_After="59")


@server
def retry_in_a_strange_year(to):
    send(to, b"{}", "429 Later", Retry_After="Mon, 01 Jan 99999999999999999999 00:00:00 GMT")


@server
def another_protocol(to):
    to.sendall(b"220 mail.example ESMTP\x1b[31m\r\n")


@contextlib.contextmanager
def serve(behave: Callable[[socket.socket], None], asked: list[float]):
    """The address of a server that reads each request, adds the time to ``asked``, and then does as ``behave`` says."""

    def answer(to: socket.socket) -> None:
        with to, contextlib.suppress(OSError), to.makefile("rb") as request:
            size = 0
            while line := request.readline().strip():
                name, _, value = line.partition(b":")
                size = int(value) if name.lower() == b"content-length" else size
            request.read(size)
            asked.append(time.monotonic())
            behave(to)

    def accept() -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        threading.Thread(target=accept, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        finally:
            listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
