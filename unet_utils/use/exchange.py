"""Labels and predictions as PNG files: the truth taken along, and any framework's predictions
scored.

A file is one frame and has the frame's number as its name: `val/1.png`. A pixel is a number, never
a colour.
"""

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from unet_utils.checkpoints import made_by
from unet_utils.classes import IGNORE, LABELS, ClassScheme
from unet_utils.evaluation import frame_matrices
from unet_utils.frames import Frames
from unet_utils.metrics import ConfusionMatrix
from unet_utils.platform.environment import progress_bar
from unet_utils.platform.files import (
    list_folder,
    make_backup_folder,
    publishing,
    some_of,
    user_path,
)
from unet_utils.platform.version import commit, version
from unet_utils.sources import Source

IDS = ("class", "official")
"""What the numbers in predictions are: class indices, or official label ids."""
SUMS = "SHA256SUMS"
PNG_ADVICE = (
    "Save the numbers of the classes, before they are coloured, as a grey PNG: "
    'Image.fromarray(classes.astype("uint8")).save("1.png")'
)


def export_folder(folder: str | Path) -> Path:
    """Return the absolute path of a folder for an export.

    Raises:
        FileExistsError: something is there already, other than an empty folder.
    """
    folder = user_path(folder)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise FileExistsError(f"{folder} is there already: name a new folder with --export")
    return folder


def export_labels(folder: str | Path, source: Source, splits: dict[str, Frames]) -> Path:
    """Write the labels of each split as PNG files, `FOLDER/train/1.png` and so on.

    The numbers in them are official label ids, whatever the class scheme: the labels are restored
    to ids, other tools know them, and a scheme can be made from ids but ids not from a scheme,
    which leaves labels out or merges them. There are two exceptions: the classes of the scheme
    `clusters` have no ids, so its class indices are written (255 for void); and photos of your own
    keep the values of their masks.

    `classes.json` says what each number is, and for photos of your own which photo a file belongs
    to. `sha256sum -c SHA256SUMS`, run in the folder, checks the files. Another version of Pillow
    may pack the same labels into other bytes: to compare the labels of two machines, compare
    `hashes` in `classes.json`.

    Args:
        folder: made when everything is written; it must be new or empty.
        source: where the frames are from.
        splits: the frames of each split.

    Returns:
        The folder.

    Raises:
        FileExistsError: there is something in the folder; it is not touched.
        OSError: it cannot be written.
    """
    folder = export_folder(folder)
    make_backup_folder(folder.parent)
    sums = ""
    with publishing(folder) as unfinished:
        for split, frames in splits.items():
            (unfinished / split).mkdir()
            bar = progress_bar(iterable=frames.numbers, desc=f"writing {split}", unit="frame")
            for number, label_ids in zip(bar, frames.label_ids, strict=True):
                values = label_ids.cpu().numpy()
                if frames.scheme.name == "clusters":
                    values = frames.scheme.encode(values)
                name = f"{split}/{number}.png"
                Image.fromarray(values).save(unfinished / name)
                sums += f"{hashlib.sha256((unfinished / name).read_bytes()).hexdigest()}  {name}\n"
        facts = json.dumps(_description(source, splits), indent=1, ensure_ascii=False)
        (unfinished / "classes.json").write_text(facts + "\n", encoding="utf-8")
        (unfinished / SUMS).write_bytes(sums.encode())
        with suppress(OSError):
            folder.rmdir()  # an empty one: Windows does not rename another folder to its name
    written = folder / SUMS
    if not written.is_file() or written.read_bytes() != sums.encode():
        raise FileExistsError(f"{folder} was filled by something else meanwhile: name a new folder")
    return folder


def _description(source: Source, splits: dict[str, Frames]) -> dict:
    """Return what `classes.json` says."""
    frames = next(iter(splits.values()))
    scheme = frames.scheme
    if scheme.name == "clusters":
        values = "class indices of the scheme clusters"
        classes = [_row(index, name, index) for index, name in enumerate(scheme.names)]
    elif scheme.name == "own":
        values = "the values of the masks"
        used = [(value, index) for value, index in enumerate(scheme.lookup) if index != IGNORE]
        classes = [_row(value, scheme.names[index], index) for value, index in used]
    else:
        values = "official Cityscapes label ids"
        classes = [_row(label.id, label.name, scheme.lookup[label.id]) for label in LABELS]
    facts: dict = {
        "values": values,
        "labels": frames.labels,
        "scheme": scheme.name,
        "about class": "index in this scheme; 255, or a value that is not here: void, no class",
        "classes": classes,
        "hashes": {split: part.label_hash() for split, part in splits.items()},
        "made_by": {"version": version(), "commit": commit()},
    }
    if source.own:
        facts["photos"] = {}
        for split, part in splits.items():
            names = [photo.name for photo, _ in source.own.pairs[split]]
            facts["photos"][split] = dict(zip(part.numbers, names, strict=True))
    if frames.licence:
        facts["licence"] = licence_sentence(frames.licence)
    return facts


def _row(value: int, name: str, index: int) -> dict:
    return {"value": value, "name": name, "class": index}


def licence_sentence(licence: str) -> str:
    """Return what may be done with labels of data under this licence, see `Frames.licence`."""
    return f"{licence}; the labels may not be passed on."


def score_predictions(
    folder: str | Path,
    frames: Frames,
    ids: str,
    progress: str = "",
    names: Sequence[str] = (),
) -> tuple[list[ConfusionMatrix], dict]:
    """Compare predictions from anywhere, PNG files, with the labels of a validation split.

    Pictures of another size are brought to the size of the labels: each pixel takes the value of
    the prediction at its centre, so that classes never mix.

    255, and an official id that the scheme has no class for (such as static), are no answer. The
    official evaluation counts these as wrong where the truth has a class, and so does this: a
    network that learned more labels than are scored gives such ids, and leaving their pixels out
    would reward not answering. A line says how many pixels these are.

    Args:
        folder: holds a PNG for each frame, named by its number (`1.png`, `000001.png`) or as in
            `names`, or has them in a folder `val`.
        frames: the truth. `frames.scheme` has the classes.
        ids: what the numbers in the files are: `class` (indices in the scheme) or `official` (label
            ids; for photos of your own, the values of their masks).
        progress: title of a progress bar; empty for none.
        names: other names of the frames, such as those of their photos.

    Returns:
        One confusion matrix per frame. What made the score: `predictions` (name of the folder),
        `ids`, a `hash` of the classes that were compared, `labels` (hash of the truth), and the
        `version`, `commit` and `date` of the comparison.

    Raises:
        FileNotFoundError: no such folder, or a frame without a prediction.
        ValueError: a file that is no PNG, holds colours, or numbers that are no class; the message
            names it.
    """
    folder = user_path(folder)
    files = _prediction_files(folder, frames.numbers, names)
    table = _class_table(frames, ids)
    height, width = frames.label_ids.shape[1:]
    digest = hashlib.blake2b(digest_size=8)
    matrices: list[ConfusionMatrix] = []
    largest = 0
    order = zip(files, frames.label_ids, strict=True)
    for file, label_ids in progress_bar(
        iterable=order, total=len(files), desc=progress, unit="frame", disable=not progress
    ):
        values = _read_values(file, table, frames.scheme, ids)
        largest = max(largest, int(values[values != IGNORE].max(initial=0)))
        resized = Image.fromarray(values).resize((width, height), Image.Resampling.NEAREST)
        predicted = table[np.asarray(resized)].astype(np.uint8)
        digest.update(predicted.tobytes())
        truth = frames.scheme.encode(label_ids.cpu().numpy())
        matrices += frame_matrices(
            predicted[None], truth[None], frames.scheme.num_classes, no_answer=True
        )
    _print_doubts(matrices, frames.scheme, ids, largest)
    made = made_by("cpu", frames.label_hash())
    facts = {key: made[key] for key in ("version", "commit", "date", "labels")}
    facts |= {"predictions": folder.name, "ids": ids, "hash": digest.hexdigest()}
    return matrices, facts


def _prediction_files(folder: Path, numbers: tuple[int, ...], names: Sequence[str]) -> list[Path]:
    """Return the file of each frame; name all other files in one line."""
    if not folder.is_dir():
        raise FileNotFoundError(
            f"there is no folder {folder}: --predictions names one of PNG files"
        )
    if (folder / "val").is_dir():
        folder = folder / "val"
    names = names or [str(number) for number in numbers]
    number_of = dict(zip(names, numbers, strict=True))
    found: dict[int, Path] = {}
    others = []
    for path in list_folder(folder):
        number = int(path.stem) if path.stem.isdecimal() else number_of.get(path.stem)
        if path.suffix.lower() != ".png" or number not in numbers:
            others.append(path.name)
        elif (first := found.setdefault(number, path)) != path:
            raise ValueError(f"{first} and {path} are predictions for the same frame: remove one")
    if others:
        print(f"Not used in {folder}: {some_of(others)}")
    if missing := [
        name for name, number in zip(names, numbers, strict=True) if number not in found
    ]:
        wanted = some_of([f"{name}.png" for name in missing])
        raise FileNotFoundError(
            f"{folder} has no prediction for {len(missing)} of {len(numbers)} frames: "
            f"{wanted}. Each frame needs a PNG file of this name"
        )
    return [found[number] for number in numbers]


def _class_table(frames: Frames, ids: str) -> np.ndarray:
    """Return the class of each value, `int16 [256]`; `IGNORE` for no answer, -1 for a mistake."""
    scheme = frames.scheme
    table = np.full(256, -1, dtype=np.int16)
    table[IGNORE] = IGNORE
    if ids == "class":
        table[: scheme.num_classes] = range(scheme.num_classes)
        return table
    if ids != "official":
        raise ValueError(f"ids is {ids!r}: choose one of {', '.join(IDS)}")
    if scheme.name == "clusters":
        raise ValueError("the classes of the scheme clusters have no official ids: use --ids class")
    if scheme.name == "own":
        # Values of classes that are ignored occur in the masks, and are void.
        table[frames.label_counts().numpy() > 0] = IGNORE
    else:
        table[[label.id for label in LABELS]] = IGNORE
    lookup = np.array(scheme.lookup)
    return np.where(lookup == IGNORE, table, lookup)


def _read_values(file: Path, table: np.ndarray, scheme: ClassScheme, ids: str) -> np.ndarray:
    """Return the numbers in a PNG file, `uint8 [H, W]`."""
    try:
        with Image.open(file, formats=["PNG"]) as image:
            mode = image.mode
            pixels = np.asarray(image)
    except Exception as error:  # Pillow has many errors for damaged files
        raise ValueError(f"{file} cannot be read as a PNG ({error}). {PNG_ADVICE}") from error
    if pixels.ndim > 2:
        raise ValueError(f"{file} holds colours ({mode}), not numbers. {PNG_ADVICE}")
    # A file of 16 bits may hold small numbers. In a palette, the numbers are its indices.
    found = np.unique(pixels).astype(int)
    unknown = found[(found > IGNORE) | (table[found.clip(0, IGNORE)] == -1)].tolist()
    if not unknown:
        return pixels.astype(np.uint8)
    some = ", ".join(map(str, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
    if ids == "class":
        known = f"class indices of {scheme.name} are 0 to {scheme.num_classes - 1}"
        other = "official"
    else:
        known = "the masks do not have it" if scheme.name == "own" else "official ids are 0 to 33"
        other = "class"
    raise ValueError(
        f"{file} holds {some}: {known}, and 255 is no answer. Check what your numbers are (is it "
        f"--ids {other}?), and do not scale, blur or compress them"
    )


def _print_doubts(
    matrices: list[ConfusionMatrix], scheme: ClassScheme, ids: str, largest: int
) -> None:
    """Print what a person should know who reads the score."""
    counts = torch.stack([matrix.matrix for matrix in matrices]).sum(0)
    unanswered = counts[:, -1].sum().item()
    if unanswered:
        print(
            f"{unanswered} labelled pixels ({unanswered / counts.sum().item():.2%}) have no answer "
            "(255, or an id without a class): they count as wrong"
        )
    if ids == "official" and scheme.name != "own" and largest < 19:
        print(
            f"Warning: the largest id in these predictions is {largest}, but vegetation is 21, sky "
            "23 and car 26. If the numbers are class indices, use --ids class"
        )
