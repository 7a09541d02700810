"""Export a trained model to one file that runs without this package.

TorchScript is used although torch calls it deprecated: the `.pt2` file of its successor
`torch.export` can be read by the torch that wrote it and newer ones only, and fixes the sizes of
the photos. A TorchScript file takes photos of any size, from Python and C++. ONNX is for everything
that is not torch."""

import copy
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unet_utils.encoders import MEAN, STD
from unet_utils.evaluation import Trained
from unet_utils.images import enlarge_classes
from unet_utils.platform.files import replacing, user_path


class _Normalized(nn.Module):
    """A network that takes RGB from 0 to 255, in float32 on the CPU."""

    mean: Tensor
    std: Tensor

    def __init__(self, trained: Trained):
        super().__init__()
        # With gradients, in-place operations such as ReLU6 fail in the exported model.
        self.network = copy.deepcopy(trained.model).cpu().float().eval().requires_grad_(False)
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1) * 255)

    def forward(self, x: Tensor) -> Tensor:
        return self.network((x - self.mean) / self.std)


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

    def __init__(self, trained: Trained):
        super().__init__()
        self.scene_height, self.scene_width = trained.scene_size
        self.divisor = int(trained.model.divisor)
        self.squeezes_all = trained.squeezes_all
        self.names = list(trained.scheme.names)
        self.colors = [list(color) for color in trained.scheme.colors]
        # TorchScript does not support all of Python, so the network is traced. It still takes
        # images of other sizes.
        side = 2 * self.divisor
        self.network = torch.jit.trace(_Normalized(trained), torch.zeros(1, 3, side, side))

    def forward(self, photos: Tensor, squeezed: bool = False) -> Tensor:
        """Return the most probable class of each pixel.

        Args:
            photos: `uint8 [N, 3, H, W]`, RGB, any H and W.
            squeezed: each photo is a whole 2:1 scene squeezed to H x W, like the square photos of
                the pairs. A model of own data squeezes all photos to one size, whatever this says.

        Returns:
            class indices, `uint8 [N, H, W]`.
        """
        # The same as `images.photo_size` and `images.resize`, in the part of Python that
        # TorchScript supports.
        height, width = photos.shape[2], photos.shape[3]
        high, wide = self.scene_height, self.scene_width
        if not squeezed and not self.squeezes_all:
            steps = int(round(self.scene_width * width / height / 2 / self.divisor))  # noqa: RUF046 a float in TorchScript
            wide = min(max(1, steps), 16 * self.scene_height // self.divisor) * self.divisor
        x = photos.float()
        if height != high or width != wide:
            x = F.interpolate(x, [high, wide], mode="bilinear", antialias=True, align_corners=False)
        return enlarge_classes(self.network(x), height, width)


class ImagesToClasses(nn.Module):
    """The content of an ONNX file for images of any size: `uint8 [N, 3, H, W]` to `uint8 [N, H,
    W]`. There is no resizing: ONNX has none with antialiasing."""

    def __init__(self, trained: Trained):
        super().__init__()
        self.network = _Normalized(trained)
        self.divisor = trained.model.divisor

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        # The network halves the image several times: its sides must be multiples of this.
        right = -width % self.divisor
        below = -height % self.divisor
        x = F.pad(images.float(), (0, right, 0, below), mode="replicate")
        return self.network(x)[:, :, :height, :width].argmax(1).to(torch.uint8)


class PhotoOfOneSize(nn.Module):
    """The content of an ONNX file for photos of one size: `float32 [1, 3, H, W]`, RGB from 0 to
    255, to `int32 [1, H, W]`, in operations that simple programs know."""

    def __init__(self, trained: Trained, height: int, width: int):
        super().__init__()
        self.network = _Normalized(trained)
        self.shape = (1, height, width)
        high, wide = trained.photo_size(height, width)
        # Resizing is linear: a matrix for the rows and one for the columns do it.
        self.squeeze = _resizing(height, high, True), _resizing(width, wide, True)
        self.enlarge = _resizing(high, height, False), _resizing(wide, width, False)

    def forward(self, photo: Tensor) -> Tensor:
        logits = _resized(self.network(_resized(photo, *self.squeeze)), *self.enlarge)
        return logits.argmax(1).int().reshape(self.shape)


def _resizing(before: int, after: int, antialias: bool) -> Tensor:
    """Return the matrix `float32 [before, after]` that resizes a row of pixels."""
    pixels = torch.eye(before)[None]
    if antialias:  # of images only: here each of its rows is a pixel
        return F.interpolate(pixels[None], (before, after), mode="bilinear", antialias=True)[0, 0]
    return F.interpolate(pixels, after, mode="linear", align_corners=False)[0]


def _resized(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    return ((x @ columns).transpose(2, 3) @ rows).transpose(2, 3)


def export_model(trained: Trained, path: str | Path, size: tuple[int, int] | None = None) -> Path:
    """Write the model as TorchScript or ONNX; a file of that name is replaced.

    A `.torchscript` file holds a `PhotosToClasses`: photos of any size in, classes at the photo's
    own size out; it resizes and normalizes them itself. It needs torch 2.6 or newer, and nothing
    else:

        model = torch.jit.load("unet.torchscript", map_location="cpu")
        classes = model(photos)  # uint8 [N, 3, H, W] to uint8 [N, H, W]; model.names has the names

    It computes in float32. Where this package uses mixed precision, a few pixels in a thousand
    differ.

    A `.onnx` file holds an `ImagesToClasses`: images in, classes of the same size out. The caller
    resizes the images to the size at which the network sees scenes. With `size` it holds a
    `PhotoOfOneSize` instead, which resizes them itself, and OpenCV can read it:

        net = cv2.dnn.readNet("unet.onnx")
        net.setInput(cv2.dnn.blobFromImage(frame, size=(width, height), swapRB=True))
        classes = net.forward()[0].astype("uint8")  # [height, width]

    The metadata of an ONNX file, and the extra files in a TorchScript file, are the texts `names`
    and `colors` of the classes (JSON), `size` (WIDTHxHEIGHT), `resize` (what to do with a photo)
    and, if the weights have terms, `licence`.

    Args:
        trained: the model.
        path: ends in `.torchscript` or `.onnx`; its folder is made if missing.
        size: height and width of the photos, for ONNX.

    Raises:
        ValueError: it ends in something else, or has a size although it is no ONNX file.
        RuntimeError: ONNX cannot be written, usually because the package `onnx` is missing; the
            message says so.
    """
    path = user_path(path)
    if path.suffix not in (".torchscript", ".onnx"):
        raise ValueError(f"{path}: the name of an exported model ends in .torchscript or .onnx")
    if size and path.suffix != ".onnx":
        raise ValueError(f"{path} takes photos of any size: leave the size out, or write .onnx")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as unfinished, torch.no_grad(), warnings.catch_warnings():
        # TorchScript is deprecated, and the check of the image's size is not traced: both are
        # intended.
        warnings.simplefilter("ignore")
        if path.suffix == ".onnx":
            _write_onnx(trained, unfinished, size)
        else:
            resize = "not needed: photos of any size"
            module = torch.jit.script(PhotosToClasses(trained).eval())
            module.save(str(unfinished), _extra_files=_metadata(trained, None, resize))
    return path


def _metadata(trained: Trained, size: tuple[int, int] | None, resize: str) -> dict[str, str]:
    height, width = size or trained.scene_size
    metadata = {
        "names": json.dumps(trained.scheme.names),
        "colors": json.dumps(trained.scheme.colors),
        "size": f"{width}x{height}",
        "resize": resize,
    }
    if trained.licence:
        metadata["licence"] = trained.licence
    return metadata


def _write_onnx(trained: Trained, path: Path, size: tuple[int, int] | None) -> None:
    if size:
        module: nn.Module = PhotoOfOneSize(trained, *size)
        images = torch.zeros(1, 3, *size)
        axes = {}
        resize = "to this size, RGB from 0 to 255; the rest is in the file"
    else:
        module = ImagesToClasses(trained)
        images = torch.zeros(1, 3, *trained.scene_size, dtype=torch.uint8)
        axes = {
            "images": {0: "n", 2: "height", 3: "width"},
            "classes": {0: "n", 1: "height", 2: "width"},
        }
        resize = (
            "a street scene twice as wide as high to this size, others to this height and a width "
            "of (width of this size) * (width / height of the photo) / 2, with averaging"
        )
        if trained.squeezes_all:
            resize = "any photo to this size, with averaging"
    try:
        import onnx

        torch.onnx.export(
            module.eval(),
            (images,),
            str(path),
            input_names=["images"],
            output_names=["classes"],
            dynamic_axes=axes,
            opset_version=17,
            dynamo=False,  # the newer exporter needs two packages, onnx and onnxscript
        )
        model = onnx.load(path)
        onnx.helper.set_model_props(model, _metadata(trained, size, resize))
        onnx.save(model, path)
    except (ImportError, TypeError, RuntimeError) as error:
        raise RuntimeError(
            f"this torch ({torch.__version__}) cannot write ONNX here ({error}): "
            "install the package onnx (pip install onnx), or export to a .torchscript file"
        ) from error


def frames_per_second(run: Callable[[Tensor], Tensor], photos: Tensor, seconds: float = 2) -> float:
    """Measure how many photos per second a model segments, until the classes are in the CPU's
    memory.

    Args:
        run: turns photos into classes, on any device.
        photos: one batch, as `run` takes it.
        seconds: minimum duration of the measurement.
    """
    for _ in range(3):  # let the model compile, choose its kernels and warm up
        run(photos).cpu()
    count = 0
    start = time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        run(photos).cpu()  # copying to the CPU waits for the GPU
        count += len(photos)
    return count / elapsed
