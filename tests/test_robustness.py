"""Photos that get worse, and the score that falls with them."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from unet_utils.use.robustness import (
    CHANGES,
    MILD,
    STRONG,
    UNCHANGED,
    change_frames,
    change_photo,
    predict_changed,
    robustness,
    robustness_table,
)

EVERY = [(change, severity) for change in CHANGES for severity in (MILD, STRONG)]


@pytest.fixture(scope="module")
def frames(val_frames):
    return val_frames.part(slice(0, 4))


@pytest.fixture(scope="module")
def rows(small_model, frames):
    return robustness(small_model, frames)


def rng():
    return np.random.default_rng(0)


def grey(side=256, value=128):
    return np.full((side, side, 3), value, dtype=np.uint8)


def test_the_score_falls_with_severity(rows):
    assert [row[:2] for row in rows] == [(UNCHANGED, 0), *EVERY]
    best = rows[0]
    for mild, strong in zip(rows[1::2], rows[2::2], strict=True):
        assert best.pixel_accuracy > mild.pixel_accuracy > strong.pixel_accuracy, mild
        assert best.mean_iou > mild.mean_iou > strong.mean_iou, mild


def test_the_table_has_a_line_per_row(rows):
    lines = robustness_table(rows).splitlines()
    assert len(lines) == 2 + len(rows)
    assert lines[2].startswith("| unchanged |  | 0.")
    assert lines[3].startswith("| fog | 1 | 0.")


def test_examples_are_the_first_frame_before_and_after(small_model, frames, rows):
    examples = predict_changed(small_model, frames)
    assert list(examples) == [UNCHANGED, *CHANGES]
    assert (examples[UNCHANGED][0] == frames.photos[0].numpy()).all()
    for change in CHANGES:
        photo, predicted = examples[change]
        expected = change_frames(frames, change, STRONG).photos[0].numpy()
        assert (photo == expected).all()
        assert predicted.shape == (256, 256)
        assert (predicted != examples[UNCHANGED][1]).any()


@pytest.mark.parametrize(("change", "severity"), EVERY)
def test_a_photo_is_always_changed_alike(frames, change, severity):
    changed = change_frames(frames, change, severity)
    assert changed.photos.dtype == torch.uint8
    assert changed.photos.shape == frames.photos.shape
    assert changed.label_ids is frames.label_ids
    assert (changed.photos != frames.photos).any()
    alone = change_frames(frames.part(slice(2, 3)), change, severity)
    assert torch.equal(alone.photos[0], changed.photos[2])


@pytest.mark.parametrize("change", ["fog", "noise"])
def test_each_frame_has_its_own_noise_and_fog(frames, change):
    twice = replace(frames.part(slice(0, 2)), photos=frames.photos[:1].repeat(2, 1, 1, 1))
    first, second = change_frames(twice, change, MILD).photos
    assert not torch.equal(first, second)


@pytest.mark.parametrize(("severity", "deviation"), [(MILD, 0.08), (STRONG, 0.18)])
def test_noise_has_the_published_deviation(severity, deviation):
    noise = change_photo(grey(), "noise", severity, rng()) / 255 - 128 / 255
    assert noise.std() == pytest.approx(deviation, rel=0.03)
    assert abs(noise.mean()) < 0.002


@pytest.mark.parametrize(("severity", "quality"), [(MILD, 25), (STRONG, 15)])
def test_jpeg_has_the_published_quality(frames, severity, quality):
    photo = frames.photos[0].numpy()
    file = io.BytesIO()
    Image.fromarray(photo).save(file, "JPEG", quality=quality)
    expected = np.asarray(Image.open(file))
    assert (change_photo(photo, "JPEG", severity, rng()) == expected).all()


@pytest.mark.parametrize(("side", "radius"), [(224, 6), (256, 6 * 256 / 224), (448, 12)])
def test_a_point_becomes_a_disk_that_grows_with_the_photo(side, radius):
    photo = np.zeros((side, side, 3), dtype=np.uint8)
    photo[100:103, 100:103] = 255  # a small square: a single point would be too faint to measure
    blurred = change_photo(photo, "blur", STRONG, rng())
    rows, columns = np.nonzero(blurred[..., 0])
    # From the middle of the square: the radius, a pixel of the square, a pixel of the soft edge.
    assert (rows - 101).max() == pytest.approx(radius + 2, abs=1)
    assert (rows - 101).max() == (101 - rows).max() == (columns - 101).max()
    assert int(blurred.sum()) == pytest.approx(int(photo.sum()), rel=0.1)
    assert (change_photo(grey(), "blur", STRONG, rng()) == grey()).all()


def test_night_is_a_gain_and_a_gamma():
    night = change_photo(grey(), "night", STRONG, rng())
    assert (night == round(255 * 0.3 * (128 / 255) ** 2)).all()
    assert change_photo(grey(value=255), "night", MILD, rng())[0, 0, 0] == 128


def test_fog_lightens_the_dark_and_takes_contrast():
    photo = grey(value=0)
    photo[:, ::2] = 255
    fog = change_photo(photo, "fog", STRONG, rng()).astype(int)
    # x * max / (max + 2.5): black and white are 255 / 3.5 apart wherever the fog is.
    assert np.abs(fog[:, 1::2] - fog[:, ::2]).mean() == pytest.approx(255 / 3.5, rel=0.1)
    assert fog[:, 1::2].mean() > 40
    clouds = fog[:, 1::2, 0]
    assert clouds.max() - clouds.min() > 100
    # They are clouds, not noise: neighbours are alike.
    assert np.abs(np.diff(clouds, axis=0)).mean() < 5


def test_photos_of_any_size_can_be_changed():
    photo = np.zeros((48, 100, 3), dtype=np.uint8)
    for change, severity in EVERY:
        assert change_photo(photo, change, severity, rng()).shape == photo.shape


@pytest.mark.parametrize(("change", "severity"), [("rain", MILD), ("fog", 2)])
def test_unknown_changes_are_named(change, severity):
    with pytest.raises(ValueError, match=f"no change '{change}' of severity {severity}.*fog"):
        change_photo(grey(), change, severity, rng())
