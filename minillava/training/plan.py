"""Computes how much memory a training takes, from sizes only, before anything is allocated: ``train.py --plan``.

The weights and the optimizer state are held all the time. The peak adds the largest of these to them:

- the vision tower's forward pass: one of its blocks, and the gradients of earlier micro-batches if there are any;
- the start of the backward pass: what autograd saved in the forward pass, and the logits or the last block's
  intermediate results; and the gradients of earlier micro-batches;
- the end of the backward pass: all gradients, and with checkpointing the one block that is recomputed;
- the optimizer step: all gradients, and the step's temporary tensors.

What autograd saves depends on what learns: a trainable matrix needs its input in the backward pass, a frozen one does
not.
"""

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import nn

from minillava.config import LlavaConfig
from minillava.formats.tensors import Unfilled
from minillava.model.llava import Llava
from minillava.training.loop import prepare
from minillava.training.optimizers import Muon, build_optimizers
from minillava.training.recipes import Recipe
from minillava.training.tasks import choose_what_learns

GIB = 2**30
LORA_RANK = 128  # proposed if nothing else fits
# Memory beyond the tensors. On a GPU: the CUDA context, the libraries' workspaces and gaps between allocated blocks, by
# a rule of thumb. On a CPU: PyTorch's libraries, and gaps, because the loop has glibc keep freed memory
# (machine.keep_memory). The gaps were measured as a third to two thirds of the memory that a step allocates and frees.
GPU_RESERVE = GIB
CPU_RESERVE, CPU_GAPS = GIB // 10, 0.5


class Setting:
    """What is trained, how and on what: the longest rows, with one picture each and a loss on every other token.

    ``model`` is prepared as in the loop, but on the meta device, without memory: it gives the parameters' sizes and
    dtypes, and which of them learn.
    """

    def __init__(self, config: LlavaConfig, stage: int, recipe: Recipe, bfloat16: bool, gpu: bool):
        self.config, self.stage, self.recipe, self.bfloat16, self.gpu = config, stage, recipe, bfloat16, gpu
        with torch.device("meta"), Unfilled():
            self.model = Llava(config)
            choose_what_learns(self.model, stage, recipe.lora)
        prepare(self.model, torch.bfloat16 if recipe.compact and bfloat16 else None, recipe.checkpointing)
        self.whole = stage == 2 and not recipe.lora  # whether the decoder's own weights learn
        self.rows = math.ceil(recipe.batch_size / recipe.accumulation)  # in a micro-batch
        self.length = max(recipe.length, config.num_image_tokens + 1)
        self.labels = self.length - config.num_image_tokens
        self.product = 2 if bfloat16 else 4  # bytes per number in the inputs and outputs of matrix products
        # Whether attention runs in a fused kernel: see attend(). On a GPU, grouped-query attention needs bfloat16.
        alike = config.decoder.num_key_value_heads == config.decoder.num_attention_heads
        self.fused = bfloat16 or alike if gpu else not bfloat16


def plan(s: Setting) -> dict[str, int]:
    """Bytes by use; "parameters" and "learning" are counts. "peak" is the most that is held at once."""
    c, v, recipe = s.config.decoder, s.config.vision, s.recipe
    learning = {name: p for name, p in s.model.named_parameters() if p.requires_grad}
    weights = sum(p.nbytes for p in s.model.parameters())
    gradients = sum(p.nbytes for p in learning.values())
    # AdamW keeps running means of the gradients and of their squares, Muon only the former.
    optimizer = sum(
        p.nbytes * (1 if isinstance(o, Muon) else 2)
        for o in build_optimizers(learning, recipe)
        for p in o.param_groups[0]["params"]
    )

    kept = kept_bytes(s)
    again = block_bytes(s) if recipe.checkpointing else 0  # one block is recomputed at a time
    # Three float32 tables: log-softmax, its gradient and that of the logits.
    logits = 12 * s.rows * s.labels * c.vocab_size
    # In addition to what autograd saves, a block's backward pass needs two score tables, or SwiGLU's gradients.
    scores = 0 if s.fused else 2 * c.num_attention_heads * s.length
    block = s.rows * s.length * max(scores, 3 * c.intermediate_size) * s.product
    # One block of the vision tower while it runs; the tower is frozen, so autograd saves nothing.
    patches = v.num_patches + 1
    scores = 0 if s.gpu or not s.bfloat16 else 3 * v.num_attention_heads * patches
    vision = s.rows * patches * (max(scores, 3 * v.intermediate_size) * s.product + 16 * v.hidden_size)
    earlier = gradients if recipe.accumulation > 1 else 0
    # On a CPU AdamW needs two temporary tensors of a parameter's size, one parameter at a time; fused, on a GPU, none.
    step = 0 if s.gpu else 2 * max(p.nbytes for p in learning.values())
    passing = max(earlier + vision, earlier + kept + max(logits, again + block), gradients + max(again, step))
    # The pictures, one per row: those of a micro-batch on a GPU, of the whole batch on a CPU.
    pixels = 4 * s.rows * (1 if s.gpu else recipe.accumulation) * v.num_channels * v.image_size**2
    reserve = GPU_RESERVE if s.gpu else CPU_RESERVE + round(CPU_GAPS * passing)
    return {
        "parameters": sum(p.numel() for p in s.model.parameters()),
        "learning": sum(p.numel() for p in learning.values()),
        "weights": weights,
        "gradients": gradients,
        "optimizer": optimizer,
        "activations": kept + again,
        "logits": logits,
        "reserve": reserve,
        "peak": weights + optimizer + pixels + passing + reserve,
    }


def kept_bytes(s: Setting) -> int:
    """Bytes that autograd saves in a forward pass, without the loss."""
    c, visual = s.config.decoder, s.rows * s.config.num_image_tokens
    stream = s.rows * s.length * c.hidden_size * s.model.language_model.embed_tokens.weight.itemsize
    blocks = c.num_hidden_layers * (stream if s.recipe.checkpointing else block_bytes(s))
    # The inputs of the projection's matrices and of GELU. The first matrix is not saved: its input is frozen, so no
    # gradient is computed for it.
    projection = visual * s.config.vision.hidden_size * s.product
    if s.config.projector == "mlp":
        projection += 2 * visual * c.hidden_size * s.product + copy_bytes(s, s.model.multi_modal_projector.linear_2)
    head = s.rows * s.labels * c.hidden_size * s.product if s.whole else 0  # the head's input where there is a label
    last = s.rows * s.length * norm_bytes(s) + head + copy_bytes(s, s.model.language_model.lm_head)
    return blocks + projection + last


def block_bytes(s: Setting) -> int:
    """Bytes that autograd saves in one decoder block."""
    c, heads = s.config.decoder, s.config.decoder.num_attention_heads
    width = heads * c.head_dim
    numbers = width + 2 * c.num_key_value_heads * c.head_dim  # queries, keys and values
    # The attention weights; a fused kernel recomputes them from its output and one float32 per head.
    numbers += width if s.fused else heads * s.length
    numbers += 3 * c.intermediate_size  # gate, silu(gate), up
    if s.stage == 2:
        # The inputs of the matrices, because these or their LoRA matrices learn. q, k and v share one input, gate and
        # up another; if it is not in the products' dtype, each of the five saves its own copy. Then the inputs of down,
        # of every LoRA B, and of o unless a fused kernel has saved it.
        alike = s.model.language_model.embed_tokens.weight.itemsize == s.product
        numbers += (2 if alike else 5) * c.hidden_size + c.intermediate_size + 7 * s.recipe.lora
        numbers += 0 if s.fused else width
    token = numbers * s.product + (4 * heads if s.fused else 0) + 2 * norm_bytes(s)
    return s.rows * s.length * token + copy_bytes(s, s.model.language_model.layers[0])


def norm_bytes(s: Setting) -> int:
    """Bytes per token that autograd saves in a norm: its input in float32 and 1 / rms. If the norm's weight learns, the
    normalised input too, except on a GPU, whose kernel recomputes it."""
    size = 4 * s.config.decoder.hidden_size
    return size + 4 + (size if s.whole and not s.gpu else 0)


def copy_bytes(s: Setting, part: nn.Module) -> int:
    """Bytes of the bfloat16 copies of ``part``'s float32 matrices, which the backward pass needs; 0 in float32."""
    if not s.bfloat16:
        return 0
    return sum(2 * p.numel() for p in part.parameters() if p.ndim == 2 and p.dtype == torch.float32)


def pieces(recipe: Recipe) -> list[int]:
    """The recipe's number of micro-batches, and its doubles up to one row in each."""
    size = recipe.batch_size
    return sorted({min(recipe.accumulation * 2**n, size) for n in range(size.bit_length() + 1)})


def settings(recipe: Recipe, stage: int) -> Iterator[Recipe]:
    """The recipe itself, then recipes ever further from it: more micro-batches, then checkpointing, which both cost
    only time; and last LoRA, which changes what learns."""
    for lora in (recipe.lora, LORA_RANK) if stage == 2 and not recipe.lora else (recipe.lora,):
        for checkpointing in sorted({recipe.checkpointing, True}):
            for accumulation in pieces(recipe):
                yield replace(recipe, lora=lora, checkpointing=checkpointing, accumulation=accumulation)


def fill(s: Setting, memory: float) -> Recipe | None:
    """The recipe of ``s`` in the fewest micro-batches that fit in ``memory`` GiB; with activation checkpointing, which
    costs a third more arithmetic, only if nothing fits without it. None if nothing fits at all."""
    for checkpointing in (False, True):
        for accumulation in pieces(replace(s.recipe, accumulation=1)):
            recipe = replace(s.recipe, checkpointing=checkpointing, accumulation=accumulation)
            if plan(Setting(s.config, s.stage, recipe, s.bfloat16, s.gpu))["peak"] <= memory * GIB:
                return recipe
    return None


def in_words(recipe: Recipe) -> str:
    """How a batch is computed: "32 = 8 x 4 rows, activation checkpointing on"."""
    rows = math.ceil(recipe.batch_size / recipe.accumulation)
    switch = "on" if recipe.checkpointing else "off"
    return f"batch {recipe.batch_size} = {recipe.accumulation} x {rows} rows, activation checkpointing {switch}"


def describe(s: Setting, memory: float) -> str:
    """The plan as a table, and whether it fits in ``memory`` GiB; if not, the nearest setting that does."""
    p, recipe = plan(s), s.recipe
    learns = "projection, decoder" if s.whole else f"projection, LoRA {recipe.lora}" if recipe.lora else "projection"
    lines = [
        f"stage {s.stage}: {p['parameters'] / 1e6:,.1f} M parameters, of which {p['learning'] / 1e6:,.1f} M learn "
        f"({learns})",
        f"batch {recipe.batch_size} = {recipe.accumulation} x {s.rows} rows of {s.length} tokens, "
        f"{s.config.num_image_tokens} of them visual, {s.labels} with loss",
        f"{'bfloat16' if s.bfloat16 else 'float32'} matrix products, activation checkpointing "
        f"{'on' if recipe.checkpointing else 'off'}, on a {'GPU' if s.gpu else 'CPU'}",
        "",
        *(f"{name:<12}{p[name] / GIB:>9.2f} GiB" for name in list(p)[2:]),  # all but the counts
        "",
        f"{'fits' if p['peak'] <= memory * GIB else 'does not fit'} in {memory:g} GiB",
    ]
    if p["peak"] > memory * GIB:
        lines[-1] += nearest(s, memory)
    elif s.gpu and (chosen := fill(s, memory)) != recipe:
        lines[-1] += f"; without --accumulation and --checkpointing, training chooses {in_words(chosen)}"
    return "\n".join(lines)


def nearest(s: Setting, memory: float) -> str:
    """The end of that line: the arguments to add so that the training fits in ``memory`` GiB."""
    for recipe in settings(s.recipe, s.stage):
        peak = plan(Setting(s.config, s.stage, recipe, s.bfloat16, s.gpu))["peak"] / GIB
        if peak <= memory:
            flags = f" --accumulation {recipe.accumulation}" if recipe.accumulation != s.recipe.accumulation else ""
            flags += " --checkpointing" if recipe.checkpointing != s.recipe.checkpointing else ""
            flags += f" --lora {recipe.lora}" if recipe.lora != s.recipe.lora else ""
            return f"; the nearest setting that does:{flags} ({peak:.2f} GiB)"
    return ", and neither does any other setting; use a smaller decoder or several GPUs"
