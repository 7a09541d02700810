"""Use a trained model: load it, predict, score it on a split."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unet_utils.augment import to_input
from unet_utils.checkpoints import read_checkpoint
from unet_utils.classes import ClassScheme
from unet_utils.device import autocast, memory_format
from unet_utils.frames import Frames
from unet_utils.metrics import ConfusionMatrix
from unet_utils.model import UNet
from unet_utils.platform.environment import progress_bar
from unet_utils.platform.processes import SingleProcess

SMALL_MODEL = Path(__file__).parent / "weights" / "small.pt"
"""A small model trained on the real pairs; `weights/README.md` describes it."""

Size = int | tuple[int, int]


@dataclass(frozen=True)
class Trained:
    """A model from a checkpoint, with what is needed to use it.

    Attributes:
        model: in evaluation mode, on the device.
        scheme: the classes that it learned.
        config: the settings of its training, plain values.
        history: one dict per epoch, plain values.
    """

    model: UNet
    scheme: ClassScheme
    config: dict
    history: list[dict]

    @property
    def scene_size(self) -> tuple[int, int]:
        """Height and width at which the network sees a whole street scene, pixels."""
        size = self.config["image_size"]
        height, width = self.config.get("scene_size", (size, size))
        return height, width


def load_trained(
    path: str | Path, device: torch.device | str, scheme: str | None = None
) -> Trained:
    """Load a model.

    Args:
        path: `best.pt` or `last.pt` of a run.
        device: where the model goes.
        scheme: name of the class scheme that the caller expects; None accepts any.

    Raises:
        FileNotFoundError, ValueError: as `read_checkpoint`; or the model has learned another class
            scheme.
    """
    checkpoint = read_checkpoint(path)
    learned = ClassScheme.from_dict(checkpoint["scheme"])
    if scheme and scheme != learned.name:
        raise ValueError(
            f"{path} has learned the class scheme {learned.name!r}, not {scheme!r}: "
            f"set the scheme to {learned.name!r}, or train a model for {scheme!r}"
        )
    model = UNet(**checkpoint["model_config"])
    model.load_state_dict(checkpoint.get("averaged", checkpoint["model"]))
    if "logit_shift" in checkpoint:  # the prior correction
        model.shift_logits(checkpoint["logit_shift"])
    model.to(device, memory_format=memory_format(device)).eval()
    return Trained(model, learned, checkpoint["config"], checkpoint["history"])


def find_checkpoint(run: str | Path) -> Path:
    """Return the best checkpoint of a run; without one, the small model of the package, with a
    message.

    Args:
        run: folder of the run.
    """
    best = Path(run) / "best.pt"
    if best.exists() or not SMALL_MODEL.exists():
        return best  # if it does not exist, reading it says what to do
    print(f"No model in {run}: using the small model of the package, {SMALL_MODEL}")
    return SMALL_MODEL


@torch.inference_mode()
def predict(model: UNet, photos: Tensor, image_size: Size, flip: bool = False) -> Tensor:
    """Return class probabilities at the photos' own resolution.

    Args:
        model: in evaluation mode; the photos are copied to its device.
        photos: `uint8 [N, 3, H, W]`, any H and W.
        image_size: height and width of the network's input, pixels: `Trained.scene_size` for frames
            of the kind it was trained on, `photo_size` for other photos. One number if both are
            equal.
        flip: average with the prediction for the mirrored photo; takes twice the time.

    Returns:
        `float32 [N, num_classes, H, W]`, summing to 1 over the classes.
    """
    logits = _logits(model, photos, image_size, flip)
    if logits.shape[2:] != photos.shape[2:]:
        logits = F.interpolate(logits, photos.shape[2:], mode="bilinear", align_corners=False)
    return logits.softmax(1)


@torch.inference_mode()
def predict_classes(model: UNet, photos: Tensor, image_size: Size, flip: bool = False) -> Tensor:
    """Return the most probable class of each pixel, `uint8 [N, H, W]`; arguments as in `predict`.

    Needs much less memory than `predict`: the probabilities of a 12-megapixel photo would take 0.9
    GB."""
    return enlarge_classes(
        _logits(model, photos, image_size, flip), photos.shape[2], photos.shape[3]
    )


def _logits(model: UNet, photos: Tensor, image_size: Size, flip: bool) -> Tensor:
    device = next(model.parameters()).device
    x = to_input(photos.to(device), image_size).contiguous(memory_format=memory_format(device))
    with autocast(device):
        logits = model(x)
        if flip:
            logits = (logits + model(x.flip(3)).flip(3)) / 2
    return logits.float()


def enlarge_classes(logits: Tensor, height: int, width: int, most: int = 2**23) -> Tensor:
    """Return the most probable classes after bilinear enlargement, computed in strips of rows to
    save memory.

    Written in the part of Python that TorchScript supports: an exported model contains this
    function.

    Args:
        logits: `float32 [N, C, h, w]`.
        height, width: of the result, pixels.
        most: number of values in a strip, 4 bytes each.

    Returns:
        `uint8 [N, height, width]`, the `argmax(1)` of `F.interpolate(..., mode="bilinear",
        align_corners=False)`.
    """
    n, c, h = logits.shape[0], logits.shape[1], logits.shape[2]
    if h == height and logits.shape[3] == width:
        return logits.argmax(1).byte()
    wide = F.interpolate(logits, [h, width], mode="bilinear", align_corners=False)
    # Each row of the result lies between two rows of `wide`, `share` of the way from the upper to
    # the lower one.
    centers = ((torch.arange(height, device=logits.device) + 0.5) * (h / height) - 0.5).clamp(
        0, h - 1
    )
    above = centers.floor().long()
    below = (above + 1).clamp(max=h - 1)
    share = (centers - above)[:, None]
    step = max(1, most // (n * c * width))
    strips = []
    for top in range(0, height, step):
        end = top + step
        strip = torch.lerp(wide[:, :, above[top:end]], wide[:, :, below[top:end]], share[top:end])
        strips.append(strip.argmax(1).byte())
    return torch.cat(strips, 1)


def photo_size(
    height: int, width: int, scene_size: tuple[int, int], divisor: int = 16
) -> tuple[int, int]:
    """Return the height and width of the network's input for a photo of another shape, pixels.

    The scenes that it learned from are 2:1, and squeezed when it sees pairs. Other photos are
    squeezed by the same factor. The width is at most 16 times the height, so that the cost of a
    very wide photo is bounded.

    Args:
        height, width: of the photo.
        scene_size: of the network, see `Trained.scene_size`.
        divisor: of the network; the width is rounded to a multiple of it.
    """
    steps = round(scene_size[1] * width / height / 2 / divisor)
    return scene_size[0], min(max(1, steps), 16 * scene_size[0] // divisor) * divisor


def frames_per_batch(scene_size: tuple[int, int], frames: Frames) -> int:
    """Return how many frames to score together: 16 pairs, fewer of larger frames."""
    return max(1, 2**20 // max(math.prod(scene_size), math.prod(frames.label_ids.shape[1:])))


def predict_frames(
    model: UNet,
    frames: Frames,
    image_size: Size,
    flip: bool = False,
    progress: str = "",
    batch_size: int | None = None,
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Predict all frames in batches. Every score in this package comes from this loop.

    Args:
        model, image_size, flip: as in `predict`.
        frames: photos and labels; their scheme must be the model's.
        progress: text of the progress bar; without it there is no bar.
        batch_size: frames per batch; by default as many as fit well.

    Yields:
        `(where, predicted, truth)`: the slice of the frames, and class indices `uint8 [n, H, W]` on
        the model's device; `IGNORE` in the truth for void.

    Raises:
        ValueError: the model's number of classes is not that of the frames' scheme.
    """
    num_classes = model.config["num_classes"]
    if num_classes != frames.scheme.num_classes:
        raise ValueError(
            f"the model has {num_classes} classes, the scheme {frames.scheme.name!r} has {frames.scheme.num_classes}: "
            "prepare the frames with the scheme of the checkpoint"
        )
    device = next(model.parameters()).device
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    step = batch_size or frames_per_batch(size, frames)
    with progress_bar(total=len(frames), desc=progress, unit="frame", disable=not progress) as bar:
        for start in range(0, len(frames), step):
            where = slice(start, min(start + step, len(frames)))
            photos, truth = frames.batch(where, device)
            yield where, predict_classes(model, photos, size, flip), truth
            bar.update(len(photos))


def evaluate(
    model: UNet,
    frames: Frames,
    image_size: Size,
    batch_size: int | None = None,
    flip: bool = False,
    progress: str = "",
) -> list[ConfusionMatrix]:
    """Return one confusion matrix per frame, at the resolution of the labels (256x256 for pairs).

    The score of the set is that of `ConfusionMatrix.total(...)` of them. Arguments and errors as in
    `predict_frames`."""
    matrices: list[ConfusionMatrix] = []
    for _, predicted, truth in predict_frames(
        model, frames, image_size, flip, progress, batch_size
    ):
        matrices += frame_matrices(predicted, truth, frames.scheme.num_classes)
    return matrices


def score(
    model: UNet, frames: Frames, scene_size: tuple[int, int], processes: SingleProcess | None = None
) -> ConfusionMatrix:
    """Return the confusion matrix of all frames; each process predicts a part of the batches."""
    processes = processes or SingleProcess()
    batch_size = frames_per_batch(scene_size, frames)
    part = frames.part(processes.part(len(frames), batch_size))
    result = ConfusionMatrix(frames.scheme.num_classes)
    for _, predicted, truth in predict_frames(model, part, scene_size, batch_size=batch_size):
        result.update(predicted, truth)
    result.matrix = processes.sum(result.matrix.to(next(model.parameters()).device))
    return result


def frame_matrices(
    predicted: Tensor | np.ndarray, truth: Tensor | np.ndarray, num_classes: int
) -> list[ConfusionMatrix]:
    """Return one confusion matrix per frame of class indices `uint8 [N, H, W]`."""
    matrices = [ConfusionMatrix(num_classes) for _ in range(len(truth))]
    for matrix, found, true in zip(matrices, predicted, truth, strict=True):
        matrix.update(found, true)
    return matrices


def collect_predictions(
    model: UNet, frames: Frames, image_size: Size, flip: bool = False, progress: str = ""
) -> tuple[np.ndarray, np.ndarray]:
    """Return predicted and true classes of all frames, `uint8 [N, H, W]` each; arguments as in
    `predict_frames`."""
    predicted = np.empty(tuple(frames.label_ids.shape), dtype=np.uint8)
    truth = np.empty_like(predicted)
    for where, found, true in predict_frames(model, frames, image_size, flip, progress):
        predicted[where], truth[where] = found.cpu().numpy(), true.cpu().numpy()
    return predicted, truth
