"""Rows 2 and 7: the time of an epoch, and accuracy against training time. Row 6 uses the epoch,
too."""

import itertools
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch
from torch.utils.data import DataLoader

from benchmarks.peers import (
    CopiedDataset,
    CopiedDoubleConv,
    NamedClusters,
    PlainUNet,
    TextbookDataset,
    Trainer,
)
from benchmarks.setting import Setting
from benchmarks.timing import Comparison, Result, interleave
from unet_utils import Frames, TrainConfig, UNet, fit
from unet_utils.device import autocast
from unet_utils.evaluation import score
from unet_utils.model import OtherNetwork

COPIED_CLUSTERS = 10
COPIED_BATCH = 4
COPIED_RATE = 0.01
"""Settings of the copied recipe."""


def our_epoch(frames: Frames, config: TrainConfig, device: torch.device) -> float:
    """Return the seconds of one epoch of `fit`: reading, augmentation and steps, without scoring
    and saving."""
    config = replace(
        config, epochs=1, hold_out=False, batch_size=min(config.batch_size, len(frames))
    )
    with tempfile.TemporaryDirectory() as folder:
        return fit(frames, config, folder, device, progress=False)[-1]["seconds"]


def our_bound(frames: Frames, config: TrainConfig, device: torch.device) -> float:
    """Return the same without any work on data: the network learns from one batch again and
    again."""
    shape = (min(config.batch_size, len(frames)), config.image_size, config.image_size)
    batch = (
        torch.randn(shape[0], 3, *shape[1:], device=device),
        torch.randint(0, 19, shape, device=device),
    )
    with (
        mock.patch("unet_utils.training.augment", return_value=batch),
        mock.patch("unet_utils.training.draw_changes"),
        mock.patch.object(
            Frames, "batches", lambda self, order, device: ((None, None) for _ in order)
        ),
    ):
        return our_epoch(frames, config, device)


def copied_trainer(width: int, device: torch.device) -> Trainer:
    """Return network and optimizer of the copied recipe, in float32, with so many channels in the
    first level."""
    model = PlainUNet(COPIED_CLUSTERS, width, CopiedDoubleConv).to(device)
    adam = torch.optim.Adam(model.parameters(), lr=COPIED_RATE)
    return Trainer(model, adam, lambda device: torch.autocast(device.type, enabled=False))


def epochs(setting: Setting) -> Result:
    """Row 2."""
    config = setting.config
    device = setting.device
    count = min(setting.images, len(setting.frames)) // config.batch_size * config.batch_size
    frames = setting.frames.part(slice(count))
    paths = setting.paths[:count]
    unfolded = replace(config, fold=1)
    size = config.image_size

    copied = copied_trainer(config.base_channels, device)
    copied_loader = DataLoader(CopiedDataset(paths, size), COPIED_BATCH)
    copied_batch = (
        torch.randn(COPIED_BATCH, 3, size, size),
        torch.zeros(COPIED_BATCH, size, size, dtype=torch.long),
    )

    model = UNet(3, frames.scheme.num_classes, config.base_channels, config.fold).to(device)
    textbook = Trainer(model, torch.optim.AdamW(model.parameters(), lr=1e-3), autocast)
    textbook_loader = DataLoader(
        TextbookDataset(paths, frames, size),
        config.batch_size,
        shuffle=True,
        num_workers=2,
        pin_memory=device.type == "cuda",
        drop_last=True,
    )
    shape = (config.batch_size, size, size)
    textbook_batch = torch.randn(shape[0], 3, *shape[1:]), torch.zeros(shape, dtype=torch.long)

    contenders: dict[str, Callable] = {
        "ours": lambda: our_epoch(frames, config, device),
        "ours, one batch": lambda: our_bound(frames, config, device),
        "ours, not folded": lambda: our_epoch(frames, unfolded, device),
        "copied": lambda: copied.epoch(copied_loader),
        "copied, one batch": lambda: copied.epoch(
            itertools.repeat(copied_batch, len(copied_loader))
        ),
        "textbook": lambda: textbook.epoch(textbook_loader),
        "textbook, one batch": lambda: textbook.epoch(
            itertools.repeat(textbook_batch, len(textbook_loader))
        ),
    }
    times = interleave(contenders, setting.rounds, dict.fromkeys(contenders, count))
    best = {name: min(values) for name, values in times.items()}
    lines = ["| images/s | | waits for data |", "|---|---|---|"]
    for name in ("ours", "copied", "textbook"):
        waits = max(0, 1 - best[f"{name}, one batch"] / best[name])
        lines.append(f"| {1 / best[name]:.1f} | {name} | {100 * waits:.0f} % |")

    def row(
        number: str, work: str, ours: str, other: str, theirs: str, at_most: float | None
    ) -> Comparison:
        return Comparison(
            number, work, other, times[ours], times[theirs], at_most, unit="s per image"
        )

    return Result(
        [
            row(
                "2a", "an epoch", "ours", "the same steps on one batch", "ours, one batch", 1 / 0.95
            ),
            row(
                "2b",
                "an epoch",
                "ours",
                "copied recipe",
                "copied",
                1 / 3 if device.type == "cpu" else 1.0,
            ),
            row(
                "2b",
                "an epoch, fold 1",
                "ours, not folded",
                "copied recipe, same width",
                "copied",
                None,
            ),
            row(
                "2c",
                "an epoch",
                "ours",
                "DataLoader, 2 workers, v2, AMP; same network",
                "textbook",
                1.0,
            ),
        ],
        f"Row 2: {count} images at {size}x{size}, width {config.base_channels}, fold "
        f"{config.fold}. The share that waits for data is the time beyond that of the same steps "
        "on one batch.\n\n" + "\n".join(lines),
        {"images/s": {name: 1 / value for name, value in best.items()}},
    )


def accuracy(setting: Setting) -> Result:
    """Row 7: mIoU on the held-out frames against minutes of training. Scoring does not count as
    training."""
    curves = {"ours": _our_curve(setting), "copied recipe": _copied_curve(setting)}
    best = {name: max(score for _, score in curve) for name, curve in curves.items()}
    ended = ", ".join(f"{name} {score:.3f} (best)" for name, score in best.items())
    return Result(
        [],
        f"Row 7: mIoU over 19 classes on the held-out frames after about {setting.minutes:g} "
        f"minutes of training each: {ended}. Both are scored against the same restored labels; a "
        "cluster of the copied recipe counts as the most frequent class of its pixels.",
        {"minutes and mIoU": curves},
    )


def _our_curve(setting: Setting) -> list[tuple[float, float]]:
    frames = setting.frames
    config = setting.config
    learn, _ = frames.split(hold_out=True)
    probe = learn.part(slice(4 * config.batch_size))
    rate = len(probe) / min(our_epoch(probe, config, setting.device) for _ in range(2))  # images/s
    count = max(1, int(60 * setting.minutes * rate / len(learn)))
    with tempfile.TemporaryDirectory() as folder:
        history = fit(frames, replace(config, epochs=count), folder, setting.device, progress=False)
    minutes = itertools.accumulate(row["seconds"] / 60 for row in history)
    return [(spent, row["mean_iou"]) for spent, row in zip(minutes, history, strict=True)]


def _copied_curve(setting: Setting) -> list[tuple[float, float]]:
    learn, held_out = setting.frames.split(hold_out=True)
    paths: dict[int, Path] = {int(path.stem): path for path in setting.paths}
    dataset = CopiedDataset([paths[number] for number in learn.numbers], setting.config.image_size)
    trainer = copied_trainer(setting.config.base_channels, setting.device)
    named = NamedClusters(trainer.model, dataset, learn, COPIED_CLUSTERS)
    model = OtherNetwork(named, learn.scheme.num_classes).to(setting.device)
    size = setting.config.image_size

    def scored() -> float:
        model.eval()  # the copies forget this, which would lower their score
        result = score(model, held_out, size).mean_iou
        model.train()
        return result

    curve = []
    spent = 0.0
    next_score = setting.minutes / 8
    loader = DataLoader(dataset, COPIED_BATCH)
    while spent < setting.minutes:
        start = time.perf_counter()
        for batch in loader:
            trainer.step(*batch)
            minutes = spent + (time.perf_counter() - start) / 60
            if minutes >= next_score:
                curve.append((minutes, scored()))
                start = time.perf_counter()  # scoring does not count
                spent = minutes
                next_score += setting.minutes / 8
            if minutes >= setting.minutes:
                break
        spent += (time.perf_counter() - start) / 60
    return curve
