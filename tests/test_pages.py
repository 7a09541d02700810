"""Executed notebooks as web pages, on a laptop and on a phone."""

import base64
import io
import sys
from pathlib import Path

import check_pages as pages
import nbformat
import numpy as np
import pytest
import run_notebooks
import update_pictures
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from unet_utils import get_scheme
from unet_utils.plots.inspector import inspector
from unet_utils.plots.time_lapse import record, time_lapse

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def write(path: Path, *cells) -> Path:
    metadata = {
        "kernelspec": {"name": "python3", "display_name": "Python 3"},
        "language_info": {"name": "python"},
    }
    nbformat.write(new_notebook(cells=list(cells), metadata=metadata), path)
    return path


FIGURES = """
import numpy as np
from IPython.display import Markdown
from unet_utils import ConfusionMatrix, IGNORE, prepare
from unet_utils.use.reports import class_table, score_table
from unet_utils.plots.results import plot_photo

frames = prepare(DEMO, "val", CACHE, method="nearest", progress=False)
photos, truth = frames.batch(slice(0, 2))
matrix = ConfusionMatrix(19)
matrix.update(truth.roll(3, 2).clamp(max=18), truth)
"""
SHOWN = (
    "Markdown(class_table(matrix, frames.scheme))",
    'Markdown(score_table({"guessing by class frequency": matrix.summary()}))',
    "plot_photo(photos[0].permute(1, 2, 0).numpy(), truth[0].numpy(), frames.scheme)",
)


def test_tables_and_figures_fit_a_laptop_and_a_phone(browser, demo, tmp_path):
    fields = new_code_cell(f"DEMO = {str(demo)!r}\nCACHE = {str(tmp_path / 'cache')!r}")
    cells = [new_markdown_cell("# Figures"), fields, *map(new_code_cell, (FIGURES, *SHOWN))]
    executed = tmp_path / "executed.ipynb"
    run_notebooks.execute(new_notebook(cells=cells), executed)
    assert pages.check_page(executed, browser) == []
    outputs = nbformat.read(executed, as_version=4).cells[-1].outputs
    shown = [output.metadata["image/png"] for output in outputs if "image/png" in output.data]
    assert len(shown) == 1
    assert shown[0].width > 0  # only figures with twice the pixels have a given size


def picture(*sources: bytes, tag: str = ""):
    data = [
        {"image/png": base64.b64encode(source).decode(), "text/plain": "<Figure>"}
        for source in sources
    ]
    outputs = [new_output("display_data", each) for each in data]
    return new_code_cell(
        "figure", outputs=outputs, metadata={"tags": ["hide-input", tag] if tag else []}
    )


def test_a_good_page_is_good(browser, tmp_path):
    text = new_code_cell(
        "print(...)", outputs=[new_output("stream", name="stdout", text="word " * 40)]
    )
    notebook = write(tmp_path / "good.ipynb", new_markdown_cell("# Title"), text, picture(PIXEL))
    assert pages.check_page(notebook, browser) == []


def test_pages_inside_of_outputs_fit(browser, tmp_path):
    photo, classes = np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64), np.uint8)
    scheme = get_scheme("cityscapes19")
    record(tmp_path, photo[None], classes[None], classes[None], scheme, [{"epoch": 1, "loss": 1.0}])
    cells = []
    for figure in (inspector(photo, classes, classes, scheme), time_lapse(tmp_path)):
        outputs = [new_output("display_data", {"text/html": figure.html})]
        cells.append(new_code_cell("figure", outputs=outputs))
    assert pages.check_page(write(tmp_path / "pages.ipynb", *cells), browser) == []


@pytest.mark.parametrize(
    ("cell", "problem", "only_on_the_phone"),
    [
        (picture(PIXEL[:30]), "picture does not show", False),
        (new_markdown_cell("![gone](no/such/picture.png)"), "picture does not show: gone", False),
        (
            new_code_cell(
                "1/0",
                outputs=[new_output("error", ename="E", evalue="e", traceback=["E: by zero"])],
            ),
            "error or warning: E: by zero",
            False,
        ),
        (
            new_code_cell(
                "warn()", outputs=[new_output("stream", name="stderr", text="UserWarning: old")]
            ),
            "error or warning: UserWarning: old",
            False,
        ),
        (new_markdown_cell('<div style="width: 3000px">wide</div>'), "pixels too wide", False),
        (new_markdown_cell('<div style="width: 700px">wide</div>'), "pixels too wide", True),
    ],
    ids=[
        "damaged picture",
        "missing picture",
        "error",
        "warning",
        "too wide",
        "too wide for a phone",
    ],
)
def test_what_is_wrong_is_found(browser, tmp_path, cell, problem, only_on_the_phone):
    found = pages.check_page(
        write(tmp_path / "bad.ipynb", new_markdown_cell("# Title"), cell), browser
    )
    assert [line.split(" ")[0] for line in found] == (
        ["phone"] if only_on_the_phone else ["laptop", "phone"]
    )
    assert all(problem in line for line in found)


def test_figures_are_named_by_the_tags_of_their_cells():
    cells = [
        picture(b"a"),
        picture(b"b", b"c", tag="picture:shares"),
        new_markdown_cell("text"),
        picture(b"d"),
    ]
    found = run_notebooks.find_figures(new_notebook(cells=cells))
    assert found == {"01": b"a", "shares": b"b", "shares-2": b"c", "02": b"d"}


def png(width: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, 10), "white").save(file, "PNG")
    return file.getvalue()


def test_tagged_pictures_of_the_demo_set_are_published_and_no_others(tmp_path, monkeypatch):
    (tmp_path / "runs" / "notebooks").mkdir(parents=True)
    (tmp_path / "docs").mkdir()
    monkeypatch.setattr(update_pictures, "ROOT", tmp_path)
    monkeypatch.setenv("UNET_UTILS_RESULTS", str(tmp_path / "runs"))
    notebook = new_notebook(cells=[picture(png(1440), tag="picture:shares"), picture(png(20))])
    for data in ("demo", "kaggle"):
        notebook.metadata["fields"] = {"DATA": data}
        nbformat.write(notebook, tmp_path / "runs" / "notebooks" / "01_download.ipynb")
        if data == "demo":
            update_pictures.main()
            assert [path.name for path in (tmp_path / "docs").iterdir()] == ["shares.png"]
            with Image.open(tmp_path / "docs" / "shares.png") as image:
                assert image.width == 720
        else:
            with pytest.raises(SystemExit, match="not run on the demo set"):
                update_pictures.main()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "https://example.org/pairs.zip"], "is an address"),
        (["EPOCHS"], "EPOCHS is not of the form NAME=VALUE"),
        (["EPOCH=1"], "no notebook has a field EPOCH: choose from AUGMENTATION"),
    ],
)
def test_wrong_arguments_are_refused_in_words(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["run_notebooks.py", *arguments])
    with pytest.raises(SystemExit):
        run_notebooks.main()
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text", "default", "value"),
    [
        ("RUN", "2026-11-27", "", "2026-11-27"),
        ("LEARNING_RATE", "1e-3", None, 1e-3),
        ("EPOCHS", "4", None, 4),
        ("HOLD_OUT", "False", None, False),
        ("ENCODER", "none", None, "none"),
        ("EPOCHS", "None", None, None),
        ("NUM_CLUSTERS", "9", 20, 9),
        ("USE_DRIVE", "true", True, True),
    ],
)
def test_each_field_is_read_by_its_own_type(name, text, default, value):
    assert run_notebooks.read_value(name, text, default) == value
    assert type(run_notebooks.read_value(name, text, default)) is type(value)


@pytest.mark.parametrize(("name", "default"), [("EPOCHS", None), ("USE_DRIVE", True)])
def test_a_value_of_another_type_is_named(name, default):
    with pytest.raises(ValueError, match=f"{name} is many: it must be a (int|bool)"):
        run_notebooks.read_value(name, "many", default)


SETTINGS_CELL = """\
# @title Settings
# @markdown Which pairs.
DATA = "kaggle"  # @param ["kaggle", "demo"] {"allow-input": true}
# @markdown Other settings of the training, and also `gpus`.
MORE = {"growth": 0.5}  # @param {"type": "raw"}"""


def test_fields_are_replaced_in_all_cells_of_all_notebooks():
    solution = 'SHOW_SOLUTION = False  # @param {type:"boolean"}\nif SHOW_SOLUTION:\n    DATA = 1'
    sources = [SETTINGS_CELL, solution, solution, 'print("DATA = 1")']
    train = new_notebook(cells=[new_code_cell(source) for source in sources])
    other = new_notebook(cells=[new_code_cell(SETTINGS_CELL.split("\n# @markdown Other")[0])])
    values = {"DATA": "demo", "SHOW_SOLUTION": True, "IMAGE_SIZE": 64, "GPUS": 2}
    run_notebooks.set_fields([train, other], values)
    assert [cell.source for cell in train.cells] == [
        SETTINGS_CELL.replace('"kaggle"  #', "'demo'  #").replace(
            '{"growth": 0.5}', "{'growth': 0.5, 'image_size': 64, 'gpus': 2}"
        ),
        solution.replace("= False", "= True"),
        solution.replace("= False", "= True"),
        sources[3],
    ]
    assert "DATA = 'demo'  # @param" in other.cells[0].source
    with pytest.raises(ValueError, match=r"no notebook has a field EPOCHS: choose from DATA$"):
        run_notebooks.set_fields([other], {"EPOCHS": 2})
