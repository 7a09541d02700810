"""Measure how photos of mixed shapes are best brought to one size: squeezed, cropped or padded.

    python scripts/shapes.py --seeds 3

Drawn scenes are cut to 2:1, 4:3, 1:1 and 3:4. A small network learns from them in each of the three
ways, and predicts photos that it has not seen. Scores are at the photos' own pixels, all of them.
Takes about ten minutes on two cores.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from unet_utils import ConfusionMatrix, Frames, fit, get_scheme, load_trained, predict, recipe
from unet_utils.demo.street import draw_scene

SHAPES = ((2, 1), (4, 3), (1, 1), (3, 4))
AREA = 320 * 320  # pixels of a photo
SIDE = 192  # of the network's input


def draw(count: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return photos `uint8 [H, W, 3]` and label ids `uint8 [H, W]`, a shape after the other."""
    rng = np.random.default_rng(seed)
    scenes = []
    for number in range(count):
        photo, label_ids = draw_scene(np.random.default_rng(seed + number))[:2]
        height, width = label_ids.shape
        wide, high = SHAPES[number % len(SHAPES)]
        rows = min(height, width * high // wide)
        columns = min(width, rows * wide // high)
        left = rng.integers(0, width - columns + 1)
        top = (height - rows) // 2
        scale = (AREA / (rows * columns)) ** 0.5
        size = (round(columns * scale), round(rows * scale))
        part = (slice(top, top + rows), slice(left, left + columns))
        scenes.append(resize(photo[part], label_ids[part], size))
    return scenes


def resize(
    photo: np.ndarray, label_ids: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return both at this width and height; labels by the nearest pixel."""
    resized = Image.fromarray(photo).resize(size, Image.Resampling.BICUBIC)
    labels = Image.fromarray(label_ids).resize(size, Image.Resampling.NEAREST)
    return np.array(resized), np.array(labels)


def padded(array: np.ndarray) -> tuple[np.ndarray, int, int]:
    """Return a square with the array in its middle and zeros around it, and where it begins."""
    height, width = array.shape[:2]
    side = max(height, width)
    square = np.zeros((side, side, *array.shape[2:]), dtype=array.dtype)
    top = (side - height) // 2
    left = (side - width) // 2
    square[top : top + height, left : left + width] = array
    return square, top, left


def brought(way: str, photo: np.ndarray, label_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a frame of SIDE x SIDE pixels."""
    if way == "padded":
        photo, label_ids = padded(photo)[0], padded(label_ids)[0]
    if way == "cropped":
        height, width = label_ids.shape
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        photo = photo[top : top + side, left : left + side]
        label_ids = label_ids[top : top + side, left : left + side]
    return resize(photo, label_ids, (SIDE, SIDE))


def predicted(way: str, model: torch.nn.Module, photo: np.ndarray) -> np.ndarray:
    """Return the class of each pixel of a whole photo, as a network trained this way sees it."""
    height, width = photo.shape[:2]
    size = (SIDE, SIDE)
    top = left = 0
    if way == "padded":
        photo, top, left = padded(photo)
    if way == "cropped":  # in its own shape, the shorter side as in training
        scale = SIDE / min(height, width)
        size = (round(height * scale / 32) * 32, round(width * scale / 32) * 32)
    batch = torch.from_numpy(photo.copy()).permute(2, 0, 1)[None]
    classes = predict(model, batch, size)[0].argmax(0).numpy()
    return classes[top : top + height, left : left + width]


def main() -> None:
    """Print a Markdown table, a row for each seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    scheme = get_scheme("categories7")
    learn = draw(120, 1000)
    unseen = draw(40, 9000)
    ways = ("squeezed", "cropped", "padded")
    print("| seed | " + " | ".join(ways) + " |\n|---" + "|---" * len(ways) + "|")
    for seed in range(options.seeds):
        scores = []
        for way in ways:
            photos, label_ids = zip(*(brought(way, *scene) for scene in learn), strict=True)
            arrays = (torch.from_numpy(np.stack(values)) for values in (photos, label_ids))
            frames = Frames(*arrays, scheme, tuple(range(len(learn))))
            config = recipe("demo", image_size=SIDE, epochs=14, hold_out=False, seed=seed)
            with tempfile.TemporaryDirectory() as folder:
                fit(frames, config, folder, "cpu", progress=False)
                model = load_trained(Path(folder) / "best.pt", "cpu").model
            matrix = ConfusionMatrix(scheme.num_classes)
            for photo, truth in unseen:
                matrix.update(predicted(way, model, photo), scheme.encode(truth).astype(int))
            scores.append(matrix.mean_iou)
        print(f"| {seed} | " + " | ".join(f"{score:.3f}" for score in scores) + " |", flush=True)


if __name__ == "__main__":
    main()
