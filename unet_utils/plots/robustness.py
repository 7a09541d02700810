"""Figures of what a model can bear and knows: worse photos, missing skips, its own confidence."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from unet_utils.classes import IGNORE, ClassScheme
from unet_utils.plots.results import wrong_share
from unet_utils.plots.style import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    SMALL_TEXT,
    class_legend,
    class_map,
    legend,
    new_figure,
    panel_title,
    picture,
    picture_grid,
)

RARE = 0.001  # no point is drawn for a smaller share of the pixels


def plot_robustness(
    rows: Sequence[tuple[str, int, float, float]],
    examples: Mapping[str, tuple[np.ndarray, np.ndarray]],
    truth: np.ndarray,
    scheme: ClassScheme,
) -> Figure:
    """Plot what each change makes of one photo, of what the network sees in it, and of the score.

    Args:
        rows: change, severity, pixel accuracy and mIoU, as `robustness.robustness` returns them:
            first those of the unchanged photos.
        examples: change -> photo `uint8 [H, W, 3]` and its predicted classes `uint8 [H, W]`, as
            `robustness.predict_changed` returns them.
        truth: class indices of that frame, `uint8 [H, W]`. Where it is void, no prediction is
            shown.
        scheme: names and colours of the classes.
    """
    scores: dict[str, list[tuple[int, float]]] = {}
    for change, severity, _, mean_iou in rows:
        scores.setdefault(change, []).append((severity, mean_iou))
    unchanged = rows[0][3]
    parts = (f"{c} {' and '.join(f'{s:.3f}' for _, s in pairs)}" for c, pairs in scores.items())
    title = "The same street in worse photos"
    figure, axes = picture_grid(len(examples), 3, title, f"mIoU: {'; '.join(parts)}.")
    shown = []
    for row, (change, (photo, predicted)) in zip(axes, examples.items(), strict=True):
        severity = scores[change][-1][0]
        picture(row[0], photo, f"{change}, severity {severity}" if severity else change)
        shown.append(np.where(truth == IGNORE, IGNORE, predicted))
        class_map(row[1], shown[-1], scheme, f"prediction: {wrong_share(truth, predicted)}")
        _bars(row[2], scores[change], unchanged)
        panel_title(row[2], "mIoU by severity")
    class_legend(figure, shown, scheme)
    return figure


def _bars(ax: Any, scores: Sequence[tuple[int, float]], unchanged: float) -> None:
    """Draw a bar per severity; the dashed line is the score of the unchanged photos."""
    names = [str(severity) for severity, _ in scores]
    values = [score for _, score in scores]
    most = np.nan_to_num([unchanged, *values]).max() or 1
    ax.barh(names, values, color=BLUE, height=0.6)
    for y, value in enumerate(values):
        ax.text(1.05 * most, y, f"{value:.3f}", va="center", size=SMALL_TEXT)
    ax.axvline(unchanged, color=INK, linewidth=1, linestyle="--")
    ax.set(xlim=(0, 1.3 * most), ylim=(1.6, -0.6), xticks=[])
    ax.spines["bottom"].set_visible(False)
    ax.tick_params(length=0)


def plot_calibration(curves: Mapping[str, Any]) -> Figure:
    """Plot how often a model is right at each confidence, and how often it has that confidence.

    Args:
        curves: name -> `calibration.CalibrationCurve`, one or two.
    """
    errors = [f"{name}: error {curve.error:.3f}" for name, curve in curves.items()]
    title = "Is it right as often as it is sure?"
    figure, axes = new_figure(1, 2, 3.6, title, f"{'; '.join(errors)}.")
    ax, shares = axes[0]
    ax.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1)
    handles = []
    looks = ((ORANGE, "o"), (BLUE, "s"))
    for number, (text, curve) in enumerate(zip(errors, curves.values(), strict=True)):
        color, marker = looks[number % len(looks)]
        often = curve.share >= RARE  # the few pixels of other bins say nothing
        (line,) = ax.plot(curve.confidence[often], curve.accuracy[often], color=color, ms=4)
        line.set_marker(marker)
        line.set_label(text)
        handles.append(line)
        edges = np.linspace(0, 1, len(curve.share) + 1)
        shares.stairs(100 * np.asarray(curve.share), edges, color=color, linewidth=1.5)
    ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    ax.set(xlabel="confidence", ylabel="share that is right")
    panel_title(ax, "below the dashed line: too sure")
    shares.set(xlim=(0, 1), xlabel="confidence", ylabel="share of the pixels (%)")
    panel_title(shares, "how often it is so sure")
    legend(figure, handles)
    return figure


def plot_without_skips(
    photo: np.ndarray,
    truth: np.ndarray,
    predictions: Mapping[str, np.ndarray],
    scheme: ClassScheme,
) -> Figure:
    """Plot what a model sees in one photo with fewer and fewer of its skips.

    Args:
        photo: `uint8 [H, W, 3]`.
        truth: class indices, `uint8 [H, W]`. Where it is void, no prediction is shown.
        predictions: name, such as "without the finest" -> class indices, `uint8 [H, W]`.
        scheme: names and colours of the classes.
    """
    shown = {name: np.where(truth == IGNORE, IGNORE, found) for name, found in predictions.items()}
    titles = [f"{name}: {wrong_share(truth, found)}" for name, found in shown.items()]
    title = "A trained network loses its skips, the finest first"
    rows = math.ceil((1 + len(shown)) / 2)
    figure, axes = picture_grid(rows, 2, title, f"{'; '.join(titles)}.")
    axes[-1, -1].set_axis_off()  # with an odd number of pictures it stays empty
    picture(axes[0, 0], photo, "photo")
    for ax, name, found in zip(axes.flat[1:], titles, shown.values(), strict=False):
        class_map(ax, found, scheme, name)
    class_legend(figure, list(shown.values()), scheme)
    return figure
