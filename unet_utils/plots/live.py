"""A training, shown in a notebook while it runs."""

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unet_utils.config import TrainConfig
from unet_utils.evaluation import predict_classes
from unet_utils.frames import Frames
from unet_utils.model import OtherNetwork, UNet
from unet_utils.plan import Plan
from unet_utils.plots.results import plot_predictions
from unet_utils.plots.style import notebook_image
from unet_utils.plots.time_lapse import record
from unet_utils.plots.training import column, plot_history
from unet_utils.schedule import Schedule
from unet_utils.training import fit

SHOWN_FRAMES = 3
LAST_EPOCHS = 10  # the table has a row for each of these, and one for the best epoch


def fit_live(frames: Frames, plan: Plan, device: torch.device | str) -> list[dict]:
    """Train a run as `fit` does, and show it in the notebook while it runs.

    Args:
        frames: the training split.
        plan: of the run.
        device: where to train.

    Returns, raises:
        As `training.fit`.
    """
    _, held_out = frames.split(True)
    assert held_out is not None
    live = LiveTraining(held_out, plan.config, plan.folder)
    history = fit(
        frames,
        plan.config,
        plan.folder,
        device,
        resume=plan.resume,
        backup=plan.backup,
        on_epoch=live.epoch,
        on_step=live.step,
        progress=False,
        start_from=plan.start_from,
    )
    live.end(history)
    return history


class LiveTraining:
    """Show a training in a notebook while it runs; everything is updated in place.

    From top to bottom: a status line with a bar, a table of the epochs, the curves, and the
    predictions for a few frames. `fit_live` uses it.

    Args:
        frames: the frames to show are taken from these, evenly spaced.
        config: the settings of the run, the same that `fit` gets.
        folder: of the run, for its time-lapse (see `plots.time_lapse`); None to record none.
    """

    def __init__(self, frames: Frames, config: TrainConfig, folder: Path | None = None):
        self._photos, truth = frames.batch(frames.spread(SHOWN_FRAMES))
        self._shown = (self._photos.permute(0, 2, 3, 1).numpy(), truth.numpy())
        self._scheme = frames.scheme
        self._config = config
        self._folder = folder
        self._history: list[dict] = []
        self._handles: dict[str, Any] = {}
        # Time and finished share of the run at the first step: a resumed run begins in the middle.
        self._start: tuple[float, float] | None = None
        self._schedule: Schedule | None = None
        self._updated = -math.inf
        self._drawn = -math.inf

    def step(self, epoch: int, images_done: int, images_per_epoch: int, schedule: Schedule) -> None:
        """Update the status line, at most twice per second. `epoch` counts from 1."""
        now = time.monotonic()
        epochs = schedule.config.epochs
        self._schedule = schedule
        done = (epoch - 1 + images_done / images_per_epoch) / epochs
        self._start = self._start or (now, done)
        if now - self._updated < 0.5:
            return
        text = f"epoch {epoch} of {epochs}, {images_done} of {images_per_epoch} photos"
        self._show_status(text, done)

    def epoch(self, history: list[dict], model: UNet | OtherNetwork) -> None:
        """Add an epoch to the table and the time-lapse. Draw curves and predictions anew, if this
        was not done in the last 10 seconds."""
        self._history = history
        predicted = self._predict(model)
        if self._folder:
            self._record(self._folder, predicted)
        epoch, epochs = history[-1]["epoch"], self._config.epochs
        if epoch < epochs:
            self._show_status(f"epoch {epoch} of {epochs} finished", epoch / epochs)
            if time.monotonic() - self._drawn < 10:
                return
        else:
            total = sum(row["seconds"] for row in history)
            self._show_status(f"{epoch} epochs finished, {_duration(total)} of training", 1)
        self._show("curves", notebook_image(plot_history(history)))
        found = {"prediction": predicted}
        figure = plot_predictions(*self._shown, found, self._scheme, all_classes=True)
        self._show("predictions", notebook_image(figure))
        self._drawn = time.monotonic()

    def end(self, history: list[dict]) -> None:
        """Show the curves of a run that had ended before: no epoch has drawn them here."""
        if "curves" not in self._handles:
            self._show("curves", notebook_image(plot_history(history)))

    def _predict(self, model: UNet | OtherNetwork) -> np.ndarray:
        """Return the classes of the shown frames, `uint8 [N, H, W]`."""
        size = self._config.scene_size(*self._photos.shape[2:])
        return predict_classes(model, self._photos, size).cpu().numpy()

    def _record(self, folder: Path, predicted: np.ndarray) -> None:
        """Add the epoch to the time-lapse; a failure is reported once."""
        try:
            record(folder, *self._shown, predicted, self._scheme, self._history)
        except (OSError, ValueError) as error:  # must not stop the training
            print(f"The time-lapse is not recorded any more: {error}")
            self._folder = None

    def _show_status(self, text: str, done: float) -> None:
        self._updated = time.monotonic()
        if self._schedule and self._start and self._start[1] < done < 1:
            start, before = self._start
            left = self._schedule.time_left(self._updated - start, before, done)
            text += f", about {_duration(left)} left"
        head, *rows = self._table()
        plain = ["".join(f"{cell:>16}" for cell in row).rstrip() for row in (head, *rows)]
        cell = "<td style='padding: 0 0.5em; text-align: right'>"
        lines = [cell + f"</td>{cell}".join(row) for row in ([f"<b>{c}</b>" for c in head], *rows)]
        table = "".join(f"<tr>{line}</td></tr>" for line in lines)
        bar = f"<progress value='{done:.4f}' max='1' style='width: 100%'></progress>"
        html = f"<div style='max-width: 40em'>{text}<br>{bar}<table>{table}</table></div>"
        content = {"text/html": html, "text/plain": "\n".join([text, *plain])}
        self._show("status", content, raw=True)

    def _table(self) -> list[list[str]]:
        """Return the header and always the same number of rows, so that nothing below the table
        moves."""
        table = [["epoch", "loss", "pixel accuracy", "mIoU", "seconds"]]
        scores = column(self._history, "mean_iou")
        best = self._history[int(np.nanargmax(scores))] if np.isfinite(scores).any() else None
        shown = self._history[-LAST_EPOCHS:]
        if best and best not in shown:
            shown = [best, *shown]
        for row in shown:
            number = f"best: {row['epoch']}" if row is best else str(row["epoch"])
            loss, accuracy, mean_iou = (
                "" if row.get(key) is None else f"{row[key]:.3f}"
                for key in ("loss", "pixel_accuracy", "mean_iou")
            )
            table.append([number, loss, accuracy, mean_iou, f"{row['seconds']:.0f}"])
        epochs = self._config.epochs
        length = min(epochs, LAST_EPOCHS) + (epochs > LAST_EPOCHS)
        no_break_space = "\u00a0"  # an empty row would be lower
        return table + [[no_break_space] * len(table[0])] * (length + 1 - len(table))

    def _show(self, place: str, content: Any, **options: Any) -> None:
        """Show `content` below everything else; the next time, in the same place."""
        from IPython.display import display  # only notebooks have it

        if place in self._handles:
            self._handles[place].update(content, **options)
        else:
            self._handles[place] = display(content, display_id=True, **options)


def _duration(seconds: float) -> str:
    """Return a duration in words, such as 40 s, 12 min or 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
