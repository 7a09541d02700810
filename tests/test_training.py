import csv
import dataclasses
import json
import math
import os
import random
import re
import signal
import time
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.nn.functional import cross_entropy

from unet_utils import (
    ConfusionMatrix,
    evaluate,
    fit,
    get_scheme,
    load_trained,
    prepare,
    recipe,
    training,
)
from unet_utils.augment import augment, draw_changes
from unet_utils.checkpoints import NAMES, RunFiles, read_checkpoint
from unet_utils.config import RECIPES
from unet_utils.evaluation import predict_classes
from unet_utils.frames import Frames
from unet_utils.losses import AuxiliaryHeads, class_weights, prior_correction, segmentation_loss
from unet_utils.model import UNet
from unet_utils.optimizer import Muon
from unet_utils.platform.files import LockedError
from unet_utils.platform.processes import SingleProcess

TINY = recipe(
    "demo", base_channels=2, fold=1, image_size=32, batch_size=4, epochs=3, learning_rate=1e-2
)


@pytest.fixture(scope="module")
def frames(demo, tmp_path_factory):
    return prepare(
        demo, "train", tmp_path_factory.mktemp("prepared"), method="nearest", progress=False
    )


def run(frames, folder, config=TINY, **options):
    return fit(frames, config, folder, "cpu", progress=False, **options)


def without_times(history):
    return [
        {k: v for k, v in row.items() if k not in ("seconds", "images_per_second")}
        for row in history
    ]


def same_weights(first: Path, second: Path) -> bool:
    a, b = (read_checkpoint(path) for path in (first, second))
    return all(
        torch.equal(a[part][key], b[part][key]) for part in ("model", "averaged") for key in a[part]
    )


def test_it_learns(frames, tmp_path):
    config = recipe(
        "demo", base_channels=8, fold=1, image_size=64, epochs=40, batch_size=4, learning_rate=0.01
    )
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
        assert [float(row["loss"]) for row in csv.DictReader(file)] == [
            row["loss"] for row in history
        ]
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
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a job in the background begins with it ignored
    torch.set_num_threads(1)
    frames = prepare(demo, "train", cache, method="nearest", progress=False)
    begun.send(True)
    run(frames, folder, LONGER)


@pytest.mark.skipif(os.name == "nt", reason="this system has other signals")
def test_stopped_at_random_moments_it_still_ends_the_same(demo, tmp_path):
    """kill -9, SIGTERM and the stop button, the writing of a checkpoint included: on disk is always
    a whole epoch."""
    # Forked from a process that only imports: a lock that a killed one held is nobody else's.
    processes = get_context("forkserver")
    processes.set_forkserver_preload(["unet_utils"])

    def start(name):
        listener, begun = processes.Pipe(duplex=False)
        child = processes.Process(
            target=train_longer, args=(begun, demo, tmp_path / "prepared", tmp_path / name)
        )
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
        os.kill(
            child.pid,
            moments.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT]),
        )
        code = exit_code(child)
        assert code is not None
        if code == 0:
            break
        stopped += 1
    assert stopped >= 20
    assert exit_code(start("killed")) == 0
    assert same_weights(tmp_path / "killed" / "last.pt", tmp_path / "whole" / "last.pt")
    histories = (
        read_checkpoint(tmp_path / name / "last.pt")["history"] for name in ("killed", "whole")
    )
    assert without_times(next(histories)) == without_times(next(histories))


def test_resume_refuses_other_settings_by_name(frames, tmp_path):
    run(frames, tmp_path)
    for knob, value in {"base_channels": 3, "seed": 9, "augmentation": 1.0}.items():
        with pytest.raises(ValueError, match=f"{knob} = .* switch resume off"):
            run(frames, tmp_path, recipe("demo", **{**vars(TINY), knob: value}))


def test_resume_refuses_another_class_scheme(demo, frames, tmp_path):
    run(frames, tmp_path / "run")
    seven = prepare(demo, "train", tmp_path, "categories7", "nearest", progress=False)
    with pytest.raises(ValueError, match="class scheme cityscapes19, now it is categories7"):
        run(seven, tmp_path / "run")
    with pytest.raises(
        ValueError, match="has learned the class scheme 'cityscapes19', not 'categories7'"
    ):
        load_trained(tmp_path / "run" / "best.pt", "cpu", "categories7")
    trained = load_trained(tmp_path / "run" / "best.pt", "cpu")
    with pytest.raises(
        ValueError, match="the model has 19 classes, the scheme 'categories7' has 7"
    ):
        evaluate(trained.model, seven, 32)


def stop_after(epochs):
    def stop(history, model):
        if len(history) == epochs:
            raise Interrupted

    return stop


def test_a_resumed_run_keeps_its_settings_and_compares_only_chosen_ones(frames, tmp_path, capsys):
    """Another machine has another recipe: only what the person chose counts as a change."""
    begun = recipe("demo", **{**vars(TINY), "epochs": 2})
    with pytest.raises(Interrupted):
        run(frames, tmp_path / "cut", begun, on_epoch=stop_after(1))
    elsewhere = dataclasses.replace(
        TINY, augmentation=1.0, seed=7, epochs=9, chosen=frozenset({"base_channels"})
    )
    history = run(frames, tmp_path / "cut", elsewhere)
    assert without_times(history) == without_times(run(frames, tmp_path / "whole", begun))
    with pytest.raises(ValueError, match="augmentation = 0.5, now it is 1.0"):
        run(
            frames,
            tmp_path / "cut",
            dataclasses.replace(elsewhere, chosen=frozenset({"augmentation"})),
        )


def test_more_epochs_after_the_end_train_on_with_a_new_schedule(frames, tmp_path, capsys):
    first = run(frames, tmp_path)
    history = run(frames, tmp_path, recipe("demo", **{**vars(TINY), "epochs": 5}))
    assert "Resuming with epochs = 5 (before: 3)" in capsys.readouterr().out
    assert [row["epoch"] for row in history] == [1, 2, 3, 4, 5]
    assert history[:3] == first
    rates = [row["learning_rate"] for row in history]
    assert rates[2] < 1e-3 < rates[3]  # at the end of the first schedule, and within the second
    assert run(frames, tmp_path) == history  # and it has ended again


def test_a_lower_learning_rate_heals_a_run_that_diverged(frames, tmp_path, monkeypatch):
    """The advice of the error message works: the run goes on after its last good epoch."""
    step, calls = training._step, []

    def diverging(run, x, y, rate):
        calls.append(rate)
        return step(run, x, y, rate) * (
            math.nan if len(calls) > 5 and run.config.learning_rate == 0.01 else 1
        )

    monkeypatch.setattr(training, "_step", diverging)
    with pytest.raises(FloatingPointError, match=r"loss of epoch 2 is nan.*resumes after epoch 1"):
        run(frames, tmp_path)
    history = run(frames, tmp_path, recipe("demo", **{**vars(TINY), "learning_rate": 1e-3}))
    assert len(history) == TINY.epochs
    assert all(math.isfinite(row["loss"]) for row in history)
    assert max(row["learning_rate"] for row in history[1:]) <= 1e-3


def test_a_new_run_starts_from_the_weights_of_another(frames, tmp_path, capsys):
    run(frames, tmp_path / "first")
    longer = recipe("demo", **{**vars(TINY), "epochs": 1, "learning_rate": 1e-9})
    run(frames, tmp_path / "second", longer, start_from=tmp_path / "first" / "best.pt")
    assert re.search(r"Starting from .*best.pt: (\d+) of \1 tensors fit", capsys.readouterr().out)
    a, b = (read_checkpoint(tmp_path / name / "best.pt")["model"] for name in ("first", "second"))
    assert all(torch.allclose(a[key], b[key], atol=1e-4) for key in a if key.endswith("weight"))
    other = recipe("demo", **{**vars(TINY), "fold": 2, "base_channels": 5})
    with pytest.raises(ValueError, match="no weight of .* fits this network"):
        run(frames, tmp_path / "third", other, start_from=tmp_path / "first" / "best.pt")


def test_a_run_has_one_owner(frames, tmp_path):
    def second(history, model):
        context = get_context("forkserver")
        answers = context.SimpleQueue()
        child = context.Process(target=train_and_answer, args=(frames, tmp_path, answers))
        child.start()
        child.join(PATIENCE)
        asked.append(answers.get())

    asked = []
    run(frames, tmp_path, recipe("demo", **{**vars(TINY), "epochs": 1}), on_epoch=second)
    assert asked[0].startswith(
        f"LockedError: The run in {tmp_path} is trained by process {os.getpid()}"
    )
    assert (
        len(run(frames, tmp_path, recipe("demo", **{**vars(TINY), "epochs": 2}))) == 2
    )  # free again


def train_and_answer(frames, folder, answers):
    try:
        answers.put(f"trained {len(run(frames, folder))} epochs")
    except LockedError as error:
        answers.put(f"LockedError: {error}")


def test_a_run_that_was_taken_over_stops_before_it_overwrites(frames, tmp_path):
    def other(history, model):
        lock = json.loads((tmp_path / "run.lock").read_text())
        (tmp_path / "run.lock").write_text(json.dumps(lock | {"host": "another machine"}))

    with pytest.raises(LockedError, match="another machine"):
        run(frames, tmp_path, on_epoch=other)
    assert read_checkpoint(tmp_path / "last.pt")["epoch"] == 1


def test_starting_afresh_sets_the_old_run_aside(frames, tmp_path):
    run(frames, tmp_path)
    old = (tmp_path / "last.pt").read_bytes()
    run(frames, tmp_path, recipe("demo", **{**vars(TINY), "seed": 5}), resume=False)
    assert (tmp_path / "last-1.pt").read_bytes() == old
    assert (tmp_path / "last.pt").read_bytes() != old


def test_a_best_pt_without_last_pt_is_not_overwritten(frames, tmp_path, capsys):
    (tmp_path / "drive").mkdir()
    (tmp_path / "drive" / "best.pt").write_bytes(b"the only copy of a long training")
    run(frames, tmp_path / "machine", backup=tmp_path / "drive")
    assert (tmp_path / "drive" / "best-1.pt").read_bytes() == b"the only copy of a long training"
    assert "best.pt in" in capsys.readouterr().out


def test_the_second_copy_brings_a_run_back(frames, tmp_path):
    history = run(frames, tmp_path / "machine", backup=tmp_path / "drive")
    again = run(frames, tmp_path / "new machine", backup=tmp_path / "drive")
    assert again == history
    assert (tmp_path / "new machine" / "best.pt").exists()


def test_training_goes_on_without_the_second_copy(frames, tmp_path, capsys):
    (tmp_path / "drive").write_text("a file where a folder should be")
    history = run(frames, tmp_path / "machine", backup=tmp_path / "drive" / "run")
    assert len(history) == TINY.epochs
    assert "cannot be reached: this run is not copied there" in capsys.readouterr().out


def test_a_full_disk_does_not_end_the_training(frames, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("unet_utils.checkpoints.torch.save", full)
    assert len(run(frames, tmp_path)) == TINY.epochs
    printed = capsys.readouterr().out
    assert "No space left on device" in printed
    assert "free some space" in printed


def test_other_errors_while_saving_do_not_blame_the_disk(frames, tmp_path, capsys, monkeypatch):
    def broken(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("unet_utils.checkpoints.torch.save", broken)
    assert len(run(frames, tmp_path)) == TINY.epochs
    printed = capsys.readouterr().out
    assert "Input/output error" in printed
    assert "free some space" not in printed


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
    with pytest.raises(FloatingPointError, match=r"lower learning_rate \(LEARNING_RATE\)"):
        run(frames, tmp_path, config)


@pytest.mark.parametrize(
    ("knob", "value", "message"),
    [
        ("image_size", 100, "multiple of 16"),
        ("growth", 2, "choose 0 to 1"),
        ("final_rate", 1.5, "choose 0 to 1"),
        ("batch_size", 1000, "only 22 frames"),
        ("epochs", 0, "at least 1"),
        ("base_channels", 0, "at least 1"),
    ],
)
def test_bad_knobs_are_refused(frames, tmp_path, knob, value, message):
    with pytest.raises(ValueError, match=message):
        run(frames, tmp_path, recipe("demo", **{**vars(TINY), knob: value}))


@pytest.mark.parametrize(
    "knob", ["image_size", "learning_rate", "augmentation", "class_weighting", "hold_out"]
)
def test_every_knob_changes_the_training(frames, tmp_path, knob):
    other = {
        "image_size": 48,
        "learning_rate": 1e-3,
        "augmentation": 0.0,
        "class_weighting": 1.0,
        "hold_out": False,
    }
    config = recipe("demo", **{**vars(TINY), "epochs": 1})
    changed = recipe("demo", **{**vars(config), knob: other[knob]})
    assert (
        run(frames, tmp_path / "a", config)[0]["loss"]
        != run(frames, tmp_path / "b", changed)[0]["loss"]
    )


def test_the_input_grows_and_its_work_is_known():
    config = recipe("demo", image_size=128, growth=0.5, fold=1)
    steps = [number / 1000 for number in range(1000)]
    sizes = [config.input_size(done) for done in steps]
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[500], sizes[-1]) == (64, 128, 128)
    assert set(sizes) == {64, 80, 96, 112, 128}
    work = torch.tensor(sizes).double().square().cumsum(0)
    for done in (
        0.1,
        0.25,
        0.5,
        0.75,
        1.0,
    ):  # counted, against the formula for sizes that are not rounded
        assert config.work(done) == pytest.approx(
            float(work[round(done * 1000) - 1] / work[-1]), abs=0.01
        )
    flat = recipe("demo", image_size=128)
    assert {flat.input_size(done) for done in steps} == {128}
    assert flat.work(0.3) == pytest.approx(0.3)


def test_each_step_of_a_run_has_the_size_of_its_time(frames, tmp_path, monkeypatch):
    sizes = []

    def recorded(photos, labels, size, *others):
        sizes.append(size)
        return augment(photos, labels, size, *others)

    monkeypatch.setattr("unet_utils.training.augment", recorded)
    config = recipe("demo", **{**vars(TINY), "image_size": 64, "growth": 0.5, "epochs": 2})
    run(frames, tmp_path, config)
    assert sizes[0] == 32
    assert sizes == sorted(sizes)
    assert sizes[len(sizes) // 2 :] == [64] * (len(sizes) - len(sizes) // 2)
    sizes.clear()
    run(
        frames, tmp_path, dataclasses.replace(config, epochs=3)
    )  # the run had ended: it goes on at full size
    assert set(sizes) == {64}


def test_square_scenes_are_shown_wider_than_in_training():
    for augmentation, width in ((0.0, 256), (0.5, 320), (1.0, 352)):
        config = recipe("cpu", augmentation=augmentation)
        zooms = (
            draw_changes(20000, torch.Generator().manual_seed(0), augmentation)
            .matrix[:, :, :2]
            .norm(dim=1)
        )
        assert config.scene_size(256, 256) == (256, width)
        assert width == pytest.approx(256 / float(zooms.min()) ** 0.5, abs=16)
        assert config.scene_size(256, 512) == (256, 512)


def test_a_run_of_an_earlier_version_is_scored_as_it_began(frames, tmp_path):
    """Version 0.1 showed square frames as wide as in training."""
    config = recipe("demo", **{**vars(TINY), "image_size": 64, "augmentation": 1.0})
    with pytest.raises(Interrupted):
        run(frames, tmp_path, config, on_epoch=stop_after(1))
    checkpoint = read_checkpoint(tmp_path / "last.pt")
    assert checkpoint["config"]["scene_size"] == [64, 96]
    checkpoint["config"]["scene_size"] = [64, 64]
    torch.save(checkpoint, tmp_path / "last.pt")
    assert len(run(frames, tmp_path, config)) == TINY.epochs
    assert load_trained(tmp_path / "last.pt", "cpu").scene_size == (64, 64)
    checkpoint["config"]["scene_size"] = [64, 128]  # of full-size frames
    torch.save(checkpoint, tmp_path / "last.pt")
    with pytest.raises(ValueError, match="scene size"):
        run(frames, tmp_path, config)


def test_averaging_changes_the_kept_weights_only(frames, tmp_path):
    run(frames, tmp_path / "a")
    run(frames, tmp_path / "b", recipe("demo", **{**vars(TINY), "averaging": 0.5}))
    a, b = (read_checkpoint(tmp_path / name / "last.pt") for name in "ab")
    assert all(torch.equal(a["model"][key], b["model"][key]) for key in a["model"])
    assert any(not torch.equal(a["averaged"][key], b["averaged"][key]) for key in a["averaged"])


@pytest.mark.parametrize("final", [0.0, 0.7, 1.0])
def test_the_learning_rate_ends_at_a_share_of_its_maximum(frames, tmp_path, final):
    config = recipe("demo", **{**vars(TINY), "epochs": 40, "final_rate": final})
    this = training._Run(frames, config, torch.device("cpu"), SingleProcess(), None, tmp_path, None)
    steps = config.epochs * this.steps_per_epoch
    rates = [this.learning_rate(step) / config.learning_rate for step in range(steps + 1)]
    top = rates.index(max(rates))
    assert max(rates) == pytest.approx(1)
    assert top <= steps // 10
    assert rates[0] == pytest.approx(1 / (steps // 10))
    assert rates[-1] == pytest.approx(final, abs=1e-9)
    assert rates[top:] == sorted(rates[top:], reverse=True)
    middle = (steps // 10 + steps) // 2
    assert rates[middle] == pytest.approx((1 + final) / 2, abs=0.02)


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
    (tmp_path / ".unfinished-1-last.pt").write_bytes(b"half a checkpoint")
    assert len(run(frames, tmp_path)) == TINY.epochs
    assert math.isfinite(read_checkpoint(RunFiles(tmp_path).last)["history"][-1]["loss"])


def fp16(monkeypatch, dtype):
    for module in ("unet_utils.model", "unet_utils.training", "unet_utils.optimizer"):
        monkeypatch.setattr(f"{module}.compute_dtype", lambda device: dtype)


@pytest.mark.parametrize(
    "dtypes",
    [
        (torch.float32, torch.bfloat16, torch.float16),
        (torch.float16, torch.float32, torch.float16),
        (torch.bfloat16, torch.float16, torch.bfloat16),
    ],
)
def test_a_checkpoint_moves_between_machines(frames, tmp_path, monkeypatch, dtypes):
    """A CPU, an A100 and a T4 differ in precision, and only float16 scales the loss."""
    for epoch, dtype in enumerate(dtypes, 1):
        fp16(monkeypatch, dtype)
        history = run(frames, tmp_path, recipe("demo", **{**vars(TINY), "epochs": epoch}))
    assert [row["epoch"] for row in history] == [1, 2, 3]
    assert all(math.isfinite(row["loss"]) for row in history)


def test_the_prior_correction_is_folded_into_the_loaded_model(frames, tmp_path):
    plain, corrected = (
        recipe("demo", **{**vars(TINY), "epochs": 1, "prior_correction": value})
        for value in (0.0, 0.5)
    )
    run(frames, tmp_path / "a", plain)
    run(frames, tmp_path / "b", corrected)
    raw = read_checkpoint(tmp_path / "b" / "best.pt")
    assert torch.equal(
        raw["model"]["head.bias"], read_checkpoint(tmp_path / "a" / "best.pt")["model"]["head.bias"]
    )
    a, b = (load_trained(tmp_path / name / "best.pt", "cpu").model for name in "ab")
    learn, _ = frames.split_cities()
    expected = -0.5 * class_weights(learn.class_counts(), TINY.class_weighting).log()
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(b(x) - a(x), expected[:, None, None].expand(1, -1, 32, 32), atol=1e-5)


def test_logits_are_shifted_class_by_class_when_pixels_are_folded():
    torch.manual_seed(0)
    model, x = UNet(3, 4, 2, fold=2).eval(), torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        before = model(x)
        model.shift_logits(torch.tensor([0.0, 1.0, -2.0, 3.0]))
        moved = (model(x) - before).mean((0, 2, 3))
    assert moved.tolist() == pytest.approx([0, 1, -2, 3], abs=1e-5)


def test_a_full_correction_undoes_the_class_weights():
    """With weights w, the best constant prediction is w p / sum(w p); the corrected logits give p
    back."""
    counts = torch.tensor([700, 200, 100])
    weights, p = class_weights(counts, 0.5), counts / counts.sum()
    logits = (weights * p / (weights * p).sum()).log()
    assert torch.allclose((logits + prior_correction(weights, 1.0)).softmax(0), p)


def test_auxiliary_heads_train_and_leave_no_trace_in_the_model(frames, tmp_path):
    config = recipe("demo", **{**vars(TINY), "auxiliary": 0.4})
    with pytest.raises(Interrupted):
        run(frames, tmp_path / "cut", config, on_epoch=stop_after(1))
    history = run(frames, tmp_path / "cut", config)
    assert without_times(history) == without_times(run(frames, tmp_path / "whole", config))
    assert same_weights(tmp_path / "cut" / "last.pt", tmp_path / "whole" / "last.pt")
    run(frames, tmp_path / "plain")
    with_heads, plain = (
        read_checkpoint(tmp_path / name / "best.pt")["model"] for name in ("whole", "plain")
    )
    assert with_heads.keys() == plain.keys()
    assert any(not torch.equal(with_heads[key], plain[key]) for key in plain)


def test_each_auxiliary_head_has_its_own_size():
    model = AuxiliaryHeads(UNet(3, 5, 4), use=True)
    outputs = model(torch.randn(1, 3, 64, 64))
    assert [tuple(out.shape[1:]) for out in outputs] == [(5, s, s) for s in (64, 8, 16, 32, 64)]
    labels = torch.full((1, 64, 64), 255)
    labels[:, :8, :8] = 2
    weights = torch.ones(5)
    loss, total = (
        value.item()
        for value in segmentation_loss(outputs, labels, weights, 0.5, lambda tensor: tensor)
    )
    own = [
        cross_entropy(
            out[:, :, : out.shape[2] // 8, : out.shape[2] // 8].flatten(2),
            torch.full((1, (out.shape[2] // 8) ** 2), 2),
        )
        for out in outputs
    ]
    assert loss == pytest.approx(own[0].item(), rel=1e-5)
    assert total == pytest.approx(
        own[0].item() + 0.5 * sum(o.item() for o in own[1:]) / 4, rel=1e-5
    )


def test_on_step_counts_the_photos_of_each_epoch(frames, tmp_path):
    steps = []
    run(frames, tmp_path, on_step=lambda *step: steps.append(step))
    assert steps[:5] == [(1, used, 20, 3) for used in (4, 8, 12, 16, 20)]
    assert steps[-1] == (3, 20, 20, 3)


def test_one_pair_can_be_learned_by_heart(frames, tmp_path):
    config = recipe("demo", base_channels=8, fold=1, image_size=64, batch_size=1, epochs=150, hold_out=False,
                    learning_rate=0.01, augmentation=0.0)  # fmt: skip
    history = run(frames.part(slice(0, 1)), tmp_path, config)
    assert history[-1]["loss"] < 0.4 * history[0]["loss"]


def test_a_set_without_a_labelled_pixel_is_refused(frames, tmp_path):
    void = dataclasses.replace(frames, label_ids=torch.zeros_like(frames.label_ids))
    with pytest.raises(ValueError, match="no pixel of the training frames has a class"):
        run(void, tmp_path)
    half = torch.cat([frames.label_ids[:-2], torch.zeros_like(frames.label_ids[-2:])])
    with pytest.raises(ValueError, match="no pixel of the held-out frames"):
        run(dataclasses.replace(frames, label_ids=half), tmp_path)


def test_a_drive_that_drops_is_reported_once_and_used_again_when_it_returns(
    frames, tmp_path, capsys
):
    drive = tmp_path / "drive" / "MyDrive"

    def drop_and_return(history, model):
        if len(history) == 1:
            drive.rename(tmp_path / "gone")
        if len(history) == 4:
            (tmp_path / "gone").rename(drive)

    drive.mkdir(parents=True)
    config = recipe("demo", **{**vars(TINY), "epochs": 5})
    run(frames, tmp_path / "machine", config, backup=drive / "runs" / "x", on_epoch=drop_and_return)
    printed = capsys.readouterr().out
    assert printed.count("Could not copy the checkpoint") == 1
    assert printed.count("work again") == 1
    assert read_checkpoint(drive / "runs" / "x" / "last.pt")["epoch"] == 5


def test_an_unmounted_drive_is_never_made_as_a_plain_folder(frames, tmp_path):
    def unmount(history, model):
        if (tmp_path / "drive" / "MyDrive").exists():
            (tmp_path / "drive" / "MyDrive").rename(tmp_path / "gone")

    (tmp_path / "drive" / "MyDrive").mkdir(parents=True)
    run(
        frames,
        tmp_path / "machine",
        backup=tmp_path / "drive" / "MyDrive" / "runs",
        on_epoch=unmount,
    )
    assert not (tmp_path / "drive" / "MyDrive").exists()


@pytest.mark.parametrize("damage", ["missing", "empty", "foreign"])
def test_last_pt_is_enough_to_go_on(frames, tmp_path, damage, capsys):
    run(
        frames,
        tmp_path / "machine",
        backup=tmp_path / "drive",
        config=recipe("demo", **{**vars(TINY), "epochs": 2}),
    )
    (tmp_path / "drive" / "history.csv").unlink()
    best = tmp_path / "drive" / "best.pt"
    best.unlink()
    if damage != "missing":
        best.write_bytes(b"" if damage == "empty" else b"something else")
    history = run(frames, tmp_path / "new", TINY, backup=tmp_path / "drive")
    assert [row["epoch"] for row in history] == [1, 2, 3]
    assert "best.pt" in capsys.readouterr().out
    load_trained(tmp_path / "new" / "best.pt", "cpu")
    assert len((tmp_path / "new" / "history.csv").read_text().splitlines()) == 4


def test_a_damaged_last_pt_is_named(frames, tmp_path):
    (tmp_path / "drive").mkdir()
    (tmp_path / "drive" / "last.pt").write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"drive/last\.pt is not a usable checkpoint .*it is empty"
    ):
        run(frames, tmp_path / "machine", backup=tmp_path / "drive")


def test_a_compiler_that_is_missing_is_said_by_the_knobs_name(frames, tmp_path, monkeypatch):
    def no_compiler(module):
        def fail(x):
            raise torch._dynamo.exc.TorchDynamoException("no C++ compiler")

        fail.train, fail.parameters = module.train, module.parameters
        return fail

    monkeypatch.setattr(torch, "compile", no_compiler)
    with pytest.raises(RuntimeError, match=r"set compile to False \(COMPILE\)"):
        run(frames, tmp_path, recipe("demo", **{**vars(TINY), "compile": True}))


def test_checkpoints_of_the_first_version_load_and_go_on(frames, tmp_path):
    """They have no auxiliary heads, no prior correction, no group options, and settings that are
    gone."""
    with pytest.raises(Interrupted):
        run(frames, tmp_path / "cut", on_epoch=stop_after(1))
    checkpoint = read_checkpoint(tmp_path / "cut" / "last.pt")
    for key in ("heads", "logit_shift", "schedule_start"):
        del checkpoint[key]
    for key in ("prior_correction", "auxiliary"):
        del checkpoint["config"][key]
    checkpoint["config"] |= {"sync_batchnorm": True, "scene_size": (32, 32)}
    del checkpoint["config"]["growth"]
    for key in ("cluster_colors", "cluster_ids"):
        del checkpoint["scheme"][key]
    for group in checkpoint["optimizer"]["param_groups"]:
        del group["rate"]
    torch.save(checkpoint, tmp_path / "cut" / "last.pt")
    load_trained(tmp_path / "cut" / "last.pt", "cpu")
    history = run(frames, tmp_path / "cut")
    assert without_times(history) == without_times(run(frames, tmp_path / "whole"))
    assert same_weights(tmp_path / "cut" / "last.pt", tmp_path / "whole" / "last.pt")


@pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 11), reason="this torch asks the driver"
)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("encoder", [None, "resnet34"])
def test_on_a_gpu_no_devices_are_mixed(encoder, monkeypatch):
    """What a GPU would do, with tensors that have a device but no values: an operation across two
    devices fails."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with FakeTensorMode():
        with torch.device("cuda"):
            model = UNet(3, 19, 4, 1, encoder, False)
            arrays = (
                torch.empty(4, 256, 256, 3, dtype=torch.uint8),
                torch.empty(4, 256, 256, dtype=torch.uint8),
            )
        frames = Frames(*arrays, get_scheme("cityscapes19"), (1, 2, 3, 4))
        ((photos, labels),) = frames.batches([torch.arange(4)], "cuda")
        x, y = augment(photos, labels, 64, draw_changes(4, torch.Generator()))
        assert cross_entropy(model(x), y, ignore_index=255).device.type == "cuda"
        for parameter in model.parameters():  # going backward would take a driver
            parameter.grad = torch.empty_like(parameter)
        Muon(model.parameters()).step()
        assert predict_classes(model.eval(), photos, 64, flip=True).device.type == "cuda"


def test_a_run_knows_that_its_frames_are_others(frames, tmp_path):
    """The same name of a run for the demo set and then for the real pairs."""
    run(frames, tmp_path)
    with pytest.raises(ValueError, match="number of training frames 24, now it is 23"):
        run(frames.part(slice(1, None)), tmp_path)


def test_settings_that_a_resumed_run_keeps_are_printed(frames, tmp_path, capsys):
    run(frames, tmp_path)
    run(frames, tmp_path, dataclasses.replace(TINY, base_channels=64, chosen=frozenset()))
    printed = capsys.readouterr().out
    assert "Settings kept from the checkpoint: base_channels 2 (not 64)." in printed
    assert "Nothing is left to train" in printed


def test_an_unchanged_best_pt_is_not_copied_again(frames, tmp_path, monkeypatch):
    """Drive moves each replaced file to its bin, and counts it."""
    copied = []
    monkeypatch.setattr(
        "unet_utils.checkpoints.copy_verified", lambda source, target: copied.append(source.name)
    )
    files = RunFiles(tmp_path / "machine", tmp_path / "drive")
    for folder in (files.folder, files.backup):
        folder.mkdir()
        (folder / "best.pt").touch()
    checkpoint = {
        key: {} for key in ("format", "model", "model_config", "config", "scheme", "averaged")
    }
    checkpoint |= {"epoch": 1, "history": [{"epoch": 1}]}
    files.save(checkpoint, is_best=False)
    assert copied == ["history.csv", "last.pt"]
    files.save(checkpoint, is_best=True)
    assert copied[2:] == ["best.pt", "history.csv", "last.pt"]


def test_a_checkpoint_of_a_newer_version_is_named(frames, tmp_path):
    run(frames, tmp_path)
    torch.save(read_checkpoint(tmp_path / "last.pt") | {"format": 99}, tmp_path / "last.pt")
    with pytest.raises(ValueError, match=r"newer version of unet_utils.*switch resume off"):
        run(frames, tmp_path)


def test_weights_that_are_not_finite_are_not_saved(frames, tmp_path, monkeypatch):
    step = training._step

    def last_step_breaks(state, x, y, rate):
        loss = step(state, x, y, rate)
        state.model.head.bias.data.fill_(math.nan if state.epoch == 1 else 0)
        return loss

    monkeypatch.setattr(training, "_step", last_step_breaks)
    with pytest.raises(FloatingPointError, match="a weight is not finite"):
        run(frames, tmp_path)
    assert read_checkpoint(tmp_path / "last.pt")["epoch"] == 1
