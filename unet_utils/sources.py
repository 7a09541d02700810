"""The one door for data: from a name or a path to the folder of the pairs."""

import os
import zlib
from pathlib import Path

from unet_utils.dataset import find_pairs, pair_files
from unet_utils.demo.pairs import STAMP, make_demo
from unet_utils.platform.download import get_kaggle
from unet_utils.platform.files import list_folder, user_path, writable_folder
from unet_utils.platform.unpacking import unpack

FULL_SET = {"train": 2975, "val": 500}


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
    data_dir = writable_folder(data_dir, "UNET_UTILS_DATA")
    if source == "demo":
        folder = make_demo(data_dir / "demo")
    elif source == "kaggle":
        folder = get_kaggle(data_dir, user_path(drive) if drive else None, check_pairs)
    else:
        folder = _get_own(user_path(source), data_dir)
    root = find_pairs(folder)
    counts = check_pairs(root)
    print(f"{counts['train']} training and {counts['val']} validation pairs in {root}")
    if source != "demo" and counts != FULL_SET:
        print(
            f"Note: the full Kaggle set has {FULL_SET['train']} and {FULL_SET['val']}; a smaller "
            "set works too."
        )
    files = [path for split in counts for path in list_folder(root / split)]
    pairs = {path for split in counts for path in pair_files(root / split)}
    if unused := [str(path.relative_to(root)) for path in files if path not in pairs]:
        more = f" and {len(unused) - 5} more" if len(unused) > 5 else ""
        print(f"Not used, because pairs are named 1.jpg, 2.jpg, ...: {', '.join(unused[:5])}{more}")
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
            raise FileNotFoundError(
                f"No .jpg files in {root / split}. Each split needs pairs named 1.jpg, 2.jpg, ..."
            )
        if empty := [path for path in files if path.stat().st_size == 0]:
            raise ValueError(f"{empty[0]} is empty. Get this file again, or take it out.")
        counts[split] = len(files)
    return counts


def is_full_set(root: str | Path) -> bool:
    """Return whether `root` holds the whole Kaggle set: only then do scores compare with published
    ones."""
    return check_pairs(root) == FULL_SET and not (find_pairs(root) / STAMP).exists()


def _get_own(path: Path, data_dir: Path) -> Path:
    """Return the folder of a person's own pairs, after unpacking it into `data_dir` if it is an
    archive."""
    if os.path.isdir(path):
        print(f"Using your folder {path}")
        return path
    if not path.exists():
        raise FileNotFoundError(
            f"There is no file or folder {path}. Check the path, or use 'kaggle' or 'demo'."
        )
    # Size and time are in the folder's name, so that archives of one name never mix.
    facts = path.stat()
    key = zlib.crc32(f"{facts.st_size} {facts.st_mtime_ns}".encode())
    folder = data_dir / f"{path.stem[:40]}-{key:08x}"
    unpack(path, folder, check_pairs)
    return folder
