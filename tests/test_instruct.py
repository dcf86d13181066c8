"""Building instruction data: the mix of kinds, endpoints that fail in every way, and builds that are interrupted.

A disturbed build must write the same bytes as an undisturbed one, and no prompt may be answered twice.
"""

import itertools
import json
import multiprocessing
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from endpoint import Endpoint, written
from PIL import Image

from data import instruct, prompts
from data.contexts import Box, Context
from data.estimate import count_tokens
from data.picturebook import language
from data.picturebook.scene import sample_scene
from data.requests import DETAIL_REQUESTS
from data.rows import conversation
from data.teachers.openai import OpenAITeacher
from minillava.errors import UserError, run_program
from minillava.inputs.conversations import ConversationDataset, encode_row
from minillava.inputs.image import ImageProcessor
from minillava.inputs.processor import Processor

PICTURES = 20  # with the paper's mix: 15 conversations, 6 descriptions, 20 of reasoning
REQUESTS = 41
ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def no_key_and_no_proxy(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture
def contexts(tmp_path) -> Path:
    """A file of PICTURES pictures, each with its own caption."""
    path = tmp_path / "contexts.jsonl"
    box = {"category": "dog", "bbox": [0.1, 0.2, 0.3, 0.4]}
    lines = [
        {"id": f"p{n}", "image": f"{n}.jpg", "captions": [f"Dog number {n} sleeps."], "instances": [box]}
        for n in range(PICTURES)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def book(tmp_path) -> Path:
    """A file of PICTURES picture-book scenes, with all captions and boxes."""
    rng = random.Random(0)
    path = tmp_path / "book.jsonl"
    with open(path, "w") as file:
        for number in range(PICTURES):
            scene = sample_scene(rng)
            instances = [{"category": thing.kind, "bbox": thing.box} for thing in scene.things]
            known = {"captions": language.captions(scene), "instances": instances}
            file.write(json.dumps({"id": f"s{number}", "image": f"{number}.png", **known}) + "\n")
    return path


def build_by_rule(monkeypatch, contexts: Path, out: Path, *more: str) -> None:
    """Run the program with the scripted teacher."""
    argv = ["instruct", "--contexts", str(contexts), "--teacher", "scripted", "--out", str(out), *more]
    monkeypatch.setattr(sys, "argv", argv)
    instruct.main()


def arguments(contexts: Path, out: Path, url: str, **more) -> list[str]:
    given = {"contexts": contexts, "teacher": "openai", "model": "m", "base_url": url, "out": out, **more}
    return [text for name, value in given.items() for text in (f"--{name.replace('_', '-')}", str(value))]


def build(monkeypatch, *args, **more) -> None:
    """Run the program in this process, without the pause after a broken response."""
    monkeypatch.setattr(instruct, "OpenAITeacher", partial(OpenAITeacher, pause=0.0))
    monkeypatch.setattr(sys, "argv", ["instruct", *arguments(*args, **more)])
    instruct.main()


@pytest.fixture
def start():
    """``start(...)`` runs the program in another process, which is killed at the end of the test."""
    processes = []

    def run(*args, **more) -> subprocess.Popen:
        command = [sys.executable, "-m", "data.instruct", *arguments(*args, **more)]
        processes.append(subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True))
        return processes[-1]

    yield run
    for process in processes:
        process.kill()
        process.wait()


def entries(out: Path) -> list[dict]:
    path = Path(f"{out}.journal.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()[1:]] if path.exists() else []


def until(true) -> None:
    end = time.monotonic() + 240
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def once_each(endpoint: Endpoint) -> bool:
    return len(endpoint.answered) == REQUESTS and set(endpoint.answered.values()) == {1}


@pytest.fixture
def undisturbed(contexts, tmp_path, monkeypatch) -> bytes:
    """The file that a build without failures writes."""
    out = tmp_path / "undisturbed.json"
    with Endpoint() as endpoint:
        build(monkeypatch, contexts, out, endpoint.url, concurrency=1)
        assert len(endpoint.asked) == REQUESTS and once_each(endpoint)
    return out.read_bytes()


def test_the_mix_is_kept_for_any_number_of_pictures():
    pictures = [Context(f"{n}", f"{n}.jpg", ("A dog.",), ()) for n in range(231)]
    for mix in ((58, 23, 77), (1, 0, 0), (2, 1, 2), (0, 1, 5)):
        for count in (1, 2, 10, 77, 231):
            jobs = instruct.list_jobs(pictures[:count], mix, 0)
            assert len({(job.context.id, job.kind) for job in jobs}) == len({job.id for job in jobs}) == len(jobs)
            for kind, share in zip(prompts.KINDS, mix):
                assert abs(sum(job.kind == kind for job in jobs) - count * share / max(mix)) <= 0.5
    kinds = [job.kind for job in instruct.list_jobs(pictures[:77], (58, 23, 77), 0)]
    assert [kinds.count(kind) for kind in prompts.KINDS] == [58, 23, 77]


def test_the_draw_depends_only_on_the_seed():
    pictures = [Context(f"{n}", f"{n}.jpg", ("A dog.",), ()) for n in range(300)]
    plan = partial(instruct.list_jobs, pictures, (58, 23, 77))
    assert plan(0) == plan(0) != plan(1)
    described = [job for job in plan(0) if job.kind == "detail"]
    assert {job.question for job in described} == set(DETAIL_REQUESTS)
    assert {job.id for job in described} != {job.id for job in plan(1) if job.kind == "detail"}
    assert all(job.question is None for job in plan(0) if job.kind != "detail")
    seeds = {job.request(seed, attempt).seed for job in plan(0) for seed in (0, 1) for attempt in (0, 1)}
    assert len(seeds) == 4 * len(plan(0))
    half = len(described) // 2  # the draw is spread over all pictures
    assert 100 < int(described[half].context.id) < 200


def test_rows_are_what_the_teacher_wrote_in_llava_json(undisturbed, contexts):
    rows = json.loads(undisturbed)
    pictures = [
        Context(f"p{n}", f"{n}.jpg", (f"Dog number {n} sleeps.",), (Box("dog", (0.1, 0.2, 0.3, 0.4)),))
        for n in range(PICTURES)
    ]
    wanted = []
    for job in instruct.list_jobs(pictures, (58, 23, 77), 0):
        reply = written(job.kind, job.request(0, 0).messages[-1]["content"])
        if job.kind == "detail":
            turns = [(job.question, reply)]
        else:
            texts = [block.partition(": ")[2] for block in reply.split("\n===\n")]
            turns = list(zip(texts[::2], texts[1::2]))
        said = conversation(turns)
        wanted.append({"id": job.id, "image": job.context.image, "type": job.kind, "conversations": said})
    assert rows == wanted
    assert rows[0]["conversations"][0]["value"].startswith("<image>\n") and str(rows).count("<image>") == REQUESTS


def test_an_endpoint_in_trouble_makes_no_difference(undisturbed, contexts, tmp_path, monkeypatch):
    prose = "Sure! Here you are.\nQuestion: what is it? Answer: a dog."
    troubles = ["limited", 500, "slow", "half", prose, "reset", "broken_off", "page", "other", "cut", "silent", 400]
    number = itertools.count()

    def behave(prompt: str, times: int):
        return "ok" if times else troubles[next(number) % len(troubles)]

    out = tmp_path / "out.json"
    with Endpoint(behave) as endpoint:
        build(monkeypatch, contexts, out, endpoint.url, concurrency=16)
        assert len(endpoint.asked) == 2 * REQUESTS and once_each(endpoint)
    assert out.read_bytes() == undisturbed


def test_retry_after_is_honoured(contexts, tmp_path, monkeypatch):
    with Endpoint(lambda prompt, times: "ok" if times else "limited") as endpoint:
        build(monkeypatch, contexts, tmp_path / "out.json", endpoint.url, limit=1, mix="0:0:1")
    (first, *_), (second, *_) = endpoint.asked
    assert second - first >= 1  # without it the package waits half a second


def test_a_killed_build_goes_on_without_asking_twice(start, undisturbed, contexts, tmp_path, monkeypatch):
    out, done = tmp_path / "out.json", 17
    number = itertools.count()
    with Endpoint(lambda prompt, times: "ok" if next(number) < done else "hold") as endpoint:
        process = start(contexts, out, endpoint.url, concurrency=1)
        until(lambda: len(endpoint.asked) > done)
        process.kill()
        process.communicate()
        assert not out.exists() and len(entries(out)) == done == sum(endpoint.answered.values())
        with open(f"{out}.journal.jsonl", "a") as file:
            file.write('{"id": "p19-reasoning", "reply": "Question: Wh')  # as if killed while writing a line
        endpoint.behave = lambda prompt, times: "ok"
        build(monkeypatch, contexts, out, endpoint.url)
        assert once_each(endpoint) and len(entries(out)) == REQUESTS
        assert out.read_bytes() == undisturbed
        build(monkeypatch, contexts, out, endpoint.url)  # once more: nothing is left to ask
        assert once_each(endpoint) and out.read_bytes() == undisturbed


@pytest.mark.parametrize("requests", [1, 5])
def test_an_interrupt_waits_for_the_replies_under_way(requests, start, undisturbed, contexts, tmp_path, monkeypatch):
    out = tmp_path / "out.json"
    with Endpoint(lambda prompt, times: "late") as endpoint:
        process = start(contexts, out, endpoint.url, concurrency=requests)
        until(lambda: len(endpoint.asked) == requests)
        process.send_signal(signal.SIGINT)
        assert process.stderr.readline().startswith("stopping")
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
        endpoint.release.set()
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 130 and "interrupted" in errors and "Traceback" not in errors
        assert len(entries(out)) == requests and not out.exists()
        build(monkeypatch, contexts, out, endpoint.url)
        assert once_each(endpoint)
    assert out.read_bytes() == undisturbed


def test_a_second_interrupt_ends_at_once(start, contexts, tmp_path):
    with Endpoint(lambda prompt, times: "hold") as endpoint:
        process = start(contexts, tmp_path / "out.json", endpoint.url)
        until(lambda: endpoint.asked)
        process.send_signal(signal.SIGINT)
        assert process.stderr.readline().startswith("stopping")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=240)
    assert process.returncode == 130 and "Traceback" not in errors


def test_replies_that_stay_malformed_are_counted_and_listed(undisturbed, contexts, tmp_path, monkeypatch, capsys):
    bad = {"Dog number 3 ": "A dog.\n===\nA dog.", "Dog number 5 ": "cut", "Dog number 8 ": 400}

    def behave(prompt: str, times: int):
        return next((what for dog, what in bad.items() if dog in prompt), "ok")

    out = tmp_path / "out.json"
    with Endpoint(behave) as endpoint:
        build(monkeypatch, contexts, out, endpoint.url, attempts=2)
        rows = json.loads(undisturbed)
        refused = [row for row in rows if row["image"] in ("3.jpg", "5.jpg", "8.jpg")]
        assert json.loads(out.read_text()) == [row for row in rows if row not in refused]
        assert len(endpoint.asked) == REQUESTS + len(refused)
        printed = capsys.readouterr().out.splitlines()
        why = f"refused: {len(refused)} of {REQUESTS} rows have no usable reply; a larger --attempts asks again"
        assert why in printed
        asked = f"asked: {REQUESTS + len(refused)} times, {2 * len(refused)} of them without a usable reply"
        assert asked in printed
        assert len([line for line in printed if line.startswith("  p")]) == len(refused)
        assert "  p3, reasoning: block 1 is not one 'Question: ...'" in printed
        assert "  p5, reasoning: incomplete text (finish_reason length)" in printed
        assert any(line.startswith("  p8, reasoning: ") and "status 400 is meant" in line for line in printed)

        build(monkeypatch, contexts, out, endpoint.url, attempts=2)  # no attempts are left
        assert len(endpoint.asked) == REQUESTS + len(refused)
        endpoint.behave = lambda prompt, times: "ok"
        build(monkeypatch, contexts, out, endpoint.url, attempts=3)
        assert out.read_bytes() == undisturbed and once_each(endpoint)


def test_answers_that_name_their_source_are_dropped(contexts, tmp_path, monkeypatch, capsys):
    turn = "Question: {}\n===\nAnswer: {}"
    asleep, source = turn.format("Awake?", "No, asleep."), turn.format("What?", "The caption says a dog.")
    again = source.replace("What?", "And?")
    replies = {
        "Dog number 0 ": f"{source}\n===\n{asleep}\n===\n{again}",
        "Dog number 1 ": f"{source}\n===\n{again}",
        "Dog number 2 ": asleep,
    }
    out = tmp_path / "out.json"
    with Endpoint(lambda prompt, times: next(text for dog, text in replies.items() if dog in prompt)) as endpoint:
        build(monkeypatch, contexts, out, endpoint.url, limit=3, mix="1:0:0")
        assert len(endpoint.asked) == 3
    rows = {row["id"]: row["conversations"] for row in json.loads(out.read_text())}
    assert rows.keys() == {"p0-conversation", "p2-conversation"}
    assert rows["p0-conversation"] == rows["p2-conversation"] == conversation([("Awake?", "No, asleep.")])
    printed = capsys.readouterr().out
    assert "dropped: 4 answers that mention captions or boxes, and with them 1 of 3 rows" in printed


@pytest.mark.parametrize("status", [401, 403, 404])
def test_what_cannot_succeed_ends_with_one_line_and_keeps_the_journal(
    undisturbed, status, contexts, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "out.json"
    with Endpoint(lambda prompt, times: status if len(endpoint.asked) > 9 else "ok") as endpoint:
        with pytest.raises(SystemExit) as ended:
            run_program(lambda: build(monkeypatch, contexts, out, endpoint.url, concurrency=3))
        assert ended.value.code == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith(f"error: {endpoint.url}") and f"status {status} is meant" in error
        assert len(entries(out)) == 9 and len(endpoint.asked) <= 9 + 3 and not out.exists()
        endpoint.behave = lambda prompt, times: "ok"
        build(monkeypatch, contexts, out, endpoint.url)
        assert once_each(endpoint)
    assert out.read_bytes() == undisturbed


def test_a_journal_of_another_build_is_refused(contexts, tmp_path, monkeypatch):
    out = tmp_path / "out.json"
    with Endpoint() as endpoint:
        build(monkeypatch, contexts, out, endpoint.url, limit=3)
        before, asked = Path(f"{out}.journal.jsonl").read_bytes(), len(endpoint.asked)
        again = partial(build, monkeypatch, contexts, out, endpoint.url)
        for other, more in (
            ("contexts", {"limit": 4}),
            ("teacher", {"model": "n"}),
            ("mix", {"mix": "1:1:1"}),
            ("seed", {"seed": 1}),
        ):
            with pytest.raises(UserError, match=f"out.json.journal.jsonl: belongs to a build with other {other};"):
                again(**{"limit": 3, **more})
        monkeypatch.setattr(instruct, "messages", lambda kind, context: [])
        with pytest.raises(UserError, match=r"other prompts;"):
            again(limit=3)
        assert Path(f"{out}.journal.jsonl").read_bytes() == before and len(endpoint.asked) == asked


def test_a_second_build_with_the_same_out_is_refused_while_the_first_runs(contexts, tmp_path, monkeypatch):
    out = tmp_path / "out.json"
    with Endpoint(lambda prompt, times: "late") as endpoint:
        first = multiprocessing.get_context("fork").Process(
            target=build, args=(monkeypatch, contexts, out, endpoint.url), daemon=True
        )
        first.start()
        until(lambda: endpoint.asked)
        endpoint.behave = lambda prompt, times: "ok"
        with pytest.raises(UserError, match=r"out.json: another build is writing it; give another --out"):
            build(monkeypatch, contexts, out, endpoint.url)
        endpoint.release.set()
        first.join()
        assert first.exitcode == 0
        assert once_each(endpoint) and len(entries(out)) == REQUESTS
        build(monkeypatch, contexts, out, endpoint.url)  # now it may


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is always full is needed")
def test_a_full_disk_gets_one_line_and_leaves_the_earlier_rows(contexts, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out.json"
    with Endpoint() as endpoint:
        build(monkeypatch, contexts, out, endpoint.url, limit=3)
        before = out.read_bytes()
        (tmp_path / "out.json.new").symlink_to("/dev/full")
        with pytest.raises(SystemExit) as ended:
            run_program(lambda: build(monkeypatch, contexts, out, endpoint.url, limit=3, attempts=4))
    assert ended.value.code == 2 and out.read_bytes() == before
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {out}: No space left on device"


@pytest.mark.parametrize(
    "line",
    [
        "\n",
        "[]\n",
        "no JSON\n",
        "[" * 200_000 + "\n",
        '{"id": 3}\n',
        '{"id": "p0-detail", "reply": 5, "tokens": [1, 1]}\n',
        '{"id": "p0-detail", "reply": "A dog.", "tokens": [1, 1%s]}\n' % ("0" * 400),
    ],
)
def test_a_journal_with_a_line_that_no_build_wrote_is_refused(line, contexts, tmp_path, monkeypatch):
    out, journal = tmp_path / "out.json", tmp_path / "out.json.journal.jsonl"
    with Endpoint() as endpoint:
        build(monkeypatch, contexts, out, endpoint.url, limit=1)
        whole = journal.read_text().splitlines(keepends=True)
        journal.write_text("".join([whole[0], whole[1], line, *whole[2:]]))
        with pytest.raises(UserError, match=r"journal.jsonl: line 3: "):
            build(monkeypatch, contexts, out, endpoint.url, limit=1)
        journal.write_text(line)
        with pytest.raises(UserError, match=r"journal.jsonl: line 1: "):
            build(monkeypatch, contexts, out, endpoint.url, limit=1)


def test_a_file_that_no_build_wrote_is_not_overwritten(contexts, tmp_path, monkeypatch):
    (tmp_path / "out.json").write_text("mine")
    with Endpoint() as endpoint, pytest.raises(UserError, match=r"out.json: already exists"):
        build(monkeypatch, contexts, tmp_path / "out.json", endpoint.url)
    assert not endpoint.asked and (tmp_path / "out.json").read_text() == "mine"


def test_where_no_reply_can_be_used_no_file_is_written(contexts, tmp_path, monkeypatch):
    with Endpoint(lambda prompt, times: "A dog.\n===") as endpoint, pytest.raises(UserError, match="no reply can be"):
        build(monkeypatch, contexts, tmp_path / "out.json", endpoint.url, limit=2)
    assert not (tmp_path / "out.json").exists()


def test_tokens_and_cost_are_counted_over_interruptions(contexts, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out.json"
    with Endpoint(lambda prompt, times: "ok" if times else "cut") as endpoint:
        build(monkeypatch, contexts, out, endpoint.url, price_in=2.5, price_out=10)
        build(monkeypatch, contexts, out, endpoint.url)
    with_cost, without = [line for line in capsys.readouterr().out.splitlines() if "tokens of" in line]
    prompt, reply = 2 * REQUESTS * 100, 2 * REQUESTS * 7
    assert without == f"{prompt} tokens of prompts, {reply} tokens of replies"
    assert with_cost == f"{without}, cost {(prompt * 2.5 + reply * 10) / 1e6:.4f}"


def test_the_key_is_sent_and_a_local_endpoint_needs_none(contexts, tmp_path, monkeypatch):
    with Endpoint() as endpoint:
        build(monkeypatch, contexts, tmp_path / "a.json", endpoint.url, limit=1)
        monkeypatch.setenv("OPENAI_API_KEY", "secret")
        build(monkeypatch, contexts, tmp_path / "b.json", endpoint.url, limit=1)
        assert endpoint.keys == {"Bearer none", "Bearer secret"}
    assert "secret" not in (tmp_path / "b.json.journal.jsonl").read_text()
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(UserError, match="OPENAI_API_KEY is not set"):
        OpenAITeacher("m")
    monkeypatch.setenv("OPENAI_API_KEY", "s\u00e9cret")
    with pytest.raises(UserError, match="OPENAI_API_KEY has a character that no key has"):
        OpenAITeacher("m")


def test_without_the_package_a_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(UserError, match="pip install openai"):
        OpenAITeacher("m", "http://localhost:1/v1")


def test_a_dry_run_prints_what_would_be_sent_and_asks_nothing(contexts, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out.json"
    with Endpoint() as endpoint:
        with monkeypatch.context() as without:
            without.setitem(sys.modules, "openai", None)
            argv = arguments(contexts, out, endpoint.url, price_in=1000000)
            without.setattr(sys, "argv", ["instruct", *argv, "--dry-run"])
            instruct.main()
        assert not endpoint.asked and list(tmp_path.iterdir()) == [contexts]
        printed = capsys.readouterr().out
        build(monkeypatch, contexts, out, endpoint.url, concurrency=1)
    for kind in prompts.KINDS:
        sent = next(messages for _, asked, _, messages in endpoint.asked if asked == kind)
        assert "".join(f"-------- {m['role']}\n{m['content']}\n" for m in sent) in printed
    tokens = sum(count_tokens(message["content"]) for *_, sent in endpoint.asked for message in sent)
    last = printed.splitlines()[-1]
    assert (
        f"{REQUESTS} requests" in last and f"about {tokens} tokens of prompts" in last and f"cost {tokens:.4f}" in last
    )


def test_a_dry_run_prints_no_escapes_of_others(tmp_path, monkeypatch, capsys):
    path = tmp_path / "contexts.jsonl"
    line = {"id": "\x1b[31m1", "image": "1.jpg", "captions": ["A \x1b]0;dog\x07."], "instances": []}
    path.write_text(json.dumps(line))
    build_by_rule(monkeypatch, path, tmp_path / "out.json", "--dry-run")
    printed = capsys.readouterr().out
    assert r"======== \x1b[31m1-reasoning" in printed and r"A \x1b]0;dog\x07." in printed
    assert "".join(c for c in printed if not c.isprintable() and c != "\n") == ""


@pytest.mark.parametrize(
    "more, line",
    [
        ({"mix": "1:2"}, "--mix 1:2: must be three whole numbers"),
        ({"mix": "0:0:0"}, "--mix 0:0:0: must be three whole numbers"),
        ({"mix": "1:-2:3"}, "--mix 1:-2:3: must be three whole numbers"),
        ({"mix": f"1:2:{'9' * 5000}"}, "must be three whole numbers"),
        ({"limit": 0}, "--limit must be greater than 0"),
        ({"limit": 10**30}, "--limit must be greater than 0 and at most 1,000,000,000"),
        ({"concurrency": 10**6}, "--concurrency must be greater than 0 and at most 1,000"),
        ({"attempts": -1}, "--attempts must be greater than 0"),
        ({"timeout": "nan"}, "--timeout must be greater than 0"),
        ({"timeout": "inf"}, "--timeout must be greater than 0 and at most 1,000,000"),
        ({"model": ""}, "--teacher openai needs --model"),
        ({"model": "\udcff"}, "--teacher openai needs --model"),
        ({"url": "http://a:b"}, "http://a:b: "),
        ({"out": "/no/where/out.json"}, "/no/where/out.json.journal.jsonl: No such file or directory"),
    ],
)
def test_a_mistake_gets_one_line(more, line, contexts, tmp_path, monkeypatch):
    with Endpoint() as endpoint, pytest.raises(UserError, match=line):
        build(monkeypatch, contexts, **{"out": tmp_path / "out.json", "url": endpoint.url, **more})


def test_pictures_without_captions_and_boxes_are_left_out(contexts, tmp_path, monkeypatch, capsys):
    nothing = {"id": "none", "image": "none.jpg", "captions": [], "instances": []}
    contexts.write_text(json.dumps(nothing) + "\n" + contexts.read_text())
    out = tmp_path / "out.json"
    with Endpoint() as endpoint:
        build(monkeypatch, contexts, out, endpoint.url, mix="0:0:1")
        assert len(endpoint.asked) == len(json.loads(out.read_text())) == PICTURES
        assert f"left out: 1 of {PICTURES + 1} pictures have neither captions nor boxes" in capsys.readouterr().out
        with pytest.raises(UserError, match="no picture has captions or boxes"):
            build(monkeypatch, contexts, out, endpoint.url, limit=1)


def test_the_scripted_teacher_writes_rows_that_training_reads(book, tmp_path, tokenizer, monkeypatch, capsys):
    """Without network and openai package, and with the same bytes in two builds."""
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    monkeypatch.setitem(sys.modules, "openai", None)
    for out in files:
        build_by_rule(monkeypatch, book, out)
    assert files[0].read_bytes() == files[1].read_bytes()
    printed = capsys.readouterr().out
    assert "refused" not in printed and "dropped" not in printed
    for number in range(PICTURES):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{number}.png")
    dataset = ConversationDataset(files[0], tmp_path, Processor(tokenizer, ImageProcessor.for_size(24), 9))
    assert Counter(row["type"] for row in dataset.rows) == {"conversation": 15, "detail": 6, "reasoning": PICTURES}
    for index, row in enumerate(dataset.rows):
        ids, labels = encode_row(row, dataset.processor, image_first=index % 2 == 0)
        assert ids.count(tokenizer.image_id) == 9 and any(label >= 0 for label in labels)


def test_the_scripted_teacher_refuses_photographs_before_anything_is_written(
    book, contexts, tmp_path, monkeypatch, capsys
):
    contexts.write_text(book.read_text() + contexts.read_text())
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SystemExit) as ended:
        run_program(lambda: build_by_rule(monkeypatch, contexts, tmp_path / "out.json"))
    assert ended.value.code == 2 and sorted(tmp_path.iterdir()) == before
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: picture 'p0' ") and "--teacher openai" in line
    build_by_rule(monkeypatch, contexts, tmp_path / "out.json", "--limit", str(PICTURES))  # only scenes of the book


def test_a_dry_run_with_the_scripted_teacher_shows_the_prompts_of_photographs(contexts, tmp_path, monkeypatch, capsys):
    build_by_rule(monkeypatch, contexts, tmp_path / "out.json", "--dry-run")
    printed = capsys.readouterr().out
    assert "Dog number 0 sleeps." in printed and f"{REQUESTS} requests" in printed
    assert list(tmp_path.iterdir()) == [contexts]


def test_a_journal_of_other_rules_is_refused(book, tmp_path, monkeypatch):
    for _ in range(2):
        build_by_rule(monkeypatch, book, tmp_path / "out.json")
    monkeypatch.setattr(instruct, "rules", lambda: b"others")
    with pytest.raises(UserError, match=r"other prompts;"):
        build_by_rule(monkeypatch, book, tmp_path / "out.json")


def test_tokens_are_counted_as_words_short_numbers_and_marks():
    assert count_tokens("A dog's bed, at [0.125, 0.2500].") == 18
    assert count_tokens("") == count_tokens(" \n") == 0
