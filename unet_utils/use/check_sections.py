"""What `use.self_check` asks of a machine: seven sections, in order of worth.

Each function takes a `Job`, reports what it finds as it goes, and may raise an error: both end in
the table. On a CPU the same is done with less.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import conv2d
from torch.profiler import ProfilerActivity, profile

from unet_utils.classes import PALETTE_IDS
from unet_utils.config import TrainConfig, recipe
from unet_utils.device import FullMemoryError, autocast, compute_dtype, computing_in, first_line
from unet_utils.evaluation import SMALL_MODEL, load_trained, predict_classes, score
from unet_utils.frames import Frames
from unet_utils.images import to_device
from unet_utils.model import UNet
from unet_utils.restoring import label_checksums, load_restorer, restore_label_ids
from unet_utils.schedule import Schedule
from unet_utils.training import OneProcess, TrainingState, fit, train_epoch
from unet_utils.use.check_job import Job
from unet_utils.use.export import export_model
from unet_utils.use.photos import segment

NAMES = {torch.float16: "float16", torch.bfloat16: "bfloat16", torch.float32: "float32"}
ERRORS = {torch.float16: 2e-3, torch.bfloat16: 1e-2, torch.float32: 2e-3}
"""Largest relative error of a convolution. GPUs compute float32 with fewer digits (TF32)."""
PHOTOS = 2711
"""The Kaggle training split without its held-out frames."""
LARGE = (4000, 3000)
"""Width and height of a photo of 12 megapixels."""


def computing(job: Job) -> None:
    """One convolution and its gradient in each precision, against float64 on the CPU."""
    if job.is_cuda:
        gpu = torch.cuda.get_device_properties(job.device)
        job.say(
            f"{gpu.name}, capability {gpu.major}.{gpu.minor}, {gpu.total_memory / 2**30:.1f} GB"
        )
        free = torch.cuda.mem_get_info(job.device)[0] / 2**30
        job.expect(free > 1, f"{free:.1f} GB free")
    one = torch.ones(1, 1, 8, 8, device=job.device)
    with autocast(job.device):
        used = conv2d(one, one).dtype
    job.expect(used == compute_dtype(job.device), f"computes in {NAMES[used]}")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 64, 64, 64, generator=generator).double()
    kernel = torch.randn(64, 64, 3, 3, generator=generator).double() / 24
    exact = _convolve(x, kernel)
    for dtype in job.precisions():
        inputs = (
            values.to(job.device, dtype, memory_format=torch.channels_last)
            for values in (x, kernel)
        )
        found = [values.cpu().double() for values in _convolve(*inputs)]
        error = max(
            ((mine - true).norm() / true.norm()).item()
            for mine, true in zip(found, exact, strict=True)
        )
        job.expect(error < ERRORS[dtype], f"{NAMES[dtype]} is off by {error:.1e}")


def _convolve(x: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor]:
    """Return a convolution, and the gradient of the kernel for the loss that is its own square."""
    kernel = kernel.detach().requires_grad_()
    y = conv2d(x, kernel, padding=1)
    y.backward(y.detach() / y[0, 0].numel())
    assert kernel.grad is not None
    return y.detach(), kernel.grad


def restored_labels(job: Job) -> None:
    """Masks restored on the device, whatever the caller's precision, and on the CPU."""
    masks, expected = job.masks(8 if job.is_small else 256)
    restore_label_ids(masks[:1], device=job.device)
    started = time.perf_counter()
    with torch.autocast(job.device.type, dtype=torch.bfloat16):
        found = restore_label_ids(masks, device=job.device)
    seconds = time.perf_counter() - started
    job.say(f"{len(masks) / seconds:.0f} masks/s")
    if job.is_small:  # then there is nothing else to compare with than more digits
        against = "in float64"
        network = load_restorer(job.device, torch.float64)
        with torch.inference_mode():
            batch = torch.from_numpy(masks).permute(0, 3, 1, 2)
            right = np.stack([network(mask[None])[0].argmax(0).numpy() for mask in batch])
        right = PALETTE_IDS[right]
    else:
        against = "on the CPU"
        right = restore_label_ids(masks, device="cpu")
    off = (found != right).sum((1, 2))
    same = (off == 0).mean()
    text = f"{100 * same:.1f} % of {len(masks)} frames are as {against}"
    job.expect(same >= 0.98 and off.max() <= 3, f"{text}, at most {off.max()} pixels off")
    if len(expected):
        agree = (label_checksums(found) == expected).mean()
        job.expect(agree >= 0.98, f"{100 * agree:.1f} % are the reference labels")


def learning(job: Job) -> None:
    """Two epochs in each precision, an infinite gradient, a run that changes its precision."""
    changes: dict = {"epochs": 2, "fold": 1, "batch_size": 4, "hold_out": False}
    if job.is_small:
        changes |= {"base_channels": 4, "image_size": 32}
    config = recipe("demo", learning_rate=0.02, **changes)
    frames = job.frames(96 if job.is_small else 160)
    losses: dict[torch.dtype, list[float]] = {}
    for dtype in job.precisions():
        with computing_in(dtype):
            folder = job.folder / NAMES[dtype]
            history = fit(frames, config, folder, job.device, progress=False)
        losses[dtype] = [row["loss"] for row in history]
        first, second = losses[dtype]
        job.expect(second < first, f"loss in {NAMES[dtype]} {first:.3f}, then {second:.3f}")
    usual = losses[torch.float32][-1]
    off = max(abs(history[-1] / usual - 1) for history in losses.values())
    job.expect(off <= 0.05, f"at most {100 * off:.1f} % from float32")
    if torch.float16 not in losses:
        return

    with computing_in(torch.float16):
        learn = frames.to(job.device)
        state = _new_state(job, config, learn)
        state.scaler = torch.amp.GradScaler(job.device.type, init_scale=2.0**30)
        train_epoch(state, learn, config, OneProcess())
        skipped = state.scaler.get_scale() < 2.0**30
        job.expect(skipped and state.is_finite(), "gradients that are infinite are skipped")

    journey = [
        (torch.float16, job.device),
        (torch.bfloat16 if torch.bfloat16 in losses else torch.float32, job.device),
        (torch.float32, torch.device("cpu")),
        (torch.float16, job.device),
    ]
    for epoch, (dtype, device) in enumerate(journey, 1):
        with computing_in(dtype):
            longer = replace(config, epochs=epoch)
            history = fit(frames, longer, job.folder / "journey", device, progress=False)
    first, last = history[0]["loss"], history[-1]["loss"]
    done = len(history) == len(journey) and all(math.isfinite(row["loss"]) for row in history)
    goes_on = done and last < 0.9 * first
    text = f"loss {first:.3f}, in the end {last:.3f}"
    job.expect(goes_on, f"a run moves between precisions and devices: {text}")


def waiting(job: Job) -> None:
    """Five steps in which the host must not wait for the device, and what they launch."""
    config = recipe("cpu" if job.is_small else "gpu")
    if job.is_small:
        config = replace(config, image_size=64, base_channels=8)
    frames = job.frames(7 * config.batch_size).to(job.device)
    state = _new_state(job, config, frames)
    train_epoch(state, frames, config, OneProcess())
    state.epoch += 1
    if job.is_cuda:

        def forbid_waiting(epoch: int, done: int, images: int, schedule: Schedule) -> None:
            inside = config.batch_size <= done < images
            torch.cuda.set_sync_debug_mode("error" if inside else "default")

        try:
            train_epoch(state, frames, config, OneProcess(), on_step=forbid_waiting)
        except RuntimeError as error:
            job.expect(False, f"the host waits for the GPU in a step: {first_line(error)}")
        finally:
            torch.cuda.set_sync_debug_mode("default")

    kinds = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * job.is_cuda]
    profiler = profile(activities=kinds)

    def five_steps(epoch: int, done: int, images: int, schedule: Schedule) -> None:
        if done == config.batch_size:
            profiler.start()
        elif done == 6 * config.batch_size:
            profiler.stop()

    train_epoch(state, frames, config, OneProcess(), on_step=five_steps)
    table: Any = profiler.key_averages()
    counts = {row.key: row.count for row in table}
    read = counts.get("aten::_local_scalar_dense", 0) + counts.get("aten::nonzero", 0)
    job.expect(read == 0, f"{read} values read back in five steps")
    kind = "device" if job.is_cuda else "cpu"
    launched = [name for name in counts if name.startswith(("cudaLaunch", "cuLaunch", "hipLaunch"))]
    launches = sum(counts[name] for name in launched) / 5
    job.say(f"{launches:.0f} launches a step" if job.is_cuda else "launches only on a GPU")

    def cost(row: Any) -> float:
        for name in (f"self_{kind}_time_total", "self_cuda_time_total"):
            if hasattr(row, name):  # older versions of torch say cuda, not device
                return getattr(row, name) / 5000
        return 0.0

    for row in sorted(table, key=cost, reverse=True)[:10]:
        job.send(("detail", f"{cost(row):.2f} ms a step: {row.key[:90]}, {row.count / 5:g} times"))


def speed(job: Job) -> None:
    """The recipes' steps: how many photos per second, and what each part of a step costs."""
    names = ["cpu"] if job.is_small else ["t4", "gpu"]
    steps = 3 if job.is_small else 20
    for name in names:
        config = recipe(name)
        frames = job.frames(steps * config.batch_size)
        on_device = frames.to(job.device)
        if job.is_cuda:
            torch.cuda.reset_peak_memory_stats(job.device)
        usual = _step_seconds(job, config, on_device)
        minutes = config.epochs * PHOTOS / config.batch_size * usual / 60
        job.say(
            f"recipe {name}: {config.batch_size / usual:.0f} images/s, "
            f"{1000 * usual:.0f} ms a step, about {minutes:.0f} minutes for the real pairs"
        )
        if job.is_cuda:
            peak = torch.cuda.max_memory_allocated(job.device) / 2**30
            job.say(f"{peak:.1f} GB at most")
    # What is turned is turned in the last recipe, the largest one.
    batch = on_device.batch(slice(0, config.batch_size), job.device)
    fixed = _step_seconds(job, config, _OneBatch(**vars(on_device), one=batch))
    # On a CPU, other programs change the times more than that.
    job.expect(
        usual < 1.25 * fixed or job.is_small,
        f"{usual / fixed:.2f} times the same steps on one fixed batch",
    )
    without_muon = _step_seconds(job, replace(config, optimizer="adam"), on_device)
    job.say(f"{1000 * without_muon:.0f} ms with Adam in the place of Muon")
    without_average = _step_seconds(job, config, on_device, averages=False)
    job.say(f"{1000 * without_average:.0f} ms without averaging")
    if not job.is_cuda:
        return
    from_cpu = _step_seconds(job, config, frames)
    job.say(f"{config.batch_size / from_cpu:.0f} images/s from the CPU's memory")
    torch.backends.cudnn.benchmark = True
    tuned = _step_seconds(job, config, on_device)
    torch.backends.cudnn.benchmark = False
    job.say(f"{1000 * tuned:.0f} ms with cudnn.benchmark")
    stamps = [time.perf_counter()]
    try:
        compiled = _step_seconds(
            job,
            replace(config, compile=True),
            on_device,
            on_step=lambda *_: stamps.append(time.perf_counter()),
        )
    except Exception as error:  # it is off by default, and needs a compiler
        job.say(f"torch.compile failed: {first_line(error)}")
    else:
        first = stamps[1] - stamps[0]
        job.say(f"{1000 * compiled:.0f} ms compiled, {first:.0f} s to the first step")


def encoders(job: Job) -> None:
    """Networks with an encoder, then a full memory, and a training in the same process after it."""
    changes: dict = {"growth": 0.0}
    if job.is_small:
        changes |= {"image_size": 96, "batch_size": 4}
    for name in ("resnet34", "efficientnet_lite2"):
        config = recipe("cpu" if job.is_small else "gpu", encoder=name, **changes)
        frames = job.frames((2 if job.is_small else 10) * config.batch_size).to(job.device)
        job.say(f"{name}: {1000 * _step_seconds(job, config, frames):.0f} ms a step")
    config = recipe("demo", epochs=1, image_size=64, hold_out=False)
    if not job.is_cuda:
        job.say("the memory is filled only on a CUDA GPU")
    else:
        one = job.frames(1)
        count = 2000  # take some 400 GB
        many = replace(
            one,
            photos=one.photos.expand(count, -1, -1, -1),
            label_ids=one.label_ids.expand(count, -1, -1),
            numbers=one.numbers * count,
        )
        greedy = recipe("gpu", batch_size=count, epochs=1, hold_out=False)
        try:
            fit(many, greedy, job.folder / "greedy", job.device, progress=False)
            job.expect(False, f"a batch of {count} photos fits")
        except FullMemoryError as error:
            job.expect("batch_size" in str(error), "a full memory is explained")
        left = torch.cuda.memory_allocated(job.device) / 2**30
        job.expect(left < 0.5, f"{left:.2f} GB are in use after it")
    history = fit(job.frames(32), config, job.folder / "after", job.device, progress=False)
    job.expect(math.isfinite(history[-1]["loss"]), "a small training works after that")


def using(job: Job) -> None:
    """The small model: scores, the exported file, and a large photo."""
    trained = load_trained(SMALL_MODEL, job.device)
    on_cpu = load_trained(SMALL_MODEL, "cpu")
    frames = job.frames(4 if job.is_small else 32)
    with computing_in(torch.float32):
        right = score(on_cpu.model, frames, on_cpu.scene_size).mean_iou
        same = score(trained.model, frames, trained.scene_size).mean_iou
        job.expect(abs(same - right) <= 0.002, f"mIoU in float32 {same:.4f}, CPU {right:.4f}")
    usual = score(trained.model, frames, trained.scene_size).mean_iou
    # On drawn photos, of which the model knows nothing, more classes are nearly as probable.
    name = NAMES[compute_dtype(job.device)]
    job.expect(abs(usual - right) <= 0.01, f"in {name} {usual:.4f}")

    photos = frames.batch(slice(0, 4))[0]
    exported = torch.jit.load(
        export_model(trained, job.folder / "model.torchscript"), map_location=job.device
    )
    with torch.inference_mode(), computing_in(torch.float32):
        ours = predict_classes(trained.model, photos, trained.scene_size)
        agree = (exported(to_device(photos, job.device), True) == ours).float().mean().item()
    job.expect(agree >= 0.999, f"exported and read again: {100 * agree:.2f} % of the pixels agree")

    photo = frames.photos[0].numpy()
    large = np.array(Image.fromarray(photo).resize(LARGE))
    if job.is_cuda:
        torch.cuda.reset_peak_memory_stats(job.device)
    started = time.perf_counter()
    classes = segment(trained, large)
    seconds = time.perf_counter() - started
    whole = classes.shape == LARGE[::-1] and len(np.unique(classes)) > 1
    job.expect(whole, f"a photo of {large.size / 3e6:.1f} megapixels in {seconds:.1f} s")
    if job.is_cuda:
        peak = torch.cuda.max_memory_allocated(job.device) / 2**30
        job.say(f"{peak:.1f} GB at most")


@dataclass(frozen=True)
class _OneBatch(Frames):
    """Frames whose batches are all the same one, which lies on the device already."""

    one: Any = None

    def batches(self, order: Any, device: torch.device | str) -> Any:
        """Yield the same batch again and again."""
        for _ in order:
            yield self.one


def _new_state(job: Job, config: TrainConfig, frames: Frames) -> TrainingState:
    """Return the start of a training with random weights."""
    torch.manual_seed(0)
    network = UNet(**config.network(frames.scheme.num_classes), pretrained=False)
    return TrainingState(network, frames, config, job.device, OneProcess())


def _step_seconds(
    job: Job,
    config: TrainConfig,
    frames: Frames,
    averages: bool = True,
    on_step: Callable | None = None,
) -> float:
    """Return the seconds of a step in the second epoch; the first one is for warming up.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    state = _new_state(job, config, frames)
    if not averages:
        state.average = lambda share: None  # type: ignore[method-assign]
    for state.epoch in range(2):
        row = train_epoch(state, frames, config, OneProcess(), on_step=on_step)
    if not math.isfinite(row["loss"]):
        raise FloatingPointError(f"the loss is {row['loss']}")
    return row["seconds"] / (len(frames) // config.batch_size)
