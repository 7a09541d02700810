"""Segmentation metrics, all computed from one confusion matrix over the whole set.

Averaging the mIoU of batches or frames skips the classes that a batch does not show, and inflates
the score. One matrix over the whole set, as in the Cityscapes benchmark, does not."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unet_utils.classes import IGNORE


class ConfusionMatrix:
    """Counts of (true class, predicted class) pairs over any number of `update` calls.

    Args:
        num_classes: number of classes C.
        ignore_index: target value of pixels that are left out.
        no_answer: take `ignore_index` as a prediction too, for "no class of these". It is wrong
            wherever the target has a class, as in the official Cityscapes evaluation. Without this,
            it is an error: our networks always answer.

    Attributes:
        matrix: `int64 [C, C]`, rows are the truth, columns the prediction; with `no_answer` one
            more column, `int64 [C, C + 1]`.
    """

    def __init__(self, num_classes: int, ignore_index: int = IGNORE, no_answer: bool = False):
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.matrix = torch.zeros(num_classes, num_classes + no_answer, dtype=torch.int64)

    def update(self, pred: Tensor | np.ndarray, target: Tensor | np.ndarray) -> None:
        """Add a batch of label maps.

        Args:
            pred: predicted classes, integers of any shape, each in `[0, C)` where the target is not
                ignored; with `no_answer` also `ignore_index`.
            target: true classes, same shape, each in `[0, C)` or `ignore_index`.

        Raises:
            ValueError: shapes differ, values are not integers, or a class lies outside `[0, C)`.
        """
        pred, target = torch.as_tensor(pred), torch.as_tensor(target)
        if pred.shape != target.shape:
            shapes = f"pred {list(pred.shape)} and target {list(target.shape)}"
            raise ValueError(f"{shapes} differ in shape")
        for name, values in (("pred", pred), ("target", target)):
            if values.is_floating_point() or values.is_complex():
                advice = "use logits.argmax(1), or .long()"
                raise ValueError(f"{name} holds {values.dtype}, not class indices: {advice}")
        # int32 holds C * C and needs half the memory traffic of int64; everything stays on the
        # device of `pred`.
        pred, target = pred.flatten().int(), target.to(pred.device).flatten().int()
        # One bincount finds everything, without selecting pixels first: values out of range land in
        # one extra row or column (number c), ignored pixels in one more row (number c + 1).
        c = self.num_classes
        width = self.matrix.shape[1]
        rows = torch.where((target >= 0) & (target < c), target, c)
        rows.masked_fill_(target == self.ignore_index, c + 1)
        columns = torch.where((pred >= 0) & (pred < c), pred, width)
        if width > c:
            columns.masked_fill_(pred == self.ignore_index, c)
        cells = rows.mul_(width + 1).add_(columns)
        counts = torch.bincount(cells, minlength=(c + 2) * (width + 1))
        counts = counts.view(c + 2, width + 1)[: c + 1]
        if counts[c].any() or counts[:, width].any():
            name, values = ("target", target) if counts[c].any() else ("pred", pred)
            seen = torch.unique(values[target != self.ignore_index]).tolist()
            raise ValueError(
                f"{name} has classes outside 0 to {c - 1}: it holds {seen}. Another class scheme?"
            )
        self.matrix = self.matrix.to(counts.device) + counts[:c, :width]

    @classmethod
    def total(cls, matrices: Iterable["ConfusionMatrix"]) -> "ConfusionMatrix":
        """Return the matrix of all pixels of several matrices together."""
        matrices = list(matrices)
        result = cls(matrices[0].num_classes, matrices[0].ignore_index)
        result.matrix = torch.stack([matrix.matrix for matrix in matrices]).sum(0)
        return result

    def merge(self, new_index: Sequence[int]) -> "ConfusionMatrix":
        """Return the matrix after merging classes, as if truth and prediction had been relabelled.

        Args:
            new_index: for each class, the index of the class that it becomes a part of.
        """
        index = torch.as_tensor(new_index, device=self.matrix.device)
        no_answer = self.matrix.shape[1] > self.num_classes
        result = ConfusionMatrix(int(index.max()) + 1, self.ignore_index, no_answer)
        # The column of no answer comes after the merged classes, as before.
        columns = F.pad(index, (0, int(no_answer)), value=result.num_classes)
        flat = (index[:, None] * result.matrix.shape[1] + columns).flatten()
        merged = torch.zeros(result.matrix.numel(), dtype=torch.int64, device=flat.device)
        result.matrix = merged.index_add(0, flat, self.matrix.flatten()).view_as(result.matrix)
        return result

    @property
    def _parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """Pixels of each class that are right, true and predicted, `float64 [C]` on the CPU."""
        counts = self.matrix.cpu().double()  # in this order: Apple GPUs have no float64
        return counts.diagonal(), counts.sum(1), counts.sum(0)[: self.num_classes]

    @property
    def pixel_accuracy(self) -> float:
        """Share of the pixels that are right, ignored pixels left out; NaN without any pixel."""
        hit, truth, _ = self._parts
        return (hit.sum() / truth.sum()).item()

    @property
    def recall(self) -> Tensor:
        """Share of each true class that is found, `float64 [C]`; NaN for a class absent from the
        truth."""
        hit, truth, _ = self._parts
        return hit / truth

    @property
    def precision(self) -> Tensor:
        """Share of each predicted class that is right, `float64 [C]`; NaN for a class never
        predicted."""
        hit, _, predicted = self._parts
        return hit / predicted

    @property
    def iou(self) -> Tensor:
        """Intersection over union of each class, `float64 [C]`; NaN for a class absent from the
        truth.

        The official Cityscapes evaluation and torchmetrics give 0 to an absent class that is
        predicted somewhere, and include it in the mean. Here it is left out, so that the classes in
        the mean depend on the truth alone: two models scored on the same frames are averaged over
        the same classes. When every class is in the truth, all three agree."""
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
        """Return the expected matrix of a guess that ignores the photo, on the same truth.

        Args:
            shares: probability of guessing each class, `float [C]`, summing to 1: equal for pure
                chance, the class frequencies for the best-informed guess.
        """
        _, truth, _ = self._parts
        guess = ConfusionMatrix(self.num_classes, self.ignore_index)
        guess.matrix = torch.outer(truth, shares.cpu().double()).round().long()
        return guess

    def summary(self) -> dict[str, float]:
        """Return the scores of the set as plain floats, in the order of the pix2pix paper."""
        return {
            "pixel_accuracy": self.pixel_accuracy,
            "class_accuracy": self.class_accuracy,
            "mean_iou": self.mean_iou,
            "frequency_weighted_iou": self.frequency_weighted_iou,
        }


def bootstrap_mean_iou(matrices: list[ConfusionMatrix], rounds: int = 1000) -> tuple[float, float]:
    """Return the 95 % interval of the mIoU when the frames are drawn again with replacement.

    This is Efron's percentile bootstrap (https://doi.org/10.1214/aos/1176344552). It measures how
    much the score depends on which frames are in the set, nothing else.

    Args:
        matrices: one per frame.
        rounds: number of draws, always the same ones.
    """
    counts = torch.stack([matrix.matrix for matrix in matrices]).cpu().double()
    rng = np.random.default_rng(0)
    total = ConfusionMatrix(matrices[0].num_classes)
    scores = []
    for _ in range(rounds):
        drawn = np.bincount(rng.integers(len(counts), size=len(counts)), minlength=len(counts))
        weighted = torch.tensordot(torch.from_numpy(drawn).double(), counts, dims=1)
        total.matrix = weighted.round().long()
        scores.append(total.mean_iou)
    # A score is NaN if only frames without a labelled pixel were drawn.
    low, high = np.nanquantile(scores, [0.025, 0.975])
    return float(low), float(high)
