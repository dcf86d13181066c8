"""The HTTP client with which the package ``openai`` asks: what a server sends cannot fill the memory."""

import json
import zlib

import openai

from data.teachers.openai import NoReply
from minillava.formats.llava_json import MAX_ROW

MOST_BYTES = 2 * MAX_ROW  # of a response, after decompression: more than a row may have, and as much thinking


class Client(openai.DefaultHttpxClient):
    """Reads no more than MOST_BYTES of a response, and follows no redirect: prompts go where the user says."""

    def __init__(self):
        super().__init__(headers={"Accept-Encoding": "gzip"}, follow_redirects=False)

    def send(self, request, *, stream: bool = False, **options):
        """Send a request. Raises NoReply if a good response is too long; an error's response gets that as its text."""
        response = super().send(request, stream=True, **options)
        # Any other encoding was not asked for, and several at once expand beyond all bounds: left as it is.
        gzip = response.headers.get("content-encoding", "").strip().lower() == "gzip"
        unpack, body = zlib.decompressobj(zlib.MAX_WBITS | 16), bytearray()
        try:
            for part in response.iter_raw():
                body += unpack.decompress(part, MOST_BYTES + 1 - len(body)) if gzip else part
                if len(body) > MOST_BYTES:
                    break
        finally:
            response.close()
        problem = None
        if len(body) > MOST_BYTES:
            problem = f"a response of more than {MOST_BYTES:,} bytes"
        elif response.has_redirect_location:
            problem = f"it redirects to {response.headers['location']}; if that is right, change --base-url"
        if problem and response.is_success:
            raise NoReply(problem)
        headers = response.headers.copy()
        headers.pop("content-encoding", None)
        headers["content-type"] = "application/json"  # without a charset, which may name a decompressor
        content = json.dumps({"error": {"message": problem}}).encode() if problem else bytes(body)
        return type(response)(response.status_code, headers=headers, content=content, request=request)
