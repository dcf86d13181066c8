"""``python -m minillava.evaluate --data FILE.json``: how often a model answers right, by type of question.

The model answers every question in the file, greedily, with the file's own turns before it as the conversation so far.
"accuracy" counts the answers that equal the reference. Three more scores show what looking at the picture is worth:
"blind" (the picture is blank), "shuffled" (it is another row's) and "majority" (always each type's most frequent
answer). If a type has few and short answers, a table shows how often each was given in place of which.

An answer may also be judged by its meaning: a gpt turn may have "need", lists of words and phrases of which a right
answer has one from each list, and "refuse", words and phrases that it does not have. Upper case and punctuation do not
matter. "meaning" is the share of answers that are right in this sense, or exactly right where a turn has neither key.

A word counts as made up, and an answer with it as wrong by its meaning, unless it is in the answer's question, in a
turn before, or among the words of all references and needs of the file. There, words do not count that a reference or
need only repeats from its own question: "no camel" is a right answer about a camel only.

A gpt turn's "type" goes before its row's.

Rows of type "detail" or "caption" are not compared as a whole. Precision is the share of the things named in the
descriptions ("red fish") that are in the picture. Recall is the share of the things in the picture (the row's "things")
that are named. Descriptions in rows without "things" are counted and not scored.

A file may also be one of POPE's (Li et al. 2023, arXiv 2305.10355): questions whether a thing is in a picture, whose
answers are counted as yes or no. "pope" has the accuracy, and for yes the precision, the recall, F1 and the share of
all answers.

``--answers FILE.jsonl`` writes a line for each question: {"row", "turn", "id", "image", "type", "question",
"reference", "answer", "right"}, and "meaning" (whether it is right by its meaning) where the answer has "need" or
"refuse". In place of "right", the line of a description has "made_up" and "missed", lists of things. An answer that
becomes much longer than its reference is cut.
"""

import argparse
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch.nn.utils.rnn import pad_sequence

from minillava.checkpoint import load
from minillava.config import PRETRAINED
from minillava.errors import UserError, printable, run_program
from minillava.formats.pope import POPE
from minillava.inputs.conversations import ConversationDataset, encode_row, naming_row
from minillava.inputs.processor import Processor
from minillava.inputs.tokenizer import IMAGE
from minillava.model import fast
from minillava.model.generation import collect
from minillava.model.llava import Llava
from minillava.progress import progress
from minillava.talk import finite_logits

DESCRIPTIONS = ("detail", "caption")
VIEWS = ("normal", "blind", "shuffled")
MOST_ANSWERS, MOST_WORDS = 12, 3  # of a type whose answers are tabulated: different references, and words in each
WIDEST = 16  # maximum characters of a type or an answer in a table


@dataclass
class Question:
    """A question: row, picture, prompt ids, reference answer, type and, for descriptions, the things there.

    ``need`` and ``refuse`` judge an answer by its meaning; None if only the reference is right. ``asked``: the words of
    the row's turns so far. ``turn``: the index of the answer among the row's turns.
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
    turn: int = 1


def questions(dataset: ConversationDataset, rows: Iterable[int] | None = None) -> list[Question]:
    """The questions of all rows of ``dataset``, or of those with the numbers ``rows``, one for each answer."""
    found = []
    for index in range(len(dataset.rows)) if rows is None else rows:
        row = dataset.rows[index]
        turns = row["conversations"]
        with naming_row(dataset.path, index):
            check_judgement(row)
        for position in range(1, len(turns), 2):
            turn = turns[position]
            kind = kind_of(row, turn)
            with naming_row(dataset.path, index):
                prompt, _ = encode_row(row, dataset.processor, dataset.image_place != "last", position)
            question = Question(
                index,
                row.get("image"),
                torch.tensor(prompt),
                turn["value"].strip(),
                kind,
                [thing.lower() for thing in row.get("things", [])] if kind in DESCRIPTIONS else [],
                turn.get("need", [] if "refuse" in turn else None),
                turn.get("refuse", []),
                frozenset(word for said in turns[:position] for word in words(said["value"])),
                position,
            )
            found.append(question)
    return found


def kind_of(row: dict, turn: dict) -> str:
    """The type of an answer, ``turn`` of ``row``."""
    return turn.get("type", row.get("type", "all"))


def check_judgement(row: dict) -> None:
    """Check what the answers of a row are judged by: "type" of the row; "type", "need" and "refuse" of its turns; and
    "things" of the row if it has a description. Raises UserError, naming the turn."""

    def are_words(value: object) -> bool:
        return isinstance(value, list) and all(isinstance(phrase, str) and words(phrase) for phrase in value)

    if not isinstance(row.get("type", ""), str):
        raise UserError("'type' must be a string")
    for index, turn in enumerate(row["conversations"]):
        need = turn.get("need", [])
        if not isinstance(turn.get("type", ""), str):
            raise UserError(f"turn {index}: 'type' must be a string")
        if not isinstance(need, list) or not all(choices and are_words(choices) for choices in need):
            raise UserError(f"turn {index}: 'need' must be a list of lists of words")
        if not are_words(turn.get("refuse", [])):
            raise UserError(f"turn {index}: 'refuse' must be a list of words")
        if kind_of(row, turn) in DESCRIPTIONS and not are_words(row.get("things", [])):
            raise UserError("'things' must be a list of words, since the row has a description")


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


def answer_all(
    model: Llava, dataset: ConversationDataset, asked: list[Question], shown: str, batch_size: int = 64
) -> list[str]:
    """The model's greedy answers. ``shown`` is "normal" (the row's picture), "blind" or "shuffled"."""
    names = sorted({row["image"] for row in dataset.rows if "image" in row})
    other = dict(zip(names, names[len(names) // 2 :] + names[: len(names) // 2]))  # the picture half the list away

    def picture(question: Question) -> torch.Tensor:
        with naming_row(dataset.path, question.row):
            pixels = dataset.pixels({"image": other[question.image] if shown == "shuffled" else question.image})
        return torch.zeros_like(pixels) if shown == "blind" else pixels

    order = sorted(range(len(asked)), key=lambda i: (len(asked[i].reference), len(asked[i].prompt)))
    answers = [""] * len(asked)
    for start in progress(range(0, len(order), batch_size), desc=shown, unit="answer", unit_scale=batch_size):
        chosen = order[start : start + batch_size]
        batch = [asked[i] for i in chosen]
        pictures = [picture(question) for question in batch if question.image is not None]
        with finite_logits(model.language_model):
            given = answer_batch(model, model.processor, batch, pictures, room_for(batch, model), fast.generate_ids)
        for i, answer in zip(chosen, given):
            answers[i] = answer
    return answers


@torch.inference_mode()
def answer_batch(
    model: Llava,
    processor: Processor,
    batch: list[Question],
    pictures: list[torch.Tensor],
    room: int,
    generate: Callable[..., Iterator[torch.Tensor]],
) -> list[str]:
    """The greedy answers, of at most ``room`` tokens, to questions that the model reads side by side. ``pictures`` are
    the pixels of those that have a picture; ``generate`` is generate_ids() of model/generation.py or model/fast.py."""
    tokenizer = processor.tokenizer
    # Padding on the left: all answers begin in the same column
    ids = pad_sequence([q.prompt for q in batch], True, tokenizer.pad_id, "left").to(model.device)
    mask = pad_sequence([torch.ones_like(q.prompt) for q in batch], True, 0, "left").to(model.device)
    embeddings = model.embed(ids, torch.stack(pictures) if pictures else None)
    steps = generate(model.language_model, embeddings, mask, room)
    found = collect(steps, processor.stop_ids, tokenizer.pad_id).tolist()
    texts = [tokenizer.decode([t for t in row if t != tokenizer.pad_id]) for row in found]
    return [text.split(processor.template.stop)[0].strip() for text in texts]


def room_for(asked: list[Question], model: Llava) -> int:
    """How many tokens an answer to one of ``asked`` may have."""
    if any(question.kind == POPE for question in asked):
        return 32  # the reference is only "yes" or "no"
    return max(len(model.processor.tokenizer.encode(question.reference)) for question in asked) + 8


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


def commonest(asked: list[Question]) -> list[str]:
    """For each question, the most frequent reference of its type."""
    counts: dict[str, Counter] = defaultdict(Counter)
    for question in asked:
        counts[question.kind][question.reference] += 1
    return [counts[question.kind].most_common(1)[0][0] for question in asked]


def confusion(asked: list[Question], answers: list[str]) -> dict[str, dict[str, dict[str, int]]]:
    """How often which answer was given in place of which: type -> reference -> answer -> number.

    Only types with at least two and at most MOST_ANSWERS references, of at most MOST_WORDS words each.
    """
    tables: dict[str, dict[str, dict[str, int]]] = defaultdict(lambda: defaultdict(Counter))
    for question, answer in zip(asked, answers):
        tables[question.kind][question.reference][answer] += 1
    return {
        kind: {reference: dict(given) for reference, given in sorted(table.items())}
        for kind, table in sorted(tables.items())
        if 2 <= len(table) <= MOST_ANSWERS and all(len(words(reference)) <= MOST_WORDS for reference in table)
    }


def things_named(asked: list[Question], answers: list[str]) -> list[set[str]]:
    """For each description, those things that it names which are in the picture of any of ``asked``."""
    vocabulary = sorted({thing for question in asked for thing in question.things})
    pattern = re.compile(rf"\b({'|'.join(map(re.escape, vocabulary))})\b")
    return [set(pattern.findall(answer.lower())) for answer in answers]


def naming(asked: list[Question], answers: list[str]) -> tuple[float, float]:
    """Precision and recall of the things named in descriptions, over all descriptions together."""
    named = things_named(asked, answers)
    there = [set(question.things) for question in asked]
    true = sum(len(ours & theirs) for ours, theirs in zip(named, there))
    return true / max(1, sum(map(len, named))), true / max(1, sum(map(len, there)))


def says_yes(answer: str) -> bool:
    """Whether an answer counts as a yes: its first sentence has neither "no" nor "not" (POPE's evaluate.py)."""
    first = answer.split(".")[0].replace(",", "")
    return not {"No", "no", "not"} & set(first.split(" "))


def yes_or_no(asked: list[Question], answers: list[str]) -> dict[str, float]:
    """POPE's scores. Precision is the share of the answers "yes" that are right, recall the share of the questions with
    the answer "yes" that get it."""
    given = [says_yes(answer) for answer in answers]
    true = [question.reference == "yes" for question in asked]
    hits = sum(yes and there for yes, there in zip(given, true))
    return {
        "accuracy": sum(yes == there for yes, there in zip(given, true)) / len(asked),
        "precision": hits / max(1, sum(given)),
        "recall": hits / max(1, sum(true)),
        "f1": 2 * hits / max(1, sum(given) + sum(true)),
        "yes": sum(given) / len(asked),
    }


def evaluate(
    model: Llava,
    data: Path,
    image_folder: Path | None = None,
    answers: bool = False,
    image_place: Literal["first", "last"] = "first",
) -> dict:
    """All scores of ``model`` on a LLaVA JSON file: the dict that the command prints.

    "types" is the number of questions by type, "confusion" is :func:`confusion`. The scores of "meaning" are there if
    an answer of the file has "need" or "refuse". With ``answers`` also "answers": the lines that ``--answers`` writes.
    ``image_place``: the picture goes before the first question, or after it.
    """
    dataset = ConversationDataset(data, image_folder or data.parent, model.processor, image_place)
    limit, asked = model.language_model.config.max_position_embeddings, questions(dataset)
    whole = [question for question in asked if len(question.prompt) + room_for([question], model) <= limit]
    result: dict = {"too_long": len(asked) - len(whole)}
    asked = whole
    present = [question for question in asked if question.kind == POPE]
    short = [question for question in asked if question.kind not in (*DESCRIPTIONS, POPE)]
    long = [question for question in asked if question.kind in DESCRIPTIONS and question.things]
    unscored = [question for question in asked if question.kind in DESCRIPTIONS and not question.things]
    result |= {"questions": len(short), "descriptions": len(long), "unscored": len(unscored)}
    lines = []
    if short:
        given = {shown: answer_all(model, dataset, short, shown) for shown in VIEWS}
        result |= all_scores(short, given | {"majority": commonest(short)})
        result["types"] = dict(Counter(question.kind for question in short))
        result["confusion"] = confusion(short, given["normal"])
        lines += answer_lines(dataset, short, given["normal"])
    if present:
        given = {shown: answer_all(model, dataset, present, shown) for shown in VIEWS}
        result["pope"] = {shown: yes_or_no(present, answers) for shown, answers in given.items()}
        lines += answer_lines(dataset, present, given["normal"])
    if long:
        given = {shown: answer_all(model, dataset, long, shown) for shown in ("normal", "blind")}
        result["precision"], result["recall"] = naming(long, given["normal"])
        result["blind_precision"], result["blind_recall"] = naming(long, given["blind"])
        lines += answer_lines(dataset, long, given["normal"])
    if answers:
        if unscored:
            lines += answer_lines(dataset, unscored, answer_all(model, dataset, unscored, "normal"))
        result["answers"] = sorted(lines, key=lambda line: (line["row"], line["turn"]))
    return result


def all_scores(asked: list[Question], given: dict[str, list[str]]) -> dict:
    """The scores of the answers given in each view, overall and then by type."""
    whole, by_type = {}, {}
    for shown, answers in given.items():
        before = "" if shown == "normal" else f"{shown}_"
        whole["accuracy" if shown == "normal" else shown], by_type[f"{before}by_type"] = exact(asked, answers)
        if any(question.need is not None for question in asked):
            whole[f"{before}meaning"], by_type[f"{before}meaning_by_type"] = meaning(asked, answers)
    return whole | by_type


def answer_lines(dataset: ConversationDataset, asked: list[Question], answers: list[str]) -> list[dict]:
    """What was asked and answered, and whether it is right: the lines of ``--answers`` for some of the questions."""
    lines, known = [], own_words(asked)
    for question, answer, named in zip(asked, answers, things_named(asked, answers)):
        row, there = dataset.rows[question.row], set(question.things)
        line = {
            "row": question.row,
            "turn": question.turn,
            "id": row.get("id"),
            "image": question.image,
            "type": question.kind,
            "question": row["conversations"][question.turn - 1]["value"].replace(IMAGE, "").strip(),
            "reference": question.reference,
            "answer": answer,
        }
        if question.kind == POPE:
            line["right"] = says_yes(answer) == (question.reference == "yes")
        elif question.kind not in DESCRIPTIONS:
            line["right"] = answer == question.reference
            if question.need is not None:
                line["meaning"] = means(question, answer, known)
        elif there:
            line |= {"made_up": sorted(named - there), "missed": sorted(there - named)}
        lines.append(line)
    return lines


def write_answers(path: Path, lines: list[dict]) -> None:
    """Write lines of JSON to a new file. Raises UserError."""
    try:
        # A lone surrogate becomes an escape, which JSON has too
        with open(path, "x", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None


def show(result: dict) -> None:
    """Print ``result`` as tables."""
    if result["too_long"]:
        print(f"questions left out because the model cannot read them and answer: {result['too_long']:,}")
    others = ("blind", "shuffled", "majority")
    tables = []
    if result["questions"]:
        tables.append([("exact", "accuracy", "by_type"), *((name, name, f"{name}_by_type") for name in others)])
    if "meaning" in result:
        keys = [(name, f"{name}_meaning", f"{name}_meaning_by_type") for name in others]
        tables.append([("meaning", "meaning", "meaning_by_type"), *keys])
    for columns in tables:
        print(f"{'type':<{WIDEST}} {'questions':>9}", *(f"{name:>8}" for name, _, _ in columns))
        for kind, count in sorted(result["types"].items()):
            values = [result[by_type][kind] for _, _, by_type in columns]
            print(f"{cell(kind):<{WIDEST}} {count:>9}", *(f"{value:>8.1%}" for value in values))
        print(f"{'all':<{WIDEST}} {result['questions']:>9}", *(f"{result[whole]:>8.1%}" for _, whole, _ in columns))
    for kind, table in result.get("confusion", {}).items():
        names = [*map(cell, table), "other"]
        width = max(map(len, names)) + 2
        print(f"{cell(kind)}: what was given (across) in place of what (down)")
        print(" " * width, *(f"{name:>{width}}" for name in names), sep="")
        for name, given in zip(names, table.values()):
            counts = [given.get(answer, 0) for answer in table]
            counts.append(sum(given.values()) - sum(counts))
            print(f"{name:<{width}}", *(f"{count:>{width}}" for count in counts), sep="")
    if "pope" in result:
        scores = result["pope"]
        print(f"{'yes or no':<{WIDEST}}", *(f"{name:>9}" for name in scores["normal"]))
        for shown, values in scores.items():
            print(f"{shown:<{WIDEST}}", *(f"{value:>9.1%}" for value in values.values()))
    if result["descriptions"]:
        print(
            f"{result['descriptions']} descriptions: things named with precision {result['precision']:.1%}, recall "
            f"{result['recall']:.1%} (blind {result['blind_precision']:.1%}, {result['blind_recall']:.1%})"
        )
    if result["unscored"]:
        print(f"{result['unscored']} descriptions are not scored, because their rows have no 'things'")


def cell(text: str) -> str:
    """A type or an answer from a file, for a table."""
    return printable(text)[:WIDEST]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m minillava.evaluate", description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=PRETRAINED / "llava", help="LLaVA folder, hub id, llava (default) or smol")
    parser.add_argument("--data", type=Path, required=True, help="LLaVA JSON file")
    parser.add_argument("--image-folder", type=Path, help="folder of its pictures (default: the folder of --data)")
    parser.add_argument("--answers", type=Path, metavar="FILE.jsonl", help="write every question and answer there")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    if path := arguments.answers:  # found out now, not after minutes of answering
        if path.exists():
            raise UserError(f"{path}: already exists")
        if not path.parent.is_dir():
            raise UserError(f"{path.parent}: no such folder")
    model = load(arguments.model, arguments.device)
    result = evaluate(model, arguments.data, arguments.image_folder, bool(path))
    if not result["questions"] and not result["descriptions"] and "pope" not in result and not path:
        why = "all are longer than the model reads" if result["too_long"] else "only descriptions without 'things'"
        raise UserError(f"{arguments.data}: contains no questions, {why}")
    answers = result.pop("answers", [])
    show(result)
    if path:
        write_answers(path, answers)
        print(f"{path}: {len(answers)} answers")
    print(json.dumps(json.loads(json.dumps(result), parse_float=lambda number: round(float(number), 4))))


if __name__ == "__main__":
    run_program(main)
