"""``python tests/benchmarks/language.py [--model smol] [--decoder smollm2]``: what a language model forgets while it
learns to see.

The mean loss per token on chats without a picture, in nats, of the LLaVA's decoder and of the language model that it
was; then the answers of both to ten questions. ``--json`` adds a line of JSON.
"""

import argparse
import json
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from minillava import load  # noqa: E402
from minillava.inputs.conversations import ConversationDataset  # noqa: E402
from minillava.language_model import TextModel, load_text_model  # noqa: E402
from minillava.model.llava import Llava, next_token_loss  # noqa: E402
from minillava.talk import stream  # noqa: E402
from minillava.training.tasks import count_labels  # noqa: E402

QUESTIONS = (
    "What is the capital of France?", "Who are you?", "Why is the sky blue?", "Name three animals.",
    "What is bread made of?", "What is two plus three?", "Write one sentence about winter.", "How do I boil an egg?",
    "What is the opposite of hot?", "Tell me a fact about elephants.",
)  # fmt: skip


@torch.inference_mode()
def mean_loss(model: Llava | TextModel, path: Path) -> float:
    """The mean loss over all tokens of the answers and their stops."""
    dataset = ConversationDataset(path, path.parent, model.processor)
    total, tokens = 0.0, 0
    for start in range(0, len(dataset), 8):
        batch = dataset.collate([dataset[0, 0, row] for row in range(start, min(start + 8, len(dataset)))])
        batch = {name: value.to(model.device) for name, value in batch.items()}
        hidden = model.language_model(model.embed(batch["input_ids"]))
        count = count_labels(batch)
        total += next_token_loss(model.language_model, hidden, batch["labels"])[1].item() * count
        tokens += count
    return total / tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smol")
    parser.add_argument("--decoder", default="smollm2")
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "chats_heldout.json")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", action="store_true")
    a = parser.parse_args()
    models = {a.decoder: load_text_model(a.decoder, a.device), a.model: load(a.model, a.device)}
    losses = {name: mean_loss(model, a.data) for name, model in models.items()}
    for name, loss in losses.items():
        print(f"{name}: {loss:.3f} nats a token")
    answers = {name: ["".join(stream(m, None, q, max_new_tokens=80)) for q in QUESTIONS] for name, m in models.items()}
    for number, question in enumerate(QUESTIONS):
        print(f"\n{question}")
        for name in models:
            print(f"  {name}: {answers[name][number]}")
    if a.json:
        print(json.dumps({"losses": losses, "answers": answers}))


if __name__ == "__main__":
    main()
