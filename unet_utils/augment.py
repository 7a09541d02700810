"""Photos and labels changed together: on the device, each sample its own way.

The random numbers are drawn on the CPU from one generator, so that a run repeats exactly whatever the device, and
handed over as a few numbers a sample.
"""

import math
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from unet_utils.classes import IGNORE

# Statistics of ImageNet, in RGB: what torchvision's pretrained encoders expect, and as good as any for the others.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def to_input(photos: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Turns photos into network input: resized with antialiasing where needed, scaled to about unit variance.

    Args:
        photos: `uint8 [N, 3, H, W]`.
        size: height and width of the result, pixels.

    Returns:
        `float32 [N, 3, *size]`.
    """
    x = _resize(photos, (size, size) if isinstance(size, int) else size)
    mean, std = (torch.tensor(values, device=x.device).view(1, 3, 1, 1) * 255 for values in (MEAN, STD))
    return (x - mean) / std


def _resize(photos: Tensor, size: tuple[int, int]) -> Tensor:
    x = photos.float()
    if x.shape[2:] == size:
        return x
    return F.interpolate(x, size, mode="bilinear", antialias=True, align_corners=False)


def to_photos(x: Tensor) -> Tensor:
    """Network input `float [N, 3, H, W]` back to something to look at, `uint8 [N, H, W, 3]`."""
    mean, std = (torch.tensor(values, device=x.device).view(1, 3, 1, 1) * 255 for values in (MEAN, STD))
    return (x * std + mean).round().clamp(0, 255).byte().permute(0, 2, 3, 1)


@dataclass(frozen=True)
class Changes:
    """How each sample of a batch is changed: `float32` tensors of length N, on the CPU.

    Attributes:
        matrix: `[N, 2, 3]`, where in the photo each place of the result is read, in coordinates from -1 to 1.
        gain: `[N, 3]`, factor of each colour channel.
        offset: `[N]`, added to all channels, in standard deviations.
        saturation: `[N]`, factor of the distance from grey.
    """

    matrix: Tensor
    gain: Tensor
    offset: Tensor
    saturation: Tensor

    def colors(self) -> tuple[Tensor, Tensor]:
        """From colours of 0 to 255 to changed network input: a matrix `[N, 3, 3]` and what is added, `[N, 3, 1]`."""
        mean, std = torch.tensor(MEAN) * 255, torch.tensor(STD) * 255
        saturation = self.saturation[:, None, None]
        # On normalised colours, where the mean is near zero: away from grey or towards it, then gain and offset.
        factors = (torch.eye(3) * saturation + (1 - saturation) / 3) * self.gain[:, :, None] / std
        return factors, self.offset[:, None, None] - factors @ mean[:, None]

    def part(self, where: slice) -> "Changes":
        """Those of some of the samples."""
        return Changes(*(getattr(self, field.name)[where] for field in fields(self)))


def draw_changes(
    n: int, generator: torch.Generator, strength: float = 1.0, view: tuple[float, float] = (1.0, 1.0)
) -> Changes:
    """Draws a random flip, zoom and crop, small rotation, and colour for each of `n` samples.

    Args:
        generator: CPU generator that the random numbers come from.
        strength: at 1, zoom from 0.8 (which leaves a border of `IGNORE`) to 2, rotation up to 5 degrees either way,
            brightness, contrast and saturation changed by up to 30 %, each colour channel by up to 10 %. At 0 only
            the flip.
        view: share of the photo's height and width that a sample shows before it is zoomed: all of it, or a crop.
    """
    max_log_zoom, max_degrees, color = strength * math.log(2), 5 * strength, 0.3 * strength

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(n, *shape, generator=generator) * (high - low) + low

    zoom = torch.exp(uniform(-max_log_zoom / 3, max_log_zoom))
    flip = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    angle = torch.deg2rad(uniform(-max_degrees, max_degrees))
    height, width = view
    # Any crop that there is room for.
    shift = uniform(-1, 1, 2) * (1 - torch.tensor([width, height]) / zoom[:, None]).abs()
    cosine, sine = torch.cos(angle) / zoom, torch.sin(angle) / zoom
    rows = [flip * cosine * width, -sine * width, shift[:, 0]], [flip * sine * height, cosine * height, shift[:, 1]]
    return Changes(
        matrix=torch.stack([torch.stack(row, dim=1) for row in rows], dim=1),
        gain=uniform(1 - color, 1 + color, 1) * uniform(1 - color / 3, 1 + color / 3, 3),
        offset=uniform(-color, color),
        saturation=uniform(1 - color, 1 + color),
    )


def augment(
    photos: Tensor, labels: Tensor, size: int, changes: Changes, view: tuple[float, float] = (1.0, 1.0)
) -> tuple[Tensor, Tensor]:
    """Changes photos and labels together, on their device, each sample its own way.

    Args:
        photos: `uint8 [N, 3, H, W]`.
        labels: class indices, `uint8 [N, H, W]`.
        size: height and width of the result, pixels.
        changes: of each sample, from `draw_changes`.
        view: what `changes` were drawn for.

    Returns:
        network input `float32 [N, 3, size, size]` and labels `int64 [N, size, size]`.
    """
    device, n = photos.device, len(photos)
    grid = _grid(changes.matrix.to(device, non_blocking=True), size)
    # Made smaller first, as much as the sample will be: that needs antialiasing, which sampling a grid has not.
    source = _resize(
        photos, tuple(min(side, round(size / share)) for side, share in zip(photos.shape[2:], view, strict=True))
    )
    x = F.grid_sample(source, grid, padding_mode="reflection", align_corners=False)
    # Labels move by one so that the zeros read outside the frame become IGNORE after moving back.
    moved = (labels.int() + 1).remainder(IGNORE + 1).float()[:, None]
    y = F.grid_sample(moved, grid, mode="nearest", padding_mode="zeros", align_corners=False)[:, 0]
    y = (y.long() - 1).remainder(IGNORE + 1)
    # Normalisation and colour are one small matrix a sample, so the pixels are gone through once.
    factors, shifts = (values.to(device, non_blocking=True) for values in changes.colors())
    return torch.baddbmm(shifts, factors, x.view(n, 3, -1)).view_as(x), y


def _grid(matrix: Tensor, size: int) -> Tensor:
    """What `F.affine_grid` gives, in a fifth of its time: `[N, 2, 3] -> [N, size, size, 2]`."""
    steps = torch.arange(size, device=matrix.device) * (2 / size) + (1 / size - 1)
    along, down, shift = matrix[:, None, None].unbind(-1)  # each [N, 1, 1, 2]
    return (along * steps[:, None] + shift) + down * steps[:, None, None]
