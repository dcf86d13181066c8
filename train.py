"""Train a LLaVA: ``python train.py --stage 0|1|2``. Each stage first runs what it lacks, and says so.

stage 0   the two towers from zero: the vision tower by contrast, the decoder by next token
stage 1   the projection alone, on captions
stage 2   the projection and the decoder, on instructions

Several processes share the work of stages 1 and 2: ``torchrun --nproc_per_node=N train.py --stage 1``.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from minillava.checkpoint import join, load, read_decoder, read_llava, read_vision
from minillava.config import PRETRAINED, LlavaConfig
from minillava.errors import UserError, run_program
from minillava.formats.adapter_config import is_adapter
from minillava.formats.tensors import STORED
from minillava.inputs.conversations import ConversationDataset
from minillava.inputs.templates import TEMPLATES
from minillava.model.llava import Llava
from minillava.saving import recover_folder
from minillava.training import from_zero
from minillava.training.distributed import ALONE, own_device, started
from minillava.training.loop import Run, train
from minillava.training.machine import has_fast_bfloat16
from minillava.training.plan import Setting, describe
from minillava.training.recipes import PRESETS, TOY, Recipe, adjust
from minillava.training.resume import is_finished
from minillava.training.tasks import Task, llava_task

# Arguments of the stage that is asked for; what it needs first is trained with their defaults.
OWN = ["model", "data", "image_folder", "batch_size", "accumulation", "pack", "checkpointing", "lora", "learning_rate"]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", type=int, choices=(0, 1, 2), required=True)
    parser.add_argument(
        "--preset",
        choices=PRESETS,
        default="toy",
        help="towers and recipe: toy (default), or the paper's values: as on eight cards (paper), or for one card with "
        "TinyLlama (consumer) or Vicuna-7B (llava-7b)",
    )
    parser.add_argument("--out", type=Path, help="folder for all results (default out/PRESET)")
    parser.add_argument("--from-scratch", action="store_true", help="train the towers too, instead of the shipped ones")
    parser.add_argument("--vision", help="CLIP folder or hub id to take the vision tower from")
    parser.add_argument("--decoder", help="LLaMA folder or hub id to take the decoder and tokenizer from")
    parser.add_argument("--model", help="LLaVA folder or hub id to start from, instead of two towers or stage 1")
    parser.add_argument(
        "--template", choices=TEMPLATES, help="how turns are written (default: as the decoder learnt it)"
    )
    parser.add_argument("--data", type=Path, help="LLaVA JSON to train on (default: the picture-book's)")
    parser.add_argument(
        "--image-folder", type=Path, help="folder that the rows' images are in (default: beside --data)"
    )
    parser.add_argument("--projector", choices=("linear", "mlp"), default="linear")
    parser.add_argument("--vision-feature-layer", type=int, default=-2, help="layer that W reads (default %(default)s)")
    parser.add_argument("--image-place", choices=("random", "first", "last"), default="random", help="eq. 1's choice")
    parser.add_argument("--max-steps", type=positive, help="stop each training after so many steps")
    parser.add_argument("--batch-size", type=positive)
    parser.add_argument("--accumulation", type=positive, help="micro-batches that a batch is cut into")
    parser.add_argument("--pack", action="store_true", help="several conversations in a row, to compute less padding")
    parser.add_argument("--checkpointing", action="store_true", help="compute activations again, to keep fewer")
    parser.add_argument("--lora", type=positive, metavar="RANK", help="stage 2 by low-rank matrices; leaves an adapter")
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pictures", type=positive, default=20000, help="size of the picture-book, where it is drawn")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint of this stage")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of the matrix products (default: the faster)")
    parser.add_argument("--device", help="default: cuda where there is one, else cpu")
    parser.add_argument("--shard", action="store_true", help="under torchrun: each process holds a slice of the model")
    parser.add_argument("--plan", action="store_true", help="train nothing: print the memory it takes")
    parser.add_argument("--memory", type=float, default=24.0, help="GiB to plan for (default %(default)g)")
    arguments = parser.parse_args()
    preset = PRESETS[arguments.preset]
    arguments.defaults = {name: parser.get_default(name) for name in OWN}
    arguments.out = arguments.out or Path("out") / arguments.preset
    arguments.vision = arguments.vision or preset.vision_id
    arguments.decoder = arguments.decoder or preset.decoder_id
    arguments.team = ALONE
    return arguments


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def recipe_of(name: str, a: argparse.Namespace) -> Recipe:
    recipe = PRESETS[a.preset].recipes.get(name) or TOY[name]
    if a.dtype == "float32":
        recipe = replace(recipe, compact=False)
    return adjust(recipe, a.learning_rate, a.batch_size, a.accumulation, a.checkpointing, a.lora)


def world(a: argparse.Namespace) -> Path:
    """The folder of the picture-book, which is drawn where it is missing."""

    def draw() -> None:
        if not folder.exists():
            print(f"data: drawing {a.pictures} pictures, to {folder}, about 1 minute", flush=True)
            from data.picturebook.write import write_world

            write_world(folder, a.pictures, a.seed)

    folder = a.out / "data"
    a.team.first_alone(draw)
    return folder


def stage_1(a: argparse.Namespace) -> Task:
    dtype = STORED if recipe_of("stage1", a).compact else None
    if a.model:
        model = load(a.model, dtype=dtype)
    else:
        folder = PRETRAINED if has_shipped_towers(a) else a.out
        vision, decoder = a.vision or folder / "vision", a.decoder or folder / "decoder"
        torch.manual_seed(a.seed)  # W starts random
        model = join(vision, decoder, a.projector, a.vision_feature_layer, dtype)
    return llava_task(model, conversations(model, "captions.json", a), 1, pack=a.pack)


def stage_2(a: argparse.Namespace) -> Task:
    start, recipe = a.model or a.out / "stage1", recipe_of("stage2", a)
    if recipe.lora and is_adapter(start):
        raise UserError(f"{start}: an adapter; merge it first, for --lora to start from (python -m minillava.merge)")
    model = load(start, dtype=STORED if recipe.compact else None)
    dataset = conversations(model, "instruct.json", a)
    torch.manual_seed(a.seed)  # LoRA's matrices start random
    return llava_task(model, dataset, 2, recipe.lora, start, a.pack)


def conversations(model: Llava, name: str, a: argparse.Namespace) -> ConversationDataset:
    """The rows that --data names, or those of the picture-book."""
    if a.template:
        model.processor.template = TEMPLATES[a.template]
    processor = model.processor.for_captions() if name == "captions.json" else model.processor
    path = a.data or world(a) / name
    return ConversationDataset(path, a.image_folder or path.parent, processor, a.image_place)


def has_shipped_towers(a: argparse.Namespace) -> bool:
    """Whether stage 1 starts from the shipped towers: not if they are to be trained here, or have been."""
    trained, shipped = ([folder / name for name in ("vision", "decoder")] for folder in (a.out, PRETRAINED))
    return not (a.from_scratch or any(path.exists() for path in trained)) and all(path.exists() for path in shipped)


def towers(a: argparse.Namespace) -> list[str]:
    if a.model or (a.vision and a.decoder):
        return []
    if has_shipped_towers(a):
        print(f"towers: the shipped ones, in {PRETRAINED} (--from-scratch trains them here)")
        return []
    return ["vision", "decoder"]


def stage_1_unless_given(a: argparse.Namespace) -> list[str]:
    if not a.model and PRESETS[a.preset].vision_id and not is_finished(a.out / "stage1"):
        raise UserError(f"{a.out / 'stage1'}: no finished stage 1; train it first, on captions that --data gives")
    return [] if a.model else ["stage1"]


# In order: what each training needs first, and how it is set up.
STAGES = {
    "vision": (lambda a: [], lambda a: from_zero.vision_task(world(a), a.seed)),
    "notes": (lambda a: [], lambda a: from_zero.notes_task(world(a), a.seed)),
    "decoder": (lambda a: ["notes"], lambda a: from_zero.decoder_task(world(a))),
    "stage1": (towers, stage_1),
    "stage2": (stage_1_unless_given, stage_2),
}
ASKED = {0: ("vision", "decoder"), 1: ("stage1",), 2: ("stage2",)}
TOWERS = ("vision", "notes", "decoder")  # small, so the first process trains them while the others wait


def run_stage(name: str, a: argparse.Namespace) -> None:
    """Train ``name``, and before it what it lacks."""
    needs, set_up = STAGES[name]
    for other in needs(a):
        arguments = argparse.Namespace(**{**vars(a), **a.defaults, "resume": (a.out / other).exists()})
        run_unless_finished(other, arguments)
    task, recipe, out = set_up(a), recipe_of(name, a), a.out / name
    estimate = f", about {recipe.minutes:g} minutes on two CPU cores" if recipe.minutes and not a.max_steps else ""
    print(f"{name}: training, to {out}{estimate}", flush=True)
    bfloat16 = None if a.dtype is None else a.dtype == "bfloat16"
    train(task, recipe, Run(out, a.seed, a.resume, a.max_steps, a.device, bfloat16, a.team))


def run_unless_finished(name: str, a: argparse.Namespace) -> None:
    def work() -> None:
        if is_finished(a.out / name):
            print(f"{name}: there already, in {a.out / name}")
        else:
            run_stage(name, a)

    if name in TOWERS:
        team, a.team = a.team, ALONE
        team.first_alone(work)
    else:
        work()


def plan(a: argparse.Namespace) -> None:
    """Print what the stage takes in memory, from sizes alone: the preset's, or those in the folders that are given."""
    if a.stage == 0:
        raise UserError("--plan: stage 0 trains the picture-book's small towers; plan stage 1 or 2")
    preset, trained = PRESETS[a.preset], a.out / "stage1"
    if a.model or (a.stage == 2 and trained.exists()):
        config = read_llava(a.model or trained)
    else:
        vision = preset.vision if a.vision == preset.vision_id else read_vision(a.vision)
        decoder = preset.decoder if a.decoder == preset.decoder_id else read_decoder(a.decoder)
        config = LlavaConfig(vision, decoder, a.projector)
    recipe, gpu = recipe_of(f"stage{a.stage}", a), a.device != "cpu"
    bfloat16 = recipe.compact or gpu or has_fast_bfloat16("cpu") if a.dtype is None else a.dtype == "bfloat16"
    print(describe(Setting(config, a.stage, recipe, bfloat16, gpu), a.memory))


def main() -> None:
    a = parse()
    if a.lora and a.stage != 2:
        raise UserError(f"--lora: stage {a.stage} does not train the decoder of a LLaVA; stage 2 does")
    if a.pack and not a.stage:
        raise UserError("--pack: stage 0 has rows of its own; stages 1 and 2 have conversations")
    if a.plan:
        plan(a)
        return
    device = a.device or ("cuda" if torch.cuda.is_available() else "cpu")
    with started(device, a.shard) as team:
        a.team, a.device = team, own_device(device)
        try:
            torch.empty(0, device=a.device)
        except (RuntimeError, AssertionError) as error:
            raise UserError(f"--device {a.device}: {str(error).splitlines()[0]}") from None
        for name in STAGES:
            team.first_alone(lambda out=a.out / name: recover_folder(out))
        for name in ASKED[a.stage]:
            run_stage(name, a) if a.stage else run_unless_finished(name, a)
    done = [a.out / name for name in ASKED[a.stage]]
    print(f"done: {', '.join(map(str, done))}")
    if a.stage:
        print(f"talk to it: python chat.py --model {done[0]}")


if __name__ == "__main__":
    run_program(main)
