"""Makes a run small enough to ship: its best checkpoint with weights in half precision, its history and its scores.

python -m unet_utils evaluate --data pairs.zip --run-name NAME
python scripts/ship_model.py runs/NAME models/small
"""

import shutil
import sys
from pathlib import Path

import torch

from unet_utils.checkpoints import read_checkpoint


def main(run: Path, target: Path) -> None:
    checkpoint = read_checkpoint(run / "best.pt")
    halved = {name: value.half() if value.is_floating_point() else value for name, value in checkpoint["model"].items()}
    target.mkdir(parents=True, exist_ok=True)
    torch.save(checkpoint | {"model": halved}, target / "best.pt")
    for file in ("history.csv", "evaluation.json", "evaluation.md", "evaluation.csv"):
        shutil.copyfile(run / file, target / file)
    print(f"{target / 'best.pt'}: {(target / 'best.pt').stat().st_size / 2**20:.1f} MB")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
