"""The scores of a set, written down for people and for programs."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from unet_utils.checkpoints import write_csv
from unet_utils.classes import ClassScheme
from unet_utils.metrics import ConfusionMatrix

PIX2PIX_L1 = {"pixel_accuracy": 0.86, "class_accuracy": 0.42, "mean_iou": 0.35}
"""The UNet of pix2pix trained with L1 alone, photo to labels on the same 256x256 pairs, 19 classes: table 5 of
https://arxiv.org/abs/1611.07004. It regressed colours, which were then matched to the nearest class."""


def score_table(rows: dict[str, dict[str, float]]) -> str:
    """A Markdown table of set-level scores, one row a method, in the order of the pix2pix paper."""
    lines = ["| method | pixel accuracy | class accuracy | mIoU |", "|---|---|---|---|"]
    for name, row in rows.items():
        cells = " | ".join(f"{row[key]:.3f}" for key in ("pixel_accuracy", "class_accuracy", "mean_iou"))
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines)


def class_rows(matrix: ConfusionMatrix, scheme: ClassScheme) -> list[dict]:
    """What is known of each class, best IoU first, absent classes last.

    Returns:
        one dict a class: `class`, its `pixels` in the truth and their `share`, `precision`, `recall` and `iou`. The
        three are None where they are not defined: for a class absent from the truth, and the precision of a class
        that was never predicted.
    """
    pixels = matrix.matrix.sum(1).cpu()
    rates = torch.stack([matrix.precision, matrix.recall, matrix.iou], dim=1)
    rates[pixels == 0] = torch.nan
    rows = []
    for index in rates[:, 2].nan_to_num(-1).argsort(descending=True, stable=True).tolist():
        values = [None if np.isnan(rate) else rate for rate in rates[index].tolist()]
        row = {"class": scheme.names[index], "pixels": pixels[index].item()}
        row["share"] = row["pixels"] / pixels.sum().item()
        rows.append(row | dict(zip(("precision", "recall", "iou"), values, strict=True)))
    return rows


def class_table(matrix: ConfusionMatrix, scheme: ClassScheme) -> str:
    """A Markdown table with a row a class: share of the pixels, precision, recall and IoU; best IoU first."""
    lines = ["| class | pixels % | precision | recall | IoU |", "|---|---|---|---|---|"]
    for row in class_rows(matrix, scheme):
        if row["pixels"] == 0:
            lines.append(f"| {row['class']} | absent | | | |")
            continue
        rates = (row["precision"], row["recall"], row["iou"])
        cells = " | ".join("never predicted" if rate is None else f"{rate:.3f}" for rate in rates)
        lines.append(f"| {row['class']} | {100 * row['share']:.2f} | {cells} |")
    return "\n".join(lines)


def save_scores(
    matrices: list[ConfusionMatrix],
    scheme: ClassScheme,
    folder: str | Path,
    numbers: Sequence[int] | None = None,
) -> Path:
    """Writes the scores of a set to files, for people and for programs.

    `evaluation.md` has the table of the set and the table of the classes, `evaluation.json` all scores of the set and
    the 95 % interval of its mIoU, `evaluation.csv` a row a class (as `class_rows`; absent classes with empty rates),
    `evaluation_frames.csv` a row a frame.

    Args:
        matrices: one a frame, as `evaluate` returns them.
        folder: made if missing; the files of an earlier evaluation of the same run are replaced.
        numbers: the file number of each frame, by default 1, 2, 3 and so on.

    Returns:
        The path of the Markdown file.
    """
    matrix, folder = ConfusionMatrix.total(matrices), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    classes = class_rows(matrix, scheme)
    iou = {row["class"]: row["iou"] for row in sorted(classes, key=lambda row: scheme.names.index(row["class"]))}
    scores = matrix.summary() | {"mean_iou_95": bootstrap_mean_iou(matrices), "frames": len(matrices), "iou": iou}
    (folder / "evaluation.json").write_text(json.dumps(scores, indent=2) + "\n")
    write_csv(folder / "evaluation.csv", classes)
    frames = zip(numbers or range(1, len(matrices) + 1), matrices, strict=True)
    write_csv(folder / "evaluation_frames.csv", [{"frame": number} | frame.summary() for number, frame in frames])
    report = folder / "evaluation.md"
    shares = matrix.matrix.sum(1).double() / matrix.matrix.sum()
    rows = {"this model": matrix.summary(), "guessing by class frequency": matrix.guessing(shares).summary()}
    rows["pure chance"] = matrix.guessing(torch.full_like(shares, 1 / len(shares))).summary()
    if scheme.name == "cityscapes19":
        rows["pix2pix L1 UNet, published for the real pairs"] = PIX2PIX_L1
    report.write_text(f"{score_table(rows)}\n\n{class_table(matrix, scheme)}\n")
    return report


def bootstrap_mean_iou(matrices: list[ConfusionMatrix], rounds: int = 1000, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the set's mIoU under resampling of its frames with replacement (Efron's percentile bootstrap).

    It says how much the score depends on which frames happen to be in the set, nothing else.
    """
    counts = torch.stack([matrix.matrix for matrix in matrices]).double().cpu()
    rng = np.random.default_rng(seed)
    total = ConfusionMatrix(matrices[0].num_classes)
    scores = []
    for _ in range(rounds):
        drawn = np.bincount(rng.integers(len(counts), size=len(counts)), minlength=len(counts))
        total.matrix = torch.tensordot(torch.from_numpy(drawn).double(), counts, dims=1).round().long()
        scores.append(total.mean_iou)
    low, high = np.quantile(scores, [0.025, 0.975])
    return float(low), float(high)
