"""A run becomes the small model: in half precision, with its files, and only if it is small."""

import pytest
import ship_model
import torch

from unet_utils import fit, load_trained, recipe
from unet_utils.evaluation import predict_classes

FILES = ("history.csv", "evaluation.json", "evaluation.md", "evaluation.csv")


@pytest.fixture(scope="module")
def run(frames, tmp_path_factory):
    """A run that has been evaluated, as far as its files tell."""
    folder = tmp_path_factory.mktemp("run")
    changed = {"epochs": 1, "image_size": 64, "base_channels": 4, "hold_out": False}
    fit(frames, recipe("demo", **changed), folder, "cpu", progress=False)
    for name in FILES[1:]:
        (folder / name).write_text(f"the content of {name}")
    return folder


def test_a_run_becomes_a_small_model(run, frames, tmp_path):
    ship_model.main([str(run), "--temperature", "1.15", "--target", str(tmp_path)])
    shipped = torch.load(tmp_path / "small.pt", weights_only=True)["model"]
    before = torch.load(run / "best.pt", weights_only=True)["model"]
    for name, value in shipped.items():
        is_kernel = before[name].is_floating_point() and before[name].ndim > 1
        assert value.dtype == (torch.float16 if is_kernel else before[name].dtype)
    model = load_trained(tmp_path / "small.pt", "cpu")
    assert model.temperature == 1.15
    original = load_trained(run / "best.pt", "cpu")
    assert (model.scheme, model.made_by) == (original.scheme, original.made_by)
    photos = frames.photos[:4].permute(0, 3, 1, 2)
    same = [predict_classes(each.model, photos, 64) for each in (model, original)]
    assert (same[0] == same[1]).float().mean() > 0.98
    for name in FILES:
        assert (tmp_path / f"small-{name}").read_bytes() == (run / name).read_bytes()


def test_a_model_that_cannot_be_shipped_replaces_nothing(run, tmp_path, monkeypatch):
    with monkeypatch.context() as limited:
        limited.setattr(ship_model, "LARGEST", 0.01)
        with pytest.raises(SystemExit, match=r"0\.\d+ MB is more than 0.01 MB: train a smaller"):
            ship_model.main([str(run), "--target", str(tmp_path)])
    (run / "evaluation.md").rename(tmp_path / "evaluation.md")
    with pytest.raises(SystemExit, match=r"evaluation\.md is missing: evaluate the run first"):
        ship_model.main([str(run), "--target", str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["evaluation.md"]
