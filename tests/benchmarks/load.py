"""``python tests/benchmarks/load.py``: how much memory loading takes, relative to the size of the weights.

Writes a checkpoint of random bfloat16 weights, shard by shard, loads it in a separate process, and prints that
process's peak resident memory. ``--seven-billion`` uses the sizes of LLaVA-1.5-7B (about 14 GB on disk and in memory)
and also generates an answer. ``--json`` adds a line of JSON.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from models import resident
from safetensors.torch import save_file

from minillava import PRETRAINED, Llava, Tokenizer, load
from minillava.config import DecoderConfig, LlavaConfig, VisionConfig

LARGE_VISION = VisionConfig(
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=24,
    num_attention_heads=16,
    image_size=336,
    patch_size=14,
    projection_dim=768,
)
LLAMA_7B = DecoderConfig(
    vocab_size=32064,
    hidden_size=4096,
    intermediate_size=11008,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=32,
    head_dim=128,
    max_position_embeddings=4096,
    rope_theta=10000.0,
    tie_word_embeddings=False,
)


def config_of_size(megabytes: int) -> tuple[VisionConfig, DecoderConfig]:
    """Sizes of about ``megabytes`` in bfloat16: a small ViT, and a decoder of TinyLlama's width with enough layers."""
    decoder = replace(LLAMA_7B, vocab_size=32000, hidden_size=2048, intermediate_size=5632)
    decoder = replace(decoder, num_attention_heads=16, num_key_value_heads=16)
    layer = 4 * 2048**2 + 3 * 2048 * 5632
    layers = round((megabytes * 1e6 / 2 - 2 * 32000 * 2048) / layer)
    vision = replace(LARGE_VISION, hidden_size=64, intermediate_size=256, num_hidden_layers=2, num_attention_heads=2)
    return vision, replace(decoder, num_hidden_layers=max(1, layers))


def write_random(config: LlavaConfig, folder: Path) -> int:
    """Write a llava-hf folder of random bfloat16 weights, never all in memory; returns their size in bytes."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in Llava(config).state_dict().items()}
    noise = torch.randn(2**20, dtype=torch.bfloat16)  # repeated: drawing every number takes longer than loading it
    places = {}
    for start in range(0, len(shapes), 40):  # a shard of the 7B model is about 2 GB
        tensors = {}
        for name in list(shapes)[start : start + 40]:
            size, scale = shapes[name].numel(), shapes[name][1:].numel() ** -0.5
            tensors[name] = (noise * scale).repeat(math.ceil(size / len(noise)))[:size].view(shapes[name])
            places[name] = f"model-{start}.safetensors"
        save_file(tensors, folder / f"model-{start}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    return 2 * sum(shape.numel() for shape in shapes.values())


def measure(folder: Path, answer: bool) -> dict:
    """Load ``folder`` in this process; with ``answer``, also read a picture and a question and generate 16 tokens."""
    result = {"before_bytes": resident("VmRSS")}
    start = time.perf_counter()
    model = load(folder, dtype=torch.bfloat16)
    result |= {"load_seconds": time.perf_counter() - start, "peak_bytes": resident("VmHWM")}
    if answer:
        config = model.config
        ids = torch.tensor([[*[config.image_token_id] * config.num_image_tokens, *range(40, 60)]])
        start = time.perf_counter()
        out = model.generate(ids, torch.randn(1, 3, 336, 336), max_new_tokens=16, stop_ids=[])
        result |= {"tokens": out.tolist()[0], "answer_seconds": time.perf_counter() - start}
        result["peak_bytes_with_answer"] = resident("VmHWM")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--megabytes", type=int, default=2000, help="size of the weights (default %(default)s)")
    parser.add_argument("--seven-billion", action="store_true", help="use LLaVA-1.5-7B's sizes, and generate an answer")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)  # for the separate process
    a = parser.parse_args()
    if a.measure:
        print(json.dumps(measure(a.measure, a.seven_billion)))
        return
    tokenizer = Tokenizer.from_pretrained(PRETRAINED / "llava")
    vision, decoder = (LARGE_VISION, LLAMA_7B) if a.seven_billion else config_of_size(a.megabytes)
    with tempfile.TemporaryDirectory() as folder:
        config = LlavaConfig(vision, decoder, projector="mlp", image_token_id=tokenizer.image_id)
        total = write_random(config, Path(folder))
        tokenizer.save_pretrained(folder)
        command = [sys.executable, __file__, "--measure", folder, *(["--seven-billion"] if a.seven_billion else [])]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        shards = len(list(Path(folder).glob("*.safetensors")))
    result = {"weight_bytes": total, "shards": shards, **json.loads(output)}
    peak, before = result["peak_bytes"], result["before_bytes"]
    print(f"weights {total / 1e9:.2f} GB in {shards} shards, loaded in {result['load_seconds']:.1f} s")
    print(f"peak {peak / 1e9:.2f} GB, of which {before / 1e9:.2f} GB before loading")
    print(f"peak over weights: {peak / total:.3f}; without the memory before loading: {(peak - before) / total:.3f}")
    if a.seven_billion:
        peak = result["peak_bytes_with_answer"]
        print(f"16 tokens after a picture in {result['answer_seconds']:.1f} s, peak {peak / 1e9:.2f} GB")
    if a.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
