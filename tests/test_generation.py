"""Greedy decoding equals transformers' generate, token for token; stops, sampling and streaming."""

import pytest
import torch
from transformers import LlavaForConditionalGeneration, TopPLogitsWarper

from minillava import Llava, save
from minillava.inputs.conversation import encode_conversation
from minillava.model.generation import collect, generate_ids, nucleus, sample, stream_text
from minillava.model.lora import add_lora, merge_lora

PATCHES = 9


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


def test_greedy_is_transformers_generate(model, tmp_path):
    save(model, tmp_path / "model")
    theirs = LlavaForConditionalGeneration.from_pretrained(tmp_path / "model").eval()
    for pixel_values in torch.randn(3, 1, 3, 24, 24):
        ids = prompt(model, "What is it?")
        ours = model.generate(ids, pixel_values, max_new_tokens=40, stop_ids=[])
        expected = theirs.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=pixel_values,
            max_new_tokens=40,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=model.processor.tokenizer.pad_id,
        )
        assert ours.tolist() == expected[:, ids.shape[1] :].tolist()
        assert len(set(ours[0].tolist())) > 10


def test_a_left_padded_batch_gives_what_each_row_gives_by_itself(model):
    prompts = [prompt(model, question) for question in ("What is it?", "Is the small green fish near the bottom?")]
    pixel_values = torch.randn(2, 3, 24, 24)
    ids, mask = left_padded(model, prompts)
    together = model.generate(ids, pixel_values, max_new_tokens=20, stop_ids=[], attention_mask=mask)
    for row in range(2):
        single = model.generate(prompts[row], pixel_values[row : row + 1], max_new_tokens=20, stop_ids=[])
        assert together[row].tolist() == single[0].tolist()


def test_a_left_padded_batch_is_transformers_generate(model, tmp_path):
    save(model, tmp_path / "model")
    theirs = LlavaForConditionalGeneration.from_pretrained(tmp_path / "model").eval()
    questions = ("What is it?", "Is the small green fish near the bottom?", "Where?")
    ids, mask = left_padded(model, [prompt(model, question) for question in questions])
    pixel_values = torch.randn(3, 3, 24, 24)
    ours = model.generate(ids, pixel_values, max_new_tokens=20, stop_ids=[], attention_mask=mask)
    expected = theirs.generate(
        input_ids=ids,
        attention_mask=mask,
        pixel_values=pixel_values,
        max_new_tokens=20,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=model.processor.tokenizer.pad_id,
    )
    assert ours.tolist() == expected[:, ids.shape[1] :].tolist()


def test_a_compiled_decoder_is_one_graph_and_gives_the_same(model):
    """fullgraph raises where a graph would break; the "eager" backend needs no compiler."""
    runs = [(prompt(model, question), torch.randn(1, 3, 24, 24)) for question in ("What is it?", "Is it a fish?")]
    expected = [model.generate(*run, max_new_tokens=4, stop_ids=[]).tolist() for run in runs]
    model.language_model.compile(backend="eager", fullgraph=True)
    assert [model.generate(*run, max_new_tokens=4, stop_ids=[]).tolist() for run in runs] == expected


@torch.no_grad()
def test_greedy_with_cache_is_greedy_without(model):
    ids, pixel_values = prompt(model, "What is it?"), torch.randn(1, 3, 24, 24)
    expected = ids
    for _ in range(20):
        expected = torch.cat([expected, model(expected, pixel_values)[0][:, -1:].argmax(dim=-1)], dim=1)
    ours = model.generate(ids, pixel_values, max_new_tokens=20, stop_ids=[])
    assert ours.tolist() == expected[:, ids.shape[1] :].tolist()


@pytest.mark.parametrize("rows", [1, 2])
@torch.no_grad()
def test_each_new_token_costs_one_pass_of_length_one(model, rows):
    lengths = []
    model.language_model.register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
    ids = prompt(model, "What is it?").expand(rows, -1)
    model.generate(ids, torch.randn(rows, 3, 24, 24), max_new_tokens=5, stop_ids=[])
    assert lengths == [ids.shape[1], 1, 1, 1, 1]


def test_padding_before_a_single_row_changes_nothing(model):
    ids, pixel_values = prompt(model, "What is it?"), torch.randn(1, 3, 24, 24)
    padded = torch.nn.functional.pad(ids, (7, 0), value=model.processor.tokenizer.pad_id)
    mask = torch.nn.functional.pad(torch.ones_like(ids), (7, 0))
    single = model.generate(ids, pixel_values, max_new_tokens=20, stop_ids=[])
    assert model.generate(padded, pixel_values, max_new_tokens=20, stop_ids=[], attention_mask=mask).equal(single)


def test_what_lora_learnt_is_in_the_answer(model):
    run = (prompt(model, "What is it?"), torch.randn(1, 3, 24, 24))
    before = model.generate(*run, max_new_tokens=20, stop_ids=[])
    add_lora(model.language_model, rank=2, alpha=4.0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    apart = model.generate(*run, max_new_tokens=20, stop_ids=[])
    merge_lora(model.language_model)
    assert model.generate(*run, max_new_tokens=20, stop_ids=[]).equal(apart) and not apart.equal(before)


def test_a_row_keeps_its_stop_and_is_filled_until_the_last_row_stops():
    steps = iter([torch.tensor(ids) for ids in ([5, 5], [8, 6], [5, 6], [6, 9], [7, 7])])
    assert collect(steps, stop_ids=[8, 9], fill=0).tolist() == [[5, 8, 0, 0], [5, 6, 6, 9]]
    assert next(steps).tolist() == [7, 7]  # what comes after the last stop is never computed


def test_generate_stops_at_stop_ids_and_fills_with_padding(model):
    ids = torch.cat([prompt(model, "What is it?")] * 2)
    pixel_values = torch.randn(2, 3, 24, 24)
    free = model.generate(ids, pixel_values, max_new_tokens=20, stop_ids=[]).tolist()
    stops = [free[0][3], free[1][8]]
    ends = [next(i for i, token in enumerate(row) if token in stops) + 1 for row in free]
    assert ends[0] != ends[1]
    expected = [row[:end] + [model.processor.tokenizer.pad_id] * (max(ends) - end) for row, end in zip(free, ends)]
    assert model.generate(ids, pixel_values, max_new_tokens=20, stop_ids=stops).tolist() == expected


def test_the_end_token_is_the_stop_unless_others_are_given(model, monkeypatch):
    ids, pixel_values = prompt(model, "What is it?"), torch.randn(1, 3, 24, 24)
    free = model.generate(ids, pixel_values, max_new_tokens=20, stop_ids=[])[0].tolist()
    monkeypatch.setattr(model.processor.tokenizer, "eos_id", free[6])
    end = free.index(free[6]) + 1
    assert model.generate(ids, pixel_values, max_new_tokens=20)[0].tolist() == free[:end]


def test_samples_follow_the_softmax():
    logits, count = torch.tensor([2.0, 1.0, 0.0, -1.0, -2.0]), 20_000
    for temperature in (0.5, 1.0, 2.0):
        expected = (logits / temperature).softmax(dim=0) * count
        drawn = torch.bincount(sample(logits.expand(count, 5), temperature), minlength=5)
        assert ((drawn - expected) ** 2 / expected).sum() < 23.5  # chi-square, 4 degrees of freedom: 1 in 10,000


LOGITS = {
    "random": lambda: torch.randn(64, 50) * 3,
    "one sure": lambda: torch.randn(64, 50).index_fill(1, torch.tensor([7]), 30.0),
    "all equal": lambda: torch.zeros(3, 47),  # no share of them is exactly one of the numbers below
    "equal in pairs": lambda: torch.randn(64, 25).repeat_interleave(2, dim=1),
}


@pytest.mark.parametrize("name", LOGITS)
@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.55, 0.9, 0.999])
def test_the_nucleus_is_that_of_transformers(name, top_p):
    logits = LOGITS[name]()
    theirs = TopPLogitsWarper(top_p)(None, logits.clone()).softmax(dim=-1)
    ours = nucleus(logits.softmax(dim=-1), top_p)
    ours = ours / ours.sum(dim=-1, keepdim=True)
    if "equal" in name:  # which of two equal tokens is kept is arbitrary
        theirs, ours = theirs.sort(dim=-1).values, ours.sort(dim=-1).values
    assert ((ours > 0) == (theirs > 0)).all()
    torch.testing.assert_close(ours, theirs)


def test_the_nucleus_is_the_smallest_set_with_enough_probability():
    probabilities = torch.tensor([[0.125, 0.5, 0.0625, 0.25, 0.0625]])
    for top_p, kept in ((0.01, [1]), (0.5, [1]), (0.51, [1, 3]), (0.75, [1, 3]), (0.8, [0, 1, 3])):
        assert nucleus(probabilities, top_p).nonzero()[:, 1].tolist() == kept
    assert nucleus(probabilities, 1.0).equal(probabilities)


def test_samples_are_from_the_nucleus_after_the_temperature():
    logits, count = torch.tensor([2.0, 1.0, 0.0, -1.0, -2.0]), 20_000
    for temperature, kept in ((0.5, 1), (1.0, 2), (4.0, 4)):  # 0.8 of the probability
        expected = (logits[:kept] / temperature).softmax(dim=0) * count
        drawn = torch.bincount(sample(logits.expand(count, 5), temperature, 0.8), minlength=5)
        assert drawn[kept:].sum() == 0
        assert ((drawn[:kept] - expected) ** 2 / expected).sum() < 21.1  # chi-square, 3 degrees: 1 in 10,000


def test_top_p_reaches_the_sampling(model):
    ids, pixel_values = prompt(model, "What is it?"), torch.randn(1, 3, 24, 24)
    greedy = model.generate(ids, pixel_values, max_new_tokens=20, stop_ids=[])
    options = {"max_new_tokens": 20, "stop_ids": [], "temperature": 5.0}
    assert model.generate(ids, pixel_values, **options, top_p=1e-6).equal(greedy)
    assert not model.generate(ids, pixel_values, **options).equal(greedy)


def test_temperature_zero_takes_the_likeliest():
    logits = torch.tensor([[0.0, 3.0, 2.9], [1.0, -1.0, 0.9]])
    assert all(sample(logits, 0.0).tolist() == [1, 0] for _ in range(20))


def test_rows_are_sampled_from_their_own_logits():
    logits = torch.full((4, 6), -1e9)
    logits[range(4), [5, 0, 3, 2]] = 0.0
    assert sample(logits, 1.0).tolist() == [5, 0, 3, 2]


def test_sampled_text_is_the_same_for_the_same_seed(model):
    texts = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        embeddings = model.embed(prompt(model, "What is it?"), torch.ones(1, 3, 24, 24))
        texts.append([ids.item() for ids in generate_ids(model.language_model, embeddings, None, 15, temperature=1.0)])
    assert texts[0] == texts[1] != texts[2]


def pieces(tokenizer, ids: list[int]) -> list[str]:
    stops = [tokenizer.eos_id, tokenizer.special["###"]]
    return [piece for piece in stream_text((torch.tensor([i]) for i in ids), tokenizer, "###", stops) if piece]


def test_stream_ends_at_the_stop_token_and_does_not_show_it(tokenizer):
    ids = tokenizer.encode(" red fish") + tokenizer.encode("###") + tokenizer.encode(" more")
    assert "".join(pieces(tokenizer, ids)) == " red fish"


def test_stream_ends_at_the_end_token(tokenizer):
    ids = [*tokenizer.encode(" red fish"), tokenizer.eos_id, *tokenizer.encode(" more")]
    assert "".join(pieces(tokenizer, ids)) == " red fish"


def test_stream_ends_at_each_of_several_end_tokens(tokenizer):
    fish, more = tokenizer.encode(" red fish"), tokenizer.encode(" more")
    for end in (7, 300):
        steps = (torch.tensor([i]) for i in [*fish, end, *more])
        assert "".join(stream_text(steps, tokenizer, "###", [tokenizer.eos_id, 7, 300])) == " red fish"


def test_stream_leaves_out_special_tokens(tokenizer):
    ids = [tokenizer.image_id, *tokenizer.encode(" red"), tokenizer.pad_id, *tokenizer.encode(" fish")]
    assert "".join(pieces(tokenizer, ids)) == " red fish"


def test_stream_holds_back_what_may_be_the_beginning_of_the_stop(tokenizer):
    assert pieces(tokenizer, list(b"a#b")) == ["a", "#b"]
    assert pieces(tokenizer, list(b"a##b")) == ["a", "##b"]
    assert "".join(pieces(tokenizer, list(b"a###b"))) == "a"
    assert "".join(pieces(tokenizer, list(b"a##"))) == "a##"  # the model ended before the stop was complete
    assert "".join(pieces(tokenizer, [*b"a##", tokenizer.eos_id])) == "a##"


def test_stream_takes_no_step_beyond_the_stop(tokenizer):
    steps = iter([torch.tensor([i]) for i in b"a###bc"])
    list(stream_text(steps, tokenizer, "###", [tokenizer.eos_id]))
    assert [ids.item() for ids in steps] == list(b"bc")


def test_stream_shows_a_character_of_several_tokens_whole(tokenizer):
    text = "aé€😀z"
    assert pieces(tokenizer, list(text.encode())) == list(text)
    assert "".join(pieces(tokenizer, list("é".encode())[:1])) == "\ufffd"  # cut short


def test_no_new_tokens_are_an_empty_answer(model):
    assert model.generate(torch.tensor([[5, 6]]), max_new_tokens=0).shape == (1, 0)
