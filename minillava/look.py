"""The explainer: one self-contained HTML page about one answer of a model, from pixels to the next token.

    python -m minillava.look [--model DIR] [--image FILE] [--prompt TEXT] [--out page.html] [--png still.png]

The numbers are measured here, in a run of the real model; ``look.js`` draws them in the page and needs no network.

- Attention is computed again from the inputs of the decoder's Attention modules, which hooks keep.
- Rollout (Abnar & Zuidema 2020) follows attention through all layers.
- Relevancy (Chefer et al. 2021) weighs attention by the gradient of a token's logit: gradient times attention.
- Occlusion (Zeiler & Fergus 2014) paints over a part of the picture and runs the model again. The first three say
  where the model looks; occlusion says what matters to the answer, which is not the same.

Letters as in ``model/__init__.py``; here T counts the whole row, prompt and answer, and N the tokens of the answer.
"""

import argparse
import base64
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from minillava.checkpoint import load
from minillava.config import PRETRAINED
from minillava.errors import UserError, run_program
from minillava.inputs.image import open_image
from minillava.inputs.processor import Processor
from minillava.model import decoder as decoder_module
from minillava.model.attention import causal_mask
from minillava.model.decoder import Attention, Decoder, rotate
from minillava.model.llava import History, Llava
from minillava.page import as_png, data_uri, fill
from minillava.talk import make_turns

HERE = PRETRAINED.parent  # look.html, look.js and look.png
WHOLE = 400_000  # with at most so many attention weights, all are in the page; two bytes each, a third more as base64
KEPT = 1_000_000  # otherwise at most so many: those of the answer's rows, the mean over heads
LOGITS = 60_000  # with at most so many logits, all are in the page; otherwise the TOP highest of each token
TOP, TAIL = 256, 64  # the logits below the TOP highest are in the page as the means of so many groups
BATCH = 16  # painted pictures in one pass


@dataclass
class Run:
    """A picture, a question and the model's answer to it.

    pixels (1, 3, H, W) is what the vision tower sees; ids (T,) the prompt and then the answer, with its stop if the
    model wrote one; ``start`` the place of the answer's first token. The N rows that chose the answer's tokens are
    ``rows``: each token is predicted by the row before it.
    """

    model: Llava
    pixels: Tensor
    ids: Tensor
    start: int

    @property
    def rows(self) -> slice:
        return slice(self.start - 1, len(self.ids) - 1)

    @property
    def answer(self) -> Tensor:
        return self.ids[self.start :]

    def embeddings(self) -> Tensor:
        """The decoder's input (1, T, hidden)."""
        with torch.no_grad():
            return self.model.embed(self.ids[None], self.pixels)


def run_model(
    model: Llava,
    image: Image.Image,
    prompt: str,
    max_new_tokens: int = 64,
    history: History | None = None,
    answer: str | None = None,
) -> Run:
    """Answer ``prompt`` about ``image``, always with the most likely token, or take ``answer`` as the model's own.

    ``history`` as for talk.stream(). Raises UserError if the question with an answer of ``max_new_tokens`` is too long.
    """
    ids, _ = model.processor.encode(make_turns(prompt, history or [], has_image=True))
    limit = model.config.decoder.max_position_embeddings
    if answer is None and len(ids) + max_new_tokens > limit:
        raise UserError(f"the question has {len(ids)} tokens; with the answer it may have at most {limit}")
    pixels = model.processor.image(image)[None].to(model.device)
    prompt_ids = torch.tensor(ids, device=model.device)
    if answer is None:
        new = model.generate(prompt_ids[None], pixels, max_new_tokens=max_new_tokens)[0].clone()  # a normal tensor
        new = new[: stop_at(model.processor, new.tolist())]
    else:
        text = model.processor.template.before_answer + answer
        new = torch.tensor(model.processor.tokenizer.encode(text, special=False, after=ids), device=model.device)
    return Run(model, pixels, torch.cat([prompt_ids, new]), len(ids))


def stop_at(processor: Processor, ids: list[int]) -> int:
    """How many of an answer's ids there are up to its end, the stop included."""
    for count in range(1, len(ids) + 1):
        if ids[count - 1] in processor.stop_ids:
            return count
        if processor.template.stop in processor.tokenizer.decode(ids[max(0, count - 16) : count]):
            return count
    return len(ids)


def text_of(processor: Processor, ids: list[int]) -> str:
    """The text of an answer's ids, without special tokens and its stop."""
    hidden = {*processor.stop_ids, *processor.tokenizer.special.values()}
    text = processor.tokenizer.decode(index for index in ids if index not in hidden)
    return text.split(processor.template.stop)[0].strip()


# Where the model looks.


@torch.no_grad()
def attention_weights(decoder: Decoder, embeddings: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) for embeddings (1, T, hidden): (layers, heads, T, T), float32.

    The decoder does not return its weights. Hooks keep what comes into each Attention; the weights are computed again.
    """
    weights: list[Tensor] = []

    def keep(module: Attention, inputs: tuple) -> None:
        x, rope = inputs[:2]  # (1, T, hidden); cos and sin

        def heads(y: Tensor) -> Tensor:
            return y.unflatten(-1, (-1, module.config.head_dim)).transpose(1, 2)  # (1, heads or kv_heads, T, d)

        q, k = rotate(heads(module.q_proj(x)), *rope), rotate(heads(module.k_proj(x)), *rope)
        weights.append(formula(q, k)[0])

    hooks = [layer.self_attn.register_forward_pre_hook(keep) for layer in decoder.layers]
    try:
        decoder(embeddings)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(weights)


def formula(q: Tensor, k: Tensor) -> Tensor:
    """Causal attention weights of q (B, heads, T, d) and k (B, kv_heads, T, d): (B, heads, T, T), float32."""
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)  # (B, heads, T, d)
    scores = q.float() @ k.float().transpose(-1, -2) * q.shape[-1] ** -0.5
    return (scores + causal_mask(q.shape[2], device=q.device)).softmax(dim=-1)


def rollout(weights: Tensor) -> Tensor:
    """Attention weights (layers, heads, T, T) -> rollout (T, T) (Abnar & Zuidema 2020, arXiv 2005.00928, section 3).

    Half of each layer's output comes from attention, the mean over heads, and half past it, through the residual
    connection: 0.5 (weights + I). The layers' matrices are multiplied, the last one on the left.
    """
    identity = torch.eye(weights.shape[-1], device=weights.device)
    result = identity
    for layer in weights.mean(dim=1):
        result = (0.5 * layer + 0.5 * identity) @ result
    return result


@contextmanager
def kept_attention() -> Iterator[list[Tensor]]:
    """While this is open, the decoder computes attention by the formula and adds each layer's weights to a list.

    The weights (B, heads, T, T) are a part of the graph, so that a gradient can be taken with respect to them.
    """
    kept: list[Tensor] = []

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        if mask is not None or not causal:
            raise ValueError("only for one whole row without padding")
        weights = formula(q, k)
        kept.append(weights if weights.requires_grad else weights.requires_grad_())
        return weights.to(v.dtype) @ v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)  # (B, heads, T, d)

    original, decoder_module.attend = decoder_module.attend, attend
    try:
        yield kept
    finally:
        decoder_module.attend = original


@torch.enable_grad()
def relevancy(run: Run) -> Tensor:
    """How much each token of the row matters to each token of the answer, by gradient times attention: (N, T).

    Chefer et al. 2021, arXiv 2103.15679, equations 5 and 6. With A the weights of a layer and dA the gradient of the
    token's logit with respect to them, R begins as I, and each layer adds mean over heads of (A * dA)+ times R.
    """
    decoder = run.model.language_model
    with kept_attention() as weights:
        hidden = decoder(run.embeddings())[0, run.rows]  # (N, hidden)
    logits = decoder.lm_head(hidden).gather(1, run.answer[:, None])[:, 0]  # (N,): the logits of the answer's tokens
    maps = []
    for row, logit in enumerate(logits, start=run.start - 1):
        gradients = torch.autograd.grad(logit, weights, retain_graph=True)
        relevance = torch.eye(len(run.ids), device=logit.device)
        for weight, gradient in zip(weights, gradients):
            relevance = relevance + (weight * gradient).clamp(min=0).mean(dim=1)[0].detach() @ relevance
        maps.append(relevance[row])
    return torch.stack(maps)


# What matters.


def regions(side: int, most: int) -> list[tuple[int, int, int, int]]:
    """A grid of ``side`` x ``side`` patches cut into at most ``most`` x ``most`` boxes (top, left, bottom, right)."""
    count = min(side, most)
    edges = [index * side // count for index in range(count + 1)]
    spans = list(itertools.pairwise(edges))
    return [(top, left, bottom, right) for top, bottom in spans for left, right in spans]


def mean_colour(run: Run) -> tuple[int, ...]:
    """The mean colour of the pictures that the vision tower was trained on; normalised, it is about 0."""
    return tuple(round(255 * mean) for mean in run.model.processor.image.image_mean)


def paint(run: Run, boxes: list[tuple[int, int, int, int]]) -> Tensor:
    """One picture for each box, in which the box's patches have the mean colour: (boxes, 3, H, W)."""
    blank = Image.new("RGB", run.pixels.shape[:1:-1], mean_colour(run))
    blank = run.model.processor.image(blank).to(run.pixels)  # (3, H, W)
    painted = run.pixels.repeat(len(boxes), 1, 1, 1)
    for picture, box in zip(painted, boxes):
        top, left, bottom, right = (edge * run.model.config.vision.patch_size for edge in box)
        picture[:, top:bottom, left:right] = blank[:, top:bottom, left:right]
    return painted


@torch.no_grad()
def answer_logits(run: Run, pixels: Tensor) -> Tensor:
    """pixels (B, 3, H, W), each with the run's prompt and answer -> the logits that chose the answer (B, N, V)."""
    hidden = run.model.language_model(run.model.embed(run.ids.expand(len(pixels), -1), pixels))  # (B, T, hidden)
    return run.model.language_model.lm_head(hidden[:, run.rows]).float()


@torch.no_grad()
def occlusion(run: Run, painted: Tensor) -> Tensor:
    """By how much log p of each token of the answer falls, in nats, if the model sees a painted picture: (boxes, N).

    painted (boxes, 3, H, W). The tokens before it, those of the answer included, stay the same.
    """

    def log_p(pixels: Tensor) -> Tensor:
        every = answer_logits(run, pixels).log_softmax(dim=-1)  # (B, N, V)
        return every.gather(2, run.answer.expand(len(pixels), -1)[..., None])[..., 0]  # (B, N)

    return log_p(run.pixels) - torch.cat([log_p(pixels) for pixels in painted.split(BATCH)])


def answers_without(run: Run, painted: Tensor, max_new_tokens: int) -> list[str]:
    """What the model answers instead, for each painted picture (boxes, 3, H, W)."""
    processor, answers = run.model.processor, []
    for pixels in painted.split(BATCH):
        prompts = run.ids[: run.start].expand(len(pixels), -1)  # (B, T)
        for ids in run.model.generate(prompts, pixels, max_new_tokens=max_new_tokens).tolist():
            answers.append(text_of(processor, ids[: stop_at(processor, ids)]))
    return answers


# What the vectors say.


@torch.no_grad()
def nearest_words(run: Run, visual: Tensor, count: int = 5) -> tuple[Tensor, Tensor]:
    """visual (patches, hidden) -> the tokens whose embeddings have the largest cosine with each: (cosines, ids), each
    (patches, count). Special tokens are left out."""
    table = F.normalize(run.model.language_model.embed_tokens.weight.float(), dim=-1)  # (V, hidden)
    cosines = F.normalize(visual.float(), dim=-1) @ table.T  # (patches, V)
    cosines[:, list(run.model.processor.tokenizer.special.values())] = -2
    return cosines.topk(count)


def colours(vectors: Tensor) -> Tensor:
    """Vectors (n, size) as colours (n, 3), 0 to 255: their three principal components as red, green and blue."""
    centred = vectors.float() - vectors.float().mean(dim=0)
    parts = centred @ torch.linalg.svd(centred, full_matrices=False).Vh[:3].T  # (n, 3)
    low, high = parts.amin(dim=0), parts.amax(dim=0)
    return ((parts - low) / (high - low).clamp(min=1e-6) * 255).round()


def kinds(run: Run, prompt: str) -> list[str]:
    """What each token of the row is: "picture", "question", "answer", or "template" (system message and marks)."""
    config, tokenizer = run.model.config, run.model.processor.tokenizer
    pieces = [tokenizer.decode_bytes([index]) for index in run.ids[: run.start].tolist()]
    begin = b"".join(pieces).rfind(prompt.strip().encode("utf-8", "replace"))
    end, at, result = begin + len(prompt.strip().encode("utf-8", "replace")), 0, []
    for index, piece in zip(run.ids.tolist(), pieces):
        asked = begin >= 0 and at < end and at + len(piece) > begin
        result.append("picture" if index == config.image_token_id else "question" if asked else "template")
        at += len(piece)
    return result + ["answer"] * len(run.answer)


# The page.


@torch.no_grad()
def collect(run: Run, prompt: str, max_new_tokens: int = 64) -> dict:
    """Everything that the page shows, as values that JSON can hold; ``look.js`` reads exactly these."""
    config, processor = run.model.config, run.model.processor
    decoder, length = config.decoder, len(run.ids)
    whole = decoder.num_hidden_layers * decoder.num_attention_heads * length * (length + 1) // 2 <= WHOLE
    cut = False
    if not whole:  # an answer that is too long for the page is explained up to a token
        count = max(1, KEPT // ((decoder.num_hidden_layers + 4) * length))  # 4: two other maps of four bytes a number
        cut, run = count < len(run.answer), Run(run.model, run.pixels, run.ids[: run.start + count], run.start)
        length = len(run.ids)

    weights = attention_weights(run.model.language_model, run.embeddings())  # (layers, heads, T, T)
    first_row = 0 if whole else run.start - 1
    shown = weights if whole else weights.mean(dim=1, keepdim=True)
    triangle = torch.cat([shown[..., row, : row + 1] for row in range(first_row, length)], dim=-1)

    pixels = run.pixels.to(run.model.vision_tower.embeddings.patch_embedding.weight.dtype)
    features = run.model.vision_tower(pixels, config.vision_feature_layer)[0]  # Z_v (patches, vision hidden)
    visual = run.model.encode_images(run.pixels)[0][-len(features) :]  # H_v (patches, hidden), without a class token
    cosines, near = nearest_words(run, visual)
    side = config.vision.image_size // config.vision.patch_size
    boxes = regions(side, 8 if whole else 4)
    painted = paint(run, boxes)

    logits = answer_logits(run, run.pixels)[0]  # (N, V)
    top, tail, sizes = top_logits(logits)
    used = {*run.ids.tolist(), *near.flatten().tolist(), *top.indices.flatten().tolist()}
    return {
        "prompt": prompt,
        "answer": text_of(processor, run.answer.tolist()),
        "cut": cut,
        "picture": data_uri(seen(run)),
        "side": side,
        "firstPatch": int((run.ids == config.image_token_id).nonzero()[-1]) + 1 - len(features),
        "ids": run.ids.tolist(),
        "kinds": kinds(run, prompt),
        "start": run.start,
        "words": {index: processor.tokenizer.decode_bytes([index]).decode("utf-8", "replace") for index in used},
        "sizes": {"Z": features.shape[1], "H": visual.shape[1], "V": logits.shape[1]},
        "zColours": colours(features).int().tolist(),
        "hColours": colours(visual).int().tolist(),
        "near": near.tolist(),
        "cosines": [[round(value, 3) for value in row] for row in cosines.tolist()],
        "layers": len(weights),
        "heads": shown.shape[1],
        "firstRow": first_row,
        "attention": packed((triangle * 65535).round(), np.uint16),
        "rollout": packed(rollout(weights)[run.rows], np.float32),
        "relevancy": packed(relevancy(run), np.float32),
        "boxes": boxes,
        "paint": mean_colour(run),
        "falls": packed(occlusion(run, painted), np.float32),
        "answers": answers_without(run, painted, max_new_tokens),
        "topIds": packed(top.indices, np.int32),
        "topLogits": packed(top.values, np.float32),
        "tail": packed(tail, np.float32),
        "tailSizes": sizes,
    }


def top_logits(logits: Tensor) -> tuple[torch.return_types.topk, Tensor, list[int]]:
    """logits (N, V) -> the highest ones, the means of groups of the others (N, groups), and the sizes of the groups.

    Few logits are kept whole. The groups hold neighbours in the sorted order, so that their means are enough to
    compute a softmax at any temperature.
    """
    count = logits.shape[1] if logits.numel() <= LOGITS else min(TOP, logits.shape[1])
    rest = logits.sort(dim=1, descending=True).values[:, count:]
    groups = rest.chunk(TAIL, dim=1) if rest.numel() else ()
    means = [group.mean(dim=1, keepdim=True) for group in groups]
    return logits.topk(count), torch.cat([rest[:, :0], *means], dim=1), [group.shape[1] for group in groups]


def packed(values: Tensor, kind: type) -> str:
    """A tensor's numbers, row by row, as base64. Multi-byte numbers are little-endian, as in every browser."""
    array = values.detach().cpu().numpy().astype(np.dtype(kind).newbyteorder("<"))
    return base64.b64encode(array.tobytes()).decode()


def seen(run: Run) -> Image.Image:
    """The picture as the vision tower sees it: after resizing, and cropping or padding."""
    image, pixels = run.model.processor.image, run.pixels[0].float().cpu()
    if image.do_normalize:
        pixels = pixels * torch.tensor(image.image_std)[:, None, None] + torch.tensor(image.image_mean)[:, None, None]
    scale = float(image.rescale_factor) if image.do_rescale else 1
    return Image.fromarray((pixels / scale).round().clamp(0, 255).byte().permute(1, 2, 0).numpy())


def page(data: dict) -> str:
    """The HTML page that shows what collect() has found."""
    return fill(HERE / "look", data)


def still(run: Run) -> Image.Image:
    """A picture of the page's two main maps for each token of the answer: gradient times attention, above, says where
    the model looked for it; occlusion, below, what mattered to it. The more orange, the more."""
    config, tokenizer = run.model.config.vision, run.model.processor.tokenizer
    side, tile, gap, across = config.image_size // config.patch_size, 96, 8, 12
    where = (run.ids == run.model.config.image_token_id).nonzero()[-(side**2) :, 0]
    boxes = regions(side, 8)
    looks, falls = relevancy(run)[:, where].view(-1, side, side), occlusion(run, paint(run, boxes)).clamp(min=0)
    matters = torch.zeros_like(looks)
    for fall, (top, left, bottom, right) in zip(falls, boxes):
        matters[:, top:bottom, left:right] = fall[:, None, None]

    picture = seen(run).resize((tile, tile), Image.Resampling.NEAREST)
    count = 1 + len(looks)  # the first place explains the two lines
    lines, height = -(-count // across), 2 * (tile + gap) + 24
    sheet = Image.new("RGB", (gap + min(count, across) * (tile + gap), lines * height + gap), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    sheet.paste(picture, (gap, gap + 12))
    explanation = "Above: where\nthe model\nlooked. Below:\nwhat mattered."
    pen.multiline_text((gap, tile + 2 * gap + 20), explanation, "black", font, spacing=6)
    for index, token in enumerate(run.answer.tolist(), start=1):
        x, y = gap + index % across * (tile + gap), gap + index // across * height
        word = tokenizer.decode_bytes([token]).decode("utf-8", "replace").strip()
        pen.text((x + tile / 2, y + 4), word, "black", font, anchor="mm")
        for place, values in enumerate((looks[index - 1], matters[index - 1])):
            sheet.paste(overlay(picture, values), (x, y + 12 + place * (tile + gap)))
    return sheet


def overlay(picture: Image.Image, values: Tensor) -> Image.Image:
    """The picture, dark where ``values`` (side, side), none below 0, are low, and orange where they are high: as
    drawMap() in ``look.js``."""
    share = (255 * values / values.max().clamp(min=1e-9)).byte().cpu().numpy()
    share = np.asarray(Image.fromarray(share).resize(picture.size, Image.Resampling.NEAREST))[..., None] / 255
    dark, orange = np.array([18, 20, 28]), np.array([255, 140, 0])
    shown = np.asarray(picture) + 0.75 * (1 - share) * (dark - np.asarray(picture))
    return Image.fromarray((shown + 0.6 * share * (orange - shown)).astype(np.uint8))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m minillava.look", description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=PRETRAINED / "llava", help="LLaVA folder or hub id (default: the shipped)")
    parser.add_argument("--image", type=Path, default=HERE / "look.png", help="picture (default: a drawn scene)")
    parser.add_argument("--prompt", default="Describe the image concisely.", help="question (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="HTML file to write")
    parser.add_argument("--png", type=Path, help="picture to write: for each token, where the model looked")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of the weights")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    a = parser.parse_args()
    if a.max_new_tokens < 1:
        parser.error("--max-new-tokens must be at least 1")
    if not a.out and not a.png:
        parser.error("--out or --png must say what to write")
    image = open_image(a.image)
    model = load(a.model, a.device, getattr(torch, a.dtype))
    run = run_model(model, image, a.prompt, a.max_new_tokens)
    if a.out:
        write(a.out, page(collect(run, a.prompt, a.max_new_tokens)).encode())
    if a.png:
        write(a.png, as_png(still(run)))
    print(text_of(model.processor, run.answer.tolist()))


def write(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None


if __name__ == "__main__":
    run_program(main)
