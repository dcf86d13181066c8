"""The scripted teacher: a program that writes instruction data about the picture-book, offline and without errors.

It rebuilds the scene from its context's captions and boxes, and calls the picture-book's own question makers. Rules
cannot do this for photographs: people's captions need a language model to read them and to write about them.
"""

import random
from pathlib import Path

from data.contexts import Context
from data.picturebook import language, nouns, questions, talk, wordings
from data.picturebook.read import scene_of
from data.picturebook.scene import UNSEEN_PAIRS, Scene
from data.teachers import Request
from minillava.errors import UserError


class Scripted:
    """The same request gets the same reply."""

    def reply(self, request: Request) -> str:
        """The reply in the form of :mod:`data.teachers`. Raises UserError as :func:`scene_told` does."""
        scene, rng = scene_told(request.context), random.Random(request.seed)
        if request.kind == "detail":
            return language.description(scene)
        turns = [_reason(scene, rng)] if request.kind == "reasoning" else _talk(scene, rng)
        return "\n===\n".join(f"Question: {question}\n===\nAnswer: {answer}" for question, answer in turns)


def scene_told(context: Context) -> Scene:
    """The picture-book scene that a context describes completely. Raises UserError for any other context."""
    if scene := scene_of(context):
        return scene
    raise UserError(
        f"picture {context.id!r} is not a picture-book scene that its captions describe completely: the scripted "
        "teacher writes about the picture-book only, and photographs and other pictures need --teacher openai"
    )


def rules() -> bytes:
    """The source code that determines the replies: if it has changed, they may have too."""
    modules = (language, questions, talk, wordings, nouns)
    return b"".join(Path(path).read_bytes() for path in (__file__, *(module.__file__ for module in modules)))


def _reason(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """A question and answer. Some questions have no sure answer in some scenes, so others are tried; one fits any."""
    while not (question := questions.reasoning(scene, rng)):
        pass
    return talk.worded(question, rng), question.answer


def _talk(scene: Scene, rng: random.Random) -> list[tuple[str, str]]:
    """A conversation without questions about the pairs that ``unseen.json`` tests: not even whether there is one."""
    return talk.conversation(scene, rng, talk.LENGTH, without=UNSEEN_PAIRS)
