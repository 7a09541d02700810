"""The settings of a training run, and the recipes: good values for GPUs, a CPU, the demo set."""

import math
import os
import zlib
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from unet_utils.checkpoints import SET_BACK, read_facts, saved_settings
from unet_utils.encoders import ENCODERS, expanding_levels
from unet_utils.platform.files import user_path

LIMITS = {
    "base_channels": (1, math.inf),
    "fold": (1, math.inf),
    "image_size": (32, math.inf),
    "growth": (0, 1),
    "batch_size": (1, math.inf),
    "epochs": (1, math.inf),
    "learning_rate": (1e-12, math.inf),
    "final_rate": (0, 1),
    "encoder_rate": (0, math.inf),
    "frozen_epochs": (0, math.inf),
    "weight_decay": (0, math.inf),
    "augmentation": (0, 2),  # more would invert colours
    "cutmix": (0, 1),
    "class_weighting": (0, math.inf),
    "prior_correction": (0, math.inf),
    "auxiliary": (0, math.inf),
    "averaging": (0, math.inf),
    "seed": (-(2**63), 2**63 - 1),  # what torch takes
}
"""Smallest and largest value of each setting that is a number."""
CHOICES = {"encoder": ("none", *ENCODERS), "optimizer": ("muon", "adam")}
"""Possible values of each setting that is a name."""


@dataclass(frozen=True)
class TrainConfig:
    """The settings of a training run. `recipe` gives good values; the defaults here are neutral.

    Attributes:
        base_channels: width of the first level of the UNet; with an encoder, of the last level of
            the expanding path.
        fold: fold each fold x fold block of pixels into channels inside the network, see `UNet`.
        encoder: a network with ImageNet weights as the contracting path, see `encoders`, or "none"
            for the UNet's own.
        skips: False takes the skip connections away, see `UNet`.
        image_size: height and width of the network's input at the end of the training, pixels. If
            the frames are no squares, it has their shape and as many pixels as such a square.
            Scores are always at the size of the labels.
        growth: share of the training in which the input grows from half of `image_size` to all of
            it; 0 for full size from the start.
        batch_size: photos per step.
        epochs: number of times that every photo is used.
        optimizer: "muon" or "adam". Their learning rates mean about the same.
        learning_rate: maximum of the one-cycle schedule.
        final_rate: the schedule ends at this share of `learning_rate`. Above 0, the weights keep
            moving until the end, and `averaging` takes the place of small steps.
        encoder_rate: learning rate of the contracting path relative to `learning_rate`; 0 for the
            same.
        frozen_epochs: the contracting path keeps its weights for the first so many epochs: those of
            another run are not spoiled by a new last layer that has not learned anything yet.
        weight_decay: kernels shrink by this share of the learning rate per step.
        augmentation: strength of random zoom, rotation and colour, see `augment.draw_changes`; 0
            for the flip alone.
        cutmix: share of the photos in which boxes are filled with what another photo of the batch
            has there, so that the network cannot learn whole frames by heart.
        class_weighting: power of the inverse class frequency that weights the loss; 0 weights all
            pixels equally, 1 all classes.
        prior_correction: this fraction of log(class weight) is subtracted from each class logit of
            the trained model. 0 changes nothing, 1 removes the whole shift towards rare classes.
        auxiliary: weight of the loss of auxiliary heads on each level of the expanding path, in
            training only.
        averaging: the kept weights are a running average over about this share of the training.
        hold_out: keep some training frames out, and keep the epoch with the best score on them;
            otherwise train on all frames and keep the last epoch.
        compile: use torch.compile. The first steps then take minutes.
        seed: of the weights, the order and the augmentation.

    Raises:
        ValueError: an impossible value; the message names the setting.
    """

    base_channels: int = 64
    fold: int = 1
    encoder: str = "none"
    skips: bool = True
    image_size: int = 256
    growth: float = 0.0
    batch_size: int = 16
    epochs: int = 60
    optimizer: str = "muon"
    learning_rate: float = 6e-3
    final_rate: float = 0.0
    encoder_rate: float = 0.0
    frozen_epochs: int = 0
    weight_decay: float = 0.02
    augmentation: float = 1.0
    cutmix: float = 0.0
    class_weighting: float = 0.5
    prior_correction: float = 0.0
    auxiliary: float = 0.0
    averaging: float = 0.03
    hold_out: bool = True
    compile: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for setting in SETTINGS:
            self._check(setting.name, setting.type)
        if self.encoder != "none" and self.fold != 1:
            raise ValueError(
                f"fold is {self.fold}, but {self.encoder} takes photos as they are: set fold to 1"
            )
        step = self._step
        if self.image_size % step:
            raise ValueError(f"image_size is {self.image_size}: choose a multiple of {step}")
        if self.batch_size == 1 and self.input_size(0.0) == (step, step):
            raise ValueError(
                f"batch_size is 1 and an input of {step} pixels leaves a single pixel at the "
                "lowest level, which batch normalization cannot normalize: set batch_size to 2, or "
                f"image_size to {2 * step} and growth to 0"
            )

    def _check(self, name: str, kind: Any) -> None:
        value = getattr(self, name)
        if name in CHOICES:
            if value not in CHOICES[name]:
                choices = ", ".join(CHOICES[name])
                raise ValueError(f"{name} is {value!r}: choose one of {choices}")
            return
        # A whole number is a number, too; True and False are numbers only to Python.
        fits = isinstance(value, (int, float) if kind is float else kind)
        if not fits or (kind is not bool and isinstance(value, bool)):
            raise ValueError(f"{name} is {value!r}: it must be of the type {kind.__name__}")
        low, high = LIMITS.get(name, (0, 1))
        if not low <= value <= high or math.isinf(value):  # nan is not in any range
            up_to = f" and at most {high}" if high < math.inf else ""
            raise ValueError(f"{name} is {value}: it must be at least {low}{up_to}")

    @property
    def _step(self) -> int:
        return 32 if self.encoder != "none" else 16 * self.fold

    def _possible(self, pixels: float) -> int:
        """Return the nearest size that the network can take."""
        return max(1, round(pixels / self._step)) * self._step

    def input_size(self, done: float, aspect: float = 1.0) -> tuple[int, int]:
        """Return height and width of the network's input, pixels, at a share of the training.

        Args:
            done: share of the training, 0 to 1.
            aspect: width of the frames divided by their height.
        """
        share = 1.0 if done >= self.growth else 0.5 + 0.5 * done / self.growth
        return self._size(self.image_size * share, aspect)

    def _size(self, side: float, aspect: float) -> tuple[int, int]:
        return self._possible(side / aspect**0.5), self._possible(side * aspect**0.5)

    def scene_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the size at which the trained network sees a whole frame of this size, pixels.

        Augmentation zooms, so things are larger in training than in a whole frame. The frame is
        enlarged for that (as in https://arxiv.org/abs/1906.06423): by 1.19 at augmentation 1.
        """
        return self._size(self.image_size * 2 ** (self.augmentation / 4), width / height)

    def sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        """Return all sizes at which a run sees frames of this size, height and width in pixels."""
        growing = {self.input_size(percent / 100, width / height) for percent in range(101)}
        return sorted(growing | {self.scene_size(height, width)})

    def check_divisor(self, divisor: int, height: int, width: int) -> None:
        """Raise a ValueError if the input of the network, for frames of this size, is not always
        divisible by the divisor of a network of somebody else."""
        for high, wide in self.sizes(height, width):
            if high % divisor or wide % divisor:
                raise ValueError(
                    f"the network gets {wide}x{high} pixels in this run, but takes multiples of "
                    f"{divisor} (its attribute divisor, or 32): set fold to "
                    f"{math.lcm(16, divisor) // 16}, then all sizes are multiples of it"
                )

    def network(self, num_classes: int) -> dict:
        """Return the arguments of the `UNet`."""
        arguments: dict = {
            "num_classes": num_classes,
            "base_channels": self.base_channels,
            "fold": self.fold,
            "skips": self.skips,
        }
        if self.encoder != "none":
            # Coarse to fine; ConvNeXt has three levels, the others four.
            widths = [int(self.base_channels * factor) for factor in (4, 2, 1.5, 1)]
            arguments["encoder"] = self.encoder
            arguments["expanding_channels"] = widths[-expanding_levels(self.encoder) :]
        return arguments

    @classmethod
    def from_dict(cls, values: dict) -> "TrainConfig":
        """Return the settings that a checkpoint keeps.

        Raises:
            ValueError: one of them is not known here.
        """
        if unknown := sorted(values.keys() - {field.name for field in fields(cls)}):
            raise ValueError(
                f"a newer version of unet_utils made this run, with the setting {unknown[0]}: "
                "update the code, or choose another run name"
            )
        return cls(**values)

    def to_dict(self) -> dict:
        """Return the settings as plain values, for checkpoints and tables."""
        return asdict(self)


SETTINGS = fields(TrainConfig)
"""The dataclass fields of all settings, for the command line and tables."""

RECIPES = {
    "t4": TrainConfig(fold=2, epochs=45, prior_correction=0.5, auxiliary=0.4),
    "gpu": TrainConfig(prior_correction=0.5, auxiliary=0.4),
    "cpu": TrainConfig(
        base_channels=32,
        fold=2,
        batch_size=8,
        epochs=28,
        learning_rate=5e-3,
        augmentation=0.5,
        prior_correction=0.5,
        auxiliary=0.4,
    ),
    "demo": TrainConfig(base_channels=16, fold=2, batch_size=8, epochs=20, augmentation=0.5),
}
"""Settings for about 15 minutes on a T4, for a long training on a GPU, for two CPU cores, and for
the 240 pairs of the demo set. docs/training.md has the evidence, docs/gpu.md how the times on a GPU
were estimated."""

ENCODER_SETTINGS = {
    "fold": 1,
    "base_channels": 32,
    "image_size": 320,
    "growth": 0.75,
    "learning_rate": 6e-3,
    "encoder_rate": 0.1,
    "auxiliary": 0.4,
    "final_rate": 0.4,
    "averaging": 0.15,
}
"""What a pretrained encoder changes in each recipe."""


def recipe(name: str, **changes) -> TrainConfig:
    """Return the settings of a recipe, with those changed that are not None.

    Args:
        name: one of `RECIPES`.
        changes: settings of `TrainConfig`.

    Raises:
        ValueError: there is no such recipe or setting, or an impossible value.
    """
    if name not in RECIPES:
        raise ValueError(f"there is no recipe {name!r}: choose one of {', '.join(RECIPES)}")
    changes = _chosen(changes)
    if changes.get("encoder", "none") != "none":
        changes = ENCODER_SETTINGS | changes
    return replace(RECIPES[name], **changes)


def recipe_for(device: torch.device, data: str | Path) -> str:
    """Return the name of the recipe for a device and a data set (`"demo"` has its own).

    The recipe `gpu` takes longer and is chosen by its name alone.
    """
    if data == "demo":
        return "demo"
    return "cpu" if device.type == "cpu" else "t4"


def run_settings(
    folder: str | Path,
    backup: str | Path | None,
    machine: str,
    resume: bool = True,
    start_from: str | Path | None = None,
    **changed,
) -> TrainConfig:
    """Return the settings that a run will have, before anything uses them.

    A run that is resumed keeps its settings, whatever the recipe says; a new one has those of the
    recipe, and the network of the run whose weights it starts from. Then comes what the person set.
    One line says what that changes in a run.

    Args:
        folder, backup: of the run, as in `training.fit`.
        machine: name of the recipe.
        resume, start_from: as in `training.fit`.
        changed: settings that the person set; None counts as not set.

    Raises:
        ValueError: unknown recipe or setting, an impossible value, or a change that makes it
            another run, see `check_same_run`.
        FileNotFoundError: there is no checkpoint to start from.
    """
    changed = _chosen(changed)
    saved = saved_settings(folder, backup) if resume else None
    if saved is None:
        network = {}
        if start_from:
            begun = TrainConfig.from_dict(read_facts(start_from)["config"]).to_dict()
            network = {name: begun[name] for name in ("base_channels", "fold", "encoder", "skips")}
        return recipe(machine, **network | changed)
    if start_from:
        print(f"The run in {folder} is resumed, so it does not start from {start_from}.")
    before = TrainConfig.from_dict(saved)
    config = replace(before, **changed)
    check_same_run(before, config, folder)
    was = before.to_dict()
    changes = [
        f"{name} {value} (before: {was[name]})"
        for name, value in config.to_dict().items()
        if value != was[name]
    ]
    changed_to = f", changed: {', '.join(changes)}" if changes else ""
    print(f"Settings of the run in {folder}{changed_to}")
    return config


def check_same_run(before: TrainConfig, now: TrainConfig, folder: str | Path) -> None:
    """Check that two settings can belong to one run.

    Under one name stay: the network (all that decides names, shapes or groups of what is saved),
    and the held-out frames, on which the run is judged. Everything else may change.

    Raises:
        ValueError: one of them differs; the message names it.
    """
    is_now = _fixed(now)
    for name, was in _fixed(before).items():
        if was != is_now[name]:
            raise ValueError(
                f"the run in {folder} was begun with {name} {was}, now it is {is_now[name]}, which "
                f"makes it another run: {SET_BACK}"
            )


def _fixed(config: TrainConfig) -> dict[str, object]:
    """Return what may not change, under the name that messages use."""
    return {
        "base_channels": config.base_channels,
        "fold": config.fold,
        "encoder": config.encoder,
        "skips": config.skips,
        "optimizer": config.optimizer,
        "hold_out": config.hold_out,
        "auxiliary above 0:": config.auxiliary > 0,
        # These decide whether the contracting path is a group of its own in the optimizer.
        "encoder_rate or frozen_epochs above 0:": (
            config.encoder_rate > 0 or config.frozen_epochs > 0
        ),
    }


def run_name(
    data: str | Path, scheme: str, labels: str, start_from: str | Path = "", **changed
) -> str:
    """Return the name of a run from what it learns and from what the person set.

    What a recipe fills in is not part of the name, nor are the length of the training, the batch
    size and `compile`: a run begun on one machine is found again on another, and can be extended.

    Args:
        data: as in `sources.get_pairs`.
        scheme: name of the class scheme.
        labels: how masks become labels.
        start_from: as in `training.fit`; also "small".
        changed: settings that the person set; None counts as not set.
    """
    parts = [Path(os.path.abspath(user_path(data))).name.removesuffix(".zip")]
    parts += [part for part in (scheme, labels) if part not in ("cityscapes19", "restored")]
    if start_from:
        source = Path(start_from)
        # best.pt of a run says nothing, its folder does.
        parts.append(
            f"from-{source.parent.name if source.stem in ('best', 'last') else source.stem}"
        )
    for name, value in sorted(_chosen(changed).items()):
        if name not in ("epochs", "batch_size", "compile"):
            parts.append(f"{name}-{value:g}" if isinstance(value, float) else f"{name}-{value}")
    name = "_".join(parts)
    if len(name.encode()) > 200:  # no system allows more than 255
        name = f"{name[:60]}-{zlib.crc32(name.encode()):08x}"
    return name


def _chosen(changes: dict) -> dict:
    """Return the settings that are not None.

    Raises:
        ValueError: one is no setting.
    """
    names = [setting.name for setting in SETTINGS]
    if unknown := [name for name in changes if name not in names]:
        raise ValueError(f"there is no setting {unknown[0]!r}: choose from {', '.join(names)}")
    return {name: value for name, value in changes.items() if value is not None}


def settings_table(config: TrainConfig, machine: str) -> str:
    """Return a Markdown table of the settings, and the values of the recipe where they differ."""
    lines = ["| setting | value | recipe |", "|---|---|---|"]
    usual = RECIPES[machine].to_dict()
    for name, value in config.to_dict().items():
        lines.append(f"| {name} | {value} | {'' if value == usual[name] else usual[name]} |")
    return "\n".join(lines)
