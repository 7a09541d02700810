"""A trained model put to use: load it, predict, score it on a split."""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unet_utils.augment import to_input
from unet_utils.checkpoints import read_checkpoint
from unet_utils.classes import ClassScheme
from unet_utils.dataset import Frames
from unet_utils.environment import progress_bar
from unet_utils.metrics import ConfusionMatrix
from unet_utils.model import UNet, autocast

PIX2PIX_L1 = {"pixel_accuracy": 0.86, "class_accuracy": 0.42, "mean_iou": 0.35}
"""The UNet of pix2pix trained with L1 alone, photo to labels on the same 256x256 pairs, 19 classes: table 5 of
https://arxiv.org/abs/1611.07004. It regressed colours, which were then matched to the nearest class."""

SMALL_MODEL = Path(__file__).parent.parent / "models" / "small" / "best.pt"
"""Trained on the real pairs with the CPU recipe, shipped by scripts/ship_model.py; scores and history lie beside it."""


@dataclass(frozen=True)
class Trained:
    """A model read from a checkpoint, with all that is needed to use it.

    Attributes:
        model: in evaluation mode, on the device.
        scheme: the classes it learned.
        config: the settings it was trained with, plain values.
        history: one row an epoch, plain values.
    """

    model: UNet
    scheme: ClassScheme
    config: dict
    history: list[dict]


def load_trained(path: str | Path, device: torch.device | str, scheme: str | None = None) -> Trained:
    """Loads a model to use.

    Args:
        path: `best.pt` or `last.pt` of a run.
        device: where the model goes.
        scheme: name of the class scheme that the caller expects, None for whichever the model has.

    Raises:
        FileNotFoundError, ValueError: as `read_checkpoint`; or the model has learned another class scheme.
    """
    checkpoint = read_checkpoint(path)
    learned = ClassScheme.from_dict(checkpoint["scheme"])
    if scheme and scheme != learned.name:
        raise ValueError(
            f"{path} has learned the class scheme {learned.name!r}, not {scheme!r}: "
            f"set the scheme to {learned.name!r}, or train a model for {scheme!r}"
        )
    model = UNet(**checkpoint["model_config"])
    model.load_state_dict(checkpoint["averaged"] if "averaged" in checkpoint else checkpoint["model"])
    model.to(device, memory_format=torch.channels_last).eval()
    return Trained(model, learned, checkpoint["config"], checkpoint["history"])


def find_checkpoint(run: str | Path) -> Path:
    """The best checkpoint of a run, or that of the small model that comes with the project, and says so.

    Args:
        run: folder of the run.

    Returns:
        Where the file is, or where it should be if there is neither.
    """
    best = Path(run) / "best.pt"
    if best.exists() or not SMALL_MODEL.exists():
        return best  # where there is none, reading it says what to do
    print(f"No model in {run}: using the small one that comes with the project, {SMALL_MODEL}")
    return SMALL_MODEL


@torch.inference_mode()
def predict(model: UNet, photos: Tensor, image_size: int | tuple[int, int], flip: bool = False) -> Tensor:
    """Class probabilities at the photos' own resolution.

    Args:
        model: in evaluation mode; the photos are sent to its device.
        photos: `uint8 [N, 3, H, W]`, any H and W.
        image_size: height and width that the network sees, pixels: the one number it was trained at for pairs,
            `photo_size` for photos that are not squeezed to a square.
        flip: average with the prediction for the mirrored photo; takes twice the time.

    Returns:
        `float32 [N, num_classes, H, W]`, summing to 1 over the classes.
    """
    logits = _logits(model, photos, image_size, flip)
    if logits.shape[2:] != photos.shape[2:]:
        logits = F.interpolate(logits, photos.shape[2:], mode="bilinear", align_corners=False)
    return logits.softmax(1)


@torch.inference_mode()
def predict_classes(model: UNet, photos: Tensor, image_size: int | tuple[int, int], flip: bool = False) -> Tensor:
    """The most probable class of each pixel, `uint8 [N, H, W]`; takes what `predict` takes.

    Fit for photos of any size: the probabilities of a 12-megapixel photo alone would take 0.9 GB.
    """
    return enlarge_classes(_logits(model, photos, image_size, flip), photos.shape[2], photos.shape[3])


def _logits(model: UNet, photos: Tensor, image_size: int | tuple[int, int], flip: bool) -> Tensor:
    device = next(model.parameters()).device
    x = to_input(photos.to(device), image_size).contiguous(memory_format=torch.channels_last)
    with autocast(device):
        logits = model(x)
        if flip:
            logits = (logits + model(x.flip(3)).flip(3)) / 2
    return logits.float()


def enlarge_classes(logits: Tensor, height: int, width: int, most: int = 2**23) -> Tensor:
    """The most probable classes after bilinear enlargement, in strips of rows that need little memory.

    Written so that TorchScript understands it: an exported model holds this very function.

    Args:
        logits: `float32 [N, C, h, w]`.
        height, width: of the result, pixels.
        most: values (of 4 bytes) that a strip may have.

    Returns:
        `uint8 [N, height, width]`, the `argmax(1)` of `F.interpolate(..., mode="bilinear", align_corners=False)`.
    """
    n, c, h = logits.shape[0], logits.shape[1], logits.shape[2]
    if h == height and logits.shape[3] == width:
        return logits.argmax(1).byte()
    wide = F.interpolate(logits, [h, width], mode="bilinear", align_corners=False)
    # Where the centre of each row of the result lies among the rows of `wide`, and between which two.
    centers = ((torch.arange(height, device=logits.device) + 0.5) * (h / height) - 0.5).clamp(0, h - 1)
    above = centers.floor().long()
    below = (above + 1).clamp(max=h - 1)
    share = (centers - above)[:, None]
    step = max(1, most // (n * c * width))
    strips = []
    for top in range(0, height, step):
        end = top + step
        strip = torch.lerp(wide[:, :, above[top:end]], wide[:, :, below[top:end]], share[top:end])
        strips.append(strip.argmax(1).byte())
    return torch.cat(strips, 1)


def photo_size(height: int, width: int, image_size: int, divisor: int = 16) -> tuple[int, int]:
    """Height and width at which the network should see a photo of yours, pixels.

    The pairs are 2:1 street photos squeezed to squares. Any other photo is squeezed as much, whatever its aspect.

    Args:
        height, width: of the photo.
        image_size: that the network was trained at.
        divisor: of the network; the width is rounded to a multiple of it.
    """
    return image_size, max(divisor, round(image_size * width / height / 2 / divisor) * divisor)


def evaluate(
    model: UNet, frames: Frames, image_size: int, batch_size: int = 16, flip: bool = False, progress: str = ""
) -> list[ConfusionMatrix]:
    """Scores a model: one confusion matrix a frame, at the labels' resolution (256x256).

    The score of the set is that of `ConfusionMatrix.total(...)` of them.

    Raises:
        ValueError: the model's number of classes is not that of the frames' scheme.
    """
    num_classes = model.config["num_classes"]
    if num_classes != frames.scheme.num_classes:
        raise ValueError(
            f"the model has {num_classes} classes, the scheme {frames.scheme.name!r} has {frames.scheme.num_classes}: "
            "prepare the frames with the scheme of the checkpoint"
        )
    device = next(model.parameters()).device
    matrices: list[ConfusionMatrix] = []
    with progress_bar(total=len(frames), desc=progress, unit="frame", disable=not progress) as bar:
        for start in range(0, len(frames), batch_size):
            photos, labels = frames.batch(slice(start, start + batch_size), device)
            matrices += compare(predict_classes(model, photos, image_size, flip), labels, num_classes)
            bar.update(len(photos))
    return matrices


def compare(predicted: Tensor | np.ndarray, truth: Tensor | np.ndarray, num_classes: int) -> list[ConfusionMatrix]:
    """One confusion matrix a frame, of class indices `uint8 [N, H, W]` each."""
    matrices = [ConfusionMatrix(num_classes) for _ in predicted]
    for matrix, found, true in zip(matrices, predicted, truth, strict=True):
        matrix.update(found, true)
    return matrices


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
    _write_csv(folder / "evaluation.csv", classes)
    frames = zip(numbers or range(1, len(matrices) + 1), matrices, strict=True)
    _write_csv(folder / "evaluation_frames.csv", [{"frame": number} | frame.summary() for number, frame in frames])
    report = folder / "evaluation.md"
    shares = matrix.matrix.sum(1).double() / matrix.matrix.sum()
    rows = {"this model": matrix.summary(), "guessing by class frequency": matrix.guessing(shares).summary()}
    rows["pure chance"] = matrix.guessing(torch.full_like(shares, 1 / len(shares))).summary()
    if scheme.name == "cityscapes19":
        rows["pix2pix L1 UNet, published for the real pairs"] = PIX2PIX_L1
    report.write_text(f"{score_table(rows)}\n\n{class_table(matrix, scheme)}\n")
    return report


def _write_csv(path: Path, rows: list[dict]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


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
