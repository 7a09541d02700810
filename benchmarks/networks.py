"""Row 3: the network alone, forward and backward: time and memory; and the step of the
optimizer."""

import copy
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from unittest import mock

import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from benchmarks.peers import OneByOne, PlainUNet
from benchmarks.setting import Setting
from benchmarks.timing import Comparison, Result, in_fresh_process, interleave, synchronize
from unet_utils import UNet, count_parameters
from unet_utils.device import autocast, find_device
from unet_utils.encoders import ENCODERS
from unet_utils.optimizer import Muon

CLASSES = 19


def make(name: str, width: int, batch: int, size: int) -> tuple[nn.Module, Tensor]:
    """Return a network in training mode and a batch for it, both in channels-last memory format."""
    device = find_device()
    x = torch.randn(batch, 3, size, size, device=device).contiguous(
        memory_format=torch.channels_last
    )
    if name == "smp":
        model: nn.Module = smp.Unet("resnet34", encoder_weights=None, classes=CLASSES)
    elif name == "milesial":
        model = PlainUNet(CLASSES, width)
    elif name in ENCODERS:
        model = UNet(3, CLASSES, encoder=name)
    else:
        model = UNet(3, CLASSES, width, fold=2 if name == "folded" else 1)
    return model.to(device, memory_format=torch.channels_last).train(), x


def depthwise(x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int) -> Tensor:
    """What stands in the place of `encoders.Depthwise` where torch computes the gradients."""
    return conv2d(x, weight, bias, stride, padding, groups=len(weight))


def forward(model: nn.Module, x: Tensor) -> None:
    """Forward only."""
    with torch.no_grad(), autocast(x.device):
        model(x)


def both(model: nn.Module, x: Tensor, mixed: bool = True) -> None:
    """Forward and backward, from a gradient of ones instead of a loss; `mixed` is False for float32
    throughout."""
    model.zero_grad(set_to_none=True)
    with autocast(x.device) if mixed else nullcontext():
        out = model(x)
    out.backward(torch.ones_like(out))


def with_torch_gradients(model: nn.Module, x: Tensor) -> None:
    """`both`, with torch's gradients of depthwise convolutions."""
    with mock.patch("unet_utils.encoders.Depthwise.apply", depthwise):
        both(model, x)


def three_steps(*arguments) -> None:
    """The work whose peak memory is measured."""
    model, x = make(*arguments)
    for _ in range(3):
        both(model, x)


def muon_step(model: nn.Module, x: Tensor, optimizer: torch.optim.Optimizer) -> float:
    """Return the seconds of an optimizer's step after forward and backward, as in training: what
    these leave in the caches and in the memory counts."""
    both(model, x)
    synchronize()
    start = time.perf_counter()
    optimizer.step()
    synchronize()
    return time.perf_counter() - start


def networks(setting: Setting) -> Result:
    """Row 3."""
    gpu = setting.device.type == "cuda"
    size = setting.config.image_size
    shape = (setting.config.base_channels, 16 if gpu else min(4, setting.config.batch_size), size)
    names = ("plain", "folded", "resnet34", "milesial", "smp")
    made = {name: make(name, *shape) for name in names}
    millions = {name: count_parameters(model) / 1e6 for name, (model, _) in made.items()}
    memory = {name: [in_fresh_process(three_steps, name, *shape)[1]] for name in names}
    comparisons = []
    matches = [
        ("plain", "milesial", "milesial-style U-Net", 1.05),
        ("folded", "milesial", "milesial-style U-Net", 1.0),
        ("resnet34", "smp", "segmentation_models_pytorch, resnet34", 1.05),
    ]
    ours = {"plain": "U-Net", "folded": "U-Net, fold 2", "resnet34": "U-Net on resnet34"}
    for work, run in (("forward", forward), ("forward and backward", both)):
        contenders: dict[str, Callable] = {
            name: lambda run=run, m=m: run(*m) for name, m in made.items()
        }
        times = interleave(contenders, setting.rounds)
        for us, them, title, at_most in matches:
            comparisons.append(
                Comparison("3", f"{ours[us]}: {work}", title, times[us], times[them], at_most)
            )
    lite = make("efficientnet_lite2", *shape)
    for work, match, title, other in (
        (
            "U-Net, fold 2: forward and backward",
            made["folded"],
            "in float32",
            partial(both, mixed=False),
        ),
        (
            "U-Net on efficientnet_lite2: forward and backward",
            lite,
            "torch's depthwise gradients",
            with_torch_gradients,
        ),
    ):
        times = interleave(
            {"ours": partial(both, *match), "theirs": partial(other, *match)}, setting.rounds
        )
        comparisons.append(Comparison("3", work, title, times["ours"], times["theirs"], 1.05))
    for work, (model, x) in (
        ("U-Net, fold 2: Muon's step", made["folded"]),
        ("U-Net on efficientnet_lite2: Muon's step", lite),
    ):
        steps = {}
        for name, optimizer in (("ours", Muon), ("theirs", OneByOne)):
            network = copy.deepcopy(model)
            stepper = optimizer(network.parameters(), lr=1e-4, weight_decay=0.02)
            steps[name] = partial(muon_step, network, x, stepper)
        times = interleave(steps, setting.rounds)
        title = "one parameter after another"
        comparisons.append(Comparison("3", work, title, times["ours"], times["theirs"], 1.05))
    for us, them, title, at_most in matches:
        work = f"{ours[us]}: peak memory"
        comparisons.append(
            Comparison("3", work, title, memory[us], memory[them], at_most, unit="MB")
        )
    counts = ", ".join(f"{name} {value:.2f} M" for name, value in millions.items())
    return Result(
        comparisons,
        f"Row 3: batches of {shape[1]} at {size}x{size}, width {shape[0]}, all in channels-last "
        f"format. Parameters: {counts}. Networks with the same layers differ by noise: ratios up "
        "to 1.05 count as equal.",
        {"million parameters": millions, "peak memory in MB": memory},
    )
