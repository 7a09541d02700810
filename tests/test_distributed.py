"""Several processes that train together: two on CPUs, started by torchrun."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.elastic.multiprocessing.errors import ErrorHandler

import unet_utils.device
from unet_utils import fit, prepare, recipe
from unet_utils.checkpoints import read_checkpoint
from unet_utils.training import OneProcess
from unet_utils.use.several_gpus import TorchrunProcess, open_processes

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
# Five photos per step: two processes have unequal parts.
SETTINGS = {"base_channels": 4, "fold": 1, "image_size": 32, "batch_size": 5, "epochs": 3}
CONFIG = recipe("demo", **SETTINGS)
PIPE = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}


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
            fit(folder=begun, **one)
        other = folder / f"begun-by-{3 - processes.size}"
        if processes.first(other.exists):
            fit(folder=other, **run)


def torchrun(*arguments, **options):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, **options)


def command(demo, **changed):
    """The arguments of a training by the command `train`."""
    options = [f"--{k.replace('_', '-')}={value}" for k, value in (SETTINGS | changed).items()]
    train = ["-m", "unet_utils", "train", "--data", demo, "--labels", "nearest"]
    return [*train, "--recipe", "demo", "--run-name", "unet", *options]


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


def test_another_number_of_processes_resumes(runs):
    """Begun by one and extended by two, and the other way round: they learn the same."""
    histories = [read_checkpoint(runs / f"begun-by-{n}" / "last.pt")["history"] for n in (1, 2)]
    losses = [[row["loss"] for row in history] for history in histories]
    assert [row["epoch"] for row in histories[0]] == [1, 2, 3]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert losses[0][-1] < losses[0][0]


@pytest.mark.parametrize(("batch_size", "size"), [(16, 2), (5, 3), (3, 3), (100, 7)])
def test_parts_of_a_batch_have_no_gap_and_no_repeat(batch_size, size):
    parts = []
    for rank in range(size):
        process = OneProcess()
        process.rank = rank
        process.size = size
        parts.append(range(batch_size)[process.part(batch_size)])
    assert [index for part in parts for index in part] == list(range(batch_size))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_gpus_synchronize_batch_norm(monkeypatch):
    """torch's SyncBatchNorm, with the same weights, before the model is wrapped."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    wrapper = "unet_utils.use.several_gpus.DistributedDataParallel"
    monkeypatch.setattr(wrapper, lambda module, **_: module)
    try:
        model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
        weight = model[1].weight
        TorchrunProcess().wrap(model)
        assert type(model[1]) is nn.BatchNorm2d  # on a CPU
        monkeypatch.setattr(torch.nn.Parameter, "is_cuda", True)
        TorchrunProcess().wrap(model)
        assert type(model[1]) is nn.SyncBatchNorm
        assert model[1].weight is weight
    finally:
        dist.destroy_process_group()


def test_an_error_ends_all_and_is_reported(demo, tmp_path, monkeypatch):
    monkeypatch.setenv("UNET_UTILS_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("UNET_UTILS_RESULTS", str(tmp_path))
    with torchrun(*command(demo, learning_rate=1e30), **PIPE) as process:
        output = process.communicate(timeout=240)[0]
    assert process.returncode != 0
    assert "lower learning_rate" in output


def test_half_an_error_is_never_read(tmp_path, monkeypatch):
    """torchrun may end a process that is writing its error, and reads what lies there."""
    file = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
    record = ErrorHandler.record_exception

    def stopped(*arguments):
        record(*arguments)
        assert not file.exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(dist, "is_torchelastic_launched", lambda: True)
    monkeypatch.setattr(dist, "init_process_group", lambda *_, **__: 1 / 0)
    with monkeypatch.context() as patch:
        patch.setattr(ErrorHandler, "record_exception", stopped)
        with pytest.raises(KeyboardInterrupt), open_processes():
            pass
    assert not file.exists()
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
    with pytest.raises(ZeroDivisionError), open_processes():
        pass
    assert "ZeroDivisionError" in json.loads(file.read_text())["message"]["message"]


def test_one_that_dies_ends_all_and_leaves_a_checkpoint(demo, tmp_path, monkeypatch):
    monkeypatch.setenv("UNET_UTILS_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("UNET_UTILS_RESULTS", str(tmp_path))
    last = tmp_path / "unet" / "last.pt"
    with torchrun(*command(demo, epochs=500), **PIPE) as process:
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
