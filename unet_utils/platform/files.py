"""Files: paths that people type, the order of a folder, atomic writes, copies, disk space."""

import contextlib
import errno
import filecmp
import os
import re
import secrets
import shutil
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

# Prefix of everything that is not complete yet; hidden, so that nobody reads it.
UNFINISHED = ".unfinished-"
# An unfinished file or folder of this age belongs to a process that was killed.
LEFTOVER_SECONDS = 3600
# Google Drive makes these folders; if one is missing, Drive is not mounted.
MOUNTED_FOLDERS = ("MyDrive", "Shareddrives")
# Suffixes of pictures that Pillow reads.
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
SPACE_ADVICE = (
    "Free some, or set the environment variable UNET_UTILS_DATA to a folder on a larger disk"
)


def typed(text: str | Path) -> str:
    """Return what a person typed or pasted, without the spaces, line ends and quotes around it."""
    plain = str(text).strip()
    if len(plain) > 1 and plain[0] in "\"'" and plain[0] == plain[-1]:
        plain = plain[1:-1].strip()
    return plain


def user_path(path: str | Path) -> Path:
    """Return a path that a person typed as an absolute path, with `~` expanded.

    Raises:
        ValueError: it is empty, or an address such as https://..., or starts with a `~` that stands
            for no folder here.
    """
    text = typed(path)
    if not text:  # would be the folder where this runs
        raise ValueError("a path is empty: name a file or a folder")
    if re.match(r"[A-Za-z][\w+.-]+:/", text):  # Path turns https:// into https:/
        raise ValueError(
            f"{text} is an address, not a file: download it first, and give the path of the file."
        )
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError:  # no user of that name; or, in some containers, no home folder at all
        raise ValueError(
            f"{text} starts with ~, but no home folder is known for it: give the whole path."
        ) from None


def natural_order(paths: Iterable[Path]) -> list[Path]:
    """Sort paths in the order that a person means: frame2 comes before frame10."""

    def key(path: Path) -> tuple[list[str | int], str]:
        pieces = re.split(r"(\d+)", str(path))  # text and digits in turn
        return [int(p) if p.isdecimal() else p.casefold() for p in pieces], str(path)

    return sorted(paths, key=key)


def list_folder(folder: Path) -> list[Path]:
    """Return what is in a folder, in natural order, without hidden entries and those that macOS
    adds to archives; nothing if the folder cannot be read."""
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    return natural_order(
        folder / name for name in names if not name.startswith(".") and name != "__MACOSX"
    )


def some_of(names: Sequence[str], most: int = 5) -> str:
    """Return the first of many names for a message: "a, b, c, d, e and 7 more"."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


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
            # Or a power cut could leave the new name with old or no content.
            os.fsync(written.fileno())
        os.replace(unfinished, file)
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)


@contextlib.contextmanager
def publishing(folder: str | Path) -> Iterator[Path]:
    """Make a folder atomically: yield a temporary folder to fill, which is renamed to `folder` if
    no exception is raised.

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
    # A checksum instead of the name itself, which may already have the greatest length.
    prefix = f"{UNFINISHED}{zlib.crc32(os.fsencode(path.name)):08x}-"
    for leftover in path.parent.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            if time.time() - leftover.stat().st_mtime > LEFTOVER_SECONDS:
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    return path.with_name(f"{prefix}{secrets.token_hex(4)}{path.suffix[:16]}")


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
    if drive := unmounted_drive(folder):
        raise OSError(errno.ENOTCONN, f"Google Drive is not mounted at {drive}")
    folder.mkdir(parents=True, exist_ok=True)


def unmounted_drive(path: Path) -> Path | None:
    """Return the mount point of the Google Drive that a path lies on, if it is not mounted."""
    for part in (path, *path.parents):
        if part.name in MOUNTED_FOLDERS and not os.path.isdir(part):
            return part.parent
    return None


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
            f"Cannot write to the folder {folder} ({error.strerror}). Set the environment variable "
            f"{variable} to a folder that you can write to, and run this again",
        ) from error
    return folder


def require_space(folder: str | Path, needed: int) -> None:
    """Raise an OSError unless `needed` bytes, and 50 MB more, are free on the disk of `folder`."""
    free = shutil.disk_usage(folder).free
    if free < needed + 50 * 2**20:
        sizes = f"{needed / 2**20:.0f} MB are needed, {free / 2**20:.0f} MB are free"
        raise OSError(errno.ENOSPC, f"Not enough space in {folder}: {sizes}. {SPACE_ADVICE}")


def is_disk_full(error: BaseException | None) -> bool:
    """Return whether an error, or the one that caused it, comes from a full disk or an exhausted
    quota."""
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False


def explain_full_disk(error: Exception, folder: str | Path) -> None:
    """If an error comes from a full disk or quota, raise an OSError that says what to do."""
    if SPACE_ADVICE in str(error):
        raise error
    if is_disk_full(error):
        message = f"The disk is full: {folder}. {SPACE_ADVICE}"
        raise OSError(getattr(error, "errno", None) or errno.ENOSPC, message) from error
