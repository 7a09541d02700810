"""The U-Net of Ronneberger, Fischer and Brox (https://arxiv.org/abs/1505.04597).

Three things differ from the paper, as in nearly all later implementations: convolutions are padded,
so that the output has the size of the input; batch normalization follows each convolution; and the
width is a parameter. The contracting path can also be a known network with ImageNet weights, see
`encoders`."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from unet_utils.encoders import ENCODERS, build_encoder


class DoubleConv(nn.Sequential):
    """Two times: 3x3 convolution, batch normalization, ReLU. `[N, in, H, W] -> [N, out, H, W]`."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )


class Down(DoubleConv):
    """One level of the contracting path: halve height and width. `[N, in, H, W] -> [N, out, H/2,
    W/2]`."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(max_pool2d(x, 2))


class Up(nn.Module):
    """One level of the expanding path: double the size, concatenate the skip connection, convolve.

    `[N, in, H, W]` and the skip connection `[N, skip, 2H, 2W]` -> `[N, out, 2H, 2W]`.
    """

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int):
        super().__init__()
        self.upsample = nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2)
        self.convolve = DoubleConv(skip_channels + out_channels, out_channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.convolve(torch.cat([skip, self.upsample(x)], dim=1))


class ContractingPath(nn.Module):
    """Five levels; each of the four halvings doubles the number of channels.

    `[N, in, H, W]` to a list of features `[N, base, H, W], [N, 2 base, H/2, W/2], ..., [N, 16 base,
    H/16, W/16]`."""

    def __init__(self, in_channels: int, base_channels: int):
        super().__init__()
        self.widths = [base_channels * 2**level for level in range(5)]
        levels = [Down(a, b) for a, b in pairwise(self.widths)]
        self.levels = nn.ModuleList([DoubleConv(in_channels, base_channels), *levels])

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for level in self.levels:
            x = level(x)
            features.append(x)
        return features


class UNet(nn.Module):
    """A contracting path, an expanding path, and a skip connection at each level.

    Args:
        in_channels: channels of the image; must be 3 with an encoder.
        num_classes: channels of the output, one logit per class.
        base_channels: channels of the first level; 64 gives the paper's 64 to 1024. The number of
            parameters grows with its square. Ignored with an encoder.
        fold: fold each fold x fold block of pixels into channels first, and the logits back at the
            end (https://arxiv.org/abs/1609.05158). 2 takes a third to a half of the time of 1.
        encoder: one of `ENCODERS` as the contracting path, or None for the paper's.
        pretrained: start the encoder from its ImageNet weights, which are downloaded or come from a
            package.
        expanding_channels: channels of each level of the expanding path, coarse to fine; by default
            those of the skip connections.

    Attributes:
        config: the arguments that build the same network again, without its weights.
        divisor: height and width of the image must be divisible by it.
        expanding_channels: channels of each level of the expanding path, coarse to fine.

    Raises:
        ValueError: unknown encoder; `in_channels`, `fold` or `expanding_channels` do not fit it; or
            its ImageNet weights cannot be had.
    """

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 19,
        base_channels: int = 64,
        fold: int = 1,
        encoder: str | None = None,
        pretrained: bool = False,
        expanding_channels: Sequence[int] | None = None,
    ):
        super().__init__()
        self.config: dict[str, Any] = {
            "in_channels": in_channels,
            "num_classes": num_classes,
            "base_channels": base_channels,
            "fold": fold,
            "encoder": encoder,
        }
        if encoder:
            if encoder not in ENCODERS:
                raise ValueError(
                    f"unknown encoder {encoder!r}: choose one of {', '.join(ENCODERS)}, or none"
                )
            if in_channels != 3 or fold != 1:
                raise ValueError(
                    f"{encoder} takes 3 channels and no fold, got in_channels {in_channels}, fold {fold}"
                )
            self.encoder, widths, scale = build_encoder(encoder, pretrained)
        else:
            self.encoder, scale = ContractingPath(in_channels * fold**2, base_channels), fold
            widths = self.encoder.widths
        skips = widths[-2::-1]  # coarse to fine, the bottom left out
        if expanding_channels is not None:
            if len(expanding_channels) != len(skips):
                raise ValueError(
                    f"expanding_channels has {len(expanding_channels)} entries, needed are {len(skips)}"
                )
            self.config["expanding_channels"] = list(expanding_channels)
        self.expanding_channels = out = list(expanding_channels or skips)
        self.divisor = scale * 2 ** len(skips)
        self.fold = (
            nn.PixelUnshuffle(fold) if fold > 1 else nn.Identity()
        )  # PixelUnshuffle(1) would copy
        self.up = nn.ModuleList(
            Up(*channels) for channels in zip([widths[-1], *out], skips, out, strict=False)
        )
        # When the finest features are `scale` times smaller than the image, each gives the logits
        # of a block of pixels.
        self.head = nn.Conv2d(out[-1], num_classes * scale**2, 1)
        self.unfold = nn.PixelShuffle(scale) if scale > 1 else nn.Identity()
        for module in (*self.up.modules(), *(() if encoder else self.encoder.modules())):
            if isinstance(module, nn.Conv2d):  # He initialization, as in section 3 of the paper
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        # A last layer near zero gives all classes the same probability at the start, not a random
        # prediction.
        nn.init.normal_(self.head.weight, std=0.01)
        self.head.bias.data.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Return the class logits `float [N, num_classes, H, W]` of a batch of images `float [N,
        in_channels, H, W]`.

        Raises:
            ValueError: H or W is not divisible by `divisor`, or the number of channels is wrong.
        """
        _, expanding = self.features(x)
        return self.unfold(self.head(expanding[-1]))

    def features(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return the feature maps of the contracting path (fine to coarse) and the expanding path
        (coarse to fine)."""
        self._check(x)
        contracting = self.encoder(self.fold(x))
        if isinstance(contracting, dict):  # torchvision's feature extractors return a dict
            contracting = list(contracting.values())
        *skips, x = contracting
        expanding = []
        for up in self.up:
            x = up(x, skips.pop())
            expanding.append(x)
        return contracting, expanding

    def _check(self, x: Tensor) -> None:
        step, channels = self.divisor, self.config["in_channels"]
        if x.ndim != 4 or x.shape[1] != channels or x.shape[2] % step or x.shape[3] % step:
            raise ValueError(
                f"UNet takes [N, {channels}, H, W] with H and W divisible by {step}, got {list(x.shape)}: "
                f"resize or pad the image to a multiple of {step}"
            )

    def shift_logits(self, shift: Tensor) -> None:
        """Add a constant to the logit of each class, `float [num_classes]`, by changing the bias of
        the last layer."""
        # PixelShuffle takes the channels of one class from consecutive channels.
        block = self.head.out_channels // len(shift)
        with torch.no_grad():
            self.head.bias += shift.to(self.head.bias).repeat_interleave(block)


def count_parameters(model: nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def model_summary(model: UNet, image_size: int = 256) -> str:
    """Return a table of the levels: output shape and number of parameters."""
    device = next(model.parameters()).device
    training = model.training
    with torch.no_grad():
        image = torch.zeros(1, model.config["in_channels"], image_size, image_size, device=device)
        contracting, expanding = model.eval().features(image)
    model.train(training)
    if isinstance(model.encoder, ContractingPath):
        parts = [
            (f"down {i}", m, x)
            for i, (m, x) in enumerate(zip(model.encoder.levels, contracting, strict=True))
        ]
    else:
        parts = [(model.config["encoder"], model.encoder, contracting[-1])]
    parts += [
        (f"up {i}", m, x) for i, (m, x) in enumerate(zip(model.up, expanding, strict=True), 1)
    ]
    logits = image.new_empty(1, model.config["num_classes"], image_size, image_size)
    lines = [f"{'part':13} {'channels x height x width':>26} {'parameters':>12}"]
    for name, module, x in [*parts, ("head", model.head, logits)]:
        shape = " x ".join(map(str, x.shape[1:]))
        lines.append(f"{name:13} {shape:>26} {count_parameters(module):12,}")
    lines.append(f"{'total':13} {'':26} {count_parameters(model):12,}")
    return "\n".join(lines)
