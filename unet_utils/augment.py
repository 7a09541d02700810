"""Random changes of photos and labels together, on the device, independently for each sample.

The random numbers are drawn on the CPU from one generator, so that a run repeats exactly on every
device; only a few numbers per sample are copied to it."""

import math
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from unet_utils.classes import IGNORE
from unet_utils.encoders import MEAN, STD


def to_device(x: Tensor, device: torch.device | str) -> Tensor:
    """Copy a tensor to the device; to a CUDA GPU without waiting for it."""
    # Asynchronous copies to Apple GPUs may read freed memory:
    # https://github.com/pytorch/pytorch/issues/189690.
    return x.to(device, non_blocking=torch.device(device).type == "cuda")


def to_input(photos: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Return network input: resized with antialiasing if needed, and scaled to about zero mean and
    unit variance.

    Args:
        photos: `uint8 [N, 3, H, W]`.
        size: height and width of the result, pixels.

    Returns:
        `float32 [N, 3, *size]`.
    """
    x = _resize(photos, (size, size) if isinstance(size, int) else size)
    mean, std = (
        torch.tensor(values, device=x.device).view(1, 3, 1, 1) * 255 for values in (MEAN, STD)
    )
    return (x - mean) / std


def _resize(photos: Tensor, size: tuple[int, int]) -> Tensor:
    x = photos.float()
    if x.shape[2:] == size:
        return x
    return F.interpolate(x, size, mode="bilinear", antialias=True, align_corners=False)


def to_photos(x: Tensor) -> Tensor:
    """Turn network input `float [N, 3, H, W]` back into photos `uint8 [N, H, W, 3]`."""
    mean, std = (
        torch.tensor(values, device=x.device).view(1, 3, 1, 1) * 255 for values in (MEAN, STD)
    )
    return (x * std + mean).round().clamp(0, 255).byte().permute(0, 2, 3, 1)


def crop_share(height: int, width: int, image_size: int) -> tuple[float, float]:
    """Return the share of a frame's height and width that a network of this image size learns from.

    Square frames are whole scenes, squeezed, and are used whole. Frames of another shape are
    cropped to squares.

    Args:
        height, width: of the frames, pixels.
        image_size: height and width of the network's input, pixels.

    Raises:
        ValueError: the frames are smaller than such a crop.
    """
    if height == width:
        return 1.0, 1.0
    if image_size > min(height, width):
        raise ValueError(
            f"image_size is {image_size}, but the frames are only {width}x{height} pixels: lower it"
        )
    return image_size / height, image_size / width


@dataclass(frozen=True)
class Changes:
    """The random changes of each sample of a batch: `float32` tensors of length N, on the CPU.

    Attributes:
        matrix: `[N, 2, 3]`, maps coordinates of the result to coordinates of the photo, both from
            -1 to 1.
        gain: `[N, 3]`, factor of each colour channel.
        offset: `[N]`, added to all channels, in standard deviations.
        saturation: `[N]`, factor of the distance from grey.
    """

    matrix: Tensor
    gain: Tensor
    offset: Tensor
    saturation: Tensor

    def colors(self) -> tuple[Tensor, Tensor]:
        """Return the map from colours of 0 to 255 to network input: a matrix `[N, 3, 3]` and an
        offset `[N, 3, 1]`."""
        mean, std = torch.tensor(MEAN) * 255, torch.tensor(STD) * 255
        saturation = self.saturation[:, None, None]
        # Saturation, then gain and offset, all on normalized colours, whose mean is near zero.
        factors = (torch.eye(3) * saturation + (1 - saturation) / 3) * self.gain[:, :, None] / std
        return factors, self.offset[:, None, None] - factors @ mean[:, None]

    def part(self, where: slice) -> "Changes":
        """Return the changes of some of the samples."""
        return Changes(*(getattr(self, field.name)[where] for field in fields(self)))


def draw_changes(
    n: int,
    generator: torch.Generator,
    strength: float = 1.0,
    share: tuple[float, float] = (1.0, 1.0),
) -> Changes:
    """Draw a random flip, zoom and crop, small rotation, and colour for each of `n` samples.

    Args:
        n: number of samples.
        generator: CPU generator of the random numbers.
        strength: at 1, zoom from 0.8 (with a border of `IGNORE`) to 2, rotation by up to 5 degrees,
            brightness, contrast and saturation changed by up to 30 %, each colour channel by up to
            10 %. At 0, only the flip.
        share: of the photo's height and width that a sample shows before zooming, from
            `crop_share`.
    """
    max_log_zoom, max_degrees, color = strength * math.log(2), 5 * strength, 0.3 * strength

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(n, *shape, generator=generator) * (high - low) + low

    zoom = torch.exp(uniform(-max_log_zoom / 3, max_log_zoom))
    flip = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    angle = torch.deg2rad(uniform(-max_degrees, max_degrees))
    height, width = share
    # The crop lies anywhere in the photo.
    shift = uniform(-1, 1, 2) * (1 - torch.tensor([width, height]) / zoom[:, None]).abs()
    cosine, sine = torch.cos(angle) / zoom, torch.sin(angle) / zoom
    rows = (
        [flip * cosine * width, -sine * width, shift[:, 0]],
        [flip * sine * height, cosine * height, shift[:, 1]],
    )
    return Changes(
        matrix=torch.stack([torch.stack(row, dim=1) for row in rows], dim=1),
        gain=uniform(1 - color, 1 + color, 1) * uniform(1 - color / 3, 1 + color / 3, 3),
        offset=uniform(-color, color),
        saturation=uniform(1 - color, 1 + color),
    )


def augment(
    photos: Tensor,
    labels: Tensor,
    size: int,
    changes: Changes,
    share: tuple[float, float] = (1.0, 1.0),
) -> tuple[Tensor, Tensor]:
    """Apply the changes to photos and labels, on their device.

    Args:
        photos: `uint8 [N, 3, H, W]`.
        labels: class indices, `uint8 [N, H, W]`.
        size: height and width of the result, pixels.
        changes: of each sample, from `draw_changes`.
        share: as in `draw_changes`.

    Returns:
        network input `float32 [N, 3, size, size]` and labels `int64 [N, size, size]`.
    """
    device, n = photos.device, len(photos)
    grid = _grid(to_device(changes.matrix, device), size)
    # Downsample first, if the result is smaller: grid_sample has no antialiasing.
    height, width = (
        min(side, round(size / part)) for side, part in zip(photos.shape[2:], share, strict=True)
    )
    x = F.grid_sample(
        _resize(photos, (height, width)), grid, padding_mode="reflection", align_corners=False
    )
    # grid_sample can only pad with zeros. Shift the labels by one, so that 0 means IGNORE, and
    # shift them back.
    shifted = (labels.int() + 1).remainder(IGNORE + 1).float()[:, None]
    y = F.grid_sample(shifted, grid, mode="nearest", padding_mode="zeros", align_corners=False)[
        :, 0
    ]
    y = (y.long() - 1).remainder(IGNORE + 1)
    # Normalization and colour are one 3x3 matrix per sample: one pass over the pixels.
    factors, offsets = (to_device(values, device) for values in changes.colors())
    return torch.baddbmm(offsets, factors, x.view(n, 3, -1)).view_as(x), y


def _grid(matrix: Tensor, size: int) -> Tensor:
    """Compute what `F.affine_grid` does, in a fifth of its time: `[N, 2, 3] -> [N, size, size,
    2]`."""
    steps = torch.arange(size, device=matrix.device) * (2 / size) + (1 / size - 1)
    along, down, shift = matrix[:, None, None].unbind(-1)  # each [N, 1, 1, 2]
    return (along * steps[:, None] + shift) + down * steps[:, None, None]
