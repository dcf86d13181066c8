"""The page about a training in a browser, opened from a file without a network: it shows the numbers of the logs."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from conftest import assert_no_overlap
from test_heldout import make_with, rows  # noqa: F401  a fixture
from test_loop import RECIPE, make, world  # noqa: F401  a fixture
from test_report import HOSTILE, asking, lines_of

from minillava.training import answers, report
from minillava.training.loop import Run, train
from minillava.training.report import Report


@pytest.fixture
def opened(open_page) -> Callable:
    """``opened(path)``: the page of a training in a window of its own."""
    return partial(open_page, "#tables section")


@pytest.fixture(scope="module")
def run(rows, tmp_path_factory) -> Path:  # noqa: F811
    """A run with held-out rows, of six pictures."""
    out = tmp_path_factory.mktemp("run") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answers, "LENGTH", 8)
        patch.setattr(answers, "SCORED", 9)
        train(make_with(rows), replace(RECIPE, eval_every=4), Run(out, max_steps=8))
    return out


def points_of(window, chart: int, look: str) -> list[list[float]]:
    """[step, value] of a curve, from the places of its path and of the ticks."""
    svg = window.locator("#charts svg").nth(chart)
    labels = svg.locator("text").evaluate_all(
        "all => all.map(t => [t.getAttribute('text-anchor'), t.getAttribute('x'), t.getAttribute('y'), t.textContent])"
    )
    up = [(float(y) - 4, float(text.replace(",", ""))) for anchor, _, y, text in labels if anchor == "end"]
    across = [(float(x), float(text.replace(",", ""))) for anchor, x, _, text in labels if anchor == "middle"]
    path = svg.locator(f"path.{look}").get_attribute("d")
    places = [tuple(map(float, place.split(","))) for place in path.removeprefix("M").removesuffix("h0").split("L")]

    def value(place: float, ticks: list[tuple[float, float]]) -> float:
        (first, low), (last, high) = ticks[0], ticks[-1]
        return low + (high - low) * (place - first) / (last - first)

    return [[value(x, across), value(y, up)] for x, y in places]


def test_the_curves_are_where_their_values_are(run, opened):
    window = opened(run.with_name("out.report.html"))
    metrics, heldout = lines_of(run, "metrics"), lines_of(run, "heldout")
    most = max(line["loss"] for line in [*metrics, *heldout])
    for look, lines in (("noise", metrics), ("other", heldout)):
        found = points_of(window, 0, look)
        assert [round(step) for step, _ in found] == [line["step"] for line in lines]
        assert [value for _, value in found] == pytest.approx([line["loss"] for line in lines], abs=0.005 * most)
    rates = [line["learning_rate"] for line in metrics]
    assert [value for _, value in points_of(window, 2, "main")] == pytest.approx(rates, abs=0.005 * max(rates))


def test_a_touch_of_a_chart_shows_the_values_there(run, opened):
    window = opened(run.with_name("out.report.html"), width=390)
    metrics, svg = lines_of(run, "metrics"), window.locator("#charts svg").first
    readout = window.locator(".readout").first
    assert f"each step {metrics[-1]['loss']:.4g} (step 8)" in readout.inner_text()
    box = svg.bounding_box()
    svg.hover(position={"x": 52 + (box["width"] - 52 - 12) * 3 / 8, "y": 90})
    assert f"each step {metrics[2]['loss']:.4g} (step 3)" in readout.inner_text()
    assert svg.locator(".cursor").count() == 1
    window.locator("h1").hover()
    assert "(step 8)" in readout.inner_text() and svg.locator(".cursor").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_the_page_fits_the_window_and_shows_pictures_with_their_answers(run, opened, width, scheme):
    window = opened(run.with_name("out.report.html"), width=width, scheme=scheme)
    assert window.evaluate("document.documentElement.scrollWidth") <= width
    ink, paper = (
        sum(map(int, re.findall(r"\d+", window.evaluate(f"getComputedStyle(document.body).{name}"))[:3])) / 3
        for name in ("color", "backgroundColor")
    )
    assert (paper - ink > 150) if scheme == "light" else (ink - paper > 150)
    assert window.locator("#state").inner_text() == "Finished: 8 of 8 steps." and window.title() == "stage2: finished"
    heldout = lines_of(run, "heldout")
    cards = window.locator("#cards section").all()
    assert len(cards) == len(heldout[0]["answers"]) == 6
    for index, card in enumerate(cards):
        given = [line["answers"][index] for line in heldout]
        assert card.locator("b").inner_text() == given[0]["question"]
        assert card.locator("p").inner_text() == f"In the file: {given[0]['reference']}"
        words = [f"step {line['step']}{one['answer'] or '(nothing)'}" for line, one in zip(heldout, given)]
        assert [re.sub(r"\s+", "", text) for text in card.locator("li").all_text_contents()] == [
            re.sub(r"\s+", "", text) for text in words
        ]
    assert window.locator("#cards img").evaluate_all("all => all.every(one => one.naturalWidth === 64)")
    table = [row.locator("th, td").all_text_contents() for row in window.locator("#scores tr").all()]
    scores = heldout[-1]["scores"]
    percents = {kind: f"{100 * share:.0f} %" for kind, share in scores["exact"].items()}
    expected = [[kind, str(count), percents[kind]] for kind, count in scores["types"].items()]
    assert table == [["type", "questions", "exact"], *expected] and len(expected) >= 8
    assert_no_overlap(window)


def test_text_of_rows_is_shown_as_text(rows, tmp_path, opened, monkeypatch):  # noqa: F811
    monkeypatch.setattr(answers, "LENGTH", 2)
    stored = json.loads(rows.read_text())[:3]
    for row in stored:
        row["conversations"][0]["value"], row["conversations"][1]["value"] = f"<image>\n{HOSTILE}", HOSTILE
        row["type"] = HOSTILE
    path = rows.with_name("shown.json")
    path.write_text(json.dumps(stored))
    train(asking(path), RECIPE, Run(tmp_path / "out", max_steps=1))
    window = opened(tmp_path / "out.report.html")
    assert window.locator("#cards b").first.text_content() == HOSTILE
    assert window.locator("#scores th").last.text_content() == HOSTILE
    assert window.locator("img").count() == 3 and window.locator("script").count() == 2


def test_a_training_that_goes_on_is_loaded_again_and_one_that_was_killed_is_told(world, tmp_path, opened, monkeypatch):  # noqa: F811
    kept = []
    for name in ("PAUSE", "PATIENCE"):
        monkeypatch.setattr(report, name, 0)
    monkeypatch.setattr(report, "write_whole", lambda path, fill: kept.append(fill))
    train(make(world, "vision"), RECIPE, Run(tmp_path / "out", max_steps=3))
    for fill, name in ((kept[0], "first"), (kept[1], "old")):
        with open(tmp_path / f"{name}.html", "wb") as file:
            fill(file)
    window = opened(tmp_path / "first.html")
    assert window.locator("#state").inner_text() == "Running: 0 of 3 steps."
    assert window.locator("#charts svg").count() == 0 and not window.locator("#asked").is_visible()
    assert "killed" not in window.locator("#written").inner_text()
    window.clock.install()
    window.reload()
    (tmp_path / "first.html").write_bytes((tmp_path / "old.html").read_bytes())
    window.clock.run_for(16_000)
    window.wait_for_selector("#charts svg")
    assert window.locator("#state").inner_text().startswith("Running: 1 of 3 steps, about ")
    window.clock.set_fixed_time(4_000_000_000_000)  # in the year 2096
    window.reload()
    assert "may have been killed" in window.locator("#written").inner_text()


def test_values_that_are_not_finite_are_marked(world, tmp_path, opened):  # noqa: F811
    gradients = [2.0, math.inf, 3.0, 1.0]
    metrics = [{"step": n, "loss": 1.0, "gradient_norm": g, "learning_rate": 0.1} for n, g in enumerate(gradients, 1)]
    task = make(world, "vision")
    page = Report(task, RECIPE, Run(tmp_path / "out"), 4, {"data": ""}, "torch.float16", metrics, None, [])
    page.write("finished")
    window = opened(tmp_path / "out.report.html")
    assert [chart.locator(".lost").count() for chart in window.locator("#charts svg").all()] == [0, 1, 0]
    found = points_of(window, 1, "noise")
    assert [round(step) for step, _ in found] == [1, 3, 4]
    assert [value for _, value in found] == pytest.approx([2, 3, 1], abs=0.03)
