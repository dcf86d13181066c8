"""``python -m lessons.screenshots``: take the README's pictures of the chats and of a training's page.

They are ``lessons/terminal.png``, ``web.png`` and ``report.png``. For the last one, stage 1 is trained, which takes a
few minutes. This needs ``pip install gradio playwright``, Chromium (on Debian: ``apt-get install chromium``) and a
system with pseudo-terminals. ``python -m lessons.example`` takes the picture of the explainer.
"""

import html
import io
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from lessons.browser import chromium, save_screenshot
from minillava.errors import run_program
from minillava.page import as_png

if TYPE_CHECKING:
    from playwright.sync_api import Browser

HERE = Path(__file__).parent
SAMPLE = 2  # of the web chat's; SEED draws the same scene
SEED = 11
TALK = ("what do you see?", "is there a dog?", "where is the flower?")
SCREEN = """
body { margin: 0; background: #16181d; }
pre { margin: 16px; width: 100ch; font: 14px 'DejaVu Sans Mono', monospace; color: #e8e8e4; white-space: pre-wrap;
  word-break: break-all; }
"""


def terminal(browser: "Browser") -> bytes:
    """chat.py in a terminal."""
    page = browser.new_page(viewport={"width": 876, "height": 400})
    page.set_content(f"<style>{SCREEN}</style><pre>{as_html(session(f'--seed={SEED}', TALK))}</pre>")
    return page.screenshot(full_page=True)


def session(option: str, lines: tuple[str, ...]) -> str:
    """All that chat.py writes to a terminal. ``lines`` are typed, each at a prompt, and then Ctrl-D."""
    import pty  # not on Windows

    ours, its = pty.openpty()
    command = [sys.executable, "chat.py", option]
    with subprocess.Popen(command, cwd=HERE.parent, stdin=its, stdout=its, stderr=its, start_new_session=True):
        os.close(its)
        written, keys = b"", [*(f"{line}\r".encode() for line in lines), b"\x04"]
        while True:
            try:
                written += os.read(ours, 1 << 16)
            except OSError:  # the program has ended
                return written.decode("utf-8", "replace")
            if keys and written.endswith(b"Human: "):
                os.write(ours, keys.pop(0))


def as_html(written: str) -> str:
    """What a program wrote to a terminal: text in 24-bit colours as HTML, other commands to the terminal left out."""
    shown, colours = "", {}
    for piece in re.split(r"(\x1b\[[?\d;]*[A-Za-z])", written.replace("\r\n", "\n")):
        if found := re.fullmatch(r"\x1b\[([34]8);2;(\d+);(\d+);(\d+)m", piece):
            kind, *colour = found.groups()
            colours["color" if kind == "38" else "background"] = f"rgb({','.join(colour)})"
        elif piece == "\x1b[0m":
            colours = {}
        elif piece and not piece.startswith("\x1b"):
            style = ";".join(f"{name}:{colour}" for name, colour in colours.items())
            text = html.escape(piece)
            shown += f'<span style="{style}">{text}</span>' if style else text
    return shown


def web(browser: "Browser") -> bytes:
    """chat.py --web in a wide window, light, and on a phone, dark."""
    command = [sys.executable, "chat.py", "--web", "--port", "0"]
    with subprocess.Popen(command, cwd=HERE.parent, stdout=subprocess.PIPE, text=True) as program:
        try:
            address = re.search(r"http:\S+", program.stdout.readline())[0]
            wide = talk_at(address, browser, (1180, 700), "light")
            phone = talk_at(address, browser, (390, 844), "dark")
        finally:
            program.kill()
    return side_by_side(wide, phone)


def side_by_side(wide: Image.Image, phone: Image.Image) -> bytes:
    """A window and a phone's, as high as it, as a PNG."""
    phone = phone.resize((phone.width * wide.height // phone.height, wide.height), Image.Resampling.LANCZOS)
    both = Image.new("RGB", (wide.width + 20 + phone.width, wide.height), "white")
    both.paste(wide, (0, 0))
    both.paste(phone, (wide.width + 20, 0))
    return as_png(both)


def talk_at(address: str, browser: "Browser", size: tuple[int, int], scheme: str) -> Image.Image:
    """A window of the web chat, after a talk about one of its samples."""
    page = browser.new_page(viewport=dict(zip(("width", "height"), size)), color_scheme=scheme)
    page.goto(address)
    page.locator(".samples button").nth(SAMPLE).click()
    page.wait_for_timeout(1000)
    for count, question in enumerate(TALK, start=1):
        page.locator("textarea").fill(question)
        page.get_by_role("button", name="Ask", exact=True).click()
        page.wait_for_function("count => document.querySelectorAll('.talk .answer').length == count", arg=count)
        page.wait_for_timeout(1500)  # the answer is written
    page.locator("textarea").blur()
    return Image.open(io.BytesIO(page.screenshot(full_page=True)))


def report(browser: "Browser") -> bytes:
    """The page of a training of stage 1: its top in a wide window, light, and its answers on a phone, dark."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "train.py", "--stage", "1", "--out", folder]
        subprocess.run(command, cwd=HERE.parent, check=True)
        shown = []
        for width, height, scheme in ((1180, 1000, "light"), (390, 900, "dark")):
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
            page.goto((Path(folder) / "stage1.report.html").as_uri())
            page.wait_for_selector("svg")
            if scheme == "dark":
                page.locator("#cards").evaluate("cards => cards.scrollIntoView()")
            shown.append(Image.open(io.BytesIO(page.screenshot())))
    return side_by_side(*shown)


TAKEN: tuple[Callable[["Browser"], bytes], ...] = (terminal, web, report)


def main() -> None:
    with chromium() as browser:
        for take in TAKEN:
            path = HERE / f"{take.__name__}.png"
            save_screenshot(take(browser), path)
            print(path)


if __name__ == "__main__":
    run_program(main)
