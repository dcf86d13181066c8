"""Shared fixtures: transformers quiet and offline, one small tokenizer, and tiny models with random weights."""

import io
import os
import random
import sys
from multiprocessing.pool import ThreadPool
from types import SimpleNamespace
from typing import TYPE_CHECKING

# Set before transformers is imported: it logs errors only, looks nothing up on the hub, shows no progress bars.
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

import judge
import pytest
import torch

if TYPE_CHECKING:  # with --exercise, minillava may only be imported after StandIn is installed: fixtures do it
    from minillava import Llava, Tokenizer
    from minillava.config import LlavaConfig

torch.set_num_threads(1)  # the models are so small that threads only add overhead


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--exercise", action="store_true", help="run the tests of a part on your exercises/PART.py")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--exercise"):
        config.pluginmanager.register(judge.Judge(judge.named_parts(config.args)))
        config.option.reportchars = ""  # the output ends with the verdicts, not with a list of failed tests
        config.option.verbose -= 1
        if config.option.tbstyle == "auto":
            config.option.tbstyle = "no"


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def smollm2():
    """The path of SmolLM2's file. Without its package the tests that need it are skipped, but fail in CI."""
    from minillava.errors import UserError
    from minillava.hub import resolve_decoder

    try:
        return resolve_decoder("smollm2")
    except UserError as error:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(str(error))


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium. Without it, or playwright, the tests that need it are skipped, but fail in CI."""
    from lessons.browser import chromium
    from minillava.errors import UserError

    try:
        with chromium() as browser:
            yield browser
    except UserError as error:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(str(error))


@pytest.fixture
def open_page(browser):
    """``open_page(selector, path)`` opens a page from its file, in a window of its own without a network, and waits for
    ``selector``. The page must load nothing and report no error."""
    windows, wrong = [], []

    def show(selector: str, path, width: int = 1440, scheme: str = "light"):
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True, has_touch=width < 700
        )
        window = context.new_page()
        window.on("pageerror", lambda error: wrong.append(str(error)))
        window.on("console", lambda message: message.type == "error" and wrong.append(message.text))
        window.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
        window.on("request", lambda asked: asked.url.startswith(("file:", "data:")) or wrong.append(asked.url))
        window.goto(path.as_uri())
        window.wait_for_selector(selector)
        windows.append(context)
        return window

    yield show
    for context in windows:
        context.close()
    assert not wrong


@pytest.fixture
def piped(monkeypatch, capsys):
    """``piped(*arguments, stdin=bytes)`` runs chat.py with pipes: exit code, stdout, stderr."""

    import chat
    from minillava.errors import run_program

    def run(*arguments: str, stdin: bytes | str = b"") -> tuple[int, str, str]:
        content = stdin.encode() if isinstance(stdin, str) else stdin
        monkeypatch.setattr(sys, "argv", ["chat.py", *arguments])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))
        code = 0
        try:
            run_program(chat.main)
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return run


def assert_no_overlap(window) -> None:
    """No two sections of a page overlap."""
    boxes = [box.bounding_box() for box in window.locator("section").all()]
    for index, one in enumerate(boxes):
        for other in boxes[index + 1 :]:
            apart = [one[at] + one[size] <= other[at] + 1 or other[at] + other[size] <= one[at] + 1
                     for at, size in (("x", "width"), ("y", "height"))]  # fmt: skip
            assert any(apart)


def randomise(module: torch.nn.Module) -> torch.nn.Module:
    """Give every parameter random values, norms and biases too: at ones and zeros, swapping two would go unnoticed."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
            elif parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return module.eval()


def batch_of(dataset, rows: list[int], epoch: int = 0, seed: int = 0) -> dict[str, torch.Tensor]:
    """The batch of ``rows`` that training with ``seed`` makes in ``epoch``."""
    return dataset.collate([dataset[seed, epoch, row] for row in rows])


def cut_up(task, recipe) -> tuple[list[dict[str, torch.Tensor]], list[list[int]]]:
    """The first batch as the training loop splits it: its micro-batches, and the row numbers in each."""
    from minillava.training.distributed import SINGLE
    from minillava.training.order import Order

    order = Order(len(task.dataset), task.size, recipe, 0, SINGLE)
    order.steps = range(1)
    return [task.collate([task.dataset[key] for key in keys]) for keys in order], order.micro_batches(0)


@pytest.fixture(scope="session")
def draw_world():
    """``draw_world(folder, count, grid=8)`` writes a picture-book in a second, where ``write_world`` takes nine: with
    few held-out pictures and questions, and drawn in this process."""
    from data.picturebook import write

    def draw(folder, count: int, grid: int = 8) -> None:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in {"HELDOUT_PICTURES": 20, "UNSEEN_PICTURES": 10, "PER_TYPE": 4}.items():
                patch.setattr(write, name, value)
            patch.setattr(write.multiprocessing, "get_context", lambda method: SimpleNamespace(Pool=ThreadPool))
            write.write_world(folder, count, 0, grid)

    return draw


@pytest.fixture(name="randomise")
def randomise_fixture():
    return randomise


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory) -> "Tokenizer":
    from minillava import Tokenizer
    from minillava.inputs.templates import SYSTEM
    from minillava.inputs.tokenizer import train_bpe, write_tokenizer

    rng = random.Random(0)
    lines = [
        f"The {rng.choice(['small', 'big', 'tiny'])} {rng.choice(['red', 'blue', 'green'])} "
        f"{rng.choice(['fish', 'boat', 'tree'])} is {rng.choice(['at the top', 'near the bottom', 'in the middle'])}."
        for _ in range(300)
    ]
    lines += [f"{SYSTEM}\nHuman: What is it?\nAssistant: It is"] * 100
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, train_bpe("\n".join(lines), 420))
    return Tokenizer.from_pretrained(folder)


@pytest.fixture
def tiny_config(tokenizer) -> "LlavaConfig":
    """Nine patches. Hidden, intermediate and projection sizes all differ, so that a mix-up is an error."""
    from minillava.config import DecoderConfig, LlavaConfig, VisionConfig

    vision = VisionConfig(
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=24,
        patch_size=8,
        projection_dim=20,
    )
    decoder = DecoderConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=12,
        tie_word_embeddings=True,
        max_position_embeddings=256,
        eos_token_id=tokenizer.eos_id,
        pad_token_id=tokenizer.pad_id,
    )
    return LlavaConfig(vision, decoder, image_token_id=tokenizer.image_id)


@pytest.fixture
def tiny_model(tiny_config, tokenizer) -> "Llava":
    from minillava import Llava, Processor
    from minillava.inputs.image import ImageProcessor

    torch.manual_seed(1)
    processor = Processor(tokenizer, ImageProcessor.for_size(24), tiny_config.num_image_tokens)
    return randomise(Llava(tiny_config, processor))


@pytest.fixture
def lively_model(tiny_model) -> "Llava":
    """tiny_model with o_proj and down_proj times 4, so that greedy decoding does not repeat one token."""
    with torch.no_grad():
        for block in tiny_model.language_model.layers:
            for part in (block.self_attn.o_proj, block.mlp.down_proj):
                part.weight.mul_(4)
    return tiny_model


class PowerCut(BaseException):
    """No Exception: nothing is saved before it."""


@pytest.fixture
def cut_power():
    """``cut_power(task)`` makes the sixth call of ``task.collate`` raise PowerCut."""

    def cut(task) -> None:
        collate, calls = task.collate, []

        def collate_or_fail(examples):
            calls.append(examples)
            if len(calls) == 6:
                raise PowerCut
            return collate(examples)

        task.collate = collate_or_fail

    return cut
