"""Finding, checking and unpacking the pairs: every source, every way to fail, several notebooks at
once."""

import errno
import os
import shutil
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest
from helpers import TINY, leftovers, make_zip

from unet_utils import sources
from unet_utils.dataset import find_pairs, pair_files
from unet_utils.platform import unpacking
from unet_utils.platform.download import ARCHIVE
from unet_utils.sources import Source, check_pairs, get_pairs, open_source

pytest_plugins = ["machines"]

ONE = {"train": 1, "val": 1}
SLUG = "dansbecker/cityscapes-image-pairs"

# What the person has: a folder or an archive.


def test_a_folder_is_used_where_it_is(machine, tiny_pairs, tmp_path, capsys):
    root = shutil.copytree(tiny_pairs, tmp_path / "own" / "pairs")
    for number in range(10):
        (root / "train" / f"{number}.png").write_bytes(b"x")
    (root / "val" / "Thumbs.db").write_bytes(b"x")
    before = sorted(root.rglob("*"))
    assert get_pairs(root.parent, machine) == root
    assert list(machine.iterdir()) == []
    assert sorted(root.rglob("*")) == before
    printed = capsys.readouterr().out
    assert "6 training and 3 validation pairs" in printed
    assert "the full Kaggle set has 2975 and 500" in printed
    assert "Not used, because pairs are named 1.jpg" in printed
    assert "train/0.png, train/1.png, train/2.png, train/3.png, train/4.png and 6 more" in printed
    get_pairs(tiny_pairs, machine)
    assert "Not used" not in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz", ".tar.xz"])
def test_an_archive_is_unpacked_once(machine, tiny_pairs, tmp_path, capsys, suffix):
    archive = machine.parent / "home" / f"{'my pairs ' * 25}{suffix}"
    if suffix == ".zip":
        files = {p.relative_to(tiny_pairs): p.read_bytes() for p in tiny_pairs.rglob("*.jpg")}
        make_zip(archive, {str(name): content for name, content in files.items()})
    else:
        with tarfile.open(archive, f"w:{suffix[5:]}") as file:
            file.add(tiny_pairs, "a/b")
    before = archive.read_bytes()
    root = get_pairs(f"~/{archive.name}", "~/data")
    assert machine.parent / "home" / "data" in root.parents
    for path in tiny_pairs.rglob("*.jpg"):
        assert (root / path.relative_to(tiny_pairs)).read_bytes() == path.read_bytes()
    first = (root / "val" / "1.jpg").stat().st_mtime_ns
    assert get_pairs(archive, machine.parent / "home" / "data") == root
    assert (root / "val" / "1.jpg").stat().st_mtime_ns == first
    assert "Unpacked already" in capsys.readouterr().out
    assert archive.read_bytes() == before
    assert leftovers(machine.parent / "home" / "data") == []


def test_frames_know_the_data_that_they_are_from(machine, tiny_pairs):
    source = open_source(tiny_pairs, machine)
    for split in ("train", "val"):
        frames = source.frames(split, machine, labels="nearest")
        assert frames.source == source.fingerprint


def test_two_archives_of_one_name_do_not_mix(machine, tmp_path, tiny_archive):
    other = make_zip(tmp_path / tiny_archive.name, {"train/1.jpg": b"a", "val/1.jpg": b"b"})
    assert check_pairs(get_pairs(tiny_archive, machine)) == TINY
    assert check_pairs(get_pairs(other, machine)) == ONE


@pytest.mark.parametrize(
    ("names", "root"),
    [
        (["train/1.jpg", "val/1.jpg"], ""),
        (["a b/c/d/train/1.jpg", "a b/c/d/val/1.jpg"], "d"),
        # The nearer one of two copies.
        (["x/x/train/1.jpg", "x/x/val/2.jpg", "x/train/1.jpg", "x/val/1.jpg"], "x"),
        (["data\\", "data\\train\\1.JPG", "data\\val\\1.jpg"], "data"),  # some Windows tools
        # What the Finder of a Mac adds: a folder that imitates the pairs.
        (["p/train/1.jpg", "p/val/1.jpg", "__MACOSX/train/._1.jpg", "__MACOSX/val/._1.jpg"], "p"),
    ],
)
def test_the_pairs_are_found_at_any_depth(machine, tmp_path, names, root):
    archive = make_zip(tmp_path / "own.zip", {name: b"x" * (name[-1] != "\\") for name in names})
    found = get_pairs(archive, machine)
    assert check_pairs(found) == ONE
    assert found.name == root or found.parent == machine


def test_pairs_have_any_kind_of_jpeg_suffix_and_numeric_order(tmp_path):
    for name in ("10.jpg", "9.JPG", "2.jpeg", "1.Jpeg", "._1.jpg", ".hidden", "notes.txt", "3.png"):
        (tmp_path / name).write_bytes(b"x")
    assert [path.name for path in pair_files(tmp_path)] == ["1.Jpeg", "2.jpeg", "9.JPG", "10.jpg"]
    assert pair_files(tmp_path / "nothing here") == []
    (tmp_path / "01.JPG").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"1\.Jpeg and .*01\.JPG have the same number"):
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


def test_only_the_whole_kaggle_set_compares_with_published_scores(
    tiny_pairs, tmp_path, monkeypatch
):
    assert not Source(tiny_pairs).is_published
    monkeypatch.setattr(sources, "FULL_SET", TINY)
    assert Source(tiny_pairs).is_published
    demo = shutil.copytree(tiny_pairs, tmp_path / "demo")
    (demo / "demo.json").write_text("{}")
    assert not Source(demo).is_published


@pytest.mark.parametrize("name", ["demo", "demo ", "Demo\n", "'demo'", ' "DEMO" '])
def test_the_demo_set_needs_nothing(machine, monkeypatch, tiny_pairs, name):
    def draw(root):
        return shutil.copytree(tiny_pairs, root / "cityscapes_data")

    monkeypatch.setattr(sources, "make_demo", draw)
    assert get_pairs(name, machine) == machine / "demo" / "cityscapes_data"
    shutil.rmtree(machine / "demo")
    assert open_source(name, machine).root == machine / "demo" / "cityscapes_data"


def test_a_folder_that_is_called_like_a_set(machine, tmp_path, monkeypatch, tiny_pairs):
    shutil.copytree(tiny_pairs, tmp_path / "demo")
    monkeypatch.chdir(tmp_path)
    for folder in ("./demo", Path("demo")):
        assert open_source(folder, machine).root == tmp_path / "demo"


# Bad input: the message names the file and the next step, and never tells to delete it.


def damaged(archive):
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 0xFF
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda _: b"<html>Sign in</html>", "no zip or tar archive, or cut short, of 0.0 MB"),
        (lambda zip: zip.read_bytes()[:2000], "no zip or tar archive, or cut short"),
        (lambda zip: zip.read_bytes()[:-30], "no zip or tar archive, or cut short"),
        (damaged, "Bad CRC-32 for file 'cityscapes_data/train/"),
    ],
)
def test_a_zip_that_cannot_be_unpacked(machine, tmp_path, tiny_archive, content, message):
    (tmp_path / "bad.zip").write_bytes(content(tiny_archive))
    with pytest.raises(ValueError, match=rf"bad\.zip cannot be unpacked \({message}") as caught:
        get_pairs(tmp_path / "bad.zip", machine)
    assert "Get it again, or unpack it yourself" in str(caught.value)
    assert "elete" not in str(caught.value)
    assert list(machine.iterdir()) == []


@pytest.mark.parametrize("kind", ["gz", "xz", ""])
def test_a_tar_that_cannot_be_unpacked(machine, tmp_path, tiny_pairs, kind):
    archive = tmp_path / "mine.tar"
    with tarfile.open(archive, f"w:{kind}") as file:
        file.add(tiny_pairs, "pairs")
    content = archive.read_bytes()
    # tarfile itself takes a damaged header for the end of the archive.
    spoilt = damaged(archive) if kind else content.replace(b"pairs/val/2.jpg", b"pairs/val/3.jpg")
    assert spoilt != content
    for bad in (content[: len(content) // 2], spoilt):
        archive.write_bytes(bad)
        with pytest.raises(ValueError, match=r"mine.tar cannot be unpacked \(.+Get it again"):
            get_pairs(archive, machine)
        assert list(machine.iterdir()) == []


@pytest.mark.parametrize("error", [NotImplementedError("That compression"), RuntimeError("secret")])
def test_a_password_or_an_unknown_compression(machine, tiny_archive, monkeypatch, error):
    def refuse(*_):
        raise error

    monkeypatch.setattr(zipfile.ZipFile, "extract", refuse)
    with pytest.raises(ValueError, match=rf"cannot be unpacked \({error}\)\. .*unpack it yourself"):
        get_pairs(tiny_archive, machine)
    assert list(machine.iterdir()) == []


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"notes/a.txt": b"x", "train/1.jpg": b"x"}, r"in .*own.zip \(it holds: notes, train\)"),
        ({"train/1.jpg": b"x", "val/.keep": b""}, "No .jpg files in .*own.zip/val"),
        (
            {"train/1.jpg": b"x", "val/a.jpg": b"x"},
            "own.zip/val/a.jpg is not .* pair .* your own, use",
        ),
        ({"train/1.jpg": b"", "val/1.jpg": b"x"}, "own.zip/train/1.jpg is empty"),
    ],
)
def test_files_that_are_no_pairs(machine, tmp_path, files, message):
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        get_pairs(make_zip(tmp_path / "own.zip", files), machine)
    assert list(machine.iterdir()) == []


def test_what_is_not_there(machine, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file or folder .*missing.zip.* Check the pat"):
        get_pairs(tmp_path / "missing.zip", machine)
    with pytest.raises(ValueError, match="is an address, not a file"):
        get_pairs("https://example.org/pairs.zip", machine)
    for empty in ("", " "):  # an emptied field
        with pytest.raises(ValueError, match=r"no data is named \(DATA\): give kaggle, demo, or"):
            open_source(empty, machine)
    with pytest.raises(FileNotFoundError, match=r"not mounted at .*/drive: switch USE_DRIVE on in"):
        open_source(tmp_path / "drive" / "MyDrive" / "mine" / "pairs.zip", machine)
    for half in ("leftImg8bit", "gtFine"):  # full-size Cityscapes, but not all of it
        for split in ("train", "val"):
            (tmp_path / half / "unpacked" / half / split).mkdir(parents=True)
        for place in (tmp_path / half / "unpacked", tmp_path / half / "unpacked" / half):
            with pytest.raises(FileNotFoundError, match="leftImg8bit and gtFine into one folder"):
                open_source(place, machine)
    (tmp_path / "photos").mkdir()
    with pytest.raises(FileNotFoundError, match=r"train/ and val/ in .*photos \(it holds: nothi"):
        get_pairs(tmp_path / "photos", machine)
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OSError, match=r"Cannot write to the folder .*file/data .*UNET_UTILS_DATA"):
        get_pairs("demo", tmp_path / "file" / "data")


@pytest.mark.parametrize(
    "name", ["../evil.txt", "a/../../evil.txt", "/tmp/evil.txt", "..\\evil.txt", "link"]
)
def test_nothing_leaves_the_folder(machine, tmp_path, name):
    archive = make_zip(tmp_path / "evil.zip", {"train/1.jpg": b"x", "val/1.jpg": b"x"})
    entry = zipfile.ZipInfo(name)
    entry.external_attr = ((stat.S_IFLNK if name == "link" else stat.S_IFREG) | 0o777) << 16
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr(entry, "/etc/passwd")
    root = get_pairs(archive, machine)
    written = [path for path in tmp_path.rglob("*") if path.name in ("evil.txt", "link")]
    assert len(written) == 1
    assert root in written[0].parents
    assert not written[0].is_symlink()


def test_a_tar_that_leaves_the_folder_is_refused(machine, tmp_path):
    (tmp_path / "evil.txt").write_text("x")
    with tarfile.open(tmp_path / "evil.tar", "w") as file:
        file.add(tmp_path / "evil.txt", "../../evil.txt")
    with pytest.raises(ValueError, match=r"evil.tar cannot be unpacked \(.* outside"):
        get_pairs(tmp_path / "evil.tar", machine)
    assert list(machine.iterdir()) == []


def test_no_space(machine, tiny_archive, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full_later:
        full_later.setattr(zipfile.ZipFile, "extract", full)
        with pytest.raises(OSError, match=rf"The disk is full: {machine}.*UNET_UTILS_DATA"):
            get_pairs(tiny_archive, machine)
    usage = shutil.disk_usage(machine)._replace(free=1)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(OSError, match=rf"Not enough space in {machine}.*UNET_UTILS_DATA"):
        get_pairs(tiny_archive, machine)
    assert list(machine.iterdir()) == []


def test_an_interrupted_unpacking_counts_for_nothing(machine, tiny_archive, monkeypatch, capsys):
    extract = zipfile.ZipFile.extract

    def interrupted(self, entry, path):
        if entry.filename.endswith("val/2.jpg"):
            raise KeyboardInterrupt
        return extract(self, entry, path)

    with monkeypatch.context() as stopped:
        stopped.setattr(zipfile.ZipFile, "extract", interrupted)
        with pytest.raises(KeyboardInterrupt):
            get_pairs(tiny_archive, machine)
    assert list(machine.iterdir()) == []
    root = get_pairs(tiny_archive, machine)
    (root / "train" / "3.jpg").unlink()
    assert check_pairs(get_pairs(tiny_archive, machine)) == TINY
    assert "because files are missing" in capsys.readouterr().out


def test_a_folder_of_the_persons_is_never_replaced(machine, kaggle):
    (machine / "kaggle").mkdir(parents=True)
    (machine / "kaggle" / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"data/kaggle is in the way.* Move it"):
        get_pairs("kaggle", machine)
    assert (machine / "kaggle" / "thesis.txt").read_text() == "mine"


# Where the Kaggle set may be already, in this order.


def test_kaggle_set_attached_to_a_kaggle_notebook(machine, kaggle, tiny_pairs):
    for place in ("cityscapes-image-pairs", SLUG, f"datasets/{SLUG}"):
        attached = machine.parent / "kaggle_input" / place / "cityscapes_data"
        shutil.copytree(tiny_pairs, attached)
        assert get_pairs("kaggle", machine) == attached
        shutil.rmtree(machine.parent / "kaggle_input")
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


def test_a_useless_archive_on_drive_is_replaced(machine, kaggle, capsys):
    drive = machine.parent / "MyDrive" / "unet_utils"
    drive.mkdir(parents=True)
    for copy in (drive / ARCHIVE, drive.parent / ARCHIVE):
        copy.write_bytes(b"PK\x03\x04 half")
    assert check_pairs(get_pairs("kaggle", machine, drive)) == TINY
    printed = capsys.readouterr().out
    assert f"{drive / ARCHIVE} cannot be unpacked" in printed
    assert printed.count("Trying the next source") == 2
    assert (drive / ARCHIVE).read_bytes() == kaggle.body
    assert (drive.parent / ARCHIVE).read_bytes() == b"PK\x03\x04 half"  # that one is not ours


@pytest.mark.parametrize("broken", ["read", "write"])
def test_a_drive_that_fails_is_passed_over(
    machine, kaggle, monkeypatch, tiny_archive, capsys, broken
):
    drive = machine.parent / "MyDrive" / "unet_utils"
    drive.mkdir(parents=True)
    if broken == "read":
        shutil.copy(tiny_archive, drive / ARCHIVE)
    is_zipfile = zipfile.is_zipfile

    def fail_to_read(path):
        if drive in path.parents:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        return is_zipfile(path)

    def fail_to_copy(source, target):
        target.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(zipfile, "is_zipfile", fail_to_read)
    monkeypatch.setattr(shutil, "copyfile", fail_to_copy)
    assert check_pairs(get_pairs("kaggle", machine, drive)) == TINY
    printed = capsys.readouterr().out
    assert (os.strerror(errno.ENOTCONN) in printed) == (broken == "read")
    assert f"Warning: no copy of the archive could be kept at {drive / ARCHIVE} (No sp" in printed
    assert leftovers(machine) == []
    assert list(drive.iterdir()) == [drive / ARCHIVE] * (broken == "read")


def test_an_unmounted_drive_gets_no_copy(machine, kaggle, capsys):
    drive = machine.parent / "drive" / "MyDrive" / "unet_utils"
    assert check_pairs(get_pairs("kaggle", machine, drive)) == TINY
    assert "no copy of the archive could be kept" in capsys.readouterr().out
    assert not (machine.parent / "drive").exists()


# Several notebooks on one machine.


@pytest.mark.parametrize("incomplete", [False, True])
def test_two_notebooks_unpack_one_archive(machine, tiny_archive, monkeypatch, incomplete):
    """The second begins and ends while the first unpacks; what it reads stays there."""
    if incomplete:
        (get_pairs(tiny_archive, machine) / "train" / "3.jpg").unlink()
    extract, seen = unpacking._extract, []

    def extract_late(archive, folder):
        extract(archive, folder)
        if not seen:
            seen.append(None)
            seen.append(get_pairs(tiny_archive, machine))
            seen.append((seen[1] / "val" / "1.jpg").stat().st_ino)

    monkeypatch.setattr(unpacking, "_extract", extract_late)
    root = get_pairs(tiny_archive, machine)
    assert seen[1:] == [root, (root / "val" / "1.jpg").stat().st_ino]
    assert check_pairs(root) == TINY
    assert leftovers(machine) == []
