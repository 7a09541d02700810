"""Which precision and which memory layout a device computes in."""

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path

import torch


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
