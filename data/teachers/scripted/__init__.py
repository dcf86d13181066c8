"""The scripted teacher: writes instruction data by rule, offline, and says only what the context supports.

Where a context tells of a picture-book scene in full, the scene is rebuilt from its words and the picture-book's own
question makers speak. Any other context, COCO's first of all, goes through ``view.py`` (boxes) and ``captions.py``
into ``conversation.py``, ``detail.py`` and ``reasoning.py``. It asks for nothing that is not there: captions and boxes
say what is in a picture, not all of what is not.
"""

import random
from pathlib import Path

from data.picturebook import language
from data.picturebook.read import scene_of
from data.picturebook.scene import UNSEEN_PAIRS, Scene
from data.teachers import Request
from data.teachers.scripted.conversation import conversation
from data.teachers.scripted.detail import description
from data.teachers.scripted.reasoning import reasoning
from data.teachers.scripted.view import View


class Scripted:
    """The same request gets the same reply. A context of neither captions nor boxes gets an empty one."""

    def reply(self, request: Request) -> str:
        rng = random.Random(request.seed)
        if scene := scene_of(request.context):
            if request.kind == "detail":
                return language.description(scene)
            return _form([_reason(scene, rng)] if request.kind == "reasoning" else _talk(scene, rng))
        view = View(request.context)
        if not view.captions and not view.groups:
            return ""
        if request.kind == "detail":
            return description(view, rng)
        return _form([reasoning(view, rng)] if request.kind == "reasoning" else conversation(view, rng))


def rules() -> bytes:
    """The source of all this: where it has changed, replies may."""
    return b"".join(
        path.read_bytes() for path in [*sorted(Path(__file__).parent.glob("*.py")), Path(language.__file__)]
    )


def _form(turns: list[tuple[str, str]]) -> str:
    return "\n===\n".join(f"Question: {question}\n===\nAnswer: {answer}" for question, answer in turns)


def _reason(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """Some questions have no sure answer in some scenes; one of them fits any scene."""
    while not (turn := language.reasoning(scene, rng)):
        pass
    return turn


def _talk(scene: Scene, rng: random.Random) -> list[tuple[str, str]]:
    """A conversation without questions about the pairs that ``unseen.json`` keeps for a trial: not even that there is
    none of them."""
    turns = language.conversation(scene, rng, language.LENGTH)
    return [turn for turn in turns if not any(pair in turn[0] for pair in UNSEEN_PAIRS)]
