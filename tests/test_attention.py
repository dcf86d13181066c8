"""Attention, compared with a sum over the keys for each query and with PyTorch's; the mask, entry by entry."""

import math

import pytest
import torch
import torch.nn.functional as F
from expect import same

from minillava.model.attention import CLOSED, attend, causal_mask

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def by_hand(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sees: torch.Tensor) -> torch.Tensor:
    """softmax(q k^T / sqrt(d)) v over the keys that a query sees, one query at a time. ``sees`` is bool (B, T, S)."""
    out, shared = torch.zeros_like(q), q.shape[1] // k.shape[1]
    for b, h, t in torch.cartesian_prod(*map(torch.arange, q.shape[:3])).tolist():
        seen = [s for s in range(k.shape[2]) if sees[b, t, s]]
        keys, values = k[b, h // shared, seen], v[b, h // shared, seen]
        weights = [math.exp((q[b, h, t] * key).sum().item() / math.sqrt(q.shape[3])) for key in keys]
        out[b, h, t] = sum(w / sum(weights) * value for w, value in zip(weights, values))
    return out


@pytest.mark.parametrize("length, past", [(5, 0), (1, 0), (4, 3), (1, 6)])
def test_causal_mask_is_closed_to_what_comes_later(length, past):
    mask = causal_mask(length, past)
    shape, wanted = tuple(mask.shape), (length, past + length)
    assert shape == wanted, f"the mask is (T, S), S = past + T: {wanted} (yours is {shape})"
    for i in range(length):
        for j in range(past + length):
            where = f"with past = {past}, query {i} is at place {past + i}: entry ({i}, {j})"
            if j > past + i:
                assert mask[i, j] == CLOSED, f"{where} is CLOSED, since key {j} comes later"
            else:
                assert mask[i, j] == 0, f"{where} is 0, since key {j} does not come later"


def test_equal_keys_give_the_mean_of_the_values():
    q, k, v = torch.randn(1, 1, 3, 6), torch.randn(1, 1, 1, 6).expand(1, 1, 5, 6), torch.randn(1, 1, 5, 6)
    wanted = v.mean(dim=2, keepdim=True).expand(1, 1, 3, 6)
    same(attend(q, k, v), wanted, "softmax runs over the keys: equal keys give each query the mean of the values")


def test_one_query_and_two_keys():
    q, k = torch.tensor([[[[2.0, 0, 0, 0]]]]), torch.tensor([[[[1.0, 0, 0, 0], [0, 1, 0, 0]]]])
    first = 1 / (1 + math.exp(-2 / math.sqrt(4)))  # the scores are 2 / sqrt(4) = 1 and 0
    v = torch.tensor([[[[1.0, 0, 0, 0], [0, 1, 0, 0]]]])
    same(attend(q, k, v), torch.tensor([[[[first, 1 - first, 0, 0]]]]), "the scores are q k^T / sqrt(d)", **CLOSE)


def test_each_head_of_each_row_is_the_formula():
    q, k, v = torch.randn(2, 4, 3, 6), *torch.randn(2, 2, 4, 5, 6)
    wanted = by_hand(q, k, v, torch.ones(2, 3, 5, dtype=torch.bool))
    same(attend(q, k, v), wanted, "each head of each row is softmax(q k^T / sqrt(d)) v", **CLOSE)


def test_a_closed_key_counts_for_nothing():
    q, k, v = torch.randn(2, 4, 4, 6), *torch.randn(2, 2, 4, 5, 6)
    sees = torch.rand(2, 4, 5) < 0.6
    sees[..., 0] = True
    out = attend(q, k, v, torch.where(sees, 0.0, CLOSED)[:, None])
    same(out, by_hand(q, k, v, sees), "the mask is added to the scores before the softmax", **CLOSE)


@pytest.mark.parametrize("shared", [2, 4])
def test_consecutive_query_heads_share_a_key_head(shared):
    q, k, v = torch.randn(2, 4, 4, 6), *torch.randn(2, 2, 4 // shared, 5, 6)
    sees = torch.rand(2, 4, 5) < 0.6
    sees[..., 0] = True
    words = f"query heads 0 to {shared - 1} use key head 0 and value head 0, the next {shared} the next ones"
    same(attend(q, k, v), by_hand(q, k, v, torch.ones_like(sees)), words, **CLOSE)
    masked = attend(q, k, v, torch.where(sees, 0.0, CLOSED)[:, None])
    same(masked, by_hand(q, k, v, sees), f"{words}, with a mask too", **CLOSE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_causal_is_the_causal_mask(dtype):
    q, k, v = torch.randn(2, 4, 5, 6, dtype=dtype), *torch.randn(2, 2, 2, 5, 6, dtype=dtype)
    sees = torch.ones(2, 5, 5).tril().bool()
    out, wanted = attend(q, k, v, causal=True), by_hand(q.double(), k.double(), v.double(), sees).to(dtype)
    tolerance = {"rtol": 0, "atol": 0.03} if dtype == torch.bfloat16 else CLOSE
    same(out, wanted, "with causal=True query i sees keys 0 to i", **tolerance)


@pytest.mark.parametrize("shared", [1, 2, 4])
def test_gradients_are_those_of_the_formula(shared):
    q, k, v = torch.randn(2, 4, 5, 6), *torch.randn(2, 2, 4 // shared, 5, 6)
    grads = []
    for dtype in (torch.float32, torch.float64):
        inputs = [x.detach().to(dtype).requires_grad_() for x in (q, k, v)]
        keys, values = (x.repeat_interleave(shared, dim=1) for x in inputs[1:])
        scores = inputs[0] @ keys.mT / math.sqrt(6) + torch.full((5, 5), CLOSED, dtype=dtype).triu(1)
        out = attend(*inputs, causal_mask(5)) if dtype == torch.float32 else scores.softmax(-1) @ values
        out.square().sum().backward()
        grads.append([x.grad.float() for x in inputs])
    for name, ours, wanted in zip("qkv", *grads):
        same(ours, wanted, f"the gradient reaches {name}, as the formula's does", rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_it_is_pytorchs_attention_with_and_without_a_mask(dtype):
    q, k, v = (torch.randn(2, 3, length, 8, dtype=dtype) for length in (4, 7, 7))
    tolerance = CLOSE if dtype == torch.float32 else {"rtol": 0, "atol": 0.02}
    for mask in (None, torch.full((4, 7), CLOSED).triu(4)):
        wanted = F.scaled_dot_product_attention(q, k, v, None if mask is None else mask.to(dtype))
        same(attend(q, k, v, mask), wanted, "the result is PyTorch's attention, in the dtype of q", **tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_query_that_may_see_nothing_gives_numbers(dtype):
    q, k, v = (torch.randn(1, 2, 3, 8, dtype=dtype) for _ in range(3))
    out = attend(q, k, v, torch.full((3, 3), CLOSED))
    assert out.isfinite().all(), "a query that sees no key gives finite numbers: CLOSED is not minus infinity"
