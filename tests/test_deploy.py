"""The program in docs/deploy.md runs as it stands there, where there is no torch."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import pixel_shuffle

from unet_utils.evaluation import SMALL_MODEL, load_trained
from unet_utils.use import onnx_file
from unet_utils.use.export import export_model
from unet_utils.use.photos import segment

PAGE = Path(__file__).parent.parent / "docs" / "deploy.md"
WITHOUT_TORCH = """
import runpy, sys
for name in ("torch", "torchvision", "unet_utils", "onnx", "matplotlib"):
    sys.modules[name] = None  # whoever imports it fails
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0])
"""


def program() -> str:
    """Return the first Python program of the page."""
    return re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[1]


def test_the_program_is_short_and_needs_three_packages():
    lines = program().splitlines()
    assert len(lines) <= 32
    imported = {line.split()[1] for line in lines if line.startswith(("import", "from"))}
    assert imported == {"json", "sys", "numpy", "onnxruntime", "PIL"}


def test_the_lines_of_the_page_put_blocks_of_logits_in_their_places():
    programs = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    lines = next(text for text in programs if text.startswith("block"))
    raw = torch.arange(2 * 12 * 4 * 5).reshape(2, 12, 4, 5)
    names = {"facts": {"block": "2"}, "logits": raw.numpy()}
    exec(lines, names)
    assert (names["logits"] == pixel_shuffle(raw, 2).numpy()).all()


@pytest.mark.slow
def test_the_program_of_the_page_runs_without_torch(demo, tmp_path, monkeypatch):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(onnx_file, "has_current_exporter", lambda: False)  # the fast one
    trained = load_trained(SMALL_MODEL, "cpu")
    model = export_model(trained, tmp_path / "unet.onnx")
    with Image.open(next((demo / "val").glob("*.jpg"))) as pair:
        photo = pair.crop((0, 0, 256, 256)).resize((400, 200))
    photo.save(tmp_path / "street.png")
    (tmp_path / "run.py").write_text(program(), encoding="utf-8")
    files = ("run.py", model, "street.png", "result.png")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *files],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Licence: Cityscapes: for non-commercial research" in done.stdout
    shares = dict(re.findall(r"^(.+): ([\d.]+)%$", done.stdout, re.MULTILINE))
    classes = segment(trained, np.array(photo))
    own = {trained.scheme.names[i]: 100 * (classes == i).mean() for i in np.unique(classes)}
    assert sum(map(float, shares.values())) == pytest.approx(100, abs=1)
    for name, share in own.items():
        assert float(shares.get(name, 0)) == pytest.approx(share, abs=0.5)
    with Image.open(tmp_path / "result.png") as result:
        blended = np.asarray(result, dtype=int)
    expected = (np.array(photo, dtype=int) + trained.scheme.colorize(classes)) / 2
    assert (np.abs(blended - expected).max(2) <= 1).mean() > 0.98
