"""The training loop: one epoch after another, a checkpoint after each, and going on where it stopped."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from unet_utils.augment import augment, draw_changes
from unet_utils.checkpoints import RunFiles, read_checkpoint
from unet_utils.config import TrainConfig
from unet_utils.dataset import Frames
from unet_utils.evaluation import evaluate
from unet_utils.extras.distributed import ALONE, World
from unet_utils.metrics import ConfusionMatrix
from unet_utils.model import UNet, autocast, compute_dtype
from unet_utils.optimizer import Muon
from unet_utils.platform.environment import progress_bar

FORMAT = 1
"""Version of the checkpoint's layout."""


Reporter = Callable[[list[dict], UNet], None]


def fit(
    frames: Frames,
    config: TrainConfig,
    folder: str | Path,
    device: torch.device | str,
    resume: bool = True,
    backup: str | Path | None = None,
    on_epoch: Reporter | None = None,
    progress: bool = True,
    world: World = ALONE,
) -> list[dict]:
    """Trains a UNet, or goes on where an earlier call was interrupted.

    After every epoch `last.pt` (everything needed to go on), `best.pt` (the averaged weights of the best epoch, to
    use) and `history.csv` are in `folder`. All randomness of an epoch follows from the seed and its number, so a run
    that was interrupted ends exactly as one that was not.

    Args:
        frames: the training split.
        config: the knobs.
        folder: where the run's files go.
        device: where to train.
        resume: go on from `last.pt` if it is there; otherwise earlier files of the run are set aside, not overwritten.
        backup: a second folder (Drive) that gets a copy of the files after every epoch and that a run is restored
            from when `folder` is empty. If it fails, training goes on and says so.
        on_epoch: called with the history and the averaged model after every epoch, for plots.
        progress: show bars and one line an epoch.
        world: the processes that train together, see `distributed`; all of them call this function, the first one
            writes the files and shows the progress.

    Returns:
        The history: one dict an epoch with its `epoch` (from 1), `loss` (mean over the epoch's pixels), `seconds`,
        `images_per_second` and, with `hold_out`, the scores on the held-out cities.

    Raises:
        ValueError: the checkpoint to go on from has other settings, classes or another model; or there are fewer
            frames than a batch takes, or fewer photos in a batch than processes.
        FloatingPointError: the loss is no longer finite.
        RuntimeError: out of GPU memory; the message names the knobs that need less.
    """
    device, folder = torch.device(device), Path(folder)
    progress = progress and world.rank == 0
    folder.mkdir(parents=True, exist_ok=True)
    files = RunFiles(folder, Path(backup) if backup else None)
    learn, held_out = frames.split_cities() if config.hold_out else (frames, None)
    if config.batch_size > len(learn):
        raise ValueError(f"batch_size is {config.batch_size}, but there are only {len(learn)} frames to learn from")
    if config.batch_size < world.size:
        raise ValueError(f"batch_size is {config.batch_size}, too few for {world.size} processes: each takes its part")
    learn = learn.to(device)
    if resume:
        world.once(files.restore)
    # A run that goes on has its own weights: no need to fetch those of ImageNet again.
    pretrained = not (resume and files.last.exists())
    state = _State(config, frames, len(learn), device, pretrained, world)
    if resume:
        if files.last.exists():
            state.load(read_checkpoint(files.last), files.last)
            if progress:
                done = state.epoch == config.epochs
                print(f"{files.last}: {state.epoch} of {config.epochs} epochs done" + ("." if done else ", going on."))
    else:
        world.once(files.set_aside)
    counts = world.sum(learn.part(world.part(len(learn))).class_counts().to(device)).cpu()
    weights = class_weights(counts, config.class_weighting).to(device)
    while state.epoch < config.epochs:
        try:
            row = _train_epoch(state, learn, weights, progress)
        except torch.OutOfMemoryError as error:
            raise RuntimeError(
                f"the GPU's memory is full at batch_size {config.batch_size}, image_size {config.image_size}, "
                f"base_channels {config.base_channels}: halve batch_size first, then base_channels"
            ) from error
        if not math.isfinite(row["loss"]):
            kept = f"the last good epoch is in {files.last}" if files.last.exists() else "no epoch was finished"
            raise FloatingPointError(
                f"the loss of epoch {state.epoch + 1} is {row['loss']}; {kept}. Lower learning_rate and start again"
            )
        state.epoch += 1
        model = state.averaged.module.eval()
        world.share_buffers(state.model, model)
        if held_out:
            row |= score(model, held_out, state.scene_size, world).summary()
        state.history.append(row)
        is_best = not held_out or row["mean_iou"] >= max(r["mean_iou"] for r in state.history)
        world.once(files.save, state.checkpoint(), is_best)
        if progress:
            print(_line(state.history, config.epochs))
        if on_epoch:
            on_epoch(state.history, model)
    return state.history


def class_weights(counts: Tensor, power: float) -> Tensor:
    """Loss weights: inverse class frequency to a power, scaled so that the mean weight of a pixel is 1.

    Args:
        counts: pixels of each class, `int64 [C]`.
        power: 0 for none, 1 for fully inverse.

    Returns:
        `float32 [C]`; a class without pixels gets weight 1.
    """
    share = counts.double() / counts.sum()
    weights = torch.where(counts > 0, share.clamp(min=1e-4) ** -power, 0)
    weights = weights / (share * weights).sum()
    return torch.where(counts > 0, weights, 1.0).float()


def score(model: UNet, frames: Frames, scene_size: tuple[int, int], world: World = ALONE) -> ConfusionMatrix:
    """The confusion matrix of all frames. Each process scores some of the batches, the same ones that one would."""
    batch_size = frames.at_once(scene_size)
    mine = frames.part(world.part(len(frames), batch_size))
    result = ConfusionMatrix(frames.scheme.num_classes)
    counts = result.matrix.to(next(model.parameters()).device)
    for frame in evaluate(model, mine, scene_size, batch_size):
        counts += frame.matrix
    result.matrix = world.sum(counts)
    return result


class _State:
    """Everything that changes during a run, and its way into a checkpoint and back."""

    def __init__(
        self,
        config: TrainConfig,
        frames: Frames,
        num_frames: int,
        device: torch.device,
        pretrained: bool,
        world: World,
    ):
        torch.manual_seed(config.seed)
        self.config, self.scheme, self.device, self.world = config, frames.scheme, device, world
        self.scene_size = frames.scene_size(config.image_size)
        self.steps_per_epoch = num_frames // config.batch_size
        encoder = None if config.encoder == "none" else config.encoder
        self.model = world.in_turn(  # the first one may have to download the encoder's weights
            lambda: UNet(3, frames.scheme.num_classes, config.base_channels, config.fold, encoder, pretrained)
        )
        self.model.to(device, memory_format=torch.channels_last)
        self.forward = world.wrap(self.model, config.sync_batchnorm)
        if config.compile:
            self.forward = torch.compile(self.forward)
        self.optimizer = Muon(self.model.parameters(), weight_decay=config.weight_decay)
        reach = max(1.0, config.averaging * config.epochs * self.steps_per_epoch)  # in steps
        self.averaged = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(1 - 1 / reach), use_buffers=True)
        self.scaler = torch.amp.GradScaler(device.type, enabled=compute_dtype(device) == torch.float16)
        self.epoch = 0
        self.history: list[dict] = []

    def learning_rate(self, step: int) -> float:
        """One cycle (https://arxiv.org/abs/1708.07120): linear warm-up over a tenth of the steps, a cosine to 0."""
        total = self.config.epochs * self.steps_per_epoch
        warm = max(1, total // 10)
        if step < warm:
            return self.config.learning_rate * (step + 1) / warm
        return self.config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / (total - warm)))

    def settings(self) -> dict:
        """What does not change, as plain values: the knobs, and the size at which whole scenes are seen, pixels."""
        return asdict(self.config) | {"scene_size": self.scene_size}

    def checkpoint(self) -> dict:
        return {
            "format": FORMAT,
            "model": self.model.state_dict(),
            "model_config": self.model.config,
            "averaged": self.averaged.module.state_dict(),
            "averaged_steps": self.averaged.n_averaged,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "epoch": self.epoch,
            "history": self.history,
            "config": self.settings(),
            "scheme": self.scheme.to_dict(),
            "versions": {"torch": str(torch.__version__)},
        }

    def load(self, checkpoint: dict, path: Path) -> None:
        now = {"config": self.settings(), "scheme": self.scheme.to_dict(), "model_config": self.model.config}
        for part, fields in now.items():
            for name, value in fields.items():
                was = checkpoint[part].get(name)
                if _plain(was) != _plain(value):
                    raise ValueError(
                        f"{path} was trained with {name} = {_short(was)}, now it is {_short(value)}: set it back to go "
                        "on with that run, choose another run name, or switch resume off to start afresh"
                    )
        self.model.load_state_dict(checkpoint["model"])
        self.averaged.module.load_state_dict(checkpoint["averaged"])
        self.averaged.n_averaged.copy_(checkpoint["averaged_steps"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.scaler.load_state_dict(checkpoint["scaler"])
        self.epoch, self.history = checkpoint["epoch"], checkpoint["history"]


def _train_epoch(state: _State, learn: Frames, weights: Tensor, progress: bool) -> dict:
    config, device, world = state.config, state.device, state.world
    # The whole epoch's randomness comes from here: no random state has to be saved.
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + state.epoch)
    order = torch.randperm(len(learn), generator=generator)
    total = torch.zeros((), device=device)
    started, step = time.perf_counter(), state.epoch * state.steps_per_epoch
    state.model.train()
    batches = [order[i : i + config.batch_size] for i in range(0, len(order), config.batch_size)]
    batches = batches[: state.steps_per_epoch]  # a small last batch would be a noisy step
    mine, view = world.part(config.batch_size), learn.view(config.image_size)
    with progress_bar(total=len(batches) * config.batch_size, unit="img", disable=not progress, leave=False) as bar:
        bar.set_description(f"epoch {state.epoch + 1}/{config.epochs}")
        parts = learn.batches((indices[mine] for indices in batches), device)
        for number, (photos, labels) in enumerate(parts):
            changes = draw_changes(config.batch_size, generator, config.augmentation, view).part(mine)
            x, y = augment(photos, labels, config.image_size, changes, view)
            rate = state.learning_rate(step + number)
            total += _step(state, x, y, weights, rate)  # never read in between: that would wait for the device
            bar.update(config.batch_size)
    loss, seconds = (world.sum(total) / len(batches)).item(), time.perf_counter() - started
    images = sum(map(len, batches))
    return {
        "epoch": state.epoch + 1,
        "learning_rate": rate,
        "loss": loss,
        "seconds": round(seconds, 2),
        "images_per_second": round(images / seconds, 2),
    }


def _step(state: _State, x: Tensor, y: Tensor, weights: Tensor, rate: float) -> Tensor:
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    with autocast(state.device):
        logits = state.forward(x.contiguous(memory_format=torch.channels_last))
    # A row a pixel, as the logits lie in memory: several times faster than along the second of four dimensions.
    logits = logits.permute(0, 2, 3, 1).flatten(0, 2).float()
    # Summed, then divided by the known pixels: a batch that is all void gives zero and not NaN.
    loss = cross_entropy(logits, y.flatten(), weights, ignore_index=255, reduction="sum")
    # The pixels of the whole batch, which this process has a part of.
    loss = loss / state.world.sum((y != 255).sum()).clamp(min=1)
    state.optimizer.zero_grad(set_to_none=True)
    state.scaler.scale(loss * state.world.size).backward()  # gradients are the mean over the processes
    state.scaler.unscale_(state.optimizer)
    torch.nn.utils.clip_grad_norm_(state.model.parameters(), 1.0)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.averaged.update_parameters(state.model)
    return loss.detach()


def _line(history: list[dict], epochs: int) -> str:
    row = history[-1]
    # Epochs take alike, so the last ones tell how long the others will take.
    recent = [r["seconds"] for r in history[-3:]]
    left = (epochs - row["epoch"]) * sum(recent) / len(recent) / 60
    text = f"epoch {row['epoch']}/{epochs}  loss {row['loss']:.3f}  {row['images_per_second']:.0f} images/s"
    if "mean_iou" in row:
        text += f"  held-out cities: pixel accuracy {row['pixel_accuracy']:.3f}, mIoU {row['mean_iou']:.3f}"
    return text + (f"  {left:.1f} min left" if left else "")


def _plain(value):
    """Tuples as lists, all the way down: a checkpoint does not keep them apart."""
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _short(value) -> str:
    text = repr(value)
    return text if len(text) < 60 else text[:57] + "..."
