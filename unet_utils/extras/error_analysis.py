"""Where and how a model is wrong: what the figures of notebook 4 are drawn from."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from unet_utils.classes import IGNORE
from unet_utils.dataset import Frames
from unet_utils.evaluation import predict_classes
from unet_utils.metrics import ConfusionMatrix
from unet_utils.model import UNet
from unet_utils.platform.environment import progress_bar


class Confusion(NamedTuple):
    """Pixels of one class that were called another.

    Attributes:
        truth, predicted: class indices.
        pixels: how many.
        share: of all pixels of the true class, from 0 to 1.
    """

    truth: int
    predicted: int
    pixels: int
    share: float


class Regions(NamedTuple):
    """Connected regions of the true classes, one entry each.

    Attributes:
        classes: true class, `uint8 [R]`.
        areas: pixels, `int64 [R]`.
        recall: share of the region's pixels that were given its class, `float64 [R]`.
    """

    classes: np.ndarray
    areas: np.ndarray
    recall: np.ndarray


def predict_frames(
    model: UNet,
    frames: Frames,
    image_size: int | tuple[int, int],
    flip: bool = False,
    batch_size: int = 16,
    progress: str = "",
) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and true classes of all frames, `uint8 [N, 256, 256]` each; the truth is `IGNORE` where void.

    Args:
        model, image_size, flip: as in `evaluation.predict_classes`.
        progress: text of the bar, none for no bar.
    """
    device = next(model.parameters()).device
    predicted = np.empty(frames.codes.shape, dtype=np.uint8)
    truth = np.empty_like(predicted)
    with progress_bar(total=len(frames), desc=progress, unit="frame", disable=not progress) as bar:
        for start in range(0, len(frames), batch_size):
            where = slice(start, start + batch_size)
            photos, labels = frames.batch(where, device)
            predicted[where] = predict_classes(model, photos, image_size, flip).cpu().numpy()
            truth[where] = labels.cpu().numpy()
            bar.update(len(photos))
    return predicted, truth


def most_confused(matrix: ConfusionMatrix, count: int = 12) -> list[Confusion]:
    """The pairs of classes in which the largest share of the true class was called the other, largest share first."""
    pixels = matrix.matrix.cpu().numpy()
    share = pixels / pixels.sum(1, keepdims=True).clip(1)
    np.fill_diagonal(share, 0)
    order = np.argsort(-share, axis=None, kind="stable")[:count]
    pairs = [(int(i), int(j)) for i, j in zip(*np.unravel_index(order, share.shape), strict=True) if share[i, j] > 0]
    return [Confusion(i, j, int(pixels[i, j]), float(share[i, j])) for i, j in pairs]


def error_map(predicted: np.ndarray, truth: np.ndarray, cell: int = 8) -> np.ndarray:
    """Share of wrong pixels by place in the frame, over all frames.

    Args:
        predicted, truth: classes `uint8 [N, H, W]`; H and W divisible by `cell`.
        cell: side of the squares that are counted together, pixels.

    Returns:
        `float64 [H / cell, W / cell]`, from 0 to 1 of the pixels that are not void; NaN where all are void.
    """
    n, height, width = truth.shape
    blocks = (n, height // cell, cell, width // cell, cell)
    known = truth != IGNORE
    wrong = ((predicted != truth) & known).reshape(blocks).sum((0, 2, 4))
    total = known.reshape(blocks).sum((0, 2, 4))
    return np.where(total > 0, wrong / total.clip(1), np.nan)


def entropy(probabilities: Tensor) -> np.ndarray:
    """Shannon entropy of each pixel's class probabilities, in bits: 0 when certain, log2(C) when all are alike.

    Args:
        probabilities: `float32 [N, C, H, W]`, summing to 1 over the classes.

    Returns:
        `float32 [N, H, W]`.
    """
    return torch.special.entr(probabilities).sum(1).div(np.log(2)).cpu().numpy()


def connected_regions(classes: np.ndarray) -> np.ndarray:
    """Numbers the connected regions: pixels of one class that touch along an edge (4-connectivity) share a number.

    Each row is cut into runs of one class. Runs that touch in neighbouring rows are then joined, all at once: of two
    that are not yet known to belong together, the later one's root is hung on the earlier one's, and every run is
    pointed to its root, until nothing changes (Shiloach and Vishkin, 1982,
    https://doi.org/10.1016/0196-6774(82)90008-6).

    Args:
        classes: integers `[N, H, W]`; void is a class like the others, and frames never touch.

    Returns:
        `int64 [N, H, W]`, region numbers from 0 on, without gaps.
    """
    starts = np.ones(classes.shape, dtype=bool)
    starts[..., 1:] = classes[..., 1:] != classes[..., :-1]
    run = starts.ravel().cumsum().reshape(classes.shape) - 1
    same = classes[:, 1:] == classes[:, :-1]
    # Two runs touch in many pixels: the first of them is enough.
    same[..., 1:] &= starts[:, 1:, 1:] | starts[:, :-1, 1:]
    upper, lower = run[:, :-1][same], run[:, 1:][same]
    root = np.arange(run.max() + 1)
    while len(upper):
        one, other = root[upper], root[lower]
        root[np.maximum(one, other)] = np.minimum(one, other)
        while (root[root] != root).any():
            root = root[root]
        apart = root[upper] != root[lower]
        upper, lower = upper[apart], lower[apart]
    return np.unique(root, return_inverse=True)[1][run]


def region_recall(predicted: np.ndarray, truth: np.ndarray, block: int = 64) -> Regions:
    """How much of each object was found: the recall of each connected region of a true class.

    A region is a largest set of pixels of one true class that touch along edges. Two cars side by side are one
    region, and a car behind a pole is two: the labels tell classes apart, not objects. False alarms do not count
    here, since a wrong prediction belongs to no region; so this is a recall, not an IoU.

    Args:
        predicted, truth: classes `uint8 [N, H, W]`; void regions are left out.
        block: frames that are worked on together, which bounds the memory.
    """
    parts = []
    for start in range(0, len(truth), block):
        true, pred = truth[start : start + block], predicted[start : start + block]
        region = connected_regions(true).ravel()
        areas = np.bincount(region)
        classes = np.empty(len(areas), dtype=np.uint8)
        classes[region] = true.ravel()
        found = np.bincount(region, weights=(pred == true).ravel())
        known = classes != IGNORE
        parts.append((classes[known], areas[known], (found / areas)[known]))
    return Regions(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
