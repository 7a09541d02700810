import pytest
import torch

from unet_utils import UNet, count_parameters, model_summary


def test_it_has_the_channels_of_the_paper():
    """Figure 1 of the paper: 64 to 1024 channels and back, at five levels."""
    model, shapes = UNet(3, 2), []
    for module in [model.stem, *model.down, *model.up]:
        module.register_forward_hook(lambda _m, _i, out: shapes.append(tuple(out.shape[1:])))
    with torch.no_grad():
        assert model.eval()(torch.zeros(1, 3, 32, 48)).shape == (1, 2, 32, 48)
    channels = [64, 128, 256, 512, 1024, 512, 256, 128, 64]
    scales = [1, 2, 4, 8, 16, 8, 4, 2, 1]
    assert shapes == [(c, 32 // s, 48 // s) for c, s in zip(channels, scales, strict=True)]


def test_it_has_as_many_weights_as_the_paper_says():
    """Counted from the paper's table of layers: 3x3 convolutions in pairs, 2x2 up-convolutions, one 1x1 at the end."""
    widths = [64, 128, 256, 512, 1024]
    double = sum(9 * a * b + 9 * b * b for a, b in zip([1, *widths[:-1]], widths, strict=True))
    up = sum(4 * 2 * c * c + c + 9 * 2 * c * c + 9 * c * c for c in widths[:-1])
    head = 64 * 2 + 2
    norm = sum(2 * 2 * c for c in widths) + sum(2 * 2 * c for c in widths[:-1])  # ours: in place of the biases
    assert count_parameters(UNet(1, 2)) == double + up + head + norm
    biases = sum(2 * c for c in widths) + sum(2 * c for c in widths[:-1])
    assert double + up + head + biases == 31_030_658  # the number that is quoted for the paper's network


@pytest.mark.parametrize("base_channels", [4, 8])
def test_width_is_a_knob(base_channels):
    assert UNet(3, 5, base_channels).stem[0].out_channels == base_channels


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


def test_the_summary_adds_up():
    model = UNet(3, 19, 4)
    lines = model_summary(model, 64).splitlines()
    parts = [int(line.split()[-1].replace(",", "")) for line in lines[1:]]
    assert sum(parts[:-1]) == parts[-1] == count_parameters(model)
    assert model.training
