"""Colab, Kaggle or a laptop: their folders, and the report."""

import errno
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from unet_utils.platform import environment

ROOT = Path(__file__).resolve().parent.parent
FAKE_COLAB = ROOT / "tests" / "fake_colab"


@pytest.fixture
def laptop(tmp_path, monkeypatch):
    """A machine that is neither Colab's nor Kaggle's. Colab's folders are moved to the folder that
    it returns."""
    for name in (
        "COLAB_RELEASE_TAG",
        "KAGGLE_KERNEL_RUN_TYPE",
        "UNET_UTILS_DATA",
        "UNET_UTILS_RESULTS",
    ):
        monkeypatch.delenv(name, raising=False)
    for name in [name for name in sys.modules if name.startswith("google.colab")]:
        monkeypatch.delitem(sys.modules, name)  # another test may have imported the stand-in
    monkeypatch.setattr(environment, "COLAB_MACHINE", tmp_path / "content")
    monkeypatch.setattr(environment, "COLAB_DRIVE", tmp_path / "content" / "drive" / "MyDrive")
    monkeypatch.setattr(environment, "KAGGLE_RESULTS", tmp_path / "kaggle" / "working")
    monkeypatch.setattr(environment, "KAGGLE_INPUT", tmp_path / "kaggle" / "input")
    return tmp_path


@pytest.fixture
def colab(laptop, monkeypatch):
    """A fresh Colab machine without a GPU, and a Drive that is not mounted yet. Returns the folder
    of both."""
    (laptop / "content").mkdir()
    (laptop / "drive").mkdir()
    monkeypatch.syspath_prepend(str(FAKE_COLAB))
    monkeypatch.setenv("COLAB_RELEASE_TAG", "test")
    monkeypatch.setenv("FAKE_COLAB_DRIVE", str(laptop / "drive"))
    monkeypatch.setenv("FAKE_COLAB_ASKED", str(laptop / "asked"))
    monkeypatch.setattr(environment, "find_device", lambda: torch.device("cpu"))
    return laptop


def times_asked(folder):
    """How often the person was asked for Drive."""
    return (folder / "asked").read_text().count("asked") if (folder / "asked").exists() else 0


# Folders and the report.


def test_a_laptop(laptop, monkeypatch, capsys):
    monkeypatch.setenv("UNET_UTILS_DATA", str(laptop / "my data"))
    monkeypatch.setenv("UNET_UTILS_RESULTS", "my runs")
    monkeypatch.chdir(laptop)
    env = environment.setup(use_drive=True)
    assert (env.platform, env.drive) == ("local", None)
    assert (env.data, env.results) == (laptop / "my data", laptop / "my runs")
    assert not list(env.data.iterdir())
    (line,) = capsys.readouterr().out.splitlines()
    parts = r"Python 3\.\d+\.\d+", r"torch \d", r"\d+ CPUs", "GB RAM", "GB disk free", "my data"
    for part in (*parts, "my runs"):
        assert re.search(part, line)
    # A relative folder stays where it was meant, for child processes, too.
    monkeypatch.chdir(laptop / "my data")
    assert environment.setup() == env
    assert os.environ["UNET_UTILS_RESULTS"] == str(laptop / "my runs")


def test_folders_of_a_checkout_and_of_an_installed_package(laptop, monkeypatch):
    assert environment._default_folders("local", None) == (ROOT / "data", ROOT / "runs")
    monkeypatch.setattr(environment, "CHECKOUT", laptop / "site-packages")
    monkeypatch.chdir(laptop)
    assert environment._default_folders("local", None) == (laptop / "data", laptop / "runs")


@pytest.mark.parametrize(
    "name", ["", " ", ".", "..", ".hidden", "end.", "a/b", "../b", "a\\b", "/a", "C:"]
)
def test_a_run_without_a_name_is_refused(laptop, name):
    env = environment.Environment("local", torch.device("cpu"), laptop / "data", laptop / "runs")
    assert env.run_folders("unet-2") == (laptop / "runs" / "unet-2", None)
    with pytest.raises(ValueError, match="is not a name for a run: choose one of letters"):
        env.run_folders(name)


@pytest.mark.parametrize("variable", ["UNET_UTILS_DATA", "UNET_UTILS_RESULTS"])
def test_an_unwritable_folder_is_named(laptop, monkeypatch, variable):
    (laptop / "file").write_text("in the way")
    monkeypatch.setenv("UNET_UTILS_DATA", str(laptop / "data"))
    monkeypatch.setenv("UNET_UTILS_RESULTS", str(laptop / "runs"))
    monkeypatch.setenv(variable, str(laptop / "file" / "folder"))
    with pytest.raises(OSError, match=f"Cannot write to .*file/folder.* variable {variable}"):
        environment.setup()


def test_systems_that_do_not_tell(laptop, monkeypatch):
    monkeypatch.delattr(os, "sysconf", raising=False)  # Windows
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    env = environment.Environment("local", torch.device("cpu"), laptop, laptop)
    assert "RAM" not in environment.describe(env)
    assert re.search(r"\d CPUs", environment.describe(env))


def test_colab_with_and_without_drive(colab, capsys):
    content = colab / "content"
    env = environment.setup()
    assert (env.platform, env.drive) == ("colab", None)
    assert (env.data, env.results) == (content / "data", content / "data" / "runs")
    printed = capsys.readouterr().out
    assert "Warning: no GPU is used" in printed
    assert "Runtime > Change runtime type" in printed
    env = environment.setup(use_drive=True)
    assert "Mounted at" in capsys.readouterr().out
    (env.results / "checkpoint.pt").write_text("x")
    assert list((colab / "drive").rglob("checkpoint.pt"))
    assert env.drive in env.results.parents
    assert (env.drive / "prepared").is_dir()
    assert env.data == content / "data"
    assert env.run_folders("unet") == (env.data / "runs" / "unet", env.results / "unet")
    assert environment.setup(use_drive=True) == env
    assert "ounted" not in capsys.readouterr().out
    assert times_asked(colab) == 1
    # Unmounted: neither asked for again, nor imitated by a plain folder.
    (content / "drive" / "MyDrive").unlink()
    assert environment.setup(use_drive=True).drive is None
    assert times_asked(colab) == 1
    assert not (content / "drive" / "MyDrive").exists()


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        ("refused", "credential propagation was unsuccessful"),
        ("root folder", "mount failed: timeout during initial read of root folder"),
        ("timeout", r"\(Timeout exceeded\.\)"),
        ("not here", "unsupported in this environment"),
        ("nameless", r"\(NotImplementedError\)"),
    ],
)
def test_colab_without_a_drive_that_was_wanted(colab, monkeypatch, capsys, failure, reason):
    monkeypatch.setenv("FAKE_COLAB_NO_DRIVE", failure)
    for _ in range(2):
        env = environment.setup(use_drive=True)
        assert (env.drive, env.results) == (None, colab / "content" / "data" / "runs")
    warnings = [line for line in capsys.readouterr().out.splitlines() if "Google Drive" in line]
    assert len(warnings) == 2
    assert re.search(reason, warnings[0])
    assert times_asked(colab) == (failure != "not here")
    # Mounted in the Files panel after all.
    (colab / "content" / "drive" / "MyDrive").symlink_to(colab / "drive")
    assert environment.setup(use_drive=True).drive


def test_a_drive_that_cannot_be_written_to_is_left_out(colab, monkeypatch, capsys):
    temporary_file = tempfile.TemporaryFile

    def fail_on_drive(dir):
        if "MyDrive" in str(dir):
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        return temporary_file(dir=dir)

    monkeypatch.setattr(tempfile, "TemporaryFile", fail_on_drive)
    env = environment.setup(use_drive=True)
    assert (env.drive, env.results) == (None, colab / "content" / "data" / "runs")
    assert os.strerror(errno.EDQUOT) in capsys.readouterr().out


def test_results_on_an_unmounted_drive_are_refused(colab, monkeypatch):
    monkeypatch.setenv("UNET_UTILS_RESULTS", str(colab / "content" / "drive" / "MyDrive" / "runs"))
    with pytest.raises(OSError, match=r"Google Drive is not mounted.* UNET_UTILS_RESULTS"):
        environment.setup()
    assert not (colab / "content" / "drive").exists()


def test_kaggle_is_told_from_colab(colab, monkeypatch, capsys):
    # Next to COLAB_RELEASE_TAG: it is built on that image.
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    env = environment.setup(use_drive=True)
    assert (env.platform, env.drive) == ("kaggle", None)
    assert env.results == colab / "kaggle" / "working" / "runs"
    assert "working" not in str(env.data)  # the photos must not be published with the notebook
    assert "GPU T4 x2 switches one on" in capsys.readouterr().out


@pytest.mark.parametrize("place", ["my-notebook", "me/my-notebook", "notebooks/me/my-notebook"])
def test_kaggle_resumes_the_run_of_an_earlier_notebook(colab, monkeypatch, capsys, place):
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    env = environment.setup()
    assert env.run_folders("unet") == (env.results / "unet", None)
    assert not env.results.joinpath("unet").exists()
    # Two versions of the notebook are attached; times of files say nothing about what is in them.
    for version, epochs in (("", 3), ("-old", 2)):
        attached = colab / "kaggle" / "input" / f"{place}{version}" / "runs" / "unet"
        attached.mkdir(parents=True)
        for name in ("last.pt", "best.pt", "history.csv"):
            (attached / name).write_text("epoch\n" * epochs)
    with monkeypatch.context() as broken:

        def fail(source, target):
            raise OSError(errno.EIO, "Input/output error")

        broken.setattr(environment, "copy_verified", fail)
        folder, _ = env.run_folders("unet")
        assert not (folder / "last.pt").exists()
        assert "/unet could not be copied" in capsys.readouterr().out
    env.run_folders("unet")
    assert {path.name for path in folder.iterdir()} == {"last.pt", "best.pt", "history.csv"}
    assert len((folder / "last.pt").read_text().splitlines()) == 3
    assert "Found the run unet in " in capsys.readouterr().out
    (folder / "last.pt").write_text("trained on")
    env.run_folders("unet")
    assert (folder / "last.pt").read_text() == "trained on"
    assert capsys.readouterr().out == ""
    bracket = shutil.copytree(attached, attached.parent / "mine [1]")
    env.run_folders(bracket.name)
    assert (env.results / bracket.name / "last.pt").exists()
    shutil.rmtree(bracket)
    shutil.rmtree(env.results / bracket.name)
    capsys.readouterr()
    other = shutil.copytree(attached, attached.parent.parent.with_name("other") / "runs" / "wide")
    env.copy_attached_runs()
    assert capsys.readouterr().out.startswith(f"Found the run wide in {other}")
    assert {path.name for path in env.results.iterdir()} == {"unet", "wide"}
