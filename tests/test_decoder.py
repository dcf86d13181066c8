"""The decoder computes what transformers' LlamaForCausalLM computes, with and without padding and cache."""

import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from minillava.config import DecoderConfig
from minillava.model.attention import CLOSED
from minillava.model.decoder import Decoder, KVCache, RMSNorm, rope_frequencies, rope_tables, rotate, visible

SMALL = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "tie_word_embeddings": False,
}
LLAMA3 = {"factor": 5.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
CONFIGS = {
    "MHA": DecoderConfig(**{**SMALL, "num_key_value_heads": 4, "head_dim": 8}),
    "GQA": DecoderConfig(**SMALL),
    "MQA": DecoderConfig(**{**SMALL, "num_key_value_heads": 1}),
    "tied": DecoderConfig(**{**SMALL, "tie_word_embeddings": True}),
    "rope_theta": DecoderConfig(**SMALL, rope_theta=100.0),
    "large epsilon": DecoderConfig(**SMALL, rms_norm_eps=0.1),
    "linear": DecoderConfig(**SMALL, rope_scaling={"rope_type": "linear", "factor": 3.0}),
    "llama3": DecoderConfig(**SMALL, rope_theta=100.0, rope_scaling={"rope_type": "llama3", **LLAMA3}),
}
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def as_llama(decoder: Decoder) -> LlamaForCausalLM:
    config = decoder.config.to_dict()
    scaling = config.pop("rope_scaling") or {"rope_type": "default"}
    rope = {**scaling, "rope_theta": config.pop("rope_theta")}
    theirs = LlamaForCausalLM(LlamaConfig(**config, rope_parameters=rope)).eval()
    weights = decoder.state_dict()
    theirs.load_state_dict({k if k.startswith("lm_head.") else f"model.{k}": v for k, v in weights.items()})
    return theirs


@pytest.fixture
def decoder(randomise) -> Decoder:
    return randomise(Decoder(CONFIGS["GQA"]))


def run(decoder: Decoder, ids: torch.Tensor, *arguments) -> torch.Tensor:
    with torch.no_grad():
        return decoder(decoder.embed_tokens(ids), *arguments)


def test_conversations_that_share_a_row_do_not_affect_each_other(decoder):
    one, other = torch.randint(50, (1, 7)), torch.randint(50, (1, 5))
    ids = torch.cat([one, other, torch.zeros(1, 2, dtype=torch.long)], dim=1)
    mask = torch.tensor([[1] * 7 + [2] * 5 + [0] * 2])
    together = run(decoder, ids, mask)
    torch.testing.assert_close(together[:, :7], run(decoder, one), **CLOSE)
    torch.testing.assert_close(together[:, 7:12], run(decoder, other), **CLOSE)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_logits_are_transformers_llama(randomise, config):
    decoder = randomise(Decoder(config))
    ids = torch.randint(50, (2, 17))
    with torch.no_grad():
        ours, theirs = decoder.lm_head(run(decoder, ids)), as_llama(decoder)(ids).logits
    assert (ours - theirs).norm() < 1e-5 * theirs.norm()


def test_logits_are_transformers_llama_behind_left_padding(decoder):
    ids, mask = torch.randint(50, (2, 9)), torch.ones(2, 9, dtype=torch.long)
    mask[0, :4] = 0
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    with torch.no_grad():
        ours = decoder.lm_head(run(decoder, ids, mask))
        theirs = as_llama(decoder)(ids, attention_mask=mask, position_ids=positions).logits
    torch.testing.assert_close(ours[mask == 1], theirs[mask == 1], **CLOSE)


def test_tied_head_is_the_embedding_itself():
    tied, untied = Decoder(CONFIGS["tied"]), Decoder(CONFIGS["GQA"])
    assert tied.lm_head.weight is tied.embed_tokens.weight
    assert untied.lm_head.weight is not untied.embed_tokens.weight


def test_rms_norm_is_its_formula():
    norm, x = RMSNorm(6, eps=0.01), torch.randn(2, 3, 6)
    torch.nn.init.normal_(norm.weight)
    for row in range(2):
        for t in range(3):
            rms = math.sqrt(sum(value.item() ** 2 for value in x[row, t]) / 6 + 0.01)
            torch.testing.assert_close(norm(x)[row, t], x[row, t] / rms * norm.weight)


def test_rope_tables_are_cosine_and_sine_of_position_times_frequency():
    positions, frequencies = torch.tensor([[0, 3], [7, 1]]), torch.tensor([1.0, 0.25, 0.01])
    cos, sin = rope_tables(positions, frequencies)
    assert cos.shape == sin.shape == (2, 1, 2, 6) and cos.dtype == sin.dtype == torch.float32
    for row in range(2):
        for t in range(2):
            for i in range(6):
                angle = positions[row, t].item() * frequencies[i % 3].item()
                assert cos[row, 0, t, i].item() == pytest.approx(math.cos(angle), abs=1e-6)
                assert sin[row, 0, t, i].item() == pytest.approx(math.sin(angle) * (-1 if i < 3 else 1), abs=1e-6)


def test_rope_turns_each_pair_by_its_angle():
    x, positions, theta = torch.randn(1, 2, 3, 8), torch.tensor([[0, 5, 11]]), 100.0
    tables = rope_tables(positions, rope_frequencies(DecoderConfig(head_dim=8, rope_theta=theta)))
    turned = rotate(x, *tables)
    assert rotate(x.bfloat16(), *tables).dtype == torch.bfloat16
    for head in range(2):
        for t, position in enumerate((0, 5, 11)):
            for pair in range(4):
                angle = position * theta ** (-2 * pair / 8)
                matrix = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
                expected = matrix @ x[0, head, t, [pair, pair + 4]]
                torch.testing.assert_close(turned[0, head, t, [pair, pair + 4]], expected, **CLOSE)


def test_rope_products_depend_only_on_the_distance():
    q, k = torch.randn(1, 1, 1, 16), torch.randn(1, 1, 1, 16)
    frequencies = rope_frequencies(DecoderConfig(head_dim=16, rope_theta=1e4))

    def product(at_q: int, at_k: int) -> float:
        turned_q = rotate(q, *rope_tables(torch.tensor([[at_q]]), frequencies))
        turned_k = rotate(k, *rope_tables(torch.tensor([[at_k]]), frequencies))
        return (turned_q * turned_k).sum().item()

    assert product(9, 4) == pytest.approx(product(109, 104), abs=1e-4)
    assert abs(product(9, 4) - product(9, 5)) > 1e-2


def test_linear_scaling_reads_a_position_as_an_earlier_one():
    config = DecoderConfig(head_dim=16, rope_scaling={"rope_type": "linear", "factor": 4.0})
    x, plain = torch.randn(1, 1, 1, 16), DecoderConfig(head_dim=16)
    turned = rotate(x, *rope_tables(torch.tensor([[20]]), rope_frequencies(config)))
    torch.testing.assert_close(turned, rotate(x, *rope_tables(torch.tensor([[5]]), rope_frequencies(plain))))


def test_llama3_scaling_keeps_fast_pairs_slows_slow_ones_and_fades_between():
    """From wavelengths, as in Meta's code for Llama 3.1: the number of positions in which a pair turns once."""
    config = DecoderConfig(head_dim=32, rope_theta=100.0, rope_scaling={"rope_type": "llama3", **LLAMA3})
    kinds = set()
    for pair, frequency in enumerate(rope_frequencies(config).tolist()):
        plain = 100.0 ** (-2 * pair / 32)
        wavelength = 2 * math.pi / plain
        if wavelength < 64 / 4.0:
            kind, expected = "fast", plain
        elif wavelength > 64 / 1.0:
            kind, expected = "slow", plain / 5.0
        else:
            smooth = (64 / wavelength - 1.0) / (4.0 - 1.0)
            kind, expected = "between", (1 - smooth) * plain / 5.0 + smooth * plain
        kinds.add(kind)
        assert frequency == pytest.approx(expected, rel=1e-5)
    assert kinds == {"fast", "slow", "between"}


@pytest.mark.parametrize("sizes", [{"num_key_value_heads": 3}, {"head_dim": 7}], ids=str)
def test_heads_that_cannot_be_shared_or_turned_raise(sizes):
    with pytest.raises(ValueError, match=str(next(iter(sizes.values())))):
        Decoder(DecoderConfig(**{**SMALL, **sizes}))


def test_cache_gives_each_layer_its_own_past_and_present():
    """append() leaves ``length`` as it is: the decoder increases it once all layers have written."""
    cache = KVCache(CONFIGS["GQA"], 2, 6, torch.float32, torch.device("cpu"))
    written = {layer: [] for layer in range(2)}
    for length in (3, 1, 2):
        for layer, pairs in written.items():
            pairs.append((torch.randn(2, 2, length, 12), torch.randn(2, 2, length, 12)))
            for got, expected in zip(cache.append(layer, *pairs[-1]), zip(*pairs)):
                assert torch.equal(got, torch.cat(expected, dim=2))
        cache.length += length


@pytest.mark.parametrize("part", ["mlp", "self_attn", ""])
@torch.no_grad()
def test_a_block_and_its_parts_are_transformers_llama(decoder, part):
    ours, theirs = decoder.layers[1].get_submodule(part), as_llama(decoder).model.layers[1].get_submodule(part)
    x = torch.randn(2, 7, 32)
    if part == "mlp":
        torch.testing.assert_close(ours(x), theirs(x), **CLOSE)
        return
    mask = torch.where(torch.rand(2, 1, 7, 7) < 0.3, CLOSED, 0.0)
    cos, sin = rope_tables(torch.arange(7)[None], rope_frequencies(decoder.config))
    sine = torch.cat(2 * [sin.squeeze(1)[..., 6:]], dim=-1)  # theirs has no sign: rotate_half() negates instead
    expected = theirs(x, position_embeddings=(cos.squeeze(1), sine), attention_mask=mask)
    if part == "self_attn":
        expected = expected[0]
    torch.testing.assert_close(ours(x, (cos, sin), mask, None), expected, **CLOSE)


@pytest.mark.parametrize("past", [0, 3])
def test_a_token_sees_its_own_conversation_up_to_itself(past):
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 2, 2, 3, 0], [1, 1, 1, 1, 1, 1, 1]])
    see = visible(mask, past)
    assert see.shape == (3, 7 - past, 7)
    for row in range(3):
        for t in range(past, 7):
            expected = [j <= t and mask[row, j] == mask[row, t] != 0 for j in range(7)]
            assert see[row, t - past].tolist() == expected


@pytest.mark.parametrize("chunks", [[6, 6], [3, 4, 5], [8, 1, 1, 1, 1]], ids=str)
def test_conversations_that_share_a_row_do_so_behind_a_cache_too(decoder, chunks):
    ids, mask = torch.randint(50, (1, 12)), torch.tensor([[0] * 2 + [1] * 5 + [2] * 5])
    cache = KVCache(decoder.config, 1, 12, torch.float32, torch.device("cpu"))
    parts, end = [], 0
    for count in chunks:
        parts.append(run(decoder, ids[:, end : end + count], mask[:, : end + count], cache))
        end += count
    whole = torch.cat(parts, dim=1)
    torch.testing.assert_close(whole[:, 2:7], run(decoder, ids[:, 2:7]), **CLOSE)
    torch.testing.assert_close(whole[:, 7:], run(decoder, ids[:, 7:]), **CLOSE)


@pytest.mark.parametrize("chunks", [[12], [1] * 12, [5, 7], [3, 1, 4, 4], [11, 1]], ids=str)
def test_cache_in_any_chunks_gives_what_no_cache_gives(decoder, chunks):
    ids = torch.randint(50, (2, 12))
    cache = KVCache(decoder.config, 2, 15, torch.float32, torch.device("cpu"))
    out = torch.cat([run(decoder, part, None, cache) for part in ids.split(chunks, dim=1)], dim=1)
    assert cache.length == 12
    torch.testing.assert_close(out, run(decoder, ids), **CLOSE)


@pytest.mark.parametrize("chunks", [[9], [6, 3], [5, 1, 1, 1, 1]], ids=str)
def test_cache_behind_left_padding_gives_what_no_padding_gives(decoder, chunks):
    ids, mask = torch.randint(50, (2, 9)), torch.ones(2, 9, dtype=torch.long)
    mask[0, :4] = 0
    cache = KVCache(decoder.config, 2, 9, torch.float32, torch.device("cpu"))
    out, end = [], 0
    for part in ids.split(chunks, dim=1):
        end += part.shape[1]
        out.append(run(decoder, part, mask[:, :end], cache))
    out = torch.cat(out, dim=1)
    torch.testing.assert_close(out[0, 4:], run(decoder, ids[:1, 4:])[0], **CLOSE)
    torch.testing.assert_close(out[1], run(decoder, ids[1:])[0], **CLOSE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_left_padding_changes_nothing(decoder, dtype):
    decoder = decoder.to(dtype)
    ids = torch.randint(50, (1, 6))
    padded, mask = torch.cat([torch.full((1, 5), 7), ids], dim=1), torch.tensor([[0] * 5 + [1] * 6])
    tolerance = CLOSE if dtype == torch.float32 else {"rtol": 0, "atol": 0.2}
    torch.testing.assert_close(run(decoder, padded, mask)[:, 5:], run(decoder, ids), **tolerance)


@pytest.mark.parametrize("with_mask", [False, True])
def test_right_padding_does_not_change_the_tokens_before_it(decoder, with_mask):
    ids = torch.randint(50, (1, 6))
    padded, mask = torch.cat([ids, torch.full((1, 5), 7)], dim=1), torch.tensor([[1] * 6 + [0] * 5])
    out = run(decoder, padded, mask if with_mask else None)
    torch.testing.assert_close(out[:, :6], run(decoder, ids), **CLOSE)


def test_a_later_token_does_not_change_earlier_outputs(decoder):
    ids = torch.randint(50, (1, 10))
    changed = ids.clone()
    changed[0, 6] = (changed[0, 6] + 1) % 50
    before, after = run(decoder, ids), run(decoder, changed)
    assert torch.equal(before[:, :6], after[:, :6])
    assert (before[:, 6:] != after[:, 6:]).any(dim=-1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_row_of_nothing_but_padding_gives_no_nan(decoder, dtype):
    decoder = decoder.to(dtype)
    ids, mask = torch.randint(50, (2, 6)), torch.tensor([[0] * 6, [1] * 6])
    assert run(decoder, ids, mask).isfinite().all()
