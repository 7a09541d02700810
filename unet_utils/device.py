"""Which device computes, in which precision and memory layout, and what its errors mean."""

import ctypes
import functools
import os
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch


def find_device() -> torch.device:
    """Return the first of these that works: CUDA GPU, Apple GPU, CPU."""
    if torch.cuda.is_available():
        try:
            # A GPU that is too old for this torch is reported as available, and fails at the first
            # convolution.
            one = torch.ones(1, 1, 8, 8, device="cuda")
            torch.nn.functional.conv2d(one, one)
            torch.cuda.synchronize()
            return torch.device("cuda")
        except Exception as error:
            reason = first_line(error)
            print(
                f"Warning: PyTorch {torch.__version__} cannot use this GPU ({reason}), so the CPU "
                "is used instead. On Kaggle, the P100 is too old: choose Settings > Accelerator > "
                "GPU T4 x2."
            )
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def compute_dtype(device: torch.device | str) -> torch.dtype:
    """Return the data type in which the device computes fastest and networks still train.

    bfloat16 on Ampere GPUs and later and on CPUs with fast bfloat16, float16 on older GPUs such as
    Colab's T4, float32 elsewhere.
    """
    device = torch.device(device)
    if device.type == "cuda":
        is_ampere = torch.cuda.get_device_capability(device) >= (8, 0)
        return torch.bfloat16 if is_ampere else torch.float16
    if device.type == "cpu" and _cpu_has_fast_bfloat16():
        return torch.bfloat16
    return torch.float32


CPUINFO = Path("/proc/cpuinfo")


@functools.cache
def _cpu_has_fast_bfloat16() -> bool:
    # With AVX512-BF16 but without AMX, a step takes 0.7 of the time of float32 on AMD's processors,
    # and 1.5 times as long on Intel's.
    if _cpu_has("amx_tile"):
        return True
    is_amd = CPUINFO.exists() and "AuthenticAMD" in CPUINFO.read_text()
    return is_amd and _cpu_has("avx512_bf16")


def _cpu_has(unit: str) -> bool:
    return getattr(torch.cpu, f"_is_{unit}_supported", lambda: False)()


def autocast(device: torch.device | str) -> AbstractContextManager:
    """Return the context to run a network in on that device: mixed precision where it is faster."""
    dtype = compute_dtype(device)
    if dtype == torch.float32:
        return nullcontext()
    return torch.autocast(torch.device(device).type, dtype=dtype)


def memory_format(device: torch.device | str) -> torch.memory_format:
    """Return the memory layout in which the device convolves fastest, and correctly.

    Apple GPUs are reported to compute wrong gradients of batch normalization with channels last:
    https://github.com/pytorch/pytorch/issues/175189.
    """
    is_apple = torch.device(device).type == "mps"
    return torch.contiguous_format if is_apple else torch.channels_last


def reuse_memory() -> None:
    """Make training on a CPU up to twice as fast on Linux: keep freed memory for the next tensors.

    By default glibc returns each large block to the system and gets it anew, zeroed page by page,
    for every layer of every step. torch also asks for pages of 2 MB, if the system has them.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch reads it with its first tensor
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # not Linux, or another C library
        return
    no_separate_maps = (-4, 0)  # M_MMAP_MAX of malloc.h
    never_trim = (-1, 2**31 - 1)  # M_TRIM_THRESHOLD
    mallopt(*no_separate_maps)
    mallopt(*never_trim)


def first_line(error: Exception) -> str:
    """Return the first line of an error's message; its type if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def explain_errors(memory_advice: str) -> Callable:
    """Return a decorator that names the setting to change for errors of torch that it avoids.

    Args:
        memory_advice: what to do when the GPU's memory is full.

    Raises:
        RuntimeError: in the place of an out-of-memory error, or one of torch.compile.
    """

    def decorate(function: Callable) -> Callable:
        @functools.wraps(function)
        def call(*args, **kwargs):
            try:
                return function(*args, **kwargs)
            except Exception as error:
                problem = _problem(error, memory_advice)
                if not problem:
                    raise
                # Notebooks keep the traceback, and it keeps all variables of the calls: what was
                # on the GPU would still be there when the person tries again with less.
                traceback.clear_frames(error.__traceback__)
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()
            raise RuntimeError(problem)  # out here, so that it does not carry that error along

        return call

    return decorate


def _problem(error: Exception, memory_advice: str) -> str:
    """Return what to tell a person about an error of torch; nothing for other errors."""
    if isinstance(error, torch.OutOfMemoryError):
        return f"the GPU's memory is full: {memory_advice}"
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")) or (
        isinstance(error, RuntimeError) and "torch.compile" in str(error)
    ):
        return f"torch.compile failed ({first_line(error)}): set compile to False (COMPILE)"
    return ""
