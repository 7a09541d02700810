"""The pairs: files on disk, then arrays prepared once, then batches on the device.

`CityscapesPairs` reads one file at a time. `prepare` runs through a split once and keeps photos and label codes as
memory-mapped `uint8` arrays, so that an epoch never touches a JPEG again. `Frames` is what training and evaluation
take their batches from.
"""

import hashlib
import math
import os
import shutil
import zipfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.io import decode_jpeg, read_file

from unet_utils import decoding
from unet_utils.arrays import mapped, streamed, write_missing
from unet_utils.classes import ClassScheme, get_scheme
from unet_utils.decoding import SIDE
from unet_utils.platform.archive import find_pairs
from unet_utils.platform.environment import beside, progress_bar

HELD_OUT_CITIES = range(2712, 2976)
"""File numbers of weimar and zurich, the last two training cities: files are numbered in the alphabetical order of
the cities. Choices are made on them, so that the validation frames are only looked at in the end."""


def read_pair(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Reads one pair.

    Returns:
        photo and mask, each `uint8 [256, 256, 3]`, the pixels that Pillow gives.

    Raises:
        ValueError: the file is not a complete 512x256 RGB JPEG; the message names it and the next step.
    """
    try:
        # The same library as Pillow's does the decoding, but without the copies around it: a fifth of the time.
        pixels = decode_jpeg(read_file(str(path)))
    except RuntimeError:
        pixels = None
    if pixels is None or pixels.shape != (3, SIDE, 2 * SIDE):
        pixels = _read_with_pillow(path)
    else:
        pixels = pixels.permute(1, 2, 0).numpy()
    return pixels[:, :SIDE], pixels[:, SIDE:]


def _read_with_pillow(path: Path) -> np.ndarray:
    """Says what is wrong with a file that torchvision refused, or reads it where torchvision cannot read any."""
    advice = "Delete it and unpack the archive again, or leave this frame out."
    try:
        with Image.open(path) as image:
            if image.format != "JPEG" or image.mode != "RGB":
                raise ValueError(f"{path} is a {image.mode} {image.format}, not an RGB JPEG. {advice}")
            if image.size != (2 * SIDE, SIDE):
                width, height = image.size
                raise ValueError(
                    f"{path} is {width}x{height} pixels; a pair is {2 * SIDE}x{SIDE}, photo left, mask right. {advice}"
                )
            return np.asarray(image)
    except OSError as error:  # Pillow's word for empty, truncated and foreign files alike
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
        self.paths = sorted(
            (path for path in folder.glob("*.jpg") if path.stem.isdigit()), key=lambda path: int(path.stem)
        )
        if not self.paths:
            raise FileNotFoundError(f"no numbered .jpg files in {folder}: is {split!r} the split you want?")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Photo and mask, each `uint8 [3, 256, 256]`."""
        photo, mask = read_pair(self.paths[index])
        return tuple(torch.from_numpy(half.transpose(2, 0, 1).copy()) for half in (photo, mask))

    def blocks(self, size: int = 128, progress: str = "") -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
        """Runs through all pairs in order: yields `(where, photos, masks)`, `uint8 [n, 256, 256, 3]` each.

        Files are decoded in as many threads as there are cores, outside Python's lock. While one block is used, the
        next is read.
        """

        def read(path: Path, photo: np.ndarray, mask: np.ndarray) -> None:
            photo[:], mask[:] = read_pair(path)

        def begin(start: int) -> tuple[Iterator[None], slice, np.ndarray, np.ndarray]:
            paths = self.paths[start : start + size]
            photos, masks = np.empty((2, len(paths), SIDE, SIDE, 3), dtype=np.uint8)
            return pool.map(read, paths, photos, masks), slice(start, start + len(paths)), photos, masks

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
        """Hash of the contents of all files: what caches are keyed by, so that changed files are never mistaken."""
        digest = hashlib.blake2b(digest_size=8)
        for path in self.paths:
            digest.update(path.name.encode() + path.read_bytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Frames:
    """Photos and label codes of a split (or of a part of it), ready to be taken in batches.

    Attributes:
        photos: `uint8 [N, H, W, 3]`; 256 x 256 from pairs, and of any size from other sources.
        codes: label codes, `uint8 [N, H, W]`.
        scheme: turns codes into class indices.
        numbers: the file number of each frame.
    """

    photos: Tensor
    codes: Tensor
    scheme: ClassScheme
    numbers: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.photos)

    def batch(self, where: slice | Tensor, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """One batch: photos `uint8 [n, 3, H, W]` (channels last in memory), class indices `uint8 [n, H, W]`."""
        photos, codes = (array[where].to(device, non_blocking=True) for array in (self.photos, self.codes))
        return self._batch(photos, codes)

    def _batch(self, photos: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        # Made there it would wait for the device in every batch; sent like this it does not.
        lookup = torch.tensor(self.scheme.lookup, dtype=torch.uint8).to(codes.device, non_blocking=True)
        return photos.permute(0, 3, 1, 2), lookup[codes.int()]

    def batches(self, order: Iterable[Tensor], device: torch.device | str) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of these indices `int64 [n]` one after another, each as `batch` gives it.

        Frames that are not on the device are streamed: the next batches are read while one is used.
        """
        if self.photos.device.type != "cpu":
            yield from (self.batch(indices.to(self.photos.device, non_blocking=True), device) for indices in order)
        else:
            yield from (self._batch(*arrays) for arrays in streamed((self.photos, self.codes), order, device))

    def to(self, device: torch.device | str) -> "Frames":
        """The same frames with their arrays on the device, when three quarters of its free memory can hold them."""
        if torch.device(device).type != "cuda":
            return self
        needed = self.photos.nbytes + self.codes.nbytes
        if needed > 0.75 * torch.cuda.mem_get_info(device)[0]:
            return self  # batches are then streamed from the memory map
        return Frames(self.photos.to(device), self.codes.to(device), self.scheme, self.numbers)

    def part(self, keep: slice) -> "Frames":
        """A run of the frames, without a copy."""
        return Frames(self.photos[keep], self.codes[keep], self.scheme, self.numbers[keep])

    def view(self, image_size: int) -> tuple[float, float]:
        """Share of a frame's height and width that a network learns from at once, at `image_size` pixels a side.

        Squares are whole scenes, squeezed, and seen whole. Of any other frame it sees square crops of its pixels.

        Raises:
            ValueError: the frames are smaller than such a crop.
        """
        height, width = self.photos.shape[1:3]
        if height == width:
            return 1.0, 1.0
        if image_size > min(height, width):
            raise ValueError(f"image_size is {image_size}, but the frames are only {width}x{height} pixels: lower it")
        return image_size / height, image_size / width

    def scene_size(self, image_size: int) -> tuple[int, int]:
        """Height and width in pixels at which a network that has learned so from these frames sees a whole scene."""
        height, width = self.photos.shape[1:3]
        return (image_size, image_size) if height == width else (height, width)

    def at_once(self, scene_size: tuple[int, int]) -> int:
        """How many frames to score at once, seen at that height and width: 16 pairs, or fewer that are larger."""
        return max(1, 2**20 // max(math.prod(scene_size), self.codes[0].numel()))

    def split_cities(self) -> tuple["Frames", "Frames"]:
        """Frames to learn from and frames to choose on, from different cities.

        On the Kaggle set the second part is `HELD_OUT_CITIES`; on any other set its last tenth, at least one frame.
        """
        held = sum(number in HELD_OUT_CITIES for number in self.numbers) or max(1, len(self) // 10)
        if held >= len(self):
            raise ValueError(f"{len(self)} frames are too few to hold some out: set hold_out to False")
        return self.part(slice(None, -held)), self.part(slice(-held, None))

    def code_counts(self) -> Tensor:
        """Pixels of each label code (official label ids, or clusters), `int64 [256]`."""
        step = max(1, 2**22 // self.codes[0].numel())  # a copy of all would not fit into the memory
        blocks = (self.codes[start : start + step] for start in range(0, len(self), step))
        return sum(torch.bincount(block.flatten().int(), minlength=256).cpu() for block in blocks)

    def class_counts(self) -> Tensor:
        """Pixels of each class, `int64 [C]`, void left out."""
        lookup, counts = torch.tensor(self.scheme.lookup), self.code_counts()
        return torch.zeros_like(counts).index_add(0, lookup, counts)[: self.scheme.num_classes]


def prepare(
    root: str | Path,
    split: str,
    cache: str | Path,
    scheme: str | ClassScheme = "cityscapes19",
    method: str = "decoder",
    keep: str | Path | None = None,
    progress: bool = True,
) -> Frames:
    """Decodes a split once, and maps the result from disk ever after.

    Args:
        root: folder that holds `train/` and `val/`.
        split: `train` or `val`.
        cache: folder for the arrays, on a fast local disk.
        scheme: class scheme, by name or as an object (the `clusters` scheme).
        method: how masks become labels, `decoder` or `nearest`; see `decoding.decode_masks`.
        keep: folder that outlives the machine (Drive) for a compressed copy of the label codes, a few MB. It is read
            when the cache is empty, and written when it does not hold them yet.
        progress: show a bar.

    Returns:
        The frames, memory-mapped. 2975 pairs take 780 MB of disk.

    Raises:
        ValueError: a file is not a pair, or the scheme or method is unknown.
        OSError: not enough space for the arrays.
    """
    scheme = get_scheme(scheme)
    pairs = CityscapesPairs(root, split)
    key = _codes_key(scheme, method)
    cache = Path(cache) / f"{split}-{pairs.fingerprint}"
    cache.mkdir(parents=True, exist_ok=True)
    photos_file, codes_file = cache / "photos.npy", cache / f"codes-{key}.npy"
    kept_file = Path(keep) / f"{cache.name}-{key}.npz" if keep else None
    if kept_file and kept_file.exists() and not codes_file.exists():
        with (
            zipfile.ZipFile(kept_file) as kept,
            kept.open("codes.npy") as source,
            open(beside(codes_file), "wb") as file,
        ):
            shutil.copyfileobj(source, file)
        os.replace(beside(codes_file), codes_file)

    def blocks(missing: set[Path]) -> Iterator[tuple[slice, dict[Path, np.ndarray]]]:
        for where, photos, masks in pairs.blocks(progress=f"preparing {split}" if progress else ""):
            values = {photos_file: photos}
            if codes_file in missing:
                values[codes_file] = decoding.label_codes(masks, scheme, method)
            yield where, values

    write_missing({photos_file: (len(pairs), SIDE, SIDE, 3), codes_file: (len(pairs), SIDE, SIDE)}, blocks)
    if kept_file and not kept_file.exists():
        kept_file.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(beside(kept_file), codes=np.load(codes_file, mmap_mode="r"))
        os.replace(beside(kept_file), kept_file)
    numbers = tuple(int(path.stem) for path in pairs.paths)
    return Frames(mapped(photos_file), mapped(codes_file), scheme, numbers)


def _codes_key(scheme: ClassScheme, method: str) -> str:
    if scheme.name == "clusters":
        return "clusters-" + hashlib.blake2b(str(scheme.colors).encode(), digest_size=4).hexdigest()
    return f"decoder-{decoding.DECODER_VERSION}" if method == "decoder" else method
