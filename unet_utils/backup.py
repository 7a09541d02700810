"""The copy of a run in a second folder, on Drive: made by a thread, and of one machine."""

import os
import secrets
import shutil
import threading
from pathlib import Path

from unet_utils.checkpoints import LAST, read_facts
from unet_utils.platform.files import copy_verified, is_disk_full, make_backup_folder, replacing

TIME_LAPSE = "time-lapse.json"
"""What the network saw epoch by epoch, see `plots.time_lapse`: written after an epoch is saved."""
NAMES = ("best.pt", LAST, "history.csv", TIME_LAPSE)
"""The files of a run, in the order of copying: where `last.pt` has arrived, `best.pt` has too."""
OWNER_FILE = "owner.txt"
BACKUP_SECONDS = 300
"""Pause between two copies. Drive keeps each replaced file in its bin, which counts as used."""
FINISH_SECONDS = 300
"""How long the end of a run waits for the last copy."""


class _OvertakenError(Exception):
    """Another machine has put its id into the backup."""


class Backup:
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

    def start(self) -> None:
        """Begin to copy what `hand_on` announces."""
        self.thread.start()

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
        except _OvertakenError:
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
                                raise _OvertakenError
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
            rename_files(self.target, NAMES)
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
            last = read_facts(self.target / LAST)
        except (FileNotFoundError, ValueError):
            return None
        if str(last["history"]) != str(history[: len(last["history"])]):
            return None
        return {name: epoch for name, epoch in _epochs(last).items() if name in found}


def _epochs(last: dict) -> dict[str, int]:
    """Return which epoch each file of a run is from; `last` is what last.pt holds."""
    return {
        "best.pt": last["best_epoch"],
        LAST: last["epoch"],
        "history.csv": last["epoch"],
        TIME_LAPSE: last["epoch"],
    }


def rename_files(folder: Path, names: tuple[str, ...]) -> None:
    """Rename those of the files that are there: last.pt becomes last-1.pt, and so on."""
    number = 1
    while any(folder.glob(f"*-{number}.*")):
        number += 1
    for path in (folder / name for name in names):
        if path.exists():
            try:
                earlier = path.rename(path.with_stem(f"{path.stem}-{number}"))
            except OSError:
                if path.suffix == ".pt":
                    raise
                continue  # a table that is open in Excel: what is in it is in last.pt, too
            print(f"An earlier {path.name} in {folder} is kept as {earlier.name}.")


def _link(source: Path, target: Path) -> None:
    """Give a file a second name, under which it stays when the first one is replaced."""
    try:
        os.link(source, target)
    except OSError:  # not every file system has links
        shutil.copyfile(source, target)
