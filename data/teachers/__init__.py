"""Teachers write instruction data from a picture's context alone; they never see the picture.

A teacher is an object with ``reply(request: Request) -> str``. The reply's form is the paper's: "Question: ...",
"===", "Answer: ..." and "===" again between turns for a conversation; one such pair for complex reasoning; for a
detailed description the paragraph alone.
"""

from dataclasses import dataclass

from data import prompts
from data.contexts import Context


@dataclass(frozen=True)
class Request:
    """What a teacher is asked for: one reply of a ``kind`` in prompts.KINDS about one picture.

    ``question`` is what a detailed description answers, and None for the other kinds, whose questions the teacher
    writes. A teacher that draws lots draws them from ``seed``, so the same request gets the same reply.
    """

    kind: str
    context: Context
    question: str | None
    seed: int

    @property
    def messages(self) -> list[dict[str, str]]:
        """The request as chat messages."""
        return prompts.messages(self.kind, self.context, self.question)
