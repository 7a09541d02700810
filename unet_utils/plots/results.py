"""Figures of predictions and scores (notebooks 3 and 4)."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from unet_utils.classes import IGNORE, ClassScheme
from unet_utils.metrics import ConfusionMatrix
from unet_utils.plots.style import (
    GREY,
    INK,
    PALE,
    SHADES,
    class_legend,
    class_map,
    new_figure,
    number_classes,
    one_panel,
    picture,
    text_size,
)

RED = (190, 20, 20)


def _wrong(truth: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, str]:
    """Return where the prediction is wrong, `bool [H, W]`, and the share of the labelled pixels in
    words."""
    known = truth != IGNORE
    wrong = (predicted != truth) & known
    return (
        wrong,
        f"{100 * wrong.sum() / known.sum():.0f} % wrong" if known.any() else "no labelled pixel",
    )


def _errors(ax: Axes, photo: np.ndarray, truth: np.ndarray, predicted: np.ndarray) -> None:
    """Show wrong pixels in red over a pale grey photo. Red is darker than all the rest, also when
    printed in grey."""
    wrong, share = _wrong(truth, predicted)
    grey = 165 + 0.35 * photo.mean(2, keepdims=True)
    picture(ax, np.where(wrong[..., None], RED, grey).astype(np.uint8), share)


def plot_predictions(
    photos: np.ndarray,
    truth: np.ndarray,
    predicted: np.ndarray,
    scheme: ClassScheme,
    titles: Sequence[str] = (),
    title: str = "What the network sees, and where it is wrong (red)",
    all_classes: bool = False,
) -> Figure:
    """Plot photo, truth, prediction and errors, one row per frame.

    Args:
        photos: `uint8 [N, H, W, 3]`.
        truth, predicted: class indices, `uint8 [N, H, W]`.
        scheme: names and colours of the classes.
        titles: one per frame, above its photo.
        title: of the figure.
        all_classes: name all classes in the legend, so that figures of other predictions have the
            same layout.
    """
    figure, axes = new_figure(len(photos), 4, 10, 1.6 * len(photos) + 1.4, title)
    for number, (row, photo, true, pred) in enumerate(
        zip(axes, photos, truth, predicted, strict=True)
    ):
        picture(row[0], photo, titles[number] if titles else "photo")
        class_map(row[1], true, scheme, "truth")
        class_map(row[2], pred, scheme, "prediction")
        _errors(row[3], photo, true, pred)
    class_legend(
        figure,
        [np.append(range(scheme.num_classes), IGNORE)] if all_classes else [truth, predicted],
        scheme,
    )
    return figure


def plot_before_after(
    photos: np.ndarray,
    truth: np.ndarray,
    before: np.ndarray,
    after: np.ndarray,
    scheme: ClassScheme,
) -> Figure:
    """Plot photo, truth and the predictions before and after training, one row per frame.

    Args:
        photos: `uint8 [N, H, W, 3]`.
        truth, before, after: class indices, `uint8 [N, H, W]`.
        scheme: names and colours of the classes.
    """
    title = "What the network sees before and after training"
    figure, axes = new_figure(len(photos), 4, 10, 1.6 * len(photos) + 1.4, title)
    for row, photo, true, *predictions in zip(axes, photos, truth, before, after, strict=True):
        picture(row[0], photo, "photo")
        class_map(row[1], true, scheme, "truth")
        for ax, name, predicted in zip(row[2:], ("before", "after"), predictions, strict=True):
            class_map(ax, predicted, scheme, f"{name}: {_wrong(true, predicted)[1]}")
    class_legend(figure, [truth, before, after], scheme)
    return figure


def plot_photo(photo: np.ndarray, classes: np.ndarray, scheme: ClassScheme) -> Figure:
    """Plot a photo `uint8 [H, W, 3]` of any size and, beside it, its classes `uint8 [H, W]` blended
    over it."""
    step = max(1, max(classes.shape) // 1000)
    photo, classes = photo[::step, ::step], classes[::step, ::step]
    height = min(9, 5 * classes.shape[0] / classes.shape[1])
    figure, axes = new_figure(
        1, 2, 10.5, height + 1.5, "The photo, and what the network sees in it"
    )
    for ax, pixels in zip(axes[0], (photo, scheme.overlay(photo, classes)), strict=True):
        ax.imshow(pixels, interpolation="nearest")
        ax.set_axis_off()
    number_classes(axes[0, 1], classes)
    class_legend(figure, [classes], scheme)
    return figure


def plot_label_grids(
    grids: dict[str, np.ndarray], counts: dict[str, np.ndarray] | None = None
) -> Figure:
    """Plot small integer arrays as squares with a number in each cell, for examples that are worked
    out by hand.

    Args:
        grids: title -> class indices, `int [h, w]`. Each class has its own colour, ignored cells
            are grey.
        counts: title -> confusion matrix, `int [C, C]`, shaded by count.
    """
    counts = counts or {}
    figure, axes = new_figure(1, len(grids) + len(counts), 10, 4.4, "Counted by hand")
    colors = np.array(
        [[157, 195, 230], [250, 217, 176], [204, 232, 196], [222, 204, 230]], dtype=np.uint8
    )
    for ax, (title, values) in zip(axes[0], (grids | counts).items(), strict=True):
        if title in counts:
            ax.imshow(SHADES(0.6 * values / max(1, values.max())))
            ticks = range(len(values))
            ax.set(xlabel="predicted class", ylabel="true class", xticks=ticks, yticks=ticks)
        else:
            ax.imshow(np.where((values == IGNORE)[..., None], 205, colors[values % len(colors)]))
            ax.set(xticks=[], yticks=[])
        for (row, column), value in np.ndenumerate(values):
            text = "void" if value == IGNORE and title in grids else str(value)
            ax.text(column, row, text, ha="center", va="center", fontsize=text_size(figure))
        ax.set_title(title, loc="left")
        _lines_between_cells(ax, values.shape)
    return figure


def plot_class_iou(matrix: ConfusionMatrix, scheme: ClassScheme, ax: Axes | None = None) -> Figure:
    """Plot the IoU of each class, best first, with share and number of its true pixels. The dashed
    line is the mean."""
    iou, pixels = matrix.iou.numpy(), matrix.matrix.sum(1).cpu().numpy()
    order = np.argsort(np.nan_to_num(iou, nan=-1))
    figure, ax = one_panel(
        ax, 8, 0.3 * len(order) + 1.5, f"IoU of each class, mean {matrix.mean_iou:.3f}"
    )
    colors = np.array(scheme.colors[: scheme.num_classes])[order] / 255
    ax.barh(
        range(len(order)), np.nan_to_num(iou[order]), color=colors, edgecolor=INK, linewidth=0.5
    )
    for y, index in enumerate(order):
        absent = np.isnan(iou[index])
        text = "absent from the truth" if absent else f"{iou[index]:.2f}"
        ax.text(np.nan_to_num(iou[index]) + 0.01, y, text, va="center")
        if not absent:
            ax.text(1.27, y, f"{100 * pixels[index] / pixels.sum():.2g} %", va="center", ha="right")
            ax.text(1.45, y, _short(pixels[index]), va="center", ha="right")
    ax.text(1.27, len(order), "share", ha="right", va="center", fontweight="bold")
    ax.text(1.45, len(order), "pixels", ha="right", va="center", fontweight="bold")
    ax.axvline(matrix.mean_iou, color=GREY, linewidth=1, linestyle="--", zorder=0)
    ax.set_yticks(range(len(order)), [scheme.names[index] for index in order])
    ax.set(
        xlabel="intersection over union",
        xlim=(0, 1.45),
        ylim=(-0.7, len(order) + 0.5),
        xticks=np.linspace(0, 1, 6),
    )
    return figure


def _short(count: int) -> str:
    """Return a number in short form: 1234567 as 1.2 M."""
    for unit, size in (("M", 1_000_000), ("k", 1000)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return str(count)


def _lines_between_cells(ax: Axes, shape: tuple[int, ...]) -> None:
    ax.set_xticks(np.arange(0.5, shape[1]), minor=True)
    ax.set_yticks(np.arange(0.5, shape[0]), minor=True)
    ax.grid(which="minor", color=PALE)
    ax.tick_params(which="minor", length=0)
    ax.spines[:].set_visible(False)


def _shaded_table(
    ax: Axes, share: np.ndarray, rows: Sequence[str], columns: Sequence[str], least: float
) -> None:
    """Show shares (0 to 1) as shades, with the percentage in each cell of at least `least`. NaN is
    left empty."""
    ax.imshow(share, cmap=SHADES, vmin=0, vmax=1, aspect="auto")
    size = min(text_size(ax.figure), 0.55 * 72 * 7.5 / len(columns))
    for row, column in np.argwhere(share >= least):  # False for NaN
        ink = "white" if share[row, column] > 0.5 else INK
        text = f"{100 * share[row, column]:.0f}"
        ax.text(column, row, text, ha="center", va="center", color=ink, fontsize=size)
    ax.set_xticks(range(len(columns)), columns)
    ax.set_yticks(range(len(rows)), rows)
    _lines_between_cells(ax, share.shape)


def plot_confusion(matrix: ConfusionMatrix, scheme: ClassScheme, ax: Axes | None = None) -> Figure:
    """Plot the confusion matrix, each row divided by its sum: how the pixels of each true class
    were classified."""
    counts = matrix.matrix.cpu().double()
    share = (counts / counts.sum(1, keepdim=True)).numpy()  # NaN for classes that do not occur
    side = 0.36 * len(share) + 2.4
    figure, ax = one_panel(
        ax, 10, side, "Pixels of each true class (row) predicted as each class (column), %"
    )
    _shaded_table(ax, share, scheme.names, scheme.names, 0.02)
    ax.tick_params(axis="x", rotation=90)
    ax.set(xlabel="predicted class", ylabel="true class")
    return figure


def plot_confused(
    pairs: Sequence[tuple[int, int, int, float]], scheme: ClassScheme, ax: Axes | None = None
) -> Figure:
    """Plot the most confused pairs of classes, one bar per pair.

    Args:
        pairs: true class, predicted class, number of pixels, and their share of the true class (0
            to 1), as `error_analysis.most_confused` returns them.
        scheme: names and colours of the classes.
        ax: axes to draw on.
    """
    figure, ax = one_panel(ax, 8, 0.34 * len(pairs) + 1.5, "The most confused pairs of classes")
    names = []
    for y, (truth, predicted, pixels, share) in enumerate(reversed(pairs)):
        color = np.array(scheme.colors[predicted]) / 255
        ax.barh(y, 100 * share, color=color, edgecolor=INK, linewidth=0.5)
        ax.text(100 * share + 1, y, f"{100 * share:.0f} %, {_short(pixels)}", va="center")
        names.append(f"{scheme.names[truth]} predicted as {scheme.names[predicted]}")
    ax.set_yticks(range(len(pairs)), names)
    ax.set(
        xlabel="share of the true class (%), and pixels", xlim=(0, 125), xticks=range(0, 101, 20)
    )
    return figure


def plot_error_map(errors: np.ndarray, side: int = 256, ax: Axes | None = None) -> Figure:
    """Plot the share of wrong pixels at each place of the frame, as shades and contours.

    Args:
        errors: shares `float [h, w]`, 0 to 1, NaN where all pixels are void; see
            `error_analysis.error_map`.
        side: height and width of the frames, pixels.
        ax: axes to draw on.
    """
    figure, ax = one_panel(ax, 8, 4.3, "Share of wrong pixels by place in the frame")
    ax.patch.set(
        facecolor="white", edgecolor=GREY, hatch="///"
    )  # shows through where the map is NaN
    percent, half = 100 * errors, side / len(errors) / 2
    most = np.max(percent, initial=0, where=~np.isnan(percent))
    image = ax.imshow(
        percent, cmap=SHADES, vmin=0, vmax=max(1, most), extent=(0, side, side, 0), aspect=0.5
    )
    levels = (
        [level for level in MaxNLocator(3).tick_values(0, most) if 0 < level < most]
        if most > 0
        else []
    )
    if levels:
        places = np.linspace(half, side - half, len(errors))
        inks = ["white" if level > most / 2 else INK for level in levels]
        lines = ax.contour(places, places, percent, levels=levels, colors=inks, linewidths=1)
        ax.clabel(lines, fmt="%g %%", fontsize=0.9 * text_size(figure))
    ticks = range(0, side + 1, side // 4)
    ax.set(xlabel="pixels from the left", ylabel="pixels from the top", xticks=ticks, yticks=ticks)
    _scale(image, [ax], "wrong pixels (%); hatched: always void")
    return figure


def _scale(image: AxesImage, axes: Sequence[Axes], label: str) -> None:
    """Add a colour bar below the axes."""
    bar = image.figure.colorbar(image, ax=axes, location="bottom", aspect=40, fraction=0.06)
    bar.set_label(label, size=text_size(image.figure))
    bar.ax.tick_params(labelsize=text_size(image.figure))


def plot_region_recall(
    regions: tuple[np.ndarray, np.ndarray, np.ndarray],
    scheme: ClassScheme,
    least: int = 5,
    ax: Axes | None = None,
) -> Figure:
    """Plot how much of an object is found, by its size: the mean recall of the regions of each true
    class and size.

    Args:
        regions: class, area in pixels and recall of each connected region, three arrays `[R]`, as
            `error_analysis.region_recall` returns them. Each region has the same weight, whatever
            its area.
        scheme: names of the classes.
        least: sizes with fewer regions than this are left empty.
        ax: axes to draw on.
    """
    classes, areas, recall = regions
    # Powers of four: each step doubles the height and the width of an object.
    size = (np.log2(areas) / 2).astype(int)
    steps = size.max(initial=0) + 1
    rows = np.append(classes + 1, np.zeros(len(size), dtype=int)).astype(
        int
    )  # row 0 is for all classes together
    cells = rows * steps + np.tile(size, 2)
    count = np.bincount(cells, minlength=(scheme.num_classes + 1) * steps).reshape(-1, steps)
    found = np.bincount(cells, np.tile(recall, 2), count.size).reshape(-1, steps)
    share = np.where(count >= least, found / count.clip(1), np.nan)
    figure, ax = one_panel(
        ax, 8, 0.3 * len(share) + 2, "Share of an object's pixels that are found (%), by its size"
    )
    columns = [f"{4**i:,}\nto {4 ** (i + 1) - 1:,}\n({n:,})" for i, n in enumerate(count[0])]
    _shaded_table(ax, share, ["all classes", *scheme.names], columns, 0)
    ax.set(
        xlabel="area of the region (pixels, log scale); in brackets: number of regions",
        ylabel="true class",
    )
    return figure


def plot_confidence(
    photos: np.ndarray,
    truth: np.ndarray,
    predicted: np.ndarray,
    entropy: np.ndarray,
    num_classes: int,
) -> Figure:
    """Plot photo, errors and uncertainty, one row per frame.

    Args:
        photos: `uint8 [N, H, W, 3]`.
        truth, predicted: class indices, `uint8 [N, H, W]`.
        entropy: entropy of the class probabilities in bits, `float [N, H, W]`; see
            `error_analysis.entropy`.
        num_classes: number of classes C: the entropy lies between 0 and log2(C).
    """
    figure, axes = new_figure(
        len(photos), 3, 10, 1.9 * len(photos) + 1.5, "Does the network know where it is wrong?"
    )
    for row, photo, true, pred, bits in zip(axes, photos, truth, predicted, entropy, strict=True):
        known, wrong = true != IGNORE, pred != true
        parts = (bits[known & part] for part in (~wrong, wrong))
        right, missed = (f"{part.mean():.1f}" if len(part) else "-" for part in parts)
        picture(row[0], photo, "photo")
        _errors(row[1], photo, true, pred)
        options = {"cmap": SHADES, "vmin": 0, "vmax": np.log2(num_classes)}
        picture(row[2], bits, f"mean: {right} if right, {missed} if wrong", **options)
    highest = f"entropy (bits): 0 is certain, {np.log2(num_classes):.1f} all classes equally likely"
    _scale(axes[0, 2].images[0], axes.ravel().tolist(), highest)
    return figure
