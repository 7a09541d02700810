"""Fixtures shared by the tests: a handful of pairs in the Kaggle layout, drawn street scenes, and a
browser."""

import shutil
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers import require
from PIL import Image

# A few official Cityscapes colours: road, building, vegetation, sky, car, person.
PALETTE = np.array(
    [[128, 64, 128], [70, 70, 70], [107, 142, 35], [70, 130, 180], [0, 0, 142], [220, 20, 60]],
    dtype=np.uint8,
)


def make_pair(rng: np.random.Generator) -> Image.Image:
    """One 512x256 pair: left half a noisy "photo", right half a "mask" of 32-pixel patches in
    palette colours."""
    photo = rng.integers(0, 256, size=(256, 256, 3), dtype=np.uint8)
    patches = PALETTE[rng.integers(0, len(PALETTE), size=(8, 8))]
    mask = patches.repeat(32, axis=0).repeat(32, axis=1)
    return Image.fromarray(np.concatenate([photo, mask], axis=1))


@pytest.fixture(scope="session")
def tiny_pairs(tmp_path_factory) -> Path:
    """Folder `.../cityscapes_data` that holds train/ (1.jpg to 6.jpg) and val/ (1.jpg to 3.jpg).
    Only to read."""
    root = tmp_path_factory.mktemp("tiny_pairs") / "cityscapes_data"
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 3)):
        (root / split).mkdir(parents=True)
        for number in range(1, count + 1):
            make_pair(rng).save(root / split / f"{number}.jpg", quality=95)
    return root


@pytest.fixture(scope="session")
def tiny_archive(tiny_pairs, tmp_path_factory) -> Path:
    """Zip of `tiny_pairs`; its entries start with `cityscapes_data/`, as in a real download."""
    archive = tmp_path_factory.mktemp("tiny_archive") / "cityscapes-image-pairs.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(tiny_pairs.rglob("*.jpg")):
            file.write(path, path.relative_to(tiny_pairs.parent))
    return archive


@pytest.fixture(scope="session")
def demo(tmp_path_factory) -> Path:
    """Drawn street scenes in the Kaggle layout: 24 for training, 6 for validation. Read it, never
    write."""
    from unet_utils.demo.pairs import make_demo

    return make_demo(tmp_path_factory.mktemp("demo"), train=24, val=6)


@pytest.fixture(scope="session")
def frames(demo, tmp_path_factory):
    """The training frames of `demo`, labelled by the nearest colour. Only to read."""
    from unet_utils import prepare

    cache = tmp_path_factory.mktemp("prepared")
    return prepare(demo, "train", cache, method="nearest", progress=False)


@pytest.fixture(scope="session")
def val_frames(demo, tmp_path_factory):
    """The validation frames of `demo`, labelled by the nearest colour. Only to read."""
    from unet_utils import prepare

    cache = tmp_path_factory.mktemp("prepared")
    return prepare(demo, "val", cache, method="nearest", progress=False)


@pytest.fixture(scope="session")
def small_model():
    """The small model of the package. Only to read."""
    from unet_utils.evaluation import SMALL_MODEL, load_trained

    return load_trained(SMALL_MODEL, "cpu")


@pytest.fixture(scope="session")
def trained():
    """A small network with random weights, as if it were trained. Only to read."""
    import torch

    from unet_utils import UNet, get_scheme
    from unet_utils.evaluation import Trained

    torch.manual_seed(0)
    model = UNet(3, 19, 4, fold=2).eval()
    torch.nn.init.normal_(model.head.weight)
    return Trained(model, get_scheme("cityscapes19"), (64, 64), {}, [], {})


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 1 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no right to mount a disk")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.fixture(scope="session")
def browser() -> str:
    """Path of a Chromium or Chrome."""
    from check_pages import NAMES, find_browser

    found = find_browser()
    require(
        found, f"no browser: none of {', '.join(NAMES)} is on the path, and Playwright has none"
    )
    return found


@pytest.fixture(scope="session")
def driver(browser, tmp_path_factory):
    """Selenium's driver of a headless browser."""
    from check_pages import FLAGS
    from selenium import webdriver

    found = shutil.which("chromedriver")
    require(found, "chromedriver is not on the path: a browser can be started, but not driven")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})  # all requests
    driver = webdriver.Chrome(options, webdriver.ChromeService(found))
    yield driver
    driver.quit()


@pytest.fixture
def show(driver, tmp_path):
    """Return a function that shows a page in the browser, at a width in pixels."""
    from web import wait_until_read

    def open_page(text, width=1280):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        (tmp_path / "page.html").write_text(text, encoding="utf-8")
        driver.get((tmp_path / "page.html").as_uri())
        wait_until_read(driver)
        return driver

    return open_page
