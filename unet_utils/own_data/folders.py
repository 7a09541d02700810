"""Photos and masks of your own: which photo has which labels, and a split brought to one size.

    mine/images/*.jpg  mine/masks/*.png  mine/classes.txt      the simple way
    mine/train/images/ ...  mine/val/images/ ...               with a split of your own

A mask has the name of its photo. What labelling tools write is read as it is, see `tools`.
"""

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image

from unet_utils.classes import ClassScheme, get_scheme
from unet_utils.dataset import build_arrays, hash_files, map_array, read_blocks
from unet_utils.frames import Frames
from unet_utils.own_data.masks import (
    MASK_ADVICE,
    Classes,
    ReadLabels,
    mask_reader,
    naming,
    read_classes,
    read_text,
)
from unet_utils.pictures import read_photo
from unet_utils.platform.files import PICTURES, list_folder, user_path

SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation")}
"""The folders of each split: tools name them differently."""
SHARE = 5
"""Without a split of your own, one photo of so many is for validation."""

Pairs = list[tuple[Path, Path]]


@dataclass(frozen=True)
class OwnData:
    """Photos, files with their labels, and classes.

    Attributes:
        folder: where they were found.
        scheme: turns the values of the masks into class indices.
        pairs: split -> photo and file with its labels, in the order that a person means.
        read_labels: reads such a file.
        more_files: others that decide the labels, such as the list of classes.
    """

    folder: Path
    scheme: ClassScheme
    pairs: dict[str, Pairs]
    read_labels: ReadLabels
    more_files: tuple[Path, ...] = ()

    def with_scheme(self, scheme: str | ClassScheme) -> "OwnData":
        """Return the same data with the classes that a model has learned, or of that name.

        Raises:
            ValueError: the masks have other classes, or no scheme that could be chosen.
        """
        if self.scheme.name != "own":  # full-size Cityscapes: all schemes fit but `clusters`
            if "clusters" in (scheme, getattr(scheme, "name", "")):
                raise ValueError("official labels have no colour clusters: choose another scheme")
            return replace(self, scheme=get_scheme(scheme))
        if isinstance(scheme, ClassScheme) and scheme != self.scheme:
            raise ValueError(
                f"the photos in {self.folder} have the classes {', '.join(self.scheme.names)}, the "
                f"model has {', '.join(scheme.names)}: use a model that was trained on them (with "
                "the same --size, if it had one)"
            )
        if isinstance(scheme, str) and scheme != "cityscapes19":  # the default
            raise ValueError(
                f"the photos in {self.folder} have classes of their own: leave the scheme {scheme} "
                "out (--scheme, SCHEME). A classes.json can merge and ignore classes"
            )
        return self

    def fingerprint(self, split: str, size: tuple[int, int]) -> str:
        """Return a hash of the files' names and contents, of the size, and of classes of one's own.

        The official schemes all read the same label ids, so they are not part of it.
        """
        scheme = self.scheme
        classes = (scheme.names, scheme.lookup, scheme.colors) if scheme.name == "own" else ()
        facts = repr((size, *classes))
        return hash_files((*chain.from_iterable(self.pairs[split]), *self.more_files), facts)


def images_and_masks(folder: Path) -> OwnData | None:
    """Return the data of a folder with `images/` and `masks/`, None if it has neither.

    Raises:
        FileNotFoundError: a photo without a mask, a mask without a photo, no list of classes.
        ValueError: the list of classes cannot be used.
    """
    parts = {split: split_folder(folder, split) for split in SPLITS}
    inner = {split: split_folder(folder / "images", split) for split in SPLITS}
    if all(part and (part / "images").is_dir() for part in parts.values()):
        places = {split: (part / "images", part / "masks") for split, part in parts.items() if part}
    elif all(inner.values()):
        masks = folder / "masks"
        places = {split: (part, masks / part.name) for split, part in inner.items() if part}
    elif (folder / "images").is_dir():
        places = {"all": (folder / "images", folder / "masks")}
    else:
        return None
    pairs = {}
    for split, (photos, masks) in places.items():
        advice = (
            f"{masks} needs a PNG for each photo of {photos}, with the same name. Photos may end "
            f"in {', '.join(PICTURES)}"
        )
        pairs[split] = pair_up(photos, masks, advice)
    if "all" in pairs:
        pairs = split_pairs(folder, pairs["all"])
    classes = read_classes(folder)
    if not classes:
        raise FileNotFoundError(
            f"{folder / 'classes.txt'} is missing: write the name of a class in each line, in the "
            "order of the masks' values (0, 1, 2, ...)"
        )
    return own_data(folder, classes, pairs)


def own_data(folder: Path, classes: Classes, pairs: dict[str, Pairs]) -> OwnData:
    """Return the data of photos whose labels are masks with these classes."""
    lists = [folder / name for name in ("classes.json", "classes.txt", "labelmap.txt")]
    more = tuple(path for path in lists if path.is_file())
    return OwnData(folder, classes.scheme(), pairs, mask_reader(classes), more)


def prepare_own_data(data: OwnData, split: str, cache: str | Path, size: tuple[int, int]) -> Frames:
    """Bring a split to one size, once; later calls map the result from disk.

    Args:
        data: from `sources`.
        split: `train` or `val`.
        cache: folder for the arrays, on a fast local disk.
        size: width and height of the frames, pixels.

    Raises:
        ValueError: a photo or a mask cannot be used; the message names it.
        OSError: not enough space for the arrays.
    """
    width, height = size
    pairs = data.pairs[split]
    fingerprint = data.fingerprint(split, size)
    folder = user_path(cache) / f"own-{split}-{fingerprint}"
    folder.mkdir(parents=True, exist_ok=True)
    photos_file = folder / "photos.npy"
    labels_file = folder / "labels.npy"
    shape = (len(pairs), height, width)

    def read(pair: tuple[Path, Path]) -> tuple[np.ndarray, np.ndarray]:
        return read_frame(data, *pair, size)

    def blocks(_: set[Path]) -> Iterator[tuple[slice, dict[Path, np.ndarray]]]:
        for where, photos, labels in read_blocks(read, pairs, 16, f"preparing {split}", "photo"):
            yield where, {photos_file: photos, labels_file: labels}

    build_arrays({photos_file: (*shape, 3), labels_file: shape}, blocks)
    return Frames(
        map_array(photos_file),
        map_array(labels_file),
        data.scheme,
        numbers=_numbers([photo for photo, _ in pairs]),
        data=fingerprint,
        labels="own",
    )


def _numbers(photos: list[Path]) -> tuple[int, ...]:
    """Return the numbers that are the photos' names; 1, 2, 3 and so on if not all are numbers."""
    numbers = tuple(int(photo.stem) for photo in photos if photo.stem.isdecimal())
    return numbers if len(set(numbers)) == len(photos) else tuple(range(1, len(photos) + 1))


def read_frame(
    data: OwnData, photo_file: Path, label_file: Path, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return a photo and its labels, squeezed or stretched to one width and height.

    Labels are resized by the nearest pixel, so that classes never mix.

    Returns:
        `uint8 [H, W, 3]` and `uint8 [H, W]`.

    Raises:
        ValueError: one of them cannot be read, their sizes differ, or a label is in no class; the
            message names the file.
    """
    photo = Image.fromarray(read_photo(photo_file, whole=True))  # as `predict` reads it
    labels = data.read_labels(label_file, photo.size)
    if labels.shape != (photo.height, photo.width):
        is_turned = labels.shape == (photo.width, photo.height)
        turned = " Is the photo turned by its EXIF orientation, and the mask not?" * is_turned
        raise ValueError(
            f"{label_file} has {labels.shape[1]}x{labels.shape[0]} pixels, its photo "
            f"{photo_file.name} has {photo.width}x{photo.height}. {MASK_ADVICE}{turned}"
        )
    resized = Image.fromarray(labels).resize(size, Image.Resampling.NEAREST)
    return np.asarray(photo.resize(size, Image.Resampling.BICUBIC)), np.asarray(resized)


def pair_up(photos: Path, masks: Path, advice: str, needs_all: bool = True) -> Pairs:
    """Return each photo of a folder with its mask, which has the same name and the same place in
    the folder of the masks; for `a.jpg`, `a.png` or `a.jpg.png`. If not all need one, photos
    without a mask are left out.

    Raises:
        FileNotFoundError: one of them is alone, or there is none; the message names it.
        ValueError: two masks have the same name.
    """
    mask_of: dict[str, Path] = {}
    for path in pictures(masks):
        first = mask_of.setdefault(_one_form(path.relative_to(masks).with_suffix("")), path)
        if first != path:
            raise ValueError(f"{first} and {path} are masks of one photo: take one of them out")
    pairs = []
    for path in pictures(photos):
        name = path.relative_to(photos)
        keys = map(_one_form, (name.with_suffix(""), name))
        if mask := next((mask_of.pop(key) for key in keys if key in mask_of), None):
            pairs.append((path, mask))
        elif needs_all:
            raise FileNotFoundError(f"{path} has no mask: {advice}")
    if mask_of:
        raise FileNotFoundError(f"{next(iter(mask_of.values()))} belongs to no photo: {advice}")
    if not pairs:
        raise FileNotFoundError(f"there is no photo: {advice}")
    return pairs


def _one_form(name: str | Path) -> str:
    """Return a name with one code for each letter: macOS may write "ü" as "u" and two dots."""
    return unicodedata.normalize("NFC", str(name))


def split_pairs(folder: Path, pairs: Pairs) -> dict[str, Pairs]:
    """Split pairs by the names in `val.txt`, else take the last ones for validation.

    A name may have a suffix and, where several folders hold photos of this name, folders.

    Raises:
        FileNotFoundError: `val.txt` names a photo that is not there.
        ValueError: nothing is left for a split.
    """
    file = folder / "val.txt"
    if file.is_file():
        with naming(file):
            lines = [line.strip() for line in read_text(file).splitlines()]
        photos_of: dict[str, set[Path]] = {}
        for photo, _ in pairs:
            for name in (photo.name, photo.stem):
                photos_of.setdefault(_one_form(name), set()).add(photo)
        wanted: set[Path] = set()
        for line in filter(None, lines):
            path = Path(_one_form(line.replace("\\", "/")))
            # A name without a suffix may have dots, too.
            found = photos_of.get(path.name) or photos_of.get(path.stem, set())
            if len(found) > 1 and path.parent.name:
                ending = f"/{path.parent.as_posix()}"
                found = {p for p in found if _one_form(p.parent.as_posix()).endswith(ending)}
            if not found:
                raise FileNotFoundError(f"{file} names {line}, but there is no such photo")
            wanted |= found
        val = [pair for pair in pairs if pair[0] in wanted]
        train = [pair for pair in pairs if pair[0] not in wanted]
    else:
        count = max(1, len(pairs) // SHARE)
        train = pairs[:-count]
        val = pairs[-count:]
        print(
            f"No split in {folder}: the last {count} of {len(pairs)} photos are for validation. If "
            "photos that look alike (of one street or one video) are in both parts, scores are "
            "too good: then name those for validation in val.txt, one in each line"
        )
    if not train or not val:
        raise ValueError(
            f"{folder} has {len(train)} photos to learn from and {len(val)} to score: each needs "
            "one or more"
        )
    return {"train": train, "val": val}


def split_folder(folder: Path, split: str) -> Path | None:
    """Return the folder of a split, under any of its names; None if there is none."""
    return next((folder / name for name in SPLITS[split] if (folder / name).is_dir()), None)


def pictures(folder: Path) -> list[Path]:
    """Return the pictures in a folder and in those inside it, in natural order; none if there is no
    such folder."""
    found = []
    for path in list_folder(folder):
        if path.is_dir():
            found += pictures(path)
        elif path.suffix.lower() in PICTURES:
            found.append(path)
    return found
