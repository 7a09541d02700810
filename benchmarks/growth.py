"""Row 6: how time and memory grow with the number of pairs, the batch and the image."""

import itertools
from functools import partial

import numpy as np
import torch

from benchmarks.labels import labels
from benchmarks.peers import Trainer
from benchmarks.setting import Setting
from benchmarks.timing import Comparison, Result, in_fresh_process, interleave
from benchmarks.training import our_epoch
from unet_utils import UNet
from unet_utils.device import autocast

PARTS = (8, 4, 2, 1)
BATCHES = (1, 2, 4, 8, 16, 32)
SIZES = (64, 96, 128, 192, 256)


def growth(setting: Setting) -> Result:
    """Row 6."""
    total = len(setting.frames)
    counts = [max(setting.config.batch_size, total // part) for part in PARTS]
    # Whole batches only, as in `fit`.
    counts = [count // setting.config.batch_size * setting.config.batch_size for count in counts]
    comparisons = []
    data: dict = {"pairs": counts}
    for work, run in (("preparing", prepare_part), ("an epoch", epoch_of_part)):
        run(setting, counts[0])  # warm up: a whole turn of epochs would take minutes
        contenders = {str(count): partial(run, setting, count) for count in counts[1:]}
        items = {name: int(name) for name in contenders}
        contenders |= {"eighth": partial(run, setting, counts[0])}
        times = interleave(
            contenders, min(2, setting.rounds), items | {"eighth": counts[0]}, warm_up=False
        )
        data[f"{work}, s per pair"] = times
        whole = times[str(counts[-1])] if str(counts[-1]) in times else times["eighth"]
        comparisons.append(
            Comparison(
                "6",
                f"{work}, all pairs",
                "an eighth of them",
                whole,
                times["eighth"],
                1.1,
                0.9,
                "s per pair",
            )
        )
        memory = {
            count: in_fresh_process(run, setting, count)[1] for count in (counts[0], counts[-1])
        }
        data[f"{work}, peak memory in MB"] = memory
        title = f"{work}, all pairs: peak memory"
        comparisons.append(
            Comparison(
                "6",
                title,
                "an eighth of them",
                [memory[counts[-1]]],
                [memory[counts[0]]],
                unit="MB",
            )
        )
    by_batch = step_times(setting, [(batch, setting.config.image_size) for batch in BATCHES])
    by_size = step_times(setting, [(setting.config.batch_size, size) for size in SIZES])
    data |= {
        "images/s by batch": _per_second(by_batch, 0),
        "images/s by image size": _per_second(by_size, 1),
    }
    text = (
        f"Row 6: {counts[0]} to {counts[-1]} pairs. Memory-mapped files count as memory here, "
        "although the system frees their pages when memory is short. "
        + _explain(by_batch, by_size, setting)
    )
    return Result(comparisons, text, data)


def prepare_part(setting: Setting, count: int) -> None:
    """Read the first pairs, and label them by nearest colour."""
    labels(setting.train_pairs(count), "nearest")


def epoch_of_part(setting: Setting, count: int) -> float:
    """Return the seconds of an epoch on the first frames."""
    return our_epoch(setting.frames.part(slice(count)), setting.config, setting.device)


def step_times(setting: Setting, shapes: list[tuple[int, int]]) -> dict[tuple[int, int], float]:
    """Return the median seconds of a training step at each batch and image size."""
    config = setting.config
    contenders = {}
    for batch, size in shapes:
        model = UNet(3, 19, config.base_channels, config.fold).to(
            setting.device, memory_format=torch.channels_last
        )
        trainer = Trainer(model, torch.optim.AdamW(model.parameters()), autocast)
        x = torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
        y = torch.randint(0, 19, (batch, size, size))
        contenders[batch, size] = partial(
            trainer.epoch, [(x.to(setting.device), y.to(setting.device))] * 3
        )
    times = interleave(contenders, setting.rounds, dict.fromkeys(contenders, 3))
    return {shape: float(np.median(values)) for shape, values in times.items()}


def _per_second(times: dict[tuple[int, int], float], key: int) -> dict[int, float]:
    return {shape[key]: round(shape[0] / seconds, 2) for shape, seconds in times.items()}


def _explain(by_batch: dict, by_size: dict, setting: Setting) -> str:
    """Return the fixed time per step and the time per pixel in words, and which sizes are off that
    line."""
    shapes = list(dict.fromkeys(itertools.chain(by_batch, by_size)))
    times = by_size | by_batch
    pixels = np.array([batch * size**2 for batch, size in shapes], dtype=float)
    seconds = np.array([times[shape] for shape in shapes])
    # Least squares of relative errors: large batches must not outweigh small ones.
    design = np.stack([np.ones_like(pixels), pixels], axis=1) / seconds[:, None]
    fixed, slope = np.linalg.lstsq(design, np.ones_like(seconds), rcond=None)[0]
    off = [
        f"{batch}x{size}x{size} ({100 * (s / (fixed + slope * p) - 1):+.0f} %)"
        for (batch, size), p, s in zip(shapes, pixels, seconds, strict=True)
        if abs(s / (fixed + slope * p) - 1) > 0.1
    ]
    side = setting.config.image_size
    enough = 9 * max(fixed, 0) / (slope * side**2)
    rows = ["| batch | images/s | | image size | images/s |", "|---|---|---|---|---|"]
    pairs = itertools.zip_longest(
        _per_second(by_batch, 0).items(), _per_second(by_size, 1).items(), fillvalue=("", "")
    )
    rows += [f"| {a[0]} | {a[1]} | | {b[0]} | {b[1]} |" for a, b in pairs]
    return (
        f"A training step takes {1000 * fixed:.1f} ms for any size (launching operations, updating "
        f"weights) and {1e9 * slope:.1f} ns per pixel. Time is proportional to the batch size "
        f"within 10 % for {enough:.0f} or more images of {side}x{side}. "
        + (
            f"More than 10 % off that line: {', '.join(off)}."
            if off
            else "No size is more than 10 % off that line."
        )
        + "\n\n"
        + "\n".join(rows)
    )
