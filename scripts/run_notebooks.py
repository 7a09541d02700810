"""Run the four notebooks in order with papermill, and print the final scores.

    python scripts/run_notebooks.py                              the demo set, some minutes on two
    cores python scripts/run_notebooks.py --data kaggle                the real pairs, downloaded
    python scripts/run_notebooks.py --data pairs.zip EPOCHS=4    the real pairs from a file, and a
    knob

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
        "knobs", nargs="*", metavar="KNOB=VALUE", help="knobs of the notebooks, such as EPOCHS=4"
    )
    options = parser.parse_args()
    try:
        parameters = {
            "DATA": options.data
            if options.data in ("demo", "kaggle")
            else str(user_path(options.data))
        }
        results = results_folder()
    except ValueError as error:
        parser.error(str(error))
    for knob in options.knobs:
        name, equals, value = knob.partition("=")
        if not equals:
            parser.error(f"{knob} is not of the form KNOB=VALUE")
        parameters[name] = yaml.safe_load(value)
    notebooks = sorted((ROOT / "notebooks").glob("0*.ipynb"))
    known = {path: papermill.inspect_notebook(path) for path in notebooks}
    if unknown := [
        name for name in parameters if not any(name in names for names in known.values())
    ]:
        parser.error(
            f"no notebook has a knob {', '.join(unknown)}: the cells with the tag `parameters` list them"
        )
    for path in notebooks:
        print(f"== {path.name}", flush=True)
        run_notebook(
            path,
            results,
            {name: value for name, value in parameters.items() if name in known[path]},
        )
    print(
        max(results.glob("*/evaluation.md"), key=lambda file: file.stat().st_mtime).read_text(
            "utf-8"
        )
    )


def results_folder() -> Path:
    """Return the folder for results. It and the data folder become absolute for the notebooks,
    which run in ROOT."""
    for variable in ("UNET_UTILS_DATA", "UNET_UTILS_RESULTS"):
        if os.environ.get(variable):
            os.environ[variable] = str(user_path(os.environ[variable]))
    return Path(os.environ.get("UNET_UTILS_RESULTS") or ROOT / "runs")


def run_notebook(path: Path, results: Path, parameters: dict) -> None:
    """Execute a notebook to `results/notebooks/` and save its figures to `results/figures/`."""
    executed, figures = results / "notebooks" / path.name, results / "figures"
    for folder in (executed.parent, figures):
        folder.mkdir(parents=True, exist_ok=True)
    # coalesce_streams keeps the last state of a text progress bar, as a terminal would show it, and
    # not all of them.
    notebook = papermill.execute_notebook(
        path,
        executed,
        parameters,
        cwd=ROOT,
        kernel_name="python3",
        coalesce_streams=True,
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
    cell. Figures of
    other cells are numbered: `01`, `02`.
    """
    figures: dict[str, bytes] = {}
    number = 0
    for cell in notebook.cells:
        tags = [
            tag.removeprefix("picture:")
            for tag in cell.metadata.get("tags", [])
            if tag.startswith("picture:")
        ]
        images = [
            output.data["image/png"]
            for output in cell.get("outputs", [])
            if "image/png" in output.get("data", {})
        ]
        for place, image in enumerate(images, 1):
            number += not tags
            name = f"{number:02}" if not tags else tags[0] if place == 1 else f"{tags[0]}-{place}"
            figures[name] = base64.b64decode(image)
    return figures


if __name__ == "__main__":
    main()
