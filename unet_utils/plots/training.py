"""Figures of the network and of its training (notebook 3)."""

import io
import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from unet_utils.config import TrainConfig
from unet_utils.evaluation import predict_classes
from unet_utils.frames import Frames
from unet_utils.model import UNet
from unet_utils.plots.results import plot_predictions
from unet_utils.plots.style import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    PALE,
    SHADES,
    line_legend,
    new_figure,
    picture,
)

SCORES = {
    "pixel_accuracy": "pixel accuracy",
    "class_accuracy": "class accuracy",
    "mean_iou": "mIoU",
}


def _column(history: Sequence[dict], key: str) -> np.ndarray:
    """Return one column of the history, NaN where it is missing."""
    return np.array([np.nan if row.get(key) is None else row[key] for row in history], dtype=float)


def plot_history(history: list[dict], title: str = "Training") -> Figure:
    """Plot learning rate, loss and, if measured, the scores on the held-out cities over the epochs.

    Args:
        history: one dict per epoch, as `fit` returns it.
        title: of the figure.
    """
    scored = any(row.get("mean_iou") is not None for row in history)
    figure, axes = new_figure(
        1, 3 if scored else 2, 10 if scored else 8, 3.7 if scored else 3.2, title
    )
    epochs = [row["epoch"] for row in history]

    def line(ax: Axes, key: str, color: str, marker: str, label: str = "") -> str:
        values = _column(history, key)
        last = f"{values[-1]:.3g}"
        ax.plot(epochs, values, marker=marker, markersize=4, color=color, label=f"{label}: {last}")
        return last

    axes[0, 0].set_title(
        f"learning rate: {line(axes[0, 0], 'learning_rate', GREY, 'o')}", loc="left"
    )
    axes[0, 1].set_title(f"loss: {line(axes[0, 1], 'loss', INK, 'o')}", loc="left")
    if scored:
        axes[0, 2].set_title("held-out cities", loc="left")
        axes[0, 2].set_ylim(0, 1)
        for (key, label), color, marker in zip(
            SCORES.items(), (GREY, ORANGE, BLUE), "sDo", strict=True
        ):
            line(axes[0, 2], key, color, marker, label)
        line_legend(figure, axes[0, 2])
    for ax in axes[0]:
        ax.set_xlabel("epoch")
        ax.grid(axis="y", color=PALE)
        ax.set_xlim(0.5, max(epochs) + 0.5)
        ax.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    return figure


def plot_runs(curves: dict[str, tuple[Sequence[float], Sequence[float]]]) -> Figure:
    """Plot the mIoU on the held-out cities over the minutes of training, one line per run.

    Args:
        curves: name of the run -> minutes since its start and mIoU, one entry per epoch. NaN leaves
            a gap.
    """
    figure, axes = new_figure(
        1, 1, 8, 4.2 + 0.25 * len(curves) / 2, "Held-out mIoU over the time of training"
    )
    ax = axes[0, 0]
    for number, (name, (minutes, scores)) in enumerate(curves.items()):
        known = [score for score in scores if score == score]
        label = f"{name}: {max(known):.3f} at best" if known else f"{name}: not measured"
        style = {"marker": "osD^v"[number % 5], "linestyle": ("-", "--", ":")[number // 5 % 3]}
        ax.plot(minutes, scores, markersize=4, color=f"C{number}", label=label, **style)
    ax.set(xlabel="minutes of training", ylabel="mIoU on the held-out cities")
    ax.set_ylim(bottom=0)
    ax.grid(axis="y", color=PALE)
    line_legend(figure, ax)
    return figure


def plot_feature_maps(maps: dict[str, torch.Tensor | np.ndarray], count: int = 8) -> Figure:
    """Plot some channels of some levels of the network, in rows of four.

    Args:
        maps: name of the level -> its feature maps for one photo, `float [C, h, w]`.
        count: number of channels per level: those that vary most within the photo. The shades of
            each reach from its 1st to its 99th percentile.
    """
    rows = -(-count // 4)
    figure, axes = new_figure(
        rows * len(maps), 4, 10, (1.25 * rows + 0.3) * len(maps) + 0.4, "Feature maps"
    )
    for ax in axes.flat:
        ax.set_axis_off()
    for level, (name, values) in enumerate(maps.items()):
        channels = torch.as_tensor(values).detach().float().cpu().numpy()
        order = np.argsort(-channels.std((1, 2)), kind="stable")[:count]
        block = axes[level * rows : (level + 1) * rows].ravel()
        for ax, index in zip(block, order, strict=False):
            low, high = np.percentile(channels[index], (1, 99))
            picture(ax, channels[index], cmap=SHADES, vmin=low, vmax=max(high, low + 1e-6))
        shape = "{} channels of {} x {}".format(*channels.shape)
        block[0].set_title(f"{name}: {shape}", loc="left").set_in_layout(
            False
        )  # it may reach over its neighbours
    return figure


class LiveTraining:
    """Show a training in a notebook while it runs; everything is updated in place.

    From top to bottom: a status line with a bar, a table of the epochs, the curves, and the
    predictions for a few frames. Use it as::

        live = LiveTraining(held_out, config)
        fit(..., progress=False, on_step=live.step, on_epoch=live.epoch)

    Args:
        frames: the frames to show are taken from these, evenly spaced.
        config: the settings of the training.
        count: number of frames to show.
    """

    LAST = 10  # The table has a row for each of the last epochs, and one for the best.

    def __init__(self, frames: Frames, config: TrainConfig, count: int = 3):
        self._photos, self._truth = frames.batch(
            torch.linspace(0, len(frames) - 1, min(count, len(frames))).long()
        )
        self._scheme, self._config, self._epochs = frames.scheme, config, config.epochs
        self._history: list[dict] = []
        self._handles: dict[str, Any] = {}
        self._start: tuple[float, float] | None = (
            None  # time and finished share of the training at the first call
        )
        self._updated = self._drawn = -math.inf

    def step(
        self, epoch: int, images_done: int, images_per_epoch: int, epochs: int | None = None
    ) -> None:
        """Update the status line, at most twice per second. `epoch` counts from 1.

        `epochs` is the number of epochs of the run: one that is resumed keeps the settings of its
        checkpoint."""
        self._epochs = epochs or self._epochs
        done = (epoch - 1 + images_done / images_per_epoch) / self._epochs
        self._start = self._start or (time.monotonic(), done)
        if time.monotonic() - self._updated >= 0.5:
            self._show_status(
                f"epoch {epoch} of {self._epochs}, {images_done} of {images_per_epoch} images", done
            )

    def epoch(self, history: list[dict], model: UNet) -> None:
        """Add an epoch to the table. Draw curves and predictions anew, if this was not done in the
        last 10 seconds."""
        self._history, epoch = history, history[-1]["epoch"]
        if epoch < self._epochs:
            self._show_status(f"epoch {epoch} of {self._epochs} finished", epoch / self._epochs)
        else:
            total = sum(row["seconds"] for row in history)
            self._show_status(f"{epoch} epochs finished, {_duration(total)} of training", 1)
        if epoch < self._epochs and time.monotonic() - self._drawn < 10:
            return
        self._show_figure("curves", plot_history(history))
        if len(self._photos):
            size = self._config.scene_size(*self._photos.shape[2:])
            predicted = predict_classes(model, self._photos, size).cpu().numpy()
            photos = self._photos.permute(0, 2, 3, 1).numpy()
            figure = plot_predictions(
                photos, self._truth.numpy(), predicted, self._scheme, all_classes=True
            )
            self._show_figure("predictions", figure)
        self._drawn = time.monotonic()

    def _show_status(self, text: str, done: float) -> None:
        self._updated = time.monotonic()
        if self._start and self._start[1] < done < 1:
            start, before = self._start
            text += f", about {_duration(self._config.time_left(self._updated - start, before, done))} left"
        head, *rows = self._table()
        lines = ["</td><td>".join(row) for row in ([f"<b>{cell}</b>" for cell in head], *rows)]
        table = "".join(f"<tr><td>{line}</td></tr>" for line in lines)
        table = table.replace(
            "<td>", "<td style='padding: 0 0.5em; text-align: right; white-space: normal'>"
        )
        bar = f"<progress value='{done:.4f}' max='1' style='width: 100%'></progress>"
        html = f"<div style='max-width: 40em'>{text}<br>{bar}<table>{table}</table></div>"
        aligned = [
            "".join(f"{cell.replace('&nbsp;', ' '):>16}" for cell in row).rstrip()
            for row in (head, *rows)
        ]
        self._show(
            "status", {"text/html": html, "text/plain": "\n".join([text, *aligned])}, raw=True
        )

    def _table(self) -> list[list[str]]:
        """Return the header and always the same number of rows, so that nothing below the table
        moves."""
        scores = _column(self._history, "mean_iou")
        best = self._history[int(np.nanargmax(scores))] if np.isfinite(scores).any() else None
        shown = self._history[-self.LAST :]
        if best and best not in shown:
            shown = [best, *shown]
        table = [["epoch", "loss", "pixel accuracy", "mIoU", "seconds"]]
        for row in shown:
            pair = [
                "" if row.get(key) is None else f"{row[key]:.3f}"
                for key in ("pixel_accuracy", "mean_iou")
            ]
            mark = "best:&nbsp;" if row is best else ""
            table.append(
                [f"{mark}{row['epoch']}", f"{row['loss']:.3f}", *pair, f"{row['seconds']:.0f}"]
            )
        length = min(self._epochs, self.LAST) + (self._epochs > self.LAST)
        return table + [["&nbsp;"] * len(table[0])] * (length + 1 - len(table))

    def _show_figure(self, name: str, figure: Figure) -> None:
        from IPython.display import Image  # only notebooks have it

        file = io.BytesIO()
        figure.savefig(
            file, format="png", dpi=144
        )  # without cropping, so that all have the same size
        width, height = (72 * figure.get_size_inches()).astype(int).tolist()
        self._show(name, Image(file.getvalue(), width=width, height=height))

    def _show(self, name: str, content: Any, **options: Any) -> None:
        """Show `content` below everything else; the next time under this name, in the same
        place."""
        from IPython.display import display

        if name in self._handles:
            self._handles[name].update(content, **options)
        else:
            self._handles[name] = display(content, display_id=True, **options)


def _duration(seconds: float) -> str:
    """Return a duration in words, such as 40 s, 12 min or 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
