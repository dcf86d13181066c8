"""Pages that need nothing but a browser: HTML, its script, its data and its pictures in one file."""

import base64
import io
import json
from pathlib import Path

from PIL import Image


def fill(template: Path, data: dict) -> str:
    """``template``.html with the script ``template``.js and ``data`` in it.

    The data holds text of users and models. In it "<" is written so that it ends no script.
    """
    html, script = (template.with_name(f"{template.name}.{end}").read_text(encoding="utf-8") for end in ("html", "js"))
    values = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")  # other than ASCII is \uXXXX already
    head, middle, tail = html.replace("{{SCRIPT}}", "{{DATA}}").split("{{DATA}}")
    return head + values + middle + script + tail


def as_png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()


def data_uri(image: Image.Image) -> str:
    """A picture as the address of an <img>."""
    return "data:image/png;base64," + base64.b64encode(as_png(image)).decode()
