import csv
import json

import numpy as np
import pytest
import torch

from unet_utils import (
    ConfusionMatrix,
    UNet,
    bootstrap_mean_iou,
    evaluate,
    get_scheme,
    predict,
)
from unet_utils.evaluation import SMALL_MODEL, load_trained, predict_classes
from unet_utils.images import enlarge_classes, photo_size


@pytest.fixture(scope="module")
def frames(val_frames):
    return val_frames


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = UNet(3, 19, 4).eval()
    torch.nn.init.normal_(model.head.weight)  # without training it would find all classes alike
    return model


def test_probabilities_at_the_photos_own_resolution(model, frames):
    photos, _ = frames.batch(slice(0, 2))
    for size in (64, 256):
        probabilities = predict(model, photos, size)
        assert probabilities.shape == (2, 19, 256, 256)
        assert torch.allclose(probabilities.sum(1), torch.ones(2, 256, 256), atol=1e-4)


def test_flip_averaging_is_symmetric(model, frames):
    photos, _ = frames.batch(slice(0, 2))
    straight, mirrored = (
        predict(model, photos, 64, flip=True),
        predict(model, photos.flip(3), 64, flip=True),
    )
    assert torch.allclose(straight, mirrored.flip(3), atol=0.02)  # half precision on some machines
    assert not torch.allclose(straight, predict(model, photos, 64), atol=1e-3)


@pytest.mark.parametrize(
    ("height", "width", "most"), [(50, 70, 2**23), (131, 40, 1), (16, 8, 5000), (9, 300, 5000)]
)
def test_enlarging_in_strips_gives_what_enlarging_at_once_does(height, width, most):
    logits = torch.randn(2, 5, 16, 8, generator=torch.Generator().manual_seed(0))
    at_once = torch.nn.functional.interpolate(
        logits, (height, width), mode="bilinear", align_corners=False
    )
    best = at_once.topk(2, dim=1).values
    clear = best[:, 0] - best[:, 1] > 1e-4  # a tie may go either way
    assert clear.float().mean() > 0.99
    strips = enlarge_classes(logits, height, width, most)
    assert strips.dtype == torch.uint8
    assert (strips == at_once.argmax(1))[clear].all()


def test_the_class_is_the_most_probable_one(model, frames):
    photos, _ = frames.batch(slice(0, 2))
    classes = predict_classes(model, photos, 64, flip=True)
    assert (classes == predict(model, photos, 64, flip=True).argmax(1)).float().mean() > 0.999
    assert len(classes.unique()) > 1


@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_score_does_not_depend_on_the_batches(model, frames, batch_size):
    matrices = evaluate(model, frames, 64, batch_size)
    assert len(matrices) == len(frames)
    total = ConfusionMatrix.total(matrices)
    truth = frames.batch(slice(0, len(frames)))[1]
    assert total.matrix.sum() == (truth != 255).sum()
    assert (total.matrix == ConfusionMatrix.total(evaluate(model, frames, 64, 3)).matrix).all()


def matrix_of(pred, target, classes=19) -> ConfusionMatrix:
    matrix = ConfusionMatrix(classes)
    matrix.update(np.array(pred), np.array(target))
    return matrix


def test_the_interval_holds_the_score_and_narrows_with_more_frames():
    rng = np.random.default_rng(0)

    def frame():
        truth = rng.integers(0, 3, 400)
        return matrix_of(np.where(rng.random(400) < rng.uniform(0.4, 1), truth, 0), truth, 3)

    few, many = [frame() for _ in range(10)], [frame() for _ in range(160)]
    widths = []
    for matrices in (few, many):
        low, high = bootstrap_mean_iou(matrices, rounds=300)
        assert low < ConfusionMatrix.total(matrices).mean_iou < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 2
    assert bootstrap_mean_iou(few, rounds=50) == bootstrap_mean_iou(few, rounds=50)


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [
        (1024, 2048, (256, 256)),
        (1080, 1920, (256, 224)),
        (4000, 3000, (256, 96)),
        (100, 5, (256, 16)),
    ],
)
def test_photos_of_any_aspect_are_squeezed_like_the_pairs(height, width, size):
    assert photo_size(height, width, (256, 256)) == size


def test_the_network_decides_which_sizes_it_takes():
    assert photo_size(1080, 1920, (256, 256), divisor=32) == (256, 224)
    assert photo_size(4000, 3000, (256, 256), divisor=64) == (256, 128)


def test_photos_are_not_squeezed_for_a_network_that_learned_from_whole_frames():
    assert photo_size(1024, 2048, (512, 1024)) == (512, 1024)
    assert photo_size(1080, 1440, (512, 1024)) == (512, 688)


def test_the_small_model_is_small_and_tells_where_it_comes_from():
    assert SMALL_MODEL.stat().st_size <= 16 * 2**20
    trained = load_trained(SMALL_MODEL, "cpu")
    assert trained.scheme == get_scheme("cityscapes19")
    scores = json.loads(SMALL_MODEL.with_name("small-evaluation.json").read_text())
    assert scores["frames"] == 500
    with open(SMALL_MODEL.with_name("small-history.csv")) as file:
        rows = list(csv.DictReader(file))
    # It learned from all training frames: there are no held-out scores to choose by, and the last
    # epoch is kept.
    assert trained.config["hold_out"] is False
    # That of a twin, which held frames out.
    assert 1 < trained.temperature < 1.5
    assert trained.history[-1]["epoch"] == len(rows) == trained.config["epochs"]
    assert float(rows[-1]["loss"]) == pytest.approx(trained.history[-1]["loss"])
