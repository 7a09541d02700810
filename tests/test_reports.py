import csv
import errno
import json
import os
from pathlib import Path

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
    assert "| wall | absent |  |  |  |" in text
    assert "published" not in text


def test_saved_scores_are_there_for_programs_too(tmp_path):
    matrices = [matrix_of([0, 0, 1, 2], [0, 0, 1, 1]), matrix_of([0, 13], [0, 255])]
    save_scores(matrices, SCHEME, tmp_path, (7, 9))
    with open(tmp_path / "evaluation.csv", newline="") as file:
        classes = {row["class"]: row for row in csv.DictReader(file)}
    assert list(classes)[:2] == ["road", "sidewalk"]  # the best first
    assert sorted(classes) == sorted(SCHEME.names)
    assert [float(v) for v in list(classes["sidewalk"].values())[1:]] == [2, 0.4, 1, 0.5, 0.5]
    for name in ("car", "building"):  # absent, although predicted; the car on void
        assert list(classes[name].values()) == [name, "0", "0.0", "", "", ""]
    with open(tmp_path / "evaluation_frames.csv", newline="") as file:
        frames = list(csv.DictReader(file))
    assert [(row["frame"], float(row["mean_iou"])) for row in frames] == [("7", 0.75), ("9", 1)]
    low, high = strict_json(tmp_path / "evaluation.json")["mean_iou_95"]
    assert (low, high) == bootstrap_mean_iou(matrices)


def test_frames_are_ranked_by_what_the_eye_sees():
    """A frame with one wrong pixel in a rare class has a low mIoU, and looks right."""
    nearly_right = matrix_of([0] * 99 + [0], [0] * 99 + [13])
    half_wrong = matrix_of([0] * 50 + [1] * 50, [0] * 100)
    assert nearly_right.mean_iou < half_wrong.mean_iou
    assert rank_frames([half_wrong, nearly_right]) == [1, 0]


def test_frames_without_a_labelled_pixel_are_null_and_not_ranked(tmp_path):
    void = matrix_of([0, 1], [255, 255])
    matrices = [matrix_of([0, 1], [0, 0]), void, matrix_of([0], [0]), void, matrix_of([1], [0])]
    assert rank_frames(matrices) == [2, 0, 4]
    assert rank_frames([void]) == []
    save_scores(matrices, SCHEME, tmp_path)
    numbers = strict_json(tmp_path / "evaluation.json")
    assert numbers["mean_iou"] == pytest.approx(0.5)
    with open(tmp_path / "evaluation_frames.csv", newline="") as file:
        assert [row["mean_iou"] for row in csv.DictReader(file)] == ["0.5", "", "1.0", "", "0.0"]


def test_a_table_that_is_open_elsewhere_takes_no_score_with_it(tmp_path, monkeypatch, capsys):
    replace = os.replace

    def refuse(source, target):
        if Path(target).suffix == ".csv":  # as on Windows, where Excel shows it
            raise PermissionError(errno.EACCES, "used by another process", str(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    report = save_scores([matrix_of([0, 1], [0, 0])], SCHEME, tmp_path)
    assert "this model" in report.read_text(encoding="utf-8")
    assert strict_json(tmp_path / "evaluation.json")["mean_iou"] == pytest.approx(0.5)
    assert capsys.readouterr().out.count("could not be replaced") == 2


@pytest.mark.filterwarnings("ignore:All-NaN")
def test_a_set_without_a_labelled_pixel_has_dashes_and_nulls(tmp_path):
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
    assert "Seven" not in score_report(matrix, SCHEME)
    seven = score_report(matrix_of([0], [0], 7), get_scheme("categories7"), published=True)
    assert "pix2pix" not in seven
    assert "| 0.907 | – | 0.511 |" in seven
    other = score_report(matrix_of([0], [0], 30), get_scheme("cityscapes30"), published=True)
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
