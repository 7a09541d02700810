"""Count the memory that a training step of the GPU recipe keeps for the backward pass. Needs no
GPU.

    python scripts/activation_memory.py

The network runs on meta tensors, which have shapes but no values, in half precision; each tensor
that autograd saves is counted once. Parameters, gradients, optimizer state and averaged weights are
added. Temporary buffers of the convolutions, and the CUDA context (0.3 to 0.5 GB), come on top."""

import torch
from torch.autograd.graph import saved_tensors_hooks

from unet_utils import TrainConfig, UNet, count_parameters, recipe
from unet_utils.losses import AuxiliaryHeads, segmentation_loss

# Weight, gradient, momentum, averaged weight, and one temporary copy in Muon's step.
BYTES_PER_PARAMETER = 4 * 5
BATCHES = (4, 8, 16, 32)


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


def main() -> None:
    """Print a Markdown table."""
    variants = {
        "GPU recipe": recipe("gpu"),
        "... at half the width": recipe("gpu", base_channels=32),
        "... with fold 2": recipe("gpu", fold=2),
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
    main()
