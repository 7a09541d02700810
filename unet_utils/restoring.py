"""Damaged colour masks -> label ids.

The masks of the Kaggle pairs are official Cityscapes label colours (2048x1024) that were resized to
256x256 with bicubic interpolation and then compressed as JPEG twice. `damage` repeats these steps;
`restore_labels` undoes them, with a small convolutional network (`MaskRestorer`) that was trained
on known label maps damaged by `damage`. `scripts/train_restorer.py` trains it, without any official
label.

Labels are the same on every processor: all computing is in float32, and where two classes are too
close for float32 to decide, in float64."""

import hashlib
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle

from unet_utils.classes import PALETTE_COLORS, PALETTE_IDS, ClassScheme, get_scheme
from unet_utils.device import RESTART, explain_errors, find_device

SIDE = 256
"""Height and width of a photo and of a mask, in pixels."""
METHODS = ("restored", "nearest")
"""Ways from mask colours to label ids."""
WEIGHTS = Path(__file__).parent / "weights" / "restorer.pt"
REFERENCE = WEIGHTS.with_name("reference_labels.npz")
"""Checksums of the restored labels of the Kaggle set, from `scripts/reference_labels.py`: for the
fingerprint of each split, `uint32 [N]`."""
COMPUTATION = b"float32, ties in float64"
"""How the labels are computed. Change it with everything that changes labels, the weights aside."""
BLOCK = 16
"""Side of the blocks of pixels in which JPEG stores colours at half resolution."""
DOUBT = 3e-4
"""Distance of the two largest logits below which float32 does not decide. The sums of a convolution
are rounded differently on every processor; measured, that moves a distance by up to 2e-5."""


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
def _nearest_cube(colors: bytes, values: bytes) -> np.ndarray:
    """Return the value of the nearest of `colors` for each number of `pack_colors`, `uint8
    [256**3]`."""
    palette = np.frombuffer(colors, dtype=np.uint8).reshape(-1, 3).astype(np.int32)
    squares = (np.arange(256, dtype=np.int32) - palette.T[..., None]) ** 2  # [3, K, 256]
    # Squared distance and index in one integer: one minimum finds both, and ties go to the first.
    red, green, blue = squares << 8
    red |= np.arange(len(palette), dtype=np.int32)[:, None]
    plane = green[:, :, None] + red[:, None, :]
    cube = np.empty((256, 256, 256), dtype=np.uint8)
    for level in range(256):
        cube[level] = (plane + blue[:, level, None, None]).min(axis=0) & 255
    return np.frombuffer(values, dtype=np.uint8).take(cube.reshape(-1))


def pack_colors(pixels: np.ndarray) -> np.ndarray:
    """Pack each colour into one number, red + 256 green + 65536 blue: `uint8 [..., 3]` -> `int32
    [...]`."""
    # Read 4 bytes at every third byte and mask the fourth: half the time of shifting and adding.
    # The last colour has no fourth byte, so it is read separately.
    flat = np.ascontiguousarray(pixels).reshape(-1)
    packed = np.empty(flat.size // 3, dtype=np.int32)
    if packed.size:
        four = np.ndarray(len(packed) - 1, "<i4", flat, strides=3)
        np.bitwise_and(four, 0xFFFFFF, out=packed[:-1])
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
    cube = _nearest_cube(colors.astype(np.uint8).tobytes(), values.astype(np.uint8).tobytes())
    packed = torch.from_numpy(pack_colors(pixels).reshape(-1))
    return torch.from_numpy(cube).index_select(0, packed).numpy().reshape(pixels.shape[:-1])


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
        # The convolutions are fastest with channels last.
        pixels = masks.permute(0, 2, 3, 1).to(self.palette.dtype)
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


def restorer_version() -> str:
    """Return a hash of the restorer's weights and way of computing. Prepared labels carry it in
    their name, so that other labels get another file."""
    return hashlib.sha256(_weights() + COMPUTATION).hexdigest()[:12]


def _weights() -> bytes:
    if not WEIGHTS.exists():
        raise FileNotFoundError(
            f"{WEIGHTS} is missing: fetch the whole package, or run scripts/train_restorer.py"
        )
    return WEIGHTS.read_bytes()


@lru_cache(maxsize=4)
def load_restorer(device: torch.device, dtype: torch.dtype = torch.float32) -> MaskRestorer:
    """Return the trained restorer, in evaluation mode, with channels last.

    Raises:
        FileNotFoundError: the package came without its weights.
    """
    model = MaskRestorer()
    model.load_state_dict(torch.load(io.BytesIO(_weights()), weights_only=True))
    return model.eval().to(device, dtype, memory_format=torch.channels_last)


@contextmanager
def _plain_float32(device: torch.device) -> Iterator[None]:
    """Let no setting of the caller replace float32 by something faster and coarser inside."""
    cudnn: Any = torch.backends.cudnn
    onednn: Any = torch.backends.mkldnn
    switches: list[tuple[Any, str, Any]] = [(cudnn, "allow_tf32", False)]
    if hasattr(onednn, "conv"):  # torch 2.9 and later
        switches = [(owner, "fp32_precision", "ieee") for owner in (cudnn.conv, onednn.conv)]
    before = [getattr(owner, name) for owner, name, _ in switches]
    try:
        for owner, name, value in switches:
            setattr(owner, name, value)
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for (owner, name, _), value in zip(switches, before, strict=True):
            setattr(owner, name, value)


def _restore(masks: Tensor) -> Tensor:
    """Return the palette index of each pixel, `uint8 [N, 3, H, W]` -> `int64 [N, H, W]`."""
    logits = load_restorer(masks.device)(masks)
    best, found = logits.max(1)  # faster than argmax on CPUs
    close = logits > (best - DOUBT)[:, None]
    if close.count_nonzero() == found.numel():
        return found
    # Some pixels have a second class that is as good as the first. Their blocks are computed again
    # in float64, each in a window that holds all that the network sees from there: 27 pixels to
    # each side.
    exact = load_restorer(masks.device, torch.float64)
    blocks = (close.sum(1) > 1).unflatten(2, (-1, BLOCK)).unflatten(1, (-1, BLOCK))
    height, width = (min(side, 5 * BLOCK) for side in masks.shape[2:])
    for number, row, column in blocks.any(4).any(2).nonzero().tolist():
        y = row * BLOCK
        x = column * BLOCK
        top = min(max(y - 2 * BLOCK, 0), masks.shape[2] - height)
        left = min(max(x - 2 * BLOCK, 0), masks.shape[3] - width)
        window = exact(masks[number : number + 1, :, top : top + height, left : left + width])
        inner = window[0].argmax(0)[y - top : y - top + BLOCK, x - left : x - left + BLOCK]
        found[number, y : y + BLOCK, x : x + BLOCK] = inner
    return found


@explain_errors(RESTART)
@torch.inference_mode()
def restore_label_ids(
    masks: np.ndarray,
    method: str = "restored",
    device: torch.device | str | None = None,
    scheme: ClassScheme | None = None,
) -> np.ndarray:
    """Recover official label ids from damaged colour masks.

    The network's labels are the same on every processor, with any number of threads or masks, and
    whatever precision the caller has set.

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
        FullMemoryError: the memory of the GPU is full.
    """
    if masks.ndim != 4 or masks.shape[-1] != 3 or masks.dtype != np.uint8:
        raise ValueError(f"masks must be uint8 [N, H, W, 3], got {masks.dtype} {list(masks.shape)}")
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}: choose one of {', '.join(METHODS)}")
    if scheme and scheme.cluster_colors:
        centers = np.array(scheme.cluster_colors, dtype=np.uint8)
        return nearest_color(masks, centers, np.array(scheme.cluster_ids, dtype=np.uint8))
    if method == "nearest":
        return nearest_color(masks, PALETTE_COLORS, PALETTE_IDS)
    height, width = masks.shape[1:3]
    if height % BLOCK or width % BLOCK or not height or not width:
        raise ValueError(f"masks must have sides divisible by {BLOCK}, got {height} x {width}")
    device = torch.device(device or ("cuda" if find_device().type == "cuda" else "cpu"))
    label_ids = np.empty(masks.shape[:3], dtype=np.uint8)
    step = 16 if device.type == "cuda" else 1  # one mask at a time fits in a CPU's cache
    with _plain_float32(device):
        for start in range(0, len(masks), step):
            batch = torch.tensor(masks[start : start + step], device=device)
            found = _restore(batch.permute(0, 3, 1, 2))
            label_ids[start : start + step] = PALETTE_IDS.take(found.cpu().numpy())
    return label_ids


def restore_labels(
    masks: np.ndarray, scheme: str | ClassScheme = "cityscapes19", method: str = "restored"
) -> np.ndarray:
    """Recover class indices from damaged colour masks.

    Args:
        masks: `uint8 [N, H, W, 3]`.
        scheme: name of a class scheme, or a `ClassScheme`.
        method: as in `restore_label_ids`.

    Returns:
        Class indices of the scheme, `uint8 [N, H, W]`; `IGNORE` (255) for void.

    Raises:
        ValueError: unknown scheme or method, or masks of another shape or type.
    """
    scheme = get_scheme(scheme)
    return scheme.encode(restore_label_ids(masks, method, scheme=scheme))


def label_checksums(label_ids: np.ndarray) -> np.ndarray:
    """Return the CRC-32 of each frame, `uint8 [N, H, W]` -> `uint32 [N]`."""
    return np.array([zlib.crc32(ids.tobytes()) for ids in label_ids], dtype=np.uint32)


def reference_checksums(fingerprint: str) -> np.ndarray | None:
    """Return the checksums of the reference labels, `uint32 [N]`, of the split of the Kaggle set
    whose files have this `CityscapesPairs.fingerprint`; None for any other set of pairs."""
    with np.load(REFERENCE) as reference:
        return reference.get(fingerprint)


def reference_agreement(label_ids: np.ndarray, fingerprint: str) -> tuple[int, int] | None:
    """Compare restored labels with the reference labels of the Kaggle set.

    Args:
        label_ids: restored label ids of all frames of a split, `uint8 [N, 256, 256]`.
        fingerprint: that of the split's files, `CityscapesPairs.fingerprint`.

    Returns:
        The number of frames whose labels are those of the reference, and the number of all frames;
        None for any other set of pairs.
    """
    expected = reference_checksums(fingerprint)
    if expected is None:
        return None
    return int((label_checksums(label_ids) == expected).sum()), len(expected)
