"""Rows 1 and 5: preparing the set, and clustering its colours."""

import numpy as np
from sklearn.cluster import KMeans

from benchmarks.peers import copied_colors, copied_pair
from benchmarks.setting import Setting
from benchmarks.timing import Comparison, Result, interleave
from unet_utils import CityscapesPairs, color_histogram, find_clusters
from unet_utils.classes import PALETTE_COLORS
from unet_utils.restoring import restore_label_ids


def labels(pairs: CityscapesPairs, method: str) -> None:
    """From files to photos and label ids, our way."""
    for _, _, masks in pairs.blocks():
        restore_label_ids(masks, method)


def copied_labels(pairs: CityscapesPairs, label_model: KMeans) -> None:
    """From files to photos and clusters, as in the copied recipe."""
    for path in pairs.paths:
        copied_pair(path, label_model)


def preparing(setting: Setting) -> Result:
    """Row 1."""
    pairs = setting.train_pairs()
    part = setting.train_pairs(max(16, setting.pairs // 20))
    label_model = copied_colors()
    contenders = {
        "nearest": lambda: labels(pairs, "nearest"),
        "restored": lambda: labels(part, "restored"),
        "copied": lambda: copied_labels(part, label_model),
    }
    items = {"nearest": len(pairs), "restored": len(part), "copied": len(part)}
    times = interleave(contenders, setting.rounds, items)

    def row(number: str, ours: str, other: str, theirs: str, at_most: float | None) -> Comparison:
        work = {"nearest": "labels by nearest colour", "restored": "restored labels"}[ours]
        return Comparison(
            number, work, other, times[ours], times[theirs], at_most, unit="s per pair"
        )

    return Result(
        [
            row("1a", "nearest", "copied recipe: Pillow and k-means", "copied", 0.2),
            row("1b", "restored", "labels by nearest colour", "nearest", None),
        ],
        f"Row 1: {len(pairs)} pairs ({len(part)} for the slow ways); all read the files. All use "
        "all cores, except the copied recipe, which loads its data without workers.",
    )


def clustering(setting: Setting) -> Result:
    """Row 5: k-means from the official colours until no centre moves, including reading the
    files."""
    pairs = setting.train_pairs(min(64, max(4, setting.pairs // 16)))
    inertia: dict[str, float] = {}

    def ours() -> None:
        clusters = find_clusters(*color_histogram(pairs))
        inertia["ours"] = clusters.inertia / (len(pairs) * 2**16)

    def theirs(sample: int | None) -> None:
        pixels = np.concatenate([masks.reshape(-1, 3) for _, _, masks in pairs.blocks()])
        chosen = (
            pixels
            if sample is None
            else np.random.default_rng(0).choice(pixels, sample, replace=False)
        )
        model = KMeans(len(PALETTE_COLORS), init=PALETTE_COLORS.astype(np.float32), n_init=1, tol=0)
        model.fit(chosen.astype(np.float32))
        distance = [-model.score(block) for block in np.array_split(pixels.astype(np.float32), 16)]
        inertia["scikit-learn" if sample is None else "sample"] = sum(distance) / len(pixels)

    sample = min(100_000, len(pairs) * 2**14)
    contenders = {"ours": ours, "all": lambda: theirs(None), "sample": lambda: theirs(sample)}
    times = interleave(contenders, min(setting.rounds, 2))
    spread = ", ".join(f"{name} {value:.2f}" for name, value in inertia.items())
    return Result(
        [
            Comparison(
                "5",
                "clustering every pixel",
                "scikit-learn, every pixel",
                times["ours"],
                times["all"],
                0.1,
            ),
            Comparison(
                "5",
                "clustering every pixel",
                f"scikit-learn, {sample} pixels",
                times["ours"],
                times["sample"],
            ),
        ],
        f"Row 5: {len(pairs)} pairs, {len(pairs) * 2**16:,} pixels, 29 clusters started at the "
        "official colours, until no centre moves; all read the files. Mean squared distance to the "
        f"nearest centre: {spread}.",
        {"inertia per pixel": inertia},
    )
