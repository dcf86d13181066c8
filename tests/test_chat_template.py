"""Checkpoints' chat templates: each becomes a Template that writes the text that jinja renders."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from jinja2.exceptions import TemplateError
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from minillava.formats.chat_template import recognise, to_jinja
from minillava.inputs.conversation import encode_conversation
from minillava.inputs.templates import SYSTEM as SYSTEM_V0
from minillava.inputs.templates import TEMPLATES, VISION_SYSTEM, Template
from minillava.inputs.tokenizer import Tokenizer, train_bpe, write_tokenizer

# As the models' own files have them; "exact" is false where only the family is known.
REAL = json.loads((Path(__file__).parent / "chat_templates.json").read_text(encoding="utf-8"))
BY_NAME = {entry["model"]: entry for entry in REAL}
STYLES = {name: vars(template) for name, template in TEMPLATES.items()}
MARKS = ["<s>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
MARKS += ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
WORDS = ["red", "Fish", "two", "the  boat", "naïve", "你好", "🙂", "\n", "'s", '"', "{{ x }}", "###", "\\n"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tokenizer with the special tokens of all these models."""
    folder = tmp_path_factory.mktemp("chat_template")
    write_tokenizer(folder, train_bpe("What is red? The fish is. " * 9, 300))
    stored = json.loads((folder / "tokenizer.json").read_text())
    for mark in MARKS:
        last = stored["added_tokens"][-1]
        stored["added_tokens"].append({**last, "id": last["id"] + 1, "content": mark})
    (folder / "tokenizer.json").write_text(json.dumps(stored))
    return folder


def oracle(folder: Path, family: str, eos: str = "</s>") -> PreTrainedTokenizerFast:
    """transformers' tokenizer, which renders templates with jinja."""
    bos = "<|begin_of_text|>" if family == "llama-3" else "<s>"
    return AutoTokenizer.from_pretrained(folder, bos_token=bos, eos_token=eos)


def conversations(picture: bool) -> list[list[dict]]:
    """Of one question, and of several turns, with and without the last answer."""
    rng = random.Random(0)
    texts = [[" ".join(rng.choices(WORDS, k=4)).strip() or "x" for _ in range(count)] for count in (1, 2, 3, 4, 5) * 4]
    if picture:
        texts = [[f"<image>\n{first}", *rest] for first, *rest in texts]
    return [[{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(said)] for said in texts]


def messages(turns: list[dict], as_parts: bool) -> list[dict]:
    """Turns in transformers' form."""
    out = []
    for turn in turns:
        content = turn["value"].removeprefix("<image>\n")
        if as_parts:
            content = [{"type": "image"}] * ("<image>" in turn["value"]) + [{"type": "text", "text": content}]
        out.append({"role": "user" if turn["from"] == "human" else "assistant", "content": content})
    return out


def render(other: PreTrainedTokenizerFast, text: str, turns: list[dict], as_parts: bool = False) -> str:
    asked, options = len(turns) % 2 == 1, {"date_string": "26 Jul 2024", "tokenize": False}
    said = messages(turns, as_parts)
    return other.apply_chat_template(said, chat_template=text, add_generation_prompt=asked, **options)


def written(tokenizer: Tokenizer, turns: list[dict], style: dict) -> str:
    return tokenizer.decode(encode_conversation(turns, tokenizer, Template(**style), num_image_tokens=1)[0])


@pytest.mark.parametrize("spelling", ["as it is", "escaped", "newline at the end"])
@pytest.mark.parametrize("model", BY_NAME)
def test_a_checkpoints_template_writes_what_jinja_renders(folder, model, spelling):
    family, exact, text = (BY_NAME[model][key] for key in ("family", "exact", "chat_template"))
    if spelling == "escaped" and "\\n" not in text and "%}\n" not in text:
        text = text.replace("\n", "\\n")  # within quotes, jinja takes both for the same
    text += "\n" * (spelling == "newline at the end" and not text.endswith("\n"))
    found = recognise(text, STYLES)
    assert (found.family, found.exact) == (family, exact)
    llava = model.startswith("llava-hf")
    tokenizer, other = Tokenizer.from_pretrained(folder), oracle(folder, family)
    for turns in conversations(picture=llava):
        if "as first published" in model and len(turns) % 2 == 0:
            continue  # it always asks for an answer
        ours = written(tokenizer, turns, found.style)
        if llava and len(turns) > 1:  # their space after an answer was "</s>" in training, which a model has to learn
            assert ours.count("</s>") == len(turns) // 2
            ours = ours.replace("</s>", " ")
        assert ours == render(other, text, turns, as_parts=llava)


SYSTEM = "You are a pirate.\nArr! {{ x }}"


@pytest.mark.parametrize("model", [name for name in BY_NAME if "Llama-3.2" not in name])  # which adds dates
def test_a_system_message_is_written_as_jinja_writes_it(folder, model):
    family, text = (BY_NAME[model][key] for key in ("family", "chat_template"))
    llava = model.startswith("llava-hf")
    content = [{"type": "text", "text": SYSTEM}] if llava else SYSTEM
    template = Template(**recognise(text, STYLES).style).with_system(SYSTEM)
    turns = conversations(picture=llava)[0]
    said = [{"role": "system", "content": content}, *messages(turns, as_parts=llava)]
    other = oracle(folder, family)
    theirs = other.apply_chat_template(said, chat_template=text, add_generation_prompt=True, tokenize=False)
    assert written(Tokenizer.from_pretrained(folder), turns, vars(template)) == theirs and SYSTEM in theirs


def test_our_own_system_messages_are_written_in_the_same_place():
    given = {"v0": SYSTEM_V0, "v1": SYSTEM_V0.replace("human", "user"), "llama-2": VISION_SYSTEM}
    given |= {"llama-3": VISION_SYSTEM, "chatml": "You are a helpful assistant."}
    for name, message in given.items():
        assert TEMPLATES[name].with_system(message) == TEMPLATES[name]
        assert TEMPLATES[name].with_system("Be kind.").with_system(message) == TEMPLATES[name]


def test_the_system_message_is_the_templates_own():
    text = BY_NAME["HuggingFaceTB/SmolLM2-135M-Instruct"]["chat_template"]
    own = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    assert recognise(text, STYLES).style["opening"] == f"<|im_start|>system\n{own}<|im_end|>\n<|im_start|>user\n"
    changed = recognise(text.replace(own, "You\\'re a pirate.\nArr!"), STYLES)
    assert changed.exact and "system\nYou're a pirate.\nArr!<|im_end|>" in changed.style["opening"]


def test_the_tokens_of_the_tokenizer_are_those_of_the_template(folder):
    """eos_token is not "</s>" in every tokenizer: StableLM Zephyr has <|endoftext|>."""
    text = BY_NAME["TinyLlama/TinyLlama-1.1B-Chat-v1.0"]["chat_template"]
    style = recognise(text, STYLES, None, "<|endoftext|>").style
    other, tokenizer = oracle(folder, "zephyr", "<|endoftext|>"), Tokenizer.from_pretrained(folder)
    for turns in conversations(picture=False):
        assert written(tokenizer, turns, style) == render(other, text, turns)
    assert recognise(to_jinja(style), STYLES, None, "<|endoftext|>").style == style


@pytest.mark.parametrize("picture", [True, False])
@pytest.mark.parametrize("family", TEMPLATES)
def test_our_own_templates_write_what_their_jinja_renders(folder, family, picture):
    style = vars(TEMPLATES[family])
    tokenizer, other = Tokenizer.from_pretrained(folder), oracle(folder, family)
    for turns in conversations(picture):
        if family == "plain" and (not picture or len(turns) > 2):
            continue
        ours = written(tokenizer, turns, style)
        for as_parts in (True,) if picture else (True, False):
            assert ours == render(other, to_jinja(style), turns, as_parts)


@pytest.mark.parametrize("roles", [["system", "user"], ["assistant"], ["user", "user"], ["user", "assistant", "tool"]])
def test_our_jinja_refuses_what_we_cannot_write(folder, roles):
    said = [{"role": role, "content": "Yes."} for role in roles]
    with pytest.raises(TemplateError, match="roles must be user, assistant"):
        oracle(folder, "v1").apply_chat_template(said, chat_template=to_jinja(STYLES["v1"]), tokenize=False)


def test_what_we_write_is_recognised_with_any_opening():
    for name, template in TEMPLATES.items():
        assert recognise(to_jinja(vars(template)), STYLES) == (name, vars(template), True)
    for opening in ('a "quoted"\n\\text\\n', "", "你好 ", "'"):
        style = vars(replace(TEMPLATES["chatml"], opening=opening))
        assert recognise(to_jinja(style), STYLES) == ("chatml", style, True)


def test_a_family_is_recognised_by_its_marks():
    turns = "{% for message in messages %}"
    for text, name in (
        ("{{ message['role'].upper() + ': ' }}{{ '<image>\\n' }}{{ 'ASSISTANT:' }}", "v1"),
        ("{{ '<<SYS>>\\n' + system + '\\n<</SYS>>' }}{{ bos_token + '[INST] ' + content + ' [/INST]' }}", "llama-2"),
        ("{{ '<|user|>\n' + message['content'] + eos_token + '\n<|assistant|>' }}", "zephyr"),
    ):
        assert recognise(turns + text, STYLES) == (name, vars(TEMPLATES[name]), False)
    for text in (
        "{{ bos_token + '[INST] ' + content + ' [/INST]' }}",  # Mistral's: no system message
        "{{ '<|user|>\n' + message['content'] + '<|end|>\n<|assistant|>' }}{{ eos_token }}",  # Phi 3's
        "{{ '<start_of_turn>' + role }}",
        "",
    ):
        assert recognise(turns + text, STYLES) is None


def test_a_family_has_the_system_message_that_can_be_read_off():
    header = "{{ '<|start_header_id|>' + role + '<|end_header_id|>\\n\\n' + content + '<|eot_id|>' }}"
    given = "{{ '<|start_header_id|>system<|end_header_id|>\\n\\nBe kind.<|eot_id|>' }}"
    for text, system in ((header, ""), (given + header, given[4:-4].replace("\\n", "\n"))):
        family, style, exact = recognise(text, STYLES)
        assert (family, exact) == ("llama-3", False)
        assert style["opening"] == "<|begin_of_text|>" + system + TEMPLATES["llama-3"].human
