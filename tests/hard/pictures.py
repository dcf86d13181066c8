"""``python tests/hard/pictures.py``: mutated pictures of every format that Pillow writes.

Each is opened by open_image() and processed in three ways. Anything but pixels or a UserError, more than 5 s, or more
than a gigabyte fails. The memory includes pictures that claim up to MAX_PIXELS and are decoded.
"""

import argparse
import random
import sys
import tempfile
import warnings
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import guarded  # noqa: E402
import mutate  # noqa: E402

from minillava.errors import UserError  # noqa: E402
from minillava.inputs.image import ImageProcessor, open_image  # noqa: E402

CROP = ImageProcessor.for_size(32)
WAYS = (CROP, CROP.fitting("pad", 32), replace(CROP, do_center_crop=False, size={"height": 32, "width": 32}))
MODES = ("RGB", "RGBA", "L", "LA", "P", "1", "I;16", "F", "CMYK", "YCbCr")


def originals() -> list[bytes]:
    """A small picture in each format and mode that Pillow writes, where it can with EXIF data; and a moving one."""
    Image.init()
    warnings.simplefilter("ignore", DeprecationWarning)  # Pillow will give up some formats
    y, x = np.mgrid[0:24, 0:32]
    colours = Image.fromarray(np.stack([x * 8, y * 10, (x * y) % 256], -1).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a small picture"  # turned by 90 degrees; a description
    files = []
    for form in sorted(Image.SAVE.keys() - {"PDF"}):
        for mode in MODES:
            picture = colours.convert("L").convert("I") if mode == "I;16" else colours  # Pillow has only this way
            picture = picture.convert("L").convert(mode) if mode == "F" else picture.convert(mode)
            for options in ({"exif": exif}, {}, {"save_all": True, "append_images": [picture.rotate(180)]}):
                file = BytesIO()
                try:
                    picture.save(file, form, **options)
                except Exception:  # this format has no such mode
                    continue
                if file.getvalue() not in files:
                    files.append(file.getvalue())
    return files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    files = originals()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "picture")

        def work(case: int) -> str:
            rng = random.Random(f"{a.seed} {case}")
            data = rng.choice(files)
            path.write_bytes(mutate.bytes_of(data, rng, other=rng.choice(files)))
            try:
                image = open_image(path)
                shapes = {tuple(way(image).shape) for way in WAYS}
            except UserError as error:
                assert "\n" not in str(error), "an error of several lines"
                return "refused"
            assert shapes == {(3, 32, 32)}, shapes
            return "read"

        result = guarded.run(a.count, work)
    print(result.table(f"pictures, of {len(files)} whole ones"))
    sys.exit(bool(result.faults))


if __name__ == "__main__":
    main()
