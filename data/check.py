"""``python -m data.check FILE --image-folder DIR``: report what a LLaVA JSON file contains and what is wrong with it.

Every row is encoded and every picture opened as in training, so a file that passes can be trained on. One row is then
shown as the model reads it, with the text that has loss (paper, eq. 3) in green, or between [[ and ]] without colour.
``--show`` writes a picture as the vision tower sees it.
The exit code is 0 if nothing is wrong, else 2.
"""

import argparse
import os
import re
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import numpy as np

from minillava.config import PRETRAINED
from minillava.errors import UserError, printable, run_program
from minillava.evaluate import check_judgement
from minillava.files import write_whole
from minillava.formats.llava_json import scan
from minillava.inputs.conversation import IGNORE
from minillava.inputs.conversations import check_row, text_of, turns_that_fit
from minillava.inputs.image import FITS, ImageProcessor, find_picture, open_image
from minillava.inputs.processor import Processor
from minillava.inputs.rejected import IN_WORDS
from minillava.inputs.templates import TEMPLATES
from minillava.inputs.tokenizer import IMAGE, Tokenizer
from minillava.outline import read_outline
from minillava.progress import progress

SHOWN = 20  # faults of a kind to list
WIDEST = 300  # maximum characters of a printed line: a name in a row may have megabytes
GREEN, PLAIN = "\033[32m", "\033[0m"


@dataclass
class Report:
    """What a file contains. A fault is a line of text that names its row.

    types: the number of rows of each type
    turns, tokens: for each good row, its number of turns (a question and its answer) and of tokens
    images: for each picture, the first row that shows it; uses: how many rows show it; rows left out do not count
    left: how many rows training keeps, whole or cut
    """

    rows: int = 0
    types: Counter = field(default_factory=Counter)
    turns: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    learnt: int = 0  # tokens with loss, in all rows
    unknown: int = 0  # characters that the tokenizer leaves out
    images: dict[str, int] = field(default_factory=dict)
    uses: Counter = field(default_factory=Counter)
    left: int = 0
    long: list[str] = field(default_factory=list)  # rows that training cuts or leaves out
    odd: list[tuple[str, str]] = field(default_factory=list)  # what is odd in a row, and the line that says it
    malformed: list[str] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)  # faults of pictures
    cuts: dict[str, float] = field(default_factory=dict)  # for each good picture, the part of its area cut off
    example: tuple[int, list[int], list[int]] | None = None  # index of the row, ids, labels


def read_file(path: Path, processor: Processor, max_length: int) -> Report:
    """Encode every row. Invalid JSON ends the reading and is a fault like others.

    ``max_length`` is how many tokens the model reads. Raises UserError if no row can be read.
    """
    report = Report()

    def tell(index: int, what: str, why: str) -> None:
        report.odd.append((what, f"row {index}: {why}"))

    try:
        for index, (_, _, row) in enumerate(progress(scan(path, tell), desc="reading", unit="row")):
            report.rows += 1
            try:
                check_row(row, processor)
                text = text_of(row, processor)
                ids, labels = text["input_ids"], text["labels"]
                check_judgement(row)
            except UserError as error:
                report.malformed.append(f"row {index}: {error}")
                continue
            report.types[row.get("type", "(none)")] += 1
            report.turns.append(len(row["conversations"]) // 2)
            report.tokens.append(len(ids))
            if (fits := turns_that_fit(row, processor, max_length)) is not None:
                how = f"cut after turn {fits} of {report.turns[-1]}" if fits else "left out: not even one turn fits"
                report.long.append(f"row {index}: {len(ids):,} tokens, {how}")
            report.left += fits != 0
            texts = [turn["value"] for turn in row["conversations"]]
            report.unknown += sum(map(processor.tokenizer.count_unknown, texts))
            report.learnt += sum(label != IGNORE for label in labels)
            if "image" in row and fits != 0:
                report.images.setdefault(row["image"], index)
                report.uses[row["image"]] += 1
            if report.example is None or ("image" in row and processor.tokenizer.image_id not in report.example[1]):
                report.example = index, ids, labels
    except UserError as error:
        if not report.rows:
            raise
        report.malformed.append(str(error).removeprefix(f"{path}: "))
    if not report.left and not report.malformed:
        report.malformed.append(f"no row is left: no turn of any row fits into {max_length:,} tokens")
    return report


def open_pictures(report: Report, folder: Path, processor: ImageProcessor) -> None:
    """Open and process each picture once, as training does. Adds a line to ``report.pictures`` for each that is missing
    or broken, and what ``processor`` cuts off each other one to ``report.cuts``."""

    def fault(name: str) -> str | None:
        try:
            image = open_image(find_picture(folder, name))
            processor(image)
            report.cuts[name] = processor.cut(*image.size)
        except UserError as error:
            others = report.uses[name] - 1
            return f"row {report.images[name]}{f' and {others:,} more' if others else ''}: {error}"

    names = list(report.images)
    with (
        ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool,  # Pillow releases the GIL while decoding
        progress(total=len(names), desc="opening", unit="picture") as bar,
    ):
        for start in range(0, len(names), 1000):
            some = names[start : start + 1000]
            report.pictures += filter(None, pool.map(fault, some))
            bar.update(len(some))


def describe(report: Report, max_length: int, in_full: bool = False) -> str:
    """The report as lines of text; ``in_full``: list more than SHOWN faults."""

    def line(name: str, count: int, more: str = "") -> str:
        return f"{name[:26]:28}{count:>12,}{more}"

    def cut(found: list[str]) -> list[str]:
        if in_full or len(found) <= SHOWN:
            return found
        return [*found[:SHOWN], f"  and {len(found) - SHOWN:,} more: --all lists them"]

    lines = [line("rows", report.rows), line("  with a picture", sum(report.uses.values()))]
    lines += cut([line(f"  of type {kind}", count) for kind, count in report.types.most_common()])
    lines.append(line("pictures", len(report.images)))
    if report.tokens:
        lines += [
            line("turns", sum(report.turns), f"   per row: {_spread(report.turns)}"),
            line("tokens", sum(report.tokens), f"   per row: {_spread(report.tokens)}"),
            line("  with loss", report.learnt),
            *([line("unknown characters", report.unknown, "   left out")] if report.unknown else []),
            line("rows too long", len(report.long), f"   of more than {max_length:,} tokens"),
            *cut([f"  {row}" for row in report.long]),
        ]
    for what, words in IN_WORDS.items():
        if rows := [row for kind, row in report.odd if kind == what]:
            lines += [line("odd rows", len(rows), f"   {words}"), *cut([f"  {row}" for row in rows])]
    if cuts := [100 * cut for cut in report.cuts.values() if cut]:
        lines.append(line("pictures cut", len(cuts), f"   % of their area: {_spread(cuts)}; --image-fit pad shows all"))
    for name, faults in (("malformed rows", report.malformed), ("missing or broken pictures", report.pictures)):
        lines += [line(name, len(faults)), *cut([f"  {fault}" for fault in faults])]
    lines = [line if len(line) <= WIDEST else f"{line[:WIDEST]}..." for line in map(printable, lines)]
    return "\n".join(lines)


def _spread(values: list[int]) -> str:
    """The minimum, median, 95th percentile and maximum of ``values``, as text."""
    found = (f"{value:,.1f}".removesuffix(".0") for value in np.percentile(values, (0, 50, 95, 100)))
    return ", ".join(f"{name} {value}" for name, value in zip(("min", "median", "95 %", "max"), found))


def render(ids: list[int], labels: list[int], tokenizer: Tokenizer, colour: bool) -> str:
    """A row as the model reads it. The text with loss is green if ``colour``, else between [[ and ]]."""
    begin, end = (GREEN, PLAIN) if colour else ("[[", "]]")
    text = ""
    for learn, run in groupby(zip(ids, labels), key=lambda pair: pair[1] != IGNORE):
        part = "\n".join(map(printable, tokenizer.decode([index for index, _ in run]).split("\n")))
        part = re.sub(f"(?:{IMAGE}){{2,}}", lambda found: f"{IMAGE} x {len(found[0]) // len(IMAGE)}", part)
        text += f"{begin}{part}{end}" if learn else part
    return text


def show(report: Report, folder: Path, processor: ImageProcessor, out: Path) -> None:
    """Write as ``out`` how the vision tower sees the picture of which most is cut, or the first if none is cut."""
    name = max((name for name in report.images if name in report.cuts), key=report.cuts.__getitem__, default=None)
    if name is None:
        raise UserError("--show: there is no picture to show")
    if out.exists():
        raise UserError(f"{out}: File exists")
    view = processor.view(open_image(find_picture(folder, name)))
    write_whole(out, lambda file: view.save(file, "PNG"))
    print(f"\n{printable(name)} as the vision tower sees it, without {report.cuts[name]:.1%} of its area: {out}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m data.check", description=__doc__.split("\n")[0])
    parser.add_argument("file", type=Path, help="LLaVA JSON file")
    parser.add_argument("--image-folder", type=Path, help="folder of its pictures (default: the folder of FILE)")
    parser.add_argument(
        "--model",
        default=PRETRAINED / "llava",
        help="LLaVA folder or hub id whose tokenizer encodes the rows (default: the shipped model)",
    )
    parser.add_argument("--template", choices=TEMPLATES, help="template of the turns (default: the model's)")
    parser.add_argument("--max-length", type=int, help="tokens of a row at most (default: as many as the model reads)")
    parser.add_argument("--image-fit", choices=FITS, help="cut or pad pictures (default: as the model does)")
    parser.add_argument("--show", type=Path, metavar="FILE.png", help="write one picture as the tower sees it")
    parser.add_argument("--all", action="store_true", help=f"list every fault, not only {SHOWN} of a kind")
    parser.add_argument("--colour", action="store_true", help="colour the example even if the output is not a terminal")
    arguments = parser.parse_args()
    folder = arguments.image_folder or arguments.file.parent
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    config, processor = read_outline(arguments.model)
    if arguments.template:
        processor.template = TEMPLATES[arguments.template]
    if arguments.image_fit:
        processor.image = processor.image.fitting(arguments.image_fit, config.vision.image_size)
    max_length = arguments.max_length or config.decoder.max_position_embeddings
    report = read_file(arguments.file, processor, max_length)
    open_pictures(report, folder, processor.image)
    print(describe(report, max_length, arguments.all))
    if report.example:
        index, ids, labels = report.example
        colour = arguments.colour or sys.stdout.isatty()
        print(f"\nrow {index}, as the model reads it:\n{render(ids, labels, processor.tokenizer, colour)}")
    if arguments.show:
        show(report, folder, processor.image, arguments.show)
    if report.malformed or report.pictures:
        sys.stdout.flush()
        raise UserError(
            f"{arguments.file}: malformed rows {len(report.malformed):,}, "
            f"missing or broken pictures {len(report.pictures):,}"
        )


if __name__ == "__main__":
    run_program(main)
