"""The pairs: files on disk, then arrays prepared once, then batches on the device.

`CityscapesPairs` reads one file at a time. `prepare` runs through a split once and keeps photos and label codes as
memory-mapped `uint8` arrays, so that an epoch never touches a JPEG again. `Frames` is what training and evaluation
take their batches from.
"""

import hashlib
import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from unet_utils import decoding
from unet_utils.classes import ClassScheme, get_scheme
from unet_utils.decoding import SIDE
from unet_utils.download import find_pairs
from unet_utils.environment import beside, progress_bar, require_space

HELD_OUT_CITIES = range(2712, 2976)
"""File numbers of weimar and zurich, the last two training cities: files are numbered in the alphabetical order of
the cities. Choices are made on them, so that the validation frames are only looked at in the end."""


def read_pair(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Reads one pair.

    Returns:
        photo and mask, each `uint8 [256, 256, 3]`.

    Raises:
        ValueError: the file is not a complete 512x256 RGB JPEG; the message names it and the next step.
    """
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
            pixels = np.asarray(image)
    except OSError as error:  # Pillow's word for empty, truncated and foreign files alike
        raise ValueError(f"{path} cannot be read as a JPEG ({error}). {advice}") from error
    return pixels[:, :SIDE], pixels[:, SIDE:]


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

    def blocks(self, size: int = 64, progress: str = "") -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
        """Runs through all pairs in order: yields `(where, photos, masks)`, `uint8 [n, 256, 256, 3]` each.

        Files are decoded in as many threads as there are cores (Pillow works outside Python's lock).
        """
        with (
            ThreadPoolExecutor(os.cpu_count()) as pool,
            progress_bar(total=len(self), desc=progress, unit="pair", disable=not progress) as bar,
        ):
            for start in range(0, len(self), size):
                pairs = list(pool.map(read_pair, self.paths[start : start + size]))
                photos, masks = (np.stack(halves) for halves in zip(*pairs, strict=True))
                yield slice(start, start + len(pairs)), photos, masks
                bar.update(len(pairs))

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
        photos: `uint8 [N, 256, 256, 3]`.
        codes: label codes, `uint8 [N, 256, 256]`.
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
        photos = self.photos[where].to(device, non_blocking=True).permute(0, 3, 1, 2)
        lookup = torch.tensor(self.scheme.lookup, dtype=torch.uint8, device=device)
        return photos, lookup[self.codes[where].to(device, non_blocking=True).int()]

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
        blocks = (self.codes[start : start + 256] for start in range(0, len(self), 256))
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
        np.save(beside(codes_file), np.load(kept_file)["codes"])
        os.replace(beside(codes_file), codes_file)
    wanted = {photos_file: (len(pairs), SIDE, SIDE, 3), codes_file: (len(pairs), SIDE, SIDE)}
    missing = {file: shape for file, shape in wanted.items() if not file.exists()}
    if missing:
        # Asked beforehand: a memory map on a full disk does not fail, it ends the process.
        require_space(cache, sum(math.prod(shape) for shape in missing.values()))
        arrays = {
            file: np.lib.format.open_memmap(beside(file), "w+", np.uint8, shape) for file, shape in missing.items()
        }
        for where, photos, masks in pairs.blocks(progress=f"preparing {split}" if progress else ""):
            if photos_file in arrays:
                arrays[photos_file][where] = photos
            if codes_file in arrays:
                arrays[codes_file][where] = decoding.label_codes(masks, scheme, method)
        for file, array in arrays.items():
            array.flush()
            os.replace(beside(file), file)  # only a finished array ever has its final name
    codes = np.load(codes_file, mmap_mode="c")
    if kept_file and not kept_file.exists():
        kept_file.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(beside(kept_file), codes=codes)
        os.replace(beside(kept_file), kept_file)
    # Mode "c" (copy on write) lets torch share the pages without ever changing the file.
    photos = np.load(photos_file, mmap_mode="c")
    numbers = tuple(int(path.stem) for path in pairs.paths)
    return Frames(torch.from_numpy(photos), torch.from_numpy(codes), scheme, numbers)


def _codes_key(scheme: ClassScheme, method: str) -> str:
    if scheme.name == "clusters":
        return "clusters-" + hashlib.blake2b(str(scheme.colors).encode(), digest_size=4).hexdigest()
    return f"decoder-{decoding.DECODER_VERSION}" if method == "decoder" else method
