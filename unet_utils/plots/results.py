"""Figures of training and evaluation, for notebooks 3 and 4."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from unet_utils.classes import IGNORE, ClassScheme
from unet_utils.dataset import Frames
from unet_utils.evaluation import predict_classes
from unet_utils.extras.error_analysis import Confusion, Regions
from unet_utils.metrics import ConfusionMatrix
from unet_utils.model import UNet
from unet_utils.plots.style import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    PALE,
    SHADES,
    class_map,
    legend,
    new_figure,
    one_panel,
    picture,
    text_size,
)

RED = (190, 20, 20)


def plot_history(history: list[dict], title: str = "The training so far") -> Figure:
    """Learning rate, loss and (if measured) the scores on the held-out cities, over the epochs."""
    scored = "mean_iou" in history[-1]
    figure, axes = new_figure(1, 3 if scored else 2, 10 if scored else 8, 3.3, title)
    epochs = [row["epoch"] for row in history]

    def line(ax: Axes, key: str, label: str, color: str, marker: str = "o") -> None:
        values = [row[key] for row in history]
        ax.plot(epochs, values, marker=marker, markersize=4, color=color, label=f"{label} {values[-1]:.3g}")

    titles = ["learning rate", "loss, mean a pixel", "held-out cities"]
    line(axes[0, 0], "learning_rate", "now", GREY)
    line(axes[0, 1], "loss", "now", INK)
    if scored:
        line(axes[0, 2], "pixel_accuracy", "pixel accuracy", GREY, "s")
        line(axes[0, 2], "class_accuracy", "class accuracy", ORANGE, "D")
        line(axes[0, 2], "mean_iou", "mIoU", BLUE)
        axes[0, 2].set_ylim(0, 1)
    for ax, text in zip(axes[0], titles, strict=False):
        ax.set_title(text, loc="left")
        ax.set_xlabel("epoch")
        ax.grid(axis="y", color=PALE)
        ax.legend(frameon=False, fontsize=0.8 * text_size(figure))
        ax.xaxis.get_major_locator().set_params(integer=True)
    return figure


def _errors(ax: Axes, photo: np.ndarray, truth: np.ndarray, predicted: np.ndarray) -> None:
    """Wrong pixels in red, which is darker than all the rest, over a pale grey photo."""
    wrong = (predicted != truth) & (truth != IGNORE)
    share = 100 * wrong.sum() / max(1, (truth != IGNORE).sum())
    grey = photo.mean(2, keepdims=True).repeat(3, axis=2) * 0.35 + 165
    picture(ax, np.where(wrong[..., None], RED, grey).astype(np.uint8), f"{share:.0f} % wrong")


def plot_predictions(
    photos: np.ndarray,
    truth: np.ndarray,
    predicted: np.ndarray,
    scheme: ClassScheme,
    titles: Sequence[str] = (),
    title: str = "What the network sees, and where it is wrong (red)",
) -> Figure:
    """Photo, truth, prediction and errors, a row a frame: `uint8 [N, H, W, 3]` and twice `uint8 [N, H, W]`."""
    figure, axes = new_figure(len(photos), 4, 10, 1.6 * len(photos) + 1.4, title)
    for number, (row, photo, true, pred) in enumerate(zip(axes, photos, truth, predicted, strict=True)):
        picture(row[0], photo, titles[number] if titles else "photo")
        class_map(row[1], true, scheme, "truth")
        class_map(row[2], pred, scheme, "prediction")
        _errors(row[3], photo, true, pred)
    legend(figure, [truth, predicted], scheme)
    return figure


def plot_class_iou(matrix: ConfusionMatrix, scheme: ClassScheme, ax: Axes | None = None) -> Figure:
    """IoU of each class, best first, with its share of the true pixels and their number; the line is the mean."""
    iou, pixels = matrix.iou.numpy(), matrix.matrix.sum(1).cpu().numpy()
    order = np.argsort(np.nan_to_num(iou, nan=-1))
    ax = one_panel(ax, 8, 0.3 * len(order) + 1.5, f"IoU of each class: the mean is {matrix.mean_iou:.3f}")
    colors = np.array(scheme.colors[: scheme.num_classes])[order] / 255
    ax.barh(range(len(order)), np.nan_to_num(iou[order]), color=colors, edgecolor=INK, linewidth=0.5)
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
    ax.set(xlabel="intersection over union", xlim=(0, 1.45), ylim=(-0.7, len(order) + 0.5), xticks=np.linspace(0, 1, 6))
    return ax.figure


def _short(count: int) -> str:
    """1234567 as 1.2 M."""
    for unit, size in (("M", 1_000_000), ("k", 1000)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return str(count)


def _shaded_table(ax: Axes, share: np.ndarray, rows: Sequence[str], columns: Sequence[str], least: float) -> None:
    """A table of shares as shades with their percentages, those below `least` left out; NaN for no cell."""
    ax.imshow(share, cmap=SHADES, vmin=0, vmax=1, aspect="auto")
    size = min(text_size(ax.figure), 0.55 * 72 * 7.5 / len(columns))
    for row, column in np.argwhere(share >= least):  # never so for NaN
        ink = "white" if share[row, column] > 0.5 else INK
        text = f"{100 * share[row, column]:.0f}"
        ax.text(column, row, text, ha="center", va="center", color=ink, fontsize=size)
    ax.set_xticks(range(len(columns)), columns)
    ax.set_yticks(range(len(rows)), rows)
    ax.set_xticks(np.arange(0.5, len(columns)), minor=True)
    ax.set_yticks(np.arange(0.5, len(rows)), minor=True)
    ax.grid(which="minor", color=PALE)
    ax.tick_params(which="minor", length=0)
    ax.spines[:].set_visible(False)


def plot_confusion(matrix: ConfusionMatrix, scheme: ClassScheme, ax: Axes | None = None) -> Figure:
    """The confusion matrix by row: of the pixels of each true class, the share that each class was predicted for."""
    counts = matrix.matrix.cpu().double()
    share = (counts / counts.sum(1, keepdim=True)).numpy()
    side = 0.36 * len(share) + 2.4
    ax = one_panel(ax, 10, side, "Of the pixels of each true class (row), % called each class (column)")
    _shaded_table(ax, share, scheme.names, scheme.names, 0.02)
    ax.tick_params(axis="x", rotation=90)
    ax.set(xlabel="predicted class", ylabel="true class")
    return ax.figure


def plot_confused(pairs: Sequence[Confusion], scheme: ClassScheme, ax: Axes | None = None) -> Figure:
    """The most confused pairs of classes, as `error_analysis.most_confused` finds them: a bar a pair."""
    ax = one_panel(ax, 8, 0.34 * len(pairs) + 1.4, "Which class is called which: the most confused pairs")
    for y, pair in enumerate(reversed(pairs)):
        color = np.array(scheme.colors[pair.predicted]) / 255
        ax.barh(y, 100 * pair.share, color=color, edgecolor=INK, linewidth=0.5)
        ax.text(100 * pair.share + 1, y, f"{100 * pair.share:.0f} %, {_short(pair.pixels)}", va="center")
    named = [f"{scheme.names[pair.truth]} called {scheme.names[pair.predicted]}" for pair in reversed(pairs)]
    ax.set_yticks(range(len(pairs)), named)
    ax.set(xlabel="share of the true class's pixels (%), and how many", xlim=(0, 125), xticks=range(0, 101, 20))
    return ax.figure


def plot_error_map(errors: np.ndarray, side: int = 256, ax: Axes | None = None) -> Figure:
    """Where in the frame errors fall, as `error_analysis.error_map` counts them: shades and contours in percent.

    Args:
        errors: shares `float [h, w]`, NaN where there is only void.
        side: height and width of the frames, pixels.
    """
    ax = one_panel(ax, 8, 4.3, "Where in the frame pixels are wrong, over all frames")
    ax.patch.set(facecolor="white", edgecolor=GREY, hatch="///")
    percent, half = 100 * errors, side / len(errors) / 2
    most = np.nanmax(percent)
    image = ax.imshow(percent, cmap=SHADES, vmin=0, vmax=max(1, most), extent=(0, side, side, 0), aspect=0.5)
    levels = [level for level in MaxNLocator(3).tick_values(0, most) if 0 < level < most]
    if levels:
        places = np.linspace(half, side - half, len(errors))
        inks = ["white" if level > most / 2 else INK for level in levels]
        lines = ax.contour(places, places, percent, levels=levels, colors=inks, linewidths=1)
        ax.clabel(lines, fmt="%g %%", fontsize=0.9 * text_size(ax.figure))
    ticks = range(0, side + 1, side // 4)
    ax.set(xlabel="pixels from the left", ylabel="pixels from the top", xticks=ticks, yticks=ticks)
    _scale(image, [ax], "wrong pixels (%); hatched: always void")
    return ax.figure


def _scale(image: AxesImage, axes: Sequence[Axes], label: str) -> None:
    """A colour bar below the axes, with text as large as theirs."""
    bar = image.figure.colorbar(image, ax=axes, location="bottom", aspect=40, fraction=0.06)
    size = text_size(image.figure)
    bar.set_label(label, size=size)
    bar.ax.tick_params(labelsize=size)


def plot_region_recall(regions: Regions, scheme: ClassScheme, least: int = 5, ax: Axes | None = None) -> Figure:
    """How much of an object is found, by its size: the mean recall of the regions of each true class and size.

    Every region counts the same, whatever its area; see `error_analysis.region_recall` for what a region is.

    Args:
        least: sizes of which a class has fewer regions are left empty.
    """
    # Powers of four: every step doubles the height and the width of an object.
    size = (np.log2(regions.areas) / 2).astype(int)
    steps = size.max() + 1
    rows = np.append(regions.classes + 1, np.zeros(len(size), dtype=int)).astype(int)  # row 0 is all classes together
    cells = rows * steps + np.tile(size, 2)
    count = np.bincount(cells, minlength=(scheme.num_classes + 1) * steps).reshape(-1, steps)
    found = np.bincount(cells, np.tile(regions.recall, 2), count.size).reshape(-1, steps)
    share = np.where(count >= least, found / count.clip(1), np.nan)
    ax = one_panel(ax, 8, 0.3 * len(share) + 2, "Share of an object's pixels that are found (%), by its size")
    columns = [f"{4**i:,}\nto {4 ** (i + 1) - 1:,}\n({n:,})" for i, n in enumerate(count[0])]
    _shaded_table(ax, share, ["all classes", *scheme.names], columns, 0)
    ax.set(xlabel="area of the region (pixels, log scale), and in brackets the number of regions", ylabel="true class")
    return ax.figure


def plot_confidence(
    photos: np.ndarray, truth: np.ndarray, predicted: np.ndarray, entropy: np.ndarray, num_classes: int
) -> Figure:
    """Photo, errors and uncertainty, a row a frame.

    Args:
        photos: `uint8 [N, H, W, 3]`.
        truth, predicted: class indices `uint8 [N, H, W]`.
        entropy: of the class probabilities, bits, `float [N, H, W]`; see `error_analysis.entropy`.
        num_classes: C; the entropy is between 0 and log2(C).
    """
    figure, axes = new_figure(len(photos), 3, 10, 1.9 * len(photos) + 1.5, "Does the network know where it is wrong?")
    for row, photo, true, pred, bits in zip(axes, photos, truth, predicted, entropy, strict=True):
        known, wrong = true != IGNORE, pred != true
        right, missed = (bits[known & part].mean() if (known & part).any() else 0 for part in (~wrong, wrong))
        picture(row[0], photo, "photo")
        _errors(row[1], photo, true, pred)
        options = {"cmap": SHADES, "vmin": 0, "vmax": np.log2(num_classes)}
        picture(row[2], bits, f"bits: {right:.1f} if right, {missed:.1f} if wrong", **options)
    highest = f"entropy (bits): 0 is certain, {np.log2(num_classes):.1f} would be all classes alike"
    _scale(axes[0, 2].images[0], axes.ravel().tolist(), highest)
    return figure


class LiveTraining:
    """Curves and the same few predictions, redrawn in place after every epoch: for `fit(..., on_epoch=...)`.

    Args:
        frames: where the frames to watch are taken from, evenly spread.
        image_size: that the network is trained at, pixels.
        count: how many frames to watch.
    """

    def __init__(self, frames: Frames, image_size: int, count: int = 3):
        self._photos, self._truth = frames.batch(torch.linspace(0, len(frames) - 1, count).long())
        self._scheme, self._image_size = frames.scheme, image_size
        self._handles: list = []

    def __call__(self, history: list[dict], model: UNet) -> None:
        predicted = predict_classes(model, self._photos, self._image_size).cpu()
        photos = self._photos.permute(0, 2, 3, 1)
        figures = [
            plot_history(history),
            plot_predictions(photos.numpy(), self._truth.numpy(), predicted.numpy(), self._scheme),
        ]
        if not self._handles:
            from IPython.display import display  # only notebooks have it

            self._handles = [display(figure, display_id=True) for figure in figures]
        else:
            for handle, figure in zip(self._handles, figures, strict=True):
                handle.update(figure)
