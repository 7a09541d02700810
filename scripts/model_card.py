"""The figures of a model card: calibration, other cameras, robustness; all validation frames.

    python scripts/model_card.py --data pairs.zip
    python scripts/model_card.py --data pairs.zip --checkpoint runs/NAME/best.pt

Other cameras are imitated by cutting the middle out of each frame, see `cameras.py`. The frames are
predicted sixteen times: about fifteen minutes for the small model on two CPU cores.
`python -m unet_utils evaluate` has the score and its interval, and the score of each class.
"""

import argparse
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))  # scripts are not installed

from scripts.cameras import CAMERAS, WAYS, measure
from unet_utils import load_trained, setup
from unet_utils.evaluation import SMALL_MODEL
from unet_utils.platform.files import user_path
from unet_utils.sources import open_source
from unet_utils.use.calibration import calibration_curves
from unet_utils.use.reports import markdown_table, score_text
from unet_utils.use.robustness import robustness, robustness_table


def main(arguments: list[str] | None = None) -> None:
    """Print all as Markdown tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="kaggle", help="the pairs: kaggle, an archive, a folder")
    parser.add_argument("--checkpoint", default=SMALL_MODEL, help="default: the small model")
    options = parser.parse_args(arguments)
    env = setup()
    trained = load_trained(user_path(options.checkpoint), env.device)
    source = open_source(options.data, env.data, env.drive)
    frames = source.frames("val", env.prepared, trained.scheme)
    rows = []
    for name, curve in calibration_curves(trained, frames).items():
        confidence = (curve.share * curve.confidence).nansum().item()
        accuracy = (curve.share * curve.accuracy).nansum().item()
        rows.append([name, *map(score_text, (confidence, accuracy, curve.error))])
    header = ["probabilities", "mean confidence", "pixel accuracy", "calibration error"]
    print(f"\n{markdown_table(header, rows)}\n", flush=True)
    rows = []
    for camera, seen in CAMERAS.items():
        rows.append([camera, score_text(measure(trained, frames, seen, WAYS[0]))])
    print(f"{markdown_table(['camera', 'mIoU'], rows)}\n", flush=True)
    print(robustness_table(robustness(trained, frames)))


if __name__ == "__main__":
    main()
