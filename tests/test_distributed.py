"""Several processes that train together: two on CPUs, started by torchrun."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from torch import nn

import unet_utils.device
from unet_utils import fit, prepare, recipe
from unet_utils.checkpoints import read_checkpoint
from unet_utils.use.several_gpus import open_processes

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
# Five photos per step: two processes have unequal parts.
SETTINGS = {"base_channels": 4, "fold": 1, "image_size": 32, "batch_size": 5, "epochs": 3}
CONFIG = recipe("demo", **SETTINGS)


class Interrupted(Exception):
    pass


def stop(history, model):
    raise Interrupted


class FixedNorm(nn.BatchNorm2d):
    """Normalization by running statistics: what a sample gets does not depend on its batch."""

    def forward(self, x):
        return nn.functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, False, 0, self.eps
        )


def work(demo, folder):
    """What the tests compare, by one process or by each that torchrun has started."""
    # In full precision: bfloat16 hides small errors.
    unet_utils.device._cpu_has_fast_bfloat16 = lambda: False
    torch.set_num_threads(1)
    with open_processes() as processes:
        cache = folder / "prepared"

        def load():
            return prepare(demo, "train", cache, method="nearest", progress=False)

        run = {
            "frames": processes.first(load),
            "config": CONFIG,
            "device": "cpu",
            "progress": False,
            "processes": processes,
        }
        fit(folder=folder / f"plain-by-{processes.size}", **run)
        # Processes on CPUs normalize their own parts. Without that, they learn what one does.
        torch.nn.BatchNorm2d = FixedNorm
        fit(folder=folder / f"by-{processes.size}", **run)
        begun = folder / f"begun-by-{processes.size}"
        if not begun.exists():
            one = run | {"config": recipe("demo", **SETTINGS | {"epochs": 1})}
            with contextlib.suppress(Interrupted):
                fit(folder=begun, **one)
        other = folder / f"begun-by-{3 - processes.size}"
        if processes.first(other.exists):
            fit(folder=other, **run)


def torchrun(*arguments, **options):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, **options)


@pytest.fixture(scope="module")
def runs(demo, tmp_path_factory):
    """The same work by one process and by two. Each begins a run that the other one finishes."""
    folder = tmp_path_factory.mktemp("runs")
    script = folder / "script.py"
    script.write_text(
        "import sys, pathlib, tests.test_distributed as t\n"
        "t.work(*map(pathlib.Path, sys.argv[1:]))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    alone = [sys.executable, str(script), str(demo), str(folder)]
    subprocess.run(alone, env=environment, check=True)
    assert torchrun(script, demo, folder).wait() == 0
    subprocess.run(alone, env=environment, check=True)  # finishes what two began
    return folder


def test_two_processes_learn_what_one_does(runs):
    one, two = (read_checkpoint(runs / f"by-{n}" / "last.pt") for n in (1, 2))
    losses = [[row["loss"] for row in run["history"]] for run in (one, two)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)  # Muon may enlarge the last digits
    assert losses[0][-1] != pytest.approx(losses[0][0], rel=1e-2)
    assert [set(row) for row in one["history"]] == [set(row) for row in two["history"]]
    assert one["model"].keys() == two["model"].keys()
    assert one["config"] == two["config"]
    scores = [[row["mean_iou"] for row in run["history"]] for run in (one, two)]
    assert scores[1] == pytest.approx(scores[0], abs=0.01)


def test_each_process_normalizes_its_own_part_on_cpus(runs):
    one, two = (read_checkpoint(runs / f"plain-by-{n}" / "last.pt")["history"] for n in (1, 2))
    assert two[-1]["loss"] != pytest.approx(one[-1]["loss"], rel=1e-5)
    assert two[-1]["loss"] < two[0]["loss"]


@pytest.mark.parametrize("first", [1, 2])
def test_another_number_of_processes_resumes(runs, first):
    """Begun by one and extended by two, and the other way round."""
    history = read_checkpoint(runs / f"begun-by-{first}" / "last.pt")["history"]
    assert [row["epoch"] for row in history] == [1, 2, 3]
    assert history[-1]["loss"] < history[0]["loss"]


def test_one_that_dies_ends_all_and_leaves_a_checkpoint(demo, tmp_path, monkeypatch):
    monkeypatch.setenv("UNET_UTILS_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("UNET_UTILS_RESULTS", str(tmp_path))
    settings = SETTINGS | {"epochs": 500}
    options = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    command = ["-m", "unet_utils", "train", "--data", demo, "--labels", "nearest"]
    command += ["--recipe", "demo", "--run-name", "unet", *options]
    last = tmp_path / "unet" / "last.pt"
    with torchrun(*command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        deadline = time.monotonic() + 240
        while not last.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        ranks = psutil.Process(process.pid).children()
        assert len(ranks) == 2
        ranks[1].kill()
        output = process.communicate(timeout=120)[0]
    assert process.returncode != 0
    assert f"Signal {signal.SIGKILL.value}" in output or "SIGKILL" in output
    assert not psutil.wait_procs(ranks, timeout=10)[1]
    # One line of the first process, beside those of its bar.
    assert output.count("epoch 1/500") == 1 + output.count("epoch 1/500:")
    assert read_checkpoint(last)["epoch"] >= 1
