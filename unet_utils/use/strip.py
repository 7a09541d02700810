"""The strip: what several trainings predict for the same frames, and their losses."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from unet_utils.checkpoints import read_facts
from unet_utils.classes import ClassScheme
from unet_utils.evaluation import load_trained, predict_classes
from unet_utils.frames import Frames
from unet_utils.platform.files import user_path
from unet_utils.use.compare import runs_like

SHOWN = 3
"""Number of held-out frames in the strip."""


class Strip(NamedTuple):
    """Predictions side by side, the arguments of `plots.strip.plot_strip`.

    Attributes:
        photos: `uint8 [N, H, W, 3]`.
        truth: class indices, `uint8 [N, H, W]`.
        predictions: name -> class indices, `uint8 [N, H, W]`. The first is what the others are
            compared with.
        scheme: names and colours of the classes.
        curves: name -> how far the training was, and the loss there, one entry per point.
        unit: of how far the training was: "photos" or "epochs".
    """

    photos: np.ndarray
    truth: np.ndarray
    predictions: dict[str, np.ndarray]
    scheme: ClassScheme
    curves: dict[str, tuple[list[float], list[float]]]
    unit: str


def run_strip(
    results: str | Path, names: Sequence[str], frames: Frames, device: torch.device | str
) -> Strip:
    """Predict the same frames with several runs; with a single one, also with the best other run of
    our network.

    Args:
        results: folder that holds one folder per run.
        names: of the runs; the first is what the others are compared with.
        frames: held-out frames; three of them are shown.
        device: where the models go.

    Raises:
        FileNotFoundError, ValueError: as `load_trained`.
    """
    results = user_path(results)
    names = list(names)
    if len(names) == 1:
        for other in runs_like(results, names[0]):
            network = read_facts(results / other / "best.pt")["network"]
            if other != names[0] and not network.get("other"):
                names.insert(0, other)
                break
    photos, truth = frames.batch(frames.spread(SHOWN))
    predictions = {}
    curves = {}
    for name in names:
        run = load_trained(results / name / "best.pt", device, frames.scheme.name)
        predictions[name] = predict_classes(run.model, photos, run.scene_size).cpu().numpy()
        curves[name] = (
            [row["epoch"] for row in run.history],
            [row["loss"] for row in run.history],
        )
    images = photos.permute(0, 2, 3, 1).numpy()
    return Strip(images, truth.numpy(), predictions, frames.scheme, curves, "epochs")
