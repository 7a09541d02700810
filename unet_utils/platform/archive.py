"""The pairs: find, fetch, verify and unpack them. One call, `get_pairs`, that costs nothing the
second time."""

import contextlib
import json
import os
import stat
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from unet_utils.platform.environment import KAGGLE_INPUT, progress_bar
from unet_utils.platform.files import (
    copy_verified,
    discard,
    explain_full_disk,
    is_disk_full,
    make_backup_folder,
    publishing,
    require_space,
    unfinished_path,
    user_path,
    writable_folder,
)
from unet_utils.platform.kaggle import ARCHIVE, DATASET, PAGE, DownloadError, download

FULL_SET = {"train": 2975, "val": 500}
COUNTS_FILE = ".counts.json"  # in each folder that we unpack: how many pairs a complete one holds


def get_pairs(source: str | Path, data_dir: str | Path, drive: str | Path | None = None) -> Path:
    """Return the folder that holds train/ and val/, after fetching and unpacking it if necessary.

    Args:
        source: "kaggle" (downloaded when needed), "demo" (drawn street scenes), or the path of a
            .zip or a folder of your own, which is only read.
        data_dir: folder on the local disk for everything that is unpacked or drawn here.
        drive: our folder on Google Drive, which keeps a copy of the Kaggle archive for the next
            machine.

    Raises:
        FileNotFoundError: no such file or folder, or no train/ and val/ in it.
        ValueError: a damaged archive, or files that are not numbered pairs.
        OSError: a folder cannot be written to, or the disk is full.
        DownloadError: Kaggle did not deliver the archive.
    """
    data_dir = writable_folder(data_dir, "UNET_UTILS_DATA")
    if source == "demo":
        from unet_utils.demo.pairs import make_demo

        root = make_demo(data_dir / "demo")
    elif source == "kaggle":
        root = _get_kaggle(data_dir, user_path(drive) if drive else None)
    else:
        root = _get_own(user_path(source), data_dir)
    counts = check_pairs(root)
    print(f"{counts['train']} training and {counts['val']} validation pairs in {root}")
    if source != "demo" and counts != FULL_SET:
        print(
            f"Note: the full Kaggle set has {FULL_SET['train']} and {FULL_SET['val']}; a smaller set works too."
        )
    if unused := [
        f"{split}/{path.name}"
        for split in counts
        for path in _visible(root / split)
        if not _is_jpeg(path)
    ]:
        more = f" and {len(unused) - 5} more" if len(unused) > 5 else ""
        print(f"Not used, because pairs are named 1.jpg, 2.jpg, ...: {', '.join(unused[:5])}{more}")
    return root


def find_pairs(root: str | Path) -> Path:
    """Return the folder at or below `root` that holds both train/ and val/, the one nearest to
    `root`.

    Archives differ in how deep they nest them: `cityscapes_data/cityscapes_data/train` exists.
    Folders that cannot be read are skipped.

    Raises:
        FileNotFoundError: `root` does not exist, or nothing at most four levels below it holds
            both.
    """
    root = user_path(root)
    if not os.path.isdir(root):
        raise FileNotFoundError(
            f"There is no folder {root}. Check the path, or use 'kaggle' or 'demo' instead."
        )
    level = [root]
    for _ in range(5):
        for folder in level:
            if os.path.isdir(folder / "train") and os.path.isdir(folder / "val"):
                return folder
        level = [child for folder in level for child in _visible(folder) if os.path.isdir(child)]
    found = ", ".join(path.name for path in _visible(root)[:5]) or "nothing"
    raise FileNotFoundError(
        f"No folder with both train/ and val/ in {root} (it holds: {found}). Use the folder or .zip that has them."
    )


def pair_files(folder: str | Path) -> list[Path]:
    """Return the pairs in a folder (1.jpg, 2.JPG, 3.jpeg, ...) in numeric order. Hidden files are
    skipped.

    Raises:
        ValueError: a JPEG whose name is not a number, or two with the same number.
    """
    files: dict[int, Path] = {}
    for path in filter(_is_jpeg, _visible(Path(folder))):
        if not path.stem.isdecimal():
            raise ValueError(
                f"{path} is not a numbered pair (1.jpg, 2.jpg, ...). Rename it or take it out."
            )
        if (other := files.setdefault(int(path.stem), path)) != path:
            raise ValueError(
                f"{other} and {path} have the same number. Rename one of them or take it out."
            )
    return [files[number] for number in sorted(files)]


def check_pairs(root: str | Path) -> dict[str, int]:
    """Count the pairs in train/ and val/, and check that none of them is empty.

    Returns:
        `{"train": count, "val": count}`.

    Raises:
        FileNotFoundError: a split without a single pair.
        ValueError: a JPEG whose name is not a number, or an empty one; the message names it.
    """
    counts = {}
    for folder in (user_path(root) / split for split in FULL_SET):
        files = pair_files(folder)
        if not files:
            raise FileNotFoundError(
                f"No .jpg files in {folder}. Each split needs pairs named 1.jpg, 2.jpg, ..."
            )
        if empty := [path for path in files if path.stat().st_size == 0]:
            raise ValueError(f"{empty[0]} is empty. Get this file again, or take it out.")
        counts[folder.name] = len(files)
    return counts


def is_full_set(root: str | Path) -> bool:
    """Return whether `root` holds the whole Kaggle set: only then do scores compare with published
    ones."""
    from unet_utils.demo.pairs import STAMP

    root = find_pairs(root)
    return check_pairs(root) == FULL_SET and not (root / STAMP).exists()


def unpack(archive: str | Path, folder: str | Path) -> Path:
    """Unpack `archive` to `folder`, unless that is done, and return the folder in it that holds
    train/ and val/.

    The folder gets its name only when every checksum and both splits are right. If another process
    unpacks the same archive at the same time, both use what the quicker one made.

    Raises:
        FileNotFoundError: no such archive, or no train/ and val/ in it.
        FileExistsError: `folder` holds something that was not unpacked by us.
        ValueError: not a zip, cut short, damaged, or with entries that would leave the folder.
        OSError: not enough space on the disk.
    """
    archive, folder = user_path(archive), user_path(folder)
    if root := _find_complete(folder):
        return root
    if folder.exists():
        print(f"{folder} is no longer complete: unpacking again")
    with _open_zip(archive) as file:
        entries = file.infolist()
        for entry in entries:
            entry.filename = name = entry.filename.replace(
                "\\", "/"
            )  # some Windows tools write backslashes
            is_link = stat.S_ISLNK(entry.external_attr >> 16)
            if is_link or name.startswith("/") or ".." in name.split("/") or ":" in name:
                raise ValueError(
                    f"{archive} was not unpacked: its entry {name!r} is a link or would leave the folder. Get the "
                    f"archive from a source that you trust, such as {PAGE}."
                )
        require_space(folder.parent, sum(entry.file_size for entry in entries))
        try:
            with publishing(folder) as unfinished:
                for entry in progress_bar(
                    iterable=entries, desc="Unpacking", unit=" files", leave=False
                ):
                    file.extract(entry, unfinished)  # checks the CRC
                counts = check_pairs(find_pairs(unfinished))
                (unfinished / COUNTS_FILE).write_text(json.dumps(counts))
                if not _find_complete(folder):
                    discard(folder)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise ValueError(
                f"{archive} is damaged at {entry.filename} ({error}). Delete it and download it again from {PAGE}."
            ) from error
        except (
            RuntimeError
        ) as error:  # a password, or a kind of compression that Python does not know
            raise ValueError(
                f"{archive} cannot be unpacked here ({error}). Unpack it yourself, and use the path of the folder."
            ) from error
        except (FileNotFoundError, ValueError) as error:
            raise type(error)(str(error).replace(str(unfinished), str(archive))) from None
        except OSError as error:
            explain_full_disk(error, folder.parent)
            raise
    return find_pairs(folder)


def _get_own(path: Path, data_dir: Path) -> Path:
    """Return pairs of the person's own, from a folder or from a .zip that is unpacked into
    `data_dir` once."""
    if os.path.isdir(path):
        print(f"Using your folder {path}")
        return find_pairs(path)
    with _open_zip(
        path
    ) as file:  # the folder's name depends on the content, so that archives never mix
        content = repr([(entry.filename, entry.CRC, entry.file_size) for entry in file.infolist()])
    folder = data_dir / f"{path.stem}-{zlib.crc32(content.encode()):08x}"
    print(
        f"Unpacked already: {folder}"
        if _find_complete(folder)
        else f"Unpacking your archive {path}"
    )
    return unpack(path, folder)


def _get_kaggle(data_dir: Path, drive: Path | None) -> Path:
    """Return the Kaggle set from the nearest place: unpacked, attached by Kaggle, an archive
    somewhere, a download."""
    unpacked = data_dir / "kaggle"
    if root := _find_complete(unpacked):
        print(f"Unpacked already: {root}")
        return root
    for attached in (DATASET.split("/")[1], DATASET, f"datasets/{DATASET}"):
        with contextlib.suppress(FileNotFoundError):
            root = find_pairs(KAGGLE_INPUT / attached)
            print(f"Attached by Kaggle: {root}")
            return root
    # An archive put here by hand, our own copy on Drive, one uploaded to Drive by hand.
    for archive in [
        data_dir / ARCHIVE,
        *([drive / ARCHIVE, drive.parent / ARCHIVE] if drive else []),
    ]:
        if os.path.isfile(archive):  # False, not an error, when Drive has dropped
            print(f"Unpacking the archive {archive}")
            try:
                return unpack(archive, unpacked)
            except (ValueError, OSError) as error:
                if archive.parent == data_dir and is_disk_full(error):
                    raise
                print(f"{error} Trying the next source.")
    with _partial_download(data_dir / "download") as part:
        download(part)
        try:
            root = unpack(part, unpacked)
        except (ValueError, FileNotFoundError) as error:
            part.unlink()
            raise DownloadError(
                f"What arrived is not the dataset, and was deleted ({error}). Run this again."
            ) from error
        if drive:  # no copy there, or none that could be used
            _keep_copy(part, drive / ARCHIVE)
        part.unlink()
    return root


@contextlib.contextmanager
def _partial_download(folder: Path) -> Iterator[Path]:
    """Yield a path of our own that holds what an earlier try left in `folder`; at the end, keep it
    for the next try."""
    folder.mkdir(exist_ok=True)
    kept = folder / f"{ARCHIVE}.part"
    part = unfinished_path(kept)
    with contextlib.suppress(FileNotFoundError):
        kept.rename(part)  # of several processes that try, one succeeds
    try:
        yield part
    finally:
        with contextlib.suppress(OSError):
            if part.exists():
                part.replace(kept)
            folder.rmdir()  # fails unless it is empty


def _keep_copy(archive: Path, copy: Path) -> None:
    """Copy the archive to Drive. A Drive that is full or gone is no reason to stop."""
    try:
        make_backup_folder(copy.parent)
        copy_verified(archive, copy)
        print(f"A copy of the archive is kept at {copy}")
    except OSError as error:
        print(
            f"Warning: no copy of the archive could be kept at {copy} ({error.strerror or error})."
        )


def _find_complete(folder: Path) -> Path | None:
    """Return the pairs in a folder that `unpack` made, None unless all of them are still there."""
    if not folder.exists():
        return None
    if not (folder / COUNTS_FILE).exists():  # the caller may replace the folder, so it must be ours
        raise FileExistsError(
            f"{folder} is in the way: it was not made here. Move it, or use its path as the source."
        )
    with contextlib.suppress(FileNotFoundError, ValueError):
        root = find_pairs(folder)
        if check_pairs(root) == json.loads((folder / COUNTS_FILE).read_text()):
            return root
    return None


def _visible(folder: Path) -> list[Path]:
    """Return what is in a folder, sorted, without hidden entries; nothing if the folder cannot be
    read."""
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return []
    return [folder / name for name in names if not name.startswith(".") and name != "__MACOSX"]


def _is_jpeg(path: Path) -> bool:
    return path.suffix.lower() in (".jpg", ".jpeg")


def _open_zip(archive: Path) -> zipfile.ZipFile:
    """Open an archive, or say what is wrong with it."""
    if not archive.exists():
        raise FileNotFoundError(
            f"There is no file or folder {archive}. Check the path, or use 'kaggle' or 'demo'."
        )
    try:
        return zipfile.ZipFile(archive)
    except zipfile.BadZipFile:
        with open(archive, "rb") as file:
            is_start_of_zip = file.read(4) == b"PK\x03\x04"
        problem = "is a zip that was cut short" if is_start_of_zip else "is not a zip archive"
        size = archive.stat().st_size / 2**20
        raise ValueError(
            f"{archive} {problem} ({size:.1f} MB). Delete it and download it again from {PAGE}."
        ) from None
