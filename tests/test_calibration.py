"""How sure a model is, how sure it may be, and the temperature that is kept with it."""

import shutil

import pytest
import torch

from unet_utils import Frames, UNet, fit, get_scheme, load_trained, predict, recipe
from unet_utils.checkpoints import read_checkpoint
from unet_utils.evaluation import SMALL_MODEL, Trained, predict_classes
from unet_utils.run_files import LockedError, RunFiles
from unet_utils.use import calibration
from unet_utils.use.calibration import (
    PixelSample,
    best_temperature,
    calibration_curve,
    calibration_curves,
    fit_temperature,
    sample_pixels,
)

SETTINGS = {"epochs": 2, "image_size": 64, "base_channels": 4, "batch_size": 4}


@pytest.fixture(scope="module")
def trained_run(frames, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    fit(frames, recipe("demo", **SETTINGS), folder, "cpu", progress=False)
    return folder


@pytest.fixture
def run(trained_run, tmp_path):
    return shutil.copytree(trained_run, tmp_path / "run")


@pytest.fixture(scope="module")
def too_sure():
    """A model that believes in twice the logits by which its truth was drawn."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(50_000, 5, generator=generator)
    truth = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    return PixelSample((2 * logits).log_softmax(1), truth)


def test_the_temperature_is_found_again(too_sure):
    assert best_temperature(too_sure) == pytest.approx(2, rel=0.03)


def test_the_temperature_mends_the_curve(too_sure):
    before = calibration_curve(too_sure)
    after = calibration_curve(too_sure, 2.0)
    assert before.error > 0.1
    assert after.error < 0.01
    low = before.share > 0.01
    assert (before.accuracy < before.confidence)[low].all()


def test_a_curve_counted_by_hand():
    probabilities = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.05, 0.95]])
    curve = calibration_curve(PixelSample(probabilities.log(), torch.tensor([0, 1, 1, 1])))
    # 15 bins: 0.6 is in number 9, 0.9 in number 13, 0.95 in number 14.
    assert curve.share[[9, 13, 14]].tolist() == [0.25, 0.5, 0.25]
    assert curve.confidence[[9, 13, 14]].tolist() == pytest.approx([0.6, 0.9, 0.95])
    assert curve.accuracy[[9, 13, 14]].tolist() == [1, 0.5, 1]
    assert curve.error == pytest.approx(0.25 * 0.4 + 0.5 * 0.4 + 0.25 * 0.05)
    assert curve.confidence[0].isnan()


def test_the_pixels_are_labelled_ones_of_all_frames(frames, run, monkeypatch):
    trained = load_trained(run / "best.pt", "cpu")
    part = frames.part(slice(0, 3))
    photos, truth = part.batch(slice(0, 3))
    labelled = truth != 255
    everything = sample_pixels(trained, part)  # fewer than MOST_PIXELS
    assert torch.equal(everything.truth, truth[labelled].long())
    probabilities = predict(trained.model, photos, trained.scene_size)
    expected = probabilities.movedim(1, 3)[labelled].log()
    assert torch.allclose(everything.log_probabilities, expected, atol=1e-3)
    monkeypatch.setattr(calibration, "MOST_PIXELS", 3000)
    few = sample_pixels(trained, part)
    assert len(few.truth) == pytest.approx(3000, rel=0.1)
    shares = torch.bincount(few.truth, minlength=19) / len(few.truth)
    assert torch.allclose(shares, part.class_counts() / labelled.sum(), atol=0.03)


def test_no_labelled_pixel_is_an_error(frames, run):
    void = torch.zeros_like(frames.label_ids[:2])
    nothing = Frames(frames.photos[:2], void, frames.scheme, (1, 2))
    with pytest.raises(ValueError, match="labelled pixels"):
        sample_pixels(load_trained(run / "best.pt", "cpu"), nothing)


def test_it_is_fitted_on_held_out_frames_and_kept_with_the_model(frames, run, monkeypatch):
    seen = []

    def spy(trained, held_out):
        seen.extend(held_out.numbers)
        return sample_pixels(trained, held_out)

    monkeypatch.setattr(calibration, "sample_pixels", spy)
    before = load_trained(run / "best.pt", "cpu")
    assert before.temperature is None
    temperature = fit_temperature(run / "best.pt", frames, "cpu")
    assert tuple(seen) == frames.split(True)[1].numbers
    after = load_trained(run / "best.pt", "cpu")
    assert after.temperature == temperature
    assert after.made_by == before.made_by
    assert torch.equal(after.model.head.weight, before.model.head.weight)
    pixels = sample_pixels(before, frames.split(True)[1])
    losses = []
    for factor in (0.9, 1, 1.1):
        logits = pixels.log_probabilities / (factor * temperature)
        losses.append(torch.nn.functional.cross_entropy(logits, pixels.truth).item())
    assert losses[1] < min(losses[0], losses[2])


def test_a_run_that_is_resumed_keeps_it(frames, run):
    temperature = fit_temperature(run / "best.pt", frames, "cpu")
    fit(frames, recipe("demo", **SETTINGS), run, "cpu", progress=False)
    assert load_trained(run / "best.pt", "cpu").temperature == temperature


def test_frames_that_it_learned_from_are_refused(frames, val_frames, run):
    content = (run / "best.pt").read_bytes()
    learned = frames.split(True)[0]
    for wrong in (learned, val_frames, frames.part(slice(1, None))):
        with pytest.raises(ValueError, match="24 training frames that the run got"):
            fit_temperature(run / "best.pt", wrong, "cpu")
    assert (run / "best.pt").read_bytes() == content


def test_a_run_that_held_nothing_out_has_none(frames, tmp_path, capsys):
    settings = recipe("demo", **SETTINGS | {"epochs": 1, "hold_out": False})
    fit(frames, settings, tmp_path, "cpu", progress=False)
    assert fit_temperature(tmp_path / "best.pt", frames, "cpu") is None
    assert "has no temperature: its training held no frames out" in capsys.readouterr().out
    assert "temperature" not in read_checkpoint(tmp_path / "best.pt")


def test_the_checkpoint_is_read_once(frames, run, monkeypatch):
    """Its settings are a small part of it."""
    whole = []
    load = torch.load

    def count(path, mmap, **options):
        whole.append(not mmap)
        return load(path, mmap=mmap, **options)

    monkeypatch.setattr(torch, "load", count)
    assert fit_temperature(run / "best.pt", frames, "cpu", run)
    assert whole.count(True) == 1


def test_the_small_model_held_nothing_out(frames):
    assert fit_temperature(SMALL_MODEL, frames, "cpu") is None


def test_a_run_in_training_is_left_alone(frames, run):
    with RunFiles(run), pytest.raises(LockedError):
        fit_temperature(run / "best.pt", frames, "cpu")


def test_a_disk_that_is_full_leaves_the_model_as_it_was(frames, run, monkeypatch):
    content = (run / "best.pt").read_bytes()

    def full(path, content):
        path.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(calibration.Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        fit_temperature(run / "best.pt", frames, "cpu")
    assert (run / "best.pt").read_bytes() == content


def test_the_copy_on_drive_gets_it_if_it_is_the_same_model(frames, run, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "backup")
    temperature = fit_temperature(run / "best.pt", frames, "cpu", copy)
    assert load_trained(copy / "best.pt", "cpu").temperature == temperature
    other = read_checkpoint(copy / "best.pt")
    torch.save(other | {"made_by": other["made_by"] | {"weights": "other"}}, copy / "best.pt")
    content = (copy / "best.pt").read_bytes()
    fit_temperature(run / "best.pt", frames, "cpu", copy)
    assert (copy / "best.pt").read_bytes() == content
    shutil.rmtree(copy)
    assert fit_temperature(run / "best.pt", frames, "cpu", copy)
    assert "it is safe in" in capsys.readouterr().out


def test_probabilities_are_divided_by_it_and_classes_are_not_changed(val_frames):
    torch.manual_seed(0)
    model = UNet(3, 19, 4).eval()
    torch.nn.init.normal_(model.head.weight)
    photos, _ = val_frames.batch(slice(0, 2))
    plain = predict(model, photos, 64)
    soft = predict(model, photos, 64, temperature=2.0)
    assert torch.allclose(soft, (plain.clamp(min=1e-30).log() / 2).softmax(1), atol=1e-4)
    same = soft.argmax(1) == predict_classes(model, photos, 64)
    assert same.float().mean() > 0.999


def test_there_is_one_curve_without_a_temperature_and_two_with_it(val_frames, capsys):
    torch.manual_seed(0)
    model = UNet(3, 19, 4).eval()
    torch.nn.init.normal_(model.head.weight)
    scheme = get_scheme("cityscapes19")
    curves = calibration_curves(Trained(model, scheme, (64, 64), {}, [], {}), val_frames)
    assert list(curves) == ["as trained"]
    assert "has no temperature" in capsys.readouterr().out
    curves = calibration_curves(Trained(model, scheme, (64, 64), {}, [], {}, "", 3.0), val_frames)
    assert list(curves) == ["as trained", "temperature 3.00"]
    sure = [(curve.share * curve.confidence).nansum() for curve in curves.values()]
    assert sure[1] < 0.8 * sure[0]
