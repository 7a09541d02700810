"""Atomic writes, verified copies, disk space, paths that people type, and the lock of a run."""

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from unet_utils.platform import files
from unet_utils.platform.files import (
    LOCK_FILE,
    LockedError,
    RunLock,
    copy_verified,
    discard,
    explain_full_disk,
    is_disk_full,
    make_backup_folder,
    publishing,
    replacing,
    require_space,
    unfinished_path,
    user_path,
)

# Paths that people type.


def test_paths_are_expanded_and_absolute(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert user_path("~/x.zip") == tmp_path / "home" / "x.zip"
    assert user_path(Path("~/x")) == tmp_path / "home" / "x"
    assert user_path("x/y") == tmp_path / "x" / "y"
    assert user_path(" x.zip\n") == tmp_path / "x.zip"
    assert user_path("a:b/x") == tmp_path / "a:b" / "x"
    assert user_path(tmp_path / "x") == tmp_path / "x"


@pytest.mark.parametrize(
    "address",
    [
        "https://host/x.jpg",
        "http://host/x",
        "HTTPS://host/x",
        "gs://bucket/x",
        "s3://x",
        "file:///x",
        Path("https://x/y"),
    ],
)
def test_an_address_is_not_a_path(address):
    with pytest.raises(ValueError, match="is an address, not a file: download it first"):
        user_path(address)


def test_an_unknown_user(monkeypatch):
    with pytest.raises(ValueError, match=r"~nobody-of-this-name/x starts with ~"):
        user_path("~nobody-of-this-name/x")


# Atomic writes.


def test_a_file_is_replaced_when_it_is_complete(tmp_path):
    file = tmp_path / "last.pt"
    file.write_text("old")
    with replacing(file) as unfinished:
        assert (unfinished.parent, unfinished.suffix) == (tmp_path, ".pt")
        unfinished.write_text("new")
        assert file.read_text() == "old"
    assert file.read_text() == "new"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(errno.ENOSPC, "full")])
def test_a_file_that_was_not_completed_changes_nothing(tmp_path, error):
    file = tmp_path / "last.pt"
    file.write_text("old")

    def write_half():
        with replacing(file) as unfinished:
            unfinished.write_text("ne")
            raise error

    with pytest.raises((KeyboardInterrupt, OSError)):
        write_half()
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_two_writers_of_one_file_do_not_mix(tmp_path):
    file = tmp_path / "photos.npy"
    with replacing(file) as first:
        first.write_text("first")
        with replacing(file) as second:
            assert second != first
            second.write_text("sec")
        assert first.read_text() == "first"
        assert file.read_text() == "sec"
    assert file.read_text() == "first"


def test_two_makers_of_one_folder_do_not_mix(tmp_path):
    folder = tmp_path / "a" / "pairs"
    with publishing(folder) as slow:
        (slow / "1.jpg").write_text("slow")
        with publishing(folder) as quick:
            (quick / "1.jpg").write_text("quick")
        assert (folder / "1.jpg").read_text() == "quick"
    assert (folder / "1.jpg").read_text() == "quick"
    assert list(folder.parent.iterdir()) == [folder]


def test_a_folder_that_was_not_completed_does_not_exist(tmp_path):
    def fill_half():
        with publishing(tmp_path / "pairs") as unfinished:
            (unfinished / "1.jpg").write_text("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill_half()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "pairs").write_text("a file is in the way")
    with pytest.raises(OSError, match="pairs"), publishing(tmp_path / "pairs") as unfinished:
        (unfinished / "1.jpg").write_text("x")
    assert [path.name for path in tmp_path.iterdir()] == ["pairs"]


def test_what_killed_processes_left_is_deleted_after_an_hour(tmp_path):
    old, fresh, other = (
        unfinished_path(tmp_path / "x[1].pt"),
        unfinished_path(tmp_path / "x[1].pt"),
        tmp_path / "y",
    )
    folder = unfinished_path(tmp_path / "pairs")
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


def test_a_folder_is_discarded(tmp_path):
    (tmp_path / "pairs" / "train").mkdir(parents=True)
    for _ in range(2):  # the second time it is gone
        discard(tmp_path / "pairs")
        assert list(tmp_path.iterdir()) == []


# Copies and backup folders.


def test_a_copy_is_compared(tmp_path, monkeypatch):
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(os.urandom(100_000))
    copy_verified(source, target)
    assert target.read_bytes() == source.read_bytes()
    old = target.read_bytes()
    source.write_bytes(os.urandom(100_000))

    def lose_a_byte(source, target):
        Path(target).write_bytes(source.read_bytes()[:-1] + b"x")

    monkeypatch.setattr(shutil, "copyfile", lose_a_byte)
    with pytest.raises(OSError, match=r"copy of .*source in .* differs from the original"):
        copy_verified(source, target)
    assert target.read_bytes() == old
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("name", ["MyDrive", "Shareddrives"])
def test_an_unmounted_drive_is_never_imitated(tmp_path, name):
    folder = tmp_path / "drive" / name / "unet_street_scenes" / "runs"
    with pytest.raises(OSError, match=r"Google Drive is not mounted at .*drive") as caught:
        make_backup_folder(folder)
    assert caught.value.errno == errno.ENOTCONN
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "drive" / name).mkdir(parents=True)
    make_backup_folder(folder)
    make_backup_folder(folder)
    assert folder.is_dir()


# Disk space.


def test_space_is_required_beforehand(tmp_path, monkeypatch):
    monkeypatch.setattr(
        shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(100, 0, 60 * 2**20)
    )
    require_space(tmp_path, 10 * 2**20)
    with pytest.raises(
        OSError, match=r"Not enough space in .*: 11 MB are needed, 60 MB are free.*"
    ) as caught:
        require_space(tmp_path, 11 * 2**20)
    assert is_disk_full(caught.value)


def wrapped(error):
    """An error of torch or Kaggle's client that was caused by another one."""
    try:
        try:
            raise error
        except OSError as cause:
            raise RuntimeError("write failed") from cause
    except RuntimeError as outer:
        return outer


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_only_a_full_disk_is_called_full(tmp_path, number):
    error = OSError(number, os.strerror(number))
    assert is_disk_full(error)
    assert is_disk_full(wrapped(error))
    with pytest.raises(OSError, match=rf"The disk is full: {tmp_path}. Free some") as caught:
        explain_full_disk(error, tmp_path)
    assert is_disk_full(caught.value)
    explain_full_disk(caught.value, tmp_path)  # already explained


@pytest.mark.parametrize(
    "number", [errno.EACCES, errno.EIO, errno.ENOTCONN, errno.EROFS, errno.ENOENT]
)
def test_other_errors_are_not_called_a_full_disk(tmp_path, number):
    error = OSError(number, os.strerror(number))
    assert not is_disk_full(error)
    assert not is_disk_full(wrapped(error))
    explain_full_disk(error, tmp_path)
    assert not is_disk_full(RuntimeError("file write failed"))


# The lock of a run.

HOLD = """
import sys, time
from files import LockedError, RunLock
try:
    with RunLock(*sys.argv[1:]) as lock:
        print("locked", flush=True)
        sys.stdin.readline()
        lock.check()
except LockedError as error:
    print("refused:", error, flush=True)
"""


def hold(*folders):
    """Start a process that tries to lock a run, and keeps it until it may read a line."""
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, *map(str, folders)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(files.__file__).parent,  # the module alone: importing the package takes seconds
    )


def lock_of(folder, host, process=1, seconds_old=0.0):
    """Write the lock of another owner."""
    then = time.time() - seconds_old
    owner = {"host": host, "process": process, "since": then - 100, "renewed": then}
    (folder / LOCK_FILE).write_text(json.dumps(owner))


def test_a_run_has_one_owner(tmp_path):
    holder = hold(tmp_path)
    try:
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(LockedError) as caught, RunLock(tmp_path):
            pass
        message = str(caught.value)
        for part in (
            f"process {holder.pid} on {socket.gethostname()}",
            "since 20",
            f"delete {tmp_path / LOCK_FILE}",
        ):
            assert part in message
        assert (tmp_path / LOCK_FILE).exists()
        holder.communicate("\n", timeout=60)
        with RunLock(tmp_path):  # it has ended
            pass
        assert list(tmp_path.iterdir()) == []
    finally:
        holder.kill()
        holder.wait()


@pytest.mark.skipif(os.name != "posix", reason="there a process cannot be asked whether it runs")
def test_the_lock_of_a_killed_process_is_taken_over(tmp_path, capsys):
    holder = hold(tmp_path)
    assert holder.stdout.readline() == "locked\n"
    holder.send_signal(signal.SIGKILL)
    if (
        sys.platform == "linux"
    ):  # dead, but its parent, which is this process, has not noticed: a zombie
        while (stat := Path(f"/proc/{holder.pid}/stat").read_text()).rpartition(")")[2].split()[
            0
        ] != "Z":
            assert stat
            time.sleep(0.01)
    else:
        holder.wait()
    with RunLock(tmp_path) as lock:
        lock.check()
    assert f"Taking over the run in {tmp_path} from process {holder.pid}" in capsys.readouterr().out
    holder.wait()


def test_of_several_that_start_together_one_becomes_the_owner(tmp_path):
    processes = [hold(tmp_path) for _ in range(4)]
    try:
        answers = [process.stdout.readline() for process in processes]
        assert answers.count("locked\n") == 1
        assert sum(answer.startswith("refused: ") for answer in answers) == 3
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_another_machine_that_lives_is_respected(tmp_path):
    lock_of(tmp_path, "colab-7f3a", process=41, seconds_old=100)
    with pytest.raises(LockedError, match="process 41 on colab-7f3a"), RunLock(tmp_path):
        pass
    assert json.loads((tmp_path / LOCK_FILE).read_text())["host"] == "colab-7f3a"


@pytest.mark.parametrize("seconds_old", [200, 1e6, -200])  # a clock may be wrong
def test_another_machine_that_is_dead_is_taken_over(tmp_path, capsys, seconds_old):
    lock_of(tmp_path, "colab-7f3a", seconds_old=seconds_old)
    with RunLock(tmp_path) as lock:
        lock.check()
    assert "from process 1 on colab-7f3a" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_a_process_id_that_was_given_away_again_does_not_hold_a_run(tmp_path):
    lock_of(tmp_path, socket.gethostname(), process=os.getppid(), seconds_old=10_000)
    with RunLock(tmp_path):
        pass


def test_the_same_process_may_lock_again(tmp_path):
    with pytest.raises(KeyboardInterrupt), RunLock(tmp_path):
        raise KeyboardInterrupt  # the cell was stopped
    with (
        RunLock(tmp_path),
        RunLock(tmp_path) as again,
    ):  # a cell that was stopped in a way that left the lock
        again.check()


def test_an_owner_that_was_replaced_stops(tmp_path):
    with RunLock(tmp_path) as lock:
        (tmp_path / LOCK_FILE).unlink()
        lock.check()  # a Drive that is gone looks like this, too
        lock_of(tmp_path, "laptop")
        with pytest.raises(LockedError, match="another process has taken over this run.* laptop"):
            lock.check()
    assert (
        json.loads((tmp_path / LOCK_FILE).read_text())["host"] == "laptop"
    )  # which is still the owner


def test_the_lock_is_renewed_and_never_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "BEAT_SECONDS", 0.01)
    file = tmp_path / LOCK_FILE

    def wait_for(condition):
        deadline = time.monotonic() + 30
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert condition()

    lock = RunLock(tmp_path)
    with lock:
        pass
    with lock:  # the same object may be used again
        first = json.loads(file.read_text())["renewed"]
        wait_for(lambda: (files._read_owner(file) or {"renewed": first})["renewed"] > first)
        file.unlink()
        time.sleep(0.1)
        assert not file.exists()
        lock_of(tmp_path, "laptop")
        written = file.read_text()
        time.sleep(0.1)
        assert file.read_text() == written
        with pytest.raises(LockedError):
            lock.check()


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"host": "x"}'])
def test_a_damaged_lock_holds_nobody_up(tmp_path, monkeypatch, text):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    (tmp_path / LOCK_FILE).write_text(text)
    with RunLock(tmp_path) as lock:
        lock.check()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_locked_is_no_reason_to_stop(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    drive = tmp_path / "drive" / "MyDrive" / "runs"
    with RunLock(tmp_path / "runs", tmp_path / "file" / "x", drive, None) as lock:
        assert (tmp_path / "runs" / LOCK_FILE).exists()
        lock.check()
    assert capsys.readouterr().out.count("Warning: cannot lock the run") == 2
    assert not drive.exists()
    assert not (tmp_path / "drive").exists()


def test_a_run_that_is_locked_in_its_backup_is_left_alone(tmp_path):
    (tmp_path / "drive").mkdir()
    lock_of(tmp_path / "drive", "another-tab")
    with (
        pytest.raises(LockedError, match=str(tmp_path / "drive")),
        RunLock(tmp_path / "here", tmp_path / "drive"),
    ):
        pass
    assert list((tmp_path / "here").iterdir()) == []
