"""Learning rate, input size and averaging over the steps of a run, and the time that is left."""

import math
from dataclasses import dataclass

from unet_utils.config import TrainConfig


@dataclass(frozen=True)
class Schedule:
    """What changes from step to step of a run, for its settings.

    Attributes:
        config: the settings.
        steps_per_epoch: number of steps of each epoch.
        first_epoch: epochs that were done before this schedule began: 0, or the length of a run
            that had ended and is extended by a schedule of its own.
    """

    config: TrainConfig
    steps_per_epoch: int
    first_epoch: int = 0

    @property
    def steps(self) -> int:
        """Number of steps of this schedule."""
        return (self.config.epochs - self.first_epoch) * self.steps_per_epoch

    def learning_rate(self, step: int) -> float:
        """One cycle (https://arxiv.org/abs/1708.07120): warm-up over a tenth, then a cosine.

        Args:
            step: counted from the start of the run, like in the other methods.
        """
        step -= self.first_epoch * self.steps_per_epoch
        warm = max(1, self.steps // 10)
        if step < warm:
            return self.config.learning_rate * (step + 1) / warm
        wave = math.cos(math.pi * (step - warm) / (self.steps - warm))
        final = self.config.final_rate
        return self.config.learning_rate * (1 + final + (1 - final) * wave) / 2

    def input_size(self, step: int, aspect: float = 1.0) -> tuple[int, int]:
        """Return height and width of the network's input, pixels; extended runs stay at full size.

        The first steps learn as much from small photos in less time
        (https://arxiv.org/abs/2104.00298).

        Args:
            step: counted from the start of the run.
            aspect: width of the frames divided by their height.
        """
        done = 1.0 if self.first_epoch else step / self.steps
        return self.config.input_size(done, aspect)

    @property
    def averaging(self) -> float:
        """Share of the new weights in the running average at each step."""
        return 1 / max(1.0, self.config.averaging * self.steps)

    def time_left(self, seconds: float, before: float, done: float) -> float:
        """Return the seconds left, if the training took `seconds` from `before` to `done`.

        Args:
            seconds: measured.
            before, done: shares of the training, by its steps, 0 to 1.
        """
        now = self._work(done)
        return seconds * (1 - now) / (now - self._work(before))

    def _work(self, done: float) -> float:
        """Return the share of the computation that a share `done` of the steps takes."""
        growth = self.config.growth
        if not growth or self.first_epoch:
            return done
        # The integral of the squared size: a third of its cube while the input grows.
        grown = min(done, growth)
        small = 2 / 3 * growth * ((0.5 + 0.5 * grown / growth) ** 3 - 0.125)
        return (small + done - grown) / (1 - 5 / 12 * growth)
