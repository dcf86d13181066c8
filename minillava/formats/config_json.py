"""``config.json`` of CLIP, LLaMA and LLaVA <-> the fields of the classes in ``minillava/config.py``.

A config.json has dozens of keys that do not change what is computed; they are ignored. A value that would be computed
wrongly, or has a wrong type, is refused: the functions raise ValueError, which names the key. Null means the same as a
missing key.
"""

# The supported types of rope_scaling, with the parameters of each.
ROPE_SCALINGS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
MOST_LAYERS = 1000  # a file with more is refused before the layers are built
MOST_PATCHES = 1 << 16  # of one picture; LLaVA-1.5 has 576. Lists of this length are made before weights are read
LARGEST = 1 << 31  # a number from here on is no size, and no id of a token
LARGEST_FLOAT = 1e15  # the rope_theta of models with a long context goes beyond 1e10


def part_from_json(config: dict, usual: dict, **only: object) -> dict:
    """The values of one part: the file's where it has them, else ``usual``, the defaults of that kind of file.

    Numbers must be positive, except token ids. ``only``: other keys, each with the only value it may have.
    """
    _expect(config, **only)
    values = usual | {name: value for name, value in _given(config).items() if name in usual}
    for name, own in usual.items():
        if name.endswith("token_id"):
            check_ids(name, values[name], several=own is None)
        elif type(own) in (int, float):
            _check_size(name, values[name], type(own))
        elif type(own) in (bool, str) and type(values[name]) is not type(own):
            wanted = "true or false" if type(own) is bool else "a string"
            raise ValueError(f"{name} is {values[name]!r:.80}, not {wanted}")
    if values["num_hidden_layers"] > MOST_LAYERS:
        raise ValueError(f"num_hidden_layers is {values['num_hidden_layers']}, more than {MOST_LAYERS}")
    if "patch_size" in values and not 0 < (values["image_size"] // values["patch_size"]) ** 2 <= MOST_PATCHES:
        raise ValueError(f"image_size {values['image_size']} and patch_size {values['patch_size']} do not make a grid")
    return values


def decoder_from_json(config: dict, usual: dict) -> dict:
    """The decoder's values, from LLaMA's config.json. ``usual``: the defaults, as in part_from_json."""
    _expect(config, model_type="llama", hidden_act="silu", attention_bias=False, mlp_bias=False)
    config = _given(config)
    every = usual | config
    for name in ("hidden_size", "num_attention_heads"):
        _check_size(name, every[name], int)
    heads = every["num_attention_heads"]
    derived = {"num_key_value_heads": heads, "head_dim": max(1, every["hidden_size"] // heads)}
    return part_from_json({**derived, **config, **_rope(every)}, usual)


def llava_from_json(config: dict, depth: int) -> dict:
    """The values that join the parts, from the config.json of a llava-hf folder.

    These are the projector, the image token's id and which visual features are read. ``depth``: the number of layers
    of the vision tower.
    """
    config = {"vision_feature_layer": -2, "image_token_index": 32000, **_given(config)}
    _expect(config, multimodal_projector_bias=True)
    strategy = _choose(config, "vision_feature_select_strategy", default="default", full="full")
    image = config.get("image_token_id", config["image_token_index"])
    if type(image) is not int or not 0 <= image < LARGEST:
        raise ValueError(f"image_token_id is {image!r:.80}, not the id of a token")
    return {
        "projector": _choose(config, "projector_hidden_act", gelu="mlp", linear="linear"),
        "image_token_id": image,
        "vision_feature_layer": layer_from_json(config, "vision_feature_layer", depth),
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
        "vision_feature_layer": layer_from_json(config, "mm_vision_select_layer", depth),
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


def either(name: str, *configs: dict) -> bool:
    """Whether ``name`` is true in one of ``configs``."""
    for config in configs:
        if config.get(name) is not None and type(config[name]) is not bool:
            raise ValueError(f"{name} is {config[name]!r:.80}, not true or false")
    return any(config.get(name) for config in configs)


def check_ids(name: str, value: object, several: bool = True) -> None:
    """Raise ValueError unless ``value`` is the id of a token, null or, with ``several``, a list of ids."""
    for index in value if several and isinstance(value, list) else [value]:
        if index is not None and (type(index) is not int or not -1 <= index < LARGEST):  # -1: none, in some files
            raise ValueError(f"{name} is {value!r:.80}, not the id of a token")


def _given(config: dict) -> dict:
    """``config`` without the keys whose value is null."""
    return {name: value for name, value in config.items() if value is not None}


def _expect(config: dict, **only: object) -> None:
    """Raise ValueError for a key with another value than the one that is supported. The key may be missing or null."""
    if not isinstance(config, dict):
        raise ValueError(f"the config of a part is {config!r:.80}, not an object")
    for name, wanted in only.items():
        if (value := config.get(name)) not in (None, wanted):
            raise ValueError(f"{name} is {value!r:.80}; only {wanted!r} is supported")


def _choose(config: dict, name: str, **choices: str | None) -> str | None:
    """Translate the file's value of ``name``: ``choices`` maps the file's values to ours. The first is the default."""
    value = next(iter(choices)) if config.get(name) is None else config[name]
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} is {value!r:.80}, not one of {', '.join(choices)}")
    return choices[value]


def layer_from_json(config: dict, name: str, depth: int) -> int:
    """The layer that ``name`` gives, of a tower with ``depth`` layers."""
    if name not in config:
        raise ValueError(f"there is no {name}")
    layer = config[name]
    if type(layer) is not int or not -depth - 1 <= layer <= depth:
        raise ValueError(f"{name} is {layer!r:.80}, not the number of one of the {depth} layers")
    return layer


def _check_size(name: str, value: object, kind: type) -> None:
    if type(value) not in (int, kind) or not 0 < value < (LARGEST if kind is int else LARGEST_FLOAT):
        raise ValueError(f"{name} is {value!r:.80}, not a positive {'whole number' if kind is int else 'number'}")


def _rope(config: dict) -> dict:
    """rope_theta and rope_scaling. transformers 5 writes both into one dict, rope_parameters."""
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        raise ValueError(f"rope_scaling is {rope!r:.80}, not an object")
    rope = _given(rope)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if not isinstance(kind, str) or kind not in ROPE_SCALINGS:
        raise ValueError(f"rope_scaling of type {kind!r:.80} is not one of {', '.join(ROPE_SCALINGS)}")
    for place in (rope, config):
        _expect(place, partial_rotary_factor=1.0)
    theta = rope.get("rope_theta", config["rope_theta"])
    rope = {"original_max_position_embeddings": config["max_position_embeddings"], **rope}
    if missing := [name for name in ROPE_SCALINGS[kind] if name not in rope]:
        raise ValueError(f"rope_scaling of type {kind!r} lacks {', '.join(missing)}")
    scaling = {name: rope[name] for name in ROPE_SCALINGS[kind]}
    for name, value in scaling.items():
        _check_size(name, value, float)
    if kind == "llama3" and scaling["high_freq_factor"] <= scaling["low_freq_factor"]:
        raise ValueError("rope_scaling's high_freq_factor must be greater than its low_freq_factor")
    return {"rope_theta": theta, "rope_scaling": {"rope_type": kind, **scaling} if scaling else None}
