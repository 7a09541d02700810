"""What each choice of the CPU recipe is worth, on the held-out cities: the validation frames are not looked at.

    python scripts/ablation.py --data pairs.zip --epochs 4                    # all variants, one after another
    python scripts/ablation.py --data pairs.zip --epochs 4 --only adamw fold  # some of them

Each variant is the CPU recipe with one thing changed, trained for the same few epochs with a whole schedule. Runs are
kept in --out and go on where they stopped. docs/training.md holds the results.
"""

import argparse
from pathlib import Path

import torch

from unet_utils import fit, get_pairs, prepare, recipe, setup, training

VARIANTS = {
    "recipe": {},
    "no fold, half the image size": {"fold": 1, "image_size": 128},
    "half the learning rate": {"learning_rate": 3e-3},
    "full augmentation": {"augmentation": 1.0},
    "flip only": {"augmentation": 0.0},
    "class weighting 0.25": {"class_weighting": 0.25},
    "no class weighting": {"class_weighting": 0.0},
    "adamw": {},
}
"""Name and the knobs that differ; `adamw` has torch's AdamW in the place of Muon."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="kaggle", help="kaggle, demo, or the path of an archive or folder")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--only", nargs="+", default=list(VARIANTS), help="parts of the names of variants")
    options = parser.parse_args()
    env = setup()
    frames = prepare(get_pairs(options.data, env.data), "train", env.data / "prepared")
    muon = training.Muon
    print("| variant | pixel accuracy | class accuracy | mIoU | minutes |\n|---|---|---|---|---|")
    for name, knobs in VARIANTS.items():
        if any(part in name for part in options.only):
            training.Muon = torch.optim.AdamW if name == "adamw" else muon
            config = recipe("cpu", epochs=options.epochs, **knobs)
            history = fit(frames, config, options.out / name.replace(" ", "-"), env.device, progress=False)
            best, minutes = max(history, key=lambda row: row["mean_iou"]), sum(row["seconds"] for row in history) / 60
            scores = " | ".join(f"{best[key]:.3f}" for key in ("pixel_accuracy", "class_accuracy", "mean_iou"))
            print(f"| {name} | {scores} | {minutes:.1f} |", flush=True)


if __name__ == "__main__":
    main()
