"""The training loop: settings, one epoch after another, a checkpoint after each, and going on where it stopped."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from unet_utils.augment import augment, to_input
from unet_utils.checkpoints import RunFiles, read_checkpoint
from unet_utils.dataset import Frames
from unet_utils.environment import progress_bar
from unet_utils.evaluation import evaluate
from unet_utils.metrics import ConfusionMatrix
from unet_utils.model import UNet, autocast, compute_dtype

FORMAT = 1
"""Version of the checkpoint's layout."""


@dataclass(frozen=True)
class TrainConfig:
    """The knobs of a training run. Defaults are those of a GPU; `recipe` gives the ones for other situations.

    Attributes:
        base_channels: width of the UNet's first level.
        image_size: height and width that the network sees, pixels, a multiple of 16. Scores are always at 256.
        batch_size: photos a step.
        epochs: times that every photo is seen.
        learning_rate: largest rate of the one-cycle schedule.
        weight_decay: of AdamW (https://arxiv.org/abs/1711.05101).
        augmentation: random flip, zoom, rotation and colour.
        class_weighting: power of the inverse class frequency that weights the loss; 0 treats all pixels alike, 1 all
            classes.
        averaging: the weights kept are a running average over about this share of the training.
        hold_out: keep two training cities out, and keep the epoch that is best on them; otherwise train on
            everything and keep the last epoch.
        seed: of the weights, the order and the augmentation.
    """

    base_channels: int = 64
    image_size: int = 256
    batch_size: int = 16
    epochs: int = 60
    learning_rate: float = 1e-3
    weight_decay: float = 0.02
    augmentation: bool = True
    class_weighting: float = 0.25
    averaging: float = 0.03
    hold_out: bool = True
    seed: int = 0


RECIPES = {
    "gpu": TrainConfig(),
    "cpu": TrainConfig(base_channels=16, image_size=128, batch_size=8, epochs=24, learning_rate=3e-3),
    "demo": TrainConfig(base_channels=16, image_size=128, batch_size=8, epochs=20, learning_rate=3e-3),
}
"""Settings for a GPU, for a laptop's CPU, and for the 240 pairs of the demo set."""


def recipe(name: str, **knobs) -> TrainConfig:
    """The settings of a recipe, with those knobs changed that are not None.

    Args:
        name: `gpu`, `cpu` or `demo`; any other device type counts as `gpu`.
    """
    return replace(RECIPES.get(name, RECIPES["gpu"]), **{k: v for k, v in knobs.items() if v is not None})


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

    Returns:
        The history: one dict an epoch with its `epoch` (from 1), `loss` (mean over the epoch's pixels), `seconds`,
        `images_per_second` and, with `hold_out`, the scores on the held-out cities.

    Raises:
        ValueError: the checkpoint to go on from has other settings, classes or another model; or a bad knob.
        FloatingPointError: the loss is no longer finite.
        RuntimeError: out of GPU memory; the message names the knobs that need less.
    """
    device, folder = torch.device(device), Path(folder)
    _check(config, frames)
    folder.mkdir(parents=True, exist_ok=True)
    files = RunFiles(folder, Path(backup) if backup else None)
    learn, held_out = frames.split_cities() if config.hold_out else (frames, None)
    learn = learn.to(device)
    state = _State(config, frames, len(learn), device)
    if resume:
        files.restore()
        if files.last.exists():
            state.load(read_checkpoint(files.last), files.last)
            if progress:
                done = state.epoch == config.epochs
                print(f"{files.last}: {state.epoch} of {config.epochs} epochs done" + ("." if done else ", going on."))
    else:
        files.set_aside()
    weights = class_weights(learn.class_counts(), config.class_weighting).to(device)
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
        if held_out:
            row |= ConfusionMatrix.total(evaluate(model, held_out, config.image_size)).summary()
        state.history.append(row)
        is_best = not held_out or row["mean_iou"] >= max(r["mean_iou"] for r in state.history)
        files.save(state.checkpoint(), is_best)
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


class _State:
    """Everything that changes during a run, and its way into a checkpoint and back."""

    def __init__(self, config: TrainConfig, frames: Frames, num_frames: int, device: torch.device):
        torch.manual_seed(config.seed)
        self.config, self.scheme, self.device = config, frames.scheme, device
        self.steps_per_epoch = max(1, num_frames // config.batch_size)
        self.model = UNet(3, frames.scheme.num_classes, config.base_channels)
        self.model.to(device, memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), weight_decay=config.weight_decay, fused=device.type in ("cuda", "cpu")
        )
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
            "config": asdict(self.config),
            "scheme": self.scheme.to_dict(),
            "versions": {"torch": str(torch.__version__)},
        }

    def load(self, checkpoint: dict, path: Path) -> None:
        now = {"config": asdict(self.config), "scheme": self.scheme.to_dict(), "model_config": self.model.config}
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
    config, device = state.config, state.device
    # The whole epoch's randomness comes from here: no random state has to be saved.
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + state.epoch)
    order = torch.randperm(len(learn), generator=generator)
    total = torch.zeros((), device=device)
    started, step = time.perf_counter(), state.epoch * state.steps_per_epoch
    state.model.train()
    batches = [order[i : i + config.batch_size] for i in range(0, len(order), config.batch_size)]
    batches = batches[: state.steps_per_epoch]  # a small last batch would be a noisy step
    with progress_bar(total=len(batches) * config.batch_size, unit="img", disable=not progress, leave=False) as bar:
        bar.set_description(f"epoch {state.epoch + 1}/{config.epochs}")
        for number, indices in enumerate(batches, 1):
            photos, labels = learn.batch(indices.to(learn.photos.device), device)
            if config.augmentation:
                x, y = augment(photos, labels, config.image_size, generator)
            else:
                x, y = to_input(photos, config.image_size), _resize_labels(labels, config.image_size)
            rate = state.learning_rate(step + number - 1)
            loss = _step(state, x, y, weights, rate)
            total += loss
            bar.update(len(indices))
            if number % max(1, len(batches) // 10) == 0:  # reading the loss waits for the device: ten times an epoch
                bar.set_postfix(loss=f"{(total / number).item():.3f}")
    loss, seconds = (total / len(batches)).item(), time.perf_counter() - started
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
        logits = state.model(x.contiguous(memory_format=torch.channels_last))
    # Summed, then divided by the known pixels: a batch that is all void gives zero and not NaN.
    loss = F.cross_entropy(logits.float(), y, weights, ignore_index=255, reduction="sum")
    loss = loss / (y != 255).sum().clamp(min=1)
    state.optimizer.zero_grad(set_to_none=True)
    state.scaler.scale(loss).backward()
    state.scaler.unscale_(state.optimizer)
    torch.nn.utils.clip_grad_norm_(state.model.parameters(), 1.0)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.averaged.update_parameters(state.model)
    return loss.detach()


def _resize_labels(labels: Tensor, size: int) -> Tensor:
    return F.interpolate(labels[:, None].float(), (size, size), mode="nearest-exact")[:, 0].long()


def _check(config: TrainConfig, frames: Frames) -> None:
    if config.image_size % 16 or config.image_size < 32:
        raise ValueError(f"image_size is {config.image_size}: choose a multiple of 16, at least 32")
    for name in ("base_channels", "batch_size", "epochs"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} is {getattr(config, name)}: it must be at least 1")
    if config.batch_size > len(frames):
        raise ValueError(f"batch_size is {config.batch_size}, but there are only {len(frames)} frames")


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
