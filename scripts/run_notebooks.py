"""Run all notebooks in order, and print the final scores.

    python scripts/run_notebooks.py                              the demo set
    python scripts/run_notebooks.py --data kaggle                the real pairs, downloaded
    python scripts/run_notebooks.py --data pairs.zip EPOCHS=4    from a file, with a setting

NAME=VALUE changes a field: a line `NAME = value  # @param ...` of a form, wherever it stands. A
setting of the training that has no field goes into the field MORE: IMAGE_SIZE=64 becomes
MORE = {"image_size": 64}.

Executed notebooks are written to runs/notebooks/, their figures to runs/figures/, checkpoint and
scores to runs/<RUN>/. The environment variables UNET_UTILS_DATA and UNET_UTILS_RESULTS choose other
folders than data/ and runs/."""

import argparse
import ast
import base64
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

from unet_utils.config import SETTINGS
from unet_utils.platform.files import user_path
from unet_utils.sources import data_name

ROOT = Path(__file__).resolve().parent.parent
# A line of a form: name, value, and the comment that makes it a field.
FIELD = re.compile(r"^(\w+) = (.*?)(  # @param\b.*)$", re.MULTILINE)
TRAINING = {setting.name.upper(): setting.type for setting in SETTINGS}
"""The settings of a training, and the type of each."""


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
    paths = sorted((ROOT / "notebooks").glob("0*.ipynb"))
    notebooks = {path.name: nbformat.read(path, as_version=4) for path in paths}
    try:
        data = data_name(arguments.data)
        if data not in ("demo", "kaggle"):
            data = str(user_path(data))
        results = results_folder()
        values = {"DATA": data} | read_values(arguments.settings, find_fields(notebooks.values()))
        set_fields(notebooks.values(), values)
    except ValueError as error:
        parser.error(str(error))
    for name, notebook in notebooks.items():
        print(f"== {name}", flush=True)
        notebook.metadata["fields"] = values
        executed = results / "notebooks" / name
        execute(notebook, executed)
        count = save_figures(notebook, results / "figures", executed.stem)
        print(f"   {executed}, {count} figures", flush=True)
    scores = max(results.glob("*/evaluation.md"), key=lambda file: file.stat().st_mtime)
    print(scores.read_text("utf-8"))


def find_fields(notebooks: Iterable[nbformat.NotebookNode]) -> dict[str, Any]:
    """Return the fields of all forms of some notebooks: the value of each, by name."""
    fields = {}
    for notebook in notebooks:
        for cell in notebook.cells:
            if cell.cell_type == "code":
                for name, value, _ in FIELD.findall(cell.source):
                    fields[name] = ast.literal_eval(value)
    return fields


def read_values(settings: Iterable[str], fields: dict[str, Any]) -> dict[str, Any]:
    """Return the values of settings of the form NAME=VALUE, by name.

    Raises:
        ValueError: one is not of that form, or its value is of another type than the field.
    """
    values = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"{setting} is not of the form NAME=VALUE")
        values[name] = read_value(name, text, fields.get(name))
    return values


def read_value(name: str, text: str, default: Any) -> Any:
    """Return the value of a field, read by the type of that field: a name may look like a number.

    Args:
        name: of the field.
        text: what the person wrote.
        default: value of the field in the notebook; None has no type, then the settings of a
            training are asked.

    Raises:
        ValueError: the text is of another type; the message names the field.
    """
    kind = TRAINING.get(name) if default is None else type(default)
    if default is None and text == "None":
        return None
    try:
        if kind is str:
            return text
        if kind in (int, float):
            return kind(text)
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        value = ast.literal_eval(text)
    except (ValueError, KeyError, SyntaxError):
        if kind is None:
            return text  # the name of something
        raise ValueError(f"{name} is {text}: it must be a {kind.__name__}") from None
    if kind is not None and not isinstance(value, kind):
        raise ValueError(f"{name} is {text}: it must be a {kind.__name__}")
    return value


def set_fields(notebooks: Iterable[nbformat.NotebookNode], values: dict[str, Any]) -> None:
    """Write values into the fields of some notebooks: into every line `NAME = ...  # @param`.

    Where a notebook has no field of that name, but a field MORE, that gets settings of the
    training, and what the comment above it names in backticks, with names in lower case.

    Args:
        notebooks: are changed.
        values: by the name of the field.

    Raises:
        ValueError: there is no such field; the message lists those there are.
    """
    unknown = set(values)
    possible = set()
    for notebook in notebooks:
        own = find_fields([notebook])
        new = {name: value for name, value in values.items() if name in own}
        possible |= set(own)
        if "MORE" in own:
            accepted = _names_for_more(notebook) - set(own)
            possible |= accepted
            added = {name: value for name, value in values.items() if name in accepted}
            unknown -= set(added)
            lower = {name.lower(): value for name, value in added.items()}
            new["MORE"] = new.get("MORE", own["MORE"]) | lower
        unknown -= set(new)
        _write_fields(notebook, new)
    if unknown:
        raise ValueError(
            f"no notebook has a field {min(unknown)}: choose from {', '.join(sorted(possible))}"
        )


def _names_for_more(notebook: nbformat.NotebookNode) -> set[str]:
    """Return the names that the field MORE of a notebook takes, in upper case."""
    names = set(TRAINING)
    for cell in notebook.cells:
        if cell.cell_type == "code" and "MORE" in [
            name for name, _, _ in FIELD.findall(cell.source)
        ]:
            comment = cell.source.split("\nMORE = ")[0].rpartition("# @param")[2]
            names |= {name.upper() for name in re.findall(r"`([a-z_]+)`", comment)}
    return names


def _write_fields(notebook: nbformat.NotebookNode, values: dict[str, Any]) -> None:
    """Write values into all lines of a notebook that have these fields."""

    def line(match: re.Match) -> str:
        name, _, comment = match.groups()
        return f"{name} = {values[name]!r}{comment}" if name in values else match[0]

    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.source = FIELD.sub(line, cell.source)


def results_folder() -> Path:
    """Return the folder for results. It and the data folder become absolute for the notebooks,
    which run in ROOT."""
    for variable in ("UNET_UTILS_DATA", "UNET_UTILS_RESULTS"):
        if os.environ.get(variable):
            os.environ[variable] = str(user_path(os.environ[variable]))
    return Path(os.environ.get("UNET_UTILS_RESULTS") or ROOT / "runs")


def execute(
    notebook: nbformat.NotebookNode, executed: Path, folder: Path = ROOT, **variables: str
) -> None:
    """Execute a notebook, as *Run all* does, and write it with its outputs.

    Args:
        notebook: gets its outputs.
        executed: the file to write; it is there after an error, too.
        folder: where the notebook runs.
        variables: of the environment, beside those of this process.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell fails; its message has the traceback.
    """
    executed.parent.mkdir(parents=True, exist_ok=True)
    client = NotebookClient(
        notebook,
        timeout=None,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        coalesce_streams=True,  # the last state of a progress bar, not all of them
    )
    try:
        client.execute(env=os.environ | variables)
    finally:
        nbformat.write(notebook, executed)


def save_figures(notebook: nbformat.NotebookNode, folder: Path, stem: str) -> int:
    """Save the figures of an executed notebook as `folder/stem-NAME.png`; return their number."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"{stem}-*.png"):
        old.unlink()
    images = find_figures(notebook)
    for name, image in images.items():
        (folder / f"{stem}-{name}.png").write_bytes(image)
    return len(images)


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
