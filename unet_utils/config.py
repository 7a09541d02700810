"""The knobs of a training run, and the values they have on a GPU, on a CPU and on the demo set."""

from dataclasses import dataclass, replace

from unet_utils.model import ENCODERS


@dataclass(frozen=True)
class TrainConfig:
    """The knobs of a training run. Defaults are those of a GPU; `recipe` gives the ones for other situations.

    Attributes:
        base_channels: width of the UNet's first level.
        fold: each fold x fold block of pixels becomes one with more channels inside the network, see `UNet`.
        encoder: a torchvision network as the contracting path, started from its ImageNet weights, or "none" for the
            UNet's own.
        image_size: height and width that the network sees, pixels. Scores are always at 256.
        batch_size: photos a step.
        epochs: times that every photo is seen.
        learning_rate: largest rate of the one-cycle schedule.
        weight_decay: share of the learning rate that kernels shrink by in a step.
        augmentation: strength of random zoom, rotation and colour, see `draw_changes`; 0 for the flip alone.
        class_weighting: power of the inverse class frequency that weights the loss; 0 treats all pixels alike, 1 all
            classes.
        averaging: the weights kept are a running average over about this share of the training.
        hold_out: keep two training cities out, and keep the epoch that is best on them; otherwise train on
            everything and keep the last epoch.
        sync_batchnorm: where several processes train together, normalise over the whole batch as one process would,
            and not over the part of each, which is a little faster.
        compile: let torch.compile make the network's code. Takes minutes to begin with.
        seed: of the weights, the order and the augmentation.

    Raises:
        ValueError: a value that cannot be; the message names the knob.
    """

    base_channels: int = 64
    fold: int = 1
    encoder: str = "none"
    image_size: int = 256
    batch_size: int = 16
    epochs: int = 60
    learning_rate: float = 6e-3
    weight_decay: float = 0.02
    augmentation: float = 1.0
    class_weighting: float = 0.5
    averaging: float = 0.03
    hold_out: bool = True
    sync_batchnorm: bool = True
    compile: bool = False
    seed: int = 0

    def __post_init__(self):
        for name in ("base_channels", "fold", "batch_size", "epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if self.encoder not in ("none", *ENCODERS):
            raise ValueError(f"encoder is {self.encoder!r}: choose one of none, {', '.join(ENCODERS)}")
        if self.encoder != "none" and self.fold != 1:
            raise ValueError(f"fold is {self.fold}, but {self.encoder} takes photos as they are: set fold to 1")
        step = 32 if self.encoder != "none" else 16 * self.fold
        if self.image_size % step or self.image_size < 32:
            raise ValueError(f"image_size is {self.image_size}: choose a multiple of {step}, at least 32")


RECIPES = {
    "gpu": TrainConfig(),
    "cpu": TrainConfig(base_channels=16, fold=2, batch_size=8, epochs=32, augmentation=0.5),
    "demo": TrainConfig(base_channels=16, fold=2, batch_size=8, epochs=20, augmentation=0.5),
}
"""Settings for a GPU, for a laptop's CPU, and for the 240 pairs of the demo set."""


def recipe(name: str, **knobs) -> TrainConfig:
    """The settings of a recipe, with those knobs changed that are not None.

    Args:
        name: `gpu`, `cpu` or `demo`; any other device type counts as `gpu`.

    Raises:
        ValueError: a value that cannot be.
    """
    knobs = {name: value for name, value in knobs.items() if value is not None}
    if knobs.get("encoder", "none") != "none":
        knobs.setdefault("fold", 1)  # the only one that an encoder takes
    return replace(RECIPES.get(name, RECIPES["gpu"]), **knobs)
