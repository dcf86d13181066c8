"""Comparisons whose failure is a sentence for the one who writes the body, without dumps of tensors."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def same(got: Tensor, want: Tensor, sentence: str, rtol: float = 1e-5, atol: float = 1e-5) -> None:
    """Raise AssertionError with ``sentence`` and how ``got`` differs from ``want``: in kind, shape, dtype or numbers.

    ``sentence`` says what is right ("the class token is first"), so it reads well as the reason of a failure. A NaN
    differs from everything.
    """
    __tracebackhide__ = True
    if not isinstance(got, Tensor):
        raise AssertionError(f"{sentence} (yours is a {type(got).__name__}, not a tensor)")
    if got.shape != want.shape:
        raise AssertionError(f"{sentence} (your shape is {tuple(got.shape)}, it should be {tuple(want.shape)})")
    if got.dtype != want.dtype:
        raise AssertionError(f"{sentence} (yours is {got.dtype}, it should be {want.dtype})")
    difference = (got.double() - want.double()).abs()
    wrong = ~(difference <= atol + rtol * want.double().abs())
    if wrong.any():
        worst = torch.where(wrong, difference.nan_to_num(torch.inf), -1).argmax()
        place = tuple(index.item() for index in torch.unravel_index(worst, got.shape))
        yours, right = got[place].item(), want[place].item()
        digits = next((n for n in (4, 6, 9) if f"{yours:.{n}g}" != f"{right:.{n}g}"), 9)  # as many as show a difference
        numbers = f"yours is {yours:.{digits}g}, it should be {right:.{digits}g}"
        if place:
            numbers = f"{wrong.sum()} of {wrong.numel()} numbers differ; at {list(place)} {numbers}"
        raise AssertionError(f"{sentence} ({numbers})")


@contextmanager
def refused(error: type[Exception], sentence: str, *words: str) -> Iterator[None]:
    """Raise AssertionError with ``sentence`` unless the block raises ``error``, with all ``words`` in its message."""
    __tracebackhide__ = True
    try:
        yield
    except error as raised:
        if missing := [word for word in words if word not in str(raised)]:
            raise AssertionError(f"{sentence} (your message lacks {missing[0]!r}: {raised})") from None
    else:
        raise AssertionError(f"{sentence} (yours raises nothing)")
