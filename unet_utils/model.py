"""The UNet of Ronneberger, Fischer and Brox (https://arxiv.org/abs/1505.04597), from scratch or on a known encoder.

Three things differ from the paper, as in nearly every later implementation: convolutions are padded, so the output
is as large as the input; batch normalisation follows each convolution; and the width is a knob.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torchvision.models import get_model
from torchvision.models.feature_extraction import create_feature_extractor

ENCODERS = {
    "resnet34": ("relu", "layer1", "layer2", "layer3", "layer4"),
    "convnext_tiny": ("features.1", "features.3", "features.5", "features.7"),
}
"""torchvision's networks that can be the contracting path, and which of their layers the skip connections start from:
https://arxiv.org/abs/1512.03385 and https://arxiv.org/abs/2201.03545."""


class DoubleConv(nn.Sequential):
    """Twice: 3x3 convolution, batch normalisation, ReLU. `[N, in, H, W] -> [N, out, H, W]`."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )


class Down(nn.Module):
    """The contracting path: `[N, in, H, W]` to the features of five levels, each half as high and wide as the last."""

    HALVINGS = 4

    def __init__(self, in_channels: int, base_channels: int):
        super().__init__()
        self.widths = [base_channels * 2**level for level in range(self.HALVINGS + 1)]
        self.levels = nn.ModuleList(DoubleConv(a, b) for a, b in pairwise([in_channels, *self.widths]))
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> list[Tensor]:
        features = [self.levels[0](x)]
        for level in self.levels[1:]:
            features.append(level(self.pool(features[-1])))
        return features


class Up(nn.Module):
    """Doubles height and width, joins the skip connection, convolves: `[N, deep, H, W] -> [N, skip, 2H, 2W]`."""

    def __init__(self, deep: int, skip: int):
        super().__init__()
        self.upsample = nn.ConvTranspose2d(deep, skip, 2, stride=2)
        self.convolve = DoubleConv(2 * skip, skip)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.convolve(torch.cat([skip, self.upsample(x)], dim=1))


class UNet(nn.Module):
    """A contracting path, an expanding path back, and a skip connection at every level.

    Args:
        in_channels: channels of the image; 3 with an encoder.
        num_classes: channels of the output, one logit per class.
        base_channels: channels of the first level; each of the four halvings doubles them, so 64 gives the paper's 64
            to 1024. Parameters and time grow with its square. Means nothing with an encoder.
        fold: folds each fold x fold block of pixels into channels first, and the logits back in the end
            (https://arxiv.org/abs/1609.05158). 2 takes a quarter of the time of 1 at the same width.
        encoder: one of `ENCODERS` as the contracting path, or None for the paper's.
        pretrained: start the encoder from torchvision's ImageNet weights, downloaded at first use; where they cannot
            be had, it says so and starts from random ones.

    Attributes:
        config: the arguments that make the same network again (its weights aside).
        divisor: height and width of the image must divide by it.

    Raises:
        ValueError: unknown encoder, or one with `in_channels` or `fold` that it cannot have.
    """

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 19,
        base_channels: int = 64,
        fold: int = 1,
        encoder: str | None = None,
        pretrained: bool = False,
    ):
        super().__init__()
        self.config = {
            "in_channels": in_channels,
            "num_classes": num_classes,
            "base_channels": base_channels,
            "fold": fold,
            "encoder": encoder,
        }
        if encoder:
            if encoder not in ENCODERS:
                raise ValueError(f"unknown encoder {encoder!r}: choose one of {', '.join(ENCODERS)}, or none")
            if in_channels != 3 or fold != 1:
                raise ValueError(f"{encoder} takes 3 channels and no fold, got in_channels {in_channels}, fold {fold}")
            self.encoder, widths, scale = _torchvision_encoder(encoder, pretrained)
        else:
            self.encoder, scale = Down(in_channels * fold**2, base_channels), fold
            widths = self.encoder.widths
        self.divisor = scale * 2 ** (len(widths) - 1)
        self.fold = nn.PixelUnshuffle(fold) if fold > 1 else nn.Identity()  # a shuffle by 1 would copy
        self.up = nn.ModuleList(Up(deep, skip) for skip, deep in reversed(list(pairwise(widths))))
        # Where the first features are `scale` times smaller than the image, each gives the logits of a block of pixels.
        self.head = nn.Conv2d(widths[0], num_classes * scale**2, 1)
        self.unfold = nn.PixelShuffle(scale) if scale > 1 else nn.Identity()
        for module in (*self.up.modules(), *(() if encoder else self.encoder.modules())):
            if isinstance(module, nn.Conv2d):  # He initialisation, as the paper asks for in section 3
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        # ... but a last layer that starts near zero gives every class the same chance, not a random verdict.
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Class logits of a batch of images.

        Args:
            x: `float [N, in_channels, H, W]`.

        Returns:
            `float [N, num_classes, H, W]`.

        Raises:
            ValueError: H or W is not divisible by `divisor`, or the number of channels is another.
        """
        step, channels = self.divisor, self.config["in_channels"]
        if x.ndim != 4 or x.shape[1] != channels or x.shape[2] % step or x.shape[3] % step:
            raise ValueError(
                f"UNet takes [N, {channels}, H, W] with H and W divisible by {step}, got {list(x.shape)}: "
                f"resize or pad the image to a multiple of {step}"
            )
        features = self.encoder(self.fold(x))
        *skips, x = features.values() if isinstance(features, dict) else features
        for up in self.up:
            x = up(x, skips.pop())
        return self.unfold(self.head(x))


def _torchvision_encoder(name: str, pretrained: bool) -> tuple[nn.Module, list[int], int]:
    """A torchvision network that returns the features of its stages, their widths, and how much the first shrinks."""
    try:
        network = get_model(name, weights="DEFAULT" if pretrained else None)
    except (OSError, RuntimeError) as error:  # no way there, or what came was not the file
        print(f"Could not download the ImageNet weights of {name} ({error}): it starts from random ones.")
        network = get_model(name, weights=None)
    encoder = create_feature_extractor(network, list(ENCODERS[name]))
    with torch.no_grad():
        shapes = [level.shape for level in encoder.eval()(torch.zeros(1, 3, 64, 64)).values()]
    return encoder.train(), [shape[1] for shape in shapes], 64 // shapes[0][2]


def count_parameters(model: nn.Module) -> int:
    """Number of trainable weights."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def model_summary(model: UNet, image_size: int = 256) -> str:
    """A table of the levels: output shape and number of parameters, measured by one forward pass."""
    if isinstance(model.encoder, Down):
        parts = [(f"level {i}", m) for i, m in enumerate(model.encoder.levels)]
    else:
        parts = [(model.config["encoder"], model.encoder)]
    parts += [(f"up {i}", m) for i, m in enumerate(model.up, 1)] + [("head", model.head)]
    shapes: dict[str, list[int]] = {}

    def note(name: str, out: Tensor | dict[str, Tensor]) -> None:
        shapes[name] = list((list(out.values())[-1] if isinstance(out, dict) else out).shape[1:])

    hooks = [module.register_forward_hook(lambda _m, _i, out, name=name: note(name, out)) for name, module in parts]
    was_training = model.training
    with torch.no_grad():
        parameter = next(model.parameters())
        size = (1, model.config["in_channels"], image_size, image_size)
        model.eval()(torch.zeros(size, device=parameter.device, dtype=parameter.dtype))
    model.train(was_training)
    for hook in hooks:
        hook.remove()
    lines = [f"{'part':13} {'channels x height x width':>26} {'parameters':>12}"]
    for name, module in parts:
        shape = " x ".join(map(str, shapes[name]))
        lines.append(f"{name:13} {shape:>26} {count_parameters(module):12,}")
    lines.append(f"{'total':13} {'':26} {count_parameters(model):12,}")
    return "\n".join(lines)


def compute_dtype(device: torch.device | str) -> torch.dtype:
    """The precision that the device computes fastest in and that networks tolerate.

    bfloat16 where the hardware has it (Ampere GPUs and later, CPUs with AVX512-BF16 or AMX), float16 on older GPUs
    such as Colab's T4, float32 elsewhere.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    if device.type == "cpu":
        checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
        if any(check() for check in checks if check):
            return torch.bfloat16
    return torch.float32


def autocast(device: torch.device | str) -> torch.autocast:
    """The context to run a network in on that device: mixed precision where it pays."""
    dtype = compute_dtype(device)
    return torch.autocast(torch.device(device).type, dtype=dtype, enabled=dtype != torch.float32)
