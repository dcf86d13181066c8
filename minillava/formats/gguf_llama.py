"""A LLaMA in a GGUF file, as the values that Hugging Face's files would have: config.json, tensors, tokenizer.json.

llama.cpp stores the rows of q and k in another order, for its form of RoPE: pairs are neighbours (2i, 2i + 1) there,
and (i, i + d / 2) in Hugging Face's files.
"""

import re
from pathlib import Path

from minillava.errors import UserError
from minillava.formats import tokenizer_json
from minillava.formats.gguf import Gguf, GgufTensor, read_gguf
from minillava.formats.tokenizer_files import CONFIG, JSON, OBEDIENT, dump
from minillava.formats.tokenizer_model import LLAMA3_SPLIT

PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OTHERS = {
    "token_embd.weight": "embed_tokens.weight",
    "output_norm.weight": "norm.weight",
    "output.weight": "lm_head.weight",
}
ROLES = {"bos": "bos", "eos": "eos", "pad": "padding"}  # Hugging Face's name of a token's role -> GGUF's
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # types of tokens
DIGITS = {"type": "Digits", "individual_digits": True}
LLAMA3 = {"type": "Split", "pattern": {"Regex": LLAMA3_SPLIT}, "behavior": "Isolated", "invert": False}
# tokenizer.ggml.pre -> the pre-tokenizers before ByteLevel, and whether ByteLevel splits into words as GPT-2 does.
PRE_TOKENIZERS = {"gpt-2": ([], True), "smollm": ([DIGITS], True), "llama-bpe": ([LLAMA3], False)}

REQUIRED = {  # key -> type of its value; [str] is a list of strings
    "llama.block_count": int,
    "llama.context_length": int,
    "llama.embedding_length": int,
    "llama.feed_forward_length": int,
    "llama.attention.head_count": int,
    "llama.attention.layer_norm_rms_epsilon": float,
    "tokenizer.ggml.pre": str,
    "tokenizer.ggml.tokens": [str],
    "tokenizer.ggml.token_type": [int],
    "tokenizer.ggml.merges": [str],
}
OPTIONAL = {
    "llama.attention.head_count_kv": int,
    "llama.attention.key_length": int,
    "llama.rope.dimension_count": int,
    "llama.rope.freq_base": float,
    "tokenizer.ggml.add_bos_token": bool,
    "tokenizer.ggml.bos_token_id": int,
    "tokenizer.ggml.eos_token_id": int,
    "tokenizer.ggml.eot_token_id": int,  # end of a turn in a chat
    "tokenizer.ggml.padding_token_id": int,
}
# Every other key of llama.* may change what is computed and is refused, unless it has one of these values (None: any).
HARMLESS = {
    "llama.expert_count": (0,),
    "llama.expert_used_count": None,
    "llama.rope.scaling.type": ("none",),
    "llama.rope.scaling.factor": (0, 1),
    "llama.rope.scaling.original_context_length": None,
    "llama.rope.scaling.finetuned": None,
    "llama.tensor_data_layout": ("Meta AI original pth",),
    "llama.vocab_size": None,  # the embedding's shape is compared with the number of tokens
    "llama.attention.value_length": None,  # and the shapes of v and o with that of k
}


def read_llama(path: Path) -> Gguf:
    """A LLaMA's file with byte-level BPE; its key-values have the right types, and we can compute what they ask for.

    Raises UserError that names the key otherwise.
    """
    file = read_gguf(path)
    values = file.values
    if (found := values.get("general.architecture")) != "llama":
        raise UserError(f"{path}: a model of architecture {found!r:.80}, not 'llama'")
    if (found := values.get("tokenizer.ggml.model")) != "gpt2":
        raise UserError(f"{path}: its tokenizer is {found!r:.80}; only 'gpt2', byte-level BPE, is supported")
    for key in REQUIRED:
        if key not in values:
            raise UserError(f"{path}: {key} is missing")
    for key, value in values.items():
        kind = REQUIRED.get(key) or OPTIONAL.get(key)
        if kind and not _is_of(kind, value):
            raise UserError(f"{path}: {key} is {value!r:.80}, a value of the wrong type")
        if kind and key.endswith("_token_id") and not 0 <= value < len(values["tokenizer.ggml.tokens"]):
            raise UserError(f"{path}: {key} is {value}, which is not the id of a token")
        if not kind and key.startswith("llama.") and not _is_harmless(key, value):
            raise UserError(f"{path}: {key:.80} is {value!r:.80}, which is not supported")
    return file


def _is_of(kind: type | list[type], value: object) -> bool:
    if isinstance(kind, list):
        return type(value) is list and all(type(item) is kind[0] for item in value)
    return type(value) is kind


def _is_harmless(key: str, value: object) -> bool:
    harmless = HARMLESS.get(key, ())
    return harmless is None or value in harmless


def config(path: Path, file: Gguf) -> dict:
    """The contents of config.json, of a file by read_llama(). Raises UserError for RoPE on a part of each head."""
    values = file.values
    width, heads = values["llama.embedding_length"], values["llama.attention.head_count"]
    head_dim = values.get("llama.attention.key_length", width // max(1, heads))
    if (turned := values.get("llama.rope.dimension_count", head_dim)) != head_dim:
        raise UserError(f"{path}: RoPE rotates {turned} of the {head_dim} numbers in a head, not all of them")
    ids = {role: values.get(f"tokenizer.ggml.{key}_token_id") for role, key in ROLES.items()}
    ends = [i for i in (ids["eos"], values.get("tokenizer.ggml.eot_token_id")) if i is not None]
    return {
        "model_type": "llama",
        "vocab_size": len(values["tokenizer.ggml.tokens"]),
        "hidden_size": width,
        "intermediate_size": values["llama.feed_forward_length"],
        "num_hidden_layers": values["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": values.get("llama.attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": values["llama.context_length"],
        "rms_norm_eps": values["llama.attention.layer_norm_rms_epsilon"],
        "rope_theta": values.get("llama.rope.freq_base", 10000.0),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "bos_token_id": ids["bos"],
        "eos_token_id": ends if len(set(ends)) > 1 else ids["eos"],
        "pad_token_id": ids["pad"],
    }


def tensors(file: Gguf) -> dict[str, GgufTensor]:
    """The tensors by the names of minillava/model/decoder.py; others by names that it does not have."""
    heads = {
        "attn_q": file.values["llama.attention.head_count"],
        "attn_k": file.values.get("llama.attention.head_count_kv", file.values["llama.attention.head_count"]),
    }
    found = {}
    for name, tensor in file.tensors.items():
        match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
        if match and match[2] in PARTS:
            ours = f"layers.{match[1]}.{PARTS[match[2]]}.weight"
            tensor = tensor._replace(heads=heads.get(match[2], 0))
        else:
            ours = OTHERS.get(name, f"unknown: {name}")
        found[ours] = tensor
    return found


def tokenizer(path: Path, file: Gguf) -> dict[str, bytes]:
    """tokenizer.json and tokenizer_config.json, of a file by read_llama(). Raises UserError for a pre-tokenizer or a
    type of token that is not supported."""
    values = {key.removeprefix("tokenizer.ggml."): value for key, value in file.values.items()}
    names, types = values["tokens"], values["token_type"]
    if values["pre"] not in PRE_TOKENIZERS:
        known = ", ".join(PRE_TOKENIZERS)
        raise UserError(f"{path}: its tokenizer.ggml.pre is {values['pre']!r:.80}, which is none of {known}")
    if other := set(types) - {NORMAL, CONTROL, USER_DEFINED, UNUSED}:
        raise UserError(f"{path}: its tokens have the unsupported types {sorted(other)!r:.80}")
    if not len(set(names)) == len(names) == len(types):
        raise UserError(f"{path}: its tokens are listed twice, or there are more or fewer types than tokens")
    # Unused tokens only fill the embedding's rows up: no text becomes one.
    vocab = {name: index for index, name in enumerate(names) if types[index] != UNUSED}
    added = {index: name for name, index in vocab.items() if types[index] != NORMAL}
    merges = [merge.split(" ") for merge in values["merges"]]
    ids = {f"{role}_token": values.get(f"{key}_token_id") for role, key in ROLES.items()}
    roles = {role: names[index] for role, index in ids.items() if index is not None}
    before, use_regex = PRE_TOKENIZERS[values["pre"]]
    byte_level = tokenizer_json.byte_level_part(use_regex)
    stored = tokenizer_json.bpe_file(
        {"vocab": vocab, "merges": merges, "ignore_merges": values["pre"] == "llama-bpe"},
        added,
        pre_tokenizer={"type": "Sequence", "pretokenizers": [*before, byte_level]},
        decoder=byte_level,
    )
    for token in stored["added_tokens"]:
        token["special"] = types[token["id"]] == CONTROL
    # In llama.cpp, Llama 3's pre-tokenizer implies the bos: the key is only in newer files.
    if values.get("add_bos_token", values["pre"] == "llama-bpe") and "bos_token" in roles:
        stored["post_processor"] = tokenizer_json.put_first(roles["bos_token"], values["bos_token_id"])
    return {JSON: dump(stored), CONFIG: dump({**roles, "tokenizer_class": OBEDIENT[0]})}
