"""The official layout, on small frames that have its names and shapes, and arrays larger than
memory."""

import numpy as np
import pytest
import torch
from PIL import Image

from unet_utils import IGNORE, fit, recipe
from unet_utils.__main__ import main
from unet_utils.augment import augment, crop_share, draw_changes
from unet_utils.checkpoints import read_checkpoint
from unet_utils.images import to_photos
from unet_utils.use.full_size import is_official, prepare_official

IDS = np.array(
    [7, 8, 11, 21, 23, 26, 0, 24], dtype=np.uint8
)  # road, sidewalk, building ... and unlabeled
KNOBS = {"base_channels": 2, "image_size": 32, "batch_size": 4, "epochs": 2}


def write_frame(folder, split, city, number, rng, size=(64, 128)):
    """A frame of patches; its photo shows the label ids, times 7."""
    ids = rng.choice(IDS, size=(size[0] // 16, size[1] // 16)).repeat(16, axis=0).repeat(16, axis=1)
    name = f"{city}_{number:06}_000019"
    for kind, suffix, pixels in (
        ("leftImg8bit", "leftImg8bit", np.stack([ids * 7] * 3, axis=-1)),
        ("gtFine", "gtFine_labelIds", ids),
    ):
        (folder / kind / split / city).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / kind / split / city / f"{name}_{suffix}.png")


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """Twelve frames of 128x64 pixels to learn from, from two cities, and three to validate on. Only
    to read."""
    folder, rng = tmp_path_factory.mktemp("official"), np.random.default_rng(0)
    for city in ("aachen", "zurich"):
        for number in range(6):
            write_frame(folder, "train", city, number, rng)
    for number in range(3):
        write_frame(folder, "val", "frankfurt", number, rng)
    return folder


def prepared(folder, cache, **options):
    return prepare_official(folder, "train", cache, progress=False, **options)


def test_frames_are_the_files_in_alphabetical_order(official, tmp_path):
    assert is_official(official)
    assert not is_official(official / "gtFine")
    frames = prepared(official, tmp_path, height=64)
    files = sorted((official / "gtFine" / "train").glob("*/*.png"))
    assert frames.photos.shape == (12, 64, 128, 3)
    assert frames.numbers == tuple(range(1, 13))
    for index, path in enumerate(files):
        with Image.open(path) as image:
            ids = np.asarray(image)
        assert (frames.label_ids[index].numpy() == ids).all()
        assert (frames.photos[index].numpy() == ids[..., None] * 7).all()
    labels = frames.batch(torch.tensor([3]))[1][0]
    assert ((labels == IGNORE) == (frames.label_ids[3] == 0)).all()
    assert ((labels == 13) == (frames.label_ids[3] == 26)).all()  # car


def test_smaller_frames_keep_their_labels(official, tmp_path):
    whole, half = prepared(official, tmp_path, height=64), prepared(official, tmp_path, height=32)
    assert half.photos.shape == (12, 32, 64, 3)
    assert (half.label_ids == whole.label_ids[:, ::2, ::2]).all()
    assert (half.photos[:, 4::16, 4::16] == whole.photos[:, 8::32, 8::32]).all()


def test_prepared_once_and_again_when_files_change(official, tmp_path, monkeypatch):
    folder = tmp_path / "official"
    write_frame(folder, "train", "ulm", 0, np.random.default_rng(1))
    first = prepared(folder, tmp_path / "cache", height=64)
    with monkeypatch.context() as patch:
        patch.setattr(
            "unet_utils.use.full_size.build_arrays", lambda shapes, _: [f.stat() for f in shapes]
        )
        assert torch.equal(
            prepared(folder, tmp_path / "cache", height=64).label_ids, first.label_ids
        )
    write_frame(folder, "train", "ulm", 0, np.random.default_rng(2))
    assert not torch.equal(
        prepared(folder, tmp_path / "cache", height=64).label_ids, first.label_ids
    )


def test_what_is_wrong_is_named(official, tmp_path):
    rng = np.random.default_rng(0)
    with pytest.raises(FileNotFoundError, match="unpack leftImg8bit"):
        prepare_official(official, "test", tmp_path)
    with pytest.raises(ValueError, match="height is 100"):
        prepared(official, tmp_path, height=100)
    with pytest.raises(ValueError, match="at least 128 rows is needed"):
        prepared(official, tmp_path, height=128)
    write_frame(tmp_path / "a", "train", "ulm", 0, rng)
    write_frame(tmp_path / "a", "train", "ulm", 1, rng, size=(64, 160))
    with pytest.raises(ValueError, match=r"ulm_000001.* another shape"):
        prepared(tmp_path / "a", tmp_path, height=64)
    label = tmp_path / "a" / "gtFine" / "train" / "ulm" / "ulm_000001_000019_gtFine_labelIds.png"
    label.write_bytes(label.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"ulm_000001.* unpack it again"):
        prepared(tmp_path / "a", tmp_path, height=64)
    label.unlink()
    with pytest.raises(FileNotFoundError, match="unpack gtFine"):
        prepared(tmp_path / "a", tmp_path, height=64)


def test_crops_show_pixels_as_they_are(official, tmp_path):
    """Crops of the frames are not squeezed: patches of 16 pixels stay that large, and labels lie on
    their photo."""
    frames = prepared(official, tmp_path, height=64)
    view = crop_share(64, 128, 32)
    assert view == (0.5, 0.25)
    changes = draw_changes(12, torch.Generator().manual_seed(0), 0.0, view)
    photos, _ = frames.batch(slice(None))
    x, ids = augment(photos, frames.label_ids, 32, changes, view)
    assert ids.shape == (12, 32, 32)
    red = to_photos(x)[..., 0].float() / 7
    assert ((red - ids).abs() < 0.5).float().mean() > 0.85  # the rest are blended along edges
    flat = (ids[:, :, 1:] == ids[:, :, :-1]).float().mean()
    assert flat > 1 - 1 / 16 - 0.02  # at most one edge in 16 pixels
    corner = changes.matrix[:, :, 2].abs().amax(0)
    assert (corner <= torch.tensor([0.75, 0.5]) + 1e-6).all()  # none leaves the frame ...
    assert (corner > torch.tensor([0.5, 0.3])).all()  # ... and they are all over it
    assert (ids != IGNORE).all()


def test_rotation_is_a_rotation_in_pixels():
    view = (0.5, 0.25)
    matrix = draw_changes(50, torch.Generator().manual_seed(0), 1.0, view).matrix[:, :, :2]
    in_pixels = matrix / torch.tensor([view[1], view[0]])[:, None]
    product = in_pixels @ in_pixels.transpose(1, 2)
    assert torch.allclose(product[:, 0, 1], torch.zeros(50), atol=1e-5)
    assert torch.allclose(product[:, 0, 0], product[:, 1, 1], rtol=1e-4)


def test_it_learns_in_crops_and_is_scored_on_whole_frames(official, tmp_path):
    frames = prepared(official, tmp_path / "cache", height=64)
    knobs = KNOBS | {
        "epochs": 40,
        "base_channels": 8,
        "batch_size": 3,
        "learning_rate": 3e-2,
        "augmentation": 0.3,
    }
    config = recipe("demo", fold=1, **knobs)
    history = fit(frames, config, tmp_path / "run", "cpu", progress=False)
    assert history[-1]["loss"] < 0.6 * history[0]["loss"]
    assert history[-1]["pixel_accuracy"] > 0.5
    assert read_checkpoint(tmp_path / "run" / "best.pt")["config"]["scene_size"] == [64, 128]
    with pytest.raises(ValueError, match="scene size"):
        fit(
            prepared(official, tmp_path / "cache", height=32),
            config,
            tmp_path / "run",
            "cpu",
            progress=False,
        )
    with pytest.raises(ValueError, match="only 128x64 pixels"):
        fit(
            frames,
            recipe("demo", **KNOBS | {"image_size": 96}),
            tmp_path / "large",
            "cpu",
            progress=False,
        )


def test_the_commands(official, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("UNET_UTILS_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("UNET_UTILS_RESULTS", str(tmp_path / "runs"))
    data = ["--data", str(official), "--height", "64"]
    main(["prepare", *data])
    assert "train: 12 frames" in capsys.readouterr().out
    knobs = [f"--{name.replace('_', '-')}={value}" for name, value in KNOBS.items()]
    main(["train", *data, "--recipe", "demo", *knobs])
    main(["evaluate", *data])
    assert "| this model |" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no colour clusters"):
        main(["train", *data, "--scheme", "clusters"])
