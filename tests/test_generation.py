"""Sampling, stops and streaming; greedy decoding with a cache is greedy decoding without one, token for token."""

import pytest
import torch
from expect import same

from minillava import Llava
from minillava.inputs.conversation import encode_conversation
from minillava.model.generation import collect, generate_ids, nucleus, sample, stream_text

PATCHES = 9
LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0, -2.0])
COUNT = 20_000  # draws


@pytest.fixture
def model(lively_model) -> Llava:
    return lively_model


def prompt(model: Llava, question: str) -> torch.Tensor:
    turn = {"from": "human", "value": f"<image>\n{question}"}
    return torch.tensor([encode_conversation([turn], model.processor.tokenizer, num_image_tokens=PATCHES)[0]])


def left_padded(model: Llava, prompts: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(ids.shape[1] for ids in prompts)
    rows, masks = [], []
    for ids in prompts:
        padding = longest - ids.shape[1]
        rows.append(torch.cat([torch.full((1, padding), model.processor.tokenizer.pad_id), ids], dim=1))
        masks.append(torch.cat([torch.zeros(1, padding, dtype=torch.long), torch.ones_like(ids)], dim=1))
    return torch.cat(rows), torch.cat(masks)


def test_the_nucleus_is_the_smallest_set_with_enough_probability():
    probabilities = torch.tensor([[0.125, 0.5, 0.0625, 0.25, 0.0625], [0.25, 0.0625, 0.125, 0.0625, 0.5]])
    for top_p, kept in ((0.01, 1), (0.5, 1), (0.51, 2), (0.75, 2), (0.8, 3), (0.875, 3), (0.9, 4)):
        wanted = probabilities.clone()
        for row, likeliest in enumerate(([1, 3, 0, 2, 4], [4, 0, 2, 1, 3])):
            wanted[row, likeliest[kept:]] = 0
        got = nucleus(probabilities, top_p)
        if kept == 4:  # which of two equal tokens is kept is arbitrary
            got, wanted = got.sort(dim=-1).values, wanted.sort(dim=-1).values
        words = f"of {probabilities[0].tolist()}, top_p = {top_p} keeps the {kept} likeliest, the smallest set with "
        same(
            got,
            wanted,
            f"{words}that sum or more; they stay in their places, the others are 0",
            rtol=0,
            atol=0,
        )
    same(nucleus(probabilities, 1.0), probabilities, "top_p = 1 keeps all", rtol=0, atol=0)


def test_the_nucleus_of_equal_tokens_has_the_right_size():
    for top_p, size in ((1e-6, 1), (0.3, 15), (0.55, 26), (0.9, 43), (0.999, 47)):
        kept = (nucleus(torch.full((3, 47), 1 / 47), top_p) > 0).sum(dim=-1)
        same(kept, torch.full((3,), size), f"of 47 equal tokens, top_p = {top_p} keeps {size}")


def test_temperature_zero_takes_the_likeliest():
    logits = torch.tensor([[0.0, 3.0, 2.9], [1.0, -1.0, 0.9]])
    for _ in range(20):
        same(sample(logits, 0.0), torch.tensor([1, 0]), "temperature 0 takes the likeliest token of each row, (B,)")


def test_rows_are_sampled_from_their_own_logits():
    logits = torch.full((4, 6), -1e9)
    logits[range(4), [5, 0, 3, 2]] = 0.0
    same(sample(logits, 1.0), torch.tensor([5, 0, 3, 2]), "each row is drawn from its own logits: ids (B,)")


def check_shares(drawn: torch.Tensor, probabilities: torch.Tensor, words: str) -> None:
    """By a chi-square test at 1 in 10,000, for up to four degrees of freedom."""
    counts = torch.bincount(drawn, minlength=len(probabilities))[: len(probabilities)]
    expected = probabilities * len(drawn)
    shares = [f"{count / len(drawn):.3f}" for count in counts.tolist()]
    numbers = f"(shares of yours: {', '.join(shares)}; of the softmax: {', '.join(f'{p:.3f}' for p in probabilities)})"
    assert ((counts - expected) ** 2 / expected).sum() < 23.5, f"{words} {numbers}"


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_samples_follow_the_softmax(temperature):
    drawn = sample(LOGITS.expand(COUNT, 5), temperature)
    words = f"at temperature {temperature}, tokens are drawn from softmax(logits / temperature)"
    check_shares(drawn, (LOGITS / temperature).softmax(dim=0), words)


@pytest.mark.parametrize(
    "dtype, logits", [(torch.bfloat16, [20.0, 20.125]), (torch.float16, [20.0, 20.015625])], ids=str
)
def test_the_softmax_is_computed_in_float32(dtype, logits):
    temperature = 0.1 if dtype == torch.bfloat16 else 0.01
    drawn = sample(torch.tensor(logits, dtype=dtype).expand(COUNT, 2), temperature)
    words = f"{dtype} logits are converted to float32 first, then divided by the temperature"
    check_shares(drawn, (torch.tensor(logits) / temperature).softmax(dim=0), words)


@pytest.mark.parametrize("temperature, kept", [(1.0, 2), (0.5, 1), (4.0, 4)])
def test_samples_are_from_the_nucleus_after_the_temperature(temperature, kept):
    drawn = sample(LOGITS.expand(COUNT, 5), temperature, 0.8)
    words = f"with top_p = 0.8, tokens are drawn from the nucleus of softmax(logits / {temperature})"
    assert drawn.max() < kept, f"{words}: the {kept} likeliest of 5 (yours draws token {drawn.max()})"
    check_shares(drawn, (LOGITS[:kept] / temperature).softmax(dim=0), words)


def test_a_row_keeps_its_stop_and_is_filled_until_the_last_row_stops():
    steps = iter([torch.tensor(ids) for ids in ([5, 5], [8, 6], [5, 6], [6, 9], [7, 7])])
    rows = collect(steps, stop_ids=[8, 9], fill=0).tolist()
    words = "a row keeps its stop token, then has the fill; the rows are (B, n), and end when all have a stop"
    assert rows == [[5, 8, 0, 0], [5, 6, 6, 9]], f"{words} (yours: {rows}, it should be [[5, 8, 0, 0], [5, 6, 6, 9]])"
    left = [ids.tolist() for ids in steps]
    assert left == [[7, 7]], (
        f"after all rows have stopped no further step is taken (left: {left}, it should be [[7, 7]])"
    )


def test_rows_without_a_stop_have_all_steps():
    steps = [torch.tensor(ids) for ids in ([5, 5], [8, 6], [0, 6])]
    rows = collect(iter(steps), stop_ids=[8], fill=1).tolist()
    words = "steps that end before each row has stopped are all there, a stopped row filled"
    assert rows == [[5, 8, 1], [5, 6, 6]], f"{words} (yours: {rows}, it should be [[5, 8, 1], [5, 6, 6]])"


def ids_of(model: Llava, ids: torch.Tensor, pixel_values: torch.Tensor, mask=None, count: int = 20, **options) -> list:
    """The rows that generate_ids() gives, each a list."""
    steps = generate_ids(model.language_model, model.embed(ids, pixel_values), mask, count, **options)
    return torch.stack(list(steps), dim=1).tolist()


@torch.no_grad()
def test_greedy_with_cache_is_greedy_without(model):
    ids, pixel_values = prompt(model, "What is it?"), torch.randn(1, 3, 24, 24)
    wanted = ids
    for _ in range(20):
        wanted = torch.cat([wanted, model(wanted, pixel_values)[0][:, -1:].argmax(dim=-1)], dim=1)
    wanted = wanted[0, ids.shape[1] :].tolist()
    [ours] = ids_of(model, ids, pixel_values)
    assert len(ours) == 20, f"max_new_tokens = 20 gives 20 tokens (yours: {len(ours)})"
    right = next((i for i in range(20) if ours[i] != wanted[i]), 20)
    words = "each token is the argmax after the prompt and all tokens so far"
    assert right == 20, f"{words} (token {right} of yours is {ours[right]}, it should be {wanted[right]})"


@pytest.mark.parametrize("rows", [1, 2])
@torch.no_grad()
def test_each_new_token_costs_one_pass_of_length_one(model, rows, monkeypatch):
    lengths, forward = [], model.language_model.forward

    def noting(embeddings, *arguments, **options):
        lengths.append(embeddings.shape[1])
        return forward(embeddings, *arguments, **options)

    monkeypatch.setattr(model.language_model, "forward", noting)
    ids = prompt(model, "What is it?").expand(rows, -1)
    ids_of(model, ids, torch.randn(rows, 3, 24, 24), count=5)
    words = "the first pass reads the prompt, each later one only the newest token: the cache has the others"
    assert lengths == [ids.shape[1], 1, 1, 1, 1], f"{words} (lengths of your passes: {lengths})"


@torch.no_grad()
def test_a_left_padded_batch_gives_what_each_row_gives_by_itself(model):
    prompts = [prompt(model, question) for question in ("What is it?", "Is the small green fish near the bottom?")]
    pixel_values = torch.randn(2, 3, 24, 24)
    ids, mask = left_padded(model, prompts)
    together = ids_of(model, ids, pixel_values, mask)
    words = "padding is masked in every pass, and attention_mask grows by a column of ones with each token"
    for row in range(2):
        [single] = ids_of(model, prompts[row], pixel_values[row : row + 1])
        assert together[row] == single, f"{words} (row {row} of two differs from what it gives by itself)"


@torch.no_grad()
def test_padding_before_a_single_row_changes_nothing(model):
    ids, pixel_values = prompt(model, "What is it?"), torch.randn(1, 3, 24, 24)
    padded = torch.nn.functional.pad(ids, (7, 0), value=model.processor.tokenizer.pad_id)
    mask = torch.nn.functional.pad(torch.ones_like(ids), (7, 0))
    same_ids = ids_of(model, padded, pixel_values, mask) == ids_of(model, ids, pixel_values)
    assert same_ids, "padding before the only row changes nothing"


@torch.no_grad()
def test_temperature_and_top_p_reach_the_sampling(model):
    run = (prompt(model, "What is it?"), torch.randn(1, 3, 24, 24))
    greedy = ids_of(model, *run)
    assert ids_of(model, *run, temperature=5.0) != greedy, "temperature goes to sample()"
    narrow = ids_of(model, *run, temperature=5.0, top_p=1e-6)
    assert narrow == greedy, "top_p goes to sample(): a tiny one leaves only the likeliest token"


@torch.no_grad()
def test_sampled_ids_are_the_same_for_the_same_seed(model):
    found = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        found.append(ids_of(model, prompt(model, "What is it?"), torch.ones(1, 3, 24, 24), temperature=1.0))
    assert found[0] == found[1] != found[2], "the seed decides what is drawn, and nothing else does"


def test_generate_stops_at_stop_ids_and_fills_with_padding(model):
    ids = torch.cat([prompt(model, "What is it?")] * 2)
    pixel_values = torch.randn(2, 3, 24, 24)
    free = model.generate(ids, pixel_values, max_new_tokens=20, stop_ids=[]).tolist()
    stops = [free[0][3], free[1][8]]
    ends = [next(i for i, token in enumerate(row) if token in stops) + 1 for row in free]
    assert ends[0] != ends[1]
    wanted = [row[:end] + [model.processor.tokenizer.pad_id] * (max(ends) - end) for row, end in zip(free, ends)]
    got = model.generate(ids, pixel_values, max_new_tokens=20, stop_ids=stops).tolist()
    assert got == wanted, "a row of generate() ends after its first stop, and is filled with padding"


def test_the_end_token_is_the_stop_unless_others_are_given(model, monkeypatch):
    ids, pixel_values = prompt(model, "What is it?"), torch.randn(1, 3, 24, 24)
    free = model.generate(ids, pixel_values, max_new_tokens=20, stop_ids=[])[0].tolist()
    monkeypatch.setattr(model.processor.tokenizer, "eos_id", free[6])
    got = model.generate(ids, pixel_values, max_new_tokens=20)[0].tolist()
    assert got == free[: free.index(free[6]) + 1], "without stop_ids generate() ends at the processor's end token"


def test_no_new_tokens_are_an_empty_answer(model):
    assert model.generate(torch.tensor([[5, 6]]), max_new_tokens=0).shape == (1, 0)


def streamed(tokenizer, ids: list[int]) -> list[str]:
    stops = [tokenizer.eos_id, tokenizer.special["###"]]
    return [piece for piece in stream_text((torch.tensor([i]) for i in ids), tokenizer, "###", stops) if piece]


def check_text(tokenizer, ids: list[int], wanted: str, words: str) -> None:
    text = "".join(streamed(tokenizer, ids))
    assert text == wanted, f"{words} (yours is {text!r}, it should be {wanted!r})"


def test_stream_is_the_text_of_the_tokens(tokenizer):
    text = " The small red fish is at the top."
    check_text(tokenizer, tokenizer.encode(text), text, "the pieces together are the text of all tokens")
    pieces = streamed(tokenizer, tokenizer.encode(text))
    assert len(pieces) > 5, f"text is yielded as soon as it cannot be the stop, not all at the end (pieces: {pieces})"


def test_stream_ends_at_the_stop_token_and_does_not_show_it(tokenizer):
    ids = tokenizer.encode(" red fish") + tokenizer.encode("###") + tokenizer.encode(" more")
    check_text(tokenizer, ids, " red fish", "the text ends at a token of stop_ids, which is not shown")


def test_stream_ends_at_the_end_token(tokenizer):
    ids = [*tokenizer.encode(" red fish"), tokenizer.eos_id, *tokenizer.encode(" more")]
    check_text(tokenizer, ids, " red fish", "the text ends at a token of stop_ids, here the end token")


def test_stream_ends_at_each_of_several_end_tokens(tokenizer):
    fish, more = tokenizer.encode(" red fish"), tokenizer.encode(" more")
    for end in (7, 300):
        steps = (torch.tensor([i]) for i in [*fish, end, *more])
        text = "".join(stream_text(steps, tokenizer, "###", [tokenizer.eos_id, 7, 300]))
        assert text == " red fish", f"the text ends at any of stop_ids (yours is {text!r}, it should be ' red fish')"


def test_stream_leaves_out_special_tokens(tokenizer):
    ids = [tokenizer.image_id, *tokenizer.encode(" red"), tokenizer.pad_id, *tokenizer.encode(" fish")]
    check_text(tokenizer, ids, " red fish", "special tokens, those in tokenizer.special, are not shown")


def test_stream_ends_at_a_stop_that_is_spelt_by_several_tokens(tokenizer):
    check_text(tokenizer, list(b"a###b"), "a", "the text ends before the stop, also if several tokens spell it")
    check_text(tokenizer, list(b"a##b###c"), "a##b", "the text ends before the stop, and not before a part of it")


def test_stream_holds_back_what_may_be_the_beginning_of_the_stop(tokenizer):
    for ids, wanted in ((b"a#b", ["a", "#b"]), (b"a##b", ["a", "##b"])):
        got = streamed(tokenizer, list(ids))
        words = "an end of the text that may begin the stop is held back until the next token shows whether it does"
        assert got == wanted, f"{words} (your pieces are {got}, they should be {wanted})"
    check_text(tokenizer, list(b"a##"), "a##", "what is held back is yielded at the end, if no stop came")
    check_text(tokenizer, [*b"a##", tokenizer.eos_id], "a##", "what is held back is yielded at an end token too")


def test_stream_takes_no_step_beyond_the_stop(tokenizer):
    steps = iter([torch.tensor([i]) for i in b"a###bc"])
    list(stream_text(steps, tokenizer, "###", [tokenizer.eos_id]))
    left = bytes(ids.item() for ids in steps)
    assert left == b"bc", f"after the stop no further step is taken (left of b'a###bc': {left}, it should be b'bc')"


def test_stream_shows_a_character_of_several_tokens_whole(tokenizer):
    text = "aé€😀z"
    got = streamed(tokenizer, list(text.encode()))
    words = "a character whose bytes are in several tokens is yielded once it is whole"
    assert got == list(text), f"{words} (your pieces are {got}, they should be {list(text)})"
    check_text(tokenizer, list("é".encode())[:1], "\ufffd", "a character that is cut short becomes U+FFFD at the end")
