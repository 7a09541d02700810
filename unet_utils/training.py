"""The training loop: `fit` is a run, `train_epoch` an epoch with all that happens in a step.

`TrainingState` is what they change, and its way into a checkpoint and back: how a run is resumed.
"""

import contextlib
import copy
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from unet_utils.augment import augment, draw_changes
from unet_utils.checkpoints import (
    FORMAT,
    check_same_data,
    check_same_network,
    load_matching,
    made_by,
    read_checkpoint,
    weights_hash,
)
from unet_utils.config import TrainConfig, check_same_run
from unet_utils.device import autocast, compute_dtype, explain_errors, memory_format
from unet_utils.evaluation import score
from unet_utils.frames import Frames
from unet_utils.losses import AuxiliaryHeads, class_weights, prior_correction, segmentation_loss
from unet_utils.model import OtherNetwork, UNet, other_network
from unet_utils.optimizer import make_optimizer
from unet_utils.platform.environment import progress_bar
from unet_utils.platform.files import user_path
from unet_utils.run_files import RunFiles
from unet_utils.schedule import Schedule

Result = TypeVar("Result")


@explain_errors("halve batch_size first (in notebook 03: MORE), then base_channels")
def fit(
    frames: Frames,
    config: TrainConfig,
    folder: str | Path,
    device: torch.device | str,
    resume: bool = True,
    backup: str | Path | None = None,
    on_epoch: Callable[[list[dict], UNet | OtherNetwork], None] | None = None,
    on_step: Callable[[int, int, int, Schedule], None] | None = None,
    progress: bool = True,
    start_from: str | Path | None = None,
    processes: "OneProcess | None" = None,
    network: Callable[[int], nn.Module] | None = None,
) -> list[dict]:
    """Train a UNet, or resume a run: for each epoch train, score, save, report.

    After every epoch `folder` holds `last.pt` (all that is needed to resume), `best.pt` (the
    averaged weights of the best epoch) and `history.csv`. All randomness of an epoch follows from
    the seed and its number, so on the same machine an interrupted run ends like one that was not
    interrupted, on CPUs bit by bit. With more epochs than before, a run that has ended is extended
    by a new schedule.

    Args:
        frames: the training split.
        config: the settings, from `config.run_settings` or `recipe`; they are taken as they are.
        folder: where the files of the run go.
        device: where to train.
        resume: continue from `last.pt` if it exists; if False, earlier files of the run are
            renamed, not overwritten.
        backup: a second folder (on Drive) that gets copies of the files, and from which a run is
            restored if `folder` is empty. If it fails, a message says so, and training continues.
        on_epoch: called after every epoch with the history and the averaged model.
        on_step: called after every step with the epoch (from 1), the photos used in it, photos per
            epoch, and the schedule.
        progress: show a progress bar and print one line per epoch.
        start_from: checkpoint whose weights a new run starts from, as far as they fit.
        processes: the processes that train together; None for one.
        network: builds a network of your own for a number of classes, see `model.OtherNetwork`;
            None for the UNet. Of the settings, those of the UNet are then without meaning.

    Returns:
        The history: one dict per epoch, as `train_epoch` returns it, with `hold_out` also the
        scores on the held-out frames.

    Raises:
        ValueError: the run in `folder` learned from other data, or has another network or other
            held-out frames; there are fewer frames than the batch size; no pixel has a class.
        LockedError: another process trains this run.
        FloatingPointError: the loss is not finite.
        RuntimeError: out of GPU memory, or torch.compile failed; the message names the setting.
        OSError: the last epoch could not be saved.
    """
    device = torch.device(device)
    processes = processes or OneProcess()
    progress = progress and processes.rank == 0
    files = RunFiles(folder, backup)
    learn, held_out = frames.split(config.hold_out)
    _check_frames(learn, held_out, config, processes)
    facts = _facts(frames, config, device)
    with files if processes.rank == 0 else contextlib.nullcontext():
        checkpoint = processes.first(lambda: files.begin(resume))
        if checkpoint:
            check_same_data(checkpoint, facts, files.folder)
            check_same_run(TrainConfig.from_dict(checkpoint["config"]), config, files.folder)
        earlier = checkpoint or (read_checkpoint(start_from) if start_from else None)
        facts["licence"] = frames.licence or (earlier or {}).get("licence", "")
        facts["start_from"] = checkpoint.get("start_from", "") if checkpoint else ""
        if facts["licence"]:
            print(f"A model that learns from this may be used so: {facts['licence']}")
        torch.manual_seed(config.seed)
        model = processes.first(lambda: _first_model(frames, config, earlier, network))
        if checkpoint:
            check_same_network(checkpoint, model, files.folder)
        elif earlier:
            load_matching(model, earlier, start_from)
            file = user_path(str(start_from))
            weights = earlier["made_by"]["weights"]
            facts["start_from"] = f"{file.parent.name}/{file.name} ({weights[:8]})"
        state = TrainingState(model, learn, config, device, processes)
        if checkpoint:
            state.load(checkpoint)
            print(f"{files.last}: {state.epoch} of {config.epochs} epochs are done.")
            if state.epoch >= config.epochs:
                print("Nothing is left to train: to extend the run, set epochs (EPOCHS) higher.")
        if network:
            _try_sizes(state.model_to_use(), config.sizes(*frames.photos.shape[1:3]))
        learn = learn.to(device)

        while state.epoch < config.epochs:
            row = train_epoch(state, learn, config, processes, progress, on_step)
            if not (math.isfinite(row["loss"]) and state.is_finite()):
                message = (
                    f"the loss of epoch {row['epoch']} is {row['loss']}, or a weight is not "
                    "finite: lower learning_rate (LEARNING_RATE) and run again"
                )
                if state.epoch:
                    name = files.folder.name
                    message += f". Under the name {name} (RUN) it resumes after epoch {state.epoch}"
                raise FloatingPointError(message)
            state.epoch += 1
            state.history.append(row)
            if processes.rank > 0:
                continue  # the first process scores and saves
            model = state.model_to_use()
            if held_out:
                row |= score(model, held_out, tuple(facts["scene_size"])).summary()
            best = max((past.get("mean_iou", 0) for past in state.history[:-1]), default=0)
            facts["made_by"]["weights"] = weights_hash(state.averaged.state_dict())
            files.save(facts | state.to_dict(), is_best=row.get("mean_iou", 0) >= best)
            if progress:
                print(_line(state.history, Schedule(config, 1, state.first_epoch)))
            if on_epoch:
                on_epoch(state.history, model)
    if not files.saved:
        raise OSError(f"the last epoch could not be saved in {files.folder}: see the message above")
    return state.history


def train_epoch(
    state: "TrainingState",
    learn: Frames,
    config: TrainConfig,
    processes: "OneProcess",
    progress: bool = False,
    on_step: Callable[[int, int, int, Schedule], None] | None = None,
) -> dict:
    """Train one epoch: every frame once, in random order; a last part of a batch is left out.

    Args:
        state: of the run; changed in place, except for the number of epochs and the history.
        learn: the frames to learn from.
        config: the settings.
        processes, progress, on_step: as in `fit`.

    Returns:
        `epoch` (from 1), `learning_rate` at its end, `loss` (mean over the steps), `seconds` and
        `images_per_second`.
    """
    # All randomness of the epoch comes from this seed: no random state has to be saved.
    seed = (config.seed * 1_000_003 + state.epoch) % 2**63
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # for layers with random numbers of their own, as in ConvNeXt
    # A small last batch would be a noisy step, so it is left out.
    steps = len(learn) // config.batch_size
    images = steps * config.batch_size
    batches = torch.randperm(len(learn), generator=generator)[:images].split(config.batch_size)
    mine = processes.part(config.batch_size)
    schedule = Schedule(config, steps, state.first_epoch)
    height, width = learn.photos.shape[1:3]

    state.network.train()
    total_loss = torch.zeros((), device=state.device)
    started = time.perf_counter()
    title = f"epoch {state.epoch + 1}/{config.epochs}"
    bar = progress_bar(total=images, desc=title, unit="img", disable=not progress, leave=False)
    data = learn.batches((batch[mine] for batch in batches), state.device)
    for step, (photos, labels) in enumerate(data, start=state.epoch * steps):
        changes = draw_changes(config.batch_size, generator, config.augmentation, config.cutmix)
        size = schedule.input_size(step, width / height)
        x, y = augment(photos, labels, size, changes.part(mine))

        with autocast(state.device):
            outputs = state.network(x.contiguous(memory_format=memory_format(state.device)))
        loss, with_heads = segmentation_loss(
            outputs, y, state.class_weights, config.auxiliary, processes.sum
        )

        for number, group in enumerate(state.optimizer.param_groups):
            frozen = number == 1 and state.epoch < config.frozen_epochs  # the contracting path
            group["lr"] = 0.0 if frozen else schedule.learning_rate(step)
        state.optimizer.zero_grad(set_to_none=True)
        # Several processes average their gradients, but each has only a part of the loss.
        state.scaler.scale(with_heads * processes.size).backward()
        state.scaler.unscale_(state.optimizer)
        nn.utils.clip_grad_norm_(state.network.parameters(), 1.0)
        # In float16 it leaves the weights as they are if a gradient is not finite; in other
        # precisions `fit` stops after the epoch.
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.average(schedule.averaging if step else 1.0)  # without the random first weights

        total_loss += loss.detach()  # read after the epoch: reading it here would wait for the GPU
        done = (step + 1 - state.epoch * steps) * config.batch_size
        bar.update(config.batch_size)
        if on_step:
            on_step(state.epoch + 1, done, images, schedule)
    bar.close()
    mean_loss = (processes.sum(total_loss) / steps).item()
    seconds = time.perf_counter() - started
    return {
        "epoch": state.epoch + 1,
        "learning_rate": schedule.learning_rate((state.epoch + 1) * steps - 1),
        "loss": mean_loss,
        "seconds": round(seconds, 2),
        "images_per_second": round(images / seconds, 2),
    }


class TrainingState:
    """All that changes during a run, and its way into a checkpoint and back.

    Args:
        model: the UNet with its first weights.
        learn: the frames to learn from; the classes are weighted by their pixels.
        config: the settings.
        device: where to train.
        processes: those that train together.

    Attributes:
        model: the network; `network` is the same with the auxiliary heads, as it is trained.
        device: where it trains.
        averaged: a UNet with the running average of the weights: the result of the training.
        optimizer, scaler: they have a state of their own. The scaler keeps small float16 gradients
            from becoming zero; in other precisions it does nothing.
        epoch: number of epochs that are done.
        first_epoch: where the schedule began, see `Schedule`.
        history: one dict per epoch.
    """

    def __init__(
        self,
        model: UNet | OtherNetwork,
        learn: Frames,
        config: TrainConfig,
        device: torch.device,
        processes: "OneProcess",
    ):
        self.model = model
        with_heads = AuxiliaryHeads(model, config.auxiliary > 0)
        with_heads.to(device, memory_format=memory_format(device))
        self.heads = with_heads.heads
        self.averaged = copy.deepcopy(model).requires_grad_(False)
        self.network = processes.wrap(with_heads)
        if config.compile:
            self.network = torch.compile(self.network)  # type: ignore[assignment]
        self.optimizer = make_optimizer(config, with_heads, model.encoder)
        uses_float16 = compute_dtype(device) == torch.float16
        self.scaler = torch.amp.GradScaler(device.type, enabled=uses_float16)
        self.class_weights = class_weights(learn.class_counts(), config.class_weighting).to(device)
        self.device = self.class_weights.device  # with the number of the GPU
        self.logit_shift = prior_correction(self.class_weights, config.prior_correction)
        self.epoch = 0
        self.first_epoch = 0
        self.history: list[dict] = []
        # The tensors that are averaged: weights, and the statistics of the normalization.
        self._current = _numbers(self.model)
        self._averaged = _numbers(self.averaged)

    def average(self, share: float) -> None:
        """Move the averaged weights towards the current ones.

        Args:
            share: of the current ones, see `Schedule.averaging`.
        """
        torch._foreach_lerp_(self._averaged, self._current, share)

    def is_finite(self) -> bool:
        """Return whether all weights and statistics are numbers."""
        return all(bool(values.isfinite().all()) for values in self._current)

    def model_to_use(self) -> UNet | OtherNetwork:
        """Return the averaged model in evaluation mode, with the prior correction."""
        model = copy.deepcopy(self.averaged).eval()
        model.shift_logits(self.logit_shift)
        return model

    def to_dict(self) -> dict:
        """Return tensors and plain values: with the settings, all that is needed to resume."""
        return {
            "network": self.model.config,
            "model": self.model.state_dict(),
            "heads": self.heads.state_dict(),
            "averaged": self.averaged.state_dict(),
            "logit_shift": self.logit_shift.cpu(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "epoch": self.epoch,
            "first_epoch": self.first_epoch,
            "history": self.history,
        }

    def load(self, checkpoint: dict) -> None:
        """Take over what `to_dict` returned. A run that had ended gets a new schedule."""
        self.model.load_state_dict(checkpoint["model"])
        self.heads.load_state_dict(checkpoint["heads"])
        self.averaged.load_state_dict(checkpoint["averaged"])
        # The saved groups hold settings, too, but those of this session count.
        own = [dict(group) for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        for group, current in zip(self.optimizer.param_groups, own, strict=True):
            group["weight_decay"] = current["weight_decay"]
            group["rate"] = current["rate"]
        if checkpoint["scaler"] and self.scaler.is_enabled():  # empty after other precisions
            self.scaler.load_state_dict(checkpoint["scaler"])
        self.epoch = checkpoint["epoch"]
        self.history = checkpoint["history"]
        ended = self.epoch >= checkpoint["config"]["epochs"]
        self.first_epoch = self.epoch if ended else checkpoint["first_epoch"]


def _numbers(model: nn.Module) -> list[Tensor]:
    return [values for values in model.state_dict().values() if values.is_floating_point()]


class OneProcess:
    """The processes that train together: here, one. `use.several_gpus` has the one for several.

    Attributes:
        rank: number of this process, from 0. The first one scores, saves and prints.
        size: number of processes.
    """

    rank = 0
    size = 1

    def part(self, batch_size: int) -> slice:
        """Return this process's part of every batch."""
        return slice(self.rank * batch_size // self.size, (self.rank + 1) * batch_size // self.size)

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum over all processes."""
        return tensor

    def first(self, function: Callable[[], Result]) -> Result:
        """Call a function in the first process, then in the others, which find its files."""
        return function()

    def wrap(self, network: nn.Module) -> nn.Module:
        """Return the network with gradients that are the mean over all processes."""
        return network


def _check_frames(
    learn: Frames, held_out: Frames | None, config: TrainConfig, processes: OneProcess
) -> None:
    """Check that there is something to learn from and to score on.

    Raises:
        ValueError: fewer frames than a batch, a batch that is too small for the processes, or no
            labelled pixel.
    """
    if config.batch_size > len(learn):
        raise ValueError(
            f"batch_size is {config.batch_size}, but there are only {len(learn)} frames to learn "
            "from: lower it"
        )
    if config.batch_size < processes.size:
        raise ValueError(
            f"batch_size is {config.batch_size}: set it to {processes.size} or more, one photo for "
            "each process"
        )
    for name, frames in (("training", learn), ("held-out", held_out)):
        if frames and frames.class_counts().sum() == 0:
            raise ValueError(
                f"no pixel of the {name} frames has a class of the scheme "
                f"{frames.scheme.name!r}: look at the masks"
            )


def _facts(frames: Frames, config: TrainConfig, device: torch.device) -> dict:
    """Return what all checkpoints of a run say of it."""
    return {
        "format": FORMAT,
        "scheme": frames.scheme.to_dict(),
        "config": config.to_dict(),
        "scene_size": list(config.scene_size(*frames.photos.shape[1:3])),
        "data": {"files": frames.data, "labels": frames.labels, "frames": len(frames)},
        "made_by": made_by(device, frames.label_hash()),
    }


def _first_model(
    frames: Frames,
    config: TrainConfig,
    earlier: dict | None,
    network: Callable[[int], nn.Module] | None,
) -> UNet | OtherNetwork:
    """Return the network with random weights, or those of ImageNet.

    Args:
        frames, config, network: as in `fit`.
        earlier: the checkpoint whose weights will be loaded: they need not be those of ImageNet.
    """
    classes = frames.scheme.num_classes
    if network:
        other = other_network(network, classes)
        config.check_divisor(other.divisor, *frames.photos.shape[1:3])
        return other
    arguments = config.network(classes)
    known = earlier and earlier["network"].get("encoder") == arguments.get("encoder")
    return UNet(**arguments, pretrained=not known)


def _try_sizes(model: UNet | OtherNetwork, sizes: list[tuple[int, int]]) -> None:
    """Show an empty photo of each size to a network of somebody else: what it cannot take is found
    before the training, not after an epoch.

    Raises:
        RuntimeError: the network raised an error.
    """
    device = next(model.parameters()).device
    for size in sizes:
        x = torch.zeros(1, 3, *size, device=device)
        try:
            with torch.inference_mode(), autocast(device):
                model.network(x)
        except Exception as error:
            raise RuntimeError(
                f"{model.config['other']} failed for a batch of {list(x.shape)} "
                f"({type(error).__name__}: {error}). If it takes one size only, set image_size to "
                "this size, growth=0 and augmentation=0: else it gets smaller photos at first, and "
                "whole frames larger"
            ) from error


def _line(history: list[dict], schedule: Schedule) -> str:
    """Return what is printed after an epoch."""
    row = history[-1]
    epochs = schedule.config.epochs
    text = f"epoch {row['epoch']}/{epochs}  loss {row['loss']:.3f}  "
    text += f"{row['images_per_second']:.0f} images/s"
    if "mean_iou" in row:
        text += f"  held-out frames: pixel accuracy {row['pixel_accuracy']:.3f}, "
        text += f"mIoU {row['mean_iou']:.3f}"
    if row["epoch"] < epochs:
        recent = history[-3:]
        before = (row["epoch"] - len(recent)) / epochs
        seconds = sum(past["seconds"] for past in recent)
        left = schedule.time_left(seconds, before, row["epoch"] / epochs)
        text += f"  {left / 60:.1f} min left"
    return text
