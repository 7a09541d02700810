"""A training as a time-lapse: what the network saw in a few frames, epoch by epoch.

`LiveTraining` adds an epoch after an epoch with `record`; `time_lapse` shows them with a slider.
"""

import html
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from unet_utils.backup import TIME_LAPSE
from unet_utils.classes import IGNORE, ClassScheme
from unet_utils.platform.files import replacing, user_path
from unet_utils.plots.html_figure import (
    HtmlFigure,
    fill,
    html_legend,
    map_png,
    photo_jpeg,
    read_picture,
    shrink,
)
from unet_utils.plots.style import class_legend, class_map, largest_classes, picture_grid
from unet_utils.plots.training import column

TEMPLATE = Path(__file__).with_name("time_lapse.html")
MOST_EPOCHS = 20
LONGEST_SIDE = 256
"""Pixels of a frame; larger ones are reduced. A class map then takes about 5 kB."""


def record(
    folder: str | Path,
    photos: np.ndarray,
    truth: np.ndarray,
    predicted: np.ndarray,
    scheme: ClassScheme,
    history: list[dict],
) -> None:
    """Add the last epoch to the time-lapse of a run, `time-lapse.json` in its folder.

    Of a long run every second, fourth, ... epoch is kept, so that there are never more than
    `MOST_EPOCHS`; always the first and the last one.

    Args:
        folder: of the run. It exists.
        photos: `uint8 [N, H, W, 3]`, the same frames in every epoch.
        truth, predicted: class indices, `uint8 [N, H, W]`. Where the truth is void, no prediction
            is shown.
        scheme: names and colours of the classes.
        history: one dict per epoch, as `fit` returns it. Later epochs in the file are of a state
            that was given up, and dropped.

    Raises:
        ValueError: the file is damaged.
        OSError: it cannot be read or written.
    """
    folder = user_path(folder)
    last = history[-1]["epoch"]
    earlier = _read(folder)["maps"] if last > 1 and (folder / TIME_LAPSE).exists() else {}
    maps = {int(epoch): kept for epoch, kept in earlier.items() if int(epoch) < last}
    shown = np.where(truth == IGNORE, IGNORE, predicted)  # there, nothing was to be learned
    maps[last] = [map_png(shrink(classes, LONGEST_SIDE), scheme) for classes in shown]
    lapse = {
        "scheme": scheme.to_dict(),
        "photos": [photo_jpeg(shrink(photo, LONGEST_SIDE)) for photo in photos],
        "truth": [map_png(shrink(classes, LONGEST_SIDE), scheme) for classes in truth],
        "history": [
            {key: row.get(key) for key in ("epoch", "loss", "mean_iou")} for row in history
        ],
        "maps": {epoch: maps[epoch] for epoch in _epochs_to_keep(sorted(maps))},
    }
    with replacing(folder / TIME_LAPSE) as unfinished:
        unfinished.write_text(json.dumps(lapse), encoding="utf-8")


def _epochs_to_keep(epochs: Sequence[int]) -> list[int]:
    """Return at most `MOST_EPOCHS` of these, evenly spaced, with the first and the last one."""
    first, last = epochs[0], epochs[-1]
    step = 1
    while True:
        wanted = {first, *range(1, last + 1, step), last}
        if len(wanted) <= MOST_EPOCHS:
            return [epoch for epoch in epochs if epoch in wanted]
        step *= 2  # what a doubled step wants has been kept until now


def _read(folder: Path) -> dict:
    """Return what the file holds.

    Raises:
        FileNotFoundError, ValueError: there is none; it is damaged.
    """
    path = folder / TIME_LAPSE
    if not path.exists():
        raise FileNotFoundError(
            f"no time-lapse at {path}: it is recorded while notebook 03 trains a run"
        )
    try:
        lapse = json.loads(path.read_text(encoding="utf-8"))
        lapse["scheme"] = ClassScheme.from_dict(lapse["scheme"])
        if not lapse["maps"] or not lapse["history"]:
            raise ValueError("it has no epoch")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged ({error}): delete it, and the next epoch begins a new one"
        ) from error
    return lapse


def time_lapse(folder: str | Path) -> HtmlFigure:
    """Show the time-lapse of a run: a slider over its epochs, what the network saw in each of them,
    and the dot on the curve of the score (of the loss, where nothing was held out).

    Args:
        folder: of the run.

    Returns:
        What notebooks show as the last line of a cell.

    Raises:
        FileNotFoundError: the run has none; it is recorded while notebook 03 trains.
        ValueError: the file is damaged.
    """
    lapse = _read(user_path(folder))
    scheme, history = lapse["scheme"], lapse["history"]
    maps = {int(epoch): kept for epoch, kept in lapse["maps"].items()}
    key = "mean_iou" if np.isfinite(column(history, "mean_iou")).any() else "loss"
    name = {"mean_iou": "mIoU", "loss": "loss"}[key]
    values = {row["epoch"]: row[key] for row in history if row[key] is not None}
    places, highest = _curve(values, history[-1]["epoch"])
    texts = {}
    for epoch in maps:
        value = f", {name} {values[epoch]:.2f}" if epoch in places else ""
        texts[epoch] = f"epoch {epoch} of {history[-1]['epoch']}{value}"
    moments: list[dict] = []
    for epoch, kept in maps.items():
        dot = f"M{places.get(epoch, '0 100')}h0"  # a line without a length: with round ends, a dot
        images = [_image("prediction", classes, scheme) for classes in kept]
        moments.append({"text": texts[epoch], "dot": dot, "images": images})
    first, last = min(maps), max(maps)
    truth = [read_picture(classes) for classes in lapse["truth"]]
    found = {epoch: [read_picture(classes) for classes in kept] for epoch, kept in maps.items()}
    every_map = [*truth, *(classes for frames in found.values() for classes in frames)]
    page = fill(
        TEMPLATE,
        {
            "moments": html.escape(json.dumps(moments)),
            "frames": "".join(_frame(lapse, number, last) for number in range(len(truth))),
            "curve_title": f"{name} over the epochs, from 0 to {highest:.2f}",
            "curve_text": f"{name} over the epochs: {texts[first]}; {texts[last]}",
            "curve": " ".join(places.values()),
            "last": str(len(maps) - 1),
            "last_dot": str(moments[-1]["dot"]),
            "last_text": texts[last],
            "legend": html_legend(every_map, scheme),
        },
    )
    return HtmlFigure(page, _plot(truth, found, texts, scheme))


def _curve(values: dict[int, float], last: int) -> tuple[dict[int, str], float]:
    """Return where the value of each epoch lies, x and y in percent of width and height from the
    upper left corner, and the highest value. Epochs without a finite value are left out."""
    finite = {epoch: value for epoch, value in values.items() if np.isfinite(value)}
    highest = max(finite.values(), default=0.0)
    places = {}
    for epoch, value in finite.items():
        x = 100 * (epoch - 1) / max(1, last - 1)
        y = 100 - 100 * value / (highest or 1)
        places[epoch] = f"{x:.2f} {y:.2f}"
    return places, highest


def _image(name: str, classes: str, scheme: ClassScheme) -> dict[str, str]:
    """Return the attributes of the image of a class map, a PNG in base64."""
    text = f"{name}: {largest_classes(read_picture(classes), scheme)}"
    return {"alt": text, "src": f"data:image/png;base64,{classes}"}


def _frame(lapse: dict, number: int, epoch: int) -> str:
    """Return the HTML of one frame: its truth, and its prediction in an epoch."""
    size = 'width="240" height="120"'  # where no style is left
    photo = f'<img alt="" {size} src="data:image/jpeg;base64,{lapse["photos"][number]}">'
    maps = {"truth": lapse["truth"][number], "prediction": lapse["maps"][str(epoch)][number]}
    cells = []
    for name, classes in maps.items():
        image = _image(name, classes, lapse["scheme"])
        cells.append(
            f'<figure><figcaption>{name}</figcaption><div class="stack">{photo}'
            f'<img class="map {name}" {size} alt="{html.escape(image["alt"])}" '
            f'src="{image["src"]}"></div></figure>'
        )
    return "".join(cells)


def _plot(
    truth: Sequence[np.ndarray],
    found: dict[int, list[np.ndarray]],
    texts: dict[int, str],
    scheme: ClassScheme,
) -> Figure:
    """Plot the truth and three epochs, one row per frame: the time-lapse where no script runs."""
    epochs = sorted(found)
    shown = sorted({epochs[0], epochs[len(epochs) // 2], epochs[-1]})
    text = "; ".join(texts[epoch] for epoch in shown)
    figure, axes = picture_grid(len(truth), 1 + len(shown), "What the network learned", f"{text}.")
    for row, classes in enumerate(truth):
        class_map(axes[row, 0], classes, scheme, "truth")
        for ax, epoch in zip(axes[row, 1:], shown, strict=True):
            class_map(ax, found[epoch][row], scheme, f"epoch {epoch}")
    class_legend(figure, [*truth, *(part for epoch in shown for part in found[epoch])], scheme)
    return figure
