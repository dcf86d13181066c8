"""Draw a world and write it in LLaVA's formats.

images/{train,heldout,unseen}/*.png
contexts.jsonl   each training picture's captions and boxes, each box with a phrase; trains the vision tower
text.txt         descriptions of scenes, questions and answers, nouns, as prose; trains the tokenizer and the decoder
notes.json       pictures given as words, and notes of what is in them: LLaVA rows with "patch_words" in place of
                 "image", one text a cell in reading order; what the decoder learns first
words.json       pictures given as words in the same way, and conversations about them
captions.json    stage 1: a brief request and a caption
instruct.json    stage 2: conversations, detailed descriptions, reasoning, some captions as in stage 1; no row shows a
                 pair of UNSEEN_PAIRS
heldout.json     questions of the nine old types in their old wordings, about scenes that are in no training file
heldout_words.json   all types about the same scenes, in wordings that are put together from the training's parts and
                 are themselves not in the training (wordings.py)
heldout_frames.json  the same types in frames, and with nouns, that are not in the training (unseen_wordings.py)
unseen.json      questions about things of UNSEEN_PAIRS, in scenes that are in no other file
pope_{random,popular,adversarial}.json   questions whether a kind of thing is in a held-out picture, in POPE's form

In heldout_words.json and heldout_frames.json each answer has its own ``type``, and ``need`` and ``refuse``: words that
must be in a right answer (one of each list) and words that must not.
"""

import errno
import json
import multiprocessing
import os
import random
import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from data.picturebook import language, nouns, pope, wordings
from data.picturebook.draw import draw_scene
from data.picturebook.heldout import PER_TYPE, TYPES, UnseenFrames, new_composition, questions_of
from data.picturebook.questions import QUESTIONS, reasoning
from data.picturebook.scene import UNSEEN_PAIRS, Scene, sample_scene
from data.picturebook.talk import LENGTH, ask, worded
from data.picturebook.talk import conversation as talk
from data.requests import BRIEF_REQUESTS, DETAIL_REQUESTS
from data.rows import conversation, write_rows
from minillava.progress import progress

HELDOUT_PICTURES = 520  # nine questions each
UNSEEN_PICTURES = 250
TEXT_EVERY = 20  # a line of text.txt for every twentieth scene


def write_world(out: str | os.PathLike, count: int, seed: int, grid: int = 8) -> None:
    """Write the whole folder: ``count`` training pictures, 520 held-out ones and 250 with unseen pairs.

    A picture given as words has ``grid`` x ``grid`` cells, as many as the vision tower has patches.
    The folder is written as ``out``.new and renamed when it is complete. An interrupted run leaves ``out``.new, which
    the next one overwrites. Raises FileExistsError if ``out`` exists.
    """
    final = Path(out)
    if final.exists():
        raise FileExistsError(errno.EEXIST, "already exists", str(final))
    out = final.with_name(f"{final.name}.new")
    shutil.rmtree(out, ignore_errors=True)
    taken: set = set()
    rng = random.Random(f"{seed} scenes")
    heldout = [_fresh(rng, taken, "never") for _ in range(HELDOUT_PICTURES)]
    unseen = [_fresh(rng, taken, "required") for _ in range(UNSEEN_PICTURES)]
    kept_out = set(taken)
    train = []
    while len(train) < count:
        scene = sample_scene(rng)
        if _key(scene) not in kept_out:
            train.append(scene)
    _draw_all(out, {"train": train, "heldout": heldout, "unseen": unseen}, seed)

    rng = random.Random(f"{seed} words")
    contexts = [_context(scene, index) for index, scene in enumerate(train)]
    with open(out / "contexts.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(context) + "\n" for context in contexts)
    (out / "text.txt").write_text(
        "\n".join(_prose(scene, rng) for scene in train[::TEXT_EVERY]) + "\n", encoding="utf-8"
    )
    write_rows(out / "notes.json", (_notes(scene, index, rng, grid) for index, scene in enumerate(train)))
    write_rows(out / "words.json", (_word_picture(scene, index, rng, grid) for index, scene in enumerate(train)))
    write_rows(out / "captions.json", (_caption(scene, index, rng) for index, scene in enumerate(train)))
    write_rows(out / "instruct.json", _instructions(train, rng))
    write_rows(out / "heldout.json", _questions(heldout, "heldout", rng))
    for split, put in (("words", new_composition), ("frames", UnseenFrames())):
        write_rows(out / f"heldout_{split}.json", _judged(heldout, split, put, rng))
    write_rows(out / "unseen.json", _unseen_questions(unseen, rng))
    for way in pope.WAYS:
        write_rows(out / f"pope_{way}.json", _pope(train, heldout, way, random.Random(f"{seed} pope")))
    os.replace(out, final)


def _key(scene: Scene) -> tuple:
    """A scene without its random shifts: two scenes with the same key have the same captions and questions."""
    return scene.setting, tuple((t.kind, t.colour, t.size, t.row, t.column) for t in scene.things)


def _fresh(rng: random.Random, taken: set, unseen: str) -> Scene:
    while True:
        scene = sample_scene(rng, unseen)
        if _key(scene) not in taken:
            taken.add(_key(scene))
            return scene


def _image_name(split: str, index: int) -> str:
    return f"images/{split}/{index:06d}.png"


def _draw_all(out: Path, splits: dict[str, list[Scene]], seed: int) -> None:
    jobs = []
    for split, scenes in splits.items():
        (out / "images" / split).mkdir(parents=True, exist_ok=True)
        jobs += [
            (out / _image_name(split, index), scene, f"{seed} {split} {index}") for index, scene in enumerate(scenes)
        ]
    with multiprocessing.get_context("spawn").Pool(min(os.cpu_count() or 1, 8)) as pool:
        drawn = pool.imap_unordered(_draw_one, jobs, chunksize=64)
        for _ in progress(drawn, total=len(jobs), desc="drawing", unit="picture"):
            pass


def _draw_one(job: tuple[Path, Scene, str]) -> None:
    path, scene, seed = job
    draw_scene(scene, random.Random(seed)).save(path, compress_level=1)


def _row(name: str, scene: Scene, turns: list[tuple[str, str]], **extra) -> dict:
    """A row of LLaVA JSON; ``things`` lists what the picture shows, for evaluation."""
    things = [thing.pair for thing in scene.things]
    return {"id": name, **extra, "things": things, "conversations": conversation(turns)}


def _context(scene: Scene, index: int) -> dict:
    instances = [{"category": t.kind, "bbox": t.box, "phrase": language.region(t)} for t in scene.things]
    return {
        "id": f"train-{index:06d}",
        "image": _image_name("train", index),
        "captions": language.captions(scene),
        "instances": instances,
    }


def _prose(scene: Scene, rng: random.Random) -> str:
    told = rng.choice([*language.captions(scene), language.description(scene)])
    words = language.listing([nouns.absent(rng).word for _ in range(3)])
    return " ".join([told, *(f"{q} {a}" for q, a in talk(scene, rng, LENGTH)), language.sentence(words)])


def _notes(scene: Scene, index: int, rng: random.Random, grid: int) -> dict:
    return _row(
        f"notes-{index:06d}",
        scene,
        language.notes(scene, rng),
        patch_words=language.words_by_patch(scene, grid),
        type="notes",
    )


def _word_picture(scene: Scene, index: int, rng: random.Random, grid: int) -> dict:
    """A long conversation: the words of the picture and the system message are read once for nine answers."""
    if rng.random() < 0.05:
        turns, kind = [_brief(scene, rng)], "caption"
    else:
        turns, kind = talk(scene, rng, 2 * LENGTH, number=9), "conversation"
        if rng.random() < 0.2:
            turns[-1] = _detail(scene, rng)
    return _row(f"words-{index:06d}", scene, turns, patch_words=language.words_by_patch(scene, grid), type=kind)


def _brief(scene: Scene, rng: random.Random) -> tuple[str, str]:
    request = rng.choice(BRIEF_REQUESTS) if rng.random() < 0.5 else wordings.ask("brief", {}, rng)
    return request, rng.choice(language.captions(scene))


def _detail(scene: Scene, rng: random.Random) -> tuple[str, str]:
    request = rng.choice(DETAIL_REQUESTS) if rng.random() < 0.5 else wordings.ask("describe", {}, rng)
    return request, language.description(scene)


def _talk(scene: Scene, rng: random.Random, without: frozenset[str] = frozenset()) -> list[tuple[str, str]]:
    """A conversation. Some begin or end with a request for a detailed or a brief description."""
    form = rng.random()
    if form < 0.75:
        return talk(scene, rng, LENGTH, without)
    told = _detail(scene, rng) if form < 0.9 else _brief(scene, rng)
    turns = talk(scene, rng, LENGTH - len(told[1]), without)[:4]
    return [told, *turns] if rng.random() < 0.5 else [*turns, told]


def _caption(scene: Scene, index: int, rng: random.Random) -> dict:
    return _row(f"caption-{index:06d}", scene, [_brief(scene, rng)], image=_image_name("train", index), type="caption")


def _instructions(scenes: list[Scene], rng: random.Random) -> Iterator[dict]:
    for index, scene in enumerate(scenes):
        if any(thing.pair in UNSEEN_PAIRS for thing in scene.things):
            continue
        form = rng.random()
        if form < 0.1:
            turns, kind = [_detail(scene, rng)], "detail"
        elif form < 0.15 and (question := reasoning(scene, rng)):
            turns, kind = [(worded(question, rng), question.answer)], "reasoning"
        elif form < 0.2:
            turns, kind = [_brief(scene, rng)], "caption"
        else:
            turns, kind = _talk(scene, rng, without=UNSEEN_PAIRS), "conversation"
        if turns:
            yield _row(f"instruct-{index:06d}", scene, turns, image=_image_name("train", index), type=kind)


def _questions(scenes: list[Scene], split: str, rng: random.Random) -> Iterator[dict]:
    """For every scene, a question of each old type that it allows, and a detailed description or a caption."""
    for index, scene in enumerate(scenes):
        image = _image_name(split, index)
        for kind in QUESTIONS:
            if turn := ask(kind, scene, rng) or ask(kind, scene, rng):
                yield _row(f"{split}-{index:06d}-{kind}", scene, [turn], image=image, type=kind)
        if index % 2 == 0:
            turn, kind = (rng.choice(DETAIL_REQUESTS), language.description(scene)), "detail"
        else:
            turn, kind = (rng.choice(BRIEF_REQUESTS), rng.choice(language.captions(scene))), "caption"
        yield _row(f"{split}-{index:06d}-{kind}", scene, [turn], image=image, type=kind)


def _unseen_questions(scenes: list[Scene], rng: random.Random) -> Iterator[dict]:
    """Questions whose subject is a thing of an unseen pair."""
    for index, scene in enumerate(scenes):
        subject = rng.choice([thing for thing in scene.things if thing.pair in UNSEEN_PAIRS])
        for kind in ("existence", "colour", "kind", "position", "relation", "size"):
            if turn := ask(kind, scene, rng, subject):
                image = _image_name("unseen", index)
                yield _row(f"unseen-{index:06d}-{kind}", scene, [turn], image=image, type=kind)


def _pope(train: list[Scene], scenes: list[Scene], way: str, rng: random.Random) -> Iterator[dict]:
    for index, (number, kind, label) in enumerate(pope.questions(train, scenes, way, rng), 1):
        text = f"Is there a {kind} in the image?"
        yield {"question_id": index, "image": _image_name("heldout", number), "text": text, "label": label}


def _judged(scenes: list[Scene], split: str, put, rng: random.Random) -> Iterator[dict]:
    """PER_TYPE rows of each type that the scenes allow; their answers are judged by meaning. ``put(question, rng)``
    words a question."""
    for kind in TYPES:
        numbers = (rng.randrange(len(scenes)) for _ in range(100 * PER_TYPE))
        tries = ((number, questions_of(kind, scenes[number], rng, split == "frames")) for number in numbers)
        found = ((number, questions) for number, questions in tries if questions)
        for index, (number, questions) in enumerate(islice(found, PER_TYPE)):
            turns = [(put(question, rng), question.answer) for question in questions]
            image = _image_name("heldout", number)
            row = _row(f"{split}-{kind}-{index:03d}", scenes[number], turns, image=image, type=kind)
            for turn, question in zip(row["conversations"][1::2], questions):
                turn |= {"type": question.kind, "need": question.need, "refuse": question.refuse}
            yield row
