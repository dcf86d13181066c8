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

from minillava.checkpoint import join, load, load_decoder, read_decoder, read_llava, read_vision, recover_folder
from minillava.config import DecoderConfig, LlavaConfig, TextConfig, VisionConfig
from minillava.contrastive import Clip
from minillava.conversation import SYSTEM, TEMPLATES
from minillava.dataset import ConversationDataset, RegionDataset
from minillava.decoder import Decoder
from minillava.distributed import ALONE, Team, own_device, started
from minillava.errors import UserError, run_program
from minillava.formats.tensors import STORED
from minillava.image import ImageProcessor
from minillava.llava import Llava
from minillava.lora import is_adapter
from minillava.plan import describe
from minillava.recipes import PRESETS, TOY, Recipe, adjust
from minillava.tokenizer import SPECIAL_TOKENS, Tokenizer, train_bpe, write_tokenizer
from minillava.training import (
    contrastive_task,
    has_fast_bfloat16,
    initialise,
    is_finished,
    llava_task,
    next_token_task,
    train,
)

PRETRAINED = Path(__file__).parent / "minillava" / "pretrained"
VOCABULARY = 1024


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
    arguments.out = arguments.out or Path("out") / arguments.preset
    arguments.vision = arguments.vision or preset.vision_id
    arguments.decoder = arguments.decoder or preset.decoder_id
    return arguments


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


class Run:
    """What the stages share: the arguments, where things lie, and how a task is started."""

    def __init__(self, arguments: argparse.Namespace, team: Team = ALONE):
        self.arguments, self.team = arguments, team
        self.out: Path = arguments.out
        self.world = self.out / "data"

    def recipe(self, name: str, wanted: bool) -> Recipe:
        """``wanted`` is the stage that was asked for; others are run because it lacks them."""
        a = self.arguments
        recipe = PRESETS[a.preset].recipes.get(name) or TOY[name]
        if a.dtype == "float32":
            recipe = replace(recipe, compact=False)
        if not wanted:
            return recipe
        return adjust(recipe, a.learning_rate, a.batch_size, a.accumulation, a.checkpointing, a.lora)

    def train(self, name: str, task, wanted: bool) -> None:
        a = self.arguments
        recipe = self.recipe(name, wanted)
        out = self.out / name
        estimate = f", about {recipe.minutes:g} minutes on two CPU cores" if recipe.minutes and not a.max_steps else ""
        print(f"{name}: training, to {out}{estimate}", flush=True)
        resume = a.resume if wanted else out.exists()
        bfloat16 = None if a.dtype is None else a.dtype == "bfloat16"
        team = self.team if name in ("stage1", "stage2") else ALONE  # the towers are the first process's alone
        train(task, recipe, out, a.seed, resume, a.max_steps, a.device, bfloat16, team)

    def lacks(self, name: str) -> bool:
        out = self.out / name
        if is_finished(out):
            print(f"{name}: there already, in {out}")
            return False
        return True

    def draw_world(self) -> None:
        if not self.world.exists():
            print(f"data: drawing {self.arguments.pictures} pictures, to {self.world}, about 1 minute", flush=True)
            from data.picturebook.write import write_world

            write_world(self.world, self.arguments.pictures, self.arguments.seed)

    def tokenizer(self) -> Tokenizer:
        folder = self.out / "tokenizer"
        if not (folder / "tokenizer.json").exists():
            print(f"tokenizer: training, to {folder}", flush=True)
            template = TEMPLATES["v0"]
            fixed = f"{SYSTEM}\n{template.human}\n{template.assistant}\n"  # in every conversation, so worth its merges
            text = (self.world / "text.txt").read_text(encoding="utf-8") + fixed * 100
            write_tokenizer(folder, train_bpe(text, VOCABULARY - len(SPECIAL_TOKENS)))
        return Tokenizer.from_pretrained(folder)

    def told_in_words(self, tokenizer: Tokenizer, name: str, **more) -> ConversationDataset:
        """Rows of the world that have words in place of pictures, as many as the toy vision tower has patches."""
        vision = VisionConfig()
        processor = ImageProcessor.for_size(vision.image_size)
        seed = self.arguments.seed
        return ConversationDataset(
            self.world / name, self.world, tokenizer, processor, vision.num_patches, seed=seed, **more
        )

    def conversations(self, model: Llava, path: Path, template: str) -> ConversationDataset:
        a = self.arguments
        return ConversationDataset(
            path,
            a.image_folder or path.parent,
            model.tokenizer,
            model.image_processor,
            model.config.num_image_tokens,
            template,
            seed=a.seed,
            image_first={"random": None, "first": True, "last": False}[a.image_place],
            pack=a.pack,
        )


def train_vision(run: Run, wanted: bool) -> None:
    run.draw_world()
    tokenizer = run.tokenizer()
    torch.manual_seed(run.arguments.seed)
    config = VisionConfig()
    clip = Clip(config, TextConfig(vocab_size=tokenizer.vocab_size, eos_token_id=tokenizer.eos_id))
    initialise(clip)
    dataset = RegionDataset(
        run.world / "contexts.jsonl", run.world, tokenizer, config.image_size, config.patch_size, run.arguments.seed
    )
    run.train("vision", contrastive_task(clip, dataset, tokenizer), wanted)


def train_notes(run: Run, wanted: bool) -> None:
    """The decoder's first lesson: to look things up. Index cards need one look at the picture for each word, where an
    answer such as "The fish is red." needs a look and then a thought; learned first, looking makes the rest quick."""
    run.draw_world()
    tokenizer = run.tokenizer()
    torch.manual_seed(run.arguments.seed)
    decoder = Decoder(
        DecoderConfig(vocab_size=tokenizer.vocab_size, eos_token_id=tokenizer.eos_id, pad_token_id=tokenizer.pad_id)
    )
    initialise(decoder)
    dataset = run.told_in_words(tokenizer, "notes.json")
    run.train("notes", next_token_task("notes", decoder, dataset, tokenizer), wanted)


def train_decoder(run: Run, wanted: bool) -> None:
    if run.lacks("notes"):
        train_notes(run, wanted=False)
    run.draw_world()
    decoder, tokenizer = load_decoder(run.out / "notes")
    dataset = run.told_in_words(tokenizer, "words.json", text_path=run.world / "text.txt")
    run.train("decoder", next_token_task("decoder", decoder, dataset, tokenizer), wanted)


def stage_0(run: Run, wanted: bool) -> None:
    for name, train_tower in (("vision", train_vision), ("decoder", train_decoder)):
        if run.lacks(name):
            train_tower(run, wanted)


def towers(run: Run) -> tuple[str | Path, str | Path]:
    """The folders of the two towers: those given, or those trained here, or the shipped ones."""
    a = run.arguments
    if a.vision and a.decoder:
        return a.vision, a.decoder
    trained = run.out / "vision", run.out / "decoder"
    shipped = PRETRAINED / "vision", PRETRAINED / "decoder"
    if a.from_scratch or any(folder.exists() for folder in trained) or not all(folder.exists() for folder in shipped):
        run.team.first_alone(lambda: stage_0(run, wanted=False))
        found = trained
    else:
        print(f"towers: the shipped ones, in {PRETRAINED} (--from-scratch trains them here)")
        found = shipped
    return a.vision or found[0], a.decoder or found[1]


def stage_1(run: Run, wanted: bool) -> None:
    a = run.arguments
    dtype = STORED if run.recipe("stage1", wanted).compact else None
    if a.model and wanted:
        model = load(a.model, dtype=dtype)
    else:
        vision, decoder = towers(run)
        torch.manual_seed(a.seed)  # W starts random
        model = join(vision, decoder, a.projector, a.vision_feature_layer, dtype)
    data = (a.data if wanted else None) or run.world / "captions.json"
    if data == run.world / "captions.json":
        run.team.first_alone(run.draw_world)
    model.template = a.template or model.template
    # Stage 1 asks for a brief description in a form of its own, or as LLaVA-1.5 does shows the picture and no more.
    template = "brief" if model.template == "v0" else "plain"
    run.train("stage1", llava_task(model, run.conversations(model, data, template), 1), wanted)


def stage_2(run: Run) -> None:
    a = run.arguments
    start = a.model or run.out / "stage1"
    if not a.model and run.lacks("stage1"):
        if PRESETS[a.preset].vision_id:
            raise UserError(f"{start}: no finished stage 1; train it first, on captions that --data gives")
        stage_1(run, wanted=False)
    recipe = run.recipe("stage2", wanted=True)
    if recipe.lora and is_adapter(start):
        raise UserError(f"{start}: an adapter; merge it first, for --lora to start from (python -m minillava.merge)")
    model = load(start, dtype=STORED if recipe.compact else None)
    model.template = a.template or model.template
    data = a.data or run.world / "instruct.json"
    if data == run.world / "instruct.json":
        run.team.first_alone(run.draw_world)
    dataset = run.conversations(model, data, model.template)
    torch.manual_seed(a.seed)  # LoRA's matrices start random
    run.train("stage2", llava_task(model, dataset, 2, recipe.lora, start), True)


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
    recipe = Run(a).recipe(f"stage{a.stage}", wanted=True)
    gpu = a.device != "cpu"
    bfloat16 = recipe.compact or gpu or has_fast_bfloat16("cpu") if a.dtype is None else a.dtype == "bfloat16"
    print(describe(config, a.stage, recipe, bfloat16, gpu, a.memory))


def main() -> None:
    arguments = parse()
    if arguments.lora and arguments.stage != 2:
        raise UserError(f"--lora: stage {arguments.stage} does not train the decoder of a LLaVA; stage 2 does")
    if arguments.pack and not arguments.stage:
        raise UserError("--pack: stage 0 has rows of its own; stages 1 and 2 have conversations")
    if arguments.plan:
        plan(arguments)
        return
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    with started(device, arguments.shard) as team:
        arguments.device = own_device(device)
        try:
            torch.empty(0, device=arguments.device)
        except (RuntimeError, AssertionError) as error:
            raise UserError(f"--device {arguments.device}: {str(error).splitlines()[0]}") from None
        train_stage(Run(arguments, team))


def train_stage(run: Run) -> None:
    stage, team = run.arguments.stage, run.team
    for name in ("vision", "notes", "decoder", "stage1", "stage2"):
        team.first_alone(lambda out=run.out / name: recover_folder(out))
    if stage == 0:
        team.first_alone(lambda: stage_0(run, wanted=True))
        done = run.out / "vision", run.out / "decoder"
    else:
        stage_1(run, wanted=True) if stage == 1 else stage_2(run)
        done = (run.out / f"stage{stage}",)
    print(f"done: {', '.join(map(str, done))}")
    if stage:
        print(f"talk to it: python chat.py --model {done[0]}")


if __name__ == "__main__":
    run_program(main)
