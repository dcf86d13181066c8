"""How much memory a training takes, reckoned before any of it is there: ``python train.py --plan``.

Held all the time are the weights and the optimiser's state. What else is held at once is the largest of

- where the way back begins: what autograd kept of the forward pass, and the logits or the last block's intermediate
  results; with the gradients of earlier micro-batches, if a batch is cut into several;
- where it ends: all gradients, and with checkpointing the one block that is computed again;
- in the optimiser's step: all gradients, and what the step needs besides;
- before all that, one block of the vision tower.

What is kept of a forward pass depends on what learns: a matrix that learns needs its input again, a frozen one not.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from minillava.config import LlavaConfig, VisionConfig
from minillava.formats.tensors import Unfilled
from minillava.model.llava import Llava
from minillava.training.loop import prepare
from minillava.training.optimizers import build_optimizers
from minillava.training.recipes import Recipe
from minillava.training.tasks import choose_what_learns

GIB = 2**30
LORA_RANK = 128  # proposed where nothing else fits
# What the process holds beyond its tensors. On a GPU, CUDA itself, its libraries' work space and gaps between blocks of
# memory: a rule of thumb. On a CPU, PyTorch's libraries, and gaps: the loop has glibc keep what is freed
# (training.keep_memory), and as measured they come to a third up to two thirds of what comes and goes.
GPU_RESERVE = GIB
CPU_RESERVE, CPU_GAPS = GIB // 10, 0.5


@dataclass(frozen=True)
class Setting:
    """What is trained, how, and on what: ``rows`` rows of ``length`` tokens, ``labels`` of which bear loss."""

    config: LlavaConfig
    stage: int
    recipe: Recipe
    rows: int
    length: int
    labels: int
    bfloat16: bool
    gpu: bool

    @property
    def product(self) -> int:
        """Bytes of a number that a matrix product reads or gives."""
        return 2 if self.bfloat16 else 4

    @property
    def frozen(self) -> int:
        """Bytes of a number in a frozen weight."""
        return 2 if self.recipe.compact and self.bfloat16 else 4

    @property
    def whole(self) -> bool:
        """Whether the decoder's own weights learn."""
        return self.stage == 2 and not self.recipe.lora

    @property
    def fused(self) -> bool:
        """Whether attention runs in a fused kernel: attend() says when. On a GPU shared key heads need bfloat16."""
        c = self.config.decoder
        return self.bfloat16 or c.num_key_value_heads == c.num_attention_heads if self.gpu else not self.bfloat16

    @property
    def stream(self) -> int:
        """Bytes of a number between the decoder's blocks: those of the word embeddings, where it begins."""
        return 4 if self.whole else self.frozen


@dataclass(frozen=True)
class Plan:
    """Bytes by their use; ``parameters`` and ``learning`` are counts. Not all is held at once: ``peak`` is."""

    parameters: int
    learning: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    reserve: int
    peak: int


def plan(setting: Setting) -> Plan:
    s, config = setting, setting.config
    with torch.device("meta"), Unfilled():
        model = Llava(config)
        choose_what_learns(model, s.stage, s.recipe.lora)
    prepare(model, s.recipe.compact and s.bfloat16, s.recipe.checkpointing)
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    numbers = sum(p.numel() for p in learning.values())
    weights = sum(p.numel() * p.itemsize for p in model.parameters())
    gradients = 4 * numbers
    # AdamW keeps the mean of the gradients and of their squares; Muon the mean alone.
    optimizer = sum(
        p.numel() * (4 if isinstance(o, torch.optim.Muon) else 8)
        for o in build_optimizers(learning, s.recipe)
        for group in o.param_groups
        for p in group["params"]
    )

    kept = kept_bytes(s)
    again = block_bytes(s) if s.recipe.checkpointing else 0  # one block at a time
    # Three tables in float32: the logarithms of softmax, their gradients and those of the logits.
    logits = 12 * s.rows * s.labels * config.decoder.vocab_size
    earlier = gradients if s.recipe.accumulation > 1 else 0
    # PyTorch's AdamW takes two results of a parameter's size besides, one parameter at a time; on a GPU none.
    step = 0 if s.gpu else 8 * max(p.numel() for p in learning.values())
    moments = (
        earlier + vision_work(s),
        earlier + kept + max(logits, again + block_work(s)),
        gradients + max(again, step),
    )
    reserve = GPU_RESERVE if s.gpu else CPU_RESERVE + round(CPU_GAPS * max(moments))
    return Plan(
        sum(p.numel() for p in model.parameters()),
        numbers,
        weights,
        gradients,
        optimizer,
        kept + again,
        logits,
        reserve,
        weights + optimizer + pixel_bytes(s) + max(moments) + reserve,
    )


def kept_bytes(s: Setting) -> int:
    """Bytes that autograd keeps of a forward pass, the loss left out."""
    block = s.rows * s.length * s.config.decoder.hidden_size * s.stream if s.recipe.checkpointing else block_bytes(s)
    return s.config.decoder.num_hidden_layers * block + projection_bytes(s) + end_bytes(s)


def norm_bytes(s: Setting) -> int:
    """Bytes that autograd keeps of a norm for each token: its input in float32 and 1 / rms; where the norm's weight
    learns, the normalised input too, which a GPU's kernel computes again instead."""
    size = 4 * s.config.decoder.hidden_size
    return size + 4 + (size if s.whole and not s.gpu else 0)


def block_bytes(s: Setting) -> int:
    """Bytes that autograd keeps of one decoder block."""
    c = s.config.decoder
    hidden, inner, heads = c.hidden_size, c.intermediate_size, c.num_attention_heads
    width = heads * c.head_dim
    # Queries, keys and values; then softmax's results over the row, or from a fused kernel, which computes them again,
    # the output and one number a head.
    attention = (width + 2 * c.num_key_value_heads * c.head_dim) * s.product
    attention += width * s.product + 4 * heads if s.fused else heads * s.length * s.product
    mlp = 3 * inner * s.product  # gate, silu(gate), up
    # What the matrices read, if they or low-rank ones beside them learn. Where it is not in the products' dtype each
    # makes a copy of its own.
    read = 0
    if s.stage == 2:
        copies = 1 if s.stream == s.product else 3
        # By q, k and v; by gate and up, and by down; by o, from a fused kernel the output, kept already; by every B.
        read = (copies + min(copies, 2)) * hidden + inner + (0 if s.fused else width) + 7 * s.recipe.lora
    return s.rows * s.length * (2 * norm_bytes(s) + attention + mlp + read * s.product) + block_copies(s)


def block_copies(s: Setting) -> int:
    """Bytes of the bfloat16 copies of a block's float32 matrices: the way back reads the matrices again."""
    if not s.bfloat16:
        return 0
    c = s.config.decoder
    width, key_width = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    attention = [(c.hidden_size, width), (c.hidden_size, key_width), (c.hidden_size, key_width), (width, c.hidden_size)]
    matrices = [*attention, *[(c.hidden_size, c.intermediate_size)] * 3]
    numbers = sum(a * b for a, b in matrices) if s.stream == 4 else 0
    if s.stage == 2:
        numbers += s.recipe.lora * sum(a + b for a, b in matrices)
    return 2 * numbers


def projection_bytes(s: Setting) -> int:
    """Bytes that autograd keeps of the projection: what each matrix reads, and GELU. The first matrix is not read
    again, since the features before it are frozen."""
    visual = s.rows * s.config.num_image_tokens
    from_size, to_size = s.config.vision.hidden_size, s.config.decoder.hidden_size
    if s.config.projector == "linear":
        return visual * from_size * s.product
    copy = 2 * to_size * to_size if s.bfloat16 else 0
    return visual * (from_size + 2 * to_size) * s.product + copy


def end_bytes(s: Setting) -> int:
    """Bytes that autograd keeps of the last norm, and of what the head reads before labels."""
    c = s.config.decoder
    norm = s.rows * s.length * norm_bytes(s)
    head = s.rows * s.labels * c.hidden_size * s.product if s.whole else 0
    copy = 2 * c.vocab_size * c.hidden_size if s.bfloat16 and s.stream == 4 else 0
    return norm + head + copy


def block_work(s: Setting) -> int:
    """Bytes that a block needs besides what it keeps: two more tables of scores, or SwiGLU's gradients."""
    c = s.config.decoder
    scores = 0 if s.fused else 2 * c.num_attention_heads * s.length**2
    return s.rows * max(scores, 3 * c.intermediate_size * s.length) * s.product


def vision_work(s: Setting) -> int:
    """Bytes that a block of the vision tower needs while it runs; it is frozen, so nothing is kept."""
    v: VisionConfig = s.config.vision
    patches = v.num_patches + 1
    scores = 0 if s.gpu or not s.bfloat16 else 3 * v.num_attention_heads * patches
    return s.rows * patches * (max(scores, 3 * v.intermediate_size) * s.product + 4 * v.hidden_size * 4)


def pixel_bytes(s: Setting) -> int:
    """Bytes of the pictures, one a row: on a GPU a micro-batch's, on a CPU the whole batch's."""
    v = s.config.vision
    return s.rows * (1 if s.gpu else s.recipe.accumulation) * v.num_channels * v.image_size**2 * 4


def settings(recipe: Recipe, stage: int) -> Iterator[Recipe]:
    """The recipe as it is, then ever further from it: smaller pieces of the batch, then fewer activations kept, which
    take time alone; and last LoRA, which learns something else."""
    for lora in (recipe.lora, LORA_RANK) if stage == 2 and not recipe.lora else (recipe.lora,):
        for checkpointing in sorted({recipe.checkpointing, True}):
            accumulation = min(recipe.accumulation, recipe.batch_size)
            while accumulation:
                yield replace(recipe, lora=lora, checkpointing=checkpointing, accumulation=accumulation)
                accumulation = 0 if accumulation == recipe.batch_size else min(2 * accumulation, recipe.batch_size)


def set_up(config: LlavaConfig, stage: int, recipe: Recipe, bfloat16: bool, gpu: bool) -> Setting:
    """A micro-batch of the longest rows, a picture in each, and all that is no picture bearing loss."""
    length = max(recipe.length, config.num_image_tokens + 1)
    rows = math.ceil(recipe.batch_size / recipe.accumulation)
    return Setting(config, stage, recipe, rows, length, length - config.num_image_tokens, bfloat16, gpu)


def describe(config: LlavaConfig, stage: int, recipe: Recipe, bfloat16: bool, gpu: bool, memory: float) -> str:
    """The plan as a table, and whether it fits in ``memory`` GiB; if not, the nearest setting that does."""
    s = set_up(config, stage, recipe, bfloat16, gpu)
    p = plan(s)
    learns = "projection" if stage == 1 else f"projection, LoRA {recipe.lora}" if recipe.lora else "projection, decoder"
    lines = [
        f"stage {stage}: {p.parameters / 1e6:,.1f} M parameters, of which {p.learning / 1e6:,.1f} M learn ({learns})",
        f"batch {recipe.batch_size} = {recipe.accumulation} x {s.rows} rows of {s.length} tokens, "
        f"{config.num_image_tokens} of them visual, {s.labels} bearing loss",
        f"{'bfloat16' if bfloat16 else 'float32'} products, activation checkpointing "
        f"{'on' if recipe.checkpointing else 'off'}, on a {'GPU' if gpu else 'CPU'}",
        "",
    ]
    for name in ("weights", "gradients", "optimizer", "activations", "logits", "reserve", "peak"):
        lines.append(f"{name:<12}{getattr(p, name) / GIB:>9.2f} GiB")
    fits = p.peak <= memory * GIB
    lines += ["", f"{'fits' if fits else 'does not fit'} in {memory:g} GiB"]
    if not fits:
        found = next((r for r in settings(recipe, stage) if _peak(config, stage, r, bfloat16, gpu) <= memory), None)
        if found is None:
            lines[-1] += ", nor does anything that can be set here: a smaller decoder does, or several cards"
        else:
            lines[-1] += f"; the nearest that does:{_flags(recipe, found)}"
            lines[-1] += f" ({_peak(config, stage, found, bfloat16, gpu):.2f} GiB)"
    return "\n".join(lines)


def _peak(config: LlavaConfig, stage: int, recipe: Recipe, bfloat16: bool, gpu: bool) -> float:
    return plan(set_up(config, stage, recipe, bfloat16, gpu)).peak / GIB


def _flags(asked: Recipe, found: Recipe) -> str:
    """What the command line changes from one recipe to the other."""
    flags = f" --accumulation {found.accumulation}" if found.accumulation != asked.accumulation else ""
    flags += " --checkpointing" if found.checkpointing != asked.checkpointing else ""
    return flags + (f" --lora {found.lora}" if found.lora != asked.lora else "")
