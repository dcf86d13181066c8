"""Talk with a LLaVA about a picture: ``python chat.py [--model DIR] [--image FILE] [--prompt TEXT]``.

Without --image a new scene is drawn and shown. With --prompt only the answer is printed to standard output. With
--no-image or --decoder there is no picture: it is a chat with the model's decoder, or with a language model.
"""

import argparse
import random
import signal
import sys
from pathlib import Path
from typing import TextIO

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends quietly while modules are imported, see run_program()

import torch
from PIL import Image

from minillava.checkpoint import load
from minillava.config import PRETRAINED
from minillava.errors import UserError, printable, run_program
from minillava.inputs.image import open_image
from minillava.inputs.templates import TEMPLATES
from minillava.language_model import load_text_model
from minillava.talk import check_options, stream


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="LLaVA folder, hub id, or the shipped llava (default) or smol")
    parser.add_argument("--decoder", help="chat without a picture: a LLaMA folder, a .gguf file, or smollm2")
    parser.add_argument("--vision", help="CLIP folder, for a model in the layout of the LLaVA authors' code")
    parser.add_argument("--template", choices=TEMPLATES, help="chat template (default: the model's own)")
    parser.add_argument("--system", metavar="TEXT", help="system message (default: the template's own)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of the weights")
    parser.add_argument("--image", type=Path, help="picture to talk about (default: a new scene)")
    parser.add_argument("--no-image", action="store_true", help="talk without a picture")
    parser.add_argument("--prompt", help="ask this question, print the answer and exit")
    parser.add_argument("--temperature", type=float, default=0.0, help="sampling temperature; 0 (default) is greedy")
    parser.add_argument("--top-p", type=float, default=1.0, help="sample from the likeliest tokens of this probability")
    parser.add_argument("--max-new-tokens", type=int, default=160)
    parser.add_argument("--seed", type=int, help="seed of the scene and of sampling (default: random)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    check_options(arguments.max_new_tokens, arguments.temperature, arguments.top_p)
    if arguments.top_p < 1 and not arguments.temperature:
        parser.error("--top-p has no effect without --temperature: the most likely token is taken")
    if arguments.seed is not None and not 0 <= arguments.seed < 1 << 63:
        parser.error(f"--seed {arguments.seed}: must be from 0 to 2**63 - 1")
    if arguments.decoder and (arguments.image or arguments.no_image or arguments.vision or arguments.model):
        parser.error("--decoder is a chat without a picture: it takes no --model, --vision, --image or --no-image")
    if arguments.image and arguments.no_image:
        parser.error("--no-image: --image names a picture")
    drawn = not (arguments.image or arguments.no_image or arguments.decoder)
    if arguments.seed is not None and not arguments.temperature and not drawn:
        parser.error("--seed has no effect here: no scene is drawn, and without --temperature no word is")
    arguments.model = arguments.model or PRETRAINED / "llava"
    return arguments


def fresh_scene(seed: int | None) -> Image.Image:
    from data.picturebook.draw import draw_scene
    from data.picturebook.scene import sample_scene

    rng = random.Random(seed)
    return draw_scene(sample_scene(rng), rng)


def half_blocks(image: Image.Image, columns: int = 64) -> str:
    """A picture as text for a terminal with 24-bit colour: each character shows two pixels, one above the other."""
    rows = max(2, round(columns * image.height / image.width / 2) * 2)
    small = image.convert("RGB").resize((columns, rows))
    lines = []
    for y in range(0, rows, 2):
        cells = []
        for x in range(columns):
            upper, lower = small.getpixel((x, y)), small.getpixel((x, y + 1))
            cells.append("\x1b[38;2;{};{};{}m\x1b[48;2;{};{};{}m▀".format(*upper, *lower))
        lines.append("".join(cells) + "\x1b[0m")
    return "\n".join(lines)


def show(image: Image.Image, terminal: TextIO) -> None:
    """Print a picture, or a line if the terminal's encoding lacks the character that it is made of."""
    try:
        "▀".encode(terminal.encoding or "utf-8")  # a stream in memory has none
    except UnicodeEncodeError:
        print(f"(the picture is not shown: {terminal.encoding} has no half blocks)", file=terminal)
    else:
        print(half_blocks(image), file=terminal)


def main() -> None:
    a = parse()
    image = seen = None
    if not (a.decoder or a.no_image):
        image = open_image(a.image) if a.image else fresh_scene(a.seed)
    if a.decoder:
        model = load_text_model(a.decoder, a.device, getattr(torch, a.dtype))
    else:
        model = load(a.model, a.device, getattr(torch, a.dtype), a.vision)
    if image:
        if not a.image or a.prompt is None:
            show(image, sys.stderr if a.prompt is not None else sys.stdout)
        seen = model.encode_image(image)  # once per conversation
    if a.template:
        model.processor.template = TEMPLATES[a.template]
    if a.system is not None:
        model.processor.template = model.processor.template.with_system(a.system)
    if a.seed is not None:
        torch.manual_seed(a.seed)
    if a.prompt is not None:
        say(model, seen, a.prompt, [], a)
        return
    if seen is None:
        print("Talk with the language model. An empty line ends.")
    else:
        print('Ask about the picture ("What is in the centre?", "Describe the image concisely."). An empty line ends.')
    history: list[tuple[str, str]] = []
    while True:
        try:
            question = input("Human: ").strip()
        except EOFError:
            print()
            return
        if not question:
            return
        print("Assistant: ", end="")
        try:
            history.append((question, say(model, seen, question, history, a)))
        except UserError as error:
            if not history:
                raise
            print(f"({printable(str(error))}; a new conversation starts)")
            history = []


def say(model, seen: torch.Tensor | None, question: str, history: list[tuple[str, str]], a: argparse.Namespace) -> str:
    """Print the answer piece by piece, and return it. Control characters in it are shown as escapes."""
    pieces = []
    for piece in stream(model, seen, question, history, a.max_new_tokens, a.temperature, a.top_p):
        pieces.append(piece)
        print(printable(piece, keep="\n\t"), end="", flush=True)
    print()
    return "".join(pieces).strip()


if __name__ == "__main__":
    run_program(main)
