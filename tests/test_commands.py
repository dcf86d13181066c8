"""The command-line programs: what they print, and one line with exit code 2 for each mistake."""

import json
import shutil
from pathlib import Path

import pytest
from programs import run

from minillava.inputs.image import ImageProcessor
from minillava.outline import read_llava, read_vision

ROOT = Path(__file__).parent.parent


def fails_with(line: str, *arguments: str | Path) -> None:
    """Check for exit code 2 and a single line on standard error that contains ``line``."""
    done = run(*arguments)
    assert done.returncode == 2, done.stderr
    assert line in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory, draw_world) -> Path:
    """A small run of all steps: picture-book world, tokenizer, vision tower, notes, decoder, stage 1, stage 2."""
    out = tmp_path_factory.mktemp("commands") / "out"
    sizes = ("--image-size", "60", "--patch-size", "10")
    out.mkdir()
    draw_world(out / "data", 200, grid=6)
    done = run("train.py", "--stage", "2", "--from-scratch", "--max-steps", "6", "--out", out, *sizes)
    assert done.returncode == 0, done.stderr
    for name in ("vision", "notes", "decoder", "stage1", "stage2"):
        assert f"{name}: training" in done.stdout
        steps = (out / f"{name}.metrics.jsonl").read_text().splitlines()
        losses = [json.loads(step)["loss"] for step in steps]
        assert len(losses) == (4 if name in ("notes", "stage1") else 6)
        assert (out / f"{name}.loss.png").exists()
        if name in ("vision", "notes"):
            assert sum(losses[-3:]) < sum(losses[:3])
    return out


def test_a_run_shows_answers_about_pictures_that_are_in_no_training(trained):
    """Stage 1, which learns from captions, is asked for captions."""
    stored = json.loads((trained / "data" / "heldout.json").read_text())
    for name in ("vision", "notes", "decoder", "stage1", "stage2"):
        html = (trained / f"{name}.report.html").read_text(encoding="utf-8")
        page = json.loads(html.split('id="data">')[1].split("</script>")[0])
        assert (page["name"], page["state"]) == (name, "finished") and not (trained / f"{name}.best").exists()
        types = {stored[card["row"]]["type"] for card in page["cards"]}
        answered = [[step for step, _ in card["answers"]] for card in page["cards"]]
        if name == "stage1":
            assert types == {"caption"} and answered == [[0, 1, 2, 4]] * 6 and page["scores"]["descriptions"] == 10
        elif name == "stage2":
            assert len(types) == 6 and answered == [[0, 1, 3, 6]] * 6
            assert sum(page["scores"]["types"].values()) > 100 and len(page["scores"]["types"]) == 9
        else:
            assert not page["cards"] and not page["scores"]


def test_sizes_of_ones_own_tower_reach_every_part(trained, tmp_path):
    for name, vision in ("vision", read_vision(trained / "vision")), ("stage2", read_llava(trained / "stage2").vision):
        assert (vision.image_size, vision.patch_size) == (60, 10)
        assert ImageProcessor.from_pretrained(trained / name) == ImageProcessor().fitting("pad", 60)
    row = json.loads((trained / "data" / "notes.json").read_text())[0]
    assert len(row["patch_words"]) == 36
    (tmp_path / "words" / "data").mkdir(parents=True)
    (tmp_path / "words" / "data" / "words.json").write_text(json.dumps([row]))
    stage_0 = ("train.py", "--stage", "0", "--out")
    fails_with("vision: a tower of 60 pixels with patches of 10", *stage_0, trained, "--image-size", "64")
    fails_with("words.json: has 36 cells a picture, the tower 64", *stage_0, tmp_path / "words", "--patch-size", "8")
    fails_with("must be whole patches, and at most 768", *stage_0, tmp_path / "o", "--image-size", "65")
    fails_with("must be whole patches, and at most 768", *stage_0, tmp_path / "o", "--image-size", "224")
    fails_with("only a vision tower trained from scratch", "train.py", "--stage", "1", "--patch-size", "4")


def test_a_trained_model_is_evaluated_with_one_line_of_json(trained, tmp_path):
    rows = json.loads((trained / "data" / "heldout.json").read_text())[:24]
    (tmp_path / "few.json").write_text(json.dumps(rows))
    done = run(
        "-m",
        "minillava.evaluate",
        "--model",
        trained / "stage2",
        "--data",
        tmp_path / "few.json",
        "--image-folder",
        trained / "data",
        "--answers",
        tmp_path / "answers.jsonl",
    )
    assert done.returncode == 0, done.stderr
    scores = json.loads(done.stdout.splitlines()[-1])
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [line["reference"] for line in answers] == [row["conversations"][1]["value"] for row in rows]
    right = [line["answer"] == line["reference"] for line in answers if "right" in line]
    assert scores["accuracy"] == round(sum(right) / len(right), 4)
    asked = [row for row in rows if row["type"] not in ("detail", "caption")]
    assert scores["questions"] == len(asked)
    assert {"accuracy", "blind", "shuffled", "majority", "by_type", "precision", "recall"} <= scores.keys()
    assert set(scores["by_type"]) == {row["type"] for row in asked}


def test_finished_parts_are_used_again_and_a_finished_stage_is_kept(trained):
    done = run("train.py", "--stage", "0", "--out", trained)
    assert done.returncode == 0 and done.stdout.count("already trained") == 2
    fails_with("stage2 already exists", "train.py", "--stage", "2", "--max-steps", "6", "--out", trained)
    assert run("train.py", "--stage", "2", "--max-steps", "6", "--resume", "--out", trained).returncode == 0


def test_chat_prints_only_the_answer(trained):
    image = trained / "data" / "images" / "heldout" / "000000.png"
    done = run("chat.py", "--model", trained / "stage2", "--image", image, "--prompt", "Where is this?")
    assert done.returncode == 0 and done.stderr == ""
    assert len(done.stdout.splitlines()) == 1


def test_chat_talks_over_several_turns_about_a_fresh_scene(trained):
    done = run(
        "chat.py", "--model", trained / "stage2", "--max-new-tokens", "8", stdin="What is the setting?\nHow many?\n\n"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Assistant:") == 2
    assert done.stdout.count("▀") == 64 * 32  # the picture, two pixels per character


def test_a_drawn_scene_is_the_same_for_the_same_seed(trained):
    first, second = (run("chat.py", "--model", trained / "stage2", "--seed", "5", stdin="\n").stdout for _ in range(2))
    assert first == second and "▀" in first


def test_lora_leaves_an_adapter_that_chat_reads(trained, tmp_path):
    data = ("--data", trained / "data" / "instruct.json", "--image-folder", trained / "data", "--max-steps", "2")
    stage_2 = ("train.py", "--stage", "2", "--lora", "4", *data)
    done = run(*stage_2, "--model", trained / "stage1", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    adapter = tmp_path / "out" / "stage2"
    assert (adapter / "adapter_model.safetensors").exists() and not (adapter / "model.safetensors").exists()
    image = trained / "data" / "images" / "heldout" / "000000.png"
    done = run("chat.py", "--model", adapter, "--image", image, "--prompt", "Where is this?")
    assert done.returncode == 0 and done.stderr == ""
    fails_with("has rank 4", *stage_2, "--model", adapter, "--lora", "3", "--out", tmp_path / "other")
    fails_with("--lora: stage 1", "train.py", "--stage", "1", "--lora", "4")
    fails_with("no finished stage 1", "train.py", "--stage", "2", "--preset", "consumer", "--out", tmp_path / "other")


def test_wrong_paths_are_named(trained, tmp_path):
    fails_with("nowhere: no such folder", "chat.py", "--model", tmp_path / "nowhere", "--prompt", "Hi")
    fails_with("none.png: no such picture", "chat.py", "--model", trained / "stage2", "--image", tmp_path / "none.png")
    fails_with(
        "none.json",
        "train.py",
        "--stage",
        "1",
        "--out",
        tmp_path / "o",
        "--model",
        trained / "stage1",
        "--data",
        tmp_path / "none.json",
    )
    fails_with("none.json", "-m", "minillava.evaluate", "--model", trained / "stage2", "--data", tmp_path / "none.json")
    fails_with(
        "nowhere: no such folder",
        "train.py",
        "--stage",
        "1",
        "--out",
        tmp_path / "o",
        "--vision",
        tmp_path / "nowhere",
        "--decoder",
        trained / "decoder",
    )


def test_a_broken_picture_is_named(trained, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG no picture")
    fails_with(
        "broken.png: not a readable picture",
        "chat.py",
        "--model",
        trained / "stage2",
        "--image",
        tmp_path / "broken.png",
        "--prompt",
        "Hi",
    )
    rows = [
        {
            "id": "1",
            "image": "broken.png",
            "conversations": [{"from": "human", "value": "<image>\nHi"}, {"from": "gpt", "value": "Hello."}],
        }
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    fails_with(
        "row 0",
        "train.py",
        "--stage",
        "1",
        "--out",
        tmp_path / "o",
        "--model",
        trained / "stage1",
        "--data",
        tmp_path / "rows.json",
    )


def test_a_bad_row_is_named(trained, tmp_path):
    good = json.loads((trained / "data" / "captions.json").read_text())[:2]
    (tmp_path / "rows.json").write_text(json.dumps([*good, {"id": "3"}]))
    fails_with(
        "rows.json: row 2",
        "train.py",
        "--stage",
        "2",
        "--out",
        tmp_path / "o",
        "--model",
        trained / "stage1",
        "--data",
        tmp_path / "rows.json",
        "--image-folder",
        trained / "data",
    )


def test_a_checkpoint_of_another_shape_is_refused(trained, tmp_path):
    shutil.copytree(trained / "stage1", tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["text_config"]["intermediate_size"] = 100
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    fails_with("has shape", "chat.py", "--model", tmp_path / "model", "--prompt", "Hi")


def test_a_device_that_is_not_there_is_one_line():
    fails_with("--device", "train.py", "--stage", "1", "--device", "cuda:99")
    fails_with("--device", "chat.py", "--prompt", "Hi", "--device", "nowhere")
