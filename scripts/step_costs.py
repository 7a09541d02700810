"""Work out what a training step costs on a GPU: time, and memory. Needs no GPU.

    python scripts/step_costs.py

The network, the loss and the optimizer run on meta tensors, which have shapes but no values, in
half precision with weights in float32. Each operator takes the longest of three times: its
arithmetic at the sustained rate of the card, reading its inputs and writing its results once at the
sustained bandwidth, and its launch. Their sum is the time of a step. This is an estimate: kernels
may be slower than that, and a step also draws and augments its photos.

For the memory, each tensor that autograd saves is counted once. Parameters, gradients, optimizer
state and averaged weights are added. Temporary buffers of the convolutions, and the CUDA context
(0.3 to 0.5 GB), come on top."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from count_launches import is_launch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from unet_utils import TrainConfig, UNet, count_parameters, recipe
from unet_utils.device import computing_in
from unet_utils.losses import AuxiliaryHeads, segmentation_loss
from unet_utils.optimizer import make_optimizer
from unet_utils.use.check_sections import PHOTOS

# Weight, gradient, momentum, averaged weight, and one temporary copy in Muon's step.
BYTES_PER_PARAMETER = 4 * 5
BATCHES = (4, 8, 16, 32)


@dataclass(frozen=True)
class Card:
    """What a GPU keeps up.

    Attributes:
        arithmetic: floating point operations per second of matrix products in half precision.
        bandwidth: bytes per second.
    """

    arithmetic: float
    bandwidth: float


LAUNCH = 7e-6
"""Seconds that the host needs to launch an operator."""
CARDS = {
    # 65 TFLOP/s by its data sheet. Long runs of matrix products were measured at 24, because the
    # card is limited to 70 W: https://forums.developer.nvidia.com/t/about-gpu-peak-performance/264462
    # Three quarters of the 320 GB/s of the data sheet.
    "T4": Card(24e12, 240e9),
    # Two fifths and three quarters of the data sheet's 989 TFLOP/s and 3,350 GB/s. Not from a
    # measurement.
    "H100": Card(400e12, 2500e9),
}


class StepCosts(TorchDispatchMode):
    """Adds up what operators on meta tensors would cost.

    Attributes:
        section: where the next operators belong.
        operators: by section, the floating point operations and bytes of each.
    """

    def __init__(self) -> None:
        super().__init__()
        self.section = ""
        self.operators: dict[str, list[tuple[float, float]]] = defaultdict(list)

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Count an operator and run it."""
        kwargs = kwargs or {}
        result = operator(*args, **kwargs)
        if is_launch(operator):
            count = flop_registry.get(operator.overloadpacket)
            flops = count(*args, **kwargs, out_val=result) if count else 0
            moved = sum(map(_size, tree_leaves((args, kwargs, result))))
            self.operators[self.section].append((flops, moved))
        return result

    def seconds(self, section: str, card: Card) -> float:
        """Return how long a section takes."""
        return sum(
            max(flops / card.arithmetic, moved / card.bandwidth, LAUNCH)
            for flops, moved in self.operators[section]
        )

    def bound(self, card: Card) -> str:
        """Return which shares of the time are bound by arithmetic, by memory and by launches."""
        shares = [0.0, 0.0, 0.0]
        for operators in self.operators.values():
            for flops, moved in operators:
                times = (flops / card.arithmetic, moved / card.bandwidth, LAUNCH)
                shares[times.index(max(times))] += max(times)
        return ", ".join(f"{100 * share / sum(shares):.0f}" for share in shares)


def _size(value: Any) -> int:
    """Return the bytes of a tensor; of one that is expanded, those in memory."""
    if not isinstance(value, Tensor):
        return 0
    return min(value.numel() * value.element_size(), value.untyped_storage().nbytes())


def step_costs(config: TrainConfig, size: int) -> StepCosts:
    """Return the costs of a step with photos of this size, pixels."""
    costs = StepCosts()
    with (
        torch.device("meta"),
        computing_in(torch.half),
        costs,
    ):
        network = AuxiliaryHeads(UNet(**config.network(19)), config.auxiliary > 0).train()
        optimizer = make_optimizer(config, network, network.model.encoder)
        photos = torch.empty(config.batch_size, 3, size, size, dtype=torch.half)
        labels = torch.empty(config.batch_size, size, size, dtype=torch.int64)
        for _ in range(2):  # the first step also makes the state of the optimizer
            costs.operators.clear()
            costs.section = "network"
            # As autocast does it: convolutions get copies of the weights in half precision.
            weights = {name: value.half() for name, value in network.named_parameters()}
            outputs = functional_call(network, weights, (photos,))
            _, loss = segmentation_loss(
                outputs, labels, torch.empty(19), config.auxiliary, lambda tensor: tensor
            )
            optimizer.zero_grad()
            loss.backward()
            costs.section = "optimizer"
            optimizer.step()
    return costs


def epoch_seconds(config: TrainConfig, costs: StepCosts, card: Card) -> float:
    """Return how long the steps of an epoch take. Scoring and saving come on top."""
    share = 1 - 5 / 12 * config.growth  # while the input grows, steps take less
    step = costs.seconds("network", card) * share + costs.seconds("optimizer", card)
    return PHOTOS // config.batch_size * step


def print_times() -> None:
    """Print a Markdown table of the time of a step, an epoch and a training."""
    header = "| | card | TFLOP a step: network, optimizer | GB moved | ms: network, optimizer | "
    header += "% bound by arithmetic, memory, launches | images/s | s an epoch | epochs | minutes |"
    print(header + "\n" + "|---" * 10 + "|")
    variants = {
        "recipe `t4`": recipe("t4"),
        "recipe `gpu`": recipe("gpu"),
        "... on resnet34": recipe("gpu", encoder="resnet34"),
    }
    for name, config in variants.items():
        costs = step_costs(config, config.image_size)
        parts = costs.operators.values()
        work = [sum(flops for flops, _ in part) / 1e12 for part in parts]
        moved = sum(size for part in parts for _, size in part) / 1e9
        for card_name, card in CARDS.items():
            times = [costs.seconds(section, card) for section in costs.operators]
            epoch = epoch_seconds(config, costs, card)
            cells = [
                name,
                card_name,
                ", ".join(f"{flops:.2f}" for flops in work),
                f"{moved:.1f}",
                ", ".join(f"{1000 * seconds:.0f}" for seconds in times),
                costs.bound(card),
                f"{config.batch_size / sum(times):.0f}",
                f"{epoch:.1f}",
                f"{config.epochs}",
                f"{epoch * config.epochs / 60:.1f}",
            ]
            print(f"| {' | '.join(cells)} |")


def saved_bytes(model: UNet, config: TrainConfig, batch_size: int) -> int:
    """Return the size of all tensors that autograd saves in a step, without parameters."""
    parameters = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    # Holds the storages themselves, so that no address is used twice.
    saved: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            saved[storage._cdata] = storage
        return tensor

    size = config.image_size
    with torch.device("meta"), saved_tensors_hooks(pack, lambda tensor: tensor):
        photos = torch.empty(batch_size, 3, size, size, dtype=torch.half)
        labels = torch.empty(batch_size, size, size, dtype=torch.int64)
        outputs = AuxiliaryHeads(model, config.auxiliary > 0).half()(photos)
        weights = torch.empty(model.config["num_classes"])
        segmentation_loss(outputs, labels, weights, config.auxiliary, lambda tensor: tensor)
    return sum(storage.nbytes() for storage in saved.values())


def print_memory() -> None:
    """Print a Markdown table of the memory of a step."""
    variants = {
        "recipe `gpu`": recipe("gpu"),
        "... at half the width": recipe("gpu", base_channels=32),
        "... with fold 2, as recipe `t4`": recipe("gpu", fold=2),
        "... at 128x128 pixels": recipe("gpu", image_size=128),
        "... on resnet34": recipe("gpu", encoder="resnet34"),
    }
    print("| GB at batch size | " + " | ".join(map(str, BATCHES)) + " |")
    print("|---" * (1 + len(BATCHES)) + "|")
    for name, config in variants.items():
        with torch.device("meta"):
            model = UNet(**config.network(19)).half().train()
        fixed = count_parameters(model) * BYTES_PER_PARAMETER
        cells = [f"{(fixed + saved_bytes(model, config, batch)) / 2**30:.1f}" for batch in BATCHES]
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    print_times()
    print()
    print_memory()
