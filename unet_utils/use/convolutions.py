"""The network of an exported file: nothing but plain convolutions, from pixels to logits.

In training a convolution and its normalization are two steps. With fixed statistics both are
linear, so one convolution with other weights does the same in less time, and every runtime knows
it."""

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from unet_utils.encoders import MEAN, STD, ConvNorm
from unet_utils.evaluation import Trained
from unet_utils.model import ContractingPath, DoubleConv, UNet


class PixelsToLogits(nn.Module):
    """A trained network that takes RGB from 0 to 255, in float32 on the CPU.

    `float32 [N, 3, h, w]` to `float32 [N, C, h, w]`, h and w divisible by the network's divisor.

    Args:
        trained: the model; it stays as it is.
        shuffle: False leaves the last step of a UNet out, which moves logits from channels to
            pixels. The output is `[N, C s s, h / s, w / s]`, where s is `block`.

    Attributes:
        block: s of above; 1 where there is no such step.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, trained: Trained, shuffle: bool = True):
        super().__init__()
        # With gradients, in-place operations such as ReLU6 fail in the exported model.
        model = copy.deepcopy(trained.model).cpu().float().eval().requires_grad_(False)
        self.network = fold_normalization(model)
        self.block = 1
        if isinstance(model, UNet):
            _fold_pixels_into_convolution(model)
            if not shuffle:
                self.block = getattr(model.unfold, "upscale_factor", 1)
                model.unfold = nn.Identity()
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1) * 255)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.network((pixels - self.mean) / self.std)


def fold_normalization(module: nn.Module) -> nn.Module:
    """Return the module with each batch normalization in the convolution before it.

    Where a network of somebody else calls them in its own code, torch's exporter does it.

    Args:
        module: in evaluation mode; it is changed.
    """
    if isinstance(module, ConvNorm):
        return _as_convolution(module)
    before = None
    last = ""
    for name, part in module.named_children():
        is_chain = isinstance(module, nn.Sequential)
        if is_chain and isinstance(before, nn.Conv2d) and isinstance(part, nn.BatchNorm2d):
            setattr(module, last, fuse_conv_bn_eval(before, part))
            setattr(module, name, nn.Identity())
        else:
            setattr(module, name, fold_normalization(part))
        before = part
        last = name
    return module


def _as_convolution(layer: ConvNorm) -> nn.Module:
    conv: nn.Conv2d = fuse_conv_bn_eval(layer.conv, layer.norm)
    parts: list[nn.Module] = [conv]
    before, behind = layer.pad
    if before == behind:
        conv.padding = (before, before)
    else:
        parts.insert(0, nn.ZeroPad2d((before, behind, before, behind)))
    if layer.relu:
        parts.append(nn.ReLU6())
    return nn.Sequential(*parts)


def _fold_pixels_into_convolution(model: UNet) -> None:
    """Let the first convolution read blocks of pixels itself, with a larger kernel and a stride."""
    fold = model.config["fold"]
    if fold == 1:
        return
    assert isinstance(model.encoder, ContractingPath)  # the others have no fold
    block = model.encoder.levels[0]
    assert isinstance(block, DoubleConv)
    first = block[0]
    assert isinstance(first, nn.Conv2d)
    channels = model.config["in_channels"]
    out = first.out_channels
    larger = nn.Conv2d(channels, out, 3 * fold, stride=fold, padding=fold)
    # The folded channels are in the order colour, row in the block, column in the block.
    weight = first.weight.view(out, channels, fold, fold, 3, 3)
    weight = weight.permute(0, 1, 4, 2, 5, 3)
    larger.weight = nn.Parameter(weight.reshape(larger.weight.shape), requires_grad=False)
    larger.bias = first.bias
    block[0] = larger
    model.fold = nn.Identity()
