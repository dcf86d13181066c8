"""``config.json`` of CLIP, LLaMA and LLaVA <-> our names and values, those of the fields in ``minillava/config.py``.

A config.json carries dozens of keys that do not change what is computed; they are passed over. What would be computed
wrongly is refused: the functions raise ValueError, which names the key, and what Python raises for a value of a wrong
kind. Null means the same as leaving a key out.
"""

# What transformers means by leaving a size out.
CLIP_VISION = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
    "projection_dim": 512,
}
LLAMA = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
# What each known kind of rope_scaling is told by.
ROPE_SCALINGS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
MOST_LAYERS = 1000  # a file that claims more is refused before they are built


def vision_from_json(config: dict, ours: dict) -> dict:
    """The vision tower's sizes, from CLIP's vision_config. ``ours`` here and below: our names and own values."""
    _expect(config, model_type="clip_vision_model")
    return _known(config, ours | CLIP_VISION)


def text_from_json(config: dict, ours: dict) -> dict:
    """The text tower's sizes, from CLIP's text_config."""
    return _known(config, ours)


def decoder_from_json(config: dict, ours: dict) -> dict:
    """The decoder's sizes, from LLaMA's config.json."""
    _expect(config, model_type="llama", hidden_act="silu", attention_bias=False, mlp_bias=False)
    config = {**LLAMA, **_given(config)}
    config["rope_theta"], config["rope_scaling"] = _rope(config)
    config.setdefault("num_key_value_heads", config["num_attention_heads"])
    config.setdefault("head_dim", config["hidden_size"] // max(1, config["num_attention_heads"]))
    return _known(config, ours)


def llava_from_json(config: dict, ours: dict) -> dict:
    """What joins the parts, from the config.json of a llava-hf folder. "vision" and "decoder" are dicts of theirs."""
    config = _given(config)
    _expect(config, multimodal_projector_bias=True)
    vision, text = vision_from_json(config["vision_config"], ours["vision"]), config["text_config"]
    tied = config.get("tie_word_embeddings", False) or text.get("tie_word_embeddings", False)
    strategy = _choose(config, "vision_feature_select_strategy", {"default": "default", "full": "full"})
    return {
        "vision": vision,
        "decoder": decoder_from_json({**text, "tie_word_embeddings": tied}, ours["decoder"]),
        "projector": _choose(config, "projector_hidden_act", {"gelu": "mlp", "linear": "linear"}),
        "image_token_id": config.get("image_token_id", config.get("image_token_index", 32000)),
        "vision_feature_layer": _layer({"vision_feature_layer": -2, **config}, "vision_feature_layer", vision),
        "vision_feature_select_strategy": strategy,
    }


def original_from_json(config: dict, ours: dict) -> dict:
    """What joins the parts, from the config.json of the LLaVA authors' code: a LLaMA's, with mm_* keys for the rest.

    The vision tower is ours["vision"], that of the CLIP folder that mm_vision_tower names. There is no image token yet.
    """
    _choose(config, "model_type", {"llava": None, "llava_llama": None})
    _choose(config, "image_aspect_ratio", {"square": None, "pad": None})  # not "anyres", pictures cut into tiles
    _expect(config, mm_use_im_start_end=False)  # marks around each picture
    return {
        "decoder": decoder_from_json({**config, "model_type": "llama"}, ours["decoder"]),
        "projector": _choose(config, "mm_projector_type", {"linear": "linear", "mlp2x_gelu": "mlp"}),
        "vision_feature_layer": _layer(config, "mm_vision_select_layer", ours["vision"]),
        "vision_feature_select_strategy": _choose(
            config, "mm_vision_select_feature", {"patch": "default", "cls_patch": "full"}
        ),
    }


def llava_to_json(values: dict, num_image_tokens: int) -> dict:
    """The config.json of a llava-hf folder, from those of its two parts and what joins them."""
    return {
        "model_type": "llava",
        "architectures": ["LlavaForConditionalGeneration"],
        "vision_config": values["vision"],
        "text_config": values["decoder"],
        "image_token_index": values["image_token_id"],
        "image_seq_length": num_image_tokens,
        "projector_hidden_act": {"linear": "linear", "mlp": "gelu"}[values["projector"]],
        "multimodal_projector_bias": True,
        "vision_feature_layer": values["vision_feature_layer"],
        "vision_feature_select_strategy": values["vision_feature_select_strategy"],
        "tie_word_embeddings": values["decoder"]["tie_word_embeddings"],
    }


def _given(config: dict) -> dict:
    """Without the keys that are null."""
    return {name: value for name, value in config.items() if value is not None}


def _expect(config: dict, **only: object) -> None:
    """Refuse a value that changes what is computed."""
    for name, wanted in only.items():
        if (value := config.get(name)) not in (None, wanted):
            raise ValueError(f"{name} is {value!r}; only {wanted!r} is known")


def _choose(config: dict, name: str, choices: dict[str, str | None]) -> str | None:
    """Ours for the file's word; the first where the file says nothing."""
    value = config.get(name) or next(iter(choices))
    if value not in choices:
        raise ValueError(f"{name} is {value!r}, not one of {', '.join(choices)}")
    return choices[value]


def _layer(config: dict, name: str, vision: dict) -> int:
    layer, depth = config[name], vision["num_hidden_layers"]
    if not isinstance(layer, int) or not -depth - 1 <= layer <= depth:
        raise ValueError(f"{name} is {layer!r}, not one layer of the {depth}")
    return layer


def _known(config: dict, ours: dict) -> dict:
    """``ours``, with the file's values over it. What is a number must be a positive one, ids of tokens aside."""
    values = ours | {name: value for name, value in _given(config).items() if name in ours}
    for name, own in ours.items():
        if type(own) in (int, float) and not name.endswith("token_id"):
            _check_size(name, values[name], type(own))
    if values["num_hidden_layers"] > MOST_LAYERS:
        raise ValueError(f"num_hidden_layers is {values['num_hidden_layers']}, more than {MOST_LAYERS}")
    return values


def _check_size(name: str, value: object, kind: type) -> None:
    if not isinstance(value, (int, kind)) or not 0 < value < float("inf"):
        raise ValueError(f"{name} is {value!r}, not a positive {'whole number' if kind is int else 'number'}")


def _rope(config: dict) -> tuple[float, dict | None]:
    """rope_theta and rope_scaling, which transformers 5 spells as one dict, rope_parameters."""
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ROPE_SCALINGS:
        raise ValueError(f"rope_scaling of type {kind!r} is not one of {', '.join(ROPE_SCALINGS)}")
    for place in (rope, config):
        _expect(place, partial_rotary_factor=1.0)
    theta = rope.get("rope_theta", config["rope_theta"])
    if kind == "default":
        return theta, None
    rope = {"original_max_position_embeddings": config["max_position_embeddings"], **rope}
    scaling = {name: rope[name] for name in ROPE_SCALINGS[kind]}
    for name, value in scaling.items():
        _check_size(name, value, float)
    if kind == "llama3" and scaling["high_freq_factor"] <= scaling["low_freq_factor"]:
        raise ValueError("rope_scaling's high_freq_factor is not above its low_freq_factor")
    return theta, {"rope_type": kind, **scaling}
