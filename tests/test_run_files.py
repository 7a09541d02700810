"""The folder of a run: whole at any moment, one owner, copied to a backup."""

import csv
import errno
import functools
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from unet_utils import backup, checkpoints, run_files
from unet_utils.checkpoints import (
    load_matching,
    made_by,
    read_checkpoint,
    read_facts,
    saved_settings,
    weights_hash,
)
from unet_utils.platform import files as platform_files
from unet_utils.platform import version as code_version
from unet_utils.run_files import TIME_LAPSE, LockedError, RunFiles

PATIENCE = 60  # seconds after which a test gives up waiting
needs_posix = pytest.mark.skipif(os.name != "posix", reason="there is no fork or kill -9")


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(backup, "BACKUP_SECONDS", 0.02)


def state(epoch, run="a", size=100):
    """A checkpoint as training makes it; the weights tell run and epoch."""
    weights = torch.full((size, 2), float(epoch))
    return {
        "format": checkpoints.FORMAT,
        "network": {"num_classes": 3},
        "scheme": {"name": "cityscapes19"},
        "config": {"epochs": 9, "run": run},
        "scene_size": [64, 64],
        "data": {"fingerprint": "f", "labels": "restored", "frames": 4},
        "epoch": epoch,
        "first_epoch": 0,
        "history": [{"epoch": n + 1, "loss": 1 / (n + 1), "run": run} for n in range(epoch)],
        "model": {"w": weights},
        "heads": {},
        "averaged": {"w": weights + 0.5},
        "optimizer": {"momentum": weights},
        "scaler": {},
        "logit_shift": torch.zeros(3),
        "made_by": {"version": "0"},
    }


def train(folder, epochs, backup=None, resume=True, run="a", best=lambda epoch: True):
    """Train without training: save one state after another, from where the run stands."""
    with RunFiles(folder, backup) as files:
        checkpoint = files.begin(resume)
        for epoch in range(checkpoint["epoch"] + 1 if checkpoint else 1, epochs + 1):
            files.save(state(epoch, run), best(epoch))
    return files


def epoch_of(path):
    """The epoch of a checkpoint, after making sure that it is whole."""
    checkpoint = read_checkpoint(path)
    averaged = 0.5 if path.name.startswith("best") else 0
    assert (checkpoint["model"]["w"] == checkpoint["epoch"] + averaged).all()
    assert len(checkpoint["history"]) == checkpoint["epoch"]
    return checkpoint["epoch"]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def wait_for(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def in_child(function, *args):
    """Start a function in another process."""
    child = multiprocessing.get_context("fork").Process(target=function, args=args)
    child.start()
    return child


# Checkpoints.


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "it is empty"),
        (b"something else", ""),
        (b"x", "it holds something other than tensors and plain values"),
        ({"format": 1, "model": {}}, "it lacks network, scheme, "),
        (state(1) | {"format": 99}, "a newer version of unet_utils wrote it"),
        # An object that runs code. (The advice of torch is to let it.)
        (state(1) | {"config": Path("x")}, "it holds something other than tensors and plain"),
    ],
)
def test_what_is_not_a_checkpoint_is_named(tmp_path, content, problem):
    path = tmp_path / "last.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=rf"last\.pt is not a usable checkpoint .*{problem}.*name"):
        read_checkpoint(path)
    with pytest.raises(ValueError, match=r"last\.pt is not .*switch resume off"):
        train(tmp_path, 2)
    assert path.exists()


def test_a_checkpoint_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*x\.pt: train one first"):
        read_checkpoint(tmp_path / "x.pt")


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="counts read bytes as Linux does")
def test_facts_are_read_without_the_tensors(tmp_path):
    torch.save(state(2, size=2**20), tmp_path / "x.pt")
    before = _bytes_read()
    found = read_facts(tmp_path / "x.pt")
    assert _bytes_read() - before < 2**20 < (tmp_path / "x.pt").stat().st_size
    whole = state(2)
    assert found == {name: whole[name] for name in whole if name not in checkpoints.TENSORS}
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        read_facts(tmp_path / "y.pt")


def _bytes_read():
    return int(Path("/proc/self/io").read_text().split()[1])


def test_weights_that_fit_are_loaded(tmp_path, capsys):
    model = nn.Linear(2, 3)
    weights = {"weight": torch.ones(3, 2), "bias": torch.ones(4), "other": torch.ones(1)}
    load_matching(model, {"model": weights}, "x.pt")
    assert (model.weight == 1).all()
    assert "Starting from x.pt: 1 of 2 tensors fit" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"no weight of x\.pt fits this network"):
        load_matching(nn.Linear(5, 5), {"model": weights}, "x.pt")


def test_weights_are_known_by_their_hash():
    weights = {"w": torch.rand(2, 3, 4, 5), "n": torch.tensor(7), "h": torch.ones(2).bfloat16()}
    same = {name: weights[name].clone() for name in ("n", "h", "w")}
    same["w"] = same["w"].contiguous(memory_format=torch.channels_last)
    assert len(weights_hash(weights)) == 16
    assert weights_hash(same) == weights_hash(weights)
    same["w"][0, 0, 0, 0] += 1
    assert weights_hash(same) != weights_hash(weights)
    assert weights_hash(weights | {"n": torch.tensor(8)}) != weights_hash(weights)
    assert weights_hash({"v": weights["w"]}) != weights_hash({"w": weights["w"]})


def test_what_made_a_checkpoint(tmp_path, monkeypatch):
    made = made_by("cpu", "abc")
    assert made["labels"] == "abc"
    assert made["torch"] == torch.__version__
    assert made["device"].startswith("CPU (")
    assert made["precision"] in ("float32", "bfloat16")
    assert made["date"].endswith("+00:00")
    assert made["version"].count(".") >= 2
    assert all(isinstance(value, str) for value in made.values())
    # Installed below somebody's own repository, whose commit says nothing of this package.
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    (tmp_path / "installed").mkdir()
    monkeypatch.setattr(code_version, "CHECKOUT", tmp_path / "installed")
    assert code_version.commit() == ""


@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
def test_the_commit_of_a_checkout(tmp_path, monkeypatch):
    def git(*command):
        identity = ["-c", "user.name=x", "-c", "user.email=x"]
        answer = subprocess.run(
            ["git", *identity, *command], cwd=tmp_path, check=True, capture_output=True, text=True
        )
        return answer.stdout.strip()

    monkeypatch.setattr(code_version, "CHECKOUT", tmp_path)
    git("init", "-q")
    (tmp_path / "x").write_text("x")
    git("add", "x")
    git("commit", "-qm", "x")
    git("tag", "v1")
    assert code_version.commit() == git("rev-parse", "--short=12", "HEAD")
    (tmp_path / "x").write_text("y")
    assert code_version.commit() == git("rev-parse", "--short=12", "HEAD") + "-dirty"
    (tmp_path / "x").write_text("x")
    assert code_version.describe_code() == f"{tmp_path} @ {code_version.commit()}"
    git("remote", "add", "origin", "https://key@github.com/me/mine")
    found = f"https://github.com/me/mine @ {code_version.commit()}"
    assert code_version.describe_code() == found


# The files of a run.


def test_the_files_of_a_run(tmp_path):
    files = train(tmp_path, 3, best=lambda epoch: epoch <= 2)
    assert names(tmp_path) == ["best.pt", "history.csv", "last.pt", "run.lock"]
    assert files.saved
    assert (epoch_of(files.last), epoch_of(files.best)) == (3, 2)
    best = read_checkpoint(files.best)
    assert set(state(1)) - set(best) == {
        "averaged",
        "heads",
        "optimizer",
        "scaler",
        "first_epoch",
    }
    with open(tmp_path / "history.csv", newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2", "3"]


def test_a_run_is_resumed(tmp_path):
    train(tmp_path, 2)
    with RunFiles(tmp_path) as files:
        checkpoint = files.begin(resume=True)
        assert checkpoint["optimizer"]["momentum"][0, 0] == 2
        assert checkpoint["history"] == state(2)["history"]
    assert saved_settings(tmp_path) == state(2)["config"]


def test_best_pt_is_written_for_the_best_epochs_only(tmp_path):
    with RunFiles(tmp_path) as files:
        files.begin(resume=True)
        files.save(state(1), True)
        with open(files.best, "rb"):  # so that its number is not given to another file
            number = files.best.stat().st_ino
            files.save(state(2), False)
            assert files.best.stat().st_ino == number
            files.save(state(3), True)
            assert files.best.stat().st_ino != number


def test_a_restored_run_overwrites_nothing(tmp_path):
    train(tmp_path / "here", 2, tmp_path / "drive")
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "best.pt").write_bytes(b"of another run")
    assert epoch_of(train(tmp_path / "new", 2, tmp_path / "drive").best) == 2
    assert (tmp_path / "new" / "best-1.pt").read_bytes() == b"of another run"


def test_settings_of_a_run_are_known_before_it_begins(tmp_path):
    assert saved_settings(tmp_path / "here", tmp_path / "drive") is None
    train(tmp_path / "here", 1, tmp_path / "drive", run="b")
    assert saved_settings(tmp_path / "here")["run"] == "b"
    assert saved_settings(tmp_path / "new", tmp_path / "drive")["run"] == "b"
    assert not (tmp_path / "new").exists()
    (tmp_path / "here" / "last.pt").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"here/last\.pt is not a usable checkpoint"):
        saved_settings(tmp_path / "here", tmp_path / "drive")


def test_beginning_again_keeps_the_earlier_run(tmp_path, capsys):
    old = train(tmp_path / "here", 3, tmp_path / "drive")
    content = old.last.read_bytes()
    with RunFiles(tmp_path / "here", tmp_path / "drive") as files:
        assert files.begin(resume=False) is None
        assert epoch_of(files.last) == 3  # until there is something new
        files.save(state(1, "b"), True)
    for folder in (tmp_path / "here", tmp_path / "drive"):
        assert (folder / "last-1.pt").read_bytes() == content
        assert epoch_of(folder / "best-1.pt") == 3
        assert (folder / "history-1.csv").exists()
        assert read_checkpoint(folder / "last.pt")["config"]["run"] == "b"
    assert capsys.readouterr().out.count("An earlier last.pt in ") == 2
    train(tmp_path / "here", 1, resume=False)
    assert (tmp_path / "here" / "last-2.pt").exists()


def test_a_table_of_an_earlier_run_that_is_open_elsewhere_stops_nothing(tmp_path, monkeypatch):
    train(tmp_path, 3)
    rename = Path.rename

    def refuse(path, target):
        if path.name == "history.csv":
            raise PermissionError(errno.EACCES, "used by another process", str(path))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    assert train(tmp_path, 1, resume=False, run="b").saved
    assert epoch_of(tmp_path / "last-1.pt") == 3
    assert read_checkpoint(tmp_path / "last.pt")["config"]["run"] == "b"


def test_a_best_pt_without_last_pt_is_kept(tmp_path, monkeypatch, capsys):
    """Nothing is renamed before there is something to put in its place."""
    for folder in ("here", "drive"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "best.pt").write_bytes(b"the only copy of a long training")
    with monkeypatch.context() as broken:
        broken.setattr(torch, "save", full_disk)
        assert not train(tmp_path / "here", 2, tmp_path / "drive").saved
    for folder in ("here", "drive"):
        assert (tmp_path / folder / "best.pt").read_bytes().startswith(b"the only copy")
    train(tmp_path / "here", 2, tmp_path / "drive")
    for folder in ("here", "drive"):
        assert (tmp_path / folder / "best-1.pt").read_bytes().startswith(b"the only copy")
        assert epoch_of(tmp_path / folder / "best.pt") == 2
    assert f"best.pt in {tmp_path / 'drive'} is kept as best-1.pt" in capsys.readouterr().out


def test_a_table_that_is_open_elsewhere_stops_nothing(tmp_path, monkeypatch, capsys):
    cannot_replace(monkeypatch, "history.csv")
    with RunFiles(tmp_path / "here", tmp_path / "drive") as files:
        files.begin(resume=True)
        files.save(state(1), True)
        files.save(state(2), True)
        assert files.saved
        assert not (tmp_path / "here" / "history.csv").exists()
        assert epoch_of(files.last) == epoch_of(files.best) == 2
        monkeypatch.undo()
        files.save(state(3), True)
    assert capsys.readouterr().out.count("could not be replaced") == 1
    assert len((tmp_path / "drive" / "history.csv").read_text().splitlines()) == 4
    assert epoch_of(tmp_path / "drive" / "last.pt") == 3


def test_a_best_pt_that_cannot_be_replaced_does_not_stop_last_pt(tmp_path, monkeypatch, capsys):
    with RunFiles(tmp_path) as files:
        files.begin(resume=True)
        files.save(state(1), True)
        cannot_replace(monkeypatch, "best.pt")
        files.save(state(2), True)
        assert not files.saved
        assert (epoch_of(files.last), epoch_of(files.best)) == (2, 1)
        monkeypatch.undo()
        files.save(state(3), False)
        assert files.saved
        assert (epoch_of(files.last), epoch_of(files.best)) == (3, 2)
    assert capsys.readouterr().out.count("Could not save epoch") == 1


def cannot_replace(monkeypatch, name):
    """As on Windows, while another program has the file open."""
    replace = os.replace

    def refuse(source, target):
        if Path(target).name == name:
            raise PermissionError(errno.EACCES, "used by another process", str(target))
        replace(source, target)

    monkeypatch.setattr(platform_files.os, "replace", refuse)


def full_disk(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "free some space there"),
        (OSError(errno.EIO, "Input/output error"), "check that folder"),
        (RuntimeError("unknown"), "check that folder"),
    ],
)
def test_a_failure_while_saving_is_told(tmp_path, monkeypatch, capsys, error, advice):
    def fail(*_):
        raise error

    with RunFiles(tmp_path) as files:
        files.begin(resume=True)
        files.save(state(1), True)
        with monkeypatch.context() as broken:
            broken.setattr(torch, "save", fail)
            files.save(state(2), True)
        assert not files.saved
        assert (epoch_of(files.last), epoch_of(files.best)) == (1, 1)
        files.save(state(3), True)
        assert files.saved
    assert f"Could not save epoch 2 in {tmp_path} ({error}): {advice}." in capsys.readouterr().out


def test_a_disk_that_fills(small_disk, capsys):
    """However much is free, both files change, or neither. best.pt takes 66 kB, last.pt 130."""
    folder, filler = small_disk / "run", small_disk / "filler"
    results = set()
    with RunFiles(folder) as files:
        files.begin(resume=True)
        files.save(state(1, size=8000), True)
        for number, free in enumerate(range(0, 300_000, 30_000)):
            epoch = epoch_of(files.last)
            filler.write_bytes(bytes(shutil.disk_usage(small_disk).free - free))
            files.save(state(epoch + 1, size=8000), True)
            results.add(files.saved)
            assert epoch_of(files.last) == epoch_of(files.best) == epoch + files.saved, number
            assert names(folder) == ["best.pt", "history.csv", "last.pt", "run.lock"]
            filler.unlink()
        assert results == {True, False}
        # The best epoch is not lost if it could not be saved at once.
        filler.write_bytes(bytes(shutil.disk_usage(small_disk).free))
        files.save(state(20, size=8000), True)
        assert not files.saved
        filler.unlink()
        files.save(state(21, size=8000), False)
        assert files.saved
        assert (epoch_of(files.last), epoch_of(files.best)) == (21, 20)
    printed = capsys.readouterr().out
    assert printed.count("Could not save") == printed.count("free some space there") >= 2
    assert "unexpected pos" not in printed


def test_a_full_disk_when_a_run_is_restored(small_disk, tmp_path):
    train(tmp_path / "here", 2, tmp_path / "drive")
    (small_disk / "filler").write_bytes(bytes(shutil.disk_usage(small_disk).free - 4096))
    with (
        RunFiles(small_disk / "run", tmp_path / "drive") as files,
        pytest.raises(OSError, match="Could not restore the run in .*free some space"),
    ):
        files.begin(resume=True)


# A process that ends.


def save_for_ever(folder, backup):
    with RunFiles(folder, backup) as files, open(os.devnull, "w") as nowhere:
        sys.stdout = nowhere
        checkpoint = files.begin(resume=True)
        epoch = checkpoint["epoch"] if checkpoint else 0
        while True:
            epoch += 1
            files.save(state(epoch), epoch % 3 != 0)


@pytest.mark.slow
@needs_posix
def test_killed_at_any_moment_the_run_is_whole_and_free(tmp_path, monkeypatch):
    monkeypatch.setattr(backup, "BACKUP_SECONDS", 0.005)
    here, drive = tmp_path / "here", tmp_path / "drive"
    generator = random.Random(0)
    reached = in_backup = 0
    for _ in range(25):
        child = in_child(save_for_ever, here, drive)
        wait_for(functools.partial(has_passed, here / "last.pt", reached))
        time.sleep(generator.random() * 0.03)
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        if (drive / "last.pt").exists():
            epoch = epoch_of(drive / "last.pt")
            assert epoch >= in_backup
            assert epoch_of(drive / "best.pt") >= epoch - 1
            in_backup = epoch
        with RunFiles(here) as files:  # which is free
            checkpoint = files.begin(resume=True)
            assert checkpoint["epoch"] > reached
            reached = epoch_of(files.last)
            assert epoch_of(files.best) == reached - (reached % 3 == 0)
    assert in_backup > 0
    with RunFiles(tmp_path / "new", drive) as files:
        assert files.begin(resume=True)["epoch"] == in_backup
    visible = [name for name in names(here) if not name.startswith(".")]
    assert visible == ["best.pt", "history.csv", "last.pt", "run.lock"]


def has_passed(path, epoch):
    return path.exists() and read_checkpoint(path)["epoch"] > epoch


def test_stopped_between_the_files_best_pt_is_made_again(tmp_path, monkeypatch):
    with RunFiles(tmp_path) as files:
        files.begin(resume=True)
        files.save(state(1), True)
        cannot_replace(monkeypatch, "best.pt")
        files.save(state(2), True)
    monkeypatch.undo()
    with RunFiles(tmp_path) as files:
        assert files.begin(resume=True)["epoch"] == 2
        assert epoch_of(files.best) == 2


@pytest.mark.parametrize("damage", ["missing", "empty", "foreign"])
@pytest.mark.parametrize("where", ["here", "drive"])
def test_last_pt_is_enough(tmp_path, capsys, damage, where):
    here, drive = tmp_path / "here", tmp_path / "drive"
    train(here, 2, drive)
    folder = tmp_path / where
    (folder / "history.csv").unlink()
    (folder / "best.pt").unlink()
    if damage != "missing":
        (folder / "best.pt").write_bytes(b"" if damage == "empty" else b"something else")
    if where == "drive":
        shutil.rmtree(here)
    with RunFiles(here, drive) as files:
        assert files.begin(resume=True)["epoch"] == 2
        assert epoch_of(files.best) == epoch_of(files.last) == 2
        assert (here / "history.csv").exists()
    assert f"{folder / 'best.pt'}" in capsys.readouterr().out
    if where == "here" and damage == "foreign":
        assert (here / "best-1.pt").read_bytes() == b"something else"


def test_a_damaged_last_pt_in_the_backup_is_named_and_kept(tmp_path):
    here, drive = tmp_path / "here", tmp_path / "drive"
    drive.mkdir()
    (drive / "last.pt").write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"drive/last\.pt is not a usable .*switch resume off"):
        train(here, 1, drive)
    train(here, 1, drive, resume=False)
    assert (drive / "last-1.pt").read_bytes() == b"something else"
    assert epoch_of(drive / "last.pt") == 1


# One machine.


def answer(folder, answers):
    try:
        train(folder, 1)
        answers.put("trained")
    except LockedError as error:
        answers.put(str(error))


@needs_posix
def test_two_notebooks_on_one_machine(tmp_path):
    answers = multiprocessing.get_context("fork").SimpleQueue()
    with RunFiles(tmp_path) as files:
        in_child(answer, tmp_path, answers).join(PATIENCE)
        assert f"Another process trains the run in {tmp_path}: stop it" in answers.get()
        with pytest.raises(LockedError, match="or choose another name"):  # the same notebook
            train(tmp_path, 1)
        files.begin(resume=True)
        files.save(state(1), True)
    in_child(answer, tmp_path, answers).join(PATIENCE)
    assert answers.get() == "trained"


def test_an_error_or_a_stopped_cell_frees_the_run(tmp_path):
    def stop(epoch):
        if epoch == 3:
            raise KeyboardInterrupt
        return True

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "here", 3, tmp_path / "drive", best=stop)
        assert epoch_of(tmp_path / "drive" / "last.pt") == 2


def test_neither_process_numbers_nor_clocks_count(tmp_path, monkeypatch):
    """A process in another container may have our number, and clocks jump."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    monkeypatch.setattr(time, "time", lambda: random.uniform(0, 4e9))
    train(tmp_path / "here", 3, tmp_path / "drive")
    with RunFiles(tmp_path / "here", tmp_path / "drive") as files:
        assert files.begin(resume=True)["epoch"] == 3
        with pytest.raises(LockedError):
            train(tmp_path / "here", 4)
        for path in (tmp_path / "drive").iterdir():
            os.utime(path, (4e9, 4e9))
        files.save(state(4), True)
    assert epoch_of(tmp_path / "drive" / "last.pt") == 4
    os.utime(files.best, (0, 0))
    assert epoch_of(train(tmp_path / "here", 5).last) == 5


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOLCK, "No locks available"), NotImplementedError]
)
def test_a_folder_that_cannot_be_locked_is_used(tmp_path, monkeypatch, capsys, error):
    def fail(self):
        raise error

    monkeypatch.setattr(run_files.FileLock, "acquire", fail)
    assert epoch_of(train(tmp_path, 2).last) == 2
    assert capsys.readouterr().out.count("cannot be locked") == 1


# The backup.


def copies(monkeypatch):
    """Record the names and epochs of all copies."""
    made = []
    copy = backup.copy_verified

    def record(source, target):
        made.append((source.name, epoch_of(source) if source.suffix == ".pt" else None))
        copy(source, target)

    monkeypatch.setattr(backup, "copy_verified", record)
    return made


def test_copies_pause_and_the_last_state_arrives(tmp_path, monkeypatch):
    monkeypatch.setattr(backup, "BACKUP_SECONDS", 0.3)
    made = copies(monkeypatch)
    began = time.monotonic()
    with RunFiles(tmp_path / "here", tmp_path / "drive") as files:
        files.begin(resume=True)
        files.save(state(1), True)
        wait_for(lambda: (tmp_path / "drive" / "last.pt").exists())  # at once
        for epoch in range(2, 41):
            files.save(state(epoch), epoch <= 2)
            time.sleep(0.01)
        pauses = int((time.monotonic() - began) / 0.3)
    last = [epoch for name, epoch in made if name == "last.pt"]
    assert last[0] == 1
    assert last[-1] == 40
    assert 2 <= len(last) <= 2 + pauses
    assert [epoch for name, epoch in made if name == "best.pt"] == [1, 2]
    assert names(tmp_path / "drive") == ["best.pt", "history.csv", "last.pt", "owner.txt"]
    assert epoch_of(tmp_path / "drive" / "last.pt") == 40
    assert epoch_of(tmp_path / "drive" / "best.pt") == 2
    assert ".snapshot" not in names(tmp_path / "here")


def test_nothing_is_copied_twice(tmp_path, monkeypatch):
    here, drive = tmp_path / "here", tmp_path / "drive"
    train(here, 3, drive, best=lambda epoch: epoch <= 2)
    made = copies(monkeypatch)
    train(here, 3, drive)  # nothing is left to train
    train(tmp_path / "new", 3, drive)  # restored
    assert made == []
    train(here, 4, drive, best=lambda epoch: False)
    assert made == [("last.pt", 4), ("history.csv", None)]
    assert not list(drive.glob("*-1.*"))


def test_the_time_lapse_comes_along_with_its_last_epoch(tmp_path):
    """It is written after the other files of an epoch have been copied."""
    drive = tmp_path / "drive"
    with RunFiles(tmp_path / "first", drive) as files:
        files.begin(resume=True)
        files.save(state(1), True)
        wait_for(lambda: (drive / "history.csv").exists())
        (tmp_path / "first" / TIME_LAPSE).write_text("one epoch")
    assert (drive / TIME_LAPSE).read_text() == "one epoch"
    train(tmp_path / "second", 2, drive)
    assert (tmp_path / "second" / TIME_LAPSE).read_text() == "one epoch"
    train(tmp_path / "second", 1, resume=False)
    assert (tmp_path / "second" / "time-lapse-1.json").read_text() == "one epoch"
    assert not (tmp_path / "second" / TIME_LAPSE).exists()


def test_what_was_not_copied_is_copied_by_the_next_session(tmp_path):
    here, drive = tmp_path / "here", tmp_path / "drive"
    train(here, 1, drive)
    train(here, 3)
    train(here, 3, drive)
    assert epoch_of(drive / "last.pt") == epoch_of(drive / "best.pt") == 3


def test_a_copy_is_of_one_moment(tmp_path, monkeypatch):
    """best.pt and last.pt in the backup belong together, though training replaces them."""
    copy = backup.copy_verified
    saved = threading.Event()

    def slow(source, target):
        copied.set()
        saved.wait(PATIENCE)
        copy(source, target)

    copied = threading.Event()
    monkeypatch.setattr(backup, "copy_verified", slow)
    monkeypatch.setattr(backup, "BACKUP_SECONDS", 1000)
    with RunFiles(tmp_path / "here", tmp_path / "drive") as files:
        files.begin(resume=True)
        files.save(state(1), True)
        assert copied.wait(PATIENCE)
        files.save(state(2), True)  # does not wait for the copy
        files.save(state(3), False)
        saved.set()
        wait_for(lambda: (tmp_path / "drive" / "history.csv").exists())
        assert epoch_of(tmp_path / "drive" / "last.pt") == 1
        assert epoch_of(tmp_path / "drive" / "best.pt") == 1
    assert epoch_of(tmp_path / "drive" / "last.pt") == 3
    assert epoch_of(tmp_path / "drive" / "best.pt") == 2


def test_where_files_cannot_have_two_names_they_are_copied(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    train(tmp_path / "here", 2, tmp_path / "drive")
    assert epoch_of(tmp_path / "drive" / "last.pt") == 2


def test_a_drive_that_drops_and_returns(tmp_path, capsys):
    mounted, gone = tmp_path / "MyDrive", tmp_path / "gone"
    mounted.mkdir()
    drive = mounted / "runs" / "unet"
    printed = ""

    def has_said(text):
        nonlocal printed
        printed += capsys.readouterr().out
        return text in printed

    with RunFiles(tmp_path / "here", drive) as files:
        files.begin(resume=True)
        files.save(state(1), True)
        wait_for(lambda: (drive / "history.csv").exists())
        mounted.rename(gone)
        files.save(state(2), True)
        wait_for(lambda: has_said("Could not copy the checkpoint"))
        files.save(state(3), False)
        time.sleep(0.1)  # more attempts
        assert files.saved
        assert not mounted.exists()  # never made as a plain folder
        gone.rename(mounted)
        wait_for(lambda: has_said("work again"))
        assert epoch_of(drive / "last.pt") == 3
        assert epoch_of(drive / "best.pt") == 2
        files.save(state(4), False)
    printed += capsys.readouterr().out
    assert printed.count("Could not copy the checkpoint") == 1
    assert printed.count("work again") == 1
    assert epoch_of(drive / "last.pt") == 4


@pytest.mark.parametrize("problem", ["not mounted", "a file in the way"])
def test_without_the_backup_the_training_goes_on(tmp_path, capsys, problem):
    drive = tmp_path / "MyDrive" / "runs"
    if problem != "not mounted":
        (tmp_path / "MyDrive").write_text("a file where a folder should be")
    files = train(tmp_path / "here", 3, drive)
    assert files.saved
    assert epoch_of(files.last) == 3
    printed = capsys.readouterr().out
    assert printed.count("Could not copy the checkpoint") == 1
    assert f"is not in {drive}, only in {tmp_path / 'here'}" in printed


def test_a_full_drive_is_named_and_used_again(tmp_path, monkeypatch, capsys):
    with (
        RunFiles(tmp_path / "here", tmp_path / "drive") as files,
        monkeypatch.context() as full,  # which ends first
    ):
        full.setattr(backup, "copy_verified", full_disk)
        files.begin(resume=True)
        files.save(state(1), True)
        wait_for(lambda: "Free some space there." in capsys.readouterr().out)
    assert epoch_of(tmp_path / "drive" / "last.pt") == 1


def test_a_copy_that_hangs_does_not_hold_the_end_up(tmp_path, monkeypatch, capsys):
    released = threading.Event()

    def hang(source, target):
        released.wait(PATIENCE)
        raise OSError(errno.EIO, "gone")

    monkeypatch.setattr(backup, "copy_verified", hang)
    monkeypatch.setattr(backup, "FINISH_SECONDS", 0.1)
    files = train(tmp_path / "here", 1, tmp_path / "drive")
    assert "only in" in capsys.readouterr().out
    assert epoch_of(train(tmp_path / "here", 2).last) == 2  # the run is free
    released.set()
    files._backup.thread.join(PATIENCE)


# Two machines.


def test_two_machines_on_one_drive(tmp_path, capsys):
    drive = tmp_path / "drive" / "unet"
    with RunFiles(tmp_path / "A", drive) as first:
        first.begin(resume=True)
        first.save(state(1, "a"), True)
        first.save(state(2, "a"), True)
        wait_for(lambda: (drive / "last.pt").exists() and epoch_of(drive / "last.pt") == 2)
        with RunFiles(tmp_path / "B", drive) as second:
            owner = (drive / "owner.txt").read_text()
            assert second.begin(resume=True)["epoch"] == 2
            wait_for(lambda: (drive / "owner.txt").read_text() != owner)
            for epoch in range(3, 6):
                first.save(state(epoch, "a"), True)
            second.save(state(3, "a") | {"config": {"run": "b"}}, False)
            second.save(state(4, "a") | {"config": {"run": "b"}}, False)
    mine, other = read_checkpoint(tmp_path / "A" / "last.pt"), read_checkpoint(drive / "last.pt")
    assert (mine["epoch"], other["epoch"], other["config"]["run"]) == (5, 4, "b")
    [aside] = (path for path in drive.parent.iterdir() if path != drive)
    assert epoch_of(aside / "last.pt") == epoch_of(aside / "best.pt") == 5
    assert epoch_of(drive / "best.pt") == 2
    printed = capsys.readouterr().out
    assert printed.count(f"the run in {drive}: this one is now copied to {aside}") == 1
    # What was set aside is a run of its own.
    assert epoch_of(train(tmp_path / "C", 6, aside).last) == 6


def test_another_machine_begins_during_a_copy(tmp_path, monkeypatch):
    copy = backup.copy_verified

    def overtaken(source, target):
        copy(source, target)
        if target.parent == drive:
            (drive / "owner.txt").write_text("another")
            (drive / "last.pt").write_bytes(b"of the other machine")

    drive = tmp_path / "drive"
    train(tmp_path / "here", 1, drive)
    monkeypatch.setattr(backup, "copy_verified", overtaken)
    train(tmp_path / "here", 2, drive)
    assert (drive / "last.pt").read_bytes() == b"of the other machine"
    [aside] = tmp_path.glob("drive-*")
    assert epoch_of(aside / "last.pt") == 2


def test_a_machine_that_comes_back_overwrites_nothing(tmp_path, capsys):
    """It trained to epoch 2, another one from there to 4, and now it trains on from 2."""
    drive = tmp_path / "drive"
    train(tmp_path / "A", 2, drive)
    with RunFiles(tmp_path / "B", drive) as files:
        files.begin(resume=True)
        for epoch in (3, 4):
            row = {"epoch": epoch, "loss": 9, "run": "b"}
            history = state(2)["history"] + [row | {"epoch": n} for n in range(3, epoch + 1)]
            files.save(state(epoch) | {"history": history}, True)
    train(tmp_path / "A", 5, drive)
    assert read_checkpoint(drive / "last.pt")["epoch"] == 5
    assert read_checkpoint(drive / "last-1.pt")["history"][-1]["run"] == "b"
    assert epoch_of(drive / "best-1.pt") == 4
    assert "is kept as last-1.pt" in capsys.readouterr().out


def test_a_drive_that_drops_while_it_is_looked_at_is_not_another_run(tmp_path, monkeypatch):
    train(tmp_path / "here", 2, tmp_path / "drive")
    load = torch.load

    def drop(path, **options):
        if not failed and Path(path).parent.name == "drive":
            failed.append(path)
            raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")
        return load(path, **options)

    failed = []
    monkeypatch.setattr(torch, "load", drop)
    train(tmp_path / "here", 3, tmp_path / "drive")
    assert failed
    assert not list((tmp_path / "drive").glob("*-1.*"))
    monkeypatch.undo()
    assert epoch_of(tmp_path / "drive" / "last.pt") == 3
