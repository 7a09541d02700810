"""Measure how a trained model should see photos of other cameras than that of its street scenes.

    python scripts/cameras.py runs/NAME/best.pt --data pairs.zip

Frames that the training held out are cut to the shapes of other cameras: 16:9, 4:3, and 4:3 through
a longer lens. The model sees each of them in several ways. Use a run that held frames out: the
validation frames are left for scores.
"""

import argparse

import torch

from unet_utils import ConfusionMatrix, Frames, load_trained, open_source, setup
from unet_utils.evaluation import Trained, predict_classes
from unet_utils.use.reports import markdown_table, score_text

CAMERAS = {
    "2:1, a whole scene": (1.0, 1.0),
    "16:9": (1.0, 8 / 9),
    "4:3": (1.0, 2 / 3),
    "4:3, a lens 1.5 times as long": (2 / 3, 4 / 9),
}
"""Share of the height and of the width of a scene that a camera sees, from its middle."""
WAYS = ("same squeeze", "square", "same squeeze, 0.8 times as large", "1.25 times", "1.5 times")
BATCH = 16


def input_size(way: str, trained: Trained, height: int, width: int) -> tuple[int, int]:
    """Return the size of the network's input for a photo of this height and width, both in pixels
    of a street scene without squeeze (1024x2048)."""
    if way == "square":
        return trained.scene_size
    factor = {WAYS[2]: 0.8, WAYS[3]: 1.25, WAYS[4]: 1.5}.get(way, 1.0)
    divisor = trained.model.divisor
    like_training = trained.photo_size(height, width)
    high, wide = (max(1, round(side * factor / divisor)) * divisor for side in like_training)
    return high, wide


def cut(frames: Frames, part: slice, seen: tuple[float, float]) -> tuple[torch.Tensor, ...]:
    """Return photos `uint8 [N, 3, h, w]` and labels `uint8 [N, h, w]` that a camera sees."""
    photos, labels = frames.batch(part)
    rows, columns = (
        slice(*_middle(side, share)) for side, share in zip(labels.shape[1:], seen, strict=True)
    )
    return photos[:, :, rows, columns], labels[:, rows, columns]


def _middle(side: int, share: float) -> tuple[int, int]:
    length = round(side * share)
    start = (side - length) // 2
    return start, start + length


def measure(trained: Trained, frames: Frames, seen: tuple[float, float], way: str) -> float:
    """Return the mIoU on what a camera sees of the frames."""
    matrix = ConfusionMatrix(frames.scheme.num_classes)
    for start in range(0, len(frames), BATCH):
        photos, labels = cut(frames, slice(start, start + BATCH), seen)
        size = input_size(way, trained, round(1024 * seen[0]), round(2048 * seen[1]))
        matrix.update(predict_classes(trained.model, photos, size), labels)
    return matrix.mean_iou


def main() -> None:
    """Print a Markdown table of mIoU, a row for each camera."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", help="best.pt of a run that held frames out")
    parser.add_argument("--data", default="kaggle", help="the pairs: kaggle, an archive, a folder")
    options = parser.parse_args()
    env = setup()
    trained = load_trained(options.checkpoint, env.device)
    source = open_source(options.data, env.data, env.drive)
    frames = source.frames("train", env.prepared, trained.scheme)
    _, held_out = frames.split(trained.config["hold_out"])
    if held_out is None:
        parser.error(f"{options.checkpoint} has learned from all frames: use a run that held out")
    rows = []
    for camera, seen in CAMERAS.items():
        scores = [measure(trained, held_out, seen, way) for way in WAYS]
        rows.append([camera, *map(score_text, scores)])
    print(markdown_table(["camera", *WAYS], rows))


if __name__ == "__main__":
    main()
