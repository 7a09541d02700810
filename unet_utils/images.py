"""Photo -> network input: normalization, resizing, and at which size a network sees photos."""

import torch
import torch.nn.functional as F
from torch import Tensor

from unet_utils.encoders import MEAN, STD

Size = int | tuple[int, int]
"""Height and width, pixels; one number if both are equal."""


def height_and_width(size: Size) -> tuple[int, int]:
    """Return height and width."""
    return (size, size) if isinstance(size, int) else size


def to_device(x: Tensor, device: torch.device | str) -> Tensor:
    """Copy a tensor to the device; to a CUDA GPU without waiting for it."""
    # Asynchronous copies to Apple GPUs may read freed memory:
    # https://github.com/pytorch/pytorch/issues/189690.
    return x.to(device, non_blocking=torch.device(device).type == "cuda")


def resize(photos: Tensor, size: tuple[int, int]) -> Tensor:
    """Return `float32 [N, 3, *size]` from photos `[N, 3, H, W]`: bilinear, with antialiasing."""
    x = photos.float()
    if x.shape[2:] == size:
        return x
    return F.interpolate(x, size, mode="bilinear", antialias=True, align_corners=False)


def to_input(photos: Tensor, size: Size) -> Tensor:
    """Return network input: resized if needed, scaled to about zero mean and unit variance.

    Args:
        photos: `uint8 [N, 3, H, W]`.
        size: height and width of the result, pixels.

    Returns:
        `float32 [N, 3, *size]`.
    """
    x = resize(photos, height_and_width(size))
    mean = torch.tensor(MEAN, device=x.device).view(1, 3, 1, 1) * 255
    std = torch.tensor(STD, device=x.device).view(1, 3, 1, 1) * 255
    return (x - mean) / std


def photo_size(
    height: int, width: int, scene_size: tuple[int, int], divisor: int = 16
) -> tuple[int, int]:
    """Return the height and width of the network's input for a photo of another shape, pixels.

    The scenes that it learned from are 2:1, and squeezed when it sees pairs. Other photos are
    squeezed by the same factor. The width is at most 16 times the height, so that the cost of a
    very wide photo is bounded. Exported models contain this function, too, see `enlarge_classes`.

    Args:
        height, width: of the photo.
        scene_size: at which the network sees a whole street scene, see `evaluation.Trained`.
        divisor: of the network; the width is rounded to a multiple of it.
    """
    # In whole numbers, so that ONNX models round alike.
    steps = (scene_size[1] * width + height * divisor) // (2 * height * divisor)
    return scene_size[0], min(max(1, steps), 16 * scene_size[0] // divisor) * divisor


def enlarge_classes(logits: Tensor, height: int, width: int, most: int = 2**23) -> Tensor:
    """Return the most probable classes after bilinear enlargement, in strips to save memory.

    Written in the part of Python that TorchScript supports: exported models contain this function.

    Args:
        logits: `float32 [N, C, h, w]`.
        height, width: of the result, pixels.
        most: number of values in a strip of rows, 4 bytes each.

    Returns:
        `uint8 [N, height, width]`, the `argmax(1)` of
        `F.interpolate(..., mode="bilinear", align_corners=False)`.
    """
    n, c, h = logits.shape[0], logits.shape[1], logits.shape[2]
    if h == height and logits.shape[3] == width:
        return logits.argmax(1).byte()
    wide = F.interpolate(logits, [h, width], mode="bilinear", align_corners=False)
    # Each row of the result lies between two rows of `wide`, `share` of the way to the lower one.
    centers = ((torch.arange(height, device=logits.device) + 0.5) * (h / height) - 0.5).clamp(
        0, h - 1
    )
    above = centers.floor().long()
    below = (above + 1).clamp(max=h - 1)
    share = (centers - above)[:, None]
    step = max(1, most // (n * c * width))
    strips = []
    for top in range(0, height, step):
        end = top + step
        strip = torch.lerp(wide[:, :, above[top:end]], wide[:, :, below[top:end]], share[top:end])
        strips.append(strip.argmax(1).byte())
    return torch.cat(strips, 1)
