"""The architecture diagrams of lessons 4 and 6. All sizes are from the shipped model's configuration."""

import torch
import torch.nn.functional as F
from PIL import Image

from lessons.diagram import GAP, RADIUS, Diagram, Part, Shape, shape
from lessons.figures_sight import drawn
from lessons.sheet import GREY, READ, RED, Colour, text_width
from minillava.config import DecoderConfig, LlavaConfig, VisionConfig
from minillava.model.decoder import rope_frequencies, rope_tables, rotate
from minillava.training.recipes import SMOLLM2


def diagram_vit() -> Image.Image:
    """The vision tower, one of its blocks, and the attention in the block."""
    config, layer = VisionConfig(), LlavaConfig().vision_feature_layer
    blocks = config.num_hidden_layers + 1 + layer  # that are run
    sizes = vision_sizes(config)
    patches, tokens = shape(sizes, "B", "patches", "hidden"), shape(sizes, "B", "1 + patches", "hidden")
    sheet = Diagram(1000, 784)
    sheet.picture(110, 669, drawn(3)[1], 80, 80)
    sheet.formula(90, 709, "X_v", anchor="rm")
    pixels = f"{config.patch_size} * {config.patch_size}"
    sizes[f"3 * {pixels}"] = 3 * config.patch_size**2
    *middles, top = sheet.stack(
        150,
        669,
        shape(sizes, "B", "3", "H", "W"),
        Part("cut into patches", shape=shape(sizes, "B", "patches", f"3 * {pixels}")),
        Part("W_patch", "trained", shape=patches),
        Part("class token", "trained", "goes first", tokens),
        Part("+", shape=tokens),
        Part("pre-LayerNorm", "norm", shape=tokens),
        Part(f"blocks 1 to {blocks}", "trained", f"of {config.num_hidden_layers}", tokens),
        Part("drop class token"),
    )
    sheet.block(60, middles[3], "W_pos", "trained", width=84, height=34)
    sheet.arrow((102, middles[3]), (150 - RADIUS, middles[3]))
    sheet.flow((150, top), (150, top - GAP), shape=patches)
    sheet.formula(150, top - GAP - 14, "Z_v")

    one = tokens[1:]
    sheet.frame(350, 106, 570, 691, "one block")
    mlp = Part("MLP", "trained", f"quick_gelu, {config.intermediate_size} inside", one)
    _block(sheet, 475, 681, one, "LayerNorm", mlp)
    sheet.frame(595, 106, 990, 691, "its attention, T = 1 + patches")
    _attention(sheet, (655, 770, 885), 681, sizes)
    sheet.legend(595, 740, "trained", "norm", "plain")
    return sheet.finished()


def diagram_decoder() -> Image.Image:
    """The decoder, one of its blocks, and the grouped-query attention in the block."""
    config = DecoderConfig()
    sizes = decoder_sizes(config)
    row = shape(sizes, "B", "T", "hidden")
    sheet = Diagram(1000, 880)
    sheet.text(85, 812, "ids")
    *_, top = sheet.stack(
        85,
        800,
        shape(sizes, "B", "T"),
        Part("E", "trained", f"{config.vocab_size} x {config.hidden_size}", row),
        Part(f"{config.num_hidden_layers} blocks", "trained", shape=row),
        Part("RMSNorm", "norm", shape=row),
        Part("W_head", "trained", "the same as E"),
        width=110,
    )
    sheet.flow((85, top), (85, top - GAP), shape=shape(sizes, "B", "T", "V"))
    sheet.text(85, top - GAP - 12, "logits")
    sheet.frame(190, 290, 410, 830, "one block")
    _block(sheet, 315, 820, row, "RMSNorm", Part("SwiGLU", "trained", shape=row))
    sheet.frame(425, 20, 990, 830, "its grouped-query attention")
    _attention(sheet, (490, 650, 820), 820, sizes, decoder=True)
    _groups(sheet, SMOLLM2.num_attention_heads, SMOLLM2.num_key_value_heads)
    sheet.text(
        20, 226, f"The shipped decoder: {config.num_attention_heads} and {config.num_key_value_heads}", anchor="lm"
    )
    sheet.legend(425, 858, "trained", "norm", "plain")
    return sheet.finished()


def _groups(sheet: Diagram, heads: int, kv_heads: int) -> None:
    """Which key head each query head reads."""
    sheet.text(20, 36, f"SmolLM2: {heads} query heads share {kv_heads} key heads", anchor="lm")
    for head in range(heads):
        x, share = 46 + 38 * head, heads // kv_heads
        key = 46 + 38 * (share * (head // share) + (share - 1) / 2)
        sheet.line((x, 98), (key, 158))
        sheet.block(x, 80, f"q_{head}", width=32, height=34)
        if head % share == 0:
            sheet.block(key, 175, f"k_{head // share}", width=32, height=34)


def vision_sizes(config: VisionConfig) -> dict[str, int]:
    heads, patches = config.num_attention_heads, config.num_patches
    named = {"hidden": config.hidden_size, "patches": patches, "1 + patches": 1 + patches, "T": 1 + patches}
    named |= {"H": config.image_size, "W": config.image_size, "heads": heads, "d": config.hidden_size // heads}
    return named | {"heads * d": config.hidden_size}


def decoder_sizes(config: DecoderConfig) -> dict[str, int]:
    named = {"hidden": config.hidden_size, "heads": config.num_attention_heads, "d": config.head_dim}
    named |= {"kv_heads": config.num_key_value_heads, "heads * d": config.num_attention_heads * config.head_dim}
    return named | {"V": config.vocab_size, "intermediate": config.intermediate_size}


def _block(sheet: Diagram, x: float, y: float, row: Shape, norm: str, mlp: Part) -> None:
    """A pre-norm block from (x, y) upwards: x + attention(norm(x)), then x + mlp(norm(x))."""
    attention = Part("attention", "trained", shape=row)
    parts = (
        Part(norm, "norm", shape=row),
        attention,
        Part("+", shape=row),
        Part(norm, "norm", shape=row),
        mlp,
        Part("+"),
    )
    *middles, top = sheet.stack(x, y, row, *parts, width=150)
    sheet.flow((x, top), (x, top - GAP), shape=row)
    sheet.residual(x, y - 12, middles[2])
    sheet.residual(x, middles[2] - RADIUS - 12, middles[5])


def _attention(
    sheet: Diagram, columns: tuple[float, float, float], y: float, sizes: dict[str, int], decoder: bool = False
) -> None:
    """softmax(q k^T / sqrt(d)) v from y upwards, with q, k and v in three columns; the decoder's with RoPE, the KV
    cache and the mask."""
    kv_heads, seen = ("kv_heads", "S") if decoder else ("heads", "T")
    heads = [shape(sizes, "B", name, "T", "d") for name in ("heads", kv_heads, kv_heads)]
    scores, (q, k, v) = shape(sizes, "B", "heads", "T", seen), columns

    def up(x: float, bottom: float, top: float, label: Shape = ()) -> None:
        sheet.flow((x, bottom), (x, top), shape=label)

    sheet.label(k, y - 17, shape(sizes, "B", "T", "hidden"))
    sheet.line((k, y), (k, y - 42), width=1.5)
    y -= 8
    for x, name in zip(columns, "qkv"):
        sheet.arrow((k, y - 34), (x, y - 34), (x, y - 54))
        sheet.block(x, y - 71, f"W_{name}", "trained", width=84, height=34)
    bottoms = [y - 88] * 3  # of the arrows that lead to the products
    if decoder:
        for x, label in zip((q, k), heads):
            up(x, y - 88, y - 132, label)
            sheet.block(x, y - 147, "RoPE", width=84, height=30)
        up(k, y - 162, y - 206, heads[1])
        up(v, y - 88, y - 206, heads[2])
        sheet.block((k + v) / 2, y - 229, "KV cache", note="appends k and v", width=v - k + 84, height=46)
        bottoms = [y - 162, y - 252, y - 252]
        heads[1:] = [shape(sizes, "B", "kv_heads", "S", "d")] * 2
    y = min(bottoms) - GAP
    for x, bottom, label in zip((q, k), bottoms, heads):
        up(x, bottom, y, label)
    middle, wide = (q + k) / 2, k - q + 84
    sheet.block(middle, y - 18, "q k^T / sqrt(d)", width=wide, height=36)
    up(middle, y - 36, y - 80, scores)
    y -= 80
    if decoder:
        sheet.operation(middle, y - RADIUS, "+")
        sheet.block(q - 8, y - RADIUS, "M", width=40, height=30)
        sheet.arrow((q + 12, y - RADIUS), (middle - RADIUS, y - RADIUS))
        up(middle, y - 2 * RADIUS, y - 2 * RADIUS - GAP, scores)
        y -= 2 * RADIUS + GAP
    sheet.block(middle, y - 17, "softmax", width=wide, height=34)
    up(middle, y - 34, y - 78, scores)
    up(v, bottoms[2], y - 78, heads[2])
    y -= 78
    sheet.block((q + v) / 2, y - 18, "weights times v", width=v - q + 84, height=36)
    last = Part("join heads", shape=shape(sizes, "B", "T", "heads * d")), Part("W_o", "trained")
    *_, top = sheet.stack((q + v) / 2, y - 36, heads[0], *last)
    up((q + v) / 2, top, top - GAP, shape(sizes, "B", "T", "hidden"))


def diagram_swiglu() -> Image.Image:
    """SwiGLU: W_down(silu(W_gate x) * W_up x), and the curve of silu."""
    sizes = decoder_sizes(DecoderConfig())
    inside, row = shape(sizes, "B", "T", "intermediate"), shape(sizes, "B", "T", "hidden")
    sheet, gate, up, y = Diagram(800, 440), 190, 370, 396
    middle = (gate + up) / 2
    sheet.formula(middle, y + 12, "x")
    sheet.line((middle, y), (middle, y - 42), width=1.5)
    sheet.label(middle, y - 19, row)
    for x, name in ((gate, "W_gate"), (up, "W_up")):
        sheet.arrow((middle, y - 42), (x, y - 42), (x, y - 64))
        sheet.block(x, y - 83, name, "trained", width=100)
    sheet.flow((gate, y - 102), (gate, y - 146), shape=inside, side="l")
    sheet.block(gate, y - 165, "silu", width=100)
    sheet.flow((gate, y - 184), (gate, y - 240), (middle - RADIUS, y - 240))
    sheet.flow((up, y - 102), (up, y - 240), (middle + RADIUS, y - 240))
    sheet.label(gate, y - 210, inside, "l")
    sheet.label(up, y - 165, inside)
    sheet.operation(middle, y - 240, "x")
    *_, top = sheet.stack(middle, y - 240 - RADIUS, inside, Part("W_down", "trained"), width=100)
    sheet.flow((middle, top), (middle, top - GAP), shape=row)

    left, base, unit = 660, 250, 24.0  # where silu's curve has 0, and how long 1 is
    sheet.line((left - 5 * unit, base), (left + 5 * unit, base), colour=GREY)
    sheet.line((left, base + 1.5 * unit), (left, base - 5 * unit), colour=GREY)
    curve = [(z / 4, F.silu(torch.tensor(z / 4)).item()) for z in range(-20, 21)]
    sheet.line(*((left + unit * z, base - unit * value) for z, value in curve), width=2.5, colour=RED)
    for z in (-4, 4):
        sheet.text(left + unit * z, base + 14, str(z), 13, GREY)
    sheet.text(left - 8, base - 4 * unit, "4", 13, GREY, "rm")
    sheet.text(left, 100, "silu(z) = z * sigmoid(z)", 15)
    sheet.legend(560, 408, "trained", "plain")
    return sheet.finished()


def diagram_rope() -> Image.Image:
    """A pair of coordinates turned by pos * omega_i; the pairs; two products at the same distance."""
    config, pair = DecoderConfig(), 2
    half, omega = config.head_dim // 2, rope_frequencies(config)
    vectors = torch.zeros(1, 1, 10, config.head_dim)
    vectors[..., pair] = 1.0
    turned = rotate(vectors, *rope_tables(torch.arange(10)[None], omega))[0, 0]  # (10, d): at positions 0 to 9
    sheet = Diagram(1000, 430)

    def spokes(x: float, y: float, radius: float, at: dict[int, tuple[str, Colour]]) -> None:
        """The pair at some positions, as arrows from the middle of a circle."""
        sheet.ring(x, y, radius)
        sheet.line((x - radius - 4, y), (x + radius + 4, y), colour=GREY)
        sheet.line((x, y - radius - 4), (x, y + radius + 4), colour=GREY)
        for position, (name, colour) in at.items():
            a, b = turned[position, pair].item(), turned[position, pair + half].item()
            sheet.line((x, y), (x + radius * a, y - radius * b), colour=colour, width=2.5)
            away = radius + 8 + text_width(name) / 2
            sheet.text(x + away * a, y - away * b, name, 14, colour)

    sheet.formula(20, 24, f"pair i turns by pos * omega_i, here i = {pair}", anchor="lm")
    spokes(140, 205, 100, {pos: (f"pos {pos}" if pos else "", READ) for pos in (0, 1, 2, 3)})
    sheet.text(250, 206, f"coordinate {pair}", 13, GREY, "lm")
    sheet.text(140, 84, f"coordinate {pair + half}", 13, GREY)
    sheet.formula(20, 365, f"omega_{pair} = {omega[pair]:.3f} radians per position", 15, anchor="lm")

    sheet.text(355, 24, f"the pairs: i and i + d / 2, with d = {config.head_dim}", 16, anchor="lm")
    for place, i in enumerate((0, 1, 2, None, half - 1)):
        x = 383 + 62 * place
        if i is None:
            for y in (115, 205, 285):
                sheet.text(x, y, "...")
            continue
        sheet.line((x, 134), (x, 186), width=1.5)
        sheet.block(x, 115, str(i), width=50)
        sheet.block(x, 205, str(i + half), width=50)
        sheet.formula(x, 260, f"omega_{i}", 15)
        sheet.text(x, 285, f"{omega[i]:.2g}", 13, GREY)
    sheet.formula(355, 365, f"omega_i = base^(-2i/d), base = {config.rope_theta:,.0f}", 15, anchor="lm")

    sheet.text(700, 24, "only the distance counts", 16, anchor="lm")
    for y, (ahead, behind) in ((130, (5, 2)), (310, (9, 6))):
        spokes(780, y, 62, {ahead: ("q", RED), behind: ("k", READ)})
        sheet.text(870, y - 22, f"q at {ahead}, k at {behind}", 14, anchor="lm")
        sheet.text(870, y, f"distance {ahead - behind}", 14, anchor="lm")
        sheet.formula(870, y + 24, f"q k^T = {turned[ahead] @ turned[behind]:.3f}", 15, anchor="lm")
    return sheet.finished()


FIGURES = (diagram_vit, diagram_decoder, diagram_swiglu, diagram_rope)
