"""Which device computes, and in which precision."""

import weakref

import numpy as np
import pytest
import torch

from unet_utils import device as devices
from unet_utils.device import FullMemoryError, explain_errors, find_device
from unet_utils.evaluation import SMALL_MODEL, load_trained, predict, predict_classes
from unet_utils.frames import Frames
from unet_utils.restoring import restore_label_ids


@pytest.fixture
def convolve(monkeypatch):
    """Pretend that there is a GPU. The function that is returned sets its error at the first
    convolution."""
    ones = torch.ones
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch, "ones", lambda *shape, device: ones(*shape, device="meta"))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    find_device.cache_clear()

    def set_error(error):
        def conv2d(photos, weights):
            if error:
                raise error

        monkeypatch.setattr(torch.nn.functional, "conv2d", conv2d)

    yield set_error
    find_device.cache_clear()


def test_a_gpu_that_works(convolve, capsys):
    convolve(None)
    assert find_device() == torch.device("cuda")
    assert capsys.readouterr().out == ""


def test_a_gpu_that_is_too_old_for_this_torch(convolve, capsys):
    convolve(RuntimeError("CUDA error: no kernel image is available for execution\nCompile with"))
    assert find_device() == torch.device("cpu")
    reason = "cannot use this GPU (CUDA error: no kernel image is available for execution)"
    assert reason in capsys.readouterr().out


def test_a_gpu_whose_memory_another_program_has_taken(convolve, capsys):
    convolve(FULL[0])
    assert find_device() == torch.device("cpu")
    told = capsys.readouterr().out
    assert "Its memory is full: close whatever else uses it" in told
    assert "P100" not in told


def test_a_gpu_that_cannot_be_used_is_reported_once(convolve, monkeypatch, capsys):
    """Not again for each block of masks."""
    convolve(RuntimeError("no kernel image"))
    monkeypatch.setattr("unet_utils.restoring._restore", lambda masks: torch.zeros(1, 16, 16).int())
    for _ in range(3):
        restore_label_ids(np.zeros((1, 16, 16, 3), dtype=np.uint8))
    assert capsys.readouterr().out.count("cannot use this GPU") == 1


@pytest.mark.parametrize(
    ("name", "capability", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", (9, 0), torch.bfloat16),
        ("NVIDIA L4", (8, 9), torch.bfloat16),
        ("NVIDIA A100-SXM4-40GB", (8, 0), torch.bfloat16),
        ("Tesla T4", (7, 5), torch.float16),
        ("NVIDIA T4G", (7, 5), torch.float16),
        ("Quadro RTX 6000", (7, 5), torch.float16),
        ("NVIDIA GeForce RTX 2060", (7, 5), torch.float16),
        ("Tesla V100-SXM2-16GB", (7, 0), torch.float16),
        ("NVIDIA GeForce GTX 1650", (7, 5), torch.float32),
        ("NVIDIA GeForce MX450", (7, 5), torch.float32),
        ("Quadro T2000", (7, 5), torch.float32),
        ("NVIDIA T400 4GB", (7, 5), torch.float32),
        ("NVIDIA T1000 8GB", (7, 5), torch.float32),
        ("Tesla P100-PCIE-16GB", (6, 0), torch.float32),
        ("NVIDIA GeForce GTX 1080", (6, 1), torch.float32),
    ],
)
def test_half_precision_and_channels_last_are_for_tensor_cores(
    monkeypatch, name, capability, expected
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert devices.compute_dtype("cuda") == expected
    layout = torch.contiguous_format if expected == torch.float32 else torch.channels_last
    assert devices.memory_format("cuda") == layout


FULL = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("GET was unable to find an engine to execute this computation"),
    RuntimeError("MPS backend out of memory (MPS allocated: 17.92 GB)"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 6442450944 bytes."),
]


@pytest.mark.parametrize("error", FULL, ids=str)
def test_a_full_memory_is_explained_wherever_the_gpu_is_used(error, monkeypatch):
    """In preparing, loading, predicting; nothing of the failed call stays in the traceback."""
    photos = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    model = load_trained(SMALL_MODEL, "cpu").model

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr("unet_utils.restoring._restore", fail)
    monkeypatch.setattr(type(model), "to", fail)
    monkeypatch.setattr(type(model), "forward", fail)
    for use in (
        lambda: restore_label_ids(np.zeros((1, 16, 16, 3), dtype=np.uint8)),
        lambda: load_trained(SMALL_MODEL, "cpu"),
        lambda: predict(model, photos, 64),
        lambda: predict_classes(model, photos, 64),
    ):
        with pytest.raises(FullMemoryError, match=r"memory .* full.*: close .* or restart") as told:
            use()
        assert told.value.__context__ is None


@pytest.mark.parametrize("error", [KeyboardInterrupt(), FloatingPointError("diverged")], ids=repr)
def test_a_stopped_training_keeps_no_memory(error):
    """Notebooks keep the last error with its traceback, and a person runs the cell again."""
    kept = []

    @explain_errors("halve batch_size")
    def train():
        network = torch.nn.Linear(1, 1)
        kept.append(weakref.ref(network))
        raise error

    with pytest.raises(type(error)) as told:
        train()
    assert told.value.__traceback__
    assert kept[0]() is None


def test_a_training_that_is_stopped_twice_keeps_no_memory():
    """The second time while the first stop waits for a copy on Drive."""
    kept = []

    def step():
        network = torch.nn.Linear(1, 1)
        kept.append(weakref.ref(network))
        raise KeyboardInterrupt

    @explain_errors("halve batch_size")
    def train():
        try:
            step()
        finally:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as told:
        train()
    assert told.value.__context__
    assert kept[0]() is None


def test_of_two_advices_the_outer_one_counts():
    """Scoring within a training: the batch size can be halved."""

    @explain_errors("restart")
    def inner():
        raise FULL[0]

    @explain_errors("halve batch_size")
    def outer():
        inner()

    with pytest.raises(FullMemoryError, match="is full: halve batch_size$"):
        outer()


@pytest.mark.parametrize(("free", "moves"), [(11_000, True), (9_000, False)])
def test_frames_go_to_the_gpu_if_a_quarter_of_its_memory_holds_them(monkeypatch, free, moves):
    photos = torch.zeros(10, 8, 8, 3, dtype=torch.uint8)  # 1,920 bytes; with the labels 2,560
    frames = Frames(photos, photos[..., 0].contiguous(), None, tuple(range(10)))
    moved = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 2 * free))
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device: moved.append(device) or self)
    frames.to("cuda")
    assert bool(moved) == moves


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
