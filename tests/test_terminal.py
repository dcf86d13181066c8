"""The chat in a terminal: typed into a pseudo-terminal, or piped; commands, Ctrl-C, line editing, and what is shown."""

import io
import json
import os
import pty
import re
import select
import signal
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from PIL import Image

import chat
from data.check import main as check_main
from minillava import load, look, terminal
from minillava.config import PRETRAINED
from minillava.errors import run_program
from minillava.formats import picture_file
from minillava.model import fast

SECONDS = 60  # to wait for what should be printed
UP, LEFT, TAB, CTRL_C, CTRL_D = "\x1b[A", "\x1b[D", "\t", "\x03", "\x04"
PROMPT = "Human: "


@pytest.fixture(scope="module")
def model():
    return load(PRETRAINED / "llava")


@pytest.fixture(autouse=True)
def there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)  # for this process, it is set in conftest.py


class Typed:
    """A program in a pseudo-terminal: type() what a user types, wait() for what it shows."""

    def __init__(self, descriptor: int):
        self.descriptor, self.raw, self.seen = descriptor, b"", 0

    def type(self, text: str) -> None:
        os.write(self.descriptor, text.encode())

    @property
    def shown(self) -> str:
        """All that was shown, without colours and other control sequences."""
        return re.sub(r"\x1b\[[0-9;?]*\w", "", self.raw.decode(errors="replace")).replace("\r", "")

    def wait(self, text: str) -> str:
        """Read until ``text`` is shown once more. Returns what was shown since the last wait, up to that."""
        end = time.monotonic() + SECONDS
        while (at := self.shown.find(text, self.seen)) < 0:
            assert time.monotonic() < end, f"{text!r} was not shown: {self.shown[self.seen :]!r}"
            if select.select([self.descriptor], [], [], 1)[0]:
                self.raw += self.read()
        before, self.seen = self.shown[self.seen : at], at + len(text)
        return before

    def interrupt(self) -> None:
        """Type Ctrl-C at a prompt, not sooner than a person could: after it shows the prompt, and before it waits for
        keys, readline would not notice it until the next key."""
        time.sleep(0.2)
        self.type(CTRL_C)

    def ask(self, line: str) -> str:
        """Type a line and wait for the next prompt. Returns what was shown for it."""
        self.type(line + "\n")
        return self.wait(PROMPT).split("\n", 1)[1].rstrip("\n")

    def read(self) -> bytes:
        try:
            content = os.read(self.descriptor, 1 << 16)
        except OSError:  # Linux's way to say that the program has ended
            content = b""
        assert content, f"the program has ended: {self.shown[self.seen :]!r}"
        return content


@pytest.fixture
def typing():
    """``with typing(*arguments) as talk`` runs chat.py in a pseudo-terminal; it must end with exit code 0."""

    @contextmanager
    def run(
        *arguments: str, size: tuple[int, int] = (24, 80), prepare: Callable[[], None] = lambda: None
    ) -> Iterator[Typed]:
        child, descriptor = pty.fork()
        if not child:
            code = 70
            try:
                os.environ.update(INPUTRC=os.devnull, TERM="xterm")
                termios.tcsetwinsize(0, size)
                signal.signal(signal.SIGINT, signal.default_int_handler)
                sys.stdin, sys.stdout, sys.stderr = (
                    os.fdopen(number, "rw"[number > 0], closefd=False) for number in range(3)
                )
                sys.argv = ["chat.py", *arguments]
                prepare()
                run_program(chat.main)
                code = 0
            except SystemExit as end:
                code = end.code
            finally:
                sys.stdout.flush()
                os._exit(code)
        talk = Typed(descriptor)
        try:
            yield talk
            ended, end = 0, time.monotonic() + SECONDS
            while not ended and time.monotonic() < end:
                if select.select([descriptor], [], [], 0.1)[0]:
                    with suppress(OSError):  # Linux's way to say that the program has ended
                        talk.raw += os.read(descriptor, 1 << 16)
                ended, status = os.waitpid(child, os.WNOHANG)
            child = 0 if ended else child
            assert ended and os.waitstatus_to_exitcode(status) == 0, talk.shown[-500:]
        finally:
            if child:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
            os.close(descriptor)

    return run


def said(out: str) -> list[str]:
    """What is printed after each prompt but the last one, without the picture's lines."""
    return [part.split("\n", 1)[1].strip() for part in re.sub(r".*▀.*\n", "", out).split(PROMPT)[1:-1]]


def answers(model, picture, *questions: str, **options) -> list[str]:
    history = []
    for question in questions:
        history.append((question, model.chat(picture, question, history, **options)))
    return [answer for _, answer in history]


QUESTIONS = ("What is in the centre?", "and the white car?")


# Typed.


def test_a_talk_is_typed_and_answered_with_its_history(typing, model):
    scene = chat.fresh_scene(1)
    first, second = answers(model, scene, *QUESTIONS)
    assert second != answers(model, scene, QUESTIONS[1])[0]
    with typing("--seed", "1") as talk:
        greeting = talk.wait(PROMPT)
        assert "▀" in greeting and "(scene 1)" in greeting and "/help" in greeting
        assert talk.ask(QUESTIONS[0]) == f"Assistant: {first}"
        assert talk.ask("") == ""
        assert talk.ask(QUESTIONS[1]) == f"Assistant: {second}"
        talk.type(CTRL_D)


def test_ctrl_c_stops_an_answer_and_not_the_program(typing, tmp_path):
    """A real answer, slowed down: at this temperature it has hundreds of tokens, none of which ends it."""

    def slowly():
        step, sample = fast.Step.__call__, fast.sample
        fast.Step.__call__ = lambda self, ids: time.sleep(0.02) or step(self, ids)
        fast.sample = lambda logits, *options: sample(logits.index_fill(1, torch.arange(256, 262), -1e9), *options)

    with typing("--seed", "1", "--temperature", "40", "--max-new-tokens", "600", prepare=slowly) as talk:
        talk.wait(PROMPT)
        talk.type("What is it?\n")
        talk.wait("Assistant: ")
        while len(talk.shown) < talk.seen + 40:
            talk.raw += talk.read()
        talk.type(CTRL_C)
        written = talk.wait("(stopped; the answer so far stays in the talk)").replace("^C", "").strip()
        talk.wait(PROMPT)
        assert talk.ask("/save talk") == "(saved: talk.json and talk.png)"
        talk.type("And then?\n")
        talk.wait("Assistant: ")
        talk.type(CTRL_C)
        talk.wait("(stopped")
        talk.wait(PROMPT)
        talk.type(CTRL_D)
    (row,) = json.loads((tmp_path / "talk.json").read_text())
    assert len(row["conversations"]) == 2
    assert terminal.printable(row["conversations"][1]["value"], keep="\n\t") == written and len(written) > 20


def test_ctrl_c_before_the_first_word_leaves_no_trace(typing, model):
    def never():
        terminal.stream, real = waiting, terminal.stream
        waiting.real = real

    def waiting(*arguments, **options):
        if "wait" in arguments[2]:
            print("waiting", flush=True)
            time.sleep(SECONDS)
        yield from waiting.real(*arguments, **options)

    (answer,) = answers(model, chat.fresh_scene(1), QUESTIONS[0])
    with typing("--seed", "1", prepare=never) as talk:
        talk.wait(PROMPT)
        talk.type("wait\n")
        talk.wait("waiting")
        talk.type(CTRL_C)
        talk.wait("(stopped)")
        talk.wait(PROMPT)
        assert talk.ask(QUESTIONS[0]) == f"Assistant: {answer}"
        talk.type(CTRL_D)


def test_ctrl_c_clears_the_line_and_a_second_one_ends(typing, model):
    (answer,) = answers(model, chat.fresh_scene(1), QUESTIONS[0])
    with typing("--seed", "1") as talk:
        talk.wait(PROMPT)
        for text in ("Where", "Where"):  # a line that is not empty is cleared, however often
            talk.type(text)
            talk.wait(text)
            talk.interrupt()
            talk.wait("(Ctrl-C again, or Ctrl-D, ends)")
            talk.wait(PROMPT)
        assert talk.ask(QUESTIONS[0]) == f"Assistant: {answer}"
        talk.interrupt()
        talk.wait("(Ctrl-C again, or Ctrl-D, ends)")
        talk.wait(PROMPT)
        talk.interrupt()


def test_lines_are_edited_recalled_and_completed(typing, tmp_path, model):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a picture.png")
    (tmp_path / "folder").mkdir()
    (answer,) = answers(model, chat.fresh_scene(1), QUESTIONS[0])
    with typing("--seed", "1") as talk:
        talk.wait(PROMPT)
        for typed in ("What is in the centre", "/new"):
            talk.ask(typed)
        assert talk.ask(f"{UP}{UP}?{LEFT}{LEFT}e\x7f") == f"Assistant: {answer}"  # a letter typed, then deleted
        assert talk.ask(f"/n{TAB}") == "(a new talk)"
        assert "no such picture" in talk.ask(f"/im{TAB}none.png")
        talk.type(f"/image a{TAB}")
        assert talk.wait("/image a picture.png") == ""
        assert "▀" in talk.ask("")
        assert talk.ask(f"/save f{TAB}x") == "(there is no answer to save yet)"
        talk.type(CTRL_D)
    assert "/save folder/x" in talk.shown


def test_the_picture_fits_into_the_terminal(typing):
    for size, (lines, columns) in {(24, 40): (20, 40), (12, 80): (12, 24), (70, 200): (32, 64)}.items():
        with typing("--seed", "1", size=size) as talk:
            picture = re.findall("▀+", talk.wait(PROMPT))
            talk.type(CTRL_D)
        assert [len(line) for line in picture] == [columns] * lines


def test_a_drawn_scene_goes_to_a_terminal_only_and_never_between_answers(typing, piped):
    code, out, err = piped("--seed", "1", "--prompt", QUESTIONS[0])
    assert (code, err) == (0, "") and out == "In the centre there is a red car.\n"

    def to_a_file():
        os.dup2(os.open("answer.txt", os.O_WRONLY | os.O_CREAT), 1)

    with typing("--seed", "1", "--prompt", QUESTIONS[0], prepare=to_a_file) as talk:
        talk.wait("(scene 1)")
    assert "▀" in talk.shown and Path("answer.txt").read_text() == out


# Piped.


def test_questions_from_a_pipe_read_like_a_talk(piped, model):
    first, second = answers(model, chat.fresh_scene(1), *QUESTIONS)
    code, out, err = piped("--seed", "1", stdin=f"{QUESTIONS[0]}\n\n{QUESTIONS[1]}")
    assert (code, err) == (0, "")
    assert out.endswith(
        f"Human: {QUESTIONS[0]}\nAssistant: {first}\nHuman: \nHuman: {QUESTIONS[1]}\nAssistant: {second}\nHuman: \n"
    )


def test_new_forgets_the_talk_and_image_and_scene_change_the_picture(piped, model, tmp_path):
    chat.fresh_scene(5).save(tmp_path / "five.png")
    lines = [*QUESTIONS, "/new", QUESTIONS[1], "/image five.png", *QUESTIONS, "/save two", "/scene 9", *QUESTIONS]
    _, out, _ = piped("--seed", "1", stdin="\n".join(lines))
    one, five, nine = (chat.fresh_scene(seed) for seed in (1, 5, 9))
    spoken = [f"Assistant: {answer}" for answer in answers(model, one, *QUESTIONS)]
    spoken += ["(a new talk)", f"Assistant: {answers(model, one, QUESTIONS[1])[0]}", ""]
    spoken += [f"Assistant: {answer}" for answer in answers(model, five, *QUESTIONS)]
    spoken += ["(saved: two.json and two.png)", "(scene 9)"] + [
        f"Assistant: {answer}" for answer in answers(model, nine, *QUESTIONS)
    ]
    assert said(out) == spoken and out.count("▀") == 3 * 64 * 32
    assert len(json.loads(Path("two.json").read_text())[0]["conversations"]) == 4


def test_a_scene_without_a_seed_is_a_new_one_whose_seed_draws_it_again(piped):
    _, out, _ = piped(stdin="/scene\n/scene")
    seeds = re.findall(r"\(scene (\d+)\)", out)
    assert len(set(seeds)) == 3
    pictures = [part.rsplit("\n", 1)[0] for part in re.split(r"\(scene \d+\)\n", out)]
    _, again, _ = piped("--seed", seeds[0], stdin=f"/scene {seeds[2]}")
    assert again.startswith(f"{pictures[0]}\n(scene {seeds[0]})")
    assert out.split(PROMPT)[2].split("\n", 1)[1] == again.split(PROMPT)[1].split("\n", 1)[1]


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("/immage a.png", "(/immage: no such command; /help lists them)"),
        ("/\x1b[2J", "(/\\x1b[2J: no such command; /help lists them)"),
        ("/run", "(/run: no such command; /help lists them)"),  # a name that the program has, but no command
        ("/image", "(the command is /image FILE)"),
        ("/save ", "(the command is /save FILE)"),
        ("/new talk", "(the command is /new)"),
        ("/image none.png", "(none.png: no such picture)"),
        ("/image no\x00ne.png", "(no\\x00ne.png: no such picture)"),
        ("/image broken.png", "(broken.png: not a readable picture (no known format))"),
        ("/image .", "(.: Is a directory)"),
        ("/image pipe", "(pipe: a pipe, a device or a socket, not a file)"),
        ("/scene red", "(red: a seed is a whole number from 0 to 2**63 - 1)"),
        ("/scene -1", "(-1: a seed is a whole number from 0 to 2**63 - 1)"),
        ("/scene 9223372036854775808", "(9223372036854775808: a seed is a whole number from 0 to 2**63 - 1)"),
        ("/look", "(/look is about an answer, and a picture; there is none yet)"),
        ("/save talk", "(there is no answer to save yet)"),
        ("what is <image>?", "Assistant: (a question must not contain <image>: it is added automatically)"),
        ("red " * 1000, "Assistant: (the conversation has 1,"),
    ],
)
def test_what_fails_is_one_line_and_the_talk_goes_on(piped, model, tmp_path, line, error):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG no picture")
    os.mkfifo(tmp_path / "pipe")
    before = sorted(os.listdir())
    code, out, err = piped("--seed", "1", stdin=f"{line}\n{QUESTIONS[0]}")
    failed, answer = said(out)
    assert (code, err) == (0, "") and failed.startswith(error) and "\n" not in failed
    assert answer == f"Assistant: {answers(model, chat.fresh_scene(1), QUESTIONS[0])[0]}"
    assert sorted(os.listdir()) == before


def test_a_talk_that_is_too_long_is_kept_until_the_user_begins_a_new_one(piped):
    words = "red blue green " * 40
    _, out, _ = piped("--seed", "1", stdin="\n".join([words] * 8 + ["/save talk", "/new", QUESTIONS[0]]))
    lines = said(out)
    assert "the model reads at most 1,024); /new begins a new talk)" not in lines[0]
    assert lines[7].endswith("the model reads at most 1,024; /new begins a new talk)")
    assert lines[8].startswith("(saved") and lines[10].startswith("Assistant: ") and "(" not in lines[10]


def test_a_question_may_begin_like_a_command(piped):
    assert said(piped("--seed", "1", stdin=" /new thing?\n")[1])[0].startswith("Assistant: ")


def test_help_lists_every_command(piped):
    (text,) = said(piped("--no-image", stdin="/help\n")[1])
    assert re.findall(r"^/\w+", text, re.MULTILINE) == ["/image", "/scene", "/new", "/look", "/save", "/help"]


def test_without_a_picture_there_is_a_talk_too(piped, model):
    lines = f"{QUESTIONS[0]}\n/look\n/save talk\n/scene 1\n{QUESTIONS[0]}\n"
    _, out, _ = piped("--no-image", stdin=lines)
    shown = said(out)
    assert shown[0] == f"Assistant: {answers(model, None, QUESTIONS[0])[0]}"
    assert shown[1] == "(/look is about an answer, and a picture; there is none yet)"
    assert shown[2] == "(saved: talk.json)" and "image" not in json.loads(Path("talk.json").read_text())[0]
    assert shown[4] == f"Assistant: {answers(model, chat.fresh_scene(1), QUESTIONS[0])[0]}"


def test_a_language_model_refuses_pictures_in_a_line(piped):
    code, out, _ = piped("--decoder", str(PRETRAINED / "decoder"), stdin="/scene 1\n/image a.png\nThe boat is\n")
    shown = said(out)
    assert code == 0 and shown[0] == "(a language model sees no pictures)" and shown[1] == "(a.png: no such picture)"
    assert shown[2].startswith("Assistant: ")


def test_look_saves_where_the_model_looked_for_its_last_answer(piped, model, tmp_path):
    (tmp_path / "look.png").write_text("mine")
    _, out, _ = piped("--seed", "1", stdin="\n".join([*QUESTIONS, "/look", "/look"]))
    assert said(out)[2].startswith("(look-2.png: ") and said(out)[3].startswith("(look-3.png: ")
    assert (tmp_path / "look.png").read_text() == "mine"
    first, second = answers(model, chat.fresh_scene(1), *QUESTIONS)
    run = look.run_model(model, chat.fresh_scene(1), QUESTIONS[1], history=[(QUESTIONS[0], first)])
    stop = len(run.ids) - (run.ids[-1] in torch.tensor(model.processor.stop_ids))
    assert look.text_of(model.processor, run.answer.tolist()) == second
    expected = look.still(look.Run(model, run.pixels, run.ids[:stop], run.start))
    with Image.open(tmp_path / "look-2.png") as saved:
        assert saved.size == expected.size and saved.tobytes() == expected.tobytes()


def test_a_saved_talk_is_a_row_that_training_reads(piped, model, tmp_path, monkeypatch, capsys):
    (tmp_path / "out").mkdir()
    _, out, _ = piped("--seed", "1", stdin="\n".join([*QUESTIONS, "/save out/talk.json", "/save out/talk"]))
    shown = said(out)
    assert shown[2] == "(saved: out/talk.json and out/talk.png)" and shown[3] == "(out/talk.json: already exists)"
    first, second = answers(model, chat.fresh_scene(1), *QUESTIONS)
    turns = [("human", f"<image>\n{QUESTIONS[0]}"), ("gpt", first), ("human", QUESTIONS[1]), ("gpt", second)]
    turns = [{"from": speaker, "value": value} for speaker, value in turns]
    assert json.loads(Path("out/talk.json").read_text()) == [
        {"id": "talk", "image": "talk.png", "conversations": turns}
    ]
    with Image.open("out/talk.png") as saved:
        assert saved.tobytes() == chat.fresh_scene(1).tobytes()
    monkeypatch.setattr(sys, "argv", ["check", "out/talk.json"])
    run_program(check_main)  # with a fault it would end with exit code 2
    assert "malformed" not in capsys.readouterr().err


@pytest.mark.parametrize("taken", ["talk.json", "talk.png"])
def test_save_never_overwrites(piped, tmp_path, taken):
    (tmp_path / taken).write_text("mine")
    _, out, _ = piped("--seed", "1", stdin=f"{QUESTIONS[0]}\n/save talk\n/save nowhere/talk\n")
    assert said(out)[1] == f"({taken}: already exists)" and "No such file or directory" in said(out)[2]
    assert os.listdir() == [taken] and (tmp_path / taken).read_text() == "mine"


def test_an_answer_cannot_command_the_terminal(piped, monkeypatch):
    monkeypatch.setattr(terminal, "stream", lambda *_, **__: (piece for piece in ("red\x1b[2J", "\nand \x00blue")))
    assert piped("--no-image", "--prompt", "Hi") == (0, "red\\x1b[2J\nand \\x00blue\n", "")
    _, out, _ = piped("--no-image", "--prompt", "Hi", "--json")
    assert json.loads(out)["answer"] == "red\x1b[2J\nand \x00blue" and "\x1b" not in out and out.count("\n") == 1


# One answer.


def test_json_says_how_the_answer_came_about(piped, model, tmp_path):
    picture = str(tmp_path / "one.png")
    chat.fresh_scene(1).save(picture)
    (answer,) = answers(model, chat.fresh_scene(1), QUESTIONS[0])
    count = len(list(model.stream(chat.fresh_scene(1), QUESTIONS[0])))  # each token of this answer is a piece
    for arguments, source in (
        (["--seed", "1"], {"image": None, "scene": 1}),
        (["--image", picture], {"image": picture, "scene": None}),
    ):
        code, out, err = piped("--prompt", QUESTIONS[0], "--json", *arguments)
        values = json.loads(out)
        assert (code, err, out.count("\n")) == (0, "", 1) and 0 < values.pop("seconds") < SECONDS
        expected = {"prompt": QUESTIONS[0], "answer": answer, "model": "llava", "tokens": count}
        assert values == expected | source
    _, out, _ = piped("--prompt", QUESTIONS[0], "--json", "--no-image", "--model", str(PRETRAINED / "llava"))
    values = json.loads(out)
    assert values["image"] is None and values["scene"] is None and values["model"] == str(PRETRAINED / "llava")


def test_a_picture_may_come_from_standard_input(piped, model, monkeypatch):
    file = io.BytesIO()
    chat.fresh_scene(1).save(file, "PNG")
    options = ("--image", "-", "--prompt", QUESTIONS[0])
    (answer,) = answers(model, chat.fresh_scene(1), QUESTIONS[0])
    assert piped(*options, stdin=file.getvalue()) == (0, f"{answer}\n", "")
    assert json.loads(piped(*options, "--json", stdin=file.getvalue())[1])["image"] == "-"
    for content, line in (
        (b"", "error: standard input: not a readable picture (no known format)\n"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "EPS, a program that Ghostscript would run"),
        (png_of(8000, 8000), "error: standard input: not a readable picture (8000 x 8000 pixels is more than"),
    ):
        code, out, err = piped(*options, stdin=content)
        assert code == 2 and out == "" and line in err and err.count("\n") == 1
    assert "needs --prompt" in piped("--image", "-", stdin=file.getvalue())[2]
    monkeypatch.setattr(terminal, "MAX_BYTES", 100)
    assert "standard input: more than 100 bytes" in piped(*options, stdin=file.getvalue())[2]


def png_of(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("1", (width, height)).save(file, "PNG")
    return file.getvalue()


def test_the_largest_file_from_standard_input_is_that_of_a_file():
    assert terminal.MAX_BYTES == picture_file.MAX_BYTES


def test_a_terminal_is_no_picture(monkeypatch):
    class Keyboard(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Keyboard())
    with pytest.raises(terminal.UserError, match="standard input is a terminal"):
        terminal.read_stdin()


def test_the_system_message_and_the_nucleus_are_the_models(piped, model, monkeypatch):
    """At this temperature what is drawn depends on everything."""
    asked, scene = "Describe the image in detail.", chat.fresh_scene(1)

    def drawn(**options) -> str:
        torch.manual_seed(1)
        return model.chat(scene, asked, max_new_tokens=160, **options) + "\n"

    arguments = ("--seed", "1", "--prompt", asked, "--temperature", "3")
    expected = [drawn(temperature=3.0), drawn(temperature=3.0, top_p=0.7)]
    monkeypatch.setattr(model.processor, "template", model.processor.template.with_system("Speak."))
    expected.append(drawn(temperature=3.0))
    for text, options in zip(expected, ((), ("--top-p", "0.7"), ("--system", "Speak."))):
        assert terminal.printable(text, keep="\n\t") == piped(*arguments, *options)[1]
    assert len(set(expected)) == 3


# The picture.


def test_half_blocks_are_the_pictures_colours():
    image = Image.new("RGB", (2, 4))
    for y, colours in enumerate(
        ([(1, 2, 3), (4, 5, 6)], [(7, 8, 9), (10, 11, 12)], [(13, 14, 15)] * 2, [(16, 17, 18)] * 2)
    ):
        for x, colour in enumerate(colours):
            image.putpixel((x, y), colour)
    cell = "\x1b[38;2;{};{};{}m\x1b[48;2;{};{};{}m▀".format
    first = cell(1, 2, 3, 7, 8, 9) + cell(4, 5, 6, 10, 11, 12)
    assert terminal.half_blocks(image, 2, 99) == f"{first}\x1b[0m\n{cell(13, 14, 15, 16, 17, 18) * 2}\x1b[0m"


@pytest.mark.parametrize(
    ("size", "blocks"), [((100, 100), (40, 20)), ((400, 100), (40, 5)), ((1, 9000), (1, 24)), ((9000, 1), (40, 1))]
)
def test_pictures_of_any_shape_fit(size, blocks):
    lines = terminal.half_blocks(Image.new("RGB", size), 40, 24).split("\n")
    assert ([line.count("▀") for line in lines]) == [blocks[0]] * blocks[1]


def test_a_picture_that_the_terminal_cannot_show_is_said():
    for encoding in ("cp1252", "ascii"):
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        terminal.show(terminal.Shown(Image.new("RGB", (8, 8)), 7), stream)
        stream.flush()
        expected = f"(the picture is not shown: {encoding} has no half blocks)\n(scene 7)\n"
        assert stream.buffer.getvalue() == expected.encode()


@pytest.mark.parametrize(("few", "set_to"), [(10_000_000, [1]), (1_000_000, [])])
def test_a_small_model_takes_one_thread(piped, monkeypatch, few, set_to):
    """The shipped model has 2.4 million weights."""
    counts = []
    monkeypatch.setattr(torch, "set_num_threads", counts.append)
    monkeypatch.setattr(chat, "FEW", few)
    code, _, _ = piped("--seed", "1", "--prompt", QUESTIONS[0])
    assert code == 0 and counts == set_to
