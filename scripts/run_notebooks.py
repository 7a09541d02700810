"""Run all notebooks in order with papermill, and print the final scores.

    python scripts/run_notebooks.py                              the demo set
    python scripts/run_notebooks.py --data kaggle                the real pairs, downloaded
    python scripts/run_notebooks.py --data pairs.zip EPOCHS=4    from a file, with a setting

Executed notebooks are written to runs/notebooks/, their figures to runs/figures/, checkpoint and
scores to runs/<RUN>/. The environment variables UNET_UTILS_DATA and UNET_UTILS_RESULTS choose other
folders than data/ and runs/."""

import argparse
import ast
import base64
import os
from pathlib import Path
from typing import Any

import nbformat
import papermill

from unet_utils.config import SETTINGS
from unet_utils.platform.files import user_path

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Run all notebooks; the first error ends the series."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data",
        default="demo",
        help="demo, kaggle, or the path of a .zip or folder (default: demo)",
    )
    parser.add_argument(
        "settings", nargs="*", metavar="NAME=VALUE", help="fields of the notebooks, as EPOCHS=4"
    )
    arguments = parser.parse_args()
    data = arguments.data
    try:
        if data not in ("demo", "kaggle"):
            data = str(user_path(data))
        results = results_folder()
    except ValueError as error:
        parser.error(str(error))
    parameters: dict[str, object] = {"DATA": data}
    notebooks = sorted((ROOT / "notebooks").glob("0*.ipynb"))
    known = {path: papermill.inspect_notebook(path) for path in notebooks}
    for setting in arguments.settings:
        name, equals, text = setting.partition("=")
        if not equals:
            parser.error(f"{setting} is not of the form NAME=VALUE")
        field = next((fields[name] for fields in known.values() if name in fields), None)
        if field is None:
            parser.error(
                f"no notebook has a setting {name}: the cells with the tag `parameters` list them"
            )
        try:
            parameters[name] = read_value(name, text, _default(field["default"]))
        except ValueError as error:
            parser.error(str(error))
    for path in notebooks:
        print(f"== {path.name}", flush=True)
        own = {name: value for name, value in parameters.items() if name in known[path]}
        run_notebook(path, results, own)
    scores = max(results.glob("*/evaluation.md"), key=lambda file: file.stat().st_mtime)
    print(scores.read_text("utf-8"))


def _default(text: str) -> object:
    """Return the default of a field. A field that is named again, as in `RUN = RUN`, has none: it
    is a text, or a setting of a training."""
    try:
        return ast.literal_eval(text)
    except ValueError:
        return None


def read_value(name: str, text: str, default: object) -> object:
    """Return the value of a field, read by the type of that field: a name may look like a number.

    Args:
        name: of the field.
        text: what the person wrote.
        default: of the field in the notebook; None for settings of a training.

    Raises:
        ValueError: the text is of another type; the message names the field.
    """
    kind = type(default)
    if default is None:
        if text == "None":
            return None
        settings: dict[str, Any] = {setting.name.upper(): setting.type for setting in SETTINGS}
        kind = settings.get(name, str)
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        return kind(text)
    except (ValueError, KeyError):
        raise ValueError(f"{name} is {text}: it must be a {kind.__name__}") from None


def results_folder() -> Path:
    """Return the folder for results. It and the data folder become absolute for the notebooks,
    which run in ROOT."""
    for variable in ("UNET_UTILS_DATA", "UNET_UTILS_RESULTS"):
        if os.environ.get(variable):
            os.environ[variable] = str(user_path(os.environ[variable]))
    return Path(os.environ.get("UNET_UTILS_RESULTS") or ROOT / "runs")


def run_notebook(path: Path, results: Path, parameters: dict) -> None:
    """Execute a notebook to `results/notebooks/` and save its figures to `results/figures/`."""
    executed = results / "notebooks" / path.name
    figures = results / "figures"
    executed.parent.mkdir(parents=True, exist_ok=True)
    figures.mkdir(parents=True, exist_ok=True)
    notebook = papermill.execute_notebook(
        path,
        executed,
        parameters,
        cwd=ROOT,
        kernel_name="python3",
        coalesce_streams=True,  # the last state of a progress bar, not all of them
        log_output=False,
    )
    for old in figures.glob(f"{path.stem}-*.png"):
        old.unlink()
    images = find_figures(notebook)
    for name, image in images.items():
        (figures / f"{path.stem}-{name}.png").write_bytes(image)
    print(f"   {executed}, {len(images)} figures", flush=True)


def find_figures(notebook: nbformat.NotebookNode) -> dict[str, bytes]:
    """Return the figures of an executed notebook as PNG files, by name.

    A figure is named after the tag `picture:NAME` of its cell, `NAME-2` if it is the second of that
    cell. Figures of other cells are numbered: `01`, `02`."""
    figures: dict[str, bytes] = {}
    unnamed = 0
    for cell in notebook.cells:
        tags = [tag for tag in cell.metadata.get("tags", []) if tag.startswith("picture:")]
        data = [output.get("data", {}) for output in cell.get("outputs", [])]
        images = [base64.b64decode(each["image/png"]) for each in data if "image/png" in each]
        for place, image in enumerate(images, 1):
            if tags:
                name = tags[0].removeprefix("picture:") + (f"-{place}" if place > 1 else "")
            else:
                unnamed += 1
                name = f"{unnamed:02}"
            figures[name] = image
    return figures


if __name__ == "__main__":
    main()
