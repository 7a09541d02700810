"""Measure what each choice of the CPU recipe is worth, on the held-out cities. The validation
frames are not used.

    python scripts/ablation.py --data pairs.zip                         # all variants, one after
    another python scripts/ablation.py --data pairs.zip --only "flip" "width"   # variants with
    these words in their name python scripts/ablation.py --data pairs.zip --set
    encoder=efficientnet_lite0 --every 4

Each variant is the CPU recipe, at half its width or with an encoder, with one thing changed. It is
trained for the same few epochs with a whole schedule. Runs are kept in --out, and an interrupted
one goes on. docs/training.md holds the results."""

import argparse
import json
from contextlib import ExitStack
from functools import partial
from unittest import mock

import torch
from torch import Tensor
from torch.nn.functional import conv2d, cross_entropy, one_hot, pad, relu6

from unet_utils import Frames, fit, get_pairs, prepare, recipe, setup
from unet_utils.encoders import ConvNorm, EfficientNetLite
from unet_utils.platform.files import user_path


def with_dice(logits: Tensor, truth: Tensor, weights: Tensor, **options) -> Tensor:
    """Cross-entropy plus soft Dice (https://arxiv.org/abs/1606.04797), the mean over the classes of
    a batch.

    Args:
        logits: `float [pixels, C]`.
        truth: class indices, `int64 [pixels]`.
        weights: of the classes, `float [C]`.
        options: of `cross_entropy`.
    """
    known = truth != options["ignore_index"]
    found, real = logits[known].softmax(1), one_hot(truth[known], logits.shape[1])
    dice = (1 - 2 * (found * real).sum(0) / (found + real).sum(0).clamp(min=1))[real.any(0)].mean()
    return cross_entropy(logits, truth, weights, **options) + known * dice


def with_lovasz(logits: Tensor, truth: Tensor, weights: Tensor, **options) -> Tensor:
    """Cross-entropy plus Lovász-softmax (https://arxiv.org/abs/1705.08790), which sees every eighth
    pixel to be fast.

    Arguments as in `with_dice`.
    """
    known = truth != options["ignore_index"]
    some = (torch.arange(len(truth), device=truth.device) % 8 == 0) & known
    found, real = logits[some].softmax(1).T, one_hot(truth[some], logits.shape[1]).T.float()
    present = real.any(1)
    errors, order = (real - found)[present].abs().sort(dim=1, descending=True)
    real = real[present].gather(1, order)
    missed = real.sum(1, keepdim=True) - real.cumsum(1)
    jaccard = 1 - missed / (missed + real.cumsum(1) + (1 - real).cumsum(1))
    steps = jaccard.diff(dim=1, prepend=jaccard.new_zeros(len(real), 1))
    lovasz = (errors * steps).sum(1).mean()
    return cross_entropy(logits, truth, weights, **options) + known * lovasz


class RandomEncoder(EfficientNetLite):
    """EfficientNet-Lite from random weights, in which all layers are trained."""

    def __init__(self, name: str, pretrained: bool):
        super().__init__(name, False)
        self.requires_grad_(True)
        for layer in self.modules():
            if isinstance(layer, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")


def batch_statistics(self: ConvNorm, x: Tensor) -> Tensor:
    """`ConvNorm.forward` with batch normalization as usual: random weights have no statistics to
    keep."""
    x = self.norm(
        conv2d(
            pad(x, 2 * self.pad), self.conv.weight, None, self.conv.stride, groups=self.conv.groups
        )
    )
    return relu6(x) if self.relu else x


OPTIMIZER, LOSS = "unet_utils.training.Muon", "unet_utils.losses.cross_entropy"

VARIANTS = {
    "base": {},
    "another seed": {"seed": 1},
    "AdamW": {OPTIMIZER: torch.optim.AdamW},
    "half the learning rate": {"learning_rate": 3e-3},
    "no growth": {"growth": 0.0},
    "no auxiliary heads": {"auxiliary": 0.0},
    "no prior correction": {"prior_correction": 0.0},
    "no class weighting": {"class_weighting": 0.0},
    "flip only": {"augmentation": 0.0},
    "full augmentation": {"augmentation": 1.0},
    "last weights, not averaged": {"averaging": 0.0},
    "learning rate to zero": {"final_rate": 0.0, "averaging": 0.03},
    "learning rate to 0.4": {"final_rate": 0.4, "averaging": 0.15},
    "label smoothing 0.05": {LOSS: partial(cross_entropy, label_smoothing=0.05)},
    "Dice added": {LOSS: with_dice},
    "Lovász added": {LOSS: with_lovasz},
    "no fold, half the image size": {"fold": 1, "image_size": 128},
    "width 24": {"base_channels": 24},
    "width 32": {"base_channels": 32},
    "random weights of the encoder": {
        "unet_utils.encoders.EfficientNetLite": RandomEncoder,
        "unet_utils.encoders.ConvNorm.forward": batch_statistics,
    },
}
"""Name of each variant, and what differs: settings, or names in the package (with a dot) and their
replacements."""


def every(step: int, frames: Frames) -> Frames:
    """Return every `step`-th of the frames to learn from, and all held-out frames."""
    if step == 1:
        return frames  # without copying them into memory
    held_out = len(frames) - len(frames.split_cities()[1])
    keep = [index for index in range(len(frames)) if index % step == 0 or index >= held_out]
    numbers = tuple(frames.numbers[index] for index in keep)
    return Frames(frames.photos[keep], frames.label_ids[keep], frames.scheme, numbers)


def main() -> None:
    """Train all variants and print one line of a Markdown table per variant."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", default="kaggle", help="kaggle, demo, or the path of an archive or folder"
    )
    parser.add_argument("--epochs", type=int, default=4, help="of each variant (default: 4)")
    parser.add_argument(
        "--out", default="runs/ablation", help="folder of the runs (default: runs/ablation)"
    )
    parser.add_argument(
        "--only", nargs="+", default=list(VARIANTS), help="words in the names of variants"
    )
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings of all variants"
    )
    parser.add_argument("--every", type=int, default=1, help="learn from every Nth photo only")
    options = parser.parse_args()
    given = dict(setting.split("=", 1) for setting in options.set)
    given = {
        name: value if name == "encoder" else json.loads(value) for name, value in given.items()
    }
    if "encoder" not in given:
        given = {"base_channels": 16} | given
    env = setup()
    frames = every(
        options.every, prepare(get_pairs(options.data, env.data), "train", env.data / "prepared")
    )
    print("| variant | pixel accuracy | class accuracy | mIoU | minutes |\n|---|---|---|---|---|")
    for name, changes in VARIANTS.items():
        if not any(word in name for word in options.only) or (
            "encoder" in name and "encoder" not in given
        ):
            continue
        settings = {key: value for key, value in changes.items() if "." not in key}
        with ExitStack() as stack:
            for place in changes.keys() - settings.keys():
                stack.enter_context(mock.patch(place, changes[place]))
            folder = user_path(options.out) / name.replace(" ", "-")
            config = recipe("cpu", **given | {"epochs": options.epochs} | settings)
            history = fit(frames, config, folder, env.device, progress=False)
        best, minutes = (
            max(history, key=lambda row: row["mean_iou"]),
            sum(row["seconds"] for row in history) / 60,
        )
        scores = " | ".join(
            f"{best[key]:.3f}" for key in ("pixel_accuracy", "class_accuracy", "mean_iou")
        )
        print(f"| {name} | {scores} | {minutes:.1f} |", flush=True)


if __name__ == "__main__":
    main()
