"""Count what a training step launches on a GPU. Needs no GPU.

    python scripts/count_launches.py

A launch is an operator that torch dispatches, unless it only returns a view or allocates memory.
The host needs about 5 to 10 microseconds for each, whatever the size of the tensors, so a fast GPU
waits for the host when there are many. An operator on a list of tensors counts once; it launches a
few kernels, or one per tensor where the layouts in memory differ.

The step runs in bfloat16 on the CPU, with random weights and two small photos: the number of
launches does not depend on their size. Takes about a minute."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d
from torch.utils._python_dispatch import TorchDispatchMode

from unet_utils import TrainConfig, UNet, recipe
from unet_utils.losses import AuxiliaryHeads, segmentation_loss
from unet_utils.optimizer import Muon, parameter_groups

CLASSES = 19
SECTIONS = ("forward and loss", "backward", "clipping", "Muon", "averaging")
NETWORKS = {
    "GPU recipe": recipe("gpu"),
    "... on resnet34": recipe("gpu", encoder="resnet34"),
    "... on convnext_tiny": recipe("gpu", encoder="convnext_tiny"),
    "... on efficientnet_lite2": recipe("gpu", encoder="efficientnet_lite2"),
}
NO_KERNEL = ("_unsafe_view", "empty", "empty_like", "empty_strided", "new_empty", "detach")
"""Operators that launch nothing, though their schema does not say that they return a view."""


class LaunchCounter(TorchDispatchMode):
    """Counts launches by section.

    Attributes:
        section: where the next launches belong.
        launches: by section and name of the operator.
    """

    def __init__(self) -> None:
        super().__init__()
        self.section = SECTIONS[0]
        self.launches: Counter[tuple[str, str]] = Counter()

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Count an operator and run it."""
        name = operator.overloadpacket.__name__
        returned = [result.alias_info for result in operator._schema.returns]
        is_view = any(alias is not None and not alias.is_write for alias in returned)
        if not is_view and name not in NO_KERNEL:
            self.launches[self.section, name] += 1
        return operator(*args, **(kwargs or {}))

    def around(self, function: Callable, during: str, after: str) -> Callable:
        """Return the function; what it launches counts as `during`, what follows as `after`."""

        def call(*args: Any, **kwargs: Any) -> Any:
            self.section = during
            result = function(*args, **kwargs)
            self.section = after
            return result

        return call


class TorchDepthwise:
    """What GPUs use in the place of `encoders.Depthwise`."""

    @staticmethod
    def apply(x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int) -> Tensor:
        """The convolution of each channel."""
        return conv2d(x, weight, bias, stride, padding, groups=len(weight))


@dataclass
class Run:
    """What a training step changes."""

    config: TrainConfig
    forward: AuxiliaryHeads
    optimizer: Muon
    averaged: list[Tensor]


def step(run: Run, x: Tensor, y: Tensor) -> None:
    """Take one training step."""
    with torch.autocast("cpu", torch.bfloat16):
        outputs = run.forward(x)
    weights = torch.ones(CLASSES)
    _, total = segmentation_loss(outputs, y, weights, run.config.auxiliary, lambda tensor: tensor)
    run.optimizer.zero_grad()
    total.backward()
    nn.utils.clip_grad_norm_(run.forward.parameters(), 1.0)
    run.optimizer.step()
    torch._foreach_lerp_(run.averaged, averageable(run.forward.model), 0.01)


def averageable(model: nn.Module) -> list[Tensor]:
    """Return parameters, and the statistics of batch normalization."""
    return [value.detach() for value in model.state_dict().values() if value.is_floating_point()]


def count(config: TrainConfig, size: int = 64) -> Counter[tuple[str, str]]:
    """Return the launches of a step with two photos of this size, by section and operator."""
    counter = LaunchCounter()
    bfloat16 = mock.patch("unet_utils.optimizer.compute_dtype", return_value=torch.bfloat16)
    with bfloat16, mock.patch("unet_utils.encoders.Depthwise", TorchDepthwise):
        model = UNet(**config.network(CLASSES))
        forward = AuxiliaryHeads(model, config.auxiliary > 0).train()
        forward.to(memory_format=torch.channels_last)
        optimizer = Muon(parameter_groups(forward, model.encoder, config.encoder_rate))
        averaged = [value.clone() for value in averageable(model)]
        run = Run(config, forward, optimizer, averaged)
        x = torch.randn(2, 3, size, size).contiguous(memory_format=torch.channels_last)
        y = torch.randint(CLASSES, (2, size, size))
        step(run, x, y)  # the first one also makes the state of the optimizer
        backward = counter.around(Tensor.backward, "backward", "clipping")
        muon = counter.around(Muon.step, "Muon", "averaging")
        with (
            mock.patch.object(Tensor, "backward", backward),
            mock.patch.object(Muon, "step", muon),
            counter,
        ):
            step(run, x, y)
    return counter.launches


def main() -> None:
    """Print a Markdown table."""
    print("| launches | " + " | ".join(SECTIONS) + " | all |\n|---" + "|---" * 6 + "|")
    for name, config in NETWORKS.items():
        launches = count(config)
        sums = [
            sum(number for (place, _), number in launches.items() if place == section)
            for section in SECTIONS
        ]
        print(f"| {name} | " + " | ".join(map(str, [*sums, sum(sums)])) + " |", flush=True)


if __name__ == "__main__":
    main()
