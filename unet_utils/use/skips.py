"""What the skip connections of a trained model are good for: take them away, finest first."""

import contextlib
from collections.abc import Iterator

from torch import Tensor, nn

from unet_utils.model import OtherNetwork, UNet


@contextlib.contextmanager
def without_skips(model: UNet | OtherNetwork, levels: int) -> Iterator[UNet]:
    """Take the finest skip connections away from a trained model, inside of a `with` block.

        with without_skips(trained.model, 1):
            classes = predict_classes(trained.model, photos, trained.scene_size)

    Each channel of such a skip becomes its mean over the photo: the expanding path still gets
    numbers of the size that it has learned to expect, but they no longer say where something is.
    Zeros would also damage it by their size.

    Args:
        model: a trained UNet; afterwards it is as before.
        levels: number of skips to take away, from 0 to `len(model.up)`.

    Yields:
        The model.

    Raises:
        ValueError: it has not so many skips, or is no UNet of this package.
    """
    if not isinstance(model, UNet):
        raise ValueError(f"only a UNet of this package has known skips, not {type(model).__name__}")
    if not 0 <= levels <= len(model.up):
        raise ValueError(f"levels is {levels}: this network has {len(model.up)} skips")
    # The expanding path goes from coarse to fine.
    finest = model.up[len(model.up) - levels :]
    handles = [up.register_forward_pre_hook(_average_skip) for up in finest]
    try:
        yield model
    finally:
        for handle in handles:
            handle.remove()


def _average_skip(_: nn.Module, inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Change the arguments of `Up.forward`."""
    x, skip = inputs
    return x, skip.mean((2, 3), keepdim=True).expand_as(skip)
