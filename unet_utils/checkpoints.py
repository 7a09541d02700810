"""Checkpoints: files that are whole at any moment, hold tensors and plain values only, and have a second copy."""

import csv
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from unet_utils.platform.environment import beside

NAMES = ("best.pt", "history.csv", "last.pt")
"""The files of a run. `last.pt` holds everything needed to go on; `best.pt` what is needed to use the model."""
PARTS = ("format", "model", "model_config", "epoch", "history", "config", "scheme")
"""What every checkpoint holds."""


def read_checkpoint(path: str | Path) -> dict:
    """Reads a checkpoint of tensors and plain values; nothing in it is executed.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is damaged, or something else than a checkpoint of this package.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no checkpoint at {path}: train one first (notebook 03, or TRAIN_DEMO in notebook 04), "
            "or name another file"
        )
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        if missing := [part for part in PARTS if part not in checkpoint]:
            raise ValueError(f"it lacks {', '.join(missing)}")
    except Exception as error:  # torch, pickle and zipfile each have their own words for a damaged file
        raise ValueError(
            f"{path} is not a usable checkpoint of unet_utils ({error}): name another file, or train again"
        ) from error
    return checkpoint


@dataclass(frozen=True)
class RunFiles:
    """The files of one run, and their second copy."""

    folder: Path
    backup: Path | None = None

    @property
    def last(self) -> Path:
        return self.folder / "last.pt"

    @property
    def best(self) -> Path:
        return self.folder / "best.pt"

    def save(self, checkpoint: dict, is_best: bool) -> None:
        """Writes the files of an epoch, then copies them. If either fails, says so and lets the training go on."""
        to_use = {key: checkpoint[key] for key in PARTS} | {"model": checkpoint["averaged"]}
        try:
            if is_best or not self.best.exists():
                _write(self.best, lambda path: torch.save(to_use, path))
            _write(self.folder / "history.csv", lambda path: write_csv(path, checkpoint["history"]))
            _write(self.last, lambda path: torch.save(checkpoint, path))  # last: it says that the epoch is done
        except (OSError, RuntimeError) as error:  # torch.save turns a full disk into a RuntimeError
            print(f"Could not save epoch {checkpoint['epoch']} in {self.folder} ({error}): free some space there.")
            return
        if self.backup:
            try:
                self.backup.mkdir(parents=True, exist_ok=True)
                for name in NAMES:
                    _copy_verified(self.folder / name, self.backup / name)
            except OSError as error:
                print(f"Could not copy the checkpoint to {self.backup} ({error}). It is safe in {self.folder}.")

    def restore(self) -> None:
        """Brings a run back from the second copy when this machine has none."""
        if self.backup and not self.last.exists() and (self.backup / "last.pt").exists():
            for name in NAMES:
                _copy_verified(self.backup / name, self.folder / name)

    def set_aside(self) -> None:
        """Renames the files of an earlier run of this name: `last.pt` becomes `last-1.pt`, and so on."""
        for folder in filter(None, (self.folder, self.backup)):
            number = 1
            while any(folder.glob(f"*-{number}.*")):
                number += 1
            for path in (folder / name for name in NAMES):
                if path.exists():
                    path.rename(path.with_stem(f"{path.stem}-{number}"))


def _write(path: Path, write: Callable[[Path], None]) -> None:
    """Writes beside and swaps in, so that the file is whole at any moment, a power cut included."""
    unfinished = beside(path)
    write(unfinished)
    with open(unfinished, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(unfinished, path)


def _copy_verified(source: Path, target: Path) -> None:
    unfinished = beside(target)
    shutil.copyfile(source, unfinished)
    if unfinished.read_bytes() != source.read_bytes():
        raise OSError(f"the copy of {source.name} differs from the original")
    os.replace(unfinished, target)


def write_csv(path: Path, rows: list[dict]) -> None:
    """Writes rows as CSV; the last one says which columns there are."""
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[-1].keys())
        writer.writeheader()
        writer.writerows(rows)
