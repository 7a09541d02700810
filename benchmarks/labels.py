"""How long labels take, as ratios to the bare decoding of the same JPEGs, measured side by side in one run.

    python benchmarks/labels.py --data pairs.zip

The rows are run in turn, several times, after a warm-up; medians and ranges of the ratios are printed. All of them use
the same files and as many threads as there are cores.
"""

import argparse
import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from unet_utils import CityscapesPairs, color_histogram, environment, find_clusters, get_pairs
from unet_utils.classes import PALETTE_COLORS
from unet_utils.decoding import decode_label_ids, nearest_color


def bare_decoding(pairs: CityscapesPairs) -> None:
    """The limit: Pillow decodes every JPEG, and nothing else happens."""

    def decode(path: Path) -> None:
        with Image.open(path) as image:
            image.load()

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(decode, pairs.paths))


def nearest_labels(pairs: CityscapesPairs) -> None:
    """Labels by nearest colour, decoding included."""
    for _, _, masks in pairs.blocks():
        nearest_color(masks, PALETTE_COLORS)


def clustering(pairs: CityscapesPairs) -> None:
    """The exact histogram and k-means from the palette, decoding included."""
    find_clusters(*color_histogram(pairs))


def decoded_labels(pairs: CityscapesPairs) -> None:
    """Labels by the decoder, decoding included."""
    for _, _, masks in pairs.blocks():
        decode_label_ids(masks, "decoder")


def brute_force_nearest(masks: np.ndarray) -> np.ndarray:
    """Nearest colour as it is usually written: all distances, then the smallest."""
    distances = ((masks[..., None, :].astype(np.int32) - PALETTE_COLORS) ** 2).sum(-1)
    return distances.argmin(-1)


def brute_force_labels(pairs: CityscapesPairs) -> None:
    """Labels by brute-force nearest colour, decoding included."""
    for _, _, masks in pairs.blocks():
        for mask in masks:
            brute_force_nearest(mask)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="demo", help="demo, kaggle, or the path of a .zip or folder (default: demo)")
    parser.add_argument("--frames", type=int, help="use only the first N training pairs")
    parser.add_argument("--rounds", type=int, default=3, help="times that each row is measured (default: 3)")
    options = parser.parse_args()
    pairs = CityscapesPairs(get_pairs(options.data, environment.setup().data), "train")
    pairs.paths = pairs.paths[: options.frames]
    rows = [bare_decoding, nearest_labels, clustering, decoded_labels, brute_force_labels]
    # The slow rows see a part of the files; every time is divided by its number of files.
    part = CityscapesPairs(pairs.paths[0].parent.parent, "train")
    part.paths = pairs.paths[: max(32, len(pairs) // 20)]
    files = {row: part if row in (decoded_labels, brute_force_labels) else pairs for row in rows}
    seconds: dict = {row: [] for row in rows}
    for round_number in range(options.rounds + 1):
        for row in rows:
            start = time.perf_counter()
            row(part if round_number == 0 else files[row])
            if round_number:  # the first round only warms up: caches, look-up table, thread pools
                seconds[row].append((time.perf_counter() - start) / len(files[row]))
    print(f"{len(pairs)} pairs, {options.rounds} rounds, {os.cpu_count()} cores")
    print(f"{'':22} {'ms a pair':>10} {'times bare decoding: median (range)':>38}")
    for row in rows:
        ratios = [ours / bare for ours, bare in zip(seconds[row], seconds[bare_decoding], strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"{row.__name__.replace('_', ' '):22} {1000 * statistics.median(seconds[row]):10.3f} {spread:>38}")


if __name__ == "__main__":
    main()
