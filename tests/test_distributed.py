"""Several processes that train as one: on CPUs, two of them, started by torchrun as a reader would."""

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

from unet_utils import fit, load_trained, prepare, recipe
from unet_utils.checkpoints import read_checkpoint
from unet_utils.extras.distributed import World, launch_training, open_world, synchronize_batchnorm
from unet_utils.training import score

ROOT = Path(__file__).parent.parent
KNOBS = {"base_channels": 4, "fold": 1, "image_size": 32, "batch_size": 5, "epochs": 3}
# Five photos a step: two processes have unequal parts. In full precision, since bfloat16 hides small errors.
CONFIG = recipe("demo", **KNOBS)


class Interrupted(Exception):
    pass


def stop(history, model):
    raise Interrupted


def as_one_process(demo, folder):
    """What the tests compare with each other, alone or in every process that torchrun has started."""
    torch.cpu._is_avx512_bf16_supported = torch.cpu._is_amx_tile_supported = lambda: False
    torch.set_num_threads(1)
    with open_world() as world:
        cache = folder / "prepared"
        frames = world.in_turn(lambda: prepare(demo, "train", cache, method="nearest", progress=False))
        run = {"frames": frames, "config": CONFIG, "device": "cpu", "progress": False, "world": world}
        fit(folder=folder / f"by-{world.size}", **run)
        matrix = score(load_trained(folder / "by-1" / "best.pt", "cpu").model, frames, (32, 32), world).matrix
        world.once(torch.save, matrix, folder / f"matrix-{world.size}.pt")
        with contextlib.suppress(Interrupted):
            fit(folder=folder / f"begun-by-{world.size}", on_epoch=stop, **run)
        if (other := folder / f"begun-by-{3 - world.size}").exists():
            fit(folder=other, **run)
        if world.size == 2:
            fit(folder=folder / "apart", **run | {"config": recipe("demo", **KNOBS, sync_batchnorm=False)})


def torchrun(*arguments, **options):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(list(map(str, command)), env=environment, **options)


@pytest.fixture(scope="module")
def runs(demo, tmp_path_factory):
    """The same work by one process and by two. Each begins a run that the other one finishes."""
    folder = tmp_path_factory.mktemp("runs")
    script = folder / "script.py"
    script.write_text(
        "import sys, pathlib, tests.test_distributed as t\nt.as_one_process(*map(pathlib.Path, sys.argv[1:]))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    alone = [sys.executable, str(script), str(demo), str(folder)]
    subprocess.run(alone, env=environment, check=True)
    assert torchrun(script, demo, folder).wait() == 0
    subprocess.run(alone, env=environment, check=True)  # finishes what two began
    return folder


def distance(first, second):
    return sum((value - second[key]).float().square().sum().item() for key, value in first.items()) ** 0.5


def test_two_processes_learn_what_one_does(runs):
    one, two = (read_checkpoint(runs / f"by-{n}" / "last.pt") for n in (1, 2))
    assert len(one["history"]) == CONFIG.epochs
    losses = [[row["loss"] for row in run["history"]] for run in (one, two)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert [set(row) for row in one["history"]] == [set(row) for row in two["history"]]
    assert one["model"].keys() == two["model"].keys()
    assert one["config"] == two["config"]
    # Sums in another order differ in their last digits, and Muon may blow up such a digit. What two processes learn
    # that do not normalise together is the measure of what would be wrong.
    apart = read_checkpoint(runs / "apart" / "last.pt")
    for part in ("model", "averaged"):
        assert distance(one[part], two[part]) < 0.1 * distance(one[part], apart[part])


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
    assert [row["loss"] for row in history] == pytest.approx([row["loss"] for row in expected], rel=1e-5)


def test_batchnorm_of_each_part_is_another_training(runs):
    together, apart = (read_checkpoint(runs / name / "last.pt")["history"] for name in ("by-2", "apart"))
    assert apart[-1]["loss"] != pytest.approx(together[-1]["loss"], rel=1e-5)
    assert apart[-1]["loss"] < apart[0]["loss"]


def test_one_that_dies_ends_all_and_leaves_a_checkpoint(demo, tmp_path, monkeypatch):
    monkeypatch.setenv("UNET_UTILS_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("UNET_UTILS_RESULTS", str(tmp_path))
    options = [f"--{name.replace('_', '-')}={value}" for name, value in (KNOBS | {"epochs": 500}).items()]
    command = ["-m", "unet_utils", "train", "--data", demo, "--labels", "nearest", "--recipe", "demo", *options]
    with torchrun(*command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        deadline = time.monotonic() + 240
        while not (tmp_path / "unet" / "last.pt").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        ranks = psutil.Process(process.pid).children()
        assert len(ranks) == 2
        ranks[1].kill()
        output = process.communicate(timeout=120)[0]
    assert process.returncode != 0
    assert f"Signal {signal.SIGKILL.value}" in output or "SIGKILL" in output
    assert not psutil.wait_procs(ranks, timeout=10)[1]
    assert output.count("epoch 1/500") == 1 + output.count("epoch 1/500:")  # one line beside those of the bar
    assert read_checkpoint(tmp_path / "unet" / "last.pt")["epoch"] >= 1


def test_launched_from_a_notebook(demo, tmp_path, capsys):
    knobs = KNOBS | {"epochs": 1, "hold_out": False}
    launch_training(2, tmp_path / "data", tmp_path, data=demo, labels="nearest", run_name="small", **knobs)
    assert "epoch 1/1  loss" in capsys.readouterr().out
    assert read_checkpoint(tmp_path / "small" / "last.pt")["config"]["hold_out"] is False


def test_an_error_is_everybodys_and_is_said(demo, tmp_path, capsys):
    with pytest.raises(RuntimeError, match="Run this again"):
        launch_training(2, tmp_path, tmp_path, data=demo, labels="nearest", **KNOBS | {"learning_rate": 1e30})
    assert "Lower learning_rate" in capsys.readouterr().out


@pytest.mark.parametrize(("n", "size", "block"), [(16, 2, 1), (5, 3, 1), (1, 2, 1), (100, 3, 16), (16, 4, 16)])
def test_parts_have_no_gap_and_no_repeat(n, size, block):
    taken, lengths = [], []
    for rank in range(size):
        world = World()
        world.rank, world.size = rank, size
        part = world.part(n, block)
        assert part.start % block == 0 or part.start == n
        taken += range(n)[part]
        lengths.append(len(range(n)[part]))
    assert taken == list(range(n))
    assert max(lengths) - min(lengths) <= block


@pytest.fixture
def alone_in_a_group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_synchronized_batchnorm_is_batchnorm(alone_in_a_group):
    torch.manual_seed(0)
    plain, together = (nn.Sequential(nn.BatchNorm2d(3)) for _ in range(2))
    nn.init.normal_(plain[0].weight)
    together.load_state_dict(plain.state_dict())
    synchronize_batchnorm(together)
    assert type(together[0]) is not nn.BatchNorm2d
    x = 100 + torch.randn(4, 3, 5, 6)  # far from zero, where sums of squares would lose it all
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [model(i) for model, i in zip((plain, together), inputs, strict=True)]
    assert torch.allclose(*outputs, atol=1e-4)
    factors = torch.randn_like(x)
    for output in outputs:
        (output**2 * factors).sum().backward()
    assert torch.allclose(inputs[0].grad, inputs[1].grad, atol=1e-3)
    for a, b in zip(plain.parameters(), together.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, rtol=1e-3, atol=1e-3)
    for key, value in plain.state_dict().items():
        assert torch.allclose(value, together.state_dict()[key], rtol=1e-4)
    assert torch.allclose(plain.eval()(x), together.eval()(x))
