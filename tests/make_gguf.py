"""A small LLaMA, and GGUF files of it, written with the `gguf` package as llama.cpp's converter writes them."""

import functools
from pathlib import Path

import gguf
import numpy as np
import torch
from make_tokenizers import train_byte_level
from transformers import LlamaConfig, LlamaForCausalLM

HEADS, KV_HEADS, WIDTH, LAYERS = 6, 2, 96, 2
# tokenizer.ggml.pre -> the family that has it
FAMILIES = {"gpt-2": "GPT-2", "smollm": "SmolLM2", "llama-bpe": "Llama-3"}
stored_tokenizer = functools.cache(train_byte_level)


def gguf_names(layers: int) -> dict[str, str]:
    """llama.cpp's names of transformers' tensors, by the gguf package's own table."""
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, layers)
    blocks = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj")
    blocks += ("mlp.up_proj", "mlp.down_proj", "input_layernorm", "post_attention_layernorm")
    names = ["model.embed_tokens", "model.norm", "lm_head"]
    names += [f"model.layers.{i}.{block}" for i in range(layers) for block in blocks]
    return {f"{name}.weight": f"{table.get_name(name)}.weight" for name in names}


def small_llama(tied: bool = True, pre: str = "smollm") -> LlamaForCausalLM:
    """Grouped queries, sizes that differ from each other, random weights; a row for each token of ``pre``'s family."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(key_values(pre)["tokenizer.ggml.tokens"]),
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


def key_values(pre: str = "smollm") -> dict:
    """The key-values of the small LLaMA. Its last two tokens are the bos and the eos, of ChatML."""
    stored = stored_tokenizer(FAMILIES[pre])
    names = sorted(stored["model"]["vocab"], key=stored["model"]["vocab"].get)
    special = {token["id"] for token in stored["added_tokens"]}
    return {
        "general.architecture": "llama",
        "llama.context_length": 256,
        "llama.embedding_length": WIDTH,
        "llama.block_count": LAYERS,
        "llama.feed_forward_length": 128,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.rope.freq_base": 5000.0,
        "llama.rope.dimension_count": WIDTH // HEADS,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [*names, "<|im_start|>", "<|im_end|>"],
        "tokenizer.ggml.token_type": [*(3 if index in special else 1 for index in range(len(names))), 3, 3],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in stored["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": len(names),
        "tokenizer.ggml.eos_token_id": len(names) + 1,
    }


def write_gguf(path: Path, values: dict, tensors: dict[str, np.ndarray]) -> Path:
    """Write a file with the gguf package. A key whose value is None is left out."""
    values = {key: value for key, value in values.items() if value is not None}
    writer = gguf.GGUFWriter(path, values.pop("general.architecture"))
    add = {str: writer.add_string, float: writer.add_float32, bool: writer.add_bool, list: writer.add_array}
    for key, value in values.items():
        (writer.add_int32 if value == -1 else add.get(type(value), writer.add_uint32))(key, value)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    finish(writer)
    return path


def finish(writer: gguf.GGUFWriter) -> None:
    """Write what was added, and close the file."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_small(path: Path, model: LlamaForCausalLM, changes: dict | None = None, pre: str = "smollm") -> Path:
    """Write ``model``, with other key-values where ``changes`` has them, and other tensors (None: without one)."""
    tensors = {}
    for name, tensor in model.state_dict().items():
        weights = tensor.numpy()
        heads = {"q_proj": HEADS, "k_proj": KV_HEADS}.get(name.split(".")[-2])
        if heads:  # as in llama.cpp's convert_hf_to_gguf.py, LlamaModel.permute
            weights = weights.reshape(heads, 2, len(weights) // heads // 2, -1).swapaxes(1, 2).reshape(weights.shape)
        if name != "lm_head.weight" or not model.config.tie_word_embeddings:
            tensors[gguf_names(LAYERS)[name]] = np.ascontiguousarray(weights)
    values, changes = key_values(pre), dict(changes or {})
    for name in [name for name in changes if name.endswith((".weight", ".bias"))]:
        tensors[name] = changes.pop(name)
    tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    return write_gguf(path, values | changes, tensors)
