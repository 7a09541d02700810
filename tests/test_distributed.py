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
import torch.distributed as dist
from torch import nn

import unet_utils.model
from unet_utils import fit, load_trained, prepare, recipe
from unet_utils.checkpoints import read_checkpoint
from unet_utils.evaluation import score
from unet_utils.platform.processes import SingleProcess
from unet_utils.use.distributed import TorchrunProcess, open_processes

ROOT = Path(__file__).parent.parent
KNOBS = {"base_channels": 4, "fold": 1, "image_size": 32, "batch_size": 5, "epochs": 3}
# Five photos per step: two processes have unequal parts. In full precision, since bfloat16 hides
# small errors.
CONFIG = recipe("demo", **KNOBS)


class Interrupted(Exception):
    pass


def stop(history, model):
    raise Interrupted


class FixedNorm(nn.BatchNorm2d):
    """Batch normalization by running statistics: what each sample gets then does not depend on its
    batch."""

    def forward(self, x):
        return nn.functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, False, 0, self.eps
        )


def work(demo, folder):
    """What the tests compare, by one process or by each that torchrun has started."""
    unet_utils.model._cpu_has_fast_bfloat16 = lambda: False
    torch.set_num_threads(1)
    with open_processes() as processes:
        cache = folder / "prepared"
        frames = processes.in_turn(
            lambda: prepare(demo, "train", cache, method="nearest", progress=False)
        )
        run = {
            "frames": frames,
            "config": CONFIG,
            "device": "cpu",
            "progress": False,
            "processes": processes,
        }
        fit(folder=folder / f"plain-by-{processes.size}", **run)
        # Processes on CPUs normalize their own parts. Without that, they must learn what one
        # process does.
        torch.nn.BatchNorm2d = FixedNorm
        fit(folder=folder / f"by-{processes.size}", **run)
        matrix = score(
            load_trained(folder / "by-1" / "best.pt", "cpu").model, frames, (32, 32), processes
        ).matrix
        processes.once(torch.save, matrix, folder / f"matrix-{processes.size}.pt")
        with contextlib.suppress(Interrupted):
            fit(folder=folder / f"begun-by-{processes.size}", on_epoch=stop, **run)
        if (other := folder / f"begun-by-{3 - processes.size}").exists():
            fit(folder=other, **run)


def torchrun(*arguments, **options):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        *arguments,
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(list(map(str, command)), env=environment, **options)


@pytest.fixture(scope="module")
def runs(demo, tmp_path_factory):
    """The same work by one process and by two. Each begins a run that the other one finishes."""
    folder = tmp_path_factory.mktemp("runs")
    script = folder / "script.py"
    script.write_text(
        "import sys, pathlib, tests.test_distributed as t\nt.work(*map(pathlib.Path, sys.argv[1:]))\n"
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


def test_each_process_normalizes_its_own_part_on_cpus(runs):
    one, two = (read_checkpoint(runs / f"plain-by-{n}" / "last.pt")["history"] for n in (1, 2))
    assert two[-1]["loss"] != pytest.approx(one[-1]["loss"], rel=1e-5)
    assert two[-1]["loss"] < two[0]["loss"]


def test_two_processes_count_what_one_does(runs):
    one, two = (torch.load(runs / f"matrix-{n}.pt") for n in (1, 2))
    assert one.dtype == two.dtype == torch.int64
    assert one.sum() > 20 * 256 * 256
    assert torch.equal(one, two)


@pytest.mark.parametrize("first", [1, 2])
def test_another_number_of_processes_goes_on(runs, first):
    """Begun by one and finished by two, and the other way round."""
    expected = read_checkpoint(runs / "by-1" / "last.pt")["history"]
    history = read_checkpoint(runs / f"begun-by-{first}" / "last.pt")["history"]
    assert [row["epoch"] for row in history] == [1, 2, 3]
    assert [row["loss"] for row in history] == pytest.approx(
        [row["loss"] for row in expected], rel=1e-3
    )


def test_one_that_dies_ends_all_and_leaves_a_checkpoint(demo, tmp_path, monkeypatch):
    monkeypatch.setenv("UNET_UTILS_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("UNET_UTILS_RESULTS", str(tmp_path))
    options = [
        f"--{name.replace('_', '-')}={value}" for name, value in (KNOBS | {"epochs": 500}).items()
    ]
    command = [
        "-m",
        "unet_utils",
        "train",
        "--data",
        demo,
        "--labels",
        "nearest",
        "--recipe",
        "demo",
        *options,
    ]
    with torchrun(*command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        deadline = time.monotonic() + 240
        while (
            not (tmp_path / "unet" / "last.pt").exists()
            and process.poll() is None
            and time.monotonic() < deadline
        ):
            time.sleep(0.05)
        ranks = psutil.Process(process.pid).children()
        assert len(ranks) == 2
        ranks[1].kill()
        output = process.communicate(timeout=120)[0]
    assert process.returncode != 0
    assert f"Signal {signal.SIGKILL.value}" in output or "SIGKILL" in output
    assert not psutil.wait_procs(ranks, timeout=10)[1]
    assert output.count("epoch 1/500") == 1 + output.count(
        "epoch 1/500:"
    )  # one line beside those of the bar
    assert read_checkpoint(tmp_path / "unet" / "last.pt")["epoch"] >= 1


def test_an_error_ends_all_and_is_reported(demo, tmp_path, monkeypatch):
    monkeypatch.setenv("UNET_UTILS_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("UNET_UTILS_RESULTS", str(tmp_path))
    options = [
        f"--{name.replace('_', '-')}={value}"
        for name, value in (KNOBS | {"learning_rate": 1e30}).items()
    ]
    command = [
        "-m",
        "unet_utils",
        "train",
        "--data",
        demo,
        "--labels",
        "nearest",
        "--recipe",
        "demo",
        *options,
    ]
    with torchrun(*command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        output = process.communicate(timeout=240)[0]
    assert process.returncode != 0
    assert "lower learning_rate" in output


@pytest.mark.parametrize(
    ("n", "size", "block"), [(16, 2, 1), (5, 3, 1), (1, 2, 1), (100, 3, 16), (16, 4, 16)]
)
def test_parts_have_no_gap_and_no_repeat(n, size, block):
    taken, lengths = [], []
    for rank in range(size):
        process = SingleProcess()
        process.rank, process.size = rank, size
        part = process.part(n, block)
        assert part.start % block == 0 or part.start == n
        taken += range(n)[part]
        lengths.append(len(range(n)[part]))
    assert taken == list(range(n))
    assert max(lengths) - min(lengths) <= block


def test_gpus_synchronize_batch_norm(monkeypatch):
    """torch's SyncBatchNorm takes the place of each batch norm, with the same weights, before the
    model is wrapped."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    monkeypatch.setattr(
        "unet_utils.use.distributed.DistributedDataParallel", lambda module, **_: module
    )
    try:
        model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
        weight = model[1].weight
        TorchrunProcess().wrap(model)
        assert type(model[1]) is nn.BatchNorm2d  # on a CPU
        monkeypatch.setattr(torch.nn.Parameter, "device", torch.device("cuda"))
        TorchrunProcess().wrap(model)
        assert type(model[1]) is nn.SyncBatchNorm
        assert model[1].weight is weight
    finally:
        dist.destroy_process_group()
