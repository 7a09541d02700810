import numpy as np
import pytest
import torch
from scipy import ndimage

from unet_utils import IGNORE, ConfusionMatrix
from unet_utils.use.error_analysis import (
    connected_regions,
    entropy,
    error_map,
    most_confused,
    near_borders,
    region_recall,
)


def spiral(side: int) -> np.ndarray:
    """One winding line, a pixel wide: the worst case for simple ways of joining regions."""
    picture = np.zeros((side, side), dtype=np.uint8)
    row, column, step = 0, 0, (0, 1)
    picture[0, 0] = 1
    while True:
        for _ in range(2):
            ahead = [(row + k * step[0], column + k * step[1]) for k in (1, 2)]
            inside = [0 <= r < side and 0 <= c < side for r, c in ahead]
            if inside[0] and not picture[ahead[0]] and not (inside[1] and picture[ahead[1]]):
                row, column = ahead[0]
                picture[row, column] = 1
                break
            step = (step[1], -step[0])
        else:
            return picture


def pictures():
    rng = np.random.default_rng(0)
    yield "noise of two classes", rng.integers(0, 2, (3, 40, 50), dtype=np.uint8)
    yield "noise of five", rng.integers(0, 5, (2, 33, 17), dtype=np.uint8)
    yield "patches", rng.integers(0, 3, (2, 8, 8), dtype=np.uint8).repeat(5, 1).repeat(7, 2)
    yield "spiral", spiral(61)[None]
    yield "comb", np.tile(np.arange(30, dtype=np.uint8) % 2, (1, 20, 1))
    yield "one region", np.full((1, 9, 9), IGNORE, dtype=np.uint8)
    yield "one pixel", np.zeros((1, 1, 1), dtype=np.uint8)


@pytest.mark.parametrize(("name", "classes"), list(pictures()))
def test_regions_are_those_of_scipy(name, classes):
    regions = connected_regions(classes)
    assert (np.unique(regions) == np.arange(regions.max() + 1)).all()
    expected, count = np.zeros(classes.shape, dtype=np.int64), 0
    for frame, true in zip(expected, classes, strict=True):
        for index in np.unique(true):
            labels, found = ndimage.label(true == index)
            frame[labels > 0] = labels[labels > 0] + count
            count += found
    assert regions.max() + 1 == count
    # The same partition, whatever the numbers: each of ours meets exactly one of theirs.
    assert len(np.unique(np.stack([regions.ravel(), expected.ravel()]), axis=1).T) == count


def test_each_region_has_its_own_recall():
    truth = np.full((2, 6, 6), IGNORE, dtype=np.uint8)
    truth[0, 0, :4] = 3  # four pixels, three of them found
    truth[0, 4:, 4:] = 3  # four more that do not touch these, none found
    truth[1, :, 0] = 0  # six pixels of another frame and class, all found
    predicted = np.zeros_like(truth)
    predicted[0, 0, :3] = 3
    predicted[0, 2] = 3  # over void: changes nothing
    for block in (1, 2):
        regions = region_recall(predicted, truth, block)
        assert regions.classes.tolist() == [3, 3, 0]
        assert regions.areas.tolist() == [4, 4, 6]
        assert regions.recall.tolist() == [0.75, 0, 1]


def test_regions_add_up_to_the_recall_of_the_confusion_matrix():
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 4, (3, 32, 32), dtype=np.uint8)
    truth[truth == 3] = IGNORE
    predicted = np.where(rng.random(truth.shape) < 0.6, truth, 1).clip(0, 2).astype(np.uint8)
    matrix = ConfusionMatrix(3)
    matrix.update(predicted, truth)
    regions = region_recall(predicted, truth)
    found = np.bincount(regions.classes, weights=regions.areas * regions.recall)
    assert found / np.bincount(regions.classes, weights=regions.areas) == pytest.approx(
        matrix.recall.numpy()
    )


def test_the_most_confused_pairs_are_ranked_by_their_share_of_the_true_class():
    matrix = ConfusionMatrix(4)  # the last class is absent from the truth
    matrix.matrix = torch.tensor([[800, 150, 50, 0], [1, 8, 1, 0], [0, 3, 1, 0], [0, 0, 0, 0]])
    pairs = most_confused(matrix)
    assert [(p.truth, p.predicted, p.pixels) for p in pairs] == [
        (2, 1, 3),
        (0, 1, 150),
        (1, 0, 1),
        (1, 2, 1),
        (0, 2, 50),
    ]
    assert [p.share for p in pairs] == pytest.approx([0.75, 0.15, 0.1, 0.1, 0.05])
    assert most_confused(matrix, 2) == pairs[:2]


def test_the_error_map_is_the_share_of_wrong_pixels_that_are_not_void():
    truth = np.zeros((2, 16, 24), dtype=np.uint8)
    predicted = truth.copy()
    predicted[0, :8, 8:16] = 5  # one of two frames is wrong there
    truth[1, :8, 16:] = IGNORE
    predicted[:, 0, 16:] = 5  # one row of eight, of the frame that is not void there
    truth[:, 8:, :8] = IGNORE
    expected = [[0, 0.5, 0.125], [np.nan, 0, 0]]
    np.testing.assert_array_equal(error_map(predicted, truth), expected)


def test_pixels_near_a_border_have_another_class_close_by():
    truth = np.zeros((2, 6, 9), dtype=np.uint8)
    truth[0, :, 6:] = 5
    truth[1, 0, 0] = IGNORE
    near = near_borders(truth, 2)
    assert near[0].any(0).tolist() == near[0].all(0).tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 0]
    assert near[1].nonzero()[0].max() == near[1].nonzero()[1].max() == 2
    assert near[1].sum() == 9


def test_entropy_is_in_bits():
    probabilities = torch.zeros(1, 8, 1, 3)
    probabilities[0, 2, 0, 0] = 1
    probabilities[0, :2, 0, 1] = 0.5
    probabilities[0, :, 0, 2] = 1 / 8
    assert entropy(probabilities)[0, 0].tolist() == pytest.approx([0, 1, 3])
