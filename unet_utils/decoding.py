"""Damaged colour masks -> label ids.

The masks of the Kaggle pairs are official Cityscapes label colours (2048x1024) that were resized to 256x256 with
bicubic interpolation and then compressed as JPEG twice. `damage` is that forward model; `decode_masks` undoes it,
with a small convolutional network (`MaskDecoder`) that learned on label maps whose truth is known, damaged by
`damage` itself. `scripts/train_decoder.py` made its weights, without any official label.
"""

import hashlib
import io
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle

from unet_utils.classes import IGNORE, PALETTE_COLORS, PALETTE_IDS, ClassScheme, get_scheme
from unet_utils.model import autocast

SIDE = 256
"""Height and width of a photo and of a mask, in pixels."""
METHODS = ("decoder", "nearest")
"""How `decode_masks` can go from colours to labels."""
WEIGHTS = Path(__file__).parent / "weights" / "decoder.pt"
DECODER_VERSION = hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()[:12] if WEIGHTS.exists() else "untrained"
"""Changes whenever the weights do, so that labels cached under it never outlive their decoder."""


def shrink(pixels: np.ndarray) -> np.ndarray:
    """Resizes `uint8 [H, W, 3]` with bicubic interpolation to `uint8 [256, 256, 3]`, as the pairs were."""
    return np.asarray(Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    """What is left of `uint8 [H, W, 3]` after JPEG compression with 4:2:0 chroma subsampling."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    return np.asarray(Image.open(buffer))


def damage(colors: np.ndarray) -> np.ndarray:
    """Does to a label map in colours what was done to the published masks.

    Args:
        colors: undamaged label colours, `uint8 [H, W, 3]`, of any size (Cityscapes: 1024 x 2048).

    Returns:
        The mask, `uint8 [256, 256, 3]`: bicubic resize, JPEG quality 75, JPEG quality 95, both 4:2:0. On real
        frames this reproduces the published mask to a mean of 0.4 grey levels.
    """
    return jpeg(jpeg(shrink(colors), 75), 95)


@lru_cache(maxsize=4)
def _nearest_cube(colors: tuple[tuple[int, int, int], ...], values: tuple[int, ...]) -> np.ndarray:
    """The value of the nearest of `colors` for every `color_codes` there is, `uint8 [256 * 256 * 256]`, exact."""
    axis = np.arange(256, dtype=np.int32)
    # Squared distance and index in one number: its minimum is the nearest colour, the first of those that are alike.
    red, green, blue = (((axis - channel[:, None]) ** 2) << 8 for channel in np.array(colors, dtype=np.int32).T)
    red |= np.arange(len(colors), dtype=np.int32)[:, None]
    chosen, cube = np.array(values, dtype=np.uint8), np.empty((256, 256, 256), dtype=np.uint8)
    for slab, level in zip(cube, axis, strict=True):  # a slab of equal blue at a time stays in the processor's cache
        best = np.full((256, 256), np.iinfo(np.int32).max, dtype=np.int32)
        for r, plane in zip(red, green + blue[:, level, None], strict=True):
            np.minimum(best, plane[:, None] + r, out=best)
        chosen.take(best & 255, out=slab, mode="clip")
    return cube.reshape(-1)


def color_codes(pixels: np.ndarray) -> np.ndarray:
    """Each colour as one number, red + 256 green + 65536 blue: `uint8 [..., 3]` -> `int32 [...]`."""
    # Four bytes are read at every third, and the one too many is masked off: half the time of shifting and adding.
    # The last colour has no fourth byte.
    flat = np.ascontiguousarray(pixels).reshape(-1)
    codes = np.empty(flat.size // 3, dtype=np.int32)
    np.bitwise_and(np.ndarray(len(codes) - 1, "<i4", flat, strides=3), 0xFFFFFF, out=codes[:-1])
    codes[-1] = int.from_bytes(flat[-3:].tobytes(), "little")
    return codes.reshape(pixels.shape[:-1])


def nearest_color(pixels: np.ndarray, colors: np.ndarray, values: np.ndarray | None = None) -> np.ndarray:
    """The nearest colour (Euclidean in RGB, ties to the first) of each pixel, by look-up table.

    Args:
        pixels: `uint8 [..., 3]`.
        colors: `uint8 [K, 3]` with K at most 255.
        values: what stands for each colour in the answer, `uint8 [K]`; by default its index.

    Returns:
        `uint8 [...]`, each entry one of `values`.
    """
    values = np.arange(len(colors)) if values is None else values
    cube = torch.from_numpy(_nearest_cube(tuple(map(tuple, colors.tolist())), tuple(values.tolist())))
    flat = pixels.reshape(-1, 3)
    found = torch.empty(len(flat), dtype=torch.uint8)
    for start in range(0, len(flat), SIDE * SIDE):  # a piece small enough for the processor's cache
        piece = slice(start, start + SIDE * SIDE)
        torch.index_select(cube, 0, torch.from_numpy(color_codes(flat[piece])), out=found[piece])
    return found.numpy().reshape(pixels.shape[:-1])


class Residual(nn.Module):
    """`x + conv(relu(conv(x)))` at one width; starts as the identity, so a deep stack trains without normalization."""

    def __init__(self, width: int):
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu_()).add_(x)


class MaskDecoder(nn.Module):
    """A two-level U-shaped network from damaged colours to logits of the 29 palette entries.

    `uint8 [B, 3, H, W]` -> `float [B, 29, H, W]`; H and W divide by 16.

    Why this shape: each pixel is described by its colour and by its closeness to each palette colour (that tells
    truck from caravan, 20 grey levels apart). Four pixels are folded into one, because JPEG stored colour at half
    resolution anyway and a convolution there costs a quarter; the lower level sees far enough to know what the
    colours at an edge are a mixture of. JPEG works on blocks of 8x8 (luma) and 16x16 (chroma) pixels: a learned
    16x16 offset tells the network where in its block a pixel lies.
    """

    def __init__(self, width: int = 48, deep: int = 96):
        super().__init__()
        classes = len(PALETTE_COLORS)
        self.register_buffer("palette", torch.tensor(PALETTE_COLORS, dtype=torch.float32), persistent=False)
        self.stem = nn.Conv2d(3 + classes, width, 2, stride=2)
        self.phase = nn.Parameter(torch.zeros(1, width, 8, 8))
        self.enter = Residual(width)
        self.down = nn.Conv2d(width, deep, 2, stride=2)
        self.middle = nn.Sequential(Residual(deep), Residual(deep))
        self.up = nn.Conv2d(deep, 4 * width, 1)
        self.exit = Residual(width)
        self.head = nn.Conv2d(width, 4 * classes, 1)

    def features(self, masks: Tensor) -> Tensor:
        """Colour and closeness to each palette colour, `uint8 [B, 3, H, W]` -> `float [B, 32, H, W]`."""
        pixels = masks.permute(0, 2, 3, 1).float()  # channels last: what the convolutions want
        # |p - c|^2 = |p|^2 - 2 p.c + |c|^2 is one small matrix product, exact in float32, where integers are below
        # 2**24; half precision, which autocast would choose, is off by hundreds. In place, as memory is the bottleneck.
        with torch.autocast(masks.device.type, enabled=False):
            squares = torch.addmm(self.palette.square().sum(1), pixels.flatten(0, 2), self.palette.T, alpha=-2)
        squares = squares.view(*pixels.shape[:3], -1).add_(pixels.square().sum(-1, keepdim=True))
        closeness = squares.clamp_(min=0).sqrt_().mul_(-1 / 16).exp_()
        return torch.cat([pixels / 128 - 1, closeness], dim=-1).permute(0, 3, 1, 2)

    def forward(self, masks: Tensor) -> Tensor:
        x = self.stem(self.features(masks))
        phase = self.phase.to(x.dtype).permute(0, 2, 3, 1).repeat(1, x.shape[2] // 8, x.shape[3] // 8, 1)
        x = self.enter(x.add_(phase.permute(0, 3, 1, 2)).relu_())
        x = pixel_shuffle(self.up(self.middle(self.down(x)).relu_()), 2).add_(x)
        return pixel_shuffle(self.head(self.exit(x).relu_()), 2)


@lru_cache(maxsize=2)
def load_decoder(device: torch.device) -> MaskDecoder:
    """The trained network on `device`, ready to predict.

    Raises:
        FileNotFoundError: the package came without its weights.
    """
    if not WEIGHTS.exists():
        raise FileNotFoundError(f"{WEIGHTS} is missing: fetch the whole package, or run scripts/train_decoder.py")
    model = MaskDecoder()
    model.load_state_dict(torch.load(WEIGHTS, map_location="cpu", weights_only=True))
    return model.eval().to(device, memory_format=torch.channels_last)


def _check(masks: np.ndarray, method: str) -> None:
    if masks.ndim != 4 or masks.shape[-1] != 3 or masks.dtype != np.uint8:
        raise ValueError(f"masks must be uint8 [N, H, W, 3], got {masks.dtype} {list(masks.shape)}")
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}: choose one of {', '.join(METHODS)}")


@torch.inference_mode()
def decode_label_ids(
    masks: np.ndarray,
    method: str = "decoder",
    device: torch.device | str | None = None,
    min_probability: float = 0.0,
) -> np.ndarray:
    """Recovers official label ids from damaged colour masks.

    Args:
        masks: `uint8 [N, H, W, 3]`; for `decoder`, H and W divide by 16, and JPEG's blocks start at the corner.
        method: `decoder`, the trained network, or `nearest`, the nearest official colour.
        device: where the network runs; the GPU if there is one.
        min_probability: pixels whose label the network gives a lower probability become `IGNORE` (255). By
            default none do.

    Returns:
        Label ids out of `PALETTE_IDS`, `uint8 [N, H, W]`.

    Raises:
        ValueError: unknown method, or masks of another shape or type.
        FileNotFoundError: the package came without the network's weights.
    """
    _check(masks, method)
    if method == "nearest":
        return nearest_color(masks, PALETTE_COLORS, PALETTE_IDS)
    if masks.shape[1] % 16 or masks.shape[2] % 16 or 0 in masks.shape[1:3]:
        raise ValueError(f"masks must have sides that divide by 16, got {masks.shape[1]} x {masks.shape[2]}")
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model = load_decoder(device)
    labels = np.empty(masks.shape[:3], dtype=np.uint8)
    # One mask at a time stays in a processor's cache. A batch is always full, so that a mask's labels cannot depend on
    # how many came with it: the sums inside a convolution may be ordered differently at another batch size.
    step = 32 if device.type == "cuda" else 1
    batch = np.zeros((step, *masks.shape[1:]), dtype=np.uint8)
    for start in range(0, len(masks), step):
        part = masks[start : start + step]
        batch[: len(part)] = part
        with autocast(device):
            logits = model(torch.from_numpy(batch).to(device).permute(0, 3, 1, 2))
        codes = torch.from_numpy(PALETTE_IDS).to(device)[logits.max(1).indices]  # faster here than argmax
        if min_probability > 0:
            codes[logits.float().softmax(1).amax(1) < min_probability] = IGNORE
        labels[start : start + step] = codes[: len(part)].cpu().numpy()
    return labels


def label_codes(
    masks: np.ndarray,
    scheme: ClassScheme,
    method: str = "decoder",
    device: torch.device | str | None = None,
    min_probability: float = 0.0,
) -> np.ndarray:
    """The codes that `scheme.encode` takes, `uint8 [N, H, W]`: official label ids, or cluster numbers for `clusters`.

    Arguments and errors as in `decode_masks`.
    """
    if scheme.name == "clusters":  # clusters are colours and nothing else, so the nearest one is the label
        return nearest_color(masks, np.array(scheme.colors, dtype=np.uint8))
    return decode_label_ids(masks, method, device, min_probability)


def decode_masks(
    masks: np.ndarray,
    scheme: str | ClassScheme = "cityscapes19",
    method: str = "decoder",
    device: torch.device | str | None = None,
    min_probability: float = 0.0,
) -> np.ndarray:
    """Recovers class indices from damaged colour masks.

    Args:
        masks: `uint8 [N, H, W, 3]`.
        scheme: name of a class scheme, or a `ClassScheme`. The classes of `clusters` are colours, not labels: there,
            each pixel gets the nearest cluster's, and neither method nor device matters.
        method: see `decode_label_ids`, as for the other arguments.

    Returns:
        Class indices of the scheme, `uint8 [N, H, W]`; `IGNORE` (255) for void.

    Raises:
        ValueError: unknown scheme or method, or masks of another shape or type.
    """
    scheme = get_scheme(scheme)
    _check(masks, method)
    return scheme.encode(label_codes(masks, scheme, method, device, min_probability))
