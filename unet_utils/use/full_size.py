"""Full-size Cityscapes in its official layout, for those who have it: photos of 2048 x 1024 pixels
and their labels.

    leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png
    gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png

The classes are the same as those of the pairs (https://github.com/mcordts/cityscapesScripts).
Frames keep their 2:1
shape: a network learns from square crops of them, and is scored on whole frames.
"""

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from unet_utils.classes import ClassScheme, get_scheme
from unet_utils.dataset import build_arrays, map_array
from unet_utils.frames import Frames
from unet_utils.platform.environment import progress_bar
from unet_utils.platform.files import user_path

PHOTO, LABELS = "_leftImg8bit.png", "_gtFine_labelIds.png"


def is_official(folder: str | Path) -> bool:
    """Return whether a folder holds `leftImg8bit/` and `gtFine/`."""
    return all((user_path(folder) / name).is_dir() for name in ("leftImg8bit", "gtFine"))


def official_files(folder: str | Path, split: str) -> list[tuple[Path, Path]]:
    """Return the photo and the label file of each frame of a split, in alphabetical order.

    Raises:
        FileNotFoundError: there are no photos, or one of them has no label file.
    """
    folder = user_path(folder)
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
            raise FileNotFoundError(
                f"{path} is missing: unpack gtFine_trainvaltest.zip into {folder}"
            )
    return list(zip(photos, labels, strict=True))


def read_frame(photo: Path, labels: Path, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Read one frame, reduced to `height`.

    Args:
        photo, labels: the files.
        height: of the result, pixels; the width follows.

    Returns:
        photo `uint8 [height, W, 3]` and label ids `uint8 [height, W]`.

    Raises:
        ValueError: a file is not a PNG of the right kind, or has fewer rows than `height`.
    """
    arrays = []
    for path, mode, filter_ in (
        (photo, "RGB", Image.Resampling.BILINEAR),
        (labels, "L", Image.Resampling.NEAREST),
    ):
        try:
            with Image.open(path) as image:
                if image.mode != mode or image.height < height:
                    found = f"{image.mode} with {image.height} rows"
                    raise ValueError(
                        f"{path} is {found}, but {mode} with at least {height} rows is needed"
                    )
                size = round(image.width * height / image.height), height
                arrays.append(np.asarray(image.resize(size, filter_)))
        except (OSError, SyntaxError) as error:  # empty, truncated and foreign files
            raise ValueError(
                f"{path} cannot be read as a PNG ({error}): unpack it again"
            ) from error
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
    """Read a split once; later calls map the result from disk, like `dataset.prepare` for pairs.

    Args:
        folder: holds `leftImg8bit/` and `gtFine/`.
        split: `train` or `val`.
        cache: folder for the arrays, on a fast local disk.
        scheme: class scheme, by name or as an object; not `clusters`.
        height: of the frames, pixels, a multiple of 32. The 2975 frames of the training split take
            25 GB of disk at height 1024, 6.2 GB at 512.
        progress: show a bar.

    Returns:
        The frames, memory-mapped, numbered from 1 in alphabetical order like the pairs.

    Raises:
        FileNotFoundError, ValueError: as `official_files` and `read_frame`; an impossible height or
            scheme; or frames of different shapes.
        OSError: not enough space for the arrays.
    """
    if "clusters" in (scheme, getattr(scheme, "name", "")):
        raise ValueError("official labels have no colour clusters: choose another class scheme")
    if height < 32 or height % 32:
        raise ValueError(f"height is {height}: choose a multiple of 32")
    scheme, files = get_scheme(scheme), official_files(folder, split)
    cache = Path(cache) / f"official-{split}-{height}-{_fingerprint(files)}"
    cache.mkdir(parents=True, exist_ok=True)
    photos_file, labels_file = cache / "photos.npy", cache / "labels.npy"
    shape = (len(files), *read_frame(*files[0], height)[1].shape)

    def blocks(
        _missing: set[Path], size: int = 8
    ) -> Iterator[tuple[slice, dict[Path, np.ndarray]]]:
        with (
            ThreadPoolExecutor(os.cpu_count()) as pool,
            progress_bar(
                total=len(files), desc=f"preparing {split}", unit="frame", disable=not progress
            ) as bar,
        ):
            for start in range(0, len(files), size):
                frames = list(
                    pool.map(
                        lambda pair: read_frame(pair[0], pair[1], height),
                        files[start : start + size],
                    )
                )
                for (photo, _), (_, label_ids) in zip(files[start:], frames, strict=False):
                    if label_ids.shape != shape[1:]:
                        raise ValueError(
                            f"{photo} has another shape than the first frame, {files[0][0]}"
                        )
                photos, labels = (np.stack(arrays) for arrays in zip(*frames, strict=True))
                yield slice(start, start + len(frames)), {photos_file: photos, labels_file: labels}
                bar.update(len(frames))

    build_arrays({photos_file: (*shape, 3), labels_file: shape}, blocks)
    return Frames(
        map_array(photos_file), map_array(labels_file), scheme, tuple(range(1, len(files) + 1))
    )


def _fingerprint(files: list[tuple[Path, Path]]) -> str:
    """Return a hash of the files' names, sizes and times. Reading all 11 GB each time would take
    minutes."""
    digest = hashlib.blake2b(digest_size=8)
    for path in (path for pair in files for path in pair):
        status = path.stat()
        digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()
