"""The pairs: one file with photo and mask, and a split prepared once as arrays on disk.

`CityscapesPairs` reads one file at a time. `prepare` goes through a split once and keeps photos and
label ids as memory-mapped `uint8` arrays, so that no epoch has to decode a JPEG again."""

import errno
import hashlib
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.io import decode_jpeg, read_file

from unet_utils import restoring
from unet_utils.classes import ClassScheme, get_scheme
from unet_utils.frames import Frames
from unet_utils.platform.archive import find_pairs, pair_files
from unet_utils.platform.environment import progress_bar
from unet_utils.platform.files import make_backup_folder, replacing, require_space, user_path
from unet_utils.restoring import SIDE


def read_pair(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read one pair: the left half of the file is the photo, the right half is the mask.

    Returns:
        photo and mask, each `uint8 [256, 256, 3]`.

    Raises:
        ValueError: the file is not a complete 512x256 RGB JPEG; the message names it and the next
            step.
    """
    try:
        # The same JPEG library as Pillow's, without Pillow's extra copies: a fifth of the time.
        pixels = decode_jpeg(read_file(str(path)))
    except RuntimeError:
        pixels = None
    if pixels is None or pixels.shape != (3, SIDE, 2 * SIDE):
        pair = _read_with_pillow(path)
    else:
        pair = pixels.permute(1, 2, 0).numpy()
    return pair[:, :SIDE], pair[:, SIDE:]


def _read_with_pillow(path: Path) -> np.ndarray:
    """Fallback reader that explains what is wrong with the file."""
    advice = "Delete it and unpack the archive again, or leave this frame out."
    try:
        with Image.open(path) as image:
            if image.format != "JPEG" or image.mode != "RGB":
                raise ValueError(
                    f"{path} is a {image.mode} {image.format}, not an RGB JPEG. {advice}"
                )
            if image.size != (2 * SIDE, SIDE):
                width, height = image.size
                raise ValueError(
                    f"{path} is {width}x{height} pixels; a pair is {2 * SIDE}x{SIDE}, photo left, mask right. {advice}"
                )
            return np.asarray(image)
    except OSError as error:  # Pillow raises it for empty, truncated and foreign files
        raise ValueError(f"{path} cannot be read as a JPEG ({error}). {advice}") from error


class CityscapesPairs(Dataset):
    """The photo and mask halves of one split, in numeric order of the files.

    Args:
        root: folder that holds `train/` and `val/`, at any depth.
        split: `train` or `val`.

    Raises:
        FileNotFoundError: no such folder, or no pair in it.
    """

    def __init__(self, root: str | Path, split: str):
        folder = find_pairs(Path(root)) / split
        self.paths = pair_files(folder)
        if not self.paths:
            raise FileNotFoundError(
                f"no numbered .jpg files in {folder}: is {split!r} the split you want?"
            )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return photo and mask, each `uint8 [3, 256, 256]`."""
        photo, mask = (
            torch.from_numpy(half.transpose(2, 0, 1).copy())
            for half in read_pair(self.paths[index])
        )
        return photo, mask

    def blocks(
        self, size: int = 128, progress: str = ""
    ) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
        """Yield `(where, photos, masks)` for all pairs in order, `uint8 [n, 256, 256, 3]` each.

        Files are restored in as many threads as there are cores. While one block is used, the next
        is read."""

        def read(path: Path, photo: np.ndarray, mask: np.ndarray) -> None:
            photo[:], mask[:] = read_pair(path)

        def begin(start: int) -> tuple[Iterator[None], slice, np.ndarray, np.ndarray]:
            paths = self.paths[start : start + size]
            photos, masks = np.empty((2, len(paths), SIDE, SIDE, 3), dtype=np.uint8)
            return (
                pool.map(read, paths, photos, masks),
                slice(start, start + len(paths)),
                photos,
                masks,
            )

        with (
            ThreadPoolExecutor(os.cpu_count()) as pool,
            progress_bar(total=len(self), desc=progress, unit="pair", disable=not progress) as bar,
        ):
            following = begin(0)
            while following[1].start < len(self):
                reading, where, photos, masks = following
                following = begin(where.stop)
                list(reading)
                yield where, photos, masks
                bar.update(len(masks))

    @property
    def fingerprint(self) -> str:
        """Hash of the names and contents of all files. Caches are keyed by it, so changed files get
        a new cache."""
        digest = hashlib.blake2b(digest_size=8)
        for path in self.paths:
            digest.update(path.name.encode() + path.read_bytes())
        return digest.hexdigest()


def prepare(
    root: str | Path,
    split: str,
    cache: str | Path,
    scheme: str | ClassScheme = "cityscapes19",
    method: str = "restored",
    keep: str | Path | None = None,
    progress: bool = True,
) -> Frames:
    """Decode a split once; later calls map the result from disk.

    Args:
        root: folder that holds `train/` and `val/`.
        split: `train` or `val`.
        cache: folder for the arrays, on a fast local disk.
        scheme: class scheme, by name or as an object (the `clusters` scheme).
        method: how masks become labels, `restored` or `nearest`; see `restoring.restore_label_ids`.
        keep: folder that outlives the machine (on Drive), for a compressed copy of the label ids, a
            few MB. It is read when the cache is empty, and written when it does not hold the labels
            yet. A copy that fails is a warning.
        progress: show a bar.

    Returns:
        The frames, memory-mapped. 2975 pairs take 780 MB of disk.

    Raises:
        ValueError: a file is not a pair, or the scheme or method is unknown.
        OSError: not enough space for the arrays.
    """
    scheme, pairs = get_scheme(scheme), CityscapesPairs(root, split)
    key = _label_key(scheme, method)
    folder = user_path(cache) / f"{split}-{pairs.fingerprint}"
    folder.mkdir(parents=True, exist_ok=True)
    photos_file, labels_file = folder / "photos.npy", folder / f"labels-{key}.npy"
    shape = (len(pairs), SIDE, SIDE)
    kept = user_path(keep) / f"{folder.name}-{key}.npz" if keep else None
    is_new = not _is_complete(labels_file, shape)
    if kept and is_new:
        _restore_labels(kept, labels_file, shape)

    def blocks(missing: set[Path]) -> Iterator[tuple[slice, dict[Path, np.ndarray]]]:
        for where, photos, masks in pairs.blocks(progress=f"preparing {split}" if progress else ""):
            values = {photos_file: photos}
            if labels_file in missing:
                values[labels_file] = restoring.restore_label_ids(masks, method, scheme=scheme)
            yield where, values

    build_arrays({photos_file: (*shape, 3), labels_file: shape}, blocks)
    if is_new and key.startswith("restored"):
        label_ids = np.load(labels_file, mmap_mode="r")
        agreement = restoring.reference_agreement(label_ids, pairs.fingerprint)
        if agreement:
            print(f"{split}: {agreement[0]} of {agreement[1]} frames have the reference labels")
    if kept:
        _keep_labels(labels_file, kept)
    numbers = tuple(int(path.stem) for path in pairs.paths)
    return Frames(map_array(photos_file), map_array(labels_file), scheme, numbers)


def _label_key(scheme: ClassScheme, method: str) -> str:
    if scheme.cluster_colors:
        return (
            "clusters-"
            + hashlib.blake2b(
                repr((scheme.cluster_colors, scheme.cluster_ids)).encode(), digest_size=4
            ).hexdigest()
        )
    return f"restored-{restoring.restorer_version()}" if method == "restored" else method


def _restore_labels(kept: Path, file: Path, shape: tuple[int, ...]) -> None:
    """Unpack the kept copy of the label ids, if it is there and whole; otherwise the masks are
    restored again."""
    try:
        if kept.exists():
            with np.load(kept) as archive:
                label_ids = archive[archive.files[0]]
            if label_ids.shape != shape or label_ids.dtype != np.uint8:
                raise ValueError(f"it holds {label_ids.dtype} {list(label_ids.shape)}")
            with replacing(file) as unfinished:
                np.save(unfinished, label_ids)
    except Exception as error:  # zipfile, zlib and numpy have different errors for a damaged file
        print(
            f"Warning: {kept} cannot be used ({error or type(error).__name__}): the masks are restored again."
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
    """Write those arrays that are not complete on disk yet, block by block; no array is held in
    memory.

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
    require_space(next(iter(missing)).parent, sum(math.prod(shape) for shape in missing.values()))
    with ExitStack() as stack:
        arrays = {
            file: np.lib.format.open_memmap(
                stack.enter_context(replacing(file)), "w+", np.uint8, shape
            )
            for file, shape in missing.items()
        }
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
    """Return an array on disk as a tensor; the system loads its pages when they are used, and drops
    them again.

    Values written to the tensor never reach the file.
    """
    try:
        return torch.from_numpy(np.load(file, mmap_mode="c"))  # copy on write
    except OSError as error:
        if error.errno != errno.ENOMEM:
            raise
    # Copy on write reserves memory for every page. There is not enough of it: map the file
    # read-only.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch does not support read-only tensors
        return torch.from_numpy(np.load(file, mmap_mode="r"))
