"""The notebooks as files, and as programs: executed in order on drawn scenes, as a reader would.

What a notebook teaches is tested in `test_notebook_01.py` and so on."""

import ast
import itertools
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
from run_notebooks import FIELD, find_fields
from series import printed

ROOT = Path(__file__).parent.parent
NAMES = ["01_download", "02_explore", "03_train", "04_evaluate", "05_use"]
PATHS = [ROOT / "notebooks" / f"{name}.ipynb" for name in NAMES]
FOLDED = {"cellView": "form", "jupyter": {"source_hidden": True}}
CELLS = dict(zip(NAMES, (22, 32, 50, 38, 18), strict=True))
WORDS = dict(zip(NAMES, (500, 750, 1250, 1000, 500), strict=True))
EXERCISES = dict(zip(NAMES, (1, 2, 3, 3, 0), strict=True))


def tags(cell):
    return set(cell.metadata.get("tags", []))


def cells(path, tag=None):
    notebook = nbformat.read(path, as_version=4)
    return [cell for cell in notebook.cells if tag is None or tag in tags(cell)]


def is_folded(cell):
    return cell.metadata.items() >= FOLDED.items()


def fields_of(cell):
    return [name for name, _, _ in FIELD.findall(cell.source)]


def forms(path):
    """The forms with settings: not the setup, not the solutions."""
    hidden = {"setup", "solution"}
    return [cell for cell in code_cells(path) if fields_of(cell) and not hidden & tags(cell)]


def code_cells(path):
    return [cell for cell in cells(path) if cell.cell_type == "code"]


def lessons(path):
    """The code that a learner reads: without setup, forms, exercises and solutions."""
    return [
        cell
        for cell in code_cells(path)
        if not fields_of(cell) and not {"setup", "exercise"} & tags(cell)
    ]


def count_words(path):
    """Words of text, without badges, pictures and tables."""
    texts = [cell.source for cell in cells(path) if cell.cell_type == "markdown"]
    lines = [line for text in texts for line in text.splitlines()]
    lines = [line for line in lines if not line.startswith(("[!", "!", "|"))]
    text = re.sub(r"\]\([^)]*\)", "]", "\n".join(lines))  # without addresses
    return len(re.findall(r"\S*\w\S*", text))


def python(cell):
    """The code of a cell, without lines for the shell."""
    return re.sub(r"^( *)[!%].*$", r"\1pass", cell.source, flags=re.MULTILINE)


def test_they_are_those_of_the_series():
    assert sorted((ROOT / "notebooks").glob("*.ipynb")) == PATHS


@pytest.mark.parametrize("path", PATHS, ids=NAMES)
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

    def test_it_is_short(self, path):
        assert len(cells(path)) <= CELLS[path.stem]
        assert count_words(path) <= 1.25 * WORDS[path.stem]

    def test_it_asks_for_a_gpu_only_if_it_uses_one(self, path):
        metadata = nbformat.read(path, as_version=4).metadata
        wanted = path.stem == "03_train"
        assert ("accelerator" in metadata) == wanted
        assert ("gpuType" in metadata.get("colab", {})) == wanted

    def test_it_opens_with_what_a_reader_wants_to_know(self, path):
        opening = cells(path)[0].source
        parts = [
            f"# {int(path.stem[:2])}. ",
            "[![Open in Colab]",
            "[![Open in Kaggle]",
            "*First: **File > Save a copy in Drive**",
            "\n![",
            "**You will learn**",
            "**You need**",
            "**It takes**",
            "|---|",
            "*The series:*",
        ]
        places = [opening.find(part) for part in parts]
        assert -1 not in places, parts[places.index(-1)]
        assert places == sorted(places)
        learn = opening.split("**You will learn**")[1].split("**You need**")[0]
        assert len(re.findall(r"\n[*-] ", learn)) == 3
        assert "not measured" not in opening
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
        assert address.startswith(f"{raw}/")
        assert f"/docs/{Path(address).name}" in address
        assert len(cells(path, f"picture:{Path(address).stem}")) == 1

    def test_the_setup_cell_comes_first_and_is_folded(self, path):
        """Its text is tested with the script that writes it."""
        assert "setup" in tags(cells(path)[1])
        assert is_folded(cells(path)[1])
        assert len(cells(path, "setup")) == 1

    def test_its_forms_have_few_fields_each_with_an_explanation(self, path):
        assert forms(path)
        for cell in forms(path):
            lines = [line for line in cell.source.splitlines() if line]
            assert lines[0].startswith("# @title ")
            assert cell.metadata.cellView == "form"
            for above, line in itertools.pairwise(lines):
                if "# @param" in line:
                    assert FIELD.fullmatch(line), line
                    assert above.startswith("# @markdown "), line
        settings = [cell for cell in forms(path) if cell.source.startswith("# @title Settings")]
        for cell in settings:
            assert len([name for name in fields_of(cell) if name != "MORE"]) <= 8

    def test_a_field_has_one_value(self, path):
        """Two forms with the same field would not be known apart by whoever sets it."""
        names = [name for cell in forms(path) for name in fields_of(cell)]
        assert len(names) == len(set(names))

    def test_exercises_have_a_cell_to_write_in_and_a_hidden_solution(self, path):
        every = cells(path)
        starts = [
            number
            for number, cell in enumerate(every)
            if cell.cell_type == "markdown" and "**Exercise " in cell.source
        ]
        assert len(starts) == EXERCISES[path.stem]
        assert len(cells(path, "exercise")) == len(cells(path, "solution")) == len(starts)
        for count, start in enumerate(starts, 1):
            text, exercise, solution = every[start : start + 3]
            assert f"**Exercise {count}.**" in text.source
            assert "exercise" in tags(exercise)
            assert re.search(r"\bcheck\(", exercise.source)
            assert "solution" in tags(solution)
            assert is_folded(solution)
            first, switch = solution.source.splitlines()[:2]
            assert first == f"# @title Solution {count}"
            assert fields_of(solution) == ["SHOW_SOLUTION"]
            assert switch.startswith("SHOW_SOLUTION = False  # @param ")
            assignment, condition = ast.parse(solution.source).body
            assert isinstance(assignment, ast.Assign)
            assert isinstance(condition, ast.If)
            assert ast.unparse(condition.test) == "SHOW_SOLUTION"

    def test_its_code_is_plain(self, path):
        """One statement per line, no tricks."""
        for cell in code_cells(path):
            source = python(cell)
            assert not re.search(r"\bglobals\(|\binspect\b", source), cell.id
            assert not re.search(r"^(\w+) = \1$", source, re.MULTILINE), cell.id
            tree = ast.parse(source)
            statements = [node for node in ast.walk(tree) if isinstance(node, ast.stmt)]
            lines = [node.lineno for node in statements]
            assert len(lines) == len(set(lines)), f"two statements in a line: {cell.source}"
            for node in ast.walk(tree):
                assert not is_clumsy(node), ast.unparse(node)

    def test_a_cell_shows_one_idea(self, path):
        for cell in lessons(path):
            lines = [line for line in cell.source.splitlines() if line]
            assert len(lines) <= 40, cell.source
            assert not is_folded(cell), cell.id


def is_clumsy(node):
    """Several names get unrelated values at once, several modules are imported at once, or one
    comprehension is inside another."""
    if isinstance(node, ast.Assign):
        together = isinstance(node.targets[0], ast.Tuple) and isinstance(node.value, ast.Tuple)
        return together or len(node.targets) > 1
    if isinstance(node, ast.Import):
        return len(node.names) > 1
    comprehensions = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
    if isinstance(node, comprehensions):
        inside = [each for each in ast.walk(node) if isinstance(each, comprehensions)]
        return len(inside) > 1 or len(node.generators) > 1
    return False


def test_the_five_are_short_together():
    assert sum(len(cells(path)) for path in PATHS) <= 160
    assert sum(count_words(path) for path in PATHS) <= 4000


def test_every_picture_of_a_cell_is_on_a_page():
    """`make pictures` writes docs/NAME.png for each tag."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *PATHS]
    shown = set(re.findall(r"docs/([\w-]+)\.png", "\n".join(path.read_text() for path in pages)))
    made = {
        tag.removeprefix("picture:")
        for path in PATHS
        for cell in cells(path)
        for tag in tags(cell)
        if tag.startswith("picture:")
    }
    assert made
    assert made <= shown


def test_names_that_people_rely_on_are_kept():
    fields = set(find_fields(nbformat.read(path, as_version=4) for path in PATHS))
    kept = {"DATA", "SCHEME", "EPOCHS", "BASE_CHANNELS", "LEARNING_RATE", "RUN", "PHOTO"}
    assert kept <= fields


@pytest.fixture(scope="module")
def series(demo, tmp_path_factory):
    """Run them all on a small demo set with small settings; return the folder of results, and what
    was printed."""
    results = tmp_path_factory.mktemp("series")
    environment = os.environ | {
        "UNET_UTILS_RESULTS": str(results),
        "UNET_UTILS_DATA": str(results / "data"),
        "OMP_NUM_THREADS": "1",
    }
    settings = ["EPOCHS=2", "BASE_CHANNELS=4", "IMAGE_SIZE=64", "RUN=small"]
    settings += ["TRY_PHOTOS=8", "TRY_WIDTH=4", "TRY_SIZE=64"]
    command = [sys.executable, ROOT / "scripts" / "run_notebooks.py", "--data", str(demo)]
    done = subprocess.run(
        [*command, *settings], env=environment, capture_output=True, text=True, timeout=800
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return results, done.stdout


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.slow
class TestTheExecutedNotebook:
    def test_it_is_clean(self, series, name):
        notebook = nbformat.read(series[0] / "notebooks" / f"{name}.ipynb", as_version=4)
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
        assert not [each for each in outputs if each.output_type == "error"]
        # A warning would be here.
        assert not [each for each in outputs if each.get("name") == "stderr"]
        assert any("image/png" in each.get("data", {}) for each in outputs)
        assert "Traceback" not in printed(notebook)

    def test_solutions_are_neither_run_nor_shown(self, series, name):
        path = series[0] / "notebooks" / f"{name}.ipynb"
        assert not [cell.id for cell in cells(path, "solution") if cell.outputs]
        for cell in cells(path, "exercise"):
            assert "No answer yet" in str(cell.outputs)

    def test_every_picture_is_there(self, series, name):
        for cell in cells(ROOT / "notebooks" / f"{name}.ipynb"):
            for tag in tags(cell):
                if tag.startswith("picture:"):
                    picture = f"{name}-{tag.removeprefix('picture:')}.png"
                    assert (series[0] / "figures" / picture).is_file()


@pytest.mark.slow
def test_the_series_leaves_what_it_promises(series):
    results, shown = series
    for name in ("best.pt", "last.pt", "history.csv", "evaluation.json", "evaluation.md"):
        assert (results / "small" / name).is_file()
    assert "| this model |" in shown
    assert "| guessing by class frequency |" in shown
