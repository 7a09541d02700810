"""The folder of a run: whole at any moment, and of one process.

It holds `last.pt` (all that is needed to resume), `best.pt` (all that is needed to use the model of
the best epoch), `history.csv` (the history as a table) and `run.lock`; where somebody watches the
training, `time-lapse.json`.
"""

import contextlib
import os
import threading
from pathlib import Path

from filelock import FileLock, Timeout

from unet_utils.backup import NAMES, TIME_LAPSE, Backup, rename_files
from unet_utils.checkpoints import LAST, packed_checkpoint, read_checkpoint, write_table
from unet_utils.platform.files import copy_verified, is_disk_full, replacing, user_path

ONLY_TO_RESUME = ("averaged", "heads", "optimizer", "scaler", "first_epoch", "best_epoch")
"""Keys of `last.pt` that `best.pt` has not. Its `model` is the averaged one."""
LOCK_FILE = "run.lock"


class LockedError(RuntimeError):
    """Another process trains this run."""


class RunFiles:
    """The files of one run, for the one process that trains it.

        with RunFiles(folder, backup) as files:
            checkpoint = files.begin(resume=True)
            ...
            files.save(checkpoint, is_best)  # after each epoch

    Inside the context the run is locked. The system frees the lock when the process ends, however
    it ends.

    Args:
        folder: where the run is written, on the machine's own disk.
        backup: a second folder (on Drive). A thread copies the run there, and a run that is not in
            `folder` is restored from it.

    Attributes:
        saved: whether the state after the last epoch is on the disk.

    Raises:
        LockedError: another process trains this run; raised on entering the context.
    """

    def __init__(self, folder: str | Path, backup: str | Path | None = None):
        self.folder = user_path(folder)
        self.saved = True
        self._lock = FileLock(self.folder / LOCK_FILE, timeout=0)
        self._changing = threading.Lock()  # held while the files change, so that a copy fits
        self._backup = Backup(self.folder, user_path(backup), self._changing) if backup else None
        self._set_aside: tuple[str, ...] = ()  # files to rename before the next ones are written
        self._best_epoch = 0
        self._unsaved_best: memoryview | None = None  # what best.pt shall hold, until it does
        self._has_table = True

    @property
    def last(self) -> Path:
        """Path of the checkpoint to resume from."""
        return self.folder / LAST

    @property
    def best(self) -> Path:
        """Path of the checkpoint to use."""
        return self.folder / "best.pt"

    def __enter__(self) -> "RunFiles":
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire()
        except Timeout:
            raise LockedError(
                f"Another process trains the run in {self.folder}: stop it (another notebook or "
                "terminal on this machine), or choose another name for this run (RUN)"
            ) from None
        except (OSError, NotImplementedError) as error:
            print(
                f"Warning: {self.folder} cannot be locked ({error}): do not train this run in two "
                "notebooks at once."
            )
        if self._backup:
            self._backup.start()
        return self

    def __exit__(self, *_) -> None:
        try:
            if self._backup:
                self._backup.finish()
        finally:
            self._lock.release()

    def begin(self, resume: bool) -> dict | None:
        """Return the checkpoint to resume from, None for a new run.

        Files of an earlier run of this name are renamed (`last-1.pt`) when the first epoch of the
        new run is saved. A run that never saves an epoch leaves them as they are.

        Args:
            resume: look for `last.pt` in the folder, then in the backup. If False, begin again.

        Raises:
            ValueError: `last.pt` is damaged.
            OSError: the files could not be read, restored or mended.
        """
        checkpoint = None
        try:
            if resume:
                checkpoint = self._resume()
        except ValueError as error:
            raise ValueError(
                f"{error}. To begin again, switch resume off: the file is then renamed"
            ) from error
        except OSError as error:
            advice = "free some space there" if is_disk_full(error) else "check that folder"
            message = f"Could not restore the run in {self.folder} ({error}): {advice}"
            raise OSError(error.errno, message) from error
        if checkpoint is None:
            self._set_aside = NAMES
        elif self._backup:
            self._backup.hand_on(checkpoint)  # it may not be there yet
        return checkpoint

    def save(self, checkpoint: dict, is_best: bool) -> None:
        """Write the files of an epoch. A failure is reported and the training continues: the files
        stay those of the last epoch that was saved."""
        epoch = checkpoint["epoch"]
        try:
            if is_best:
                self._unsaved_best = packed_checkpoint(_model_to_use(checkpoint))
                self._best_epoch = epoch
            self._write(checkpoint | {"best_epoch": self._best_epoch}, self._unsaved_best)
        except (OSError, RuntimeError, MemoryError) as error:
            self.saved = False
            advice = "free some space there" if is_disk_full(error) else "check that folder"
            print(
                f"Could not save epoch {epoch} in {self.folder} ({error}): {advice}. "
                "The training continues, and each epoch tries again."
            )
        else:
            self.saved = True
            self._unsaved_best = None

    def _resume(self) -> dict | None:
        """Read the run in the folder, else restore it from the backup; mend its best.pt."""
        if os.path.isfile(self.last):
            source = self.folder
        elif self._backup and os.path.isfile(self._backup.target / LAST):
            source = self._backup.target
            self._set_aside = NAMES  # a best.pt in the folder is not of the run in the backup
        else:
            return None
        last = read_checkpoint(source / LAST)
        if "best_epoch" not in last:
            raise ValueError(f"{source / LAST} holds a model, but nothing to resume from")
        self._best_epoch = last["best_epoch"]
        found = None
        try:
            found = read_checkpoint(source / "best.pt")
        except (FileNotFoundError, ValueError) as error:
            print(f"{error}. The weights of epoch {last['epoch']} are used as the best ones.")
            self._set_aside = self._set_aside or ("best.pt",)
        best = found or _model_to_use(last)
        if best["epoch"] < self._best_epoch == last["epoch"]:
            best = _model_to_use(last)  # the process ended between last.pt and best.pt
        if best is not found or source != self.folder:
            self._write(last, packed_checkpoint(best))
        if source != self.folder and os.path.isfile(source / TIME_LAPSE):
            with contextlib.suppress(OSError):  # no training depends on it
                copy_verified(source / TIME_LAPSE, self.folder / TIME_LAPSE)
        return last

    def _write(self, last: dict, best: memoryview | None) -> None:
        """Replace last.pt and, if there is a new one, best.pt, after both are on the disk: if it is
        full, neither changes. Then write the table, on which nothing depends."""
        with self._changing:
            # The contexts end in reverse order, so last.pt is replaced first. If the process ends
            # just then, best.pt can be made from last.pt: the best epoch is the last one.
            with contextlib.ExitStack() as replaced:
                for path, content in ((self.best, best), (self.last, packed_checkpoint(last))):
                    if content is not None:
                        unfinished = replaced.enter_context(replacing(path))
                        with open(unfinished, "wb") as file:
                            file.write(content)
                            file.flush()
                            os.fsync(file.fileno())  # some disks say only here that they are full
                rename_files(self.folder, self._set_aside)
                self._set_aside = ()
            table = self.folder / "history.csv"
            self._has_table = write_table(table, last["history"], told=not self._has_table)
            if self._backup:
                self._backup.hand_on(last)


def _model_to_use(checkpoint: dict) -> dict:
    """Return what best.pt holds."""
    rest = {part: value for part, value in checkpoint.items() if part not in ONLY_TO_RESUME}
    return rest | {"model": checkpoint["averaged"]}
