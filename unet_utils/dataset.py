"""The pairs: one file with photo and mask, and a split prepared once as arrays on disk.

`CityscapesPairs` reads one file at a time. `prepare` goes through a split once and keeps photos and
label ids as memory-mapped `uint8` arrays, so that no epoch has to decode a JPEG again.
"""

import errno
import hashlib
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from unet_utils import restoring
from unet_utils.classes import PALETTE_COLORS, ClassScheme, get_scheme
from unet_utils.device import first_line
from unet_utils.frames import Frames
from unet_utils.platform.environment import progress_bar
from unet_utils.platform.files import (
    list_folder,
    make_backup_folder,
    replacing,
    require_space,
    user_path,
)
from unet_utils.restoring import SIDE

Item = TypeVar("Item")


def find_pairs(root: str | Path) -> Path:
    """Return the folder at or below `root` that holds both train/ and val/, the one nearest to
    `root`.

    Archives differ in how deep they nest them: `cityscapes_data/cityscapes_data/train` exists.
    Folders that cannot be read are skipped.

    Raises:
        FileNotFoundError: `root` does not exist, or nothing at most four levels below it holds
            both.
    """
    root = user_path(root)
    if not os.path.isdir(root):
        raise FileNotFoundError(
            f"There is no folder {root}. Check the path, or use 'kaggle' or 'demo' instead."
        )
    level = [root]
    for _ in range(5):
        for folder in level:
            if os.path.isdir(folder / "train") and os.path.isdir(folder / "val"):
                return folder
        level = [child for folder in level for child in list_folder(folder) if child.is_dir()]
    found = ", ".join(path.name for path in list_folder(root)[:5]) or "nothing"
    raise FileNotFoundError(
        f"No folder with both train/ and val/ in {root} (it holds: {found}). Use the folder or "
        "archive that has them; for photos and masks of your own, one of the ways in the README."
    )


def pair_files(folder: str | Path) -> list[Path]:
    """Return the pairs in a folder (1.jpg, 2.JPG, 3.jpeg, ...) in numeric order. Hidden files are
    skipped.

    Raises:
        ValueError: a JPEG whose name is not a number, or two with the same number.
    """
    files: dict[int, Path] = {}
    for path in list_folder(Path(folder)):
        if path.suffix.lower() not in (".jpg", ".jpeg"):
            continue
        if not path.stem.isdecimal():
            raise ValueError(
                f"{path} is not a numbered pair (1.jpg, 2.jpg, ...). Rename it or take it out; for "
                "photos and masks of your own, use one of the ways in the README."
            )
        if (other := files.setdefault(int(path.stem), path)) != path:
            raise ValueError(
                f"{other} and {path} have the same number. Rename one of them or take it out."
            )
    return [files[number] for number in sorted(files)]


def read_pair(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read one pair: the left half of the file is the photo, the right half is the mask.

    Returns:
        photo and mask, each `uint8 [256, 256, 3]`.

    Raises:
        ValueError: the file is not a complete 512x256 RGB JPEG; the message names it.
    """
    advice = "Unpack the archive again, or leave this frame out."
    try:
        with Image.open(path) as image:
            if image.format != "JPEG" or image.mode != "RGB":
                raise ValueError(f"{path} is a {image.mode} {image.format}, no RGB JPEG. {advice}")
            if image.size != (2 * SIDE, SIDE):
                width, height = image.size
                raise ValueError(
                    f"{path} is {width}x{height} pixels; a pair is {2 * SIDE}x{SIDE}, photo left, "
                    f"mask right. {advice}"
                )
            pair = np.asarray(image)
    except OSError as error:  # Pillow raises it for empty, truncated and foreign files
        raise ValueError(f"{path} cannot be read as a JPEG ({error}). {advice}") from error
    return pair[:, :SIDE], pair[:, SIDE:]


class CityscapesPairs(Dataset):
    """The photo and mask halves of one split, in numeric order of the files.

    Args:
        root: folder that holds `train/` and `val/`, at any depth.
        split: `train` or `val`.

    Raises:
        FileNotFoundError: no such folder, or no pair in it.
    """

    def __init__(self, root: str | Path, split: str):
        folder = find_pairs(root) / split
        self.paths = pair_files(folder)
        if not self.paths:
            raise FileNotFoundError(
                f"no numbered .jpg files in {folder}: is {split!r} the split you want?"
            )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return photo and mask, each `uint8 [3, 256, 256]`."""
        photo, mask = read_pair(self.paths[index])
        return (
            torch.from_numpy(photo.transpose(2, 0, 1).copy()),
            torch.from_numpy(mask.transpose(2, 0, 1).copy()),
        )

    def blocks(
        self, size: int = 128, progress: str = ""
    ) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
        """Yield `(where, photos, masks)` for all pairs in order, `uint8 [n, 256, 256, 3]` each."""
        yield from read_blocks(read_pair, self.paths, size, progress, "pair")

    @property
    def fingerprint(self) -> str:
        """Hash of the names and contents of all files. Changed files get a new cache."""
        return hash_files(self.paths)


def hash_files(paths: Iterable[Path], facts: str = "") -> str:
    """Return 16 hexadecimal digits that identify the names and contents of files, and other
    facts."""
    digest = hashlib.blake2b(facts.encode(), digest_size=8)
    for path in paths:
        digest.update(os.fsencode(path.name) + path.read_bytes())
    return digest.hexdigest()


def read_blocks(
    read: Callable[[Item], tuple[np.ndarray, np.ndarray]],
    items: Sequence[Item],
    size: int,
    progress: str,
    unit: str,
) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Read frames in order, in as many threads as there are cores.

    Args:
        read: returns photo and labels of an item.
        items: what to read.
        size: frames per block.
        progress: title of a progress bar; empty for none.
        unit: what the bar counts.

    Yields:
        where the block lies, and its photos and labels, one array each.
    """
    bar = progress_bar(total=len(items), desc=progress, unit=unit, disable=not progress)
    with ThreadPoolExecutor(os.cpu_count()) as pool, bar:
        for start in range(0, len(items), size):
            frames = list(pool.map(read, items[start : start + size]))
            photos, labels = (np.stack(arrays) for arrays in zip(*frames, strict=True))
            yield slice(start, start + len(frames)), photos, labels
            bar.update(len(frames))


def prepare(
    root: str | Path,
    split: str,
    cache: str | Path,
    scheme: str | ClassScheme = "cityscapes19",
    method: str = "restored",
    keep: str | Path | None = None,
    progress: bool = True,
) -> Frames:
    """Restore the labels of a split once; later calls map the result from disk.

    Args:
        root: folder that holds `train/` and `val/`.
        split: `train` or `val`.
        cache: folder for the arrays, on a fast local disk.
        scheme: class scheme, by name or as an object (the `clusters` scheme).
        method: how masks become labels, `restored` or `nearest`, see `restoring`.
        keep: folder that outlives the machine (on Drive), for a compressed copy of the label ids,
            a few MB. It is read when the cache is empty, and written when it does not hold the
            labels yet. A copy that fails is a warning.
        progress: show a bar.

    Returns:
        The frames, memory-mapped. 2975 pairs take 780 MB of disk.

    Raises:
        ValueError: a file is not a pair, or the scheme or method is unknown.
        OSError: not enough space for the arrays.
    """
    scheme = get_scheme(scheme)
    pairs = CityscapesPairs(root, split)
    fingerprint = pairs.fingerprint
    key = _label_key(scheme, method)
    folder = user_path(cache) / f"{split}-{fingerprint}"
    folder.mkdir(parents=True, exist_ok=True)
    photos_file = folder / "photos.npy"
    labels_file = folder / f"labels-{key}.npy"
    shape = (len(pairs), SIDE, SIDE)
    kept = user_path(keep) / f"{folder.name}-{key}.npz" if keep else None
    is_new = not _is_complete(labels_file, shape)
    if kept and is_new:
        _fetch_labels(kept, labels_file, shape)

    def blocks(missing: set[Path]) -> Iterator[tuple[slice, dict[Path, np.ndarray]]]:
        for where, photos, masks in pairs.blocks(progress=f"preparing {split}" * progress):
            values = {photos_file: photos}
            if labels_file in missing:
                values[labels_file] = restoring.restore_label_ids(masks, method, scheme=scheme)
            yield where, values

    if is_new and not scheme.cluster_colors:
        _check_colors(pairs)
    build_arrays({photos_file: (*shape, 3), labels_file: shape}, blocks)
    if is_new and key.startswith("restored"):
        label_ids = np.load(labels_file, mmap_mode="r")
        agreement = restoring.reference_agreement(label_ids, fingerprint)
        if agreement:
            print(f"{split}: {agreement[0]} of {agreement[1]} frames have the reference labels")
    if kept:
        _keep_labels(labels_file, kept)
    return Frames(
        map_array(photos_file),
        map_array(labels_file),
        scheme,
        numbers=tuple(int(path.stem) for path in pairs.paths),
        data=fingerprint,
        labels=method,
    )


def _label_key(scheme: ClassScheme, method: str) -> str:
    if scheme.cluster_colors:
        centers = repr((scheme.cluster_colors, scheme.cluster_ids)).encode()
        return f"clusters-{hashlib.blake2b(centers, digest_size=4).hexdigest()}"
    return f"restored-{restoring.restorer_version()}" if method == "restored" else method


def _check_colors(pairs: CityscapesPairs) -> None:
    """Check that masks are painted in Cityscapes' colours, before anything learns from them.

    Of some masks, 70 % of the pixels must lie within 25 grey levels of one of these colours. In the
    Kaggle set, 89 % do, and 31 % of the pixels of its photos.

    Raises:
        ValueError: they do not.
    """
    colors = torch.from_numpy(PALETTE_COLORS).float()
    shares = []
    for path in pairs.paths[:: max(1, len(pairs) // 16)][:16]:
        pixels = torch.from_numpy(read_pair(path)[1][::4, ::4].reshape(-1, 3).copy()).float()
        shares.append((torch.cdist(pixels, colors).amin(1) < 25).double().mean().item())
    share = float(np.mean(shares))
    if share < 0.7:
        raise ValueError(
            f"{1 - share:.0%} of the mask pixels in {pairs.paths[0].parent} are near no Cityscapes "
            "colour: these masks (the right halves) show other classes, or are photos, and their "
            "labels would be wrong. For classes of your own, use a folder with images/, masks/ and "
            "classes.txt (see the README), or the scheme clusters"
        )


def _fetch_labels(kept: Path, file: Path, shape: tuple[int, ...]) -> None:
    """Unpack the kept copy of the label ids, if there is one; a damaged one is deleted."""
    try:
        if kept.exists():
            with np.load(kept) as archive:
                label_ids = archive[archive.files[0]]
            if label_ids.shape != shape or label_ids.dtype != np.uint8:
                raise ValueError(f"it holds {label_ids.dtype} {list(label_ids.shape)}")
            with replacing(file) as unfinished:
                np.save(unfinished, label_ids)
    except OSError as error:  # the disk is full, Drive has dropped: the copy itself may be whole
        print(f"Warning: {kept} could not be used ({error}): the labels are restored again.")
    except Exception as error:  # zipfile, zlib and numpy have different errors for a damaged file
        print(
            f"Warning: {kept} cannot be used ({first_line(error)}): the labels are restored again."
        )
        with suppress(OSError):
            kept.unlink(missing_ok=True)  # so that it is written again


def _keep_labels(file: Path, kept: Path) -> None:
    try:
        if not kept.exists():
            make_backup_folder(kept.parent)
            with replacing(kept) as unfinished:
                np.savez_compressed(unfinished, label_ids=np.load(file, mmap_mode="r"))
    except OSError as error:
        print(f"Warning: no copy of the labels could be kept at {kept} ({error}).")


def build_arrays(
    shapes: dict[Path, tuple[int, ...]],
    blocks: Callable[[set[Path]], Iterable[tuple[slice, dict[Path, np.ndarray]]]],
) -> None:
    """Write those arrays that are not complete on disk yet, block by block, never whole in memory.

    Args:
        shapes: shape of each `uint8` array, by its file; all files in one folder.
        blocks: given the missing files, yields where a block goes and the values of at least these
            files there.

    Raises:
        OSError: not enough space.
    """
    missing = {file: shape for file, shape in shapes.items() if not _is_complete(file, shape)}
    if not missing:
        return
    # Check the space first: a memory map on a full disk kills the process.
    needed = sum(math.prod(shape) for shape in missing.values())
    require_space(next(iter(missing)).parent, needed)
    with ExitStack() as stack:
        arrays = {}
        for file, shape in missing.items():
            unfinished = stack.enter_context(replacing(file))
            arrays[file] = np.lib.format.open_memmap(unfinished, "w+", np.uint8, shape)
        for where, values in blocks(set(missing)):
            for file, array in arrays.items():
                array[where] = values[file]
        for array in arrays.values():
            array.flush()
        del array
        arrays.clear()  # Windows cannot rename a file that is mapped


def _is_complete(file: Path, shape: tuple[int, ...]) -> bool:
    """Return whether a file holds the whole array; a file that was cut short does not."""
    try:
        array = np.load(file, mmap_mode="r")
        return array.shape == shape and array.dtype == np.uint8
    except (OSError, ValueError, EOFError):
        return False


def map_array(file: Path) -> Tensor:
    """Return an array on disk as a tensor; the system loads its pages when they are used.

    Values written to the tensor never reach the file.
    """
    try:
        return torch.from_numpy(np.load(file, mmap_mode="c"))  # copy on write
    except OSError as error:
        if error.errno != errno.ENOMEM:
            raise
    # Copy on write reserves memory for every page. There is not enough: map the file read-only.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch does not support read-only tensors
        return torch.from_numpy(np.load(file, mmap_mode="r"))
