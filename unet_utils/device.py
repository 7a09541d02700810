"""Which device computes, in which precision and memory layout, and what its errors mean."""

import ctypes
import functools
import os
import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from pathlib import Path
from typing import TypeVar

import torch

Function = TypeVar("Function", bound=Callable)

RESTART = "close whatever else uses it, or restart this notebook and run only what you need"
"""What to do against a full memory where no setting helps."""
FULL_MEMORY = (
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "ALLOCATION_FAILED",  # cuDNN 9: of the host, or of the device
    "CUDNN_STATUS_NOT_INITIALIZED",  # no room for the library itself
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "unable to find an engine",  # cuDNN, where no kernel's buffers fit
    "DefaultCPUAllocator",
)
"""What errors say that mean a full memory and are no `torch.OutOfMemoryError`."""


class FullMemoryError(RuntimeError):
    """The memory is full, that of the GPU or of the machine; the message says what to do."""


@functools.cache
def find_device() -> torch.device:
    """Return the first of these that works: CUDA GPU, Apple GPU, CPU.

    It is tried once per process, so that a GPU that cannot be used is reported once.
    """
    if torch.cuda.is_available():
        try:
            # A GPU that is too old for this torch is reported as available, and fails at the first
            # convolution.
            one = torch.ones(1, 1, 8, 8, device="cuda")
            torch.nn.functional.conv2d(one, one)
            torch.cuda.synchronize()
            return torch.device("cuda")
        except Exception as error:
            advice = "On Kaggle, the P100 is too old: choose Settings > Accelerator > GPU T4 x2."
            if _memory_state(error):  # of another notebook, for example
                advice = f"Its memory is full: {RESTART}."
            print(
                f"Warning: PyTorch {torch.__version__} cannot use this GPU ({first_line(error)}), "
                f"so the CPU is used instead. {advice}"
            )
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


_CHOSEN_DTYPE: ContextVar[torch.dtype | None] = ContextVar("chosen dtype", default=None)


@contextmanager
def computing_in(dtype: torch.dtype) -> Iterator[None]:
    """Compute in this data type inside, whatever is fastest on the device: for measurements and
    tests."""
    token = _CHOSEN_DTYPE.set(dtype)
    try:
        yield
    finally:
        _CHOSEN_DTYPE.reset(token)


def compute_dtype(device: torch.device | str) -> torch.dtype:
    """Return the data type in which the device computes fastest and networks still train.

    bfloat16 on Ampere GPUs and later and on CPUs with fast bfloat16, float16 on older GPUs with
    tensor cores such as Colab's T4, float32 elsewhere.
    """
    if chosen := _CHOSEN_DTYPE.get():
        return chosen
    device = torch.device(device)
    if device.type == "cuda":
        if torch.cuda.get_device_capability(device) >= (8, 0):
            return torch.bfloat16
        return torch.float16 if _has_tensor_cores(device) else torch.float32
    if device.type == "cpu" and _cpu_has_fast_bfloat16():
        return torch.bfloat16
    return torch.float32


def _has_tensor_cores(device: torch.device) -> bool:
    """Return whether a GPU older than Ampere has tensor cores.

    Without them, float16 was reported to be ten times slower than float32
    (https://github.com/LeelaChessZero/lc0/issues/849), and to give NaN on GTX 16xx
    (https://github.com/pytorch/pytorch/issues/58123).
    """
    capability = torch.cuda.get_device_capability(device)
    if capability != (7, 5):
        return capability >= (7, 0)
    # Of Turing's cards, GTX 16xx, MX, Quadro T and T400 to T2000 have none.
    return not re.search(r"GTX|MX\d|\bT\d{3,4}\b", torch.cuda.get_device_name(device))


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

    Channels last is for tensor cores and for CPUs. Apple GPUs are reported to compute wrong
    gradients of batch normalization with it: https://github.com/pytorch/pytorch/issues/175189.
    """
    device = torch.device(device)
    is_plain_gpu = device.type == "cuda" and compute_dtype(device) == torch.float32
    if is_plain_gpu or device.type == "mps":
        return torch.contiguous_format
    return torch.channels_last


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


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message; its type if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def explain_errors(memory_advice: str) -> Callable[[Function], Function]:
    """Return a decorator that names the setting to change for errors of torch that it avoids, and
    frees the memory after these, after a stop, and after a training that diverged.

    Where such functions call each other, the advice of the outermost one counts.

    Args:
        memory_advice: what to do when the memory is full.

    Raises:
        FullMemoryError: in the place of an error that says that the memory is full.
        RuntimeError: in the place of an error of torch.compile.
    """

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def call(*args, **kwargs):
            try:
                return function(*args, **kwargs)
            except BaseException as error:
                explained = _explained(error, memory_advice)
                if explained or isinstance(error, (KeyboardInterrupt, FloatingPointError)):
                    _free_memory(error)
                if not explained:
                    raise
            raise explained  # out here, so that it does not carry that error along

        return call  # type: ignore[return-value]

    return decorate


def _free_memory(error: BaseException) -> None:
    """Free what the calls that ended in an error had on the GPU.

    Notebooks keep an error with its traceback, and that keeps all variables of the calls: they
    would still be there when the person tries again. A second stop, while the first one is being
    handled, has the first one as its context.
    """
    ended: BaseException | None = error
    while ended:
        traceback.clear_frames(ended.__traceback__)
        ended = ended.__cause__ or ended.__context__
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _memory_state(error: BaseException) -> str:
    """Return that the memory is full, or seems to be, if an error says so; else an empty text."""
    if isinstance(error, FullMemoryError | torch.OutOfMemoryError):
        return "is full"
    text = str(error).lower()
    if isinstance(error, RuntimeError) and any(sign.lower() in text for sign in FULL_MEMORY):
        return f"seems full ({first_line(error)})"
    return ""


def _explained(error: BaseException, memory_advice: str) -> RuntimeError | None:
    """Return what to tell a person about an error of torch; None for other errors."""
    if state := _memory_state(error):
        memory = "the GPU's memory" if torch.cuda.is_initialized() else "the memory"
        return FullMemoryError(f"{memory} {state}: {memory_advice}")
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")) or (
        isinstance(error, RuntimeError) and "torch.compile" in str(error)
    ):
        reason = first_line(error)
        return RuntimeError(f"torch.compile failed ({reason}): set compile to False")
    return None
