"""Every figure the notebooks show, in one visual language: a class has its official colour everywhere.

Each function returns a `Figure` and shows nothing by itself: as the last line of a cell it appears once, in a script
it can be saved. Figures have a white ground of their own, so they read the same on light and dark pages.
"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from unet_utils.classes import IGNORE, PALETTE, ClassScheme
from unet_utils.clustering import Clusters
from unet_utils.dataset import Frames
from unet_utils.evaluation import predict
from unet_utils.metrics import ConfusionMatrix
from unet_utils.model import UNet

INK, BLUE, ORANGE, GREY = "#222222", "#1f5fa8", "#d9730d", "#9a9a9a"
STYLE = {
    "figure.facecolor": "white",
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "font.size": 10,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


def _figure(rows: int, columns: int, width: float, height: float, title: str, **options) -> tuple[Figure, np.ndarray]:
    """A figure of `width` x `height` inches that pyplot forgets at once, so that a notebook shows it only once."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            rows, columns, figsize=(width, height), squeeze=False, layout="constrained", **options
        )
        figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    plt.close(figure)
    return figure, axes


def _picture(ax: Axes, pixels: np.ndarray, title: str = "", **options) -> None:
    # Pairs are squeezed to squares; shown at 2:1, streets look as they did to the camera.
    ax.imshow(pixels, interpolation="nearest", aspect=0.5 * pixels.shape[1] / pixels.shape[0], **options)
    ax.set_title(title, fontsize=10)
    ax.set_axis_off()


def _legend(figure: Figure, classes: Sequence[np.ndarray], scheme: ClassScheme) -> None:
    """A legend below the figure that names the classes that occur, and void if it does."""
    present = np.unique(np.concatenate([np.asarray(part).ravel() for part in classes]))
    handles = [
        Patch(facecolor=np.array(scheme.colors[index]) / 255, edgecolor=GREY, label=scheme.names[index])
        for index in present
        if index != IGNORE
    ]
    if IGNORE in present:
        handles.append(Patch(facecolor="black", edgecolor=GREY, label="void (ignored)"))
    columns = min(len(handles), max(3, int(figure.get_figwidth() // 1.3)))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)


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


def plot_pairs(photos: np.ndarray, masks: np.ndarray, titles: Sequence[str]) -> Figure:
    """Photos above, colour masks below: `uint8 [N, H, W, 3]` each."""
    n = len(photos)
    figure, axes = _figure(2, n, 3.1 * n, 3.7, "Each file holds a photo and its colour mask")
    for column, (photo, mask, title) in enumerate(zip(photos, masks, titles, strict=True)):
        _picture(axes[0, column], photo, title)
        _picture(axes[1, column], mask)
    return figure


def plot_labels(
    photos: np.ndarray, classes: np.ndarray, scheme: ClassScheme, title: str = "What each pixel is"
) -> Figure:
    """Photo, class map and both together, a row a frame: `uint8 [N, H, W, 3]` and `uint8 [N, H, W]`."""
    figure, axes = _figure(len(photos), 3, 10.5, 1.95 * len(photos) + 0.9, title)
    for row, photo, labels in zip(axes, photos, classes, strict=True):
        _picture(row[0], photo, "photo")
        _picture(row[1], scheme.colorize(labels), "classes")
        _picture(row[2], overlay(photo, labels, scheme), "classes over the photo")
    _legend(figure, classes, scheme)
    return figure


def plot_color_space(colors: np.ndarray, counts: np.ndarray, clusters: Clusters, most: int = 20_000) -> Figure:
    """The masks' colours as points in RGB space and the cluster centres among them.

    Args:
        colors: distinct colours, `uint8 [M, 3]`.
        counts: pixels of each.
        clusters: the centres to show.
        most: so many of the most frequent colours are drawn.
    """
    top = np.argsort(counts)[::-1][:most]
    covered = 100 * counts[top].sum() / counts.sum()
    figure, axes = _figure(
        1, 1, 7.5, 6, f"{len(colors):,} distinct colours where 29 were drawn", subplot_kw={"projection": "3d"}
    )
    ax = axes[0, 0]
    points = colors[top].astype(float)
    ax.computed_zorder = False  # centres and names in front of the points, wherever they are
    ax.scatter(*points.T, c=points / 255, s=2 + 4 * np.log10(counts[top]), linewidths=0, alpha=0.6)
    fill = clusters.centers.clip(0, 255) / 255
    ax.scatter(*clusters.centers.T, c=fill, s=30, edgecolors="white", linewidths=1.5, depthshade=False, zorder=3)
    for index in np.argsort(clusters.shares)[::-1][:12]:
        box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5}
        ax.text(*clusters.centers[index], "   " + clusters.names[index], fontsize=8, bbox=box, zorder=4)
    ax.set(xlabel="red", ylabel="green", zlabel="blue")
    ax.set_title(f"dots: the {len(top):,} most frequent colours ({covered:.0f} % of the pixels); circles: clusters")
    return figure


def plot_clusters(clusters: Clusters) -> Figure:
    """One bar a cluster, in its own colour: its share of all pixels, on a log scale."""
    order = np.argsort(clusters.shares)
    figure, axes = _figure(1, 1, 8, 0.24 * len(order) + 1.2, "Share of each colour cluster")
    ax, shares = axes[0, 0], 100 * clusters.shares[order]
    ax.barh(range(len(order)), shares, color=clusters.centers[order].clip(0, 255) / 255, edgecolor=INK, linewidth=0.5)
    ax.set_yticks(range(len(order)), [clusters.names[index] for index in order], fontsize=9)
    ax.set(xscale="log", xlabel="share of all mask pixels (%, log scale)", ylim=(-0.7, len(order) - 0.3))
    return figure


def plot_class_shares(shares: dict[str, np.ndarray], names: Sequence[str]) -> Figure:
    """Share of the pixels that each class has, one dot for each way of labelling.

    Args:
        shares: for each way, by name, the shares `float [C]`, from 0 to 1.
        names: the names of the C classes; those that lose most of their pixels from the first way to the last are
            marked as phantoms.
    """
    first = next(iter(shares.values()))
    order = np.argsort(first)
    figure, axes = _figure(1, 1, 8, 0.27 * len(order) + 1.4, "How much of the street each class covers")
    ax = axes[0, 0]
    colors, markers = [BLUE, ORANGE, INK], ["o", "D", "s"]
    for (name, share), color, marker in zip(shares.items(), colors, markers, strict=False):
        percent = 100 * np.where(share[order] > 0, share[order], np.nan)
        ax.plot(percent, range(len(order)), marker, color=color, label=name, markersize=7, alpha=0.85)
    last = list(shares.values())[-1]
    phantom = [bool(last[index] < first[index] / 4) for index in order]
    marked = [names[i] + (" (phantom)" if is_phantom else "") for i, is_phantom in zip(order, phantom, strict=True)]
    ax.set_yticks(range(len(order)), marked, fontsize=9)
    for text, is_phantom in zip(ax.get_yticklabels(), phantom, strict=True):
        text.set_color(ORANGE if is_phantom else INK)
    ax.set(xscale="log", xlabel="share of all pixels (%, log scale)")
    ax.grid(axis="both", color="#e6e6e6")
    ax.set_axisbelow(True)
    ax.legend(frameon=False)
    return figure


def plot_pixels(pictures: dict[str, np.ndarray]) -> Figure:
    """Small pictures `uint8 [H, W, 3]` above each other, so large that single pixels show."""
    figure, axes = _figure(len(pictures), 1, 6, 1.8 * len(pictures) + 0.3, "Each square is one pixel of the mask")
    for ax, (title, pixels) in zip(axes[:, 0], pictures.items(), strict=True):
        height, width = pixels.shape[:2]
        ax.imshow(pixels, interpolation="nearest", extent=(0, width, 0, height))
        ax.set_title(title, fontsize=10)
        ax.set_xticks(range(width + 1), [])
        ax.set_yticks(range(height + 1), [])
        ax.tick_params(length=0)
        ax.grid(color="white", linewidth=0.8)
    return figure


def plot_label_methods(
    photo: np.ndarray, mask: np.ndarray, nearest: np.ndarray, decoded: np.ndarray, where: tuple[slice, slice], name: str
) -> Figure:
    """A detail of one frame: photo, mask, both ways of labelling it, and where they differ.

    Args:
        photo, mask: `uint8 [H, W, 3]`.
        nearest, decoded: official label ids, `uint8 [H, W]`.
        where: rows and columns to zoom on.
        name: the frame's, for the title.
    """
    palette = np.zeros((256, 3), dtype=np.uint8)
    for label in PALETTE:
        palette[label.id] = label.color
    differs = np.where((nearest != decoded)[..., None], palette[nearest], 235).astype(np.uint8)
    share = 100 * (nearest[where] != decoded[where]).mean()
    pictures = {
        "photo": photo,
        "mask, as published": mask,
        "nearest colour": palette[nearest],
        "decoded": palette[decoded],
        f"differ: {share:.0f} % (nearest's answer)": differs,
    }
    figure, axes = _figure(1, 5, 14, 2.4, f"{name}, zoomed: what each method makes of it")
    for ax, (title, pixels) in zip(axes[0], pictures.items(), strict=True):
        _picture(ax, pixels[where], title)
    seen = np.unique(np.concatenate([nearest[where].ravel(), decoded[where].ravel()]))
    handles = [
        Patch(facecolor=np.array(label.color) / 255, edgecolor=GREY, label=label.name if label.id else "void")
        for label in PALETTE
        if label.id in seen
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=10, frameon=False, fontsize=9)
    return figure


def plot_history(history: list[dict], title: str = "The training so far") -> Figure:
    """Learning rate, loss and (if measured) the scores on the held-out cities, over the epochs."""
    scored = "mean_iou" in history[-1]
    figure, axes = _figure(1, 3 if scored else 2, 12 if scored else 8, 2.9, title)
    epochs = [row["epoch"] for row in history]

    def line(ax: Axes, key: str, label: str, color: str, marker: str = "o") -> None:
        values = [row[key] for row in history]
        ax.plot(epochs, values, marker=marker, markersize=3.5, color=color, label=f"{label} {values[-1]:.3g}")

    line(axes[0, 0], "learning_rate", "now", GREY)
    axes[0, 0].set(title="learning rate", xlabel="epoch")
    line(axes[0, 1], "loss", "now", INK)
    axes[0, 1].set(title="training loss (mean a pixel)", xlabel="epoch")
    if scored:
        line(axes[0, 2], "pixel_accuracy", "pixel accuracy", GREY, "s")
        line(axes[0, 2], "class_accuracy", "class accuracy", ORANGE, "D")
        line(axes[0, 2], "mean_iou", "mIoU", BLUE)
        axes[0, 2].set(title="held-out cities", xlabel="epoch", ylim=(0, 1))
    for ax in axes[0]:
        ax.grid(axis="y", color="#e6e6e6")
        ax.legend(frameon=False, fontsize=9)
        ax.xaxis.get_major_locator().set_params(integer=True)
    return figure


def plot_predictions(
    photos: np.ndarray, truth: np.ndarray, predicted: np.ndarray, scheme: ClassScheme, titles: Sequence[str] = ()
) -> Figure:
    """Photo, truth, prediction and errors, a row a frame: `uint8 [N, H, W, 3]` and twice `uint8 [N, H, W]`."""
    figure, axes = _figure(len(photos), 4, 13, 1.75 * len(photos) + 0.9, "What the network sees")
    shown = []
    for number, (row, photo, true, pred) in enumerate(zip(axes, photos, truth, predicted, strict=True)):
        wrong = (pred != true) & (true != IGNORE)
        share = 100 * wrong.sum() / max(1, (true != IGNORE).sum())
        grey = photo.mean(2, keepdims=True).repeat(3, axis=2) * 0.5 + 110
        errors = np.where(wrong[..., None], (217, 30, 24), grey).astype(np.uint8)
        _picture(row[0], photo, titles[number] if titles else "photo")
        _picture(row[1], scheme.colorize(true), "truth")
        _picture(row[2], scheme.colorize(pred), "prediction")
        _picture(row[3], errors, f"errors: {share:.0f} % of the pixels")
        shown += [true, pred]
    _legend(figure, shown, scheme)
    return figure


def plot_class_iou(matrix: ConfusionMatrix, scheme: ClassScheme) -> Figure:
    """IoU of each class, sorted, with its share of the pixels; the line is the mean."""
    iou, pixels = matrix.iou.numpy(), matrix.matrix.sum(1).cpu().numpy()
    order = np.argsort(np.nan_to_num(iou, nan=-1))
    figure, axes = _figure(1, 1, 8, 0.28 * len(order) + 1.3, f"IoU of each class: the mean is {matrix.mean_iou:.3f}")
    ax = axes[0, 0]
    colors = np.array(scheme.colors[: scheme.num_classes])[order] / 255
    ax.barh(range(len(order)), np.nan_to_num(iou[order]), color=colors, edgecolor=INK, linewidth=0.5)
    for y, index in enumerate(order):
        share = 100 * pixels[index] / pixels.sum()
        text = "absent from the truth" if np.isnan(iou[index]) else f"{iou[index]:.2f}  ({share:.2g} % of the pixels)"
        ax.text(np.nan_to_num(iou[index]) + 0.01, y, text, va="center", fontsize=8)
    ax.axvline(matrix.mean_iou, color=GREY, linewidth=1, linestyle="--", zorder=0)
    ax.set_yticks(range(len(order)), [scheme.names[index] for index in order], fontsize=9)
    ax.set(xlabel="intersection over union", xlim=(0, 1.2), xticks=np.linspace(0, 1, 6))
    return figure


def plot_confusion(matrix: ConfusionMatrix, scheme: ClassScheme) -> Figure:
    """The confusion matrix by row: of the pixels of each true class, the share that each class was predicted for."""
    counts = matrix.matrix.cpu().double()
    share = (counts / counts.sum(1, keepdim=True)).nan_to_num().numpy()
    n = len(share)
    side = 3.2 + 0.36 * n
    figure, axes = _figure(1, 1, side + 0.8, side, "Which class is taken for which")
    ax = axes[0, 0]
    shades = LinearSegmentedColormap.from_list("blues", ["white", "#9dc3e6", BLUE, "#0b2447"])
    image = ax.imshow(share, cmap=shades, vmin=0, vmax=1)
    for row in range(n):
        for column in range(n):
            if share[row, column] >= 0.02:
                ink = "white" if share[row, column] > 0.5 else INK
                ax.text(column, row, f"{100 * share[row, column]:.0f}", ha="center", va="center", color=ink, fontsize=7)
    ax.set_xticks(range(n), scheme.names, rotation=90, fontsize=9)
    ax.set_yticks(range(n), scheme.names, fontsize=9)
    ax.set(xlabel="predicted", ylabel="truth")
    ax.spines[:].set_visible(False)
    figure.colorbar(image, ax=ax, shrink=0.6, label="share of the true class's pixels (numbers: %)")
    return figure


def telling_places(
    first: np.ndarray, second: np.ndarray, size: int = 64, count: int = 3
) -> list[tuple[int, slice, slice]]:
    """The windows in which two labellings differ most, one a frame: `(frame, rows, columns)`, most telling first.

    Args:
        first, second: label maps `uint8 [N, H, W]`, H and W divisible by `size`.
    """
    n, height, width = first.shape
    blocks = (first != second).reshape(n, height // size, size, width // size, size).sum((2, 4)).reshape(n, -1)
    frames = np.argsort(blocks.max(1))[::-1][:count]
    places = []
    for frame in frames:
        row, column = divmod(int(blocks[frame].argmax()), width // size)
        places.append((int(frame), *(slice(i * size, (i + 1) * size) for i in (row, column))))
    return places


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
        predicted = predict(model, self._photos, self._image_size).argmax(1).byte().cpu()
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


def _sharpen() -> None:
    """Asks a notebook for figures with twice the pixels, for screens of high density."""
    try:
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        get_ipython()  # a name that only notebooks know
    except (ImportError, NameError):
        return
    set_matplotlib_formats("retina")


_sharpen()
