import contextlib
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from unet_utils import UNet, evaluation, get_scheme
from unet_utils.evaluation import Trained, predict_classes
from unet_utils.images import photo_size
from unet_utils.use.export import export_model, frames_per_second

SIZES = ((256, 256), (90, 200), (300, 170))  # of photos


NETWORKS = {
    "fold 1": {"fold": 1},
    "fold 2": {"fold": 2},
    "encoder": {"encoder": "efficientnet_lite0"},
}


@pytest.fixture(params=NETWORKS.values(), ids=NETWORKS)
def trained(request, monkeypatch):
    # Exported models compute in float32; so does the package here, and the labels can be compared
    # pixel by pixel.
    monkeypatch.setattr(evaluation, "autocast", lambda device: contextlib.nullcontext())
    torch.manual_seed(0)
    model = UNet(3, 19, 4, **request.param).eval()
    torch.nn.init.normal_(model.head.weight)
    return Trained(
        model, get_scheme("cityscapes19"), {"image_size": 64, "scene_size": (64, 96)}, []
    )


def random_photos(height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(height)
    return torch.nn.functional.interpolate(  # large blots, so that the classes differ from place to place
        torch.randint(256, (2, 3, height // 8, width // 8), generator=generator).float(),
        (height, width),
    ).byte()


def agreement(a, b) -> float:
    a, b = (torch.as_tensor(labels) for labels in (a, b))
    assert a.shape == b.shape
    assert len(a.unique()) > 3
    return (a == b).double().mean().item()


WITHOUT_US = """
import json, sys
sys.modules["unet_utils"] = None  # whoever imports it fails, wherever it is installed
import torch

folder, sizes = sys.argv[1], json.loads(sys.argv[2])
model = torch.jit.load(f"{folder}/unet.torchscript")
for i, _ in enumerate(sizes):
    photos = torch.load(f"{folder}/photos{i}.pt")
    torch.save([model(photos), model(photos, True)], f"{folder}/labels{i}.pt")
print(model.names[13], model.colors[13], model.scene_height)
"""


def test_torchscript_gives_the_same_labels_without_this_package(trained, tmp_path):
    assert export_model(trained, tmp_path / "unet.torchscript") == tmp_path / "unet.torchscript"
    for i, size in enumerate(SIZES):
        torch.save(random_photos(*size), tmp_path / f"photos{i}.pt")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_US, tmp_path, json.dumps(SIZES)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("car [0, 0, 142] 64")
    model = trained.model
    for i, size in enumerate(SIZES):
        photos, (labels, squeezed) = random_photos(*size), torch.load(tmp_path / f"labels{i}.pt")
        assert labels.dtype == torch.uint8
        own = predict_classes(model, photos, photo_size(*size, trained.scene_size, model.divisor))
        assert agreement(labels, own) > 0.9999
        assert agreement(squeezed, predict_classes(model, photos, trained.scene_size)) > 0.9999


def test_onnx_gives_the_same_labels(trained, tmp_path):
    pytest.importorskip("onnx", reason="torch writes ONNX with the help of the onnx package")
    onnxruntime = pytest.importorskip("onnxruntime", reason="needed to run what was exported")
    session = onnxruntime.InferenceSession(str(export_model(trained, tmp_path / "unet.onnx")))
    for height, width in ((64, 64), (128, 192)):
        images = random_photos(height, width)
        (labels,) = session.run(["classes"], {"images": images.numpy()})
        assert labels.dtype == np.uint8
        assert agreement(labels, predict_classes(trained.model, images, (height, width))) > 0.9999


def test_an_older_export_is_replaced_and_nothing_else(trained, tmp_path):
    path = tmp_path / "deeper" / "unet.torchscript"
    export_model(trained, path)
    before = path.stat().st_size
    path.write_text("an older one")
    export_model(trained, path)
    assert path.stat().st_size == pytest.approx(before, rel=0.01)
    assert list(path.parent.iterdir()) == [path]
    with pytest.raises(ValueError, match=r"best\.pt: the name of an exported model ends in"):
        export_model(trained, tmp_path / "best.pt")


def test_without_the_onnx_package_it_says_what_to_install(trained, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(RuntimeError, match="pip install onnx"):
        export_model(trained, tmp_path / "unet.onnx")
    assert not (tmp_path / "unet.onnx").exists()


def test_the_prior_correction_is_exported(trained, tmp_path):
    trained.model.shift_logits(torch.tensor([1e4] + [0.0] * 18))  # road everywhere
    model = torch.jit.load(export_model(trained, tmp_path / "unet.torchscript"))
    assert (model(random_photos(64, 128)) == 0).all()


def test_a_very_wide_photo_is_squeezed_as_in_the_package(trained, tmp_path):
    model = torch.jit.load(export_model(trained, tmp_path / "unet.torchscript"))
    photos = random_photos(16, 4000)
    own = predict_classes(
        trained.model, photos, photo_size(16, 4000, trained.scene_size, trained.model.divisor)
    )
    assert agreement(model(photos), own) > 0.999


def test_the_speed_is_that_of_the_model(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr("unet_utils.use.export.time.perf_counter", lambda: next(clock))
    # Read once at the start and once before each batch of four: eight batches in the ten seconds.
    assert frames_per_second(lambda photos: photos, torch.zeros(4), seconds=10) == pytest.approx(
        9 * 4 / 10
    )
