"""The notebooks as files, and as programs: executed in order on drawn scenes, as a reader would."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import papermill
import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NAMES = ["01_download", "02_explore", "03_train", "04_evaluate"]


def cells(path, tag=None):
    notebook = nbformat.read(path, as_version=4)
    return [cell for cell in notebook.cells if tag is None or tag in cell.metadata.get("tags", [])]


def test_they_are_the_four_of_the_series():
    assert [path.stem for path in NOTEBOOKS] == NAMES


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
class TestEveryNotebook:
    def test_it_is_valid_and_holds_no_outputs(self, path):
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        assert "widgets" not in notebook.metadata
        for cell in notebook.cells:
            if cell.cell_type == "code":
                assert cell.outputs == []
                assert cell.execution_count is None

    def test_it_has_the_parts_of_the_series(self, path):
        first, setup = cells(path)[:2]
        assert first.source.startswith("# ")
        assert "colab.research.google.com" in first.source
        assert "setup" in setup.metadata.tags
        assert setup.source == cells(NOTEBOOKS[0], "setup")[0].source
        assert "@title" in setup.source.splitlines()[0]
        assert len(setup.source.splitlines()) <= 15
        assert len(cells(path, "parameters")) == 1
        assert "What to change next" in cells(path)[-1].source

    def test_a_cell_shows_one_idea(self, path):
        for cell in cells(path):
            if cell.cell_type == "code" and not {"setup", "parameters"} & set(cell.metadata.get("tags", [])):
                statements = [node for node in ast.parse(cell.source).body if not isinstance(node, ast.ImportFrom)]
                assert len(statements) <= 8, cell.source

    def test_every_knob_has_a_form_and_a_comment(self, path):
        lines = cells(path, "parameters")[0].source.splitlines()
        for knob, comment in zip(lines[::2], lines[1::2], strict=True):
            assert "# @param" in knob
            assert comment.startswith("# ")


@pytest.fixture(scope="module")
def series(demo, tmp_path_factory):
    """Runs them all on a small demo set with small knobs; returns the folder of results."""
    results = tmp_path_factory.mktemp("series")
    environment = os.environ | {"UNET_UTILS_RESULTS": str(results), "UNET_UTILS_DATA": str(results / "data")}
    knobs = ["EPOCHS=2", "BASE_CHANNELS=4", "IMAGE_SIZE=64", "RUN=small"]
    command = [sys.executable, ROOT / "scripts" / "run_notebooks.py", "--data", str(demo), *knobs]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return results, done.stdout


@pytest.mark.parametrize("name", NAMES)
def test_the_executed_notebook_is_clean(series, name):
    notebook = nbformat.read(series[0] / "notebooks" / f"{name}.ipynb", as_version=4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [o for o in outputs if o.output_type == "error"]
    assert not [o for o in outputs if o.get("name") == "stderr"]  # a warning would be here
    assert any("image/png" in o.get("data", {}) for o in outputs)


def test_the_series_leaves_what_it_promises(series):
    results, printed = series
    for name in ("best.pt", "last.pt", "history.csv", "evaluation.json", "evaluation.md"):
        assert (results / "small" / name).is_file()
    assert list((results / "figures").glob("04_evaluate-*.png"))
    assert "| this model |" in printed
    assert "| guessing by class frequency |" in printed


def test_run_again_the_training_is_not_repeated(series, demo, tmp_path, monkeypatch):
    results, _ = series
    monkeypatch.setenv("UNET_UTILS_RESULTS", str(results))
    monkeypatch.setenv("UNET_UTILS_DATA", str(results / "data"))
    before = (results / "small" / "last.pt").read_bytes()
    knobs = {"DATA": str(demo), "EPOCHS": 2, "BASE_CHANNELS": 4, "IMAGE_SIZE": 64, "RUN": "small"}
    papermill.execute_notebook(
        ROOT / "notebooks" / "03_train.ipynb", tmp_path / "again.ipynb", knobs, cwd=ROOT, progress_bar=False
    )
    assert (results / "small" / "last.pt").read_bytes() == before


def test_an_unknown_knob_is_refused(demo):
    command = [sys.executable, ROOT / "scripts" / "run_notebooks.py", "--data", str(demo), "EPOCH=2"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "no notebook has a knob EPOCH" in done.stderr
