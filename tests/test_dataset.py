import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from unet_utils import IGNORE, CityscapesPairs, Frames, get_scheme, prepare, restore_labels
from unet_utils.clustering import choose_scheme
from unet_utils.dataset import read_pair
from unet_utils.frames import HELD_OUT_CITIES


def test_the_halves_are_pillows_pixels(demo):
    pairs = CityscapesPairs(demo, "val")
    for index in range(len(pairs)):
        with Image.open(pairs.paths[index]) as image:
            pixels = np.asarray(image)
        photo, mask = pairs[index]
        assert photo.shape == mask.shape == (3, 256, 256)
        assert photo.dtype == mask.dtype == torch.uint8
        assert (photo.permute(1, 2, 0).numpy() == pixels[:, :256]).all()
        assert (mask.permute(1, 2, 0).numpy() == pixels[:, 256:]).all()


def test_files_come_in_numeric_order(demo):
    numbers = [int(path.stem) for path in CityscapesPairs(demo, "train").paths]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) > 10  # where alphabetical order would differ


def test_a_split_that_is_not_there(demo):
    with pytest.raises(FileNotFoundError, match="test"):
        CityscapesPairs(demo, "test")


@pytest.fixture
def one_pair(tmp_path):
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
    path = tmp_path / "train" / "1.jpg"
    return path, lambda: CityscapesPairs(tmp_path, "train")[0]


@pytest.mark.parametrize(
    ("mode", "size", "message"),
    [
        ("L", (512, 256), "L JPEG"),
        ("CMYK", (512, 256), "CMYK JPEG"),
        ("RGB", (256, 256), "256x256 pixels"),
    ],
)
def test_jpegs_that_are_no_pairs_are_named(one_pair, mode, size, message):
    path, read = one_pair
    Image.new(mode, size).save(path, "JPEG")
    with pytest.raises(ValueError, match=message) as caught:
        read()
    assert str(path) in str(caught.value)
    assert "Unpack the archive again" in str(caught.value)


def test_files_that_are_no_jpegs_are_named(one_pair):
    path, read = one_pair
    noise = np.random.default_rng(0).integers(0, 255, (256, 512, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    whole = path.read_bytes()
    for content in (b"", whole[:5000], b"not a picture"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"1\.jpg cannot be read as a JPEG"):
            read()
    Image.new("RGB", (512, 256)).save(path, "PNG")
    with pytest.raises(ValueError, match="RGB PNG"):
        read()


@pytest.mark.parametrize("scheme", ["cityscapes19", "categories7", "cityscapes30", "clusters"])
def test_prepared_arrays_hold_the_same_as_the_files(demo, tmp_path, scheme):
    scheme = choose_scheme(scheme, demo, 12)
    frames = prepare(demo, "val", tmp_path, scheme, "nearest", progress=False)
    pairs = CityscapesPairs(demo, "val")
    photos, classes = frames.batch(slice(0, len(frames)))
    assert photos.is_contiguous(memory_format=torch.channels_last)
    for index, (photo, mask) in enumerate(pairs):
        assert (photos[index] == photo).all()
        truth = restore_labels(mask.permute(1, 2, 0).numpy()[None], scheme, "nearest")[0]
        assert (classes[index].numpy() == truth).all()
    counts = torch.bincount(classes[classes != IGNORE].int(), minlength=scheme.num_classes)
    assert (frames.class_counts() == counts).all()


def test_prepared_arrays_are_made_once_and_kept(demo, tmp_path, monkeypatch):
    cache, keep = tmp_path / "cache", tmp_path / "drive"
    first = prepare(demo, "val", cache, method="nearest", keep=keep, progress=False)
    monkeypatch.setattr(
        "unet_utils.restoring.restore_label_ids",
        lambda *_, **__: pytest.fail("restored a second time"),
    )
    again = prepare(demo, "val", cache, method="nearest", keep=keep, progress=False)
    elsewhere = prepare(
        demo, "val", tmp_path / "other machine", method="nearest", keep=keep, progress=False
    )
    for frames in (again, elsewhere):
        assert (frames.label_ids == first.label_ids).all()
        assert (frames.photos == first.photos).all()
    first.photos[0] = 0  # copy on write: nothing that a notebook does reaches the files
    assert (prepare(demo, "val", cache, method="nearest", progress=False).photos[0] != 0).any()


def test_an_interrupted_preparation_is_not_taken_for_complete(demo, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("unet_utils.restoring.restore_label_ids", interrupt)
        with pytest.raises(KeyboardInterrupt):
            prepare(demo, "val", tmp_path, method="nearest", progress=False)
    frames = prepare(demo, "val", tmp_path, method="nearest", progress=False)
    assert frames.photos.float().mean() > 10
    assert not list(tmp_path.rglob("*unfinished*"))


def test_a_full_disk_is_said_before_it_is_met(demo, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(
        "unet_utils.platform.files.shutil.disk_usage", lambda _: usage._replace(free=2**20)
    )
    with pytest.raises(OSError, match="Not enough space in .*UNET_UTILS_DATA"):
        prepare(demo, "val", tmp_path, method="nearest", progress=False)


def test_changed_files_are_noticed(tiny_pairs, tmp_path):
    pairs = CityscapesPairs(tiny_pairs, "train")
    changed = CityscapesPairs(tiny_pairs, "train")
    changed.paths = changed.paths[1:] + changed.paths[:1]
    assert (
        pairs.fingerprint == CityscapesPairs(tiny_pairs, "train").fingerprint != changed.fingerprint
    )


def frames_numbered(numbers) -> Frames:
    n = len(numbers)
    photos, label_ids = (
        torch.zeros(n, 1, 1, 3, dtype=torch.uint8),
        torch.zeros(n, 1, 1, dtype=torch.uint8),
    )
    return Frames(photos, label_ids, get_scheme("cityscapes19"), tuple(numbers))


def test_held_out_frames_are_whole_cities():
    learn, held_out = frames_numbered(range(1, 2976)).split(hold_out=True)
    assert held_out.numbers == tuple(HELD_OUT_CITIES)
    assert len(held_out) == 264
    assert max(learn.numbers) == 2711
    learn, held_out = frames_numbered(range(1, 21)).split(hold_out=True)
    assert (len(learn), len(held_out)) == (18, 2)
    with pytest.raises(ValueError, match="too few"):
        frames_numbered([1]).split(hold_out=True)


@pytest.mark.parametrize("numbers", [range(2800, 2820), range(1, 4001)])
def test_other_sets_hold_out_their_last_tenth(numbers):
    """A few frames of the held-out cities alone, and a set of one's own in which these numbers mean
    nothing."""
    learn, held_out = frames_numbered(numbers).split(hold_out=True)
    assert held_out.numbers == tuple(numbers)[-len(numbers) // 10 :]
    assert len(learn) + len(held_out) == len(numbers)


@pytest.mark.parametrize("content", [b"", b"no archive", "cut", "another shape"])
def test_a_kept_copy_that_is_damaged_is_restored_again_and_replaced(
    demo, tmp_path, capsys, content
):
    keep = tmp_path / "drive"
    first = prepare(demo, "val", tmp_path / "cache", method="nearest", keep=keep, progress=False)
    (kept,) = keep.iterdir()
    whole = kept.read_bytes()
    if content == "another shape":
        np.savez_compressed(kept, label_ids=np.zeros((2, 3), np.uint8))
    else:
        kept.write_bytes(whole[: len(whole) // 2] if content == "cut" else content)
    again = prepare(
        demo, "val", tmp_path / "other machine", method="nearest", keep=keep, progress=False
    )
    assert (again.label_ids == first.label_ids).all()
    assert f"{kept} cannot be used" in capsys.readouterr().out
    with np.load(kept) as archive:
        assert (archive["label_ids"] == first.label_ids.numpy()).all()


def test_labels_that_cannot_be_kept_are_a_warning(demo, tmp_path, capsys, monkeypatch):
    def full(*_, **__):
        raise OSError(122, "Disk quota exceeded")

    monkeypatch.setattr("unet_utils.dataset.np.savez_compressed", full)
    assert (
        len(prepare(demo, "val", tmp_path / "a", method="nearest", keep=tmp_path, progress=False))
        == 6
    )
    assert "no copy of the labels" in capsys.readouterr().out
    prepare(
        demo,
        "val",
        tmp_path / "b",
        method="nearest",
        keep=tmp_path / "MyDrive" / "x",
        progress=False,
    )
    assert not (tmp_path / "MyDrive").exists()


def test_labels_kept_by_an_earlier_version_are_used(demo, tmp_path, monkeypatch):
    first = prepare(
        demo, "val", tmp_path / "cache", method="nearest", keep=tmp_path / "drive", progress=False
    )
    (kept,) = (tmp_path / "drive").iterdir()
    np.savez_compressed(kept, codes=first.label_ids.numpy())
    monkeypatch.setattr(
        "unet_utils.restoring.restore_label_ids",
        lambda *_, **__: pytest.fail("restored a second time"),
    )
    prepare(
        demo, "val", tmp_path / "new", method="nearest", keep=tmp_path / "drive", progress=False
    )


def test_photos_in_the_place_of_masks_are_refused_before_training(demo, tmp_path):
    """Streets are grey, and some of the official colours are greyish, too."""
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        for number in range(1, 7):
            photo, mask = read_pair(demo / split / f"{number}.jpg")
            swapped = Image.fromarray(np.concatenate([mask, photo], axis=1))
            swapped.save(tmp_path / split / f"{number}.jpg", quality=95)
    with pytest.raises(ValueError, match=r"near no Cityscapes colour.* or are photos"):
        prepare(tmp_path, "train", tmp_path / "cache", method="nearest", progress=False)


def test_masks_in_other_colours_are_refused_before_training(tmp_path):
    """Pairs of another data set, such as CamVid, would be prepared and trained without a word."""
    rng = np.random.default_rng(0)
    others = np.array([[0, 255, 0], [255, 255, 255], [0, 255, 255], [255, 0, 255]], dtype=np.uint8)
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        mask = others[rng.integers(0, 4, (8, 8))].repeat(32, 0).repeat(32, 1)
        pair = np.concatenate([rng.integers(0, 256, mask.shape, dtype=np.uint8), mask], axis=1)
        Image.fromarray(pair).save(tmp_path / split / "1.jpg", quality=95)
    with pytest.raises(ValueError, match=r"near no Cityscapes colour.*classes\.txt"):
        prepare(tmp_path, "train", tmp_path / "cache", method="nearest", progress=False)
