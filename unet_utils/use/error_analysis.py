"""Where and how a model is wrong: the numbers behind the figures of notebook 04."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from unet_utils.classes import IGNORE
from unet_utils.metrics import ConfusionMatrix


class Confusion(NamedTuple):
    """Pixels of one class that were predicted as another.

    Attributes:
        truth, predicted: class indices.
        pixels: number of such pixels.
        share: of all pixels of the true class, from 0 to 1.
    """

    truth: int
    predicted: int
    pixels: int
    share: float


class Regions(NamedTuple):
    """Connected regions of the true classes.

    Attributes:
        classes: true class of each region, `uint8 [R]`.
        areas: pixels, `int64 [R]`.
        recall: share of the region's pixels that were predicted as its class, `float64 [R]`.
    """

    classes: np.ndarray
    areas: np.ndarray
    recall: np.ndarray


def most_confused(matrix: ConfusionMatrix, count: int = 12) -> list[Confusion]:
    """Return the `count` pairs of classes with the largest share of the true class predicted as the
    other."""
    pixels = matrix.matrix.cpu().numpy()
    share = pixels / pixels.sum(1, keepdims=True).clip(1)
    np.fill_diagonal(share, 0)
    found = []
    for cell in np.argsort(-share, axis=None, kind="stable")[:count]:
        true, other = map(int, np.unravel_index(cell, share.shape))
        if share[true, other] > 0:
            found.append(
                Confusion(true, other, int(pixels[true, other]), float(share[true, other]))
            )
    return found


def error_map(predicted: np.ndarray, truth: np.ndarray, cell: int = 8) -> np.ndarray:
    """Return the share of wrong pixels at each place in the frame, over all frames.

    Args:
        predicted, truth: class indices, `uint8 [N, H, W]`; H and W divisible by `cell`.
        cell: side of the squares that are counted together, pixels.

    Returns:
        `float64 [H / cell, W / cell]`, from 0 to 1 of the labelled pixels; NaN where there are
        none.
    """
    n, height, width = truth.shape
    blocks = (n, height // cell, cell, width // cell, cell)
    labelled = truth != IGNORE
    wrong = ((predicted != truth) & labelled).reshape(blocks).sum((0, 2, 4))
    total = labelled.reshape(blocks).sum((0, 2, 4))
    return np.where(total > 0, wrong / total.clip(1), np.nan)


def near_borders(truth: np.ndarray, distance: int = 2) -> np.ndarray:
    """Return which pixels have another class close by, `bool [N, H, W]`.

    Args:
        truth: class indices, `uint8 [N, H, W]`; void is a class like the others.
        distance: how far away it may be, pixels, along rows, columns and diagonals.
    """
    side = 2 * distance + 1
    near = np.empty(truth.shape, dtype=bool)
    for number, classes in enumerate(truth):
        maps = torch.from_numpy(classes).float()[None]
        largest = max_pool2d(maps, side, 1, distance)
        smallest = -max_pool2d(-maps, side, 1, distance)
        near[number] = (largest != smallest)[0].numpy()
    return near


def entropy(probabilities: Tensor) -> np.ndarray:
    """Return the Shannon entropy per pixel, in bits: 0 when certain, log2(C) when all classes are
    equally probable.

    Args:
        probabilities: `float32 [N, C, H, W]`, summing to 1 over the classes.

    Returns:
        `float32 [N, H, W]`.
    """
    return torch.special.entr(probabilities).sum(1).div(np.log(2)).cpu().numpy()


def connected_regions(classes: np.ndarray) -> np.ndarray:
    """Number the connected regions: pixels of one class that touch along an edge (4-connectivity)
    share a number.

    Args:
        classes: integers `[N, H, W]`; void is a class like the others. Regions never extend over
            two frames.

    Returns:
        `int64 [N, H, W]`, region numbers from 0, without gaps.
    """
    # Each row of pixels is cut into runs of one class, numbered through all frames.
    starts = np.ones(classes.shape, dtype=bool)
    starts[..., 1:] = classes[..., 1:] != classes[..., :-1]
    run = starts.ravel().cumsum().reshape(classes.shape) - 1
    # Pairs of runs of the same class that touch in neighbouring rows. They touch in many pixels:
    # keep the first.
    same = classes[:, 1:] == classes[:, :-1]
    same[..., 1:] &= starts[:, 1:, 1:] | starts[:, :-1, 1:]
    upper = run[:, :-1][same]
    lower = run[:, 1:][same]
    # Union of the touching runs, for all pairs at the same time, as in Shiloach and Vishkin (1982),
    # https://doi.org/10.1016/0196-6774(82)90008-6. Each run points to an earlier run of its region;
    # a root points to itself. In each round the later root of a pair is pointed to the earlier one
    # (of several assignments to one root NumPy keeps the last, and the others are done in a later
    # round), and then every run directly to its root.
    root = np.arange(run.max(initial=-1) + 1)
    while len(upper):
        one = root[upper]
        other = root[lower]
        root[np.maximum(one, other)] = np.minimum(one, other)
        while (root[root] != root).any():
            root = root[root]
        apart = root[upper] != root[lower]
        upper = upper[apart]
        lower = lower[apart]
    return np.unique(root, return_inverse=True)[1][run]


def region_recall(predicted: np.ndarray, truth: np.ndarray, block: int = 64) -> Regions:
    """Return how much of each object was found: the recall of each connected region of a true
    class.

    Two cars that touch are one region, and a car behind a pole is two: the labels separate classes,
    not objects. A wrong prediction elsewhere belongs to no region and does not count, so this is a
    recall, not an IoU.

    Args:
        predicted, truth: class indices, `uint8 [N, H, W]`; void regions are left out.
        block: number of frames to process together, which bounds the memory.
    """
    parts = []
    for start in range(0, len(truth), block):
        true = truth[start : start + block]
        pred = predicted[start : start + block]
        region = connected_regions(true).ravel()
        areas = np.bincount(region)
        classes = np.empty(len(areas), dtype=np.uint8)
        classes[region] = true.ravel()
        found = np.bincount(region, weights=(pred == true).ravel())
        labelled = classes != IGNORE
        parts.append((classes[labelled], areas[labelled], (found / areas)[labelled]))
    return Regions(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
