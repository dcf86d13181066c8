"""The explainer's page in a browser, opened from a file without a network: what it shows are the model's numbers."""

import base64
import json
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from conftest import assert_no_overlap
from PIL import Image

from lessons import example
from minillava import look

PROMPT = "What is <b>it</b>?"
MIDDLES = """(canvas, side) => { // the colour in the middle of each patch
    const context = canvas.getContext("2d"), at = place => Math.floor((place + 0.5) * canvas.width / side);
    return Array.from({length: side * side}, (_, patch) =>
        [...context.getImageData(at(patch % side), at(Math.floor(patch / side)), 1, 1).data].slice(0, 3)); }"""


@pytest.fixture
def opened(open_page, tmp_path) -> Callable:
    """``opened(html)``: the page from a file, in a window of its own."""

    def show(html: str, width: int = 1440, scheme: str = "light"):
        (tmp_path / "page.html").write_text(html, encoding="utf-8")
        return open_page("#answer button", tmp_path / "page.html", width, scheme)

    return show


@pytest.fixture
def image() -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8))


@pytest.fixture
def run(lively_model, image) -> look.Run:
    return look.run_model(lively_model, image, PROMPT, max_new_tokens=6)


def expected_colours(picture: np.ndarray, values: torch.Tensor) -> np.ndarray:
    """picture (patches, 3) darkened where values (patches,) are low, orange where they are high, blue below 0."""
    share = (values.abs() / values.abs().max().clamp(min=1e-9)).numpy()[:, None]
    dark = picture + 0.75 * (1 - share) * (np.array([18, 20, 28]) - picture)
    light = np.where(values.numpy()[:, None] < 0, np.array([60, 110, 255]), np.array([255, 140, 0]))
    return dark + 0.6 * share * (light - dark)


def shown(run: look.Run, window, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The colours in the middle of each patch, on a canvas of the page and in the picture that lies under its map."""
    width = window.locator(name).evaluate("canvas => canvas.width")
    middles = ((np.arange(3) + 0.5) * width / 3).astype(int) * 24 // width  # the picture's pixels there
    picture = np.asarray(look.seen(run), dtype=float)[np.ix_(middles, middles)].reshape(9, 3)
    return np.array(window.locator(name).evaluate(MIDDLES, 3)), picture


def patches_of(run: look.Run) -> slice:
    first = int((run.ids == run.model.config.image_token_id).nonzero()[0])
    return slice(first, first + 9)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_the_page_opens_from_a_file_without_a_network_and_fits_the_window(run, opened, width, scheme):
    window = opened(look.page(look.collect(run, PROMPT, 6)), width=width, scheme=scheme)
    assert window.locator("#prompt").inner_text() == PROMPT  # as text, not as HTML
    assert window.locator("#answer button").count() == len(run.answer)
    assert window.locator("#row button").count() == len(run.ids)
    assert window.evaluate("document.documentElement.scrollWidth") <= width
    ink, paper = (
        sum(map(int, re.findall(r"\d+", window.evaluate(f"getComputedStyle(document.body).{name}"))[:3])) / 3
        for name in ("color", "backgroundColor")
    )
    assert (paper - ink > 150) if scheme == "light" else (ink - paper > 150)
    assert_no_overlap(window)


@pytest.mark.parametrize("whole", [True, False])
def test_a_click_on_a_word_shows_where_the_model_looked_for_it(run, opened, monkeypatch, whole):
    monkeypatch.setattr(look, "WHOLE", look.WHOLE if whole else 0)
    window = opened(look.page(look.collect(run, PROMPT, 6)))
    weights = look.attention_weights(run.model.language_model, run.embeddings())
    patches, overlays = patches_of(run), []
    falls = look.occlusion(run, look.paint(run, look.regions(3, 3)))
    for token in (0, 3):
        window.locator("#answer button").nth(token).click()
        layer, row = window.evaluate("state.layer"), run.start - 1 + token
        mean = weights[layer].mean(dim=0)[row]
        maps = {
            "#attention": mean[patches],
            "#rollout": look.rollout(weights)[row, patches],
            "#relevancy": look.relevancy(run)[token, patches],
            "#occlusion": falls[:, token],
        }
        for name, values in maps.items():
            colours, picture = shown(run, window, name)
            assert np.abs(colours - expected_colours(picture, values)).max() < 4, name
        assert f"{100 * mean[patches].sum():.0f} % of it" in window.locator("#attentionText").inner_text()
        chosen = window.locator("#answer button[aria-pressed=true]")
        assert chosen.count() == 1 and chosen.get_attribute("data-row") == str(row)
        alphas = window.locator("#row button").evaluate_all(
            "all => all.map(button => Number((button.style.backgroundColor.match(/, ([^,]*)\\)$/) || [0, 1])[1]))"
        )
        for place, kind in enumerate(look.kinds(run, PROMPT)):
            if kind != "picture":
                assert alphas[place] == pytest.approx(0.9 * (mean[place] / mean.max()).item(), abs=6e-3)
        overlays.append(window.locator("#attention").evaluate("canvas => canvas.toDataURL()"))
    assert overlays[0] != overlays[1]


def test_a_click_on_a_head_shows_its_attention_and_a_second_click_the_mean(run, opened):
    window = opened(look.page(look.collect(run, PROMPT, 6)))
    weights = look.attention_weights(run.model.language_model, run.embeddings())
    row = 4  # a token of the system message sees no patch
    window.locator("#row button").nth(row).click()
    assert "Click a token of the answer" in window.locator("#next").inner_text()
    assert not weights[..., row, patches_of(run)].any()
    row = patches_of(run).stop - 3  # a visual token
    window.locator("#row button").nth(row).click()
    for head, expected in ((2, weights[1, 2, row]), (2, weights[1].mean(dim=0)[row])):
        window.locator("#heads button").nth(4 + head).click()
        colours, picture = shown(run, window, "#attention")
        assert np.abs(colours - expected_colours(picture, expected[patches_of(run)])).max() < 4
    thumbnail, picture = shown(run, window, "#heads button:nth-of-type(6) canvas")
    assert np.abs(thumbnail - expected_colours(picture, weights[1, 1, row, patches_of(run)])).max() < 4


@pytest.mark.parametrize("whole", [True, False])
def test_the_sliders_give_the_probabilities_of_pytorch(run, opened, monkeypatch, whole):
    if not whole:  # the highest logits, and the others in groups
        monkeypatch.setattr(look, "LOGITS", 0)
        monkeypatch.setattr(look, "TOP", 50)
    window = opened(look.page(look.collect(run, PROMPT, 6)))
    logits = look.answer_logits(run, run.pixels)[0]
    window.locator("#answer button").nth(2).click()
    for temperature, top_p in ((1, 1), (0.5, 1), (2, 1), (2, 0.6), (0.35, 0.9), (0, 1), (1.5, 0.05)):
        window.locator("#temperature").fill(str(temperature))
        window.locator("#topP").fill(str(top_p))
        if temperature:
            expected = (logits[2] / temperature).softmax(dim=-1)
        else:
            expected = torch.nn.functional.one_hot(logits[2].argmax(), logits.shape[1]).float()
        ordered, ids = expected.sort(descending=True)
        kept = ordered.cumsum(dim=0) - ordered < top_p  # while the likelier ones have less than top_p together
        ordered = ordered * kept / (ordered * kept).sum()
        bars = window.locator(".bar").evaluate_all(
            "all => all.map(bar => [bar.dataset.id, bar.dataset.probability, bar.querySelector('span').textContent])"
        )
        assert len(bars) == 10
        for (index, probability, text), reference in zip(bars, ids.tolist()):
            assert temperature == 0 or int(index) == reference
            assert float(probability) == pytest.approx(ordered[ids == int(index)].item(), rel=2e-3, abs=1e-6)
            assert text == f"{100 * float(probability):.2f} %"
        assert window.locator("#temperatureValue").inner_text() == str(temperature)


def test_a_click_on_a_patch_paints_it_over_and_names_its_nearest_words(run, opened):
    data = look.collect(run, PROMPT, 6)
    window = opened(look.page(data))
    _, near = look.nearest_words(run, run.model.encode_images(run.pixels)[0])
    painted = look.paint(run, look.regions(3, 3))
    answers, falls = look.answers_without(run, painted, 6), look.occlusion(run, painted)
    window.locator("#answer button").nth(1).click()
    for patch, name in ((5, "#picture"), (7, "#painted")):
        size = window.locator(name).bounding_box()["width"]
        place = {"x": (patch % 3 + 0.5) * size / 3, "y": (patch // 3 + 0.5) * size / 3}
        window.locator(name).click(position=place)
        text = window.locator("#instead").text_content()
        assert text.startswith(answers[patch])
        percents = [float(number) / 100 for number in re.findall(r"([\d.]+) %", text.removeprefix(answers[patch]))]
        before = look.answer_logits(run, run.pixels)[0, 1].softmax(dim=-1)[run.answer[1]].item()
        assert percents == pytest.approx([before, before * (-falls[patch, 1]).exp().item()], abs=6e-5)
        colours, _ = shown(run, window, "#painted")
        assert colours[patch].tolist() == [123, 117, 104]
        words = window.locator("#near").text_content().split("\n")
        assert len(words) == 5
        best = run.model.processor.tokenizer.decode_bytes([near[patch, 0].item()]).decode("utf-8", "replace")
        if best.isprintable():
            assert words[0].startswith(f"“{best.replace(' ', '·')}”")
    changed = sum(answer != data["answer"] for answer in answers)
    assert f"{changed} of 9 regions change it" in window.locator("#paintText").inner_text()


def test_an_answer_that_is_cut_ends_with_an_ellipsis_and_other_rows_cannot_be_clicked(run, opened, monkeypatch):
    monkeypatch.setattr(look, "WHOLE", 0)
    monkeypatch.setattr(look, "KEPT", (2 + 4) * len(run.ids) * 3)
    window = opened(look.page(look.collect(run, PROMPT, 6)))
    assert window.locator("#answer").inner_text().endswith("…")
    assert window.locator("#answer button").count() == 3
    assert window.locator("#row button:enabled").count() == 4  # the last token of the question, and three of the answer


def test_the_example_is_the_page_about_the_shipped_model(opened):
    stored = example.PAGE.read_text(encoding="utf-8")
    assert len(stored) < 2_000_000
    data = json.loads(stored.split('id="data">')[1].split("</script>")[0])
    ours = json.loads(example.example().split('id="data">')[1].split("</script>")[0])
    advice = "out of date: python -m lessons.example writes it again"
    assert look.page(data) == stored, advice
    for name in ("prompt", "answer", "ids", "kinds", "words", "answers", "boxes", "near"):
        assert data[name] == ours[name], advice
    for name, kind in (("attention", np.uint16), ("falls", np.float32), ("topLogits", np.float32)):
        one, other = (np.frombuffer(base64.b64decode(values[name]), kind).astype(float) for values in (data, ours))
        assert one.shape == other.shape and np.abs(one - other).max() < 0.02 * np.abs(other).max(), advice
    window = opened(stored)
    assert window.locator("#answer").inner_text().strip().startswith(data["answer"])
    with Image.open(example.PAGE.with_suffix(".png")) as picture:
        assert picture.width == 1440
