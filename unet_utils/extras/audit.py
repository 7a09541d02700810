"""How well labels recovered from the masks agree with official Cityscapes labels, for those who have some.

Official label files (`*_gtFine_labelIds.png`) come from https://www.cityscapes-dataset.com after registration.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from unet_utils.classes import IGNORE, ClassScheme, get_scheme
from unet_utils.dataset import Frames, read_pair
from unet_utils.decoding import SIDE, decode_label_ids, decode_masks
from unet_utils.metrics import ConfusionMatrix

THRESHOLDS = (0.5, 0.7, 0.8, 0.9)
"""Values of `min_probability` that the audit tries."""


def label_at_centers(label_ids: np.ndarray) -> np.ndarray:
    """The label at the centre of each mask pixel's source cell: the mode of the cell's central 2x2.

    Args:
        label_ids: official labels, `uint8 [H, W]`; the sides are even multiples of 256 (1024 x 2048).

    Returns:
        `uint8 [256, 256]`; of equally frequent labels the smallest.
    """
    cells = _cells(label_ids)
    middle_row, middle_column = cells.shape[2] // 2, cells.shape[3] // 2
    center = cells[:, :, middle_row - 1 : middle_row + 1, middle_column - 1 : middle_column + 1]
    return _mode(center.reshape(SIDE, SIDE, 4))


def label_of_most(label_ids: np.ndarray) -> np.ndarray:
    """The most frequent label of each mask pixel's source cell; as `label_at_centers` in all else."""
    return _mode(_cells(label_ids).reshape(SIDE, SIDE, -1))


def _cells(label_ids: np.ndarray) -> np.ndarray:
    rows, columns = label_ids.shape[0] // SIDE, label_ids.shape[1] // SIDE
    if label_ids.shape != (rows * SIDE, columns * SIDE) or rows % 2 or columns % 2 or 0 in (rows, columns):
        raise ValueError(f"official labels must have sides that are even multiples of {SIDE}, got {label_ids.shape}")
    return label_ids.reshape(SIDE, rows, SIDE, columns).transpose(0, 2, 1, 3)


def _mode(values: np.ndarray) -> np.ndarray:
    """The most frequent along the last axis, the smallest of equals."""
    counts = (values[..., :, None] == values[..., None, :]).sum(-1)
    return np.where(counts == counts.max(-1, keepdims=True), values, 255).min(-1).astype(np.uint8)


@dataclass(frozen=True)
class Audit:
    """What `audit` found. Shares are between 0 and 1.

    Attributes:
        frames: how many frames were compared.
        names: the 19 evaluated classes.
        iou: per method, IoU of each class (NaN where neither truth nor prediction has it), over the pixels whose
            truth is not void. Methods: `nearest`, `decoder`, and `bound`, the label that covers most of a cell.
        miou: per method, the mean of the classes' IoU.
        agreement: per method, the share of pixels with the right class, void being one more class.
        left_out: per threshold, the share of pixels that `decode_masks` leaves out with it as `min_probability`.
        agreement_of_rest: per threshold, the agreement of the others.
    """

    frames: int
    names: tuple[str, ...]
    iou: dict[str, tuple[float, ...]]
    miou: dict[str, float]
    agreement: dict[str, float]
    left_out: dict[float, float]
    agreement_of_rest: dict[float, float]

    def __str__(self) -> str:
        """The per-class table, and what leaving out doubtful pixels does, in percent."""
        methods = list(self.iou)
        lines = [f"IoU against the official labels of {self.frames} frames, %", " " * 15 + _row(methods)]
        for index, name in enumerate(self.names):
            lines.append(f"{name:15s}" + _row(_percent(self.iou[method][index]) for method in methods))
        lines.append(f"{'mean':15s}" + _row(_percent(self.miou[method]) for method in methods))
        lines.append(f"{'pixels agreeing':15s}" + _row(_percent(self.agreement[method]) for method in methods))
        lines += ["", f"{'min_probability':15s}" + _row(map(str, THRESHOLDS))]
        lines.append(f"{'pixels left out':15s}" + _row(f"{100 * self.left_out[t]:.2f}" for t in THRESHOLDS))
        lines.append(f"{'others agreeing':15s}" + _row(f"{100 * self.agreement_of_rest[t]:.2f}" for t in THRESHOLDS))
        return "\n".join(lines)


def _row(cells) -> str:
    return "".join(f"{cell:>10s}" for cell in cells)


def _percent(share: float) -> str:
    return "-" if np.isnan(share) else f"{100 * share:.1f}"


def read_pairs(official_folder: str | Path) -> list[tuple[str, str]]:
    """Which official label file belongs to which pair, from `pairs.csv` in the folder.

    Raises:
        FileNotFoundError: there is no `pairs.csv`.
        ValueError: it has other columns than `label_file,pair_file`, or no row.
    """
    table = Path(official_folder) / "pairs.csv"
    if not table.is_file():
        raise FileNotFoundError(
            f"{table} is missing. The audit needs a folder with official *_gtFine_labelIds.png files and a pairs.csv "
            "that says which pair each one belongs to: a header line 'label_file,pair_file', then lines such as "
            "'aachen_000000_000019_gtFine_labelIds.png,train/1.jpg'. Pairs are numbered in the alphabetical order of "
            "the official names, train and val each from 1."
        )
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"label_file", "pair_file"} <= set(rows[0]):
        raise ValueError(f"{table} must have the columns label_file,pair_file and at least one row")
    return [(row["label_file"], row["pair_file"]) for row in rows]


def official_frames(official_folder: str | Path, pairs_root: str | Path, scheme: ClassScheme) -> Frames:
    """The pairs that have official labels, with these as their truth: to score a model on, without any decoding.

    Args:
        official_folder, pairs_root: as in `audit`.
        scheme: the model's classes; not `clusters`, which official labels know nothing of.

    Raises:
        FileNotFoundError, ValueError: as in `audit`; or the scheme is `clusters`.
    """
    if scheme.name == "clusters":
        raise ValueError("official labels have no colour clusters: score a model of another class scheme on them")
    photos, codes, numbers = [], [], []
    for label_file, pair_file in read_pairs(official_folder):
        with Image.open(Path(official_folder) / label_file) as image:
            codes.append(label_at_centers(np.asarray(image)))
        photos.append(read_pair(Path(pairs_root) / pair_file)[0])
        numbers.append(int(Path(pair_file).stem))
    arrays = (torch.from_numpy(np.stack(array)) for array in (photos, codes))
    return Frames(*arrays, scheme, tuple(numbers))


def audit(official_folder: str | Path, pairs_root: str | Path) -> Audit:
    """Compares labels recovered from masks with official labels, in the 19 evaluated classes.

    Args:
        official_folder: holds official `*_labelIds.png` files and `pairs.csv` (see `read_pairs`).
        pairs_root: the pairs' folder, which holds `train/` and `val/`.

    Returns:
        An `Audit`; print it for the table.

    Raises:
        FileNotFoundError: `pairs.csv`, a label file or a pair is missing.
        ValueError: `pairs.csv` or a label file is not what it should be.
    """
    scheme = get_scheme("cityscapes19")
    void = scheme.num_classes
    methods = ("nearest", "decoder", "bound")
    known = {method: ConfusionMatrix(void + 1, ignore_index=IGNORE) for method in methods}
    whole = {method: ConfusionMatrix(void + 1, ignore_index=IGNORE) for method in methods}
    kept, right = dict.fromkeys(THRESHOLDS, 0), dict.fromkeys(THRESHOLDS, 0)
    pairs = read_pairs(official_folder)
    for label_file, pair_file in pairs:
        with Image.open(Path(official_folder) / label_file) as image:
            official = np.asarray(image)
        with Image.open(Path(pairs_root) / pair_file) as image:
            mask = np.asarray(image.convert("RGB"))[None, :, SIDE:]
        truth = scheme.encode(label_at_centers(official))
        found = {
            "nearest": decode_masks(mask, scheme, "nearest")[0],
            "decoder": decode_masks(mask, scheme)[0],
            "bound": scheme.encode(label_of_most(official)),
        }
        for method, classes in found.items():
            classes = np.minimum(classes, void)  # void becomes a class of its own: calling a car void is a miss
            known[method].update(classes, truth)
            whole[method].update(classes, np.minimum(truth, void))
        for threshold in THRESHOLDS:
            sure = decode_label_ids(mask, min_probability=threshold)[0] != IGNORE
            kept[threshold] += int(sure.sum())
            right[threshold] += int((sure & (found["decoder"] == truth)).sum())
    iou = {method: tuple(torch.as_tensor(matrix.iou)[:void].tolist()) for method, matrix in known.items()}
    return Audit(
        frames=len(pairs),
        names=scheme.names,
        iou=iou,
        miou={method: float(np.nanmean(values)) for method, values in iou.items()},
        agreement={method: float(matrix.pixel_accuracy) for method, matrix in whole.items()},
        left_out={threshold: 1 - count / (len(pairs) * SIDE**2) for threshold, count in kept.items()},
        agreement_of_rest={threshold: right[threshold] / max(1, count) for threshold, count in kept.items()},
    )
