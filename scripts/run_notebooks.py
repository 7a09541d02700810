"""Run all notebooks in order with papermill, and print the final scores.

    python scripts/run_notebooks.py                              the demo set
    python scripts/run_notebooks.py --data kaggle                the real pairs, downloaded
    python scripts/run_notebooks.py --data pairs.zip EPOCHS=4    from a file, with a setting

Executed notebooks are written to runs/notebooks/, their figures to runs/figures/, checkpoint and
scores to runs/<RUN>/. The environment variables UNET_UTILS_DATA and UNET_UTILS_RESULTS choose other
folders than data/ and runs/."""

import argparse
import base64
import os
from pathlib import Path

import nbformat
import papermill
import yaml

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
    parameters = {"DATA": data}
    for setting in arguments.settings:
        name, equals, value = setting.partition("=")
        if not equals:
            parser.error(f"{setting} is not of the form NAME=VALUE")
        parameters[name] = yaml.safe_load(value)
    notebooks = sorted((ROOT / "notebooks").glob("0*.ipynb"))
    known = {path: papermill.inspect_notebook(path) for path in notebooks}
    unknown = parameters.keys() - set().union(*known.values())
    if unknown:
        parser.error(
            f"no notebook has a setting {', '.join(sorted(unknown))}: the cells with the tag "
            "`parameters` list them"
        )
    for path in notebooks:
        print(f"== {path.name}", flush=True)
        own = {name: value for name, value in parameters.items() if name in known[path]}
        run_notebook(path, results, own)
    scores = max(results.glob("*/evaluation.md"), key=lambda file: file.stat().st_mtime)
    print(scores.read_text("utf-8"))


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
