"""The look that all figures share.

All figures are equally wide, so matplotlib's usual text is legible on a phone. Their background is
white, also on a dark page. Each class has its official colour and, because many of these are hard
to tell apart, its name wherever there is room for it.

The functions of this folder take arrays and return a figure, without showing it: as the last line
of a notebook cell it is shown, in a script it can be saved.
"""

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.text import Text

from unet_utils.classes import IGNORE, ClassScheme

INK, BLUE, ORANGE, GREY, PALE = "#222222", "#1f5fa8", "#d9730d", "#9a9a9a", "#e6e6e6"
SHADES = LinearSegmentedColormap.from_list("shades", ["white", "#9dc3e6", BLUE, "#0b2447"])
"""From low to high values: darker is more, also when printed in grey."""
WIDTH = 6  # inches: 10 points are 9 pixels high when it is shrunk to the 390 pixels of a phone
SCREEN = 120  # pixels per inch of the page of a notebook: all figures are 720 pixels wide there
SMALL_TEXT = 8.5  # points: names on maps and numbers in tables


class NotebookFigure(Figure):
    """A figure that notebooks show by themselves, with its text for those who cannot see it."""

    def _ipython_display_(self) -> None:
        from IPython.display import display

        display(notebook_image(self))


def notebook_image(figure: Figure) -> Any:
    """Return the figure as an `IPython.display.Image`, sharp on screens of high density.

    The label of the figure is its `alt`: what screen readers read, where the page has it.
    """
    from IPython.display import Image  # only notebooks have it

    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=2 * SCREEN)
    width, height = (SCREEN * figure.get_size_inches()).astype(int).tolist()
    # Colab's IPython 7 has no argument `alt`; newer ones keep it in the metadata, too.
    text = {"alt": str(figure.get_label())}
    return Image(file.getvalue(), width=width, height=height, metadata=text)


def new_figure(
    rows: int, columns: int, height: float, title: str, text: str
) -> tuple[Figure, np.ndarray]:
    """Return a figure of this height in inches and its axes, an array `[rows, columns]`.

    `text` is one sentence for those who cannot see the figure: what its data says.
    """
    figure = NotebookFigure(figsize=(WIDTH, height), layout="constrained", facecolor="white")
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    end = "" if title.endswith("?") else "."
    figure.set_label(f"{title}{end} {text}")
    return figure, axes


def picture_grid(rows: int, columns: int, title: str, text: str) -> tuple[Figure, np.ndarray]:
    """Return a figure with room for `rows` x `columns` pictures that are twice as wide as high."""
    return new_figure(rows, columns, rows * (WIDTH / columns / 2 + 0.25) + 0.3, title, text)


def panel_title(ax: Axes, title: str) -> Text:
    """Write the title of one panel."""
    return ax.set_title(title, loc="left", fontsize="medium")


def picture(ax: Axes, pixels: np.ndarray, title: str = "", **options: Any) -> None:
    """Show pixels `[H, W]` or `[H, W, 3]` twice as wide as high. `options` go to `imshow`."""
    # The photos of the pairs were squeezed from 2:1 to squares. This stretches them back.
    aspect = 0.5 * pixels.shape[1] / pixels.shape[0]
    ax.imshow(pixels, interpolation="nearest", aspect=aspect, **options)
    ax.set_axis_off()
    panel_title(ax, title)


def class_map(ax: Axes, classes: np.ndarray, scheme: ClassScheme, title: str) -> None:
    """Show class indices `uint8 [H, W]` in their colours and with their names."""
    picture(ax, scheme.colorize(classes), title)
    name_classes(ax, classes, scheme)


def name_classes(ax: Axes, classes: np.ndarray, scheme: ClassScheme) -> None:
    """Write the name of each class on a picture of `classes`, where there is room for it."""
    names = dict(enumerate(scheme.names)) | {IGNORE: "void"}
    # The size of a letter in pixels of the picture, which fills its column of the figure.
    grid = ax.get_gridspec()
    columns = grid.ncols if grid else 1
    letter = SMALL_TEXT / 72 * classes.shape[1] / (WIDTH / columns)
    high = 1.3 * letter / float(ax.get_aspect())
    for index in np.unique(classes):
        wide = 0.6 * letter * len(names[index])
        # The largest box that fits lies in the middle of a region, a small one often at its border.
        boxes = [(math.ceil(high * size), math.ceil(wide * size)) for size in (4, 3, 2, 1.5, 1)]
        places = (_place_for(box, classes == index) for box in boxes)
        place = next((place for place in places if place), None)
        if place:
            text = ax.text(*place, names[index], color="white", size=SMALL_TEXT)
            text.set(ha="center", va="center")
            text.set_path_effects([withStroke(linewidth=2, foreground=INK)])


def _place_for(box: tuple[int, int], inside: np.ndarray) -> tuple[float, float] | None:
    """Return the centre (x, y) of a box (height, width) of which at least 95 % lies `inside`."""
    height, width = box
    if height > inside.shape[0] or width > inside.shape[1]:
        return None
    # Summed from the upper left corner, the sum of any box is that of four corners.
    total = np.pad(inside, ((1, 0), (1, 0))).astype(int).cumsum(0).cumsum(1)
    rows = total[height:] - total[:-height]
    sums = rows[:, width:] - rows[:, :-width]
    top, left = np.unravel_index(sums.argmax(), sums.shape)
    if sums[top, left] < 0.95 * height * width:
        return None
    return float(left + width / 2), float(top + height / 2)


def largest_classes(classes: np.ndarray, scheme: ClassScheme) -> str:
    """Return the four largest classes in words, such as "road 40 %, sky 20 %"."""
    indices, pixels = np.unique(classes[classes != IGNORE], return_counts=True)
    order = np.argsort(-pixels)[:4]
    parts = [f"{scheme.names[indices[i]]} {100 * pixels[i] / classes.size:.0f} %" for i in order]
    return ", ".join(parts) or "void alone"


def class_legend(figure: Figure, classes: Sequence[np.ndarray], scheme: ClassScheme) -> None:
    """Add a legend below the figure: the classes that have more than 0.1 % of the pixels of
    `classes`, and void."""
    pixels = np.bincount(np.concatenate([np.ravel(part) for part in classes]), minlength=256)
    often = pixels > 0.001 * pixels.sum()
    colors = {scheme.names[i]: scheme.colors[i] for i in range(scheme.num_classes) if often[i]}
    if often[IGNORE]:
        colors["void (no class)"] = (0, 0, 0)
    patches = [
        Patch(facecolor="#" + bytes(color).hex(), edgecolor=GREY, label=name)
        for name, color in colors.items()
    ]
    legend(figure, patches)


def legend(figure: Figure, handles: Sequence[Artist]) -> None:
    """Add a legend below the figure, which grows by its height."""
    if not handles:
        return
    longest = max(len(str(handle.get_label())) for handle in handles)
    columns = max(1, min(len(handles), int(WIDTH / (0.6 + 0.075 * longest))))
    rows = math.ceil(len(handles) / columns)
    figure.set_figheight(figure.get_figheight() + 0.2 * rows + 0.1)
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)


def scale(image: AxesImage, axes: Sequence[Axes], label: str) -> None:
    """Add a colour bar below the axes."""
    image.figure.colorbar(image, ax=axes, location="bottom", aspect=40, fraction=0.06, label=label)
