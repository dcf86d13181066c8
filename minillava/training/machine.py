"""What makes training faster on the machine at hand: dtype, compiled blocks, workers, and keeping freed memory."""

import ctypes
import os

import torch
from torch import nn

from minillava.model import decoder, vision

LONG_RUN = 500  # steps


def has_fast_bfloat16(device: str | torch.device) -> bool:
    """Whether ``device`` is a GPU that supports bfloat16, or a CPU with instructions for it (AVX512-BF16 or AMX).

    On such a CPU bfloat16 is two to four times as fast as float32.
    """
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return kind == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def fastest_dtype(device: str) -> torch.dtype:
    """The dtype for matrix products: bfloat16 where it is fast, float16 on other CUDA GPUs, else float32."""
    if has_fast_bfloat16(device):
        return torch.bfloat16
    return torch.float16 if torch.device(device).type == "cuda" else torch.float32


def compiling_pays(device: str, steps: int) -> bool:
    """Whether a run of ``steps`` saves more time with compiled blocks than the compiler takes: on a GPU, and in a long
    run on a CPU with AVX-512. With AVX2, matrix products take most of the time, which compiling does not change."""
    if torch.device(device).type == "cuda":
        return True
    return device == "cpu" and steps >= LONG_RUN and torch.backends.cpu.get_cpu_capability() == "AVX512"


def compile_blocks(model: nn.Module, compile: bool = True) -> None:
    """Compile the blocks of the towers and of the decoder, for any batch size and length; or undo that.

    A block by itself compiles faster than the whole model, and all blocks of a kind share the result.
    """
    for part in model.modules():
        if isinstance(part, (decoder.Block, vision.Block)):
            if compile:
                part.compile(dynamic=True)
            else:
                part._compiled_call_impl = None


def default_workers(device: str, processes: int) -> int:
    """Worker processes that read pictures and rows while a GPU computes: the cores that each process has, at most 8.
    On a CPU none, since they would only take turns with the training itself."""
    if torch.device(device).type != "cuda":
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, max(1, cores // processes - 1))


def keep_memory() -> None:
    """Tell glibc to keep freed memory; without glibc, do nothing.

    Returning memory to the system and requesting it again, page by page, slows every step on a CPU.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # not Linux, or another C library
        return
    mallopt(-4, 0)  # M_MMAP_MAX: never map a large block separately
    mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: return memory only above 2 GiB
