"""The UNet of Ronneberger, Fischer and Brox (https://arxiv.org/abs/1505.04597).

Three things differ from the paper, as in nearly all later implementations: convolutions are padded,
so that the output has the size of the input; batch normalization follows each convolution; and the
width is a parameter. The contracting path can also be a known network with ImageNet weights, see
`encoders`."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from unet_utils.encoders import Encoder, build_encoder


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
    """One step of the contracting path: halve height and width, then convolve.

    `[N, in, H, W] -> [N, out, H/2, W/2]`."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(max_pool2d(x, 2))


class Up(nn.Module):
    """One step of the expanding path: double height and width, join the skip connection, convolve.

    `[N, in, H, W]` and the skip connection `[N, skip, 2H, 2W]` -> `[N, out, 2H, 2W]`."""

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int):
        super().__init__()
        self.upsample = nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2)
        self.convolve = DoubleConv(skip_channels + out_channels, out_channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.convolve(torch.cat([skip, self.upsample(x)], dim=1))


class ContractingPath(nn.Module):
    """Five levels; each of the four halvings doubles the number of channels.

    `[N, in, H, W]` to a list of features, fine to coarse: `[N, base, H, W], [N, 2 base, H/2, W/2],
    ..., [N, 16 base, H/16, W/16]`."""

    stride = 1

    def __init__(self, in_channels: int, base_channels: int):
        super().__init__()
        self.widths = [base_channels * 2**level for level in range(5)]
        downs = [Down(*channels) for channels in pairwise(self.widths)]
        self.levels = nn.ModuleList([DoubleConv(in_channels, base_channels), *downs])

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
        encoder: one of `encoders.ENCODERS` as the contracting path, or None for the paper's.
        pretrained: start the encoder from its ImageNet weights, which are downloaded or come from a
            package.
        expanding_channels: channels of each level of the expanding path, coarse to fine; by default
            those of the skip connections.
        skips: False puts zeros in the place of each skip connection. All else stays: the number of
            weights, their first values, the time of a step. So it shows what the skips are good
            for.

    Attributes:
        config: the arguments that build the same network again, without its weights.
        divisor: height and width of the image must be divisible by it.
        expanding_channels: as above, with the default filled in.

    Raises:
        ValueError: unknown encoder; `in_channels`, `fold` or `expanding_channels` do not fit it; or
            its ImageNet weights are not available.
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
        skips: bool = True,
    ):
        super().__init__()
        self.config: dict[str, Any] = {
            "in_channels": in_channels,
            "num_classes": num_classes,
            "base_channels": base_channels,
            "fold": fold,
            "encoder": encoder,
            "skips": skips,
        }
        if expanding_channels is not None:
            self.config["expanding_channels"] = list(expanding_channels)

        self.encoder: ContractingPath | Encoder
        if not encoder:
            self.encoder = ContractingPath(in_channels * fold**2, base_channels)
        elif in_channels == 3 and fold == 1:
            self.encoder = build_encoder(encoder, pretrained)
        else:
            raise ValueError(
                f"{encoder} takes 3 channels and no fold: in_channels is {in_channels}, fold {fold}"
            )
        *widths, bottom = self.encoder.widths
        widths.reverse()  # coarse to fine, as the expanding path uses them
        out = list(expanding_channels or widths)
        if len(out) != len(widths):
            raise ValueError(
                f"expanding_channels has {len(out)} entries: give {len(widths)}, one per level"
            )
        self.expanding_channels = out
        self.up = nn.ModuleList(map(Up, [bottom, *out], widths, out))

        # The finest features are `scale` times smaller than the image: each pixel of theirs gives
        # the logits of a block of scale x scale pixels.
        scale = fold * self.encoder.stride
        self.divisor = scale * 2 ** len(widths)
        self.head = nn.Conv2d(out[-1], num_classes * scale**2, 1)
        # A factor of 1 would copy the tensor.
        self.fold = nn.PixelUnshuffle(fold) if fold > 1 else nn.Identity()
        self.unfold = nn.PixelShuffle(scale) if scale > 1 else nn.Identity()

        self.up.apply(_he_initialization)
        if not encoder:
            self.encoder.apply(_he_initialization)
        # A last layer near zero: at the start, all classes are about equally likely.
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
        """Return the feature maps of the contracting path (fine to coarse) and of the expanding
        path (coarse to fine)."""
        channels, step = self.config["in_channels"], self.divisor
        if x.ndim != 4 or x.shape[1] != channels or x.shape[2] % step or x.shape[3] % step:
            raise ValueError(
                f"UNet takes [N, {channels}, H, W] with H and W divisible by {step}, got "
                f"{list(x.shape)}: resize or pad the image to a multiple of {step}"
            )
        contracting = self.encoder(self.fold(x))
        *skips, x = contracting
        expanding = []
        for up in self.up:
            skip = skips.pop()
            x = up(x, skip if self.config["skips"] else torch.zeros_like(skip))
            expanding.append(x)
        return contracting, expanding

    def shift_logits(self, shift: Tensor) -> None:
        """Add a constant to the logit of each class, `float [num_classes]`, by changing the bias of
        the last layer."""
        # PixelShuffle takes the channels of one class from consecutive channels.
        block = self.head.out_channels // len(shift)
        with torch.no_grad():
            self.head.bias += shift.to(self.head.bias).repeat_interleave(block)


def _he_initialization(module: nn.Module) -> None:
    """Section 3 of the paper; https://arxiv.org/abs/1502.01852."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")


class OtherNetwork(nn.Module):
    """A network of somebody else in the place of the UNet.

    Args:
        network: turns `float [N, 3, H, W]` into logits `float [N, num_classes, H, W]`, or into a
            dict with these as `"out"`, as those of torchvision do. If it has an attribute
            `divisor`, H and W will be divisible by it, else by 32. If it has an attribute
            `encoder`, that can have a learning rate of its own.
        num_classes: channels of the output.

    Attributes:
        config, divisor, expanding_channels: as in `UNet`; there are no levels for auxiliary heads.
    """

    shift: Tensor

    def __init__(self, network: nn.Module, num_classes: int):
        super().__init__()
        self.network = network
        kind = type(network)
        self.config: dict[str, Any] = {
            "num_classes": num_classes,
            "other": f"{kind.__module__}.{kind.__qualname__}",
        }
        self.divisor: int = getattr(network, "divisor", 32)
        self.expanding_channels: list[int] = []
        self.register_buffer("shift", torch.zeros(num_classes))

    @property
    def encoder(self) -> nn.Module:
        """The part that can have a learning rate of its own; without one, an empty module."""
        return getattr(self.network, "encoder", nn.Module())

    def forward(self, x: Tensor) -> Tensor:
        """Return the class logits `float [N, num_classes, H, W]`.

        Raises:
            ValueError: the network returns something else.
        """
        logits = self.network(x)
        if isinstance(logits, dict):
            logits = logits.get("out")
        # Not len(x): torch's exporter would write that number of photos into the file.
        expected = (x.shape[0], len(self.shift), *x.shape[2:])
        is_tensor = isinstance(logits, Tensor)
        if not is_tensor or logits.shape != expected:
            found = list(logits.shape) if is_tensor else "no tensor"
            raise ValueError(
                f"{self.config['other']} returned {found} for a batch of "
                f"{list(x.shape)}: it must return one logit for each class and pixel, "
                f'{list(expected)}, or a dict with these as "out"'
            )
        return logits + self.shift[:, None, None]

    def shift_logits(self, shift: Tensor) -> None:
        """Add a constant to the logit of each class, `float [num_classes]`."""
        self.shift += shift.to(self.shift)


def other_network(build: Callable[[int], nn.Module], num_classes: int) -> OtherNetwork:
    """Return the network that a function builds for a number of classes.

    Raises:
        ValueError: it is no function, but a network; or it returns none.
    """
    if isinstance(build, nn.Module):
        raise ValueError(
            "network is a network: give a function that builds it for a number of classes, such as "
            "`lambda classes: MyNetwork(classes)`"
        )
    network = build(num_classes)
    if not isinstance(network, nn.Module):
        raise ValueError(f"network returned {network!r}: it must return an nn.Module")
    return OtherNetwork(network, num_classes)


def count_parameters(model: nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
