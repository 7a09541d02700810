"""Getting the pairs: every source, every way to fail, and where a key may and may not turn up."""

import errno
import getpass
import importlib.metadata
import io
import json
import os
import re
import shutil
import stat
import sys
import time
import zipfile
from pathlib import Path

import pytest
from kaggle_server import CLIENT_PATH, KEY, PUBLIC_PATH, STORAGE_PATH, TOKEN, USERNAME, KaggleServer

from unet_utils.platform import archive as download
from unet_utils.platform import environment
from unet_utils.platform import kaggle as kaggle_access
from unet_utils.platform.archive import check_pairs, find_pairs, get_pairs, unpack
from unet_utils.platform.kaggle import ARCHIVE, DownloadError

TINY = {"train": 6, "val": 3}
FAKE_COLAB = Path(__file__).parent / "fake_colab"


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """An empty machine: no keys, no Colab, nobody at the keyboard, no waiting. Returns its folder for data."""
    for name in ("KAGGLE_API_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_CONFIG_DIR"):
        monkeypatch.delenv(name, raising=False)
    for name in ("COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "home").mkdir()
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setattr(download, "KAGGLE_INPUT", tmp_path / "kaggle_input")
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    answer(monkeypatch)
    return tmp_path / "data"


@pytest.fixture
def kaggle(machine, tiny_archive, monkeypatch):
    """A running stand-in for Kaggle that both our download and Kaggle's client find."""
    with KaggleServer(tiny_archive.read_bytes()) as server:
        monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "LOCALHOST")
        monkeypatch.setenv("no_proxy", "*")
        monkeypatch.setattr(kaggle_access, "LOCAL_SERVER", server.url)
        kaggle_env = pytest.importorskip("kagglesdk.kaggle_env")
        monkeypatch.setitem(kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.LOCAL, server.url)
        for name in [name for name in sys.modules if name == "kaggle" or name.startswith("kaggle.")]:
            monkeypatch.delitem(sys.modules, name)  # importing it logs in: every test sees that
        yield server


def answer(monkeypatch, *answers):
    """Let somebody type `answers` at the hidden prompts; nobody is there when they are used up."""
    left = list(answers)

    def hidden(prompt=""):
        if not left:
            raise EOFError
        return left.pop(0)

    monkeypatch.setattr(getpass, "getpass", hidden)


def use_colab(monkeypatch, secrets):
    """Pretend to be in Colab with these secrets."""
    monkeypatch.syspath_prepend(str(FAKE_COLAB))
    monkeypatch.setenv("COLAB_RELEASE_TAG", "test")
    monkeypatch.setenv("FAKE_COLAB_SECRETS", json.dumps(secrets))


def make_zip(path, files):
    """A zip of `{name: bytes}`."""
    with zipfile.ZipFile(path, "w") as file:
        for name, content in files.items():
            file.writestr(name, content)
    return path


def leftovers(folder):
    """Names of everything temporary in a data folder."""
    return [path.name for path in folder.iterdir() if "part" in path.name or path.name == "download"]


# What the person has: a folder or an archive.


def test_a_folder_is_used_where_it_is(machine, tiny_pairs, capsys):
    before = sorted(tiny_pairs.rglob("*"))
    assert get_pairs(tiny_pairs.parent, machine) == tiny_pairs
    assert list(machine.iterdir()) == []
    assert sorted(tiny_pairs.rglob("*")) == before
    assert "6 training and 3 validation pairs" in (printed := capsys.readouterr().out)
    assert "the full Kaggle set has 2975 and 500" in printed


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


@pytest.mark.parametrize("prefix", ["", "cityscapes_data/", "cityscapes_data/cityscapes_data/", "a b/c/d/"])
def test_the_pairs_are_found_at_any_depth(machine, tmp_path, prefix):
    archive = make_zip(tmp_path / "own.zip", {f"{prefix}train/1.jpg": b"a", f"{prefix}val/1.jpg": b"b"})
    assert check_pairs(get_pairs(archive, machine)) == {"train": 1, "val": 1}


def test_the_nearest_of_two_copies_is_taken(tmp_path):
    for prefix in ("cityscapes_data", "cityscapes_data/cityscapes_data"):
        for split in ("train", "val"):
            (tmp_path / prefix / split).mkdir(parents=True)
    assert find_pairs(tmp_path) == tmp_path / "cityscapes_data"


def test_the_demo_set_needs_nothing(machine, monkeypatch, tiny_pairs):
    demo = pytest.importorskip("unet_utils.demo.pairs")
    monkeypatch.setattr(demo, "make_demo", lambda root: shutil.copytree(tiny_pairs, root / "cityscapes_data"))
    assert get_pairs("demo", machine) == machine / "demo" / "cityscapes_data"


# Bad input: the message names the file and the next step.


@pytest.mark.parametrize("name", ["missing.zip", "missing_folder"])
def test_missing(machine, tmp_path, name):
    with pytest.raises(FileNotFoundError, match=rf"no file or folder .*{name}.* Check the path"):
        get_pairs(tmp_path / name, machine)


def test_not_a_zip(machine, tmp_path):
    (tmp_path / "page.zip").write_text("<html>Sign in</html>")
    with pytest.raises(ValueError, match=r"page\.zip is not a zip archive .* download it again from https"):
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


def test_an_archive_without_splits(machine, tmp_path):
    archive = make_zip(tmp_path / "other.zip", {"notes/readme.txt": b"x", "train/1.jpg": b"x"})
    with pytest.raises(FileNotFoundError, match=r"train/ and val/ in .*other.zip \(it holds: notes, train\)"):
        get_pairs(archive, machine)
    assert list(machine.iterdir()) == []


def test_a_folder_without_splits(machine, tmp_path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(FileNotFoundError, match=r"train/ and val/ in .*photos \(it holds: nothing\)"):
        get_pairs(tmp_path / "photos", machine)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"train/1.jpg": b"x", "val/.keep": b""}, "No .jpg files in .*own.zip/val"),
        ({"train/1.jpg": b"x", "val/berlin.jpg": b"x"}, "own.zip/val/berlin.jpg is not a numbered pair"),
        ({"train/1.jpg": b"", "val/1.jpg": b"x"}, "own.zip/train/1.jpg is empty"),
    ],
)
def test_files_that_are_no_pairs(machine, tmp_path, files, message):
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        get_pairs(make_zip(tmp_path / "own.zip", files), machine)
    assert list(machine.iterdir()) == []


@pytest.mark.parametrize("name", ["../evil.txt", "a/../../evil.txt", "/tmp/evil.txt", "..\\evil.txt", "C:\\evil.txt"])
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
    monkeypatch.setattr(environment.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(100, 99, 1))
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
    (machine / ".own-x.partial" / "train").mkdir(parents=True)  # as a machine that was switched off leaves it
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
    for place in ("cityscapes-image-pairs", "datasets/dansbecker/cityscapes-image-pairs"):
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


def test_a_damaged_archive_on_drive_is_left_and_passed_over(machine, kaggle, capsys):
    drive = machine.parent / "MyDrive" / "unet_utils"
    drive.mkdir(parents=True)
    (drive / ARCHIVE).write_bytes(b"PK\x03\x04 half")
    assert check_pairs(get_pairs("kaggle", machine, drive)) == TINY
    assert "cut short" in capsys.readouterr().out
    assert (drive / ARCHIVE).read_bytes() == b"PK\x03\x04 half"


def test_a_drive_that_drops_is_passed_over(machine, kaggle, monkeypatch, tiny_archive, capsys):
    drive = machine.parent / "MyDrive" / "unet_utils"
    drive.mkdir(parents=True)
    shutil.copy(tiny_archive, drive / ARCHIVE)

    def unpack_or_drop(archive, folder):
        if drive in archive.parents:
            raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")
        return unpack(archive, folder)

    monkeypatch.setattr(download, "unpack", unpack_or_drop)
    assert check_pairs(get_pairs("kaggle", machine, drive)) == TINY
    assert "Going on without it" in capsys.readouterr().out


# Downloading without a key.


def test_public_download(machine, kaggle, capfd):
    drive = machine.parent / "MyDrive" / "unet_utils"
    root = get_pairs("kaggle", machine, drive)
    printed, bar = capfd.readouterr()
    assert check_pairs(root) == TINY
    assert leftovers(machine) == []
    assert (drive / ARCHIVE).read_bytes() == kaggle.body
    assert len(list(drive.iterdir())) == 1
    assert "without an account" in printed
    assert ARCHIVE in bar
    assert "B/s" in bar
    assert [request[:3] for request in kaggle.requests] == [("GET", PUBLIC_PATH, ""), ("GET", STORAGE_PATH, "")]
    kaggle.requests.clear()
    assert get_pairs("kaggle", machine, drive) == root
    shutil.rmtree(machine)  # a new machine: only Drive survives
    assert check_pairs(get_pairs("kaggle", machine, drive)) == TINY
    assert kaggle.requests == []


def test_a_broken_download_goes_on_where_it_was(machine, kaggle, capsys):
    kaggle.cut_after = [10_000, 5_000]
    assert check_pairs(get_pairs("kaggle", machine)) == TINY
    assert [request[3] for request in kaggle.asked(STORAGE_PATH)] == [None, "bytes=10000-", "bytes=15000-"]
    assert "Interrupted" in capsys.readouterr().out


def test_a_broken_download_starts_again_where_ranges_are_unknown(machine, kaggle):
    kaggle.cut_after, kaggle.ranges = [10_000], False
    assert check_pairs(get_pairs("kaggle", machine)) == TINY


def test_a_download_that_keeps_breaking_is_kept_for_the_next_time(machine, kaggle):
    kaggle.cut_after = [1000] * 5
    with pytest.raises(DownloadError, match=r"5 tries \(the connection ended early\).* run this again"):
        get_pairs("kaggle", machine)
    assert not (machine / "kaggle").exists()
    assert check_pairs(get_pairs("kaggle", machine)) == TINY
    assert kaggle.requests[-1][3] == "bytes=5000-"


@pytest.mark.parametrize("extra", [b"", b"more"])
def test_a_finished_or_overlong_part(machine, kaggle, extra):
    (machine / "download").mkdir(parents=True)
    (machine / "download" / f"{ARCHIVE}.part").write_bytes(kaggle.body + extra)
    assert check_pairs(get_pairs("kaggle", machine)) == TINY


def test_a_part_of_something_else_is_thrown_away(machine, kaggle):
    (machine / "download").mkdir(parents=True)
    (machine / "download" / f"{ARCHIVE}.part").write_bytes(b"x" * 20_000)
    with pytest.raises(DownloadError, match=r"was deleted .* Run this again"):
        get_pairs("kaggle", machine)
    assert check_pairs(get_pairs("kaggle", machine)) == TINY


def test_a_slow_trickle(machine, kaggle):
    kaggle.chunk, kaggle.pause = len(kaggle.body) // 10, 0.05
    assert check_pairs(get_pairs("kaggle", machine)) == TINY


def test_a_stalled_connection_is_given_up_and_resumed(machine, kaggle, monkeypatch, capsys):
    monkeypatch.setattr(kaggle_access, "TIMEOUT_SECONDS", 0.2)
    kaggle.chunk, kaggle.pause = len(kaggle.body) // 2 + 1, 0.5
    assert check_pairs(get_pairs("kaggle", machine)) == TINY
    assert "(timed out); going on in 1 s" in capsys.readouterr().out


@pytest.mark.parametrize(("status", "words"), [(404, "does not know"), (429, "wait a few minutes")])
def test_answers_that_end_it(machine, kaggle, status, words):
    kaggle.public_status = status
    with pytest.raises(DownloadError, match=words):
        get_pairs("kaggle", machine)
    assert len(kaggle.requests) == 1


def test_a_server_in_trouble_is_asked_again(machine, kaggle):
    kaggle.public_status = 500
    with pytest.raises(DownloadError, match="error 500"):
        get_pairs("kaggle", machine)
    assert len(kaggle.requests) == 5


def test_no_connection(machine, kaggle, monkeypatch):
    monkeypatch.setattr(kaggle_access, "LOCAL_SERVER", "http://127.0.0.1:9")
    with pytest.raises(DownloadError, match=r"Connection refused.* Check the internet connection"):
        get_pairs("kaggle", machine)


def test_no_space_for_the_download(machine, kaggle, monkeypatch):
    monkeypatch.setattr(environment.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(100, 99, 1))
    with pytest.raises(OSError, match=r"Not enough space .*UNET_UTILS_DATA"):
        get_pairs("kaggle", machine)


@pytest.mark.parametrize("files", [{"readme.txt": b"x"}, None])
def test_a_wrong_zip_is_deleted(machine, kaggle, files):
    good, wrong = kaggle.body, io.BytesIO(b"not a zip" * 100)
    kaggle.body = make_zip(wrong, files) and wrong.getvalue() if files else wrong.getvalue()
    with pytest.raises(DownloadError, match=r"not the dataset, and was deleted.* Run this again"):
        get_pairs("kaggle", machine)
    kaggle.body = good
    assert check_pairs(get_pairs("kaggle", machine)) == TINY


def test_a_full_drive_is_no_reason_to_stop(machine, kaggle, monkeypatch, capsys):
    def full(source, target):
        Path(target).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    drive = machine.parent / "MyDrive" / "unet_utils"
    monkeypatch.setattr(download.shutil, "copyfile", full)
    assert check_pairs(get_pairs("kaggle", machine, drive)) == TINY
    assert "no copy of the archive" in capsys.readouterr().out
    assert list(drive.iterdir()) == []


# Downloading with a key, through Kaggle's own client.


def keys_environment_token(monkeypatch, home):
    monkeypatch.setenv("KAGGLE_API_TOKEN", TOKEN)


def keys_environment_token_file(monkeypatch, home):
    (home / "token.txt").write_text(f"{TOKEN}\n")
    monkeypatch.setenv("KAGGLE_API_TOKEN", str(home / "token.txt"))


def keys_environment_pair(monkeypatch, home):
    monkeypatch.setenv("KAGGLE_USERNAME", USERNAME)
    monkeypatch.setenv("KAGGLE_KEY", f"{KEY}\n")


def keys_json(monkeypatch, home):
    (home / ".kaggle").mkdir()
    (home / ".kaggle" / "kaggle.json").write_text(json.dumps({"username": USERNAME, "key": KEY}))


def keys_json_elsewhere(monkeypatch, home):
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(home))
    (home / "kaggle.json").write_text(json.dumps({"username": USERNAME, "key": KEY}))


def keys_token_file(monkeypatch, home):
    (home / ".kaggle").mkdir()
    (home / ".kaggle" / "access_token").write_text(TOKEN)


def keys_colab_token(monkeypatch, home):
    use_colab(monkeypatch, {"KAGGLE_API_TOKEN": TOKEN})


def keys_colab_pair(monkeypatch, home):
    use_colab(monkeypatch, {"KAGGLE_USERNAME": USERNAME, "KAGGLE_KEY": KEY})


def keys_typed_pair(monkeypatch, home):
    answer(monkeypatch, USERNAME, KEY)


def keys_typed_token(monkeypatch, home):
    answer(monkeypatch, "", TOKEN)


NOT_BEFORE_1_8 = pytest.mark.skipif(
    tuple(map(int, importlib.metadata.version("kaggle").split(".")[:2])) < (1, 8),
    reason="before 1.8 Kaggle's client knew no tokens and did not retry",
)
ALL_KEYS = [
    pytest.param(value, marks=[NOT_BEFORE_1_8] if "token" in name else [])
    for name, value in sorted(globals().items())
    if name.startswith("keys_")
]


def files_with_a_key(folder):
    """Every file below a folder with a planted key in it."""
    keys = (KEY.encode(), TOKEN.encode())
    return [path for path in folder.rglob("*") if path.is_file() and any(key in path.read_bytes() for key in keys)]


@pytest.mark.parametrize("plant", ALL_KEYS)
def test_download_with_every_kind_of_key(machine, kaggle, monkeypatch, capfd, plant):
    home = machine.parent / "home"
    plant(monkeypatch, home)
    kaggle.public_status = 401  # so that only the key opens the door
    intended = files_with_a_key(machine.parent)
    before = dict(os.environ)
    assert check_pairs(get_pairs("kaggle", machine)) == TINY
    printed = "".join(capfd.readouterr())
    assert KEY not in printed
    assert TOKEN not in printed
    assert USERNAME not in printed
    assert files_with_a_key(machine.parent) == intended
    assert dict(os.environ) == before
    assert leftovers(machine) == []
    assert sum(bool(request[2]) for request in kaggle.asked(CLIENT_PATH) + kaggle.asked(PUBLIC_PATH)) == 1


@NOT_BEFORE_1_8
@pytest.mark.parametrize("plant", [keys_environment_pair, keys_environment_token])
def test_a_cut_is_mended_with_a_key_too(machine, kaggle, monkeypatch, plant):
    plant(monkeypatch, machine.parent / "home")
    large = {"train/1.jpg": os.urandom(3 * 2**20), "val/1.jpg": b"x"}  # the client works in pieces of 1 MB
    kaggle.body = make_zip(machine.parent / "large.zip", large).read_bytes()
    kaggle.cut_after, kaggle.public_status = [1_500_000], 401
    assert check_pairs(get_pairs("kaggle", machine)) == {"train": 1, "val": 1}
    assert kaggle.asked(STORAGE_PATH)[-1][3] == f"bytes={2**20}-"


def test_a_stale_key_does_not_stop_the_public_download(machine, kaggle, monkeypatch, capfd):
    monkeypatch.setenv("KAGGLE_API_TOKEN", "KGAT_stale")
    monkeypatch.setenv("KAGGLE_USERNAME", USERNAME)
    monkeypatch.setenv("KAGGLE_KEY", "stale-key")
    assert check_pairs(get_pairs("kaggle", machine)) == TINY
    printed = "".join(capfd.readouterr())
    assert re.search(r"(does not accept|failed with) KAGGLE_API_TOKEN of the environment \((401|OSError)\)", printed)
    assert "does not accept KAGGLE_USERNAME and KAGGLE_KEY of the environment (401)" in printed
    assert "KGAT_stale" not in printed
    assert "stale-key" not in printed


@pytest.mark.parametrize("public", [401, 403])
def test_nobody_to_ask(machine, kaggle, public, capsys):
    kaggle.public_status = public
    with pytest.raises(DownloadError, match=r"set it as KAGGLE_API_TOKEN .* or download the archive yourself"):
        get_pairs("kaggle", machine)
    printed = capsys.readouterr().out
    assert f"Kaggle wants an account for this download ({public})" in printed
    assert "Nobody can be asked here" in printed


def test_a_page_to_log_in_counts_as_refused(machine, kaggle, monkeypatch):
    kaggle.html = True
    with pytest.raises(DownloadError, match="none of the ways"):
        get_pairs("kaggle", machine)


def test_a_wrong_key_is_typed(machine, kaggle, monkeypatch, capfd):
    kaggle.public_status = 403
    answer(monkeypatch, USERNAME, "wrong-key")
    with pytest.raises(DownloadError, match="none of the ways"):
        get_pairs("kaggle", machine)
    printed = "".join(capfd.readouterr())
    assert "does not accept what you typed" in printed
    assert "wrong-key" not in printed


@pytest.mark.parametrize(
    ("status", "words"), [(403, "accept what it asks for"), (404, "does not know"), (429, "wait a few minutes")]
)
def test_what_kaggle_answers_to_a_good_key(machine, kaggle, monkeypatch, status, words, capsys):
    keys_environment_pair(monkeypatch, None)
    kaggle.account_status, kaggle.public_status = status, status
    with pytest.raises(DownloadError) as caught:
        get_pairs("kaggle", machine)
    assert words in str(caught.value) + capsys.readouterr().out


def test_a_key_that_breaks_the_request_is_not_repeated(machine, kaggle, monkeypatch, capfd):
    monkeypatch.setenv("KAGGLE_API_TOKEN", f"{TOKEN}\n{TOKEN}")  # pasted twice
    assert check_pairs(get_pairs("kaggle", machine)) == TINY
    assert "planted" not in "".join(capfd.readouterr())


def test_a_talkative_client_does_not_print_the_key(machine, kaggle, monkeypatch, capfd, caplog):
    monkeypatch.setenv("VERBOSE", "true")
    for plant in (keys_environment_pair, keys_environment_token):
        plant(monkeypatch, None)
    kaggle.public_status = 401
    assert check_pairs(get_pairs("kaggle", machine)) == TINY
    printed = "".join(capfd.readouterr()) + caplog.text
    assert "Authorization" not in printed
    assert TOKEN not in printed


@pytest.mark.parametrize("missing", ["kaggle", "six"])
def test_without_the_client_the_public_download_is_left(machine, kaggle, monkeypatch, capsys, missing):
    keys_environment_pair(monkeypatch, None)
    monkeypatch.setitem(sys.modules, missing, None)
    for name in [name for name in sys.modules if name.startswith("kaggle.")]:
        monkeypatch.delitem(sys.modules, name)
    assert check_pairs(get_pairs("kaggle", machine)) == TINY
    printed = capsys.readouterr().out
    if missing == "kaggle":
        assert "`pip install kaggle six`" in printed


@pytest.mark.parametrize(
    ("secrets", "words"),
    [
        ({"KAGGLE_API_TOKEN": None}, "The secret KAGGLE_API_TOKEN exists, but not for this notebook"),
        ({"KAGGLE_USERNAME": USERNAME}, "KAGGLE_KEY is missing in Colab's secrets"),
        ({}, "without an account"),
    ],
)
def test_colab_secrets_that_are_no_use(machine, kaggle, monkeypatch, capsys, secrets, words):
    use_colab(monkeypatch, secrets)
    assert check_pairs(get_pairs("kaggle", machine)) == TINY
    assert words in capsys.readouterr().out


def test_colab_secrets_outside_colabs_page(machine, kaggle, monkeypatch, capsys):
    use_colab(monkeypatch, {"KAGGLE_API_TOKEN": TOKEN})
    monkeypatch.setenv("FAKE_COLAB_NO_ANSWER", "1")
    assert check_pairs(get_pairs("kaggle", machine)) == TINY
    assert capsys.readouterr().out.count("did not answer") == 1


@pytest.mark.parametrize("text", ["", "not json", "[]", '{"username": "a"}', '{"username": 1, "key": 2}'])
def test_a_kaggle_json_that_is_no_use(machine, kaggle, capsys, text):
    path = machine.parent / "home" / ".kaggle" / "kaggle.json"
    path.parent.mkdir()
    path.write_text(text)
    assert check_pairs(get_pairs("kaggle", machine)) == TINY
    assert not text or f"{path} cannot be used" in capsys.readouterr().out
    assert path.read_text() == text


def test_credentials_do_not_show_their_keys():
    assert repr(kaggle_access.Credentials("x", USERNAME, KEY, TOKEN)) == "Credentials(source='x')"
