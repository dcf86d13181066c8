"""The sizes of the three parts, in the words of Hugging Face's ``config.json``, which is also how they are stored."""

from dataclasses import asdict, dataclass, field, fields

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
        return _known(cls, {**CLIP_DEFAULTS, **values})


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
        return _known(cls, values)


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
    tie_word_embeddings: bool = False
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None

    def to_dict(self) -> dict:
        return {"model_type": "llama", "hidden_act": "silu", **asdict(self)}

    @classmethod
    def from_dict(cls, values: dict) -> "DecoderConfig":
        values = {**LLAMA_DEFAULTS, **{name: value for name, value in values.items() if value is not None}}
        if values.get("hidden_act", "silu") != "silu":
            raise ValueError(f"the decoder's hidden_act is {values['hidden_act']!r}, not 'silu'")
        rope = values.get("rope_parameters") or {}  # how transformers 5 spells rope_theta and rope_scaling
        if rope.get("rope_type", "default") != "default" or values.get("rope_scaling"):
            raise ValueError("scaled rotary positions (rope_scaling, rope_type) are not known")
        values["rope_theta"] = rope.get("rope_theta", values.get("rope_theta", 10000.0))
        values.setdefault("num_key_value_heads", values["num_attention_heads"])
        values.setdefault("head_dim", values["hidden_size"] // values["num_attention_heads"])
        return _known(cls, values)


@dataclass
class LlavaConfig:
    """The three parts and how they join."""

    vision: VisionConfig = field(default_factory=VisionConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    projector: str = "linear"  # "linear": the paper's W; "mlp": LLaVA-1.5's Linear, GELU, Linear
    image_token_id: int = 0
    vision_feature_layer: int = -2  # the layer before the last; FACTS: 90.92 against 89.96 on ScienceQA

    def to_dict(self) -> dict:
        return {
            "model_type": "llava",
            "architectures": ["LlavaForConditionalGeneration"],
            "vision_config": self.vision.to_dict(),
            "text_config": self.decoder.to_dict(),
            "image_token_index": self.image_token_id,
            "image_seq_length": self.vision.num_patches,
            "projector_hidden_act": {"linear": "linear", "mlp": "gelu"}[self.projector],
            "multimodal_projector_bias": True,
            "vision_feature_layer": self.vision_feature_layer,
            "vision_feature_select_strategy": "default",  # drop the class token
            "tie_word_embeddings": self.decoder.tie_word_embeddings,
        }

    @classmethod
    def from_dict(cls, values: dict) -> "LlavaConfig":
        layer, select = values.get("vision_feature_layer", -2), values.get("vision_feature_select_strategy", "default")
        if not isinstance(layer, int) or select != "default":
            raise ValueError(f"features of layer {layer} chosen by {select!r}: only one layer and 'default' are known")
        text = {"tie_word_embeddings": values.get("tie_word_embeddings", False), **values["text_config"]}
        return cls(
            vision=VisionConfig.from_dict(values["vision_config"]),
            decoder=DecoderConfig.from_dict(text),
            projector={"linear": "linear", "gelu": "mlp"}[values.get("projector_hidden_act", "gelu")],
            image_token_id=values.get("image_token_id", values.get("image_token_index", 32000)),
            vision_feature_layer=layer,
        )


def _known(cls, values: dict):
    """Take the keys that ``cls`` has; a config.json carries dozens that do not change what is computed."""
    return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})
