"""The official layout of Cityscapes, for those who have it: photos of 2048 x 1024 pixels and the labels as drawn.

    leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png
    gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png

Its label ids are the label codes of this package (https://github.com/mcordts/cityscapesScripts), so the classes are the
same as those of the pairs. Frames keep their shape: a network learns from square crops of them, and is scored on whole
ones.
"""

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from unet_utils.arrays import mapped, write_missing
from unet_utils.classes import ClassScheme, get_scheme
from unet_utils.dataset import Frames
from unet_utils.platform.environment import progress_bar

PHOTO, LABELS = "_leftImg8bit.png", "_gtFine_labelIds.png"


def is_official(folder: str | Path) -> bool:
    """Whether a folder holds `leftImg8bit/` and `gtFine/`."""
    return all((Path(folder) / name).is_dir() for name in ("leftImg8bit", "gtFine"))


def official_files(folder: str | Path, split: str) -> list[tuple[Path, Path]]:
    """Photo and label file of each frame of a split, in alphabetical order.

    Raises:
        FileNotFoundError: there are no photos, or one of them has no label file.
    """
    folder = Path(folder)
    photos = sorted((folder / "leftImg8bit" / split).glob(f"*/*{PHOTO}"))
    if not photos:
        raise FileNotFoundError(
            f"no */*{PHOTO} in {folder / 'leftImg8bit' / split}: unpack leftImg8bit_trainvaltest.zip"
        )
    names = [photo.name.removesuffix(PHOTO) for photo in photos]
    labels = [
        folder / "gtFine" / split / photo.parent.name / (name + LABELS)
        for photo, name in zip(photos, names, strict=True)
    ]
    for path in labels:
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: unpack gtFine_trainvaltest.zip beside the photos")
    return list(zip(photos, labels, strict=True))


def read_frame(photo: Path, labels: Path, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Reads one frame, made smaller where that is asked for.

    Args:
        photo, labels: the files.
        height: of the result, pixels; the width follows.

    Returns:
        photo `uint8 [height, W, 3]` and label ids `uint8 [height, W]`.

    Raises:
        ValueError: a file is no PNG of the right kind, or lower than `height`.
    """
    arrays = []
    for path, mode, filter_ in ((photo, "RGB", Image.Resampling.BILINEAR), (labels, "L", Image.Resampling.NEAREST)):
        try:
            with Image.open(path) as image:
                if image.mode != mode or image.height < height:
                    raise ValueError(f"{path} is {image.mode}, {image.height} high: {mode}, {height} is needed")
                size = round(image.width * height / image.height), height
                arrays.append(np.asarray(image.resize(size, filter_)))
        except OSError as error:  # Pillow's word for empty, truncated and foreign files alike
            raise ValueError(f"{path} cannot be read as a PNG ({error}). Unpack it again") from error
    if arrays[0].shape[:2] != arrays[1].shape:
        raise ValueError(f"{photo} and {labels} differ in size")
    return arrays[0], arrays[1]


def prepare_official(
    folder: str | Path,
    split: str,
    cache: str | Path,
    scheme: str | ClassScheme = "cityscapes19",
    height: int = 1024,
    progress: bool = True,
) -> Frames:
    """Reads a split once, and maps the result from disk ever after, as `dataset.prepare` does with pairs.

    Args:
        folder: holds `leftImg8bit/` and `gtFine/`.
        split: `train` or `val`.
        cache: folder for the arrays, on a fast local disk.
        scheme: class scheme, by name or as an object; not `clusters`.
        height: of the frames, pixels, a multiple of 32. The 2975 of the training split take 25 GB of disk at 1024,
            6.2 GB at 512.
        progress: show a bar.

    Returns:
        The frames, memory-mapped, numbered from 1 in alphabetical order as the pairs are.

    Raises:
        FileNotFoundError, ValueError: as `official_files` and `read_frame`; a height or scheme that cannot be; or the
            frames differ in size.
        OSError: not enough space for the arrays.
    """
    if "clusters" in (scheme, getattr(scheme, "name", "")):
        raise ValueError("official labels have no colour clusters: choose another class scheme")
    if height < 32 or height % 32:
        raise ValueError(f"height is {height}: choose a multiple of 32")
    scheme, files = get_scheme(scheme), official_files(folder, split)
    cache = Path(cache) / f"official-{split}-{height}-{_fingerprint(files)}"
    cache.mkdir(parents=True, exist_ok=True)
    photos_file, codes_file = cache / "photos.npy", cache / "codes.npy"
    shape = (len(files), *read_frame(*files[0], height)[1].shape)

    def blocks(_missing: set[Path], size: int = 8) -> Iterator[tuple[slice, dict[Path, np.ndarray]]]:
        with (
            ThreadPoolExecutor(os.cpu_count()) as pool,
            progress_bar(total=len(files), desc=f"preparing {split}", unit="frame", disable=not progress) as bar,
        ):
            for start in range(0, len(files), size):
                frames = list(pool.map(lambda pair: read_frame(*pair, height), files[start : start + size]))
                for (photo, _), (_, codes) in zip(files[start:], frames, strict=False):
                    if codes.shape != shape[1:]:
                        raise ValueError(f"{photo} has another shape than the first frame, {files[0][0]}")
                photos, codes = (np.stack(arrays) for arrays in zip(*frames, strict=True))
                yield slice(start, start + len(frames)), {photos_file: photos, codes_file: codes}
                bar.update(len(frames))

    write_missing({photos_file: (*shape, 3), codes_file: shape}, blocks)
    return Frames(mapped(photos_file), mapped(codes_file), scheme, tuple(range(1, len(files) + 1)))


def _fingerprint(files: list[tuple[Path, Path]]) -> str:
    """Hash of the files' names, sizes and times: to read all 11 GB of them each time would take minutes."""
    digest = hashlib.blake2b(digest_size=8)
    for path in (path for pair in files for path in pair):
        status = path.stat()
        digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()
