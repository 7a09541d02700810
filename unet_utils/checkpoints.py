"""Checkpoints: files of tensors and plain values, complete at any moment, with a backup."""

import contextlib
import csv
import os
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from unet_utils.platform.files import (
    copy_verified,
    is_disk_full,
    make_backup_folder,
    replacing,
    user_path,
)

FORMAT = 1
"""Version of the checkpoint's layout."""
NAMES = ("best.pt", "history.csv", "last.pt")
"""The files of a run. `last.pt` holds all that is needed to resume; `best.pt` all that is needed to
use the model."""
PARTS = ("format", "model", "model_config", "epoch", "history", "config", "scheme")
"""The keys of every checkpoint."""


def read_checkpoint(path: str | Path) -> dict:
    """Read a checkpoint of tensors and plain values; nothing in it is executed.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is damaged, or not a checkpoint of this package.
    """
    path = user_path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no checkpoint at {path}: train one first (notebook 03, or TRAIN_DEMO in notebook 04), "
            "or name another file"
        )
    try:
        if path.stat().st_size == 0:
            raise ValueError("it is empty")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        if missing := [part for part in PARTS if part not in checkpoint]:
            raise ValueError(f"it lacks {', '.join(missing)}")
        if checkpoint["format"] > FORMAT:
            raise ValueError("a newer version of unet_utils wrote it")
    except Exception as error:  # torch, pickle and zipfile have different errors for a damaged file
        problem = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(
            f"{path} is not a usable checkpoint of unet_utils ({problem}): name another file, or train again"
        ) from error
    return checkpoint


def load_matching(model: nn.Module, checkpoint: dict, path: str | Path | None) -> None:
    """Load those weights of the checkpoint of another run, read from `path`, whose name and shape
    fit the model.

    Raises:
        ValueError: no weight fits.
    """
    own = model.state_dict()
    weights = checkpoint.get("averaged", checkpoint["model"])
    fitting = {
        name: value
        for name, value in weights.items()
        if name in own and own[name].shape == value.shape
    }
    if not any(value.ndim > 1 for value in fitting.values()):  # counters and biases fit by chance
        raise ValueError(
            f"no weight of {path} fits this network: choose a run with the same width and encoder"
        )
    model.load_state_dict(fitting, strict=False)
    print(f"Starting from {path}: {len(fitting)} of {len(own)} tensors fit.")


@dataclass
class RunFiles:
    """The files of one run, and their backup.

    Attributes:
        folder: where the run is written.
        backup: a second folder (on Drive) that gets a copy after every epoch; None for no backup.
        backup_failed: whether the last copy failed; a failure is reported once, not after every
            epoch.
        lock: a context that makes this process the only owner of the run.
    """

    folder: Path
    backup: Path | None = None
    backup_failed: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.lock = contextlib.nullcontext()

    @property
    def last(self) -> Path:
        """Path of the checkpoint to resume from."""
        return self.folder / "last.pt"

    @property
    def best(self) -> Path:
        """Path of the checkpoint to use."""
        return self.folder / "best.pt"

    def save(self, checkpoint: dict, is_best: bool) -> None:
        """Write the files of an epoch and copy them to the backup. A failure is reported, and the
        training continues.

        Raises:
            LockedError: another process has taken over the run.
        """
        try:
            if new_best := is_best or not self.best.exists():
                _write_best(self.best, checkpoint)
            with replacing(self.folder / "history.csv") as unfinished:
                write_csv(unfinished, checkpoint["history"])
            with replacing(
                self.last
            ) as unfinished:  # written last: it means that the epoch is complete
                torch.save(checkpoint, unfinished)
        except (OSError, RuntimeError) as error:  # torch.save turns a full disk into a RuntimeError
            advice = "free some space there" if is_disk_full(error) else "check that folder"
            print(
                f"Could not save epoch {checkpoint['epoch']} in {self.folder} ({error}): {advice}."
            )
            return
        if self.backup:
            self._copy_to_backup(self.backup, new_best)

    def _copy_to_backup(self, backup: Path, new_best: bool) -> None:
        try:
            make_backup_folder(backup)
            for name in NAMES:
                # Drive moves each replaced file to its bin, which counts as used space: copy only
                # what has changed.
                if (
                    name != "best.pt"
                    or new_best
                    or self.backup_failed
                    or not (backup / name).exists()
                ):
                    copy_verified(self.folder / name, backup / name)
        except OSError as error:
            if not self.backup_failed:
                advice = " Free some space there." if is_disk_full(error) else ""
                print(
                    f"Could not copy the checkpoint to {backup} ({error}).{advice} It is safe in {self.folder}, and "
                    "each epoch tries again."
                )
            self.backup_failed = True
        else:
            if self.backup_failed:
                print(f"Copies of the checkpoint in {backup} work again.")
            self.backup_failed = False

    def restore(self) -> None:
        """Restore a run from the backup if this machine has none. Of the backup, `last.pt` is
        enough.

        Raises:
            ValueError: the backup's `last.pt` is damaged; the message names it.
        """
        # os.path.isfile is False for a Drive that has dropped; Path.exists would raise.
        if not self.backup or self.last.exists() or not os.path.isfile(self.backup / "last.pt"):
            return
        checkpoint = read_checkpoint(self.backup / "last.pt")
        try:
            read_checkpoint(self.backup / "best.pt")
            copy_verified(self.backup / "best.pt", self.best)
        except (OSError, ValueError) as error:
            print(f"{error}. The weights of epoch {checkpoint['epoch']} are used as the best ones.")
            _write_best(self.best, checkpoint)
        with replacing(self.folder / "history.csv") as unfinished:
            write_csv(unfinished, checkpoint["history"])
        copy_verified(self.backup / "last.pt", self.last)

    def set_aside(self) -> None:
        """Rename the files of an earlier run of this name: `last.pt` becomes `last-1.pt`, and so
        on."""
        _rename_files(self.folder)
        if self.backup and not os.path.isdir(self.backup):
            print(
                f"{self.backup} cannot be reached: this run is not copied there, as it could replace an earlier one."
            )
            self.backup = None
        elif self.backup:
            try:
                _rename_files(self.backup)
            except OSError as error:
                print(
                    f"Could not rename the earlier run in {self.backup} ({error}): this run is not copied there."
                )
                self.backup = None


def _rename_files(folder: Path) -> None:
    number = 1
    while any(folder.glob(f"*-{number}.*")):
        number += 1
    for path in (folder / name for name in NAMES):
        if path.exists():
            earlier = path.rename(path.with_stem(f"{path.stem}-{number}"))
            print(f"An earlier {path.name} in {folder} is kept as {earlier.name}.")


def _write_best(path: Path, checkpoint: dict) -> None:
    """Write what is needed to use the model: the averaged weights, and nothing of the optimizer."""
    to_use = {key: checkpoint[key] for key in (*PARTS, "logit_shift") if key in checkpoint}
    with replacing(path) as unfinished:
        torch.save(to_use | {"model": checkpoint["averaged"]}, unfinished)


def write_csv(path: Path, rows: list[dict]) -> None:
    """Write rows as CSV; the columns are those of the last row."""
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[-1].keys(), extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
