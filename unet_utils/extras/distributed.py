"""Several processes that train as one, each with its part of every batch: on a GPU each, or on CPUs.

    torchrun --nproc-per-node 2 -m unet_utils train --data pairs.zip --run-name mine

The loop in `training` is written for one process, and asks a `World` wherever several would have to agree. Alone, that
world does nothing. Batch size, settings, checkpoint and history are those of one process: a run may go on with another
number of them.
"""

import codecs
import contextlib
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.elastic.multiprocessing.errors import get_error_handler
from torch.nn.parallel import DistributedDataParallel

PATIENCE = timedelta(hours=2)
"""How long a process waits for another, which may be downloading or decoding. One that dies is noticed at once."""


class World:
    """One process on its own.

    Attributes:
        rank: number of this process, from 0.
        size: how many there are.
    """

    rank, size = 0, 1

    def part(self, n: int, block: int = 1) -> slice:
        """Which of `n` things this process takes: an equal, contiguous part, of whole blocks."""
        blocks = -(-n // block)
        first, end = (min(n, blocks * rank // self.size * block) for rank in (self.rank, self.rank + 1))
        return slice(first, end)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, the same in each of them; exact for integers."""
        return tensor

    def once(self, function: Callable, *args) -> None:
        """Calls a function in the first process, while the others wait."""
        function(*args)

    def in_turn(self, function: Callable):
        """Calls a function in the first process, then in the others: what it leaves on disk they find there."""
        return function()

    def wrap(self, model: nn.Module, sync_batchnorm: bool) -> nn.Module:
        """The model with gradients that are the mean over all processes, which start from the weights of the first.

        Args:
            sync_batchnorm: normalise over the whole batch, and not over the part of each process.
        """
        return model

    def share_buffers(self, *models: nn.Module) -> None:
        """Gives all processes the running statistics of the first."""


ALONE = World()


class _Ranks(World):
    """One of the processes that torchrun started."""

    def __init__(self):
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

    def wrap(self, model: nn.Module, sync_batchnorm: bool) -> nn.Module:
        if sync_batchnorm:
            synchronize_batchnorm(model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # newer torch has another word for it, unknown to Colab's
            return DistributedDataParallel(model, broadcast_buffers=False)

    def share_buffers(self, *models: nn.Module) -> None:
        for model in models:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)


@contextlib.contextmanager
def open_world() -> Iterator[World]:
    """The processes that torchrun started, as a world; `ALONE` if it did not.

    Each process gets a GPU of its own, if there are any, and only the first one prints. An error in any of them is
    what torchrun reports, after ending the others.

    Raises:
        ValueError: there are GPUs, but fewer than processes.
    """
    if not dist.is_torchelastic_launched():
        yield ALONE
        return
    try:
        with contextlib.ExitStack() as stack:
            device, local_rank = None, int(os.environ["LOCAL_RANK"])
            if torch.cuda.is_available():
                if local_rank >= torch.cuda.device_count():
                    raise ValueError(
                        f"there are more processes than the {torch.cuda.device_count()} GPUs of this machine: "
                        "start as many as it has"
                    )
                device = torch.device("cuda", local_rank)
                torch.cuda.set_device(device)
            dist.init_process_group("nccl" if device else "gloo", timeout=PATIENCE, device_id=device)
            world = _Ranks()
            if world.rank > 0:
                stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
            yield world
            dist.destroy_process_group()
    except Exception as error:
        get_error_handler().record_exception(error)  # in the file that torchrun reads its report from
        raise


def launch_training(processes: int, data_folder: str | Path, results_folder: str | Path, **options) -> None:
    """Trains in several processes on this machine, by the command `train`, and prints what they print.

    Args:
        processes: how many.
        data_folder, results_folder: as in `Environment`; the run's files go to a folder of its name in the second.
        options: those of the command: `image_size=64` becomes `--image-size=64`, and `resume=False` `--no-resume`.

    Raises:
        RuntimeError: the training failed; what it said is above.
    """
    arguments = []
    for name, value in options.items():
        name = name.replace("_", "-")
        arguments += (
            ([f"--{name}"] if value else [f"--no-{name}"]) if isinstance(value, bool) else [f"--{name}={value}"]
        )
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")])),
        "UNET_UTILS_DATA": str(data_folder),
        "UNET_UTILS_RESULTS": str(results_folder),
        "PYTHONUNBUFFERED": "1",
        "PYTHONIOENCODING": "utf-8",
    }
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    run += ["-m", "unet_utils", "train", *arguments]
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    with subprocess.Popen(run, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0) as process:
        try:
            while output := process.stdout.read(4096):
                print(decoder.decode(output), end="", flush=True)
        except BaseException:  # the cell was stopped
            process.terminate()  # torchrun then ends its processes
            raise
    if process.returncode:
        raise RuntimeError(
            f"training in {processes} processes failed, see above. Run this again to go on after the last epoch"
        )


class SynchronizedBatchNorm(nn.BatchNorm2d):
    """Batch normalisation (https://arxiv.org/abs/1502.03167) over the parts of the batch in all processes.

    Evaluates as `nn.BatchNorm2d` does, with the same state. `nn.SyncBatchNorm` is for GPUs only.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        y, mean, variance, count = _NormalizeTogether.apply(x, self.weight, self.bias, self.eps)
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        return y


class _NormalizeTogether(torch.autograd.Function):
    """Torch's own normalisation by statistics that are joined in between.

    Whatever goes through all pixels is one of its kernels for this: sums and products with broadcasting take up to
    ten times as long.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, ...]:
        count = x.numel() // x.shape[1]
        # A row a process. Moments are joined from means and variances: sums of squares would cancel.
        rows = torch.zeros(dist.get_world_size(), 3, x.shape[1], device=x.device)
        mean, variance, counts = rows[dist.get_rank()]
        torch.batch_norm_update_stats(x, mean, variance, 1.0)  # leaves them there, the variance unbiased
        variance *= (count - 1) / count
        counts += count
        dist.all_reduce(rows)
        means, variances, counts = rows.unbind(1)
        count = counts.sum(0)
        mean = (means * counts).sum(0) / count
        variance = ((variances + (means - mean) ** 2) * counts).sum(0) / count
        ctx.save_for_backward(x, weight, mean, variance, count)
        ctx.mark_non_differentiable(mean, variance, count)
        ctx.eps = eps
        return F.batch_norm(x, mean, variance, weight, bias, eps=eps), mean, variance, count

    @staticmethod
    def backward(ctx, grad: Tensor, *_) -> tuple[Tensor | None, ...]:
        x, weight, mean, variance, count = ctx.saved_tensors
        scale = torch.rsqrt(variance + ctx.eps)
        # As if mean and variance were constants. The gradients of weight and bias are right then: DDP joins them.
        grad_x, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
            grad, x, weight, mean, variance, mean, scale, False, ctx.eps, [True, True, True]
        )
        sums = torch.stack([grad_weight, grad_bias])
        dist.all_reduce(sums)
        weight_mean, bias_mean = sums / count
        # What mean and variance owe to x: a multiple of its distance from the mean, and a constant.
        slope, offset = -weight_mean * scale * scale * weight, -bias_mean * scale * weight
        one = torch.ones_like(mean)
        grad_x += F.batch_norm(x, mean, one, slope, offset, eps=torch.finfo(one.dtype).tiny)
        return grad_x, grad_weight, grad_bias, None


def synchronize_batchnorm(model: nn.Module) -> None:
    """Makes every `nn.BatchNorm2d` in the model a `SynchronizedBatchNorm`, with the same parameters and state."""
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SynchronizedBatchNorm
