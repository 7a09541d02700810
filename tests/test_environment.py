"""Colab, Kaggle or a laptop: folders, report, and the setup cell that finds the code in each."""

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

import nbformat
import pytest
import torch
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from unet_utils.platform import environment

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
    package = laptop / "site-packages" / "unet_utils"
    monkeypatch.setattr(environment, "__file__", str(package / "platform" / "environment.py"))
    monkeypatch.chdir(laptop)
    assert environment._default_folders("local", None) == (laptop / "data", laptop / "runs")


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


def commit_all(folder, *options):
    """Make a repository of a folder, and return its address."""
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", "-C", str(folder)]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "x", *options]):
        subprocess.run([*git, *command], check=True)
    return f"file://{folder.resolve()}"


def make_origin(folder):
    """A repository that can be cloned, and its address."""
    return commit_all(make_code(folder))


@pytest.fixture
def colab_machine(tmp_path):
    """The folders of an empty machine and of a Drive, in the folder that it returns."""
    (tmp_path / "content").mkdir()
    (tmp_path / "drive").mkdir()
    return tmp_path


def test_the_setup_cell_is_short_and_sound():
    cell = sync_notebooks.setup_cell("https://github.com/owner/name")
    assert len(cell.splitlines()) <= 30
    assert max(map(len, cell.splitlines())) <= 100
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


@pytest.mark.parametrize("place", [".", "Colab Notebooks/my c'lone", "unet-main/unet-main"])
def test_the_setup_cell_finds_a_clone_in_drive(colab_machine, place):
    for number in range(100):  # not the code; few of them may be read, for Drive is slow
        (colab_machine / "drive" / f"folder {number}" / "runs").mkdir(parents=True)
    code = make_code(colab_machine / "drive" / place)
    count = "import os\nscandir, seen = os.scandir, []\n"
    count += "os.scandir = lambda path: seen.append(path) or scandir(path)\n"
    cell = f"{count}{sync_notebooks.setup_cell(NOWHERE)}\nprint(len(seen), 'read')"
    for mounted in (True, False):  # the second time it is there
        printed, found = found_by_setup_cell(cell, colab_machine / "content", colab_machine)
        assert found == code
        assert ("Mounted at" in printed) == mounted
        assert int(re.search(r"(\d+) read", printed)[1]) < 10
    assert times_asked(colab_machine) == 1


@pytest.mark.parametrize("failure", ["", "refused", "timeout", "not here"])
def test_the_setup_cell_clones_when_there_is_nothing_with_and_without_drive(colab_machine, failure):
    cell = sync_notebooks.setup_cell(make_origin(colab_machine / "origin"))
    for _ in range(2):  # the second time it is there
        done = run_setup_cell(
            cell, colab_machine / "content", colab_machine, FAKE_COLAB_NO_DRIVE=failure
        )
        assert done.stderr == ""
        assert str((colab_machine / "content" / "repo").resolve()) in done.stdout
    assert times_asked(colab_machine) == (failure != "not here")


@pytest.mark.parametrize("origin", ["nowhere", "a repository of something else", "no git"])
def test_the_setup_cell_says_what_to_do_when_it_cannot_clone(colab_machine, origin):
    url, variables = NOWHERE.replace("https", "file"), {}
    if origin == "a repository of something else":
        (colab_machine / "origin").mkdir()
        url = commit_all(colab_machine / "origin", "--allow-empty")
    elif origin == "no git":
        variables["PATH"] = str(colab_machine)
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


def test_a_notebook_opened_from_github_uses_that_repository(colab_machine):
    """Although a clone lies on Drive. Git is told to take a repository here for the one on
    GitHub."""
    origin = make_origin(colab_machine / "origin")
    code = make_code(colab_machine / "drive" / "clone")
    page = "https://github.com/me/my.fork/blob/main/notebooks/01_download.ipynb"
    variables = {"GIT_CONFIG_COUNT": 1, "GIT_CONFIG_KEY_0": f"url.{origin}.insteadOf"}
    variables |= {"GIT_CONFIG_VALUE_0": "https://github.com/me/my.fork", "no_proxy": "*"}
    cell, content = sync_notebooks.setup_cell(NOWHERE), colab_machine / "content"
    for path in ("1Abc", page, urllib.parse.quote(page, safe="")):
        with answering([{"path": f"fileId={path}", "name": "01.ipynb"}]) as port:
            variables |= {"COLAB_JUPYTER_IP": "127.0.0.1", "KMP_TARGET_PORT": port}
            _, found = found_by_setup_cell(cell, content, colab_machine, **variables)
        assert found == (code if path == "1Abc" else content.resolve() / "repo")
        shutil.rmtree(content / "repo", ignore_errors=True)
    # Nobody answers.
    assert found_by_setup_cell(cell, content, colab_machine, **variables)[1] == code


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
    page = "OWNER/REPOSITORY/blob/main/notebooks/01_download.ipynb"
    old = f"[![Open in Colab](https://badge.svg)](https://colab.research.google.com/github/{page})"
    path = tmp_path / "notebooks" / "01_download.ipynb"
    path.parent.mkdir()
    cells = [
        new_markdown_cell(f"{old}\nÜ"),
        new_code_cell("", metadata={"tags": ["setup"]}),
        new_code_cell("x = 1"),
    ]
    nbformat.write(new_notebook(cells=cells), path)
    readme = tmp_path / "README.md"
    readme.write_text(f"| 1 | {old} | first |\n| 2 | {old} | second |\n")
    (tmp_path / "pyproject.toml").write_text(
        '[project.urls]\nRepository = "https://github.com/OWNER/REPOSITORY"\n'
    )
    # The second time, badges are replaced.
    for url in ("https://github.com/me/mine", "https://github.com/you/yours"):
        assert len(sync_notebooks.sync(url, tmp_path)) == 3
        assert sync_notebooks.sync(url, tmp_path) == []
        assert sync_notebooks.repository_url(tmp_path) == url
    page = "you/yours/blob/main/notebooks/01_download.ipynb"
    colab = f"(https://colab.research.google.com/github/{page})"
    kaggle = f"(https://kaggle.com/kernels/welcome?src=https://github.com/{page})"
    first, setup, last = nbformat.read(path, as_version=4).cells
    for text, count in ((first.source, 1), (readme.read_text(), 2)):
        assert text.count(colab) == text.count(kaggle) == count
        assert text.count("![Open in") == 2 * count
        assert "OWNER" not in text
    assert readme.read_text().endswith(" | second |\n")
    assert setup.source == sync_notebooks.setup_cell(url)
    assert setup.metadata == {"cellView": "form", "tags": ["setup"]} | sync_notebooks.FOLDED
    assert (last.source, last.metadata) == ("x = 1", {})


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
