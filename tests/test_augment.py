from dataclasses import replace

import pytest
import torch

from unet_utils import IGNORE
from unet_utils.augment import augment, draw_changes
from unet_utils.encoders import MEAN, STD
from unet_utils.images import to_input


@pytest.fixture
def batch():
    """Photos whose red channel is the class, times 12: photo and labels can be compared after any
    change."""
    blocks = torch.arange(16).reshape(4, 4).repeat_interleave(64, 0).repeat_interleave(64, 1).byte()
    labels = blocks.repeat(8, 1, 1)
    return torch.stack([labels * 12] * 3, dim=1), labels


def changes(seed=0, strength=1.0, colors=True, cutmix=0.0):
    drawn = draw_changes(8, torch.Generator().manual_seed(seed), strength, cutmix)
    unchanged = {"gain": torch.ones(8, 3), "offset": torch.zeros(8), "saturation": torch.ones(8)}
    return drawn if colors else replace(drawn, **unchanged)


def to_photos(x):
    """Network input as photos again."""
    mean, std = (255 * torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (x * std + mean).round().clamp(0, 255).byte()


def test_photo_and_labels_move_together(batch):
    x, y = augment(*batch, 256, changes(colors=False))
    assert x.shape == (8, 3, 256, 256)
    assert y.shape == (8, 256, 256)
    red = to_photos(x)[:, 0].float()
    inside = y != IGNORE
    assert inside.float().mean() > 0.8
    close = (red / 12 - y).abs() < 0.5
    assert close[inside].float().mean() > 0.97  # the rest are blended along edges


def test_every_sample_is_changed_in_its_own_way(batch):
    x, y = augment(*batch, 256, changes())
    for other in range(1, 8):
        assert (y[0] != y[other]).any()
        assert not torch.allclose(x[0], x[other])


def test_some_are_mirrored_and_some_are_not(batch):
    _, y = augment(*batch, 256, changes(strength=0.0))
    left, right = y[:, 128, 64].int() % 4, y[:, 128, 192].int() % 4
    mirrored = (left > right).sum()
    assert 0 < mirrored < 8


def test_outside_the_frame_is_void_and_void_stays_void(batch):
    photos, labels = batch
    labels = labels.clone()
    labels[:, :, 128:] = IGNORE
    _, y = augment(photos, labels, 128, changes(1))
    assert set(y.unique().tolist()) <= {*range(16), IGNORE}
    assert 0.3 < (y == IGNORE).float().mean() < 0.8


def test_it_repeats_with_the_same_generator_only(batch):
    first, again, other = (augment(*batch, 128, changes(seed))[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_part_of_a_batch_is_changed_as_in_the_whole(batch):
    """So that machines that share a batch do together what one would do alone."""
    photos, labels = batch
    for cutmix, part in ((0.0, slice(3, 6)), (0.5, slice(2, 6))):
        drawn = changes(cutmix=cutmix)
        x, y = augment(photos, labels, 128, drawn)
        some_x, some_y = augment(photos[part], labels[part], 128, drawn.part(part))
        assert torch.equal(some_x, x[part])
        assert torch.equal(some_y, y[part])


def test_boxes_hold_what_the_neighbour_has_at_the_same_place(batch):
    photos, _ = batch
    own = torch.arange(8, dtype=torch.uint8)[:, None, None].expand(8, 256, 256)
    with_boxes = changes(strength=0.0, cutmix=1.0)
    x, y = augment(photos, own, 64, with_boxes)
    without = replace(with_boxes, boxes=torch.zeros_like(with_boxes.boxes))
    before, _ = augment(photos, own, 64, without)
    for sample, neighbor in [(0, 1), (1, 0), (6, 7), (7, 6)]:
        pasted = y[sample] == neighbor
        assert ((y[sample] == sample) | pasted).all()
        assert 0.1 < pasted.float().mean() < 0.8
        expected = torch.where(pasted, before[neighbor], before[sample])
        assert torch.equal(x[sample], expected)


def test_a_share_of_the_samples_gets_boxes(batch):
    drawn = draw_changes(400, torch.Generator().manual_seed(0), cutmix=0.25)
    has_boxes = (drawn.boxes[..., 1] > drawn.boxes[..., 0]).any(1)
    assert 0.15 < has_boxes.float().mean() < 0.35
    assert drawn.boxes.min() >= 0
    assert drawn.boxes.max() <= 1


def test_the_last_sample_of_an_odd_batch_stays_whole(batch):
    photos, labels = batch
    drawn = changes(strength=0.0, cutmix=1.0).part(slice(0, 7))
    _, with_boxes = augment(photos[:7], labels[:7], 64, drawn)
    plain = replace(drawn, boxes=torch.zeros_like(drawn.boxes))
    _, without = augment(photos[:7], labels[:7], 64, plain)
    assert torch.equal(with_boxes[6], without[6])


def test_input_and_back(batch):
    photos, _ = batch
    assert torch.equal(to_photos(to_input(photos, 256)), photos)
    assert to_input(photos, 128).shape == (8, 3, 128, 128)
    assert to_input(photos, (64, 96)).shape == (8, 3, 64, 96)
    assert to_input(photos, 256).mean().abs() < 1
