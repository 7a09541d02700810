"""The wheel: what is in it, and that it works where there is nothing but the wheel."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built without network from a copy of the sources: a build leaves files behind."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(
        ROOT / "unet_utils", source / "unet_utils", ignore=shutil.ignore_patterns("__pycache__")
    )
    pip("wheel", "--no-build-isolation", "--wheel-dir", folder, source)
    (path,) = folder.glob("*.whl")
    return path


def pip(command, *arguments):
    command = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        command,
        "--no-deps",
        "--no-index",
    ]
    result = subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.slow
def test_the_wheel_has_all_code_the_weights_and_the_model_card(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        f"unet_utils/weights/{name}"
        for name in ("restorer.pt", "reference_labels.npz", "small.pt", "README.md")
    } <= names
    assert {
        path.relative_to(ROOT).as_posix()
        for suffix in ("py", "html")
        for path in (ROOT / "unet_utils").rglob(f"*.{suffix}")
    } <= names
    assert not [
        name for name in names if name.startswith(("tests", "benchmarks", "scripts", "notebooks"))
    ]
    (entry_points,) = [name for name in names if name.endswith("entry_points.txt")]
    text = zipfile.ZipFile(wheel).read(entry_points).decode()
    assert "unet-utils = unet_utils.__main__:main" in text


@pytest.mark.slow
def test_an_installed_wheel_segments_a_photo(wheel, tmp_path):
    site, work = tmp_path / "site", tmp_path / "work"
    work.mkdir()
    pip("install", "--target", site, wheel)
    photo = np.random.default_rng(0).integers(0, 256, (64, 128, 3), dtype=np.uint8)
    Image.fromarray(photo).save(work / "photo.jpg")
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("UNET_UTILS_")
    }
    environment["PYTHONPATH"] = str(
        site
    )  # before the checkout, which may be installed in this environment
    command = [sys.executable, "-m", "unet_utils", "predict", "photo.jpg"]
    result = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"using the small model of the package, {site}" in result.stdout
    assert str(ROOT) not in result.stdout + result.stderr
    with Image.open(work / "predictions" / "photo-overlay.png") as overlay:
        assert overlay.size == (128, 64)
