"""Make a run the small model of the package: weights in half precision, history and scores.

    python -m unet_utils evaluate --data pairs.zip --run-name NAME
    python scripts/ship_model.py runs/NAME

Writes small.pt, small-history.csv and small-evaluation.{json,md,csv} to unet_utils/weights/.
Afterwards, update the table in the README.md there."""

import shutil
import sys
from pathlib import Path

import torch

from unet_utils.checkpoints import read_checkpoint
from unet_utils.evaluation import SMALL_MODEL

LARGEST = 16  # MB


def main(run: str, target: str | Path = SMALL_MODEL.parent) -> None:
    """Write the files of a run that has been evaluated to the folder `target`."""
    run = Path(run)
    target = Path(target)
    checkpoint = read_checkpoint(run / "best.pt")
    # Vectors (biases, statistics of the normalization) take no space, and can be out of the range
    # of half precision.
    halved = {
        name: value.half() if value.is_floating_point() and value.ndim > 1 else value
        for name, value in checkpoint["model"].items()
    }
    model = target / SMALL_MODEL.name
    target.mkdir(parents=True, exist_ok=True)
    torch.save(checkpoint | {"model": halved}, model)
    for file in ("history.csv", "evaluation.json", "evaluation.md", "evaluation.csv"):
        shutil.copyfile(run / file, target / f"{model.stem}-{file}")
    size = model.stat().st_size / 2**20
    print(f"{model}: {size:.1f} MB")
    if size > LARGEST:
        sys.exit(f"that is more than {LARGEST} MB: train a smaller network")


if __name__ == "__main__":
    main(*sys.argv[1:])
