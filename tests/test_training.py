import csv
import math
import os
import random
import signal
import time
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.nn.functional import cross_entropy

from unet_utils import ConfusionMatrix, evaluate, fit, get_scheme, load_trained, prepare, recipe
from unet_utils.augment import augment, draw_changes
from unet_utils.checkpoints import NAMES, RunFiles, read_checkpoint
from unet_utils.config import RECIPES
from unet_utils.dataset import Frames
from unet_utils.evaluation import predict_classes
from unet_utils.model import UNet
from unet_utils.optimizer import Muon
from unet_utils.training import class_weights

TINY = recipe("demo", base_channels=2, fold=1, image_size=32, batch_size=4, epochs=3, learning_rate=1e-2)


@pytest.fixture(scope="module")
def frames(demo, tmp_path_factory):
    return prepare(demo, "train", tmp_path_factory.mktemp("prepared"), method="nearest", progress=False)


def run(frames, folder, config=TINY, **options):
    return fit(frames, config, folder, "cpu", progress=False, **options)


def without_times(history):
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in history]


def same_weights(first: Path, second: Path) -> bool:
    a, b = (read_checkpoint(path) for path in (first, second))
    return all(torch.equal(a[part][key], b[part][key]) for part in ("model", "averaged") for key in a[part])


def test_it_learns(frames, tmp_path):
    config = recipe("demo", base_channels=8, fold=1, image_size=64, epochs=40, batch_size=4, learning_rate=0.01)
    history = run(frames, tmp_path, config)
    assert history[-1]["loss"] < 0.7 * history[0]["loss"]
    trained = load_trained(tmp_path / "best.pt", "cpu")
    matrix = ConfusionMatrix.total(evaluate(trained.model, frames, 64))
    shares = matrix.matrix.sum(1).double() / matrix.matrix.sum()
    assert matrix.mean_iou > 2.5 * matrix.guessing(shares).mean_iou
    assert matrix.pixel_accuracy > 0.6


def test_files_and_history(frames, tmp_path):
    history = run(frames, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(NAMES)
    assert [row["epoch"] for row in history] == [1, 2, 3]
    with open(tmp_path / "history.csv") as file:
        assert [float(row["loss"]) for row in csv.DictReader(file)] == [row["loss"] for row in history]
    best = read_checkpoint(tmp_path / "best.pt")
    assert best["history"][-1]["mean_iou"] == max(row["mean_iou"] for row in history)
    assert best["scheme"]["name"] == "cityscapes19"


def test_the_same_seed_repeats_and_another_does_not(frames, tmp_path):
    first, again = (run(frames, tmp_path / name) for name in ("first", "again"))
    other = run(frames, tmp_path / "other", recipe("demo", **{**vars(TINY), "seed": 1}))
    assert without_times(first) == without_times(again)
    assert same_weights(tmp_path / "first" / "last.pt", tmp_path / "again" / "last.pt")
    assert first[0]["loss"] != other[0]["loss"]


class Interrupted(Exception):
    pass


def test_an_interrupted_run_ends_like_one_that_was_not(frames, tmp_path):
    def stop(history, model):
        raise Interrupted

    for _ in range(TINY.epochs):
        with pytest.raises(Interrupted):
            run(frames, tmp_path / "cut", on_epoch=stop)
    history = run(frames, tmp_path / "cut")
    assert without_times(history) == without_times(run(frames, tmp_path / "whole"))
    assert same_weights(tmp_path / "cut" / "last.pt", tmp_path / "whole" / "last.pt")


LONGER = recipe("demo", **{**vars(TINY), "epochs": 40})
PATIENCE = 120  # seconds, for one process; a sound one needs a few


def train_longer(begun, demo, cache, folder):
    torch.set_num_threads(1)
    frames = prepare(demo, "train", cache, method="nearest", progress=False)
    begun.send(True)
    run(frames, folder, LONGER)


@pytest.mark.skipif(os.name == "nt", reason="this system has other signals")
def test_stopped_at_random_moments_it_still_ends_the_same(demo, tmp_path):
    """kill -9, SIGTERM and the stop button, the writing of a checkpoint included: on disk is always a whole epoch."""
    # Forked from a process that only imports: a lock that a killed one held is nobody else's.
    processes = get_context("forkserver")
    processes.set_forkserver_preload(["unet_utils"])

    def start(name):
        listener, begun = processes.Pipe(duplex=False)
        child = processes.Process(target=train_longer, args=(begun, demo, tmp_path / "prepared", tmp_path / name))
        child.start()
        assert listener.poll(PATIENCE)  # it is about to train
        return child

    def exit_code(child):
        child.join(PATIENCE)
        return child.exitcode  # None while it runs

    child, began = start("whole"), time.monotonic()
    assert exit_code(child) == 0
    duration, moments, stopped = time.monotonic() - began, random.Random(0), 0
    while stopped < 25:
        child = start("killed")
        time.sleep(moments.uniform(0, 0.06 * duration))
        os.kill(child.pid, moments.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT]))
        code = exit_code(child)
        assert code is not None
        if code == 0:
            break
        stopped += 1
    assert stopped >= 20
    assert exit_code(start("killed")) == 0
    assert same_weights(tmp_path / "killed" / "last.pt", tmp_path / "whole" / "last.pt")
    histories = (read_checkpoint(tmp_path / name / "last.pt")["history"] for name in ("killed", "whole"))
    assert without_times(next(histories)) == without_times(next(histories))


def test_resume_refuses_other_settings_by_name(frames, tmp_path):
    run(frames, tmp_path)
    for knob, value in {"base_channels": 3, "learning_rate": 1e-3, "epochs": 9}.items():
        with pytest.raises(ValueError, match=f"{knob} = .* switch resume off"):
            run(frames, tmp_path, recipe("demo", **{**vars(TINY), knob: value}))


def test_resume_refuses_another_class_scheme(demo, frames, tmp_path):
    run(frames, tmp_path / "run")
    seven = prepare(demo, "train", tmp_path, "categories7", "nearest", progress=False)
    with pytest.raises(ValueError, match="name = 'cityscapes19', now it is 'categories7'"):
        run(seven, tmp_path / "run")
    with pytest.raises(ValueError, match="has learned the class scheme 'cityscapes19', not 'categories7'"):
        load_trained(tmp_path / "run" / "best.pt", "cpu", "categories7")
    trained = load_trained(tmp_path / "run" / "best.pt", "cpu")
    with pytest.raises(ValueError, match="the model has 19 classes, the scheme 'categories7' has 7"):
        evaluate(trained.model, seven, 32)


def test_starting_afresh_sets_the_old_run_aside(frames, tmp_path):
    run(frames, tmp_path)
    old = (tmp_path / "last.pt").read_bytes()
    run(frames, tmp_path, recipe("demo", **{**vars(TINY), "seed": 5}), resume=False)
    assert (tmp_path / "last-1.pt").read_bytes() == old
    assert (tmp_path / "last.pt").read_bytes() != old


def test_the_second_copy_brings_a_run_back(frames, tmp_path):
    history = run(frames, tmp_path / "machine", backup=tmp_path / "drive")
    again = run(frames, tmp_path / "new machine", backup=tmp_path / "drive")
    assert again == history
    assert (tmp_path / "new machine" / "best.pt").exists()


def test_training_goes_on_without_the_second_copy(frames, tmp_path, capsys):
    (tmp_path / "drive").write_text("a file where a folder should be")
    history = run(frames, tmp_path / "machine", backup=tmp_path / "drive" / "run")
    assert len(history) == TINY.epochs
    assert "Could not copy the checkpoint" in capsys.readouterr().out


def test_a_full_disk_does_not_end_the_training(frames, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("unet_utils.checkpoints.torch.save", full)
    assert len(run(frames, tmp_path)) == TINY.epochs
    assert "No space left on device" in capsys.readouterr().out


def test_damaged_checkpoints_are_named(tmp_path):
    for content in (b"", b"not a checkpoint" * 100):
        (tmp_path / "best.pt").write_bytes(content)
        with pytest.raises(ValueError, match=r"best\.pt is not a usable checkpoint"):
            load_trained(tmp_path / "best.pt", "cpu")
    torch.save({"model": {}}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="it lacks format"):
        load_trained(tmp_path / "other.pt", "cpu")
    with pytest.raises(FileNotFoundError, match="notebook 03"):
        load_trained(tmp_path / "none.pt", "cpu")


def test_a_loss_that_is_not_finite_stops_the_run(frames, tmp_path):
    config = recipe("demo", **{**vars(TINY), "learning_rate": 1e30})
    with pytest.raises(FloatingPointError, match="Lower learning_rate"):
        run(frames, tmp_path, config)


@pytest.mark.parametrize(
    ("knob", "value", "message"),
    [
        ("image_size", 100, "multiple of 16"),
        ("batch_size", 1000, "only 22 frames"),
        ("epochs", 0, "at least 1"),
        ("base_channels", 0, "at least 1"),
    ],
)
def test_bad_knobs_are_refused(frames, tmp_path, knob, value, message):
    with pytest.raises(ValueError, match=message):
        run(frames, tmp_path, recipe("demo", **{**vars(TINY), knob: value}))


@pytest.mark.parametrize("knob", ["image_size", "learning_rate", "augmentation", "class_weighting", "hold_out"])
def test_every_knob_changes_the_training(frames, tmp_path, knob):
    other = {"image_size": 48, "learning_rate": 1e-3, "augmentation": 0.0, "class_weighting": 1.0, "hold_out": False}
    config = recipe("demo", **{**vars(TINY), "epochs": 1})
    changed = recipe("demo", **{**vars(config), knob: other[knob]})
    assert run(frames, tmp_path / "a", config)[0]["loss"] != run(frames, tmp_path / "b", changed)[0]["loss"]


def test_averaging_changes_the_kept_weights_only(frames, tmp_path):
    run(frames, tmp_path / "a")
    run(frames, tmp_path / "b", recipe("demo", **{**vars(TINY), "averaging": 0.5}))
    a, b = (read_checkpoint(tmp_path / name / "last.pt") for name in "ab")
    assert all(torch.equal(a["model"][key], b["model"][key]) for key in a["model"])
    assert any(not torch.equal(a["averaged"][key], b["averaged"][key]) for key in a["averaged"])


def test_class_weights_leave_the_mean_pixel_alone():
    counts = torch.tensor([9000, 900, 100, 0])
    for power in (0.0, 0.5, 1.0):
        weights = class_weights(counts, power)
        assert (weights * counts).sum() / counts.sum() == pytest.approx(1.0)
    assert class_weights(counts, 1.0)[:3].tolist() == pytest.approx([1 / 2.7, 1 / 0.27, 1 / 0.03])
    assert class_weights(counts, 0.0).tolist() == [1.0] * 4


def test_recipes_are_complete_and_knobs_override_them():
    assert recipe("cuda") == RECIPES["gpu"]
    assert recipe("cpu", epochs=3, seed=None).epochs == 3
    assert recipe("cpu", seed=None).seed == RECIPES["cpu"].seed


def test_unfinished_files_are_never_read(frames, tmp_path):
    run(frames, tmp_path)
    (tmp_path / "unfinished-last.pt").write_bytes(b"half a checkpoint")
    assert len(run(frames, tmp_path)) == TINY.epochs
    assert math.isfinite(read_checkpoint(RunFiles(tmp_path).last)["history"][-1]["loss"])


@pytest.mark.skipif(tuple(map(int, torch.__version__.split(".")[:2])) < (2, 11), reason="this torch asks the driver")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("encoder", [None, "resnet34"])
def test_on_a_gpu_no_devices_are_mixed(encoder, monkeypatch):
    """What a GPU would do, with tensors that have a device but no values: an operation across two devices fails."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with FakeTensorMode():
        with torch.device("cuda"):
            model = UNet(3, 19, 4, 1, encoder, False)
            arrays = torch.empty(4, 256, 256, 3, dtype=torch.uint8), torch.empty(4, 256, 256, dtype=torch.uint8)
        frames = Frames(*arrays, get_scheme("cityscapes19"), (1, 2, 3, 4))
        ((photos, labels),) = frames.batches([torch.arange(4)], "cuda")
        x, y = augment(photos, labels, 64, draw_changes(4, torch.Generator()))
        assert cross_entropy(model(x), y, ignore_index=255).device.type == "cuda"
        for parameter in model.parameters():  # going backward would take a driver
            parameter.grad = torch.empty_like(parameter)
        Muon(model.parameters()).step()
        assert predict_classes(model.eval(), photos, 64, flip=True).device.type == "cuda"
