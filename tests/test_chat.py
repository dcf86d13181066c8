"""chat.py: what it refuses. What it shows is in test_terminal.py."""

import json
import math
import re

import pytest
import torch
from programs import ROOT, run

from lessons import exercise
from lessons.parts import PATHS
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
        (["--exer"], "--exercise must be written in full"),
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


@pytest.fixture
def write_exercise(tmp_path):
    """``write_exercise(part, **bodies)`` writes exercises/PART.py with these bodies. Returns the lines of the file."""

    def write(part: str, **bodies: str) -> list[str]:
        text = exercise.skeleton(part)
        for name, body in bodies.items():
            text = text.replace(f'raise NotImplementedError("{name} is yet to be written")', body)
        (tmp_path / "exercises").mkdir(exist_ok=True)
        (tmp_path / "exercises" / f"{part}.py").write_text(text)
        return text.splitlines()

    return write


def ask(folder) -> tuple[int, str, str]:
    done = run(ROOT / "chat.py", "--exercise", "--no-image", "--prompt", "Hello!", cwd=folder)
    return done.returncode, done.stdout, done.stderr


def test_with_exercise_the_model_runs_on_the_readers_bodies(tmp_path, write_exercise):
    right = run(ROOT / "chat.py", "--no-image", "--prompt", "Hello!").stdout
    for part in ("attention", "decoder", "generation", "lora"):
        write_exercise(part)
    code, out, err = ask(tmp_path)  # nothing is written: all bodies are the project's
    assert code == 0 and out == right and re.match(r"0 of \d\d bodies pass", err)
    assert [line.split()[0] for line in err.splitlines()[2:6]] == ["attention", "decoder", "generation", "lora"]
    write_exercise("generation", sample="return logits[:, :30].argmax(dim=-1)")  # the fast pass is not used
    code, out, err = ask(tmp_path)
    assert code == 0 and out != right and re.search(r"^generation +0 +1 +4 ", err, re.MULTILINE)


def test_with_exercise_a_body_that_raises_is_named_with_its_file_and_line(tmp_path, write_exercise):
    write_exercise("generation")  # its bodies are filled in, and call those of the decoder
    lines = write_exercise("decoder", rotate="return x[0].no_such_thing")
    code, out, err = ask(tmp_path)
    assert (code, out) == (2, "") and "Traceback" not in err
    place = f"exercises/decoder.py:{lines.index('    return x[0].no_such_thing') + 1} (rotate)"
    words = "AttributeError: 'Tensor' object has no attribute 'no_such_thing'"
    assert err.splitlines()[-1] == f"error: {place}: {words}"
    write_exercise("decoder", rotate="return None")
    code, out, err = ask(tmp_path)
    assert (code, out) == (2, "") and "Traceback" not in err
    words = (
        "error: AttributeError: 'NoneType' object has no attribute 'shape', in the project's append() of decoder.py; "
    )
    assert err.splitlines()[-1] == f"{words}one of your bodies may have returned what led to it"


def test_with_exercise_and_without_a_file_a_line_says_what_to_run(tmp_path, write_exercise):
    words = "error: exercises/ has no exercise yet: python -m lessons.exercise attention writes one\n"
    assert ask(tmp_path) == (2, "", words)
    write_exercise("lora")
    (tmp_path / "exercises" / "vision.py").write_text((ROOT / PATHS["vision"]).read_text() + "nothing\n")
    code, out, err = ask(tmp_path)
    assert (code, out) == (2, "") and re.fullmatch(
        r"error: exercises/vision\.py:\d+: NameError: name 'nothing' is not defined\n", err
    )
    (tmp_path / "exercises" / "vision.py").write_text("def (")
    assert ask(tmp_path) == (2, "", "error: exercises/vision.py, line 1: invalid syntax\n")
