"""The figures of a model card: calibration, other cameras, robustness; all validation frames.

    python scripts/model_card.py --data pairs.zip
    python scripts/model_card.py --data pairs.zip --checkpoint runs/NAME/best.pt

Other cameras are imitated by cutting the middle out of each frame: 16:9, 4:3, and 4:3 through a
longer lens. The model sees them as it sees photos of these shapes. The frames are predicted sixteen
times: about fifteen minutes for the small model on two CPU cores.
`python -m unet_utils evaluate` has the score and its interval, and the score of each class.
"""

import argparse

from torch import Tensor

from unet_utils import ConfusionMatrix, Frames, load_trained, setup
from unet_utils.evaluation import SMALL_MODEL, Trained, predict_classes
from unet_utils.platform.files import user_path
from unet_utils.sources import open_source
from unet_utils.use.calibration import calibration_curves
from unet_utils.use.reports import markdown_table, score_text
from unet_utils.use.robustness import robustness, robustness_table

CAMERAS = {
    "2:1, a whole scene": (1.0, 1.0),
    "16:9": (1.0, 8 / 9),
    "4:3": (1.0, 2 / 3),
    "4:3, a lens 1.5 times as long": (2 / 3, 4 / 9),
}
"""Share of the height and of the width of a scene that a camera sees, from its middle."""
SCENE = (1024, 2048)
"""Height and width of a street scene without squeeze, pixels."""
BATCH = 16


def seen_by(camera: str, images: Tensor) -> Tensor:
    """Return what a camera sees of photos or labels `[..., H, W]`."""
    for dimension, share in zip((-2, -1), CAMERAS[camera], strict=True):
        side = images.shape[dimension]
        length = round(side * share)
        images = images.narrow(dimension, (side - length) // 2, length)
    return images


def camera_score(trained: Trained, frames: Frames, camera: str) -> float:
    """Return the mIoU on what a camera sees of the frames."""
    high, wide = CAMERAS[camera]
    size = trained.photo_size(round(high * SCENE[0]), round(wide * SCENE[1]))
    matrix = ConfusionMatrix(frames.scheme.num_classes)
    for start in range(0, len(frames), BATCH):
        photos, labels = frames.batch(slice(start, start + BATCH))
        predicted = predict_classes(trained.model, seen_by(camera, photos), size)
        matrix.update(predicted, seen_by(camera, labels))
    return matrix.mean_iou


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
    for camera in CAMERAS:
        rows.append([camera, score_text(camera_score(trained, frames, camera))])
    print(f"{markdown_table(['camera', 'mIoU'], rows)}\n", flush=True)
    print(robustness_table(robustness(trained, frames)))


if __name__ == "__main__":
    main()
