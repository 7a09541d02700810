"""A trained model in one file that runs without this package.

The file is TorchScript, although torch calls that deprecated. Its successor, the `.pt2` file of `torch.export`, can be
read by the torch that wrote it and by newer ones, not by older ones, and it fixes which sizes of photos may come. A
TorchScript file takes photos of any size, from Python or C++. ONNX is for everything that is not torch.
"""

import copy
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unet_utils.augment import MEAN, STD
from unet_utils.evaluation import Trained, enlarge_classes
from unet_utils.platform.environment import beside


class PhotosToClasses(nn.Module):
    """What the TorchScript file holds: everything from the pixels of photos to the classes of the pixels.

    Args:
        trained: the model to take along.

    Attributes:
        names: the name of each class.
        colors: RGB colour of each class, 0 to 255.
        scene_height, scene_width: at which the network sees a whole scene, pixels.
    """

    names: list[str]
    colors: list[list[int]]

    def __init__(self, trained: Trained):
        super().__init__()
        network = _on_cpu(trained.model)
        (self.scene_height, self.scene_width), self.divisor = trained.scene_size, int(network.divisor)
        self.names = list(trained.scheme.names)
        self.colors = [list(color) for color in trained.scheme.colors[: len(self.names)]]
        # Traced, because TorchScript does not understand all of Python; it then takes other sizes than the example's.
        self.network = torch.jit.trace(network, torch.zeros(1, 3, 2 * self.divisor, 2 * self.divisor))
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1) * 255)

    def forward(self, photos: Tensor, squeezed: bool = False) -> Tensor:
        """The most probable class of each pixel.

        Args:
            photos: `uint8 [N, 3, H, W]`, RGB, any H and W.
            squeezed: they show whole 2:1 scenes in any shape, as the square photos of the pairs do.

        Returns:
            class indices, `uint8 [N, H, W]`.
        """
        # As `augment.to_input` and `evaluation.photo_size`, in words that TorchScript knows.
        height, width = photos.shape[2], photos.shape[3]
        high, wide = self.scene_height, self.scene_width
        if not squeezed:
            steps = int(round(self.scene_width * width / height / 2 / self.divisor))  # noqa: RUF046 a float in TorchScript
            wide = max(self.divisor, steps * self.divisor)
        x = photos.float()
        if height != high or width != wide:
            x = F.interpolate(x, [high, wide], mode="bilinear", antialias=True, align_corners=False)
        return enlarge_classes(self.network((x - self.mean) / self.std), height, width)


class ImagesToClasses(nn.Module):
    """What the ONNX file holds: `uint8 [N, 3, H, W]` to `uint8 [N, H, W]`, at the size that the network sees."""

    def __init__(self, trained: Trained):
        super().__init__()
        self.network = _on_cpu(trained.model)
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1) * 255)

    def forward(self, images: Tensor) -> Tensor:
        """No resizing: torch's, with antialiasing, cannot be said in ONNX."""
        return self.network((images.float() - self.mean) / self.std).argmax(1).to(torch.uint8)


def export_model(trained: Trained, path: str | Path) -> Path:
    """Writes the model as TorchScript or as ONNX; a file of that name is replaced.

    A `.torchscript` file holds a `PhotosToClasses`: photos of any size in, resized, normalised, segmented, classes at
    the photo's own size out. It needs torch 2.6 or newer, and nothing else:

        model = torch.jit.load("unet.torchscript", map_location="cpu")
        classes = model(photos)  # uint8 [N, 3, H, W] to uint8 [N, H, W]; model.names has the names

    It computes in float32. Where this package takes mixed precision, a few pixels in a thousand differ.

    A `.onnx` file holds an `ImagesToClasses`: images of the size at which the network sees scenes in (or another whose
    height and width its divisor divides), classes at that size out. Resizing stays with the caller.

    Args:
        path: ends in `.torchscript` or `.onnx`; its folder is made if missing.

    Raises:
        ValueError: it ends in something else.
        RuntimeError: ONNX cannot be written here, usually because the `onnx` package is missing; the message says so.
    """
    path = Path(path)
    if path.suffix not in (".torchscript", ".onnx"):
        raise ValueError(f"{path}: the name of an exported model ends in .torchscript or .onnx")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = beside(path)
    with torch.no_grad(), warnings.catch_warnings():
        # That TorchScript is deprecated, and that the check of the image's size is not traced: both are meant so.
        warnings.simplefilter("ignore")
        if path.suffix == ".torchscript":
            torch.jit.script(PhotosToClasses(trained).eval()).save(str(unfinished))
        else:
            _write_onnx(trained, unfinished)
    os.replace(unfinished, path)
    return path


def _write_onnx(trained: Trained, path: Path) -> None:
    try:
        torch.onnx.export(
            ImagesToClasses(trained).eval(),
            (torch.zeros(1, 3, *trained.scene_size, dtype=torch.uint8),),
            str(path),
            input_names=["images"],
            output_names=["classes"],
            dynamic_axes={"images": {0: "n", 2: "height", 3: "width"}, "classes": {0: "n", 1: "height", 2: "width"}},
            opset_version=17,
            dynamo=False,  # the newer exporter needs two packages, onnx and onnxscript
        )
    except (ImportError, TypeError, RuntimeError) as error:
        raise RuntimeError(
            f"this torch ({torch.__version__}) cannot write ONNX here ({error}): "
            "install the package onnx (pip install onnx), or export to a .torchscript file"
        ) from error


def _on_cpu(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).cpu().float().eval()


def frames_per_second(run: Callable[[Tensor], Tensor], photos: Tensor, seconds: float = 2) -> float:
    """Measures how many photos a second a model gets through, from the pixels to classes on the CPU.

    Waiting for the classes makes the clock stop only when a GPU is done, too. Three rounds before the clock starts let
    it compile, choose its kernels and warm up.

    Args:
        run: turns photos into classes on any device.
        photos: one batch, as `run` takes it.
        seconds: so long it is measured, at least.
    """
    for _ in range(3):
        run(photos).cpu()
    count, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        run(photos).cpu()
        count += len(photos)
    return count / elapsed
