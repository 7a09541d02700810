"""A trained model put to use: load it, predict, score it on a split."""

import json
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
    device = next(model.parameters()).device
    x = to_input(photos.to(device), image_size).contiguous(memory_format=torch.channels_last)
    with autocast(device):
        logits = model(x)
        if flip:
            logits = (logits + model(x.flip(3)).flip(3)) / 2
    logits = logits.float()
    if logits.shape[2:] != photos.shape[2:]:
        logits = F.interpolate(logits, photos.shape[2:], mode="bilinear", align_corners=False)
    return logits.softmax(1)


def photo_size(height: int, width: int, image_size: int) -> tuple[int, int]:
    """Height and width at which the network should see a photo of yours, multiples of 16.

    The pairs are 2:1 street photos squeezed to squares. Any other photo is squeezed as much, whatever its aspect.
    """
    return image_size, max(16, round(image_size * width / height / 2 / 16) * 16)


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
            classes = predict(model, photos, image_size, flip).argmax(1)
            for predicted, truth in zip(classes, labels, strict=True):
                matrices.append(ConfusionMatrix(num_classes))
                matrices[-1].update(predicted, truth)
            bar.update(len(photos))
    return matrices


def score_table(rows: dict[str, dict[str, float]]) -> str:
    """A Markdown table of set-level scores, one row a method, in the order of the pix2pix paper."""
    lines = ["| method | pixel accuracy | class accuracy | mIoU |", "|---|---|---|---|"]
    for name, row in rows.items():
        cells = " | ".join(f"{row[key]:.3f}" for key in ("pixel_accuracy", "class_accuracy", "mean_iou"))
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines)


def class_table(matrix: ConfusionMatrix, scheme: ClassScheme) -> str:
    """A Markdown table with a row a class: share of the pixels, precision, recall and IoU; best IoU first."""
    share = matrix.matrix.sum(1).double().cpu() / matrix.matrix.sum().item()
    columns = torch.stack([share * 100, matrix.precision, matrix.recall, matrix.iou], dim=1)
    lines = ["| class | pixels % | precision | recall | IoU |", "|---|---|---|---|---|"]
    for index in columns[:, 3].nan_to_num(-1).argsort(descending=True).tolist():
        percent, *rates = columns[index].tolist()
        if share[index] == 0:
            lines.append(f"| {scheme.names[index]} | absent | | | |")
            continue
        cells = " | ".join("never predicted" if np.isnan(rate) else f"{rate:.3f}" for rate in rates)
        lines.append(f"| {scheme.names[index]} | {percent:.2f} | {cells} |")
    return "\n".join(lines)


def save_scores(matrices: list[ConfusionMatrix], scheme: ClassScheme, folder: str | Path) -> Path:
    """Writes the scores of a set as `evaluation.json` and, with the class table, as `evaluation.md`.

    Args:
        matrices: one a frame, as `evaluate` returns them.
        folder: made if missing; the files of an earlier evaluation of the same run are replaced.

    Returns:
        The path of the Markdown file.
    """
    matrix, folder = ConfusionMatrix.total(matrices), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    low, high = bootstrap_mean_iou(matrices)
    iou = dict(zip(scheme.names, [None if v != v else v for v in matrix.iou.tolist()], strict=True))
    numbers = matrix.summary() | {"mean_iou_95": [low, high], "frames": len(matrices), "iou": iou}
    (folder / "evaluation.json").write_text(json.dumps(numbers, indent=2) + "\n")
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
