"""``python tests/hard/rows.py``: mutated rows and pictures, of which data.check and training must say the same.

What data.check passes must open as a ConversationDataset, and every example and its batches must be made. What it
refuses must raise UserError there, unless only evaluation cannot use it. Anything else fails, as does any other error,
more than 5 s, or more than a gigabyte.
"""

import argparse
import json
import random
import sys
import tempfile
from io import BytesIO
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import guarded  # noqa: E402
import mutate  # noqa: E402

from data import check  # noqa: E402
from minillava.errors import UserError  # noqa: E402
from minillava.evaluate import check_judgement  # noqa: E402
from minillava.formats.llava_json import scan  # noqa: E402
from minillava.inputs.conversations import ConversationDataset  # noqa: E402
from minillava.inputs.processor import Processor  # noqa: E402
from minillava.outline import read_outline  # noqa: E402

LENGTH = 400  # tokens that a row may have
TEXTS = (
    "A fish.", "", " ", "\n", "\ud83d", "\0", "<image>", "###", "</s>", "Zoë \U0001f41f ﷽", "a " * 300, "x" * 200_000,
    " " * 5000, "\\u", '": "', "1" * 3000,
)  # fmt: skip


def row_of(rng: random.Random, patches: int) -> dict:
    """A row that is whole, though its texts may be odd."""
    turns = []
    for turn in range(2 * rng.choice((1, 1, 2, 3))):
        text = rng.choice(TEXTS) if rng.random() < 0.15 else f"Is it {rng.choice(('red', 'blue', 'a fish'))}?"
        turns.append({"from": ("human", "gpt")[turn % 2], "value": text})
    row = {"id": rng.randrange(100), "conversations": turns}
    if rng.random() < 0.7:
        turns[0]["value"] = "<image>\n" + turns[0]["value"].replace("<image>", "")
        row["image"] = f"{rng.randrange(4)}.jpg"
        if rng.random() < 0.2:
            row["patch_words"] = [rng.choice(TEXTS[:6])] * patches
            del row["image"]
    if rng.random() < 0.3:
        row["type"] = rng.choice(("caption", "detail", "conversation"))
    return row


def write_case(rng: random.Random, folder: Path, whole: bytes, patches: int) -> Path:
    """A file of one to three rows, and four pictures next to it; most are whole."""
    rows = [row_of(rng, patches) for _ in range(rng.randint(1, 3))]
    if rng.random() < 0.4:
        rows[0] = mutate.value_of(rows[0], rng)
    text = json.dumps(rows)
    if rng.random() < 0.1:  # a key twice
        text = text.replace("{", '{"id": 1, "image": "1.jpg", ', 1)
    if rng.random() < 0.1:  # objects inside each other
        text = text.replace('"id": ', '"id": ' + "[" * 200 + "]" * 200 + ', "more": ', 1)
    data = text.encode()
    (folder / "rows.json").write_bytes(mutate.bytes_of(data, rng, header=len(data)) if rng.random() < 0.15 else data)
    for name in range(4):
        (folder / f"{name}.jpg").write_bytes(mutate.bytes_of(whole, rng) if rng.random() < 0.1 else whole)
    return folder / "rows.json"


def passes(path: Path, processor: Processor) -> bool:
    """What data.check says."""
    try:
        report = check.read_file(path, processor, LENGTH)
    except UserError:
        return False
    check.open_pictures(report, path.parent, processor.image)
    check.describe(report, LENGTH)
    return not report.malformed and not report.pictures


def trains(path: Path, processor: Processor) -> bool:
    """Whether every example and its batches can be made."""
    try:
        dataset = ConversationDataset(path, path.parent, processor, max_length=LENGTH)
        examples = [dataset[0, 0, index] for index in range(len(dataset))]
    except UserError:
        return False
    for examples_of_batch in (*([example] for example in examples), examples):
        dataset.collate(examples_of_batch)
        dataset.collate_packed(examples_of_batch)
    assert len(dataset.rejected.report()) >= bool(dataset.rejected.found)
    return True


def evaluates(path: Path) -> bool:
    try:
        for _, _, row in scan(path):
            check_judgement(row)
    except UserError:
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    _, processor = read_outline("llava")
    file, exif = BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30), "red").save(file, "JPEG", exif=exif)
    with tempfile.TemporaryDirectory() as folder:

        def work(case: int) -> str:
            rng = random.Random(f"{a.seed} {case}")
            path = write_case(rng, Path(folder), file.getvalue(), processor.num_image_tokens)
            checked, trained = passes(path, processor), trains(path, processor)
            assert not checked or trained, "data.check passes what cannot be trained on"
            assert checked or not trained or not evaluates(path), "data.check refuses what can be trained on"
            return "both pass" if checked else "both refuse" if not trained else "refused for evaluation only"

        result = guarded.run(a.count, work)
    print(result.table("files of rows"))
    sys.exit(bool(result.faults))


if __name__ == "__main__":
    main()
