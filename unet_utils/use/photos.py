"""Photos of your own: find them, segment them at their own size, save the result."""

import glob
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from unet_utils.classes import IGNORE, ClassScheme
from unet_utils.demo.street import draw_scene
from unet_utils.device import first_line
from unet_utils.evaluation import Trained, predict_classes
from unet_utils.pictures import printable, read_photo
from unet_utils.platform.environment import Environment
from unet_utils.platform.files import (
    PICTURES,
    list_folder,
    natural_order,
    replacing,
    some_of,
    typed,
    user_path,
)

DEMO = "demo"
"""What stands for the drawn street on the command line."""
DRAWN = "drawn_street"
"""Name of its file."""


def expand_patterns(paths: Iterable[str | Path]) -> list[str | Path]:
    """Replace patterns such as `*.jpg` by the files that match, in natural order.

    Not every shell does it, and notebooks do not. What matches nothing stays as it is.
    """
    expanded: list[str | Path] = []
    for path in paths:
        pattern = os.path.expanduser(path)
        # A file may be called photo[1].jpg: that is not a pattern.
        matches = [] if os.path.exists(pattern) else glob.glob(pattern, recursive=True)
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
            raise FileNotFoundError(f"no file {path}: check the path")
        if not path.is_dir():
            photos.append(path)
            continue
        found: list[Path] = []
        others: list[Path] = []
        for file in list_folder(path):
            is_photo = file.suffix.lower() in PICTURES and not file.is_dir()
            (found if is_photo else others).append(file)
        if others:
            names = some_of([file.name for file in others], 10)
            print(printable(f"Not read in {path}: {names} (not {', '.join(PICTURES)})"))
        if not found:
            raise FileNotFoundError(f"no photo in {path}")
        photos += found
    return photos


def drawn_street() -> tuple[np.ndarray, np.ndarray]:
    """Return the street for those who have no photo: it is drawn by this package, always the same.

    Returns:
        photo `uint8 [512, 1024, 3]` and its official label ids `uint8 [512, 1024]`.
    """
    return draw_scene(np.random.default_rng(2024))


def choose_photo(path: str, env: Environment) -> Path:
    """Return the path of a photo to segment.

    Args:
        path: of a photo; "upload" asks for one in Colab; "" is a street drawn by this package, and
            so is an upload that fails or is cancelled.
        env: of the notebook; the drawn street is saved in `env.data`.
    """
    if typed(path).lower() == "upload":
        try:
            from google.colab import files

            if name := next(iter(files.upload()), None):
                return user_path(name)
            print("Nothing was uploaded.")
        except Exception as error:  # not in Colab, or one of Colab's many, such as in VS Code
            print(f"The upload failed ({first_line(error)}).")
    elif typed(path):
        return user_path(path)
    drawn = _save(drawn_street()[0], env.data / f"{DRAWN}.png")
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
    exists is not overwritten. A name that would be too long with its ending is cut."""
    longest = 250 - max(len(ending) for ending in endings)  # 255 bytes; a number may be added
    if len(os.fsencode(name)) > longest:
        name = os.fsencode(name)[:longest].decode(errors="ignore")
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
        paths: as in `find_photos`; "demo" is the drawn street.
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
            if path == DEMO and not os.path.exists(DEMO):
                path = _save(drawn_street()[0], folder / f"{DRAWN}.png")
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
