"""The one door for data: from a name or a path to the prepared frames of a split.

Whoever uses data asks here, and need not know what kind it is.
"""

import contextlib
import io
import os
import zlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from unet_utils.classes import ClassScheme
from unet_utils.clustering import choose_scheme
from unet_utils.dataset import CityscapesPairs, find_pairs, pair_files, prepare
from unet_utils.demo.pairs import STAMP, make_demo
from unet_utils.frames import Frames
from unet_utils.images import Size, height_and_width
from unet_utils.own_data.folders import OwnData, prepare_own_data
from unet_utils.own_data.tools import find_own_data
from unet_utils.platform.download import get_kaggle
from unet_utils.platform.files import (
    list_folder,
    some_of,
    typed,
    unmounted_drive,
    user_path,
    writable_folder,
)
from unet_utils.platform.unpacking import unpack

FULL_SET = {"train": 2975, "val": 500}

CITYSCAPES = "Cityscapes: for non-commercial research and teaching only"
"""What models that learned from Cityscapes material may be used for; see
https://www.cityscapes-dataset.com/license."""


@dataclass(frozen=True)
class Source:
    """Data that was found: pairs, or photos and masks of one's own.

    Attributes:
        root: the folder that holds it.
        own: what is in it if it is one's own (full-size Cityscapes included), None for pairs.
        size: height and width to which own photos are brought, pixels.
    """

    root: Path
    own: OwnData | None = None
    size: Size = 256

    def frames(
        self,
        split: str,
        cache: str | Path,
        scheme: str | ClassScheme = "cityscapes19",
        labels: str = "restored",
        keep: str | Path | None = None,
        num_clusters: int = 20,
    ) -> Frames:
        """Return the prepared frames of a split.

        Args:
            split: `train` or `val`.
            cache: folder for the arrays, on a fast local disk.
            scheme: the classes, by name or as a model has learned them. Own data has its own.
            labels: how the masks of pairs become labels, see `restoring`.
            keep: as in `dataset.prepare`.
            num_clusters: for the scheme `clusters`.

        Raises:
            ValueError: the data does not have these classes or labels; or as `prepare`,
                `prepare_own_data`.
        """
        if self.own is None:
            if isinstance(scheme, str):
                scheme = choose_scheme(scheme, self.root, num_clusters)
            frames = prepare(self.root, split, cache, scheme, labels, keep)
        else:
            if labels != "restored":
                raise ValueError(
                    f"labels is {labels!r}, which is for damaged colour masks: those in "
                    f"{self.root} are read as they are, so leave it out (--labels)"
                )
            own = self.own.with_scheme(scheme)
            height, width = height_and_width(self.size)
            frames = prepare_own_data(own, split, cache, (width, height))
        source = frames.data if split == "train" else self.fingerprint
        return replace(frames, licence=self.licence, source=source)

    def files(self, split: str) -> list[Path]:
        """Return the files of a split: its pairs, or its photos if they are one's own."""
        if self.own is None:
            return CityscapesPairs(self.root, split).paths
        return [photo for photo, _ in self.own.pairs[split]]

    def with_pairs(self, data_dir: str | Path) -> "Source":
        """Return a source of pairs, for lessons about colour masks: this one, or the demo set if
        this one has photos of one's own."""
        if self.own is None:
            return self
        print("Your data has no damaged colour masks: this lesson is about drawn pairs.")
        return open_source("demo", data_dir)

    @property
    def licence(self) -> str:
        """What models that learn from this data may be used for; empty for anything."""
        if self.own is None:
            return "" if (self.root / STAMP).exists() else CITYSCAPES
        return "" if self.own.scheme.name == "own" else CITYSCAPES

    @cached_property
    def fingerprint(self) -> str:
        """What identifies the training split in checkpoints, see `Frames.data`."""
        if self.own is None:
            return CityscapesPairs(self.root, "train").fingerprint
        height, width = height_and_width(self.size)
        return self.own.fingerprint("train", (width, height))

    @property
    def is_published(self) -> bool:
        """Whether this is the whole Kaggle set: only then do scores compare with published ones."""
        if self.own is not None or (self.root / STAMP).exists():
            return False
        return check_pairs(self.root) == FULL_SET


def data_name(source: str | Path) -> str | Path:
    """Return "kaggle" or "demo" if a person typed that, such as "Kaggle "; else the source as it
    is. A folder of that name is "./kaggle", or a `Path`.

    Raises:
        ValueError: nothing was typed.
    """
    name = typed(source).lower()
    if not name:
        raise ValueError("no data is named (DATA): give kaggle, demo, or the path of your own")
    return name if isinstance(source, str) and name in ("kaggle", "demo") else source


def open_source(
    source: str | Path, data_dir: str | Path, drive: str | Path | None = None, size: Size = 256
) -> Source:
    """Find data, after fetching and unpacking it if necessary.

    Args:
        source: as in `get_pairs`, or a folder or archive with photos and masks of one's own, see
            `own_data`.
        data_dir, drive: as in `get_pairs`.
        size: height and width to which own photos are brought, pixels.

    Raises:
        As `get_pairs`, and for own data as `own_data.tools.find_own_data`.
    """
    source = data_name(source)
    if source in ("kaggle", "demo"):
        return Source(get_pairs(source, data_dir, drive))
    folder = _get_own(user_path(source), writable_folder(data_dir, "UNET_UTILS_DATA"))
    if own := find_own_data(folder):
        counts = {split: len(pairs) for split, pairs in own.pairs.items()}
        print(f"{counts['train']} training and {counts['val']} validation photos in {folder}")
        return Source(own.folder, own, size)
    return Source(_find_pairs(folder))


def get_pairs(source: str | Path, data_dir: str | Path, drive: str | Path | None = None) -> Path:
    """Return the folder that holds train/ and val/, after fetching and unpacking it if necessary.

    A second call costs nothing.

    Args:
        source: "kaggle" (downloaded when needed), "demo" (drawn street scenes), or the path of an
            archive (zip, tar, tar.gz, ...) or a folder of your own, which is only read.
        data_dir: folder on the local disk for everything that is unpacked or drawn here.
        drive: our folder on Google Drive, which keeps a copy of the Kaggle archive for the next
            machine.

    Raises:
        FileNotFoundError: no such file or folder, or no train/ and val/ in it.
        FileExistsError: something of yours is where the pairs would be unpacked.
        ValueError: an archive that cannot be unpacked, or files that are not numbered pairs.
        OSError: a folder cannot be written to, or the disk is full.
        DownloadError: Kaggle did not deliver the archive.
    """
    source = data_name(source)
    data_dir = writable_folder(data_dir, "UNET_UTILS_DATA")
    if source == "demo":
        folder = make_demo(data_dir / "demo")
    elif source == "kaggle":
        folder = get_kaggle(data_dir, user_path(drive) if drive else None, check_pairs)
    else:
        folder = _get_own(user_path(source), data_dir)
    return _find_pairs(folder, is_drawn=source == "demo")


def _find_pairs(folder: Path, is_drawn: bool = False) -> Path:
    """Return the folder in `folder` that holds train/ and val/, and print what is in it."""
    root = find_pairs(folder)
    counts = check_pairs(root)
    print(f"{counts['train']} training and {counts['val']} validation pairs in {root}")
    if not is_drawn and counts != FULL_SET:
        print(
            f"Note: the full Kaggle set has {FULL_SET['train']} and {FULL_SET['val']}; a smaller "
            "set works too."
        )
    files = [path for split in counts for path in list_folder(root / split)]
    pairs = {path for split in counts for path in pair_files(root / split)}
    if unused := [str(path.relative_to(root)) for path in files if path not in pairs]:
        print(f"Not used, because pairs are named 1.jpg, 2.jpg, ...: {some_of(unused)}")
    return root


def check_pairs(root: str | Path) -> dict[str, int]:
    """Count the pairs in train/ and val/, and check that none of them is empty.

    Args:
        root: folder that holds `train/` and `val/`, at any depth.

    Returns:
        `{"train": count, "val": count}`.

    Raises:
        FileNotFoundError: no such folder, or a split without a single pair.
        ValueError: a JPEG whose name is not a number, or an empty one; the message names it.
    """
    root = find_pairs(root)
    counts = {}
    for split in FULL_SET:
        files = pair_files(root / split)
        if not files:
            advice = "Each split needs pairs named 1.jpg, 2.jpg, ..."
            if root.name in ("leftImg8bit", "gtFine"):  # one half of full-size Cityscapes
                advice = "Unpack leftImg8bit and gtFine into one folder, and use that folder."
            raise FileNotFoundError(f"No .jpg files in {root / split}. {advice}")
        if empty := [path for path in files if path.stat().st_size == 0]:
            raise ValueError(f"{empty[0]} is empty. Get this file again, or take it out.")
        counts[split] = len(files)
    return counts


def _get_own(path: Path, data_dir: Path) -> Path:
    """Return the folder of a person's own pairs, after unpacking it into `data_dir` if it is an
    archive."""
    if os.path.isdir(path):
        print(f"Using your folder {path}")
        return path
    if not path.exists():
        if drive := unmounted_drive(path):
            raise FileNotFoundError(
                f"{path} is on Google Drive, which is not mounted at {drive}: switch USE_DRIVE on "
                "in the Setup cell, and run again from there."
            )
        raise FileNotFoundError(
            f"There is no file or folder {path}. Check the path, or use 'kaggle' or 'demo'."
        )
    # Size and time are in the folder's name, so that archives of one name never mix.
    facts = path.stat()
    key = zlib.crc32(f"{facts.st_size} {facts.st_mtime_ns}".encode())
    folder = data_dir / f"{path.stem[:40]}-{key:08x}"
    unpack(path, folder, _check_own)
    return folder


def _check_own(folder: Path) -> dict[str, int]:
    with contextlib.redirect_stdout(io.StringIO()):  # what is said now has an unfinished name
        own = find_own_data(folder)
    if own is None:
        return check_pairs(folder)
    return {split: len(pairs) for split, pairs in own.pairs.items()}
