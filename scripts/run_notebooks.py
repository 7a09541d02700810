"""Runs the four notebooks in order with papermill, and prints the final scores.

    python scripts/run_notebooks.py                              the demo set, a few minutes on two cores
    python scripts/run_notebooks.py --data kaggle                the real pairs, downloaded
    python scripts/run_notebooks.py --data pairs.zip EPOCHS=4    the real pairs, and a knob

Executed notebooks go to runs/notebooks/, their figures to runs/figures/, the checkpoint and scores to runs/<RUN>/.
Environment variables UNET_UTILS_DATA and UNET_UTILS_RESULTS move data/ and runs/.
"""

import argparse
import base64
import os
from pathlib import Path

import papermill
import yaml

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Runs them all; the first error stops the series."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="demo", help="demo, kaggle, or the path of a .zip or folder (default: demo)")
    parser.add_argument("knobs", nargs="*", metavar="KNOB=VALUE", help="knobs of the notebooks, such as EPOCHS=4")
    options = parser.parse_args()
    data = options.data if options.data in ("demo", "kaggle") else str(Path(options.data).resolve())
    knobs = {name: yaml.safe_load(value) for name, _, value in (knob.partition("=") for knob in options.knobs)}
    results = Path(os.environ.get("UNET_UTILS_RESULTS", ROOT / "runs")).resolve()
    notebooks = sorted((ROOT / "notebooks").glob("0*.ipynb"))
    known = {path: papermill.inspect_notebook(path) for path in notebooks}
    if unknown := [name for name in knobs if not any(name in names for names in known.values())]:
        parser.error(f"no notebook has a knob {', '.join(unknown)}: the parameters cells list them")
    for path in notebooks:
        print(f"== {path.name}", flush=True)
        wanted = {"DATA": data} | knobs
        run_notebook(path, results, {name: value for name, value in wanted.items() if name in known[path]})
    print((results / knobs.get("RUN", "unet") / "evaluation.md").read_text())


def run_notebook(path: Path, results: Path, parameters: dict) -> None:
    """Executes one notebook to `results/notebooks/`, and saves its figures to `results/figures/`."""
    executed, figures = results / "notebooks" / path.name, results / "figures"
    for folder in (executed.parent, figures):
        folder.mkdir(parents=True, exist_ok=True)
    # coalesce_streams keeps what a terminal would show of a progress bar: its last state, not a thousand of them.
    notebook = papermill.execute_notebook(
        path, executed, parameters, cwd=ROOT, kernel_name="python3", coalesce_streams=True, log_output=False
    )
    images = [
        output["data"]["image/png"]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    for number, image in enumerate(images, 1):
        (figures / f"{path.stem}-{number:02}.png").write_bytes(base64.b64decode(image))
    print(f"   {executed}, {len(images)} figures", flush=True)


if __name__ == "__main__":
    main()
