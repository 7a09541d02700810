"""Make a run the small model of the package: weights in half precision, history and scores.

    python -m unet_utils evaluate --data pairs.zip --run-name NAME
    python scripts/ship_model.py runs/NAME --temperature 1.15

Writes small.pt, small-history.csv and small-evaluation.{json,md,csv} to unet_utils/weights/.
A model that has learned from all frames has no temperature of its own: give it that of a twin, a
training of the same recipe that held frames out. Afterwards, update the tables in the README.md
there.
"""

import argparse
import shutil
import sys
from pathlib import Path

from unet_utils.checkpoints import packed_checkpoint, read_checkpoint
from unet_utils.evaluation import SMALL_MODEL

LARGEST = 16  # MB
FILES = ("history.csv", "evaluation.json", "evaluation.md", "evaluation.csv")


def main(arguments: list[str] | None = None) -> None:
    """Write the files of a run that has been evaluated."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--temperature", type=float, help="of a twin, see above")
    parser.add_argument("--target", type=Path, default=SMALL_MODEL.parent, help="folder to write")
    options = parser.parse_args(arguments)
    checkpoint = read_checkpoint(options.run / "best.pt")
    if options.temperature:
        checkpoint["temperature"] = options.temperature
    # Vectors (biases, statistics of the normalization) take no space, and can be out of the range
    # of half precision.
    checkpoint["model"] = {
        name: value.half() if value.is_floating_point() and value.ndim > 1 else value
        for name, value in checkpoint["model"].items()
    }
    content = packed_checkpoint(checkpoint)
    size = len(content) / 2**20
    if size > LARGEST:
        sys.exit(f"{size:.1f} MB is more than {LARGEST} MB: train a smaller network")
    for file in FILES:
        if not (options.run / file).is_file():
            sys.exit(f"{options.run / file} is missing: evaluate the run first")
    model = options.target / SMALL_MODEL.name
    options.target.mkdir(parents=True, exist_ok=True)
    model.write_bytes(content)
    for file in FILES:
        shutil.copyfile(options.run / file, options.target / f"{model.stem}-{file}")
    print(f"{model}: {size:.1f} MB")


if __name__ == "__main__":
    main()
