"""The tokenizer and the two towers from zero, on a folder of the picture-book (``data/picturebook/write.py``)."""

from pathlib import Path

import torch

from minillava.checkpoint import load_decoder
from minillava.config import DecoderConfig, TextConfig, VisionConfig
from minillava.inputs.conversations import ConversationDataset
from minillava.inputs.image import ImageProcessor
from minillava.inputs.processor import Processor
from minillava.inputs.regions import RegionDataset
from minillava.inputs.templates import SYSTEM, TEMPLATES
from minillava.inputs.tokenizer import SPECIAL_TOKENS, Tokenizer, train_bpe, write_tokenizer
from minillava.model.contrastive import Clip
from minillava.model.decoder import Decoder
from minillava.training.tasks import Task, contrastive_task, initialise, next_token_task

VOCABULARY = 1024


def toy_processor(world: Path) -> Processor:
    """The processor of the model trained from zero. Its tokenizer is trained where it is missing, beside ``world``."""
    folder, vision = world.parent / "tokenizer", VisionConfig()
    if not (folder / "tokenizer.json").exists():
        print(f"tokenizer: training, to {folder}", flush=True)
        template = TEMPLATES["v0"]
        fixed = f"{SYSTEM}\n{template.human}\n{template.assistant}\n"  # in every conversation, so worth its merges
        text = (world / "text.txt").read_text(encoding="utf-8") + fixed * 100
        write_tokenizer(folder, train_bpe(text, VOCABULARY - len(SPECIAL_TOKENS)))
    image = ImageProcessor.for_size(vision.image_size)
    return Processor(Tokenizer.from_pretrained(folder), image, vision.num_patches)


def vision_task(world: Path, seed: int) -> Task:
    """The vision tower, from random weights."""
    tokenizer, config = toy_processor(world).tokenizer, VisionConfig()
    torch.manual_seed(seed)
    clip = Clip(config, TextConfig(vocab_size=tokenizer.vocab_size, eos_token_id=tokenizer.eos_id))
    initialise(clip)
    return contrastive_task(clip, RegionDataset(world / "contexts.jsonl", world, tokenizer, config), tokenizer)


def notes_task(world: Path, seed: int) -> Task:
    """The decoder, from random weights. Its first lesson is to look things up: index cards need one look at the picture
    for each word, where an answer such as "The fish is red." needs a look and then a thought; learned first, looking
    makes the rest quick."""
    processor = toy_processor(world)
    tokenizer = processor.tokenizer
    torch.manual_seed(seed)
    decoder = Decoder(DecoderConfig(tokenizer.vocab_size, eos_token_id=tokenizer.eos_id, pad_token_id=tokenizer.pad_id))
    initialise(decoder)
    return next_token_task("notes", decoder, ConversationDataset(world / "notes.json", world, processor))


def decoder_task(world: Path) -> Task:
    """The decoder that knows notes, beside ``world``, learns to talk."""
    decoder, _ = load_decoder(world.parent / "notes")
    dataset = ConversationDataset(world / "words.json", world, toy_processor(world), text_path=world / "text.txt")
    return next_token_task("decoder", decoder, dataset)
