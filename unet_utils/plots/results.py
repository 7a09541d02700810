"""Figures of predictions and scores."""

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from unet_utils.classes import IGNORE, PALETTE, ClassScheme
from unet_utils.metrics import ConfusionMatrix
from unet_utils.plots.style import (
    GREY,
    INK,
    PALE,
    SHADES,
    SMALL_TEXT,
    WIDTH,
    class_legend,
    class_map,
    largest_classes,
    legend,
    name_classes,
    new_figure,
    panel_title,
    picture,
    picture_grid,
    scale,
)

RED = (190, 20, 20)
FEW_REGIONS = 5  # no mean is shown for fewer


def plot_predictions(
    photos: np.ndarray,
    truth: np.ndarray,
    predictions: dict[str, np.ndarray],
    scheme: ClassScheme,
    titles: Sequence[str] = (),
    title: str = "What the network sees",
    all_classes: bool = False,
) -> Figure:
    """Plot photo, truth and predictions, one row per frame; beside a single one, its errors.

    Args:
        photos: `uint8 [N, H, W, 3]`.
        truth: class indices, `uint8 [N, H, W]`. Where it is void, no prediction is shown.
        predictions: name -> class indices, `uint8 [N, H, W]`.
        scheme: names and colours of the classes.
        titles: one per frame, above its photo.
        title: of the figure.
        all_classes: name all classes in the legend, so that figures of other predictions have the
            same layout.
    """
    shown = {name: np.where(truth == IGNORE, IGNORE, found) for name, found in predictions.items()}
    shares = [f"{name}: {wrong_share(truth, found)}" for name, found in shown.items()]
    single = len(shown) == 1
    columns = 2 + max(2, len(shown))
    figure, axes = picture_grid(len(photos), columns, title, f"{'; '.join(shares)}.")
    for number, row in enumerate(axes):
        picture(row[0], photos[number], titles[number] if titles else "photo")
        class_map(row[1], truth[number], scheme, "truth")
        for ax, (name, found) in zip(row[2:], shown.items(), strict=False):
            share = wrong_share(truth[number], found[number])
            class_map(ax, found[number], scheme, name if single else f"{name}: {share}")
        if single:
            _errors(row[3], photos[number], truth[number], found[number])
    every = [np.append(range(scheme.num_classes), IGNORE)]
    class_legend(figure, every if all_classes else [truth, *shown.values()], scheme)
    return figure


def wrong_share(truth: np.ndarray, predicted: np.ndarray) -> str:
    """Return the share of the labelled pixels that are wrong, in words."""
    labelled = truth != IGNORE
    if not labelled.any():
        return "no labelled pixel"
    return f"{100 * (predicted != truth)[labelled].mean():.0f} % wrong"


def _errors(ax: Axes, photo: np.ndarray, truth: np.ndarray, predicted: np.ndarray) -> None:
    """Show wrong pixels in red over a pale grey photo, and their share. Red is darker than all the
    rest, also when printed in grey."""
    wrong = (predicted != truth) & (truth != IGNORE)
    grey = 165 + 0.35 * photo.mean(2, keepdims=True)
    title = f"{wrong_share(truth, predicted)} (red)"
    picture(ax, np.where(wrong[..., None], RED, grey).astype(np.uint8), title)


def plot_photo(photo: np.ndarray, classes: np.ndarray, scheme: ClassScheme) -> Figure:
    """Plot a photo `uint8 [H, W, 3]` of any size and, beside it, its classes `uint8 [H, W]` blended
    over it."""
    step = max(1, max(classes.shape) // 1000)
    photo, classes = photo[::step, ::step], classes[::step, ::step]
    height = min(7, WIDTH / 2 * classes.shape[0] / classes.shape[1])
    title = "The photo, and what the network sees in it"
    text = f"It sees {largest_classes(classes, scheme)}."
    figure, axes = new_figure(1, 2, height + 0.3, title, text)
    for ax, pixels in zip(axes[0], (photo, scheme.overlay(photo, classes)), strict=True):
        ax.imshow(pixels, interpolation="nearest")
        ax.set_axis_off()
    name_classes(axes[0, 1], classes, scheme)
    class_legend(figure, [classes], scheme)
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
    title = "Does the network know where it is wrong?"
    text = f"Entropy in all frames: {_bits(truth, predicted, entropy)}."
    figure, axes = picture_grid(len(photos), 3, title, text)
    figure.set_figheight(figure.get_figheight() + 0.7)
    most = np.log2(num_classes)
    for row, photo, true, pred, bits in zip(axes, photos, truth, predicted, entropy, strict=True):
        picture(row[0], photo, "photo")
        _errors(row[1], photo, true, pred)
        shown = np.where(true == IGNORE, np.nan, bits)  # white, as where it is certain
        picture(row[2], shown, _bits(true, pred, bits), cmap=SHADES, vmin=0, vmax=most)
    label = f"entropy (bits): 0 is certain, {most:.1f} all classes equally likely"
    scale(axes[0, 2].images[0], axes.ravel().tolist(), label)
    return figure


def _bits(truth: np.ndarray, predicted: np.ndarray, entropy: np.ndarray) -> str:
    """Return the mean entropy of the right and of the wrong pixels in words."""
    parts = []
    for name, where in (("right", predicted == truth), ("wrong", predicted != truth)):
        bits = entropy[where & (truth != IGNORE)]
        if len(bits):
            parts.append(f"{name} {bits.mean():.1f}")
    return f"{', '.join(parts)} bits" if parts else "no labelled pixel"


def plot_label_grids(
    true: np.ndarray, predicted: np.ndarray, matrix: ConfusionMatrix, names: Sequence[str]
) -> Figure:
    """Plot a small example that is worked out by hand: two class maps and their confusion matrix.

    Args:
        true, predicted: class indices, `int [h, w]`.
        matrix: their confusion matrix.
        names: of the classes; their colours are the official ones.
    """
    official = {label.name: label.color for label in PALETTE}
    labels = dict(enumerate(names)) | {IGNORE: "void"}
    colors = {i: official[name] for i, name in enumerate(names)} | {IGNORE: (0, 0, 0)}
    rows = [", ".join(labels[i] for i in row) for row in true.tolist()]
    figure, axes = new_figure(1, 3, 3, "Counted by hand", f"True rows: {'; '.join(rows)}.")
    for ax, title, values in zip(axes[0], ("truth", "prediction"), (true, predicted), strict=False):
        ax.imshow(np.array([[colors[i] for i in row] for row in values.tolist()]))
        for (row, column), index in np.ndenumerate(values):
            ax.text(column, row, labels[int(index)], ha="center", va="center", color="white")
        ax.set(xticks=[], yticks=[])
        panel_title(ax, title)
        _lines_between_cells(ax, values.shape)
    counts = matrix.matrix.cpu().numpy()
    _table(axes[0, 2], counts / max(1, counts.max()), counts, names, names)
    axes[0, 2].set(xlabel="predicted class", ylabel="true class")
    panel_title(axes[0, 2], "confusion matrix")
    return figure


def _table(
    ax: Axes, shades: np.ndarray, numbers: np.ndarray, rows: Sequence[str], columns: Sequence[str]
) -> None:
    """Show numbers in shaded cells. A shade (0 to 1) or number that is NaN is left blank."""
    ax.imshow(shades, cmap=SHADES, vmin=0, vmax=1, aspect="auto")
    for (row, column), number in np.ndenumerate(numbers):
        if not np.isnan(number):
            ink = "white" if shades[row, column] > 0.5 else INK
            text = f"{number:.0f}"
            ax.text(column, row, text, ha="center", va="center", color=ink, size=SMALL_TEXT)
    ax.set_xticks(range(len(columns)), columns)
    ax.set_yticks(range(len(rows)), rows)
    _lines_between_cells(ax, shades.shape)


def _lines_between_cells(ax: Axes, shape: tuple[int, ...]) -> None:
    ax.set_xticks(np.arange(0.5, shape[1]), minor=True)
    ax.set_yticks(np.arange(0.5, shape[0]), minor=True)
    ax.grid(which="minor", color=PALE)
    ax.tick_params(which="minor", length=0)
    ax.spines[:].set_visible(False)


def plot_class_iou(matrix: ConfusionMatrix, scheme: ClassScheme) -> Figure:
    """Plot IoU, precision and recall of each class, the best IoU first, with the share of its true
    pixels. The dashed line is the mean IoU."""
    iou = matrix.iou.numpy()
    pixels = matrix.matrix.sum(1).cpu().numpy()
    order = np.argsort(np.nan_to_num(iou, nan=-1))
    title = f"IoU of each class, mean {matrix.mean_iou:.3f}"
    values = (f"{scheme.names[i]} {iou[i]:.2f}" for i in order[::-1] if not np.isnan(iou[i]))
    figure, axes = new_figure(1, 1, 0.27 * len(order) + 1, title, f"{', '.join(values)}.")
    ax = axes[0, 0]
    rows = range(len(order))
    colors = np.array(scheme.colors)[order] / 255
    ax.barh(rows, np.nan_to_num(iou[order]), color=colors, edgecolor=INK, linewidth=0.5)
    # No mark for absent classes, even if they are predicted somewhere.
    precision = np.where(np.isnan(iou), np.nan, matrix.precision.numpy())
    # Neither is ever smaller than the IoU, so they lie beside the bar.
    marks = ax.plot(precision[order], rows, "o", color=INK, label="precision")
    marks += ax.plot(matrix.recall[order], rows, "D", color=INK, label="recall", fillstyle="none")
    for y, i in enumerate(order):
        absent = np.isnan(iou[i])
        ax.text(1.25, y, "absent" if absent else f"{iou[i]:.2f}", va="center", ha="right")
        if not absent:
            share = f"{100 * pixels[i] / pixels.sum():.2g} %"
            ax.text(1.55, y, share, va="center", ha="right")
    ax.text(1.25, len(order), "IoU", ha="right", va="center")
    ax.text(1.55, len(order), "pixels", ha="right", va="center")
    ax.axvline(matrix.mean_iou, color=GREY, linewidth=1, linestyle="--", zorder=0)
    ax.set_yticks(rows, [scheme.names[i] for i in order])
    ax.set(xlim=(0, 1.55), ylim=(-0.7, len(order) + 0.5), xticks=np.linspace(0, 1, 6))
    ax.set_xlabel("bars: IoU; dashed: its mean")
    legend(figure, marks)
    return figure


def plot_confusion(matrix: ConfusionMatrix, scheme: ClassScheme) -> Figure:
    """Plot the confusion matrix, each row divided by its sum: how the pixels of each true class
    were classified."""
    counts = matrix.matrix.cpu().double()
    share = (counts / counts.sum(1, keepdim=True)).numpy()  # NaN for classes that do not occur
    right = [f"{scheme.names[i]} {100 * s:.0f} %" for i, s in enumerate(share.diagonal()) if s == s]
    title = "Pixels of each true class (row) predicted as each class (column), %"
    figure, axes = new_figure(
        1, 1, 0.27 * len(share) + 2, title, f"Predicted right: {', '.join(right) or 'none'}."
    )
    numbers = np.where(share >= 0.02, 100 * share, np.nan)
    _table(axes[0, 0], share, numbers, scheme.names, scheme.names)
    axes[0, 0].tick_params(axis="x", rotation=90)
    note = "Blank: less than 2 %. A blank row: the class is absent from the truth."
    axes[0, 0].set(xlabel=f"predicted class\n{note}", ylabel="true class")
    return figure


def plot_error_map(errors: np.ndarray) -> Figure:
    """Plot the share of wrong pixels at each place of the frame.

    Args:
        errors: shares `float [h, w]`, 0 to 1, NaN where all pixels are void; see
            `error_analysis.error_map`.
    """
    percent = 100 * errors
    most = np.max(percent, initial=0, where=~np.isnan(percent))
    title = "Share of wrong pixels by place in the frame"
    figure, axes = new_figure(1, 1, 4.5, title, f"At the worst place {most:.0f} % are wrong.")
    shades = SHADES.with_extremes(bad=GREY)  # for NaN
    picture(axes[0, 0], percent, cmap=shades, vmin=0, vmax=max(1, most))
    note = "; grey: always void" if np.isnan(percent).any() else ""
    scale(axes[0, 0].images[0], [axes[0, 0]], f"wrong pixels (%){note}")
    return figure


def plot_region_recall(
    regions: tuple[np.ndarray, np.ndarray, np.ndarray], scheme: ClassScheme
) -> Figure:
    """Plot how much of a region is found, by its size: the mean recall of the regions of each true
    class and size. Means of few regions are left out, and a note says so.

    Args:
        regions: class, area in pixels and recall of each connected region, three arrays `[R]`, as
            `error_analysis.region_recall` returns them. Each region has the same weight, whatever
            its area.
        scheme: names of the classes.
    """
    classes, areas, recall = regions
    # Powers of 16: each step makes a region four times as high and as wide. In smaller steps, rare
    # classes would have too few regions in each.
    size = (np.log2(areas) / 4).astype(int)
    steps = size.max(initial=0) + 1
    # Row 0 is for all classes together, so each region counts in two rows.
    rows = np.append(np.zeros(len(size), dtype=int), classes + 1).astype(int)
    cells = rows * steps + np.tile(size, 2)
    count = np.bincount(cells, minlength=(scheme.num_classes + 1) * steps).reshape(-1, steps)
    found = np.bincount(cells, np.tile(recall, 2), count.size).reshape(-1, steps)
    share = np.where(count >= FEW_REGIONS, found / count.clip(1), np.nan)
    names = ["all classes", *scheme.names]
    # Rows without a number are left out, and named: nobody has to guess why they are empty.
    kept = [row for row in range(len(share)) if row == 0 or not np.isnan(share[row]).all()]
    rare = [names[row] for row in range(len(share)) if row not in kept and count[row].any()]
    note = f"Blank: fewer than {FEW_REGIONS} regions."
    if rare:
        note += f" Too few of any size: {', '.join(rare)}."
    title = "Share of a region's pixels that are found (%), by its size"
    parts = (f"from {16**i} pixels {100 * s:.0f} %" for i, s in enumerate(share[0]) if s == s)
    text = f"By area: {', '.join(parts) or 'no regions'}."
    notes = textwrap.wrap(note, 80)
    figure, axes = new_figure(1, 1, 0.27 * len(kept) + 1.6 + 0.15 * len(notes), title, text)
    ranges = [f"{16**i:,} to {16 ** (i + 1) - 1:,}\n({n:,})" for i, n in enumerate(count[0])]
    _table(axes[0, 0], share[kept], 100 * share[kept], [names[row] for row in kept], ranges)
    lines = ["area in pixels (number of regions)", *notes]
    axes[0, 0].set(xlabel="\n".join(lines), ylabel="true class")
    return figure
