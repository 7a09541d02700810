"""What a trained model sees without its skip connections."""

import pytest
import torch
from scipy import ndimage

from unet_utils import ConfusionMatrix, UNet
from unet_utils.evaluation import collect_predictions
from unet_utils.model import OtherNetwork
from unet_utils.use.skips import without_skips


@pytest.fixture(scope="module")
def predictions(small_model, val_frames):
    """Of six drawn streets: the truth, and the classes seen without 0, 1, 2, ... skips."""
    found = []
    for levels in range(len(small_model.model.up) + 1):
        with without_skips(small_model.model, levels) as model:
            predicted, truth = collect_predictions(model, val_frames, small_model.scene_size)
        found.append(predicted)
    return truth, found


def test_each_skip_that_goes_lowers_the_score(predictions):
    truth, found = predictions
    scores = []
    for predicted in found:
        matrix = ConfusionMatrix(19)
        matrix.update(predicted, truth)
        scores.append(matrix.mean_iou)
    assert scores == sorted(scores, reverse=True), scores
    assert scores[1] < scores[0] - 0.005
    assert scores[-1] < scores[0] / 3


def test_the_outlines_go_first(predictions):
    """What the finest skip gave lies near the borders of things, what all of them gave is
    everywhere."""
    truth, found = predictions
    largest = ndimage.maximum_filter(truth, (1, 7, 7))
    near_a_border = largest != ndimage.minimum_filter(truth, (1, 7, 7))
    changed = [(predicted != found[0]) for predicted in found]
    shares = [near_a_border[where].mean() for where in (changed[1], changed[-1])]
    assert shares[0] > 2 * near_a_border.mean()
    assert shares[1] < 1.2 * near_a_border.mean()


@pytest.fixture
def untrained():
    torch.manual_seed(0)
    return UNet(3, 5, 4).eval()


def test_the_model_is_as_before_afterwards_also_after_an_error(untrained):
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = untrained(x)
        with without_skips(untrained, 4):
            assert not torch.equal(untrained(x), before)
        with pytest.raises(KeyboardInterrupt), without_skips(untrained, 4):
            raise KeyboardInterrupt
        with without_skips(untrained, 0):
            assert torch.equal(untrained(x), before)
        assert torch.equal(untrained(x), before)


def test_only_the_finest_skips_are_averaged(untrained):
    seen = []
    for up in untrained.up:
        up.convolve.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad(), without_skips(untrained, 2):
        untrained(torch.randn(1, 3, 64, 64))
    constant = []
    for up, joined in zip(untrained.up, seen, strict=True):
        skip = joined[:, : -up.upsample.out_channels]
        constant.append(bool((skip == skip[:, :, :1, :1]).all()))
    assert constant == [False, False, True, True]


@pytest.mark.parametrize("levels", [-1, 5])
def test_a_network_has_only_so_many_skips(untrained, levels):
    with pytest.raises(ValueError, match="has 4 skips"), without_skips(untrained, levels):
        pass


def test_the_skips_of_other_networks_are_not_known():
    other = OtherNetwork(torch.nn.Identity(), 3)
    with pytest.raises(ValueError, match="OtherNetwork"), without_skips(other, 1):
        pass
