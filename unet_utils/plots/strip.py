"""The strip: the predictions of several trainings on the same frames, side by side."""

import textwrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from unet_utils.classes import IGNORE, ClassScheme
from unet_utils.plots.results import wrong_share
from unet_utils.plots.style import (
    INK,
    PALE,
    SMALL_TEXT,
    WIDTH,
    class_legend,
    class_map,
    new_figure,
    panel_title,
    picture,
)

COLUMNS = 4  # side by side: more would be too small for names; the others follow below


def plot_strip(
    photos: np.ndarray,
    truth: np.ndarray,
    predictions: dict[str, np.ndarray],
    scheme: ClassScheme,
    curves: dict[str, tuple[list[float], list[float]]],
    unit: str,
) -> Figure:
    """Plot photo, truth and predictions, one column each and one row per frame, and the losses.

    White lines enclose what the first prediction sees differently.

    Args:
        As the attributes of `use.strip.Strip`.
    """
    shown = {name: np.where(truth == IGNORE, IGNORE, found) for name, found in predictions.items()}
    first, *others = shown
    shares = [f"{name}: {wrong_share(truth, found)}" for name, found in shown.items()]
    title = "The same frames" + (f"; outlined: what differs from {first}" if others else "")
    frames = len(photos)
    bands = -(-(2 + len(shown)) // COLUMNS)
    rows = bands * frames
    high = WIDTH / COLUMNS / 2 + 0.25
    figure, axes = new_figure(rows + 1, COLUMNS, rows * high + 3.4, title, f"{'; '.join(shares)}.")
    grid = axes[0, 0].get_gridspec()
    grid.set_height_ratios([high] * rows + [2.2])
    for ax in axes[:rows].flat:
        ax.set_axis_off()
    for number in range(frames):
        picture(axes[number, 0], photos[number], "photo" if number == 0 else "")
        class_map(axes[number, 1], truth[number], scheme, "truth" if number == 0 else "")
        for place, (name, found) in enumerate(shown.items(), start=2):
            ax = axes[place // COLUMNS * frames + number, place % COLUMNS]
            text = wrong_share(truth[number], found[number])
            if number == 0:
                text = "\n".join([*textwrap.wrap(name, 17), text])
            if name == first:
                class_map(ax, found[number], scheme, text)
            else:  # without names, which the lines would cross
                picture(ax, scheme.colorize(found[number]), text)
                _outline(ax, found[number] != shown[first][number])
    for ax in axes[rows]:
        ax.remove()
    _losses(figure.add_subplot(grid[rows, :]), curves, unit)
    class_legend(figure, [truth, *shown.values()], scheme)
    return figure


def _outline(ax: Axes, changed: np.ndarray) -> None:
    """Draw a line around the changed pixels."""
    padded = np.pad(changed, 1).astype(float)  # so that lines close at the border
    if changed.any():
        height, width = changed.shape
        lines = ax.contour(
            np.arange(-1, width + 1),
            np.arange(-1, height + 1),
            padded,
            [0.5],
            colors="white",
            linewidths=0.6,  # thin things stay visible below it
        )
        lines.set_path_effects([withStroke(linewidth=1, foreground=INK)])
        ax.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))


def _losses(ax: Axes, curves: dict[str, tuple[list[float], list[float]]], unit: str) -> None:
    for number, (name, (places, losses)) in enumerate(curves.items()):
        marker = "osD^vP"[number % 6]
        (line,) = ax.plot(places, losses, f"{marker}-", markersize=4, color=f"C{number}")
        line.set_label(f"{name}: {losses[-1]:.2f}")
    # A training that diverged must not press the others together.
    _, first = next(iter(curves.values()))
    ax.set_ylim(0, 1.5 * np.nanmax(first))
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color=PALE)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.set_xlabel(unit)
    panel_title(ax, "loss")
    below = (0, -0.25)
    ax.legend(loc="upper left", bbox_to_anchor=below, ncols=2, frameon=False, fontsize=SMALL_TEXT)
