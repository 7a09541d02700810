"""A frame to look into: wipe between two class maps, point at a pixel and read its classes."""

import html
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from unet_utils.classes import ClassScheme
from unet_utils.plots.html_figure import (
    HtmlFigure,
    class_names,
    distinct_colors,
    fill,
    html_legend,
    map_png,
    photo_jpeg,
    shrink,
)
from unet_utils.plots.results import plot_photo
from unet_utils.plots.style import (
    class_legend,
    class_map,
    largest_classes,
    picture,
    picture_grid,
)

TEMPLATE = Path(__file__).with_name("inspector.html")
LONGEST_SIDE = 768
"""Pixels. Larger photos are reduced: a notebook keeps all of them."""


def inspector(
    photo: np.ndarray,
    left: np.ndarray | None,
    right: np.ndarray,
    scheme: ClassScheme,
    names: Sequence[str] = ("truth", "prediction"),
) -> HtmlFigure:
    """Show a frame with a wipe between two class maps. Point at a pixel, tap it, or move there with
    the arrow keys to read its class in both: "truth: bus, prediction: train".

    Args:
        photo: `uint8 [H, W, 3]`.
        left: class indices, `uint8 [H, W]`; shown left of the wipe. None for a photo without truth:
            there the photo alone is shown.
        right: class indices, `uint8 [H, W]`; shown right of the wipe.
        scheme: names and colours of the classes.
        names: what `left` and `right` are.

    Returns:
        What notebooks show as the last line of a cell. A frame is shown twice as wide as high, like
        in all figures; a photo without truth in its own shape.

    Raises:
        ValueError: photo and class maps have different sizes.
    """
    maps = {"left": left, "right": right}
    given = {side: classes for side, classes in maps.items() if classes is not None}
    for side, classes in given.items():
        if classes.shape != photo.shape[:2]:
            raise ValueError(
                f"the photo has {photo.shape[:2]} pixels, the class map on the {side} "
                f"{classes.shape}: both must have the same height and width"
            )
    titles = dict(zip(maps, names, strict=True))
    shown = ["photo", *(titles[side] for side in given)]
    seen = [f"{titles[side]}: {largest_classes(part, scheme)}" for side, part in given.items()]
    small = {side: shrink(classes, LONGEST_SIDE) for side, classes in given.items()}
    images = []
    for (side, classes), text in zip(small.items(), seen, strict=True):
        images.append(
            f'<img class="map {side}" data-name="{html.escape(titles[side])}" '
            f'alt="{html.escape(text)}" src="data:image/png;base64,{map_png(classes, scheme)}">'
        )
    every_name = class_names(scheme)
    classes_by_color = {
        ",".join(map(str, color)): every_name[index]
        for index, color in distinct_colors(scheme).items()
    }
    page = fill(
        TEMPLATE,
        {
            "classes": html.escape(json.dumps(classes_by_color)),
            "aspect": "2" if left is not None else f"{photo.shape[1]} / {photo.shape[0]}",
            "names": " ".join(f"<span>{html.escape(title)}</span>" for title in shown),
            "wipe": html.escape(f"wipe: {shown[-2]} on the left, {shown[-1]} on the right"),
            "seen": html.escape(f"{'; '.join(seen)}."),
            "photo": photo_jpeg(shrink(photo, LONGEST_SIDE)),
            "maps": "\n  ".join(images),
            "legend": html_legend(list(small.values()), scheme),
        },
    )
    if left is None:
        return HtmlFigure(page, plot_photo(photo, right, scheme))
    return HtmlFigure(page, _plot_both(photo, [left, right], names, seen, scheme))


def _plot_both(
    photo: np.ndarray,
    maps: Sequence[np.ndarray],
    titles: Sequence[str],
    seen: Sequence[str],
    scheme: ClassScheme,
) -> Figure:
    """Plot photo and class maps side by side: the inspector where no script runs."""
    title = f"A frame: {titles[0]} and {titles[1]}"
    figure, axes = picture_grid(1, 3, title, f"{'; '.join(seen)}.")
    picture(axes[0, 0], photo, "photo")
    for ax, classes, name in zip(axes[0, 1:], maps, titles, strict=True):
        class_map(ax, classes, scheme, name)
    class_legend(figure, maps, scheme)
    return figure
