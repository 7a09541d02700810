"""Photos of your own: found, read whatever their kind, segmented at their own size, shown and saved."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageOps

from unet_utils.classes import IGNORE, ClassScheme
from unet_utils.demo.street import draw_scene
from unet_utils.evaluation import Trained, photo_size, predict_classes
from unet_utils.platform.environment import Environment
from unet_utils.plots.style import legend, new_figure, number_classes, overlay

SUFFIXES = (".jpg", ".jpeg", ".png")


def find_photos(paths: Iterable[str | Path]) -> list[Path]:
    """Files as they are given, and the JPEG and PNG files of each folder in alphabetical order.

    Raises:
        FileNotFoundError: a path does not exist, or a folder has no photo.
    """
    photos: list[Path] = []
    for path in map(Path, paths):
        found = [path] if path.is_file() else []
        if path.is_dir():
            found = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
        if not found:
            raise FileNotFoundError(f"no JPEG or PNG photo in {path}" if path.is_dir() else f"no file {path}")
        photos += found
    return photos


def read_photo(path: str | Path) -> np.ndarray:
    """Reads a photo as it should be seen: turned as its EXIF orientation says, in RGB, whatever its kind.

    Greyscale (8 or 16 bits), palette and CMYK pictures become RGB; what is transparent becomes white.

    Returns:
        `uint8 [H, W, 3]`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read as a picture; the message names it.
    """
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            if image.mode.startswith("I;16"):  # Pillow would cut off all that is brighter than 255
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return np.array(image.convert("RGB"))
    except FileNotFoundError:
        raise FileNotFoundError(f"no file {path}") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as a photo ({error}): save it as a JPEG or PNG") from error


def choose_photo(path: str, env: Environment) -> Path:
    """The photo of that path; without one, an upload in Colab; where nothing is uploaded, a drawn street.

    An upload is saved in the current folder, under a name that is free there. A drawn street is written to `env.data`.
    """
    if path:
        return Path(path).expanduser()
    if env.platform == "colab":
        from google.colab import files

        if uploaded := files.upload():
            return Path(next(iter(uploaded)))
    print("No photo of yours, so this is a street drawn by us.")
    drawn = env.data / "drawn_street.png"
    Image.fromarray(draw_scene(np.random.default_rng(2024))[0]).save(drawn)
    return drawn


def segment(trained: Trained, photo: np.ndarray, flip: bool = False) -> np.ndarray:
    """The class of each pixel of a photo, at the photo's own size.

    Args:
        photo: `uint8 [H, W, 3]`, any size and aspect.
        flip: average with the prediction for the mirrored photo; takes twice the time.

    Returns:
        class indices, `uint8 [H, W]`.
    """
    height, width = photo.shape[:2]
    size = photo_size(height, width, trained.scene_size, trained.model.divisor)
    batch = torch.from_numpy(photo).permute(2, 0, 1)[None]
    return predict_classes(trained.model, batch, size, flip)[0].cpu().numpy()


def class_shares(classes: np.ndarray, scheme: ClassScheme) -> dict[str, float]:
    """Share of the pixels of each class that occurs, largest first."""
    shares = np.bincount(classes.ravel(), minlength=IGNORE) / classes.size
    return {scheme.names[i]: float(shares[i]) for i in np.argsort(-shares, kind="stable") if shares[i]}


def plot_photo(photo: np.ndarray, classes: np.ndarray, scheme: ClassScheme) -> Figure:
    """A photo `uint8 [H, W, 3]` beside its classes `uint8 [H, W]`, in its own aspect; a large one made smaller."""
    step = max(1, max(classes.shape) // 1000)
    photo, classes = photo[::step, ::step], classes[::step, ::step]
    height = min(9, 5 * classes.shape[0] / classes.shape[1])
    figure, axes = new_figure(1, 2, 10.5, height + 1.5, "The photo, and what the network sees in it")
    for ax, pixels in zip(axes[0], (photo, overlay(photo, classes, scheme)), strict=True):
        ax.imshow(pixels, interpolation="nearest")
        ax.set_axis_off()
    number_classes(axes[0, 1], classes)
    legend(figure, [classes], scheme)
    return figure


def save_pictures(
    photo: np.ndarray, classes: np.ndarray, scheme: ClassScheme, folder: Path, name: str
) -> tuple[Path, Path]:
    """Writes the class colours as `name-classes.png` and, blended over the photo, as `name-overlay.png`.

    Both have the photo's own size. A file that exists is not overwritten: a number follows `name` then.

    Args:
        photo: `uint8 [H, W, 3]`.
        classes: class indices, `uint8 [H, W]`.
        folder: made if missing.
        name: without suffix.

    Returns:
        The two paths.
    """
    folder.mkdir(parents=True, exist_ok=True)
    blended = np.empty_like(photo)
    for top in range(0, len(photo), 256):  # in strips: blending takes 72 bytes a pixel
        # One more row, because a border lies between two rows.
        blended[top : top + 256] = overlay(photo[top : top + 257], classes[top : top + 257], scheme)[:256]
    number, paths = 1, _names(folder, name)
    while any(path.exists() for path in paths):
        number += 1
        paths = _names(folder, f"{name}-{number}")
    for path, pixels in zip(paths, (scheme.colorize(classes), blended), strict=True):
        Image.fromarray(pixels).save(path)
    return paths


def _names(folder: Path, name: str) -> tuple[Path, Path]:
    return folder / f"{name}-classes.png", folder / f"{name}-overlay.png"
