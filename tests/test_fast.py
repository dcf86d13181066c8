"""The fast pass of one row: reading it token by token gives what the decoder gives for the whole row."""

import gc

import pytest
import torch
from test_decoder import CLOSE, CONFIGS
from test_generation import prompt

from minillava.model import fast, generation
from minillava.model.decoder import Decoder, KVCache
from minillava.model.fast import GraphStep, Step, generate_by_graph, is_plain, multiply
from minillava.model.generation import collect
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


class Doubled(torch.nn.Module):
    """A layer that is not a Block: twice what its block gives."""

    def __init__(self, block: torch.nn.Module):
        super().__init__()
        self.block = block

    def forward(self, *inputs):
        return 2 * self.block(*inputs)


@pytest.mark.parametrize("on_gpu", [False, True])
def test_a_decoder_with_other_layers_is_run_as_it_is(randomise, monkeypatch, on_gpu):
    decoder, prompt = randomise(Decoder(CONFIGS["GQA"])), torch.randn(1, 4, CONFIGS["GQA"].hidden_size)
    decoder.layers[1] = Doubled(decoder.layers[1])
    expected = collect(generation.generate_ids(decoder, prompt, None, 8), [], 0)
    monkeypatch.setattr(torch.Tensor, "is_cuda", on_gpu)
    chosen = fast.generate_ids(decoder, prompt, None, 8)
    assert chosen.__name__ == generation.generate_ids.__name__
    monkeypatch.undo()
    assert torch.equal(collect(chosen, [], 0), expected)


@pytest.mark.parametrize("way", [fast.generate_by_step, generate_by_graph])
@torch.no_grad()
def test_the_draws_are_those_of_the_plain_path(randomise, way):
    decoder = randomise(Decoder(CONFIGS["GQA"]))
    embeddings = decoder.embed_tokens(torch.randint(50, (1, 5)))
    drawn = {}
    for generate in (generation.generate_ids, way):
        for top_p in (0.5, 1.0):
            torch.manual_seed(0)
            drawn[generate, top_p] = collect(generate(decoder, embeddings, None, 20, 3.0, top_p), [], 0).tolist()
        assert drawn[generate, 0.5] == drawn[generation.generate_ids, 0.5]
        assert drawn[generate, 1.0] == drawn[generation.generate_ids, 1.0]
        assert drawn[generate, 0.5] != drawn[generate, 1.0]


PADDED = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 1, 1, 1, 1]])


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(("rows", "mask"), [(1, None), (3, None), (3, PADDED)])
@torch.no_grad()
def test_what_a_graph_would_replay_gives_the_plain_tokens(randomise, name, rows, mask):
    """The pass that a GPU records; without a GPU it runs as it is, twice in a row on the same tensors."""
    decoder = randomise(Decoder(CONFIGS[name]))
    for count in (20, 9):
        embeddings = decoder.embed_tokens(torch.randint(50, (rows, 5)))
        expected = collect(generation.generate_ids(decoder, embeddings, mask, count), [], 0)
        assert torch.equal(collect(generate_by_graph(decoder, embeddings, mask, count, 0.0, 1.0), [], 0), expected)


def test_a_graph_is_kept_while_it_fits_and_the_weights_stay(randomise):
    decoder = randomise(Decoder(CONFIGS["GQA"]))
    one, two = torch.zeros(1, 5, 32), torch.zeros(2, 5, 32)

    def used(decoder, embeddings, tokens):
        GraphStep.kept[decoder] = GraphStep.take(decoder, embeddings, tokens)
        return GraphStep.kept[decoder]

    first = used(decoder, one, 30)
    assert used(decoder, one, 256) is first
    assert used(decoder, one, 257) is not first
    assert used(decoder, two, 30) is not used(decoder, one, 30)
    kept = used(decoder, one, 30)
    add_lora(decoder, rank=2, alpha=4.0)
    assert used(decoder, one, 30) is not kept
    count = len(GraphStep.kept)
    del decoder, kept
    gc.collect()
    assert len(GraphStep.kept) == count - 1


@torch.no_grad()
def test_two_answers_at_the_same_time_do_not_meet(randomise):
    decoder = randomise(Decoder(CONFIGS["GQA"]))
    prompts = [decoder.embed_tokens(torch.randint(50, (1, 5))) for _ in range(2)]
    expected = [collect(generation.generate_ids(decoder, prompt, None, 9), [], 0) for prompt in prompts]
    collect(generate_by_graph(decoder, prompts[0], None, 9, 0.0, 1.0), [], 0)  # its cache is kept for one of the two
    both = zip(*(generate_by_graph(decoder, prompt, None, 9, 0.0, 1.0) for prompt in prompts))
    for found, plain in zip(zip(*both), expected):
        assert torch.equal(torch.stack(found, dim=1), plain)


def test_the_way_is_chosen_by_device_rows_and_decoder(randomise, monkeypatch):
    ways = []
    for module, name in ((generation, "generate_ids"), (fast, "generate_by_graph"), (fast, "generate_by_step")):
        monkeypatch.setattr(module, name, lambda *arguments, name=name: ways.append(name))
    decoder, one, two = Decoder(CONFIGS["GQA"]), torch.zeros(1, 5, 32), torch.zeros(2, 5, 32)
    fast.generate_ids(decoder, one)
    fast.generate_ids(decoder, two)
    fast.generate_ids(decoder, one, torch.ones(1, 5))
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "is_cuda", True)
        fast.generate_ids(decoder, two, torch.ones(2, 5))
    add_lora(decoder, rank=2, alpha=4.0)
    fast.generate_ids(decoder, one)
    merge_lora(decoder)
    decoder.compile(backend="eager")
    fast.generate_ids(decoder, one)
    plain = "generate_ids"
    assert ways == ["generate_by_step", plain, plain, "generate_by_graph", plain, plain]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(6, 5), (514, 512), (515, 512), (1024, 300)])
def test_a_divided_product_is_the_product(shape, dtype):
    matrix, x, out = torch.randn(shape).to(dtype), torch.randn(shape[1]).to(dtype), torch.empty(shape[0], dtype=dtype)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        result = multiply(matrix, x, out)
    finally:
        torch.set_num_threads(threads)
    rtol = 1e-4 if dtype == torch.float32 else 0.02
    torch.testing.assert_close(result.double(), matrix.double() @ x.double(), rtol=rtol, atol=20 * rtol)
    assert torch.equal(result, out)


def test_a_compiled_decoder_is_one_graph_and_gives_the_same(lively_model):
    """fullgraph raises where a graph would break; the "eager" backend needs no compiler."""
    model = lively_model
    runs = [(prompt(model, question), torch.randn(1, 3, 24, 24)) for question in ("What is it?", "Is it a fish?")]
    expected = [model.generate(*run, max_new_tokens=4, stop_ids=[]).tolist() for run in runs]
    model.language_model.compile(backend="eager", fullgraph=True)
    assert [model.generate(*run, max_new_tokens=4, stop_ids=[]).tolist() for run in runs] == expected
