"""Random changes of photos and labels together, on the device, independently for each sample.

The random numbers are drawn on the CPU from one generator, so that a run repeats exactly on every
device; only a few numbers per sample are copied to it.
"""

import math
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from unet_utils.classes import IGNORE
from unet_utils.encoders import MEAN, STD
from unet_utils.images import Size, height_and_width, resize, to_device

BOXES = 3
"""Boxes that CutMix pastes into a photo. Several small ones teach more than a large one
(https://arxiv.org/abs/1906.01916)."""


@dataclass(frozen=True)
class Changes:
    """The random changes of each sample of a batch: `float32` tensors of length N, on the CPU.

    Attributes:
        matrix: `[N, 2, 3]`, maps coordinates of the result to coordinates of the photo, both from
            -1 to 1.
        gain: `[N, 3]`, factor of each colour channel.
        offset: `[N]`, added to all channels, in standard deviations.
        saturation: `[N]`, factor of the distance from grey.
        boxes: `[N, BOXES, 4]`, top, bottom, left and right of the boxes that are filled by what the
            neighbour in the batch has there, from 0 to 1; `[N, 0, 4]` without CutMix.
    """

    matrix: Tensor
    gain: Tensor
    offset: Tensor
    saturation: Tensor
    boxes: Tensor

    def colors(self) -> tuple[Tensor, Tensor]:
        """Return the map from colours of 0 to 255 to network input.

        Returns:
            a matrix `[N, 3, 3]` and an offset `[N, 3, 1]`.
        """
        mean = torch.tensor(MEAN) * 255
        std = torch.tensor(STD) * 255
        saturation = self.saturation[:, None, None]
        # Saturation, then gain and offset, all on normalized colours, whose mean is near zero.
        factors = (torch.eye(3) * saturation + (1 - saturation) / 3) * self.gain[:, :, None] / std
        return factors, self.offset[:, None, None] - factors @ mean[:, None]

    def part(self, where: slice) -> "Changes":
        """Return the changes of some of the samples."""
        return Changes(*(getattr(self, field.name)[where] for field in fields(self)))


def draw_changes(
    n: int, generator: torch.Generator, strength: float = 1.0, cutmix: float = 0.0
) -> Changes:
    """Draw a random flip, zoom and crop, small rotation, colour and boxes for each of `n` samples.

    Args:
        n: number of samples.
        generator: CPU generator of the random numbers.
        strength: at 1, zoom from 0.8 (with a border of `IGNORE`) to 2, rotation by up to 5 degrees,
            brightness, contrast and saturation changed by up to 30 %, each colour channel by up to
            10 %. At 0, only the flip.
        cutmix: share of the samples that get boxes of another one.
    """
    max_log_zoom = strength * math.log(2)
    max_degrees = 5 * strength
    color = 0.3 * strength

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(n, *shape, generator=generator) * (high - low) + low

    zoom = torch.exp(uniform(-max_log_zoom / 3, max_log_zoom))
    flip = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    angle = torch.deg2rad(uniform(-max_degrees, max_degrees))
    # What is seen lies anywhere in the photo.
    shift = uniform(-1, 1, 2) * (1 - 1 / zoom[:, None]).abs()
    cosine = torch.cos(angle) / zoom
    sine = torch.sin(angle) / zoom
    x = torch.stack([flip * cosine, -sine, shift[:, 0]], dim=1)
    y = torch.stack([flip * sine, cosine, shift[:, 1]], dim=1)
    return Changes(
        matrix=torch.stack([x, y], dim=1),
        gain=uniform(1 - color, 1 + color, 1) * uniform(1 - color / 3, 1 + color / 3, 3),
        offset=uniform(-color, color),
        saturation=uniform(1 - color, 1 + color),
        boxes=_draw_boxes(n, generator, cutmix),
    )


def _draw_boxes(n: int, generator: torch.Generator, share: float) -> Tensor:
    """Draw the boxes of CutMix (https://arxiv.org/abs/1905.04899) for a share of the samples."""
    if share == 0:
        return torch.zeros(n, 0, 4)
    sides = torch.rand(n, BOXES, 2, generator=generator) * 0.4 + 0.2
    sides *= torch.rand(n, 1, 1, generator=generator) < share
    starts = torch.rand(n, BOXES, 2, generator=generator) * (1 - sides)
    ends = starts + sides
    return torch.stack([starts[..., 0], ends[..., 0], starts[..., 1], ends[..., 1]], dim=-1)


def augment(photos: Tensor, labels: Tensor, size: Size, changes: Changes) -> tuple[Tensor, Tensor]:
    """Apply the changes to photos and labels, on their device.

    Args:
        photos: `uint8 [N, 3, H, W]`.
        labels: class indices, `uint8 [N, H, W]`.
        size: height and width of the result, pixels.
        changes: of each sample, from `draw_changes`.

    Returns:
        network input `float32 [N, 3, *size]` and labels `int64 [N, *size]`.
    """
    device = photos.device
    height, width = height_and_width(size)
    grid = _grid(to_device(changes.matrix, device), height, width)
    # Reduce first, if the result is smaller: grid_sample has no antialiasing.
    reduced = resize(photos, (min(photos.shape[2], height), min(photos.shape[3], width)))
    x = F.grid_sample(reduced, grid, padding_mode="reflection", align_corners=False)
    # grid_sample can only pad with zeros. Shift the labels by one, so that 0 means IGNORE, and
    # shift them back.
    shifted = (labels.int() + 1).remainder(IGNORE + 1).float()[:, None]
    y = F.grid_sample(shifted, grid, mode="nearest", padding_mode="zeros", align_corners=False)
    y = (y[:, 0].long() - 1).remainder(IGNORE + 1)
    # Normalization and colour are one 3x3 matrix per sample: one pass over the pixels.
    factors, offsets = (to_device(values, device) for values in changes.colors())
    x = torch.baddbmm(offsets, factors, x.flatten(2)).view_as(x)
    if changes.boxes.shape[1]:
        x, y = _paste(x, y, to_device(changes.boxes, device))
    return x, y


def _paste(x: Tensor, y: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Fill the boxes of each sample with what its neighbour has at the same place: streets are
    above streets. Photo and labels as `augment` returns them."""
    # Neighbours are 0 and 1, 2 and 3, ...: in an even part of a batch the same as in all of it. The
    # last of an odd number is its own neighbour, and stays as it is.
    neighbor = (torch.arange(len(x), device=x.device) ^ 1).clamp(max=len(x) - 1)
    rows = (torch.arange(x.shape[2], device=x.device) + 0.5) / x.shape[2]
    columns = (torch.arange(x.shape[3], device=x.device) + 0.5) / x.shape[3]
    top, bottom, left, right = boxes[..., None].unbind(2)  # each [N, BOXES, 1]
    in_rows = (top < rows) & (rows < bottom)
    in_columns = (left < columns) & (columns < right)
    inside = (in_rows[:, :, :, None] & in_columns[:, :, None, :]).any(1)
    return torch.where(inside[:, None], x[neighbor], x), torch.where(inside, y[neighbor], y)


def _grid(matrix: Tensor, height: int, width: int) -> Tensor:
    """Compute what `F.affine_grid` does, in a fifth of its time.

    `[N, 2, 3] -> [N, height, width, 2]`.
    """
    columns = torch.arange(width, device=matrix.device) * (2 / width) + (1 / width - 1)
    rows = torch.arange(height, device=matrix.device) * (2 / height) + (1 / height - 1)
    along, down, shift = matrix[:, None, None].unbind(-1)  # each [N, 1, 1, 2]
    return (along * columns[:, None] + shift) + down * rows[:, None, None]
