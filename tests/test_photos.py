import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unet_utils import UNet, get_scheme, setup
from unet_utils.evaluation import Trained
from unet_utils.extras.photos import (
    choose_photo,
    class_shares,
    find_photos,
    plot_photo,
    read_photo,
    save_pictures,
    segment,
)
from unet_utils.plots.style import overlay

ROOT = Path(__file__).parent.parent
SCHEME = get_scheme("cityscapes19")
ORIENTATION = 0x0112  # the number of the EXIF tag


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    model = UNet(3, 19, 4, fold=2).eval()
    torch.nn.init.normal_(model.head.weight)
    return Trained(model, SCHEME, {"image_size": 64}, [])


@pytest.fixture
def picture():
    """Red above, green below left, blue below right: nothing in it looks the same turned or mirrored."""
    pixels = np.zeros((40, 60, 3), dtype=np.uint8)
    pixels[:20] = 250, 0, 0
    pixels[20:, :30] = 0, 250, 0
    pixels[20:, 30:] = 0, 0, 250
    return Image.fromarray(pixels)


def test_a_photo_is_turned_as_its_camera_says(picture, tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # held upright: turn it right by 90 degrees
    picture.rotate(90, expand=True).save(tmp_path / "upright.png", exif=exif)
    assert (read_photo(tmp_path / "upright.png") == np.asarray(picture)).all()
    picture.rotate(90, expand=True).save(tmp_path / "upright.jpg", exif=exif, quality=95, subsampling=0)
    turned = read_photo(tmp_path / "upright.jpg").astype(int)
    assert np.abs(turned - np.asarray(picture)).mean() < 5


def test_every_kind_of_picture_becomes_rgb(picture, tmp_path):
    grey = np.asarray(picture.convert("L"))
    picture.convert("L").save(tmp_path / "grey.png")
    assert (read_photo(tmp_path / "grey.png") == grey[..., None]).all()
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "grey16.png")
    assert (read_photo(tmp_path / "grey16.png") == grey[..., None]).all()
    picture.quantize(4).save(tmp_path / "palette.png")
    assert (read_photo(tmp_path / "palette.png") == np.asarray(picture)).all()
    picture.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    assert read_photo(tmp_path / "cmyk.jpg").shape == (40, 60, 3)
    opacity = np.full((40, 60), 255, dtype=np.uint8)
    opacity[:10] = 0
    rgba = picture.copy()
    rgba.putalpha(Image.fromarray(opacity))
    rgba.save(tmp_path / "rgba.png")
    pixels = read_photo(tmp_path / "rgba.png")
    assert (pixels[:10] == 255).all()
    assert (pixels[10:] == np.asarray(picture)[10:]).all()


def test_a_file_that_is_no_photo_is_named(picture, tmp_path):
    (tmp_path / "notes.jpg").write_text("no photo")
    picture.save(tmp_path / "whole.jpg")
    (tmp_path / "half.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:400])
    for name in ("notes.jpg", "half.jpg"):
        with pytest.raises(ValueError, match=rf"{name} cannot be read as a photo"):
            read_photo(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"no file .*gone\.jpg"):
        read_photo(tmp_path / "gone.jpg")


def test_folders_are_searched(picture, tmp_path):
    for name in ("b.JPG", "a.png", "c.jpeg"):
        picture.save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("")
    found = find_photos([tmp_path / "c.jpeg", tmp_path])
    assert [path.name for path in found] == ["c.jpeg", "a.png", "b.JPG", "c.jpeg"]
    (tmp_path / "empty").mkdir()
    for missing in ("empty", "gone.jpg"):
        with pytest.raises(FileNotFoundError, match=missing):
            find_photos([tmp_path / missing])


@pytest.mark.parametrize("shape", [(30, 300), (200, 90), (64, 128), (1, 1)])
def test_any_size_and_aspect_is_segmented_at_its_own_size(trained, shape):
    photo = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    classes = segment(trained, photo)
    assert classes.shape == shape
    assert classes.dtype == np.uint8
    shares = class_shares(classes, SCHEME)
    assert sum(shares.values()) == pytest.approx(1)
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    assert shares[SCHEME.names[classes[0, 0]]] >= 1 / classes.size


def test_the_pictures_have_the_photos_size_and_overwrite_nothing(trained, tmp_path):
    photo = np.random.default_rng(0).integers(0, 256, (600, 50, 3), dtype=np.uint8)
    classes = segment(trained, photo)
    paths = save_pictures(photo, classes, SCHEME, tmp_path / "out", "street")
    assert [path.name for path in paths] == ["street-classes.png", "street-overlay.png"]
    assert (read_photo(paths[0]) == SCHEME.colorize(classes)).all()
    assert (read_photo(paths[1]) == overlay(photo, classes, SCHEME)).all()
    before = paths[1].read_bytes()
    again = save_pictures(255 - photo, classes, SCHEME, tmp_path / "out", "street")
    assert again[1].name == "street-2-overlay.png"
    assert paths[1].read_bytes() == before
    assert plot_photo(photo, classes, SCHEME).axes[0].get_images()[0].get_array().shape == photo.shape


def test_the_photo_is_yours_or_uploaded_or_drawn(picture, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("UNET_UTILS_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("UNET_UTILS_RESULTS", str(tmp_path / "runs"))
    monkeypatch.syspath_prepend(ROOT / "tests" / "fake_colab")
    env = replace(setup(), platform="local")
    assert choose_photo(str(tmp_path / "mine.jpg"), env) == tmp_path / "mine.jpg"
    assert read_photo(choose_photo("", env)).shape == (512, 1024, 3)
    assert "a street drawn by us" in capsys.readouterr().out
    from google.colab import files

    colab = replace(env, platform="colab")
    monkeypatch.setattr(files, "upload", lambda: {"holiday (1).jpg": b"..."})
    assert choose_photo("", colab) == Path("holiday (1).jpg")
    monkeypatch.setattr(files, "upload", lambda: {})  # the person pressed Cancel
    assert choose_photo("", colab) == env.data / "drawn_street.png"


LARGE = """
import resource, sys
import numpy as np, torch
from pathlib import Path
from unet_utils import UNet, get_scheme
from unet_utils.evaluation import Trained
from unet_utils.extras.photos import save_pictures, segment

def peak():  # MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

torch.set_num_threads(1)
trained = Trained(UNet(3, 19, 4).eval(), get_scheme("cityscapes19"), {"image_size": 64}, [])
segment(trained, np.zeros((64, 64, 3), dtype=np.uint8))
photo = np.zeros((3000, 4000, 3), dtype=np.uint8)
photo[:] = (np.arange(4000) % 256)[:, None]
before = peak()
classes = segment(trained, photo)
save_pictures(photo, classes, trained.scheme, Path(sys.argv[1]), "large")
print(classes.shape, peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured in the units of Linux")
def test_a_large_photo_needs_little_memory(tmp_path):
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", LARGE, str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("(3000, 4000) ")
    assert float(done.stdout.split()[-1]) < 400  # the probabilities alone would be 3000 * 4000 * 19 * 4 bytes = 870 MB
