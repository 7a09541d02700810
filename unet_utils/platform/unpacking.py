"""Archives: unpacked once, and complete or not there."""

import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from unet_utils.platform.environment import progress_bar
from unet_utils.platform.files import discard, explain_full_disk, publishing, require_space

Check = Callable[[Path], object]
"""Looks at an unpacked folder: raises FileNotFoundError or ValueError if it cannot be used, else
returns what shows later whether files are missing, such as their number."""
STAMP = ".counts.json"  # in each folder that we unpack: what its `Check` returned


def unpack(archive: Path, folder: Path, check: Check) -> None:
    """Unpack a zip or tar archive to a folder, unless that is done.

    The folder gets its name only when all of it is right. If another process unpacks the same
    archive at the same time, both use what the quicker one made. The archive is only read.

    Raises:
        ValueError: the archive cannot be unpacked. Or an error of `check`, in terms of the archive.
        FileExistsError: `folder` holds something that was not unpacked by us.
        OSError: not enough space on the disk.
    """
    if is_unpacked(folder, check):
        print(f"Unpacked already: {folder}")
        return
    again = ", because files are missing in the folder" if folder.exists() else ""
    print(f"Unpacking {archive}{again}")
    with publishing(folder) as unfinished:
        try:
            _extract(archive, unfinished)
        # zipfile, tarfile and their decompressors have different errors for a damaged archive, a
        # password, or a kind of compression that they do not know.
        except Exception as error:
            explain_full_disk(error, folder.parent)
            raise ValueError(
                f"{archive} cannot be unpacked ({str(error) or type(error).__name__}). Get it "
                "again, or unpack it yourself and use the path of the folder."
            ) from error
        try:
            content = check(unfinished)
        except (FileNotFoundError, ValueError) as error:
            raise type(error)(str(error).replace(str(unfinished), str(archive))) from None
        (unfinished / STAMP).write_text(json.dumps(content))
        if not is_unpacked(folder, check):  # otherwise another process was quicker
            discard(folder)


def is_unpacked(folder: Path, check: Check) -> bool:
    """Return whether `unpack` made this folder, and all of it is still there.

    Raises:
        FileExistsError: the folder was not made by us, and so may not be replaced.
    """
    if not folder.exists():
        return False
    if not (folder / STAMP).exists():
        raise FileExistsError(
            f"{folder} is in the way: it was not made here. Move it, or use its path as the source."
        )
    try:
        return check(folder) == json.loads((folder / STAMP).read_text())
    except (FileNotFoundError, ValueError):
        return False


def _extract(archive: Path, folder: Path) -> None:
    """Extract all files. What is named /x or ../x stays inside of `folder`, or is refused."""
    bar = {"desc": "Unpacking", "unit": " files", "leave": False}
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as file:
            entries = file.infolist()
            require_space(folder, sum(entry.file_size for entry in entries))
            for entry in progress_bar(iterable=entries, **bar):
                entry.filename = entry.filename.replace("\\", "/")  # some Windows tools write that
                file.extract(entry, folder)  # compares the checksum
    elif tarfile.is_tarfile(archive):
        with tarfile.open(archive) as file:
            file.extractall(folder, progress_bar(iterable=file, **bar), filter="data")
            # A damaged header looks like the end. After the true end there are only zeros, and
            # reading them compares the checksum of what is compressed.
            while file.fileobj and (rest := file.fileobj.read(2**20)):
                if rest.strip(b"\0"):
                    raise ValueError("it does not end where it should")
    else:
        size = archive.stat().st_size / 2**20
        raise ValueError(f"no zip or tar archive, or cut short, of {size:.1f} MB")
