"""The decoder, part by part, compared with its formulas; test_parts_transformers.py compares it with LLaMA's."""

import math

import pytest
import torch
import torch.nn.functional as F
from expect import same

from minillava.config import DecoderConfig
from minillava.model.attention import CLOSED
from minillava.model.decoder import (
    MLP,
    Attention,
    Block,
    Decoder,
    KVCache,
    RMSNorm,
    rope_frequencies,
    rope_tables,
    rotate,
    visible,
)

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
CONFIG = CONFIGS["GQA"]
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
HALF = [torch.bfloat16, torch.float16]


@pytest.fixture
def decoder(randomise) -> Decoder:
    return randomise(Decoder(CONFIG))


def run(decoder: Decoder, ids: torch.Tensor, *arguments) -> torch.Tensor:
    with torch.no_grad():
        return decoder(decoder.embed_tokens(ids), *arguments)


def new_cache(rows: int, room: int, config: DecoderConfig = CONFIG) -> KVCache:
    return KVCache(config, rows, room, torch.float32, torch.device("cpu"))


def tables(positions: torch.Tensor, frequencies: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """What rope_tables() should give, number by number."""
    d = 2 * len(frequencies)
    cos, sin = torch.empty(2, *positions.shape, d)
    for row in range(positions.shape[0]):
        for t in range(positions.shape[1]):
            for i in range(d):
                angle = positions[row, t].item() * frequencies[i % len(frequencies)]
                cos[row, t, i], sin[row, t, i] = math.cos(angle), math.sin(angle) * (-1 if i < d / 2 else 1)
    return cos[:, None], sin[:, None]


def test_rms_norm_is_its_formula():
    norm, x = RMSNorm(6, eps=0.01), torch.randn(2, 3, 6)
    plain = x / torch.tensor([[[math.sqrt(sum(v**2 for v in t) / 6 + 0.01)] for t in row] for row in x.tolist()])
    same(
        norm(x),
        plain,
        "with weight 1 the norm is x / sqrt(mean(x^2) + eps): eps is inside the root, and no mean is subtracted",
    )
    torch.nn.init.normal_(norm.weight)
    same(norm(x), plain * norm.weight.detach(), "x / rms(x) is multiplied by the weight")


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_rms_norm_computes_in_float32_and_returns_the_dtype_of_x(dtype):
    norm, x = RMSNorm(64, eps=1e-6), (torch.randn(2, 3, 64) * 300).to(dtype)
    torch.nn.init.normal_(norm.weight)
    norm = norm.to(dtype)
    wide = x.double() / x.double().square().mean(dim=-1, keepdim=True).add(1e-6).sqrt() * norm.weight.detach().double()
    words = "the norm's result has the dtype of x, after a computation in float32"
    same(norm(x), wide.to(dtype), words, rtol=0.008, atol=0)


def test_frequencies_are_powers_of_the_base():
    for d, base in ((16, 1e4), (12, 100.0)):
        wanted = torch.tensor([base ** (-2 * i / d) for i in range(d // 2)])
        got = rope_frequencies(DecoderConfig(head_dim=d, rope_theta=base))
        same(got, wanted, f"pair i of head_dim {d} rotates by base^(-2 i / head_dim) per position, in float32", atol=0)


def test_linear_scaling_divides_every_frequency():
    config = DecoderConfig(head_dim=16, rope_theta=1e4, rope_scaling={"rope_type": "linear", "factor": 4.0})
    wanted = torch.tensor([1e4 ** (-2 * i / 16) / 4 for i in range(8)])
    same(rope_frequencies(config), wanted, '"linear" scaling divides each frequency by the factor', atol=0)


def test_llama3_scaling_keeps_fast_pairs_slows_slow_ones_and_fades_between():
    """From wavelengths, as in Meta's code for Llama 3.1: the number of positions in which a pair turns once."""
    config = DecoderConfig(head_dim=32, rope_theta=100.0, rope_scaling={"rope_type": "llama3", **LLAMA3})
    kinds = set()
    for pair, frequency in enumerate(rope_frequencies(config).tolist()):
        plain = 100.0 ** (-2 * pair / 32)
        wavelength = 2 * math.pi / plain
        if wavelength < 64 / 4.0:
            kind, wanted = "makes 4 turns or more in the original context: it keeps its frequency", plain
        elif wavelength > 64 / 1.0:
            kind, wanted = "makes 1 turn or fewer in the original context: its frequency is divided", plain / 5.0
        else:
            kept = (64 / wavelength - 1.0) / (4.0 - 1.0)
            kind, wanted = "makes between 1 and 4 turns: interpolate", (1 - kept) * plain / 5.0 + kept * plain
        kinds.add(kind)
        numbers = f"yours is {frequency:.6g}, it should be {wanted:.6g}"
        assert frequency == pytest.approx(wanted, rel=1e-5), f'"llama3" pair {pair} {kind} ({numbers})'
    assert len(kinds) == 3


def test_rope_tables_are_cosine_and_sine_of_position_times_frequency():
    positions, frequencies = torch.tensor([[0, 3], [7, 1]]), [1.0, 0.25, 0.01]
    cos, sin = rope_tables(positions, torch.tensor(frequencies))
    wanted = tables(positions, frequencies)
    same(cos, wanted[0], "cos (B, 1, T, d) is cos(position * frequency i) at i and at i + d / 2", atol=1e-6)
    same(sin.abs(), wanted[1].abs(), "sin (B, 1, T, d) is sin(position * frequency i) at i and at i + d / 2", atol=1e-6)
    same(sin, wanted[1], "the first half of sin is negated, the second is not", atol=1e-6)


def test_rotate_turns_each_pair_by_its_angle():
    x, angles = (
        torch.randn(1, 2, 3, 8),
        torch.tensor([[0.0, 0.1, 0.7, 2.0], [1.0, -0.4, 0.2, 3.0], [0.5, 1.5, 2.5, 0.3]]),
    )
    wanted = torch.empty_like(x)
    for t in range(3):
        for pair in range(4):
            a, b, cos, sin = x[..., t, pair], x[..., t, pair + 4], angles[t, pair].cos(), angles[t, pair].sin()
            wanted[..., t, pair], wanted[..., t, pair + 4] = a * cos - b * sin, b * cos + a * sin
    cos, sin = torch.cat(2 * [angles.cos()], -1), torch.cat([-angles.sin(), angles.sin()], -1)
    words = "pair i is (a, b) = (x[i], x[i + d / 2]) and becomes (a cos - b sin, b cos + a sin)"
    same(rotate(x, cos, sin), wanted, words)
    same(rotate(x.bfloat16(), cos, sin), wanted.bfloat16(), "rotate() returns the dtype of x", rtol=0.02, atol=0.02)


def test_rope_products_depend_only_on_the_distance():
    q, k = torch.randn(1, 1, 1, 16), torch.randn(1, 1, 1, 16)
    frequencies = rope_frequencies(DecoderConfig(head_dim=16, rope_theta=1e4))

    def product(at_q: int, at_k: int) -> float:
        turned_q = rotate(q, *rope_tables(torch.tensor([[at_q]]), frequencies))
        turned_k = rotate(k, *rope_tables(torch.tensor([[at_k]]), frequencies))
        return (turned_q * turned_k).sum().item()

    words = "the product of a rotated query and key depends on their distance"
    assert product(9, 4) == pytest.approx(product(109, 104), abs=1e-4), f"{words} and on nothing else"
    assert abs(product(9, 4) - product(9, 5)) > 1e-2, words


def test_cache_gives_each_layer_its_own_past_and_present():
    cache = new_cache(2, 6)
    written: dict[int, list] = {layer: [] for layer in range(2)}
    for length in (3, 1, 2):
        for layer, pairs in written.items():
            pairs.append((torch.randn(2, 2, length, 12), torch.randn(2, 2, length, 12)))
            got = cache.append(layer, *pairs[-1])
            for name, ours, wanted in zip(("keys", "values"), got, zip(*pairs)):
                words = f"append() returns the layer's own {name}, earlier ones first, without the cache's empty room"
                same(ours, torch.cat(wanted, dim=2), words)
        before = sum(pair[0].shape[2] for pair in written[0]) - length
        assert cache.length == before, "append() leaves length as it is: the decoder increases it after all layers"
        cache.length += length


@torch.no_grad()
def test_an_mlp_is_swiglu(randomise):
    layer, x = randomise(MLP(CONFIG)), torch.randn(2, 5, 32)
    gate, up = F.linear(x, layer.gate_proj.weight), F.linear(x, layer.up_proj.weight)
    wanted = F.linear(gate / (1 + torch.exp(-gate)) * up, layer.down_proj.weight)
    same(layer(x), wanted, "the result is down_proj(silu(gate_proj(x)) * up_proj(x))", **CLOSE)


@pytest.mark.parametrize("past", [0, 3])
def test_a_token_sees_its_own_conversation_up_to_itself(past):
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 2, 2, 3, 0], [1, 1, 1, 1, 1, 1, 1]])
    see = visible(mask, past)
    shape, wanted = tuple(see.shape), (3, 7 - past, 7)
    assert shape == wanted, f"with past = {past} the result is (B, T, S), T = S - past (yours is {shape}, not {wanted})"
    for row in range(3):
        for t in range(past, 7):
            for j in range(7):
                told = f"in the row {mask[row].tolist()} with past = {past}, token {t}"
                if j > t:
                    assert not see[row, t - past, j], f"{told} does not see token {j}, which comes later"
                elif mask[row, j] == 0:
                    assert not see[row, t - past, j], f"{told} does not see token {j}, which is padding"
                elif mask[row, j] != mask[row, t]:
                    assert not see[row, t - past, j], f"{told} does not see token {j} of another conversation"
                else:
                    assert see[row, t - past, j], f"{told} sees token {j}"


def attention_by_hand(layer: Attention, x: torch.Tensor, rope, sees: torch.Tensor) -> torch.Tensor:
    """Query head by query head; ``sees`` is bool (B, T, T)."""
    d, shared = layer.config.head_dim, layer.config.num_attention_heads // layer.config.num_key_value_heads
    q, k, v = (F.linear(x, p.weight) for p in (layer.q_proj, layer.k_proj, layer.v_proj))
    outs = []
    for h in range(layer.config.num_attention_heads):
        query, key, value = (y[..., i * d : i * d + d] for y, i in ((q, h), (k, h // shared), (v, h // shared)))
        query, key = (rotate(y[:, None], *rope)[:, 0] for y in (query, key))
        scores = (query @ key.mT / math.sqrt(d)).masked_fill(~sees, -math.inf)
        outs.append(scores.softmax(dim=-1) @ value)
    return F.linear(torch.cat(outs, dim=-1), layer.o_proj.weight)


def rope_of(config: DecoderConfig, *positions: int) -> tuple[torch.Tensor, torch.Tensor]:
    return rope_tables(torch.tensor([positions]), rope_frequencies(config))


@pytest.mark.parametrize("name", ["MHA", "GQA", "MQA"])
@torch.no_grad()
def test_attention_is_the_formula_head_by_head(randomise, name):
    config = CONFIGS[name]
    layer, x = randomise(Attention(config, 1)), torch.randn(2, 7, 32)
    sees = (torch.rand(2, 7, 7) < 0.7) | torch.eye(7, dtype=torch.bool)
    mask, causal = torch.where(sees, 0.0, CLOSED)[:, None], torch.ones(2, 7, 7, dtype=torch.bool).tril()
    rope = rope_of(config, *[0] * 7)  # no rotation
    words = (
        "head h takes numbers h * d to h * d + d; heads attend under the mask, are joined in order, and go to o_proj"
    )
    same(layer(x, rope, mask, None), attention_by_hand(layer, x, rope, sees), words, **CLOSE)
    rope = rope_of(config, *range(7))
    words = "queries and keys are rotated, values are not"
    same(layer(x, rope, mask, None), attention_by_hand(layer, x, rope, sees), words, **CLOSE)
    words = "without a mask a token sees itself and those before it"
    same(layer(x, rope, None, None), attention_by_hand(layer, x, rope, causal), words, **CLOSE)


@torch.no_grad()
def test_attention_reads_earlier_tokens_from_the_cache(randomise):
    layer, x, cache = randomise(Attention(CONFIG, 1)), torch.randn(2, 6, 32), new_cache(2, 6)
    whole = attention_by_hand(layer, x, rope_of(CONFIG, *range(6)), torch.ones(2, 6, 6, dtype=torch.bool).tril())
    out = layer(x[:, :4], rope_of(CONFIG, 0, 1, 2, 3), None, cache)
    same(out, whole[:, :4], "with an empty cache the result is that without one", **CLOSE)
    for t in (4, 5):
        cache.length = t
        out = layer(x[:, t : t + 1], rope_of(CONFIG, t), None, cache)
        same(
            out, whole[:, t : t + 1], "a single new token sees all keys that the cache returns for this layer", **CLOSE
        )
    cache.length = 4
    mask = torch.full((2, 6), CLOSED).triu(5)
    out = layer(x[:, 4:], rope_of(CONFIG, 4, 5), mask, cache)
    same(out, whole[:, 4:], "with a mask it is the mask that says what new tokens see in the cache", **CLOSE)
    assert cache.store[1].any() and not cache.store[0].any(), "a layer writes to its own part of the cache, self.layer"


@torch.no_grad()
def test_a_block_adds_attention_and_then_the_mlp_of_normed_vectors(randomise):
    config = CONFIGS["large epsilon"]
    block, x, rope, cache = (
        randomise(Block(config, 1)),
        torch.randn(2, 5, 32),
        rope_of(config, *range(5)),
        new_cache(2, 5),
    )

    def normed(norm: RMSNorm, y: torch.Tensor) -> torch.Tensor:
        return y / y.square().mean(dim=-1, keepdim=True).add(0.1).sqrt() * norm.weight

    for mask in (None, torch.where(torch.rand(2, 1, 5, 5) < 0.3, CLOSED, 0.0)):
        halfway = x + block.self_attn(normed(block.input_layernorm, x), rope, mask, None)
        wanted = halfway + block.mlp(normed(block.post_attention_layernorm, halfway))
        words = "a block is x + self_attn(input_layernorm(x)), then x + mlp(post_attention_layernorm(x))"
        same(block(x, rope, mask, None), wanted, f"{words}; what is added to is not normed", **CLOSE)
    same(block(x, rope, None, cache), block(x, rope, None, None), "with an empty cache it is the same", **CLOSE)
    assert cache.store[1].any(), "a block passes the cache to its attention"


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
@torch.no_grad()
def test_a_decoder_is_its_layers_and_then_the_norm(randomise, config):
    decoder, x = randomise(Decoder(config)), torch.randn(2, 9, 32)
    rope = rope_of(config, *range(9))
    wanted = decoder.layers[1](decoder.layers[0](x, rope, None, None), rope, None, None)
    wanted = decoder.norm(wanted)
    same(decoder(x), wanted, "the layers run in order at positions 0, 1, 2 ..., then comes the final norm", **CLOSE)


def test_a_later_token_does_not_change_earlier_outputs(decoder):
    ids = torch.randint(50, (1, 10))
    changed = ids.clone()
    changed[0, 6] = (changed[0, 6] + 1) % 50
    before, after = run(decoder, ids), run(decoder, changed)
    same(after[:, :6], before[:, :6], "a later token does not change what comes before it")
    assert (before[:, 6:] != after[:, 6:]).any(dim=-1).all(), "a token changes every output from its own on"


def test_conversations_that_share_a_row_do_not_affect_each_other(decoder):
    one, other = torch.randint(50, (1, 7)), torch.randint(50, (1, 5))
    ids = torch.cat([one, other, torch.zeros(1, 2, dtype=torch.long)], dim=1)
    together = run(decoder, ids, torch.tensor([[1] * 7 + [2] * 5 + [0] * 2]))
    same(
        together[:, :7], run(decoder, one), "the first conversation of a row is as if it had the row to itself", **CLOSE
    )
    words = "a later conversation of a row sees only itself"
    same(together[:, 7:12], run(decoder, other), words, **CLOSE)


def test_each_conversation_of_a_row_counts_its_positions_from_0(decoder):
    """The outputs do not show it: in RoPE only distances matter."""
    seen, layer = [], decoder.layers[0]
    forward = layer.forward

    def watched(*inputs, **named):
        seen.append(named["rope"] if "rope" in named else inputs[1])
        return forward(*inputs, **named)

    layer.forward = watched
    run(decoder, torch.randint(50, (1, 9)), torch.tensor([[0] * 2 + [1] * 4 + [2] * 3]))
    [(cos, sin)], wanted = seen, rope_of(decoder.config, 0, 1, 2, 3, 0, 1, 2)
    words = "a token's position is the number of visible() tokens before it: each conversation begins at 0"
    for table, right in zip((cos, sin), wanted):
        same(table[:, :, 2:], right, words, **CLOSE)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
def test_left_padding_changes_nothing(decoder, dtype):
    decoder = decoder.to(dtype)
    ids = torch.randint(50, (1, 6))
    padded, mask = torch.cat([torch.full((1, 5), 7), ids], dim=1), torch.tensor([[0] * 5 + [1] * 6])
    tolerance = CLOSE if dtype == torch.float32 else {"rtol": 0, "atol": 0.2}
    words = "padding before a row changes nothing: no token sees it"
    same(run(decoder, padded, mask)[:, 5:], run(decoder, ids), words, **tolerance)


@pytest.mark.parametrize("with_mask", [False, True])
def test_right_padding_does_not_change_the_tokens_before_it(decoder, with_mask):
    ids = torch.randint(50, (1, 6))
    padded, mask = torch.cat([ids, torch.full((1, 5), 7)], dim=1), torch.tensor([[1] * 6 + [0] * 5])
    out = run(decoder, padded, mask if with_mask else None)
    same(out[:, :6], run(decoder, ids), "padding after a row changes nothing", **CLOSE)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
def test_a_row_of_nothing_but_padding_gives_no_nan(decoder, dtype):
    decoder = decoder.to(dtype)
    ids, mask = torch.randint(50, (2, 6)), torch.tensor([[0] * 6, [1] * 6])
    assert run(decoder, ids, mask).isfinite().all(), "a row of nothing but padding gives finite numbers"


@pytest.mark.parametrize("chunks", [[12], [1] * 12, [5, 7], [3, 1, 4, 4], [11, 1]], ids=str)
def test_cache_in_any_chunks_gives_what_no_cache_gives(decoder, chunks):
    ids, cache = torch.randint(50, (2, 12)), new_cache(2, 15)
    out, whole = [], run(decoder, ids)
    for part in ids.split(chunks, dim=1):
        out.append(run(decoder, part, None, cache))
        end = sum(x.shape[1] for x in out)
        assert cache.length == end, f"after {end} tokens the cache's length is {end} (yours is {cache.length})"
        words = (
            f"tokens read in chunks of {chunks} with a cache give what they give at once: look at {part.shape[1]} new "
        )
        words += f"tokens after {end - part.shape[1]}"
        same(out[-1], whole[:, end - part.shape[1] : end], words, **CLOSE)


@pytest.mark.parametrize("chunks", [[9], [6, 3], [5, 1, 1, 1, 1]], ids=str)
def test_cache_behind_left_padding_gives_what_no_padding_gives(decoder, chunks):
    ids, mask = torch.randint(50, (2, 9)), torch.ones(2, 9, dtype=torch.long)
    mask[0, :4] = 0
    cache, out, end = new_cache(2, 9), [], 0
    for part in ids.split(chunks, dim=1):
        end += part.shape[1]
        out.append(run(decoder, part, mask[:, :end], cache))
    out = torch.cat(out, dim=1)
    words = f"in chunks of {chunks}, with a cache, padding before a row changes nothing"
    same(out[0, 4:], run(decoder, ids[:1, 4:])[0], words, **CLOSE)
    same(out[1], run(decoder, ids[1:])[0], words, **CLOSE)


@pytest.mark.parametrize("chunks", [[6, 6], [3, 4, 5], [8, 1, 1, 1, 1]], ids=str)
def test_conversations_that_share_a_row_do_so_behind_a_cache_too(decoder, chunks):
    ids, mask = torch.randint(50, (1, 12)), torch.tensor([[0] * 2 + [1] * 5 + [2] * 5])
    cache, parts, end = new_cache(1, 12), [], 0
    for count in chunks:
        parts.append(run(decoder, ids[:, end : end + count], mask[:, : end + count], cache))
        end += count
    whole = torch.cat(parts, dim=1)
    words = f"in chunks of {chunks}, with a cache, conversations of one row do not see each other"
    same(whole[:, 2:7], run(decoder, ids[:, 2:7]), words, **CLOSE)
    same(whole[:, 7:], run(decoder, ids[:, 7:]), words, **CLOSE)


def test_tied_head_is_the_embedding_itself():
    tied, untied = Decoder(CONFIGS["tied"]), Decoder(CONFIG)
    assert tied.lm_head.weight is tied.embed_tokens.weight
    assert untied.lm_head.weight is not untied.embed_tokens.weight


@pytest.mark.parametrize("sizes", [{"num_key_value_heads": 3}, {"head_dim": 7}], ids=str)
def test_heads_that_cannot_be_shared_or_turned_raise(sizes):
    with pytest.raises(ValueError, match=str(next(iter(sizes.values())))):
        Decoder(DecoderConfig(**{**SMALL, **sizes}))
