"""Read a picture of any kind as a person would see it."""

import contextlib
import io
import math
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageFile, ImageOps

from unet_utils.device import first_line
from unet_utils.platform.files import user_path

MOST_PIXELS = 50 * 10**6
LONGEST_SIDE = 2**14
"""Larger photos are reduced when they are read. A very long side costs memory, because logits are
enlarged along it."""
MOST_JPEG_PIXELS = 1000 * 10**6
MOST_OTHER_PIXELS = 200 * 10**6
"""Photos with more pixels are refused. JPEG is reduced while it is decoded; other kinds have to fit
in memory whole."""


def printable(text: str) -> str:
    """Return text with escapes for all characters that standard output cannot print, such as an old
    terminal's."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def read_photo(path: str | Path, whole: bool = False) -> np.ndarray:
    """Read a photo as a person would see it, in sRGB.

    It is turned as its EXIF orientation says, and its colour profile becomes sRGB. Greyscale,
    palette and CMYK pictures become RGB, more than 8 bits (also floats) are scaled to 8, and
    transparent pixels become white. A very large photo is reduced by a whole factor, with a
    message.

    Args:
        path: of the file; `~` is expanded.
        whole: a large photo is not reduced. Only then may several threads read at the same time.

    Returns:
        `uint8 [H, W, 3]`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read as a picture, or is too large; the message names it. Or
            `path` is a URL.
    """
    path = user_path(path)
    if not path.exists():
        raise FileNotFoundError(f"no file {path}: check the path")
    try:
        with contextlib.nullcontext() if whole else _without_limits(), Image.open(path) as file:
            size = file.size
            profile = file.info.get("icc_profile")
            image = _srgb(_flatten(_decode(file, whole)), profile)
    except Exception as error:  # each of Pillow's formats has errors of its own
        raise ValueError(
            f"{path} cannot be read as a photo ({first_line(error)}): save it as a JPEG or PNG"
        ) from error
    if math.prod(image.size) < math.prod(size):
        width, height = image.size
        print(printable(f"{path} is very large: reduced to {width}x{height} pixels"))
    return np.array(image)


@contextlib.contextmanager
def _without_limits() -> Iterator[None]:
    """Switch Pillow's limit of pixels off, and warnings: in all threads."""
    limit = Image.MAX_IMAGE_PIXELS
    try:
        Image.MAX_IMAGE_PIXELS = None  # _decode has limits of its own
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about metadata
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _decode(file: ImageFile.ImageFile, whole: bool) -> Image.Image:
    """Return an opened picture with 8 bits, turned upright, and reduced where `MOST_PIXELS` or
    `LONGEST_SIDE` require it, unless it shall be whole."""
    most = MOST_JPEG_PIXELS if file.format in ("JPEG", "MPO") else MOST_OTHER_PIXELS
    if math.prod(file.size) > most:
        raise ValueError(
            f"it has {math.prod(file.size) / 1e6:.0f} megapixels, "
            f"the limit for {file.format} is {most / 1e6:.0f}"
        )
    factor = 1 if whole else _reduction(file)
    # Does something for JPEG only: decode to 1/2, 1/4 or 1/8, not below this size.
    file.draft(None, (max(1, file.width // factor), max(1, file.height // factor)))
    low = _open_low_bytes(file)
    _load_upright(file)
    factor = 1 if whole else _reduction(file)
    if low is not None:
        with low:
            _load_upright(low)
            values = np.asarray(low)[::factor, ::factor].astype(np.uint16)
        values += np.uint16(256) * np.asarray(file)[::factor, ::factor]
        scaled = _scaled_to_8_bits(values[..., :3])
        opacity = (values[..., 3:] >> 8).astype(np.uint8)  # no channel at all for RGB
        return Image.fromarray(np.concatenate([scaled, opacity], axis=2))
    if file.mode.startswith(("F", "I")):  # one channel with more than 8 bits
        return Image.fromarray(_scaled_to_8_bits(np.asarray(file)[::factor, ::factor]))
    if factor == 1:
        return file
    return (file.convert("RGBA") if file.mode in ("P", "PA") else file).reduce(factor)


def _open_low_bytes(file: ImageFile.ImageFile) -> ImageFile.ImageFile | None:
    """Open an RGB picture of 16 bits a second time, so that its low bytes are read; return None for
    another kind of picture.

    Pillow gives the high bytes only. Told that the bytes have the opposite order, it gives the low
    ones.
    """
    other = {"B": "L", "L": "B", "N": "B"}  # "N" is the order of the processor: "L"
    tiles = []
    for tile in file.tile:
        args = tile.args if isinstance(tile.args, tuple) else (tile.args,)
        kind = str(args[0]) if args else ""
        if kind[:-1] not in ("RGB;16", "RGBA;16"):
            return None
        tiles.append(tile._replace(args=(kind[:-1] + other[kind[-1]], *args[1:])))
    if not tiles:
        return None
    low = Image.open(file.filename)
    low.tile = tiles
    return low


def _load_upright(file: Image.Image) -> None:
    file.load()
    # In place, because then the pixels are turned before Pillow writes the EXIF block anew, which
    # fails for entries that are wrong. Cameras and editors write many of them.
    with contextlib.suppress(Exception):
        ImageOps.exif_transpose(file, in_place=True)


def _reduction(image: Image.Image) -> int:
    most = math.sqrt(math.prod(image.size) / MOST_PIXELS)
    return math.ceil(max(most, *(side / LONGEST_SIDE for side in image.size)))


def _scaled_to_8_bits(values: np.ndarray) -> np.ndarray:
    """Scale numbers of any range to 0 to 255.

    White is the usual level of the data type if the brightest pixel comes near it. Otherwise
    (12-bit cameras, distances, temperatures) black is the darkest pixel, and white the brightest.
    """
    known = values[np.isfinite(values)]
    low = float(known.min()) if known.size else 0.0
    high = float(known.max()) if known.size else 0.0
    levels = (1, 255) if values.dtype.kind == "f" else (255, 65535, 2**31 - 1, 2**32 - 1)
    white = next((level for level in levels if high <= level), None)
    if white and low >= 0 and (high > white / 4 or high == 0):
        low = 0.0
        high = float(white)
    values = np.nan_to_num(values, nan=low, posinf=high, neginf=low).astype(np.float32)
    return ((values - low) * (255 / (high - low or 1))).round().clip(0, 255).astype(np.uint8)


def _flatten(image: Image.Image) -> Image.Image:
    """Return an image without transparency: before white. Palettes become RGB."""
    if not image.has_transparency_data:
        return image.convert("RGB") if image.mode == "P" else image
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def _srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    # The profile may be damaged, or belong to another kind of picture.
    with contextlib.suppress(Exception):
        if profile:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            target = ImageCms.createProfile("sRGB")
            image = ImageCms.profileToProfile(image, source, target, outputMode="RGB") or image
    return image.convert("RGB")
