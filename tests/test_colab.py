"""Colab as it is: each notebook opens on an empty machine, and only Drive survives."""

import contextlib
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
from kaggle_server import KEY, USERNAME, KaggleServer

from unet_utils.platform.environment import DRIVE_FOLDER
from unet_utils.platform.kaggle import ARCHIVE

ROOT = Path(__file__).resolve().parent.parent
KNOBS = {"EPOCHS": 3, "BASE_CHANNELS": 2, "IMAGE_SIZE": 32, "BATCH_SIZE": 4, "LABELS": "nearest"}


class Colab:
    """A machine that is wiped before every notebook, and a Drive with a clone of this repository.

    The clone differs from the original in one thing: /content, where Colab keeps everything, is a
    temporary folder."""

    def __init__(self, folder: Path, **environment: str):
        self.environment = environment
        self.machine, self.drive = folder / "content", folder / "drive"
        self.kept = self.drive / DRIVE_FOLDER
        self.clone = self.drive / "Colab Notebooks" / "my clone"
        for part in ("unet_utils", "notebooks"):
            shutil.copytree(
                ROOT / part, self.clone / part, ignore=shutil.ignore_patterns("__pycache__")
            )
        for path in (
            self.clone / "unet_utils" / "platform" / "environment.py",
            *(self.clone / "notebooks").glob("*.ipynb"),
        ):
            path.write_text(path.read_text("utf-8").replace("/content", str(self.machine)), "utf-8")

    def start(self, name: str, **knobs) -> subprocess.Popen:
        """Open a notebook on a new machine and run all of its cells."""
        if self.machine.exists():
            (self.machine / "drive" / "MyDrive").unlink(missing_ok=True)
            shutil.rmtree(self.machine)
        self.machine.mkdir()
        if "FAKE_COLAB_NO_DRIVE" in self.environment:  # the code does not come from Drive then
            shutil.copytree(self.clone / "unet_utils", self.machine / "repo" / "unet_utils")
        self.executed = self.machine.parent / f"{name}.ipynb"
        command = [
            sys.executable,
            "-m",
            "papermill",
            "--no-progress-bar",
            "--cwd",
            self.machine,
            "-k",
            "python3",
        ]
        for knob, value in knobs.items():
            command += ["-p", knob, str(value)]
        env = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("KAGGLE", "UNET_UTILS"))
        }
        env |= {
            "PYTHONPATH": str(ROOT / "tests" / "fake_colab"),
            "COLAB_RELEASE_TAG": "test",
            "FAKE_COLAB_DRIVE": str(self.drive),
        } | self.environment
        notebook = self.clone / "notebooks" / f"{name}.ipynb"
        # A file, not a pipe: a kernel that outlives papermill would keep a pipe open, and reading
        # it would never end.
        self.errors = self.machine.parent / "errors.txt"
        with open(self.errors, "w") as errors:
            return subprocess.Popen([*command, notebook, self.executed], env=env, stderr=errors)

    def run(self, name: str, **knobs) -> str:
        """Run a notebook to its end; return all that its cells printed."""
        process = self.start(name, **knobs)
        assert process.wait(timeout=600) == 0, self.errors.read_text()[-3000:]
        return self.printed()

    def printed(self) -> str:
        cells = nbformat.read(self.executed, as_version=4).cells
        return "".join(
            output.get("text", "") for cell in cells for output in cell.get("outputs", [])
        )

    def run_file(self, name: str) -> Path:
        return self.kept / "runs" / "unet" / name


def power_off(process: subprocess.Popen) -> None:
    """End a notebook and its kernel the way a disconnect does: without notice."""
    doomed = [*psutil.Process(process.pid).children(recursive=True), process]
    for each in doomed:
        each.kill()
    process.wait(60)


@pytest.fixture(scope="module")
def colab(demo, tmp_path_factory):
    """With the archive on Drive, where somebody uploaded it."""
    colab = Colab(tmp_path_factory.mktemp("colab"))
    with zipfile.ZipFile(colab.drive / ARCHIVE, "w") as file:
        for path in sorted(demo.rglob("*.jpg")):
            file.write(path, path.relative_to(demo.parent))
    return colab


def test_evaluating_before_training_uses_the_small_model(colab):
    printed = colab.run("04_evaluate", LABELS="nearest")
    assert f"No model in {colab.kept / 'runs' / 'unet'}: using the small model" in printed.replace(
        str(colab.machine / "drive" / "MyDrive"), str(colab.drive)
    )
    assert "Mounted at" in printed


def test_training_goes_on_on_a_new_machine(colab):
    process = colab.start("03_train", **KNOBS | {"EPOCHS": 300})
    deadline = time.monotonic() + 240
    while not colab.run_file("last.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(1)
    assert process.poll() is None, colab.errors.read_text()[-3000:]
    power_off(process)
    assert colab.run_file("history.csv").exists()
    done = len(colab.run_file("history.csv").read_text().splitlines()) - 1
    assert 1 <= done < 300
    process = colab.start("03_train", **KNOBS | {"EPOCHS": 300})
    deadline = time.monotonic() + 240
    while (
        len(colab.run_file("history.csv").read_text().splitlines()) - 1 <= done
        and time.monotonic() < deadline
    ):
        time.sleep(0.2)
    power_off(process)
    assert (
        len(colab.run_file("history.csv").read_text().splitlines()) - 1 > done
    )  # it did not begin again


def test_each_notebook_alone(colab):
    shutil.rmtree(colab.run_file("last.pt").parent, ignore_errors=True)
    assert "Unpacking the archive" in colab.run("02_explore")
    assert list((colab.kept / "prepared").glob("train-*-restored-*.npz"))
    printed = colab.run("03_train", **KNOBS)
    assert "3 epochs in" in printed
    assert "Mounted at" in printed
    assert "95 % interval" in colab.run("04_evaluate", LABELS="nearest")
    assert not (colab.kept / "data").exists()  # photos live on the machine's own disk


def test_without_drive_everything_goes_on(tiny_pairs, tmp_path):
    asked = tmp_path / "asked"
    colab = Colab(tmp_path, FAKE_COLAB_NO_DRIVE="refused", FAKE_COLAB_ASKED=str(asked))
    printed = colab.run("01_download", DATA=tiny_pairs)
    assert printed.count("going on without Google Drive") == 1
    assert "pairs in" in printed
    assert asked.read_text() == "asked\n"
    assert not colab.kept.exists()


def test_a_key_from_the_secrets_is_used_and_seen_nowhere(tiny_archive, tmp_path):
    """Kaggle refuses the public download, so the key is needed; then every file of machine and
    Drive is searched."""
    secrets = json.dumps({"KAGGLE_USERNAME": USERNAME, "KAGGLE_KEY": KEY})
    colab = Colab(
        tmp_path, FAKE_COLAB_SECRETS=secrets, KAGGLE_API_ENVIRONMENT="LOCALHOST", HOME=str(tmp_path)
    )
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(KaggleServer(tiny_archive.read_bytes(), public_status=403, port=80))
        except OSError:
            pytest.skip(
                "port 80, where Kaggle's client looks for a local server, is not ours to use"
            )
        printed = colab.run("01_download")
    assert "KAGGLE_USERNAME and KAGGLE_KEY of Colab's secrets" in printed
    assert "6 training and 3 validation pairs" in printed
    assert (colab.kept / ARCHIVE).read_bytes() == tiny_archive.read_bytes()
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert KEY.encode() not in path.read_bytes(), path
