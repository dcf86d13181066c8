"""Attention, compared with a sum over the keys for each query and with PyTorch's; the mask, entry by entry."""

import math

import pytest
import torch
import torch.nn.functional as F

from minillava.model.attention import CLOSED, attend, causal_mask


@pytest.mark.parametrize("length, past", [(5, 0), (1, 0), (4, 3), (1, 6)])
def test_causal_mask_is_closed_to_what_comes_later(length, past):
    mask = causal_mask(length, past)
    assert mask.shape == (length, past + length)
    for i in range(length):
        for j in range(past + length):
            assert mask[i, j] == (CLOSED if j > past + i else 0)


@pytest.mark.parametrize("shared", [1, 2, 4])
def test_each_query_takes_the_values_in_proportion_to_its_scores(shared):
    """``shared`` consecutive query heads read one key head."""
    q, k, v = torch.randn(2, 4, 4, 6), *torch.randn(2, 2, 4 // shared, 5, 6)
    sees = torch.rand(2, 1, 4, 5) < 0.6
    sees[..., 0] = True
    out = attend(q, k, v, torch.where(sees, 0.0, CLOSED))
    for b in range(2):
        for h in range(4):
            for t in range(4):
                seen = [s for s in range(5) if sees[b, 0, t, s]]
                keys, values = k[b, h // shared, seen], v[b, h // shared, seen]
                weights = [math.exp((q[b, h, t] * key).sum().item() / math.sqrt(6)) for key in keys]
                expected = sum(w / sum(weights) * value for w, value in zip(weights, values))
                torch.testing.assert_close(out[b, h, t], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_causal_is_the_causal_mask(dtype):
    q, k, v = torch.randn(2, 4, 5, 6, dtype=dtype), *torch.randn(2, 2, 2, 5, 6, dtype=dtype)
    torch.testing.assert_close(attend(q, k, v, causal=True), attend(q, k, v, causal_mask(5)))


@pytest.mark.parametrize("shared", [1, 2, 4])
def test_the_fused_kernel_is_the_formula_written_out(shared):
    """float32 uses the fused kernel, float64 the formula; outputs and gradients agree."""
    q, k, v = torch.randn(2, 4, 5, 6), *torch.randn(2, 2, 4 // shared, 5, 6)
    grads = []
    for dtype in (torch.float32, torch.float64):
        inputs = [x.detach().to(dtype).requires_grad_() for x in (q, k, v)]
        out = attend(*inputs, causal_mask(5))
        out.square().sum().backward()
        grads.append([out.float(), *[x.grad.float() for x in inputs]])
    for fused, written in zip(*grads):
        torch.testing.assert_close(fused, written, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_it_is_pytorchs_attention_with_and_without_a_mask(dtype):
    q, k, v = (torch.randn(2, 3, length, 8, dtype=dtype) for length in (4, 7, 7))
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0, "atol": 0.02}
    for mask in (None, causal_mask(4, 3)):
        expected = F.scaled_dot_product_attention(q, k, v, None if mask is None else mask.to(dtype))
        out = attend(q, k, v, mask)
        assert out.dtype == dtype
        torch.testing.assert_close(out, expected, **tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_query_that_may_see_nothing_gives_numbers(dtype):
    q, k, v = (torch.randn(1, 2, 3, 8, dtype=dtype) for _ in range(3))
    assert attend(q, k, v, torch.full((3, 3), CLOSED)).isfinite().all()
