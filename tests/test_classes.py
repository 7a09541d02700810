import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from unet_utils import IGNORE, LABELS, PALETTE, ClassScheme, get_scheme
from unet_utils.classes import SCHEMES, cluster_scheme

ROOT = Path(__file__).resolve().parent.parent
BY_NAME = {label.name: label.id for label in LABELS}


def test_the_palette_holds_each_colour_once():
    assert len(LABELS) == 34
    assert len(PALETTE) == len({label.color for label in PALETTE}) == 29
    assert {label.color for label in PALETTE} == {label.color for label in LABELS}


def test_cityscapes19_is_the_order_of_the_benchmark():
    scheme = get_scheme("cityscapes19")
    assert scheme.num_classes == 19
    assert scheme.names[:3] == ("road", "sidewalk", "building")
    assert scheme.names[-2:] == ("motorcycle", "bicycle")
    assert [label.train_id for label in LABELS if label.train_id != IGNORE] == list(range(19))
    names = ("road", "bicycle", "parking", "tunnel", "unlabeled")
    label_ids = np.array([BY_NAME[name] for name in names], dtype=np.uint8)
    assert scheme.encode(label_ids).tolist() == [0, 18, IGNORE, IGNORE, IGNORE]


def test_categories7_groups_the_same_pixels():
    nineteen, seven = get_scheme("cityscapes19"), get_scheme("categories7")
    assert seven.names == ("flat", "construction", "object", "nature", "sky", "human", "vehicle")
    label_ids = np.arange(256, dtype=np.uint8)
    assert ((nineteen.encode(label_ids) == IGNORE) == (seven.encode(label_ids) == IGNORE)).all()
    # The colour of a category is that of its first class.
    assert [nineteen.colors.index(color) for color in seven.colors] == [0, 2, 5, 8, 10, 11, 13]
    for label in LABELS:
        if label.train_id != IGNORE:
            assert seven.names[seven.lookup[label.id]] == label.category


def test_cityscapes30_keeps_every_annotated_class():
    scheme = get_scheme("cityscapes30")
    assert scheme.num_classes == 30
    assert scheme.encode(np.array([3, 4, 33], dtype=np.uint8)).tolist() == [IGNORE, 0, 29]


def test_clusters_named_after_void_are_ignored():
    ids = [BY_NAME["sky"], BY_NAME["ground"], BY_NAME["road"]]
    scheme = cluster_scheme(ids, np.array([[70.4, 130, 180], [81, 0, 81], [127.6, 64, 128]]))
    assert scheme.names == ("sky", "road")
    assert scheme.colors == ((70, 130, 180), (128, 64, 128))
    assert scheme.encode(np.array(ids, dtype=np.uint8)).tolist() == [0, IGNORE, 1]
    assert scheme.cluster_colors == ((70, 130, 180), (81, 0, 81), (128, 64, 128))
    assert scheme.cluster_ids == tuple(ids)


CLUSTERS = cluster_scheme([7, 0], np.zeros((2, 3)))


@pytest.mark.parametrize("name", [*SCHEMES, CLUSTERS])
def test_schemes_survive_a_checkpoint_and_paint_their_colours(name, tmp_path):
    scheme = get_scheme(name)
    torch.save(scheme.to_dict(), tmp_path / "checkpoint.pt")
    loaded = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert ClassScheme.from_dict(loaded) == scheme
    painted = scheme.colorize(np.array([[0, IGNORE]], dtype=np.uint8))
    assert painted.tolist() == [[list(scheme.colors[0]), [0, 0, 0]]]


@pytest.mark.parametrize("name", SCHEMES)
def test_each_class_has_a_label_and_a_colour_of_its_own(name):
    scheme = SCHEMES[name]
    assert scheme.name == name
    assert set(scheme.lookup) - {IGNORE} == set(range(scheme.num_classes))
    assert len(scheme.colors) == len(scheme.names) == len(set(scheme.names))
    assert scheme.lookup[0] == IGNORE  # "unlabeled" is no class


def test_notebooks_offer_all_schemes():
    fields = []
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for cell in json.loads(path.read_text())["cells"]:
            fields += re.findall(r"^SCHEME = .*# @param (\[.*\])", "".join(cell["source"]), re.M)
    assert fields
    for choices in fields:
        assert set(json.loads(choices)) == {*SCHEMES, "clusters"}


def test_an_overlay_has_white_borders_and_shows_the_photo_where_nothing_is_known():
    scheme = get_scheme("cityscapes19")
    photo = np.full((4, 6, 3), 100, dtype=np.uint8)
    classes = np.full((4, 6), IGNORE, dtype=np.uint8)
    classes[:, 2:] = 10
    seen = scheme.overlay(photo, classes)
    assert (seen[:, 0] == 100).all()
    assert (seen[:, 1] == 255).all()
    assert (seen[:, 2:] == (100 + np.array(scheme.colors[10])) / 2).all()


def test_an_unknown_scheme_names_the_choices():
    with pytest.raises(ValueError, match="cityscapes19, categories7"):
        get_scheme("cityscapes20")
