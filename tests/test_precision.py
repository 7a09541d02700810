"""What a GPU without bfloat16 computes, on a CPU: float16 with a GradScaler, as on Colab's T4."""

import math

import pytest
import torch

from unet_utils import UNet, device, fit, prepare, recipe
from unet_utils.optimizer import Muon, _orthogonal

MODULES = ("unet_utils.device", "unet_utils.training", "unet_utils.optimizer")


def compute_in(dtype, monkeypatch):
    for module in MODULES:
        monkeypatch.setattr(f"{module}.compute_dtype", lambda device: dtype)


@pytest.mark.parametrize(
    ("amx", "avx512", "vendor", "expected"),
    [
        (True, True, "GenuineIntel", torch.bfloat16),
        (False, True, "AuthenticAMD", torch.bfloat16),
        (False, True, "GenuineIntel", torch.float32),
        (False, False, "AuthenticAMD", torch.float32),
    ],
)
def test_cpus_compute_in_bfloat16_where_that_is_faster(
    monkeypatch, tmp_path, amx, avx512, vendor, expected
):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512, raising=False)
    monkeypatch.setattr(device, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(device, "_cpu_has_fast_bfloat16", device._cpu_has_fast_bfloat16.__wrapped__)
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nvendor_id\t: {vendor}\n")
    assert device.compute_dtype("cpu") == expected


@pytest.fixture(scope="module")
def frames(demo, tmp_path_factory):
    return prepare(
        demo, "train", tmp_path_factory.mktemp("prepared"), method="nearest", progress=False
    )


def test_float16_learns_what_float32_does(frames, tmp_path, monkeypatch):
    config = recipe(
        "demo", base_channels=4, fold=1, image_size=32, batch_size=4, epochs=6, learning_rate=0.01
    )
    histories = {}
    for dtype in (torch.float16, torch.float32):
        compute_in(dtype, monkeypatch)
        histories[dtype] = fit(frames, config, tmp_path / str(dtype), "cpu", progress=False)
    half, full = ([row["loss"] for row in history] for history in histories.values())
    assert all(math.isfinite(loss) for loss in half)
    assert half == pytest.approx(full, rel=0.05)
    assert half[-1] < 0.95 * half[0]


def test_an_overflow_is_skipped_and_the_training_goes_on():
    """With a scale that is too large the gradients are infinite: nothing moves, the scale halves,
    then it works."""
    torch.manual_seed(0)
    model, x = UNet(3, 4, 2), torch.randn(2, 3, 32, 32)
    optimizer, scaler = (
        Muon(model.parameters(), lr=1e-2),
        torch.amp.GradScaler("cpu", init_scale=2.0**126),
    )
    before, skipped, steps = [p.clone() for p in model.parameters()], 0, 0
    while steps < 3:
        optimizer.zero_grad()
        scaler.scale(1e6 * model(x).square().mean()).backward()
        scaler.unscale_(optimizer)
        scale = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        moved = any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
        if scaler.get_scale() < scale:
            assert not moved or steps
            skipped += 1
        else:
            assert moved
            steps += 1
    assert skipped >= 2
    assert all(torch.isfinite(p).all() for p in model.parameters())
    for state in optimizer.state.values():
        assert all(torch.isfinite(value).all() for value in state.values())


@pytest.mark.parametrize(
    ("shape", "scale"), [((64, 576), 1e-6), ((64, 576), 1.0), ((64, 576), 1e4), ((1024, 9216), 1.0)]
)
def test_orthogonal_steps_stay_in_range_in_float16(monkeypatch, shape, scale):
    """Muon's iteration brings the singular values to between 0.5 and 1.5, whatever the size of the
    gradient."""
    compute_in(torch.float16, monkeypatch)
    step = _orthogonal(torch.randn(shape, generator=torch.Generator().manual_seed(0)) * scale)
    values = torch.linalg.eigvalsh(step @ step.T).sqrt()
    assert 0.5 < values.min() < values.max() < 1.5


def test_the_largest_kernel_of_the_gpu_recipe_is_among_these():
    with torch.device("meta"):
        network = UNet(**recipe("gpu").network(19))
    assert max(p.flatten(1).shape for p in network.parameters() if p.ndim > 1) == (1024, 9216)


@pytest.mark.parametrize("shape", [(16, 144), (144, 16), (64, 64)])
def test_all_steps_at_once_are_the_steps_one_by_one(monkeypatch, shape):
    """In float32 the matrix itself is multiplied once; here it is in each step, in float64."""
    compute_in(torch.float32, monkeypatch)
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    x = matrix.double() / matrix.double().norm()
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    assert torch.allclose(_orthogonal(matrix).double(), x, atol=1e-5)


def test_a_gradient_of_zeros_gives_a_step_of_zeros(monkeypatch):
    compute_in(torch.float16, monkeypatch)
    assert (_orthogonal(torch.zeros(8, 72)) == 0).all()
