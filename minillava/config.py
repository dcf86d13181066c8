"""The sizes of the three parts, with the names of Hugging Face's ``config.json``.

``formats/config_json.py`` reads and writes those files. It raises ValueError for settings that this code does not
implement.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path

from minillava.formats import config_json

PRETRAINED = Path(__file__).parent / "pretrained"  # the shipped model, llava, and the two towers it was made from


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
    projection_dim: int = 128  # dimension of the space shared with the text tower
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    def to_dict(self) -> dict:
        return {"model_type": "clip_vision_model", **asdict(self)}

    @classmethod
    def from_dict(cls, values: dict) -> "VisionConfig":
        only = {"model_type": "clip_vision_model", "num_channels": 3}  # pictures are RGB
        return cls(**config_json.part_from_json(values, asdict(CLIP_VISION), **only))


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
        return cls(**config_json.part_from_json(values, asdict(cls())))


@dataclass
class DecoderConfig:
    """A LLaMA decoder. The defaults are the picture-book's; LLaMA-7B is 32000, 4096, 11008, 32, 32, 32."""

    vocab_size: int = 1024
    hidden_size: int = 160
    intermediate_size: int = 384
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 4
    head_dim: int = 48
    max_position_embeddings: int = 1024
    rms_norm_eps: float = 1e-5
    rope_theta: float = 500000.0
    rope_scaling: dict | None = None  # rope_type and its parameters; ROPE_SCALINGS lists them
    tie_word_embeddings: bool = True  # a word of the picture is then easily repeated in the answer
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    def to_dict(self) -> dict:
        return {"model_type": "llama", "hidden_act": "silu", **asdict(self)}

    @classmethod
    def from_dict(cls, values: dict) -> "DecoderConfig":
        return cls(**config_json.decoder_from_json(values, asdict(LLAMA)))


# transformers' defaults for sizes that a config.json leaves out.
CLIP_VISION = VisionConfig(768, 3072, 12, 12, image_size=224, patch_size=32, projection_dim=512)
LLAMA = DecoderConfig(
    32000, 4096, 11008, 32, 32, 32, 128, 2048, rms_norm_eps=1e-6, rope_theta=10000.0, tie_word_embeddings=False
)


@dataclass
class LlavaConfig:
    """The sizes of the three parts, and how they are joined."""

    vision: VisionConfig = field(default_factory=VisionConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    projector: str = "linear"  # "linear": the paper's W; "mlp": LLaVA-1.5's Linear, GELU, Linear
    image_token_id: int = 0
    vision_feature_layer: int = -2  # before the last: ScienceQA 90.92, last layer 89.96 (arXiv 2304.08485, table 8)
    vision_feature_select_strategy: str = "default"  # "default": patches; "full": class token, then patches

    @property
    def num_image_tokens(self) -> int:
        """The number of visual tokens that the decoder reads for one picture."""
        return self.vision.num_patches + (self.vision_feature_select_strategy == "full")

    def to_dict(self) -> dict:
        vision, decoder = self.vision.to_dict(), self.decoder.to_dict()
        return config_json.llava_to_json(vision, decoder, vars(self), self.num_image_tokens)

    @classmethod
    def from_dict(cls, values: dict) -> "LlavaConfig":
        """From the config.json of a llava-hf folder. Raises ValueError, as does from_original."""
        config_json.expect_parts(values, "text_config", "vision_config")
        text = values["text_config"]
        tied = config_json.either("tie_word_embeddings", values, text)
        vision = VisionConfig.from_dict(values["vision_config"])
        decoder = DecoderConfig.from_dict({**text, "tie_word_embeddings": tied})
        return cls(vision, decoder, **config_json.llava_from_json(values, vision.num_hidden_layers))

    @classmethod
    def from_original(cls, values: dict, vision: VisionConfig) -> "LlavaConfig":
        """From the config.json of the LLaVA authors' code, which has no image token, and its vision tower's config."""
        decoder = DecoderConfig.from_dict({**values, "model_type": "llama"})
        return cls(vision, decoder, **config_json.original_from_json(values, vision.num_hidden_layers))
