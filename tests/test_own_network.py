"""A network of somebody else, and the weights of the small model for other classes."""

import dataclasses

import numpy as np
import pytest
import torch
from torchvision.models.segmentation import lraspp_mobilenet_v3_large

from unet_utils import ClassScheme, ConfusionMatrix, evaluate, fit, load_trained, recipe
from unet_utils.checkpoints import read_checkpoint
from unet_utils.config import run_settings
from unet_utils.device import FullMemoryError
from unet_utils.evaluation import SMALL_MODEL
from unet_utils.model import other_network
from unet_utils.use.calibration import fit_temperature
from unet_utils.use.compare import compare_runs
from unet_utils.use.export import export_model, open_exported

CONFIG = recipe("demo", image_size=64, batch_size=8, epochs=2, fold=1)


def of_torchvision(classes):
    """Returns a dict with the logits as `out`."""
    return lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=classes)


def of_smp(classes):
    smp = pytest.importorskip("segmentation_models_pytorch")
    return smp.Unet("resnet18", encoder_weights=None, classes=classes)


class Interrupted(Exception):
    pass


def stop(history, model):
    raise Interrupted


@pytest.mark.slow
@pytest.mark.parametrize("network", [of_torchvision, of_smp])
def test_a_network_of_somebody_else_has_all_that_ours_has(frames, tmp_path, network):
    config = dataclasses.replace(CONFIG, encoder_rate=0.5)
    run = {"frames": frames, "config": config, "device": "cpu", "progress": False}
    with pytest.raises(Interrupted):
        fit(folder=tmp_path / "cut", network=network, on_epoch=stop, **run)
    history = fit(folder=tmp_path / "cut", network=network, **run)
    assert [row["epoch"] for row in history] == [1, 2]
    whole = fit(folder=tmp_path / "whole", network=network, **run)
    assert history[1]["loss"] == whole[1]["loss"]
    temperature = fit_temperature(tmp_path / "cut" / "best.pt", frames, "cpu", network=network)
    trained = load_trained(tmp_path / "cut" / "best.pt", "cpu", network=network)
    assert trained.temperature == temperature > 0
    matrix = ConfusionMatrix.total(evaluate(trained.model, frames, trained.scene_size))
    assert matrix.matrix.sum() > 0
    assert "| cut |" in compare_runs(tmp_path).table
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    run_file = open_exported(export_model(trained, tmp_path / "other.onnx"))
    photos, _ = frames.batch(slice(0, 1))
    assert run_file(photos[..., :100]).shape == (1, 256, 100)


def test_without_its_code_the_command_says_what_it_needs(frames, tmp_path):
    class Tiny(torch.nn.Conv2d):
        divisor = 1

    def tiny(classes):
        return Tiny(3, classes, 1)

    run = {"frames": frames, "device": "cpu", "progress": False}
    config = dataclasses.replace(CONFIG, epochs=1)
    fit(folder=tmp_path, network=tiny, config=config, **run)
    with pytest.raises(
        ValueError, match=r"network that is not in this package, .*Tiny: load it in"
    ):
        load_trained(tmp_path / "best.pt", "cpu")
    longer = dataclasses.replace(CONFIG, epochs=2)
    with pytest.raises(ValueError, match="was begun with another network"):
        fit(folder=tmp_path, network=lambda classes: Tiny(3, classes, 3), config=longer, **run)
    with pytest.raises(ValueError, match="was begun with another network"):
        fit(folder=tmp_path, config=longer, **run)


def test_a_network_that_returns_something_else_is_refused(frames, tmp_path):
    def half_size(classes):
        return torch.nn.Conv2d(3, classes, 1, stride=2)

    with pytest.raises(ValueError, match="must return one logit for each class and pixel"):
        fit(frames, CONFIG, tmp_path, "cpu", progress=False, network=half_size)


class Wrapped(torch.nn.Module):
    """As of Hugging Face and of networks with several outputs."""

    divisor = 1

    def __init__(self, classes, wrap):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, classes, 1)
        self.wrap = wrap

    def forward(self, x):
        return self.wrap(self.conv(x))


@pytest.mark.parametrize("wrap", [lambda x: (x, x), lambda x: {"logits": x}])
def test_outputs_that_are_no_tensor_are_refused(wrap):
    network = other_network(lambda classes: Wrapped(classes, wrap), 4)
    with pytest.raises(ValueError, match=r"Wrapped returned no tensor .*a dict with these as .out"):
        network(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="network is a network: give a function"):
        other_network(Wrapped(4, wrap), 4)
    with pytest.raises(ValueError, match=r"network returned <class .*Wrapped'>: it must return an"):
        other_network(lambda classes: Wrapped, 4)


def test_a_size_that_the_network_cannot_take_is_named_before_the_training(frames, tmp_path):
    """Some sizes come late: when the input has grown, or when whole frames are predicted."""

    def plain(classes):
        return torch.nn.Conv2d(3, classes, 1)

    for late in ({"image_size": 96, "growth": 0.9}, {"growth": 0.0, "augmentation": 1.0}):
        config = dataclasses.replace(CONFIG, **late)
        match = r"gets (48x48|80x80) pixels .* multiples of 32 .* fold to 2,"
        with pytest.raises(ValueError, match=match):
            fit(frames, config, tmp_path, "cpu", progress=False, network=plain)


class OneSize(torch.nn.Conv2d):
    divisor = 1

    def forward(self, x):
        if x.shape[2:] != (64, 64):
            raise AssertionError("only 64x64")
        return super().forward(x)


def test_a_network_of_one_size_is_told_its_settings_before_the_training(frames, tmp_path):
    run = {"frames": frames, "folder": tmp_path, "device": "cpu", "progress": False}
    run["network"] = lambda classes: OneSize(3, classes, 1)

    def stop_at_once(*_):
        raise Interrupted

    for late in ({"growth": 0.9, "augmentation": 0.0}, {"growth": 0.0, "augmentation": 1.0}):
        config = dataclasses.replace(CONFIG, epochs=1, **late)
        match = (
            r"OneSize failed .*only 64x64.*set image_size to this size, growth=0 and augmentation=0"
        )
        with pytest.raises(RuntimeError, match=match):
            fit(config=config, on_step=stop_at_once, **run)
    config = dataclasses.replace(CONFIG, epochs=1, growth=0.0, augmentation=0.0)
    assert len(fit(config=config, **run)) == 1


class Greedy(torch.nn.Conv2d):
    divisor = 1

    def forward(self, x):
        if self.training:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().forward(x)


def test_a_full_memory_in_a_network_of_somebody_else_is_told_as_in_ours(frames, tmp_path):
    with pytest.raises(FullMemoryError, match="memory is full: halve batch_size"):
        fit(frames, CONFIG, tmp_path, "cpu", network=lambda n: Greedy(3, n, 1), progress=False)


THREE = {"ground": (7, 8, 9, 22), "building": (11, 12, 13), "rest": (17, 20, 21, 23, 24, 26, 28)}


@pytest.fixture(scope="module")
def three_classes(frames):
    """Twenty drawn photos with three classes of one's own, and four that nobody learns from."""
    lookup = np.full(256, 255)
    for index, ids in enumerate(THREE.values()):
        lookup[list(ids)] = index
    colors = ((128, 64, 128), (70, 70, 70), (0, 130, 0))
    scheme = ClassScheme("own", tuple(THREE), colors, tuple(lookup.tolist()))
    own = dataclasses.replace(frames, scheme=scheme, licence="")
    return own.part(slice(0, 20)), own.part(slice(20, None))


def mean_iou(folder, frames):
    trained = load_trained(folder / "best.pt", "cpu")
    return ConfusionMatrix.total(evaluate(trained.model, frames, trained.scene_size)).mean_iou


@pytest.mark.slow
def test_the_small_model_learns_other_classes_faster_than_from_scratch(three_classes, tmp_path):
    learn, unseen = three_classes
    changed = {"image_size": 128, "growth": 0.0, "epochs": 6, "batch_size": 4, "hold_out": False}
    config = run_settings(
        tmp_path / "small", None, "demo", start_from=SMALL_MODEL, frozen_epochs=2, **changed
    )
    assert config.encoder == "efficientnet_lite2"
    fit(learn, config, tmp_path / "small", "cpu", progress=False, start_from=SMALL_MODEL)
    from_small = mean_iou(tmp_path / "small", unseen)
    scratch = recipe("demo", **changed)
    fit(learn, scratch, tmp_path / "scratch", "cpu", progress=False)
    from_scratch = mean_iou(tmp_path / "scratch", unseen)
    assert from_small > 0.6
    assert from_small > from_scratch + 0.1
    # The weights inherit the terms of what the small model learned from.
    assert "non-commercial" in read_checkpoint(tmp_path / "small" / "best.pt")["licence"]
    assert read_checkpoint(tmp_path / "scratch" / "best.pt")["licence"] == ""


def test_a_frozen_contracting_path_keeps_its_weights(frames, tmp_path):
    config = recipe("demo", base_channels=2, fold=1, image_size=32, epochs=2, frozen_epochs=1)
    states = []

    def keep(history, model):
        states.append({name: value.clone() for name, value in model.state_dict().items()})

    torch.manual_seed(config.seed)
    from unet_utils import UNet

    first = UNet(3, 19, 2).state_dict()
    fit(frames, config, tmp_path, "cpu", progress=False, on_epoch=keep)
    name = "encoder.levels.0.0.weight"
    assert torch.equal(states[0][name], first[name])
    assert not torch.equal(states[1][name], first[name])
    assert not torch.equal(states[0]["head.weight"], first["head.weight"])
