"""The setup cell, which finds the code on every machine, and the script that writes it."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import sync_notebooks
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from sync_notebooks import setup_cell

ROOT = Path(__file__).resolve().parent.parent
FAKE_COLAB = ROOT / "tests" / "fake_colab"
NOWHERE = "file:///nowhere"


def run(cell, folder, machine=None, **variables):
    """Run the setup cell as the first cell of a notebook in `folder`; return the process that has
    ended. `machine` holds the folders of a Colab machine and a Drive."""
    variables |= {"UNET_UTILS_DATA": folder / "data", "UNET_UTILS_RESULTS": folder / "runs"}
    env = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("COLAB", "KAGGLE", "PYTHON"))
    }
    if machine:
        cell = cell.replace("/content", str(machine / "content"))
        cell = cell.replace("/kaggle", str(machine / "kaggle"))
        variables |= {
            "PYTHONPATH": FAKE_COLAB,
            "COLAB_RELEASE_TAG": "x",
            "FAKE_COLAB_DRIVE": machine / "drive",
            "FAKE_COLAB_ASKED": machine / "asked",
        }
    script = f"{cell}\nprint('FOUND', os.path.realpath(environment.__file__))"
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        env=env | {name: str(value) for name, value in variables.items()},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def found_by(*args, **variables):
    """Run the setup cell; return what it printed and the folder of the code that it found."""
    done = run(*args, **variables)
    assert done.returncode == 0, done.stderr
    return done.stdout, Path(done.stdout.split("FOUND ")[1].strip()).parents[2]


def make_code(folder, name="some code"):
    """A repository with a package that does nothing but be there: the real one takes seconds to
    import."""
    platform = folder / "unet_utils" / "platform"
    platform.mkdir(parents=True, exist_ok=True)
    (folder / "notebooks").mkdir(exist_ok=True)
    (folder / "unet_utils" / "__init__.py").touch()
    (platform / "__init__.py").touch()
    (platform / "environment.py").write_text(
        "def setup(use_drive):\n    print('drive:', use_drive)"
    )
    (platform / "version.py").write_text(f"def describe_code():\n    return {name!r}")
    return folder.resolve()


def git(folder, *command):
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", *identity, "-C", str(folder), *command], check=True)


def commit_all(folder, tag=""):
    """Commit all files of a folder, and return its address."""
    git(folder, "init", "-q", "-b", "main")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "--allow-empty", "-m", "x")
    if tag:
        git(folder, "tag", tag)
    return f"file://{folder.resolve()}"


@pytest.fixture
def machine(tmp_path):
    """The folders of an empty Colab machine and of a Drive, in the folder that it returns."""
    (tmp_path / "content").mkdir()
    (tmp_path / "drive").mkdir()
    return tmp_path


def times_asked(machine):
    """How often the person was asked for Drive."""
    return (machine / "asked").read_text().count("asked") if (machine / "asked").exists() else 0


def test_it_is_written_as_a_learner_would():
    cell = setup_cell("https://github.com/owner/name", "v1.2.3", True)
    assert len(cell.splitlines()) <= 50
    assert max(map(len, cell.splitlines())) <= 100
    assert cell.startswith("# @title Setup\n")
    assert cell.endswith("env = environment.setup(use_drive=USE_DRIVE)")
    assert "pip" not in cell
    assert ";" not in cell
    compile(cell, "setup", "exec")


@pytest.mark.parametrize("start", [".", "notebooks"])
def test_a_laptop(tmp_path, start):
    code = make_code(tmp_path / "my clone")
    printed, found = found_by(setup_cell(NOWHERE, "main", True), code / start)
    assert found == code
    assert printed.startswith("code: some code\ndrive: True")


@pytest.mark.parametrize("place", [".", "Colab Notebooks/my c'lone", "unet-main/unet-main"])
def test_a_clone_on_drive_is_used_if_drive_is_on(machine, place):
    for number in range(100):  # not the code; few of them may be read, for Drive is slow
        (machine / "drive" / f"folder {number}" / "runs").mkdir(parents=True)
    code = make_code(machine / "drive" / place)
    count = "import os\nscandir, seen = os.scandir, []\n"
    count += "os.scandir = lambda path: seen.append(path) or scandir(path)\n"
    cell = f"{count}{setup_cell(NOWHERE, 'main', True)}\nprint(len(seen), 'read')"
    make_code(machine / "content" / "repo")  # fetched before Drive was switched on
    for mounted in (True, False):  # the second time it is there
        printed, found = found_by(cell, machine / "content", machine)
        assert found == code
        assert ("Mounted at" in printed) == mounted
        assert int(re.search(r"(\d+) read", printed)[1]) < 20
        assert "is used instead" not in printed
    assert times_asked(machine) == 1


def test_a_clone_on_drive_is_left_alone_if_drive_is_off(machine):
    make_code(machine / "drive" / "clone")
    code = make_code(machine / "content" / "repo")
    printed, found = found_by(setup_cell(NOWHERE, "main", False), machine / "content", machine)
    assert found == code
    assert "drive: False" in printed
    assert "With USE_DRIVE on, a copy of the code on your Drive is used instead" in printed
    assert times_asked(machine) == 0


@pytest.mark.parametrize("failure", ["", "refused", "timeout", "not here"])
def test_it_fetches_the_code_with_and_without_drive(machine, failure):
    """It asks for Drive once in each run of the cell, and not when Drive is there."""
    url = commit_all(make_code(machine / "origin"))
    for _ in range(2):  # the second time the code is there
        done = run(
            setup_cell(url, "main", True), machine / "content", machine, FAKE_COLAB_NO_DRIVE=failure
        )
        assert done.stderr == ""
        assert str((machine / "content" / "repo").resolve()) in done.stdout
        assert ("Google Drive was not mounted" in done.stdout) == bool(failure)
    assert times_asked(machine) == {"": 1, "not here": 0}.get(failure, 2)


def test_it_fetches_the_version_that_it_names(machine):
    """Not what the default branch holds by now."""
    url = commit_all(make_code(machine / "origin", "the release"), tag="v1.2.3")
    commit_all(make_code(machine / "origin", "moved on"))
    printed, _ = found_by(setup_cell(url, "v1.2.3", False), machine / "content", machine)
    assert "code: the release" in printed
    shutil.rmtree(machine / "content" / "repo")
    printed, _ = found_by(setup_cell(url, "v9", False), machine / "content", machine)
    assert f"Not found: v9 of {url}. Now its newest code is tried.\n" in printed
    assert "code: moved on" in printed


@pytest.mark.slow
def test_a_notebook_of_a_release_runs_while_the_default_branch_has_moved_on(machine, tmp_path):
    """The real package and notebook, released as CONTRIBUTING says."""
    origin = tmp_path / "origin"
    hidden = shutil.ignore_patterns("__pycache__")
    for part in ("unet_utils", "notebooks"):
        shutil.copytree(ROOT / part, origin / part, ignore=hidden)
    shutil.copy(ROOT / "pyproject.toml", origin)
    url = commit_all(origin)
    tag = sync_notebooks.release_tag(origin)
    assert sync_notebooks.named_version(origin) == "main"  # there is no tag yet
    sync_notebooks.sync(url, tag, origin)
    commit_all(origin, tag=tag)
    assert sync_notebooks.named_version(origin) == tag
    notebook = nbformat.read(origin / "notebooks" / "01_download.ipynb", as_version=4)
    # The package is renamed on the default branch, whose notebooks name that branch.
    (origin / "unet_utils").rename(origin / "renamed_utils")
    assert sync_notebooks.named_version(origin) == "main"
    commit_all(origin)
    cell = notebook.cells[1].source
    assert f'VERSION = "{tag}"' in cell
    printed, found = found_by(cell, machine / "content", machine)
    assert found == machine.resolve() / "content" / "repo"
    assert re.search(rf"code: {url} @ [0-9a-f]{{12}}\n", printed)
    assert "Python " in printed


@pytest.mark.parametrize("origin", ["nowhere", "a repository of something else", "no git"])
def test_it_says_what_to_do_when_it_cannot_fetch_the_code(machine, origin):
    url, variables = NOWHERE, {}
    if origin == "a repository of something else":
        (machine / "origin").mkdir()
        url = commit_all(machine / "origin")
    elif origin == "no git":
        variables["PATH"] = str(machine)
    done = run(setup_cell(url, "main", False), machine / "content", machine, **variables)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert f"Cannot fetch {url}: correct REPOSITORY if it says OWNER" in done.stderr
    assert "Settings > Internet" in done.stderr


@pytest.mark.parametrize(
    "place", ["code", "code/unet-street-scenes-main", "datasets/me/code/unet-street-scenes-main"]
)
def test_on_kaggle_without_internet_an_attached_copy_is_used(machine, place):
    (machine / "kaggle" / "input" / "cityscapes-image-pairs" / "train").mkdir(parents=True)
    code = make_code(machine / "kaggle" / "input" / place)
    variables = {"PATH": str(machine), "KAGGLE_KERNEL_RUN_TYPE": "Batch"}  # not even git
    cell = setup_cell(NOWHERE, "v1.2.3", False)
    assert found_by(cell, machine / "content", machine, **variables)[1] == code


# The address and the version.


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


PYPROJECT = """\
[project]
version = "1.2.3"
[project.urls]
Repository = "https://github.com/OWNER/REPOSITORY"
"""


def test_sync_writes_address_and_version_everywhere(tmp_path):
    page = "OWNER/REPOSITORY/blob/main/notebooks/01_download.ipynb"
    old = f"[![Open in Colab](https://badge.svg)](https://colab.research.google.com/github/{page})"
    picture = "![a](https://raw.githubusercontent.com/OWNER/REPOSITORY/main/docs/pairs.png)"
    (tmp_path / "notebooks").mkdir()
    for name in ("01_download", "03_train"):
        cells = [
            new_markdown_cell(f"{old}\n{picture}\nÜ"),
            new_code_cell("", metadata={"tags": ["setup"]}),
            new_code_cell("x = 1"),
        ]
        nbformat.write(new_notebook(cells=cells), tmp_path / "notebooks" / f"{name}.ipynb")
    readme = tmp_path / "README.md"
    pip = 'pip install "git+https://github.com/OWNER/REPOSITORY@v0.1.0"'
    site = "**[Try it in the browser](https://OWNER.github.io/REPOSITORY/try.html)**"
    readme.write_text(f"{site}\n| 1 | {old} | first |\n| 2 | {old} | second |\n{pip}\n")
    contributing = tmp_path / "CONTRIBUTING.md"
    other = "https://github.com/OWNER/REPOSITORY-2"
    contributing.write_text(f"git clone https://github.com/OWNER/REPOSITORY.\n{other}\n")
    (tmp_path / "pyproject.toml").write_text(PYPROJECT)
    # The second time, all of it is replaced.
    for url, version in (
        ("https://github.com/me/mine", "main"),
        ("https://github.com/you/yours", "v1.2.3"),
    ):
        assert len(sync_notebooks.sync(url, version, tmp_path)) == 5
        assert sync_notebooks.sync(url, version, tmp_path) == []
        assert sync_notebooks.repository_url(tmp_path) == url
    page = "you/yours/blob/v1.2.3/notebooks/01_download.ipynb"
    colab = f"(https://colab.research.google.com/github/{page})"
    kaggle = f"(https://kaggle.com/kernels/welcome?src=https://github.com/{page})"
    path = tmp_path / "notebooks" / "01_download.ipynb"
    first, setup, last = nbformat.read(path, as_version=4).cells
    for text, count in ((first.source, 1), (readme.read_text(), 2)):
        assert text.count(colab) == text.count(kaggle) == count
        assert text.count("![Open in") == 2 * count
        assert "OWNER" not in text
    assert "(https://raw.githubusercontent.com/you/yours/v1.2.3/docs/pairs.png)" in first.source
    assert "(https://you.github.io/yours/try.html)" in readme.read_text()
    assert readme.read_text().endswith(
        ' | second |\npip install "git+https://github.com/you/yours@v1.2.3"\n'
    )
    assert contributing.read_text() == f"git clone https://github.com/you/yours.\n{other}\n"
    assert setup.source == setup_cell("https://github.com/you/yours", "v1.2.3", False)
    assert setup.metadata == {"cellView": "form", "tags": ["setup"]} | sync_notebooks.FOLDED
    assert (last.source, last.metadata) == ("x = 1", {})
    train = nbformat.read(tmp_path / "notebooks" / "03_train.ipynb", as_version=4)
    assert "\nUSE_DRIVE = True  # @param" in train.cells[1].source


def test_the_version_is_a_tag_only_while_the_package_is_that_of_the_tag(tmp_path):
    (tmp_path / "pyproject.toml").write_text(PYPROJECT)
    code = tmp_path / "unet_utils" / "__init__.py"
    code.parent.mkdir()
    code.touch()
    commit_all(tmp_path)
    assert sync_notebooks.named_version(tmp_path) == "main"
    assert sync_notebooks.named_version(tmp_path, "trunk") == "trunk"
    commit_all(tmp_path, tag="v1.2.3")
    (tmp_path / "README.md").touch()
    commit_all(tmp_path)
    assert sync_notebooks.named_version(tmp_path, "trunk") == "v1.2.3"
    code.write_text("new = 1")
    assert sync_notebooks.named_version(tmp_path, "trunk") == "trunk"


def test_all_notebooks_are_in_step():
    url = sync_notebooks.repository_url()
    paths = [ROOT / "README.md", *sorted((ROOT / "notebooks").glob("*.ipynb"))]
    cells = json.loads(paths[1].read_text("utf-8"))["cells"]
    version = re.search('VERSION = "(.*)"', "".join(cells[1]["source"]))[1]
    for path in paths:
        text = path.read_text("utf-8")
        if path.suffix == ".ipynb":
            new = sync_notebooks.synced_notebook(text, path.stem, url, version)
        else:
            new = sync_notebooks.synced_file(text, url, url, version)
        assert text == new, f"run `make badges`: {path.name}"
        assert f"{url}/blob/{version}/notebooks/" in text
    for path in paths[1:]:
        cells = json.loads(path.read_text("utf-8"))["cells"]
        assert ["setup" in cell["metadata"].get("tags", []) for cell in cells].index(True) == 1


def test_the_address_is_written_on_github_by_pushes_to_the_default_branch_only():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "address.yml").read_text())
    assert list(workflow[True]) == ["push"]  # YAML reads `on` as true
    (job,) = workflow["jobs"].values()
    assert "github.event.repository.default_branch" in job["if"]
    assert job["permissions"] == {"contents": "write"}
    assert "https://github.com/$GITHUB_REPOSITORY" in "".join(
        step.get("run", "") for step in job["steps"]
    )
