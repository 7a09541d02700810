"""The scores of a set, written for people (Markdown) and for programs (JSON, CSV)."""

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from unet_utils.checkpoints import made_by as made_here
from unet_utils.checkpoints import read_facts, write_table
from unet_utils.classes import ClassScheme, get_scheme
from unet_utils.evaluation import SMALL_MODEL, Trained
from unet_utils.frames import Frames
from unet_utils.metrics import ConfusionMatrix, bootstrap_mean_iou
from unet_utils.platform.environment import Environment
from unet_utils.platform.files import replacing

Scores = Mapping[str, float]

PUBLISHED_19 = {
    "pix2pix L1 UNet, published": {
        "pixel_accuracy": 0.86,
        "class_accuracy": 0.42,
        "mean_iou": 0.35,
    },
}
"""The UNet of pix2pix trained with L1 alone, photo to labels on the same 256x256 pairs: table 5 of
https://arxiv.org/abs/1611.07004. It regressed colours, which were then matched to the nearest
class."""

PUBLISHED_7 = {
    "MTAN's single-task SegNet from scratch, published": {
        "pixel_accuracy": 0.907,
        "mean_iou": 0.511,
    },
    "DeepLabV3+ with a pretrained ResNet-50, published": {
        "pixel_accuracy": 0.915,
        "mean_iou": 0.687,
    },
}
"""Seven categories: https://arxiv.org/abs/1803.10704 (128x256 pixels) and
https://arxiv.org/abs/2111.10603."""

CAUTION = (
    "The published seven-category scores compare only roughly. Those networks saw frames of "
    "128x256 pixels in a fixed 2:1 aspect and were scored on the official labels; here, scenes "
    "squeezed to 256x256 pixels are scored, and the truth is restored from JPEG masks. They "
    "learned the seven categories; here 19 classes are merged after the prediction."
)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown; cells may contain any text of one line."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(header), "|" + "---|" * len(header), *map(line, rows)])


def score_text(value: float | None) -> str:
    """Return a score with three digits; a dash for None and NaN."""
    return "–" if value is None or math.isnan(value) else f"{value:.3f}"


def score_table(rows: Mapping[str, Scores]) -> str:
    """Return a Markdown table of the scores of a set, one row per method, in the order of the
    pix2pix paper.

    Args:
        rows: name of the method -> its scores (`ConfusionMatrix.summary`); those that are missing
            or NaN show a dash.
    """
    keys = ("pixel_accuracy", "class_accuracy", "mean_iou")
    lines = [(name, *(score_text(row.get(key)) for key in keys)) for name, row in rows.items()]
    return markdown_table(["method", "pixel accuracy", "class accuracy", "mIoU"], lines)


def class_rows(matrix: ConfusionMatrix, scheme: ClassScheme) -> list[dict]:
    """Return the scores of each class, best IoU first, absent classes last.

    Returns:
        one dict per class: `class`, its `pixels` in the truth and their `share`, `precision`,
        `recall` and `iou`. The last three are None where they are not defined: for a class absent
        from the truth, and the precision of a class that was never predicted.
    """
    pixels = matrix.matrix.sum(1).cpu()
    rates = torch.stack([matrix.precision, matrix.recall, matrix.iou], dim=1)
    rates[pixels == 0] = torch.nan
    rows = []
    for index in rates[:, 2].nan_to_num(-1).argsort(descending=True, stable=True).tolist():
        precision, recall, iou = _null_for_nan(rates[index].tolist())
        rows.append(
            {
                "class": scheme.names[index],
                "pixels": pixels[index].item(),
                "share": pixels[index].item() / max(1, pixels.sum().item()),
                "precision": precision,
                "recall": recall,
                "iou": iou,
            }
        )
    return rows


def class_table(matrix: ConfusionMatrix, scheme: ClassScheme) -> str:
    """Return a Markdown table, one row per class: share of the pixels, precision, recall and IoU;
    best IoU first."""
    lines = []
    for row in class_rows(matrix, scheme):
        if row["pixels"] == 0:
            cells = ["absent", "", "", ""]
        else:
            cells = [f"{100 * row['share']:.2f}"]
            for key in ("precision", "recall", "iou"):
                cells.append("never predicted" if row[key] is None else f"{row[key]:.3f}")
        lines.append([row["class"], *cells])
    return markdown_table(["class", "pixels %", "precision", "recall", "IoU"], lines)


def merge_categories(matrix: ConfusionMatrix, scheme: ClassScheme) -> ConfusionMatrix:
    """Return the matrix of the seven Cityscapes categories, from that of the 19 classes."""
    categories = get_scheme("categories7")
    return matrix.merge(
        [categories.lookup[scheme.lookup.index(index)] for index in range(scheme.num_classes)]
    )


def score_report(matrix: ConfusionMatrix, scheme: ClassScheme, published: bool = False) -> str:
    """Return the score tables of a set in Markdown: those of the model and what to compare with.

    Args:
        matrix: of the whole set.
        scheme: the classes of the model.
        published: add published results, also for the seven categories. They compare only on the
            complete validation split of the real pairs.
    """
    counts = matrix.matrix.sum(1).cpu().double()
    shares = counts / counts.sum().clamp(min=1)
    rows = {
        "this model": matrix.summary(),
        "guessing by class frequency": matrix.guessing(shares).summary(),
        "pure chance": matrix.guessing(torch.full_like(shares, 1 / len(shares))).summary(),
    }
    seven: dict[str, Scores] = {}
    if scheme.name == "cityscapes19" and published:
        rows |= PUBLISHED_19
        merged = merge_categories(matrix, scheme).summary()
        seven = {"this model, its 19 classes merged to 7": merged}
    elif scheme.name == "categories7" and published:
        seven = {"this model": matrix.summary()}
    parts = [score_table(rows)]
    if seven:
        parts += ["Seven categories:", score_table(seven | PUBLISHED_7), CAUTION]
    return "\n\n".join(parts)


def rank_frames(matrices: Sequence[ConfusionMatrix]) -> list[int]:
    """Return the indices of the frames from the fewest to the most wrong pixels.

    The mIoU of a frame ranks otherwise than the eye: a class of a few pixels counts as much as the
    road. Frames without a labelled pixel are left out.
    """
    scores = np.array([matrix.pixel_accuracy for matrix in matrices])
    order = np.argsort(-scores, kind="stable")
    return order[~np.isnan(scores[order])].tolist()


def scores_folder(results: str | Path, checkpoint: Path, weights: str) -> Path:
    """Return the folder for the scores of a model.

    Scores belong to a model, not to the name of a folder: those of a model from elsewhere, or of
    another epoch, must not replace those of the run of that name. Where the best model of that run
    is another one, the folder's name ends with the first digits of the weights' hash.

    Args:
        results: folder with one folder per run.
        checkpoint: file of the model.
        weights: hash of its weights.
    """
    if checkpoint == SMALL_MODEL:
        return Path(results) / "small-model"
    # The name of its folder, also for ../best.pt and for a file on a drive itself.
    run = Path(results) / (Path(os.path.abspath(checkpoint)).parent.name or "model")
    try:
        if read_facts(run / "best.pt")["made_by"]["weights"] == weights:
            return run
    except (OSError, ValueError, LookupError):
        pass  # no usable model there
    return run.with_name(f"{run.name}-{weights[:8]}")


def save_model_scores(
    matrices: Sequence[ConfusionMatrix],
    trained: Trained,
    checkpoint: Path,
    frames: Frames,
    env: Environment,
    published: bool = False,
    flip: bool = False,
) -> Path:
    """Write the scores of a model to its folder among the results, as `save_scores` does.

    Args:
        matrices: one per frame, as `evaluate` returns them.
        trained: the model.
        checkpoint: its file.
        frames: those that were scored.
        env: of this machine.
        published: as in `score_report`.
        flip: whether the model also saw the mirrored photos.

    Returns:
        The path of the Markdown file.
    """
    weights = trained.made_by["weights"]
    folder = scores_folder(env.results, checkpoint, weights)
    is_run = checkpoint != SMALL_MODEL and trained.data
    if is_run and frames.source not in ("", trained.data):
        print(
            "This model learned from other data, or with another --size: these scores get a folder "
            "of their own."
        )
        folder = folder.with_name(f"{folder.name}-on-{frames.source[:8]}")
    origin: dict = made_here(env.device, frames.label_hash())
    origin |= {"weights": weights, "flip": flip, "data": frames.source}
    return save_scores(matrices, trained.scheme, folder, frames.numbers, published, origin)


def save_scores(
    matrices: Sequence[ConfusionMatrix],
    scheme: ClassScheme,
    folder: str | Path,
    numbers: Sequence[int] | None = None,
    published: bool = False,
    made_by: dict | None = None,
) -> Path:
    """Write the scores of a set to files.

    `evaluation.md` has the tables, `evaluation.json` the scores of the set, the 95 % interval of
    its mIoU and what made them, `evaluation.csv` one row per class (see `class_rows`),
    `evaluation_frames.csv` one row per frame. Scores that are not defined are null in JSON and
    empty in CSV.

    Args:
        matrices: one per frame, as `evaluate` returns them.
        scheme: the classes of the model.
        folder: made if missing; the files of an earlier evaluation are replaced.
        numbers: the file number of each frame, by default 1, 2, 3 and so on.
        published: as in `score_report`.
        made_by: what made the scores, as `checkpoints.made_by` returns it, and the hash of the
            model's `weights`: they belong to it.

    Returns:
        The path of the Markdown file.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    matrix = ConfusionMatrix.total(matrices)
    classes = class_rows(matrix, scheme)
    iou = {row["class"]: row["iou"] for row in classes}
    scores = _null_for_nan(matrix.summary())
    scores["mean_iou_95"] = _null_for_nan(list(bootstrap_mean_iou(list(matrices))))
    scores["frames"] = len(matrices)
    if scheme.name == "cityscapes19":
        scores["categories7"] = _null_for_nan(merge_categories(matrix, scheme).summary())
    scores["iou"] = {name: iou[name] for name in scheme.names}
    scores["made_by"] = made_by or {}
    frames = []
    for number, frame in zip(numbers or range(1, len(matrices) + 1), matrices, strict=True):
        frames.append({"frame": number} | _null_for_nan(frame.summary()))
    report = folder / "evaluation.md"
    text = f"{score_report(matrix, scheme, published)}\n\n{class_table(matrix, scheme)}\n"
    with replacing(folder / "evaluation.json") as file:
        file.write_text(json.dumps(scores, indent=2, allow_nan=False) + "\n")
    with replacing(report) as file:
        file.write_text(text, encoding="utf-8")
    write_table(folder / "evaluation.csv", classes)
    write_table(folder / "evaluation_frames.csv", frames)
    return report


def _null_for_nan(values):
    """Return a list or dict of numbers with None for NaN, which JSON does not have."""
    if isinstance(values, dict):
        return {key: None if math.isnan(value) else value for key, value in values.items()}
    return [None if math.isnan(value) else value for value in values]
