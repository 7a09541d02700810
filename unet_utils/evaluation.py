"""Use a trained model: load it, predict, score it on a split."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unet_utils.checkpoints import check_same_network, read_checkpoint
from unet_utils.classes import ClassScheme
from unet_utils.device import RESTART, autocast, explain_errors, memory_format
from unet_utils.frames import Frames
from unet_utils.images import Size, enlarge_classes, height_and_width, photo_size, to_input
from unet_utils.metrics import ConfusionMatrix
from unet_utils.model import OtherNetwork, UNet, other_network
from unet_utils.platform.environment import progress_bar

SMALL_MODEL = Path(__file__).parent / "weights" / "small.pt"
"""A small model trained on the real pairs; `weights/README.md` describes it."""


@dataclass(frozen=True)
class Trained:
    """A model from a checkpoint, with what is needed to use it.

    Attributes:
        model: in evaluation mode, on the device.
        scheme: the classes that it learned.
        scene_size: height and width at which the network sees a whole street scene, pixels.
        config: the settings of its training, plain values.
        history: one dict per epoch, plain values.
        made_by: what made it, see `checkpoints.made_by`.
        licence: what it may be used for; empty for anything.
        data: fingerprint of the training split that it learned from; empty if it is not known.
        squeezes_all: whether it learned from photos of any shape, all squeezed to one size, as own
            data is; otherwise from street scenes, which are twice as wide as high.
        temperature: divides the logits wherever probabilities are shown, see `use.calibration`;
            None if none was fitted.
    """

    model: UNet | OtherNetwork
    scheme: ClassScheme
    scene_size: tuple[int, int]
    config: dict
    history: list[dict]
    made_by: dict
    licence: str = ""
    temperature: float | None = None
    squeezes_all: bool = False
    data: str = ""

    def photo_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width of the network's input for a photo of this shape, pixels."""
        if self.squeezes_all:
            return self.scene_size
        return photo_size(height, width, self.scene_size, self.model.divisor)


def load_trained(
    path: str | Path,
    device: torch.device | str,
    scheme: str | None = None,
    network: Callable[[int], nn.Module] | None = None,
) -> Trained:
    """Load a model.

    Args:
        path: `best.pt` or `last.pt` of a run.
        device: where the model goes.
        scheme: name of the class scheme that the caller expects; None accepts any.
        network: builds the network if it is not our UNet, as in `training.fit`.

    Raises:
        FileNotFoundError, ValueError: as `read_checkpoint`; or the model has learned other classes,
            or is a network whose code is not here.
    """
    return trained_from(read_checkpoint(path), path, device, scheme, network)


@explain_errors(RESTART)
def trained_from(
    checkpoint: dict,
    path: str | Path,
    device: torch.device | str,
    scheme: str | None = None,
    network: Callable[[int], nn.Module] | None = None,
) -> Trained:
    """Return the model of a checkpoint that was read from `path`; the rest is as in
    `load_trained`."""
    learned = ClassScheme.from_dict(checkpoint["scheme"])
    if scheme and scheme != learned.name:
        raise ValueError(
            f"{path} has learned the class scheme {learned.name!r}, not {scheme!r}: "
            f"set the scheme to {learned.name!r}, or train a model for {scheme!r}"
        )
    other = checkpoint["network"].get("other")
    model: UNet | OtherNetwork
    if not other:
        model = UNet(**checkpoint["network"])
    elif network:
        model = other_network(network, learned.num_classes)
        check_same_network(checkpoint, model, Path(path))
    else:
        raise ValueError(
            f"{path} holds the weights of a network that is not in this package, {other}: load it "
            "in Python with load_trained(path, device, network=...), where network builds it"
        )
    model.load_state_dict(checkpoint.get("averaged", checkpoint["model"]))
    model.shift_logits(checkpoint["logit_shift"])  # the prior correction
    model.to(device, memory_format=memory_format(device)).eval()
    return Trained(
        model,
        learned,
        tuple(checkpoint["scene_size"]),
        checkpoint["config"],
        checkpoint["history"],
        checkpoint["made_by"],
        checkpoint.get("licence", ""),
        temperature=checkpoint.get("temperature"),
        squeezes_all=learned.name == "own",
        data=checkpoint.get("data", {}).get("files", ""),
    )


@explain_errors(RESTART)
@torch.inference_mode()
def predict(
    model: UNet | OtherNetwork,
    photos: Tensor,
    image_size: Size,
    flip: bool = False,
    temperature: float | None = None,
) -> Tensor:
    """Return class probabilities at the photos' own resolution.

    Args:
        model: in evaluation mode; the photos are copied to its device.
        photos: `uint8 [N, 3, H, W]`, any H and W.
        image_size: height and width of the network's input, pixels: `Trained.scene_size` for frames
            of the kind that it was trained on, `images.photo_size` for other photos.
        flip: average with the prediction for the mirrored photo; takes twice the time.
        temperature: `Trained.temperature`, which makes the probabilities honest; None is 1.

    Returns:
        `float32 [N, num_classes, H, W]`, summing to 1 over the classes.
    """
    logits = _logits(model, photos, image_size, flip) / (temperature or 1)
    if logits.shape[2:] != photos.shape[2:]:
        logits = F.interpolate(logits, photos.shape[2:], mode="bilinear", align_corners=False)
    return logits.softmax(1)


@explain_errors(RESTART)
@torch.inference_mode()
def predict_classes(
    model: UNet | OtherNetwork, photos: Tensor, image_size: Size, flip: bool = False
) -> Tensor:
    """Return the most probable class of each pixel, `uint8 [N, H, W]`; arguments as in `predict`.

    Needs much less memory than `predict`: the probabilities of a 12-megapixel photo take 0.9 GB.
    """
    logits = _logits(model, photos, image_size, flip)
    return enlarge_classes(logits, photos.shape[2], photos.shape[3])


def _logits(model: UNet | OtherNetwork, photos: Tensor, image_size: Size, flip: bool) -> Tensor:
    device = next(model.parameters()).device
    x = to_input(photos.to(device), image_size).contiguous(memory_format=memory_format(device))
    with autocast(device):
        logits = model(x)
        if flip:
            logits = (logits + model(x.flip(3)).flip(3)) / 2
    return logits.float()


def predict_frames(
    model: UNet | OtherNetwork,
    frames: Frames,
    image_size: Size,
    flip: bool = False,
    progress: str = "",
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Predict all frames, batch after batch, at the resolution of their labels.

    Args:
        model: in evaluation mode.
        frames: with the classes that the model has learned.
        image_size, flip: as in `predict`.
        progress: title of a progress bar; empty for none.

    Yields:
        where the batch lies in the frames, predicted and true classes, `uint8 [n, H, W]` each.

    Raises:
        ValueError: the model's number of classes is not that of the frames' scheme.
    """
    num_classes = model.config["num_classes"]
    if num_classes != frames.scheme.num_classes:
        raise ValueError(
            f"the model has {num_classes} classes, the scheme {frames.scheme.name!r} has "
            f"{frames.scheme.num_classes}: prepare the frames with the scheme of the checkpoint"
        )
    device = next(model.parameters()).device
    # 16 pairs at a time, fewer of larger frames.
    pixels = math.prod(height_and_width(image_size))
    step = max(1, 2**20 // max(pixels, math.prod(frames.label_ids.shape[1:])))
    with progress_bar(total=len(frames), desc=progress, unit="frame", disable=not progress) as bar:
        for start in range(0, len(frames), step):
            where = slice(start, min(start + step, len(frames)))
            photos, truth = frames.batch(where, device)
            yield where, predict_classes(model, photos, image_size, flip), truth
            bar.update(len(photos))


def evaluate(
    model: UNet | OtherNetwork,
    frames: Frames,
    image_size: Size,
    flip: bool = False,
    progress: str = "",
) -> list[ConfusionMatrix]:
    """Return one confusion matrix per frame, at the resolution of the labels (256x256 for pairs).

    The score of the set is that of `ConfusionMatrix.total(...)` of them. Arguments and errors as in
    `predict_frames`.
    """
    matrices: list[ConfusionMatrix] = []
    for _, predicted, truth in predict_frames(model, frames, image_size, flip, progress):
        matrices += frame_matrices(predicted, truth, frames.scheme.num_classes)
    return matrices


def score(model: UNet | OtherNetwork, frames: Frames, image_size: Size) -> ConfusionMatrix:
    """Return the confusion matrix of all frames together."""
    result = ConfusionMatrix(frames.scheme.num_classes)
    for _, predicted, truth in predict_frames(model, frames, image_size):
        result.update(predicted, truth)
    return result


def frame_matrices(
    predicted: Tensor | np.ndarray,
    truth: Tensor | np.ndarray,
    num_classes: int,
    no_answer: bool = False,
) -> list[ConfusionMatrix]:
    """Return one confusion matrix per frame of class indices `uint8 [N, H, W]`; `no_answer` as in
    `ConfusionMatrix`."""
    matrices = []
    for found, true in zip(predicted, truth, strict=True):
        matrices.append(ConfusionMatrix(num_classes, no_answer=no_answer))
        matrices[-1].update(found, true)
    return matrices


def collect_predictions(
    model: UNet | OtherNetwork,
    frames: Frames,
    image_size: Size,
    flip: bool = False,
    progress: str = "",
) -> tuple[np.ndarray, np.ndarray]:
    """Return predicted and true classes of all frames, `uint8 [N, H, W]` each."""
    predicted = np.empty(tuple(frames.label_ids.shape), dtype=np.uint8)
    truth = np.empty_like(predicted)
    for where, found, true in predict_frames(model, frames, image_size, flip, progress):
        predicted[where] = found.cpu().numpy()
        truth[where] = true.cpu().numpy()
    return predicted, truth
