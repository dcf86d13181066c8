"""Folders in the LLaVA authors' layout and text-only decoders are loaded, and saved in the form transformers reads."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import CLIPModel, LlamaForCausalLM, LlavaForConditionalGeneration

from minillava import Llava, Processor, Tokenizer, load, save
from minillava.checkpoint import add_image_token
from minillava.config import TextConfig
from minillava.errors import UserError
from minillava.inputs.image import ImageProcessor
from minillava.inputs.templates import TEMPLATES
from minillava.language_model import load_decoder
from minillava.model.contrastive import Clip
from minillava.saving import write_clip, write_decoder

CLIP = "clip-vit-tiny"


def original_names(model: Llava) -> dict[str, torch.Tensor]:
    """The model's tensors by their names in the authors' code."""
    projector = {"linear_1": "0", "linear_2": "2"} if model.config.projector == "mlp" else {}
    tensors = {}
    for name, tensor in model.state_dict().items():
        part, rest = name.split(".", 1)
        if part == "vision_tower":
            tensors[f"model.vision_tower.vision_tower.vision_model.{rest}"] = tensor
        elif part == "multi_modal_projector":
            layer, _, kind = rest.rpartition(".")
            tensors[f"model.mm_projector.{projector[layer]}.{kind}" if layer else f"model.mm_projector.{kind}"] = tensor
        else:
            tensors[rest if rest.startswith("lm_head") else f"model.{rest}"] = tensor
    for layer in range(model.config.decoder.num_hidden_layers):
        tensors[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.ones(6)
    return {name: tensor.clone() for name, tensor in tensors.items()}  # a tied head is stored twice


def write_original(model: Llava, folder: Path, tower: bool, pickle: bool = False, **more) -> None:
    """Write ``folder`` and, next to it, the CLIP folder that it names.

    The model's vision tower is in ``folder`` if ``tower``; if not, it is only in the CLIP folder.
    """
    folder.mkdir()
    config = {
        **model.config.decoder.to_dict(),
        "model_type": "llava",
        "architectures": ["LlavaLlamaForCausalLM"],
        "mm_vision_tower": f"openai/{CLIP}",
        "mm_projector_type": {"linear": "linear", "mlp": "mlp2x_gelu"}[model.config.projector],
        "mm_hidden_size": model.config.vision.hidden_size,
        "mm_vision_select_layer": model.config.vision_feature_layer,
        "mm_vision_select_feature": {"default": "patch", "full": "cls_patch"}[
            model.config.vision_feature_select_strategy
        ],
        "mm_use_im_start_end": False,
        "image_aspect_ratio": "pad",
        **more,
    }
    (folder / "config.json").write_text(json.dumps(config))
    tensors = original_names(model)
    if not tower:
        tensors = {name: tensor for name, tensor in tensors.items() if "vision_tower" not in name}
    if pickle:
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        save_file(tensors, folder / "model.safetensors")
    model.processor.tokenizer.save_pretrained(folder)
    clip = Clip(model.config.vision, TextConfig(model.processor.tokenizer.vocab_size, projection_dim=20))
    if not tower:
        clip.vision_model = model.vision_tower
    (folder.parent / "ours").mkdir()
    write_clip(clip, model.processor, folder.parent / "ours")
    CLIPModel.from_pretrained(folder.parent / "ours").save_pretrained(folder.parent / CLIP)


@torch.no_grad()
def logits(model, pictures: int = 2) -> torch.Tensor:
    count = 9 + (model.config.vision_feature_select_strategy == "full")
    ids = torch.tensor([[40, *[model.config.image_token_id] * count * pictures, 41, 42]])
    pixel_values = torch.randn(pictures, 3, 24, 24, generator=torch.Generator().manual_seed(5))
    return model(input_ids=ids, pixel_values=pixel_values)[0]


def assert_refused(call, *names: str) -> None:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    for name in names:
        assert name in str(caught.value)


KINDS = {
    "linear": {"projector": "linear"},
    "mlp": {"projector": "mlp", "vision_feature_layer": -1},
    "cls_patch": {"projector": "mlp", "vision_feature_select_strategy": "full"},
}


@pytest.fixture(params=KINDS.values(), ids=KINDS.keys())
def model(request, tiny_config, tokenizer, randomise) -> Llava:
    config = replace(tiny_config, **request.param)
    config.decoder = replace(config.decoder, tie_word_embeddings=False)
    return randomise(Llava(config, Processor(tokenizer, ImageProcessor.for_size(24), config.num_image_tokens)))


@pytest.mark.parametrize("tower, pickle", [(True, False), (False, True)], ids=["own tower", "CLIP's tower, pickle"])
def test_the_original_layout_gives_the_logits_that_transformers_gives(model, tmp_path, tower, pickle):
    write_original(model, tmp_path / "original", tower, pickle)
    save(model, tmp_path / "converted")
    theirs = LlavaForConditionalGeneration.from_pretrained(tmp_path / "converted").eval()
    ours = load(tmp_path / "original")
    assert ours.config == model.config
    expected = logits(theirs)
    assert (logits(ours) - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.parametrize("given", [False, True])
def test_the_clip_folder_is_found_next_to_the_model_or_given(tiny_model, tmp_path, given):
    write_original(tiny_model, tmp_path / "original", tower=False)
    folder = None
    if given:
        folder = tmp_path / "elsewhere" / "clip"
        folder.parent.mkdir()
        (tmp_path / CLIP).rename(folder)
        assert_refused(lambda: load(tmp_path / "original"), f"{tmp_path}/original/config.json", CLIP)
    assert torch.equal(logits(load(tmp_path / "original", vision=folder)), logits(tiny_model))


@pytest.mark.parametrize("name", ["..", "../..", "", ".", "a/..", 3, None])
def test_a_vision_tower_that_cannot_be_a_folder_next_to_the_model_is_refused(tiny_model, tmp_path, name):
    write_original(tiny_model, tmp_path / "original", tower=True, mm_vision_tower=name)
    assert_refused(lambda: load(tmp_path / "original"), f"{tmp_path}/original/config.json", repr(name))


def test_a_vision_folder_for_a_model_that_has_its_own_tower_is_refused(tiny_model, tmp_path):
    save(tiny_model, tmp_path / "model")
    assert_refused(lambda: load(tmp_path / "model", vision=tmp_path / "model"), f"{tmp_path}/model", "of its own")


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "llava_mistral"},
        {"mm_projector_type": "mlp3x_gelu"},
        {"mm_vision_select_feature": "cls"},
        {"mm_vision_select_layer": 99},
        {"mm_vision_select_layer": None},
        {"mm_use_im_start_end": True},
        {"image_aspect_ratio": "anyres"},
    ],
    ids=str,
)
def test_an_original_config_that_we_cannot_compute_is_refused(tiny_model, tmp_path, change):
    write_original(tiny_model, tmp_path / "original", tower=True, **change)
    assert_refused(lambda: load(tmp_path / "original"), f"{tmp_path}/original/config.json", *map(str, change))


@pytest.mark.parametrize("name", ["model.mm_projector.bias", "model.vision_tower.vision_tower.vision_model.x", "x.y"])
def test_a_missing_or_extra_tensor_in_the_original_layout_is_named(tiny_model, tmp_path, name):
    write_original(tiny_model, tmp_path / "original", tower=True)
    tensors = original_names(tiny_model)
    if name in tensors:
        del tensors[name]
    else:
        tensors[name] = torch.ones(3)
    save_file(tensors, tmp_path / "original" / "model.safetensors")
    said = "multi_modal_projector.bias is missing" if name == "model.mm_projector.bias" else f"{name!r} is left over"
    assert_refused(lambda: load(tmp_path / "original"), f"{tmp_path}/original/model.safetensors", said)


@pytest.mark.parametrize(
    ("name", "own", "template"),
    [
        ("original", "liuhaotian/llava-v1.5-7b", "v1"),
        ("original", "/models/v1/llava-llama-2-13b/", "llama-2"),
        ("original", "/models/v1/llava-7b", "v0"),
        ("original", "C:\\v1\\llava-7b", "v0"),
        ("llava-v1.5", None, "v1"),
        ("v1/llava", None, "v0"),
    ],
)
def test_the_guessed_template_is_said_and_the_last_part_of_the_name_decides(
    tiny_model, tmp_path, capsys, name, own, template
):
    folder = tmp_path / name
    folder.parent.mkdir(exist_ok=True)
    write_original(tiny_model, folder, tower=True, **({"_name_or_path": own} if own else {}))
    assert load(folder).processor.template is TEMPLATES[template]
    (line,) = capsys.readouterr().err.splitlines()
    last = {None: name.split("/")[-1]}.get(own, re.split(r"[/\\]", own or "")[-1] or "llava-llama-2-13b")
    assert line.startswith(f"{folder}: no template is stored; {template} is taken from the name {last!r}; --template")
    assert f" {template}," not in line.partition("--template")[2]


# Tokens that a text-only decoder lacks


class TextTokenizer:
    """The parts of a tokenizer that the code uses: ``own`` tokens, no <image>, no padding token unless ``pad_id``."""

    def __init__(self, own: int, pad_id: int | None = None):
        self.vocab_size, self.image_id, self.pad_id, self.eos_id = own, None, pad_id, 2

    def add_special_tokens(self, names: list[str]) -> None:
        for name in names:
            setattr(self, {"<image>": "image_id", "<pad>": "pad_id"}[name], self.vocab_size)
            self.vocab_size += 1

    def save_pretrained(self, folder: Path) -> None:
        pass


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("pad_id", [None, 0])
@torch.no_grad()
def test_an_image_token_gets_rows_that_transformers_reads(tiny_model, randomise, tmp_path, tied, pad_id):
    config = replace(tiny_model.config.decoder, vocab_size=100, tie_word_embeddings=tied, pad_token_id=None)
    decoder = randomise(type(tiny_model.language_model)(config))
    before = {name: tensor.clone() for name, tensor in decoder.state_dict().items()}
    tokenizer = TextTokenizer(100, pad_id)
    add_image_token(decoder, tokenizer)
    assert (tokenizer.image_id, tokenizer.pad_id) == (100, 101 if pad_id is None else pad_id)
    assert decoder.config.vocab_size == 128
    assert (decoder.lm_head.weight is decoder.embed_tokens.weight) == tied
    for name in ("embed_tokens.weight", "lm_head.weight"):
        weight = decoder.state_dict()[name]
        assert weight.shape == (128, 32) and torch.equal(weight[:100], before[name])
        torch.testing.assert_close(weight[100:], before[name].mean(dim=0).expand(28, -1))
    write_decoder(decoder, tokenizer, tmp_path)
    theirs, report = LlamaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    ids = torch.randint(128, (1, 30))
    torch.testing.assert_close(decoder.lm_head(decoder(decoder.embed_tokens(ids))), theirs.eval()(ids).logits)


def test_a_vocabulary_padded_far_enough_stays_as_it_is(tiny_model, randomise):
    decoder = randomise(type(tiny_model.language_model)(replace(tiny_model.config.decoder, vocab_size=103)))
    embedding, tokenizer = decoder.embed_tokens.weight, TextTokenizer(100)
    add_image_token(decoder, tokenizer)
    assert tokenizer.vocab_size == 102 and decoder.embed_tokens.weight is embedding
    add_image_token(decoder, tokenizer)
    assert tokenizer.vocab_size == 102 and decoder.config.vocab_size == 103


def test_an_original_folder_of_text_tokens_gains_the_image_token(tiny_model, tmp_path, monkeypatch):
    """Saved again, it is in the llava-hf layout: transformers gives the same logits."""
    rows = tiny_model.config.decoder.vocab_size
    write_original(tiny_model, tmp_path / "original", tower=True)
    monkeypatch.setattr(Tokenizer, "from_pretrained", lambda folder, original: TextTokenizer(rows))
    ours = load(tmp_path / "original")
    ours.processor = None
    assert ours.config.image_token_id == rows and ours.config.decoder.vocab_size % 64 == 0
    save(ours, tmp_path / "saved")
    theirs, report = LlavaForConditionalGeneration.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not any(report.values()), report
    expected = logits(theirs.eval())
    assert expected.shape[-1] == ours.config.decoder.vocab_size > rows
    assert (logits(ours) - expected).norm() < 1e-5 * expected.norm()
    own = logits(tiny_model)
    assert (logits(ours)[..., :rows] - own).norm() < 1e-5 * own.norm()


@torch.no_grad()
def test_a_placeholder_without_a_row_is_spliced_all_the_same(tiny_model, tmp_path):
    before = logits(tiny_model)
    tiny_model.config.image_token_id = tiny_model.config.decoder.vocab_size + 5
    assert torch.equal(logits(tiny_model), before)


def test_a_tokenizer_that_the_weights_do_not_know_is_refused(tiny_model, tmp_path, monkeypatch):
    save(tiny_model, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    other = {**config, "image_token_index": 7}
    (tmp_path / "model" / "config.json").write_text(json.dumps(other))
    assert_refused(lambda: load(tmp_path / "model"), f"{tmp_path}/model", "<image>", "7")
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    read = Tokenizer.from_pretrained(tmp_path / "model")
    read.vocab_size += 1
    monkeypatch.setattr(Tokenizer, "from_pretrained", lambda folder: read)
    rows = tiny_model.config.decoder.vocab_size
    assert_refused(lambda: load(tmp_path / "model"), f"{tmp_path}/model", f"{rows + 1} tokens", f"{rows} rows")


def test_a_decoder_folder_of_text_tokens_is_read(tiny_model, tmp_path):
    write_decoder(tiny_model.language_model, tiny_model.processor.tokenizer, tmp_path)
    decoder, _ = load_decoder(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in decoder.parameters()} == {torch.bfloat16}
