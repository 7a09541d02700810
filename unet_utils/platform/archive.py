"""The pairs: found, fetched, verified, unpacked. One call, `get_pairs`, that costs nothing the second time."""

import contextlib
import errno
import json
import os
import shutil
import stat
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from unet_utils.platform.environment import explain_full_disk, progress_bar, require_space, writable_folder
from unet_utils.platform.kaggle import ARCHIVE, DATASET, PAGE, DownloadError, download

FULL_SET = {"train": 2975, "val": 500}
KAGGLE_INPUT = Path("/kaggle/input")
COUNTS_FILE = ".counts.json"  # the last thing written into a folder that we unpack: what a complete one holds


def get_pairs(source: str | Path, data_dir: str | Path, drive: str | Path | None = None) -> Path:
    """Return the folder that holds train/ and val/, after getting hold of it if need be.

    Args:
        source: "kaggle" (downloaded when needed), "demo" (street scenes drawn by us), or the path of a .zip or a
            folder of yours. Yours is only read.
        data_dir: folder on the local disk for everything that is unpacked or drawn here.
        drive: our folder on Google Drive, which keeps a copy of the Kaggle archive for the next machine.

    Raises:
        FileNotFoundError: no such file or folder, or no train/ and val/ in it.
        ValueError: a damaged archive, or files that are not numbered pairs.
        OSError: a folder cannot be written to, or the disk is full.
        DownloadError: Kaggle did not deliver.
    """
    data_dir = writable_folder(data_dir, "UNET_UTILS_DATA")
    if source == "demo":
        from unet_utils.demo.pairs import make_demo

        root = make_demo(data_dir / "demo")
    elif source == "kaggle":
        root = _get_kaggle(data_dir, Path(drive) if drive else None)
    else:
        root = _get_own(Path(source).expanduser(), data_dir)
    counts = check_pairs(root)
    print(f"{counts['train']} training and {counts['val']} validation pairs in {root}")
    if source != "demo" and counts != FULL_SET:
        print(f"Note: the full Kaggle set has {FULL_SET['train']} and {FULL_SET['val']}; this one will do as well.")
    return root


def find_pairs(root: str | Path) -> Path:
    """Return the folder at or below `root` that holds both train/ and val/, the one nearest to `root`.

    Archives differ in how deep they nest them: `cityscapes_data/cityscapes_data/train` exists.

    Raises:
        FileNotFoundError: `root` does not exist, or nothing at most four levels below it holds both.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"There is no folder {root}. Check the path, or use 'kaggle' or 'demo' instead.")
    level = [root]
    for _ in range(5):
        for folder in level:
            if (folder / "train").is_dir() and (folder / "val").is_dir():
                return folder
        level = [child for folder in level for child in sorted(folder.iterdir()) if child.is_dir()]
    found = ", ".join(sorted(path.name for path in root.iterdir())[:5]) or "nothing"
    raise FileNotFoundError(
        f"No folder with both train/ and val/ in {root} (it holds: {found}). Use the folder or .zip that has them."
    )


def check_pairs(root: str | Path) -> dict[str, int]:
    """Count the pairs in train/ and val/, and make sure that each is a numbered .jpg that is not empty.

    Returns:
        `{"train": count, "val": count}`.

    Raises:
        FileNotFoundError: a split without a single .jpg.
        ValueError: a file whose name is not a number, or an empty one; the message names it.
    """
    counts = {}
    for split in ("train", "val"):
        folder = Path(root) / split
        files = [path for path in folder.glob("*.jpg") if not path.name.startswith(".")]
        if not files:
            raise FileNotFoundError(f"No .jpg files in {folder}. Each split needs pairs named 1.jpg, 2.jpg, ...")
        for path in files:
            if not path.stem.isdecimal():
                raise ValueError(f"{path} is not a numbered pair (1.jpg, 2.jpg, ...). Rename it or take it out.")
            if path.stat().st_size == 0:
                raise ValueError(f"{path} is empty. Get this file again, or take it out.")
        counts[split] = len(files)
    return counts


def unpack(archive: str | Path, folder: str | Path) -> Path:
    """Unpack `archive` to `folder` and return the folder in it that holds train/ and val/.

    The work is done in a temporary sibling that gets its name only when every checksum and both splits are right:
    nothing half-unpacked is ever taken for complete.

    Raises:
        FileNotFoundError: no such archive, or no train/ and val/ in it.
        FileExistsError: `folder` holds something that was not unpacked by us.
        ValueError: not a zip, cut short, damaged, or with entries that would leave the folder.
        OSError: not enough space on the disk.
    """
    archive, folder = Path(archive), Path(folder)
    _check_ours(folder)
    with _open_zip(archive) as file:
        entries = file.infolist()
        for entry in entries:
            path = PurePosixPath(entry.filename.replace("\\", "/"))
            is_link = stat.S_ISLNK(entry.external_attr >> 16)
            if is_link or path.is_absolute() or ".." in path.parts or ":" in entry.filename:
                raise ValueError(
                    f"{archive} was not unpacked: its entry {entry.filename!r} is a link or would leave the folder. "
                    f"Get the archive from a source that you trust, such as {PAGE}."
                )
        require_space(folder.parent, sum(entry.file_size for entry in entries))
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", suffix=".partial", dir=folder.parent))
        try:
            for entry in progress_bar(iterable=entries, desc="Unpacking", unit=" files", leave=False):
                file.extract(entry, partial)  # checks the CRC
            counts = check_pairs(find_pairs(partial))
            (partial / COUNTS_FILE).write_text(json.dumps(counts))
            partial.chmod(0o755)  # mkdtemp makes it private
            if folder.exists():  # ours and incomplete, else nobody would be unpacking
                shutil.rmtree(folder)
            partial.rename(folder)
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:  # RuntimeError: needs a password
            raise ValueError(
                f"{archive} is damaged at {entry.filename} ({error}). Delete it and download it again from {PAGE}."
            ) from error
        except (FileNotFoundError, ValueError) as error:
            raise type(error)(str(error).replace(str(partial), str(archive))) from None
        except OSError as error:
            explain_full_disk(error, folder.parent)
            raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return find_pairs(folder)


def _get_own(path: Path, data_dir: Path) -> Path:
    """Pairs from a folder or a .zip of the person's own; a .zip is unpacked into `data_dir` once."""
    if path.is_dir():
        print(f"Using your folder {path}")
        return find_pairs(path)
    with _open_zip(path) as file:  # a name that depends on the content: another archive never finds this one's files
        content = repr([(entry.filename, entry.CRC, entry.file_size) for entry in file.infolist()])
    folder = data_dir / f"{path.stem}-{zlib.crc32(content.encode()):08x}"
    if root := _find_complete(folder):
        print(f"Unpacked already: {root}")
        return root
    print(f"Unpacking your archive {path}")
    return unpack(path, folder)


def _get_kaggle(data_dir: Path, drive: Path | None) -> Path:
    """The Kaggle set from the nearest place: unpacked, attached by Kaggle, an archive kept somewhere, a download."""
    unpacked = data_dir / "kaggle"
    if root := _find_complete(unpacked):
        print(f"Unpacked already: {root}")
        return root
    for attached in (KAGGLE_INPUT / DATASET.split("/")[1], KAGGLE_INPUT / "datasets" / DATASET):
        with contextlib.suppress(FileNotFoundError):
            root = find_pairs(attached)
            print(f"Attached by Kaggle: {root}")
            return root
    # An archive put here by hand, our own copy on Drive, one uploaded to Drive by hand.
    for archive in [data_dir / ARCHIVE, *([drive / ARCHIVE, drive.parent / ARCHIVE] if drive else [])]:
        if os.path.isfile(archive):  # False, not an error, when Drive has dropped
            print(f"Unpacking the archive {archive}")
            try:
                return unpack(archive, unpacked)
            except (ValueError, OSError) as error:
                dropped = getattr(error, "errno", None) in (errno.ENOTCONN, errno.EIO)  # Drive does that
                if not (dropped or isinstance(error, ValueError | FileNotFoundError)):
                    raise
                print(f"{error} Going on without it.")
    part = data_dir / "download" / f"{ARCHIVE}.part"
    part.parent.mkdir(exist_ok=True)
    download(part)
    try:
        root = unpack(part, unpacked)
    except (ValueError, FileNotFoundError) as error:
        part.unlink()
        raise DownloadError(f"What arrived is not the dataset, and was deleted ({error}). Run this again.") from error
    if drive:
        _keep_copy(part, drive / ARCHIVE)
    shutil.rmtree(part.parent)
    return root


def _keep_copy(archive: Path, copy: Path) -> None:
    """Copy the archive to Drive, unless something is there. A Drive that is full or gone is no reason to stop."""
    beside = copy.with_name(f"{copy.name}.part")
    try:
        if not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(archive, beside)
            os.replace(beside, copy)
            print(f"A copy of the archive is kept at {copy}")
    except OSError as error:
        print(f"Warning: no copy of the archive could be kept at {copy} ({error.strerror}).")
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


def _find_complete(folder: Path) -> Path | None:
    """The pairs in a folder that `unpack` made, None unless all of them are still there."""
    _check_ours(folder)
    try:
        root = find_pairs(folder)
        counts, expected = check_pairs(root), json.loads((folder / COUNTS_FILE).read_text())
    except (FileNotFoundError, ValueError):
        return None
    if counts != expected:
        print(f"{folder} is no longer complete ({counts} instead of {expected}): unpacking again")
        return None
    return root


def _check_ours(folder: Path) -> None:
    """Make sure that `folder`, which may get replaced, is one that `unpack` made, or nothing."""
    if folder.exists() and not (folder / COUNTS_FILE).exists():
        raise FileExistsError(
            f"{folder} is in the way: something else made it. Move it, or use its path as the source."
        )


def _open_zip(archive: Path) -> zipfile.ZipFile:
    """Open an archive, or say what is wrong with it."""
    if not archive.exists():
        raise FileNotFoundError(f"There is no file or folder {archive}. Check the path, or use 'kaggle' or 'demo'.")
    try:
        return zipfile.ZipFile(archive)
    except zipfile.BadZipFile:
        with open(archive, "rb") as file:
            is_start_of_zip = file.read(4) == b"PK\x03\x04"
        problem = "is a zip that was cut short" if is_start_of_zip else "is not a zip archive"
        size = archive.stat().st_size / 2**20
        raise ValueError(f"{archive} {problem} ({size:.1f} MB). Delete it and download it again from {PAGE}.") from None
