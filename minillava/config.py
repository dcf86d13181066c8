"""The sizes of the three parts, in the words of Hugging Face's ``config.json``, which is also how they are stored."""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from minillava.errors import UserError

PRETRAINED = Path(__file__).parent / "pretrained"  # the shipped model, llava, and the two towers it was made from
JSON_BYTES = 1_000_000  # a larger configuration, or index of shards, is refused

# What a config.json means by leaving a size out: transformers' defaults.
CLIP_DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
    "projection_dim": 512,
}
LLAMA_DEFAULTS = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
# What each known kind of rope_scaling is told by.
ROPE_SCALINGS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
MOST_LAYERS = 1000  # a file that claims more is refused before they are built


@dataclass
class VisionConfig:
    """A CLIP vision tower. The defaults are the picture-book's; OpenAI's ViT-L/14 is 1024, 4096, 24, 16, 224, 14."""

    hidden_size: int = 128
    intermediate_size: int = 512
    num_hidden_layers: int = 5
    num_attention_heads: int = 4
    image_size: int = 64  # pixels, square
    patch_size: int = 8
    num_channels: int = 3
    projection_dim: int = 128  # of the space shared with the text tower
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    def to_dict(self) -> dict:
        return {"model_type": "clip_vision_model", **asdict(self)}

    @classmethod
    def from_dict(cls, values: dict) -> "VisionConfig":
        _expect(values, "model_type", "clip_vision_model")
        return _known(cls, CLIP_DEFAULTS, values)


@dataclass
class TextConfig:
    """CLIP's text tower, used only to train the vision tower."""

    vocab_size: int = 1024
    hidden_size: int = 64
    intermediate_size: int = 256
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    max_position_embeddings: int = 96
    projection_dim: int = 128
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    eos_token_id: int = 0

    def to_dict(self) -> dict:
        return {"model_type": "clip_text_model", **asdict(self)}

    @classmethod
    def from_dict(cls, values: dict) -> "TextConfig":
        return _known(cls, {}, values)


@dataclass
class DecoderConfig:
    """A LLaMA decoder. The defaults are the picture-book's; LLaMA-7B is 32000, 4096, 11008, 32, 32, 32."""

    vocab_size: int = 1024
    hidden_size: int = 128
    intermediate_size: int = 256
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 4
    head_dim: int = 32
    max_position_embeddings: int = 1024
    rms_norm_eps: float = 1e-5
    rope_theta: float = 500000.0
    rope_scaling: dict | None = None  # rope_type and the numbers that ROPE_SCALINGS lists for it
    tie_word_embeddings: bool = False
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    def to_dict(self) -> dict:
        return {"model_type": "llama", "hidden_act": "silu", **asdict(self)}

    @classmethod
    def from_dict(cls, values: dict) -> "DecoderConfig":
        _expect(values, "model_type", "llama")
        _expect(values, "hidden_act", "silu")
        _expect(values, "attention_bias", False)
        _expect(values, "mlp_bias", False)
        values = {**LLAMA_DEFAULTS, **_given(values)}
        values["rope_theta"], values["rope_scaling"] = _rope(values)
        values.setdefault("num_key_value_heads", values["num_attention_heads"])
        values.setdefault("head_dim", values["hidden_size"] // max(1, values["num_attention_heads"]))
        return _known(cls, {}, values)


def _rope(values: dict) -> tuple[float, dict | None]:
    """rope_theta and rope_scaling, which transformers 5 spells as one dict, rope_parameters."""
    rope = values.get("rope_scaling") or values.get("rope_parameters") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ROPE_SCALINGS:
        raise ValueError(f"rope_scaling of type {kind!r} is not one of {', '.join(ROPE_SCALINGS)}")
    for place in (rope, values):
        _expect(place, "partial_rotary_factor", 1.0)
    theta = rope.get("rope_theta", values.get("rope_theta", 10000.0))
    if kind == "default":
        return theta, None
    rope = {"original_max_position_embeddings": values["max_position_embeddings"], **rope}
    scaling = {name: rope[name] for name in ROPE_SCALINGS[kind]}
    for name, value in scaling.items():
        _check_size(name, value, float)
    if kind == "llama3" and scaling["high_freq_factor"] <= scaling["low_freq_factor"]:
        raise ValueError("rope_scaling's high_freq_factor is not above its low_freq_factor")
    return theta, {"rope_type": kind, **scaling}


@dataclass
class LlavaConfig:
    """The three parts and how they join."""

    vision: VisionConfig = field(default_factory=VisionConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    projector: str = "linear"  # "linear": the paper's W; "mlp": LLaVA-1.5's Linear, GELU, Linear
    image_token_id: int = 0
    vision_feature_layer: int = -2  # the layer before the last; FACTS: 90.92 against 89.96 on ScienceQA
    vision_feature_select_strategy: str = "default"  # "default": the grid; "full": the class token before it

    @property
    def num_image_tokens(self) -> int:
        """How many visual tokens the decoder reads for one picture."""
        return self.vision.num_patches + (self.vision_feature_select_strategy == "full")

    def to_dict(self) -> dict:
        return {
            "model_type": "llava",
            "architectures": ["LlavaForConditionalGeneration"],
            "vision_config": self.vision.to_dict(),
            "text_config": self.decoder.to_dict(),
            "image_token_index": self.image_token_id,
            "image_seq_length": self.num_image_tokens,
            "projector_hidden_act": {"linear": "linear", "mlp": "gelu"}[self.projector],
            "multimodal_projector_bias": True,
            "vision_feature_layer": self.vision_feature_layer,
            "vision_feature_select_strategy": self.vision_feature_select_strategy,
            "tie_word_embeddings": self.decoder.tie_word_embeddings,
        }

    @classmethod
    def from_dict(cls, values: dict) -> "LlavaConfig":
        """From the config.json of a llava-hf folder. Raises ValueError for what would be computed wrongly."""
        values = _given(values)
        _expect(values, "multimodal_projector_bias", True)
        vision = VisionConfig.from_dict(values["vision_config"])
        text = values["text_config"]
        tied = values.get("tie_word_embeddings", False) or text.get("tie_word_embeddings", False)
        return cls(
            vision=vision,
            decoder=DecoderConfig.from_dict({**text, "tie_word_embeddings": tied}),
            projector=_choose(values, "projector_hidden_act", {"gelu": "mlp", "linear": "linear"}),
            image_token_id=values.get("image_token_id", values.get("image_token_index", 32000)),
            vision_feature_layer=_layer("vision_feature_layer", values.get("vision_feature_layer", -2), vision),
            vision_feature_select_strategy=_choose(
                values, "vision_feature_select_strategy", {"default": "default", "full": "full"}
            ),
        )

    @classmethod
    def from_original(cls, values: dict, vision: VisionConfig) -> "LlavaConfig":
        """From the config.json of the authors' code: a LLaMA's, with mm_* keys for the rest.

        ``vision`` is that of the CLIP folder that mm_vision_tower names. There is no image token yet.
        """
        _choose(values, "model_type", {"llava": None, "llava_llama": None})
        _choose(values, "image_aspect_ratio", {"square": None, "pad": None})  # not "anyres", pictures cut into tiles
        _expect(values, "mm_use_im_start_end", False)  # marks around each picture
        return cls(
            vision=vision,
            decoder=DecoderConfig.from_dict({**values, "model_type": "llama"}),
            projector=_choose(values, "mm_projector_type", {"linear": "linear", "mlp2x_gelu": "mlp"}),
            vision_feature_layer=_layer("mm_vision_select_layer", values["mm_vision_select_layer"], vision),
            vision_feature_select_strategy=_choose(
                values, "mm_vision_select_feature", {"patch": "default", "cls_patch": "full"}
            ),
        )


def _given(values: dict) -> dict:
    """Without the keys that are null, which means the same as leaving them out."""
    return {name: value for name, value in values.items() if value is not None}


def _expect(values: dict, name: str, only: object) -> None:
    """Refuse a value that changes what is computed."""
    if (value := values.get(name)) not in (None, only):
        raise ValueError(f"{name} is {value!r}; only {only!r} is known")


def _choose(values: dict, name: str, choices: dict[str, str | None]) -> str | None:
    """Ours for the file's word; the first where the file says nothing."""
    value = values.get(name) or next(iter(choices))
    if value not in choices:
        raise ValueError(f"{name} is {value!r}, not one of {', '.join(choices)}")
    return choices[value]


def _layer(name: str, layer: object, vision: VisionConfig) -> int:
    depth = vision.num_hidden_layers
    if not isinstance(layer, int) or not -depth - 1 <= layer <= depth:
        raise ValueError(f"{name} is {layer!r}, not one layer of the {depth}")
    return layer


def _check_size(name: str, value: object, kind: type) -> None:
    if not isinstance(value, (int, kind)) or not 0 < value < float("inf"):
        raise ValueError(f"{name} is {value!r}, not a positive {'whole number' if kind is int else 'number'}")


def _known(cls, defaults: dict, values: dict):
    """Take the keys that ``cls`` has; a config.json carries dozens that do not change what is computed."""
    values = {**defaults, **_given(values)}
    config = cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})
    for f in fields(cls):
        if f.type in (int, float) and not f.name.endswith("token_id"):
            _check_size(f.name, getattr(config, f.name), f.type)
    if config.num_hidden_layers > MOST_LAYERS:
        raise ValueError(f"num_hidden_layers is {config.num_hidden_layers}, more than {MOST_LAYERS}")
    return config


def read_json_object(path: Path) -> dict:
    """Raises UserError where there is no file, or it is too large, or holds no JSON object."""
    try:
        if path.stat().st_size > JSON_BYTES:
            raise UserError(f"{path}: larger than {JSON_BYTES} bytes")
        return parse_json_object(path, path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None


def parse_json_object(path: Path, content: bytes) -> dict:
    """``content`` is that of ``path``. Raises UserError where it is no JSON object."""
    try:
        value = json.loads(content.decode("utf-8"))
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds a {type(value).__name__}, not a JSON object")
    return value
