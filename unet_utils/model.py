"""The UNet of Ronneberger, Fischer and Brox (https://arxiv.org/abs/1505.04597).

Three things differ from the paper, as in nearly every later implementation: convolutions are padded, so the output
is as large as the input; batch normalisation follows each convolution; and the width is a knob.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn


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


class Up(nn.Module):
    """Doubles height and width, joins the skip connection, convolves: `[N, 2C, H, W] -> [N, C, 2H, 2W]`."""

    def __init__(self, channels: int):
        super().__init__()
        self.upsample = nn.ConvTranspose2d(2 * channels, channels, 2, stride=2)
        self.convolve = DoubleConv(2 * channels, channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.convolve(torch.cat([skip, self.upsample(x)], dim=1))


class UNet(nn.Module):
    """A contracting path of four halvings, an expanding path back, and a skip connection at every level.

    Args:
        in_channels: channels of the image.
        num_classes: channels of the output, one logit per class.
        base_channels: channels of the first level; each halving doubles them, so 64 gives the paper's 64 to 1024.
            Parameters and time grow with its square.
    """

    DEPTH = 4

    def __init__(self, in_channels: int = 3, num_classes: int = 19, base_channels: int = 64):
        super().__init__()
        self.config = {"in_channels": in_channels, "num_classes": num_classes, "base_channels": base_channels}
        widths = [base_channels * 2**level for level in range(self.DEPTH + 1)]
        self.stem = DoubleConv(in_channels, widths[0])
        self.down = nn.ModuleList(DoubleConv(a, b) for a, b in pairwise(widths))
        self.up = nn.ModuleList(Up(width) for width in reversed(widths[:-1]))
        self.head = nn.Conv2d(widths[0], num_classes, 1)
        self.pool = nn.MaxPool2d(2)
        for module in self.modules():
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
            ValueError: H or W is not divisible by 16, or the number of channels is another.
        """
        step = 2**self.DEPTH
        channels = self.config["in_channels"]
        if x.ndim != 4 or x.shape[1] != channels or x.shape[2] % step or x.shape[3] % step:
            raise ValueError(
                f"UNet takes [N, {channels}, H, W] with H and W divisible by {step}, got {list(x.shape)}: "
                f"resize or pad the image to a multiple of {step}"
            )
        skips = [self.stem(x)]
        for down in self.down:
            skips.append(down(self.pool(skips[-1])))
        x = skips.pop()
        for up in self.up:
            x = up(x, skips.pop())
        return self.head(x)


def count_parameters(model: nn.Module) -> int:
    """Number of trainable weights."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def model_summary(model: UNet, image_size: int = 256) -> str:
    """A table of the levels: output shape and number of parameters, measured by one forward pass."""
    parts = [("stem", model.stem)]
    parts += [(f"down {i}", m) for i, m in enumerate(model.down, 1)]
    parts += [(f"up {i}", m) for i, m in enumerate(model.up, 1)] + [("head", model.head)]
    shapes: dict[str, list[int]] = {}
    hooks = [
        module.register_forward_hook(lambda _m, _i, out, name=name: shapes.update({name: list(out.shape[1:])}))
        for name, module in parts
    ]
    was_training = model.training
    with torch.no_grad():
        parameter = next(model.parameters())
        size = (1, model.config["in_channels"], image_size, image_size)
        model.eval()(torch.zeros(size, device=parameter.device, dtype=parameter.dtype))
    model.train(was_training)
    for hook in hooks:
        hook.remove()
    lines = [f"{'part':8} {'channels x height x width':>26} {'parameters':>12}"]
    for name, module in parts:
        shape = " x ".join(map(str, shapes[name]))
        lines.append(f"{name:8} {shape:>26} {count_parameters(module):12,}")
    lines.append(f"{'total':8} {'':26} {count_parameters(model):12,}")
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
