"""Write a network as an ONNX file that takes photos and gives classes.

torch writes the network. The resizing of photos of any size needs averaging, which not every torch
can write: it is put before and behind the network in ONNX's own notation."""

import importlib.util
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unet_utils.evaluation import Trained
from unet_utils.use.convolutions import PixelsToLogits

OPSET = 18
"""The first version of ONNX's operations that resizes with averaging."""
IR_VERSION = 8
"""Of the file format: old enough for runtimes of 2021."""


class PhotoOfOneSize(nn.Module):
    """The content of an ONNX file for photos of one size: `float32 [1, 3, H, W]`, RGB from 0 to
    255, to `int32 [1, H, W]`, in operations that simple runtimes know.

    Args:
        trained: the model.
        height, width: of the photos.
        logits: give the network's logits instead, see `PixelsToLogits`.
    """

    def __init__(self, trained: Trained, height: int, width: int, logits: bool):
        super().__init__()
        self.network = PixelsToLogits(trained, shuffle=not logits)
        self.logits = logits
        self.size = (height, width)
        self.network_size = trained.photo_size(height, width)
        high, wide = self.network_size
        self.rows = _averaging(height, high)
        self.columns = _averaging(width, wide)

    def forward(self, photo: Tensor) -> Tensor:
        # Channels of a 1x1 convolution can be anything: here they are rows, then columns.
        x = photo
        if self.rows:
            x = self.rows(x.transpose(1, 2)).transpose(1, 2)
        if self.columns:
            x = self.columns(x.transpose(1, 3)).transpose(1, 3)
        if x.shape[2:] != self.network_size:
            x = F.interpolate(x, self.network_size, mode="bilinear", align_corners=False)
        x = self.network(x)
        if self.logits:
            return x
        if x.shape[2:] != self.size:
            x = F.interpolate(x, self.size, mode="bilinear", align_corners=False)
        return x.argmax(1).int().reshape(1, *self.size)


def _averaging(before: int, after: int) -> nn.Conv2d | None:
    """Return a 1x1 convolution that reduces a row of pixels, given as channels, as `images.resize`
    does; None if there is nothing to reduce.

    OpenCV reads ONNX's resizing with averaging, and leaves the averaging out.
    """
    if after >= before:
        return None
    # Each row of a unit matrix is a picture in which one pixel is white.
    pixels = torch.eye(before)[None, None]
    weight = F.interpolate(pixels, (before, after), mode="bilinear", antialias=True)[0, 0].T
    conv = nn.Conv2d(before, after, 1, bias=False).requires_grad_(False)
    conv.weight.copy_(weight[:, :, None, None])
    return conv


def write_onnx(
    trained: Trained,
    path: Path,
    size: tuple[int, int] | None,
    logits: bool,
    metadata: dict[str, str],
) -> None:
    """Write a file as `export.export_model` describes it.

    Raises:
        ImportError: there is no package `onnx`.
    """
    import onnx

    output = "logits" if logits else "classes"
    if size:
        module = PhotoOfOneSize(trained, *size, logits)
        network = module.network
        _write_module(module, torch.zeros(1, 3, *size), path, ("images", output))
        model = onnx.load(path)
    else:
        network = PixelsToLogits(trained, shuffle=not logits)
        pixels = torch.zeros(2, 3, *trained.scene_size)
        _write_module(network, pixels, path, ("pixels", "logits"), trained.model.divisor)
        model = _with_resizing(onnx.load(path), trained, logits)
    if logits:
        metadata = metadata | {"block": str(network.block)}
    model.ir_version = IR_VERSION
    del model.opset_import[1:]  # merged files name their common version once each
    onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def has_current_exporter() -> bool:
    """Return whether torch's current exporter is usable; else its older one is used, which needs no
    package more."""
    # In torch 2.6 the current one fails where a network of somebody else resizes its features.
    is_new = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 11)
    return is_new and importlib.util.find_spec("onnxscript") is not None


def _write_module(
    module: nn.Module,
    example: Tensor,
    path: Path,
    names: tuple[str, str],
    divisor: int | None = None,
) -> None:
    """Let torch write a module.

    Args:
        module: with one input and one output.
        example: an input, `float32 [N, 3, h, w]`.
        path: of the file.
        names: of input and output.
        divisor: N and w may be others than in the example, w a multiple of this; None fixes both.
    """
    options: dict[str, Any]
    if has_current_exporter():
        options = {"dynamo": True, "external_data": False, "verbose": False}
        if divisor:
            n = torch.export.Dim("n")
            wide = divisor * torch.export.Dim("steps")
            options["dynamic_shapes"] = ({0: n, 3: wide},)
    else:
        options = {"dynamo": False}
        if divisor:
            options["dynamic_axes"] = {name: {0: "n", 3: "wide"} for name in names}
    torch.onnx.export(
        module.eval(),
        (example,),
        str(path),
        input_names=[names[0]],
        output_names=[names[1]],
        opset_version=OPSET,
        **options,
    )


def _with_resizing(network: Any, trained: Trained, logits: bool) -> Any:
    """Return the file of a network with the resizing of photos of any size around it.

    Args:
        network: `onnx.ModelProto` from `pixels` to `logits`.
        trained: the model.
        logits: leave the enlargement and the choice of the best class out.
    """
    from onnx import compose, parser

    network.ir_version = IR_VERSION
    before = parser.parse_model(_before(trained))
    whole = compose.merge_models(
        before, network, [("seen", "pixels")], outputs=["logits"] if logits else None
    )
    if logits:
        return whole
    after = parser.parse_model(AFTER)
    return compose.merge_models(
        whole, after, [("logits", "scores"), ("photo_size", "size")], outputs=["classes"]
    )


def _before(trained: Trained) -> str:
    """Return, as ONNX text, from photos of any size to the network's input: the arithmetic of
    `Trained.photo_size` and `images.resize`."""
    high, wide = trained.scene_size
    divisor = trained.model.divisor
    most = 16 * high // divisor
    if trained.squeezes_all:
        steps = f"steps = Constant <value_ints = [{wide // divisor}]> ()"
    else:
        steps = f"""
        scene_width = Constant <value_ints = [{wide}]> ()
        one = Constant <value_ints = [1]> ()
        most = Constant <value_ints = [{most}]> ()
        wanted = Mul (width, scene_width)
        step = Mul (height, divisor)
        to_round = Add (wanted, step)
        two_steps = Add (step, step)
        wanted_steps = Div (to_round, two_steps)
        some_steps = Max (wanted_steps, one)
        steps = Min (some_steps, most)
        """
    return f"""
    <ir_version: {IR_VERSION}, opset_import: ["": {OPSET}]>
    before (uint8[n, 3, height, width] images)
        => (float[n, 3, {high}, wide] seen, int64[2] photo_size)
    {{
        photo_size = Shape <start = 2> (images)
        height = Shape <start = 2, end = 3> (images)
        width = Shape <start = 3> (images)
        divisor = Constant <value_ints = [{divisor}]> ()
        {steps}
        wide = Mul (steps, divisor)
        high = Constant <value_ints = [{high}]> ()
        seen_size = Concat <axis = 0> (high, wide)
        floats = Cast <to = 1> (images)
        seen = Resize <mode = "linear", antialias = 1, axes = [2, 3]> (floats, , , seen_size)
    }}
    """


AFTER = f"""
<ir_version: {IR_VERSION}, opset_import: ["": {OPSET}]>
after (float[n, c, high, wide] scores, int64[2] size) => (uint8[n, height, width] classes)
{{
    enlarged = Resize <mode = "linear", axes = [2, 3]> (scores, , , size)
    best = ArgMax <axis = 1, keepdims = 0> (enlarged)
    classes = Cast <to = 2> (best)
}}
"""
"""From the logits at the network's size to classes at the photo's."""
