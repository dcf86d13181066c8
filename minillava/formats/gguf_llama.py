"""A LLaMA in a GGUF file, as the values that Hugging Face's files would have: config.json, tensors, tokenizer.json.

llama.cpp stores the rows of q and k in another order, for its form of RoPE: pairs are neighbours (2i, 2i + 1) there,
and (i, i + d / 2) in Hugging Face's files.
"""

import re
from pathlib import Path

from minillava.errors import UserError
from minillava.formats import tokenizer_json
from minillava.formats.gguf import Gguf, GgufTensor
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
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # types of tokens
DIGITS = {"type": "Digits", "individual_digits": True}
LLAMA3 = {"type": "Split", "pattern": {"Regex": LLAMA3_SPLIT}, "behavior": "Isolated", "invert": False}
# tokenizer.ggml.pre -> the pre-tokenizers before ByteLevel, and whether ByteLevel splits into words as GPT-2 does.
PRE_TOKENIZERS = {"gpt-2": ([], True), "smollm": ([DIGITS], True), "llama-bpe": ([LLAMA3], False)}
UNSUPPORTED = {"llama.expert_count": 0, "llama.rope.scaling.type": "none"}  # each with the value that changes nothing


def config(path: Path, file: Gguf) -> dict:
    """The contents of config.json. Raises UserError for another architecture, and for what we would compute wrongly."""
    values = file.values
    if values.get("general.architecture") != "llama":
        raise UserError(f"{path}: a model of architecture {values.get('general.architecture')!r}, not 'llama'")
    for key, usual in UNSUPPORTED.items():
        if values.get(key, usual) != usual:
            raise UserError(f"{path}: {key} is {values[key]!r}, which is not supported")
    try:
        heads = values["llama.attention.head_count"]
        found = {
            "vocab_size": len(values["tokenizer.ggml.tokens"]),
            "hidden_size": values["llama.embedding_length"],
            "intermediate_size": values["llama.feed_forward_length"],
            "num_hidden_layers": values["llama.block_count"],
            "num_attention_heads": heads,
            "num_key_value_heads": values.get("llama.attention.head_count_kv", heads),
            "head_dim": values.get("llama.attention.key_length", values["llama.embedding_length"] // heads),
            "max_position_embeddings": values["llama.context_length"],
            "rms_norm_eps": values["llama.attention.layer_norm_rms_epsilon"],
            "rope_theta": values.get("llama.rope.freq_base", 10000.0),
            "tie_word_embeddings": "output.weight" not in file.tensors,
            "model_type": "llama",
        }
        turned = values.get("llama.rope.dimension_count", found["head_dim"])
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise UserError(f"{path}: its key-values are incomplete ({error!r})") from None
    if turned != found["head_dim"]:
        raise UserError(f"{path}: RoPE rotates {turned} of the {found['head_dim']} numbers in a head, not all of them")
    return found | {f"{role}_token_id": values.get(f"tokenizer.ggml.{key}_token_id") for role, key in ROLES.items()}


def tensors(file: Gguf) -> dict[str, GgufTensor]:
    """The tensors by the names of minillava/model/decoder.py; unknown ones keep their names."""
    heads = {
        "attn_q": file.values["llama.attention.head_count"],
        "attn_k": file.values.get("llama.attention.head_count_kv", file.values["llama.attention.head_count"]),
    }
    found = {}
    for name, tensor in file.tensors.items():
        match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
        if match and match[2] in PARTS:
            name = f"layers.{match[1]}.{PARTS[match[2]]}.weight"
            tensor = tensor._replace(heads=heads.get(match[2], 0))
        found[OTHERS.get(name, name)] = tensor
    return found


def tokenizer(path: Path, file: Gguf) -> dict[str, bytes]:
    """tokenizer.json and tokenizer_config.json. Raises UserError for a tokenizer other than byte-level BPE."""
    values = {key.removeprefix("tokenizer.ggml."): value for key, value in file.values.items()}
    if values.get("model") != "gpt2":
        raise UserError(f"{path}: its tokenizer is {values.get('model')!r}; only 'gpt2', byte-level BPE, is supported")
    if values.get("pre") not in PRE_TOKENIZERS:
        known = ", ".join(PRE_TOKENIZERS)
        raise UserError(f"{path}: its tokenizer.ggml.pre is {values.get('pre')!r}, which is none of {known}")
    try:
        names, types = values["tokens"], values["token_type"]
        vocab = {name: index for index, name in enumerate(names)}
        merges = [merge.split(" ") for merge in values["merges"]]
        added = {i: name for i, (name, kind) in enumerate(zip(names, types)) if kind in (CONTROL, USER_DEFINED)}
        other = {kind for kind in types if kind not in (NORMAL, CONTROL, USER_DEFINED)}
        ids = {f"{role}_token": values.get(f"{key}_token_id") for role, key in ROLES.items()}
        roles = {role: names[index] for role, index in ids.items() if index is not None}
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"{path}: its tokenizer is incomplete ({error!r})") from None
    if len(vocab) != len(types) or other:
        raise UserError(f"{path}: its tokens are listed twice, have no type, or have unsupported types {sorted(other)}")
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
    if values.get("add_bos_token") and "bos_token" in roles:
        stored["post_processor"] = tokenizer_json.put_first(roles["bos_token"], values["bos_token_id"])
    return {JSON: dump(stored), CONFIG: dump({**roles, "tokenizer_class": OBEDIENT[0]})}
