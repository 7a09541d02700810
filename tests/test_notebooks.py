"""The notebooks as files, and as programs: executed in order on drawn scenes, as a reader would."""

import itertools
import os
import re
import statistics
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import papermill
import pytest

from unet_utils.config import SETTINGS
from unet_utils.demo.pairs import make_demo

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NAMES = ["01_download", "02_explore", "03_train", "04_evaluate"]
FOLDED = {"cellView": "form", "jupyter": {"source_hidden": True}}


def tags(cell):
    return set(cell.metadata.get("tags", []))


def cells(path, tag=None):
    notebook = nbformat.read(path, as_version=4)
    return [cell for cell in notebook.cells if tag is None or tag in tags(cell)]


def is_folded(cell):
    return cell.metadata.items() >= FOLDED.items()


def code_cells(path):
    """What a reader sees: all code but the setup, the knobs and the solutions."""
    hidden = {"setup", "knobs", "parameters", "solution"}
    return [cell for cell in cells(path) if cell.cell_type == "code" and not hidden & tags(cell)]


def test_they_are_the_four_of_the_series():
    assert [path.stem for path in NOTEBOOKS] == NAMES


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
class TestEveryNotebook:
    def test_it_is_valid_and_holds_no_outputs(self, path):
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        assert "widgets" not in notebook.metadata
        assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                assert cell.outputs == []
                assert cell.execution_count is None

    def test_it_asks_for_a_gpu_only_if_it_uses_one(self, path):
        asks = "accelerator" in nbformat.read(path, as_version=4).metadata
        assert asks == (path.stem in ("03_train", "04_evaluate"))

    def test_it_opens_with_what_a_reader_wants_to_know(self, path):
        opening = cells(path)[0].source
        parts = [
            "# ",
            "[![Open in Colab]",
            "[![Open in Kaggle]",
            "\n![",
            "**You will learn**",
            "**You need**",
        ]
        parts += ["**It takes**", "| demo set |", "| real pairs |", "*The series:*"]
        places = [opening.find(part) for part in parts]
        assert -1 not in places
        assert places == sorted(places)
        learn = opening.split("**You will learn**")[1].split("**You need**")[0]
        assert learn.count("\n* ") == 3
        titles = [
            line
            for cell in cells(path)
            if cell.cell_type == "markdown"
            for line in cell.source.splitlines()
        ]
        assert len([line for line in titles if line.startswith("# ")]) == 1

    def test_its_picture_is_one_that_it_makes(self, path):
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        raw = project["urls"]["Repository"].replace("github.com", "raw.githubusercontent.com")
        address = re.search(r"\n!\[[^\]]+\]\((.*)\)\n", cells(path)[0].source)[1]
        assert address.startswith(f"{raw}/main/docs/")
        assert len(cells(path, f"picture:{Path(address).stem}")) == 1

    def test_the_setup_cell_is_that_of_the_series(self, path):
        setup = cells(path)[1]
        assert "setup" in tags(setup)
        assert is_folded(setup)
        assert setup.source == cells(NOTEBOOKS[0], "setup")[0].source
        assert setup.source.startswith("# @title Setup\n")
        assert len(setup.source.splitlines()) <= 30

    def test_it_closes_with_exercises_and_questions(self, path):
        sources = [cell.source for cell in cells(path)]
        start = next(
            number for number, source in enumerate(sources) if source.startswith("## Exercises")
        )
        *exercises, last = cells(path)[start:]
        solutions = exercises[1::2]
        assert len(exercises) == 2 * len(solutions)
        assert 3 <= len(solutions) <= 5
        for number, (text, solution) in enumerate(zip(exercises[::2], solutions, strict=True), 1):
            assert f"**Exercise {number}.**" in text.source
            assert "solution" in tags(solution)
            assert is_folded(solution)
            assert solution.source.startswith(f"# @title Solution {number}\n")
        assert last.source.startswith("## Questions")
        assert (
            2 <= last.source.count("<details>\n<summary>") == last.source.count("\n</details>") <= 3
        )
        assert "\n## Next\n" in last.source

    def test_a_cell_shows_one_idea(self, path):
        lengths = [len(list(filter(None, cell.source.splitlines()))) for cell in code_cells(path)]
        assert statistics.median(lengths) <= 6
        assert max(lengths) <= 18
        assert not [cell.id for cell in code_cells(path) if is_folded(cell)]

    def test_every_knob_has_a_form_and_an_explanation(self, path):
        known = papermill.inspect_notebook(path)
        assert len(cells(path, "parameters")) == 1
        for cell in cells(path, "knobs") + cells(path, "parameters"):
            lines = [
                line for line in cell.source.splitlines() if not re.fullmatch(r"|(\w+) = \1", line)
            ]
            assert lines[0].startswith("# @title ")
            assert cell.metadata.cellView == "form"
            for above, knob in itertools.pairwise(lines):
                assert knob.startswith("# ") or "  # @param " in knob
                if "# @param" in knob:
                    assert above.startswith("# @markdown ")
                    assert knob.split(" = ")[0] in known

    def test_the_first_knobs_are_few(self, path):
        first = (cells(path, "knobs") or cells(path, "parameters"))[0]
        assert first.source.count("# @param") <= 6
        assert not is_folded(first)


def test_every_setting_has_a_knob():
    knobs = papermill.inspect_notebook(ROOT / "notebooks" / "03_train.ipynb")
    assert not [setting.name for setting in SETTINGS if setting.name.upper() not in knobs]


@pytest.fixture(scope="module")
def series(demo, tmp_path_factory):
    """Run them all on a small demo set with small knobs; return the folder of results, and what was
    printed."""
    results = tmp_path_factory.mktemp("series")
    environment = os.environ | {
        "UNET_UTILS_RESULTS": str(results),
        "UNET_UTILS_DATA": str(results / "data"),
    }
    knobs = ["EPOCHS=2", "BASE_CHANNELS=4", "IMAGE_SIZE=64", "RUN=small"]
    command = [sys.executable, ROOT / "scripts" / "run_notebooks.py", "--data", str(demo), *knobs]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr[-3000:]
    return results, done.stdout


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.slow
class TestTheExecutedNotebook:
    def test_it_is_clean(self, series, name):
        notebook = nbformat.read(series[0] / "notebooks" / f"{name}.ipynb", as_version=4)
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
        assert not [o for o in outputs if o.output_type == "error"]
        assert not [o for o in outputs if o.get("name") == "stderr"]  # a warning would be here
        assert any("image/png" in o.get("data", {}) for o in outputs)

    def test_every_solution_shows_something(self, series, name):
        solutions = cells(series[0] / "notebooks" / f"{name}.ipynb", "solution")
        assert solutions
        assert not [cell.id for cell in solutions if not cell.outputs]

    def test_every_picture_is_there(self, series, name):
        for cell in cells(ROOT / "notebooks" / f"{name}.ipynb"):
            for tag in tags(cell):
                if tag.startswith("picture:"):
                    assert (
                        series[0] / "figures" / f"{name}-{tag.removeprefix('picture:')}.png"
                    ).is_file()


@pytest.mark.slow
def test_the_series_leaves_what_it_promises(series):
    results, printed = series
    for name in ("best.pt", "last.pt", "history.csv", "evaluation.json", "evaluation.md"):
        assert (results / "small" / name).is_file()
    assert "| this model |" in printed
    assert "| guessing by class frequency |" in printed


def train(tmp_path, knobs):
    """Execute notebook 03 without its solutions; return what each cell printed, by the id of the
    cell."""
    notebook = nbformat.read(ROOT / "notebooks" / "03_train.ipynb", as_version=4)
    notebook.cells = [cell for cell in notebook.cells if "solution" not in tags(cell)]
    nbformat.write(notebook, tmp_path / "train.ipynb")
    knobs = {"BASE_CHANNELS": 4, "IMAGE_SIZE": 64} | knobs
    done = papermill.execute_notebook(
        tmp_path / "train.ipynb",
        tmp_path / "done.ipynb",
        knobs,
        cwd=ROOT,
        kernel_name="python3",
        progress_bar=False,
    )
    return "".join(
        output.get("text", "") for cell in done.cells for output in cell.get("outputs", [])
    )


@pytest.fixture
def same_folders(series, monkeypatch):
    monkeypatch.setenv("UNET_UTILS_RESULTS", str(series[0]))
    monkeypatch.setenv("UNET_UTILS_DATA", str(series[0] / "data"))
    return series[0]


@pytest.mark.slow
def test_run_again_the_training_is_not_repeated(same_folders, demo, tmp_path):
    """With two processes: neither torchrun nor `fit` repeats it."""
    before = (same_folders / "small" / "last.pt").read_bytes()
    printed = train(tmp_path, {"DATA": str(demo), "EPOCHS": 2, "RUN": "small", "GPUS": 2})
    assert (same_folders / "small" / "last.pt").read_bytes() == before
    assert printed.count("2 of 2 epochs are done") == 2
    assert "rror" not in printed


@pytest.mark.slow
def test_one_pair_is_learned_by_heart(same_folders, tmp_path):
    """The check that every course recommends, starting from the weights of another run."""
    pair = make_demo(tmp_path, train=1, val=1, progress=False)
    knobs = {
        "DATA": str(pair),
        "RUN": "heart",
        "EPOCHS": 3,
        "HOLD_OUT": False,
        "BATCH_SIZE": 1,
        "START_FROM": "small",
    }
    printed = train(
        tmp_path, knobs | {"GROWTH": 0}
    )  # photos of 32 pixels would have a single one at the bottom
    assert "frames to learn from: 1, held out: 0" in printed
    assert "Starting from" in printed
    assert "3 epochs in" in printed
    assert (same_folders / "heart" / "best.pt").is_file()
