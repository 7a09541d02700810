import collections
import contextlib
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from unet_utils import UNet, evaluation, get_scheme, prepare
from unet_utils.evaluation import Trained, predict_classes
from unet_utils.images import photo_size
from unet_utils.model import OtherNetwork
from unet_utils.use import onnx_file
from unet_utils.use.convolutions import PixelsToLogits
from unet_utils.use.export import default_name, export_model, frames_per_second, open_exported
from unet_utils.use.int8 import export_int8

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
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    return Trained(model, get_scheme("cityscapes19"), (64, 96), {}, [], {})


@pytest.fixture(autouse=True)
def no_mixed_precision(monkeypatch):
    """Exported models compute in float32; so does the package here, and the labels can be compared
    pixel by pixel."""
    monkeypatch.setattr(evaluation, "autocast", lambda device: contextlib.nullcontext())


@pytest.fixture(autouse=True)
def older_exporter(monkeypatch):
    """The one that Colab's packages allow, and the fast one; a test of its own has the current."""
    monkeypatch.setattr(onnx_file, "has_current_exporter", lambda: False)


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
    assert len(a.unique()) > 1
    return (a == b).double().mean().item()


WITHOUT_US = """
import json, sys
sys.modules["unet_utils"] = None  # whoever imports it fails, wherever it is installed
import torch

names, count = json.loads(sys.argv[1]), int(sys.argv[2])
for name in names:
    model = torch.jit.load(f"{name}.torchscript")
    for i in range(count):
        photos = torch.load(f"photos{i}.pt")
        torch.save([model(photos), model(photos, True)], f"{name}-{i}.pt")
    print(model.names[13], model.colors[13], model.scene_height)
"""


@pytest.mark.slow
def test_torchscript_gives_the_same_labels_without_this_package(tmp_path):
    networks = {name: make_trained(network) for name, network in NETWORKS.items()}
    for name, trained in networks.items():
        path = tmp_path / f"{name}.torchscript"
        assert export_model(trained, path) == path
    for i, size in enumerate(SIZES):
        torch.save(random_photos(*size), tmp_path / f"photos{i}.pt")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_US, json.dumps(list(networks)), str(len(SIZES))],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == ["car [0, 0, 142] 64"] * len(networks)
    for name, trained in networks.items():
        model = trained.model
        for i, size in enumerate(SIZES):
            photos = random_photos(*size)
            labels, squeezed = torch.load(tmp_path / f"{name}-{i}.pt")
            assert labels.dtype == torch.uint8
            own = predict_classes(model, photos, trained.photo_size(*size))
            assert agreement(labels, own) > 0.9999
            assert agreement(squeezed, predict_classes(model, photos, trained.scene_size)) > 0.9999


def same_for_photos_of_any_size(trained, path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="needed to run what was exported")
    session = onnxruntime.InferenceSession(str(path))
    for height, width in SIZES:
        photos = random_photos(height, width)
        (labels,) = session.run(["classes"], {"images": photos.numpy()})
        assert labels.dtype == np.uint8
        own = predict_classes(trained.model, photos, trained.photo_size(height, width))
        assert agreement(labels, own) > 0.999


def operations(path) -> collections.Counter:
    onnx = pytest.importorskip("onnx", reason="torch writes ONNX with the help of the onnx package")
    return collections.Counter(node.op_type for node in onnx.load(path).graph.node)


def convolutions(model) -> int:
    return sum(isinstance(module, torch.nn.Conv2d) for module in model.modules())


def test_onnx_gives_the_same_labels(trained, tmp_path):
    pytest.importorskip("onnx", reason="torch writes ONNX with the help of the onnx package")
    same_for_photos_of_any_size(trained, export_model(trained, tmp_path / "unet.onnx"))


@pytest.mark.slow
@pytest.mark.parametrize("size", [None, (90, 201)])
def test_torchs_current_exporter_does_the_same(small, tmp_path, monkeypatch, size):
    pytest.importorskip("onnxscript", reason="torch's current exporter needs it")
    monkeypatch.undo()  # of older_exporter, too
    monkeypatch.setattr(evaluation, "autocast", lambda device: contextlib.nullcontext())
    path = export_model(small, tmp_path / "unet.onnx", size)
    if size is None:
        same_for_photos_of_any_size(small, path)
    count = operations(path)
    assert count["Conv"] == convolutions(small.model) + 2 * (size is not None)
    assert not {"BatchNormalization", "MatMul"} & count.keys()


def test_an_own_size_squeezes_all_photos(small, tmp_path):
    pytest.importorskip("onnx")
    own = replace(small, squeezes_all=True)
    same_for_photos_of_any_size(own, export_model(own, tmp_path / "own.onnx"))


@pytest.mark.parametrize("size", [None, (90, 201)])
def test_each_convolution_is_one_node(trained, tmp_path, size):
    """Phones and small computers are fast at convolutions, and slow or helpless at the rest."""
    count = operations(export_model(trained, tmp_path / "unet.onnx", size))
    resizing = 2 * (size is not None)
    assert count["Conv"] == convolutions(trained.model) + resizing
    assert not {"BatchNormalization", "MatMul", "Gemm"} & count.keys()
    assert count["Resize"] == (2 if size is None else 1)


@pytest.mark.slow
def test_somebody_elses_convolutions_are_one_node_each(tmp_path):
    from torchvision.models.segmentation import lraspp_mobilenet_v3_large

    net = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=19)
    other = replace(make_trained({}), model=OtherNetwork(net, 19).eval())
    count = operations(export_model(other, tmp_path / "other.onnx", (64, 128)))
    assert count["Conv"] == convolutions(net) + 1  # one more reduces the columns
    assert not {"BatchNormalization", "MatMul"} & count.keys()


PLAIN = {
    *("Add", "ArgMax", "Cast", "Clip", "Concat", "Constant", "ConstantOfShape", "Conv"),
    *("ConvTranspose", "DepthToSpace", "Div", "MaxPool", "Mul", "Pad"),
    *("Relu", "Reshape", "Resize", "Shape", "Slice", "Sub", "Transpose"),
}
"""Operations with fixed shapes that OpenCV 4.12 and 5.0 were seen to read."""


@pytest.mark.parametrize("size", [(90, 201), (40, 30)])
def test_onnx_of_one_size_gives_the_same_labels_in_plain_operations(trained, tmp_path, size):
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    path = export_model(trained, tmp_path / "unet.onnx", size)
    photo = random_photos(*size)[:1]
    session = onnxruntime.InferenceSession(str(path))
    (labels,) = session.run(["classes"], {"images": photo.float().numpy()})
    own = predict_classes(trained.model, photo, trained.photo_size(*size))
    assert agreement(labels, own) > 0.999
    graph = onnx.load(path).graph
    shapes = [
        [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    ]
    assert shapes == [[1, 3, *size], [1, *size]]
    assert {node.op_type for node in graph.node} <= PLAIN


@pytest.mark.parametrize("size", [(90, 201), (40, 30)])
def test_opencv_reads_a_file_of_one_size(trained, tmp_path, size):
    cv2 = pytest.importorskip("cv2", reason="opencv-python-headless")
    pytest.importorskip("onnx")
    photo = random_photos(*size)[0].permute(1, 2, 0).numpy()
    net = cv2.dnn.readNet(str(export_model(trained, tmp_path / "unet.onnx", size)))
    frame = cv2.cvtColor(photo, cv2.COLOR_RGB2BGR)  # as OpenCV reads videos
    net.setInput(cv2.dnn.blobFromImage(frame, size=size[::-1], swapRB=True))
    labels = net.forward()[0].astype("uint8")
    batch = torch.from_numpy(photo).permute(2, 0, 1)[None]
    own = predict_classes(trained.model, batch, trained.photo_size(*size))
    assert agreement(labels, own[0]) > 0.999


def test_logits_come_before_the_last_shuffle(trained, tmp_path):
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    path = export_model(trained, tmp_path / "logits.onnx", logits=True)
    session = onnxruntime.InferenceSession(str(path))
    photos = random_photos(90, 200)
    (logits,) = session.run(["logits"], {"images": photos.numpy()})
    assert "DepthToSpace" not in operations(path)
    block = int({entry.key: entry.value for entry in onnx.load(path).metadata_props}["block"])
    n, channels, high, wide = logits.shape
    # As the docstring says it: channel (c s + y) s + x.
    logits = logits.reshape(n, channels // block**2, block, block, high, wide)
    logits = logits.transpose(0, 1, 4, 2, 5, 3).reshape(n, 19, high * block, wide * block)
    size = trained.photo_size(90, 200)
    assert logits.shape[2:] == size
    own = evaluation.predict(trained.model, photos, size)
    resized = torch.nn.functional.interpolate(
        torch.from_numpy(logits), (90, 200), mode="bilinear", align_corners=False
    )
    assert (resized.softmax(1) - own).abs().max() < 1e-3


def test_the_network_of_a_file_leaves_the_model_as_it_is(trained):
    x = torch.rand(1, 3, 64, 128) * 255
    before = {name: value.clone() for name, value in trained.model.state_dict().items()}
    network = PixelsToLogits(trained).eval()
    normalized = (x - network.mean) / network.std
    assert (network(x) - trained.model(normalized)).abs().max() < 1e-3
    after = trained.model.state_dict()
    assert before.keys() == after.keys()
    assert all((after[name] == value).all() for name, value in before.items())


@pytest.mark.slow
@pytest.mark.parametrize("size", [None, (64, 128)])
def test_int8_is_smaller_and_says_what_it_costs(demo, tmp_path, size):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    small = evaluation.load_trained(evaluation.SMALL_MODEL, "cpu")
    frames = prepare(demo, "val", tmp_path / "prepared", small.scheme, "nearest", progress=False)
    frames = frames.part(slice(0, 2))
    path = tmp_path / "deeper" / "eight.onnx"
    said = export_int8(small, path, frames, frames, size)
    found = re.search(
        r"bits instead of 32: (.*) MB \(was (.*)\), (.*) ms .* \(was (.*)\), "
        r"mIoU (.*) \(was (.*)\) on 2 validation frames",
        said,
    )
    megabytes, were, _, _, miou, was = map(float, found.groups())
    assert megabytes < 0.4 * were
    assert megabytes == pytest.approx(path.stat().st_size / 2**20, abs=0.06)
    assert was > 0.1
    assert miou > 0.8 * was
    keys = {entry.key for entry in onnx.load(path).metadata_props}
    assert {"names", "licence", "size"} <= keys


def test_int8_is_for_onnx_alone(small, tmp_path):
    with pytest.raises(ValueError, match="only ONNX has 8 bits"):
        export_int8(small, tmp_path / "unet.torchscript", None, None)


@pytest.mark.parametrize("name", ["unet.torchscript", "unet.onnx"])
def test_an_exported_file_is_opened_as_a_function(small, tmp_path, monkeypatch, name):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    path = export_model(small, tmp_path / name)
    photos = random_photos(90, 200)
    found = open_exported(path)(photos)
    assert found.dtype == torch.uint8
    own = predict_classes(small.model, photos, small.photo_size(90, 200))
    assert agreement(found, own) > 0.999
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    if name.endswith("onnx"):
        with pytest.raises(RuntimeError, match="pip install onnxruntime"):
            open_exported(path)


def test_the_default_is_onnx_where_it_can_be_written(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert default_name() == "unet.onnx"
    assert not capsys.readouterr().out
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert default_name() == "unet.torchscript"
    assert "pip install onnx" in capsys.readouterr().out


def test_the_file_says_what_it_needs(small, tmp_path):
    onnx = pytest.importorskip("onnx")
    made_by = {"weights": "0123abcd"}
    licensed = replace(small, licence="for research only", temperature=1.25, made_by=made_by)
    keys = ("names", "colors", "size", "resize", "normalization", "licence", "temperature")
    keys += ("made_by",)
    extra = dict.fromkeys(keys, "")
    torch.jit.load(export_model(licensed, tmp_path / "a.torchscript"), _extra_files=extra)
    told = {"torchscript": {key: bytes(value).decode() for key, value in extra.items()}}
    for name, size in (("any", None), ("one", (90, 200))):
        model = onnx.load(export_model(licensed, tmp_path / f"{name}.onnx", size))
        told[name] = {entry.key: entry.value for entry in model.metadata_props}
    for metadata in told.values():
        assert json.loads(metadata["names"]) == list(small.scheme.names)
        assert json.loads(metadata["colors"])[0] == [128, 64, 128]
        assert metadata["licence"] == "for research only"
        assert metadata["temperature"] == "1.2500"
        assert json.loads(metadata["made_by"]) == made_by
        assert json.loads(metadata["normalization"])["mean"][0] == 0.485
    assert [metadata["size"] for metadata in told.values()] == ["96x64", "96x64", "200x90"]
    assert "any size" in told["torchscript"]["resize"]
    assert "any size" in told["any"]["resize"]
    assert "to this size" in told["one"]["resize"]
    model = onnx.load(export_model(small, tmp_path / "free.onnx"))
    assert not {"licence", "temperature"} & {entry.key for entry in model.metadata_props}


@pytest.mark.parametrize("name", ["unet.torchscript", "unet.onnx"])
def test_a_full_disk_is_called_full(small, small_disk, name):
    pytest.importorskip("onnx")
    (small_disk / "filler").write_bytes(bytes(shutil.disk_usage(small_disk).free - 4096))
    with pytest.raises(OSError, match="No space left"):
        export_model(small, small_disk / name)
    assert [path.name for path in small_disk.iterdir()] == ["filler"]


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
    with pytest.raises(ValueError, match=r"unet\.torchscript .* gives classes"):
        export_model(small, path, logits=True)


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
