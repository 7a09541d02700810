"""Figures of the photos, the masks and the labels."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

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


def plot_labels(
    photos: np.ndarray,
    classes: np.ndarray,
    scheme: ClassScheme,
    title: str = "The class of each pixel",
) -> Figure:
    """Plot photo, classes and both blended, one row per frame.

    Args:
        photos: `uint8 [N, H, W, 3]`.
        classes: class indices, `uint8 [N, H, W]`.
        scheme: names and colours of the classes.
        title: of the figure.
    """
    figure, axes = picture_grid(len(photos), 3, title, largest_classes(classes, scheme) + ".")
    for row, photo, labels in zip(axes, photos, classes, strict=True):
        picture(row[0], photo, "photo")
        class_map(row[1], labels, scheme, "classes")
        picture(row[2], scheme.overlay(photo, labels), "both blended")
    class_legend(figure, [classes], scheme)
    return figure


def plot_clusters(colors: np.ndarray, counts: np.ndarray, clusters: Clusters) -> Figure:
    """Plot the colours of the masks, by their red and their green, with the cluster centres.

    Args:
        colors: distinct colours, `uint8 [M, 3]`.
        counts: number of pixels of each colour, `int [M]`.
        clusters: the clusters to show. A centre is a diamond if its name is doubtful.
    """
    order = np.argsort(-clusters.shares)
    title = f"{len(colors):,} distinct colours, and the centres of {len(order)} clusters"
    largest = (f"{clusters.names[i]} {100 * clusters.shares[i]:.0f} %" for i in order[:4])
    figure, axes = new_figure(1, 1, 6, title, f"The largest clusters: {', '.join(largest)}.")
    ax = axes[0, 0]
    often = np.argsort(counts)[-20_000:]
    red, green, _ = colors[often].T
    dots = {"s": 1 + 3 * np.log10(counts[often]), "linewidths": 0, "alpha": 0.5}
    ax.scatter(red, green, c=colors[often] / 255, **dots)
    marks = []
    for marker, doubtful in (("o", False), ("D", True)):
        some = [i for i in order if bool(clusters.remarks[i]) == doubtful]
        label = "cluster, its name is doubtful" if doubtful else "cluster"
        centers = clusters.centers[some]
        fill = {"c": centers.clip(0, 255) / 255, "edgecolors": INK, "zorder": 2}
        marks.append(ax.scatter(*centers.T[:2], s=60, marker=marker, label=label, **fill))
    named: list[np.ndarray] = []
    for i in order:  # the largest first; no name on another
        place = clusters.centers[i, :2]
        if all(abs(place - other)[0] > 40 or abs(place - other)[1] > 9 for other in named):
            named.append(place)
            box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5}
            ax.annotate(
                clusters.names[i], place, (7, 0), textcoords="offset points", va="center", bbox=box
            )
    ax.set(xlabel="red (0 to 255)", ylabel="green (0 to 255)")
    legend(figure, marks)
    return figure


def plot_pixels(pictures: dict[str, np.ndarray]) -> Figure:
    """Plot small pictures `uint8 [H, W, 3]`, one below the other, enlarged so that single pixels
    can be seen."""
    sizes = (f"{name}, {p.shape[0]} x {p.shape[1]} pixels" for name, p in pictures.items())
    title = "Each square is one pixel of the mask"
    figure, axes = new_figure(
        len(pictures), 1, 2.2 * len(pictures) + 0.3, title, f"{'; '.join(sizes)}."
    )
    for ax, (name, pixels) in zip(axes[:, 0], pictures.items(), strict=True):
        height, width = pixels.shape[:2]
        ax.imshow(pixels, interpolation="nearest", extent=(0, width, 0, height))
        panel_title(ax, name)
        ax.set_xticks(range(width + 1), [])
        ax.set_yticks(range(height + 1), [])
        ax.tick_params(length=0)
        ax.grid(color="white", linewidth=0.8)
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
    picture(axes[0, 2], pixels, f"{share} (colour: nearest)")
    picture(axes[1, 0], mask, "mask")
    class_map(axes[1, 1], by_restoring, OFFICIAL, "restored labels")
    # Without the outlines of `overlay`, which would hide a pole here.
    blended = photo // 2 + OFFICIAL.colorize(by_restoring) // 2
    picture(axes[1, 2], blended, "restored, over the photo")
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


def plot_class_shares(shares: dict[str, np.ndarray], names: Sequence[str]) -> Figure:
    """Plot the share of the pixels that each class has, with one marker per labelling method.

    Args:
        shares: method name -> share of each class, `float [C]`, 0 to 1; at most three methods. A
            class whose share falls below a quarter from the first method to the last is marked as a
            phantom.
        names: names of the C classes.
    """
    first, *_, last = shares.values()
    order = np.argsort(first)
    phantom = last < first / 4
    found = ", ".join(names[i] for i in order[::-1] if phantom[i]) or "none"
    title = "Share of the pixels of each class"
    figure, axes = new_figure(1, 1, 0.27 * len(order) + 1, title, f"Phantoms: {found}.")
    ax = axes[0, 0]
    lines = []
    for number, (method, share) in enumerate(shares.items()):
        percent = 100 * np.where(share > 0, share, np.nan)[order]  # a log scale has no zero
        color = (BLUE, ORANGE, INK)[number]
        marker = "oDs"[number]
        lines += ax.plot(percent, range(len(order)), marker, color=color, label=method, alpha=0.85)
    rows = [f"{names[i]} (phantom)" if phantom[i] else names[i] for i in order]
    ax.set_yticks(range(len(order)), rows)
    for text, i in zip(ax.get_yticklabels(), order, strict=True):
        text.set_color(ORANGE if phantom[i] else INK)
    if any(share.any() for share in shares.values()):
        ax.set_xscale("log")
    ax.set_xlabel("share of all pixels (%, log scale)")
    ax.grid(color=PALE)
    ax.set_axisbelow(True)
    legend(figure, lines)
    return figure
