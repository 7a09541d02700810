"""Figures of the network and of its training."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure

from unet_utils.plots.style import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    PALE,
    SHADES,
    legend,
    new_figure,
    panel_title,
    picture,
    picture_grid,
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


def plot_runs(curves: dict[str, tuple[Sequence[float], Sequence[float]]]) -> Figure:
    """Plot the mIoU on the held-out frames over the minutes of training, one line per run.

    Args:
        curves: name of the run -> minutes since its start and mIoU, one entry per epoch. NaN leaves
            a gap.
    """
    labels = []
    for name, (_, scores) in curves.items():
        known = [score for score in scores if score == score]
        labels.append(f"{name}: {max(known):.3f} at best" if known else f"{name}: not measured")
    title = "mIoU on the held-out frames over the time of training"
    figure, axes = new_figure(1, 1, 4, title, f"{', '.join(labels)}.")
    ax = axes[0, 0]
    lines = []
    for number, (label, (minutes, scores)) in enumerate(zip(labels, curves.values(), strict=True)):
        marker = "osD^v"[number % 5]
        dashes = ("-", "--", ":")[number // 5 % 3]
        style = {"marker": marker, "linestyle": dashes, "color": f"C{number}", "markersize": 4}
        lines += ax.plot(minutes, scores, label=label, **style)
    ax.set(xlabel="minutes of training", ylabel="mIoU on the held-out frames")
    ax.set_ylim(bottom=0)
    ax.grid(axis="y", color=PALE)
    legend(figure, lines)
    return figure


def plot_feature_maps(maps: dict[str, torch.Tensor], count: int = 8) -> Figure:
    """Plot some channels of some levels of the network, in rows of four.

    Args:
        maps: name of the level -> its feature maps for one photo, `float [C, h, w]`.
        count: number of channels per level: those that vary most within the photo. The shades of
            each reach from its 1st to its 99th percentile.
    """
    rows = -(-count // 4)
    sizes = {name: "{} channels of {} x {}".format(*m.shape) for name, m in maps.items()}
    text = "; ".join(f"{name}: {size}" for name, size in sizes.items())
    figure, axes = picture_grid(rows * len(maps), 4, "Feature maps", f"{text}.")
    for ax in axes.flat:
        ax.set_axis_off()
    for level, (name, values) in enumerate(maps.items()):
        channels = values.detach().float().cpu().numpy()
        order = np.argsort(-channels.std((1, 2)), kind="stable")[:count]
        block = axes[level * rows : (level + 1) * rows].ravel()
        for ax, index in zip(block, order, strict=False):
            low, high = np.percentile(channels[index], (1, 99))
            picture(ax, channels[index], cmap=SHADES, vmin=low, vmax=max(high, low + 1e-6))
        title = panel_title(block[0], f"{name}: {sizes[name]}")
        title.set_in_layout(False)  # it may reach over its neighbours
    return figure
