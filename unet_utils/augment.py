"""Photos and labels changed together: on the device, each sample its own way.

The random numbers are drawn on the CPU from one generator, so that a run repeats exactly whatever the device, and
handed over as a few numbers a sample.
"""

import math

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
    size = (size, size) if isinstance(size, int) else size
    x = photos.float()
    if x.shape[2:] != size:
        x = F.interpolate(x, size, mode="bilinear", antialias=True, align_corners=False)
    mean, std = (torch.tensor(values, device=x.device).view(1, 3, 1, 1) * 255 for values in (MEAN, STD))
    return (x - mean) / std


def to_photos(x: Tensor) -> Tensor:
    """Network input `float [N, 3, H, W]` back to something to look at, `uint8 [N, H, W, 3]`."""
    mean, std = (torch.tensor(values, device=x.device).view(1, 3, 1, 1) * 255 for values in (MEAN, STD))
    return (x * std + mean).round().clamp(0, 255).byte().permute(0, 2, 3, 1)


def augment(
    photos: Tensor,
    labels: Tensor,
    size: int,
    generator: torch.Generator,
    max_zoom: float = 2.0,
    max_degrees: float = 5.0,
    color: float = 0.3,
) -> tuple[Tensor, Tensor]:
    """Random flip, zoom and crop, small rotation, and colour, drawn anew for every sample.

    Args:
        photos: `uint8 [N, 3, H, W]`.
        labels: class indices, `uint8 [N, H, W]`.
        size: height and width of the result, pixels.
        generator: CPU generator that the random numbers come from.
        max_zoom: largest zoom in; the smallest is 0.8, which leaves a border of `IGNORE`.
        max_degrees: largest rotation either way, degrees.
        color: largest relative change of brightness, contrast and saturation, and a third of it of each channel.

    Returns:
        network input `float32 [N, 3, size, size]` and labels `int64 [N, size, size]`.
    """
    n, device = len(photos), photos.device

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(n, *shape, generator=generator) * (high - low) + low

    # Geometry: for each output pixel, where in the input it is read, in coordinates from -1 to 1.
    zoom = torch.exp(uniform(math.log(0.8), math.log(max_zoom)))
    flip = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    angle = torch.deg2rad(uniform(-max_degrees, max_degrees))
    shift = uniform(-1, 1, 2) * (1 - 1 / zoom).abs()[:, None]  # any crop that a zoom leaves room for
    cosine, sine = torch.cos(angle) / zoom, torch.sin(angle) / zoom
    matrix = torch.stack(
        [torch.stack([flip * cosine, -sine, shift[:, 0]], 1), torch.stack([flip * sine, cosine, shift[:, 1]], 1)], 1
    ).to(device, non_blocking=True)
    grid = F.affine_grid(matrix, [n, 1, size, size], align_corners=False)
    source = to_input(photos, min(size, photos.shape[-1]))
    x = F.grid_sample(source, grid, padding_mode="reflection", align_corners=False)
    # Labels move by one so that the zeros read outside the frame become IGNORE after moving back.
    moved = (labels.int() + 1).remainder(IGNORE + 1).float()[:, None]
    y = F.grid_sample(moved, grid, mode="nearest", padding_mode="zeros", align_corners=False)[:, 0]
    y = (y.long() - 1).remainder(IGNORE + 1)

    # Colour, on the normalised image, where the mean colour is near zero.
    gain = (uniform(1 - color, 1 + color, 1, 1, 1) * uniform(1 - color / 3, 1 + color / 3, 3, 1, 1)).to(device)
    offset = uniform(-color, color, 1, 1, 1).to(device)
    saturation = uniform(1 - color, 1 + color, 1, 1, 1).to(device)
    grey = x.mean(1, keepdim=True)
    return (grey + (x - grey) * saturation) * gain + offset, y
