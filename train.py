"""Train a LLaVA: ``python train.py --stage 0|1|2``. Each stage first runs those it needs, if they are missing.

stage 0   the vision tower (contrastive) and the decoder (next token), from scratch
stage 1   only the projection, on captions
stage 2   the projection and the decoder, on instructions

With ``--from-scratch --data FOLDER``, all stages are trained on one's own pictures: data/README.md.
Several processes can share the work of stages 1 and 2: ``torchrun --nproc_per_node=N train.py --stage 1``.
"""

import argparse
import math
import os
import signal
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends quietly while modules are imported, see run_program()

import torch

from data.chats import CHATS, mix
from data.own import write_own
from data.picturebook.write import write_world
from minillava.checkpoint import join, load, load_unmerged
from minillava.config import PRETRAINED, DecoderConfig, LlavaConfig, VisionConfig
from minillava.errors import UserError, run_program
from minillava.files import naming
from minillava.formats.adapter_config import AdapterConfig, Towers, is_adapter
from minillava.formats.llava_json import scan
from minillava.formats.tensors import STORED
from minillava.hub import find_shipped
from minillava.inputs.conversations import ConversationDataset
from minillava.inputs.image import FITS
from minillava.inputs.processor import Processor
from minillava.inputs.templates import TEMPLATES
from minillava.lock import locked
from minillava.model.llava import Llava
from minillava.outline import read_adapter, read_decoder, read_llava, read_outline, read_vision
from minillava.saving import recover_folder
from minillava.training import from_zero
from minillava.training.distributed import SINGLE, own_device, started
from minillava.training.least_squares import PICTURES, start_projection
from minillava.training.loop import Run, train
from minillava.training.machine import default_workers, has_fast_bfloat16
from minillava.training.plan import GIB, Setting, describe, fill, in_words
from minillava.training.recipes import OWN_ROWS, PRESETS, TOY, Recipe
from minillava.training.resume import is_finished, read_state
from minillava.training.tasks import Task, llava_task

# Arguments that apply only to the requested stage, not to the stages that it needs first.
OWN = ["model", "data", "image_folder", "batch_size", "accumulation", "pack", "checkpointing", "lora", "learning_rate",
       "epochs", "max_length", "max_rejected", "heldout", "eval_every"]  # fmt: skip
# Defaults that argparse must not fill in, so that it can be seen which arguments are given.
DEFAULTS = {"vision_feature_layer": -2, "image_place": "random", "pictures": 20000}
TOWERS = ("vision", "decoder", "projector", "vision_feature_layer")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--stage", type=int, choices=(0, 1, 2), required=True)
    add("--preset", choices=PRESETS, default="toy", help="towers and recipe, see README (default toy)")
    add("--out", type=Path, help="folder for all results (default out/PRESET)")
    add("--from-scratch", action="store_true", help="train the towers too, instead of using the shipped ones")
    add("--vision", help="CLIP folder or hub id to take the vision tower from")
    add("--decoder", help="LLaMA folder, hub id, .gguf file or smollm2 to take the decoder from")
    add("--model", type=find_shipped, help="LLaVA folder or hub id to start from, instead of two towers or stage 1")
    add("--template", choices=TEMPLATES, help="chat template (default: the decoder's own)")
    add("--data", type=Path, help="LLaVA JSON, or a folder of pictures and texts (default: the picture-book)")
    add("--image-folder", type=Path, help="folder of the images (default: the folder of --data)")
    add("--projector", choices=("linear", "mlp"), help="(default: the preset's)")
    add("--vision-feature-layer", type=int, help="vision layer that W reads (default -2)")
    add("--image-fit", choices=FITS, help="cut a picture to its middle, or pad it (default: pad, or as --model does)")
    add("--image-size", type=positive, help="pixels per side that stage 0's vision tower reads (default 64)")
    add("--patch-size", type=positive, help="pixels per side of its patches (default 8)")
    add("--image-place", choices=("random", "first", "last"), help="place of <image> (eq. 2; default random)")
    add("--max-length", type=positive, help="tokens of a row at most; longer ones are cut (default: as many as fit)")
    add("--max-rejected", type=count, help="rows without a readable picture to leave out (default: 1 in 1,000)")
    add("--epochs", type=positive_number, help="times through the data (default: the preset's)")
    add("--max-steps", type=positive, help="stop each training after this many steps, if it has more")
    add("--batch-size", type=positive)
    add("--accumulation", type=positive, help="number of micro-batches in a batch")
    add("--pack", action="store_true", help="put several conversations in one row, to reduce padding")
    add("--checkpointing", action="store_true", default=None, help="recompute activations, to save memory")
    add("--lora", type=positive, metavar="RANK", help="train low-rank matrices in stage 2; writes an adapter")
    add("--learning-rate", type=positive_number)
    add("--seed", type=count, default=0)
    add("--pictures", type=positive, help="number of training pictures, if they are drawn (default 20000)")
    add("--heldout", type=Path, help="LLaVA JSON that is not trained on: its loss and a few answers are shown")
    add("--eval-every", type=positive, metavar="STEPS", help="how often --heldout is measured (default 100)")
    add("--save-every", type=interval, metavar="N", help="steps, or minutes as in 5m (default: 250 steps or 15m)")
    add("--resume", action="store_true", help="continue from the last checkpoint of this stage")
    add("--dtype", choices=("float32", "bfloat16", "float16"), help="dtype of matrix products (default: the fastest)")
    add("--device", help="cuda, mps or cpu (default: cuda if there is a GPU, else cpu)")
    add("--compile", action=argparse.BooleanOptionalAction, help="compile the blocks (default: if that saves time)")
    add("--workers", type=count, help="processes that prepare batches (default: up to 8 with a GPU, else 0)")
    add("--shard", action="store_true", help="under torchrun: shard the model over the processes")
    add("--plan", action="store_true", help="print the memory that training takes, and do not train")
    add("--memory", type=positive_number, help="GiB to plan for, or to train in (default: the GPU's free ones, or 24)")
    a = parser.parse_args()
    a.given = {name for name, value in vars(a).items() if value is not None and value is not False}
    a.out = a.out or Path("out") / a.preset
    a.folder = a.data if a.data and a.data.is_dir() else None  # of one's own pictures, for all stages
    a.locked = False
    preset = PRESETS[a.preset]
    towers = {"vision": preset.vision_id, "decoder": preset.decoder_id, "projector": preset.projector}
    for name, value in (DEFAULTS | towers).items():
        if name not in a.given:
            setattr(a, name, value)
    return a


def check(a: argparse.Namespace) -> None:
    """Raise UserError if an argument that is given would have no effect."""

    def refuse(names: tuple[str, ...], why: str) -> None:
        for name in names:
            if name in a.given:
                raise UserError(f"--{name.replace('_', '-')}: {why}")

    if a.stage == 0:
        refuse(("from_scratch",), "stage 0 always trains the towers from scratch")
        refuse(("plan", "memory"), "stage 0 trains only small towers and is not planned; use --stage 1 or 2")
        refuse(("lora",), "stage 0 does not train the decoder of a LLaVA; use --stage 2")
        others = ("model", *TOWERS, "template", "image_folder", "image_place", "pack", "heldout", "shard")
        others += ("max_length", "max_rejected", *(() if a.folder else ("data",)))
        refuse(others, "stage 0 trains two towers on the picture-book, or on a folder of pictures; use --stage 1 or 2")
        if PRESETS[a.preset].vision_id:
            raise UserError(f"--preset {a.preset}: its towers are trained already; stage 0 trains the picture-book's")
    if a.stage == 1:
        refuse(("lora",), "stage 1 does not train the decoder of a LLaVA; use --stage 2")
    if a.model:
        refuse((*TOWERS, "from_scratch"), "--model has a vision tower, a projection and a decoder")
    if a.vision and a.decoder:
        refuse(("from_scratch",), "both towers are given")
    if a.folder:
        if a.stage and not a.from_scratch:
            refuse(("data",), f"{a.folder} is a folder, for --from-scratch; name a file to train on, such as one in it")
        refuse(("pictures",), "none are drawn, since --data is a folder")
        refuse(("image_folder",), "the pictures are in the folder that is given by --data")
        if same_file(a.out, a.folder):
            raise UserError(f"--out {a.out}: the folder of --data; choose another")
    if not a.data and not a.heldout:
        refuse(("image_folder",), "it is the folder of the pictures of --data, which is not given")
    if not a.heldout:
        refuse(("eval_every",), "it is for --heldout, which is not given")
    if not a.plan and (a.accumulation or a.checkpointing):
        refuse(("memory",), "--accumulation and --checkpointing decide how much memory is used")
    if a.image_size or a.patch_size:
        check_sizes(a)


def check_folders(a: argparse.Namespace) -> None:
    """Raise UserError if an argument would have no effect because of what is in ``a.out`` already, or if there is
    nothing to resume."""
    names = [name for asked in ASKED[a.stage] for name in trainings(asked, a)]
    if a.resume:
        begun = [name for asked in ASKED[a.stage] for name in trainings(asked, a, finished=True)]
        begun += ["data"] * ("vision" in begun)  # a run that is killed early leaves nothing else
        if not any((a.out / name).exists() for name in begun):
            raise UserError(f"{a.out / names[-1]}: no such folder, so there is nothing to resume")
    drawn, on_world = a.out / "data" / "contexts.jsonl", set(names) - {f"stage{a.stage}" if a.data else ""}
    if "pictures" in a.given and not on_world:
        raise UserError("--pictures: none are drawn, since --data is given")
    if "pictures" in a.given and drawn.exists():
        with open(drawn, "rb") as file:
            number = sum(1 for _ in file)
        if number != a.pictures:
            raise UserError(f"--pictures {a.pictures}: {drawn.parent} has {number} already; choose another --out")
    if a.stage == 2 and not a.model and is_finished(a.out / "stage1"):
        state = read_state(a.out / "stage1")
        made = state["settings"] | state["towers"]
        for name in a.given.intersection(TOWERS):
            value = str(vars(a)[name])
            if value != made.get(name) and not same_file(value, made.get(name, "")):
                option = f"--{name.replace('_', '-')} {value}"
                raise UserError(f"{option}: {a.out / 'stage1'} is trained with {made.get(name)}; choose another --out")


def check_rows(a: argparse.Namespace) -> None:
    """If other stages are trained before the one that reads --data and --heldout: open these files now, so that a fault
    of a row raises UserError before them. A file that is read at once is checked when it is opened."""
    if a.stage == 0 or len(trainings(f"stage{a.stage}", a)) == 1:
        return
    for path, folder in ((None if a.folder else a.data, a.image_folder), (a.heldout, a.image_folder or a.folder)):
        if path:
            processor = Processor(None, None, own_vision(a).num_patches)
            ConversationDataset(path, folder or path.parent, processor, max_rejected=a.max_rejected)


def same_file(one: str | Path, other: str | Path) -> bool:
    return os.path.exists(one) and os.path.exists(other) and os.path.samefile(one, other)


def positive(text: str) -> int:
    if not text.isdecimal() or len(text) > 15 or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number of at most 15 digits")
    return int(text)


def count(text: str) -> int:
    return 0 if text == "0" else positive(text)


def positive_number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return number


def interval(text: str) -> dict[str, float]:
    """The fields of a Recipe for a save every so many steps ("500") or minutes ("5m")."""
    if text.endswith("m"):
        return {"save_every": math.inf, "save_minutes": positive_number(text[:-1])}
    return {"save_every": positive(text), "save_minutes": math.inf}


def recipe_of(name: str, a: argparse.Namespace) -> Recipe:
    """The preset's recipe, changed by the command line's arguments."""
    recipe = PRESETS[a.preset].recipes.get(name) or TOY[name]
    names = ("learning_rate", "batch_size", "epochs", "accumulation", "checkpointing", "lora", "eval_every")
    changes = {key: vars(a)[key] for key in names} | (a.save_every or {})
    changes["length"] = a.max_length
    changes["compact"] = False if a.dtype == "float32" else None
    return replace(recipe, **{key: value for key, value in changes.items() if value is not None})


def world(a: argparse.Namespace) -> Path:
    """The folder of the picture-book, which is drawn if it is missing, or of one's own pictures."""
    folder, vision = a.out / "data", own_vision(a)

    def draw() -> None:
        if not folder.exists():
            print(f"data: drawing {a.pictures:,} pictures into {folder}", flush=True)
            with naming(folder):
                write_world(folder, a.pictures, a.seed, vision.image_size // vision.patch_size)

    a.team.on_first(draw)
    return folder


def is_own(a: argparse.Namespace) -> bool:
    """Whether world() is made of one's own pictures."""
    folder = a.out / "data"
    return not from_zero.has_notes(folder) if folder.exists() else a.folder is not None


def own_vision(a: argparse.Namespace) -> VisionConfig:
    """The vision tower that stage 0 trains: the one it has begun in ``a.out``, else one of the sizes asked for."""
    folder = a.out / "vision"
    if folder.exists():
        return read_vision(folder)
    own = VisionConfig()
    return replace(own, image_size=a.image_size or own.image_size, patch_size=a.patch_size or own.patch_size)


def check_sizes(a: argparse.Namespace) -> None:
    """Raise UserError if --image-size or --patch-size would have no effect, or no model can be trained with them."""
    if a.stage and (a.model or a.vision or not a.from_scratch):
        raise UserError("--image-size, --patch-size: only a vision tower trained from scratch has them; use --stage 0")
    vision, room = own_vision(a), DecoderConfig().max_position_embeddings - 256  # for text
    size, patch = vision.image_size, vision.patch_size
    if (a.image_size or size, a.patch_size or patch) != (size, patch):
        raise UserError(f"{a.out / 'vision'}: a tower of {size} pixels with patches of {patch}; choose another --out")
    if size % patch or vision.num_patches > room:
        raise UserError(f"--image-size {size} with --patch-size {patch}: must be whole patches, and at most {room}")
    words = a.out / "data" / "words.json"
    rows = (row for _, _, row in scan(words) if "patch_words" in row) if words.exists() else ()
    if (row := next(iter(rows), None)) and (cells := len(row["patch_words"])) != vision.num_patches:
        raise UserError(f"{words}: has {cells} cells a picture, the tower {vision.num_patches}; choose another --out")


def stage_task(stage: int, a: argparse.Namespace) -> Task:
    """Stage 1 or 2, on the rows of --data or else of the picture-book."""
    recipe, start = recipe_of(f"stage{stage}", a), a.model or a.out / "stage1"
    dtype = STORED if recipe.compact else None
    if stage == 1 and not a.model:
        vision, decoder = (towers_folder(a) / name for name in ("vision", "decoder"))
        base = Towers(str(a.vision or vision), str(a.decoder or decoder), a.projector, a.vision_feature_layer)
        if towers_folder(a) == PRETRAINED and not (a.vision and a.decoder):
            print(f"towers: using the shipped ones in {PRETRAINED} (--from-scratch trains new ones)")
        torch.manual_seed(a.seed)  # W starts random
        model = join(*base, dtype)
        if PRESETS[a.preset].picture_book and not a.data:
            share = start_projection(model, world(a))
            print(f"stage1: W starts from least squares on {PICTURES} pictures and explains {share:.0%} of their words")
        fit = a.image_fit or "pad"
        if not (a.image_fit or model.processor.image.do_pad):
            print(f"pictures: padded to a square, unlike {base.vision} itself (--image-fit crop cuts them)")
    else:
        adapter = read_adapter(Path(start)) if is_adapter(start) else AdapterConfig(start)
        more = recipe.lora and adapter.rank  # its LoRA learns more
        if more and recipe.lora != adapter.rank:
            other = "or merge it first (python -m minillava.merge)"
            raise UserError(f"{start}: --lora {recipe.lora}, but its LoRA has rank {adapter.rank}; take that, {other}")
        base = adapter.base if more or not adapter.rank else ""  # a decoder that LoRA has changed is in no folder
        model = load_unmerged(Path(start), dtype=dtype) if more else load(start, dtype=dtype)
        fit = a.image_fit
    if fit:
        model.processor.image = model.processor.image.fitting(fit, model.config.vision.image_size)
    if a.template:
        model.processor.template = TEMPLATES[a.template]
    limit = model.config.decoder.max_position_embeddings
    if a.max_length and a.max_length > limit:
        raise UserError(f"--max-length {a.max_length}: the model reads at most {limit} tokens")
    processor = model.processor.for_captions() if stage == 1 else model.processor
    if stage == a.stage and "image_place" in a.given and processor.template.picture_only:
        raise UserError("--image-place: in this template stage 1 shows only a picture and its caption, no question")
    file = a.data if a.data and not a.folder else rows_of_world(stage, a)

    def rows(path: Path, place: str, folder: Path | None) -> ConversationDataset:
        return ConversationDataset(
            path, folder or path.parent, processor, place, None, a.max_length or limit, a.max_rejected
        )

    dataset = rows(file, a.image_place, a.image_folder)
    asked, folder, kinds = a.heldout, a.image_folder or a.folder, ()
    if not a.heldout and file.parent == a.out / "data":  # questions about pictures of the world that are in no training
        asked, folder, kinds = file.with_name("heldout.json"), None, ("caption",) if stage == 1 else ()
    heldout = rows(asked, "first", folder) if asked and asked.exists() else None
    torch.manual_seed(a.seed)  # LoRA's A starts random
    return llava_task(model, dataset, stage, recipe.lora, base, a.pack, heldout, kinds, measured=bool(a.heldout))


def rows_of_world(stage: int, a: argparse.Namespace) -> Path:
    """The file of the picture-book that a stage is trained on. For a decoder that can talk already, stage 2's rows are
    mixed with chats, in a file that is written if it is missing."""
    folder = world(a)
    if stage == 1 or not PRESETS[a.preset].picture_book:
        return folder / ("captions.json" if stage == 1 else "instruct.json")
    mixed = folder / "instruct_chats.json"
    a.team.on_first(lambda: mixed.exists() or mix(folder / "instruct.json", CHATS, mixed))
    return mixed


def towers_folder(a: argparse.Namespace) -> Path:
    """The folder of stage 1's towers: ``a.out`` with --from-scratch or if trained there, else the shipped ones."""
    trained = any((a.out / name).exists() for name in ("vision", "decoder"))
    return a.out if a.from_scratch or trained else PRETRAINED


def needs(name: str, a: argparse.Namespace) -> list[str]:
    """The trainings that ``name`` needs first. Raises UserError if stage 2 of a preset for real data lacks stage 1."""
    if name == "decoder":
        return [] if is_own(a) else ["notes"]
    if name == "stage1" and not a.model and not (a.vision and a.decoder):
        return ["vision", "decoder"] if towers_folder(a) == a.out else []
    if name == "stage2" and not a.model:
        preset = PRESETS[a.preset]
        if preset.vision_id and not preset.picture_book and not is_finished(a.out / "stage1"):
            raise UserError(f"{a.out / 'stage1'}: no finished stage 1; train it first, on captions given by --data")
        return ["stage1"]
    return []


def trainings(name: str, a: argparse.Namespace, finished: bool = False) -> list[str]:
    """The trainings that ``name`` still needs (with ``finished``, also those that have ended), in order, and itself."""
    others = [other for other in needs(name, a) if finished or not is_finished(a.out / other)]
    return [one for other in others for one in trainings(other, a, finished)] + [name]


# How each training is set up, in order.
STAGES = {
    "vision": lambda a: from_zero.vision_task(world(a), own_vision(a), a.image_fit or "pad", a.seed),
    "notes": lambda a: from_zero.notes_task(world(a), own_vision(a), a.seed),
    "decoder": lambda a: from_zero.decoder_task(world(a), own_vision(a), a.seed),
    "stage1": lambda a: stage_task(1, a),
    "stage2": lambda a: stage_task(2, a),
}
ASKED = {0: ("vision", "decoder"), 1: ("stage1",), 2: ("stage2",)}


def run_stage(name: str, a: argparse.Namespace, keep: bool) -> None:
    """Train ``name``, and before it what it needs. With ``keep``, a finished training is not run again."""
    if name in ("vision", "notes", "decoder") and a.team is not SINGLE:  # small: rank 0 trains
        a.team.on_first(lambda: run_stage(name, argparse.Namespace(**vars(a) | {"team": SINGLE}), keep))
        return
    out = a.out / name
    if keep and is_finished(out):
        print(f"{name}: already trained, in {out}")
        return
    for other in needs(name, a):
        changed = {**dict.fromkeys(OWN), "resume": True}
        run_stage(other, argparse.Namespace(**vars(a) | changed), keep=True)
    task, recipe = STAGES[name](a), recipe_of(name, a)
    if is_own(a) and a.data in (None, a.folder) and not a.epochs:
        recipe = replace(recipe, epochs=max(recipe.epochs, OWN_ROWS[name] / len(task.dataset)))
    if isinstance(task.model, Llava) and a.device.startswith("cuda") and not a.shard:
        recipe = fill_card(int(name[-1]), task.model.config, recipe, a)
    if a.pack and recipe.accumulation >= recipe.batch_size:
        raise UserError("--pack: a micro-batch has only one row to pack; choose a smaller --accumulation")
    resume = a.resume and out.exists()
    dtype = None if a.dtype is None else getattr(torch, a.dtype)
    workers = default_workers(a.device, a.team.size) if a.workers is None else a.workers
    train(task, recipe, Run(out, a.seed, resume, a.max_steps, a.device, dtype, a.compile, workers, a.team))


def fill_card(stage: int, config: LlavaConfig, recipe: Recipe, a: argparse.Namespace) -> Recipe:
    """The recipe in the micro-batches that fill the GPU's free memory, or --memory; as it is if these were given."""
    if a.accumulation or a.checkpointing:
        return recipe
    # The first process's, for all: each process must compute as many micro-batches as the others.
    free = a.team.total(torch.cuda.mem_get_info(a.device)[0] / GIB if a.team.is_first else 0)
    memory = min(free, a.memory or free)
    chosen = fill(Setting(config, stage, recipe, bfloat16=a.dtype != "float32", gpu=True), memory)
    if chosen is None:
        print(f"stage{stage}: {in_words(recipe)}; by --plan it does not fit in {memory:.1f} GiB")
        return recipe
    print(f"stage{stage}: {in_words(chosen)}; the fewest micro-batches that fit in {memory:.1f} GiB")
    return chosen


def plan(a: argparse.Namespace) -> None:
    """Print the memory that the stage takes, computed from sizes only: the preset's, or those in the given folders."""
    preset, trained = PRESETS[a.preset], a.out / "stage1"
    if a.model or (a.stage == 2 and trained.exists()):
        start = a.model or trained
        config = read_outline(start)[0] if is_adapter(start) else read_llava(start)
    else:
        given = preset.vision if a.vision == preset.vision_id else read_vision(a.vision)
        vision = given if a.vision else own_vision(a)
        decoder = preset.decoder if a.decoder == preset.decoder_id else read_decoder(a.decoder)
        config = LlavaConfig(vision, decoder, a.projector)
    recipe, gpu = recipe_of(f"stage{a.stage}", a), a.device != "cpu"
    bfloat16 = recipe.compact or gpu or has_fast_bfloat16("cpu") if a.dtype is None else a.dtype != "float32"
    free = torch.cuda.mem_get_info()[0] / GIB if gpu and torch.cuda.is_available() else 24.0
    print(describe(Setting(config, a.stage, recipe, bfloat16, gpu), a.memory or free))


def lock(a: argparse.Namespace, stack: ExitStack, only_there: bool = False) -> None:
    """Lock --out until ``stack`` ends. ``only_there``: only if the folder exists, since a command that is refused makes
    none; another call locks it once it is to be made. Raises UserError if another training holds it."""
    if not a.locked and (a.out.exists() or not only_there):
        busy = f"{a.out}: another training writes there; wait for its end, or choose another --out"
        stack.enter_context(locked(a.out / "train.lock", busy))
        a.locked = True


def main() -> None:
    a = parse()
    check(a)
    if a.plan:
        plan(a)
        return
    for path in filter(None, (a.data, a.heldout)):
        if not path.exists():
            raise UserError(f"{path}: no such file or folder")
    device = a.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if a.memory and (a.shard or not device.startswith("cuda")):
        raise UserError("--memory: needs --plan, or a GPU without --shard")
    with started(device, a.shard) as team, ExitStack() as stack:
        a.team, a.device = team, own_device(device)
        try:
            torch.empty(0, device=a.device)
        except (RuntimeError, AssertionError) as error:
            raise UserError(f"--device {a.device}: {str(error).splitlines()[0]}") from None
        team.on_first(lambda: lock(a, stack, only_there=True))
        for name in STAGES:
            team.on_first(lambda out=a.out / name: recover_folder(out))
        team.together(lambda: check_folders(a))
        team.on_first(lambda: check_rows(a))
        team.on_first(lambda: lock(a, stack))
        if a.folder:
            patches = own_vision(a).num_patches
            with naming(a.out / "data"):
                team.on_first(lambda: write_own(a.folder, a.out / "data", patches, a.heldout, a.seed))
        for name in ASKED[a.stage]:
            run_stage(name, a, keep=a.stage == 0)
    print(f"done: {', '.join(str(a.out / name) for name in ASKED[a.stage])}")
    if a.stage:
        print(f"talk to it: python chat.py --model {a.out / f'stage{a.stage}'}")


if __name__ == "__main__":
    run_program(main)
