"""The prompts with which a language model writes instruction data: text files in ``data/prompts/KIND/``, to be edited.

``system.txt`` is the system message. ``01.context.txt`` and ``01.answer.txt``, ``02...`` and so on are few-shot
examples: a context as :meth:`Context.text` writes it, and the desired reply. They are sent as turns of the chat
(paper, section 3 and appendix), so that the model answers the last context in the form of the examples.
"""

from functools import cache
from pathlib import Path

from data.contexts import Context
from minillava.errors import UserError
from minillava.formats.text_file import TEXT_BYTES, begin_of

KINDS = ("conversation", "detail", "reasoning")
FOLDER = Path(__file__).parent / "prompts"


def messages(kind: str, context: Context, question: str | None = None) -> list[dict[str, str]]:
    """The chat messages ``{"role", "content"}`` that ask for one reply: system, context, answer, ..., context.

    ``question`` is the request for a detailed description; it is put below every context, the examples' too.
    Raises UserError for a prompt file that is missing or empty.
    """
    system, examples = _prompt(kind)
    below = f"\n\n{question}" if question else ""
    sent = [{"role": "system", "content": system}]
    for shown, answer in examples:
        sent += [{"role": "user", "content": shown + below}, {"role": "assistant", "content": answer}]
    return [*sent, {"role": "user", "content": context.text() + below}]


@cache
def _prompt(kind: str) -> tuple[str, list[tuple[str, str]]]:
    """The system message and the examples (context, answer) of one kind."""
    contexts = sorted((FOLDER / kind).glob("*.context.txt"))
    answers = [path.with_name(path.name.replace(".context.", ".answer.")) for path in contexts]
    return _read(FOLDER / kind / "system.txt"), [(_read(c), _read(a)) for c, a in zip(contexts, answers)]


def _read(path: Path) -> str:
    begin_of(path, TEXT_BYTES)
    try:
        text = path.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {error.strerror if isinstance(error, OSError) else 'not UTF-8'}") from None
    if not text:
        raise UserError(f"{path}: empty")
    return text
