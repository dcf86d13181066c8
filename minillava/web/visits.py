"""What visitors can do: choose a picture, ask, stop, look inside."""

import base64
import html
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field

import gradio as gr
from PIL import Image, ImageOps
from torch import Tensor

from minillava import look
from minillava.errors import UserError, printable
from minillava.inputs.image import open_image
from minillava.model.llava import History, Llava
from minillava.page import data_uri
from minillava.talk import stream

MOST_BYTES, MOST_CHARACTERS, MOST_TURNS = 20_000_000, 1_000, 30  # of a picture's file, of a question, of a talk
SAMPLES = (1, 5, 11, 6)  # the seeds of the scenes to pick from
SHOWN = 512  # pixels of the picture's longer side in the page
Shown = tuple["Visit", str, str]  # the visit, the picture as a data URL, the talk as HTML


@dataclass
class Turn:
    question: str
    answer: str = ""
    note: str = ""  # why there is no more of an answer


@dataclass
class Visit:
    """What one open page has: its picture, as the model sees it, and the talk about it."""

    picture: Image.Image | None = None
    visual: Tensor | None = None  # H_v of the picture, from the first question on
    turns: list[Turn] = field(default_factory=list)
    asked: Turn | None = None  # the turn that is being answered, or waits for it


class Chat:
    """The methods that gradio calls. It gives each the Visit of the page, and calls those that use the model one at a
    time. A refusal() is shown in the page."""

    def __init__(self, model: Llava, draw: Callable[[int], Image.Image], max_new_tokens: int):
        self.model, self.draw, self.max_new_tokens = model, draw, max_new_tokens
        self.lock = threading.Lock()  # the last step of an answer that is stopped may still run when the next begins

    def upload(self, visit: Visit, event: gr.EventData) -> Shown:
        """A file of the visitor's becomes the picture."""
        name = str(event._data["name"])
        if event._data["size"] > MOST_BYTES:
            raise refusal(f"{name}: larger than {MOST_BYTES / 1e6:.0f} MB")
        try:
            return self.show(visit, open_image(name, base64.b64decode(event._data["data"])))
        except UserError as error:
            raise refusal(str(error)) from None

    def sample(self, visit: Visit, event: gr.EventData) -> Shown:
        return self.show(visit, self.draw(SAMPLES[event._data["index"]]))

    def scene(self, visit: Visit) -> Shown:
        return self.show(visit, self.draw(random.randrange(1_000_000)))

    def show(self, visit: Visit, picture: Image.Image) -> Shown:
        """``picture`` is kept as small as the model sees it, and a new talk begins."""
        visit.picture, visit.visual = self.model.processor.image.view(picture), None
        way = Image.Resampling.NEAREST if max(picture.size) < SHOWN else Image.Resampling.BICUBIC
        return visit, data_uri(ImageOps.contain(picture, (SHOWN, SHOWN), way)), self.forget(visit)

    def forget(self, visit: Visit) -> str:
        visit.turns, visit.asked = [], None
        return written(visit)

    def ask(self, visit: Visit, question: str) -> tuple[str, str]:
        """Add a turn with ``question`` to the talk; answer() writes its answer. Returns the talk, an empty box."""
        question = question.strip()
        if visit.picture is None:
            raise refusal("Choose a picture first.")
        if not question:
            raise refusal("Write a question first.")
        if len(question) > MOST_CHARACTERS:
            raise refusal(f"The question has {len(question):,} characters; at most {MOST_CHARACTERS:,} can be asked.")
        if len(visit.turns) >= MOST_TURNS:
            raise refusal(f"A talk ends after {MOST_TURNS} questions. Begin a new one.")
        self.wait(visit, Turn(question))
        visit.turns.append(visit.asked)
        return written(visit), ""

    def again(self, visit: Visit) -> str:
        """Forget the last answer; answer() writes another one."""
        if not visit.turns:
            raise refusal("There is no answer yet.")
        self.wait(visit, Turn(visit.turns[-1].question))
        visit.turns[-1] = visit.asked
        return written(visit)

    def wait(self, visit: Visit, turn: Turn) -> None:
        if visit.asked:
            raise refusal("The last question is still being answered. Stop that first.")
        visit.asked = turn

    def answer(self, visit: Visit, temperature: float, top_p: float) -> Iterator[str]:
        """Yield the talk after each piece of the answer. Whoever sets ``visit.asked`` to None ends it."""
        turn = visit.asked
        if turn is None:  # stopped before its turn came
            return
        history = answered(visit)
        try:
            if visit.visual is None:
                with self.lock:
                    visit.visual = self.model.encode_image(visit.picture)
            options = self.max_new_tokens, temperature, top_p
            with closing(stream(self.model, visit.visual, turn.question, history, *options)) as pieces:
                while visit.asked is turn:
                    with self.lock:
                        piece = next(pieces, None)
                    if piece is None or visit.asked is not turn:
                        break
                    turn.answer += piece
                    yield written(visit)
        except UserError as error:
            turn.note = f"({error})"
        finally:
            if visit.asked is turn:
                visit.asked = None
        yield written(visit)

    def stop(self, visit: Visit) -> str:
        if visit.asked:
            visit.asked.note, visit.asked = "(stopped)", None
        return written(visit)

    def look(self, visit: Visit) -> str:
        """The explainer's page about the last answer, in a frame that cannot touch this page."""
        said = answered(visit)
        if not said or visit.asked:
            raise refusal("There is no whole answer yet.")
        question, answer = said.pop()
        try:
            with self.lock:
                run = look.run_model(self.model, visit.picture, question, history=said, answer=answer)
                page = look.page(look.collect(run, question))
        except UserError as error:
            raise refusal(str(error)) from None
        return f'<iframe title="The last answer" sandbox="allow-scripts" srcdoc="{html.escape(page)}"></iframe>'


def answered(visit: Visit) -> History:
    return [(turn.question, turn.answer.strip()) for turn in visit.turns if turn.answer.strip()]


def refusal(message: str) -> gr.Error:
    """What a visitor reads in a box, which shows HTML."""
    return gr.Error(html.escape(printable(message)), print_exception=False)


def written(visit: Visit) -> str:
    """The talk as HTML: text of visitors and of the model is escaped."""
    lines = []
    for turn in visit.turns:
        for kind in ("question", "answer", "note"):
            if text := printable(getattr(turn, kind), keep="\n\t"):
                lines.append(f'<p class="{kind}">{html.escape(text)}</p>')
    return "".join(lines)
