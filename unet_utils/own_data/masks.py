"""The classes of your own data, and masks as pictures: class numbers, or colours of the classes."""

import codecs
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageColor, ImageOps

from unet_utils.classes import IGNORE, PALETTE_COLORS, PALETTE_IDS, ClassScheme
from unet_utils.device import first_line
from unet_utils.restoring import BLOCK, pack_colors, restore_label_ids

MASK_ADVICE = "Save masks as PNG with 8 bits, without smooth edges, in the size of their photos."

JPEG = ("JPEG", "MPO")

ReadLabels = Callable[[Path, tuple[int, int]], np.ndarray]
"""Reads the labels of a photo of that width and height: values `uint8 [H, W]`, 255 for void."""


@dataclass(frozen=True)
class Classes:
    """What a list of classes says, in the order of the masks' values.

    Attributes:
        names: of each value from 0; values that no class has are None.
        colors: of each value, None where the list gives none.
        merge: name of a group -> names of the classes that are one class in training.
        ignore: names of classes that are neither learned nor scored, like void.
    """

    names: list[str | None]
    colors: list[tuple[int, ...] | None]
    merge: dict[str, list[str]]
    ignore: list[str]

    def scheme(self) -> ClassScheme:
        """Return the class scheme `own`.

        Raises:
            ValueError: a name is unknown, or fewer than two classes are left.
        """
        known = [name for name in self.names if name is not None]
        group_of = {name: group for group, names in self.merge.items() for name in names}
        for name in (*group_of, *self.ignore):
            if name not in known:
                raise ValueError(f"there is no class {name!r} to merge or to ignore: {known}")
        kept = [group_of.get(name, name) for name in known if name not in self.ignore]
        names = list(dict.fromkeys(kept))
        if len(names) < 2:
            raise ValueError(
                f"two classes or more are needed, there is only {', '.join(names)}: what is left "
                "over is a class, too, such as background"
            )
        lookup = [IGNORE] * 256
        colors = [_spread_color(index) for index in range(len(names))]
        for value, label in enumerate(self.names):
            if label is None or label in self.ignore:
                continue
            index = names.index(group_of.get(label, label))
            color = self.colors[value]
            if index not in lookup and color:  # a group has the colour of its first class
                colors[index] = color
            lookup[value] = index
        return ClassScheme("own", tuple(names), tuple(colors), tuple(lookup))


def read_classes(folder: Path) -> Classes | None:
    """Read `classes.json` or `classes.txt`, None if there is neither.

    A line of the text is a name, and may end in a colour: `road 128 64 128` or `road #804080`. If
    all lines begin with a number, this is the value: `7 road`. Lines that begin with # and the head
    of a table (`name,r,g,b`) are no classes. The JSON holds the same in a list `classes` of names
    or of `{"name", "value", "color"}`, and if wanted `"merge": {"vehicle": ["car", "truck"]}` and
    `"ignore": ["void"]`.

    Raises:
        ValueError: it cannot be read; the message names it.
    """
    file = folder / "classes.json"
    if file.is_file():
        with naming(file):
            content = json.loads(read_text(file))
            content = content if isinstance(content, dict) else {"classes": content}
            if not isinstance(content["classes"], list):
                raise ValueError('classes is no list, as in ["road", "car"]')
            return make_classes(
                content["classes"], content.get("merge", {}), content.get("ignore", [])
            )
    file = folder / "classes.txt"
    if file.is_file():
        with naming(file):
            lines = [line for line in read_text(file).splitlines() if not NO_CLASS.match(line)]
            entries = [_class_of_line(line) for line in lines]
            numbered = [re.fullmatch(r"(\d+)[\s,:.]+(\D.*)", entry["name"]) for entry in entries]
            for entry, found in zip(entries, numbered, strict=True):
                if found and all(numbered):
                    entry |= {"value": found[1], "name": found[2]}
            return make_classes(entries, {}, [])
    return None


NO_CLASS = re.compile(r"\s*(#|$|name[\s,:]+r[\s,:]+g[\s,:]+b\s*$)", re.IGNORECASE)
"""Lines of `classes.txt` that are comments, empty, or the head of a table."""


@contextmanager
def naming(file: Path) -> Iterator[None]:
    """Read inside what a person or a tool wrote: a ValueError names the file, whatever is wrong."""
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError, OSError) as error:
        reason = f"there is no {error}" if isinstance(error, KeyError) else first_line(error)
        raise ValueError(f"{file} cannot be used: {reason}") from error


def read_text(file: Path) -> str:
    """Read a text in UTF-8, or in UTF-16, as Windows PowerShell writes lists."""
    content = file.read_bytes()
    is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return content.decode("utf-16" if is_utf16 else "utf-8-sig")


def _class_of_line(line: str) -> dict:
    found = re.fullmatch(r"\s*(.*?)\s*(?:[\s,:]+(#[0-9a-fA-F]{6}|\d+[\s,]+\d+[\s,]+\d+))?\s*", line)
    assert found
    entry: dict = {"name": found[1]}
    if found[2]:
        entry["color"] = found[2] if found[2][0] == "#" else re.split(r"[\s,]+", found[2])
    return entry


def make_classes(entries: list, merge: dict, ignore: list) -> Classes:
    """Return the classes of a list of names, or of dicts as in `classes.json`, see `read_classes`.

    Raises:
        ValueError: a name, a value or a colour is there twice, or impossible.
    """
    names: list[str | None] = []
    colors: list[tuple[int, ...] | None] = []
    for entry in entries:
        entry = {"name": entry} if isinstance(entry, str) else entry
        value = _whole(entry.get("value", len(names)))
        if not 0 <= value <= IGNORE:
            raise ValueError(f"the value {value} of {entry['name']!r} is not between 0 and 255")
        names += [None] * (value + 1 - len(names))
        colors += [None] * (value + 1 - len(colors))
        if names[value] is not None or entry["name"] in names:
            raise ValueError(f"{entry['name']!r} or its value {value} is there twice")
        names[value] = entry["name"]
        color = entry.get("color")
        if not color:
            continue
        rgb = ImageColor.getrgb(color) if isinstance(color, str) else tuple(map(_whole, color))
        if len(rgb) != 3 or not all(0 <= channel <= 255 for channel in rgb):
            raise ValueError(f"the colour of {entry['name']!r} is not red, green, blue (0 to 255)")
        if rgb in colors:
            raise ValueError(f"the colour of {entry['name']!r} is there twice")
        colors[value] = rgb
    return Classes(names, colors, merge, ignore)


def _whole(number: Any) -> int:
    if int(number) != float(number):
        raise ValueError(f"{number} is no whole number: values and colours are 0 to 255")
    return int(number)


def _spread_color(index: int) -> tuple[int, ...]:
    """Return a colour that differs from those of other classes: hues by the golden angle."""
    return ImageColor.getrgb(f"hsl({index * 137.5 % 360:.0f}, 65%, {45 + 15 * (index % 3)}%)")


def open_picture(path: Path) -> Image.Image:
    """Read a mask, turned as its EXIF orientation says; its format is kept.

    Raises:
        ValueError: it cannot be read, or Pillow would leave half of its bits out.
    """
    try:
        with Image.open(path) as image:
            stored = str([tile.args for tile in image.tile])
            image.load()
            upright = ImageOps.exif_transpose(image)
            upright.format = image.format
    except Exception as error:  # each of Pillow's formats has errors of its own
        raise ValueError(f"{path} cannot be read as a picture ({error}). {MASK_ADVICE}") from error
    if ";16" in stored and not upright.mode.startswith("I"):  # of RGB, the high bytes are read
        raise ValueError(f"{path} has 16 bits in each of several channels. {MASK_ADVICE}")
    return upright


def _lossy_format(path: Path, image: Image.Image) -> str:
    """Return the format of a mask if that changes numbers and colours, whatever the file is called;
    else an empty text."""
    if image.format in JPEG:
        return "JPEG"
    is_lossy = image.format == "WEBP" and b"VP8L" not in path.read_bytes()
    return "lossy WebP" if is_lossy else ""


def mask_reader(classes: Classes) -> ReadLabels:
    """Return a function that reads masks with the values or the colours of these classes.

    JPEG changes the colours of masks, and masks that were saved so are refused. Those in the
    colours of Cityscapes are restored, as the masks of the pairs are.
    """
    values = [value for value, name in enumerate(classes.names) if name is not None]
    by_color = {_packed(color): value for value, color in enumerate(classes.colors) if color}
    can_be_restored = by_color.keys() <= set(map(_packed, PALETTE_COLORS.tolist()))
    colorless = [value for value in values if not classes.colors[value]]

    def read(path: Path, _: tuple[int, int]) -> np.ndarray:
        image = open_picture(path)
        lossy = _lossy_format(path, image)
        if image.mode == "P" and by_color:
            # A palette may hold the colours of the classes, in an order of its own.
            used = [color for _, color in image.convert("RGB").getcolors(256) or []]
            if all(color == (0, 0, 0) or _packed(color) in by_color for color in used):
                numbers = np.asarray(image)
                found = _from_colors(path, np.asarray(image.convert("RGB")), by_color, lossy)
                # Black may be the number of a class without a colour, such as background.
                return np.where((found == IGNORE) & np.isin(numbers, colorless), numbers, found)
        if image.mode in ("L", "P", "1", "I", "I;16", "I;16B", "F"):
            return _from_values(path, np.asarray(image), values, lossy)
        pixels = np.asarray(image.convert("RGB"))
        if not by_color and (pixels == pixels[..., :1]).all():  # numbers, three times the same
            return _from_values(path, pixels[..., 0], values, lossy)
        if not by_color:
            raise ValueError(
                f"{path} holds colours, and the list of classes has none: add the colour of each "
                "class, as in `road 128 64 128`"
            )
        learned = [classes.names[v] for v in colorless if classes.names[v] not in classes.ignore]
        if learned and 0 not in by_color and not pixels.any(2).all():
            raise ValueError(
                f"{path} has black pixels, which are void, but the class {learned[0]!r} has no "
                f"colour: write `{learned[0]} 0 0 0` if it is black, else give it its colour"
            )
        if can_be_restored and lossy == "JPEG":
            return _restored(pixels, by_color)
        return _from_colors(path, pixels, by_color, lossy)

    return read


def _restored(pixels: np.ndarray, by_color: dict[int, int]) -> np.ndarray:
    """Return the values of a JPEG mask in the colours of Cityscapes; what it restores to a label
    that is in no class becomes void."""
    height, width = pixels.shape[:2]
    margin = ((0, -height % BLOCK), (0, -width % BLOCK), (0, 0))
    padded = np.pad(pixels, margin, mode="edge")
    label_ids = restore_label_ids(padded[None])[0, :height, :width]
    value_of = np.full(256, IGNORE, dtype=np.uint8)
    for label_id, color in zip(PALETTE_IDS, PALETTE_COLORS.tolist(), strict=True):
        value_of[label_id] = by_color.get(_packed(color), IGNORE)
    return value_of[label_ids]


def _packed(color: Any) -> int:
    """Return a colour as one number, as `pack_colors` does."""
    return color[0] | color[1] << 8 | color[2] << 16


def _from_values(path: Path, pixels: np.ndarray, values: list[int], lossy: str) -> np.ndarray:
    if lossy:  # the numbers may still be some that there are
        raise ValueError(f"{path}: {lossy} changes the numbers in masks. {MASK_ADVICE}")
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8)
    found, counts = np.unique(pixels, return_counts=True)
    unknown = ~np.isin(found, [*values, IGNORE])
    if pixels.max() > IGNORE:
        raise ValueError(f"{path} has more than 8 bits: values up to {found[-1]}. {MASK_ADVICE}")
    if found.tolist() == [0, 255] and values == [0, 1]:
        raise ValueError(
            f"{path} holds 0 and 255. 255 means void here: write 1 in its place, or say in "
            'classes.json {"name": ..., "value": 255} that it is a class'
        )
    if not unknown.any():
        return pixels.astype(np.uint8)
    share = counts[unknown].sum() / counts.sum()
    some = ", ".join(map(str, found[unknown][:5]))
    if len(found) > 3 * len(values) + 8:
        raise ValueError(
            f"{path}: {share:.1%} of the pixels have values that no class has ({some}, ...), "
            f"probably along smooth edges, or from JPEG. {MASK_ADVICE}"
        )
    raise ValueError(
        f"{path} holds {some}, but the classes have {values[0]} to {values[-1]} (255 for void): "
        "add these classes to the list, with the values that they have"
    )


def _from_colors(
    path: Path, pixels: np.ndarray, by_color: dict[int, int], lossy: str
) -> np.ndarray:
    packed = pack_colors(pixels)
    labels = np.full(packed.shape, IGNORE, dtype=np.uint8)
    unknown = packed != 0  # black is void, unless it is the colour of a class
    for color, value in by_color.items():
        labels[packed == color] = value
        unknown &= packed != color
    if not unknown.any():
        return labels
    share = unknown.mean()
    example = tuple(pixels[unknown][0].tolist())
    reason = f"{lossy} changes the colours of masks" if lossy else "smooth edges mix the colours"
    if share < 0.001 and not lossy:
        reason = "a class may be missing in the list"
    text = (
        f"{path}: {share:.1%} of the pixels have colours of no class, such as {example}: {reason}."
    )
    raise ValueError(f"{text} {MASK_ADVICE}")
