"""``python -m minillava.evaluate --data FILE.json``: how often a model answers right, by type of question.

The model answers every question in the file, greedily, with the file's own turns before it as the conversation so far.
"accuracy" counts the answers that equal the reference. Three more scores show what looking at the picture is worth:
"blind" (the picture is blank), "shuffled" (it is another row's) and "majority" (always each type's most frequent
answer).

An answer may also be judged by its meaning: a gpt turn may have "need", lists of words and phrases of which a right
answer has one from each list, and "refuse", words and phrases that it does not have. Upper case and punctuation do not
matter. "meaning" is the share of answers that are right in this sense, or exactly right where a turn has neither key.

A word counts as made up, and an answer with it as wrong by its meaning, unless it is in the answer's question, in a
turn before, or among the words of all references and needs of the file. There, words do not count that a reference or
need only repeats from its own question: "no camel" is a right answer about a camel only.

A gpt turn's "type" goes before its row's.

Rows of type "detail" or "caption" are not compared as a whole. Precision is the share of the things named in the
descriptions ("red fish") that are in the picture. Recall is the share of the things in the picture (the row's "things")
that are named.
"""

import argparse
import json
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from minillava.checkpoint import load
from minillava.config import PRETRAINED
from minillava.errors import UserError, run_program
from minillava.inputs.conversations import ConversationDataset, encode_row, naming_row
from minillava.model import fast
from minillava.model.generation import collect
from minillava.model.llava import Llava

DESCRIPTIONS = ("detail", "caption")
VIEWS = ("normal", "blind", "shuffled")


@dataclass
class Question:
    """A question: row, picture, prompt ids, reference answer, type and, for descriptions, the things there.

    ``need`` and ``refuse`` judge an answer by its meaning; None if only the reference is right. ``asked``: the words of
    the row's turns so far.
    """

    row: int
    image: str | None
    prompt: torch.Tensor
    reference: str
    kind: str
    things: list[str]
    need: list[list[str]] | None = None
    refuse: list[str] = field(default_factory=list)
    asked: frozenset[str] = frozenset()


def questions(dataset: ConversationDataset) -> list[Question]:
    """The questions of all rows of ``dataset``, one for each answer."""
    found = []
    for index, row in enumerate(dataset.rows):
        turns = row["conversations"]
        for position in range(1, len(turns), 2):
            turn = turns[position]
            with naming_row(dataset.path, index):
                prompt, _ = encode_row(row, dataset.processor, dataset.image_place != "last", position)
                check_judgement(turn, position)
            question = Question(
                index,
                row.get("image"),
                torch.tensor(prompt),
                turn["value"].strip(),
                turn.get("type", row.get("type", "all")),
                row.get("things", []),
                turn.get("need", [] if "refuse" in turn else None),
                turn.get("refuse", []),
                frozenset(word for said in turns[:position] for word in words(said["value"])),
            )
            found.append(question)
    return found


def check_judgement(turn: dict, index: int) -> None:
    """Check the keys "type", "need" and "refuse" of an answer, turn ``index`` of its row. Raises UserError."""

    def are_words(value: object) -> bool:
        return isinstance(value, list) and all(isinstance(phrase, str) and words(phrase) for phrase in value)

    need = turn.get("need", [])
    if not isinstance(turn.get("type", ""), str):
        raise UserError(f"turn {index}: 'type' must be a string")
    if not isinstance(need, list) or not all(choices and are_words(choices) for choices in need):
        raise UserError(f"turn {index}: 'need' must be a list of lists of words")
    if not are_words(turn.get("refuse", [])):
        raise UserError(f"turn {index}: 'refuse' must be a list of words")


def words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation."""
    return re.findall(r"[^\W_]+(?:'[^\W_]+)*", text.lower())


def own_words(asked: list[Question]) -> set[str]:
    """The words of all references and needs, without those that repeat their own questions."""
    own = set()
    for question in asked:
        texts = [question.reference, *(phrase for choices in question.need or [] for phrase in choices)]
        own.update(word for text in texts for word in words(text) if word not in question.asked)
    return own


def means(question: Question, answer: str, known: set[str]) -> bool:
    """Whether an answer is right by its meaning. ``known``: the words that answers may use beside those asked."""
    if question.need is None:
        return answer == question.reference
    said = words(answer)
    text = f" {' '.join(said)} "

    def has(phrase: str) -> bool:
        return f" {' '.join(words(phrase))} " in text

    told = all(any(map(has, choices)) for choices in question.need) and not any(map(has, question.refuse))
    return told and set(said) <= known | question.asked


@torch.inference_mode()
def answer_all(
    model: Llava, dataset: ConversationDataset, asked: list[Question], shown: str, batch_size: int = 64
) -> list[str]:
    """The model's greedy answers. ``shown`` is "normal" (the row's picture), "blind" or "shuffled"."""
    names = sorted({row["image"] for row in dataset.rows if "image" in row})
    other = dict(zip(names, names[len(names) // 2 :] + names[: len(names) // 2]))  # the picture half the list away
    tokenizer, stop = model.processor.tokenizer, model.processor.template.stop

    def picture(question: Question) -> torch.Tensor:
        with naming_row(dataset.path, question.row):
            pixels = dataset.pixels({"image": other[question.image] if shown == "shuffled" else question.image})
        return torch.zeros_like(pixels) if shown == "blind" else pixels

    order = sorted(range(len(asked)), key=lambda i: (len(asked[i].reference), len(asked[i].prompt)))
    answers = [""] * len(asked)
    for start in tqdm(range(0, len(order), batch_size), desc=shown, unit="answer", unit_scale=batch_size, disable=None):
        chosen = order[start : start + batch_size]
        batch = [asked[i] for i in chosen]
        # Padding on the left: all answers begin in the same column
        ids = pad_sequence([q.prompt for q in batch], True, tokenizer.pad_id, "left").to(model.device)
        mask = pad_sequence([torch.ones_like(q.prompt) for q in batch], True, 0, "left").to(model.device)
        pictures = [picture(question) for question in batch if question.image is not None]
        room = max(len(tokenizer.encode(question.reference)) for question in batch) + 8
        embeddings = model.embed(ids, torch.stack(pictures) if pictures else None)
        steps = fast.generate_ids(model.language_model, embeddings, mask, room)
        for i, row in zip(chosen, collect(steps, model.processor.stop_ids, tokenizer.pad_id).tolist()):
            answers[i] = tokenizer.decode([t for t in row if t != tokenizer.pad_id]).split(stop)[0].strip()
    return answers


def exact(asked: list[Question], answers: list[str]) -> tuple[float, dict[str, float]]:
    """Share of exactly right answers: overall and by type. (nan, {}) without questions."""
    return shares(asked, [answer == question.reference for question, answer in zip(asked, answers)])


def meaning(asked: list[Question], answers: list[str]) -> tuple[float, dict[str, float]]:
    """Share of answers that are right by their meaning: overall and by type. (nan, {}) without questions."""
    known = own_words(asked)
    return shares(asked, [means(question, answer, known) for question, answer in zip(asked, answers)])


def shares(asked: list[Question], hits: list[bool]) -> tuple[float, dict[str, float]]:
    """Share of right answers, from whether each of them is: overall and by type. (nan, {}) without questions."""
    right: dict[str, list[bool]] = defaultdict(list)
    for question, hit in zip(asked, hits):
        right[question.kind].append(hit)
    overall = sum(hits) / len(hits) if hits else float("nan")
    return overall, {kind: sum(hits) / len(hits) for kind, hits in sorted(right.items())}


def majority(asked: list[Question]) -> float:
    """The score of always giving each type's most frequent answer."""
    commonest: dict[str, Counter] = defaultdict(Counter)
    for question in asked:
        commonest[question.kind][question.reference] += 1
    return sum(counter.most_common(1)[0][1] for counter in commonest.values()) / max(1, len(asked))


def naming(asked: list[Question], answers: list[str]) -> tuple[float, float]:
    """Precision and recall of the things named in descriptions, over all descriptions together."""
    vocabulary = sorted({thing for question in asked for thing in question.things})
    pattern = re.compile(rf"\b({'|'.join(map(re.escape, vocabulary))})\b")
    named = [set(pattern.findall(answer.lower())) for answer in answers]
    there = [set(question.things) for question in asked]
    true = sum(len(ours & theirs) for ours, theirs in zip(named, there))
    return true / max(1, sum(map(len, named))), true / max(1, sum(map(len, there)))


def evaluate(
    model: Llava, data: Path, image_folder: Path | None = None, image_place: Literal["first", "last"] = "first"
) -> dict:
    """All scores of ``model`` on a LLaVA JSON file: the dict that the command prints, and also "types" (the number of
    questions by type), "blind_by_type" and "blind_meaning_by_type".

    ``image_place``: the picture goes before the first question, or after it. The scores of "meaning" are there if an
    answer of the file has "need" or "refuse".
    """
    dataset = ConversationDataset(data, image_folder or data.parent, model.processor, image_place)
    asked = questions(dataset)
    short = [question for question in asked if question.kind not in DESCRIPTIONS]
    long = [question for question in asked if question.kind in DESCRIPTIONS and question.things]
    result: dict = {"questions": len(short), "descriptions": len(long)}
    if short:
        answers = {shown: answer_all(model, dataset, short, shown) for shown in VIEWS}
        scores = {shown: exact(short, answers[shown]) for shown in VIEWS}
        result |= {"accuracy": scores["normal"][0], "blind": scores["blind"][0], "shuffled": scores["shuffled"][0]}
        result |= {"majority": majority(short), "by_type": scores["normal"][1], "blind_by_type": scores["blind"][1]}
        result["types"] = dict(Counter(question.kind for question in short))
        if any(question.need is not None for question in short):
            scores = {shown: meaning(short, answers[shown]) for shown in VIEWS}
            result |= {"meaning": scores["normal"][0], "meaning_by_type": scores["normal"][1]}
            result |= {"blind_meaning": scores["blind"][0], "shuffled_meaning": scores["shuffled"][0]}
            result["blind_meaning_by_type"] = scores["blind"][1]
    if long:
        result["precision"], result["recall"] = naming(long, answer_all(model, dataset, long, "normal"))
        result["blind_precision"], result["blind_recall"] = naming(long, answer_all(model, dataset, long, "blind"))
    return result


def show(result: dict) -> None:
    """Print ``result`` as a table."""
    if result["questions"]:
        columns = [("exact", "accuracy", "by_type"), ("blind", "blind", "blind_by_type")]
        if "meaning" in result:
            columns += [("meaning", "meaning", "meaning_by_type"), ("blind", "blind_meaning", "blind_meaning_by_type")]
        print(f"{'type':<12} {'questions':>9}", *(f"{name:>7}" for name, _, _ in columns))
        for kind, count in sorted(result["types"].items()):
            print(f"{kind:<12} {count:>9}", *(f"{result[by_type][kind]:>7.1%}" for _, _, by_type in columns))
        print(f"{'all':<12} {result['questions']:>9}", *(f"{result[whole]:>7.1%}" for _, whole, _ in columns))
        means = f" ({result['shuffled_meaning']:.1%} by meaning)" if "meaning" in result else ""
        print(f"shuffled pictures {result['shuffled']:.1%}{means}, majority answer {result['majority']:.1%}")
    if result["descriptions"]:
        print(
            f"{result['descriptions']} descriptions: things named with precision {result['precision']:.1%}, recall "
            f"{result['recall']:.1%} (blind {result['blind_precision']:.1%}, {result['blind_recall']:.1%})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m minillava.evaluate", description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=PRETRAINED / "llava", help="LLaVA folder (default: the shipped one)")
    parser.add_argument("--data", type=Path, required=True, help="LLaVA JSON file")
    parser.add_argument("--image-folder", type=Path, help="folder of its pictures (default: the folder of --data)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    result = evaluate(load(arguments.model, arguments.device), arguments.data, arguments.image_folder)
    if not result["questions"] and not result["descriptions"]:
        raise UserError(f"{arguments.data}: contains no questions")
    show(result)
    rounded = json.loads(json.dumps(result), parse_float=lambda number: round(float(number), 4))
    hidden = ("types", "blind_by_type", "blind_meaning_by_type")
    print(json.dumps({key: value for key, value in rounded.items() if key not in hidden}))


if __name__ == "__main__":
    run_program(main)
