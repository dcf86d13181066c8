"""The explainer: its numbers are the model's, its formulas the papers', and its page loads and runs nothing foreign."""

import base64
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from programs import run as run_program

from minillava import look, save
from minillava.inputs.conversation import encode_conversation
from minillava.model import decoder as decoder_module

PROMPT = "What is <b>it</b>?"


@pytest.fixture
def image() -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8))


@pytest.fixture
def run(lively_model, image) -> look.Run:
    return look.run_model(lively_model, image, PROMPT, max_new_tokens=6)


def numbers(text: str, kind: type, *shape: int) -> torch.Tensor:
    """The numbers in the page's base64, as look.js reads them."""
    array = np.frombuffer(base64.b64decode(text), np.dtype(kind).newbyteorder("<"))
    return torch.from_numpy(array.reshape(shape).copy())


def test_the_answer_is_the_models(run, image):
    text = look.text_of(run.model.processor, run.answer.tolist())
    assert len(set(run.answer.tolist())) > 1
    assert text == run.model.chat(image, PROMPT, max_new_tokens=6)


def test_answers_end_at_their_stop(run, image, monkeypatch):
    processor = run.model.processor
    said = processor.tokenizer.encode("It is here.", special=False)
    spelled = [*said, *processor.tokenizer.encode("###", special=False)]
    assert look.stop_at(processor, [*said, processor.tokenizer.eos_id, 65]) == len(said) + 1
    assert look.stop_at(processor, [*spelled, 65, 66]) == len(spelled)
    assert look.stop_at(processor, said) == len(said)
    for ids in (spelled, [*said, processor.tokenizer.eos_id]):
        assert look.text_of(processor, ids) == "It is here."
    monkeypatch.setattr(look, "stop_at", lambda processor, ids: 2)
    assert look.answers_without(run, run.pixels, 6) == [look.text_of(processor, run.answer[:2].tolist())]
    assert look.run_model(run.model, image, PROMPT, 6).answer.tolist() == run.answer[:2].tolist()


def test_an_answer_that_was_given_is_explained_with_the_talk_before_it(lively_model, image):
    history, answer = [("Is it red?", "It is blue.")], "A small fish."
    given = look.run_model(lively_model, image, PROMPT, 6, history, answer)
    turns = [("human", "<image>\nIs it red?"), ("gpt", "It is blue."), ("human", PROMPT), ("gpt", answer)]
    rows = [{"from": speaker, "value": text} for speaker, text in turns]
    tokenizer = lively_model.processor.tokenizer
    whole, _ = encode_conversation(rows, tokenizer, num_image_tokens=9)
    prompt, _ = encode_conversation(rows[:3], tokenizer, num_image_tokens=9)
    assert given.start == len(prompt)
    assert given.ids.tolist() == whole[: len(given.ids)]
    assert tokenizer.decode(given.answer.tolist()).strip() == answer


def test_attention_weights_are_transformers(tiny_model, tmp_path):
    from transformers import LlavaForConditionalGeneration  # takes seconds; the other tests do not need it

    save(tiny_model, tmp_path / "model")
    theirs = LlavaForConditionalGeneration.from_pretrained(tmp_path / "model", attn_implementation="eager").eval()
    ids = torch.randint(300, (1, 15))
    with torch.no_grad():
        expected = theirs.model.language_model(input_ids=ids, output_attentions=True).attentions
        ours = look.attention_weights(tiny_model.language_model, tiny_model.embed(ids))
    torch.testing.assert_close(ours, torch.cat(expected), rtol=1e-4, atol=1e-6)


def test_attention_rows_sum_to_one_and_equal_brute_force(run):
    decoder, config = run.model.language_model, run.model.config.decoder
    weights = look.attention_weights(decoder, run.embeddings())
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:-1]))
    # One row of the first layer, one head and one token at a time; the row's query is rotated by its position.
    row, group = len(run.ids) - 2, config.num_attention_heads // config.num_key_value_heads
    x = decoder.layers[0].input_layernorm(run.embeddings())[0]
    attention = decoder.layers[0].self_attn

    def turned(vector: list[float], position: int) -> list[complex]:
        half = config.head_dim // 2
        pairs = [complex(vector[i], vector[i + half]) for i in range(half)]
        angles = [position * config.rope_theta ** (-2 * i / config.head_dim) for i in range(half)]
        return [pair * complex(np.cos(angle), np.sin(angle)) for pair, angle in zip(pairs, angles)]

    with torch.no_grad():
        q = attention.q_proj(x).unflatten(-1, (-1, config.head_dim)).tolist()  # T, heads, d
        k = attention.k_proj(x).unflatten(-1, (-1, config.head_dim)).tolist()
    for head in range(config.num_attention_heads):
        query = turned(q[row][head], row)
        scores = [
            sum((a * b.conjugate()).real for a, b in zip(query, turned(k[token][head // group], token)))
            for token in range(row + 1)
        ]
        expected = (torch.tensor(scores) / config.head_dim**0.5).softmax(dim=0)
        torch.testing.assert_close(weights[0, head, row, : row + 1], expected, rtol=1e-3, atol=1e-5)
        assert not weights[0, head, row, row + 1 :].any()


def test_rollout_is_abnars_and_zuidemas_formula():
    weights = torch.rand(3, 2, 4, 4).tril()
    weights /= weights.sum(dim=-1, keepdim=True)
    expected = torch.zeros(4, 4)
    mixed = [sum(layer) / 2 * 0.5 + 0.5 * torch.eye(4) for layer in weights]
    for i in range(4):  # the sum over all paths i <- a <- b <- j through three layers
        for j in range(4):
            expected[i, j] = sum(mixed[2][i, a] * mixed[1][a, b] * mixed[0][b, j] for a in range(4) for b in range(4))
    ours = look.rollout(weights)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(ours.sum(dim=-1), torch.ones(4))


def test_swapping_the_attention_function_changes_no_result_and_is_undone(run):
    decoder, original = run.model.language_model, decoder_module.attend
    with torch.no_grad():
        expected = decoder(run.embeddings())
        with look.kept_attention() as kept:
            ours = decoder(run.embeddings())
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.cat(kept), look.attention_weights(decoder, run.embeddings()))
    assert decoder_module.attend is original


def test_relevancy_is_chefers_formula_with_gradients_by_differences(run, monkeypatch):
    """Each gradient d logit / d weight is measured: one weight is changed by a little, and the model runs again."""
    ids = torch.tensor([65, *[run.model.config.image_token_id] * 9, 70, 71, 72])  # short: each weight is changed twice
    run = replace(run, ids=ids, start=12)
    decoder, token, row = run.model.language_model.double(), run.answer[0], run.start - 1
    weights = look.attention_weights(decoder, run.embeddings())
    relevance = look.relevancy(run)[0]
    change, first = {}, look.formula

    def logit(layer: int, head: int, place: int, by: float) -> float:
        change.update(layer=layer, calls=0)

        def formula(q, k):
            result = first(q, k)
            if change["calls"] == layer:
                result[0, head, row, place] += by
            change["calls"] += 1
            return result

        monkeypatch.setattr(look, "formula", formula)
        with torch.no_grad(), look.kept_attention():
            return decoder.lm_head(decoder(run.embeddings()))[0, row, token].item()

    # In the last layer only the row itself reaches its logit, so R = R_before + A_row R_before with the row's weights.
    last, step = len(weights) - 1, 1e-2
    heads, length = weights.shape[1], len(run.ids)

    def slope(head: int, place: int) -> float:
        return (logit(last, head, place, step) - logit(last, head, place, -step)) / (2 * step)

    gradient = torch.tensor([[slope(head, place) for place in range(length)] for head in range(heads)])
    mine = (weights[last, :, row] * gradient).clamp(min=0).mean(dim=0)  # (T,)
    monkeypatch.setattr(look, "formula", first)
    with look.kept_attention() as kept:
        hidden = decoder(run.embeddings())
    below = torch.eye(length)
    for weight, down in zip(kept[:-1], torch.autograd.grad(decoder.lm_head(hidden)[0, row, token], kept[:-1])):
        below = below + (weight * down).clamp(min=0).mean(dim=1)[0].detach() @ below
    torch.testing.assert_close(relevance, below[row] + mine @ below, rtol=1e-2, atol=1e-3)


def test_probabilities_are_softmax_of_logits_also_from_the_groups(run, monkeypatch):
    with torch.no_grad():
        logits = run.model(run.ids[None], run.pixels)[0][0, run.rows]
    torch.testing.assert_close(look.answer_logits(run, run.pixels)[0], logits, rtol=1e-4, atol=1e-5)
    for temperature in (0.5, 1.0, 2.0):
        expected = (logits / temperature).softmax(dim=-1)
        for most, tolerance in ((look.LOGITS, 1e-6), (0, 1e-3)):  # whole, and the highest with the rest in groups
            monkeypatch.setattr(look, "LOGITS", most)
            monkeypatch.setattr(look, "TOP", 50)
            top, tail, sizes = look.top_logits(logits)
            assert top.values.shape[1] + sum(sizes) == logits.shape[1]
            rest = ((tail / temperature).exp() * torch.tensor(sizes)).sum(dim=1, keepdim=True)
            weights = (top.values / temperature).exp()
            ours = weights / (weights.sum(dim=1, keepdim=True) + rest)
            torch.testing.assert_close(ours, expected.gather(1, top.indices), rtol=tolerance, atol=tolerance)
            monkeypatch.undo()


def test_occlusion_is_the_model_on_the_painted_picture(run, image):
    boxes = look.regions(3, 2)
    assert boxes == [(0, 0, 1, 1), (0, 1, 1, 3), (1, 0, 3, 1), (1, 1, 3, 3)]
    painted = look.paint(run, boxes)
    falls, answers = look.occlusion(run, painted), look.answers_without(run, painted, 6)
    model, colour = run.model, (123, 117, 104)  # CLIP's mean: 0.4815, 0.4578, 0.4082
    for (top, left, bottom, right), fall, answer in zip(boxes, falls, answers):
        painted = image.copy()
        painted.paste(colour, (left * 8, top * 8, right * 8, bottom * 8))
        assert answer == model.chat(painted, PROMPT, max_new_tokens=6)
        log_p = []
        for picture in (image, painted):
            with torch.no_grad():
                logits = model(run.ids[None], model.processor.image(picture)[None])[0][0, run.rows]
            log_p.append(logits.log_softmax(dim=-1).gather(1, run.answer[:, None])[:, 0])
        torch.testing.assert_close(fall, log_p[0] - log_p[1], rtol=1e-3, atol=1e-4)
    assert falls.abs().max() > 0.01


def test_nearest_words_have_the_largest_cosines(run):
    table = run.model.language_model.embed_tokens.weight.detach()
    values, ids = look.nearest_words(run, 3 * table[[65, 300]], count=2)
    assert ids[:, 0].tolist() == [65, 300]
    torch.testing.assert_close(values[:, 0], torch.ones(2))
    best = torch.cosine_similarity(table[65], table, dim=-1)
    best[list(run.model.processor.tokenizer.special.values())] = -2
    torch.testing.assert_close(values[0], best.topk(2).values)
    special = list(run.model.processor.tokenizer.special.values())
    assert not {*special} & {*look.nearest_words(run, table[special], count=2)[1].flatten().tolist()}


def test_the_data_is_the_models_whole_or_with_mean_heads_and_the_answers_rows(run, monkeypatch):
    weights = look.attention_weights(run.model.language_model, run.embeddings())
    length, count = len(run.ids), len(run.answer)
    for most in (look.WHOLE, 0):
        monkeypatch.setattr(look, "WHOLE", most)
        data = look.collect(run, PROMPT, 6)
        first = data["firstRow"]
        shown = weights if most else weights.mean(dim=1, keepdim=True)
        assert first == (0 if most else run.start - 1) and data["heads"] == shown.shape[1]
        ours = numbers(data["attention"], np.uint16, data["layers"], data["heads"], -1).float() / 65535
        begin = 0
        for row in range(first, length):
            end = begin + row + 1
            torch.testing.assert_close(ours[..., begin:end], shown[..., row, : row + 1], rtol=0, atol=1e-5)
            begin = end
        assert begin == ours.shape[-1]
        ids = numbers(data["topIds"], np.int32, count, -1).long()
        logits = torch.zeros(ids.shape).scatter(1, ids, numbers(data["topLogits"], np.float32, count, -1))
        torch.testing.assert_close(logits, look.answer_logits(run, run.pixels)[0], rtol=1e-4, atol=1e-5)
        assert numbers(data["falls"], np.float32, -1, count).shape[0] == len(data["boxes"]) == len(data["answers"]) == 9
        assert numbers(data["rollout"], np.float32, count, -1).shape == (count, length)
        kinds = data["kinds"]
        assert kinds.count("picture") == 9 and kinds[data["firstPatch"] : data["firstPatch"] + 9] == ["picture"] * 9
        asked = [index for index, kind in zip(data["ids"], kinds) if kind == "question"]
        assert run.model.processor.tokenizer.decode(asked).strip() == PROMPT
        assert kinds[run.start :] == ["answer"] * count


def test_a_long_answer_of_a_large_model_is_explained_up_to_a_token(run, monkeypatch):
    monkeypatch.setattr(look, "WHOLE", 0)
    monkeypatch.setattr(look, "KEPT", (2 + 4) * len(run.ids) * 3)
    data = look.collect(run, PROMPT, 6)
    assert data["cut"] and data["ids"] == run.ids[: run.start + 3].tolist()


def test_the_picture_is_what_the_tower_sees(run, image):
    assert np.abs(np.asarray(look.seen(run), dtype=int) - np.asarray(image)).max() <= 1


def test_the_still_shows_where_the_model_looked_above_and_what_mattered_below(run):
    still = np.asarray(look.still(run), dtype=int)
    count = len(run.answer)
    assert still.shape == (240, 8 + (1 + count) * 104, 3)
    picture = np.asarray(look.seen(run).resize((96, 96), Image.Resampling.NEAREST), dtype=int)
    assert (still[20:116, 8:104] == picture).all()
    first = int((run.ids == run.model.config.image_token_id).nonzero()[0])
    falls = look.occlusion(run, look.paint(run, look.regions(3, 8))).clamp(min=0).T  # (N, 9)
    for token in range(count):
        for place, values in enumerate((look.relevancy(run)[token, first : first + 9], falls[token])):
            share = (values / values.max()).view(3, 3).numpy().repeat(32, axis=0).repeat(32, axis=1)[..., None]
            dark = picture * (1 - 0.75 * (1 - share)) + np.array([18, 20, 28]) * 0.75 * (1 - share)
            expected = dark * (1 - 0.6 * share) + np.array([255, 140, 0]) * 0.6 * share
            left, top = 8 + (1 + token) * 104, 20 + place * 104
            assert np.abs(still[top : top + 96, left : left + 96] - expected).max() < 3


def test_the_page_loads_nothing_and_text_cannot_become_a_script(run):
    hostile = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\u2028<!--"
    data = look.collect(run, PROMPT, 6) | {"prompt": hostile, "answer": hostile}
    data["words"] = dict.fromkeys(data["words"], hostile)
    html = look.page(data)
    assert not re.search(r"https?:|//[\w.]+\.\w+/|@import|<link|<iframe|\bimport\(|fetch\(|XMLHttp|WebSocket", html)
    assert "default-src 'none'" in html
    assert html.count("<script") == html.count("</script>") == 2 and "<img" not in html and "<!--" not in html
    inside = html.split('id="data">')[1].split("</script>")[0]
    assert json.loads(inside)["prompt"] == json.loads(inside)["answer"] == hostile
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", html)


def test_the_command_writes_a_page_under_two_megabytes_and_names_mistakes(tmp_path):
    page, still = tmp_path / "new" / "page.html", tmp_path / "still.png"
    done = run_program("-m", "minillava.look", "--prompt", "Where is this?", "--out", page, "--png", still)
    assert done.returncode == 0, done.stderr
    assert Image.open(still).width > 100
    assert 100_000 < page.stat().st_size < 2_000_000
    for line, *arguments in (
        ("nothing.png: no such picture", "--image", tmp_path / "nothing.png", "--out", page),
        ("must not contain <image>", "--prompt", "a <image>", "--out", page),
        ("at most 1024", "--max-new-tokens", "1020", "--out", page),
        ("cannot be written", "--max-new-tokens", "1", "--out", tmp_path),
    ):
        failed = run_program("-m", "minillava.look", *arguments)
        assert failed.returncode == 2 and line in failed.stderr, failed.stderr
        assert len(failed.stderr.strip().splitlines()) == 1, failed.stderr
