"""Damaged colour masks -> label ids.

The masks of the Kaggle pairs are official Cityscapes label colours (2048x1024) that were resized to
256x256 with bicubic interpolation and then compressed as JPEG twice. `damage` is that forward
model; `restore_labels` undoes it, with a small convolutional network (`MaskRestorer`) that was
trained on known label maps damaged by `damage` itself. `scripts/train_restorer.py` trains it,
without any official label."""

import hashlib
import io
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle

from unet_utils.classes import PALETTE_COLORS, PALETTE_IDS, ClassScheme, get_scheme
from unet_utils.device import autocast
from unet_utils.platform.environment import find_device

SIDE = 256
"""Height and width of a photo and of a mask, in pixels."""
METHODS = ("restored", "nearest")
"""Ways from mask colours to label ids."""
WEIGHTS = Path(__file__).parent / "weights" / "restorer.pt"


@lru_cache(maxsize=1)
def restorer_version() -> str:
    """Return a hash of the restorer's weights. Cached labels carry it, so that new weights get a
    new cache."""
    return (
        hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()[:12] if WEIGHTS.exists() else "untrained"
    )


def shrink(pixels: np.ndarray) -> np.ndarray:
    """Resize `uint8 [H, W, 3]` to `uint8 [256, 256, 3]` with bicubic interpolation, as the pairs
    were."""
    return np.asarray(Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    """Compress `uint8 [H, W, 3]` as JPEG with 4:2:0 chroma subsampling, and return the decoded
    pixels."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    return np.asarray(Image.open(buffer))


def damage(colors: np.ndarray) -> np.ndarray:
    """Degrade a label map in colours as the published masks were degraded.

    Args:
        colors: undamaged label colours, `uint8 [H, W, 3]`, of any size (Cityscapes: 1024 x 2048).

    Returns:
        The mask, `uint8 [256, 256, 3]`: bicubic resize, JPEG quality 75, JPEG quality 95, both
        4:2:0. On real frames this reproduces the published mask to a mean of 0.4 grey levels.
    """
    return jpeg(jpeg(shrink(colors), 75), 95)


@lru_cache(maxsize=4)
def _nearest_cube(colors: tuple[tuple[int, int, int], ...], values: tuple[int, ...]) -> np.ndarray:
    """Return a look-up table: the value of the nearest of `colors` for each `pack_colors`, `uint8
    [256**3]`, exact."""
    axis = np.arange(256, dtype=np.int32)
    # Squared distance and index packed in one integer, so that one minimum finds both; ties go to
    # the first colour.
    red, green, blue = (
        ((axis - channel[:, None]) ** 2) << 8 for channel in np.array(colors, dtype=np.int32).T
    )
    red |= np.arange(len(colors), dtype=np.int32)[:, None]
    chosen, cube = np.array(values, dtype=np.uint8), np.empty((256, 256, 256), dtype=np.uint8)
    for slab, level in zip(
        cube, axis, strict=True
    ):  # one slab of equal blue at a time fits in the processor's cache
        best = np.full((256, 256), np.iinfo(np.int32).max, dtype=np.int32)
        for r, plane in zip(red, green + blue[:, level, None], strict=True):
            np.minimum(best, plane[:, None] + r, out=best)
        chosen.take(best & 255, out=slab, mode="clip")
    return cube.reshape(-1)


def pack_colors(pixels: np.ndarray) -> np.ndarray:
    """Pack each colour into one number, red + 256 green + 65536 blue: `uint8 [..., 3]` -> `int32
    [...]`."""
    # Read 4 bytes at every third byte and mask the fourth: half the time of shifting and adding.
    # The last colour has no fourth byte, so it is read separately.
    flat = np.ascontiguousarray(pixels).reshape(-1)
    packed = np.empty(flat.size // 3, dtype=np.int32)
    np.bitwise_and(np.ndarray(len(packed) - 1, "<i4", flat, strides=3), 0xFFFFFF, out=packed[:-1])
    packed[-1] = int.from_bytes(flat[-3:].tobytes(), "little")
    return packed.reshape(pixels.shape[:-1])


def nearest_color(
    pixels: np.ndarray, colors: np.ndarray, values: np.ndarray | None = None
) -> np.ndarray:
    """Return the value of the nearest colour (Euclidean in RGB, ties to the first) of each pixel.

    Args:
        pixels: `uint8 [..., 3]`.
        colors: `uint8 [K, 3]` with K at most 255.
        values: value of each colour, `uint8 [K]`; by default its index.

    Returns:
        `uint8 [...]`.
    """
    values = np.arange(len(colors)) if values is None else values
    cube = torch.from_numpy(
        _nearest_cube(tuple(map(tuple, colors.tolist())), tuple(values.tolist()))
    )
    flat = pixels.reshape(-1, 3)
    found = torch.empty(len(flat), dtype=torch.uint8)
    for start in range(0, len(flat), SIDE * SIDE):  # pieces that fit in the processor's cache
        piece = slice(start, start + SIDE * SIDE)
        torch.index_select(cube, 0, torch.from_numpy(pack_colors(flat[piece])), out=found[piece])
    return found.numpy().reshape(pixels.shape[:-1])


class Residual(nn.Module):
    """`x + conv(relu(conv(x)))` at one width. It starts as the identity: a deep stack trains
    without normalization."""

    def __init__(self, width: int):
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu_()).add_(x)


class MaskRestorer(nn.Module):
    """A two-level U-shaped network from damaged colours to logits of the 29 palette entries.

    `uint8 [N, 3, H, W]` -> `float [N, 29, H, W]`; H and W must be divisible by 16.

    Each pixel is described by its colour and by its closeness to each palette colour, which tells
    truck from caravan, 20 grey levels apart. Four pixels are folded into one: JPEG stored the
    colours at half resolution, and a convolution there costs a quarter. The lower level sees far
    enough to know which colours an edge mixes. JPEG works on blocks of 8x8 (luma) and 16x16
    (chroma) pixels; a learned 16x16 offset tells the network where in its block a pixel lies."""

    palette: Tensor

    def __init__(self, width: int = 48, deep: int = 96):
        super().__init__()
        classes = len(PALETTE_COLORS)
        self.register_buffer(
            "palette", torch.tensor(PALETTE_COLORS, dtype=torch.float32), persistent=False
        )
        self.stem = nn.Conv2d(3 + classes, width, 2, stride=2)
        self.phase = nn.Parameter(torch.zeros(1, width, 8, 8))
        self.enter = Residual(width)
        self.down = nn.Conv2d(width, deep, 2, stride=2)
        self.middle = nn.Sequential(Residual(deep), Residual(deep))
        self.up = nn.Conv2d(deep, 4 * width, 1)
        self.exit = Residual(width)
        self.head = nn.Conv2d(width, 4 * classes, 1)

    def features(self, masks: Tensor) -> Tensor:
        """Colour and closeness to each palette colour, `uint8 [N, 3, H, W]` -> `float [N, 32, H,
        W]`."""
        pixels = masks.permute(
            0, 2, 3, 1
        ).float()  # the convolutions are fastest with channels last
        # |p - c|^2 = |p|^2 - 2 p.c + |c|^2 is one small matrix product. It is exact in float32
        # (integers below 2**24); in half precision, which autocast would choose, the error is in
        # the hundreds. In place: memory is the limit.
        with torch.autocast(masks.device.type, enabled=False):
            squares = torch.addmm(
                self.palette.square().sum(1), pixels.flatten(0, 2), self.palette.T, alpha=-2
            )
        squares = squares.view(*pixels.shape[:3], -1).add_(pixels.square().sum(-1, keepdim=True))
        closeness = squares.clamp_(min=0).sqrt_().mul_(-1 / 16).exp_()
        return torch.cat([pixels / 128 - 1, closeness], dim=-1).permute(0, 3, 1, 2)

    def forward(self, masks: Tensor) -> Tensor:
        x = self.stem(self.features(masks))
        phase = (
            self.phase.to(x.dtype)
            .permute(0, 2, 3, 1)
            .repeat(1, x.shape[2] // 8, x.shape[3] // 8, 1)
        )
        x = self.enter(x.add_(phase.permute(0, 3, 1, 2)).relu_())
        x = pixel_shuffle(self.up(self.middle(self.down(x)).relu_()), 2).add_(x)
        return pixel_shuffle(self.head(self.exit(x).relu_()), 2)


@lru_cache(maxsize=2)
def load_restorer(device: torch.device) -> MaskRestorer:
    """Return the trained restorer on `device`, in evaluation mode.

    Raises:
        FileNotFoundError: the package came without its weights.
    """
    if not WEIGHTS.exists():
        raise FileNotFoundError(
            f"{WEIGHTS} is missing: fetch the whole package, or run scripts/train_restorer.py"
        )
    model = MaskRestorer()
    model.load_state_dict(torch.load(WEIGHTS, map_location="cpu", weights_only=True))
    return model.eval().to(device, memory_format=torch.channels_last)


@torch.inference_mode()
def restore_label_ids(
    masks: np.ndarray,
    method: str = "restored",
    device: torch.device | str | None = None,
    scheme: ClassScheme | None = None,
) -> np.ndarray:
    """Recover official label ids from damaged colour masks.

    Args:
        masks: `uint8 [N, H, W, 3]`; for `restored`, H and W divisible by 16, with JPEG's blocks
            starting at the corner.
        method: `restored`, the trained network, or `nearest`, the nearest official colour.
        device: where the network runs; by default the CUDA GPU if there is one, else the CPU.
        scheme: in the scheme `clusters` a label is the nearest cluster centre, whatever the method.
            Other schemes do not change the label ids.

    Returns:
        `uint8 [N, H, W]`, each one of `PALETTE_IDS`.

    Raises:
        ValueError: unknown method, or masks of another shape or type.
        FileNotFoundError: the restorer's weights are missing.
    """
    if masks.ndim != 4 or masks.shape[-1] != 3 or masks.dtype != np.uint8:
        raise ValueError(f"masks must be uint8 [N, H, W, 3], got {masks.dtype} {list(masks.shape)}")
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}: choose one of {', '.join(METHODS)}")
    if scheme and scheme.cluster_colors:
        centers, ids = (
            np.array(values, dtype=np.uint8)
            for values in (scheme.cluster_colors, scheme.cluster_ids)
        )
        return nearest_color(masks, centers, ids)
    if method == "nearest":
        return nearest_color(masks, PALETTE_COLORS, PALETTE_IDS)
    if masks.shape[1] % 16 or masks.shape[2] % 16 or 0 in masks.shape[1:3]:
        raise ValueError(
            f"masks must have sides divisible by 16, got {masks.shape[1]} x {masks.shape[2]}"
        )
    device = torch.device(device or ("cuda" if find_device().type == "cuda" else "cpu"))
    model = load_restorer(device)
    label_ids = np.empty(masks.shape[:3], dtype=np.uint8)
    # One mask at a time fits in a CPU's cache. A batch is always full, so that the labels of a mask
    # do not depend on the number of masks: a convolution may sum in another order at another batch
    # size.
    step = 32 if device.type == "cuda" else 1
    batch = np.zeros((step, *masks.shape[1:]), dtype=np.uint8)
    for start in range(0, len(masks), step):
        part = masks[start : start + step]
        batch[: len(part)] = part
        with autocast(device):
            logits = model(torch.from_numpy(batch).to(device).permute(0, 3, 1, 2))
        found = torch.from_numpy(PALETTE_IDS).to(device)[
            logits.max(1).indices
        ]  # faster than argmax on CPUs
        label_ids[start : start + step] = found[: len(part)].cpu().numpy()
    return label_ids


def restore_labels(
    masks: np.ndarray,
    scheme: str | ClassScheme = "cityscapes19",
    method: str = "restored",
    device: torch.device | str | None = None,
) -> np.ndarray:
    """Recover class indices from damaged colour masks.

    Args:
        masks: `uint8 [N, H, W, 3]`.
        scheme: name of a class scheme, or a `ClassScheme`.
        method, device: as in `restore_label_ids`.

    Returns:
        Class indices of the scheme, `uint8 [N, H, W]`; `IGNORE` (255) for void.

    Raises:
        ValueError: unknown scheme or method, or masks of another shape or type.
    """
    scheme = get_scheme(scheme)
    return scheme.encode(restore_label_ids(masks, method, device, scheme))
