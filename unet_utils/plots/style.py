"""The look that all figures share.

Each class has its official colour and, because many of these colours are hard to tell apart, its
class index as a number. Figures have a white background, so they look the same on light and dark
pages, and the text size grows with the width of the figure, so that it stays legible on a phone.

All functions return the figure without showing it: as the last line of a notebook cell it is shown,
in a script it can be saved. Figures with a single panel also accept the `Axes` to draw on."""

import sys
from collections.abc import Sequence
from functools import cache
from typing import Any, cast

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from unet_utils.classes import IGNORE, ClassScheme

INK, BLUE, ORANGE, GREY, PALE = "#222222", "#1f5fa8", "#d9730d", "#9a9a9a", "#e6e6e6"
SHADES = LinearSegmentedColormap.from_list("shades", ["white", "#9dc3e6", BLUE, "#0b2447"])
"""From low to high values: darker is more, also when printed in grey."""
STYLE: dict[Any, Any] = {
    "figure.facecolor": "white",
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


def text_size(figure: Figure | SubFigure) -> float:
    """Return the font size in points: 7 pixels when the figure is shrunk to the 390 pixels of a
    phone."""
    return max(10.0, 1.3 * figure.bbox.width / figure.dpi)


@cache
def _sharpen_notebook() -> None:
    """In a notebook with default settings, ask once for figures with twice the pixels, for
    high-density screens."""
    ipython = sys.modules.get("IPython")
    shell = ipython and ipython.get_ipython()
    if hasattr(shell, "kernel"):
        from matplotlib_inline.config import InlineBackend

        settings = InlineBackend.instance(parent=shell)
        if settings.figure_formats == {"png"}:
            settings.figure_formats = {"retina"}


def new_figure(
    rows: int, columns: int, width: float, height: float, title: str, **options
) -> tuple[Figure, np.ndarray]:
    """Return a figure of `width` x `height` inches and its axes, an array `[rows, columns]`.

    The figure is closed in pyplot, so that a notebook does not show it a second time. `options` go
    to `pyplot.subplots`."""
    _sharpen_notebook()
    size = max(10.0, 1.3 * width)
    with plt.rc_context(STYLE | {"font.size": size, "axes.titlesize": size}):
        figure, axes = plt.subplots(
            rows, columns, figsize=(width, height), squeeze=False, layout="constrained", **options
        )
        figure.suptitle(title, x=0.01, ha="left", fontsize=1.1 * size, fontweight="bold")
    plt.close(figure)
    return figure, axes


def one_panel(ax: Axes | None, width: float, height: float, title: str) -> tuple[Figure, Axes]:
    """Return `ax` and its figure, with the title above it, or, for None, a new figure with one
    panel."""
    if ax is None:
        figure, axes = new_figure(1, 1, width, height, title)
        return figure, axes[0, 0]
    ax.set_title(title, loc="left", fontweight="bold")
    return cast(Figure, ax.figure), ax


def picture(ax: Axes, pixels: np.ndarray, title: str = "", **options) -> None:
    """Show pixels `[H, W]` or `[H, W, 3]` twice as wide as high. `options` go to `imshow`."""
    # The photos of the pairs were squeezed from 2:1 to squares. This stretches them back.
    ax.imshow(
        pixels, interpolation="nearest", aspect=0.5 * pixels.shape[1] / pixels.shape[0], **options
    )
    ax.set_title(title, loc="left")
    ax.set_axis_off()


def class_map(ax: Axes, classes: np.ndarray, scheme: ClassScheme, title: str) -> None:
    """Show class indices `uint8 [H, W]` in their colours and with their numbers."""
    picture(ax, scheme.colorize(classes), title)
    number_classes(ax, classes)


def number_classes(ax: Axes, classes: np.ndarray) -> None:
    """Write each class index on a picture of `classes`, where the class is thickest, if there is
    room for it."""
    step = max(1, max(classes.shape) // 256)
    small = classes[::step, ::step]
    # Distance to the border, by repeated erosion: each round removes the pixels at the border of
    # what is left.
    left = ~_touches_another(small)
    depth = np.zeros(small.shape, dtype=int)
    while left.any():
        depth += left
        left = left & ~_touches_another(left)
    stroke = [withStroke(linewidth=2, foreground=INK)]
    size = 0.8 * text_size(ax.figure)
    for index in np.unique(small[depth >= 5]):
        if index != IGNORE:
            row, column = np.unravel_index(np.where(small == index, depth, 0).argmax(), small.shape)
            place = (column * step, row * step)
            ax.annotate(
                str(index),
                place,
                ha="center",
                va="center",
                color="white",
                size=size,
                path_effects=stroke,
            )


def _touches_another(values: np.ndarray) -> np.ndarray:
    """Return where one of the four neighbours has another value or lies outside the picture, `bool
    [H, W]`."""
    padded = np.pad(values.astype(int), 1, constant_values=-1)
    inner, n = (slice(1, -1), slice(1, -1)), values.shape
    around = [padded[i : i + n[0], j : j + n[1]] for i, j in ((0, 1), (2, 1), (1, 0), (1, 2))]
    return np.any([part != padded[inner] for part in around], axis=0)


def class_legend(figure: Figure, classes: Sequence[np.ndarray], scheme: ClassScheme) -> None:
    """Add a legend below the figure: number and name of each class that occurs in `classes`, and
    void."""
    present = np.unique(np.concatenate([np.asarray(part).ravel() for part in classes]))
    names = {
        f"{index} {scheme.names[index]}": scheme.colors[index]
        for index in present
        if index != IGNORE
    }
    color_legend(figure, names | ({"void (ignored)": (0, 0, 0)} if IGNORE in present else {}))


def color_legend(figure: Figure, colors: dict[str, tuple[int, ...]]) -> None:
    """Add a legend below the figure with these names and colours (RGB, 0 to 255)."""
    handles = [
        Patch(facecolor="#" + bytes(c).hex(), edgecolor=GREY, label=name)
        for name, c in colors.items()
    ]
    size = text_size(figure)
    columns = max(1, min(len(handles), int(72 * figure.get_figwidth() / (10.5 * size))))
    figure.legend(
        handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=size
    )


def line_legend(figure: Figure, ax: Axes) -> None:
    """Add a legend of the lines of `ax` below the figure, where it cannot cover a line."""
    handles, labels = ax.get_legend_handles_labels()
    columns = max(1, int(80 / max(map(len, labels), default=80)))
    size = text_size(figure)
    figure.legend(
        handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=size
    )
