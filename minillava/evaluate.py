"""``python -m minillava.evaluate --data FILE.json``: how often a model answers exactly right, by type of question.

The model answers every question in the file, greedily, with the file's own turns before it as the conversation so far.
An answer is right if it equals the reference. Three more scores show what looking at the picture is worth: "blind" (the
picture is blank), "shuffled" (it is another row's) and "majority" (always each type's most frequent answer).

Rows of type "detail" or "caption" are not compared as a whole. Precision is the share of the things named in the
descriptions ("red fish") that are in the picture. Recall is the share of the things in the picture (the row's "things")
that are named.
"""

import argparse
import json
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

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


@dataclass
class Question:
    """A question: row, picture, prompt ids, reference answer, type and, for descriptions, the things there."""

    row: int
    image: str | None
    prompt: torch.Tensor
    reference: str
    kind: str
    things: list[str]


def questions(dataset: ConversationDataset) -> list[Question]:
    """The questions of all rows of ``dataset``, one for each answer."""
    found = []
    for index, row in enumerate(dataset.rows):
        turns = row["conversations"]
        for position in range(1, len(turns), 2):
            with naming_row(dataset.path, index):
                prompt, _ = encode_row(row, dataset.processor, dataset.image_place != "last", position)
            reference = turns[position]["value"].strip()
            kind, things = row.get("type", "all"), row.get("things", [])
            found.append(Question(index, row.get("image"), torch.tensor(prompt), reference, kind, things))
    return found


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
    right: dict[str, list[bool]] = defaultdict(list)
    for question, answer in zip(asked, answers):
        right[question.kind].append(answer == question.reference)
    overall = sum(map(sum, right.values())) / len(asked) if asked else float("nan")
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


def evaluate(model: Llava, data: Path, image_folder: Path | None = None) -> dict:
    """All scores of ``model`` on a LLaVA JSON file: the dict that the command prints, and also "types" (the number of
    questions by type) and "blind_by_type"."""
    dataset = ConversationDataset(data, image_folder or data.parent, model.processor, "first")
    asked = questions(dataset)
    short = [question for question in asked if question.kind not in DESCRIPTIONS]
    long = [question for question in asked if question.kind in DESCRIPTIONS and question.things]
    result: dict = {"questions": len(short), "descriptions": len(long)}
    if short:
        accuracy, by_type = exact(short, answer_all(model, dataset, short, "normal"))
        blind, blind_by_type = exact(short, answer_all(model, dataset, short, "blind"))
        shuffled, _ = exact(short, answer_all(model, dataset, short, "shuffled"))
        result |= {"accuracy": accuracy, "blind": blind, "shuffled": shuffled, "majority": majority(short)}
        result |= {"by_type": by_type, "blind_by_type": blind_by_type, "types": dict(Counter(q.kind for q in short))}
    if long:
        result["precision"], result["recall"] = naming(long, answer_all(model, dataset, long, "normal"))
        result["blind_precision"], result["blind_recall"] = naming(long, answer_all(model, dataset, long, "blind"))
    return result


def show(result: dict) -> None:
    """Print ``result`` as a table."""
    if result["questions"]:
        print(f"{'type':<12} {'questions':>9} {'exact':>7} {'blind':>7}")
        for kind, share in result["by_type"].items():
            print(f"{kind:<12} {result['types'][kind]:>9} {share:>7.1%} {result['blind_by_type'][kind]:>7.1%}")
        print(f"{'all':<12} {result['questions']:>9} {result['accuracy']:>7.1%} {result['blind']:>7.1%}")
        print(f"shuffled pictures {result['shuffled']:.1%}, majority answer {result['majority']:.1%}")
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
    print(json.dumps({key: value for key, value in rounded.items() if key not in ("types", "blind_by_type")}))


if __name__ == "__main__":
    run_program(main)
