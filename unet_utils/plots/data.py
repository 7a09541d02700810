"""Figures of the photos, the masks and the labels (notebooks 1 and 2)."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from unet_utils.classes import PALETTE, ClassScheme, get_scheme
from unet_utils.clustering import Clusters
from unet_utils.plots.style import (
    BLUE,
    INK,
    ORANGE,
    PALE,
    class_legend,
    class_map,
    color_legend,
    line_legend,
    new_figure,
    number_classes,
    one_panel,
    picture,
)


def plot_pairs(photos: np.ndarray, masks: np.ndarray, titles: Sequence[str]) -> Figure:
    """Plot photo and colour mask as they are in the file, one row per file: `uint8 [N, H, W, 3]`
    each."""
    figure, axes = new_figure(
        len(photos), 2, 8, 2.3 * len(photos) + 0.4, "Each file holds a photo and its colour mask"
    )
    for row, photo, mask, title in zip(axes, photos, masks, titles, strict=True):
        picture(row[0], photo, f"{title}: photo")
        picture(row[1], mask, "mask")
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
    figure, axes = new_figure(len(photos), 3, 10, 2 * len(photos) + 1.2, title)
    for row, photo, labels in zip(axes, photos, classes, strict=True):
        picture(row[0], photo, "photo")
        class_map(row[1], labels, scheme, "classes")
        picture(row[2], scheme.overlay(photo, labels), "both blended")
        number_classes(row[2], labels)
    class_legend(figure, [classes], scheme)
    return figure


def plot_color_space(
    colors: np.ndarray, counts: np.ndarray, clusters: Clusters, most: int = 20_000
) -> Figure:
    """Plot the colours of the masks as points in RGB space, with the cluster centres.

    Args:
        colors: distinct colours, `uint8 [M, 3]`.
        counts: number of pixels of each colour, `int [M]`.
        clusters: the clusters to show.
        most: plot at most this many colours, the most frequent ones.
    """
    top = np.argsort(counts)[::-1][:most]
    covered = 100 * counts[top].sum() / counts.sum()
    title = f"{len(colors):,} distinct colours, where the official table has {len(PALETTE)}"
    figure, axes = new_figure(1, 1, 8, 6.8, title, subplot_kw={"projection": "3d"})
    ax = axes[0, 0]
    points = colors[top].astype(float)
    ax.computed_zorder = False  # draw by zorder: centres and names in front of all points
    ax.scatter(*points.T, c=points / 255, s=2 + 4 * np.log10(counts[top]), linewidths=0, alpha=0.6)
    fill = clusters.centers.clip(0, 255) / 255
    ax.scatter(
        *clusters.centers.T,
        c=fill,
        s=40,
        edgecolors="white",
        linewidths=1.5,
        depthshade=False,
        zorder=3,
    )
    for index in np.argsort(clusters.shares)[::-1][:12]:
        box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5}
        ax.text(*clusters.centers[index], "   " + clusters.names[index], bbox=box, zorder=4)
    ax.set(xlabel="red (0 to 255)", ylabel="green (0 to 255)", zlabel="blue (0 to 255)")
    text = f"dots: the {len(top):,} most frequent ({covered:.0f} % of the pixels); circles: cluster centres"
    ax.set_title(text, loc="left")
    return figure


def plot_clusters(clusters: Clusters, ax: Axes | None = None) -> Figure:
    """Plot the share of all pixels that each cluster has, in the colour of its centre, on a log
    scale."""
    order = np.argsort(clusters.shares)
    figure, ax = one_panel(ax, 8, 0.28 * len(order) + 1.3, "Share of each colour cluster")
    shares = 100 * clusters.shares[order]
    ax.barh(
        range(len(order)),
        shares,
        color=clusters.centers[order].clip(0, 255) / 255,
        edgecolor=INK,
        linewidth=0.5,
    )
    ax.set_yticks(range(len(order)), [clusters.names[index] for index in order])
    ax.set(
        xscale="log",
        xlabel="share of all mask pixels (%, log scale)",
        ylim=(-0.7, len(order) - 0.3),
    )
    ax.set_xlim(left=shares[shares > 0].min() / 2)  # otherwise the smallest bar has no length
    return figure


def plot_class_shares(
    shares: dict[str, np.ndarray], names: Sequence[str], ax: Axes | None = None
) -> Figure:
    """Plot the share of the pixels that each class has, with one marker per labelling method.

    Args:
        shares: method name -> share of each class, `float [C]`, 0 to 1. A class whose share falls
            below a quarter from the first method to the last is marked as a phantom.
        names: names of the C classes.
        ax: axes to draw on.
    """
    first = next(iter(shares.values()))
    order = np.argsort(first)
    figure, ax = one_panel(ax, 8, 0.3 * len(order) + 1.4, "Share of the pixels of each class")
    for (name, share), color, marker in zip(
        shares.items(), [BLUE, ORANGE, INK], ["o", "D", "s"], strict=False
    ):
        percent = 100 * np.where(
            share[order] > 0, share[order], np.nan
        )  # zero has no place on a log scale
        ax.plot(
            percent, range(len(order)), marker, color=color, label=name, markersize=7, alpha=0.85
        )
    last = list(shares.values())[-1]
    phantom = [bool(last[index] < first[index] / 4) for index in order]
    marked = [
        names[i] + (" (phantom)" if is_phantom else "")
        for i, is_phantom in zip(order, phantom, strict=True)
    ]
    ax.set_yticks(range(len(order)), marked)
    for text, is_phantom in zip(ax.get_yticklabels(), phantom, strict=True):
        text.set_color(ORANGE if is_phantom else INK)
    if any(share.any() for share in shares.values()):
        ax.set_xscale("log")
    ax.set_xlabel("share of all pixels (%, log scale)")
    ax.grid(axis="both", color=PALE)
    ax.set_axisbelow(True)
    line_legend(figure, ax)
    return figure


def plot_pixels(pictures: dict[str, np.ndarray]) -> Figure:
    """Plot small pictures `uint8 [H, W, 3]`, one below the other, enlarged so that single pixels
    can be seen."""
    figure, axes = new_figure(
        len(pictures), 1, 6, 1.8 * len(pictures) + 0.3, "Each square is one pixel of the mask"
    )
    for ax, (title, pixels) in zip(axes[:, 0], pictures.items(), strict=True):
        height, width = pixels.shape[:2]
        ax.imshow(pixels, interpolation="nearest", extent=(0, width, 0, height))
        ax.set_title(title, loc="left")
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
    palette = np.zeros((256, 3), dtype=np.uint8)
    for label in PALETTE:
        palette[label.id] = label.color
    differs = np.where((nearest != restored)[..., None], palette[nearest], 235).astype(np.uint8)
    share = 100 * (nearest[where] != restored[where]).mean()
    scheme = get_scheme("cityscapes30")
    pictures = {
        "photo": photo,
        "nearest colour": palette[nearest],
        f"{share:.0f} % differ (colour: nearest)": differs,
        "mask": mask,
        "restored": palette[restored],
        "restored, over the photo": scheme.overlay(photo, scheme.encode(restored)),
    }
    seen = np.union1d(nearest[where], restored[where])
    names = {f"{label.id} {label.name}": label.color for label in PALETTE if label.id in seen}
    title = f"A detail of {name}, labelled by both methods"
    figure, axes = new_figure(2, 3, 10, 4.3 + 0.06 * len(names), title)
    for ax, (text, pixels) in zip(axes.flat, pictures.items(), strict=True):
        picture(ax, pixels[where], text)
    number_classes(axes[0, 1], nearest[where])
    number_classes(axes[1, 1], restored[where])
    color_legend(figure, names)
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
    blocks = (
        (first != second)
        .reshape(n, height // size, size, width // size, size)
        .sum((2, 4))
        .reshape(n, -1)
    )
    frames = np.argsort(blocks.max(1))[::-1][:count]
    places = []
    for frame in frames:
        row, column = divmod(int(blocks[frame].argmax()), width // size)
        rows, columns = (slice(i * size, (i + 1) * size) for i in (row, column))
        places.append((int(frame), rows, columns))
    return places
