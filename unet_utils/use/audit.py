"""Labels restored from masks beside official Cityscapes labels, for those who have some.

Official label files (`*_gtFine_labelIds.png`) come from https://www.cityscapes-dataset.com after
registration.
"""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from unet_utils.classes import ClassScheme, get_scheme
from unet_utils.dataset import read_pair
from unet_utils.frames import Frames
from unet_utils.metrics import ConfusionMatrix
from unet_utils.platform.files import user_path
from unet_utils.restoring import SIDE, restore_labels
from unet_utils.use.reports import markdown_table


class Audit(NamedTuple):
    """The result of `audit`. Its methods are `nearest`, `restored`, and `bound`: the label that
    covers most of a cell.

    Attributes:
        frames: number of frames that were compared.
        names: the 19 evaluated classes.
        iou: per method, the IoU of each class over the pixels whose true label is not void; NaN for
            a class that the truth does not have.
        miou: per method, the mean of the classes' IoU.
        agreement: per method, the share of pixels with the right class, where void counts as one
            more class.
    """

    frames: int
    names: tuple[str, ...]
    iou: dict[str, list[float]]
    miou: dict[str, float]
    agreement: dict[str, float]

    @property
    def table(self) -> str:
        """A Markdown table of classes and methods, in percent."""
        shares = dict(zip(self.names, zip(*self.iou.values(), strict=True), strict=True))
        shares["mean"] = tuple(self.miou.values())
        shares["pixels agreeing"] = tuple(self.agreement.values())
        rows = [(name, *map(_percent, values)) for name, values in shares.items()]
        return markdown_table(["IoU, %", *self.iou], rows)


def audit(official_folder: str | Path, pairs_root: str | Path) -> Audit:
    """Compare labels restored from masks with official labels, in the 19 evaluated classes.

    Args:
        official_folder: holds official `*_labelIds.png` files and `pairs.csv` (see
            `read_official`).
        pairs_root: the pairs' folder, which holds `train/` and `val/`.

    Raises:
        FileNotFoundError: `pairs.csv`, a label file or a pair is missing.
        ValueError: `pairs.csv` or a label file is not what it should be.
    """
    scheme = get_scheme("cityscapes19")
    # Void becomes a class of its own: to call a car void is an error.
    void = scheme.num_classes
    matrices = {name: ConfusionMatrix(void + 1) for name in ("nearest", "restored", "bound")}
    frames = 0
    for _, _, mask, official in read_official(official_folder, pairs_root):
        truth = scheme.encode(label_at_centers(official))
        found = {
            "nearest": restore_labels(mask[None], scheme, "nearest")[0],
            "restored": restore_labels(mask[None], scheme)[0],
            "bound": scheme.encode(label_of_most(official)),
        }
        for name, classes in found.items():
            matrices[name].update(np.minimum(classes, void), np.minimum(truth, void))
        frames += 1
    agreement = {name: matrix.pixel_accuracy for name, matrix in matrices.items()}
    for matrix in matrices.values():
        matrix.matrix[void] = 0  # the IoU leaves out the pixels whose true label is void
    return Audit(
        frames,
        scheme.names,
        {name: matrix.iou[:void].tolist() for name, matrix in matrices.items()},
        {name: matrix.mean_iou for name, matrix in matrices.items()},
        agreement,
    )


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
    found = list(read_official(official_folder, pairs_root))
    photos = np.stack([photo for _, photo, _, _ in found])
    label_ids = np.stack([label_at_centers(official) for _, _, _, official in found])
    numbers = tuple(number for number, _, _, _ in found)
    return Frames(torch.from_numpy(photos), torch.from_numpy(label_ids), scheme, numbers)


def read_official(
    official_folder: str | Path, pairs_root: str | Path
) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """Yield the frames that `pairs.csv` in the official folder names: each row has a label file and
    the pair that it belongs to.

    Yields:
        file number, photo, mask (`uint8 [256, 256, 3]` both), official labels (`uint8 [H, W]`).

    Raises:
        FileNotFoundError: there is no `pairs.csv`, or a file is missing.
        ValueError: `pairs.csv` has other columns than `label_file,pair_file`, or no row; or a file
            is damaged.
    """
    folder = user_path(official_folder)
    list_of_pairs = folder / "pairs.csv"
    if not list_of_pairs.is_file():
        raise FileNotFoundError(
            f"{list_of_pairs} is missing. The audit needs a folder with official "
            "*_gtFine_labelIds.png files and a pairs.csv that says which pair each one belongs to: "
            "a header line 'label_file,pair_file', then lines such as "
            "'aachen_000000_000019_gtFine_labelIds.png,train/1.jpg'. Pairs are numbered in the "
            "alphabetical order of the official names, train and val each from 1."
        )
    # Excel writes a byte order mark at the beginning.
    with list_of_pairs.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"label_file", "pair_file"} <= set(rows[0]):
        raise ValueError(
            f"{list_of_pairs} must have the columns label_file,pair_file and at least one row"
        )
    for row in rows:
        path = folder / row["label_file"]
        try:
            with Image.open(path) as image:
                label_ids = np.asarray(image)
        except FileNotFoundError:
            raise FileNotFoundError(f"{path} is missing, although pairs.csv names it") from None
        except (OSError, SyntaxError) as error:
            raise ValueError(
                f"{path} cannot be read as a PNG ({error}): get this file again"
            ) from error
        photo, mask = read_pair(user_path(pairs_root) / row["pair_file"])
        yield int(Path(row["pair_file"]).stem), photo, mask, label_ids


def label_at_centers(label_ids: np.ndarray) -> np.ndarray:
    """Return the label at the centre of each mask pixel's source cell: the most frequent one of the
    cell's central 2x2, of equally frequent ones the smallest.

    Args:
        label_ids: official labels, `uint8 [H, W]`; the sides are even multiples of 256 (1024 x
            2048).

    Returns:
        `uint8 [256, 256]`.
    """
    cells = _cells(label_ids)
    row = cells.shape[2] // 2
    column = cells.shape[3] // 2
    return _most_frequent(cells[:, :, row - 1 : row + 1, column - 1 : column + 1])


def label_of_most(label_ids: np.ndarray) -> np.ndarray:
    """Return the most frequent label of each mask pixel's source cell; otherwise like
    `label_at_centers`."""
    return _most_frequent(_cells(label_ids))


def _cells(label_ids: np.ndarray) -> np.ndarray:
    """Return the source cell of each mask pixel, `[H, W] -> [256, 256, H / 256, W / 256]`."""
    if label_ids.ndim != 2 or any(side == 0 or side % (2 * SIDE) for side in label_ids.shape):
        raise ValueError(
            f"official labels must have sides that are even multiples of {SIDE}, got "
            f"{label_ids.shape}"
        )
    return label_ids.reshape(SIDE, label_ids.shape[0] // SIDE, SIDE, -1).transpose(0, 2, 1, 3)


def _most_frequent(cells: np.ndarray) -> np.ndarray:
    values = cells.reshape(SIDE, SIDE, -1)
    counts = (values[..., :, None] == values[..., None, :]).sum(-1)
    return np.where(counts == counts.max(-1, keepdims=True), values, 255).min(-1).astype(np.uint8)


def _percent(share: float) -> str:
    return "–" if np.isnan(share) else f"{100 * share:.1f}"
