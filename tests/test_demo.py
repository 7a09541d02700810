"""The demo set: the same pairs every time, in the format of the real ones, with known classes."""

import numpy as np
import pytest
from PIL import Image, JpegImagePlugin

from unet_utils.classes import LABELS, PALETTE_COLORS, PALETTE_IDS
from unet_utils.demo import canvas
from unet_utils.demo import pairs as demo
from unet_utils.demo.objects import VEHICLES, vehicle
from unet_utils.restoring import damage, nearest_color

EVALUATED = {label.id: label.name for label in LABELS if label.train_id != 255}


def true_scene(split, index):
    """The label ids of a pair, before they are made small."""
    return demo.draw_scene(np.random.default_rng([0, demo.SPLITS.index(split), index]))[1]


@pytest.fixture(scope="module")
def small_set(tmp_path_factory):
    return demo.make_demo(tmp_path_factory.mktemp("demo"), train=3, val=2)


def test_a_scene_is_determined_by_its_seed():
    photo, labels = demo.draw_scene(np.random.default_rng(3))
    again, same_labels = demo.draw_scene(np.random.default_rng(3))
    other, _ = demo.draw_scene(np.random.default_rng(4))
    assert photo.shape == (canvas.HEIGHT, canvas.WIDTH, 3)
    assert photo.dtype == labels.dtype == np.uint8
    assert labels.shape == (canvas.HEIGHT, canvas.WIDTH)
    assert np.array_equal(photo, again)
    assert np.array_equal(labels, same_labels)
    assert not np.array_equal(photo, other)


def test_layout_and_format_are_those_of_the_real_set(small_set):
    assert small_set.name == "cityscapes_data"
    assert sorted(p.name for p in (small_set / "train").iterdir()) == ["1.jpg", "2.jpg", "3.jpg"]
    assert sorted(p.name for p in (small_set / "val").iterdir()) == ["1.jpg", "2.jpg"]
    with Image.open(small_set / "train" / "1.jpg") as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (512, 256))
        assert JpegImagePlugin.get_sampling(image) == 2  # 4:2:0
        reference = Image.new("RGB", (16, 16))
        reference.save(small_set.parent / "quality95.jpg", quality=95, subsampling="4:2:0")
        with Image.open(small_set.parent / "quality95.jpg") as quality95:
            assert image.quantization == quality95.quantization


def test_mask_half_is_the_damaged_truth(small_set):
    expected = damage(canvas.COLORS[true_scene("val", 2)]).astype(int)
    with Image.open(small_set / "val" / "2.jpg") as image:
        mask = np.asarray(image)[:, 256:].astype(int)
    # Only the columns next to the photo may differ: JPEG decoders smooth the colour across the
    # border.
    assert np.array_equal(mask[:, 16:], expected[:, 16:])
    assert np.abs(mask - expected).mean() < 0.5


def test_truth_agrees_with_the_mask_but_not_everywhere(small_set):
    shared = np.arange(256, dtype=np.uint8)
    for label in LABELS:  # labels of one colour count as the first of them
        shared[label.id] = PALETTE_IDS[(np.array(label.color) == PALETTE_COLORS).all(axis=1)][0]
    for split, index in (("train", 1), ("train", 3), ("val", 1), ("val", 2)):
        with Image.open(small_set / split / f"{index}.jpg") as image:
            mask = np.asarray(image)[:, 256:]
        truth = true_scene(split, index)[1::2, 2::4]  # at the centre of each pixel
        agreement = (PALETTE_IDS[nearest_color(mask, PALETTE_COLORS)] == shared[truth]).mean()
        assert 0.85 < agreement < 1


def test_every_evaluated_class_occurs_in_validation():
    pixels = np.zeros(256, dtype=int)
    for index in range(1, 61):
        pixels += np.bincount(true_scene("val", index)[1::2, 2::4].ravel(), minlength=256)
        missing = [name for label_id, name in EVALUATED.items() if pixels[label_id] < 100]
        if not missing:  # the rest cannot take any away
            break
    assert not missing
    largest = sorted(EVALUATED, key=lambda label_id: -pixels[label_id])[:3]
    assert {EVALUATED[label_id] for label_id in largest} == {"road", "building", "vegetation"}
    assert pixels[largest[0]] < 0.5 * sum(pixels[label_id] for label_id in EVALUATED)


def test_a_complete_set_is_kept_and_other_settings_draw_anew(tmp_path):
    folder = demo.make_demo(tmp_path, train=1, val=1)
    file = folder / "train" / "1.jpg"
    before, first = file.stat().st_mtime_ns, file.read_bytes()
    assert demo.make_demo(tmp_path, train=1, val=1) == folder
    assert file.stat().st_mtime_ns == before
    demo.make_demo(tmp_path, train=2, val=1)
    assert (folder / "train" / "2.jpg").is_file()
    assert file.stat().st_mtime_ns != before
    assert file.read_bytes() == first


def test_an_interrupted_set_leaves_nothing_behind_and_a_damaged_one_is_drawn_anew(
    tmp_path, monkeypatch
):
    draw, calls = demo.draw_scene, []

    def fails_late(rng):
        calls.append(1)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return draw(rng)

    monkeypatch.setattr(demo, "draw_scene", fails_late)
    with pytest.raises(KeyboardInterrupt):
        demo.make_demo(tmp_path, train=3, val=1)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(demo, "draw_scene", draw)
    folder = demo.make_demo(tmp_path, train=3, val=1)
    (folder / "train" / "2.jpg").unlink()
    assert (demo.make_demo(tmp_path, train=3, val=1) / "train" / "2.jpg").is_file()


def test_other_pictures_are_left_alone(tmp_path):
    (tmp_path / "cityscapes_data" / "train").mkdir(parents=True)
    (tmp_path / "cityscapes_data" / "train" / "1.jpg").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="not a demo set"):
        demo.make_demo(tmp_path, train=1, val=1)
    assert (tmp_path / "cityscapes_data" / "train" / "1.jpg").read_bytes() == b"mine"


def test_a_set_that_appears_while_drawing_is_used(tmp_path, monkeypatch):
    draw, first = demo.draw_scene, []

    def other_process_is_faster(rng):
        if not first:
            first.append(True)
            demo.make_demo(tmp_path, train=1, val=1)
            first.append((tmp_path / "cityscapes_data" / "train" / "1.jpg").stat().st_ino)
        return draw(rng)

    monkeypatch.setattr(demo, "draw_scene", other_process_is_faster)
    folder = demo.make_demo(tmp_path, train=1, val=1)
    assert (folder / "train" / "1.jpg").stat().st_ino == first[1]
    assert list(tmp_path.iterdir()) == [folder]


def test_a_tram_is_told_from_a_bus_by_its_pantograph_and_its_hidden_wheels():
    heights = {}
    gaps = {}
    for kind in ("bus", "tram"):
        scene = canvas.Canvas(np.random.default_rng(0))
        vehicle(scene, 0, 15, 0, kind)
        drawn = np.asarray(scene.labels) == canvas.ID[VEHICLES[kind][0]]
        rows = np.flatnonzero(drawn.any(1))
        heights[kind] = len(rows)
        gaps[kind] = drawn[rows[-1] - 2].sum() / drawn.any(0).sum()  # just above the ground
    assert heights["tram"] > 1.2 * heights["bus"]
    assert gaps["bus"] < 0.5 < gaps["tram"]
