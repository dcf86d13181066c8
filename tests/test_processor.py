"""The processor: one object that holds everything needed to turn text and pictures into a model's inputs."""

import pytest

from minillava import Llava, Processor
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


def test_a_model_keeps_the_processor_that_it_was_given(tiny_config, processor):
    assert Llava(tiny_config, processor).processor is processor
