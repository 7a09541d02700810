"""The folder of a run: whole at any moment, one owner, copied to a backup.

It holds `last.pt` (all that is needed to resume), `best.pt` (all that is needed to use the model of
the best epoch), `history.csv` (the history as a table) and `run.lock`; where somebody watches the
training, `time-lapse.json`.
"""

import contextlib
import io
import os
import secrets
import shutil
import threading
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from unet_utils.checkpoints import read_checkpoint, write_csv
from unet_utils.platform.files import (
    copy_verified,
    is_disk_full,
    make_backup_folder,
    replacing,
    user_path,
)

ONLY_TO_RESUME = ("averaged", "heads", "optimizer", "scaler", "first_epoch", "best_epoch")
"""Keys of `last.pt` that `best.pt` has not. Its `model` is the averaged one."""
TIME_LAPSE = "time-lapse.json"
"""What the network saw epoch by epoch, see `plots.time_lapse`: written after an epoch is saved."""
NAMES = ("best.pt", "last.pt", "history.csv", TIME_LAPSE)
"""The files of a run, in the order of copying: where `last.pt` has arrived, `best.pt` has too."""
LOCK_FILE = "run.lock"
OWNER_FILE = "owner.txt"
BACKUP_SECONDS = 300
"""Pause between two copies. Drive keeps each replaced file in its bin, which counts as used."""
FINISH_SECONDS = 300
"""How long the end of a run waits for the last copy."""


class LockedError(RuntimeError):
    """Another process trains this run."""


def run_folder(results: Path, name: str) -> Path:
    """Return the folder of the run `name`.

    Raises:
        ValueError: the name is empty, or would lead to another folder than one in `results`.
    """
    name = name.strip()
    if name in ("", ".", "..") or any(sign in name for sign in '/\\:*?"<>|\0'):
        raise ValueError(
            f"{name!r} is not a name for a run: choose one of letters, digits, - and _ (RUN), "
            "for example unet-2"
        )
    return results / name


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
        self._backup = _Backup(self.folder, user_path(backup), self._changing) if backup else None
        self._set_aside: tuple[str, ...] = ()  # files to rename before the next ones are written
        self._best_epoch = 0
        self._unsaved_best: memoryview | None = None  # what best.pt shall hold, until it does
        self._history_failed = False

    @property
    def last(self) -> Path:
        """Path of the checkpoint to resume from."""
        return self.folder / "last.pt"

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
            self._backup.thread.start()
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
                f"{error}. To begin again, switch resume off (RESUME): the file is then renamed"
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
                self._unsaved_best = _packed(_model_to_use(checkpoint))
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
        elif self._backup and os.path.isfile(self._backup.target / "last.pt"):
            source = self._backup.target
            self._set_aside = NAMES  # a best.pt in the folder is not of the run in the backup
        else:
            return None
        last = read_checkpoint(source / "last.pt")
        if "best_epoch" not in last:
            raise ValueError(f"{source / 'last.pt'} holds a model, but nothing to resume from")
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
            self._write(last, _packed(best))
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
                for path, content in ((self.best, best), (self.last, _packed(last))):
                    if content is not None:
                        unfinished = replaced.enter_context(replacing(path))
                        with open(unfinished, "wb") as file:
                            file.write(content)
                            file.flush()
                            os.fsync(file.fileno())  # some disks say only here that they are full
                _rename_files(self.folder, self._set_aside)
                self._set_aside = ()
            self._write_history(last["history"])
            if self._backup:
                self._backup.hand_on(last)

    def _write_history(self, history: list[dict]) -> None:
        try:
            with replacing(self.folder / "history.csv") as unfinished:
                write_csv(unfinished, history)
            self._history_failed = False
        except OSError as error:
            if not self._history_failed:
                print(
                    f"history.csv in {self.folder} could not be replaced ({error}): close it in "
                    "other programs. The run itself is saved, and each epoch tries again."
                )
            self._history_failed = True


class _Backup:
    """The copy of a run in a second folder, made by a thread so that training does not wait.

    Two machines may train one run with one backup. Who begins writes its own id into the folder.
    Who finds the id of another before it copies leaves the folder to it, and copies to a folder of
    its own beside it from then on.

    Args:
        folder: the folder of the run.
        target: where the copy goes.
        changing: held by whoever changes the files of the run.
    """

    def __init__(self, folder: Path, target: Path, changing: threading.Lock):
        self.folder = folder
        self.target = target
        self.changing = changing
        self.owner = secrets.token_hex(4)
        self.claimed = False  # whether `target` has our id, and nothing that we may not replace
        self.failed = False
        self.history: list[dict] = []
        self.here: dict[str, int] = {}  # which epoch each file is from
        self.there: dict[str, int] = {}  # which epoch its copy is from
        self.news = threading.Event()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._work, daemon=True)

    def hand_on(self, last: dict) -> None:
        """Let the thread know that files have changed; `last` is what last.pt holds."""
        self.history = list(last["history"])
        self.here = _epochs(last)
        self.news.set()

    def finish(self) -> None:
        """Wait until the newest state is copied, or say that it is not."""
        self.ended.set()
        self.news.set()
        if self._is_behind():
            print(f"Copying the last state of the run to {self.target} ...")
        self.thread.join(FINISH_SECONDS)
        if self._is_behind():
            print(
                f"The last state of the run is not in {self.target}, only in {self.folder}: "
                "download it, or start the run again when the backup is available."
            )

    def _work(self) -> None:
        while not self.ended.is_set():
            self.news.wait()
            self.news.clear()
            self._try()
            self.ended.wait(BACKUP_SECONDS)
        self.there.pop(TIME_LAPSE, None)  # the last epoch was added after its other files
        self._try()

    def _is_behind(self) -> bool:
        return any(self.there.get(name) != epoch for name, epoch in self.here.items())

    def _try(self) -> None:
        if not self._is_behind():
            return
        try:
            self._update()
        except LockedError:
            self._try()  # to another folder
        except Exception as error:  # whatever it is: the thread must live, Drive may come back
            if not self.failed:
                advice = " Free some space there." if is_disk_full(error) else ""
                print(
                    f"Could not copy the checkpoint to {self.target} ({error}).{advice} "
                    f"It is safe in {self.folder}, and copies are tried again."
                )
            self.failed = True
            self.news.set()
        else:
            if self.failed:
                print(f"Copies of the checkpoint in {self.target} work again.")
            self.failed = False

    def _update(self) -> None:
        """Copy the files that have changed, as they are at one moment."""
        snapshot = self.folder / ".snapshot"
        try:
            with self.changing:
                epochs, history = self.here, self.history
                shutil.rmtree(snapshot, ignore_errors=True)  # of a process that was killed
                snapshot.mkdir()
                for path in (self.folder / name for name in NAMES):
                    if path.exists():
                        _link(path, snapshot / path.name)
            self._claim(history)
            for name, epoch in epochs.items():
                if self.there.get(name) != epoch:
                    if (snapshot / name).exists():  # a table may never have been written
                        with replacing(self.target / name) as unfinished:
                            copy_verified(snapshot / name, unfinished)
                            if self._owner_there() != self.owner:  # since the copy began
                                raise LockedError
                    self.there[name] = epoch
        finally:
            shutil.rmtree(snapshot, ignore_errors=True)

    def _claim(self, history: list[dict]) -> None:
        """Make sure that `target` is ours, and that what is in it may be replaced by a state with
        this history."""
        make_backup_folder(self.target)
        owner = self._owner_there()
        if self.claimed and owner == self.owner:
            return
        if self.claimed and owner is not None:
            taken = self.target
            self.target = taken.with_name(f"{taken.name}-{self.owner}")
            make_backup_folder(self.target)
            print(
                f"Another machine has begun to train the run in {taken}: this one is now copied "
                f"to {self.target}, as a run of its own."
            )
        with replacing(self.target / OWNER_FILE) as unfinished:
            unfinished.write_text(self.owner)
        there = self._epochs_there(history)
        if there is None:
            _rename_files(self.target, NAMES)
        self.there = there or {}
        self.claimed = True

    def _owner_there(self) -> str | None:
        try:
            return (self.target / OWNER_FILE).read_text()
        except FileNotFoundError:
            return None

    def _epochs_there(self, history: list[dict]) -> dict[str, int] | None:
        """Return which epoch each file in `target` is from; None if they are not an earlier state
        of the run with this history."""
        found = [name for name in NAMES if os.path.isfile(self.target / name)]
        if not found:
            return {}
        try:
            last = read_checkpoint(self.target / "last.pt")
        except (FileNotFoundError, ValueError):
            return None
        if str(last["history"]) != str(history[: len(last["history"])]):
            return None
        return {name: epoch for name, epoch in _epochs(last).items() if name in found}


def _epochs(last: dict) -> dict[str, int]:
    """Return which epoch each file of a run is from; `last` is what last.pt holds."""
    return {
        "best.pt": last["best_epoch"],
        "last.pt": last["epoch"],
        "history.csv": last["epoch"],
        TIME_LAPSE: last["epoch"],
    }


def _model_to_use(checkpoint: dict) -> dict:
    """Return what best.pt holds."""
    rest = {part: value for part, value in checkpoint.items() if part not in ONLY_TO_RESUME}
    return rest | {"model": checkpoint["averaged"]}


def _packed(checkpoint: dict) -> memoryview:
    """Return the content of a file. Where torch itself writes a file, a full disk ends in errors
    such as "unexpected pos 576 vs 534"; Python says what it is."""
    file = io.BytesIO()
    torch.save(checkpoint, file)
    return file.getbuffer()


def _rename_files(folder: Path, names: tuple[str, ...]) -> None:
    """Rename those of the files that are there: last.pt becomes last-1.pt, and so on."""
    number = 1
    while any(folder.glob(f"*-{number}.*")):
        number += 1
    for path in (folder / name for name in names):
        if path.exists():
            earlier = path.rename(path.with_stem(f"{path.stem}-{number}"))
            print(f"An earlier {path.name} in {folder} is kept as {earlier.name}.")


def _link(source: Path, target: Path) -> None:
    """Give a file a second name, under which it stays when the first one is replaced."""
    try:
        os.link(source, target)
    except OSError:  # not every file system has links
        shutil.copyfile(source, target)
