"""The visual language of all figures, which are in `data_plots` and `result_plots`.

A class has its official colour everywhere, and a number, because many of these colours look alike to some eyes and to
all printers. Figures have a white ground of their own, so they read the same on light and dark pages, and their text
grows with their width, so it stays legible on a phone.

Every figure is returned and not shown: as the last line of a cell it appears once, in a script it can be saved.
Those with a single panel also take the `Axes` to draw it on.
"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from unet_utils.classes import IGNORE, ClassScheme

INK, BLUE, ORANGE, GREY, PALE = "#222222", "#1f5fa8", "#d9730d", "#9a9a9a", "#e6e6e6"
SHADES = LinearSegmentedColormap.from_list("shades", ["white", "#9dc3e6", BLUE, "#0b2447"])
"""From little to much: darker is more, in print too."""
STYLE = {
    "figure.facecolor": "white",
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


def text_size(figure: Figure) -> float:
    """Points: what is still 7 pixels tall when the figure is shrunk to the 390 pixels of a phone."""
    return max(10.0, 1.3 * figure.get_figwidth())


def new_figure(
    rows: int, columns: int, width: float, height: float, title: str, **options
) -> tuple[Figure, np.ndarray]:
    """A figure of `width` x `height` inches that pyplot forgets at once, so that a notebook shows it only once.

    Returns:
        The figure and its axes, an array `[rows, columns]`. `options` go to `pyplot.subplots`.
    """
    size = max(10.0, 1.3 * width)
    with plt.rc_context(STYLE | {"font.size": size, "axes.titlesize": size}):
        figure, axes = plt.subplots(
            rows, columns, figsize=(width, height), squeeze=False, layout="constrained", **options
        )
        figure.suptitle(title, x=0.01, ha="left", fontsize=1.1 * size, fontweight="bold")
    plt.close(figure)
    return figure, axes


def one_panel(ax: Axes | None, width: float, height: float, title: str) -> Axes:
    """The axes to draw a single panel on: those given, with the title above them, or those of a new figure."""
    if ax is None:
        return new_figure(1, 1, width, height, title)[1][0, 0]
    ax.set_title(title, loc="left", fontweight="bold")
    return ax


def picture(ax: Axes, pixels: np.ndarray, title: str = "", **options) -> None:
    """Shows pixels `[H, W]` or `[H, W, 3]`. `options` go to `imshow`."""
    # Pairs are squeezed to squares; shown at 2:1, streets look as they did to the camera.
    ax.imshow(pixels, interpolation="nearest", aspect=0.5 * pixels.shape[1] / pixels.shape[0], **options)
    ax.set_title(title, loc="left")
    ax.set_axis_off()


def number_classes(ax: Axes, classes: np.ndarray) -> None:
    """Writes the index of each class where it is thickest, if that is thick enough, on a picture of `classes`."""
    step = max(1, max(classes.shape) // 256)
    small = classes[::step, ::step]
    # Peeled from the outside, a pixel lasts as long as it is far from where the class changes.
    left = ~_touches(small)
    depth = np.zeros(small.shape, dtype=int)
    while left.any():
        depth += left
        left = left & ~_touches(left)
    stroke = [withStroke(linewidth=2, foreground=INK)]
    size = 0.8 * text_size(ax.figure)
    for index in np.unique(small[depth >= 5]):
        if index != IGNORE:
            row, column = np.unravel_index(np.where(small == index, depth, 0).argmax(), small.shape)
            place = (column * step, row * step)
            ax.annotate(str(index), place, ha="center", va="center", color="white", size=size, path_effects=stroke)


def _touches(values: np.ndarray) -> np.ndarray:
    """Where a neighbour along an edge has another value, or is outside the picture: `bool [H, W]`."""
    padded = np.pad(values.astype(int), 1, constant_values=-1)
    inner, n = (slice(1, -1), slice(1, -1)), values.shape
    around = [padded[i : i + n[0], j : j + n[1]] for i, j in ((0, 1), (2, 1), (1, 0), (1, 2))]
    return np.any([part != padded[inner] for part in around], axis=0)


def class_map(ax: Axes, classes: np.ndarray, scheme: ClassScheme, title: str) -> None:
    """Shows class indices `uint8 [H, W]` in their colours, numbered as in `legend`."""
    picture(ax, scheme.colorize(classes), title)
    number_classes(ax, classes)


def legend(figure: Figure, classes: Sequence[np.ndarray], scheme: ClassScheme) -> None:
    """A legend below the figure with number and name of the classes that occur, and void if it does."""
    present = np.unique(np.concatenate([np.asarray(part).ravel() for part in classes]))
    names = {f"{index} {scheme.names[index]}": scheme.colors[index] for index in present if index != IGNORE}
    color_legend(figure, names | ({"void (ignored)": (0, 0, 0)} if IGNORE in present else {}))


def color_legend(figure: Figure, names: dict[str, tuple[int, int, int]]) -> None:
    """A legend below the figure: names and their colours, RGB from 0 to 255."""
    handles = [Patch(facecolor=np.array(color) / 255, edgecolor=GREY, label=name) for name, color in names.items()]
    size = text_size(figure)
    columns = min(len(handles), int(72 * figure.get_figwidth() / (10.5 * size)))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=size)


def borders(classes: np.ndarray) -> np.ndarray:
    """Where the class changes to the right or below, `bool [H, W]`."""
    edge = np.zeros(classes.shape, dtype=bool)
    edge[:, :-1] |= classes[:, :-1] != classes[:, 1:]
    edge[:-1] |= classes[:-1] != classes[1:]
    return edge


def overlay(photo: np.ndarray, classes: np.ndarray, scheme: ClassScheme, opacity: float = 0.5) -> np.ndarray:
    """Blends class colours over a photo, with white borders between classes; void stays as it is.

    Args:
        photo: `uint8 [H, W, 3]`.
        classes: class indices, `uint8 [H, W]`.
        opacity: 0 for the photo alone, 1 for the classes alone.

    Returns:
        `uint8 [H, W, 3]`.
    """
    strength = np.where(classes[..., None] == IGNORE, 0, opacity)
    blended = photo * (1 - strength) + scheme.colorize(classes) * strength
    blended[borders(classes)] = 255
    return blended.round().astype(np.uint8)


def _sharpen() -> None:
    """Asks a notebook for figures with twice the pixels, for screens of high density."""
    try:
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        get_ipython()  # a name that only notebooks know
    except (ImportError, NameError):
        return
    set_matplotlib_formats("retina")


_sharpen()
