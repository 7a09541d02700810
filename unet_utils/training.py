"""The training loop: one epoch after another, a checkpoint after each, and how a run is resumed."""

import contextlib
import copy
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from unet_utils.augment import augment, crop_share, draw_changes
from unet_utils.checkpoints import FORMAT, RunFiles, load_matching, read_checkpoint
from unet_utils.classes import ClassScheme
from unet_utils.config import TrainConfig, continued, explain_error
from unet_utils.device import autocast, compute_dtype, memory_format
from unet_utils.evaluation import score
from unet_utils.frames import Frames
from unet_utils.losses import AuxiliaryHeads, class_weights, prior_correction, segmentation_loss
from unet_utils.model import UNet
from unet_utils.optimizer import Muon, parameter_groups
from unet_utils.platform.environment import progress_bar
from unet_utils.platform.files import user_path
from unet_utils.platform.processes import SingleProcess


def fit(
    frames: Frames,
    config: TrainConfig,
    folder: str | Path,
    device: torch.device | str,
    resume: bool = True,
    backup: str | Path | None = None,
    on_epoch: Callable[[list[dict], UNet], None] | None = None,
    on_step: Callable[[int, int, int, int], None] | None = None,
    progress: bool = True,
    start_from: str | Path | None = None,
    processes: SingleProcess | None = None,
) -> list[dict]:
    """Train a UNet, or continue an interrupted run.

    After every epoch `folder` holds `last.pt` (all that is needed to resume), `best.pt` (the
    averaged weights of the best epoch) and `history.csv`. All randomness of an epoch follows from
    the seed and its number, so on the same machine an interrupted run ends like one that was not
    interrupted, on CPUs bit by bit. A resumed run keeps the settings of its checkpoint; only
    settings in `config.chosen` are compared with it. With more epochs than before, a run that has
    ended continues with a new schedule.

    Args:
        frames: the training split.
        config: the settings.
        folder: where the files of the run go.
        device: where to train.
        resume: continue from `last.pt` if it exists; if False, earlier files of the run are
            renamed, not overwritten.
        backup: a second folder (on Drive) that gets a copy of the files after every epoch, and from
            which a run is restored if `folder` is empty. If it fails, a message says so, and
            training continues.
        on_epoch: called after every epoch with the history and the averaged model.
        on_step: called after every step with the epoch (from 1), the photos used in it, photos per
            epoch, and epochs.
        progress: show a progress bar and print one line per epoch.
        start_from: checkpoint whose weights a new run starts from, as far as they fit.
        processes: the processes that train together; None for one.

    Returns:
        The history: one dict per epoch with its `epoch` (from 1), `learning_rate`, `loss` (mean
        over the epoch), `seconds`, `images_per_second` and, with `hold_out`, the scores on the
        held-out cities.

    Raises:
        ValueError: the checkpoint has another class scheme or chosen setting; there are fewer
            frames than the batch size; no pixel has a class.
        LockedError: another process trains this run.
        FloatingPointError: the loss is not finite.
        RuntimeError: out of GPU memory, or torch.compile failed; the message names the setting to
            change.
    """
    device, folder, processes = (
        torch.device(device),
        user_path(folder),
        processes or SingleProcess(),
    )
    files = RunFiles(folder, user_path(backup) if backup else None)
    folder.mkdir(parents=True, exist_ok=True)
    with files.lock if processes.rank == 0 else contextlib.nullcontext():
        checkpoint = None
        try:
            if resume:
                processes.once(files.restore)
            if resume and files.last.exists():
                checkpoint = read_checkpoint(files.last)
        except ValueError as error:
            raise ValueError(
                f"{error}. To begin again, switch resume off (RESUME): the file is then renamed"
            ) from error
        if checkpoint:
            config = continued(config, checkpoint, files.last)
        else:
            processes.once(
                files.set_aside
            )  # also a best.pt without a last.pt: nothing is overwritten
        run = _Run(frames, config, device, processes, checkpoint, files.last, start_from)
        while run.epoch < config.epochs:
            try:
                row = _train_epoch(run, progress and processes.rank == 0, on_step)
            except Exception as error:
                explain_error(error, config)
                raise
            if not (
                math.isfinite(row["loss"])
                and all(part.isfinite().all() for part in run.model.parameters())
            ):
                raise FloatingPointError(
                    f"the loss of epoch {run.epoch + 1} is {row['loss']}, or a weight is not finite: lower "
                    f"learning_rate (LEARNING_RATE) and run again. It resumes after epoch {run.epoch}"
                )
            run.epoch += 1
            model = run.model_to_use()
            if run.held_out:
                row |= score(model, run.held_out, run.scene_size, processes).summary()
            run.history.append(row)
            is_best = not run.held_out or row["mean_iou"] >= max(
                r["mean_iou"] for r in run.history if "mean_iou" in r
            )
            processes.once(files.save, run.checkpoint(), is_best)
            if progress:
                print(_line(run.history, config))
            if on_epoch:
                on_epoch(run.history, model)
        return run.history


class _Run:
    """All that changes during a run, and its way into a checkpoint and back."""

    def __init__(
        self,
        frames: Frames,
        config: TrainConfig,
        device: torch.device,
        processes: SingleProcess,
        checkpoint: dict | None,
        path: Path,
        start_from: str | Path | None,
    ):
        torch.manual_seed(config.seed)
        self.config, self.scheme, self.device, self.processes = (
            config,
            frames.scheme,
            device,
            processes,
        )
        self.held_out: Frames | None
        learn, self.held_out = frames.split_cities() if config.hold_out else (frames, None)
        if config.batch_size > len(learn):
            raise ValueError(
                f"batch_size is {config.batch_size}, but there are only {len(learn)} frames to learn from"
            )
        if config.batch_size < processes.size:
            raise ValueError(
                f"batch_size is {config.batch_size}, too small for {processes.size} processes"
            )
        self.num_frames = len(frames)
        height, width = frames.photos.shape[1:3]
        self.scene_size = config.scene_size(height, width)
        self.crop = crop_share(height, width, config.image_size)
        self.learn, self.steps_per_epoch = learn.to(device), len(learn) // config.batch_size
        counts = processes.sum(
            learn.part(processes.part(len(learn))).class_counts().to(device)
        ).cpu()
        for name, pixels in (
            ("training", counts),
            ("held-out", self.held_out and self.held_out.class_counts()),
        ):
            if pixels is not None and pixels.sum() == 0:
                raise ValueError(
                    f"no pixel of the {name} frames has a class of the scheme {frames.scheme.name!r}: look at the masks"
                )
        self.class_weights = class_weights(counts, config.class_weighting).to(device)
        self.logit_shift = prior_correction(self.class_weights, config.prior_correction)
        network = (
            checkpoint["model_config"] if checkpoint else config.network(frames.scheme.num_classes)
        )
        source = read_checkpoint(start_from) if start_from and not checkpoint else None
        # Else the weights of the encoder come from a checkpoint.
        pretrained = not checkpoint and (
            not source or source["model_config"].get("encoder") != network.get("encoder")
        )
        self.model = processes.in_turn(
            lambda: UNet(**network, pretrained=pretrained)
        )  # which may download them
        if source:
            load_matching(self.model, source, start_from)
        training_model = AuxiliaryHeads(self.model, config.auxiliary > 0)
        training_model.to(device, memory_format=memory_format(device))
        self.heads, self.forward = training_model.heads, processes.wrap(training_model)
        if config.compile:
            try:
                self.forward = torch.compile(self.forward)  # type: ignore[assignment]
            except RuntimeError as error:  # not on this system, or not with this version of Python
                raise RuntimeError(
                    f"torch.compile failed ({error}): set compile to False (COMPILE)"
                ) from error
        groups = parameter_groups(training_model, self.model.encoder, config.encoder_rate)
        self.optimizer = Muon(groups, weight_decay=config.weight_decay)
        self.scaler = torch.amp.GradScaler(
            device.type, enabled=compute_dtype(device) == torch.float16
        )
        self.epoch, self.schedule_start = 0, 0
        self.history: list[dict] = []
        if checkpoint:
            self._load(checkpoint, path)
        steps = max(
            1.0, config.averaging * (config.epochs - self.schedule_start) * self.steps_per_epoch
        )
        self.averaged = AveragedModel(
            self.model, multi_avg_fn=get_ema_multi_avg_fn(1 - 1 / steps), use_buffers=True
        )
        if checkpoint:
            self.averaged.module.load_state_dict(checkpoint["averaged"])
            self.averaged.n_averaged.copy_(checkpoint["averaged_steps"])

    def learning_rate(self, step: int) -> float:
        """One cycle (https://arxiv.org/abs/1708.07120): linear warm-up over a tenth of the steps,
        then a cosine."""
        total = (self.config.epochs - self.schedule_start) * self.steps_per_epoch
        step, warm = step - self.schedule_start * self.steps_per_epoch, max(1, total // 10)
        if step < warm:
            return self.config.learning_rate * (step + 1) / warm
        final, wave = self.config.final_rate, math.cos(math.pi * (step - warm) / (total - warm))
        return self.config.learning_rate * (1 + final + (1 - final) * wave) / 2

    def model_to_use(self) -> UNet:
        """Return the averaged model in evaluation mode, with the prior correction."""
        self.processes.share_buffers(self.model, self.averaged.module)
        model: Any = copy.deepcopy(self.averaged.module).eval()
        model.shift_logits(self.logit_shift)
        return model

    def checkpoint(self) -> dict:
        return {
            "format": FORMAT,
            "model": self.model.state_dict(),
            "model_config": self.model.config,
            "heads": self.heads.state_dict(),
            "averaged": self.averaged.module.state_dict(),
            "averaged_steps": self.averaged.n_averaged,
            "logit_shift": self.logit_shift.cpu(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "epoch": self.epoch,
            "schedule_start": self.schedule_start,
            "history": self.history,
            "frames": self.num_frames,
            "config": self.config.to_dict() | {"scene_size": list(self.scene_size)},
            "scheme": self.scheme.to_dict(),
        }

    def _load(self, checkpoint: dict, path: Path) -> None:
        scheme = ClassScheme.from_dict(checkpoint["scheme"])
        scene_size = tuple(checkpoint["config"].get("scene_size", self.scene_size))
        if self.crop == (1.0, 1.0) and scene_size == (
            self.config.image_size,
            self.config.image_size,
        ):
            self.scene_size = scene_size  # version 0.1 showed square frames as wide as in training
        for what, was, now in (
            ("class scheme", scheme.name, self.scheme.name),
            ("classes", scheme.names, self.scheme.names),
            ("cluster colours", scheme.cluster_colors, self.scheme.cluster_colors),
            (
                "number of training frames",
                checkpoint.get("frames", self.num_frames),
                self.num_frames,
            ),
            ("scene size", scene_size, self.scene_size),
        ):
            if was != now:
                raise ValueError(
                    f"{path} was trained with the {what} {was}, now it is {now}: set it back, choose another run name, "
                    "or switch resume off to begin again"
                )
        self.model.load_state_dict(checkpoint["model"])
        self.heads.load_state_dict(checkpoint.get("heads", {}))
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        if (
            self.scaler.is_enabled() and checkpoint["scaler"]
        ):  # empty if the epochs before needed no loss scaling
            self.scaler.load_state_dict(checkpoint["scaler"])
        self.epoch, self.history = checkpoint["epoch"], checkpoint["history"]
        ended = self.epoch >= checkpoint["config"]["epochs"]
        self.schedule_start = self.epoch if ended else checkpoint.get("schedule_start", 0)


def _train_epoch(
    run: _Run, progress: bool, on_step: Callable[[int, int, int, int], None] | None
) -> dict:
    config, processes = run.config, run.processes
    # All randomness of the epoch comes from this generator: no random state has to be saved.
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + run.epoch)
    torch.manual_seed(
        generator.initial_seed()
    )  # for layers with random numbers of their own, as in ConvNeXt
    order = torch.randperm(len(run.learn), generator=generator)
    total = torch.zeros((), device=run.device)
    started, step = time.perf_counter(), run.epoch * run.steps_per_epoch
    run.forward.train()
    # A small last batch would be a noisy step, so it is left out.
    batches = order[: run.steps_per_epoch * config.batch_size].split(config.batch_size)
    mine, images = processes.part(config.batch_size), run.steps_per_epoch * config.batch_size
    with progress_bar(total=images, unit="img", disable=not progress, leave=False) as bar:
        bar.set_description(f"epoch {run.epoch + 1}/{config.epochs}")
        for number, (photos, labels) in enumerate(
            run.learn.batches((batch[mine] for batch in batches), run.device)
        ):
            changes = draw_changes(
                config.batch_size, generator, config.augmentation, run.crop
            ).part(mine)
            # A run that had ended goes on at full size.
            done = (
                1.0
                if run.schedule_start
                else (step + number) / (config.epochs * run.steps_per_epoch)
            )
            x, y = augment(photos, labels, config.input_size(done), changes, run.crop)
            rate = run.learning_rate(step + number)
            total += _step(
                run, x, y, rate
            )  # not read before the end of the epoch: that would wait for the GPU
            bar.update(config.batch_size)
            if on_step:
                on_step(run.epoch + 1, (number + 1) * config.batch_size, images, config.epochs)
    loss, seconds = (processes.sum(total) / len(batches)).item(), time.perf_counter() - started
    return {
        "epoch": run.epoch + 1,
        "learning_rate": rate,
        "loss": loss,
        "seconds": round(seconds, 2),
        "images_per_second": round(images / seconds, 2),
    }


def _step(run: _Run, x: Tensor, y: Tensor, rate: float) -> Tensor:
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    with autocast(run.device):
        outputs = run.forward(x.contiguous(memory_format=memory_format(run.device)))
    loss, total = segmentation_loss(
        outputs, y, run.class_weights, run.config.auxiliary, run.processes.sum
    )
    run.optimizer.zero_grad(set_to_none=True)
    run.scaler.scale(total * run.processes.size).backward()  # the processes average their gradients
    run.scaler.unscale_(run.optimizer)
    torch.nn.utils.clip_grad_norm_(run.forward.parameters(), 1.0)
    run.scaler.step(run.optimizer)
    run.scaler.update()
    run.averaged.update_parameters(run.model)
    return loss.detach()


def _line(history: list[dict], config: TrainConfig) -> str:
    row, recent = history[-1], history[-3:]
    before, done = (number / config.epochs for number in (row["epoch"] - len(recent), row["epoch"]))
    left = config.time_left(sum(r["seconds"] for r in recent), before, done) / 60
    text = f"epoch {row['epoch']}/{config.epochs}  loss {row['loss']:.3f}  {row['images_per_second']:.0f} images/s"
    if "mean_iou" in row:
        text += f"  held-out cities: pixel accuracy {row['pixel_accuracy']:.3f}, mIoU {row['mean_iou']:.3f}"
    return text + (f"  {left:.1f} min left" if row["epoch"] < config.epochs else "")
