"""``python tests/hard/folders.py``: mutated folders of models, loaded and made to answer.

LLaVA folders (one file or shards), CLIP folders, decoders (safetensors or a pickle), adapters and GGUF files, in which
one or two files are broken, replaced by no file at all or, if they are pickles, made to run code. Code that runs,
anything but an answer or a UserError, more than 5 s, or more than a gigabyte fails.
"""

import argparse
import json
import os
import pickle
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)]

import guarded  # noqa: E402
import make_gguf  # noqa: E402
import mutate  # noqa: E402

from minillava import PRETRAINED, load  # noqa: E402
from minillava.checkpoint import load_vision  # noqa: E402
from minillava.errors import UserError  # noqa: E402
from minillava.language_model import load_text_model  # noqa: E402
from minillava.model import lora  # noqa: E402
from minillava.outline import read_outline  # noqa: E402
from minillava.saving import write_adapter  # noqa: E402
from minillava.talk import stream  # noqa: E402

PICTURE = Image.new("RGB", (40, 30), "red")


def answer(folder: Path) -> None:
    read_outline(folder)
    "".join(stream(load(folder), PICTURE, "What is it?", max_new_tokens=3))


def say(source: Path) -> None:
    "".join(stream(load_text_model(source), None, "What is it?", max_new_tokens=3))


def see(folder: Path) -> None:
    tower = load_vision(folder)
    size = tower.config.image_size
    with torch.inference_mode():
        tower(torch.zeros(1, 3, size, size))


def write_folders(root: Path) -> dict[str, tuple[Path, Callable[[Path], None]]]:
    """Whole models of each kind, and what is done with each."""
    llava = PRETRAINED / "llava"
    pickled, shards, adapter = (root / name for name in ("pickled", "shards", "adapter"))
    for source, folder in ((PRETRAINED / "decoder", pickled), (llava, shards)):
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save(load_file(PRETRAINED / "decoder" / "model.safetensors"), pickled / "pytorch_model.bin")
    tensors = load_file(llava / "model.safetensors")
    places = {name: f"model-{index % 2}.safetensors" for index, name in enumerate(tensors)}
    for file in set(places.values()):
        save_file({name: tensor for name, tensor in tensors.items() if places[name] == file}, shards / file)
    (shards / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    adapter.mkdir()
    model = load(llava)
    lora.add_lora(model.language_model, 2, 4.0)
    write_adapter(model, llava, adapter)
    (root / "gguf").mkdir()
    make_gguf.write_small(root / "gguf" / "model.gguf", make_gguf.small_llama())
    return {
        "llava": (llava, answer),
        "llava, shards": (shards, answer),
        "adapter": (adapter, answer),
        "clip": (PRETRAINED / "vision", see),
        "decoder": (PRETRAINED / "decoder", say),
        "decoder, pickled": (pickled, say),
        "gguf": (root / "gguf", lambda folder: say(folder / "model.gguf")),
    }


class Evil:
    """A pickle of it creates a file when it is read, if pickles may run code."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def break_file(path: Path, rng: random.Random, marker: Path) -> None:
    """Break one file in one of the ways that suit it."""
    data = path.read_bytes()
    path.unlink()  # it may be a link to the whole one
    how = rng.random()
    if how < 0.1:
        mutate.no_file(path, rng)
    elif path.suffix == ".json" and how < 0.8:
        value = json.loads(data)
        for _ in range(rng.choice((1, 1, 2))):
            value = mutate.value_of(value, rng)
        path.write_text(json.dumps(value))
    elif path.suffix == ".bin" and how < 0.4:
        path.write_bytes(pickle.dumps(Evil(marker))) if how < 0.2 else torch.save({"x": Evil(marker)}, path)
    elif path.suffix in (".bin", ".safetensors") and how < 0.6:
        tensors = torch.load(path.parent / "whole", weights_only=True) if path.suffix == ".bin" else None
        tensors = tensors or load_file(path.parent / "whole")
        name = rng.choice(list(tensors))
        tensor = tensors[name].clone()
        tensor.view(-1)[rng.randrange(tensor.numel())] = rng.choice((float("nan"), float("inf"), 3e38))
        tensors[name] = rng.choice((tensor, tensor.double(), tensor.long(), tensor[:1], tensor[None].clone()))
        torch.save(tensors, path) if path.suffix == ".bin" else save_file(tensors, path)
    else:
        path.write_bytes(mutate.bytes_of(data, rng, header=3000))


def copy_with_faults(whole: Path, folder: Path, rng: random.Random, marker: Path) -> None:
    """A copy of links to the files of ``whole``, with one or two of them broken."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    files = [path for path in whole.iterdir() if path.suffix != ".md"]
    for path in files:
        (folder / path.name).symlink_to(path)
    for path in rng.sample(files, min(len(files), rng.choice((1, 1, 1, 2)))):
        (folder / "whole").symlink_to(path)
        break_file(folder / path.name, rng, marker)
        (folder / "whole").unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as root:
        models = write_folders(Path(root))
        for folder, use in models.values():
            use(folder)  # each whole one works
        marker, broken = Path(root, "executed"), Path(root, "broken")

        def work(case: int) -> str:
            rng = random.Random(f"{a.seed} {case}")
            whole, use = models[rng.choice(list(models))]
            copy_with_faults(whole, broken, rng, marker)
            try:
                use(broken)
            except UserError as error:
                assert "\n" not in str(error), "an error of several lines"
                assert len(str(error)) < 2000, f"an error of {len(str(error)):,} characters"
                return "refused"
            finally:
                assert not marker.exists(), "code was executed"
            return "answers"

        result = guarded.run(a.count, work)
    print(result.table("folders"))
    sys.exit(bool(result.faults))


if __name__ == "__main__":
    main()
