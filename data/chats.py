"""``python -m data.chats``: ask a language model questions without a picture, and write what it answers.

chats.json          rows of LLaVA JSON without "image", to mix with rows about pictures: a model that is trained on
                    pictures only forgets how to talk about anything else
chats_heldout.json  up to 200 chats about other topics in other frames; they measure what is forgotten

The answers are greedy and the model's own: what it learns from these rows is to stay as it is. Answers that do
not end within 200 tokens are left out and counted.
"""

import argparse
import json
import random
import re
from collections.abc import Iterator
from itertools import cycle, product
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence

from data.picturebook.talk import BEYOND
from data.rows import conversation, write_rows
from minillava.errors import run_program
from minillava.formats.llava_json import scan
from minillava.language_model import TextModel, load_text_model
from minillava.model import fast
from minillava.model.generation import collect
from minillava.progress import progress
from minillava.talk import make_turns

LENGTH = 200  # tokens of an answer at most
HELDOUT = 200  # number of held-out rows at most
CHATS = Path(__file__).parent / "chats.json"  # the shipped chats, SmolLM2's

# A frame's hole is filled by each topic of its list. Held-out chats take the second lists.
FRAMES = {
    "topic": (
        "What is {}?", "Explain {} to a child in one sentence.", "Why does {} matter?", "Tell me something about {}.",
        "Write one sentence about {}.", "Give me two facts about {}.", "What do people like about {}?",
        "What is hard about {}?", "Who invented {}, or is that not known?", "How would you begin to learn about {}?",
        "Write a short poem about {}.", "Ask me a question about {}.", "What would a world without {} be like?",
    ),
    "place": (
        "Where is {}?", "What is {} known for?", "What language do people speak in {}?",
        "What is the weather like in {}?", "What should I eat in {}?", "Name a city in {}.",
        "I am going to {} next week. What should I pack?",
    ),
    "task": (
        "How do I {}?", "Give me one piece of advice on how to {}.", "Is it difficult to {}?",
        "How long does it take to {}?", "I want to {}. Where do I begin?", "What do I need to {}?",
        "Why do people {}?",
    ),
    "word": (
        "What does the word {} mean?", "Use the word {} in a sentence.", "What is the opposite of {}?",
        "Give me a synonym of {}.", "How many letters does the word {} have?",
    ),
    "text": (
        "Correct this sentence: {}", "Say this more politely: {}", "Make this shorter: {}",
        "What is the mood of this? {}", "Continue this story with one sentence: {}",
    ),
    "short": (
        "Give me one fact about {}.", "What is {}? Answer in one sentence.", "Name three things that go with {}.",
        "What is {} good for? Keep it short.", "Is {} old or new? Answer briefly.",
        "Ask me something simple about {}.", "Which word describes {} best?", "In one sentence, who needs {}?",
    ),
}  # fmt: skip
TOPICS = {
    "topic": (
        "gravity", "bread", "the moon", "chess", "a volcano", "the internet", "coffee", "sleep", "music",
        "electricity", "a computer", "friendship", "football", "the ocean", "money", "a library", "photosynthesis",
        "rain", "a robot", "democracy", "a bicycle", "the brain", "history", "a vaccine", "salt", "a forest",
        "poetry", "a telescope", "time", "mathematics", "a whale", "an earthquake", "cheese", "the sun", "painting",
        "a dream", "the colour blue", "a camera", "snow", "medicine", "a desert", "a market", "gold", "an airplane",
        "a river", "kindness", "a newspaper article", "a museum", "soil", "sugar", "a thunderstorm", "cooking",
        "running", "a guitar", "the heart of a city", "a map", "an elephant", "the stars", "a train", "a mirror",
        "philosophy", "weather", "an algorithm", "a penguin", "wood", "a doctor", "laughter", "a family",
        "the alphabet", "a battery", "plastic", "fear", "a satellite", "a garden", "a lake", "silence", "a king",
        "trade", "a bicycle race", "a spider", "hope", "a wheel", "a clock", "theatre",
    ),
    "place": (
        "Japan", "Egypt", "Brazil", "Canada", "India", "Italy", "Kenya", "Norway", "Mexico", "Australia", "Peru",
        "Spain", "Ireland", "Nigeria", "Thailand", "Poland", "Argentina", "Iceland", "Cuba", "Finland",
    ),
    "task": (
        "learn to swim", "cook rice", "write a letter", "plant a tree", "save money", "tie a knot", "read faster",
        "bake a cake", "train a dog", "stay calm", "clean a window", "draw a horse", "paint a wall",
        "make new friends", "learn a language", "fix a flat tyre", "wash a car", "write a story", "remember names",
        "wake up early", "sing", "build a fire", "pack a suitcase", "choose a book", "apologise to a friend",
        "grow roses", "stop worrying",
    ),
    "word": (
        "happy", "ancient", "quick", "brave", "silent", "generous", "bright", "strange", "careful", "hungry",
        "simple", "rough", "polite", "lazy",
    ),
    "text": (
        "She go to school yesterday.", "Give me the report now.", "The old man opened the door and saw the snow.",
        "I am so tired of waiting for this bus.", "We was very happy about the news.", "Close the window.",
        "The ship left the harbour before dawn.", "Nobody came to the party that we planned for so long.",
    ),
    "short": (
        "a ladder", "jazz", "a comet", "pepper", "a pyramid", "tennis", "a submarine", "a lighthouse", "a violin",
        "wool", "a parrot", "grammar", "a passport", "butter", "an orchestra", "a tunnel", "copper", "a carpet",
        "a holiday", "a kettle", "a monsoon", "sculpture", "a lawyer", "the stock market", "a shark", "a fridge",
        "a diary", "a wedding", "a compass", "lemonade", "a cathedral", "skiing", "a kite", "steel", "a bakery",
        "a glacier", "a chimney", "a novel", "marble", "an umbrella", "gymnastics", "a camel", "a hammer", "patience",
        "a rumour", "a toothbrush", "a mushroom", "an election", "a ferry", "a fossil", "vanilla", "a tailor",
        "a drum", "a waterfall", "cement", "a lottery", "a sewing machine", "the flu", "a turtle", "courage",
        "a zebra crossing", "a rocket", "pottery", "a pension", "a cactus", "a flute", "insurance", "a pond",
        "a village", "linen", "a crossword", "rice", "a caravan", "the metric system", "a balloon", "envy", "an x-ray",
        "rubber", "a beach", "a suitcase", "an owl", "a proverb", "olive oil", "a signature", "a fountain pen",
        "a hedgehog", "ballet", "a whistle", "sunscreen", "a greenhouse", "a recipe", "a refrigerator magnet",
        "a windmill", "tin", "a postcard", "boxing", "a lullaby", "a skyscraper", "a candle", "a harbour", "a coin",
        "a cello", "a tax", "yoga", "a swamp", "a bookmark", "a puppet", "a mayor", "a dictator", "asphalt",
        "a raincoat", "a peninsula", "karate", "a keyhole", "an atlas", "a chandelier", "mint", "a boomerang",
        "a donkey",
    ),
}  # fmt: skip
SINGLE = (
    "Hello!", "Hi, how are you?", "Good morning.", "Who are you?", "What is your name?", "Who made you?",
    "Thank you!", "What can you do?", "Tell me a joke.", "I am bored.", "I had a bad day.", "Can you help me?",
    "What is two plus two?", "What is 7 times 8?", "What is ten minus four?", "Count from one to ten.",
    "Name three animals.", "Name five fruits.", "Name a primary colour.", "What comes after Wednesday?",
    "How many days are in a week?", "What do bees make?", "How many legs does a spider have?",
    "What is the largest planet?", "Which animal barks?", "Is the earth flat?", "What is water made of?",
    "Why is the sky blue?", "What is the boiling point of water?", "Who wrote Hamlet?",
    "Which is heavier, a kilogram of iron or of feathers?", "Say goodbye in French.", "Write a haiku.", "Good night!",
)  # fmt: skip
MORE = ("Tell me more.", "Why?", "Say that in fewer words.", "Can you give me an example?", "Thanks! Anything else?")
HELDOUT_FRAMES = {
    "topic": (
        "Describe {} in two sentences.", "What makes {} interesting?", "How has {} changed our lives?",
        "Give {} a short definition.", "What is a common mistake about {}?", "Where would I find {}?",
        "What would you tell a friend about {}?",
    ),
    "place": ("What is the capital of {}?", "Describe the people of {} in a sentence.", "Why do tourists visit {}?"),
    "task": ("What is the first step to {}?", "Can a child {}?", "Name one tool that helps to {}."),
    "word": ("Explain the word {} in simple terms.", "Which situation would you call {}?"),
    "text": ("Rewrite this as a question: {}", "Summarize this in three words: {}"),
}  # fmt: skip
HELDOUT_TOPICS = {
    "topic": (
        "a bridge", "the heart", "tea", "a dictionary", "lightning", "opera", "an island", "glass", "a newspaper",
        "evolution", "a calendar", "silk", "a pirate", "honey", "the wind", "a school", "iron", "dancing",
        "a mountain", "writing", "a microscope", "the rainbow", "a hospital", "a tiger", "paper", "justice",
        "an engine", "fashion", "an apple", "a castle", "swimming", "the north pole", "a bee", "a radio", "fire",
        "a circus", "memory", "ice",
    ),
    "place": ("France", "China", "Germany", "Greece", "Chile", "Sweden", "Morocco", "Vietnam", "Portugal", "Turkey"),
    "task": ("ride a horse", "knit a scarf", "grow tomatoes", "give a speech", "sail a boat", "iron a shirt"),
    "word": ("gentle", "famous", "narrow", "curious", "clumsy", "honest"),
    "text": (
        "The train arrives at noon.", "My brother has lost his keys again.", "The garden was quiet after the storm.",
    ),
}  # fmt: skip
# Words of a question about the picture, the speakers or the present.
HERE = {
    "this", "that", "it", "you", "your", "my", "we", "now", "today", "tomorrow", "yesterday", "next", "later",
    "picture", "pic", "image", "photo", "drawing", "painting", "scene",
}  # fmt: skip


def questions(frames: dict, topics: dict, rng: random.Random) -> list[str]:
    """Every frame with every topic of its kind, in random order."""
    asked = [frame.format(topic) for kind in frames for frame, topic in product(frames[kind], topics[kind])]
    return rng.sample(asked, len(asked))


@torch.inference_mode()
def answers(model: TextModel, asked: list[list[tuple[str, str]]], batch_size: int = 128) -> Iterator[str | None]:
    """The model's greedy answer to the last question of each conversation, whose answer is ""; None if it does not end
    within LENGTH tokens."""
    processor, tokenizer = model.processor, model.processor.tokenizer
    for start in progress(range(0, len(asked), batch_size), desc="asking", unit="chat", unit_scale=batch_size):
        rows = [make_turns(turns[-1][0], turns[:-1], False) for turns in asked[start : start + batch_size]]
        prompts = [torch.tensor(processor.encode(row)[0]) for row in rows]
        ids = pad_sequence(prompts, True, tokenizer.pad_id, "left").to(model.device)
        mask = pad_sequence([torch.ones_like(ids) for ids in prompts], True, 0, "left").to(model.device)
        steps = fast.generate_ids(model.language_model, model.embed(ids), mask, LENGTH)
        for row in collect(steps, processor.stop_ids, tokenizer.pad_id).tolist():
            ends = [i for i, index in enumerate(row) if index in processor.stop_ids]
            yield tokenizer.decode(row[: ends[0]]).strip() or None if ends else None


def chats(model: TextModel, asked: list[str], more: bool, rng: random.Random) -> list[list[tuple[str, str]]]:
    """Conversations that begin with the questions ``asked``; with ``more``, a third of them have a second question."""
    found = [[(q, a)] for q, a in zip(asked, answers(model, [[(q, "")] for q in asked])) if a]
    if more:
        again = [turns for turns in found if rng.random() < 1 / 3]
        longer = [[*turns, (rng.choice(MORE), "")] for turns in again]
        for turns, full, answer in zip(again, longer, answers(model, longer)):
            if answer:
                turns.append((full[-1][0], answer))
    return found


def rows_of(name: str, talks: list[list[tuple[str, str]]]) -> list[dict]:
    return [
        {"id": f"{name}-{number:04d}", "type": "chat", "conversations": make_turns("", turns, False)[:-1]}
        for number, turns in enumerate(talks)
    ]


def mix(rows: Path, chats: Path, out: Path) -> int:
    """Write the rows of one file with a chat after every four of them, all chats in turn, again and again. Every second
    chat shows the picture of the row before it, since the answer to a question about the world does not depend on
    whether a picture is shown. Returns the number of rows."""

    def mixed() -> Iterator[dict]:
        again = cycle(json.loads(chats.read_text(encoding="utf-8")))
        with_picture = cycle((False, True))
        kept = filter(None, (without_general_refusals(row) for _, _, row in scan(rows)))
        for number, row in enumerate(kept, 1):
            yield row
            if number % 4 == 0:
                chat = next(again)
                if next(with_picture):
                    chat = chat | {"image": row["image"], "conversations": conversation(turns_of(chat))}
                yield chat

    return write_rows(out, mixed())


def without_general_refusals(row: dict) -> dict | None:
    """A row without the turns that refuse a question about the world, such as "What is the capital of Spain?". The
    picture-book's decoder cannot answer it, a language model can. Refused are still questions about the picture, its
    things, the speakers and the present. None if no turn is left."""
    named = HERE.union(*(thing.split() for thing in row.get("things", ())))
    turns = [(q, a) for q, a in turns_of(row) if a != BEYOND or named.intersection(re.findall("[a-z]+", q.lower()))]
    return row | {"conversations": conversation(turns)} if turns else None


def turns_of(row: dict) -> list[tuple[str, str]]:
    """(question, answer) pairs, without <image>: the inverse of conversation()."""
    said = [turn["value"].removeprefix("<image>\n") for turn in row["conversations"]]
    return list(zip(said[::2], said[1::2]))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m data.chats", description=__doc__.split("\n")[0])
    parser.add_argument("--decoder", default="smollm2", help="LLaMA folder, .gguf file or smollm2 (default)")
    parser.add_argument("--out", type=Path, default=CHATS.parent, help="folder (default: that of this program)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    a = parser.parse_args()
    model, rng = load_text_model(a.decoder, a.device), random.Random(a.seed)
    asked = [*SINGLE, *questions(FRAMES, TOPICS, rng)]
    found = chats(model, asked, True, rng)
    print(
        f"{write_rows(a.out / 'chats.json', rows_of('chat', found)):,} of {len(asked):,} chats: the others do not end"
    )
    held = chats(model, questions(HELDOUT_FRAMES, HELDOUT_TOPICS, rng), False, rng)[:HELDOUT]
    print(f"{write_rows(a.out / 'chats_heldout.json', rows_of('heldout-chat', held)):,} held-out chats")


if __name__ == "__main__":
    run_program(main)
