"""The loop: it learns, it repeats, and an interrupted run ends like one that was not."""

import csv
import dataclasses
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

from unet_utils import ConfusionMatrix, evaluate, fit, get_scheme, load_trained, prepare, recipe
from unet_utils.augment import augment, draw_changes
from unet_utils.checkpoints import read_checkpoint
from unet_utils.device import computing_in
from unet_utils.evaluation import predict_classes
from unet_utils.frames import Frames
from unet_utils.losses import class_weights
from unet_utils.model import UNet
from unet_utils.optimizer import Muon
from unet_utils.schedule import Schedule
from unet_utils.training import OneProcess, TrainingState, train_epoch

TINY = recipe(
    "demo", base_channels=2, fold=1, image_size=32, batch_size=4, epochs=3, learning_rate=1e-2
)


def tiny(**changes):
    return dataclasses.replace(TINY, **changes)


def run(frames, folder, config=TINY, **options):
    return fit(frames, config, folder, "cpu", progress=False, **options)


def without_times(history):
    times = ("seconds", "images_per_second")
    return [{key: row[key] for key in row if key not in times} for row in history]


def same_weights(first: Path, second: Path) -> bool:
    a, b = (read_checkpoint(folder / "last.pt") for folder in (first, second))
    for part in ("model", "averaged"):
        if not all(torch.equal(a[part][key], b[part][key]) for key in a[part]):
            return False
    return True


class Interrupted(Exception):
    pass


def stop_after(epochs):
    def stop(history, model):
        if len(history) == epochs:
            raise Interrupted

    return stop


@pytest.fixture(scope="module")
def whole(frames, tmp_path_factory):
    """A run that was not interrupted: its folder and its history. Only to read."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, run(frames, folder)


@pytest.mark.slow
def test_it_learns(frames, tmp_path):
    config = tiny(base_channels=8, image_size=64, epochs=40)
    history = run(frames, tmp_path, config)
    assert history[-1]["loss"] < 0.7 * history[0]["loss"]
    trained = load_trained(tmp_path / "best.pt", "cpu")
    matrix = ConfusionMatrix.total(evaluate(trained.model, frames, 64))
    shares = matrix.matrix.sum(1).double() / matrix.matrix.sum()
    assert matrix.mean_iou > 2.5 * matrix.guessing(shares).mean_iou
    assert matrix.pixel_accuracy > 0.6


def test_files_and_history(whole):
    folder, history = whole
    assert {"best.pt", "history.csv", "last.pt"} <= {path.name for path in folder.iterdir()}
    assert [row["epoch"] for row in history] == [1, 2, 3]
    with open(folder / "history.csv") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert losses == [row["loss"] for row in history]
    best = read_checkpoint(folder / "best.pt")
    assert best["history"][-1]["mean_iou"] == max(row["mean_iou"] for row in history)
    assert best["scheme"]["name"] == "cityscapes19"


def test_the_same_seed_repeats_and_another_does_not(frames, whole, tmp_path):
    folder, history = whole
    assert without_times(run(frames, tmp_path / "again")) == without_times(history)
    assert same_weights(folder, tmp_path / "again")
    # A person's seed may be any whole number, such as time.time_ns().
    other = run(frames, tmp_path / "other", tiny(seed=1_790_000_000_123_456_789, epochs=1))
    assert other[0]["loss"] != history[0]["loss"]


def test_an_interrupted_run_ends_like_one_that_was_not(frames, whole, tmp_path):
    for epochs in (1, 2):
        with pytest.raises(Interrupted):
            run(frames, tmp_path, on_epoch=stop_after(epochs))
    folder, history = whole
    assert without_times(run(frames, tmp_path)) == without_times(history)
    assert same_weights(folder, tmp_path)


@pytest.mark.parametrize("encoder_rate", [0.0, 0.5])
def test_a_run_with_adam_is_resumed_like_any_other(frames, tmp_path, encoder_rate):
    config = tiny(optimizer="adam", encoder_rate=encoder_rate, epochs=2)
    run(frames, tmp_path / "whole", config)
    with pytest.raises(Interrupted):
        run(frames, tmp_path / "resumed", config, on_epoch=stop_after(1))
    run(frames, tmp_path / "resumed", config)
    assert same_weights(tmp_path / "whole", tmp_path / "resumed")


LONGER = tiny(epochs=20)
PATIENCE = 120  # seconds, for one process; a sound one needs a few


def train_longer(begun, demo, cache, folder):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the background begins without it
    torch.set_num_threads(1)
    frames = prepare(demo, "train", cache, method="nearest", progress=False)
    begun.send(True)
    run(frames, folder, LONGER)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="this system has other signals")
def test_stopped_at_random_moments_it_still_ends_the_same(demo, tmp_path):
    """kill -9, SIGTERM and the stop button: on disk is always a whole epoch."""
    # Forked from a process that only imports: a lock that a killed one held is nobody else's.
    processes = get_context("forkserver")
    processes.set_forkserver_preload(["unet_utils"])

    def start(name):
        listener, begun = processes.Pipe(duplex=False)
        arguments = (begun, demo, tmp_path / "prepared", tmp_path / name)
        child = processes.Process(target=train_longer, args=arguments)
        child.start()
        assert listener.poll(PATIENCE)  # it is about to train
        return child

    def exit_code(child):
        child.join(PATIENCE)
        return child.exitcode  # None while it runs

    child = start("whole")
    began = time.monotonic()
    assert exit_code(child) == 0
    duration = time.monotonic() - began
    moments = random.Random(0)
    stopped = 0
    while stopped < 12:
        child = start("killed")
        time.sleep(moments.uniform(0, 0.06 * duration))
        signals = [signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT]
        os.kill(child.pid, moments.choice(signals))
        code = exit_code(child)
        assert code is not None
        if code == 0:
            break
        stopped += 1
    assert stopped >= 8
    assert exit_code(start("killed")) == 0
    assert same_weights(tmp_path / "killed", tmp_path / "whole")
    killed, whole = (read_checkpoint(tmp_path / n / "last.pt") for n in ("killed", "whole"))
    assert without_times(killed["history"]) == without_times(whole["history"])


def test_a_run_learns_from_what_it_was_begun_with(demo, frames, whole, tmp_path):
    folder, _ = whole
    seven = prepare(demo, "train", tmp_path, "categories7", "nearest", progress=False)
    with pytest.raises(ValueError, match="class scheme cityscapes19, now it is categories7"):
        run(seven, folder)
    restored = prepare(demo, "train", tmp_path, progress=False)
    with pytest.raises(ValueError, match="labels nearest, now it is restored.* another run name"):
        run(restored, folder)
    with pytest.raises(ValueError, match="number of training frames 24, now it is 23"):
        run(frames.part(slice(1, None)), folder)
    with pytest.raises(ValueError, match="training files"):
        run(dataclasses.replace(frames, data="others"), folder)


def test_a_model_is_scored_on_its_own_classes(demo, whole, tmp_path):
    folder, _ = whole
    with pytest.raises(ValueError, match="has learned the class scheme 'cityscapes19'"):
        load_trained(folder / "best.pt", "cpu", "categories7")
    trained = load_trained(folder / "best.pt", "cpu")
    seven = prepare(demo, "val", tmp_path, "categories7", "nearest", progress=False)
    with pytest.raises(ValueError, match="the model has 19 classes, the scheme 'categories7' has"):
        evaluate(trained.model, seven, 32)


def test_more_epochs_after_the_end_extend_a_run_with_a_new_schedule(frames, tmp_path, capsys):
    first = run(frames, tmp_path)
    history = run(frames, tmp_path, tiny(epochs=5))
    assert [row["epoch"] for row in history] == [1, 2, 3, 4, 5]
    assert history[:3] == first
    rates = [row["learning_rate"] for row in history]
    assert rates[2] < 1e-3 < rates[3]  # at the end of the first schedule, and within the second
    capsys.readouterr()
    assert run(frames, tmp_path, tiny(epochs=5)) == history
    assert "Nothing is left to train" in capsys.readouterr().out


def test_after_a_full_memory_the_run_resumes_with_smaller_batches(frames, tmp_path, monkeypatch):
    """The advice can be followed by a run that has saved epochs, and the GPU is free for it."""
    kept = []

    def full(outputs, *rest):
        if len(kept) == 7:  # in the second epoch
            raise torch.OutOfMemoryError("CUDA out of memory")
        kept.append(1)
        return loss(outputs, *rest)

    from unet_utils.training import segmentation_loss as loss

    monkeypatch.setattr("unet_utils.training.segmentation_loss", full)
    with pytest.raises(RuntimeError, match=r"memory is full: halve batch_size") as caught:
        run(frames, tmp_path)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    held = [frame for frame, _ in _frames_of(caught.value.__traceback__)]
    assert not any("state" in frame.f_locals for frame in held)
    monkeypatch.undo()
    assert len(run(frames, tmp_path, tiny(batch_size=2))) == 3


def _frames_of(traceback):
    while traceback:
        yield traceback.tb_frame, traceback.tb_lineno
        traceback = traceback.tb_next


def test_a_lower_learning_rate_heals_a_run_that_diverged(frames, tmp_path):
    with pytest.raises(Interrupted):
        run(frames, tmp_path, on_epoch=stop_after(1))
    message = r"loss of epoch 2 is (nan|inf).*lower learning_rate.*resumes after epoch 1"
    with pytest.raises(FloatingPointError, match=message):
        run(frames, tmp_path, tiny(learning_rate=1e30))
    with pytest.raises(FloatingPointError, match=r"loss of epoch 1 is .* and run again$"):
        run(frames, tmp_path, tiny(learning_rate=1e30), resume=False)  # no epoch to go on from
    history = run(frames, tmp_path, tiny(learning_rate=1e-3))
    assert len(history) == TINY.epochs
    assert all(math.isfinite(row["loss"]) for row in history)
    assert max(row["learning_rate"] for row in history[1:]) <= 1e-3


@pytest.mark.parametrize("part", ["weights", "statistics"])
def test_weights_and_statistics_that_are_not_finite_are_not_saved(
    frames, tmp_path, monkeypatch, part
):
    def spoiled(state, *rest):
        row = train_epoch(state, *rest)
        if state.epoch == 1:
            name = "head.bias" if part == "weights" else "up.0.convolve.1.running_var"
            state.model.state_dict()[name].fill_(math.nan)
        return row

    monkeypatch.setattr("unet_utils.training.train_epoch", spoiled)
    with pytest.raises(FloatingPointError, match="a weight is not finite"):
        run(frames, tmp_path)
    assert read_checkpoint(tmp_path / "last.pt")["epoch"] == 1


def test_a_setting_that_is_changed_holds_in_a_resumed_run(frames, tmp_path):
    """The optimizer has a state of its own, which must not bring the old settings back."""
    for name, decay in (("same", 0.02), ("changed", 0.5)):
        with pytest.raises(Interrupted):
            run(frames, tmp_path / name, on_epoch=stop_after(1))
        run(frames, tmp_path / name, tiny(weight_decay=decay))
    a, b = (read_checkpoint(tmp_path / name / "last.pt")["model"] for name in ("same", "changed"))
    assert any(not torch.equal(a[key], b[key]) for key in a)


def test_a_new_run_starts_from_the_weights_of_another(frames, whole, tmp_path, capsys):
    folder, _ = whole
    config = tiny(epochs=1, learning_rate=1e-9)
    run(frames, tmp_path / "second", config, start_from=folder / "best.pt")
    assert re.search(r"Starting from .*best.pt: (\d+) of \1 tensors fit", capsys.readouterr().out)
    a, b = (read_checkpoint(f / "best.pt")["model"] for f in (folder, tmp_path / "second"))
    assert all(torch.allclose(a[key], b[key], atol=1e-4) for key in a if key.endswith("weight"))
    run(frames, tmp_path / "second", tiny(epochs=2, learning_rate=1e-9))
    begun_from = read_checkpoint(tmp_path / "second" / "last.pt")["start_from"]
    assert re.fullmatch(rf"{folder.name}/best\.pt \([0-9a-f]{{8}}\)", begun_from)
    other = tiny(fold=2, base_channels=5)
    with pytest.raises(ValueError, match="no weight of .* fits this network"):
        run(frames, tmp_path / "third", other, start_from=folder / "best.pt")


def test_a_run_is_restored_from_its_backup(frames, tmp_path):
    history = run(frames, tmp_path / "machine", backup=tmp_path / "drive")
    again = run(frames, tmp_path / "new machine", backup=tmp_path / "drive")
    assert again == history
    assert (tmp_path / "new machine" / "best.pt").exists()


def test_a_last_epoch_that_was_not_saved_is_an_error(frames, tmp_path, monkeypatch):
    """Training goes on without a disk; the end tells that something is missing."""

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torch.save", full)
    seen = []
    with pytest.raises(OSError, match="the last epoch could not be saved"):
        run(frames, tmp_path, on_epoch=lambda history, model: seen.append(len(history)))
    assert seen == [1, 2, 3]


def test_too_few_frames_for_a_batch_are_refused(frames, tmp_path):
    with pytest.raises(ValueError, match="batch_size is 1000, but there are only 22 frames"):
        run(frames, tmp_path, tiny(batch_size=1000))


@pytest.mark.parametrize(
    "changed",
    [
        {"image_size": 48},
        {"learning_rate": 1e-3},
        {"augmentation": 0.0},
        {"class_weighting": 1.0},
        {"hold_out": False},
        {"weight_decay": 0.5},
        {"auxiliary": 0.4},
        {"skips": False},
        {"optimizer": "adam"},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_every_setting_changes_the_training(frames, whole, tmp_path, changed):
    run(frames, tmp_path, tiny(epochs=1, **changed))
    a = read_checkpoint(whole[0] / "best.pt")["model"]
    b = read_checkpoint(tmp_path / "best.pt")["model"]
    assert a.keys() == b.keys()  # auxiliary heads leave no trace
    assert any(not torch.equal(a[key], b[key]) for key in a)


def test_each_step_of_a_run_has_the_size_of_its_time(frames, tmp_path, monkeypatch):
    sizes = []

    def recorded(photos, labels, size, *others):
        sizes.append(size)
        return augment(photos, labels, size, *others)

    monkeypatch.setattr("unet_utils.training.augment", recorded)
    config = tiny(image_size=64, growth=0.5, epochs=2)
    run(frames, tmp_path, config)
    assert sizes[0] == (32, 32)
    assert sizes == sorted(sizes)
    assert set(sizes[len(sizes) // 2 :]) == {(64, 64)}
    sizes.clear()
    run(frames, tmp_path, dataclasses.replace(config, epochs=3))  # extended at full size
    assert set(sizes) == {(64, 64)}


def test_averaging_changes_the_kept_weights_only(frames, whole, tmp_path):
    run(frames, tmp_path, tiny(averaging=0.5))
    a, b = (read_checkpoint(folder / "last.pt") for folder in (whole[0], tmp_path))
    assert all(torch.equal(a["model"][key], b["model"][key]) for key in a["model"])
    assert any(not torch.equal(a["averaged"][key], b["averaged"][key]) for key in a["averaged"])


def test_averaging_is_torchs(frames):
    """The running average is that of torch.optim.swa_utils, which waits for a GPU at each step."""
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    torch.manual_seed(0)
    model = UNet(3, 19, 2)
    state = TrainingState(model, frames, TINY, torch.device("cpu"), OneProcess())
    average = get_ema_multi_avg_fn(0.75)
    torchs = AveragedModel(model, multi_avg_fn=average, use_buffers=True)
    for step in range(4):
        with torch.no_grad():
            for values in model.state_dict().values():
                if values.is_floating_point():
                    values.add_(torch.rand_like(values))
        state.average(0.25 if step else 1.0)
        torchs.update_parameters(model)
    expected = torchs.module.state_dict()
    for name, values in state.averaged.state_dict().items():
        if values.is_floating_point():
            assert torch.equal(values, expected[name])


@pytest.mark.slow
def test_a_checkpoint_moves_between_machines(frames, tmp_path):
    """A CPU, an A100 and a T4 differ in precision, and only float16 scales the loss."""
    names = ("float32", "bfloat16", "float16", "float32", "float16", "bfloat16")
    for epoch, name in enumerate(names, 1):
        with computing_in(getattr(torch, name)):
            history = run(frames, tmp_path, tiny(epochs=epoch))
    assert [row["epoch"] for row in history] == list(range(1, 7))
    assert all(math.isfinite(row["loss"]) for row in history)


def test_the_prior_correction_is_folded_into_the_loaded_model(frames, tmp_path):
    for name, strength in (("a", 0.0), ("b", 0.5)):
        run(frames, tmp_path / name, tiny(epochs=1, prior_correction=strength))
    raw = [read_checkpoint(tmp_path / name / "best.pt")["model"]["head.bias"] for name in "ab"]
    assert torch.equal(*raw)
    a, b = (load_trained(tmp_path / name / "best.pt", "cpu").model for name in "ab")
    learn, _ = frames.split(hold_out=True)
    expected = -0.5 * class_weights(learn.class_counts(), TINY.class_weighting).log()
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(b(x) - a(x), expected[:, None, None].expand(1, -1, 32, 32), atol=1e-5)


def test_with_auxiliary_heads_an_interrupted_run_ends_the_same(frames, tmp_path):
    config = tiny(auxiliary=0.4, epochs=2)
    with pytest.raises(Interrupted):
        run(frames, tmp_path / "cut", config, on_epoch=stop_after(1))
    history = run(frames, tmp_path / "cut", config)
    assert without_times(history) == without_times(run(frames, tmp_path / "whole", config))
    assert same_weights(tmp_path / "cut", tmp_path / "whole")


def test_on_step_counts_the_photos_of_each_epoch(frames, tmp_path):
    steps = []
    run(frames, tmp_path, on_step=lambda *step: steps.append(step))
    schedule = Schedule(TINY, steps_per_epoch=5)
    assert steps[:5] == [(1, used, 20, schedule) for used in (4, 8, 12, 16, 20)]
    assert steps[-1] == (3, 20, 20, schedule)


@pytest.mark.slow
def test_one_pair_can_be_learned_by_heart(frames, tmp_path):
    config = tiny(
        base_channels=8, image_size=64, batch_size=1, epochs=150, hold_out=False, augmentation=0.0
    )
    history = run(frames.part(slice(0, 1)), tmp_path, config)
    assert history[-1]["loss"] < 0.4 * history[0]["loss"]


def test_a_set_without_a_labelled_pixel_is_refused(frames, tmp_path):
    void = dataclasses.replace(frames, label_ids=torch.zeros_like(frames.label_ids))
    with pytest.raises(ValueError, match="no pixel of the training frames has a class"):
        run(void, tmp_path)
    half = torch.cat([frames.label_ids[:-2], torch.zeros_like(frames.label_ids[-2:])])
    with pytest.raises(ValueError, match="no pixel of the held-out frames"):
        run(dataclasses.replace(frames, label_ids=half), tmp_path)


@pytest.mark.parametrize("fault", ["no C++ compiler", "torch.compile is not supported"])
def test_a_compiler_that_is_missing_is_said_by_the_settings_name(
    frames, tmp_path, monkeypatch, fault
):
    def no_compiler(module):
        if fault.startswith("torch.compile"):  # as on a Python that is too new
            raise RuntimeError(fault)

        def fail(x):
            raise torch._dynamo.exc.TorchDynamoException(fault)

        fail.train = module.train
        fail.parameters = module.parameters
        return fail

    monkeypatch.setattr(torch, "compile", no_compiler)
    with pytest.raises(RuntimeError, match=r"set compile to False$"):
        run(frames, tmp_path, tiny(compile=True))


TORCH = tuple(map(int, torch.__version__.split(".")[:2]))


@pytest.mark.skipif(TORCH < (2, 11), reason="this torch asks the driver")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("encoder", [None, "resnet34"])
def test_on_a_gpu_no_devices_are_mixed(encoder, monkeypatch):
    """What a GPU would do, with tensors that have a device but no values."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    with FakeTensorMode():
        with torch.device("cuda"):
            model = UNet(3, 19, 4, 1, encoder, False)
            photos = torch.empty(4, 256, 256, 3, dtype=torch.uint8)
            label_ids = torch.empty(4, 256, 256, dtype=torch.uint8)
        frames = Frames(photos, label_ids, get_scheme("cityscapes19"), (1, 2, 3, 4))
        ((photos, labels),) = frames.batches([torch.arange(4)], "cuda")
        x, y = augment(photos, labels, 64, draw_changes(4, torch.Generator()))
        assert cross_entropy(model(x), y, ignore_index=255).device.type == "cuda"
        for parameter in model.parameters():  # going backward would take a driver
            parameter.grad = torch.empty_like(parameter)
        Muon(model.parameters()).step()
        assert predict_classes(model.eval(), photos, 64, flip=True).device.type == "cuda"
