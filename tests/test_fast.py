"""The fast pass of one row: reading it token by token gives what the decoder gives for the whole row."""

import pytest
import torch
from test_decoder import CLOSE, CONFIGS

from minillava.model.decoder import Decoder, KVCache
from minillava.model.fast import Step, is_plain
from minillava.model.lora import add_lora, merge_lora


@torch.no_grad()
def stepped(decoder: Decoder, ids: torch.Tensor, prompt: int) -> torch.Tensor:
    """Logits (T - prompt, V) of ids (1, T) from position ``prompt`` on: the decoder reads the prompt, Step the rest."""
    dtype = decoder.embed_tokens.weight.dtype
    cache = KVCache(decoder.config, 1, ids.shape[1], dtype, torch.device("cpu"))
    decoder(decoder.embed_tokens(ids[:, :prompt]), cache=cache)
    step = Step(decoder, cache)
    logits = torch.cat([step(ids[:, at]) for at in range(prompt, ids.shape[1])])
    assert cache.length == ids.shape[1]
    return logits


@torch.no_grad()
def read_at_once(decoder: Decoder, ids: torch.Tensor) -> torch.Tensor:
    return decoder.lm_head(decoder(decoder.embed_tokens(ids)))[0]


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("prompt", [1, 6])
def test_steps_give_the_logits_of_the_whole_row(randomise, name, prompt):
    decoder, ids = randomise(Decoder(CONFIGS[name])), torch.randint(50, (1, 15))
    torch.testing.assert_close(stepped(decoder, ids, prompt), read_at_once(decoder, ids)[prompt:], **CLOSE)


@torch.no_grad()
def test_steps_fill_the_cache_as_the_decoder_does(randomise):
    decoder, ids = randomise(Decoder(CONFIGS["GQA"])), torch.randint(50, (1, 9))
    whole, parts = (KVCache(decoder.config, 1, 9, torch.float32, torch.device("cpu")) for _ in range(2))
    decoder(decoder.embed_tokens(ids), cache=whole)
    decoder(decoder.embed_tokens(ids[:, :4]), cache=parts)
    step = Step(decoder, parts)
    for at in range(4, 9):
        step(ids[:, at])
    torch.testing.assert_close(parts.store, whole.store, **CLOSE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_in_half_precision_steps_are_as_close_to_float32_as_the_decoder_is(randomise, dtype):
    decoder, ids = randomise(Decoder(CONFIGS["GQA"])), torch.randint(50, (1, 12))
    exact = read_at_once(decoder, ids)[5:]
    decoder.to(dtype)
    ours, theirs = stepped(decoder, ids, 5), read_at_once(decoder, ids)[5:]
    assert ours.dtype == dtype
    assert (ours - exact).norm() < 1.5 * (theirs - exact).norm()


def test_a_sum_of_squares_beyond_float16_does_not_overflow(randomise):
    decoder, ids = randomise(Decoder(CONFIGS["MHA"])).half(), torch.randint(50, (1, 5))
    with torch.no_grad():
        decoder.embed_tokens.weight.mul_(300 / decoder.embed_tokens.weight.abs().mean())
    torch.testing.assert_close(stepped(decoder, ids, 2), read_at_once(decoder, ids)[2:], rtol=0.02, atol=0.02)


def test_steps_are_for_plain_decoders():
    decoder = Decoder(CONFIGS["GQA"])
    assert is_plain(decoder)
    add_lora(decoder, rank=2, alpha=4.0)
    assert not is_plain(decoder)
    merge_lora(decoder)
    assert is_plain(decoder)
    decoder.compile(backend="eager")
    assert not is_plain(decoder)
