"""Figures of the photos, the masks and the labels."""

from collections.abc import Collection, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from unet_utils.classes import PALETTE, PALETTE_COLORS, PALETTE_IDS, ClassScheme, get_scheme
from unet_utils.clustering import Clusters
from unet_utils.plots.style import (
    BLUE,
    INK,
    ORANGE,
    PALE,
    class_legend,
    class_map,
    largest_classes,
    legend,
    new_figure,
    panel_title,
    picture,
    picture_grid,
)
from unet_utils.restoring import nearest_color

OFFICIAL = ClassScheme(
    name="official",
    names=tuple(label.name for label in PALETTE),
    colors=tuple(label.color for label in PALETTE),
    lookup=tuple(PALETTE_IDS.searchsorted(np.arange(256)).tolist()),
)
"""One class for each of the 29 colours that a mask can have, those of void included."""


def plot_pairs(photos: np.ndarray, masks: np.ndarray, titles: Sequence[str]) -> Figure:
    """Plot photo and colour mask as they are in the file, one row per file.

    Args:
        photos, masks: `uint8 [N, H, W, 3]` each.
        titles: one per file.
    """
    # The masks have thousands of colours. The legend names the official ones that are near to many.
    scheme = get_scheme("cityscapes19")
    nearest = scheme.encode(PALETTE_IDS[nearest_color(np.array(masks), PALETTE_COLORS)])
    text = f"{', '.join(titles)}. The masks show {largest_classes(nearest, scheme)}."
    title = "Each file holds a photo and its colour mask"
    figure, axes = picture_grid(len(photos), 2, title, text)
    for row, photo, mask, name in zip(axes, photos, masks, titles, strict=True):
        picture(row[0], photo, f"{name}: photo")
        picture(row[1], mask, "mask")
    class_legend(figure, [nearest], scheme)
    return figure


def plot_labels(photos: np.ndarray, classes: np.ndarray, scheme: ClassScheme) -> Figure:
    """Plot photo, classes and both blended, one row per frame.

    Args:
        photos: `uint8 [N, H, W, 3]`.
        classes: class indices, `uint8 [N, H, W]`.
        scheme: names and colours of the classes.
    """
    text = f"{largest_classes(classes, scheme)}."
    figure, axes = picture_grid(len(photos), 3, "The class of each pixel", text)
    for row, photo, labels in zip(axes, photos, classes, strict=True):
        picture(row[0], photo, "photo")
        class_map(row[1], labels, scheme, "classes")
        picture(row[2], _blended(photo, labels, scheme), "both blended")
    class_legend(figure, [classes], scheme)
    return figure


def _blended(photo: np.ndarray, classes: np.ndarray, scheme: ClassScheme) -> np.ndarray:
    """Return the class colours over a photo, `uint8 [H, W, 3]`, without the outlines of
    `ClassScheme.overlay`, which hide a pole of these small pictures."""
    return photo // 2 + scheme.colorize(classes) // 2


def plot_clusters(
    colors: np.ndarray, counts: np.ndarray, clusters: Clusters, phantoms: Collection[str] = ()
) -> Figure:
    """Plot the colours of the masks, by their blue and their green, with the cluster centres.

    These two tell more classes apart than red does: vehicles differ in blue alone.

    Args:
        colors: distinct colours, `uint8 [M, 3]`.
        counts: number of pixels of each colour, `int [M]`.
        clusters: the clusters to show.
        phantoms: names of clusters that are no class: these are diamonds.
    """
    order = np.argsort(-clusters.shares)
    often = np.argsort(counts)[-20_000:]
    title = f"The {len(often):,} most frequent colours, and the centres of {len(order)} clusters"
    largest = (f"{clusters.names[i]} {100 * clusters.shares[i]:.0f} %" for i in order[:4])
    figure, axes = new_figure(1, 1, 6, title, f"The largest clusters: {', '.join(largest)}.")
    ax = axes[0, 0]
    _, green, blue = colors[often].T
    dots = {"s": 1 + 3 * np.log10(counts[often]), "linewidths": 0, "alpha": 0.35}
    ax.scatter(blue, green, c=colors[often] / 255, **dots)
    places = clusters.centers[:, [2, 1]]
    marks = []
    for marker, is_phantom in (("o", False), ("D", True)):
        some = [i for i in order if (clusters.names[i] in phantoms) == is_phantom]
        fill = clusters.centers[some].clip(0, 255) / 255
        edge = ORANGE if is_phantom else INK
        label = "a phantom" if is_phantom else "a class"
        points = ax.scatter(*places[some].T, s=50, c=fill, edgecolors=edge, marker=marker)
        points.set(linewidths=2, zorder=2, label=label)
        marks.append(points)
    names = [clusters.names[i] for i in order]
    edges = [ORANGE if name in phantoms else INK for name in names]
    _name_points(ax, places[order], names, edges)
    ax.set(xlabel="blue (0 to 255)", ylabel="green (0 to 255)", xlim=(-12, 268), ylim=(-12, 268))
    legend(figure, marks)
    return figure


def _name_points(ax: Axes, places: np.ndarray, names: Sequence[str], colors: Sequence[str]) -> None:
    """Write a name beside each point `float [N, 2]`, where there is no other name and no point;
    where there is no room, none."""
    letter = 4.6  # width of a letter and height of a line, in grey levels
    line = 9
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in places]
    for (x, y), name, color in zip(places, names, colors, strict=True):
        wide = letter * len(name)
        middle = x - wide / 2
        for left, height in ((x + 6, y), (x - 6 - wide, y), (middle, y + 10), (middle, y - 10)):
            box = (left, height - line / 2, left + wide, height + line / 2)
            if left > -12 and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                text = ax.text(left, height, name, color=color, va="center")
                text.set_path_effects([withStroke(linewidth=2, foreground="white")])
                break


def _overlap(first: Sequence[float], second: Sequence[float]) -> bool:
    """Return whether two boxes (left, bottom, right, top) overlap."""
    across = first[0] < second[2] and second[0] < first[2]
    return across and first[1] < second[3] and second[1] < first[3]


def plot_pixels(pictures: dict[str, np.ndarray], names: Sequence[str] = ()) -> Figure:
    """Plot small pictures, one below the other, enlarged so that single pixels can be seen.

    Args:
        pictures: title -> `uint8 [H, W, 3]`.
        names: the class of each column of the last picture, written into it.
    """
    sizes = (f"{name}, {p.shape[0]} x {p.shape[1]} pixels" for name, p in pictures.items())
    title = "Each square is one pixel of the mask"
    text = f"{'; '.join(sizes)}. {', '.join(names)}".strip()
    figure, axes = new_figure(len(pictures), 1, 1.9 * len(pictures) + 0.3, title, text)
    for ax, (name, pixels) in zip(axes[:, 0], pictures.items(), strict=True):
        height, width = pixels.shape[:2]
        ax.imshow(pixels, interpolation="nearest", extent=(0, width, 0, height))
        panel_title(ax, name)
        ax.set_xticks(range(width + 1), [])
        ax.set_yticks(range(height + 1), [])
        ax.tick_params(length=0)
        ax.grid(color="white", linewidth=0.8)
    for column, name in enumerate(names):
        label = ax.text(column + 0.5, height / 2, name, color="white", rotation=90)
        label.set(ha="center", va="center")
        label.set_path_effects([withStroke(linewidth=2, foreground=INK)])
    return figure


def plot_label_methods(
    photo: np.ndarray,
    mask: np.ndarray,
    nearest: np.ndarray,
    restored: np.ndarray,
    where: tuple[slice, slice],
    name: str,
) -> Figure:
    """Plot a detail of one frame: photo, mask, its labels by both methods, and where these differ.

    Args:
        photo, mask: `uint8 [H, W, 3]`.
        nearest, restored: official label ids, `uint8 [H, W]`.
        where: rows and columns of the detail.
        name: name of the frame, for the title.
    """
    photo, mask = photo[where], mask[where]
    by_nearest, by_restoring = OFFICIAL.encode(nearest[where]), OFFICIAL.encode(restored[where])
    differs = by_nearest != by_restoring
    share = f"{100 * differs.mean():.0f} % differ"
    title = f"A detail of {name}, labelled by both methods"
    figure, axes = picture_grid(2, 3, title, f"{share} between nearest and restored labels.")
    picture(axes[0, 0], photo, "photo")
    class_map(axes[0, 1], by_nearest, OFFICIAL, "nearest labels")
    pixels = np.where(differs[..., None], OFFICIAL.colorize(by_nearest), 235)
    picture(axes[0, 2], pixels, f"{share} (nearest)")
    picture(axes[1, 0], mask, "mask")
    class_map(axes[1, 1], by_restoring, OFFICIAL, "restored labels")
    picture(axes[1, 2], _blended(photo, by_restoring, OFFICIAL), "restored, over the photo")
    class_legend(figure, [by_nearest, by_restoring], OFFICIAL)
    return figure


def most_different(
    first: np.ndarray, second: np.ndarray, size: int = 64, count: int = 3
) -> list[tuple[int, slice, slice]]:
    """Find where two labellings differ most.

    Args:
        first, second: label maps `uint8 [N, H, W]`, H and W divisible by `size`.
        size: height and width of a window, pixels.
        count: return at most this many windows.

    Returns:
        `(frame, rows, columns)` of the window with the most differences in each frame, most
        differences first.
    """
    n, height, width = first.shape
    windows = (first != second).reshape(n, height // size, size, width // size, size)
    differences = windows.sum((2, 4)).reshape(n, -1)
    places = []
    for frame in np.argsort(differences.max(1))[::-1][:count]:
        row, column = divmod(int(differences[frame].argmax()), width // size)
        rows = slice(row * size, (row + 1) * size)
        columns = slice(column * size, (column + 1) * size)
        places.append((int(frame), rows, columns))
    return places


def plot_class_shares(
    shares: dict[str, np.ndarray], names: Sequence[str], phantoms: Collection[str] = ()
) -> Figure:
    """Plot the share of the pixels that each class has, with one marker per labelling method.

    Args:
        shares: method name -> share of each class, `float [C]`, 0 to 1; at most three methods.
        names: names of the C classes.
        phantoms: names of those that are no class; they are marked.
    """
    order = np.argsort(next(iter(shares.values())))
    found = ", ".join(names[i] for i in order[::-1] if names[i] in phantoms) or "none"
    title = "Share of the pixels of each class"
    figure, axes = new_figure(1, 1, 0.27 * len(order) + 1, title, f"Phantoms: {found}.")
    ax = axes[0, 0]
    lines = []
    for number, (method, share) in enumerate(shares.items()):
        percent = 100 * np.where(share > 0, share, np.nan)[order]  # a log scale has no zero
        color = (BLUE, ORANGE, INK)[number]
        marker = "oDs"[number]
        lines += ax.plot(percent, range(len(order)), marker, color=color, label=method, alpha=0.85)
    rows = [f"{names[i]} (phantom)" if names[i] in phantoms else names[i] for i in order]
    ax.set_yticks(range(len(order)), rows)
    for text, i in zip(ax.get_yticklabels(), order, strict=True):
        text.set_color(ORANGE if names[i] in phantoms else INK)
    if any(share.any() for share in shares.values()):
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.set_xlabel("share of all pixels (%, log scale)")
    ax.grid(color=PALE)
    ax.set_axisbelow(True)
    legend(figure, lines)
    return figure
