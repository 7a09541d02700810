"""Export a trained model to one file that runs without this package.

TorchScript is used although torch calls it deprecated: the `.pt2` file of its successor
`torch.export` can be read by the torch that wrote it and newer ones only, and fixes the sizes of
the photos. A TorchScript file takes photos of any size, from Python and C++. ONNX is for everything
that is not torch."""

import copy
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unet_utils.augment import MEAN, STD
from unet_utils.evaluation import Trained
from unet_utils.images import enlarge_classes
from unet_utils.model import UNet
from unet_utils.platform.files import replacing, user_path


class PhotosToClasses(nn.Module):
    """The content of a TorchScript file: from the pixels of photos to the class of each pixel.

    Args:
        trained: the model to export.

    Attributes:
        names: the name of each class.
        colors: RGB colour of each class, 0 to 255.
        scene_height, scene_width: size at which the network sees a whole scene, pixels.
    """

    names: list[str]
    colors: list[list[int]]
    mean: Tensor
    std: Tensor

    def __init__(self, trained: Trained):
        super().__init__()
        network = _on_cpu(trained.model)
        (self.scene_height, self.scene_width), self.divisor = (
            trained.scene_size,
            int(network.divisor),
        )
        self.names = list(trained.scheme.names)
        self.colors = [list(color) for color in trained.scheme.colors]
        # TorchScript does not support all of Python, so the network is traced. It still takes
        # images of other sizes.
        self.network = torch.jit.trace(
            network, torch.zeros(1, 3, 2 * self.divisor, 2 * self.divisor)
        )
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1) * 255)

    def forward(self, photos: Tensor, squeezed: bool = False) -> Tensor:
        """Return the most probable class of each pixel.

        Args:
            photos: `uint8 [N, 3, H, W]`, RGB, any H and W.
            squeezed: each photo is a whole 2:1 scene squeezed to H x W, like the square photos of
                the pairs.

        Returns:
            class indices, `uint8 [N, H, W]`.
        """
        # The same as `evaluation.photo_size` and `augment.to_input`, in the part of Python that
        # TorchScript supports.
        height, width = photos.shape[2], photos.shape[3]
        high, wide = self.scene_height, self.scene_width
        if not squeezed:
            steps = int(round(self.scene_width * width / height / 2 / self.divisor))  # noqa: RUF046 a float in TorchScript
            wide = min(max(1, steps), 16 * self.scene_height // self.divisor) * self.divisor
        x = photos.float()
        if height != high or width != wide:
            x = F.interpolate(x, [high, wide], mode="bilinear", antialias=True, align_corners=False)
        return enlarge_classes(self.network((x - self.mean) / self.std), height, width)


class ImagesToClasses(nn.Module):
    """The content of an ONNX file: `uint8 [N, 3, H, W]` to `uint8 [N, H, W]`, at the size that the
    network sees."""

    mean: Tensor
    std: Tensor

    def __init__(self, trained: Trained):
        super().__init__()
        self.network = _on_cpu(trained.model)
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1) * 255)

    def forward(self, images: Tensor) -> Tensor:
        """Return the most probable class of each pixel. There is no resizing: ONNX has none with
        antialiasing."""
        return self.network((images.float() - self.mean) / self.std).argmax(1).to(torch.uint8)


def export_model(trained: Trained, path: str | Path) -> Path:
    """Write the model as TorchScript or ONNX; a file of that name is replaced.

    A `.torchscript` file holds a `PhotosToClasses`: photos of any size in, classes at the photo's
    own size out; it resizes and normalizes them itself. It needs torch 2.6 or newer, and nothing
    else:

        model = torch.jit.load("unet.torchscript", map_location="cpu")
        classes = model(photos)  # uint8 [N, 3, H, W] to uint8 [N, H, W]; model.names has the names

    It computes in float32. Where this package uses mixed precision, a few pixels in a thousand
    differ.

    A `.onnx` file holds an `ImagesToClasses`: images in, classes of the same size out. The caller
    resizes the images to the size at which the network sees scenes, or to another height and width
    divisible by the network's divisor.

    Args:
        path: ends in `.torchscript` or `.onnx`; its folder is made if missing.

    Raises:
        ValueError: it ends in something else.
        RuntimeError: ONNX cannot be written, usually because the package `onnx` is missing; the
            message says so.
    """
    path = user_path(path)
    if path.suffix not in (".torchscript", ".onnx"):
        raise ValueError(f"{path}: the name of an exported model ends in .torchscript or .onnx")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as unfinished, torch.no_grad(), warnings.catch_warnings():
        # TorchScript is deprecated, and the check of the image's size is not traced: both are
        # intended.
        warnings.simplefilter("ignore")
        if path.suffix == ".torchscript":
            torch.jit.script(PhotosToClasses(trained).eval()).save(str(unfinished))
        else:
            _write_onnx(trained, unfinished)
    return path


def _write_onnx(trained: Trained, path: Path) -> None:
    try:
        torch.onnx.export(
            ImagesToClasses(trained).eval(),
            (torch.zeros(1, 3, *trained.scene_size, dtype=torch.uint8),),
            str(path),
            input_names=["images"],
            output_names=["classes"],
            dynamic_axes={
                "images": {0: "n", 2: "height", 3: "width"},
                "classes": {0: "n", 1: "height", 2: "width"},
            },
            opset_version=17,
            dynamo=False,  # the newer exporter needs two packages, onnx and onnxscript
        )
    except (ImportError, TypeError, RuntimeError) as error:
        raise RuntimeError(
            f"this torch ({torch.__version__}) cannot write ONNX here ({error}): "
            "install the package onnx (pip install onnx), or export to a .torchscript file"
        ) from error


def _on_cpu(model: UNet) -> UNet:
    # With gradients, in-place operations such as ReLU6 fail in the exported model.
    return copy.deepcopy(model).cpu().float().eval().requires_grad_(False)


def frames_per_second(run: Callable[[Tensor], Tensor], photos: Tensor, seconds: float = 2) -> float:
    """Measure how many photos per second a model segments, until the classes are in the CPU's
    memory.

    Copying the classes to the CPU waits for the GPU. Three rounds before the measurement let the
    model compile, choose its kernels and warm up.

    Args:
        run: turns photos into classes, on any device.
        photos: one batch, as `run` takes it.
        seconds: minimum duration of the measurement.
    """
    for _ in range(3):
        run(photos).cpu()
    count, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        run(photos).cpu()
        count += len(photos)
    return count / elapsed
