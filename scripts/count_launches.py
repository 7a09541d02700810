"""Count what a training step launches on a GPU. Needs no GPU.

    python scripts/count_launches.py

A launch is an operator that torch dispatches, unless it only returns a view or allocates memory.
The host needs about 5 to 10 microseconds for each, whatever the size of the tensors, so a fast GPU
waits for the host when there are many. An operator on a list of tensors counts once; it launches a
few kernels, or one per tensor where the layouts in memory differ.

The package's own step runs in bfloat16 on the CPU, with random weights and two small photos: the
number of launches does not depend on their size. Takes about a minute.
"""

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn.functional import conv2d
from torch.utils._python_dispatch import TorchDispatchMode

from unet_utils import Frames, TrainConfig, UNet, get_scheme, recipe
from unet_utils.device import computing_in
from unet_utils.optimizer import Muon
from unet_utils.training import OneProcess, TrainingState, train_epoch

CLASSES = 19
SECTIONS = ("batch, forward and loss", "backward", "clipping", "Muon", "averaging")
NETWORKS = {
    "recipe `t4`": recipe("t4"),
    "recipe `gpu`": recipe("gpu"),
    "... on resnet34": recipe("gpu", encoder="resnet34"),
    "... on convnext_tiny": recipe("gpu", encoder="convnext_tiny"),
    "... on efficientnet_lite2": recipe("gpu", encoder="efficientnet_lite2"),
}
NO_KERNEL = ("_unsafe_view", "empty", "empty_like", "empty_strided", "new_empty", "detach")
"""Operators that launch nothing, though their schema does not say that they return a view."""


def is_launch(operator: Any) -> bool:
    """Return whether an operator launches something: it does not only return a view or allocate."""
    returned = [result.alias_info for result in operator._schema.returns]
    is_view = any(alias is not None and not alias.is_write for alias in returned)
    return not is_view and operator.overloadpacket.__name__ not in NO_KERNEL


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
        if is_launch(operator):
            self.launches[self.section, operator.overloadpacket.__name__] += 1
        return operator(*args, **(kwargs or {}))

    def around(self, function: Callable, during: str, after: str) -> Callable:
        """Return the function; what it launches counts as `during`, what follows as `after`."""

        def call(*args: Any, **kwargs: Any) -> Any:
            self.section = during
            result = function(*args, **kwargs)
            self.section = after
            return result

        return call


def depthwise(x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int) -> Tensor:
    """What GPUs use in the place of `encoders.Depthwise`."""
    return conv2d(x, weight, bias, stride, padding, groups=len(weight))


def count(config: TrainConfig, size: int = 64) -> Counter[tuple[str, str]]:
    """Return the launches from one step to the next, with two photos of this size.

    It is the second step of an epoch: the first one also makes the state of the optimizer.
    """
    counter = LaunchCounter()
    config = replace(config, batch_size=2, image_size=size, growth=0.0, augmentation=0.0)
    photos = torch.randint(256, (4, size, size, 3), dtype=torch.uint8)
    label_ids = torch.full((4, size, size), 7, dtype=torch.uint8)
    frames = Frames(photos, label_ids, get_scheme("cityscapes19"), (1, 2, 3, 4))
    with ExitStack() as stack:
        stack.enter_context(computing_in(torch.bfloat16))
        stack.enter_context(mock.patch("unet_utils.encoders.Depthwise.apply", depthwise))
        model = UNet(**config.network(CLASSES))
        state = TrainingState(model, frames, config, torch.device("cpu"), OneProcess())
        steps: list[Counter[tuple[str, str]]] = []

        def end_of_step(share: float) -> None:
            average(share)
            steps.append(counter.launches.copy())
            counter.launches.clear()
            counter.section = SECTIONS[0]

        average = state.average
        backward = counter.around(Tensor.backward, "backward", "clipping")
        muon = counter.around(Muon.step, "Muon", "averaging")
        stack.enter_context(mock.patch.object(Tensor, "backward", backward))
        stack.enter_context(mock.patch.object(Muon, "step", muon))
        stack.enter_context(mock.patch.object(state, "average", end_of_step))
        stack.enter_context(counter)
        train_epoch(state, frames, config, OneProcess())
    return steps[1]


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
