"""The demo set on disk: drawn street scenes as pairs of photo and colour mask, in the format of the
Kaggle pairs."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from unet_utils.demo.canvas import COLORS
from unet_utils.demo.street import draw_scene
from unet_utils.platform.environment import progress_bar
from unet_utils.platform.files import discard, publishing, user_path
from unet_utils.restoring import jpeg, shrink

SPLITS = ("train", "val")
STAMP = "demo.json"  # what a complete set holds
VERSION = 3  # of the drawings: raise it, and existing demo sets are drawn again


def make_demo(root: str | Path, train: int = 240, val: int = 60) -> Path:
    """Draw the demo set and write it to `root/cityscapes_data/{train,val}/1.jpg ...`, unless it is
    there already.

    The folder appears when the set is complete. Several processes may call this at the same time.

    Args:
        root: parent of the folder `cityscapes_data`.
        train: number of training pairs.
        val: number of validation pairs.

    Returns:
        The folder `root/cityscapes_data`.

    Raises:
        FileExistsError: `root/cityscapes_data` holds something other than a demo set; it is not
            touched.
    """
    folder = user_path(root) / "cityscapes_data"
    stamp = json.dumps({"version": VERSION, "train": train, "val": val})
    if _is_complete(folder, stamp):
        return folder
    if folder.exists() and any(folder.iterdir()) and not (folder / STAMP).is_file():
        raise FileExistsError(
            f"{folder} holds pictures that are not a demo set: give make_demo another folder."
        )
    pairs = [("train", index) for index in range(1, train + 1)]
    pairs += [("val", index) for index in range(1, val + 1)]
    bar = progress_bar(iterable=pairs, desc="Drawing the demo set", unit="pair")
    with publishing(folder) as unfinished:
        for split in SPLITS:
            (unfinished / split).mkdir()
        for split, index in bar:
            photo, labels = draw_scene(np.random.default_rng([0, SPLITS.index(split), index]))
            # The masks of the Kaggle pairs were compressed twice: alone, and as a part of the pair.
            pair = np.hstack([shrink(photo), jpeg(shrink(COLORS[labels]), 75)])
            path = unfinished / split / f"{index}.jpg"
            Image.fromarray(pair).save(path, "JPEG", quality=95, subsampling="4:2:0")
        (unfinished / STAMP).write_text(stamp)
        if not _is_complete(folder, stamp):  # otherwise another process has finished first
            discard(folder)
    return folder


def _is_complete(folder: Path, stamp: str) -> bool:
    file = folder / STAMP
    if not file.is_file() or file.read_text() != stamp:
        return False
    wanted = json.loads(stamp)
    return all(len(list((folder / split).glob("*.jpg"))) == wanted[split] for split in SPLITS)
