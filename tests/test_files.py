"""Paths that people type, the order of a folder, atomic writes, copies, disk space."""

import errno
import os
import shutil
import time
from pathlib import Path

import pytest

from unet_utils.platform.files import (
    copy_verified,
    discard,
    explain_full_disk,
    is_disk_full,
    list_folder,
    make_backup_folder,
    publishing,
    replacing,
    require_space,
    unfinished_path,
    user_path,
)


def test_paths_are_expanded_and_absolute(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert user_path("~/x.zip") == tmp_path / "home" / "x.zip"
    for text in (" x/y\n", '"x/y"', "'x/y' "):  # Windows copies paths with quotes
        assert user_path(text) == tmp_path / "x" / "y"
    assert user_path("it's/'x'") == tmp_path / "it's" / "'x'"
    assert user_path("a:b/x") == tmp_path / "a:b" / "x"


def test_what_is_no_path_is_named(monkeypatch):
    for empty in ("", " ", '""'):  # not the folder where this runs
        with pytest.raises(ValueError, match="a path is empty: name a file or a folder"):
            user_path(empty)
    for address in ("https://host/x.jpg", "HTTPS://x", "gs://bucket/x", Path("https://x/y")):
        with pytest.raises(ValueError, match="is an address, not a file: download it first"):
            user_path(address)
    with pytest.raises(ValueError, match=r"~nobody-of-this-name/x starts with ~, but no home"):
        user_path("~nobody-of-this-name/x")
    # A container: no HOME, and a user number without a name.
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    with pytest.raises(ValueError, match="~/x starts with ~, but no home folder is known"):
        user_path("~/x")


def test_a_folder_is_listed_in_the_order_that_a_person_means(tmp_path):
    names = ["A", "b.png", "frame1.png", "Frame2.png", "frame10.png", "frame010.png"]
    for name in (*reversed(names), ".hidden", "__MACOSX"):
        (tmp_path / name).touch()
    listed = [path.name for path in list_folder(tmp_path)]
    assert listed == [*names[:4], "frame010.png", "frame10.png"]
    assert list_folder(tmp_path / "missing") == []


# Atomic writes.


def stop_halfway(context):
    """Write a part of a file or folder, and stop."""
    with context as unfinished:
        (unfinished / "1.jpg" if unfinished.is_dir() else unfinished).write_text("half")
        raise KeyboardInterrupt


def test_a_file_is_replaced_when_it_is_complete(tmp_path):
    file = tmp_path / "last.pt"
    file.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        stop_halfway(replacing(file))
    assert file.read_text() == "old"
    with replacing(file) as first:
        first.write_text("first")
        assert (first.parent, first.suffix) == (tmp_path, ".pt")
        with replacing(file) as second:  # another process
            second.write_text("second")
        assert first.read_text() == "first"
        assert file.read_text() == "second"
    assert file.read_text() == "first"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("name", ["n" * 251 + ".png", "n." + "s" * 253, "ü" * 125 + ".npy"])
def test_names_of_the_greatest_length(tmp_path, name):
    with replacing(tmp_path / name) as unfinished:
        unfinished.write_text("x")
    with publishing(tmp_path / "folder" / name):
        pass
    discard(tmp_path / "folder" / name)
    assert (tmp_path / name).read_text() == "x"
    assert list((tmp_path / "folder").iterdir()) == []


def test_a_folder_is_there_when_it_is_complete(tmp_path):
    folder = tmp_path / "a" / "pairs"
    with pytest.raises(KeyboardInterrupt):
        stop_halfway(publishing(folder))
    assert list(folder.parent.iterdir()) == []
    with publishing(folder) as slow:
        (slow / "1.jpg").write_text("slow")
        with publishing(folder) as quick:
            (quick / "1.jpg").write_text("quick")
    assert (folder / "1.jpg").read_text() == "quick"
    assert list(folder.parent.iterdir()) == [folder]
    for _ in range(2):  # the second time it is gone
        discard(folder)
        assert list(folder.parent.iterdir()) == []
    folder.write_text("a file is in the way")
    with pytest.raises(OSError, match="pairs"), publishing(folder):
        pass
    assert folder.read_text() == "a file is in the way"


def test_what_killed_processes_left_is_deleted_after_an_hour(tmp_path):
    old = unfinished_path(tmp_path / "x[1].pt")
    fresh = unfinished_path(tmp_path / "x[1].pt")
    folder = unfinished_path(tmp_path / "pairs")
    other = tmp_path / "y"
    folder.mkdir()
    for path in (old, fresh, other, folder / "1.jpg"):
        path.write_text("x")
    for path in (old, other, folder):
        os.utime(path, (time.time() - 4000,) * 2)
    with replacing(tmp_path / "x[1].pt") as unfinished:
        unfinished.write_text("x")
    with publishing(tmp_path / "pairs"):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"x[1].pt", fresh.name, "y", "pairs"}


# Copies and backup folders.


def test_a_copy_is_compared(tmp_path, monkeypatch):
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"first")
    copy_verified(source, target)
    assert target.read_bytes() == b"first"
    source.write_bytes(b"second")
    monkeypatch.setattr(shutil, "copyfile", lambda source, target: Path(target).write_bytes(b"sec"))
    with pytest.raises(OSError, match=r"copy of .*source in .* differs from the original"):
        copy_verified(source, target)
    assert target.read_bytes() == b"first"
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("name", ["MyDrive", "Shareddrives"])
def test_an_unmounted_drive_is_never_imitated(tmp_path, name):
    folder = tmp_path / "drive" / name / "unet_street_scenes" / "runs"
    with pytest.raises(OSError, match=r"Google Drive is not mounted at .*drive"):
        make_backup_folder(folder)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "drive" / name).mkdir(parents=True)
    make_backup_folder(folder)
    assert folder.is_dir()


# Disk space.


def test_space_is_required_beforehand(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=60 * 2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    require_space(tmp_path, 10 * 2**20)
    with pytest.raises(OSError, match=r"11 MB are needed, 60 MB are free.* UNET_UTILS") as caught:
        require_space(tmp_path, 11 * 2**20)
    assert is_disk_full(caught.value)
    with pytest.raises(OSError, match="11 MB are needed"):  # explained already
        explain_full_disk(caught.value, tmp_path)


def test_only_a_full_disk_is_called_full(tmp_path):
    for number in (errno.ENOSPC, errno.EDQUOT):
        error = OSError(number, os.strerror(number))
        wrapped = RuntimeError("write failed")  # as torch does
        wrapped.__cause__ = error
        for each in (error, wrapped):
            assert is_disk_full(each)
            with pytest.raises(OSError, match=rf"The disk is full: {tmp_path}. Free some"):
                explain_full_disk(each, tmp_path)
    for other in (OSError(errno.EACCES, "x"), OSError(errno.EIO, "x"), RuntimeError("x")):
        assert not is_disk_full(other)
        explain_full_disk(other, tmp_path)
