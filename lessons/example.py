"""``python -m lessons.example``: write the explainer's example, ``lessons/look.html``, and its screenshot ``look.png``.

The screenshot needs ``pip install playwright`` and Chromium (on Debian: ``apt-get install chromium``).
"""

from pathlib import Path

from PIL import Image

from lessons.browser import chromium, save_screenshot
from minillava import load
from minillava.config import PRETRAINED
from minillava.errors import run_program
from minillava.look import HERE, collect, page, run_model

PAGE = Path(__file__).parent / "look.html"
PROMPT = "Describe the image concisely."
WORD, SPOT = " star", (0.2, 0.45)  # the screenshot is of the page after clicks on a word, and on a spot of the picture


def example() -> str:
    """The page about the shipped model's answer to the question about the shipped picture."""
    model = load(PRETRAINED / "llava")
    with Image.open(HERE / "look.png") as image:
        return page(collect(run_model(model, image, PROMPT), PROMPT))


def photograph() -> None:
    """Open the page, click WORD, and SPOT (shares of the picture's width and height), and keep what is seen."""
    with chromium() as browser:
        window = browser.new_page(viewport={"width": 1440, "height": 900})
        window.goto(PAGE.as_uri())
        window.locator("#answer button", has_text=WORD).click()
        picture = window.locator("#picture")
        box = picture.bounding_box()
        picture.click(position={"x": SPOT[0] * box["width"], "y": SPOT[1] * box["height"]})
        save_screenshot(window.locator("body").screenshot(), PAGE.with_suffix(".png"))


def main() -> None:
    PAGE.write_text(example(), encoding="utf-8")
    photograph()


if __name__ == "__main__":
    run_program(main)
