"""Checks of answers: right, wrong, none."""

import numpy as np
import pytest
import torch

from unet_utils.use.exercises import check


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (0.50004, 0.5),
        (3, 3.0),
        ("road", "road"),
        ([1, 2], np.array([1, 2])),
        (torch.tensor([0.5, 1.0]), [0.5, 1.0]),
        (torch.tensor(0.5, requires_grad=True), 0.5),
        (True, True),
    ],
)
def test_a_right_answer(answer, expected, capsys):
    check(answer, expected, "Count again.")
    assert capsys.readouterr().out == "Right!\n"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (0.51, 0.5),
        (14934, 14935),  # a count
        ("car", "road"),
        ([1, 2, 3], [1, 2]),
        ([1, [2]], 3),
        ("0.5", 0.5),
        (float("nan"), 1.0),
    ],
)
def test_a_wrong_answer_gets_the_hint(answer, expected, capsys):
    check(answer, expected, "Count again.")
    assert capsys.readouterr().out == "Not yet. Count again.\n"


def test_no_answer_is_no_mistake(capsys):
    check(None, 0.5, "Count again.")
    assert capsys.readouterr().out.startswith("No answer yet")
