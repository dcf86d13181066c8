"""The architecture diagrams: all text can be read, and shapes and colours are those of the real modules."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from lessons import figures_clip_lora, figures_diagrams, figures_roads
from lessons.diagram import Diagram
from lessons.roads.blip2 import Blip2, QFormer, QFormerConfig, blip2_task
from lessons.roads.flamingo import Flamingo, flamingo_task
from lessons.roads.frozen import Frozen, frozen_task
from lessons.roads.kosmos import Kosmos, kosmos_task
from lessons.sheet import SCALE, Sheet, _font
from lessons.talker import adapter
from minillava.config import DecoderConfig, LlavaConfig, TextConfig, VisionConfig
from minillava.model import decoder as decoder_module
from minillava.model import vision as vision_module
from minillava.model.contrastive import Clip
from minillava.model.decoder import MLP, Decoder, KVCache
from minillava.model.llava import Llava
from minillava.model.lora import LoraLinear
from minillava.model.vision import VisionTower
from minillava.training.tasks import choose_what_learns

DIAGRAMS = (*figures_diagrams.FIGURES, *figures_clip_lora.FIGURES, *figures_roads.FIGURES)
B, T, S = 7, 11, 17  # sizes that no configuration has
Corners = tuple[float, float, float, float]


class Drawing(SimpleNamespace):
    """A diagram's ``size``, its ``texts`` with their sizes and corners, its ``boxes``, and its ``blocks``' kinds."""

    def shapes(self) -> set[str]:
        """The shapes in numbers: those with no letters but B, T, S, n, m and "images"."""
        letters = {"B", "T", "S", "n", "m", "images"}
        found = {text for text, _, _ in self.texts if text.startswith("(") and text.endswith(")")}
        return {s for s in found if all(axis.isdigit() or axis in letters for axis in s[1:-1].split(", "))}


@cache
def drawing(figure: Callable[[], Image.Image]) -> Drawing:
    texts: list[tuple[str, int, Corners]] = []
    boxes: list[Corners] = []
    blocks: dict[str, str] = {}
    draw_block = Diagram.block

    def text(sheet: Sheet, x: float, y: float, words: str, size: int = 14, colour=None, anchor: str = "mm") -> None:
        corners = sheet.pen.textbbox((x * SCALE, y * SCALE), words, _font(size), anchor)
        texts.append((words, size, tuple(value / SCALE for value in corners)))

    def block(sheet: Diagram, x: float, y: float, name: str, kind: str = "plain", *options, **named) -> None:
        blocks[name] = kind
        draw_block(sheet, x, y, name, kind, *options, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sheet, "text", text)
        patch.setattr(Sheet, "box", lambda sheet, *corners_and_colours: boxes.append(corners_and_colours[:4]))
        patch.setattr(Diagram, "block", block)
        patch.setattr(Sheet, "finished", lambda sheet: sheet)
        sheet = figure()
    return Drawing(size=sheet.size, texts=texts, boxes=boxes, blocks=blocks)


@pytest.mark.parametrize("figure", DIAGRAMS, ids=lambda figure: figure.__name__)
def test_all_text_can_be_read(figure):
    found = drawing(figure)
    assert found.size[0] <= 1000
    for place, (words, size, (left, top, right, bottom)) in enumerate(found.texts):
        assert size >= 13, words
        assert left >= 2 and top >= 2 and right <= found.size[0] - 2 and bottom <= found.size[1] - 2, words
        for other, _, (x1, y1, x2, y2) in found.texts[:place]:  # a subscript begins at most 2 pixels inside its letter
            assert right <= x1 or x2 <= left + 2 or bottom <= y1 or y2 <= top, (words, other)
        for x1, y1, x2, y2 in found.boxes:
            inside = x1 < left and right < x2 and y1 < top and bottom < y2
            assert inside or right <= x1 or x2 <= left or bottom <= y1 or y2 <= top, words


@contextmanager
def shapes_of(names: dict[int, str], *modules: nn.Module) -> Iterator[set[str]]:
    """While this is open, the shapes of what goes into and comes out of ``modules``, with letters for some sizes."""
    found: set[str] = set()

    def note(*tensors: Tensor) -> None:
        for tensor in tensors:
            if isinstance(tensor, Tensor):
                found.add(f"({', '.join(str(names.get(size, size)) for size in tensor.shape)})")

    def hook(_: nn.Module, inputs: tuple, output: Tensor) -> None:
        note(*inputs, output)

    def attend(q: Tensor, k: Tensor, v: Tensor, *options, **named) -> Tensor:
        out = attend_as_it_is(q, k, v, *options, **named)
        note(q, k, v, q[..., :1] * k[..., :1].mT, out)  # the scores' shape is (..., T, S)
        return out

    attend_as_it_is = vision_module.attend
    handles = [module.register_forward_hook(hook) for module in modules]
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(vision_module, "attend", attend)
        patch.setattr(decoder_module, "attend", attend)
        yield found
    for handle in handles:
        handle.remove()


def test_the_vision_towers_shapes():
    config = VisionConfig()
    tower = VisionTower(config)
    block = tower.encoder.layers[0]
    pixels = torch.zeros(B, 3, config.image_size, config.image_size)
    cut = nn.Unfold(config.patch_size, stride=config.patch_size)(pixels).mT  # (B, patches, 3 * patch size ** 2)
    with shapes_of({B: "B"}, tower, tower.embeddings, tower.pre_layrnorm, block.self_attn, block.mlp, block) as found:
        tower(pixels)
    found.add(f"(B, {cut.shape[1]}, {cut.shape[2]})")
    assert drawing(figures_diagrams.diagram_vit).shapes() == found


def test_the_decoders_shapes():
    config = DecoderConfig()
    decoder, cache = Decoder(config), KVCache(config, B, S, torch.float32, torch.device("cpu"))
    past, block = S - T, decoder.layers[0]
    appended = cache.append
    modules = decoder.embed_tokens, decoder.lm_head, block.self_attn.o_proj, block.mlp
    with shapes_of({B: "B", T: "T", S: "S"}, *modules) as found:
        decoder(torch.zeros(B, past, config.hidden_size), cache=cache)
        found.clear()

        def append(layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            found.update(f"(B, {tensor.shape[1]}, T, {tensor.shape[3]})" for tensor in (k, v) if tensor.shape[2] == T)
            return appended(layer, k, v)

        cache.append = append
        decoder.lm_head(decoder(decoder.embed_tokens(torch.zeros(B, T, dtype=torch.long)), cache=cache))
    assert drawing(figures_diagrams.diagram_decoder).shapes() == found


def test_the_shapes_in_swiglu():
    mlp = MLP(DecoderConfig())
    with shapes_of({B: "B", T: "T"}, mlp, mlp.gate_proj, mlp.up_proj, mlp.down_proj) as found:
        mlp(torch.zeros(B, T, DecoderConfig().hidden_size))
    assert drawing(figures_diagrams.diagram_swiglu).shapes() == found


def test_clips_shapes():
    vision, text = VisionConfig(), TextConfig()
    clip, none = Clip(vision, text), torch.empty(0, dtype=torch.long)
    modules = clip.vision_model.post_layernorm, clip.visual_projection, clip.text_model, clip.text_projection
    with shapes_of({B: "n", S: "m", T: "T"}, *modules, clip.text_model.final_layer_norm) as found:
        pictures, _ = clip.image_features(torch.zeros(B, 3, vision.image_size, vision.image_size), none, none)
        logits = pictures @ clip.text_features(torch.zeros(S, T, dtype=torch.long)).T
    attention = {shape for shape in found if shape.count(",") == 3}
    assert logits.shape == (B, S)
    figure = drawing(figures_clip_lora.diagram_clip)
    assert figure.shapes() == found - attention | {"(n, 3, 64, 64)", "(n, m)"}
    lines = [text for text, _, _ in figure.texts]
    assert (
        lines.count("(m, 64)") == lines.count("(m, 128)") == 2
    )  # before and after the norm; before and after length 1


def test_loras_shapes_are_the_adapters():
    name = "language_model.layers.0.mlp.gate_proj"
    a, b = (adapter()[f"{name}.lora_{letter}.weight"] for letter in "AB")
    (rank, size), outputs = a.shape, b.shape[0]
    layer = LoraLinear(nn.Linear(size, outputs, bias=False), rank, alpha=2 * rank)
    with shapes_of({B: "B", T: "T"}, layer, layer.lora_A, layer.lora_B) as found:
        layer(torch.zeros(B, T, size))
    figure = drawing(figures_clip_lora.diagram_lora)
    assert figure.shapes() == found
    sizes = {f"{rank} x {size}", f"{outputs} x {rank}", f"{outputs} x {size}", f"{2 * rank} / {rank}"}
    assert sizes <= {text for text, _, _ in figure.texts}


def llava() -> Llava:
    return Llava(LlavaConfig())


def stage_2() -> Llava:
    model = llava()
    choose_what_learns(model, 2, 0)
    return model


def trained(model: nn.Module, task: Callable) -> nn.Module:
    task(model, SimpleNamespace(collate=None, size=None))
    return model


ROADS = {
    figures_roads.diagram_llava: stage_2,
    figures_roads.diagram_frozen: lambda: trained(Frozen(llava()), frozen_task),
    figures_roads.diagram_flamingo: lambda: trained(Flamingo(llava()), flamingo_task),
    figures_roads.diagram_blip2: lambda: trained(Blip2(llava(), QFormer(QFormerConfig())), blip2_task),
    figures_roads.diagram_kosmos: lambda: trained(Kosmos(llava()), kosmos_task),
}


@pytest.mark.parametrize("figure", ROADS, ids=lambda figure: figure.__name__)
def test_a_road_has_its_models_shapes_and_colours(figure):
    model, found = ROADS[figure](), drawing(figure)
    projector, decoder = model.multi_modal_projector, model.language_model
    inner = [part for name, part in projector.named_children() if name in ("linear", "resampler")]
    # Frozen's linear layer takes the mean of the features, which has no arrow.
    inner = [] if isinstance(model, Frozen) else inner
    with shapes_of({B: "images"}, projector, *inner) as seen:
        visual = model.encode_images(torch.zeros(B, 3, 64, 64))
    with shapes_of({B: "B", T: "T"}, decoder.embed_tokens, decoder.lm_head) as read:
        decoder.lm_head(decoder.embed_tokens(torch.zeros(B, T, dtype=torch.long)))
    attention = {shape for shape in seen if shape.count(",") == 3}
    assert found.shapes() == seen - attention | read | {"(images, 3, 64, 64)"}

    count = visual.shape[1] - 2 * isinstance(model, Kosmos)
    assert any(text.startswith(f"{count} visual tokens") for text, _, _ in found.texts)

    def kind(part: nn.Module) -> str:
        return "trained" if any(p.requires_grad for p in part.parameters()) else "frozen"

    blocks = {name: colour for name, colour in found.blocks.items() if colour in ("trained", "frozen")}
    names = list(blocks)  # the tower first, what follows it, E, the language model
    place = names.index("E")
    assert blocks[names[0]] == kind(model.vision_tower)
    assert {blocks[name] for name in names[1:place]} == {kind(projector)}
    assert blocks["E"] == kind(decoder.embed_tokens)
    if isinstance(model, Flamingo):
        layer = decoder.layers[0]
        assert blocks["gated cross-attention"] == kind(layer.attention) == kind(layer.ffw)
        assert blocks["block of the language model"] == kind(layer.block)
        assert f"{len(decoder.layers)} times" in {text for text, _, _ in found.texts}
    else:
        assert blocks["language model"] == kind(decoder)
