"""Several processes that train together, started by torchrun, each on its part of every batch.

    torchrun --nproc-per-node 2 -m unet_utils train --data pairs.zip --run-name mine

Batch size, settings, checkpoint and history are those of one process, and a run may be resumed with
another number of them.
"""

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.elastic.multiprocessing.errors import get_error_handler
from torch.nn.parallel import DistributedDataParallel

from unet_utils.platform.files import replacing
from unet_utils.training import OneProcess, Result

PATIENCE = timedelta(hours=2)
"""How long a process waits for another one, which may be downloading the pairs or restoring their
labels. A dead process is noticed sooner."""


class TorchrunProcess(OneProcess):
    """One of the processes that torchrun started."""

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()

    def sum(self, tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        dist.all_reduce(tensor)
        return tensor

    def first(self, function: Callable[[], Result]) -> Result:
        if self.rank > 0:
            dist.barrier()
        result = function()
        if self.rank == 0:
            dist.barrier()
        return result

    def wrap(self, network: nn.Module) -> nn.Module:
        """Return the network with gradients averaged over the processes.

        On GPUs batch normalization is synchronized. On CPUs torch cannot do that: each process
        normalizes its own part of the batch, and all keep the statistics of the first one.
        """
        if next(network.parameters()).is_cuda:
            nn.SyncBatchNorm.convert_sync_batchnorm(network)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # newer torch renames an argument
            return DistributedDataParallel(network, broadcast_buffers=True)


@contextlib.contextmanager
def open_processes() -> Iterator[OneProcess]:
    """Join the processes that torchrun started, or yield `OneProcess` without torchrun.

    Each process gets a GPU of its own, if there are any, and only the first one prints. An error in
    one of them is reported by torchrun, after it has ended the others.

    Raises:
        ValueError: there are GPUs, but fewer than processes.
    """
    if not dist.is_torchelastic_launched():
        yield OneProcess()
        return
    try:
        device = _own_gpu()
        dist.init_process_group("nccl" if device else "gloo", timeout=PATIENCE, device_id=device)
        process = TorchrunProcess()
        with contextlib.ExitStack() as stack:
            if process.rank > 0:
                silence = stack.enter_context(open(os.devnull, "w"))
                stack.enter_context(contextlib.redirect_stdout(silence))
            yield process
        dist.destroy_process_group()
    except Exception as error:
        _report(error)
        raise


def _report(error: Exception) -> None:
    """Write the file from which torchrun reports an error of this process.

    It appears as a whole: torchrun, which may end this process while it writes, fails on half a
    file instead of naming the cause.
    """
    with replacing(os.environ["TORCHELASTIC_ERROR_FILE"]) as unfinished:
        os.environ["TORCHELASTIC_ERROR_FILE"] = str(unfinished)
        get_error_handler().record_exception(error)


def _own_gpu() -> torch.device | None:
    if not torch.cuda.is_available():
        return None
    number = int(os.environ["LOCAL_RANK"])
    if number >= torch.cuda.device_count():
        raise ValueError(
            f"there are more processes than the {torch.cuda.device_count()} GPUs of this machine: "
            "set --nproc-per-node to the number of GPUs"
        )
    torch.cuda.set_device(number)
    return torch.device("cuda", number)
