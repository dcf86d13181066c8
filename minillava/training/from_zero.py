"""The tokenizer, vision tower and decoder, trained from scratch on a world: the picture-book
(``data/picturebook/write.py``) or a folder of one's own pictures (``data/own.py``)."""

from pathlib import Path

import torch

from minillava.config import DecoderConfig, TextConfig, VisionConfig
from minillava.inputs.conversations import ConversationDataset
from minillava.inputs.image import ImageProcessor
from minillava.inputs.processor import Processor
from minillava.inputs.regions import RegionDataset
from minillava.inputs.templates import SYSTEM, TEMPLATES
from minillava.inputs.tokenizer import SPECIAL_TOKENS, Tokenizer, train_bpe, write_tokenizer
from minillava.language_model import load_weights
from minillava.model.contrastive import Clip
from minillava.model.decoder import Decoder
from minillava.training.tasks import Task, contrastive_task, initialise, next_token_task

VOCABULARY = 1024


def toy_processor(world: Path, vision: VisionConfig, image_fit: str = "pad") -> Processor:
    """The processor of the models trained from scratch; ``image_fit`` is one of FITS.

    Its tokenizer is in the folder ``tokenizer`` next to ``world``, and is trained if it is not there yet.
    """
    folder = world.parent / "tokenizer"
    if not (folder / "tokenizer.json").exists():
        print(f"tokenizer: training into {folder}", flush=True)
        template = TEMPLATES["v0"]
        fixed = f"{SYSTEM}\n{template.human}\n{template.assistant}\n"  # in every conversation, so BPE should merge it
        text = (world / "text.txt").read_text(encoding="utf-8") + fixed * 100
        write_tokenizer(folder, train_bpe(text, VOCABULARY - len(SPECIAL_TOKENS)))
    image = ImageProcessor().fitting(image_fit, vision.image_size)
    return Processor(Tokenizer.from_pretrained(folder), image, vision.num_patches)


def vision_task(world: Path, vision: VisionConfig, image_fit: str, seed: int) -> Task:
    """Contrastive training of the vision tower, from random weights."""
    processor = toy_processor(world, vision, image_fit)
    tokenizer = processor.tokenizer
    torch.manual_seed(seed)
    clip = Clip(vision, TextConfig(vocab_size=tokenizer.vocab_size, eos_token_id=tokenizer.eos_id))
    initialise(clip)
    return contrastive_task(clip, RegionDataset(world / "contexts.jsonl", world, processor))


def notes_task(world: Path, vision: VisionConfig, seed: int) -> Task:
    """Next-token training of the decoder on notes.json, from random weights. A note has as many cells as ``vision`` has
    patches.

    Notes ("red fish top left large") come before sentences, because each of their words takes one look at the picture.
    An answer such as "The fish is red." takes a look and one more step, and is learned quickly after notes.
    """
    processor = toy_processor(world, vision)
    decoder = new_decoder(processor.tokenizer, seed)
    limit = decoder.config.max_position_embeddings
    dataset = ConversationDataset(world / "notes.json", world, processor, max_length=limit)
    return next_token_task("notes", decoder, dataset)


def decoder_task(world: Path, vision: VisionConfig, seed: int) -> Task:
    """Next-token training on conversations and prose. It starts from the folder ``notes`` next to ``world`` or, if the
    world has no notes, from random weights."""
    processor, notes = toy_processor(world, vision), world.parent / "notes"
    decoder = load_weights(notes) if has_notes(world) else new_decoder(processor.tokenizer, seed)
    limit = decoder.config.max_position_embeddings
    dataset = ConversationDataset(
        world / "words.json", world, processor, text_path=world / "text.txt", max_length=limit
    )
    return next_token_task("decoder", decoder, dataset)


def has_notes(world: Path) -> bool:
    """Whether a world has notes. The picture-book has; of one's own pictures nothing is known but what is said."""
    return (world / "notes.json").exists()


def new_decoder(tokenizer: Tokenizer, seed: int) -> Decoder:
    torch.manual_seed(seed)
    decoder = Decoder(DecoderConfig(tokenizer.vocab_size, eos_token_id=tokenizer.eos_id, pad_token_id=tokenizer.pad_id))
    initialise(decoder)
    return decoder
