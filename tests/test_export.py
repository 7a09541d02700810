import contextlib
import json
import subprocess
import sys
from dataclasses import replace

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


def make_trained(network):
    torch.manual_seed(0)
    model = UNet(3, 19, 4, **network).eval()
    torch.nn.init.normal_(model.head.weight)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # trained ones differ from each other
            torch.nn.init.normal_(module.bias, std=0.1)
    return Trained(model, get_scheme("cityscapes19"), (64, 96), {}, [], {})


@pytest.fixture(autouse=True)
def no_mixed_precision(monkeypatch):
    """Exported models compute in float32; so does the package here, and the labels can be compared
    pixel by pixel."""
    monkeypatch.setattr(evaluation, "autocast", lambda device: contextlib.nullcontext())


@pytest.fixture(params=NETWORKS.values(), ids=NETWORKS)
def trained(request):
    return make_trained(request.param)


@pytest.fixture
def small():
    return make_trained({"fold": 2})


def random_photos(height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(height)
    blots = torch.randint(256, (2, 3, height // 8, width // 8), generator=generator).float()
    return torch.nn.functional.interpolate(blots, (height, width)).byte()


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


@pytest.mark.slow
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
    for height, width in ((64, 64), (128, 192), (129, 190)):
        images = random_photos(height, width)
        (labels,) = session.run(["classes"], {"images": images.numpy()})
        assert labels.dtype == np.uint8
        assert labels.shape == (2, height, width)
        if height % 64:  # the package resizes instead
            continue
        assert agreement(labels, predict_classes(trained.model, images, (height, width))) > 0.9999


PLAIN = {
    *("Add", "ArgMax", "Cast", "Clip", "Concat", "Constant", "ConstantOfShape", "Conv"),
    *("ConvTranspose", "DepthToSpace", "Div", "Flatten", "MatMul", "MaxPool", "Mul", "Pad"),
    *("Relu", "Reshape", "Resize", "Slice", "SpaceToDepth", "Sub", "Transpose"),
}
"""Operations with fixed shapes that OpenCV 4.8 to 5.0 were seen to read."""


@pytest.mark.parametrize("size", [(90, 201), (40, 30)])
def test_onnx_of_one_size_gives_the_same_labels_in_plain_operations(trained, tmp_path, size):
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    path = export_model(trained, tmp_path / "unet.onnx", size)
    photo = random_photos(*size)[:1]
    session = onnxruntime.InferenceSession(str(path))
    (labels,) = session.run(["classes"], {"images": photo.float().numpy()})
    network_size = photo_size(*size, trained.scene_size, trained.model.divisor)
    assert agreement(labels, predict_classes(trained.model, photo, network_size)) > 0.999
    graph = onnx.load(path).graph
    shapes = [
        [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    ]
    assert shapes == [[1, 3, *size], [1, *size]]
    assert {node.op_type for node in graph.node} <= PLAIN


def test_the_file_says_what_it_needs(small, tmp_path):
    onnx = pytest.importorskip("onnx")
    licensed = replace(small, licence="for research only")
    extra = dict.fromkeys(("names", "colors", "size", "resize", "licence"), "")
    torch.jit.load(export_model(licensed, tmp_path / "a.torchscript"), _extra_files=extra)
    told = {"torchscript": {key: bytes(value).decode() for key, value in extra.items()}}
    for name, size in (("any", None), ("one", (90, 200))):
        model = onnx.load(export_model(licensed, tmp_path / f"{name}.onnx", size))
        told[name] = {entry.key: entry.value for entry in model.metadata_props}
    for metadata in told.values():
        assert json.loads(metadata["names"]) == list(small.scheme.names)
        assert json.loads(metadata["colors"])[0] == [128, 64, 128]
        assert metadata["licence"] == "for research only"
    assert [metadata["size"] for metadata in told.values()] == ["96x64", "96x64", "200x90"]
    assert "any size" in told["torchscript"]["resize"]
    assert "twice as wide as high" in told["any"]["resize"]
    assert "to this size" in told["one"]["resize"]
    model = onnx.load(export_model(small, tmp_path / "free.onnx"))
    assert "licence" not in {entry.key for entry in model.metadata_props}


def test_an_older_export_is_replaced_and_nothing_else(small, tmp_path):
    path = tmp_path / "deeper" / "unet.torchscript"
    export_model(small, path)
    before = path.stat().st_size
    path.write_text("an older one")
    export_model(small, path)
    assert path.stat().st_size == pytest.approx(
        before, rel=0.03
    )  # its graph may be printed longer the second time
    assert list(path.parent.iterdir()) == [path]
    with pytest.raises(ValueError, match=r"best\.pt: the name of an exported model ends in"):
        export_model(small, tmp_path / "best.pt")
    with pytest.raises(ValueError, match=r"unet\.torchscript takes photos of any size"):
        export_model(small, path, (64, 64))


def test_without_the_onnx_package_it_says_what_to_install(small, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(RuntimeError, match="pip install onnx"):
        export_model(small, tmp_path / "unet.onnx")
    assert not (tmp_path / "unet.onnx").exists()


def test_the_prior_correction_is_exported(small, tmp_path):
    small.model.shift_logits(torch.tensor([1e4] + [0.0] * 18))  # road everywhere
    model = torch.jit.load(export_model(small, tmp_path / "unet.torchscript"))
    assert (model(random_photos(64, 128)) == 0).all()


def test_a_very_wide_photo_is_squeezed_as_in_the_package(small, tmp_path):
    model = torch.jit.load(export_model(small, tmp_path / "unet.torchscript"))
    photos = random_photos(16, 4000)
    own = predict_classes(
        small.model, photos, photo_size(16, 4000, small.scene_size, small.model.divisor)
    )
    assert agreement(model(photos), own) > 0.999


def test_the_speed_is_that_of_the_model(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr("unet_utils.use.export.time.perf_counter", lambda: next(clock))
    # Read once at the start and once before each batch of four: eight batches in the ten seconds.
    assert frames_per_second(lambda photos: photos, torch.zeros(4), seconds=10) == pytest.approx(
        9 * 4 / 10
    )
