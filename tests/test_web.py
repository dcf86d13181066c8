"""The web chat in a browser: a server runs in this process, and what the pages show is compared with the model."""

import io
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from playwright.sync_api import BrowserContext, Page, expect

import chat
from lessons import screenshots
from minillava.checkpoint import load
from minillava.config import PRETRAINED
from minillava.errors import UserError
from minillava.talk import stream

BOX = "textarea"
expect.set_options(timeout=20_000)  # of a machine that is busy with other tests
pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:gradio")


@pytest.fixture(scope="module")
def model():
    return load(PRETRAINED / "llava")


@pytest.fixture(scope="module")
def site(model, tmp_path_factory) -> Iterator[SimpleNamespace]:
    """A server: its ``url``; ``answer``, a function that tests put in the place of talk.stream(); ``abroad``, the
    addresses of other machines that this process wanted to reach; ``files``, where gradio keeps its files."""
    files, abroad, connect = tmp_path_factory.mktemp("gradio"), [], socket.socket.connect

    def connect_here(this: socket.socket, address) -> None:
        if this.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1"):
            abroad.append(address)
            raise OSError("no network")
        connect(this, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", connect_here)
        patch.setenv("GRADIO_TEMP_DIR", str(files))
        from minillava.web import server, visits

        site = SimpleNamespace(answer=stream, abroad=abroad, files=files, chat=visits.Chat(model, chat.fresh_scene, 60))
        patch.setattr(visits, "stream", lambda *arguments: site.answer(*arguments))
        listener = server.listen("127.0.0.1", 0)
        site.url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        running = server.make_server(site.chat, 0.0, 1.0)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
        thread.start()
        yield site
        running.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def context(browser) -> Iterator[BrowserContext]:
    with browser.new_context() as context:  # with its cache, gradio's scripts are loaded once
        yield context


@pytest.fixture
def visit(site, context) -> Iterator[Callable[..., Page]]:
    """``visit()``: a page of a new visitor. It must ask no other server for anything, and report no error: ``wrong``
    lists them. No picture may become a file."""
    site.answer, pages, wrong = stream, [], []

    def go(context: BrowserContext = context, scheme: str = "light") -> Page:
        page = context.new_page()
        pages.append(page)
        page.emulate_media(color_scheme=scheme)
        page.on("request", lambda request: request.url.startswith((site.url, "data:")) or wrong.append(request.url))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: message.type == "error" and wrong.append(message.text))
        page.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
        page.goto(site.url)
        page.wait_for_selector(".drop img[src^=data]")
        return page

    go.wrong = wrong
    yield go
    for page in pages:
        page.close()
    assert not wrong and not site.abroad
    assert not [path for path in site.files.rglob("*") if path.is_file()]


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(200):
        if condition():
            return
        time.sleep(0.05)
    raise TimeoutError("ten seconds")


def ask(page: Page, question: str) -> None:
    page.locator(BOX).fill(question)
    page.get_by_role("button", name="Ask", exact=True).click()


def answers(page: Page) -> list[str]:
    return [text.strip() for text in page.locator(".talk .answer").all_text_contents()]


def picture_file(seed: int) -> dict:
    """A drawn scene as a file that a visitor picks."""
    file = io.BytesIO()
    chat.fresh_scene(seed).save(file, "PNG")
    return {"name": f"scene {seed}.png", "mimeType": "image/png", "buffer": file.getvalue()}


def upload(page: Page, file: dict | str) -> None:
    before = page.locator(".drop img").get_attribute("src")
    page.locator("input[type=file]").set_input_files(file)
    expect(page.locator(".drop img")).not_to_have_attribute("src", before)


def slowly(pace: float, log: list[str] | None = None) -> Callable[..., Iterator[str]]:
    """talk.stream() with a pause after each piece. ``log`` gets "begin", the pieces, and "end" of each answer."""

    def answer(*arguments) -> Iterator[str]:
        log.append("begin")
        try:
            for piece in stream(*arguments):
                log.append(piece)
                yield piece
                time.sleep(pace)
        finally:
            log.append("end")

    log = [] if log is None else log
    return answer


def test_answers_about_an_uploaded_picture_are_the_models(visit, model):
    page, history = visit(), []
    upload(page, picture_file(3))
    for question in ("what do you see?", "is it day or night?"):
        ask(page, question)
        expected = model.chat(chat.fresh_scene(3), question, history)
        history.append((question, expected))
        expect(page.locator(".talk .answer").nth(len(history) - 1)).to_have_text(expected)
    assert page.locator(".talk .question").all_text_contents() == [question for question, _ in history]
    assert page.locator(BOX).input_value() == ""


def test_samples_and_new_scenes_begin_new_talks(visit, model):
    page = visit()
    ask(page, "hello")
    expect(page.locator(".talk .answer")).to_have_count(1)
    page.locator(".samples button").nth(2).click()
    expect(page.locator(".talk p")).to_have_count(0)
    ask(page, "what do you see?")
    expect(page.locator(".talk .answer")).to_have_text(model.chat(chat.fresh_scene(11), "what do you see?"))
    shown = page.locator(".drop img").get_attribute("src")
    page.get_by_role("button", name="Draw a new scene").click()
    expect(page.locator(".talk p")).to_have_count(0)
    expect(page.locator(".drop img")).not_to_have_attribute("src", shown)
    ask(page, "hello")
    expect(page.locator(".talk .answer")).to_have_count(1)
    page.get_by_role("button", name="New talk").click()
    expect(page.locator(".talk p")).to_have_count(0)


def test_the_text_grows_and_stop_ends_it(visit, site, model):
    log: list[str] = []
    site.answer = slowly(0.15, log)
    page = visit()
    upload(page, picture_file(3))
    whole = model.chat(chat.fresh_scene(3), "what do you see?")
    ask(page, "what do you see?")
    seen: list[str] = []

    def has_grown() -> bool:
        seen.extend(text for text in answers(page)[:1] if text and text not in seen)
        return len(seen) >= 4

    wait_for(has_grown)
    assert all(whole.startswith(text) for text in seen) and len(seen[-1]) < len(whole)
    page.get_by_role("button", name="Stop", exact=True).click()
    expect(page.locator(".talk .note")).to_have_text("(stopped)")
    kept = answers(page)[0]
    assert whole.startswith(kept) and len(seen[-1]) <= len(kept) < len(whole)
    time.sleep(0.5)
    assert answers(page) == [kept] and log[-1] == "end" and len("".join(log[1:-1])) < len(whole)
    site.answer = stream
    ask(page, "is it day or night?")  # the talk goes on, with the part that was kept
    expected = model.chat(chat.fresh_scene(3), "is it day or night?", [("what do you see?", kept)])
    expect(page.locator(".talk .answer").nth(1)).to_have_text(expected)


def test_again_writes_another_answer_at_another_temperature(visit, site):
    calls = []

    def answer(model, image, question, history, most, temperature, top_p) -> Iterator[str]:
        calls.append((question, history, most, temperature, top_p))
        yield f"answer {len(calls)}"

    site.answer = answer
    page = visit()
    ask(page, "first?")
    expect(page.locator(".talk .answer")).to_have_text("answer 1")
    ask(page, "second?")
    expect(page.locator(".talk .answer").nth(1)).to_have_text("answer 2")
    for name, value in (("Temperature", "0.7"), ("Top-p", "0.9")):
        number = page.get_by_label(f"number input for {name}")
        number.fill(value)
        number.press("Tab")
    page.get_by_role("button", name="Answer again").click()
    expect(page.locator(".talk .answer").nth(1)).to_have_text("answer 3")
    assert answers(page) == ["answer 1", "answer 3"]
    history = [("first?", "answer 1")]
    assert calls[1:] == [("second?", history, 60, 0, 1), ("second?", history, 60, 0.7, 0.9)]


def test_two_visitors_at_once_get_their_own_answers_one_after_the_other(visit, site, model, browser):
    log: list[str] = []
    site.answer = slowly(0.05, log)
    pages = visit(), visit(browser.new_context())
    for page, seed in zip(pages, (3, 8)):
        upload(page, picture_file(seed))
    for page in pages:
        ask(page, "what do you see?")
    expected = [model.chat(chat.fresh_scene(seed), "what do you see?") for seed in (3, 8)]
    assert expected[0] != expected[1]
    for page, text in zip(pages, expected):
        expect(page.locator(".talk .answer")).to_have_text(text)
        assert page.locator(".talk p").count() == 2
    wait_for(lambda: log.count("end") == 2)
    assert [entry for entry in log if entry in ("begin", "end")] == ["begin", "end"] * 2
    assert pages[0].locator(".drop img").get_attribute("src") != pages[1].locator(".drop img").get_attribute("src")


def test_a_question_is_refused_while_another_is_answered(visit, site):
    site.answer = slowly(0.3)
    page = visit()
    ask(page, "what do you see?")
    expect(page.locator(".talk .answer")).to_have_count(1)
    ask(page, "hello")
    expect(page.get_by_text("The last question is still being answered.")).to_be_visible()
    assert page.locator(BOX).input_value() == "hello"
    page.get_by_role("button", name="Stop", exact=True).click()
    expect(page.locator(".talk .note")).to_have_count(1)


def test_a_closed_tab_ends_its_answer(visit, site):
    log: list[str] = []
    site.answer = slowly(0.2, log)
    page = visit()
    ask(page, "what do you see?")
    expect(page.locator(".talk .answer")).to_have_count(1)
    page.close()
    wait_for(lambda: log[-1] == "end")
    assert "." not in log  # before the end of the sentence


def test_a_reload_loses_nothing_but_the_talk(visit, model):
    page = visit()
    ask(page, "hello")
    expect(page.locator(".talk .answer")).to_have_count(1)
    page.reload()
    visit.wrong.clear()  # gradio reports the connections that the reload cuts
    page.wait_for_selector(".drop img[src^=data]")
    assert page.locator(".talk p").count() == 0
    upload(page, picture_file(3))
    ask(page, "what do you see?")
    expect(page.locator(".talk .answer")).to_have_text(model.chat(chat.fresh_scene(3), "what do you see?"))


def gif_bomb() -> bytes:
    """A GIF of 27 bytes that claims 65,535 x 65,535 pixels."""
    side = (65535).to_bytes(2, "little") * 2
    return b"GIF89a" + side + b"\0\0\0," + bytes(4) + side + b"\0\2\0;"


def test_a_file_that_is_no_picture_gets_a_message(visit, tmp_path, capfd):
    page = visit()
    shown = page.locator(".drop img").get_attribute("src")
    files = {
        "notes <b>.png": (b"not a picture", "not a readable picture (no known format)"),
        "cut.png": (picture_file(3)["buffer"][:300], "not a readable picture"),
        "bomb.gif": (gif_bomb(), "not a readable picture (Image size (4294836225 pixels) exceeds limit"),
        "large.png": (bytes(20_000_001), "larger than 20 MB"),
    }
    for name, (content, message) in files.items():
        (tmp_path / name).write_bytes(content)
        page.locator("input[type=file]").set_input_files(tmp_path / name)
        expect(page.get_by_text(f"{name}: {message}")).to_be_visible()
    assert page.locator(".drop img").get_attribute("src") == shown
    assert capfd.readouterr() == ("", "")
    ask(page, "hello")
    expect(page.locator(".talk .answer")).to_have_count(1)


def test_limits_of_questions_and_talks_are_said(visit, site, monkeypatch, capfd):
    from minillava.web import visits

    monkeypatch.setattr(visits, "MOST_TURNS", 1)
    page = visit()
    for question, message in (
        ("", "Write a question first."),
        ("x" * 1001, "The question has 1,001 characters; at most 1,000 can be asked."),
    ):
        ask(page, question)
        expect(page.get_by_text(message)).to_be_visible()
        assert page.locator(BOX).input_value() == question
    page.get_by_role("button", name="Answer again").click()
    expect(page.get_by_text("There is no answer yet.")).to_be_visible()
    page.get_by_role("button", name="Look inside").click()
    expect(page.get_by_text("There is no whole answer yet.")).to_be_visible()
    ask(page, "what is this <image>?")
    expect(page.locator(".talk .note")).to_have_text("(a question must not contain <image>: it is added automatically)")
    ask(page, "and this?")
    expect(page.get_by_text("A talk ends after 1 questions.")).to_be_visible()
    assert capfd.readouterr() == ("", "")


def test_what_visitors_and_the_model_write_stays_text(visit, site):
    outside = "http://198.51.100.1/x.png"
    hostile = (
        f'<img src="{outside}" onerror="alert(1)"><script>alert(2)</script> <b>bold</b> **bold** $x^2$'
        f"![x]({outside})\n"
        "${alert(3)} {{value}} `${alert(4)}` &lt; </p></div><iframe src='javascript:alert(5)'>"
    )
    site.answer = lambda *arguments: iter([hostile[:30], hostile[30:], "\x00\u202e"])
    page = visit()
    ask(page, hostile)
    expect(page.locator(".talk .answer")).to_have_text(hostile + "\\x00\\u202e")
    assert page.locator(".talk .question").text_content() == hostile
    assert page.locator(".talk p").count() == 2 and page.locator(".talk p *").count() == 0


def test_look_shows_the_explainer_about_the_last_answer(visit, model):
    page = visit()
    upload(page, picture_file(3))
    for index, question in enumerate(("what do you see?", "is it day or night?")):
        ask(page, question)
        expect(page.locator(".talk .answer").nth(index)).to_contain_text(".")
    page.get_by_role("button", name="Look inside").click()
    frame = page.frame_locator("iframe")
    expect(frame.locator("#prompt")).to_have_text("is it day or night?", timeout=60_000)
    assert "".join(frame.locator("#answer button").all_text_contents()).strip() == answers(page)[1]
    assert answers(page)[0].replace(" ", "") in "".join(frame.locator("#row").inner_text().split())
    assert page.locator("iframe").get_attribute("sandbox") == "allow-scripts"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_the_window(visit, scheme):
    page = visit(scheme=scheme)
    ask(page, "what do you see? " * 20)
    expect(page.locator(".talk .answer")).to_have_count(1)
    for width in (390, 800, 1440):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    ink, paper = (
        sum(map(int, re.findall(r"\d+", page.evaluate(f"getComputedStyle(document.body).{name}"))[:3])) / 3
        for name in ("color", "backgroundColor")
    )
    assert (paper - ink > 150) if scheme == "light" else (ink - paper > 150)


def status(url: str, data: bytes | None = None) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data), timeout=10) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code


def test_the_server_answers_to_nothing_but_its_page(site):
    with urllib.request.urlopen(site.url) as response:
        assert "default-src 'self'" in response.headers["Content-Security-Policy"]
    elsewhere = "http://198.51.100.1/"
    for path in (
        f"file={PRETRAINED / 'MODEL.md'}",
        f"file={elsewhere}",
        f"proxy={elsewhere}",
        "info",
        "runs",
        "upload",
    ):
        assert status(f"{site.url}gradio_api/{path}") == 404, path
    assert status(f"{site.url}gradio_api/upload", b"x") == 404
    assert status(f"{site.url}gradio_api/call/ask", json.dumps({"data": ["hi"]}).encode()) == 404
    assert status(f"{site.url}assets/../../../../etc/hostname") == 403
    with socket.create_connection(("127.0.0.1", int(site.url.split(":")[2][:-1])), timeout=5) as client:
        client.sendall(b"POST /gradio_api/queue/join HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n")
        assert b" 413 " in client.recv(1000).split(b"\r\n")[0]
    assert not site.abroad


def test_an_address_that_cannot_be_used_is_one_line(site):
    from minillava.web.server import listen

    port = int(site.url.split(":")[2][:-1])
    with pytest.raises(UserError, match=rf"^--host 127\.0\.0\.1, --port {port}: Address already in use$"):
        listen("127.0.0.1", port)
    with pytest.raises(UserError, match=r"^--host 198\.51\.100\.1, --port 0: "):
        listen("198.51.100.1", 0)


def test_the_program_serves_until_ctrl_c(browser):
    command = [sys.executable, "chat.py", "--web", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        try:
            line = program.stdout.readline()
            found = re.fullmatch(r"open (http://127\.0\.0\.1:\d+) in a browser; Ctrl-C ends\n", line)
            assert found, line
            page = browser.new_page()
            page.goto(found[1])
            page.wait_for_selector(".drop img[src^=data]")
            ask(page, "what do you see?")
            expect(page.locator(".talk .answer")).to_have_count(1)
            program.send_signal(signal.SIGINT)
            out, err = program.communicate(timeout=20)
            assert (program.returncode, out, err) == (0, "", "")
            page.close()
        finally:
            program.kill()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--web", "--image", "a.png"], "--web takes no --image: pictures and questions are given in the page"),
        (["--web", "--no-image"], "--web takes no --no-image"),
        (["--web", "--decoder", "smollm2"], "--web takes no --decoder"),
        (["--web", "--prompt", ""], "--web takes no --prompt"),
        (["--web", "--seed", "0"], "--web takes no --seed"),
        (["--web", "--port", "65536"], "--port 65536: must be from 0 to 65535"),
        (["--port", "8000"], "--host and --port have no effect without --web"),
    ],
)
def test_options_that_have_no_effect_are_refused(monkeypatch, capsys, options, line):
    monkeypatch.setattr(sys, "argv", ["chat.py", *options])
    with pytest.raises(SystemExit, match=r"^2$"):
        chat.parse()
    assert line in capsys.readouterr().err


@pytest.mark.parametrize("version", [None, "5.49.1", "6.9.0"])
def test_without_gradio_a_line_says_what_to_install(monkeypatch, version):
    monkeypatch.setitem(sys.modules, "gradio", version and SimpleNamespace(__version__=version))
    for name in [name for name in sys.modules if name.startswith("minillava.web")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(UserError, match=r"^--web needs gradio.*: pip install"):
        import minillava.web.server  # noqa: F401


def test_a_terminals_colours_become_html():
    written = "\x1b[?2004hHuman: <b>\r\n\x1b[38;2;1;2;3m\x1b[48;2;4;5;6m▀\x1b[0m&"
    shown = 'Human: &lt;b&gt;\n<span style="color:rgb(1,2,3);background:rgb(4,5,6)">▀</span>&amp;'
    assert screenshots.as_html(written) == shown


def test_the_screenshots_are_stored_small_and_shown():
    readme = Path(chat.__file__).with_name("README.md").read_text(encoding="utf-8")
    for take in screenshots.TAKEN:
        path = screenshots.HERE / f"{take.__name__}.png"
        assert path.stat().st_size < 150_000 and f"(lessons/{path.name})" in readme
