"""The demo set: street scenes drawn by us, in exactly the format of the Kaggle pairs."""

import json
import tempfile
from pathlib import Path
from shutil import rmtree

import numpy as np
from PIL import Image

from unet_utils.decoding import SIDE, jpeg, shrink
from unet_utils.demo.street import COLORS, HEIGHT, WIDTH, draw_scene
from unet_utils.platform.environment import progress_bar

SPLITS = ("train", "val")
STAMP = "demo.json"  # written last, says how the set was made
VERSION = 2  # of the drawings: raise it to have existing demo sets drawn again


def _scene(split: str, index: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    return draw_scene(np.random.default_rng([seed, SPLITS.index(split), index]))


def demo_truth(split: str, index: int, seed: int = 0) -> np.ndarray:
    """The true class map of a demo pair, drawn again.

    Args:
        split: `train` or `val`.
        index: the number in the file's name, from 1.
        seed: the seed that `make_demo` was given.

    Returns:
        Official label ids, `uint8 [256, 256]`: of each pixel, the label at its centre in the large picture.
    """
    labels = _scene(split, index, seed)[1]
    rows, columns = HEIGHT // SIDE, WIDTH // SIDE
    return labels[rows // 2 :: rows, columns // 2 :: columns]


def _write_pair(path: Path, split: str, index: int, seed: int) -> None:
    photo, labels = _scene(split, index, seed)
    pair = np.hstack([shrink(photo), jpeg(shrink(COLORS[labels]), 75)])
    Image.fromarray(pair).save(path, "JPEG", quality=95, subsampling="4:2:0")


def _is_complete(folder: Path, settings: str, counts: dict[str, int]) -> bool:
    stamp = folder / STAMP
    return (
        stamp.is_file()
        and stamp.read_text() == settings
        and all(len(list((folder / split).glob("*.jpg"))) == count for split, count in counts.items())
    )


def make_demo(root: str | Path, train: int = 240, val: int = 60, seed: int = 0, progress: bool = True) -> Path:
    """Writes the demo set as `root/cityscapes_data/{train,val}/1.jpg ...`, unless it is there already.

    The set is drawn in a folder beside and moved into place when complete, so half a set is never taken for one.

    Args:
        root: folder that gets `cityscapes_data`.
        train: number of training pairs.
        val: number of validation pairs.
        seed: another seed draws other streets.
        progress: show a bar.

    Returns:
        The folder `root/cityscapes_data`.

    Raises:
        FileExistsError: `root/cityscapes_data` holds something else than a demo set; it is left alone.
    """
    root, counts = Path(root), {"train": train, "val": val}
    folder, settings = root / "cityscapes_data", json.dumps({"version": VERSION, "seed": seed} | counts)
    if _is_complete(folder, settings, counts):
        return folder
    if folder.exists() and any(folder.iterdir()) and not (folder / STAMP).is_file():
        raise FileExistsError(f"{folder} holds other pictures than the demo set: give make_demo another folder.")
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".demo-", dir=root) as beside:
        part = Path(beside) / "cityscapes_data"
        for split in SPLITS:
            (part / split).mkdir(parents=True)
        jobs = [(split, index) for split in SPLITS for index in range(1, counts[split] + 1)]
        for split, index in progress_bar(iterable=jobs, desc="Drawing the demo set", unit="pair", disable=not progress):
            _write_pair(part / split / f"{index}.jpg", split, index, seed)
        (part / STAMP).write_text(settings)
        if not _is_complete(folder, settings, counts):  # nobody else was quicker
            rmtree(folder, ignore_errors=True)
            part.rename(folder)
    return folder
