"""The processor: one object that holds everything needed to turn text and pictures into a model's inputs."""

import json

import pytest

from minillava import Llava, Processor, load, save
from minillava.errors import UserError
from minillava.inputs.conversation import encode_conversation
from minillava.inputs.image import ImageProcessor
from minillava.inputs.templates import TEMPLATES

TURNS = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A red fish."}]


@pytest.fixture
def processor(tokenizer) -> Processor:
    return Processor(tokenizer, ImageProcessor.for_size(24), 9)


@pytest.mark.parametrize("image_first", [True, False])
@pytest.mark.parametrize("template", ["v0", "brief", "plain"])
def test_rows_are_encoded_with_all_that_the_model_has(processor, tokenizer, template, image_first):
    processor.template = TEMPLATES[template]
    expected = encode_conversation(TURNS, tokenizer, TEMPLATES[template], 9, image_first)
    assert processor.encode(TURNS, image_first) == expected


def test_the_form_of_stage_1_leaves_the_processor_as_it_is(processor):
    captions = processor.for_captions()
    assert captions.template is TEMPLATES["brief"] is captions.for_captions().template
    assert processor.template is TEMPLATES["v0"]
    assert (captions.tokenizer, captions.image, captions.num_image_tokens) == (processor.tokenizer, processor.image, 9)


def test_an_answer_ends_on_the_end_token_and_on_a_stop_that_is_one_token(processor, tokenizer):
    assert processor.stop_ids == [tokenizer.eos_id, *tokenizer.encode("###")]
    processor.template = TEMPLATES["plain"]  # its stop, a newline, is not a special token
    assert processor.stop_ids == [tokenizer.eos_id]


def test_every_end_token_of_a_folder_ends_an_answer(tiny_model, tmp_path):
    """config.json and generation_config.json may each have one id or several, as Llama 3's."""
    tokenizer = tiny_model.processor.tokenizer
    save(tiny_model, tmp_path / "llava")
    path = tmp_path / "llava" / "generation_config.json"
    for theirs, in_config, expected in (
        ([7, 300, 9], 11, [7, 300, 9, 11]),
        (7, [11, 12], [7, 11, 12]),
        (None, [11, 12], [11, 12]),
        ([], None, []),
    ):
        path.write_text(json.dumps({"eos_token_id": theirs}))
        config = json.loads((tmp_path / "llava" / "config.json").read_text())
        config["text_config"]["eos_token_id"] = in_config
        (tmp_path / "llava" / "config.json").write_text(json.dumps(config))
        stops = load(tmp_path / "llava").processor.stop_ids
        assert set(stops) == {*expected, tokenizer.eos_id, tokenizer.special["###"]}
    path.write_text(json.dumps({"eos_token_id": "</s>"}))
    with pytest.raises(UserError, match="eos_token_id is"):
        load(tmp_path / "llava")


def test_a_model_keeps_the_processor_that_it_was_given(tiny_config, processor):
    assert Llava(tiny_config, processor).processor is processor
