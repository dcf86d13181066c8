"""Talking with a model about a picture: earlier turns and a question in, an answer out, piece by piece."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral

import torch
from torch import Tensor, nn

from minillava.errors import UserError
from minillava.inputs.tokenizer import IMAGE
from minillava.language_model import TextModel
from minillava.model import fast, generation
from minillava.model.decoder import Decoder
from minillava.model.llava import History, Llava, Picture

COLDEST = 0.001  # temperature; logits divided by much smaller numbers are no longer finite


class TooLong(UserError):
    """A conversation is longer than the model can read."""


def stream(
    model: Llava | TextModel,
    image: Picture | None,
    prompt: str,
    history: History | None = None,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
) -> Iterator[str]:
    """Answer ``prompt`` about a picture (an image, a path, the result of encode_image(), or None), piece by piece.

    ``history`` holds the earlier (question, answer) pairs about the same picture, oldest first. Raises UserError for a
    question that contains <image>, for options that check_options() refuses, and for logits that are not finite;
    TooLong if the conversation with ``max_new_tokens`` more exceeds the model's context.
    """
    check_options(max_new_tokens, temperature, top_p)
    if model.processor is None:
        raise ValueError("a model without a processor cannot chat: load() a folder that holds a tokenizer")
    ids, _ = model.processor.encode(make_turns(prompt, history or [], image is not None))
    limit = model.language_model.config.max_position_embeddings
    if max_new_tokens > limit:
        raise UserError(f"max_new_tokens {max_new_tokens:,}: the model reads at most {limit:,} tokens")
    if len(ids) + max_new_tokens > limit:
        more = f"{len(ids):,} tokens and an answer of up to {max_new_tokens:,} (max_new_tokens)"
        raise TooLong(f"the conversation has {more}; the model reads at most {limit:,}")
    if image is not None and not isinstance(image, Tensor):
        image = model.encode_image(image)
    with torch.inference_mode():
        embeddings = model.embed(torch.tensor([ids], device=model.device), visual=image)  # (1, T, hidden)
    steps = fast.generate_ids(model.language_model, embeddings, None, max_new_tokens, temperature, top_p)
    processor = model.processor
    pieces = generation.stream_text(steps, processor.tokenizer, processor.template.stop, processor.stop_ids)
    first = True
    with finite_logits(model.language_model):
        for piece in pieces:
            piece = piece.lstrip() if first else piece
            first = first and not piece
            if piece:
                yield piece


@contextmanager
def finite_logits(decoder: Decoder) -> Iterator[None]:
    """Inside this context, ``decoder`` raises UserError if the logits after a prompt are not finite: weights that are
    finite may be too large, or the dtype's range too small."""

    def check(head: nn.Module, inputs: tuple[Tensor, ...], logits: Tensor) -> None:
        if logits.is_cuda and torch.cuda.is_current_stream_capturing():  # a step that is recorded: nothing is computed
            return
        if not logits.isfinite().all():
            raise UserError("the model's logits are not finite; with --dtype float16, another dtype may help")

    hook = decoder.lm_head.register_forward_hook(check)
    try:
        yield
    finally:
        hook.remove()


def check_options(max_new_tokens: int, temperature: float, top_p: float = 1.0) -> None:
    """Raise UserError, naming it, for an option of stream() that has no meaning."""
    if not isinstance(max_new_tokens, Integral) or max_new_tokens < 1:
        raise UserError(f"max_new_tokens {max_new_tokens}: must be a whole number of at least 1")
    if not (temperature == 0 or COLDEST <= temperature < math.inf):
        raise UserError(f"temperature {temperature}: must be 0 (greedy) or a number of at least {COLDEST}")
    if not 0 < top_p <= 1:
        raise UserError(f"top_p {top_p}: must be above 0 and at most 1")


def make_turns(prompt: str, history: History, has_image: bool) -> list[dict]:
    """The turns of a LLaVA JSON row that ends with ``prompt``. Raises UserError if a question contains <image>."""
    turns = []
    for question, answer in [*history, (prompt, None)]:
        if IMAGE in question:
            raise UserError(f"a question must not contain {IMAGE}: it is added automatically")
        turns.append({"from": "human", "value": question})
        if answer is not None:
            turns.append({"from": "gpt", "value": answer})
    if has_image:
        turns[0]["value"] = f"{IMAGE}\n{turns[0]['value']}"
    return turns
