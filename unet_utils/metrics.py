"""Segmentation metrics, all read from one confusion matrix over the whole set.

Averaging mIoU over batches or frames drops classes that a batch does not show and inflates the score; one matrix
for the set, as in the Cityscapes benchmark, does not.
"""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from unet_utils.classes import IGNORE


class ConfusionMatrix:
    """Counts of (true class, predicted class) pairs over any number of `update` calls.

    Args:
        num_classes: number of classes C.
        ignore_index: target value of pixels that are left out.

    Attributes:
        matrix: `int64 [C, C]`, rows are the truth, columns the prediction.
    """

    def __init__(self, num_classes: int, ignore_index: int = IGNORE):
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.matrix = torch.zeros(num_classes, num_classes, dtype=torch.int64)

    def update(self, pred: Tensor | np.ndarray, target: Tensor | np.ndarray) -> None:
        """Adds a batch of label maps.

        Args:
            pred: predicted classes, integers of any shape, each in `[0, C)` wherever the target is not ignored.
            target: true classes, same shape, each in `[0, C)` or `ignore_index`.

        Raises:
            ValueError: shapes differ, or a class lies outside `[0, C)`.
        """
        pred, target = torch.as_tensor(pred), torch.as_tensor(target)
        if pred.shape != target.shape:
            raise ValueError(f"pred {list(pred.shape)} and target {list(target.shape)} differ in shape")
        # int32 holds C * C and is half the traffic of int64; everything below stays on the device of `pred`.
        pred, target = pred.flatten().int(), target.to(pred.device).flatten().int()
        # What is out of range on either side lands in one extra row or column, and what is ignored in a row after
        # them: all found by a single bincount, with no pixel picked out before.
        c = self.num_classes
        rows = torch.where((target >= 0) & (target < c), target, c)
        rows.masked_fill_(target == self.ignore_index, c + 1)
        columns = torch.where((pred >= 0) & (pred < c), pred, c)
        counts = torch.bincount(rows.mul_(c + 1).add_(columns), minlength=(c + 2) * (c + 1)).view(c + 2, c + 1)
        counts = counts[: c + 1]
        if counts[c].any() or counts[:, c].any():
            culprit, values = ("target", target) if counts[c].any() else ("pred", pred)
            seen = torch.unique(values[target != self.ignore_index]).tolist()
            raise ValueError(f"{culprit} has classes outside 0 to {c - 1}: it holds {seen}. Another class scheme?")
        self.matrix = self.matrix.to(counts.device) + counts[:c, :c]

    @classmethod
    def total(cls, matrices: Iterable["ConfusionMatrix"]) -> "ConfusionMatrix":
        """The matrix of all their pixels together."""
        matrices = list(matrices)
        result = cls(matrices[0].num_classes, matrices[0].ignore_index)
        result.matrix = sum(matrix.matrix for matrix in matrices)
        return result

    @property
    def _parts(self) -> tuple[Tensor, Tensor, Tensor]:
        counts = self.matrix.double().cpu()
        return counts.diagonal(), counts.sum(1), counts.sum(0)

    @property
    def pixel_accuracy(self) -> float:
        """Share of the pixels, void left out, that are right."""
        hit, truth, _ = self._parts
        return (hit.sum() / truth.sum()).item()

    @property
    def recall(self) -> Tensor:
        """Share of each true class that is found, `float64 [C]`; NaN for a class absent from the truth."""
        hit, truth, _ = self._parts
        return hit / truth

    @property
    def precision(self) -> Tensor:
        """Share of each predicted class that is right, `float64 [C]`; NaN for a class never predicted."""
        hit, _, predicted = self._parts
        return hit / predicted

    @property
    def iou(self) -> Tensor:
        """Intersection over union of each class, `float64 [C]`; NaN for a class absent from the truth.

        The official Cityscapes evaluation and torchmetrics give 0 to an absent class that was predicted somewhere, and
        take it into the mean. Here it stays out, so that the classes of the mean depend on the truth alone: two models
        scored on the same frames are averaged over the same classes. With every class in the truth all three agree.
        """
        hit, truth, predicted = self._parts
        return torch.where(truth > 0, hit / (truth + predicted - hit), torch.nan)

    @property
    def class_accuracy(self) -> float:
        """Mean recall over the classes present in the truth."""
        return self.recall.nanmean().item()

    @property
    def mean_iou(self) -> float:
        """Mean IoU over the classes present in the truth."""
        return self.iou.nanmean().item()

    @property
    def frequency_weighted_iou(self) -> float:
        """Mean IoU weighted by the share of each class in the truth."""
        _, truth, _ = self._parts
        return ((self.iou * truth).nansum() / truth.sum()).item()

    def guessing(self, shares: Tensor) -> "ConfusionMatrix":
        """What a guess that never looks at the photo is expected to get on the same truth.

        Args:
            shares: probability of each class being guessed, `float [C]`, summing to 1: all alike for pure chance, the
                class frequencies for the best-informed one.
        """
        _, truth, _ = self._parts
        guess = ConfusionMatrix(self.num_classes, self.ignore_index)
        guess.matrix = torch.outer(truth, shares.double().cpu()).round().long()
        return guess

    def summary(self) -> dict[str, float]:
        """The set-level numbers, in the order of the pix2pix paper, as plain floats."""
        return {
            "pixel_accuracy": self.pixel_accuracy,
            "class_accuracy": self.class_accuracy,
            "mean_iou": self.mean_iou,
            "frequency_weighted_iou": self.frequency_weighted_iou,
        }
