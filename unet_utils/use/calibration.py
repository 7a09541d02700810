"""Does the model know how sure it may be? Its confidence against how often it is right.

A model is calibrated if it is right on 80 % of the pixels on which it is 80 % confident. Many
networks are too sure, some are not sure enough. Dividing all logits by one number, the temperature,
mends most of that and changes no class (Guo et al., 2017, https://arxiv.org/abs/1706.04599). It is
the number for which the cross-entropy is lowest; a calibration error that is small already need not
fall.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from unet_utils.checkpoints import packed_checkpoint, read_checkpoint, read_facts
from unet_utils.classes import IGNORE, ClassScheme
from unet_utils.evaluation import Trained, predict, trained_from
from unet_utils.frames import Frames
from unet_utils.platform.files import copy_verified, replacing, user_path
from unet_utils.run_files import RunFiles

BINS = 15
"""As in the paper; all are equally wide."""
MOST_PIXELS = 200_000


class PixelSample(NamedTuple):
    """Labelled pixels drawn from all frames.

    Attributes:
        log_probabilities: of the classes, at temperature 1, `float32 [n, C]`.
        truth: class indices, `int64 [n]`.
    """

    log_probabilities: Tensor
    truth: Tensor


class CalibrationCurve(NamedTuple):
    """Pixels in `BINS` bins by the probability of the predicted class, the confidence.

    Attributes:
        confidence: mean in each bin, `float64 [BINS]`; NaN in an empty one.
        accuracy: share of the pixels that are right, likewise.
        share: of all pixels that lie in the bin, `float64 [BINS]`.
    """

    confidence: Tensor
    accuracy: Tensor
    share: Tensor

    @property
    def error(self) -> float:
        """Expected calibration error: the mean distance of confidence and accuracy."""
        return (self.share * (self.confidence - self.accuracy).abs()).nansum().item()


def sample_pixels(trained: Trained, frames: Frames) -> PixelSample:
    """Predict all frames, and keep about `MOST_PIXELS` labelled pixels, always the same.

    Args:
        trained: the model.
        frames: with the classes that it has learned.

    Raises:
        ValueError: no pixel is labelled.
    """
    labelled = int(frames.class_counts().sum())
    if not labelled:
        raise ValueError("no pixel of these frames has a class: calibration needs labelled pixels")
    generator = torch.Generator().manual_seed(0)
    device = next(trained.model.parameters()).device
    step = max(1, 2**19 // frames.label_ids[0].numel())
    found, true = [], []
    for start in range(0, len(frames), step):
        photos, truth = frames.batch(slice(start, start + step), device)
        drawn = torch.rand(truth.shape, generator=generator) < MOST_PIXELS / labelled
        chosen = drawn.to(device) & (truth != IGNORE)
        # A softmax gives back what its logarithm is put into: these are as good as logits.
        probabilities = predict(trained.model, photos, trained.scene_size)
        found.append(probabilities.movedim(1, 3)[chosen].clamp(min=1e-30).log().cpu())
        true.append(truth[chosen].long().cpu())
    return PixelSample(torch.cat(found), torch.cat(true))


def calibration_curve(pixels: PixelSample, temperature: float | None = None) -> CalibrationCurve:
    """Return how often the model is right at each confidence.

    Args:
        pixels: from frames on which the temperature was not fitted.
        temperature: divides the logits; None leaves them as they are.
    """
    probabilities = (pixels.log_probabilities / (temperature or 1)).softmax(1)
    confidence, predicted = probabilities.double().max(1)
    right = (predicted == pixels.truth).double()
    bins = (confidence * BINS).long().clamp(max=BINS - 1)
    count = torch.bincount(bins, minlength=BINS)
    return CalibrationCurve(
        torch.bincount(bins, confidence, BINS) / count,
        torch.bincount(bins, right, BINS) / count,
        count / count.sum(),
    )


def calibration_curves(trained: Trained, frames: Frames) -> dict[str, CalibrationCurve]:
    """Return the curve of a model as it was trained and, if it has one, with its temperature.

    Args:
        trained: the model.
        frames: with the classes that it has learned; not its held-out frames.
    """
    pixels = sample_pixels(trained, frames)
    curves = {"as trained": calibration_curve(pixels)}
    if trained.temperature:
        name = f"temperature {trained.temperature:.2f}"
        curves[name] = calibration_curve(pixels, trained.temperature)
    else:
        print("This model has no temperature: it is fitted on frames that a training held out.")
    return curves


def best_temperature(pixels: PixelSample) -> float:
    """Return the temperature at which the cross-entropy of these pixels is lowest."""
    # Its logarithm is fitted, so that it stays positive.
    log_temperature = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.LBFGS([log_temperature], max_iter=50, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = cross_entropy(pixels.log_probabilities / log_temperature.exp(), pixels.truth)
        value.backward()
        return value

    optimizer.step(loss)
    return log_temperature.exp().item()


def fit_temperature(
    path: str | Path,
    frames: Frames,
    device: torch.device | str,
    backup: str | Path | None = None,
    network: Callable[[int], nn.Module] | None = None,
) -> float | None:
    """Fit the temperature of a run's model on its held-out frames, and keep it in its `best.pt`.

    `load_trained` reads it from there. When a later epoch becomes the best one, fit it again.

    Args:
        path: `best.pt` of the run.
        frames: the training split, as `training.fit` got it: it contains the held-out frames.
        device: where to predict.
        backup: of the run, as in `training.fit`; its `best.pt` becomes the same.
        network: builds the network if it is not our UNet, as in `training.fit`.

    Returns:
        The temperature; None, with a message, if the run held nothing out: on frames that it has
        learned from, a model is too sure of itself, so they cannot tell how sure it may be.

    Raises:
        FileNotFoundError, ValueError: there is no such checkpoint, or it is damaged; or these are
            not the frames that the run was given.
        LockedError: the run is being trained.
        OSError: the file cannot be written.
    """
    path = user_path(path)
    _, held_out = frames.split(read_facts(path)["config"]["hold_out"])
    if held_out is None:
        print(f"{path} has no temperature: its training held no frames out.")
        return None
    with RunFiles(path.parent):  # nobody else may replace the file meanwhile
        checkpoint = read_checkpoint(path)
        _check_same_frames(checkpoint, frames, path)
        trained = trained_from(checkpoint, path, device, network=network)
        temperature = best_temperature(sample_pixels(trained, held_out))
        content = packed_checkpoint(checkpoint | {"temperature": temperature})
        with replacing(path) as unfinished:
            unfinished.write_bytes(content)
    if backup:
        _update_backup(path, user_path(backup) / path.name, checkpoint)
    return temperature


def _check_same_frames(checkpoint: dict, frames: Frames, path: Path) -> None:
    """Check that frames are those that a run was given; others would be split elsewhere, and some
    of the "held-out" ones would have been learned from."""
    data = checkpoint["data"]
    scheme = ClassScheme.from_dict(checkpoint["scheme"])
    was = (data["files"], data["frames"], data["labels"], scheme)
    if was != (frames.data, len(frames), frames.labels, frames.scheme):
        raise ValueError(
            f"the temperature of {path} is fitted on the held-out frames of its run: give the "
            f"{data['frames']} training frames that the run got (labels {data['labels']}, classes "
            f"{scheme.name}). These {len(frames)} frames are others, and the model may have "
            "learned from them"
        )


def _update_backup(path: Path, copy: Path, checkpoint: dict) -> None:
    """Bring the copy of a model up to date, unless it is another model, or is not available."""
    try:
        if read_facts(copy)["made_by"] == checkpoint["made_by"]:
            copy_verified(path, copy)
    except (OSError, ValueError) as error:
        print(f"The temperature is not in the backup ({error}): it is safe in {path}.")
