"""What each choice of the CPU recipe is worth, on the held-out cities: the validation frames are not looked at.

    python scripts/ablation.py --data pairs.zip --epochs 4                    # all variants, one after another
    python scripts/ablation.py --data pairs.zip --epochs 4 --only adamw fold  # some of them

Each variant is the CPU recipe with one thing changed, trained for the same few epochs with a whole schedule. Runs are
kept in --out and go on where they stopped. docs/training.md holds the results.
"""

import argparse
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from unet_utils import fit, get_pairs, prepare, recipe, setup, training


def with_dice(logits: Tensor, truth: Tensor, weights: Tensor, **options) -> Tensor:
    """Cross-entropy plus soft Dice (https://arxiv.org/abs/1606.04797), the mean over the classes of a batch."""
    known = truth != options["ignore_index"]
    found, real = logits[known].softmax(1), one_hot(truth[known], logits.shape[1])
    dice = (1 - 2 * (found * real).sum(0) / (found + real).sum(0).clamp(min=1))[real.any(0)].mean()
    return cross_entropy(logits, truth, weights, **options) + known.sum() * dice


def with_lovasz(logits: Tensor, truth: Tensor, weights: Tensor, **options) -> Tensor:
    """Cross-entropy plus Lovász-softmax (https://arxiv.org/abs/1705.08790), that on every eighth pixel, to be fast."""
    known = truth != options["ignore_index"]
    some = (torch.arange(len(truth)) % 8 == 0) & known
    found, real = logits[some].softmax(1).T, one_hot(truth[some], logits.shape[1]).T.float()
    present = real.any(1)
    errors, order = (real - found)[present].abs().sort(dim=1, descending=True)
    real = real[present].gather(1, order)
    missed = real.sum(1, keepdim=True) - real.cumsum(1)
    jaccard = 1 - missed / (missed + real.cumsum(1) + (1 - real).cumsum(1))
    steps = jaccard.diff(dim=1, prepend=torch.zeros(len(real), 1))
    lovasz = (errors * steps).sum(1).mean()
    return cross_entropy(logits, truth, weights, **options) + known.sum() * lovasz


VARIANTS = {
    "recipe": {},
    "another seed": {"seed": 1},
    "AdamW": {"Muon": torch.optim.AdamW},
    "half the learning rate": {"learning_rate": 3e-3},
    "no class weighting": {"class_weighting": 0.0},
    "class weighting 0.25": {"class_weighting": 0.25},
    "flip only": {"augmentation": 0.0},
    "full augmentation": {"augmentation": 1.0},
    "last weights, not averaged": {"averaging": 0.0},
    "label smoothing 0.05": {"cross_entropy": partial(cross_entropy, label_smoothing=0.05)},
    "Dice added": {"cross_entropy": with_dice},
    "Lovasz added": {"cross_entropy": with_lovasz},
    "no fold, half the image size": {"fold": 1, "image_size": 128},
    "half as wide again": {"base_channels": 24},
}
"""Name and what differs: knobs, or names in `training` and what stands for them instead."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="kaggle", help="kaggle, demo, or the path of an archive or folder")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--only", nargs="+", default=list(VARIANTS), help="parts of the names of variants")
    options = parser.parse_args()
    env = setup()
    frames = prepare(get_pairs(options.data, env.data), "train", env.data / "prepared")
    print("| variant | pixel accuracy | class accuracy | mIoU | minutes |\n|---|---|---|---|---|")
    for name, changes in VARIANTS.items():
        if any(part in name for part in options.only):
            replaced = {key: value for key, value in changes.items() if hasattr(training, key)}
            usual = {key: getattr(training, key) for key in replaced}
            config = recipe("cpu", epochs=options.epochs, **{k: v for k, v in changes.items() if k not in replaced})
            vars(training).update(replaced)
            history = fit(frames, config, options.out / name.replace(" ", "-"), env.device, progress=False)
            vars(training).update(usual)
            best, minutes = max(history, key=lambda row: row["mean_iou"]), sum(row["seconds"] for row in history) / 60
            scores = " | ".join(f"{best[key]:.3f}" for key in ("pixel_accuracy", "class_accuracy", "mean_iou"))
            print(f"| {name} | {scores} | {minutes:.1f} |", flush=True)


if __name__ == "__main__":
    main()
