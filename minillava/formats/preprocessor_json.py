"""``preprocessor_config.json`` <-> the fields of an ``ImageProcessor``.

The names are those of transformers' CLIPImageProcessor and, if it pads, LlavaImageProcessor. A size or a mean may be
one number, as in older files.
"""

import os
import sys
from pathlib import Path

from minillava.errors import UserError
from minillava.formats.json_object import read_json_object

PROCESSORS = ("CLIPImageProcessor", "CLIPFeatureExtractor", "LlavaImageProcessor")
MAX_SIDE = 10_000  # pixels
SMALLEST = 1e-4  # standard deviation of a colour; much smaller ones make pixel values infinite
STEPS = ("do_pad", "do_resize", "do_center_crop", "do_rescale", "do_normalize")
# Keys that are ignored because they do not change the result: what wrote the file, arguments of transformers' own
# calls, and the conversion to RGB, which is always done here because the tower reads three channels.
OTHERS = (
    "_valid_processor_keys", "data_format", "default_to_square", "device", "disable_grouping", "do_convert_rgb",
    "feature_extractor_type", "image_processor_type", "image_seq_length", "input_data_format", "processor_class",
    "return_tensors",
)  # fmt: skip


def read_processor(folder: str | os.PathLike) -> dict:
    """Read the values from processor_config.json if it has an "image_processor", else from preprocessor_config.json.

    A line on stderr says so if a CLIP processor asks for padding. Raises UserError, naming the file, if there is no
    file or it asks for something that is not supported.
    """
    path = Path(folder, "processor_config.json")
    config = read_json_object(path).get("image_processor") if path.exists() else None
    if config is None:
        path = path.with_name("preprocessor_config.json")
        config = read_json_object(path)
    try:
        values = processor_from_json(config)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if config.get("do_pad") and not values.get("do_pad"):
        print(f"{path}: do_pad does nothing in CLIP's processor, as in transformers", file=sys.stderr)
    return values


def processor_from_json(config: dict) -> dict:
    """The values of ``config`` for the keys in CHECKS. A step ("do_...") that is null is off, as in transformers.

    Raises UserError for another kind of processor, an invalid value, and an unknown key, which might change the result.
    """
    if not isinstance(config, dict):
        raise UserError("the image processor must be a JSON object")
    given = {name: value for name, value in config.items() if value is not None or name in STEPS}
    kind = given.get("image_processor_type", given.get("feature_extractor_type", PROCESSORS[0]))
    family = str(kind).removesuffix("Fast").removesuffix("Pil")  # other implementations of the same steps
    if family not in PROCESSORS:
        raise UserError(f"image processor {kind!r:.80} is not supported, only {', '.join(PROCESSORS)}")
    for name in sorted(given.keys() - {*CHECKS, *OTHERS}):
        raise UserError(f"{name} ({given[name]!r:.80}) is not a known setting of an image processor")
    if family != "LlavaImageProcessor":
        given.pop("do_pad", None)  # CLIP's pads a batch to its largest picture; here all have the same size
    square = given.get("default_to_square", False)
    return {name: _value(name, given[name], square) for name in CHECKS if name in given}


def processor_to_json(values: dict) -> dict:
    """The configuration as transformers reads it."""
    kind = "LlavaImageProcessor" if values["do_pad"] else "CLIPImageProcessor"
    return {"image_processor_type": kind, **values, "do_convert_rgb": True}


def _value(name: str, given: object, square: bool) -> object:
    """Check a value and convert it to ours. ``square``: a size given as one number is both sides, not the shorter."""
    value = False if given is None else given
    if name in ("size", "crop_size") and _is_number(given):
        value = {"height": given, "width": given} if square or name == "crop_size" else {"shortest_edge": given}
    elif name in ("image_mean", "image_std"):
        value = tuple(given) if isinstance(given, list) else (given,) * 3
    is_right, wanted = CHECKS[name]
    if not is_right(value):
        raise UserError(f"{name} is {given!r:.80}, not {wanted}")
    return value


def _is_size(value: object, *forms: set[str]) -> bool:
    is_form = isinstance(value, dict) and value.keys() in forms
    return is_form and all(type(side) is int and 1 <= side <= MAX_SIDE for side in value.values())


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e6


def _are_three(values: tuple) -> bool:
    return len(values) == 3 and all(map(_is_number, values))


# What each value must be, as a check and in words.
CHECKS = {
    **dict.fromkeys(STEPS, (lambda value: isinstance(value, bool), "true or false")),
    "size": (lambda value: _is_size(value, {"height", "width"}, {"shortest_edge"}), "a size in pixels"),
    "crop_size": (lambda value: _is_size(value, {"height", "width"}), "a size in pixels"),
    "resample": (lambda value: type(value) is int and 0 <= value <= 5, "the number of a filter, 0 to 5"),
    "rescale_factor": (_is_number, "a number"),
    "image_mean": (_are_three, "three numbers"),
    "image_std": (lambda value: _are_three(value) and min(value) >= SMALLEST, f"three numbers from {SMALLEST} up"),
}
