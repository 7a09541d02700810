"""The settings of a training run, and the recipes: their values for a GPU, for a CPU and for the
demo set."""

from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import torch

from unet_utils.encoders import ENCODERS, expanding_levels


@dataclass(frozen=True)
class TrainConfig:
    """The settings of a training run. `recipe` gives good values; the defaults here are neutral.

    Attributes:
        base_channels: width of the first level of the UNet; with an encoder, of the last level of
            the expanding path.
        fold: fold each fold x fold block of pixels into channels inside the network, see `UNet`.
        encoder: a network with ImageNet weights as the contracting path, see `encoders`, or "none"
            for the UNet's own.
        image_size: height and width of the network's input at the end of the training, pixels.
            Scores are always at 256.
        growth: share of the training in which the input grows from half of `image_size` to all of
            it, because the first steps learn as much from small photos, in less time
            (https://arxiv.org/abs/2104.00298). 0 for full size from the start.
        batch_size: photos per step.
        epochs: number of times that every photo is used.
        learning_rate: maximum of the one-cycle schedule.
        final_rate: the schedule ends at this share of `learning_rate`. Above 0, the weights keep
            moving until the end, and `averaging` takes the place of small steps.
        encoder_rate: learning rate of the contracting path relative to `learning_rate`; 0 for the
            same.
        weight_decay: kernels shrink by this share of the learning rate per step.
        augmentation: strength of random zoom, rotation and colour, see `draw_changes`; 0 for the
            flip alone.
        class_weighting: power of the inverse class frequency that weights the loss; 0 weights all
            pixels equally, 1 all classes.
        prior_correction: this fraction of log(class weight) is subtracted from each class logit of
            the trained model. 0 changes nothing, 1 removes the whole shift towards rare classes.
        auxiliary: weight of the loss of auxiliary heads on each level of the expanding path, in
            training only.
        averaging: the kept weights are a running average over about this share of the training.
        hold_out: keep two training cities out, and keep the epoch with the best score on them;
            otherwise train on all frames and keep the last epoch.
        compile: use torch.compile. The first steps then take minutes.
        seed: of the weights, the order and the augmentation.
        chosen: names of the settings that the person chose; the others follow the recipe. None
            counts all as chosen. A resumed run must not differ from its checkpoint in a chosen
            setting, and keeps all others.

    Raises:
        ValueError: an impossible value; the message names the setting.
    """

    base_channels: int = 64
    fold: int = 1
    encoder: str = "none"
    image_size: int = 256
    growth: float = 0.0
    batch_size: int = 16
    epochs: int = 60
    learning_rate: float = 6e-3
    final_rate: float = 0.0
    encoder_rate: float = 0.0
    weight_decay: float = 0.02
    augmentation: float = 1.0
    class_weighting: float = 0.5
    prior_correction: float = 0.0
    auxiliary: float = 0.0
    averaging: float = 0.03
    hold_out: bool = True
    compile: bool = False
    seed: int = 0
    chosen: frozenset[str] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("base_channels", "fold", "batch_size", "epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1")
        for name in (
            "growth",
            "final_rate",
            "encoder_rate",
            "weight_decay",
            "augmentation",
            "class_weighting",
            "prior_correction",
            "auxiliary",
            "averaging",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must not be negative")
        if self.augmentation > 2:
            raise ValueError(
                f"augmentation is {self.augmentation}: choose 0 to 2, more would invert colours"
            )
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate is {self.learning_rate}: it must be positive")
        if self.encoder not in ("none", *ENCODERS):
            raise ValueError(
                f"encoder is {self.encoder!r}: choose one of none, {', '.join(ENCODERS)}"
            )
        if self.encoder != "none" and self.fold != 1:
            raise ValueError(
                f"fold is {self.fold}, but {self.encoder} takes photos as they are: set fold to 1"
            )
        for name, whole in (("growth", "training"), ("final_rate", "learning rate")):
            if getattr(self, name) > 1:
                raise ValueError(
                    f"{name} is {getattr(self, name)}: it is a share of the {whole}, choose 0 to 1"
                )
        step = self._step
        if self.image_size % step or self.image_size < 32:
            raise ValueError(
                f"image_size is {self.image_size}: choose a multiple of {step}, at least 32"
            )
        if self.batch_size == 1 and self.input_size(0.0) == step:
            raise ValueError(
                f"batch_size is 1 and an input of {step} pixels leaves a single pixel at the lowest level, which batch "
                f"normalization cannot normalize: set batch_size to 2, or image_size to {2 * step} and growth to 0"
            )

    @property
    def _step(self) -> int:
        return 32 if self.encoder != "none" else 16 * self.fold

    def _possible(self, pixels: float) -> int:
        """Return the nearest size that the network can take."""
        return max(1, round(pixels / self._step)) * self._step

    def input_size(self, done: float) -> int:
        """Return height and width of the network's input, pixels, when a share `done` of the
        training is over."""
        share = 1.0 if done >= self.growth else 0.5 + 0.5 * done / self.growth
        return self._possible(self.image_size * share)

    def work(self, done: float) -> float:
        """Return the share of the computation that is over when a share `done` of the training is
        over."""
        # The integral of the squared size: a third of its cube while the input grows.
        grown = min(done, self.growth)
        small = (
            2 / 3 * self.growth * ((0.5 + 0.5 * grown / self.growth) ** 3 - 0.125)
            if self.growth
            else 0.0
        )
        return (small + done - grown) / (1 - 5 / 12 * self.growth)

    def time_left(self, seconds: float, before: float, done: float) -> float:
        """Return the seconds that are left, if the training took `seconds` from the share `before`
        to `done`."""
        before, now = self.work(before), self.work(done)
        return seconds * (1 - now) / (now - before)

    def to_dict(self) -> dict:
        """Return the settings as plain values, for checkpoints and tables."""
        return {name: value for name, value in asdict(self).items() if name != "chosen"}

    @classmethod
    def from_dict(cls, settings: dict) -> "TrainConfig":
        """Return the settings of a checkpoint. Settings that it does not have get their neutral
        defaults."""
        return cls(
            **{
                setting.name: settings[setting.name]
                for setting in SETTINGS
                if setting.name in settings
            }
        )

    def network(self, num_classes: int) -> dict:
        """Return the arguments of the `UNet`."""
        network = {
            "num_classes": num_classes,
            "base_channels": self.base_channels,
            "fold": self.fold,
        }
        if self.encoder == "none":
            return network
        # Coarse to fine; ConvNeXt has three levels, the others four.
        widths = [int(self.base_channels * factor) for factor in (4, 2, 1.5, 1)]
        return network | {
            "encoder": self.encoder,
            "expanding_channels": widths[-expanding_levels(self.encoder) :],
        }

    def scene_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width at which the trained network sees a whole frame of this size,
        pixels.

        Square frames are squeezed scenes. They are shown wider than in training, by the square root
        of the largest zoom
        of the augmentation: objects are then about as large as they were there
        (https://arxiv.org/abs/1906.06423), and less squeezed. On held-out cities, this was better
        than showing height and width larger."""
        if height != width:
            return height, width
        return self.image_size, self._possible(self.image_size * 2 ** (self.augmentation / 2))


SETTINGS = tuple(setting for setting in fields(TrainConfig) if setting.name != "chosen")
"""The dataclass fields of all settings, for options and tables."""

RECIPES = {
    "gpu": TrainConfig(prior_correction=0.5, auxiliary=0.4),
    "cpu": TrainConfig(
        base_channels=32,
        fold=2,
        growth=0.75,
        batch_size=8,
        epochs=24,
        augmentation=0.5,
        prior_correction=0.5,
        auxiliary=0.4,
    ),
    "demo": TrainConfig(base_channels=16, fold=2, batch_size=8, epochs=20, augmentation=0.5),
}
"""Settings for a GPU, for two CPU cores, and for the 240 pairs of the demo set; docs/training.md
has the evidence."""


ENCODER_SETTINGS = {
    "fold": 1,
    "base_channels": 32,
    "image_size": 320,
    "growth": 0.75,
    "encoder_rate": 0.1,
    "auxiliary": 0.4,
    "final_rate": 0.4,
    "averaging": 0.15,
}
"""What a pretrained encoder changes in each recipe."""


def recipe(name: str, **knobs) -> TrainConfig:
    """Return the settings of a recipe, with those knobs changed that are not None.

    Args:
        name: `gpu`, `cpu` or `demo`; other names of devices count as `gpu`.
        knobs: settings of `TrainConfig`.

    Raises:
        ValueError: an impossible value.
    """
    chosen = {
        knob: value for knob, value in knobs.items() if value is not None and knob != "chosen"
    }
    settings = ENCODER_SETTINGS | chosen if chosen.get("encoder", "none") != "none" else chosen
    return replace(RECIPES.get(name, RECIPES["gpu"]), **settings, chosen=frozenset(chosen))


CHANGEABLE = ("epochs", "learning_rate", "compile")
"""Settings that may change when a run is resumed."""


def continued(config: TrainConfig, checkpoint: dict, path: Path) -> TrainConfig:
    """Return the settings of a resumed run: those of its checkpoint, and the chosen ones that may
    change.

    Raises:
        ValueError: a chosen setting differs from that of the checkpoint, and may not change.
    """
    saved, done = TrainConfig.from_dict(checkpoint["config"]), checkpoint["epoch"]
    changes, kept = {}, []
    for name in (setting.name for setting in SETTINGS):
        was, now = getattr(saved, name), getattr(config, name)
        if was == now:
            continue
        if config.chosen is not None and name not in config.chosen:
            kept.append(f"{name} {was} (not {now})")
            continue
        if name not in CHANGEABLE:
            raise ValueError(
                f"{path} was trained with {name} = {was}, now it is {now}: set it back to resume that run, choose "
                "another run name, or switch resume off to begin again"
            )
        changes[name] = now
    print(f"{path}: {done} of {saved.epochs} epochs are done.")
    if kept:
        print(f"Settings kept from the checkpoint: {', '.join(kept)}.")
    for name, value in changes.items():
        print(f"Resuming with {name} = {value} (before: {getattr(saved, name)}).")
    if done >= replace(saved, **changes).epochs:
        print("Nothing is left to train: set epochs (EPOCHS) higher, or choose another run name.")
    return replace(saved, **changes)


def explain_error(error: Exception, config: TrainConfig) -> None:
    """Raise a RuntimeError that names the setting to change, for errors of torch that a setting
    avoids."""
    if isinstance(error, torch.OutOfMemoryError):
        raise RuntimeError(
            f"the GPU's memory is full at batch_size {config.batch_size}, image_size {config.image_size}, "
            f"base_channels {config.base_channels}: halve batch_size first, then base_channels"
        ) from error
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        problem = next(iter(str(error).splitlines()), type(error).__name__)
        raise RuntimeError(
            f"torch.compile failed ({problem}): set compile to False (COMPILE)"
        ) from error


def settings_table(config: TrainConfig, name: str) -> str:
    """Return a Markdown table of the settings, and the values of the recipe `name` where they
    differ."""
    usual = RECIPES.get(name, RECIPES["gpu"])
    lines = ["| setting | value | recipe |", "|---|---|---|"]
    for setting in SETTINGS:
        value, default = getattr(config, setting.name), getattr(usual, setting.name)
        lines.append(f"| {setting.name} | {value} | {'' if value == default else default} |")
    return "\n".join(lines)
