"""``config.json`` of CLIP, LLaMA and LLaVA <-> the fields of the classes in ``minillava/config.py``.

A config.json has dozens of keys that do not change what is computed; they are ignored. A value that would be computed
wrongly is refused: the functions raise ValueError, which names the key. For a value of a wrong type they raise whatever
Python raises, such as TypeError. Null means the same as a missing key.
"""

# The supported types of rope_scaling, with the parameters of each.
ROPE_SCALINGS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
MOST_LAYERS = 1000  # a file with more is refused before the layers are built


def part_from_json(config: dict, usual: dict, **only: object) -> dict:
    """The values of one part: the file's where it has them, else ``usual``, the defaults of that kind of file.

    Numbers must be positive, except token ids. ``only``: other keys, each with the only value it may have.
    """
    _expect(config, **only)
    values = usual | {name: value for name, value in _given(config).items() if name in usual}
    for name, own in usual.items():
        if type(own) in (int, float) and not name.endswith("token_id"):
            _check_size(name, values[name], type(own))
    if values["num_hidden_layers"] > MOST_LAYERS:
        raise ValueError(f"num_hidden_layers is {values['num_hidden_layers']}, more than {MOST_LAYERS}")
    return values


def decoder_from_json(config: dict, usual: dict) -> dict:
    """The decoder's values, from LLaMA's config.json. ``usual``: the defaults, as in part_from_json."""
    _expect(config, model_type="llama", hidden_act="silu", attention_bias=False, mlp_bias=False)
    config = _given(config)
    every = usual | config
    heads = every["num_attention_heads"]
    derived = {"num_key_value_heads": heads, "head_dim": every["hidden_size"] // max(1, heads)}
    return part_from_json({**derived, **config, **_rope(every)}, usual)


def llava_from_json(config: dict, depth: int) -> dict:
    """The values that join the parts, from the config.json of a llava-hf folder.

    These are the projector, the image token's id and which visual features are read. ``depth``: the number of layers
    of the vision tower.
    """
    config = {"vision_feature_layer": -2, "image_token_index": 32000, **_given(config)}
    _expect(config, multimodal_projector_bias=True)
    strategy = _choose(config, "vision_feature_select_strategy", default="default", full="full")
    return {
        "projector": _choose(config, "projector_hidden_act", gelu="mlp", linear="linear"),
        "image_token_id": config.get("image_token_id", config["image_token_index"]),
        "vision_feature_layer": _layer(config, "vision_feature_layer", depth),
        "vision_feature_select_strategy": strategy,
    }


def original_from_json(config: dict, depth: int) -> dict:
    """The values that join the parts, from the config.json of the LLaVA authors' code: a LLaMA's with mm_* keys added.

    ``depth``: the number of layers of the CLIP tower that mm_vision_tower names. There is no image_token_id in the
    result: these tokenizers have no image token.
    """
    _choose(config, "model_type", llava=None, llava_llama=None)
    _choose(config, "image_aspect_ratio", square=None, pad=None)  # not "anyres", which cuts pictures into tiles
    _expect(config, mm_use_im_start_end=False)  # true: start and end tokens around each picture
    strategy = _choose(config, "mm_vision_select_feature", patch="default", cls_patch="full")
    return {
        "projector": _choose(config, "mm_projector_type", linear="linear", mlp2x_gelu="mlp"),
        "vision_feature_layer": _layer(config, "mm_vision_select_layer", depth),
        "vision_feature_select_strategy": strategy,
    }


def llava_to_json(vision: dict, decoder: dict, values: dict, num_image_tokens: int) -> dict:
    """The config.json of a llava-hf folder. ``vision``, ``decoder``: the config.json of the two parts; ``values``: the
    fields of LlavaConfig."""
    return {
        "model_type": "llava",
        "architectures": ["LlavaForConditionalGeneration"],
        "vision_config": vision,
        "text_config": decoder,
        "image_token_index": values["image_token_id"],
        "image_seq_length": num_image_tokens,
        "projector_hidden_act": {"linear": "linear", "mlp": "gelu"}[values["projector"]],
        "multimodal_projector_bias": True,
        "vision_feature_layer": values["vision_feature_layer"],
        "vision_feature_select_strategy": values["vision_feature_select_strategy"],
        "tie_word_embeddings": decoder["tie_word_embeddings"],
    }


def expect_parts(config: dict, *names: str) -> None:
    """Raise ValueError unless ``config`` holds the configs of its parts, ``names``."""
    for name in names:
        if not isinstance(config.get(name), dict):
            raise ValueError(f"there is no {name}, so this is not a LLaVA folder in transformers' format")


def _given(config: dict) -> dict:
    """``config`` without the keys whose value is null."""
    return {name: value for name, value in config.items() if value is not None}


def _expect(config: dict, **only: object) -> None:
    """Raise ValueError for a key with another value than the one that is supported. The key may be missing or null."""
    for name, wanted in only.items():
        if (value := config.get(name)) not in (None, wanted):
            raise ValueError(f"{name} is {value!r}; only {wanted!r} is supported")


def _choose(config: dict, name: str, **choices: str | None) -> str | None:
    """Translate the file's value of ``name``: ``choices`` maps the file's values to ours. The first is the default."""
    value = config.get(name) or next(iter(choices))
    if value not in choices:
        raise ValueError(f"{name} is {value!r}, not one of {', '.join(choices)}")
    return choices[value]


def _layer(config: dict, name: str, depth: int) -> int:
    layer = config[name]
    if not isinstance(layer, int) or not -depth - 1 <= layer <= depth:
        raise ValueError(f"{name} is {layer!r}, not the number of one of the {depth} layers")
    return layer


def _check_size(name: str, value: object, kind: type) -> None:
    if not isinstance(value, (int, kind)) or not 0 < value < float("inf"):
        raise ValueError(f"{name} is {value!r}, not a positive {'whole number' if kind is int else 'number'}")


def _rope(config: dict) -> dict:
    """rope_theta and rope_scaling. transformers 5 writes both into one dict, rope_parameters."""
    rope = _given(config.get("rope_scaling") or config.get("rope_parameters") or {})
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ROPE_SCALINGS:
        raise ValueError(f"rope_scaling of type {kind!r} is not one of {', '.join(ROPE_SCALINGS)}")
    for place in (rope, config):
        _expect(place, partial_rotary_factor=1.0)
    theta = rope.get("rope_theta", config["rope_theta"])
    rope = {"original_max_position_embeddings": config["max_position_embeddings"], **rope}
    scaling = {name: rope[name] for name in ROPE_SCALINGS[kind]}
    for name, value in scaling.items():
        _check_size(name, value, float)
    if kind == "llama3" and scaling["high_freq_factor"] <= scaling["low_freq_factor"]:
        raise ValueError("rope_scaling's high_freq_factor must be greater than its low_freq_factor")
    return {"rope_theta": theta, "rope_scaling": {"rope_type": kind, **scaling} if scaling else None}
