"""Which device computes, and in which precision."""

import pytest
import torch

from unet_utils import device as devices
from unet_utils.device import find_device


@pytest.fixture
def convolve(monkeypatch):
    """Pretend that there is a GPU. The function that is returned sets its error at the first
    convolution."""
    ones = torch.ones
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch, "ones", lambda *shape, device: ones(*shape, device="meta"))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)

    def set_error(error):
        def conv2d(photos, weights):
            if error:
                raise error

        monkeypatch.setattr(torch.nn.functional, "conv2d", conv2d)

    return set_error


def test_a_gpu_that_works(convolve, capsys):
    convolve(None)
    assert find_device() == torch.device("cuda")
    assert capsys.readouterr().out == ""


def test_a_gpu_that_is_too_old_for_this_torch(convolve, capsys):
    convolve(RuntimeError("CUDA error: no kernel image is available for execution\nCompile with"))
    assert find_device() == torch.device("cpu")
    reason = "cannot use this GPU (CUDA error: no kernel image is available for execution)"
    assert reason in capsys.readouterr().out


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
    monkeypatch.setattr(devices, "CPUINFO", tmp_path / "cpuinfo")
    is_fast = devices._cpu_has_fast_bfloat16.__wrapped__
    monkeypatch.setattr(devices, "_cpu_has_fast_bfloat16", is_fast)
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nvendor_id\t: {vendor}\n")
    assert devices.compute_dtype("cpu") == expected
