"""Teachers write instruction data from a picture's context; they never see the picture.

A teacher is an object with ``reply(request: Request) -> str``. The reply has the paper's form. For a conversation:
"Question: ...", "===", "Answer: ...", and "===" between turns. For complex reasoning: one question and answer. For a
detailed description: only the paragraph.
"""

from dataclasses import dataclass

from data import prompts
from data.contexts import Context


@dataclass(frozen=True)
class Request:
    """What a teacher is asked for: one reply of a ``kind`` in prompts.KINDS about one picture.

    ``question`` is the request for a detailed description, and None for the other kinds, whose questions the teacher
    writes. A teacher that makes random choices uses ``seed``, so the same request gets the same reply.
    """

    kind: str
    context: Context
    question: str | None
    seed: int

    @property
    def messages(self) -> list[dict[str, str]]:
        """The request as chat messages."""
        return prompts.messages(self.kind, self.context, self.question)
