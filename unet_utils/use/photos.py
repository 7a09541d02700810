"""Photos of your own: find them, read them whatever their kind, segment them at their own size,
save the result."""

import json
import math
import struct
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from unet_utils.classes import IGNORE, ClassScheme
from unet_utils.demo.street import draw_scene
from unet_utils.evaluation import Trained, predict_classes
from unet_utils.images import photo_size
from unet_utils.platform.environment import Environment
from unet_utils.platform.files import replacing, user_path

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
MOST_PIXELS, LONGEST_SIDE = 50 * 10**6, 2**14
"""Larger photos are reduced when they are read. A very long side costs memory, because logits are
enlarged along it."""
MOST_JPEG_PIXELS, MOST_OTHER_PIXELS = 1000 * 10**6, 200 * 10**6
"""Photos with more pixels are refused. JPEG is reduced while it is decoded; other kinds have to fit
in memory whole."""
DEEP = ("F", "I")  # Pillow's modes of one channel with more than 8 bits start so
ORIENTATION, SHORT = 0x0112, 3  # tag and data type of the EXIF entry


def printable(text: str) -> str:
    """Return text with escapes for all characters that standard output cannot print, such as an old
    terminal's."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def find_photos(paths: Iterable[str | Path]) -> list[Path]:
    """Return the files of `paths`, and the photos in each folder in alphabetical order.

    Hidden files are skipped. Everything else in a folder that is not a photo is named in one line.

    Raises:
        FileNotFoundError, ValueError: a path does not exist, or is a URL; a folder has no photo.
    """
    photos: list[Path] = []
    for path in map(user_path, paths):
        if not path.exists():
            raise FileNotFoundError(f"no file {path}")
        if path.is_dir():
            files = sorted(file for file in path.iterdir() if not file.name.startswith("."))
            found = [
                file for file in files if file.suffix.lower() in SUFFIXES and not file.is_dir()
            ]
            if others := sorted({file.name for file in files} - {file.name for file in found}):
                more = f" and {len(others) - 10} more" if len(others) > 10 else ""
                print(
                    printable(
                        f"Not read in {path}: {', '.join(others[:10])}{more} (not {', '.join(SUFFIXES)})"
                    )
                )
            if not found:
                raise FileNotFoundError(f"no photo in {path}")
        photos += found if path.is_dir() else [path]
    return photos


def read_photo(path: str | Path) -> np.ndarray:
    """Read a photo as a person would see it, in RGB.

    It is turned as its EXIF orientation says. Greyscale (8 to 32 bits, or floats), palette and CMYK
    pictures become RGB; transparent pixels become white. A very large photo is reduced by a whole
    factor, with a message.

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
        Image.MAX_IMAGE_PIXELS = None  # _reduced has limits of its own
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about metadata
            with Image.open(path) as file:
                size = file.size
                image = _rgb(_reduced(file))
                pixels = _turned(np.array(image), _orientation(file))
    except Exception as error:  # each of Pillow's formats has errors of its own
        advice = "save it as a JPEG or PNG"
        raise ValueError(
            f"{path} cannot be read as a photo ({error or type(error).__name__}): {advice}"
        ) from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    if image.size != size:
        print(
            printable(
                "{} is very large: reduced from {}x{} to {}x{} pixels".format(
                    path, *size, *image.size
                )
            )
        )
    return pixels


def _reduced(image: Image.Image) -> Image.Image:
    """Return an image, reduced by a whole factor where `MOST_PIXELS` or `LONGEST_SIDE` require
    it."""
    pixels = image.width * image.height
    most = MOST_JPEG_PIXELS if image.format in ("JPEG", "MPO") else MOST_OTHER_PIXELS
    if pixels > most:
        raise ValueError(
            f"it has {pixels / 1e6:.0f} megapixels, the limit for {image.format} is {most / 1e6:.0f}"
        )
    factor = _reduction(image)
    # Does something for JPEG only: decode to 1/2, 1/4 or 1/8, not below this size.
    image.draft(None, (max(1, image.width // factor), max(1, image.height // factor)))
    if (factor := _reduction(image)) == 1:
        return image
    if image.mode.startswith(DEEP):  # reduce() does not take all of these
        return Image.fromarray(np.asarray(image)[::factor, ::factor])
    return (image.convert("RGBA") if image.mode in ("P", "PA") else image).reduce(factor)


def _reduction(image: Image.Image) -> int:
    width, height = image.size
    return math.ceil(
        max(math.sqrt(width * height / MOST_PIXELS), width / LONGEST_SIDE, height / LONGEST_SIDE)
    )


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(DEEP):
        return Image.fromarray(_scaled_to_8_bits(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _scaled_to_8_bits(values: np.ndarray) -> np.ndarray:
    """Scale numbers of any range to 0 to 255.

    White is the usual level of the data type if the brightest pixel comes near it. Otherwise
    (12-bit cameras, distances, temperatures) black is the darkest pixel, and white the brightest.
    """
    known = values[np.isfinite(values)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 0.0)
    levels = (1, 255) if values.dtype.kind == "f" else (255, 65535, 2**31 - 1, 2**32 - 1)
    white = next((level for level in levels if high <= level), None)
    if white and low >= 0 and (high > white / 4 or high == 0):
        low, high = 0.0, float(white)
    values = np.nan_to_num(values, nan=low, posinf=high, neginf=low).astype(np.float32)
    return ((values - low) * (255 / (high - low or 1))).round().clip(0, 255).astype(np.uint8)


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 if there is none that can be read.

    No other entry is looked at: cameras and editors write many that are wrong, and restoring them
    fails in many ways."""
    data = image.info.get("exif") or b""
    try:
        data = data.removeprefix(b"Exif\0\0")
        order = {b"II": "<", b"MM": ">"}[data[:2]]
        (start,) = struct.unpack_from(order + "L", data, 4)
        (count,) = struct.unpack_from(order + "H", data, start)
        for number in range(count):
            tag, kind, length, value = struct.unpack_from(
                order + "HHLH", data, start + 2 + 12 * number
            )
            if (tag, kind, length) == (ORIENTATION, SHORT, 1):
                return value
    except (AttributeError, TypeError, KeyError, struct.error):
        pass
    return 1


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


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
        except (
            Exception
        ) as error:  # not in Colab; or Colab's MessageError and others, such as in VS Code
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
    size = photo_size(height, width, trained.scene_size, trained.model.divisor)
    batch = torch.from_numpy(photo).permute(2, 0, 1)[None]
    return predict_classes(trained.model, batch, size, flip)[0].cpu().numpy()


def class_shares(classes: np.ndarray, scheme: ClassScheme) -> dict[str, float]:
    """Return the share of the pixels of each class that occurs, largest first."""
    shares = np.bincount(classes.ravel(), minlength=IGNORE) / classes.size
    return {
        scheme.names[i]: float(shares[i]) for i in np.argsort(-shares, kind="stable") if shares[i]
    }


def official_ids(scheme: ClassScheme) -> np.ndarray:
    """Return the official label id of each class, `uint8 [C]`.

    Raises:
        ValueError: a class of the scheme stands for several labels, or for a cluster of colours.
    """
    lookup = np.array(scheme.lookup)
    ids = [np.flatnonzero(lookup == index) for index in range(scheme.num_classes)]
    if scheme.name == "clusters" or any(len(label_ids) != 1 for label_ids in ids):
        raise ValueError(
            f"the classes of the scheme {scheme.name!r} have no official label ids: use a model of cityscapes19"
        )
    return np.concatenate(ids).astype(np.uint8)


def save_pictures(
    photo: np.ndarray,
    classes: np.ndarray,
    scheme: ClassScheme,
    folder: Path,
    name: str,
    label_ids: bool = False,
) -> list[Path]:
    """Write the class colours to `name-classes.png` and, blended over the photo, to
    `name-overlay.png`.

    All pictures have the photo's size. Existing files are not overwritten: a number is added to
    `name`.

    Args:
        photo: `uint8 [H, W, 3]`.
        classes: class indices, `uint8 [H, W]`.
        scheme: names and colours of the classes.
        folder: made if missing.
        name: of the files, without suffix.
        label_ids: write official label ids to `name-labelIds.png` as well, so that other tools can
            score them.

    Returns:
        The paths.
    """
    folder.mkdir(parents=True, exist_ok=True)
    blended = np.empty_like(photo)
    for top in range(0, len(photo), 256):  # in strips: blending takes 72 bytes per pixel
        # One more row, because a border lies between two rows.
        blended[top : top + 256] = scheme.overlay(photo[top : top + 257], classes[top : top + 257])[
            :256
        ]
    pictures = {"classes": scheme.colorize(classes), "overlay": blended}
    if label_ids:
        pictures["labelIds"] = official_ids(scheme)[classes]
    number, paths = 1, [folder / f"{name}-{kind}.png" for kind in pictures]
    while any(path.exists() for path in paths):
        number += 1
        paths = [folder / f"{name}-{number}-{kind}.png" for kind in pictures]
    for path, pixels in zip(paths, pictures.values(), strict=True):
        with replacing(path) as unfinished:
            Image.fromarray(pixels).save(unfinished)
    return paths


def predict_photos(
    trained: Trained,
    paths: Iterable[str | Path],
    folder: str | Path,
    flip: bool = False,
    label_ids: bool = False,
) -> list[str]:
    """Segment photos and folders of photos, save the pictures, and print one line per photo.

    Returns:
        One message per path or photo that failed; it did not stop the others.
    """
    folder, problems = user_path(folder), []
    folder.mkdir(parents=True, exist_ok=True)
    if label_ids:
        official_ids(trained.scheme)  # raises before the work, not after it
    for path in paths:
        try:
            found = find_photos([path])
        except (OSError, ValueError) as error:
            problems.append(str(error))
            continue
        for file in found:
            try:
                photo = read_photo(file)
                classes = segment(trained, photo, flip)
                pictures = save_pictures(
                    photo, classes, trained.scheme, folder, file.stem, label_ids
                )
            except (OSError, ValueError, RuntimeError, MemoryError) as error:
                problems.append(
                    str(error)
                    if str(file) in str(error)
                    else f"{file}: {error or type(error).__name__}"
                )
                continue
            shares = {
                name: round(share, 4)
                for name, share in class_shares(classes, trained.scheme).items()
            }
            print(printable(f"{file} -> {pictures[1]}: {json.dumps(shares)}"))
    return problems
