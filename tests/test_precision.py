"""What a GPU without bfloat16 computes, on a CPU: float16 with a GradScaler, as on Colab's T4."""

import math

import pytest
import torch

from unet_utils import fit, model, prepare, recipe

MODULES = ("unet_utils.model", "unet_utils.training", "unet_utils.optimizer")


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
    monkeypatch.setattr(model, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(model, "_cpu_has_fast_bfloat16", model._cpu_has_fast_bfloat16.__wrapped__)
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nvendor_id\t: {vendor}\n")
    assert model.compute_dtype("cpu") == expected


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
