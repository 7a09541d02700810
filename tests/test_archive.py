"""Finding, checking and unpacking the pairs: every source, every way to fail, several notebooks at
once."""

import errno
import os
import shutil
import stat
import zipfile

import pytest
from helpers import TINY, leftovers, make_zip

from unet_utils.platform import archive as archive_module
from unet_utils.platform import files
from unet_utils.sources import check_pairs, get_pairs, is_full_set
from unet_utils.platform.archive import find_pairs, pair_files, unpack
from unet_utils.platform.kaggle import ARCHIVE

pytest_plugins = ["machines"]

# What the person has: a folder or an archive.


def test_a_folder_is_used_where_it_is(machine, tiny_pairs, capsys):
    before = sorted(tiny_pairs.rglob("*"))
    assert get_pairs(tiny_pairs.parent, machine) == tiny_pairs
    assert list(machine.iterdir()) == []
    assert sorted(tiny_pairs.rglob("*")) == before
    assert "6 training and 3 validation pairs" in (printed := capsys.readouterr().out)
    assert "the full Kaggle set has 2975 and 500" in printed
    assert "Not used" not in printed
    with pytest.raises(ValueError, match="is an address, not a file"):
        get_pairs("https://example.org/pairs.zip", machine)


def test_a_path_may_start_with_a_tilde(machine, tiny_archive):
    shutil.copy(tiny_archive, machine.parent / "home" / "pairs.zip")
    assert check_pairs(get_pairs("~/pairs.zip", "~/data")) == TINY
    assert (machine.parent / "home" / "data").is_dir()


def test_an_archive_is_unpacked_once(machine, tiny_archive, tiny_pairs, capsys):
    root = get_pairs(tiny_archive, machine)
    assert check_pairs(root) == TINY
    assert tiny_archive.exists()
    for path in tiny_pairs.rglob("*.jpg"):
        assert (root / path.relative_to(tiny_pairs)).read_bytes() == path.read_bytes()
    first = (root / "val" / "1.jpg").stat().st_mtime_ns
    assert get_pairs(str(tiny_archive), str(machine)) == root
    assert (root / "val" / "1.jpg").stat().st_mtime_ns == first
    assert "Unpacked already" in capsys.readouterr().out
    assert leftovers(machine) == []


def test_two_archives_of_one_name_do_not_mix(machine, tmp_path, tiny_archive):
    other = make_zip(tmp_path / tiny_archive.name, {"train/1.jpg": b"a", "val/1.jpg": b"b"})
    assert check_pairs(get_pairs(tiny_archive, machine)) == TINY
    assert check_pairs(get_pairs(other, machine)) == {"train": 1, "val": 1}


@pytest.mark.parametrize(
    "prefix", ["", "cityscapes_data/", "cityscapes_data/cityscapes_data/", "a b/c/d/"]
)
def test_the_pairs_are_found_at_any_depth(machine, tmp_path, prefix):
    archive = make_zip(
        tmp_path / "own.zip", {f"{prefix}train/1.jpg": b"a", f"{prefix}val/1.jpg": b"b"}
    )
    assert check_pairs(get_pairs(archive, machine)) == {"train": 1, "val": 1}


def test_the_nearest_of_two_copies_is_taken(tmp_path):
    for prefix in ("cityscapes_data", "cityscapes_data/cityscapes_data"):
        for split in ("train", "val"):
            (tmp_path / prefix / split).mkdir(parents=True)
    assert find_pairs(tmp_path) == tmp_path / "cityscapes_data"


@pytest.mark.parametrize("tool", ["Windows", "Mac"])
def test_archives_of_other_systems(machine, tmp_path, tool):
    """Backslashes in the names; a folder that imitates the pairs, with what the Finder knows about
    them."""
    if tool == "Windows":
        names = {"data\\": b"", "data\\train\\1.JPG": b"a", "data\\val\\1.jpg": b"b"}
    else:
        names = {f"{folder}/1.jpg": b"x" for folder in ("pairs/train", "pairs/val")}
        names |= {f"__MACOSX/{folder}/._1.jpg": b"x" for folder in ("train", "val")}
    root = get_pairs(make_zip(tmp_path / "own.zip", names), machine)
    assert check_pairs(root) == {"train": 1, "val": 1}
    assert root.name == ("data" if tool == "Windows" else "pairs")
    assert get_pairs(tmp_path / "own.zip", machine) == root


def test_pairs_have_any_kind_of_jpeg_suffix_and_numeric_order(tmp_path):
    for name in ("10.jpg", "9.JPG", "2.jpeg", "1.Jpeg", "._1.jpg", ".hidden", "notes.txt", "3.png"):
        (tmp_path / name).write_bytes(b"x")
    assert [path.name for path in pair_files(tmp_path)] == ["1.Jpeg", "2.jpeg", "9.JPG", "10.jpg"]
    assert pair_files(tmp_path / "nothing here") == []


def test_what_does_not_count_is_named_in_one_line(machine, tiny_pairs, tmp_path, capsys):
    root = shutil.copytree(tiny_pairs, tmp_path / "own")
    for number in range(10):
        (root / "train" / f"{number}.png").write_bytes(b"x")
    (root / "val" / "Thumbs.db").write_bytes(b"x")
    assert get_pairs(root, machine) == root
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Not used")]
    assert len(lines) == 1
    assert "train/0.png, train/1.png, train/2.png, train/3.png, train/4.png and 6 more" in lines[0]


def test_two_files_of_one_number_are_refused(tmp_path):
    for name in ("1.jpg", "01.JPG"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ValueError, match=r"01\.JPG and .*1\.jpg have the same number"):
        pair_files(tmp_path)


def test_folders_that_cannot_be_read_are_passed_over(tmp_path, monkeypatch, tiny_pairs):
    root = shutil.copytree(tiny_pairs, tmp_path / "all" / "pairs")
    (tmp_path / "all" / "locked").mkdir()
    listdir = os.listdir

    def refuse(path="."):
        if "locked" in str(path):
            raise PermissionError(errno.EACCES, "Permission denied")
        return listdir(path)

    monkeypatch.setattr(os, "listdir", refuse)
    assert find_pairs(tmp_path / "all") == root
    with pytest.raises(FileNotFoundError, match="it holds: nothing"):
        find_pairs(tmp_path / "all" / "locked")


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the administrator may read everything"
)
def test_folders_that_may_not_be_read_are_passed_over(tmp_path, tiny_pairs):
    root = shutil.copytree(tiny_pairs, tmp_path / "all" / "pairs")
    (tmp_path / "all" / "locked").mkdir(mode=0o000)
    assert find_pairs(tmp_path / "all") == root


def test_only_the_whole_kaggle_set_compares_with_published_scores(
    tiny_pairs, tmp_path, monkeypatch
):
    assert not is_full_set(tiny_pairs)
    monkeypatch.setattr(archive_module, "FULL_SET", TINY)
    assert is_full_set(tiny_pairs)
    assert is_full_set(tiny_pairs.parent)
    demo = shutil.copytree(tiny_pairs, tmp_path / "demo")
    (demo / "demo.json").write_text("{}")
    assert not is_full_set(demo)


def test_the_demo_set_needs_nothing(machine, monkeypatch, tiny_pairs):
    demo = pytest.importorskip("unet_utils.demo.pairs")
    monkeypatch.setattr(
        demo, "make_demo", lambda root: shutil.copytree(tiny_pairs, root / "cityscapes_data")
    )
    assert get_pairs("demo", machine) == machine / "demo" / "cityscapes_data"


# Bad input: the message names the file and the next step.


@pytest.mark.parametrize("name", ["missing.zip", "missing_folder"])
def test_missing(machine, tmp_path, name):
    with pytest.raises(FileNotFoundError, match=rf"no file or folder .*{name}.* Check the path"):
        get_pairs(tmp_path / name, machine)


def test_not_a_zip(machine, tmp_path):
    (tmp_path / "page.zip").write_text("<html>Sign in</html>")
    with pytest.raises(
        ValueError, match=r"page\.zip is not a zip archive .* download it again from https"
    ):
        get_pairs(tmp_path / "page.zip", machine)


@pytest.mark.parametrize("share", [0.2, 0.99])
def test_a_truncated_zip(machine, tmp_path, tiny_archive, share):
    content = tiny_archive.read_bytes()
    (tmp_path / "short.zip").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ValueError, match=r"short.zip is a zip that was cut short"):
        get_pairs(tmp_path / "short.zip", machine)
    assert list(machine.iterdir()) == []


def test_a_damaged_zip(machine, tmp_path, tiny_archive):
    content = bytearray(tiny_archive.read_bytes())
    content[len(content) // 2] ^= 0xFF
    (tmp_path / "bad.zip").write_bytes(content)
    with pytest.raises(ValueError, match=r"bad.zip is damaged at cityscapes_data/train/\d.jpg"):
        get_pairs(tmp_path / "bad.zip", machine)
    assert list(machine.iterdir()) == []


@pytest.mark.parametrize(
    "error",
    [NotImplementedError("That compression method is not supported"), RuntimeError("password")],
)
def test_an_archive_that_python_cannot_unpack(machine, tiny_archive, monkeypatch, error):
    def refuse(*_):
        raise error

    monkeypatch.setattr(zipfile.ZipFile, "extract", refuse)
    with pytest.raises(
        ValueError, match=rf"cannot be unpacked here \({error}\). Unpack it yourself"
    ):
        get_pairs(tiny_archive, machine)
    assert list(machine.iterdir()) == []


def test_an_archive_without_splits(machine, tmp_path):
    archive = make_zip(tmp_path / "other.zip", {"notes/readme.txt": b"x", "train/1.jpg": b"x"})
    with pytest.raises(
        FileNotFoundError, match=r"train/ and val/ in .*other.zip \(it holds: notes, train\)"
    ):
        get_pairs(archive, machine)
    assert list(machine.iterdir()) == []


def test_a_folder_without_splits(machine, tmp_path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(
        FileNotFoundError, match=r"train/ and val/ in .*photos \(it holds: nothing\)"
    ):
        get_pairs(tmp_path / "photos", machine)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"train/1.jpg": b"x", "val/.keep": b""}, "No .jpg files in .*own.zip/val"),
        (
            {"train/1.jpg": b"x", "val/berlin.jpg": b"x"},
            "own.zip/val/berlin.jpg is not a numbered pair",
        ),
        ({"train/1.jpg": b"", "val/1.jpg": b"x"}, "own.zip/train/1.jpg is empty"),
    ],
)
def test_files_that_are_no_pairs(machine, tmp_path, files, message):
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        get_pairs(make_zip(tmp_path / "own.zip", files), machine)
    assert list(machine.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["../evil.txt", "a/../../evil.txt", "/tmp/evil.txt", "..\\evil.txt", "C:\\evil.txt"]
)
def test_paths_that_leave_the_folder_are_refused(machine, tmp_path, name):
    archive = make_zip(tmp_path / "evil.zip", {"train/1.jpg": b"x", "val/1.jpg": b"x", name: b"x"})
    with pytest.raises(ValueError, match=r"evil.zip was not unpacked"):
        get_pairs(archive, machine)
    assert list(machine.iterdir()) == []
    assert not list(tmp_path.rglob("evil.txt"))


def test_links_are_refused(machine, tmp_path):
    link = zipfile.ZipInfo("train/2.jpg")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    archive = make_zip(tmp_path / "evil.zip", {"train/1.jpg": b"x", "val/1.jpg": b"x"})
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr(link, "/etc/passwd")
    with pytest.raises(ValueError, match="is a link"):
        get_pairs(archive, machine)


def test_no_space_is_noticed_before(machine, tiny_archive, monkeypatch):
    monkeypatch.setattr(
        files.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(100, 99, 1)
    )
    with pytest.raises(OSError, match=rf"Not enough space in {machine}.*UNET_UTILS_DATA") as caught:
        get_pairs(tiny_archive, machine)
    assert caught.value.errno == errno.ENOSPC
    assert list(machine.iterdir()) == []


def test_no_space_is_explained_while_unpacking(machine, tiny_archive, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "extract", full)
    with pytest.raises(OSError, match=rf"The disk is full: {machine}.*UNET_UTILS_DATA"):
        get_pairs(tiny_archive, machine)
    assert list(machine.iterdir()) == []


def test_a_folder_that_cannot_be_written_to(tmp_path, tiny_archive):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OSError, match=r"Cannot write to the folder .*file/data .*UNET_UTILS_DATA"):
        get_pairs(tiny_archive, tmp_path / "file" / "data")


def test_an_interrupted_unpacking_counts_for_nothing(machine, tiny_archive, monkeypatch):
    extract = zipfile.ZipFile.extract

    def interrupted(self, entry, path):
        if entry.filename.endswith("val/2.jpg"):
            raise KeyboardInterrupt
        return extract(self, entry, path)

    monkeypatch.setattr(zipfile.ZipFile, "extract", interrupted)
    with pytest.raises(KeyboardInterrupt):
        get_pairs(tiny_archive, machine)
    monkeypatch.setattr(zipfile.ZipFile, "extract", extract)
    assert list(machine.iterdir()) == []
    (machine / ".unfinished-0-own" / "train").mkdir(
        parents=True
    )  # as a machine that was switched off leaves it
    assert check_pairs(get_pairs(tiny_archive, machine)) == TINY


def test_lost_files_are_noticed(machine, tiny_archive, capsys):
    root = get_pairs(tiny_archive, machine)
    (root / "train" / "3.jpg").unlink()
    assert check_pairs(get_pairs(tiny_archive, machine)) == TINY
    assert "no longer complete" in capsys.readouterr().out


def test_a_folder_of_the_persons_is_never_replaced(machine, tiny_archive):
    (machine / "kaggle").mkdir(parents=True)
    (machine / "kaggle" / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"data/kaggle is in the way.* Move it"):
        get_pairs("kaggle", machine)
    with pytest.raises(FileExistsError):
        unpack(tiny_archive, machine / "kaggle")
    assert (machine / "kaggle" / "thesis.txt").read_text() == "mine"


# Where the Kaggle set may be already, in this order.


def test_kaggle_set_attached_to_a_kaggle_notebook(machine, kaggle, tiny_pairs):
    slug = "dansbecker/cityscapes-image-pairs"
    for place in ("cityscapes-image-pairs", slug, f"datasets/{slug}"):
        attached = machine.parent / "kaggle_input" / place / "cityscapes_data"
        shutil.copytree(tiny_pairs, attached)
        assert get_pairs("kaggle", machine) == attached
        shutil.rmtree(attached)
    assert kaggle.requests == []


@pytest.mark.parametrize("place", ["data", "MyDrive/unet_utils", "MyDrive"])
def test_kaggle_archive_kept_somewhere(machine, kaggle, tiny_archive, place):
    drive = machine.parent / "MyDrive" / "unet_utils"
    folder = machine.parent / place
    folder.mkdir(parents=True)
    shutil.copy(tiny_archive, folder / ARCHIVE)
    assert check_pairs(get_pairs("kaggle", machine, drive)) == TINY
    assert kaggle.requests == []
    assert (folder / ARCHIVE).exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 half", b"<html>Sign in</html>"])
def test_a_useless_archive_on_drive_is_replaced(machine, kaggle, capsys, content):
    drive = machine.parent / "MyDrive" / "unet_utils"
    drive.mkdir(parents=True)
    for copy in (drive / ARCHIVE, drive.parent / ARCHIVE):
        copy.write_bytes(content)
    assert check_pairs(get_pairs("kaggle", machine, drive)) == TINY
    printed = capsys.readouterr().out
    assert f"{drive / ARCHIVE} is " in printed
    assert printed.count("Trying the next source") == 2
    assert (drive / ARCHIVE).read_bytes() == kaggle.body
    assert (drive.parent / ARCHIVE).read_bytes() == content  # that one is not ours


@pytest.mark.parametrize("number", [errno.ENOTCONN, errno.EIO, errno.EDQUOT, errno.EACCES])
@pytest.mark.parametrize("broken", ["read", "write"])
def test_a_drive_that_fails_is_passed_over(
    machine, kaggle, monkeypatch, tiny_archive, capsys, number, broken
):
    drive = machine.parent / "MyDrive" / "unet_utils"
    drive.mkdir(parents=True)
    if broken == "read":
        shutil.copy(tiny_archive, drive / ARCHIVE)
    open_zip = zipfile.ZipFile

    def fail_on_drive(path, *args):
        if drive in getattr(path, "parents", []) and broken == "read":
            raise OSError(number, os.strerror(number))
        return open_zip(path, *args)

    def fail_to_copy(source, target):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(zipfile, "ZipFile", fail_on_drive)
    monkeypatch.setattr(shutil, "copyfile", fail_to_copy)
    assert check_pairs(get_pairs("kaggle", machine, drive)) == TINY
    assert os.strerror(number) in (printed := capsys.readouterr().out)
    assert f"Warning: no copy of the archive could be kept at {drive / ARCHIVE}" in printed
    assert leftovers(machine) == leftovers(drive) == []


def test_an_unmounted_drive_gets_no_copy(machine, kaggle, capsys):
    assert (
        check_pairs(
            get_pairs("kaggle", machine, machine.parent / "drive" / "MyDrive" / "unet_utils")
        )
        == TINY
    )
    assert "no copy of the archive could be kept" in capsys.readouterr().out
    assert not (machine.parent / "drive").exists()


# Several notebooks on one machine.


class OtherNotebook:
    """Lets another notebook do something when the first is about to extract the last file."""

    def __init__(self, monkeypatch, act):
        extract, began = zipfile.ZipFile.extract, []

        def extract_late(archive, entry, folder):
            if entry.filename.endswith("val/3.jpg") and not began:
                began.append(True)
                self.result = act()
            return extract(archive, entry, folder)

        monkeypatch.setattr(zipfile.ZipFile, "extract", extract_late)


def test_two_notebooks_unpack_one_archive(machine, tiny_archive, monkeypatch):
    other = OtherNotebook(monkeypatch, lambda: get_pairs(tiny_archive, machine))
    marks = []

    def get_and_look():
        root = get_pairs(tiny_archive, machine)
        marks.append((root / "val" / "1.jpg").stat().st_ino)
        return root

    other = OtherNotebook(monkeypatch, get_and_look)
    root = get_pairs(tiny_archive, machine)
    assert other.result == root
    assert (root / "val" / "1.jpg").stat().st_ino == marks[
        0
    ]  # what the other one reads is still there
    assert leftovers(machine) == []


def test_two_notebooks_replace_an_incomplete_folder(machine, tiny_archive, monkeypatch):
    root = get_pairs(tiny_archive, machine)
    (root / "train" / "3.jpg").unlink()
    marks = []

    def get_and_look():
        marks.append((get_pairs(tiny_archive, machine) / "val" / "1.jpg").stat().st_ino)

    OtherNotebook(monkeypatch, get_and_look)
    assert get_pairs(tiny_archive, machine) == root
    assert check_pairs(root) == TINY
    assert (root / "val" / "1.jpg").stat().st_ino == marks[0]
    assert leftovers(machine) == []
