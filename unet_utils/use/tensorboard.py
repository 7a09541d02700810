"""Event files for TensorBoard, where the package tensorboard is installed (Colab has it)."""

import math
from pathlib import Path
from typing import Any

from unet_utils.model import UNet


class TensorBoardLog:
    """Write the history of a run as TensorBoard events. Pass it to `fit` as `on_epoch`.

    Without the package tensorboard it does nothing. To look at the runs: `tensorboard --logdir
    runs`, or in a notebook `%load_ext tensorboard` and `%tensorboard --logdir runs`.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.writer: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except Exception:  # missing, or it does not fit the other packages
            self.make_writer = None
        else:
            self.make_writer = SummaryWriter

    def __call__(self, history: list[dict], model: UNet | None = None) -> None:
        """Write the last epoch; the first call writes all epochs of the history."""
        if not self.make_writer:
            return
        try:
            rows = history[-1:]
            if self.writer is None:
                # Epochs may appear in an earlier event file and again after an interruption: begin
                # a new one.
                for earlier in self.folder.glob("events.out.tfevents.*"):
                    earlier.unlink()
                self.writer, rows = self.make_writer(str(self.folder)), history
            for row in rows:
                for name, value in row.items():
                    if name != "epoch" and isinstance(value, int | float) and math.isfinite(value):
                        self.writer.add_scalar(name, value, row["epoch"])
            self.writer.flush()
        except Exception as error:  # a log is no reason to stop the training
            print(f"Warning: no more TensorBoard events are written to {self.folder} ({error}).")
            self.make_writer = None
