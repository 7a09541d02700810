"""Compare labels recovered from the masks with official Cityscapes labels, for those who have some.

Official label files (`*_gtFine_labelIds.png`) come from https://www.cityscapes-dataset.com after
registration."""

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from unet_utils.classes import ClassScheme, get_scheme
from unet_utils.dataset import read_pair
from unet_utils.frames import Frames
from unet_utils.metrics import ConfusionMatrix
from unet_utils.platform.files import user_path
from unet_utils.restoring import SIDE, restore_labels


def label_at_centers(label_ids: np.ndarray) -> np.ndarray:
    """Return the label at the centre of each mask pixel's source cell: the mode of the cell's
    central 2x2.

    Args:
        label_ids: official labels, `uint8 [H, W]`; the sides are even multiples of 256 (1024 x
            2048).

    Returns:
        `uint8 [256, 256]`; of equally frequent labels the smallest.
    """
    cells = _cells(label_ids)
    middle_row, middle_column = cells.shape[2] // 2, cells.shape[3] // 2
    center = cells[:, :, middle_row - 1 : middle_row + 1, middle_column - 1 : middle_column + 1]
    return _mode(center.reshape(SIDE, SIDE, 4))


def label_of_most(label_ids: np.ndarray) -> np.ndarray:
    """Return the most frequent label of each mask pixel's source cell; otherwise like
    `label_at_centers`."""
    return _mode(_cells(label_ids).reshape(SIDE, SIDE, -1))


def _cells(label_ids: np.ndarray) -> np.ndarray:
    """Return the source cell of each mask pixel, `[H, W] -> [256, 256, H / 256, W / 256]`."""
    rows, columns = label_ids.shape[0] // SIDE, label_ids.shape[1] // SIDE
    if (
        label_ids.shape != (rows * SIDE, columns * SIDE)
        or rows % 2
        or columns % 2
        or 0 in (rows, columns)
    ):
        raise ValueError(
            f"official labels must have sides that are even multiples of {SIDE}, got {label_ids.shape}"
        )
    return label_ids.reshape(SIDE, rows, SIDE, columns).transpose(0, 2, 1, 3)


def _mode(values: np.ndarray) -> np.ndarray:
    """Return the most frequent value along the last axis, the smallest of equally frequent ones."""
    counts = (values[..., :, None] == values[..., None, :]).sum(-1)
    return np.where(counts == counts.max(-1, keepdims=True), values, 255).min(-1).astype(np.uint8)


@dataclass(frozen=True)
class Audit:
    """The result of `audit`. Shares are between 0 and 1.

    Attributes:
        frames: number of frames that were compared.
        names: the 19 evaluated classes.
        iou: per method, the IoU of each class over the pixels whose true label is not void; NaN for
            a class that the truth does not have. Methods: `nearest`, `restored`, and `bound`, the
            label that covers most of a cell.
        miou: per method, the mean of the classes' IoU.
        agreement: per method, the share of pixels with the right class, where void counts as one
            more class.
    """

    frames: int
    names: tuple[str, ...]
    iou: dict[str, tuple[float, ...]]
    miou: dict[str, float]
    agreement: dict[str, float]

    def __str__(self) -> str:
        """Return the table of classes and methods, in percent."""
        methods = list(self.iou)
        lines = [
            f"IoU against the official labels of {self.frames} frames, %",
            " " * 15 + _row(methods),
        ]
        for index, name in enumerate(self.names):
            lines.append(
                f"{name:15s}" + _row(_percent(self.iou[method][index]) for method in methods)
            )
        lines.append(f"{'mean':15s}" + _row(_percent(self.miou[method]) for method in methods))
        lines.append(
            f"{'pixels agreeing':15s}"
            + _row(_percent(self.agreement[method]) for method in methods)
        )
        return "\n".join(lines)


def _row(cells: Iterable[str]) -> str:
    return "".join(f"{cell:>10s}" for cell in cells)


def _percent(share: float) -> str:
    return "-" if np.isnan(share) else f"{100 * share:.1f}"


def read_table(official_folder: str | Path) -> list[tuple[str, str]]:
    """Return the rows of the folder's `pairs.csv`: the name of a label file, and the pair that it
    belongs to.

    Raises:
        FileNotFoundError: there is no `pairs.csv`.
        ValueError: it has other columns than `label_file,pair_file`, or no row.
    """
    table = user_path(official_folder) / "pairs.csv"
    if not table.is_file():
        raise FileNotFoundError(
            f"{table} is missing. The audit needs a folder with official *_gtFine_labelIds.png files and a pairs.csv "
            "that says which pair each one belongs to: a header line 'label_file,pair_file', then lines such as "
            "'aachen_000000_000019_gtFine_labelIds.png,train/1.jpg'. Pairs are numbered in the alphabetical order of "
            "the official names, train and val each from 1."
        )
    with table.open(newline="", encoding="utf-8-sig") as file:  # Excel writes a byte order mark
        rows = list(csv.DictReader(file))
    if not rows or not {"label_file", "pair_file"} <= set(rows[0]):
        raise ValueError(f"{table} must have the columns label_file,pair_file and at least one row")
    return [(row["label_file"], row["pair_file"]) for row in rows]


def read_official(
    official_folder: str | Path, pairs_root: str | Path
) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """Yield the frames of `pairs.csv`: file number, photo, mask (`uint8 [256, 256, 3]`) and
    official labels (`[H, W]`).

    Raises:
        FileNotFoundError, ValueError: as `read_table`; or a file is missing or damaged.
    """
    for label_file, pair_file in read_table(official_folder):
        path = user_path(official_folder) / label_file
        try:
            with Image.open(path) as image:
                label_ids = np.asarray(image)
        except FileNotFoundError:
            raise FileNotFoundError(f"{path} is missing, although pairs.csv names it") from None
        except (OSError, SyntaxError) as error:
            raise ValueError(
                f"{path} cannot be read as a PNG ({error}): get this file again"
            ) from error
        photo, mask = read_pair(user_path(pairs_root) / pair_file)
        yield int(Path(pair_file).stem), photo, mask, label_ids


def official_frames(
    official_folder: str | Path, pairs_root: str | Path, scheme: ClassScheme
) -> Frames:
    """Return the pairs that have official labels, with these as the truth: to score a model without
    any restoring.

    Args:
        official_folder, pairs_root: as in `audit`.
        scheme: the model's classes; not `clusters`, because official labels have no clusters.

    Raises:
        FileNotFoundError, ValueError: as in `audit`; or the scheme is `clusters`.
    """
    if scheme.name == "clusters":
        raise ValueError(
            "official labels have no colour clusters: score a model of another class scheme on them"
        )
    photos, label_ids, numbers = [], [], []
    for number, photo, _, official in read_official(official_folder, pairs_root):
        photos.append(photo)
        label_ids.append(label_at_centers(official))
        numbers.append(number)
    return Frames(
        torch.from_numpy(np.stack(photos)),
        torch.from_numpy(np.stack(label_ids)),
        scheme,
        tuple(numbers),
    )


def audit(official_folder: str | Path, pairs_root: str | Path) -> Audit:
    """Compare labels recovered from masks with official labels, in the 19 evaluated classes.

    Args:
        official_folder: holds official `*_labelIds.png` files and `pairs.csv` (see `read_table`).
        pairs_root: the pairs' folder, which holds `train/` and `val/`.

    Returns:
        An `Audit`; print it for the table.

    Raises:
        FileNotFoundError: `pairs.csv`, a label file or a pair is missing.
        ValueError: `pairs.csv` or a label file is not what it should be.
    """
    scheme, frames = get_scheme("cityscapes19"), 0
    void = scheme.num_classes
    methods = ("nearest", "restored", "bound")
    known = {
        method: ConfusionMatrix(void + 1) for method in methods
    }  # without the pixels whose truth is void
    whole = {method: ConfusionMatrix(void + 1) for method in methods}
    for _, _, mask, official in read_official(official_folder, pairs_root):
        frames += 1
        truth = scheme.encode(label_at_centers(official))
        found = {
            "nearest": restore_labels(mask[None], scheme, "nearest")[0],
            "restored": restore_labels(mask[None], scheme)[0],
            "bound": scheme.encode(label_of_most(official)),
        }
        for method, classes in found.items():
            classes = np.minimum(
                classes, void
            )  # void becomes a class of its own: calling a car void is an error
            known[method].update(classes, truth)
            whole[method].update(classes, np.minimum(truth, void))
    iou = {method: tuple(matrix.iou[:void].tolist()) for method, matrix in known.items()}
    return Audit(
        frames=frames,
        names=scheme.names,
        iou=iou,
        miou={method: float(np.nanmean(values)) for method, values in iou.items()},
        agreement={method: matrix.pixel_accuracy for method, matrix in whole.items()},
    )
