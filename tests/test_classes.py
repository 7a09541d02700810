import numpy as np
import pytest

from unet_utils import IGNORE, LABELS, PALETTE, ClassScheme, get_scheme


def test_the_palette_holds_each_colour_once():
    assert len(LABELS) == 34
    assert len(PALETTE) == len({label.color for label in PALETTE}) == 29
    assert {label.color for label in PALETTE} == {label.color for label in LABELS}


def test_cityscapes19_is_the_order_of_the_benchmark():
    scheme = get_scheme("cityscapes19")
    assert scheme.num_classes == 19
    assert scheme.names[:3] == ("road", "sidewalk", "building")
    assert scheme.names[-2:] == ("motorcycle", "bicycle")
    by_name = {label.name: label.id for label in LABELS}
    label_ids = np.array(
        [by_name["road"], by_name["bicycle"], by_name["parking"], by_name["tunnel"], 0],
        dtype=np.uint8,
    )
    assert scheme.encode(label_ids).tolist() == [0, 18, IGNORE, IGNORE, IGNORE]


def test_categories7_groups_the_same_pixels():
    nineteen, seven = get_scheme("cityscapes19"), get_scheme("categories7")
    assert seven.names == ("flat", "construction", "object", "nature", "sky", "human", "vehicle")
    label_ids = np.arange(256, dtype=np.uint8)
    assert ((nineteen.encode(label_ids) == IGNORE) == (seven.encode(label_ids) == IGNORE)).all()


def test_cityscapes30_keeps_every_annotated_class():
    scheme = get_scheme("cityscapes30")
    assert scheme.num_classes == 30
    assert scheme.encode(np.array([3, 4, 33], dtype=np.uint8)).tolist() == [IGNORE, 0, 29]


@pytest.mark.parametrize("name", ["cityscapes19", "categories7", "cityscapes30"])
def test_schemes_survive_a_checkpoint_and_paint_their_colours(name):
    scheme = get_scheme(name)
    assert ClassScheme.from_dict(scheme.to_dict()) == scheme
    painted = scheme.colorize(np.array([[0, IGNORE]], dtype=np.uint8))
    assert painted.tolist() == [[list(scheme.colors[0]), [0, 0, 0]]]


def test_an_unknown_scheme_names_the_choices():
    with pytest.raises(ValueError, match="cityscapes19, categories7"):
        get_scheme("cityscapes20")
