"""Questions about pictures that a training does not learn from: what the model answers while it learns, and how often
it is right in the end. Always the same questions, always the most likely token."""

from collections import Counter, defaultdict
from collections.abc import Collection

from minillava.errors import UserError
from minillava.evaluate import (
    DESCRIPTIONS,
    POPE,
    Question,
    answer_batch,
    kind_of,
    meaning,
    naming,
    questions,
    room_for,
    says_yes,
    shares,
)
from minillava.inputs.conversations import ConversationDataset
from minillava.inputs.image import find_picture, open_image
from minillava.inputs.tokenizer import IMAGE
from minillava.model.generation import generate_ids
from minillava.model.llava import Llava
from minillava.page import data_uri

CANDIDATES, SHOWN, SCORED = 2_000, 6, 150  # rows: those to choose from, those whose answers are shown, those scored
LENGTH = 64  # tokens of an answer that is shown, at most
SIDE = 144  # pixels of a picture in the report, at most


def spread_out(length: int, most: int) -> list[int]:
    """The indices of all ``length`` rows, or of ``most`` of them at equal distances."""
    count = min(length, most)
    return [index * length // count for index in range(count)]


class Questions:
    """The first questions of a few rows of ``dataset``: SHOWN rows and SCORED rows, as many of each type as possible.

    Only rows of the types in ``kinds``, if that is given. Raises UserError, naming file and row, if what an answer is
    judged by is malformed.
    """

    def __init__(self, model: Llava, dataset: ConversationDataset, kinds: Collection[str] = ()):
        self.model, self.dataset = model, dataset
        rows = defaultdict(list)
        for index in spread_out(len(dataset), CANDIDATES):
            number = dataset.kept[index]
            row = dataset.rows[number]
            kind = str(kind_of(row, row["conversations"][1]))
            if not kinds or kind in kinds:
                rows[kind].append(number)
        self.shown, scored = (self._first_questions(choose(rows, most)) for most in (SHOWN, SCORED))
        limit = model.config.decoder.max_position_embeddings
        scored = [one for one in scored if len(one.prompt) + room_for([one], model) <= limit]
        # Answers of similar length share a batch.
        self.scored = sorted(scored, key=lambda one: len(one.reference)) if set(rows) != {"all"} else []

    def _first_questions(self, rows: list[int]) -> list[Question]:
        return [question for question in questions(self.dataset, rows) if question.turn == 1]

    def answers(self, size: int) -> list[dict]:
        """A line {"row", "question", "answer", "reference"} for each row that is shown; ``size`` of them are computed
        together. Rows whose picture cannot be read are left out."""
        return [
            {"row": one.row, "question": self.text(one), "answer": answer, "reference": one.reference}
            for one, answer in self._answered(self.shown, size, LENGTH)
        ]

    def scores(self, size: int) -> dict:
        """How often the model is right, by type of question, as in evaluate.py; {} if the rows have no types.

        "types": the number of questions; "exact", "meaning" (if an answer has "need" or "refuse"): shares of right
        answers. "descriptions": their number; "precision" and "recall" of the things that they name.
        """
        answered, result = self._answered(self.scored, size), {}
        if judged := [pair for pair in answered if pair[0].kind not in DESCRIPTIONS]:
            asked, given = map(list, zip(*judged))
            result["types"] = dict(sorted(Counter(one.kind for one in asked).items()))
            result["exact"] = shares(asked, [is_right(*pair) for pair in judged])[1]
            if any(one.need is not None for one in asked):
                result["meaning"] = meaning(asked, given)[1]
        if described := [pair for pair in answered if pair[0].kind in DESCRIPTIONS and pair[0].things]:
            precision, recall = naming(*map(list, zip(*described)))
            result |= {"descriptions": len(described), "precision": precision, "recall": recall}
        return result

    def _answered(self, asked: list[Question], size: int, room: int = 0) -> list[tuple[Question, str]]:
        """The questions whose picture can be read, with the model's answers of at most ``room`` tokens, or as many as
        evaluate.py allows."""
        answered = []
        for start in range(0, len(asked), size):
            batch, pictures = [], []
            for one in asked[start : start + size]:
                pixels = None if one.image is None else self.dataset.picture(one.row, self.dataset.rows[one.row])
                if one.image is None or pixels is not None:
                    batch.append(one)
                    pictures += [] if pixels is None else [pixels]
            if batch:
                length = room or room_for(batch, self.model)
                texts = answer_batch(self.model, self.dataset.processor, batch, pictures, length, generate_ids)
                answered += zip(batch, texts)
        return answered

    def text(self, question: Question) -> str:
        return self.dataset.rows[question.row]["conversations"][0]["value"].replace(IMAGE, "").strip()

    def cards(self) -> list[dict]:
        """The rows that are shown: {"row", "question", "reference", "picture"}. The picture is a data URI, or None; it
        is as the vision tower sees it."""
        return [
            {"row": one.row, "question": self.text(one), "reference": one.reference, "picture": self._picture(one)}
            for one in self.shown
        ]

    def _picture(self, question: Question) -> str | None:
        if question.image is None:
            return None
        try:
            image = open_image(find_picture(self.dataset.image_folder, question.image))
            image = self.dataset.processor.image.view(image)
        except UserError:  # the row is listed as one whose picture cannot be read
            return None
        image.thumbnail((SIDE, SIDE))
        return data_uri(image)


def is_right(question: Question, answer: str) -> bool:
    """Whether an answer is exactly right; one to POPE's questions, as POPE counts."""
    if question.kind == POPE:
        return says_yes(answer) == (question.reference == "yes")
    return answer == question.reference


def choose(rows: dict[str, list[int]], most: int) -> list[int]:
    """At most ``most`` of the rows, which are given by type: as many of one type as of another, spread over the file,
    so that those of different types show different pictures."""
    kinds = [list(rows.values())[place] for place in spread_out(len(rows), most)]
    share, count, chosen = -(-most // max(1, len(kinds))), len(kinds), []
    for place, numbers in enumerate(kinds):
        each = min(share, len(numbers))
        chosen += [numbers[(index * count + place) * len(numbers) // (each * count)] for index in range(each)]
    return chosen[:most]
