"""``python -m data.instruct --contexts FILE --teacher scripted|openai --out FILE``: write instruction data.

A teacher that reads pictures as text (``data/contexts.py``) is asked for conversations, detailed descriptions and
complex reasoning; its replies become rows of LLaVA JSON (paper, section 3). The mix sets their proportion: with the
paper's 58:23:77 every picture gets complex reasoning, 58 of 77 (drawn at random) a conversation and 23 of 77 a
description, so that 77,000 pictures give the paper's 158,000 rows.

``--teacher openai`` is a language model and writes about any picture. ``--teacher scripted`` is a program that writes
about the picture-book only, and refuses any other picture before anything is written.

Replies are kept in FILE.journal.jsonl. If a build is interrupted, the same command continues it, and the finished file
is the same as without the interruption.
"""

import argparse
import hashlib
import itertools
import json
import random
import sys
import threading
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue

from data.contexts import Context, read_contexts
from data.estimate import estimate
from data.journal import Journal
from data.prompts import KINDS, messages
from data.replies import Malformed, names_its_source, parse
from data.requests import DETAIL_REQUESTS
from data.rows import conversation, write_rows
from data.teachers import Request
from data.teachers.openai import NoReply, OpenAITeacher, Reply
from data.teachers.scripted import Scripted, rules, scene_told
from minillava.errors import UserError, printable, run_program
from minillava.formats.llava_json import MAX_ROW
from minillava.lock import locked
from minillava.progress import progress


@dataclass(frozen=True)
class Job:
    """One row to write, and what to ask the teacher for it."""

    id: str
    context: Context
    kind: str
    question: str | None  # the request for a detailed description

    def request(self, seed: int, attempt: int) -> Request:
        digest = hashlib.sha256(f"{seed} {self.id!a} {attempt}".encode()).digest()
        return Request(self.kind, self.context, self.question, int.from_bytes(digest[:8], "big"))

    def row(self, turns: list[tuple[str, str]]) -> dict:
        """The row of LLaVA JSON with these (question, answer) pairs."""
        return {"id": self.id, "image": self.context.image, "type": self.kind, "conversations": conversation(turns)}


def list_jobs(contexts: list[Context], mix: tuple[int, ...], seed: int) -> list[Job]:
    """The rows to write, in order. ``mix``: the shares of KINDS.

    The kind with the largest share gets one row for every context. The others get their proportion, rounded to the
    nearest whole number, for contexts drawn at random.
    """
    chosen = {}
    for kind, share in zip(KINDS, mix):
        count = (2 * len(contexts) * share + max(mix)) // (2 * max(mix))
        chosen[kind] = set(random.Random(f"{seed} {kind}").sample(range(len(contexts)), count))
    jobs = []
    for index, context in enumerate(contexts):
        for kind in KINDS:
            if index in chosen[kind]:
                name = f"{context.id}-{kind}"
                question = random.Random(f"{seed} {name!a}").choice(DETAIL_REQUESTS) if kind == "detail" else None
                jobs.append(Job(name, context, kind, question))
    return jobs


def judge(job: Job, entries: list[dict]) -> tuple[list[tuple[str, str]] | None, str]:
    """(turns of the first well-formed reply in ``entries``, ""), or (None, what is wrong with the last reply).

    ``entries`` are those of the journal for this job.
    """
    reason = ""
    for entry in entries:
        try:
            if "error" in entry:
                raise Malformed(entry["error"])
            turns = parse(job.kind, job.question, entry["reply"])
            if len(json.dumps(job.row(turns))) > MAX_ROW:
                raise Malformed(f"too long: a row may have {MAX_ROW:,} characters")
            return turns, ""
        except Malformed as error:
            reason = str(error)
    return None, reason


def ask_all(jobs: list[Job], teacher, journal: Journal, seed: int, attempts: int, threads: int) -> None:
    """Ask for the rows that the journal lacks, each up to ``attempts`` times, with ``threads`` requests at once.

    A teacher's UserError or Ctrl-C ends this early. It is raised when the pending replies have arrived and are in the
    journal.
    """
    waiting: SimpleQueue[Job] = SimpleQueue()
    stop, failures = threading.Event(), []

    def unanswered(job: Job) -> bool:
        entries = journal.entries[job.id]
        return len(entries) < attempts and judge(job, entries)[0] is None

    def ask(job: Job) -> None:
        try:
            reply = teacher.reply(job.request(seed, len(journal.entries[job.id])))
            entry = {"reply": reply, "tokens": getattr(reply, "tokens", Reply.tokens)}
        except NoReply as error:
            entry = {"error": error.reason, "tokens": error.tokens}
        journal.append({"id": job.id, **entry})

    def work(ended: threading.Event) -> None:
        try:
            while True:
                job = waiting.get_nowait()
                while unanswered(job):
                    if stop.is_set():
                        return
                    ask(job)
                bar.update()
        except Empty:
            pass
        except Exception as error:
            failures.append(error)
            stop.set()
        finally:
            ended.set()

    for job in filter(unanswered, jobs):
        waiting.put(job)
    # Daemon threads: a second Ctrl-C ends the program without waiting for them. Before Python 3.13, a join() that is
    # interrupted by Ctrl-C takes its thread for ended, so each thread has an event for its end.
    ends = [threading.Event() for _ in range(threads)]
    workers = [threading.Thread(target=work, args=[ended], daemon=True) for ended in ends]
    with progress(total=waiting.qsize(), desc="asking", unit="reply") as bar:
        try:
            for worker in workers:
                worker.start()
            for ended in ends:
                ended.wait()
        except KeyboardInterrupt:
            stop.set()
            print("stopping when the pending replies have arrived; Ctrl-C again to stop at once", file=sys.stderr)
            for worker, ended in zip(workers, ends):
                if worker.ident:  # else it has not started, and will find stop set
                    ended.wait()
            raise
    if failures:
        raise failures[0]


def write(jobs: list[Job], journal: Journal, out: Path) -> None:
    """Write the rows from the journal's replies, and print how many there are and which were refused or dropped.

    Raises UserError if no reply can be used.
    """
    rows, refused, dropped = [], [], 0
    for job in jobs:
        turns, reason = judge(job, journal.entries[job.id])
        if turns is None:
            refused.append(printable(f"  {job.context.id}, {job.kind}: {reason}"))
            continue
        kept = [turn for turn in turns if not names_its_source(turn)]
        dropped += len(turns) - len(kept)
        if kept:
            rows.append(job.row(kept))
    if refused:
        why = f"refused: {len(refused)} of {len(jobs)} rows have no usable reply; a larger --attempts asks again"
        print(why, *refused, sep="\n")
    if dropped:
        empty = len(jobs) - len(refused) - len(rows)
        print(f"dropped: {dropped} answers that mention captions or boxes, and with them {empty} of {len(jobs)} rows")
    if not rows:
        raise UserError(f"{out}: not written, because no reply can be used")
    try:
        write_rows(out, rows)
    except OSError as error:
        raise UserError(f"{out}: {error.strerror}") from None
    kinds = Counter(row["type"] for row in rows)
    print(f"{out}: {len(rows)} rows ({', '.join(f'{kinds[kind]} {kind}' for kind in KINDS)})")


def price(prompts: int, replies: int, a: argparse.Namespace) -> str:
    cost = f", cost {(prompts * a.price_in + replies * a.price_out) / 1e6:.4f}" if a.price_in or a.price_out else ""
    return f"{prompts} tokens of prompts, {replies} tokens of replies{cost}"


def dry_run(jobs: list[Job], a: argparse.Namespace) -> None:
    """Print the first prompt of each kind as it would be sent, and an estimate of the whole build's tokens and cost."""
    first = {job.kind: job for job in reversed(jobs)}
    for kind in KINDS:
        if kind in first:
            print(f"======== {printable(first[kind].id)}")
            for message in first[kind].request(a.seed, 0).messages:
                print(f"-------- {message['role']}", printable(message["content"], keep="\n"), sep="\n")
    prompts, replies = estimate(job.request(a.seed, 0) for job in jobs)
    print(f"======== {len(jobs)} requests; counting words, numbers and marks, about {price(prompts, replies, a)}")


def set_up(contexts: list[Context], mix: tuple[int, ...], a: argparse.Namespace) -> dict:
    """The values that determine the finished file: only builds that agree in all of them may share a journal."""
    seen = hashlib.sha256()
    for context in contexts:
        seen.update(ascii(context).encode())
    told = rules() if a.teacher == "scripted" else ascii([messages(kind, contexts[0]) for kind in KINDS]).encode()
    return {
        "contexts": seen.hexdigest(),
        "prompts": hashlib.sha256(told).hexdigest(),
        "teacher": a.teacher if a.teacher == "scripted" else f"{a.teacher} {a.model}",
        "mix": list(mix),
        "seed": a.seed,
    }


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m data.instruct", description=__doc__.split("\n\n")[1])
    parser.add_argument("--contexts", required=True, help="captions and boxes (formats: data/contexts.py)")
    parser.add_argument(
        "--teacher",
        choices=("scripted", "openai"),
        required=True,
        help="openai: a language model, for any picture; scripted: a program, for the picture-book only",
    )
    parser.add_argument("--out", type=Path, required=True, help="LLaVA JSON to write")
    parser.add_argument("--mix", default="58:23:77", help="conversation:detail:reasoning (default %(default)s)")
    parser.add_argument("--limit", type=int, help="use only the first LIMIT pictures")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--attempts", type=int, default=3, help="how often to ask for one row (default %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="print prompts and an estimate; send nothing")
    group = parser.add_argument_group("openai", "any OpenAI-compatible endpoint; its key is read from OPENAI_API_KEY")
    group.add_argument("--model")
    group.add_argument("--base-url", help="where the endpoint is, such as http://localhost:8000/v1 (default OpenAI's)")
    group.add_argument("--concurrency", type=int, default=8, help="requests at once (default %(default)s)")
    group.add_argument(
        "--timeout", type=float, default=300.0, help="seconds for one reply, retries included (default %(default)g)"
    )
    group.add_argument("--price-in", type=float, default=0.0, help="price of a million prompt tokens")
    group.add_argument("--price-out", type=float, default=0.0, help="price of a million reply tokens")
    a = parser.parse_args()
    for name, most in (("limit", 10**9), ("attempts", 10**9), ("concurrency", 1000), ("timeout", 10**6)):
        value = getattr(a, name)
        if value is not None and not 0 < value <= most:
            raise UserError(f"--{name} must be greater than 0 and at most {most:,}")
    if a.teacher == "openai" and not (a.model and a.model.isprintable()):
        raise UserError("--teacher openai needs --model, a name")
    return a


def parse_mix(text: str) -> tuple[int, ...]:
    mix = tuple(int(share) if share.isdecimal() and len(share) < 10 else -1 for share in text.split(":"))
    if len(mix) != len(KINDS) or min(mix) < 0 or not any(mix):
        raise UserError(f"--mix {text}: must be three whole numbers, such as 58:23:77")
    return mix


def main() -> None:
    a = parse_arguments()
    mix = parse_mix(a.mix)
    contexts = list(itertools.islice(read_contexts(a.contexts), a.limit))
    told = [context for context in contexts if context.text()]
    if len(told) < len(contexts):
        print(f"left out: {len(contexts) - len(told)} of {len(contexts)} pictures have neither captions nor boxes")
    if not told:
        raise UserError(f"{a.contexts}: no picture has captions or boxes")
    jobs = list_jobs(told, mix, a.seed)
    if a.dry_run:
        return dry_run(jobs, a)
    path = Path(f"{a.out}.journal.jsonl")
    if a.out.exists() and not path.exists():
        raise UserError(f"{a.out}: already exists and was not built by this program")
    if a.teacher == "openai":
        teacher, threads = OpenAITeacher(a.model, a.base_url, a.timeout), a.concurrency
    else:
        for context in told:
            scene_told(context)  # raises UserError now, before anything is written
        teacher, threads = Scripted(), 1
    if not path.parent.is_dir():
        raise UserError(f"{path}: No such file or directory")  # else the lock would make the folder
    with locked(Path(f"{a.out}.lock"), f"{a.out}: another build is writing it; give another --out"):
        journal = Journal(path, set_up(told, mix, a))
        ask_all(jobs, teacher, journal, a.seed, a.attempts, threads)
        write(jobs, journal, a.out)
    if a.teacher == "openai":
        asked = [(job, entry) for job in jobs for entry in journal.entries[job.id]]
        unusable = sum(judge(job, [entry])[0] is None for job, entry in asked)
        print(f"asked: {len(asked)} times, {unusable} of them without a usable reply")
        tokens = [entry["tokens"] for _, entry in asked]
        print(price(sum(prompt for prompt, _ in tokens), sum(reply for _, reply in tokens), a))


if __name__ == "__main__":
    run_program(main)
