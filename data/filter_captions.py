"""``python -m data.filter_captions CAPTIONS --out FILE``: select fewer captions that cover the same concepts.

The paper's selection of 595,000 pairs from CC3M's three million (section 4.2 and appendix). Noun phrases are counted
over all captions. Those in fewer than 3 are skipped. Each of the others, from the rarest up, adds its captions to the
pool: all of them, or a random 100 if it has more. So every concept is kept, and the commonest no longer dominate.

A phrase draws from all its captions, whatever is in the pool already. So the order of the phrases does not matter, and
two passes over the file are enough: one counts, the other draws and writes. Memory holds the distinct phrases (about
200 bytes each) and the numbers of each caption's phrases (4 bytes each), but no captions.

The output is stage 1's rows, ready for ``train.py --stage 1``, and next to it a chart (the same name with .png) of how
many captions each concept is in, before and after.
"""

import argparse
import random
import sys
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path

from data.captions import caption_row, read_captions
from data.noun_phrases import Chunker, find_chunker
from data.rows import write_rows
from minillava.errors import UserError, run_program
from minillava.files import write_whole
from minillava.progress import progress
from minillava.training.plot import BLUE, GREY, chart

FEWEST = 3  # minimum number of captions with a phrase, else it is skipped
MOST = 100  # maximum number of captions that a phrase adds
COMMONEST = 10  # phrases that the table lists


@dataclass
class Phrases:
    """The noun phrases of a corpus.

    numbers: each distinct phrase and its number
    held: the numbers of the phrases of the first caption, then of the second, and so on
    sizes: how many phrases each caption has
    """

    numbers: dict[str, int] = field(default_factory=dict)
    held: array = field(default_factory=lambda: array("I"))
    sizes: array = field(default_factory=lambda: array("I"))

    def add(self, phrases: list[str]) -> None:
        """Add the next caption's phrases, which must be distinct."""
        self.held.extend(self.numbers.setdefault(phrase, len(self.numbers)) for phrase in phrases)
        self.sizes.append(len(phrases))

    def by_caption(self) -> Iterator[array]:
        start = 0
        for size in self.sizes:
            yield self.held[start : start + size]
            start += size

    def count(self, taken: Iterable[bool] | None = None) -> array:
        """How many captions contain each phrase, by its number: of all captions, or of those in ``taken``."""
        counts = array("I", bytes(4 * len(self.numbers)))
        for phrases in self.by_caption() if taken is None else compress(self.by_caption(), taken):
            for phrase in phrases:
                counts[phrase] += 1
        return counts


def read_phrases(captions: Iterable[str], chunk: Chunker) -> Phrases:
    """Find and number the noun phrases of each caption."""
    phrases = Phrases()
    for found, _ in chunk((caption, None) for caption in captions):
        phrases.add(found)
    return phrases


def select(phrases: Phrases, counts: array, rng: random.Random) -> bytearray:
    """The paper's rule. Returns 1 for each caption that is taken, else 0.

    If ``wanted`` more captions are to be drawn for a phrase, and ``to_come`` of the captions ahead contain it, the next
    one is taken with probability wanted / to_come. That draws every set of 100 with the same probability (selection
    sampling: Knuth, volume 2, 3.4.2, algorithm S), and all captions if there are no more than 100.
    """
    wanted = [min(count, MOST) if count >= FEWEST else 0 for count in counts]
    to_come = array("I", counts)
    taken = bytearray(len(phrases.sizes))
    for index, held in enumerate(phrases.by_caption()):
        for phrase in held:
            if wanted[phrase] and rng.random() * to_come[phrase] < wanted[phrase]:
                wanted[phrase] -= 1
                taken[index] = 1
            to_come[phrase] -= 1
    return taken


def table(phrases: Phrases, before: array, after: array, taken: bytearray) -> str:
    """The numbers of captions and of concepts before and after the selection, by how many captions a concept is in."""
    concepts = [number for number, count in enumerate(before) if count >= FEWEST]
    kept = sum(after[number] >= FEWEST for number in concepts)
    lines = [
        f"{'':28}{'before':>12}{'after':>12}",
        f"{'captions':28}{len(taken):>12,}{sum(taken):>12,}",
        f"{f'noun phrases, in {FEWEST} or more':28}{len(concepts):>12,}{kept:>12,}",
    ]
    digits = [Counter(len(str(counts[number])) for number in concepts) for counts in (before, after)]
    for size in sorted(digits[0] | digits[1]):
        low, high = max(FEWEST, 10 ** (size - 1)), 10**size - 1
        lines.append(f"{f'  in {low:,} to {high:,} captions':28}{digits[0][size]:>12,}{digits[1][size]:>12,}")
    lines.append(f"captions with the commonest ({len(before) - len(concepts):,} phrases skipped as too rare)")
    names = list(phrases.numbers)
    for number in sorted(concepts, key=before.__getitem__, reverse=True)[:COMMONEST]:
        lines.append(f"  {names[number][:24]:26}{before[number]:>12,}{after[number]:>12,}")
    return "\n".join(lines)


def draw_concepts(path: Path, before: array, after: array) -> None:
    """Chart how many captions the commonest concept is in, the second, and so on, before and after (figure 7)."""
    lines = []
    for name, counts, colour in (("before", before, GREY), ("after", after, BLUE)):
        found = sorted((count for count, all_of_it in zip(counts, before) if all_of_it >= FEWEST), reverse=True)
        lines.append((name, colour, range(1, len(found) + 1), found))
    image = chart("captions that hold a noun phrase", "noun phrases, commonest first", lines, logarithmic="xy")
    write_whole(path, lambda file: image.save(file, "PNG"))


def filter_captions(path: Path, out: Path, seed: int = 0) -> str:
    """Write the selection from ``path`` to ``out``, and its chart; return the table. Raises UserError."""
    if out.exists():
        raise UserError(f"{out}: already exists")
    if not out.parent.is_dir():
        raise UserError(f"{out.parent}: no such folder")
    next(read_captions(path))  # refuse a wrong file before spaCy is loaded
    name, chunk = find_chunker()
    print(f"noun phrases are found by {name}", file=sys.stderr)
    captions = (caption for _, caption in read_captions(path))
    phrases = read_phrases(progress(captions, desc="counting", unit="caption"), chunk)
    before = phrases.count()
    taken = select(phrases, before, random.Random(f"{seed} captions"))
    if not any(taken):
        raise UserError(f"{path}: no noun phrase is in {FEWEST} captions or more")
    rng = random.Random(f"{seed} requests")
    again = enumerate(progress(read_captions(path), desc="writing", unit="caption", total=len(taken)))
    pairs = compress(again, taken)
    write_rows(out, (caption_row(f"caption-{index}", image, caption, rng) for index, (image, caption) in pairs))
    after = phrases.count(taken)
    draw_concepts(out.with_suffix(".png"), before, after)
    return table(phrases, before, after, taken)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m data.filter_captions", description=__doc__.split("\n")[0])
    parser.add_argument(
        "captions",
        type=Path,
        help=".json (such as LLaVA's metadata.json or chat.json), .tsv (image, tab, caption), .csv",
    )
    parser.add_argument("--out", type=Path, required=True, help="LLaVA JSON to write")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(filter_captions(arguments.captions, arguments.out, arguments.seed))


if __name__ == "__main__":
    run_program(main)
