"""Talk with a LLaVA about a picture: ``python chat.py [--model DIR] [--image FILE] [--prompt TEXT]``.

Without --image a new scene is drawn and shown. With --prompt only the answer is printed to standard output. With
--no-image or --decoder there is no picture: it is a chat with the model's decoder, or with a language model. With --web
the chat is in a browser. With --exercise the model runs on your own files, exercises/PART.py.
"""

import argparse
import random
import signal
import sys

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends quietly while modules are imported, see run_program()
if __name__ == "__main__" and "--exercise" in sys.argv:
    from lessons.your_model import install

    install()  # before minillava is imported: its imports find the reader's files

import torch
from PIL import Image

from minillava.checkpoint import load
from minillava.config import PRETRAINED
from minillava.errors import run_program
from minillava.inputs.image import open_image
from minillava.inputs.templates import TEMPLATES
from minillava.language_model import load_text_model
from minillava.talk import check_options
from minillava.terminal import HIGHEST, Shown, Terminal, any_seed, read_stdin, show

HOST, PORT = "127.0.0.1", 7860  # of --web
FEW = 20_000_000  # weights: with fewer, threads wait longer for each other than they work


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="LLaVA folder, hub id, or the shipped llava (default) or smol")
    parser.add_argument("--decoder", help="chat without a picture: a LLaMA folder, a .gguf file, or smollm2")
    parser.add_argument("--vision", help="CLIP folder, for a model in the layout of the LLaVA authors' code")
    parser.add_argument("--template", choices=TEMPLATES, help="chat template (default: the model's own)")
    parser.add_argument("--system", metavar="TEXT", help="system message (default: the template's own)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of the weights")
    parser.add_argument("--image", help="picture to talk about; - is standard input (default: a new scene)")
    parser.add_argument("--no-image", action="store_true", help="talk without a picture")
    parser.add_argument("--prompt", help="ask this question, print the answer and exit")
    parser.add_argument("--json", action="store_true", help="with --prompt: print the answer in a line of JSON")
    parser.add_argument("--temperature", type=float, default=0.0, help="sampling temperature; 0 (default) is greedy")
    parser.add_argument("--top-p", type=float, default=1.0, help="sample from the likeliest tokens of this probability")
    parser.add_argument("--max-new-tokens", type=int, default=160)
    parser.add_argument("--seed", type=int, help="seed of the scene and of sampling (default: random)")
    parser.add_argument("--web", action="store_true", help="talk in a browser (needs: pip install gradio)")
    parser.add_argument("--host", help=f"address that --web listens on (default: {HOST}, this machine only)")
    parser.add_argument("--port", type=int, help=f"port that --web listens on (default: {PORT}; 0: any that is free)")
    parser.add_argument("--exercise", action="store_true", help="run the model on your files, exercises/PART.py")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    if arguments.exercise and "--exercise" not in sys.argv:
        parser.error("--exercise must be written in full")
    check_options(arguments.max_new_tokens, arguments.temperature, arguments.top_p)
    if arguments.top_p < 1 and not arguments.temperature:
        parser.error("--top-p has no effect without --temperature: the most likely token is taken")
    for name in ("decoder", "image", "no-image", "prompt", "json", "seed") if arguments.web else ():
        if getattr(arguments, (key := name.replace("-", "_"))) != parser.get_default(key):
            parser.error(f"--web takes no --{name}: pictures and questions are given in the page")
    if not arguments.web and (arguments.host is not None or arguments.port is not None):
        parser.error("--host and --port have no effect without --web")
    if arguments.port is not None and not 0 <= arguments.port < 1 << 16:
        parser.error(f"--port {arguments.port}: must be from 0 to 65535")
    if arguments.seed is not None and not 0 <= arguments.seed <= HIGHEST:
        parser.error(f"--seed {arguments.seed}: must be from 0 to 2**63 - 1")
    if arguments.decoder and (arguments.image or arguments.no_image or arguments.vision or arguments.model):
        parser.error("--decoder is a chat without a picture: it takes no --model, --vision, --image or --no-image")
    if arguments.image and arguments.no_image:
        parser.error("--no-image: --image names a picture")
    if arguments.image == "-" and arguments.prompt is None:
        parser.error("--image - needs --prompt: a chat reads its questions from standard input")
    if arguments.json and arguments.prompt is None:
        parser.error("--json needs --prompt: it prints one answer")
    drawn = not (arguments.image or arguments.no_image or arguments.decoder)
    if arguments.seed is not None and not arguments.temperature and not drawn:
        parser.error("--seed has no effect here: no scene is drawn, and without --temperature no word is")
    return arguments


def fresh_scene(seed: int) -> Image.Image:
    from data.picturebook.draw import draw_scene
    from data.picturebook.scene import sample_scene

    rng = random.Random(seed)
    return draw_scene(sample_scene(rng), rng)


def main() -> None:
    a = parse()
    if a.web:
        from minillava.web.server import serve  # before the model is loaded: gradio may be missing
    picture = None
    if a.image:
        picture = Shown(read_stdin() if a.image == "-" else open_image(a.image), a.image)
    elif not (a.decoder or a.no_image or a.web):
        seed = any_seed() if a.seed is None else a.seed
        picture = Shown(fresh_scene(seed), seed)
    if a.decoder:
        model = load_text_model(a.decoder, a.device, getattr(torch, a.dtype))
    else:
        model = load(a.model or PRETRAINED / "llava", a.device, getattr(torch, a.dtype), a.vision)
    if a.template:
        model.processor.template = TEMPLATES[a.template]
    if a.system is not None:
        model.processor.template = model.processor.template.with_system(a.system)
    weights = model.language_model.parameters() if a.decoder else model.parameters()
    if sum(parameter.numel() for parameter in weights) < FEW:
        torch.set_num_threads(1)
    if a.seed is not None:
        torch.manual_seed(a.seed)
    options = {"max_new_tokens": a.max_new_tokens, "temperature": a.temperature, "top_p": a.top_p}
    if a.web:
        serve(model, fresh_scene, a.host or HOST, PORT if a.port is None else a.port, **options)
        return
    terminal = Terminal(model, fresh_scene, picture, **options)
    if a.prompt is None:
        terminal.run()
        return
    if picture and not a.image and sys.stderr.isatty():
        show(picture, sys.stderr)
    if a.json:
        print(terminal.answer_as_json(a.prompt, a.decoder or a.model or "llava"))
    else:
        terminal.answer(a.prompt)


if __name__ == "__main__":
    run_program(main)
