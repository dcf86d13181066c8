"""``python tests/benchmarks/generation.py``: tokens per second of greedy generation, compared with transformers.

Minillava generates as ``chat`` does, with fast.py. Both sides have the same weights (a folder that minillava writes and
transformers opens), the same picture and the same question, in one row or ``--rows`` equal ones, and run in alternation
in one process. Two times are measured: up to the first new token, which includes
reading the picture and the question, and for all ``--tokens`` of them, from the picture on. The ratio is transformers'
time over minillava's (above 1: minillava is faster), the median over the rounds.

Both sides should choose the same tokens. In bfloat16 they round differently, and may choose differently where two
tokens are about equally likely. So transformers also gets minillava's tokens, and the largest amount by which their
logits are below its own best is printed, in standard deviations of its logits: 0 in float32, some hundredths in
bfloat16. ``--device cuda`` measures on a GPU, in bfloat16, and compares the tokens with those of minillava's plain
path (generation.py), which it measures too.
"""

import argparse
import json
from statistics import median

import torch
from models import SIZES, alternate, build, opened_by_transformers, real_batch
from torch import Tensor, nn

from minillava.model import fast, generation

DTYPES = {"toy": torch.float32, "135m": torch.float32, "1.1b": torch.bfloat16, "7b": torch.bfloat16}


@torch.no_grad()
def shortfall(theirs: nn.Module, inputs: dict[str, Tensor], chosen: Tensor) -> float:
    """The most by which a chosen token's logit is below the largest, in standard deviations of transformers' logits."""
    ids = torch.cat([inputs["input_ids"], chosen], dim=1)
    logits = theirs(input_ids=ids[:1], pixel_values=inputs["pixel_values"][:1]).logits
    logits = logits[0, -chosen.shape[1] - 1 : -1].float()
    behind = logits.max(dim=-1).values - logits.gather(1, chosen[:1].T).squeeze(1)
    return (behind / logits.std(dim=-1)).max().item()


def measure(size: str, tokens: int, rounds: int, rows: int, device: str) -> dict:
    dtype = torch.bfloat16 if device == "cuda" else DTYPES[size]
    ours = build(size, dtype, device)
    theirs = opened_by_transformers(ours, dtype)
    theirs.generation_config.eos_token_id = None  # generate all the tokens
    inputs = real_batch(ours, rows=1, stage=1)
    prompt = inputs["input_ids"][:, : (inputs["labels"][0] != -100).nonzero()[0, 0]]
    ids = inputs["input_ids"] = prompt.repeat(rows, 1).to(device)
    pixel_values = inputs["pixel_values"] = inputs["pixel_values"].repeat(rows, 1, 1, 1).to(device, dtype)
    mask = torch.ones_like(ids)

    decoder = ours.language_model

    @torch.inference_mode()
    def minillava(count: int, way=fast) -> Tensor:
        steps = way.generate_ids(decoder, ours.embed(ids, pixel_values), max_new_tokens=count)
        return generation.collect(steps, stop_ids=[], fill=0).to(device)

    def transformers(count: int) -> Tensor:
        out = theirs.generate(
            input_ids=ids, pixel_values=pixel_values, attention_mask=mask, max_new_tokens=count, do_sample=False,
            pad_token_id=0,
        )  # fmt: skip
        return out[:, ids.shape[1] :]

    chosen = minillava(tokens)
    expected = minillava(tokens, generation) if device == "cuda" else transformers(tokens)
    first = alternate(rounds, minillava=lambda: minillava(1), transformers=lambda: transformers(1))
    sides = {"minillava": lambda: minillava(tokens), "transformers": lambda: transformers(tokens)}
    if device == "cuda":
        sides["plain"] = lambda: minillava(tokens, generation)
    all_ = alternate(rounds, **sides)
    return {
        "size": size,
        "dtype": str(dtype).removeprefix("torch."),
        "device": torch.cuda.get_device_name() if device == "cuda" else "CPU",
        "threads": torch.get_num_threads(),
        "rows": rows,
        "prompt_tokens": ids.shape[1],
        "new_tokens": tokens,
        "first_token_seconds": {name: median(seconds) for name, seconds in first.items()},
        "tokens_per_second": {name: rows * tokens / median(seconds) for name, seconds in all_.items()},
        "first_token_ratio": median(b / a for a, b in zip(*first.values())),
        "ratio": median(b / a for a, b in zip(all_["minillava"], all_["transformers"])),
        "same_tokens": (chosen == expected).cumprod(dim=1).sum().item() // rows,
        "shortfall": shortfall(theirs, inputs, chosen),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=SIZES, nargs="+", default=["toy", "135m", "1.1b"])
    parser.add_argument("--tokens", type=int, default=64, help="new tokens (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="(default %(default)s)")
    parser.add_argument("--rows", type=int, default=1, help="equal rows in a batch (default %(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", action="store_true", help="print a line of JSON too")
    a = parser.parse_args()
    print(f"{'':<16}{'first token, ms':^27}{'tokens per second':^27}{'same':>6}{'short':>7}")
    print(f"{'':<16}" + f"{'ours':>9}{'theirs':>9}{'ratio':>7}  " * 2 + f"{'tokens':>6}{'fall':>7}")
    results = []
    for size in a.size:
        r = measure(size, a.tokens, a.rounds, a.rows, a.device)
        results.append(r)
        first, all_ = r["first_token_seconds"].values(), list(r["tokens_per_second"].values())
        print(f"{size + ' ' + r['dtype']:<16}" + "".join(f"{seconds * 1e3:>9.1f}" for seconds in first), end="")
        print(f"{r['first_token_ratio']:>7.2f}  " + "".join(f"{speed:>9.1f}" for speed in all_[:2]), end="")
        print(f"{r['ratio']:>7.2f}  {r['same_tokens']:>6}{r['shortfall']:>7.3f}", flush=True)
        if len(all_) > 2:
            print(f"{'  plain path':<43}{all_[2]:>9.1f}", flush=True)
    if a.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
