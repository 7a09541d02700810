"""The real pairs, where their archive is: set UNET_UTILS_ARCHIVE to the path of Kaggle's zip."""

import json
import os

import numpy as np
import pytest

from unet_utils import (
    CityscapesPairs,
    ConfusionMatrix,
    color_histogram,
    evaluate,
    find_clusters,
    load_trained,
    prepare,
)
from unet_utils.classes import PALETTE, PALETTE_COLORS
from unet_utils.evaluation import SMALL_MODEL
from unet_utils.restoring import restore_label_ids
from unet_utils.sources import check_pairs, get_pairs

ARCHIVE = os.environ.get("UNET_UTILS_ARCHIVE")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not ARCHIVE, reason="UNET_UTILS_ARCHIVE does not name the archive of the real pairs"
    ),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return get_pairs(ARCHIVE, tmp_path_factory.mktemp("real"))


def test_all_pairs_arrived_in_order(root):
    assert check_pairs(root) == {"train": 2975, "val": 500}
    numbers = [int(path.stem) for path in CityscapesPairs(root, "train").paths]
    assert numbers == list(range(1, 2976))


def test_the_splits_share_no_photo(root):
    hashes = [
        {hash(path.read_bytes()) for path in CityscapesPairs(root, split).paths}
        for split in ("train", "val")
    ]
    assert len(hashes[0]) == 2975
    assert not hashes[0] & hashes[1]


def test_big_classes_have_clusters_at_their_colour(root):
    colors, counts = color_histogram(CityscapesPairs(root, "train"))
    assert counts.sum() == 2975 * 256 * 256
    exact = (colors[:, None] == PALETTE_COLORS).all(2).any(1)
    assert 0.14 < counts[exact].sum() / counts.sum() < 0.17
    clusters = find_clusters(colors, counts)
    moved = dict(zip(clusters.names, clusters.moved, strict=True))
    assert max(moved[name] for name in ("road", "building", "vegetation", "car", "unlabeled")) < 5
    assert moved["guard rail"] > 30  # no guard rail: a mixture


def test_phantom_classes_vanish_when_restored(root):
    pairs = CityscapesPairs(root, "val")
    pairs.paths = pairs.paths[::25]
    masks = np.concatenate([masks for _, _, masks in pairs.blocks()])
    ids = {label.name: label.id for label in PALETTE}
    shares = {method: restore_label_ids(masks, method) for method in ("nearest", "restored")}
    phantoms = [ids[name] for name in ("tunnel", "trailer", "guard rail", "caravan")]
    nearest, restored = (np.isin(labels, phantoms).mean() for labels in shares.values())
    assert restored < nearest / 10
    # ... and the one that is real stays: val/326.jpg shows a guard rail, painted in its colour.
    (frame,) = (index for index, path in enumerate(pairs.paths) if path.stem == "326")
    assert (shares["restored"][frame] == ids["guard rail"]).sum() > 1000
    road, same = (shares[method] == ids["road"] for method in ("nearest", "restored"))
    assert abs(road.mean() - same.mean()) < 0.02


def test_the_small_model_scores_what_is_written_beside_it(root, tmp_path):
    trained = load_trained(SMALL_MODEL, "cpu")
    frames = prepare(root, "val", tmp_path, progress=False)
    matrix = ConfusionMatrix.total(evaluate(trained.model, frames, trained.scene_size))
    written = json.loads(SMALL_MODEL.with_name("small-evaluation.json").read_text())
    for name, value in matrix.summary().items():
        # Other processors and precisions round otherwise; another restorer would show.
        assert value == pytest.approx(written[name], abs=0.003), name


def test_the_kept_labels_are_small(root, tmp_path):
    frames = prepare(
        root, "val", tmp_path / "cache", method="nearest", keep=tmp_path / "keep", progress=False
    )
    assert len(frames) == 500
    (kept,) = (tmp_path / "keep").iterdir()
    assert kept.stat().st_size < 25 * 2**20 * 500 / 3475
