"""Several processes that train together, started by torchrun, each on its part of every batch.

    torchrun --nproc-per-node 2 -m unet_utils train --data pairs.zip --run-name mine

Batch size, settings, checkpoint and history are those of one process, and a run may go on with
another number of them."""

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

from unet_utils.platform.processes import SingleProcess

PATIENCE = timedelta(hours=2)
"""How long a process waits for another one, which may be downloading or restoring. A dead process
is noticed sooner."""


class TorchrunProcess(SingleProcess):
    """One of the processes that torchrun started."""

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def sum(self, tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        dist.all_reduce(tensor)
        return tensor

    def once(self, function: Callable, *args) -> None:
        if self.rank == 0:
            function(*args)
        dist.barrier()

    def in_turn(self, function: Callable):
        if self.rank == 0:
            result = function()
        dist.barrier()
        return result if self.rank == 0 else function()

    def wrap(self, module: nn.Module) -> nn.Module:
        """Return the module with gradients averaged over the processes; on GPUs, with synchronized
        batch norm.

        On CPUs each process normalizes its own part of the batch: torch synchronizes batch norm on
        GPUs only."""
        if next(module.parameters()).device.type == "cuda":
            nn.SyncBatchNorm.convert_sync_batchnorm(module)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # newer torch renames an argument
            return DistributedDataParallel(module, broadcast_buffers=False)

    def share_buffers(self, *models: nn.Module) -> None:
        for model in models:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)


@contextlib.contextmanager
def open_processes() -> Iterator[SingleProcess]:
    """Join the processes that torchrun started, or yield a `SingleProcess` without torchrun.

    Each process gets a GPU of its own, if there are any, and only the first one prints. An error in
    one of them is reported by torchrun, after it has ended the others.

    Raises:
        ValueError: there are GPUs, but fewer than processes.
    """
    if not dist.is_torchelastic_launched():
        yield SingleProcess()
        return
    try:
        with contextlib.ExitStack() as stack:
            device, local_rank = None, int(os.environ["LOCAL_RANK"])
            if torch.cuda.is_available():
                if local_rank >= torch.cuda.device_count():
                    raise ValueError(
                        f"there are more processes than the {torch.cuda.device_count()} GPUs of this machine: "
                        "set --nproc-per-node to the number of GPUs"
                    )
                device = torch.device("cuda", local_rank)
                torch.cuda.set_device(device)
            dist.init_process_group(
                "nccl" if device else "gloo", timeout=PATIENCE, device_id=device
            )
            process = TorchrunProcess()
            if process.rank > 0:
                stack.enter_context(
                    contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w")))
                )
            yield process
            dist.destroy_process_group()
    except Exception as error:
        get_error_handler().record_exception(
            error
        )  # writes the file that torchrun reads the error from
        raise
