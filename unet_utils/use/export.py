"""Export a trained model to one file that runs without this package.

ONNX runs everywhere: browsers, phones, small computers. It needs one package more, to write it.
TorchScript needs none, and torch to run; torch calls it deprecated, but the `.pt2` file of its
successor fixes the sizes of the photos, and older versions of torch cannot read it."""

import importlib.util
import io
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
from unet_utils.images import enlarge_classes, photo_size
from unet_utils.platform.files import replacing, user_path
from unet_utils.use.convolutions import PixelsToLogits
from unet_utils.use.onnx_file import write_onnx

ONNX_ADVICE = "install the package onnx (pip install onnx)"


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
        self.network = torch.jit.trace(PixelsToLogits(trained), torch.zeros(1, 3, side, side))

    def forward(self, photos: Tensor, squeezed: bool = False) -> Tensor:
        """Return the most probable class of each pixel.

        Args:
            photos: `uint8 [N, 3, H, W]`, RGB, any H and W.
            squeezed: each photo is a whole 2:1 scene squeezed to H x W, like the square photos of
                the pairs. A model of own data squeezes all photos to one size, whatever this says.

        Returns:
            class indices, `uint8 [N, H, W]`.
        """
        height, width = photos.shape[2], photos.shape[3]
        high, wide = self.scene_height, self.scene_width
        if not squeezed and not self.squeezes_all:
            wide = photo_size(height, width, (high, wide), self.divisor)[1]
        x = photos.float()  # `images.resize`, in the part of Python that TorchScript supports
        if height != high or width != wide:
            x = F.interpolate(x, [high, wide], mode="bilinear", antialias=True, align_corners=False)
        return enlarge_classes(self.network(x), height, width)


def export_model(
    trained: Trained,
    path: str | Path,
    size: tuple[int, int] | None = None,
    logits: bool = False,
) -> Path:
    """Write the model as ONNX or TorchScript; a file of that name is replaced.

    A `.onnx` file takes photos of any size and gives classes at their own size; it resizes and
    normalizes them itself:

        session = onnxruntime.InferenceSession("unet.onnx")
        (classes,) = session.run(["classes"], {"images": photos})

    `photos` is `uint8 [N, 3, H, W]`, RGB, and `classes` is `uint8 [N, H, W]`. With `size`, the file
    takes one photo of this size, `float32 [1, 3, H, W]` from 0 to 255, gives `int32 [1, H, W]`, and
    has only operations that OpenCV and small runtimes know, too:

        net = cv2.dnn.readNet("unet.onnx")
        net.setInput(cv2.dnn.blobFromImage(frame, size=(width, height), swapRB=True))
        classes = net.forward()[0].astype("uint8")  # [height, width]

    A `.torchscript` file holds a `PhotosToClasses`. It needs torch 2.6 or newer, and nothing else:

        model = torch.jit.load("unet.torchscript", map_location="cpu")
        classes = model(photos)  # model.names has the names

    All compute in float32. Where this package uses mixed precision, a few pixels in a thousand
    differ.

    The metadata of an ONNX file, and the extra files in a TorchScript file, are texts: `names` and
    `colors` of the classes (JSON), `size` (WIDTHxHEIGHT), `resize` (what to do with a photo),
    `normalization` (JSON), `made_by` (JSON: what made the model, and its hash), and `temperature`
    and `licence` if the model has them.

    Args:
        trained: the model.
        path: ends in `.onnx` or `.torchscript`; its folder is made if missing.
        size: height and width of the photos, for ONNX.
        logits: for ONNX: give the logits of the network, at its own size, in the place of classes:
            `logits`, `float32 [N, C s s, h / s, w / s]`. The metadata `block` is s. Where it is
            more than 1, channel `(c s + y) s + x` is class c at pixel (y, x) of a block of s x s
            pixels: some runtimes do not know the step that puts them there.

    Raises:
        ValueError: it ends in something else, or has a size or logits although it is no ONNX file.
        RuntimeError: ONNX cannot be written, usually because the package `onnx` is missing; the
            message says so.
    """
    path = user_path(path)
    if path.suffix not in (".torchscript", ".onnx"):
        raise ValueError(f"{path}: the name of an exported model ends in .torchscript or .onnx")
    if (size or logits) and path.suffix != ".onnx":
        raise ValueError(
            f"{path} takes photos of any size and gives classes: leave size and logits out, or "
            "write .onnx"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = _metadata(trained, size)
    with replacing(path) as unfinished, torch.no_grad(), warnings.catch_warnings():
        # TorchScript is deprecated, and the check of the image's size is not traced: both are
        # intended.
        warnings.simplefilter("ignore")
        if path.suffix == ".torchscript":
            module = torch.jit.script(PhotosToClasses(trained).eval())
            content = io.BytesIO()  # Python says what a full disk is, torch does not
            torch.jit.save(module, content, _extra_files=metadata)
            unfinished.write_bytes(content.getbuffer())
            return path
        try:
            write_onnx(trained, unfinished, size, logits, metadata)
        except (ImportError, TypeError, RuntimeError) as error:
            advice = f"{ONNX_ADVICE}, or " if isinstance(error, ImportError) else ""
            raise RuntimeError(
                f"this torch ({torch.__version__}) cannot write ONNX here ({error}): "
                f"{advice}export to a .torchscript file"
            ) from error
    return path


def open_exported(path: str | Path) -> Callable[[Tensor], Tensor]:
    """Return a function from photos `uint8 [N, 3, H, W]` of any size to classes `uint8 [N, H, W]`
    that runs an exported file on the CPU.

    Args:
        path: a file of `export_model`, without a fixed size.

    Raises:
        RuntimeError: it is ONNX, and the package `onnxruntime` is not there.
    """
    path = user_path(path)
    if path.suffix == ".torchscript":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch calls TorchScript deprecated
            return torch.jit.load(path, map_location="cpu")
    try:
        import onnxruntime
    except ImportError as error:
        raise RuntimeError(
            f"to run {path}, install the package onnxruntime (pip install onnxruntime)"
        ) from error
    session = onnxruntime.InferenceSession(path)

    def run(photos: Tensor) -> Tensor:
        (classes,) = session.run(["classes"], {"images": photos.contiguous().numpy()})
        return torch.from_numpy(classes)

    return run


def default_name() -> str:
    """Return `unet.onnx` where the package `onnx` is there; elsewhere `unet.torchscript`, and print
    what is missing."""
    if importlib.util.find_spec("onnx"):
        return "unet.onnx"
    print(f"TorchScript, which needs torch to run. For ONNX, which does not: {ONNX_ADVICE}")
    return "unet.torchscript"


def _metadata(trained: Trained, size: tuple[int, int] | None) -> dict[str, str]:
    height, width = size or trained.scene_size
    metadata = {
        "names": json.dumps(trained.scheme.names),
        "colors": json.dumps(trained.scheme.colors),
        "size": f"{width}x{height}",
        "resize": "photos to this size" if size else "not needed: photos of any size",
        "normalization": json.dumps({"in the file": True, "mean": MEAN, "std": STD}),
        "made_by": json.dumps(trained.made_by),
    }
    if trained.temperature:
        metadata["temperature"] = f"{trained.temperature:.4f}"
    if trained.licence:
        metadata["licence"] = trained.licence
    return metadata


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
