"""Colab, Kaggle or a laptop: folders, device, report, and the setup cell that finds the code in each of them."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from unet_utils.platform import environment

ROOT = Path(__file__).resolve().parent.parent
FAKE_COLAB = ROOT / "tests" / "fake_colab"
sys.path.insert(0, str(ROOT / "scripts"))
sync_notebooks = importlib.import_module("sync_notebooks")


@pytest.fixture
def laptop(tmp_path, monkeypatch):
    """A machine that is neither Colab's nor Kaggle's. Colab's folders are moved to the folder that it returns."""
    for name in ("COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE", "UNET_UTILS_DATA", "UNET_UTILS_RESULTS"):
        monkeypatch.delenv(name, raising=False)
    for name in [name for name in sys.modules if name.startswith("google.colab")]:
        monkeypatch.delitem(sys.modules, name)  # another test may have imported the stand-in
    monkeypatch.setattr(environment, "COLAB_MACHINE", tmp_path / "content")
    monkeypatch.setattr(environment, "COLAB_DRIVE", tmp_path / "content" / "drive" / "MyDrive")
    monkeypatch.setattr(environment, "KAGGLE_RESULTS", tmp_path / "kaggle" / "working")
    return tmp_path


@pytest.fixture
def colab(laptop, monkeypatch):
    """A fresh Colab machine without a GPU, and a Drive that is not mounted yet. Returns the folder of both."""
    (laptop / "content").mkdir()
    (laptop / "drive").mkdir()
    monkeypatch.syspath_prepend(str(FAKE_COLAB))
    monkeypatch.setenv("COLAB_RELEASE_TAG", "test")
    monkeypatch.setenv("FAKE_COLAB_DRIVE", str(laptop / "drive"))
    monkeypatch.setattr(environment, "find_device", lambda: torch.device("cpu"))
    return laptop


# Folders and the report.


def test_a_laptop(laptop, monkeypatch, capsys):
    monkeypatch.setenv("UNET_UTILS_DATA", str(laptop / "my data"))
    monkeypatch.setenv("UNET_UTILS_RESULTS", str(laptop / "my runs"))
    env = environment.setup(use_drive=True)
    assert (env.platform, env.data, env.results, env.drive) == ("local", laptop / "my data", laptop / "my runs", None)
    assert env.data.is_dir()
    assert env.results.is_dir()
    assert not list(env.data.iterdir())
    (line,) = capsys.readouterr().out.splitlines()
    for part in (r"Python 3\.\d+\.\d+", r"torch \d", r"\d+ CPUs", r"GB RAM", r"GB disk free", r"my data", r"my runs"):
        assert re.search(part, line)


def test_folders_of_a_checkout_and_of_an_installed_package(laptop, monkeypatch):
    assert environment._default_folders("local", None) == (ROOT / "data", ROOT / "runs")
    monkeypatch.setattr(
        environment, "__file__", str(laptop / "site-packages" / "unet_utils" / "platform" / "environment.py")
    )
    monkeypatch.chdir(laptop)
    assert environment._default_folders("local", None) == (laptop / "data", laptop / "runs")


def test_colab_without_drive(colab, capsys):
    env = environment.setup()
    assert env.platform == "colab"
    assert env.drive is None
    assert (env.data, env.results) == (colab / "content" / "data", colab / "content" / "runs")
    printed = capsys.readouterr().out
    assert "Warning: no GPU" in printed
    assert "Runtime > Change runtime type" in printed


def test_colab_with_drive(colab, capsys):
    env = environment.setup(use_drive=True)
    (env.results / "checkpoint.pt").write_text("x")
    assert list((colab / "drive").rglob("checkpoint.pt"))
    assert env.drive in env.results.parents
    assert env.data == colab / "content" / "data"
    assert "Mounted at" in capsys.readouterr().out
    assert environment.setup(use_drive=True) == env
    assert "ounted" not in capsys.readouterr().out


def test_colab_with_drive_refused(colab, monkeypatch, capsys):
    monkeypatch.delenv("FAKE_COLAB_DRIVE")
    env = environment.setup(use_drive=True)
    assert env.drive is None
    assert env.results == colab / "content" / "runs"
    assert "Google Drive is not mounted (Error: credential propagation was unsuccessful)" in capsys.readouterr().out


def test_kaggle_is_told_from_colab(colab, monkeypatch, capsys):
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")  # next to COLAB_RELEASE_TAG: it is built on that image
    env = environment.setup(use_drive=True)
    assert env.platform == "kaggle"
    assert env.drive is None
    assert env.results == colab / "kaggle" / "working" / "runs"
    assert "working" not in str(env.data)  # the photos must not be published with the notebook
    assert "Settings > Accelerator" in capsys.readouterr().out


@pytest.mark.parametrize("variable", ["UNET_UTILS_DATA", "UNET_UTILS_RESULTS"])
def test_an_unwritable_folder_is_named(laptop, monkeypatch, variable):
    (laptop / "file").write_text("in the way")
    monkeypatch.setenv("UNET_UTILS_DATA", str(laptop / "data"))
    monkeypatch.setenv("UNET_UTILS_RESULTS", str(laptop / "runs"))
    monkeypatch.setenv(variable, str(laptop / "file" / "folder"))
    with pytest.raises(OSError, match=f"Cannot write to the folder .*file/folder.* environment variable {variable}"):
        environment.setup()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the administrator may write anywhere")
def test_a_read_only_folder(laptop):
    (laptop / "locked").mkdir(mode=0o500)
    with pytest.raises(PermissionError, match="locked"):
        environment.writable_folder(laptop / "locked", "UNET_UTILS_DATA")


def test_systems_that_do_not_tell(laptop, monkeypatch):
    monkeypatch.delattr(os, "sysconf", raising=False)  # Windows
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    env = environment.Environment("local", torch.device("cpu"), laptop, laptop)
    assert "RAM" not in environment.describe(env)
    assert "CPUs" in environment.describe(env)


# The setup cell.


def run_setup_cell(cell, folder, colab_folder=None):
    """Run the setup cell as the first cell of a notebook in `folder`; return what it printed and the code's folder."""
    variables = {"UNET_UTILS_DATA": folder / "data", "UNET_UTILS_RESULTS": folder / "runs"}
    env = {name: value for name, value in os.environ.items() if not name.startswith(("COLAB", "KAGGLE", "PYTHON"))}
    if colab_folder:
        cell = cell.replace("/content", str(colab_folder / "content"))
        variables |= {"PYTHONPATH": FAKE_COLAB, "COLAB_RELEASE_TAG": "x", "FAKE_COLAB_DRIVE": colab_folder / "drive"}
    # A package that only tells where it was found: the real one takes seconds to import.
    script = f"{cell}\nprint('FOUND', os.path.realpath(environment.__file__))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        env=env | {name: str(value) for name, value in variables.items()},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, Path(done.stdout.split("FOUND ")[1].strip()).parent.parent


def make_code(folder):
    """A repository with a package that does nothing but be there."""
    (folder / "unet_utils").mkdir(parents=True)
    (folder / "notebooks").mkdir()
    for name in ("__init__.py", "demo.py"):
        (folder / "unet_utils" / name).touch()
    (folder / "unet_utils" / "platform" / "environment.py").write_text(
        "def setup(use_drive):\n    print('drive:', use_drive)\n"
    )
    return folder.resolve()


def test_the_setup_cell_is_short_and_sound():
    cell = sync_notebooks.setup_cell("https://github.com/owner/name")
    assert len(cell.splitlines()) <= 15
    assert max(map(len, cell.splitlines())) <= 120
    assert cell.startswith("# @title Setup\n")
    assert cell.endswith("env = environment.setup(use_drive=USE_DRIVE)")
    assert "pip" not in cell
    compile(cell, "setup", "exec")


@pytest.mark.parametrize("start", [".", "notebooks"])
def test_the_setup_cell_on_a_laptop(tmp_path, start):
    code = make_code(tmp_path / "my clone")
    printed, found = run_setup_cell(sync_notebooks.setup_cell("https://nowhere.invalid/x"), code / start)
    assert found == code
    assert printed.startswith("drive: True")


@pytest.mark.parametrize("place", ["clone", "Colab Notebooks/my clone", "Work 2026/unet_utils/a b/c'd/clone"])
def test_the_setup_cell_finds_a_clone_in_drive(tmp_path, place):
    (tmp_path / "content").mkdir()
    (tmp_path / "drive" / "unet_utils" / "runs").mkdir(parents=True)  # not the code
    code = make_code(tmp_path / "drive" / place)
    cell = sync_notebooks.setup_cell("https://nowhere.invalid/x")
    printed, found = run_setup_cell(cell, tmp_path / "content", tmp_path)
    assert found == code
    assert "Mounted at" in printed


def test_the_setup_cell_clones_when_there_is_nothing(tmp_path):
    for name in ("content", "drive"):
        (tmp_path / name).mkdir()
    code = make_code(tmp_path / "origin")
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", "-C", str(code)]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *command], check=True)
    cell = sync_notebooks.setup_cell(f"file://{code}")
    for _ in range(2):  # the second time it is there
        assert run_setup_cell(cell, tmp_path / "content", tmp_path)[1] == (tmp_path / "content" / "repo").resolve()


def test_the_setup_cell_leaves_drive_alone_when_told_to(tmp_path):
    (tmp_path / "content").mkdir()
    make_code(tmp_path / "content" / "repo")
    cell = sync_notebooks.setup_cell("https://nowhere.invalid/x").replace("USE_DRIVE = True", "USE_DRIVE = False")
    printed, _ = run_setup_cell(cell, tmp_path / "content", tmp_path)
    assert "Mounted" not in printed
    assert "drive: False" in printed


# The repository's address.


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("https://github.com/me/my.repo", "https://github.com/me/my.repo"),
        ("https://github.com/me/repo.git", "https://github.com/me/repo"),
        ("git@github.com:me/repo.git", "https://github.com/me/repo"),
        ("ssh://git@github.com/me/repo/", "https://github.com/me/repo"),
        ("https://token@github.com/me/repo", "https://github.com/me/repo"),
        ("https://example.org/me/repo", None),
        ("/srv/git/repo.git", None),
    ],
)
def test_addresses(address, url):
    assert sync_notebooks.github_url(address) == url


def test_sync_writes_the_address_everywhere(tmp_path):
    (tmp_path / "notebooks").mkdir()
    old = "https://colab.research.google.com/github/OWNER/REPOSITORY/blob/main/notebooks/01_download.ipynb"
    cells = [
        {"cell_type": "markdown", "metadata": {}, "source": [f"[![Open in Colab](https://badge.svg)]({old})\n", "Ü"]},
        {"cell_type": "code", "metadata": {"tags": ["setup"]}, "source": [], "outputs": [], "execution_count": None},
        {"cell_type": "code", "metadata": {}, "source": ["x = 1"], "outputs": [], "execution_count": None},
    ]
    path = tmp_path / "notebooks" / "01_download.ipynb"
    path.write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}), "utf-8")
    (tmp_path / "README.md").write_text(f"[Open]({old})")
    (tmp_path / "pyproject.toml").write_text('[project.urls]\nRepository = "https://github.com/OWNER/REPOSITORY"\n')
    url = "https://github.com/me/mine"
    assert len(sync_notebooks.sync(url, tmp_path)) == 3
    assert sync_notebooks.sync(url, tmp_path) == []
    assert sync_notebooks.repository_url(tmp_path) == url
    assert "/github/me/mine/blob/main/notebooks/01_download.ipynb)" in (tmp_path / "README.md").read_text()
    cells = json.loads(path.read_text("utf-8"))["cells"]
    assert "/github/me/mine/blob/main/notebooks/01_download.ipynb)" in cells[0]["source"][0]
    assert "".join(cells[1]["source"]) == sync_notebooks.setup_cell(url)
    assert cells[2]["source"] == ["x = 1"]


def test_all_notebooks_are_in_step():
    notebooks = sorted((ROOT / "notebooks").glob("*.ipynb"))
    if not notebooks:
        pytest.skip("no notebooks here")
    url = sync_notebooks.repository_url()
    for path in notebooks:
        cells = json.loads(path.read_text("utf-8"))["cells"]
        setups = ["".join(cell["source"]) for cell in cells if "setup" in cell["metadata"].get("tags", [])]
        assert setups == [sync_notebooks.setup_cell(url)], f"run `make badges`: {path.name}"
        badge = f"{url.removeprefix('https://github.com/')}/blob/main/notebooks/{path.name}"
        assert badge in "".join(cells[0]["source"]), f"run `make badges`: {path.name}"
