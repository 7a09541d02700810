"""Train the mask restorer, unet_utils/weights/restorer.pt, on label maps whose truth is known; no
official labels.

    python scripts/train_restorer.py --pairs FOLDER/cityscapes_data --work /tmp/restorer

Round 0 learns from maps of random shapes, in which every pair of the 29 colours meets. Each further
round restores the training masks with the restorer so far, enlarges the label maps to source
resolution (1024x2048) with smooth outlines, stretches, shrinks and recolours them, adds thin poles
and signs, and damages them as the masks were. So the network sees real geometry and
real neighbours, and the truth is exact: the label at the centre of each 4x8 source cell. The frames
of weimar and zurich (train 2712 to 2975) are never drawn from; maps made of them in the same way
measure progress. Official labels, if given (--official), are only used to measure.

Seed 2026, 48 minutes on two CPU cores: mIoU 0.887 and agreement 0.986 on maps of held-out frames,
0.873 and 0.992 on eight official frames of aachen (nearest colour: 0.580 and 0.944). docs/labels.md
lists the rounds. After it, run scripts/reference_labels.py.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch.nn.functional import cross_entropy

from unet_utils.classes import PALETTE, PALETTE_COLORS, PALETTE_IDS, get_scheme
from unet_utils.dataset import read_pair
from unet_utils.device import reuse_memory
from unet_utils.metrics import ConfusionMatrix
from unet_utils.optimizer import Muon
from unet_utils.restoring import SIDE, WEIGHTS, MaskRestorer, damage, nearest_color
from unet_utils.use.audit import label_at_centers, read_official

TILE = 128  # side of the tiles in which maps are enlarged, source pixels
EDGE = 3  # cells around each tile
SOURCE = (1024, 2048)  # rows and columns of an official label map: 256x256 cells of 4x8
CLASSES = len(PALETTE)
INDEX = {label.name: index for index, label in enumerate(PALETTE)}
SCHEME = get_scheme("cityscapes19")
CLASS_OF_INDEX = SCHEME.encode(PALETTE_IDS)
FIRST_FRAME = 9  # 1 to 8 have official labels, which check the result
LAST_FRAME = 2711
LAST_HELD_OUT = 2975
CROP = 128  # side of the windows that are learned from, pixels
BATCH = 8
RATE = 4e-3

Examples = tuple[torch.Tensor, torch.Tensor]
"""Masks `uint8 [N, 3, 256, 256]` and their true palette indices `uint8 [N, 256, 256]`."""


def paint(draw: ImageDraw.ImageDraw, rng: np.random.Generator, index: int, kind: str) -> None:
    """Paint one shape of palette entry `index`: a thin bar, or a blob with straight or round
    sides."""
    rows, columns = SOURCE
    x, y = rng.uniform(0, columns), rng.uniform(0, rows)
    if kind == "bar":
        # Poles, posts, cables: 3 to 30 source pixels wide. A mask pixel is 4 high and 8 wide.
        length = np.exp(rng.uniform(np.log(20), np.log(900)))
        angle = rng.normal(0, 0.04) if rng.random() < 0.75 else rng.uniform(0, math.pi)
        dx, dy = length * math.sin(angle), length * math.cos(angle)
        thickness = int(np.exp(rng.uniform(np.log(3), np.log(31))))
        draw.line([x, y, x + dx, y + dy], fill=index, width=thickness)
        return
    size = np.exp(rng.uniform(np.log(8), np.log(90 if kind == "sign" else 700)))
    w, h = size * rng.uniform(0.4, 1.6), size * rng.uniform(0.4, 1.6)
    shape = rng.integers(3)
    if shape == 0:
        draw.rectangle([x, y, x + w, y + h], fill=index)
    elif shape == 1:
        draw.ellipse([x, y, x + w, y + h], fill=index)
    else:
        turns = np.sort(rng.uniform(0, 2 * math.pi, rng.integers(3, 12)))
        radii = rng.uniform(0.3, 1, len(turns))
        corners = zip(x + w * radii * np.cos(turns), y + h * radii * np.sin(turns), strict=True)
        draw.polygon(list(corners), fill=index)


def draw_border(draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    """Draw the unlabeled border of rectified frames, about one mask pixel wide, on three of four
    maps."""
    if rng.random() < 0.75:
        bottom, right = (length - 1 for length in SOURCE)
        a, b, c, d = rng.integers(2, 12, 4).tolist()
        for box in (
            (0, 0, right, a),
            (0, bottom - b, right, bottom),
            (0, 0, c, bottom),
            (right - d, 0, right, bottom),
        ):
            draw.rectangle(box, fill=0)


def random_shapes(rng: np.random.Generator) -> np.ndarray:
    """Return a map of 4 to 29 palette entries in shapes of all sizes, `uint8 [1024, 2048]`."""
    palette = rng.permutation(CLASSES)[: rng.integers(4, CLASSES + 1)]
    image = Image.new("L", SOURCE[::-1], int(palette[0]))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(40, 160)):
        index = int(rng.choice(palette))
        paint(draw, rng, index, str(rng.choice(["blob", "bar", "sign"], p=[0.5, 0.35, 0.15])))
    draw_border(draw, rng)
    return np.asarray(image)


def enlarge(labels: np.ndarray, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Enlarge a label map `uint8 [256, 256]` to `size` (rows, columns) with smooth outlines.

    Each class is enlarged on its own as a soft mask, and each pixel gets the strongest class:
    outlines become smooth and lie anywhere between the pixels of the degraded mask, as real ones
    do."""
    rows, columns = size
    height, width = labels.shape[0] * rng.uniform(0.75, 1.0, 2)  # how much of the map is shown
    y0, x0 = rng.uniform(0, labels.shape[0] - height), rng.uniform(0, labels.shape[0] - width)
    kernel = Image.Resampling.BILINEAR if rng.random() < 0.7 else Image.Resampling.BICUBIC
    labels = np.pad(labels, EDGE, mode="edge")
    out = np.empty(size, dtype=np.uint8)
    for top in range(0, rows, TILE):  # tile by tile: a tile has few classes
        for left in range(0, columns, TILE):
            tile = out[top : top + TILE, left : left + TILE]
            y, x = y0 + EDGE + height * top / rows, x0 + EDGE + width * left / columns
            h, w = height * tile.shape[0] / rows, width * tile.shape[1] / columns
            row, column = int(y) - EDGE, int(x) - EDGE
            window = labels[row : int(y + h) + EDGE + 1, column : int(x + w) + EDGE + 1]
            box = (x - column, y - row, x - column + w, y - row + h)
            found = np.unique(window)
            tile[:] = found[0]
            if len(found) > 1:
                best = np.zeros(tile.shape, dtype=np.uint8)
                for index in found:
                    layer = Image.fromarray((window == index) * np.uint8(255))
                    soft = np.asarray(layer.resize(tile.shape[::-1], kernel, box))
                    np.copyto(tile, index, where=soft > best)
                    np.maximum(best, soft, out=best)
    return out


def street(frames: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Return a source map made of 1, 4 or 9 restored frames in a grid, `uint8 [1024, 2048]`.

    In a grid all objects are smaller and all poles thinner than in any mask that was restored.
    """
    side = math.isqrt(len(frames))
    rows, columns = (  # borders between frames: evenly spaced, moved by up to a fifth of a frame
        [0, *(int(length * (k + rng.uniform(-0.2, 0.2)) / side) for k in range(1, side)), length]
        for length in SOURCE
    )
    source = np.empty(SOURCE, dtype=np.uint8)
    for number, frame in enumerate(frames):
        (top, bottom), (left, right) = (
            edges[k : k + 2] for edges, k in zip((rows, columns), divmod(number, side), strict=True)
        )
        source[top:bottom, left:right] = enlarge(frame, (bottom - top, right - left), rng)

    # Other classes in the same geometry: rare classes have all neighbours, and no class is known by
    # its shape alone.
    recolor = np.arange(CLASSES, dtype=np.uint8)
    chance = rng.random()
    if chance < 0.05:
        recolor = rng.permutation(CLASSES).astype(np.uint8)
    elif chance < 0.35:
        present = np.unique(source)
        for index in rng.permutation(present)[: rng.integers(1, 4)]:
            recolor[index] = rng.integers(CLASSES)
    source = recolor[source]

    image = Image.fromarray(source)
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(0, 16)):
        bar = rng.random() < 0.7
        usual = ("pole",) if bar else ("traffic sign", "traffic light", "person", "unlabeled")
        index = INDEX[str(rng.choice(usual))] if rng.random() < 0.75 else int(rng.integers(CLASSES))
        paint(draw, rng, index, "bar" if bar else "sign")
    draw_border(draw, rng)
    return np.asarray(image)


def example(job: tuple[list[np.ndarray], int]) -> tuple[np.ndarray, np.ndarray]:
    """Return a degraded mask `uint8 [256, 256, 3]` and its truth `uint8 [256, 256]`.

    Args:
        job: 0, 1, 4 or 9 restored frames, and a seed. 0 frames draw random shapes.
    """
    frames, seed = job
    rng = np.random.default_rng(seed)
    source = street(frames, rng) if frames else random_shapes(rng)
    image = Image.fromarray(source)
    image.putpalette(PALETTE_COLORS.tobytes())
    return damage(np.asarray(image.convert("RGB"))), label_at_centers(source)


def make_pool(
    workers: int, count: int, seed: int, restored: np.ndarray | None = None, shapes: float = 0.15
) -> Examples:
    """Return `count` examples; a share `shapes` of them are random shapes."""
    rng = np.random.default_rng(seed)
    if restored is not None:
        has = np.stack([(restored == k).sum((1, 2)) >= 150 for k in range(CLASSES)], axis=1)

    def frame() -> np.ndarray:
        # Half of the time, a frame with a class drawn uniformly: rare classes are seen.
        if rng.random() < 0.5:
            holders = np.flatnonzero(has[:, rng.choice(np.flatnonzero(has.any(0)))])
            return restored[rng.choice(holders)]
        return restored[rng.integers(len(restored))]

    def jobs() -> Iterator[tuple[list[np.ndarray], int]]:
        for number in range(count):
            if restored is None or rng.random() < shapes:
                some = 0
            else:
                some = int(rng.choice([1, 4, 9], p=[0.55, 0.3, 0.15]))
            yield [frame() for _ in range(some)], seed * 1_000_003 + number

    masks = np.empty((count, SIDE, SIDE, 3), np.uint8)
    truth = np.empty((count, SIDE, SIDE), np.uint8)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for number, made in enumerate(pool.map(example, jobs(), chunksize=8)):
            masks[number], truth[number] = made
    return torch.from_numpy(masks.transpose(0, 3, 1, 2)), torch.from_numpy(truth)


def clean(labels: np.ndarray) -> np.ndarray:
    """Remove areas of rare classes with edge-like colours that contain no 3x3 square; neighbours
    fill them."""
    names = ("tunnel", "guard rail", "caravan", "trailer", "bridge", "train", "bus", "truck")
    maps = torch.from_numpy(labels.astype(np.int64))
    for index in (INDEX[name] for name in names):
        area = (maps == index).float()[:, None]
        inside = -torch.nn.functional.max_pool2d(-area, 3, 1, 1)
        solid = torch.nn.functional.max_pool2d(inside, 5, 1, 2)
        maps[(area * (1 - solid))[:, 0] > 0] = -1
    for _ in range(4):  # fill each hole with the class of a neighbour that has one
        for step, axis in ((1, 2), (-1, 2), (1, 1), (-1, 1)):
            maps = torch.where(maps < 0, maps.roll(step, axis), maps)
    return maps.clamp(min=0).numpy().astype(np.uint8)


def read_masks(folder: Path, numbers: range) -> np.ndarray:
    """Return the masks of these files, `uint8 [N, 256, 256, 3]`."""
    return np.stack([read_pair(folder / f"{number}.jpg")[1] for number in numbers])


@torch.inference_mode()
def predict(model: MaskRestorer, masks: torch.Tensor) -> np.ndarray:
    """Return palette indices `uint8 [N, 256, 256]` of masks `uint8 [N, 3, 256, 256]`."""
    with torch.autocast("cpu", torch.bfloat16):
        return np.concatenate(
            [model(batch).argmax(1).to(torch.uint8).numpy() for batch in masks.split(2)]
        )


def scores(predicted: np.ndarray, truth: np.ndarray) -> dict:
    """Return mIoU (19 classes) over pixels whose truth is not void, and pixel agreement with void
    as one more class."""
    void = 19
    found = np.minimum(CLASS_OF_INDEX[predicted], void)
    reference = CLASS_OF_INDEX[truth]
    known = ConfusionMatrix(void + 1)
    whole = ConfusionMatrix(void + 1)
    known.update(found, reference)
    whole.update(found, np.minimum(reference, void))
    values = known.iou.tolist()[:void]
    iou = {name: round(value, 3) for name, value in zip(SCHEME.names, values, strict=True)}
    return {
        "miou": round(known.mean_iou, 4),
        "agreement": round(whole.pixel_accuracy, 4),
        "iou": iou,
    }


def official_examples(folder: Path, pairs: Path) -> Examples:
    """Return the frames that have official labels. Never trained on."""
    index_of_id = np.zeros(256, dtype=np.uint8)
    index_of_id[PALETTE_IDS] = np.arange(CLASSES)
    index_of_id[18] = index_of_id[17]  # polegroup has the colour of pole
    frames = [
        (mask, index_of_id[label_at_centers(labels)])
        for _, _, mask, labels in read_official(folder, pairs)
    ]
    masks, truth = (torch.from_numpy(np.stack(arrays)) for arrays in zip(*frames, strict=True))
    return masks.permute(0, 3, 1, 2), truth


def measure(model: MaskRestorer, sets: dict[str, Examples]) -> dict[str, dict]:
    """Return the scores of each set."""
    return {
        name: scores(predict(model, masks), truth.numpy()) for name, (masks, truth) in sets.items()
    }


def save(model: MaskRestorer, path: Path) -> None:
    """Write the weights in half precision."""
    torch.save(
        {name: value.half().contiguous() for name, value in model.state_dict().items()}, path
    )


def train(
    model: MaskRestorer,
    pool: Examples,
    steps: int,
    seed: int,
    sets: dict[str, Examples],
    path: Path,
) -> MaskRestorer:
    """Train `model` in place. Return its moving average, which is measured and saved to `path` five
    times."""
    masks, truth = pool
    rng = np.random.default_rng(seed)
    share = torch.bincount(truth.flatten()[::37].long(), minlength=CLASSES).float()
    weights = (share / share.sum()).clamp(min=1e-3).pow(-0.25)
    weights /= (weights * share / share.sum()).sum()
    optimizer = Muon(model.parameters())
    average = MaskRestorer().to(memory_format=torch.channels_last)
    average.load_state_dict(model.state_dict())
    outlines = (truth != truth.roll(1, 1)) | (truth != truth.roll(1, 2))

    def some_window() -> tuple[int, slice, slice]:
        # At borders of JPEG blocks.
        top, left = (16 * int(step) for step in rng.integers(0, (SIDE - CROP) // 16 + 1, 2))
        return int(rng.integers(len(masks))), slice(top, top + CROP), slice(left, left + CROP)

    def progress() -> str:
        return ", ".join(
            f"{name} {s['miou']:.4f} {s['agreement']:.4f}"
            for name, s in measure(average, sets).items()
        )

    losses = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = (
                RATE * min(1, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
            )
        x, y = [], []
        for _ in range(BATCH):
            # Of three windows, the one with the longest outlines: there is little to learn inside
            # of an area.
            number, *window = max(
                (some_window() for _ in range(3)), key=lambda place: outlines[place].sum()
            )
            # What was done to the masks is symmetric in both axes.
            flips = [axis for axis in (-1, -2) if rng.random() < 0.5]
            x.append(masks[number][(slice(None), *window)].flip(flips))
            y.append(truth[number][tuple(window)].flip(flips))
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(torch.stack(x))
        # One row per pixel, as the logits lie in memory: faster than along the second of four
        # dimensions.
        logits = logits.permute(0, 2, 3, 1).flatten(0, 2).float()
        loss = cross_entropy(logits, torch.stack(y).flatten().long(), weight=weights)
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        keep = min(0.998, (step + 1) / (step + 11))
        with torch.no_grad():
            for mean, value in zip(average.parameters(), model.parameters(), strict=True):
                mean.lerp_(value, 1 - keep)
        losses.append(loss.item())
        if (step + 1) % (steps // 5) == 0:
            save(average, path)
            print(f"  step {step + 1} loss {np.mean(losses[-200:]):.4f} {progress()}", flush=True)
    return average


def main() -> None:
    """Train all rounds, and write the weights and the scores."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=Path, required=True, help="folder with train/ and val/")
    parser.add_argument(
        "--work",
        type=Path,
        required=True,
        help="folder for the weights of each round and the scores",
    )
    parser.add_argument("--official", type=Path, help="folder with official labels, to measure on")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="file of the final weights")
    parser.add_argument(
        "--steps", type=int, nargs="+", default=[800, 1200, 2000, 9000], help="steps of each round"
    )
    parser.add_argument(
        "--maps", type=int, nargs="+", default=[800, 1000, 1200, 2600], help="maps of each round"
    )
    parser.add_argument(
        "--start",
        type=int,
        default=0,
        help="first round; the result of the round before is loaded from --work",
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=2026)
    args = parser.parse_args()
    reuse_memory()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.work.mkdir(parents=True, exist_ok=True)
    model = MaskRestorer().to(memory_format=torch.channels_last)
    if args.start:
        model.load_state_dict(
            torch.load(args.work / f"round{args.start - 1}.pt", weights_only=True)
        )
    checks = {"official": official_examples(args.official, args.pairs)} if args.official else {}
    record = {"seed": args.seed, "steps": args.steps, "maps": args.maps}

    for number in range(args.start, len(args.steps)):
        began = time.time()
        restored = None
        held_out = None
        if number:
            # Every third frame, others in each round: consecutive frames show similar scenes.
            masks = read_masks(
                args.pairs / "train", range(FIRST_FRAME + number % 3, LAST_FRAME + 1, 3)
            )
            restored = clean(predict(model, torch.from_numpy(masks.transpose(0, 3, 1, 2))))
            masks = read_masks(args.pairs / "train", range(LAST_FRAME + 1, LAST_HELD_OUT + 1, 12))
            held_out = clean(predict(model, torch.from_numpy(masks.transpose(0, 3, 1, 2))))
            print(f"restored in {time.time() - began:.0f} s", flush=True)
        pool = make_pool(args.threads, args.maps[number], args.seed + number, restored)
        test = make_pool(args.threads, 32, args.seed + 1000 + number, held_out)
        print(
            f"round {number}: {len(pool[0])} maps made in {time.time() - began:.0f} s", flush=True
        )

        sets = {"held-out maps": test, **checks}
        model = train(
            model,
            pool,
            args.steps[number],
            args.seed + number,
            sets,
            args.work / f"round{number}.pt",
        )
        record[f"round {number}"] = measure(model, sets)

    save(model, args.out)
    record["nearest"] = {}
    for name, (masks, truth) in sets.items():
        by_color = nearest_color(masks.permute(0, 2, 3, 1).numpy(), PALETTE_COLORS)
        record["nearest"][name] = scores(by_color, truth.numpy())
    (args.work / "record.json").write_text(json.dumps(record, indent=1))
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
