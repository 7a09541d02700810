"""An exported network that computes with whole numbers of 8 bits: smaller and faster, a little less
exact. ONNX Runtime does it, from what the numbers in the network are for some photos."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unet_utils.evaluation import Trained
from unet_utils.frames import Frames
from unet_utils.images import resize
from unet_utils.metrics import ConfusionMatrix
from unet_utils.platform.files import replacing, user_path
from unet_utils.use.export import export_model

OPERATIONS = ["Conv", "Add", "Concat", "Clip", "Relu", "MaxPool"]
"""Those that ONNX Runtime computes in 8 bits on a CPU, and that a network mostly consists of."""
CALIBRATION = 32
"""Frames to learn the range of the numbers from."""
SCORED = 100
"""Frames to score, at most."""
TIMED = 20


def export_int8(
    trained: Trained,
    path: str | Path,
    calibration: Frames,
    val: Frames,
    size: tuple[int, int] | None = None,
) -> str:
    """Write the model as ONNX in 8 bits, and measure what that costs.

    Args:
        trained: the model.
        path: ends in `.onnx`; replaced if there is such a file. Its folder is made if missing.
        calibration: frames whose photos the file is made for: those it learned from.
        val: frames with the model's classes, to score it on; at most `SCORED` are used.
        size: height and width of the photos, as in `export_model`.

    Returns:
        One line: size of the file, milliseconds of CPU time for a photo on one thread, and mIoU,
        each beside that of the same file in 32 bits.

    Raises:
        ValueError, RuntimeError: as `check_int8`.
    """
    path = check_int8(path)
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        floats = export_model(trained, Path(folder) / "floats.onnx", size)
        ready = Path(folder) / "ready.onnx"
        quant_pre_process(floats, ready, skip_symbolic_shape=True)
        with replacing(path) as unfinished:
            quantization.quantize_static(
                ready,
                unfinished,
                _Photos(trained, calibration, size),
                op_types_to_quantize=OPERATIONS,
                nodes_to_exclude=_resizing_nodes(ready),
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
            )
        before = _measure(trained, floats, val, size)
        after = _measure(trained, path, val, size)
    return (
        f"8 bits instead of 32: {after[0]:.1f} MB (was {before[0]:.1f}), {after[1]:.0f} ms of one "
        f"thread for a photo (was {before[1]:.0f}), mIoU {after[2]:.3f} (was {before[2]:.3f}) on "
        f"{min(SCORED, len(val))} validation frames"
    )


def check_int8(path: str | Path) -> Path:
    """Check that a file in 8 bits can be written, before frames are prepared for it; return its
    path.

    Raises:
        ValueError: the path does not end in `.onnx`.
        RuntimeError: the packages `onnx` and `onnxruntime` are not there.
    """
    path = user_path(path)
    if path.suffix != ".onnx":
        raise ValueError(f"{path}: only ONNX has 8 bits, write a name that ends in .onnx")
    try:
        from onnxruntime import quantization  # noqa: F401
    except ImportError as error:
        raise RuntimeError(
            f"8 bits need a package more ({error}): pip install onnx onnxruntime"
        ) from error
    return path


class _Photos:
    """What ONNX Runtime reads to calibrate: the inputs of one photo after another, then None."""

    def __init__(self, trained: Trained, frames: Frames, size: tuple[int, int] | None):
        self.inputs = (x for x, _ in _inputs(trained, frames, size, CALIBRATION))

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.inputs, None)


def _inputs(
    trained: Trained, frames: Frames, size: tuple[int, int] | None, most: int
) -> Iterator[tuple[dict[str, np.ndarray], Tensor]]:
    """Yield the input of the file for evenly spaced frames, and their classes `uint8 [1, H, W]`."""
    for index in frames.spread(most):
        photos, truth = frames.batch(index[None], "cpu")
        height, width = photos.shape[2:]
        # The pairs hold scenes that were twice as wide as high, and squeezed.
        shape = size or (height, width if trained.squeezes_all else 2 * height)
        pixels = resize(photos, shape)
        yield {"images": (pixels if size else pixels.round().byte()).numpy()}, truth


def _resizing_nodes(path: Path) -> list[str]:
    """Return the names of the convolutions that resize, see `PhotoOfOneSize`: they stay exact."""
    import onnx

    nodes = onnx.load(path).graph.node
    weights = ("rows.weight", "columns.weight")
    return [node.name for node in nodes if any(name in weights for name in node.input)]


def _measure(
    trained: Trained, path: Path, frames: Frames, size: tuple[int, int] | None
) -> tuple[float, float, float]:
    """Return MB of a file, milliseconds of CPU time for a photo on one thread, and mIoU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    matrix = ConfusionMatrix(trained.scheme.num_classes)
    for inputs, truth in _inputs(trained, frames, size, SCORED):
        (classes,) = session.run(["classes"], inputs)
        found = torch.nn.functional.interpolate(
            torch.from_numpy(classes)[None].byte(), truth.shape[1:], mode="nearest-exact"
        )
        matrix.update(found[0], truth)
    # CPU time, because another program may be busy. The first calls were slower.
    start = time.thread_time()
    for _ in range(TIMED):
        session.run(["classes"], inputs)
    milliseconds = 1000 * (time.thread_time() - start) / TIMED
    return path.stat().st_size / 2**20, milliseconds, matrix.mean_iou
