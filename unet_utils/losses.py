"""The loss: cross-entropy with class weights, and auxiliary heads that help to train the expanding
path."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

from unet_utils.classes import IGNORE
from unet_utils.model import OtherNetwork, UNet


def class_weights(counts: Tensor, power: float) -> Tensor:
    """Return loss weights: the inverse class frequency to a power, scaled so that the mean weight
    of a pixel is 1.

    Args:
        counts: pixels of each class, `int64 [C]`.
        power: 0 for equal weights, 1 for the full inverse frequency.

    Returns:
        `float32 [C]`; a class without pixels gets weight 1.
    """
    share = counts.double() / counts.sum()
    weights = torch.where(counts > 0, share.clamp(min=1e-4) ** -power, 0)
    weights = weights / (share * weights).sum()
    return torch.where(counts > 0, weights, 1.0).float()


def prior_correction(weights: Tensor, strength: float) -> Tensor:
    """Return what to add to the logits of a network trained with these class weights, `float [C]`.

    A weight w in the loss acts like w times as many pixels of the class, and raises its logit by
    log(w). Taking a part of that back trades rare classes for pixel accuracy
    (https://arxiv.org/abs/2007.07314).

    Args:
        weights: `float [C]`.
        strength: 0 for no correction, 1 to remove the shift.
    """
    return -strength * weights.log()


class AuxiliaryHeads(nn.Module):
    """A UNet with a 1x1 convolution on each level of its expanding path (deep supervision), for
    training only.

    `float [N, in, H, W]` to a list of logits: those of the UNet first, then those of each level,
    coarse to fine.

    Args:
        model: the network.
        use: False for no heads, only the logits of the UNet.
    """

    def __init__(self, model: UNet | OtherNetwork, use: bool):
        super().__init__()
        self.model = model
        channels = model.expanding_channels if use else []
        self.heads = nn.ModuleList(nn.Conv2d(c, model.config["num_classes"], 1) for c in channels)

    def forward(self, x: Tensor) -> list[Tensor]:
        if isinstance(self.model, OtherNetwork):
            return [self.model(x)]
        _, expanding = self.model.features(x)
        outputs = [self.model.unfold(self.model.head(expanding[-1]))]
        for head, features in zip(self.heads, expanding, strict=False):
            outputs.append(head(features))
        return outputs


def segmentation_loss(
    outputs: list[Tensor],
    labels: Tensor,
    weights: Tensor,
    auxiliary: float,
    sum_processes: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """Return the loss of the UNet's logits, and the total with the auxiliary heads.

    Args:
        outputs: logits `float [N, C, h, w]` from `AuxiliaryHeads`, the full-size ones first.
        labels: class indices, `int64 [N, H, W]`.
        weights: of the classes, `float [C]`.
        auxiliary: weight of the mean loss of the auxiliary heads.
        sum_processes: sums a tensor over the processes that share the batch.
    """
    losses = []
    for logits in outputs:
        y = labels
        if logits.shape[2:] != labels.shape[1:]:
            y = interpolate(labels[:, None].float(), logits.shape[2:], mode="nearest")[:, 0].long()
        # One row per pixel, as the logits lie in memory: several times faster than along the second
        # of four dimensions.
        rows = logits.permute(0, 2, 3, 1).flatten(0, 2).float()
        # Not reduction="sum", which GPUs compute with few threads.
        loss = cross_entropy(rows, y.flatten(), weights, ignore_index=IGNORE, reduction="none")
        # Sum, then divide by the labelled pixels of the whole batch: a batch without any gives 0,
        # not NaN.
        losses.append(loss.sum() / sum_processes((y != IGNORE).sum()).clamp(min=1))
    if len(losses) == 1:
        return losses[0], losses[0]
    return losses[0], losses[0] + auxiliary * torch.stack(losses[1:]).mean()
