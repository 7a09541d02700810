import csv
import json
import sys
import types

import numpy as np
import pytest
import torch

from unet_utils import ConfusionMatrix, bootstrap_mean_iou, get_scheme
from unet_utils.use.reports import (
    class_table,
    merge_categories,
    rank_frames,
    save_scores,
    score_report,
    score_table,
)
from unet_utils.use.tensorboard import TensorBoardLog

SCHEME = get_scheme("cityscapes19")


def matrix_of(pred, target, classes=19) -> ConfusionMatrix:
    matrix = ConfusionMatrix(classes)
    matrix.update(np.array(pred, dtype=int), np.array(target, dtype=int))
    return matrix


def strict_json(path) -> dict:
    def refuse(text):
        raise AssertionError(f"{text} is not JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def test_saved_scores_and_tables_say_what_the_matrix_says(tmp_path):
    matrices = [matrix_of([0, 0, 1, 2], [0, 0, 1, 1]), matrix_of([0, 13], [0, 255])]
    report = save_scores(matrices, SCHEME, tmp_path)
    numbers = strict_json(tmp_path / "evaluation.json")
    assert numbers["frames"] == 2
    assert numbers["pixel_accuracy"] == pytest.approx(4 / 5)
    assert numbers["mean_iou"] == pytest.approx((1 + 0.5) / 2)
    assert numbers["iou"]["road"] == 1.0
    assert numbers["iou"]["wall"] is None  # absent, not zero
    text = report.read_text(encoding="utf-8")
    assert "| this model | 0.800 | 0.750 | 0.750 |" in text
    assert "| road | 60.00 | 1.000 | 1.000 | 1.000 |" in text
    assert "| wall | absent | | | |" in text
    assert "published" not in text


def test_saved_scores_are_there_for_programs_too(tmp_path):
    matrices = [matrix_of([0, 0, 1, 2], [0, 0, 1, 1]), matrix_of([0, 13], [0, 255])]
    save_scores(matrices, SCHEME, tmp_path, (7, 9))
    with open(tmp_path / "evaluation.csv", newline="") as file:
        classes = {row["class"]: row for row in csv.DictReader(file)}
    assert list(classes)[:2] == ["road", "sidewalk"]  # the best first
    assert sorted(classes) == sorted(SCHEME.names)
    assert [float(v) for v in list(classes["sidewalk"].values())[1:]] == [2, 0.4, 1, 0.5, 0.5]
    assert list(classes["car"].values()) == [
        "car",
        "0",
        "0.0",
        "",
        "",
        "",
    ]  # absent, although predicted on void
    assert list(classes["building"].values()) == [
        "building",
        "0",
        "0.0",
        "",
        "",
        "",
    ]  # absent, although predicted
    with open(tmp_path / "evaluation_frames.csv", newline="") as file:
        frames = list(csv.DictReader(file))
    assert [(row["frame"], float(row["mean_iou"])) for row in frames] == [("7", 0.75), ("9", 1)]
    low, high = strict_json(tmp_path / "evaluation.json")["mean_iou_95"]
    assert (low, high) == bootstrap_mean_iou(matrices)


def test_frames_without_a_known_pixel_are_null_and_not_ranked(tmp_path):
    void = matrix_of([0, 1], [255, 255])
    matrices = [matrix_of([0, 1], [0, 0]), void, matrix_of([0], [0]), void, matrix_of([1], [0])]
    assert rank_frames(matrices) == [2, 0, 4]
    assert rank_frames([void]) == []
    save_scores(matrices, SCHEME, tmp_path)
    numbers = strict_json(tmp_path / "evaluation.json")
    assert numbers["mean_iou"] == pytest.approx(0.5)
    with open(tmp_path / "evaluation_frames.csv", newline="") as file:
        assert [row["mean_iou"] for row in csv.DictReader(file)] == ["0.5", "", "1.0", "", "0.0"]


@pytest.mark.filterwarnings("ignore:All-NaN")
def test_a_set_without_a_known_pixel_has_dashes_and_nulls(tmp_path):
    report = save_scores([matrix_of([0, 1], [255, 255])], SCHEME, tmp_path)
    numbers = strict_json(tmp_path / "evaluation.json")
    assert numbers["mean_iou"] is None
    assert numbers["mean_iou_95"] == [None, None]
    text = report.read_text(encoding="utf-8")
    assert "| this model | – | – | – |" in text
    assert "| pure chance | – | – | – |" in text
    assert "nan" not in text.lower().replace("guessing", "")


def test_published_scores_only_where_they_compare():
    matrix = matrix_of([0, 1, 13], [0, 1, 13])
    text = score_report(matrix, SCHEME, published=True)
    assert "| pix2pix L1 UNet, published | 0.860 | 0.420 | 0.350 |" in text
    assert "published | 0.907 | – | 0.511 |" in text
    assert "published | 0.915 | – | 0.687 |" in text
    assert "squeezed to 256x256 pixels" in text
    assert "published" not in score_report(matrix, SCHEME)
    seven = score_report(matrix_of([0], [0], 7), get_scheme("categories7"), published=True)
    assert "pix2pix" not in seven
    assert "| 0.907 | – | 0.511 |" in seven
    for name in ("cityscapes30",):
        other = score_report(matrix_of([0], [0], 30), get_scheme(name), published=True)
        assert "pix2pix" not in other
        assert "Seven" not in other


def test_nineteen_classes_merge_to_seven_categories():
    rng = np.random.default_rng(0)
    truth, pred = rng.integers(0, 19, (2, 5000))
    categories = get_scheme("categories7")
    ids = np.array([SCHEME.lookup.index(index) for index in range(19)])
    expected = matrix_of(categories.encode(ids[pred]), categories.encode(ids[truth]), 7)
    assert torch.equal(merge_categories(matrix_of(pred, truth), SCHEME).matrix, expected.matrix)


def test_a_class_never_predicted_is_not_a_division_by_zero():
    table = class_table(matrix_of([0, 0], [0, 1]), SCHEME)
    assert "| sidewalk | 50.00 | never predicted | 0.000 | 0.000 |" in table


def test_score_table_is_markdown():
    rows = {
        "mine": {"pixel_accuracy": 0.5, "class_accuracy": 0.25, "mean_iou": 0.125},
        "other": {"mean_iou": np.nan},
    }
    assert score_table(rows).splitlines()[-2:] == [
        "| mine | 0.500 | 0.250 | 0.125 |",
        "| other | – | – | – |",
    ]


class FakeWriter:
    """Writes what torch's SummaryWriter is given into an event file of its own, as that does."""

    number = 0

    def __init__(self, folder):
        FakeWriter.number += 1
        self.file = open(f"{folder}/events.out.tfevents.{FakeWriter.number}", "w")  # noqa: SIM115

    def add_scalar(self, name, value, step):
        print(step, name, value, file=self.file)

    def flush(self):
        self.file.flush()


@pytest.fixture
def tensorboard(monkeypatch):
    monkeypatch.setitem(
        sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=FakeWriter)
    )


def events(folder) -> list[str]:
    return "".join(path.read_text() for path in folder.glob("events*")).splitlines()


def test_events_are_written_once_per_epoch_also_after_an_interruption(tensorboard, tmp_path):
    history = [{"epoch": 1, "loss": 2.0, "mean_iou": float("nan")}]
    log = TensorBoardLog(tmp_path)
    log(history, None)
    log([*history, {"epoch": 2, "loss": 1.5, "mean_iou": 0.1}], None)
    history.append(
        {"epoch": 2, "loss": 1.0, "mean_iou": 0.3}
    )  # interrupted before it was saved, and done again
    log = TensorBoardLog(tmp_path)
    log(history, None)
    log([*history, {"epoch": 3, "loss": 0.5}], None)
    assert events(tmp_path) == ["1 loss 2.0", "2 loss 1.0", "2 mean_iou 0.3", "3 loss 0.5"]


def test_without_tensorboard_or_disk_training_goes_on(tensorboard, tmp_path, monkeypatch, capsys):
    TensorBoardLog(tmp_path / "gone")([{"epoch": 1, "loss": 2.0}], None)
    assert "no more TensorBoard events" in capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    TensorBoardLog(tmp_path)([{"epoch": 1, "loss": 2.0}], None)
    assert events(tmp_path) == []
    assert capsys.readouterr().out == ""


def test_real_tensorboard_reads_the_events(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    TensorBoardLog(tmp_path)([{"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": 1.0}], None)
    found = EventAccumulator(str(tmp_path)).Reload().Scalars("loss")
    assert [(event.step, event.value) for event in found] == [(1, 2.0), (2, 1.0)]
