"""Figures of the network and of its training."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from unet_utils.classes import ClassScheme
from unet_utils.plots.style import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    PALE,
    SHADES,
    SMALL_TEXT,
    class_legend,
    class_map,
    legend,
    new_figure,
    panel_title,
    picture,
)

SCORES = {
    "pixel_accuracy": ("pixel accuracy", GREY, "s"),
    "class_accuracy": ("class accuracy", ORANGE, "D"),
    "mean_iou": ("mIoU", BLUE, "o"),
}


def column(history: Sequence[dict], key: str) -> np.ndarray:
    """Return one column of the history, NaN where it is missing."""
    return np.array([np.nan if row.get(key) is None else row[key] for row in history], dtype=float)


def plot_history(history: list[dict]) -> Figure:
    """Plot learning rate, loss and, if measured, the scores on the held-out frames over the epochs.

    Args:
        history: one dict per epoch, as `fit` returns it.
    """
    scored = any(row.get("mean_iou") is not None for row in history)
    epochs = column(history, "epoch")
    last = f"loss {history[-1]['loss']:.3f}"
    if scored:
        last += f", mIoU {column(history, 'mean_iou')[-1]:.3f} on the held-out frames"
    text = f"After epoch {epochs[-1]:.0f}: {last}."
    figure, axes = new_figure(1, 3 if scored else 2, 2.6, "Training", text)
    panel_title(axes[0, 0], "learning rate")
    axes[0, 0].plot(epochs, column(history, "learning_rate"), "o-", markersize=4, color=GREY)
    panel_title(axes[0, 1], f"loss: {history[-1]['loss']:.3f}")
    axes[0, 1].plot(epochs, column(history, "loss"), "o-", markersize=4, color=INK)
    for ax in axes[0]:
        ax.set_xlabel("epoch")
        ax.grid(axis="y", color=PALE)
        ax.set_xlim(0.5, epochs.max() + 0.5)
        ax.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    if scored:
        lines = []
        for key, (name, color, marker) in SCORES.items():
            scores = column(history, key)
            style = {"marker": marker, "markersize": 4, "color": color}
            lines += axes[0, 2].plot(epochs, scores, label=f"{name}: {scores[-1]:.3f}", **style)
        panel_title(axes[0, 2], "held-out frames")
        axes[0, 2].set_ylim(0, 1)
        legend(figure, lines)
    return figure


def plot_u(
    photo: np.ndarray,
    contracting: Sequence[torch.Tensor],
    expanding: Sequence[torch.Tensor],
    classes: np.ndarray,
    scheme: ClassScheme,
) -> Figure:
    """Plot feature maps of a UNet where they arise: down on the left, up on the right, and a skip
    connection at each level.

    Of each level, two channels are shown: those that vary most within the photo.

    Args:
        photo: `uint8 [H, W, 3]`.
        contracting: maps of the contracting path, `float [1, C, h, w]` each, fine to coarse; the
            last one is the bottom.
        expanding: those of the expanding path, coarse to fine.
        classes: what the network predicts, class indices `uint8 [H, W]`.
        scheme: names and colours of the classes.
    """
    *levels, bottom = contracting
    rows = len(levels) + 2
    text = f"The contracting path goes from {_shape(levels[0])} down to {_shape(bottom)}."
    figure, axes = new_figure(rows, 5, 0.9 * rows + 0.3, "The U: feature maps of one photo", text)
    axes[0, 0].get_gridspec().set_width_ratios([1, 1, 0.45, 1, 1])
    for ax in axes.flat:
        ax.set_axis_off()
    picture(axes[0, 0], photo, "photo")
    class_map(axes[0, 4], classes, scheme, "prediction")
    for number, (down, up) in enumerate(zip(levels, reversed(expanding), strict=True), start=1):
        _two_channels(axes[number, :2], down, number)
        _two_channels(axes[number, 3:], up, number)
        _arrow(axes[number, 2], "skip")
    _two_channels(axes[-1, [1, 3]], bottom, rows - 1)
    _arrow(axes[-1, 2], "bottom")
    class_legend(figure, [classes], scheme)
    return figure


def _shape(maps: torch.Tensor) -> str:
    return "{} channels of {} x {}".format(*maps.shape[1:])


def _two_channels(axes: np.ndarray, maps: torch.Tensor, level: int) -> None:
    """Show the two channels that vary most, smaller at each level. Their shades reach from the 1st
    to the 99th percentile."""
    channels = maps[0].detach().float().cpu().numpy()
    most = np.argsort(-channels.std((1, 2)), kind="stable")[:2]
    height, width = channels.shape[1:]
    border = 0.07 * (level - 1)
    for ax, values in zip(axes, channels[most], strict=False):
        low, high = np.percentile(values, (1, 99))
        picture(ax, values, cmap=SHADES, vmin=low, vmax=max(high, low + 1e-6))
        ax.set_xlim(-0.5 - border * width, width - 0.5 + border * width)
        ax.set_ylim(height - 0.5 + border * height, -0.5 - border * height)
    title = panel_title(axes[0], _shape(maps))
    title.set_fontsize(SMALL_TEXT)
    title.set_in_layout(False)  # it may reach over its neighbour


def _arrow(ax: Axes, name: str) -> None:
    """Show an arrow to the right, with a name above it."""
    ax.set(xlim=(0, 1), ylim=(0, 1))
    style = {"arrowstyle": "->", "color": INK, "linewidth": 1.5}
    ax.annotate("", (1, 0.5), (0, 0.5), arrowprops=style)
    ax.text(0.5, 0.6, name, ha="center", size=SMALL_TEXT)
