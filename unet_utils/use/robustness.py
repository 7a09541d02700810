"""How the score falls when the photos get worse: fog, night, noise, blur, JPEG.

Four of the five changes are those of ImageNet-C (Hendrycks and Dietterich, 2019,
https://arxiv.org/abs/1903.12261), with the constants of its program
(https://github.com/hendrycks/robustness) at two of its five severities. They were made for photos
of 224 x 224 pixels. What is a length, the radius of the blur, grows with the height of the photo;
what is a brightness or a quality stays. Photos of pairs are changed as they are, squeezed.

The fifth, night, is a darker exposure: less light everywhere, and the dark parts lose most. A real
night has lamps and coloured light as well, so it is harder than this.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torchvision.transforms.v2.functional import gaussian_blur

from unet_utils.evaluation import Trained, predict_frames, score
from unet_utils.frames import Frames
from unet_utils.platform.environment import progress_bar
from unet_utils.restoring import jpeg
from unet_utils.use.reports import markdown_table, score_text

MILD, STRONG = 1, 3
"""The two severities, by their number in ImageNet-C, which goes from 1 to 5."""
UNCHANGED = "unchanged"


class RobustnessRow(NamedTuple):
    """The score on photos that were changed in one way.

    Attributes:
        change: `UNCHANGED`, or one of `CHANGES`.
        severity: 0 (unchanged), `MILD` or `STRONG`.
        pixel_accuracy, mean_iou: of the frames together.
    """

    change: str
    severity: int
    pixel_accuracy: float
    mean_iou: float


def robustness(trained: Trained, frames: Frames) -> list[RobustnessRow]:
    """Score a model on the frames as they are, and after each change at both severities.

    This predicts all frames 11 times: a part of a split is enough, such as 30 frames.

    Args:
        trained: the model.
        frames: with the classes that it has learned.

    Returns:
        The row of the unchanged frames, then two per change, from mild to strong.

    Raises:
        ValueError: the frames have other classes.
    """
    cases = [(UNCHANGED, 0)]
    cases += [(change, severity) for change in CHANGES for severity in (MILD, STRONG)]
    rows = []
    for change, severity in progress_bar(iterable=cases, desc="changes"):
        changed = change_frames(frames, change, severity)
        matrix = score(trained.model, changed, trained.scene_size)
        rows.append(RobustnessRow(change, severity, matrix.pixel_accuracy, matrix.mean_iou))
    return rows


def robustness_table(rows: list[RobustnessRow]) -> str:
    """Return a Markdown table: a row per change, pixel accuracy and mIoU at each severity."""
    lines = []
    for row in rows:
        scores = [score_text(row.pixel_accuracy), score_text(row.mean_iou)]
        lines.append([row.change, str(row.severity or ""), *scores])
    return markdown_table(["photos", "severity", "pixel accuracy", "mIoU"], lines)


def predict_changed(trained: Trained, frames: Frames) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return what each strong change makes of the first frame and of its prediction.

    Returns:
        name of the change, `UNCHANGED` first -> photo `uint8 [H, W, 3]`, class indices
        `uint8 [H, W]`.
    """
    result = {}
    for change in (UNCHANGED, *CHANGES):
        changed = change_frames(frames.part(slice(0, 1)), change, STRONG)
        _, predicted, _ = next(predict_frames(trained.model, changed, trained.scene_size))
        result[change] = (changed.photos[0].cpu().numpy(), predicted[0].cpu().numpy())
    return result


def change_frames(frames: Frames, change: str, severity: int) -> Frames:
    """Return the frames with changed photos; their labels stay.

    Args:
        frames: any.
        change: `UNCHANGED`, or one of `CHANGES`.
        severity: `MILD` or `STRONG`. Noise and fog follow from the file number of a photo.
    """
    if change == UNCHANGED:
        return frames
    photos = []
    for photo, number in zip(frames.photos.cpu().numpy(), frames.numbers, strict=True):
        photos.append(change_photo(photo, change, severity, np.random.default_rng([0, number])))
    return replace(frames, photos=torch.from_numpy(np.stack(photos)))


def change_photo(
    photo: np.ndarray, change: str, severity: int, rng: np.random.Generator
) -> np.ndarray:
    """Return a changed photo.

    Args:
        photo: `uint8 [H, W, 3]`.
        change: one of `CHANGES`.
        severity: `MILD` or `STRONG`.
        rng: draws the noise and the fog.

    Returns:
        `uint8 [H, W, 3]`.

    Raises:
        ValueError: there is no such change or severity.
    """
    if change not in CHANGES or severity not in CHANGES[change][1]:
        raise ValueError(
            f"there is no change {change!r} of severity {severity}: choose one of "
            f"{', '.join(CHANGES)}, and {MILD} or {STRONG}"
        )
    function, constants = CHANGES[change]
    return function(photo, constants[severity], rng)


def _fog(photo: np.ndarray, constants: Any, rng: np.random.Generator) -> np.ndarray:
    """Add clouds, then darken all to the old maximum: contrast is lost, as in fog."""
    thickness, decay = constants
    height, width = photo.shape[:2]
    clouds = _clouds(2 ** math.ceil(math.log2(max(height, width))), decay, rng)
    x = photo / 255
    most = x.max()
    x = x + thickness * clouds[:height, :width, None]
    return _to_photo(x * most / (most + thickness))


def _clouds(side: int, decay: float, rng: np.random.Generator) -> np.ndarray:
    """Return a plasma fractal by the diamond-square algorithm, `float [side, side]`, 0 to 1.

    It begins with a coarse grid. Each round puts a point into the middle of every square and every
    edge, the mean of its four neighbours and a random number. `side` is a power of two, and what
    leaves the picture on one side comes back on the other.
    """
    heights = np.zeros((side, side))
    spread = 1.0
    step = side
    while step > 1:
        half = step // 2
        noise = rng.uniform(-spread, spread, (3, side // step, side // step))
        corners = heights[::step, ::step]
        along_rows = corners + np.roll(corners, -1, 1)
        along_columns = corners + np.roll(corners, -1, 0)
        centres = (along_rows + np.roll(along_rows, -1, 0)) / 4 + noise[0]
        above_and_below = centres + np.roll(centres, 1, 0)
        left_and_right = centres + np.roll(centres, 1, 1)
        heights[half::step, half::step] = centres
        heights[::step, half::step] = (along_rows + above_and_below) / 4 + noise[1]
        heights[half::step, ::step] = (along_columns + left_and_right) / 4 + noise[2]
        step = half
        # Squared, as in ImageNet-C, whose program multiplies by the spread twice.
        spread /= decay**2
    heights -= heights.min()
    return heights / heights.max()


def _night(photo: np.ndarray, constants: Any, rng: np.random.Generator) -> np.ndarray:
    gain, gamma = constants
    return _to_photo(gain * (photo / 255) ** gamma)


def _noise(photo: np.ndarray, deviation: Any, rng: np.random.Generator) -> np.ndarray:
    return _to_photo(photo / 255 + rng.normal(0, deviation, photo.shape))


def _blur(photo: np.ndarray, constants: Any, rng: np.random.Generator) -> np.ndarray:
    """Blur like a lens out of focus: each point becomes a disk."""
    radius, edge = constants
    radius *= len(photo) / 224
    reach = math.ceil(radius) + 1
    offsets = torch.arange(-reach, reach + 1)
    disk = (offsets[:, None] ** 2 + offsets**2 <= radius**2).float()
    disk = gaussian_blur((disk / disk.sum())[None, None], [3, 3], [edge])
    # Three pictures of one channel, so that all channels are blurred alike.
    x = torch.from_numpy(photo / 255).float().permute(2, 0, 1)[:, None]
    x = F.conv2d(F.pad(x, (reach,) * 4, mode="reflect"), disk)
    return _to_photo(x[:, 0].permute(1, 2, 0).numpy())


def _jpeg(photo: np.ndarray, quality: Any, rng: np.random.Generator) -> np.ndarray:
    return jpeg(photo, quality)


def _to_photo(x: np.ndarray) -> np.ndarray:
    """Turn values from 0 to 1 into a photo."""
    return (255 * x.clip(0, 1)).round().astype(np.uint8)


CHANGES: dict[str, tuple[Callable, dict[int, Any]]] = {
    "fog": (_fog, {MILD: (1.5, 2.0), STRONG: (2.5, 1.7)}),  # thickness, decay of its details
    "night": (_night, {MILD: (0.5, 1.5), STRONG: (0.3, 2.0)}),  # gain, gamma
    "noise": (_noise, {MILD: 0.08, STRONG: 0.18}),  # standard deviation; white is 1
    "blur": (_blur, {MILD: (3, 0.1), STRONG: (6, 0.5)}),  # radius in pixels, softness of its edge
    "JPEG": (_jpeg, {MILD: 25, STRONG: 15}),  # quality
}
"""Name -> how a photo is changed, and the constants of each severity. Those of `night` are ours."""
