"""A trained model put to use: load it, predict, score it on a split."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unet_utils.augment import to_input
from unet_utils.checkpoints import read_checkpoint
from unet_utils.classes import ClassScheme
from unet_utils.dataset import Frames
from unet_utils.metrics import ConfusionMatrix
from unet_utils.model import UNet, autocast
from unet_utils.platform.environment import progress_bar

SMALL_MODEL = Path(__file__).parent / "weights" / "small.pt"
"""Trained on the real pairs with the CPU recipe, shipped by scripts/ship_model.py; scores and history lie beside it."""


@dataclass(frozen=True)
class Trained:
    """A model read from a checkpoint, with all that is needed to use it.

    Attributes:
        model: in evaluation mode, on the device.
        scheme: the classes it learned.
        config: the settings it was trained with, plain values.
        history: one row an epoch, plain values.
    """

    model: UNet
    scheme: ClassScheme
    config: dict
    history: list[dict]

    @property
    def scene_size(self) -> tuple[int, int]:
        """Height and width at which the network sees a whole street scene, pixels: a square for pairs."""
        size = self.config["image_size"]
        return tuple(self.config.get("scene_size", (size, size)))


def load_trained(path: str | Path, device: torch.device | str, scheme: str | None = None) -> Trained:
    """Loads a model to use.

    Args:
        path: `best.pt` or `last.pt` of a run.
        device: where the model goes.
        scheme: name of the class scheme that the caller expects, None for whichever the model has.

    Raises:
        FileNotFoundError, ValueError: as `read_checkpoint`; or the model has learned another class scheme.
    """
    checkpoint = read_checkpoint(path)
    learned = ClassScheme.from_dict(checkpoint["scheme"])
    if scheme and scheme != learned.name:
        raise ValueError(
            f"{path} has learned the class scheme {learned.name!r}, not {scheme!r}: "
            f"set the scheme to {learned.name!r}, or train a model for {scheme!r}"
        )
    model = UNet(**checkpoint["model_config"])
    model.load_state_dict(checkpoint["averaged"] if "averaged" in checkpoint else checkpoint["model"])
    model.to(device, memory_format=torch.channels_last).eval()
    return Trained(model, learned, checkpoint["config"], checkpoint["history"])


def find_checkpoint(run: str | Path) -> Path:
    """The best checkpoint of a run, or that of the small model that comes with the project, and says so.

    Args:
        run: folder of the run.

    Returns:
        Where the file is, or where it should be if there is neither.
    """
    best = Path(run) / "best.pt"
    if best.exists() or not SMALL_MODEL.exists():
        return best  # where there is none, reading it says what to do
    print(f"No model in {run}: using the small one that comes with the project, {SMALL_MODEL}")
    return SMALL_MODEL


@torch.inference_mode()
def predict(model: UNet, photos: Tensor, image_size: int | tuple[int, int], flip: bool = False) -> Tensor:
    """Class probabilities at the photos' own resolution.

    Args:
        model: in evaluation mode; the photos are sent to its device.
        photos: `uint8 [N, 3, H, W]`, any H and W.
        image_size: height and width that the network sees, pixels: its `Trained.scene_size` for frames of the kind it
            was trained on (one number where both are the same), `photo_size` for any other photo.
        flip: average with the prediction for the mirrored photo; takes twice the time.

    Returns:
        `float32 [N, num_classes, H, W]`, summing to 1 over the classes.
    """
    logits = _logits(model, photos, image_size, flip)
    if logits.shape[2:] != photos.shape[2:]:
        logits = F.interpolate(logits, photos.shape[2:], mode="bilinear", align_corners=False)
    return logits.softmax(1)


@torch.inference_mode()
def predict_classes(model: UNet, photos: Tensor, image_size: int | tuple[int, int], flip: bool = False) -> Tensor:
    """The most probable class of each pixel, `uint8 [N, H, W]`; takes what `predict` takes.

    Fit for photos of any size: the probabilities of a 12-megapixel photo alone would take 0.9 GB.
    """
    return enlarge_classes(_logits(model, photos, image_size, flip), photos.shape[2], photos.shape[3])


def _logits(model: UNet, photos: Tensor, image_size: int | tuple[int, int], flip: bool) -> Tensor:
    device = next(model.parameters()).device
    x = to_input(photos.to(device), image_size).contiguous(memory_format=torch.channels_last)
    with autocast(device):
        logits = model(x)
        if flip:
            logits = (logits + model(x.flip(3)).flip(3)) / 2
    return logits.float()


def enlarge_classes(logits: Tensor, height: int, width: int, most: int = 2**23) -> Tensor:
    """The most probable classes after bilinear enlargement, in strips of rows that need little memory.

    Written so that TorchScript understands it: an exported model holds this very function.

    Args:
        logits: `float32 [N, C, h, w]`.
        height, width: of the result, pixels.
        most: values (of 4 bytes) that a strip may have.

    Returns:
        `uint8 [N, height, width]`, the `argmax(1)` of `F.interpolate(..., mode="bilinear", align_corners=False)`.
    """
    n, c, h = logits.shape[0], logits.shape[1], logits.shape[2]
    if h == height and logits.shape[3] == width:
        return logits.argmax(1).byte()
    wide = F.interpolate(logits, [h, width], mode="bilinear", align_corners=False)
    # Where the centre of each row of the result lies among the rows of `wide`, and between which two.
    centers = ((torch.arange(height, device=logits.device) + 0.5) * (h / height) - 0.5).clamp(0, h - 1)
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


def photo_size(height: int, width: int, scene_size: tuple[int, int], divisor: int = 16) -> tuple[int, int]:
    """Height and width at which the network should see a photo of yours, pixels.

    The scenes that it learned from are 2:1, and squeezed to squares in the pairs. Any other photo is squeezed as
    much, whatever its aspect.

    Args:
        height, width: of the photo.
        scene_size: of the network, see `Trained.scene_size`.
        divisor: of the network; the width is rounded to a multiple of it.
    """
    return scene_size[0], max(divisor, round(scene_size[1] * width / height / 2 / divisor) * divisor)


def evaluate(
    model: UNet,
    frames: Frames,
    image_size: int | tuple[int, int],
    batch_size: int = 16,
    flip: bool = False,
    progress: str = "",
) -> list[ConfusionMatrix]:
    """Scores a model: one confusion matrix a frame, at the labels' resolution (256x256).

    The score of the set is that of `ConfusionMatrix.total(...)` of them.

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
    matrices: list[ConfusionMatrix] = []
    with progress_bar(total=len(frames), desc=progress, unit="frame", disable=not progress) as bar:
        for start in range(0, len(frames), batch_size):
            photos, labels = frames.batch(slice(start, start + batch_size), device)
            matrices += compare(predict_classes(model, photos, image_size, flip), labels, num_classes)
            bar.update(len(photos))
    return matrices


def compare(predicted: Tensor | np.ndarray, truth: Tensor | np.ndarray, num_classes: int) -> list[ConfusionMatrix]:
    """One confusion matrix a frame, of class indices `uint8 [N, H, W]` each."""
    matrices = [ConfusionMatrix(num_classes) for _ in predicted]
    for matrix, found, true in zip(matrices, predicted, truth, strict=True):
        matrix.update(found, true)
    return matrices
