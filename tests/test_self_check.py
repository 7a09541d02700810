"""`python -m unet_utils check`: on a machine where all is well, and with faults."""

import contextlib
import json
import math
import os
import shutil
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from unet_utils import recipe
from unet_utils.__main__ import main
from unet_utils.device import FullMemoryError
from unet_utils.frames import Frames
from unet_utils.optimizer import Muon
from unet_utils.training import TrainingState, fit
from unet_utils.training import segmentation_loss as true_loss
from unet_utils.use import check_sections, self_check
from unet_utils.use.check_job import SCENES, Job, draw_scenes
from unet_utils.use.self_check import SECTIONS, Row, Section, report

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """A folder with two drawn scenes."""
    folder = tmp_path_factory.mktemp("scenes")
    draw_scenes(folder, 2)
    return folder


@pytest.fixture
def check(scenes, tmp_path, monkeypatch):
    """Return a function that does a section here, with small networks, and returns its row."""

    def small_recipe(name, **changes):
        tiny = {"batch_size": 2, "image_size": 64} | changes | {"base_channels": 2}
        if "encoder" in changes:
            tiny["image_size"] = 32
        return recipe(name, **tiny)

    monkeypatch.setattr(check_sections, "recipe", small_recipe)
    monkeypatch.setattr(check_sections, "LARGE", (400, 300))
    frames = Job.frames
    monkeypatch.setattr(Job, "frames", lambda job, count: frames(job, min(count, 40)))
    shutil.copy(scenes / SCENES, tmp_path)

    def do(number, kind=Job):
        row = Row(number, SECTIONS[number].title, "ok")
        sent = []
        report(SECTIONS[number].work, kind(CPU, tmp_path, sent.append))
        assert sent.pop() == ("end", "")
        for message in sent:
            row.add(*message)
        return row

    return do


class PretendedGpu(Job):
    """What is done on a GPU, done on the CPU."""

    is_cuda = True


class AnyGpu(Job):
    """What is done on a GPU of any kind, done on the CPU."""

    is_small = False

    def frames(self, count):
        return super().frames(min(count, 8))


@pytest.fixture
def gpu(monkeypatch):
    """What torch says of a GPU."""
    facts = SimpleNamespace(name="Tesla T4", major=7, minor=5, total_memory=2**34)
    for name, value in (
        ("get_device_properties", facts),
        ("mem_get_info", (2**33, 2**34)),
        ("max_memory_allocated", 2**32),
        ("memory_allocated", 2**20),
        ("reset_peak_memory_stats", None),
        ("set_sync_debug_mode", None),
    ):
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    monkeypatch.setattr(torch, "compile", lambda network: network)

    def fit_or_be_full(frames, config, *rest, **options):
        if config.batch_size > 100:
            raise FullMemoryError("the GPU's memory is full: halve batch_size")
        return fit(frames, config, *rest, **options)

    monkeypatch.setattr(check_sections, "fit", fit_or_be_full)


@pytest.mark.slow
@pytest.mark.parametrize("number", SECTIONS)
def test_all_is_well(check, number):
    row = check(number)
    assert row.state == "ok", row.figures
    assert row.figures


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 4, 5, 6])
def test_what_is_done_on_a_gpu_alone(check, gpu, number):
    row = check(number, PretendedGpu)
    assert row.state == "ok", row.figures
    text = "; ".join(row.figures)
    expected = {
        1: "Tesla T4, capability 7.5, 16.0 GB; 8.0 GB free",
        4: "launches a step",
        5: "compiled",
        6: "a full memory is explained; 0.00 GB are in use after it",
    }
    assert expected[number] in text
    assert len(row.details) == (10 if number == 4 else 0)


def autocast_without_effect(monkeypatch):
    monkeypatch.setattr(check_sections, "compute_dtype", lambda device: torch.float16)
    monkeypatch.setattr(check_sections, "autocast", lambda device: contextlib.nullcontext())


def wrong_convolution(monkeypatch):
    def convolve(x, kernel, padding=0):
        factor = 1.0 if x.dtype == torch.float64 else 1.1
        return factor * true(x, kernel, padding=padding)

    true = check_sections.conv2d
    monkeypatch.setattr(check_sections, "conv2d", convolve)


def wrong_labels(monkeypatch):
    def restore(masks, device):
        label_ids = true(masks, device=device)
        label_ids[0, 0, :4] ^= 1
        return label_ids

    true = check_sections.restore_label_ids
    monkeypatch.setattr(check_sections, "restore_label_ids", restore)


def other_loss_in_float16(monkeypatch):
    def loss(outputs, *rest):
        factor = 1.2 if outputs[0].dtype == torch.float16 else 1.0
        return tuple(factor * value for value in true_loss(outputs, *rest))

    monkeypatch.setattr("unet_utils.training.segmentation_loss", loss)


def infinite_gradients_taken(monkeypatch):
    blind = property(lambda self: None, lambda self, value: None, lambda self: None)
    monkeypatch.setattr(Muon, "found_inf", blind, raising=False)


def weights_that_are_not_resumed(monkeypatch):
    def load(state, checkpoint):
        state.epoch = state.first_epoch = checkpoint["epoch"]
        state.history = checkpoint["history"]

    monkeypatch.setattr(TrainingState, "load", load)


def loss_that_waits(monkeypatch):
    def loss(*args):
        if modes[-1] == "error":
            raise RuntimeError("called a synchronizing CUDA operation")
        return true_loss(*args)

    modes = ["default"]
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    monkeypatch.setattr("unet_utils.training.segmentation_loss", loss)


def slow_reading(monkeypatch):
    def batches(*args):
        for batch in true(*args):
            time.sleep(0.5)
            yield batch

    true = Frames.batches
    monkeypatch.setattr(Frames, "batches", batches)


def memory_that_stays_in_use(monkeypatch):
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 2**31)


def memory_that_never_ends(monkeypatch):
    monkeypatch.setattr(check_sections, "fit", lambda *_, **__: [{"loss": 1.0}])


def loss_read_in_each_step(monkeypatch):
    def loss(*args):
        both = true_loss(*args)
        assert math.isfinite(both[0].item())
        return both

    monkeypatch.setattr("unet_utils.training.segmentation_loss", loss)


def loss_that_is_no_number(monkeypatch):
    def loss(*args):
        return tuple(math.nan * value for value in true_loss(*args))

    monkeypatch.setattr("unet_utils.training.segmentation_loss", loss)


def other_weights_on_the_device(monkeypatch):
    def load(path, device):
        trained = true(path, device)
        if not seen:
            trained.model.shift_logits(torch.randn(19))
        seen.append(1)
        return trained

    seen = []
    true = check_sections.load_trained
    monkeypatch.setattr(check_sections, "load_trained", load)


def large_photos_of_another_size(monkeypatch):
    monkeypatch.setattr(check_sections, "segment", lambda *_: np.zeros((30, 40), dtype=np.uint8))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "kind", "inject", "sentence"),
    [
        (1, Job, autocast_without_effect, "computes in float32"),
        (1, Job, wrong_convolution, "float32 is off by"),
        (2, Job, wrong_labels, "at most 4 pixels off"),
        (3, Job, other_loss_in_float16, "% from float32"),
        (3, Job, infinite_gradients_taken, "gradients that are infinite"),
        (3, Job, weights_that_are_not_resumed, "moves between precisions"),
        (4, Job, loss_read_in_each_step, "5 values read back in five steps"),
        (4, PretendedGpu, loss_that_waits, "a synchronizing CUDA operation"),
        (5, Job, loss_that_is_no_number, "FloatingPointError: the loss is nan"),
        (5, AnyGpu, slow_reading, "times the same steps on one fixed batch"),
        (6, Job, loss_that_is_no_number, "FloatingPointError: the loss is nan"),
        (6, PretendedGpu, memory_that_stays_in_use, "2.00 GB are in use after it"),
        (6, PretendedGpu, memory_that_never_ends, "a batch of 2000 photos fits"),
        (7, Job, other_weights_on_the_device, "mIoU in float32"),
        (7, Job, large_photos_of_another_size, "megapixels"),
    ],
)
def test_a_fault_makes_its_row_not_ok(check, gpu, monkeypatch, number, kind, inject, sentence):
    inject(monkeypatch)
    row = check(number, kind)
    assert row.state == "not ok"
    assert any(figure.startswith("**") and sentence in figure for figure in row.figures)


def hang(job):
    job.say("began")
    time.sleep(1000)


def crash(job):
    os._exit(7)


def work(job):
    print("not seen")
    job.say("fine")


@pytest.mark.slow
def test_what_hangs_or_crashes_does_not_stop_the_others(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(
        self_check,
        "SECTIONS",
        {
            1: Section("crashes", crash, 60),
            2: Section("hangs", hang, 3),
            3: Section("works", work, 60),
            4: Section("is not asked for", work, 60),
        },
    )
    written = []
    write = self_check._write
    monkeypatch.setattr(self_check, "_write", lambda *a: written.append(len(a)) or write(*a))
    rows = self_check.self_check(CPU, tmp_path, numbers=[1, 2, 3])
    assert [row.state for row in rows] == ["not ok", "not ok", "ok", "skipped"]
    assert [row.figures for row in rows] == [
        ["**the process ended with exit code 7**"],
        ["began", "**not done after 3 s**"],
        ["fine"],
        [],
    ]
    assert len(written) == 3  # after every section
    saved = json.loads((tmp_path / "check-123.json").read_text())
    assert [row["state"] for row in saved["rows"]] == [row.state for row in rows]
    assert saved["made_by"]["torch"] == torch.__version__
    table = (tmp_path / "check-123.md").read_text()
    out, err = capfd.readouterr()
    assert table in out
    assert "| 3 | works | ok |" in table
    assert "not seen" not in out + err


@pytest.mark.parametrize(("state", "code"), [("ok", None), ("skipped", None), ("not ok", 1)])
def test_the_command_ends_with_1_if_a_row_is_not_ok(monkeypatch, tmp_path, state, code):
    asked = []

    def do(device, results, root, numbers):
        asked.append((root, list(numbers)))
        return [Row(1, "one", "ok"), Row(2, "two", state)]

    monkeypatch.setattr("unet_utils.__main__.self_check", do)
    monkeypatch.setenv("UNET_UTILS_DATA", str(tmp_path))
    monkeypatch.setenv("UNET_UTILS_RESULTS", str(tmp_path))
    if code:
        with pytest.raises(SystemExit) as ended:
            main(["check", "--sections", "1", "2"])
        assert ended.value.code == code
    else:
        main(["check", "--sections", "1", "2"])
    assert asked == [(None, [1, 2])]


def test_all_sections_end_in_15_minutes_and_each_half_in_10():
    limits = {number: section.seconds for number, section in SECTIONS.items()}
    assert sum(limits.values()) <= 15 * 60
    assert sum(limits[number] for number in (1, 2, 3, 7)) <= 10 * 60
    assert sum(limits[number] for number in (4, 5, 6)) <= 10 * 60
