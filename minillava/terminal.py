"""The chat in a terminal: a talk about a picture, with commands, line editing, and answers that Ctrl-C stops.

Questions may also come from a pipe, one a line. What files and models wrote is printed without control characters.
"""

import glob
import json
import os
import random
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import NamedTuple, TextIO

from PIL import Image

from minillava.errors import UserError, in_words, printable
from minillava.files import write_whole
from minillava.formats.picture_file import MAX_BYTES
from minillava.inputs.image import open_image
from minillava.language_model import TextModel
from minillava.model.llava import Llava
from minillava.page import as_png
from minillava.talk import TooLong, make_turns, stream

LARGEST = 64  # columns of a picture, and lines if the terminal does not say how many it has
HIGHEST = 2**63 - 1  # of seeds
COMMANDS = {  # what each takes, and what it does
    "/image": ("FILE", "talk about another picture"),
    "/scene": ("[SEED]", "draw a scene and talk about it"),
    "/new": ("", "begin a new talk about the same picture"),
    "/look": ("", "save a picture of where the model looked for its last answer"),
    "/save": ("FILE", "save the talk and its picture, as LLaVA JSON"),
    "/help": ("", "show this list"),
}


class Shown(NamedTuple):
    """A picture, and where it comes from: its file, or the seed of a drawn scene."""

    image: Image.Image
    source: str | int


def any_seed() -> int:
    """A seed for a new scene, short enough to be typed again."""
    return random.randrange(1_000_000)


def read_stdin() -> Image.Image:
    """The picture on standard input. Raises UserError as open_image() does."""
    if sys.stdin.isatty():
        raise UserError("--image -: standard input is a terminal, not a picture")
    content = sys.stdin.buffer.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise UserError(f"standard input: more than {MAX_BYTES:,} bytes, larger than a file of this kind can be")
    return open_image("standard input", content)


def show(picture: Shown, terminal: TextIO) -> None:
    """Print a picture, or a line if the terminal's encoding lacks the character that it is made of."""
    try:
        columns, lines = os.get_terminal_size(terminal.fileno())
    except (OSError, ValueError):  # not a terminal
        columns, lines = 0, 0
    try:
        "▀".encode(terminal.encoding or "utf-8")  # a stream in memory has none
    except UnicodeEncodeError:
        print(f"(the picture is not shown: {terminal.encoding} has no half blocks)", file=terminal)
    else:  # 0 is an unknown size
        print(half_blocks(picture.image, min(columns or LARGEST, LARGEST), lines or LARGEST), file=terminal)
    if isinstance(picture.source, int):
        print(f"(scene {picture.source})", file=terminal)


def half_blocks(image: Image.Image, columns: int, lines: int) -> str:
    """A picture as text for a terminal with 24-bit colour: each character shows two pixels, one above the other."""
    scale = min(columns / image.width, 2 * lines / image.height)
    width, height = max(1, round(scale * image.width)), 2 * max(1, round(scale * image.height / 2))
    small = image.convert("RGB").resize((width, height))
    rows = []
    for y in range(0, height, 2):
        cells = []
        for x in range(width):
            upper, lower = small.getpixel((x, y)), small.getpixel((x, y + 1))
            cells.append("\x1b[38;2;{};{};{}m\x1b[48;2;{};{};{}m▀".format(*upper, *lower))
        rows.append("".join(cells) + "\x1b[0m")
    return "\n".join(rows)


class Terminal:
    """A talk about a picture, or about none. ``draw`` makes the scene of a seed; ``options`` go to talk.stream()."""

    def __init__(
        self, model: Llava | TextModel, draw: Callable[[int], Image.Image], picture: Shown | None = None, **options
    ):
        self.model, self.draw, self.options = model, draw, options
        self.begin(picture)

    def begin(self, picture: Shown | None) -> None:
        """A new talk about ``picture``, which is encoded once. Raises UserError, and changes nothing, if it cannot."""
        if picture and isinstance(self.model, TextModel):
            raise UserError("a language model sees no pictures")
        self.visual = self.model.encode_image(picture.image) if picture else None
        self.picture, self.history = picture, []

    def run(self) -> None:
        """Take questions and commands until the input ends, or Ctrl-C is typed twice."""
        if self.picture:
            show(self.picture, sys.stdout)
            print('Ask about the picture ("What is in the centre?", "Describe the image concisely.").')
        else:
            print("Talk with the language model.")
        print("/help lists the commands. Ctrl-D, or Ctrl-C twice, ends.")
        typed, readline, interrupted = sys.stdin.isatty(), line_editing(), False
        while True:
            try:
                line = input("Human: ")
            except EOFError:
                print()
                return
            except KeyboardInterrupt:
                print()
                if not typed:
                    raise
                if interrupted and not (readline and readline.get_line_buffer()):
                    return
                interrupted = True
                print("(Ctrl-C again, or Ctrl-D, ends)")
                continue
            interrupted, turns = False, len(self.history)
            if not typed:
                print(printable(line))  # what is printed then reads as it does in a terminal
            try:
                self.take(line)
            except KeyboardInterrupt:
                if not typed:
                    raise
                kept = "; the answer so far stays in the talk" if len(self.history) > turns else ""
                print(f"\n(stopped{kept})")

    def take(self, line: str) -> None:
        """Answer a question, or obey a command. What the user can mend is printed as one line."""
        try:
            if line.startswith("/"):
                name, _, argument = line.strip().partition(" ")
                self.obey(name, argument.strip())
            elif line.strip():
                print("Assistant: ", end="", flush=True)
                self.answer(line.strip())
        except BrokenPipeError:
            raise
        except TooLong as error:
            print(f"({error}; /new begins a new talk)")
        except UserError as error:
            print(f"({printable(str(error))})")
        except OSError as error:
            print(f"({printable(in_words(error))})")

    def answer(self, question: str) -> None:
        """Print the answer piece by piece. If Ctrl-C stops it, what was written stays in the talk."""
        pieces: list[str] = []
        try:
            with closing(stream(self.model, self.visual, question, self.history, **self.options)) as written:
                for piece in written:
                    pieces.append(piece)
                    print(printable(piece, keep="\n\t"), end="", flush=True)
            print()
        except KeyboardInterrupt:
            if text := "".join(pieces).strip():
                self.history.append((question, text))
            raise
        self.history.append((question, "".join(pieces).strip()))

    def answer_as_json(self, question: str, name: str) -> str:
        """The answer of the model called ``name``, and how it came about, as one line of JSON."""
        start = time.monotonic()
        answer = "".join(stream(self.model, self.visual, question, self.history, **self.options)).strip()
        seconds, source = time.monotonic() - start, self.picture and self.picture.source
        processor = self.model.processor
        values = {
            "prompt": question,
            "answer": answer,
            "image": source if isinstance(source, str) else None,
            "scene": source if isinstance(source, int) else None,
            "model": name,
            "tokens": len(processor.tokenizer.encode(processor.template.before_answer + answer, special=False)),
            "seconds": round(seconds, 3),
        }
        return json.dumps(values)

    def obey(self, name: str, argument: str) -> None:
        """Run a command. Raises UserError if there is no such command, or if it takes something else."""
        if name not in COMMANDS:
            raise UserError(f"{name}: no such command; /help lists them")
        takes = COMMANDS[name][0]
        if (takes == "FILE" and not argument) or (argument and not takes):
            raise UserError(f"the command is {name} {takes}".rstrip())
        getattr(self, name[1:])(*[argument] * bool(takes))

    def image(self, name: str) -> None:
        self.begin(Shown(open_image(os.path.expanduser(name)), name))
        show(self.picture, sys.stdout)

    def scene(self, seed: str) -> None:
        if seed and not (seed.isascii() and seed.isdigit() and len(seed) < 20 and int(seed) <= HIGHEST):
            raise UserError(f"{seed}: a seed is a whole number from 0 to 2**63 - 1")
        number = int(seed) if seed else any_seed()
        self.begin(Shown(self.draw(number), number))
        show(self.picture, sys.stdout)

    def new(self) -> None:
        self.history = []
        print("(a new talk)")

    def look(self) -> None:
        from minillava import look  # no question waits for this import

        if not (self.picture and self.history):
            raise UserError("/look is about an answer, and a picture; there is none yet")
        *history, (question, answer) = self.history
        run = look.run_model(self.model, self.picture.image, question, history=history, answer=answer)
        png = as_png(look.still(run))
        names = ("look.png", *(f"look-{number}.png" for number in range(2, 1_000_000)))
        path = next(name for name in names if not os.path.lexists(name))
        write_whole(path, lambda file: file.write(png))
        print(f"({path}: above, where the model looked for each token of the answer; below, what mattered to it)")

    def save(self, name: str) -> None:
        if not self.history:
            raise UserError("there is no answer to save yet")
        path = Path(os.path.expanduser(name))
        path = path if path.suffix == ".json" else path.with_name(f"{path.name}.json")
        *history, (question, answer) = self.history
        turns = make_turns(question, history, has_image=self.picture is not None)
        said = {"conversations": [*turns, {"from": "gpt", "value": answer}]}
        files = [path, path.with_suffix(".png")] if self.picture else [path]
        for file in files:
            if os.path.lexists(file):
                raise UserError(f"{file}: already exists")
        for file in files[1:]:
            write_whole(file, lambda file: self.picture.image.save(file, "PNG"))
            said = {"image": file.name, **said}
        write_whole(path, lambda file: file.write(json.dumps([{"id": path.stem, **said}], indent=2).encode() + b"\n"))
        print(f"(saved: {' and '.join(printable(str(file)) for file in files)})")

    def help(self) -> None:
        for name, (takes, does) in COMMANDS.items():
            print(f"{f'{name} {takes}':<16}{does}")
        print("A line that begins with / is a command. A question may begin with it after a space.")
        print("Tab completes commands and file names; the arrows bring back earlier lines.")
        print("Ctrl-C stops an answer, or clears the line; twice, or Ctrl-D, it ends the program.")


def line_editing() -> ModuleType | None:
    """Let input() edit lines and complete them with Tab. None if that cannot be: without a terminal, or on Windows."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return None
    try:
        import readline
    except ImportError:
        return None

    def complete(text: str, state: int) -> str | None:
        """The candidate number ``state`` for ``text``, the end of the line up to the cursor."""
        line = readline.get_line_buffer()[: readline.get_endidx()]
        found = candidates(line)
        return found[state][len(line) - len(text) :] if state < len(found) else None

    readline.set_completer(complete)
    readline.set_completer_delims(" /")  # so that only the last part of a path is shown in lists
    readline.parse_and_bind("bind ^I rl_complete" if "libedit" in (readline.__doc__ or "") else "tab: complete")
    return readline


def candidates(line: str) -> list[str]:
    """What a line that begins with ``line`` may be: commands, with names of files."""
    name, space, typed = line.partition(" ")
    if not space:
        return [f"{name} " if takes else name for name, (takes, _) in COMMANDS.items() if name.startswith(line)]
    if COMMANDS.get(name, ("",))[0] != "FILE":
        return []
    start = os.path.expanduser(typed)
    found = sorted(glob.glob(glob.escape(start) + "*"))
    return [f"{name} {typed}{file[len(start) :]}{os.sep * os.path.isdir(file)}" for file in found]
