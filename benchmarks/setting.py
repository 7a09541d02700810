"""What all rows of the benchmark share: data, device and sizes."""

from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import torch

from unet_utils import CityscapesPairs, Frames, TrainConfig, prepare


@dataclass
class Setting:
    """Data, device and sizes.

    Attributes:
        root: folder of the pairs.
        cache: folder for prepared arrays.
        device: where networks run.
        config: the training recipe of that device, on a CPU at half its width; at full size from
            the start.
        rounds: number of measured turns.
        pairs: maximum number of training pairs.
        images: images per epoch in row 2.
        minutes: training time of each contender in row 7.
    """

    root: Path
    cache: Path
    device: torch.device
    config: TrainConfig
    rounds: int
    pairs: int
    images: int
    minutes: float

    def __getstate__(self) -> dict:
        """Leave the arrays out when pickled: a new process maps them itself."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def train_pairs(self, count: int | None = None) -> CityscapesPairs:
        """The first training pairs."""
        pairs = CityscapesPairs(self.root, "train")
        pairs.paths = pairs.paths[: min(self.pairs, count or self.pairs)]
        return pairs

    @cached_property
    def frames(self) -> Frames:
        """The first `pairs` frames of the training split, labels restored."""
        return prepare(self.root, "train", self.cache, progress=False).part(slice(self.pairs))

    @property
    def paths(self) -> list[Path]:
        """The files of `frames`."""
        return self.train_pairs().paths
