"""Colab as it is: each notebook opens on an empty machine, and only Drive survives."""

import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import nbformat
import psutil
import pytest
from helpers import FAKE_COLAB
from kaggle_server import KEY, USERNAME, KaggleServer
from run_notebooks import set_fields
from series import printed

from unet_utils.platform.download import ARCHIVE
from unet_utils.platform.environment import DRIVE_FOLDER

ROOT = Path(__file__).resolve().parent.parent
SMALL = {"BASE_CHANNELS": 2, "IMAGE_SIZE": 32, "BATCH_SIZE": 4}
TRIES = {"TRY_PHOTOS": 8, "TRY_WIDTH": 4, "TRY_SIZE": 32}


class Colab:
    """A machine that is wiped before every notebook, and a Drive with a clone of this repository.

    The clone differs from the original in one thing: /content, where Colab keeps everything, is a
    temporary folder."""

    def __init__(self, folder: Path, **environment: str):
        self.environment = environment
        self.machine, self.drive = folder / "content", folder / "drive"
        self.kept = self.drive / DRIVE_FOLDER
        self.clone = self.drive / "Colab Notebooks" / "my clone"
        hidden = shutil.ignore_patterns("__pycache__")
        for part in ("unet_utils", "notebooks"):
            shutil.copytree(ROOT / part, self.clone / part, ignore=hidden)
        environment_file = self.clone / "unet_utils" / "platform" / "environment.py"
        for path in (environment_file, *(self.clone / "notebooks").glob("*.ipynb")):
            path.write_text(path.read_text("utf-8").replace("/content", str(self.machine)), "utf-8")

    def start(self, name: str, **settings) -> subprocess.Popen:
        """Open a notebook on a new machine and run all of its cells."""
        if self.machine.exists():
            (self.machine / "drive" / "MyDrive").unlink(missing_ok=True)
            shutil.rmtree(self.machine)
        self.machine.mkdir()
        # Without Drive, the code does not come from there.
        if "FAKE_COLAB_NO_DRIVE" in self.environment or not settings.get("USE_DRIVE", True):
            shutil.copytree(self.clone / "unet_utils", self.machine / "repo" / "unet_utils")
        opened = self.machine.parent / f"opened-{name}.ipynb"
        notebook = nbformat.read(self.clone / "notebooks" / f"{name}.ipynb", as_version=4)
        set_fields([notebook], settings)
        nbformat.write(notebook, opened)
        self.executed = self.machine.parent / f"{name}.ipynb"
        foreign = ("KAGGLE", "UNET_UTILS")
        env = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
        env |= {"PYTHONPATH": str(FAKE_COLAB), "COLAB_RELEASE_TAG": "test"}
        env |= {"FAKE_COLAB_DRIVE": str(self.drive)} | self.environment
        command = [sys.executable, ROOT / "tests" / "execute.py"]
        command += [opened, self.executed, self.machine]
        # A file, not a pipe: a kernel that outlives its parent would keep a pipe open, and reading
        # it would never end.
        self.errors = self.machine.parent / "errors.txt"
        with open(self.errors, "w") as errors:
            return subprocess.Popen(command, env=env, stderr=errors)

    def run(self, name: str, **settings) -> str:
        """Run a notebook to its end; return all that its cells printed."""
        process = self.start(name, **settings)
        assert process.wait(timeout=600) == 0, self.errors.read_text()[-3000:]
        return printed(nbformat.read(self.executed, as_version=4))


def power_off(process: subprocess.Popen) -> None:
    """End a notebook and its kernel the way a disconnect does: without notice."""
    doomed = [*psutil.Process(process.pid).children(recursive=True), process]
    for each in doomed:
        each.kill()
    process.wait(60)


@pytest.mark.slow
def test_each_notebook_alone_and_a_training_that_is_cut(demo, tmp_path):
    """The archive is on Drive, where somebody uploaded it. The machine of the training is switched
    off, and the run resumed on another one."""
    colab = Colab(tmp_path)
    with zipfile.ZipFile(colab.drive / ARCHIVE, "w") as file:
        for path in sorted(demo.rglob("*.jpg")):
            file.write(path, path.relative_to(demo.parent))
    process = colab.start("03_train", EPOCHS=300, **SMALL, **TRIES)
    deadline = time.monotonic() + 240
    while not (found := list(colab.kept.glob("runs/*/last.pt"))) and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(1)
    assert process.poll() is None, colab.errors.read_text()[-3000:]
    power_off(process)
    assert list((colab.kept / "prepared").glob("train-*-restored-*.npz"))
    history = found[0].with_name("history.csv")
    before = history.read_text().splitlines()
    assert 1 < len(before) < 300
    shown = colab.run("03_train", EPOCHS=len(before) + 2, **SMALL, **TRIES)
    assert "Mounted at" in shown
    assert f"Unpacking {colab.machine}" in shown
    after = history.read_text().splitlines()
    assert len(after) == len(before) + 3  # a header line, too
    assert after[: len(before)] == before  # it did not begin again
    shown = colab.run("04_evaluate")
    assert "interval" in shown
    assert found[0].parent.name in shown  # it takes the latest run
    assert not (colab.kept / "data").exists()  # photos live on the machine's own disk


@pytest.mark.slow
def test_a_first_look_asks_for_nothing(tiny_pairs, tmp_path):
    """Neither for Drive nor for anything else, although there is a Drive."""
    asked = tmp_path / "asked"
    colab = Colab(tmp_path, FAKE_COLAB_ASKED=str(asked))
    shown = colab.run("01_download", DATA=str(tiny_pairs), USE_DRIVE=False)
    assert "code: " in shown
    assert "With USE_DRIVE on, a copy of the code on your Drive is used instead" in shown
    assert not asked.exists()
    assert not colab.kept.exists()


@pytest.mark.slow
def test_without_drive_and_without_a_run_the_small_model_is_scored(tiny_pairs, tmp_path):
    asked = tmp_path / "asked"
    colab = Colab(tmp_path, FAKE_COLAB_NO_DRIVE="refused", FAKE_COLAB_ASKED=str(asked))
    shown = colab.run("04_evaluate", DATA=str(tiny_pairs))
    assert shown.count("Google Drive is not used") == 1
    assert asked.read_text() == "asked\n"
    assert not colab.kept.exists()
    assert "using the small model of the package" in shown
    assert "The small model is no run to compare" in shown
    results = colab.machine / "data" / "runs"
    assert (results / "small-model" / "evaluation.json").is_file()
    assert not list(results.rglob("result.json"))


@pytest.mark.slow
def test_a_key_from_the_secrets_is_used_and_seen_nowhere(tiny_archive, tmp_path):
    """Kaggle refuses the public download, so the key is needed; then every file of machine and
    Drive is searched."""
    secrets = json.dumps({"KAGGLE_USERNAME": USERNAME, "KAGGLE_KEY": KEY})
    variables = {"FAKE_COLAB_SECRETS": secrets, "KAGGLE_API_ENVIRONMENT": "LOCALHOST"}
    colab = Colab(tmp_path, HOME=str(tmp_path), **variables)
    try:
        server = KaggleServer(tiny_archive.read_bytes(), public_status=403, port=80).__enter__()
    except OSError:
        pytest.skip("port 80, where Kaggle's client looks for a local server, is not ours to use")
    try:
        shown = colab.run("01_download", USE_DRIVE=True)
    finally:
        server.__exit__()
    assert "Downloading with the key in Colab's secrets" in shown
    assert "6 training and 3 validation pairs" in shown
    assert (colab.kept / ARCHIVE).read_bytes() == tiny_archive.read_bytes()
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert KEY.encode() not in path.read_bytes(), path


@pytest.mark.slow
def test_on_kaggle_without_internet(tiny_pairs, tmp_path):
    """Data set and a copy of the code are attached; there is not even git."""
    machine = tmp_path / "kaggle"
    attached = machine / "input"
    (machine / "working").mkdir(parents=True)
    shutil.copytree(tiny_pairs, attached / "cityscapes-image-pairs" / tiny_pairs.name)
    code = attached / "datasets" / "me" / "code" / "unet-street-scenes-main"
    hidden = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "unet_utils", code / "unet_utils", ignore=hidden)
    shutil.copy(ROOT / "pyproject.toml", code)
    notebook = tmp_path / "opened.ipynb"
    shutil.copy(ROOT / "notebooks" / "01_download.ipynb", notebook)
    for path in (notebook, code / "unet_utils" / "platform" / "environment.py"):
        path.write_text(path.read_text("utf-8").replace("/kaggle/", f"{machine}/"), "utf-8")
    env = {"KAGGLE_KERNEL_RUN_TYPE": "Batch", "PATH": str(tmp_path), "HOME": str(tmp_path)}
    env |= {"UNET_UTILS_DATA": str(tmp_path / "data"), "https_proxy": "http://nowhere.invalid"}
    executed = tmp_path / "executed.ipynb"
    command = [sys.executable, ROOT / "tests" / "execute.py"]
    subprocess.run([*command, notebook, executed, machine / "working"], env=env, check=True)
    shown = printed(nbformat.read(executed, as_version=4))
    assert f"code: {code}, version " in shown
    assert "Attached by Kaggle: " in shown
    assert "6 training and 3 validation pairs" in shown
    assert "Downloading" not in shown
