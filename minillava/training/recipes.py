"""Hyperparameters: how long and how fast each stage trains, in how much memory, and the presets of all stages."""

import math
from dataclasses import dataclass, field, replace

from minillava.config import LLAMA, PRETRAINED, DecoderConfig, VisionConfig
from minillava.errors import UserError


@dataclass(frozen=True)
class Recipe:
    """The hyperparameters of one training: how long and how fast it learns, its memory settings, and how often it is
    saved (whichever of steps and minutes comes first) and measured."""

    learning_rate: float
    batch_size: int
    epochs: float
    warmup: float = 0.03  # fraction of the steps; paper, appendix
    optimizer: str = "adamw"  # "adamw", or "muon" for the matrices inside the blocks
    weight_decay: float = 0.0
    other_rate: float = 1.0  # with Muon: factor on the learning rate of all that it does not train
    accumulation: int = 1  # micro-batches per step; batch_size is for all of them together
    checkpointing: bool = False  # save only the inputs of decoder blocks; recompute the rest in the backward pass
    compact: bool = False  # frozen weights and matrix products in bfloat16; trainable weights in float32
    lora: int = 0  # rank of the updates to the decoder's matrices; 0: the matrices themselves learn
    length: int = 256  # tokens of a long row, visual ones included; used by --plan
    save_every: float = 250  # steps
    save_minutes: float = 15
    eval_every: int = 100  # steps between two measurements of held-out rows, if there are any

    def __post_init__(self):
        for name in ("learning_rate", "batch_size", "epochs", "accumulation", "eval_every"):
            if not 0 < vars(self)[name] < math.inf:
                raise UserError(f"{name} {vars(self)[name]}: must be a positive number")


@dataclass(frozen=True)
class Preset:
    """A recipe for each stage, and the vision tower and decoder to start from: folders or hub ids, and sizes.

    Without ids, these are the picture-book's own, shipped or trained by stage 0. ``picture_book``: whether towers with
    ids are trained on the picture-book if there is no --data; W then starts from least squares, and one row in five of
    stage 2 is a chat about other things.
    """

    recipes: dict[str, Recipe]
    vision_id: str | None = None
    decoder_id: str | None = None
    vision: VisionConfig = field(default_factory=VisionConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    projector: str = "linear"
    picture_book: bool = False


# From scratch on two CPU cores. Muon learns shapes in far fewer steps than AdamW. Two micro-batches, each of rows of
# similar length, need less padding.
TOY = {
    "vision": Recipe(3e-3, batch_size=128, epochs=4.25, optimizer="muon", weight_decay=0.05),
    "notes": Recipe(1e-2, 16, 0.32, optimizer="muon", weight_decay=0.05, other_rate=3.0, accumulation=2),
    "decoder": Recipe(6e-3, 8, 1.1, optimizer="muon", weight_decay=0.05, other_rate=3.0, accumulation=2),
    "stage1": Recipe(5e-3, batch_size=32, epochs=0.5),
    "stage2": Recipe(3e-3, 16, 1.05, optimizer="muon", weight_decay=0.05, other_rate=3.0, accumulation=2),
}
# The rows that each training reads of a world of one's own. If it has fewer, they are read again and again.
OWN_ROWS = {"vision": 64_000, "decoder": 8_000, "stage1": 5_000, "stage2": 20_000}
# The paper's values, section 5 and appendix: batch size, learning rate and epochs of its two stages; Adam without
# weight decay, cosine, 3 % warm-up, bfloat16, activation checkpointing. The length in stage 2 is the limit in the
# authors' scripts (model_max_length); a caption, in stage 1, is far shorter.
PAPER = {
    "stage1": Recipe(2e-3, batch_size=128, epochs=1, checkpointing=True, compact=True, length=768),
    "stage2": Recipe(2e-5, batch_size=32, epochs=3, checkpointing=True, compact=True, length=2048),
}


# For a language model that can talk already. Its projection learns at a tenth of the toy's rate. In stage 2 the loss of
# held-out rows was 0.043 with 2e-3 and 0.048 with 1e-3, after 588 steps.
TALKER = {
    "stage1": Recipe(5e-4, batch_size=32, epochs=1, warmup=0.1, accumulation=4),
    "stage2": Recipe(2e-3, batch_size=32, epochs=1, accumulation=4, lora=32),
}


def in_pieces(stage1: int, stage2: int, lora: int = 0) -> dict[str, Recipe]:
    """The paper's recipes with so many micro-batches in each stage that one fits a card of 24 GB."""
    return {
        "stage1": replace(PAPER["stage1"], accumulation=stage1),
        "stage2": replace(PAPER["stage2"], accumulation=stage2, lora=lora),
    }


# Sizes from the config.json files of these checkpoints. The decoders' vocabularies have 64 more rows: <image> and a
# padding token, rounded up to a multiple of 64.
CLIP_L = VisionConfig(1024, 4096, 24, 16, image_size=224, patch_size=14, projection_dim=768)
CLIP_L_336, CLIP_L_336_ID = replace(CLIP_L, image_size=336), "openai/clip-vit-large-patch14-336"
TINYLLAMA = DecoderConfig(
    32064, 2048, 5632, 22, 32, 4, 64, max_position_embeddings=2048, rope_theta=10000.0, tie_word_embeddings=False
)
VICUNA_7B = replace(LLAMA, vocab_size=32064)
VICUNA_7B_LONG = replace(VICUNA_7B, max_position_embeddings=4096)
SMOLLM2 = DecoderConfig(
    49216, 576, 1536, 30, 9, 3, 64, max_position_embeddings=8192, rope_theta=100000.0, tie_word_embeddings=True
)
CLIP_B_32 = VisionConfig(768, 3072, 12, 12, image_size=224, patch_size=32, projection_dim=512)

PRESETS = {
    "toy": Preset(TOY),
    "smol": Preset(TALKER, str(PRETRAINED / "vision"), "smollm2", VisionConfig(), SMOLLM2, "mlp", picture_book=True),
    "laptop": Preset(
        TALKER, "openai/clip-vit-base-patch32", "HuggingFaceTB/SmolLM2-135M-Instruct", CLIP_B_32, SMOLLM2, "mlp"
    ),
    "paper": Preset(PAPER, "openai/clip-vit-large-patch14", "lmsys/vicuna-7b-v1.3", CLIP_L, VICUNA_7B),
    "consumer": Preset(in_pieces(8, 32), CLIP_L_336_ID, "TinyLlama/TinyLlama-1.1B-Chat-v1.0", CLIP_L_336, TINYLLAMA),
    # Rank 128 and alpha 256, as in the authors' scripts/v1_5/finetune_lora.sh. The learning rate is the paper's, as in
    # their scripts/finetune_lora.sh; the v1_5 script has 2e-4.
    "llava-7b": Preset(in_pieces(16, 32, 128), CLIP_L_336_ID, "lmsys/vicuna-7b-v1.5", CLIP_L_336, VICUNA_7B_LONG),
}
