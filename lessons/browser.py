"""Headless Chromium, for screenshots and for the tests of pages."""

import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from minillava.errors import UserError

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@contextmanager
def chromium() -> Iterator["Browser"]:
    """Raises UserError without playwright or Chromium."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise UserError("a browser needs playwright: pip install playwright") from None
    if not (program := shutil.which("chromium") or shutil.which("google-chrome")):
        raise UserError("there is no Chromium; on Debian: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


def save_screenshot(content: bytes, path: Path) -> None:
    """Keep a screenshot, a PNG, with at most 256 colours: a third of the bytes."""
    picture = Image.open(io.BytesIO(content)).convert("RGB")
    picture.quantize(method=Image.Quantize.MAXCOVERAGE, kmeans=2).save(path, optimize=True)
