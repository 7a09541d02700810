"""Colab, Kaggle or a laptop: folders, device, report, and the setup cell that finds the code in
each of them."""

import contextlib
import errno
import http.server
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import urllib.parse
from pathlib import Path

import pytest
import torch
import yaml

from unet_utils.platform import environment
from unet_utils.platform.files import writable_folder

ROOT = Path(__file__).resolve().parent.parent
FAKE_COLAB = ROOT / "tests" / "fake_colab"
sys.path.insert(0, str(ROOT / "scripts"))
sync_notebooks = importlib.import_module("sync_notebooks")


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
    monkeypatch.setenv("UNET_UTILS_RESULTS", str(laptop / "my runs"))
    env = environment.setup(use_drive=True)
    assert (env.platform, env.data, env.results, env.drive) == (
        "local",
        laptop / "my data",
        laptop / "my runs",
        None,
    )
    assert env.data.is_dir()
    assert env.results.is_dir()
    assert not list(env.data.iterdir())
    (line,) = capsys.readouterr().out.splitlines()
    for part in (
        r"Python 3\.\d+\.\d+",
        r"torch \d",
        r"\d+ CPUs",
        r"GB RAM",
        r"GB disk free",
        r"my data",
        r"my runs",
    ):
        assert re.search(part, line)


def test_folders_of_a_checkout_and_of_an_installed_package(laptop, monkeypatch):
    assert environment._default_folders("local", None) == (ROOT / "data", ROOT / "runs")
    monkeypatch.setattr(
        environment,
        "__file__",
        str(laptop / "site-packages" / "unet_utils" / "platform" / "environment.py"),
    )
    monkeypatch.chdir(laptop)
    assert environment._default_folders("local", None) == (laptop / "data", laptop / "runs")


def test_colab_without_drive(colab, capsys):
    env = environment.setup()
    assert env.platform == "colab"
    assert env.drive is None
    assert (env.data, env.results) == (
        colab / "content" / "data",
        colab / "content" / "data" / "runs",
    )
    printed = capsys.readouterr().out
    assert "Warning: no GPU" in printed
    assert "Runtime > Change runtime type" in printed


def test_colab_with_drive(colab, capsys):
    env = environment.setup(use_drive=True)
    (env.results / "checkpoint.pt").write_text("x")
    assert list((colab / "drive").rglob("checkpoint.pt"))
    assert env.drive in env.results.parents
    assert (env.drive / "prepared").is_dir()
    assert env.data == colab / "content" / "data"
    assert "Mounted at" in capsys.readouterr().out
    assert environment.setup(use_drive=True) == env
    assert "ounted" not in capsys.readouterr().out
    assert times_asked(colab) == 1


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        ("refused", "credential propagation was unsuccessful"),
        ("root folder", "mount failed: timeout during initial read of root folder"),
        ("policy", "The domain policy has disabled Drive File Stream"),
        ("timeout", r"\(Timeout exceeded\.\)"),
        ("not here", "unsupported in this environment"),
        ("nameless", r"\(NotImplementedError\)"),
        ("assertion", r"\(AssertionError\)"),
    ],
)
def test_colab_without_a_drive_that_was_wanted(colab, monkeypatch, capsys, failure, reason):
    monkeypatch.setenv("FAKE_COLAB_NO_DRIVE", failure)
    for _ in range(3):
        env = environment.setup(use_drive=True)
        assert env.drive is None
        assert env.results == colab / "content" / "data" / "runs"
    warnings = [line for line in capsys.readouterr().out.splitlines() if "Google Drive" in line]
    assert len(warnings) == 3
    assert re.search(reason, warnings[0])
    assert times_asked(colab) == (failure != "not here")
    (colab / "content" / "drive" / "MyDrive").symlink_to(
        colab / "drive"
    )  # mounted in the Files panel after all
    assert environment.setup(use_drive=True).drive


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.ENOTCONN, errno.EIO, errno.EROFS])
def test_a_drive_that_cannot_be_written_to_is_left_out(colab, monkeypatch, capsys, number):
    temporary_file = tempfile.TemporaryFile

    def fail_on_drive(dir):
        if "MyDrive" in str(dir):
            raise OSError(number, os.strerror(number))
        return temporary_file(dir=dir)

    monkeypatch.setattr(tempfile, "TemporaryFile", fail_on_drive)
    env = environment.setup(use_drive=True)
    assert (env.drive, env.results) == (None, colab / "content" / "data" / "runs")
    assert os.strerror(number) in capsys.readouterr().out


def test_an_unmounted_drive_is_neither_asked_for_nor_imitated(colab):
    environment.setup(use_drive=True)
    (colab / "content" / "drive" / "MyDrive").unlink()
    assert environment.setup(use_drive=True).drive is None
    assert times_asked(colab) == 1
    assert not (colab / "content" / "drive" / "MyDrive").exists()


def test_results_on_an_unmounted_drive_are_refused(colab, monkeypatch):
    monkeypatch.setenv("UNET_UTILS_RESULTS", str(colab / "content" / "drive" / "MyDrive" / "runs"))
    with pytest.raises(OSError, match=r"Google Drive is not mounted.* UNET_UTILS_RESULTS"):
        environment.setup()
    assert not (colab / "content" / "drive").exists()


def test_kaggle_is_told_from_colab(colab, monkeypatch, capsys):
    monkeypatch.setenv(
        "KAGGLE_KERNEL_RUN_TYPE", "Interactive"
    )  # next to COLAB_RELEASE_TAG: it is built on that image
    env = environment.setup(use_drive=True)
    assert env.platform == "kaggle"
    assert env.drive is None
    assert env.results == colab / "kaggle" / "working" / "runs"
    assert "working" not in str(env.data)  # the photos must not be published with the notebook
    assert "Settings > Accelerator" in capsys.readouterr().out


@pytest.mark.parametrize("place", ["my-notebook", "me/my-notebook", "notebooks/me/my-notebook"])
def test_kaggle_goes_on_with_the_output_of_an_earlier_notebook(colab, monkeypatch, capsys, place):
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    env = environment.setup()
    assert env.run_folders("unet") == (env.results / "unet", None)
    assert not env.results.joinpath("unet").exists()
    attached = colab / "kaggle" / "input" / place / "runs" / "unet"
    attached.mkdir(parents=True)
    for name in ("last.pt", "best.pt", "history.csv"):
        (attached / name).write_text(name)
    capsys.readouterr()
    folder, _ = env.run_folders("unet")
    assert {path.name for path in folder.iterdir()} == {"last.pt", "best.pt", "history.csv"}
    assert f"Found the run unet in {attached}" in capsys.readouterr().out
    (folder / "last.pt").write_text("trained on")
    env.run_folders("unet")
    assert (folder / "last.pt").read_text() == "trained on"
    assert capsys.readouterr().out == ""


def test_an_attached_run_that_cannot_be_copied_is_no_reason_to_stop(colab, monkeypatch, capsys):
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    attached = colab / "kaggle" / "input" / "my-notebook" / "runs" / "unet"
    attached.mkdir(parents=True)
    (attached / "last.pt").write_text("x")

    def fail(source, target):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(environment, "copy_verified", fail)
    folder, _ = environment.setup().run_folders("unet")
    assert not (folder / "last.pt").exists()
    assert f"the run in {attached} could not be copied" in capsys.readouterr().out


@pytest.mark.parametrize("variable", ["UNET_UTILS_DATA", "UNET_UTILS_RESULTS"])
def test_a_relative_folder_stays_where_it_was_meant(laptop, monkeypatch, variable):
    for name in ("UNET_UTILS_DATA", "UNET_UTILS_RESULTS"):
        monkeypatch.setenv(name, str(laptop / "x"))
    monkeypatch.setenv(variable, "mine")
    monkeypatch.chdir(laptop)
    env = environment.setup()
    assert laptop / "mine" in (env.data, env.results)
    (laptop / "elsewhere").mkdir()
    monkeypatch.chdir(laptop / "elsewhere")
    assert environment.setup() == env
    assert os.environ[variable] == str(laptop / "mine")  # for child processes
    monkeypatch.setenv("HOME", str(laptop / "home"))
    monkeypatch.setenv(variable, "~/runs")
    assert laptop / "home" / "runs" in vars(environment.setup()).values()


@pytest.mark.parametrize("variable", ["UNET_UTILS_DATA", "UNET_UTILS_RESULTS"])
def test_an_unwritable_folder_is_named(laptop, monkeypatch, variable):
    (laptop / "file").write_text("in the way")
    monkeypatch.setenv("UNET_UTILS_DATA", str(laptop / "data"))
    monkeypatch.setenv("UNET_UTILS_RESULTS", str(laptop / "runs"))
    monkeypatch.setenv(variable, str(laptop / "file" / "folder"))
    with pytest.raises(
        OSError, match=f"Cannot write to the folder .*file/folder.* environment variable {variable}"
    ):
        environment.setup()


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the administrator may write anywhere"
)
def test_a_read_only_folder(laptop):
    (laptop / "locked").mkdir(mode=0o500)
    with pytest.raises(PermissionError, match="locked"):
        writable_folder(laptop / "locked", "UNET_UTILS_DATA")


def test_systems_that_do_not_tell(laptop, monkeypatch):
    monkeypatch.delattr(os, "sysconf", raising=False)  # Windows
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    env = environment.Environment("local", torch.device("cpu"), laptop, laptop)
    assert "RAM" not in environment.describe(env)
    assert "CPUs" in environment.describe(env)


# The device.


class FakeConvolution:
    """A GPU on which a convolution works or fails."""

    def __init__(self, monkeypatch, error=None):
        def convolve(photos, weights):
            self.device = photos.device
            if error:
                raise error
            return photos

        ones = torch.ones
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
        monkeypatch.setattr(torch, "ones", lambda *shape, device: ones(*shape, device="meta"))
        monkeypatch.setattr(torch.nn.functional, "conv2d", convolve)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


def test_a_gpu_that_works(laptop, monkeypatch, capsys):
    FakeConvolution(monkeypatch)
    assert environment.find_device() == torch.device("cuda")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("kaggle", [False, True])
def test_a_gpu_that_is_too_old_for_this_torch(laptop, monkeypatch, capsys, kaggle):
    if kaggle:
        monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    FakeConvolution(
        monkeypatch,
        RuntimeError("CUDA error: no kernel image is available for execution\nCompile with"),
    )
    assert environment.find_device() == torch.device("cpu")
    printed = capsys.readouterr().out
    assert "cannot use this GPU (CUDA error: no kernel image is available for execution)" in printed
    assert ("choose Settings > Accelerator > GPU T4 x2" in printed) == kaggle


def test_the_package_changes_nothing_when_it_is_imported():
    code = "import os; before = dict(os.environ); import unet_utils.platform.environment; assert os.environ == before"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


# The setup cell.

NOWHERE = "https://nowhere.invalid/x"


def run_setup_cell(cell, folder, colab_folder=None, **variables):
    """Run the setup cell as the first cell of a notebook in `folder`; return the process that has
    ended."""
    variables |= {"UNET_UTILS_DATA": folder / "data", "UNET_UTILS_RESULTS": folder / "runs"}
    env = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("COLAB", "KAGGLE", "PYTHON"))
    }
    if colab_folder:
        cell = cell.replace("/content", str(colab_folder / "content"))
        variables |= {
            "PYTHONPATH": FAKE_COLAB,
            "COLAB_RELEASE_TAG": "x",
            "FAKE_COLAB_DRIVE": colab_folder / "drive",
        }
        variables |= {"FAKE_COLAB_ASKED": colab_folder / "asked"}
    # A package that only tells where it was found: the real one takes seconds to import.
    script = f"{cell}\nprint('FOUND', os.path.realpath(environment.__file__))"
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        env=env | {name: str(value) for name, value in variables.items()},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def found_by_setup_cell(*args, **variables):
    """Run the setup cell; return what it printed and the folder of the code that it found."""
    done = run_setup_cell(*args, **variables)
    assert done.returncode == 0, done.stderr
    return done.stdout, Path(done.stdout.split("FOUND ")[1].strip()).parents[2]


def make_code(folder):
    """A repository with a package that does nothing but be there."""
    (folder / "unet_utils" / "platform").mkdir(parents=True)
    (folder / "notebooks").mkdir()
    for name in ("__init__.py", "platform/__init__.py"):
        (folder / "unet_utils" / name).touch()
    (folder / "unet_utils" / "platform" / "environment.py").write_text(
        "def setup(use_drive):\n    print('drive:', use_drive)\n"
    )
    return folder.resolve()


def make_origin(folder):
    """A repository that can be cloned, and its address."""
    code = make_code(folder)
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", "-C", str(code)]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *command], check=True)
    return f"file://{code}"


@pytest.fixture
def colab_machine(tmp_path):
    """The folders of an empty machine and of a Drive, in the folder that it returns."""
    (tmp_path / "content").mkdir()
    (tmp_path / "drive").mkdir()
    return tmp_path


def test_the_setup_cell_is_short_and_sound():
    cell = sync_notebooks.setup_cell("https://github.com/owner/name")
    assert len(cell.splitlines()) <= 20
    assert max(map(len, cell.splitlines())) <= 120
    assert cell.startswith("# @title Setup\n")
    assert cell.endswith("env = environment.setup(use_drive=USE_DRIVE)")
    assert "pip" not in cell
    compile(cell, "setup", "exec")


@pytest.mark.parametrize("start", [".", "notebooks"])
def test_the_setup_cell_on_a_laptop(tmp_path, start):
    code = make_code(tmp_path / "my clone")
    printed, found = found_by_setup_cell(sync_notebooks.setup_cell(NOWHERE), code / start)
    assert found == code
    assert printed.startswith("drive: True")


@pytest.mark.parametrize(
    "place",
    [".", "clone", "Colab Notebooks/my c'lone", "unet-street-scenes-main/unet-street-scenes-main"],
)
def test_the_setup_cell_finds_a_clone_in_drive(colab_machine, place):
    (colab_machine / "drive" / "another" / "runs").mkdir(parents=True)  # not the code
    code = make_code(colab_machine / "drive" / place)
    cell = sync_notebooks.setup_cell(NOWHERE)
    printed, found = found_by_setup_cell(cell, colab_machine / "content", colab_machine)
    assert found == code
    assert "Mounted at" in printed
    assert (
        "Mounted at" not in found_by_setup_cell(cell, colab_machine / "content", colab_machine)[0]
    )
    assert times_asked(colab_machine) == 1


def test_the_setup_cell_reads_few_folders_of_drive(colab_machine):
    for number in range(100):
        (colab_machine / "drive" / f"folder {number}" / "deeper").mkdir(parents=True)
    cell = "import os\nscandir, seen = os.scandir, []\nos.scandir = lambda path: seen.append(path) or scandir(path)\n"
    cell += (
        sync_notebooks.setup_cell(make_origin(colab_machine / "origin"))
        + "\nprint(len(seen), 'read')"
    )
    printed, _ = found_by_setup_cell(cell, colab_machine / "content", colab_machine)
    assert int(re.search(r"(\d+) read", printed)[1]) < 10


@pytest.mark.parametrize("failure", ["refused", "root folder", "timeout", "not here", "nameless"])
def test_the_setup_cell_goes_on_without_drive(colab_machine, failure):
    cell = sync_notebooks.setup_cell(make_origin(colab_machine / "origin"))
    for _ in range(2):
        done = run_setup_cell(
            cell, colab_machine / "content", colab_machine, FAKE_COLAB_NO_DRIVE=failure
        )
        assert done.returncode == 0
        assert done.stderr == ""
    assert times_asked(colab_machine) == (failure != "not here")


def test_the_setup_cell_clones_when_there_is_nothing(colab_machine):
    cell = sync_notebooks.setup_cell(make_origin(colab_machine / "origin"))
    for _ in range(2):  # the second time it is there
        found = found_by_setup_cell(cell, colab_machine / "content", colab_machine)[1]
        assert found == (colab_machine / "content" / "repo").resolve()


@pytest.mark.parametrize(
    "url",
    [
        "https://github.invalid/OWNER/x",
        "file:///nowhere/x",
        "a repository of something else",
        "no git",
    ],
)
def test_the_setup_cell_says_what_to_do_when_it_cannot_clone(colab_machine, url):
    variables = {}
    if url == "a repository of something else":
        make_origin(colab_machine / "origin")
        git = [
            "git",
            "-c",
            "user.name=t",
            "-c",
            "user.email=t@example.org",
            "-C",
            str(colab_machine / "origin"),
        ]
        for command in (["rm", "-rq", "unet_utils"], ["commit", "-q", "--allow-empty", "-m", "x"]):
            subprocess.run([*git, *command], check=True)
        url = f"file://{colab_machine / 'origin'}"
    elif url == "no git":
        variables["PATH"] = str(colab_machine)
    for _ in range(2):
        done = run_setup_cell(
            sync_notebooks.setup_cell(url), colab_machine / "content", colab_machine, **variables
        )
        assert done.returncode != 0
        assert "Traceback" not in done.stderr
        assert f"Cannot fetch {url}: correct REPO_URL if it says OWNER" in done.stderr
        assert "Settings > Internet" in done.stderr


def test_the_setup_cell_leaves_drive_alone_when_told_to(colab_machine):
    make_code(colab_machine / "content" / "repo")
    cell = sync_notebooks.setup_cell(NOWHERE).replace("USE_DRIVE = True", "USE_DRIVE = False")
    printed, _ = found_by_setup_cell(cell, colab_machine / "content", colab_machine)
    assert "drive: False" in printed
    assert times_asked(colab_machine) == 0


@pytest.mark.parametrize("quoted", [True, False])
def test_a_notebook_opened_from_github_uses_that_repository(colab_machine, quoted):
    """Although a clone lies on Drive. Git is told to take a repository here for the one on
    GitHub."""
    origin, code = (
        make_origin(colab_machine / "origin"),
        make_code(colab_machine / "drive" / "clone"),
    )
    page = "https://github.com/me/my.fork/blob/main/notebooks/01_download.ipynb"
    sessions = [
        {
            "path": "fileId=" + (urllib.parse.quote(page, safe="") if quoted else page),
            "name": "01.ipynb",
        }
    ]
    variables = {"GIT_CONFIG_COUNT": 1, "GIT_CONFIG_KEY_0": f"url.{origin}.insteadOf"}
    variables |= {"GIT_CONFIG_VALUE_0": "https://github.com/me/my.fork", "no_proxy": "*"}
    cell, content = sync_notebooks.setup_cell(NOWHERE), colab_machine / "content"
    with answering(sessions) as port:
        variables |= {"COLAB_JUPYTER_IP": "127.0.0.1", "KMP_TARGET_PORT": port}
        assert (
            found_by_setup_cell(cell, content, colab_machine, **variables)[1]
            == content.resolve() / "repo"
        )
    shutil.rmtree(content / "repo")
    for sessions in ([{"path": "fileId=1Abc", "name": "Copy of 01.ipynb"}], [], "not a list"):
        with answering(sessions) as port:
            variables["KMP_TARGET_PORT"] = port
            assert found_by_setup_cell(cell, content, colab_machine, **variables)[1] == code
    assert (
        found_by_setup_cell(cell, content, colab_machine, **variables)[1] == code
    )  # nobody answers


@contextlib.contextmanager
def answering(content):
    """A server that answers each request with this content as JSON; yields its port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/api/sessions" else 404)
            self.end_headers()
            self.wfile.write(json.dumps(content).encode())

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


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
    page = "OWNER/REPOSITORY/blob/main/notebooks/01_download.ipynb"
    old = f"[![Open in Colab](https://badge.svg)](https://colab.research.google.com/github/{page})"
    cells = [
        {"cell_type": "markdown", "metadata": {}, "source": [f"{old}\n", "Ü"]},
        {
            "cell_type": "code",
            "metadata": {"tags": ["setup"]},
            "source": [],
            "outputs": [],
            "execution_count": None,
        },
        {
            "cell_type": "code",
            "metadata": {},
            "source": ["x = 1"],
            "outputs": [],
            "execution_count": None,
        },
    ]
    path = tmp_path / "notebooks" / "01_download.ipynb"
    path.write_text(
        json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}), "utf-8"
    )
    (tmp_path / "README.md").write_text(f"| 1 | {old} | first |\n| 2 | {old} | second |\n")
    (tmp_path / "pyproject.toml").write_text(
        '[project.urls]\nRepository = "https://github.com/OWNER/REPOSITORY"\n'
    )
    for url in (
        "https://github.com/me/mine",
        "https://github.com/you/yours",
    ):  # the second time badges are replaced
        assert len(sync_notebooks.sync(url, tmp_path)) == 3
        assert sync_notebooks.sync(url, tmp_path) == []
        assert sync_notebooks.repository_url(tmp_path) == url
    page = "you/yours/blob/main/notebooks/01_download.ipynb"
    colab = f"(https://colab.research.google.com/github/{page})"
    kaggle = f"(https://kaggle.com/kernels/welcome?src=https://github.com/{page})"
    cells = json.loads(path.read_text("utf-8"))["cells"]
    for text, count in ((cells[0]["source"][0], 1), ((tmp_path / "README.md").read_text(), 2)):
        assert text.count(colab) == text.count(kaggle) == count
        assert text.count("![Open in") == 2 * count
        assert "OWNER" not in text
    assert (tmp_path / "README.md").read_text().endswith(" | second |\n")
    assert "".join(cells[1]["source"]) == sync_notebooks.setup_cell(url)
    assert cells[1]["metadata"]["cellView"] == "form"
    assert cells[1]["metadata"]["tags"] == ["setup"]
    assert cells[2]["source"] == ["x = 1"]
    assert cells[2]["metadata"] == {}


def test_all_notebooks_are_in_step():
    url = sync_notebooks.repository_url()
    paths = [ROOT / "README.md", *sorted((ROOT / "notebooks").glob("*.ipynb"))]
    assert len(paths) == 5
    for path in paths:
        text = path.read_text("utf-8")
        new = (
            sync_notebooks.synced_notebook(text, url)
            if path.suffix == ".ipynb"
            else sync_notebooks.with_badges(text, url)
        )
        assert text == new, f"run `make badges`: {path.name}"
        assert f"{url}/blob/main/notebooks/" in text
    for path in paths[1:]:
        cells = json.loads(path.read_text("utf-8"))["cells"]
        assert sum("setup" in cell["metadata"].get("tags", []) for cell in cells) == 1


def test_the_address_is_written_on_github_by_pushes_to_the_default_branch_only():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "address.yml").read_text())
    assert list(workflow[True]) == ["push"]  # YAML reads `on` as true
    (job,) = workflow["jobs"].values()
    assert "github.event.repository.default_branch" in job["if"]
    assert job["permissions"] == {"contents": "write"}
    assert "https://github.com/$GITHUB_REPOSITORY" in "".join(
        step.get("run", "") for step in job["steps"]
    )
