"""Which device computes."""

import pytest
import torch

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
