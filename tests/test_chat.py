"""chat.py: what it refuses. What it shows is in test_terminal.py."""

import json
import math

import pytest
import torch

from minillava.checkpoint import load
from minillava.config import PRETRAINED
from minillava.errors import UserError
from minillava.evaluate import evaluate
from minillava.training.recipes import TOY, Recipe


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--temperature", "nan"], "temperature nan: must be 0"),
        (["--temperature", "-1"], "temperature -1.0: must be 0"),
        (["--temperature", "1e-300"], "temperature 1e-300: must be 0"),
        (["--temperature", "inf"], "temperature inf: must be 0"),
        (["--temperature", "1", "--top-p", "0"], "top_p 0.0: must be above 0"),
        (["--temperature", "1", "--top-p", "1.01"], "top_p 1.01: must be above 0"),
        (["--temperature", "1", "--top-p", "nan"], "top_p nan: must be above 0"),
        (["--top-p", "0.9"], "--top-p has no effect without --temperature"),
        (["--system", ""], "a system message must not be empty"),
        (["--system", "Hi ### Human"], "a system message must not contain ###"),
        (["--template", "brief", "--system", "Be kind."], "template has no system message"),
        (["--max-new-tokens", "0"], "max_new_tokens 0: must be"),
        (["--max-new-tokens", "1000000000"], "max_new_tokens 1,000,000,000: the model reads at most 1,024 tokens"),
        (["--seed", str(1 << 63)], "must be from 0 to"),
        (["--seed", "-1"], "must be from 0 to"),
    ],
)
def test_an_option_without_a_meaning_is_refused_by_name(piped, arguments, line):
    code, out, err = piped("--prompt", "Hi", *arguments)
    assert code == 2 and out == "" and line in err and "Traceback" not in err


@pytest.mark.parametrize(
    "options",
    [{"temperature": math.nan}, {"temperature": -0.5}, {"temperature": 1e-300}, {"max_new_tokens": -1}, {"top_p": 0.0}],
)
def test_so_is_it_in_python(options):
    model = load(PRETRAINED / "llava")
    with pytest.raises(UserError, match=next(iter(options))):
        model.chat(None, "Hi", **options)


@pytest.mark.parametrize(
    "change",
    [{"learning_rate": math.nan}, {"learning_rate": -1.0}, {"epochs": math.inf}, {"batch_size": 0}],
)
def test_so_is_a_recipe_that_trains_nothing(change):
    with pytest.raises(UserError, match=f"{next(iter(change))} .*: must be a positive number"):
        Recipe(**vars(TOY["stage1"]) | change)


def test_weights_too_large_to_compute_with_are_named_as_the_reason(tmp_path):
    model = load(PRETRAINED / "llava")
    with torch.no_grad():
        model.language_model.norm.weight.mul_(1e38)
    with pytest.raises(UserError, match="logits are not finite"):
        model.chat(None, "Hi", temperature=1.0)
    said = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "a"}]
    (tmp_path / "rows.json").write_text(json.dumps([{"id": "0", "type": "x", "conversations": said}]))
    with pytest.raises(UserError, match="logits are not finite"):
        evaluate(model, tmp_path / "rows.json")


def test_input_that_is_not_text_is_a_question_like_others(piped):
    code, out, err = piped("--no-image", stdin=b"what \xff\xfe \xed\xa0\x80 is this?\n\n")
    assert code == 0 and err == "" and "Assistant: " in out
