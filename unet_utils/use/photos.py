"""Photos of your own: find them, read them whatever their kind, segment them at their own size,
save the result."""

import contextlib
import glob
import io
import json
import math
import os
import sys
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageCms, ImageFile, ImageOps

from unet_utils.classes import IGNORE, ClassScheme
from unet_utils.demo.street import draw_scene
from unet_utils.evaluation import Trained, predict_classes
from unet_utils.platform.environment import Environment
from unet_utils.platform.files import list_folder, natural_order, replacing, user_path

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
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


def expand_patterns(paths: Iterable[str | Path]) -> list[str | Path]:
    """Replace patterns such as `*.jpg` by the files that match, in natural order.

    Not every shell does it, and notebooks do not. What matches nothing stays as it is.
    """
    expanded: list[str | Path] = []
    for path in paths:
        pattern = os.path.expanduser(path)
        # A file may be called photo[1].jpg: that is not a pattern.
        matches = [] if os.path.exists(pattern) else glob.glob(pattern)
        expanded += natural_order(map(Path, matches)) or [path]
    return expanded


def find_photos(paths: Iterable[str | Path]) -> list[Path]:
    """Return the files of `paths`, and the photos in each folder in natural order.

    Patterns are expanded, hidden files are skipped. Everything else in a folder that is not a photo
    is named in one line.

    Raises:
        FileNotFoundError, ValueError: a path does not exist, or is a URL; a folder has no photo.
    """
    photos: list[Path] = []
    for path in map(user_path, expand_patterns(paths)):
        if not path.exists():
            raise FileNotFoundError(f"no file {path}")
        if not path.is_dir():
            photos.append(path)
            continue
        found: list[Path] = []
        others: list[Path] = []
        for file in list_folder(path):
            is_photo = file.suffix.lower() in SUFFIXES and not file.is_dir()
            (found if is_photo else others).append(file)
        if others:
            names = ", ".join(file.name for file in others[:10])
            more = f" and {len(others) - 10} more" if len(others) > 10 else ""
            print(printable(f"Not read in {path}: {names}{more} (not {', '.join(SUFFIXES)})"))
        if not found:
            raise FileNotFoundError(f"no photo in {path}")
        photos += found
    return photos


def read_photo(path: str | Path) -> np.ndarray:
    """Read a photo as a person would see it, in sRGB.

    It is turned as its EXIF orientation says, and its colour profile becomes sRGB. Greyscale,
    palette and CMYK pictures become RGB, more than 8 bits (also floats) are scaled to 8, and
    transparent pixels become white. A very large photo is reduced by a whole factor, with a
    message.

    Args:
        path: of the file; `~` is expanded.

    Returns:
        `uint8 [H, W, 3]`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read as a picture, or is too large; the message names it. Or
            `path` is a URL.
    """
    path = user_path(path)
    if not path.exists():
        raise FileNotFoundError(f"no file {path}")
    limit = Image.MAX_IMAGE_PIXELS
    try:
        Image.MAX_IMAGE_PIXELS = None  # _decode has limits of its own
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about metadata
            with Image.open(path) as file:
                size = file.size
                profile = file.info.get("icc_profile")
                image = _srgb(_flatten(_decode(file)), profile)
    except Exception as error:  # each of Pillow's formats has errors of its own
        raise ValueError(
            f"{path} cannot be read as a photo ({error or type(error).__name__}): "
            "save it as a JPEG or PNG"
        ) from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    if math.prod(image.size) < math.prod(size):
        width, height = image.size
        print(printable(f"{path} is very large: reduced to {width}x{height} pixels"))
    return np.array(image)


def _decode(file: ImageFile.ImageFile) -> Image.Image:
    """Return an opened picture with 8 bits, turned upright, and reduced where `MOST_PIXELS` or
    `LONGEST_SIDE` require it."""
    most = MOST_JPEG_PIXELS if file.format in ("JPEG", "MPO") else MOST_OTHER_PIXELS
    if math.prod(file.size) > most:
        raise ValueError(
            f"it has {math.prod(file.size) / 1e6:.0f} megapixels, "
            f"the limit for {file.format} is {most / 1e6:.0f}"
        )
    factor = _reduction(file)
    # Does something for JPEG only: decode to 1/2, 1/4 or 1/8, not below this size.
    file.draft(None, (max(1, file.width // factor), max(1, file.height // factor)))
    low = _open_low_bytes(file)
    _load_upright(file)
    factor = _reduction(file)
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


def choose_photo(path: str, env: Environment) -> Path:
    """Return the path of a photo to segment.

    Args:
        path: of a photo; "upload" asks for one in Colab; "" is a street drawn by this package, and
            so is an upload that fails or is cancelled.
        env: of the notebook; the drawn street is saved in `env.data`.
    """
    if path.strip().lower() == "upload":
        try:
            from google.colab import files

            if name := next(iter(files.upload()), None):
                return user_path(name)
            print("Nothing was uploaded.")
        except Exception as error:  # not in Colab, or one of Colab's many, such as in VS Code
            print(f"The upload failed ({error or type(error).__name__}).")
    elif path.strip():
        return user_path(path)
    drawn = env.data / "drawn_street.png"
    with replacing(drawn) as file:
        Image.fromarray(draw_scene(np.random.default_rng(2024))[0]).save(file)
    print("This is a street drawn by this package. For a photo of your own set PHOTO to its path.")
    return drawn


def segment(trained: Trained, photo: np.ndarray, flip: bool = False) -> np.ndarray:
    """Return class indices `uint8 [H, W]` of a photo `uint8 [H, W, 3]`, at its own size.

    Args:
        trained: the model.
        photo: of any size and aspect.
        flip: as in `evaluation.predict`.
    """
    height, width = photo.shape[:2]
    size = trained.photo_size(height, width)
    batch = torch.from_numpy(photo).permute(2, 0, 1)[None]
    return predict_classes(trained.model, batch, size, flip)[0].cpu().numpy()


def class_shares(classes: np.ndarray, scheme: ClassScheme) -> dict[str, float]:
    """Return the share of the pixels of each class that occurs, largest first."""
    shares = np.bincount(classes.ravel(), minlength=IGNORE) / classes.size
    order = np.argsort(-shares, kind="stable")
    return {scheme.names[index]: float(shares[index]) for index in order if shares[index]}


def official_ids(scheme: ClassScheme) -> np.ndarray:
    """Return the official label id of each class, `uint8 [C]`.

    Raises:
        ValueError: a class of the scheme stands for several labels, or for a cluster of colours.
    """
    lookup = np.array(scheme.lookup)
    ids = [np.flatnonzero(lookup == index) for index in range(scheme.num_classes)]
    if scheme.name == "clusters" or any(len(label_ids) != 1 for label_ids in ids):
        raise ValueError(
            f"the classes of the scheme {scheme.name!r} have no official label ids: "
            "use a model of cityscapes19"
        )
    return np.concatenate(ids).astype(np.uint8)


def free_name(folder: Path, name: str, endings: Sequence[str]) -> str:
    """Return the first of `name`, `name-2`, `name-3` ... that is free with all `endings`: what
    exists is not overwritten."""
    free = name
    number = 1
    while any((folder / (free + ending)).exists() for ending in endings):
        number += 1
        free = f"{name}-{number}"
    return free


def save_pictures(
    photo: np.ndarray, classes: np.ndarray, scheme: ClassScheme, folder: Path, name: str
) -> list[Path]:
    """Write the class colours to `name-classes.png` and, blended over the photo, to
    `name-overlay.png`.

    Existing files are not overwritten: a number is added to `name`.

    Args:
        photo: `uint8 [H, W, 3]`.
        classes: class indices, `uint8 [H, W]`.
        scheme: names and colours of the classes.
        folder: made if missing.
        name: of the files, without ending.

    Returns:
        The paths.
    """
    blended = np.empty_like(photo)
    for top in range(0, len(photo), 256):  # in strips: blending takes 72 bytes per pixel
        rows = slice(top, top + 257)  # one more row, because a border lies between two rows
        blended[top : top + 256] = scheme.overlay(photo[rows], classes[rows])[:256]
    pictures = {"-classes.png": scheme.colorize(classes), "-overlay.png": blended}
    name = free_name(folder, name, list(pictures))
    return [_save(pixels, folder / (name + ending)) for ending, pixels in pictures.items()]


def _save(pixels: np.ndarray, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as unfinished:
        Image.fromarray(pixels).save(unfinished)
    return path


def predict_photos(
    trained: Trained,
    paths: Iterable[str | Path],
    folder: str | Path,
    flip: bool = False,
    label_ids: bool = False,
) -> list[str]:
    """Segment photos and folders of photos, save the pictures, and print one line per photo.

    Args:
        trained: the model.
        paths: as in `find_photos`.
        folder: of the pictures, made if missing.
        flip: as in `evaluation.predict`.
        label_ids: also write the official label ids of each photo, for other tools to score. They
            get a folder of their own (`labelIds`, `labelIds-2`, ...) and the names of the photos,
            because Cityscapes' own script stops if it finds two files for one photo.

    Returns:
        One message per path or photo that failed; it did not stop the others.
    """
    folder = user_path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if label_ids:
        ids = official_ids(trained.scheme)  # raises before the work, not after it
        ids_folder = folder / free_name(folder, "labelIds", [""])
    problems = []
    for path in expand_patterns(paths):
        try:
            found = find_photos([path])
        except (OSError, ValueError) as error:
            problems.append(str(error))
            continue
        for file in found:
            try:
                photo = read_photo(file)
                classes = segment(trained, photo, flip)
                pictures = save_pictures(photo, classes, trained.scheme, folder, file.stem)
                if label_ids:
                    name = free_name(ids_folder, file.stem, [".png"])
                    _save(ids[classes], ids_folder / f"{name}.png")
            except (OSError, ValueError, RuntimeError, MemoryError) as error:
                text = str(error) or type(error).__name__
                problems.append(text if str(file) in text else f"{file}: {text}")
                continue
            shares = class_shares(classes, trained.scheme)
            rounded = {name: round(share, 4) for name, share in shares.items()}
            print(printable(f"{file} -> {pictures[1]}: {json.dumps(rounded)}"))
    if label_ids:
        print(printable(f"official label ids -> {ids_folder}"))
    return problems
