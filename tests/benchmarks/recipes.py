"""``python tests/benchmarks/recipes.py --run out/toy``: what each choice for the decoder's trainings on text is worth.

Trains the decoder on the notes and the word pictures of a finished run's world, each time with one thing changed, and
prints the mean loss of the last twentieth of the steps. ``--only`` takes the names of some variants; ``--json`` adds a
line of JSON. On a GPU, several of these programs can run side by side.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from unittest.mock import patch

import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from minillava.config import DecoderConfig, VisionConfig  # noqa: E402
from minillava.inputs.conversations import ConversationDataset  # noqa: E402
from minillava.model.decoder import Decoder  # noqa: E402
from minillava.training import from_zero, optimizers  # noqa: E402
from minillava.training.loop import Run, train  # noqa: E402
from minillava.training.recipes import TOY  # noqa: E402
from minillava.training.tasks import initialise, next_token_task  # noqa: E402

# variant -> what changes: Muon's momentum, fields of the sizes, of both recipes, of the notes' and of the decoder's
VARIANTS: dict[str, dict] = {
    "as it is": {},
    "momentum 0.95": {"momentum": 0.95},
    "no weight decay": {"both": {"weight_decay": 0.0}},
    "one learning rate for all": {"both": {"other_rate": 1.0}},
    "these three together": {"momentum": 0.95, "both": {"weight_decay": 0.0, "other_rate": 1.0}},
    "notes at 4e-3": {"notes": {"learning_rate": 4e-3}},
    "half of the notes": {"notes": {"epochs": TOY["notes"].epochs / 2}},
    "twice the notes": {"notes": {"epochs": 2 * TOY["notes"].epochs}},
    "no notes": {"notes": {"epochs": 0.0}},
    "decoder at 3e-3": {"decoder": {"learning_rate": 3e-3}},
    "decoder at 1.2e-2": {"decoder": {"learning_rate": 1.2e-2}},
    "batches of 16, half the steps": {"decoder": {"batch_size": 16}},
    "twice the steps": {"decoder": {"epochs": 2 * TOY["decoder"].epochs}},
    "five heads of 32": {"sizes": {"num_attention_heads": 5, "num_key_value_heads": 5, "head_dim": 32}},
    "a head of its own": {"sizes": {"tie_word_embeddings": False}},
    "192 dimensions": {"sizes": {"hidden_size": 192, "intermediate_size": 512}},
    "192 dimensions, 3 layers": {"sizes": {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 3}},
    "rotary base 10,000": {"sizes": {"rope_theta": 10_000.0}},
}


def last_losses(world: Path, change: dict, device: str, max_steps: int | None) -> dict[str, float]:
    """{training: mean loss of its last twentieth} for the notes and then the decoder, with ``change``."""
    processor = from_zero.toy_processor(world, VisionConfig())
    tokenizer = processor.tokenizer
    torch.manual_seed(0)
    sizes = {"eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id, **change.get("sizes", {})}
    decoder = Decoder(DecoderConfig(tokenizer.vocab_size, **sizes))
    initialise(decoder)
    decoder.to(device)
    found = {}
    for name, file, text in (("notes", "notes.json", None), ("decoder", "words.json", world / "text.txt")):
        recipe = replace(TOY[name], **change.get("both", {}), **change.get(name, {}))
        if recipe.epochs == 0:
            continue
        dataset = ConversationDataset(world / file, world, processor, text_path=text)
        muon = partial(optimizers.Muon, **({"momentum": change["momentum"]} if "momentum" in change else {}))
        with tempfile.TemporaryDirectory() as folder, patch.object(optimizers, "Muon", muon):
            out = Path(folder) / name
            train(next_token_task(name, decoder, dataset), recipe, Run(out, device=device, max_steps=max_steps))
            lines = out.with_name(f"{name}.metrics.jsonl").read_text().splitlines()
        losses = [json.loads(line)["loss"] for line in lines]
        found[name] = fmean(losses[-max(1, len(losses) // 20) :])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", type=Path, required=True, help="a finished run of train.py, with data and tokenizer")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="VARIANT")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--max-steps", type=int)
    parser.add_argument("--json", action="store_true")
    a = parser.parse_args()
    losses = {}
    for name in a.only:
        losses[name] = last_losses(a.run / "data", VARIANTS[name], a.device, a.max_steps)
        print(name.ljust(32), *(f"{training} {loss:.3f}" for training, loss in losses[name].items()), flush=True)
    if a.json:
        print(json.dumps(losses))


if __name__ == "__main__":
    main()
