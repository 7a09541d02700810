"""Files: paths that people type, atomic writes, copies that are verified, disk space, and the lock
of a run."""

import contextlib
import errno
import filecmp
import glob
import json
import os
import re
import secrets
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

UNFINISHED = (
    ".unfinished-"  # prefix of everything that is not complete yet; hidden, so that nobody reads it
)
LEFTOVER_SECONDS = (
    3600  # an unfinished file or folder of this age belongs to a process that was killed
)
SPACE_ADVICE = (
    "Free some, or set the environment variable UNET_UTILS_DATA to a folder on a larger disk"
)
MOUNTED_FOLDERS = (
    "MyDrive",
    "Shareddrives",
)  # Google Drive makes these; if one is missing, Drive is not mounted
LOCK_FILE = "run.lock"
BEAT_SECONDS, DEAD_SECONDS = (
    60,
    180,
)  # how often an owner renews its lock; how old the lock of a dead owner is


def user_path(path: str | Path) -> Path:
    """Return a path that a person typed as an absolute path, with `~` expanded.

    Raises:
        ValueError: it is an address such as https://..., or starts with the `~name` of an unknown
            user.
    """
    text = str(path).strip()
    if re.match(r"[A-Za-z][\w+.-]+:/", text):  # Path turns https:// into https:/
        raise ValueError(
            f"{text} is an address, not a file: download it first, and give the path of the file."
        )
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError:
        raise ValueError(
            f"{text} starts with ~, but there is no such user: give the whole path."
        ) from None


@contextlib.contextmanager
def replacing(file: str | Path) -> Iterator[Path]:
    """Write a file atomically: yield a temporary path to write to, which becomes `file` if no
    exception is raised.

    The temporary path is unique, so that several processes may write the same file; the last one
    wins. It has the folder and the suffix of `file`."""
    file = Path(file)
    unfinished = unfinished_path(file)
    try:
        yield unfinished
        with open(unfinished, "rb+") as written:
            os.fsync(
                written.fileno()
            )  # or a power cut could leave the new name with old or no content
        os.replace(unfinished, file)
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)


@contextlib.contextmanager
def publishing(folder: str | Path) -> Iterator[Path]:
    """Make a folder atomically: yield a temporary folder to fill, which is renamed to `folder` if
    nothing is raised.

    If another process has made `folder` by then, its work is kept and our own is deleted.
    """
    folder = Path(folder)
    unfinished = unfinished_path(folder)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        try:
            unfinished.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def discard(folder: str | Path) -> None:
    """Delete a folder. Other processes see all of it or nothing, never a part."""
    unfinished = unfinished_path(folder)
    with contextlib.suppress(FileNotFoundError):  # another process was quicker
        Path(folder).rename(unfinished)
    shutil.rmtree(unfinished, ignore_errors=True)


def unfinished_path(path: str | Path) -> Path:
    """Return a unique temporary name next to `path`, after deleting old ones that killed processes
    left there."""
    path = Path(path)
    for leftover in path.parent.glob(f"{UNFINISHED}*-{glob.escape(path.name)}"):
        with contextlib.suppress(OSError):
            if time.time() - leftover.stat().st_mtime > LEFTOVER_SECONDS:
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    return path.with_name(f"{UNFINISHED}{secrets.token_hex(4)}-{path.name}")


def copy_verified(source: str | Path, target: str | Path) -> None:
    """Copy a file atomically, and compare the copy with the original.

    Raises:
        OSError: the copy could not be written, or differs.
    """
    with replacing(target) as unfinished:
        shutil.copyfile(source, unfinished)
        if not filecmp.cmp(source, unfinished, shallow=False):
            raise OSError(
                errno.EIO,
                f"The copy of {source} in {Path(target).parent} differs from the original",
            )


def make_backup_folder(folder: str | Path) -> None:
    """Make a folder and its parents, unless it lies on a Google Drive that is not mounted.

    Raises:
        OSError: Drive is not mounted (a plain folder of that name would be lost with the machine),
            or no permission.
    """
    folder = Path(folder)
    for part in (folder, *folder.parents):
        if part.name in MOUNTED_FOLDERS and not os.path.isdir(part):
            raise OSError(errno.ENOTCONN, f"Google Drive is not mounted at {part.parent}")
    folder.mkdir(parents=True, exist_ok=True)


def writable_folder(folder: str | Path, variable: str) -> Path:
    """Make a folder if it is missing, check that files can be written there, and return its
    absolute path.

    Args:
        folder: the folder; `~` is expanded.
        variable: name of the environment variable that selects another folder, for the message.

    Raises:
        OSError: it cannot be made or written to.
    """
    folder = user_path(folder)
    try:
        make_backup_folder(folder)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(
            error.errno,
            f"Cannot write to the folder {folder} ({error.strerror}). Choose another one: set the environment variable "
            f"{variable} to a folder that you can write to, and run this again",
        ) from error
    return folder


def require_space(folder: str | Path, needed: int) -> None:
    """Raise an OSError unless `needed` bytes, and 50 MB more, are free on the disk of `folder`."""
    free = shutil.disk_usage(folder).free
    if free < needed + 50 * 2**20:
        message = f"Not enough space in {folder}: {needed / 2**20:.0f} MB are needed, {free / 2**20:.0f} MB are free"
        raise OSError(errno.ENOSPC, f"{message}. {SPACE_ADVICE}")


def is_disk_full(error: BaseException | None) -> bool:
    """Return True if an error, or the one that caused it, comes from a full disk or an exhausted
    quota."""
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False


def explain_full_disk(error: Exception, folder: str | Path) -> None:
    """Raise an OSError that says what to do if `error` comes from a full disk or quota; else do
    nothing."""
    if is_disk_full(error) and SPACE_ADVICE not in str(error):
        number = getattr(error, "errno", None) or errno.ENOSPC
        raise OSError(number, f"The disk is full: {folder}. {SPACE_ADVICE}") from error


class LockedError(RuntimeError):
    """Another process trains this run."""


class RunLock:
    """Make this process the only owner of a run.

    A small file in each folder names the owner. A thread renews it every minute, so that the lock
    of a machine that was switched off expires; the lock of a dead process on this machine is taken
    over immediately.

        with RunLock(folder, backup) as lock:
            lock.check()  # before each save: raises LockedError if somebody has taken the run over

    A folder that cannot be written to (a Drive that is not mounted) is not locked, and no reason to
    stop.

    Args:
        folders: all folders that the run is written to; None is skipped.

    Raises:
        LockedError: another process owns the run; the message says which one, and how to take the
            run over.
    """

    def __init__(self, *folders: str | Path | None):
        self.files = [Path(folder) / LOCK_FILE for folder in folders if folder]
        self.owner = {"host": socket.gethostname(), "process": os.getpid(), "since": time.time()}
        self._released = threading.Event()

    def __enter__(self) -> "RunLock":
        for file in self.files:
            try:
                make_backup_folder(file.parent)
                self._claim(file)
            except LockedError:
                self.__exit__()
                raise
            except OSError as error:
                print(f"Warning: cannot lock the run ({error}). Do not train it in two notebooks.")
        self._released = threading.Event()
        threading.Thread(target=self._renew, args=(self._released,), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._released.set()
        for file in self.files:
            with contextlib.suppress(OSError):
                if self._is_own(_read_owner(file)):
                    file.unlink()

    def check(self) -> None:
        """Raise LockedError if another process has taken the run over."""
        for file in self.files:
            if (owner := _read_owner(file)) and not self._is_own(owner):
                raise LockedError(
                    f"Stopped, because another process has taken over this run. {_describe(file, owner)}"
                )

    def _claim(self, file: Path) -> None:
        with contextlib.suppress(FileExistsError):
            with open(file, "x") as new:  # of several processes that try, one succeeds
                new.write(self._text())
            return
        if not (owner := _read_owner(file)):
            time.sleep(1)  # its owner may be about to write it
            owner = _read_owner(file)
        if owner and not self._is_own(owner):
            if _is_alive(owner):
                raise LockedError(
                    f"{_describe(file, owner)} Stop it there, or choose another run name here. If it no longer runs, "
                    f"wait {DEAD_SECONDS // 60} minutes, or delete {file}, and run this again."
                )
            print(
                f"Taking over the run in {file.parent} from process {owner['process']} on {owner['host']}: it ended."
            )
        file.write_text(self._text())

    def _renew(self, released: threading.Event) -> None:
        while not released.wait(BEAT_SECONDS):
            for file in self.files:
                # "r+" never creates the file: somebody may have deleted it to take over, or Drive
                # may be gone. Written in place, because Drive moves each replaced file to its bin.
                with contextlib.suppress(OSError):
                    if self._is_own(_read_owner(file)):
                        with open(file, "r+") as lock:
                            lock.write(self._text())
                            lock.truncate()

    def _text(self) -> str:
        return json.dumps(self.owner | {"renewed": time.time()})

    def _is_own(self, owner: dict | None) -> bool:
        return owner is not None and all(
            owner[key] == self.owner[key] for key in ("host", "process")
        )


def _read_owner(file: Path) -> dict | None:
    """Return what a lock file says, None if there is none or it cannot be read."""
    try:
        owner = json.loads(file.read_text())
        return {key: owner[key] for key in ("host", "process", "since", "renewed")}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_alive(owner: dict) -> bool:
    """Return whether the owner of a lock seems to run still."""
    if abs(time.time() - owner["renewed"]) > DEAD_SECONDS:
        return False
    if (
        owner["host"] != socket.gethostname() or os.name != "posix"
    ):  # on Windows os.kill(pid, 0) ends the process
        return True
    try:
        os.kill(owner["process"], 0)
    except ProcessLookupError:
        return False
    except OSError:  # it belongs to somebody else
        return True
    try:  # a killed process whose parent has not noticed yet is a zombie, "Z"
        return (
            Path(f"/proc/{owner['process']}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        )
    except (OSError, IndexError):
        return True


def _describe(file: Path, owner: dict) -> str:
    since = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(owner["since"]))
    return f"The run in {file.parent} is trained by process {owner['process']} on {owner['host']}, since {since}."
