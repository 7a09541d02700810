"""The device: which one computes, in which precision and memory layout."""

import ctypes
import os
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path

import torch


def find_device() -> torch.device:
    """Return the first of these that works: CUDA GPU, Apple GPU, CPU."""
    if torch.cuda.is_available():
        try:
            # A GPU that is too old for this torch is reported as available, and fails at the first
            # convolution.
            torch.nn.functional.conv2d(
                torch.ones(1, 1, 8, 8, device="cuda"), torch.ones(1, 1, 3, 3, device="cuda")
            )
            torch.cuda.synchronize()
            return torch.device("cuda")
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            print(
                f"Warning: PyTorch {torch.__version__} cannot use this GPU ({reason}), so the CPU "
                "is used instead."
            )
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def reuse_memory() -> None:
    """Make training on a CPU up to twice as fast on Linux: keep the memory of freed tensors for the
    next ones.

    By default glibc returns each large block to the system and gets it anew, zeroed page by page,
    for every layer of every step. torch also asks for pages of 2 MB, if the system has them."""
    # Read by torch when it makes its first tensor.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # not Linux, or another C library
        return
    # M_MMAP_MAX and M_TRIM_THRESHOLD of malloc.h: no separate maps, never trim.
    mallopt(-4, 0)
    mallopt(-1, 2**31 - 1)


def compute_dtype(device: torch.device | str) -> torch.dtype:
    """Return the data type in which the device computes fastest and networks still train.

    bfloat16 on Ampere GPUs and later and on CPUs with fast bfloat16, float16 on older GPUs such as
    Colab's T4, float32 elsewhere."""
    device = torch.device(device)
    if device.type == "cuda":
        return (
            torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
        )
    if device.type == "cpu" and _cpu_has_fast_bfloat16():
        return torch.bfloat16
    return torch.float32


CPUINFO = Path("/proc/cpuinfo")


@cache
def _cpu_has_fast_bfloat16() -> bool:
    amx, avx512 = (
        getattr(torch.cpu, f"_is_{unit}_supported", lambda: False)()
        for unit in ("amx_tile", "avx512_bf16")
    )
    # With AVX512-BF16 but without AMX, a step takes 0.7 of the time of float32 on AMD's processors,
    # and 1.5 times as long on Intel's.
    return amx or (avx512 and CPUINFO.exists() and "AuthenticAMD" in CPUINFO.read_text())


def autocast(device: torch.device | str) -> AbstractContextManager:
    """Return the context to run a network in on that device: mixed precision where it is faster."""
    dtype = compute_dtype(device)
    return (
        nullcontext()
        if dtype == torch.float32
        else torch.autocast(torch.device(device).type, dtype=dtype)
    )


def memory_format(device: torch.device | str) -> torch.memory_format:
    """Return the memory layout in which the device convolves fastest, and correctly.

    Apple GPUs are reported to compute wrong gradients of batch normalization with channels last:
    https://github.com/pytorch/pytorch/issues/175189.
    """
    return torch.contiguous_format if torch.device(device).type == "mps" else torch.channels_last
