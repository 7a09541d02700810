"""Runs a notebook of the series as a learner would, on small settings, for the tests of its
lessons."""

from pathlib import Path

import nbformat
from run_notebooks import ROOT, execute, set_fields


def run_notebook(
    name: str, folder: Path, then: str = "", first: str = "", **fields
) -> nbformat.NotebookNode:
    """Execute a notebook from top to bottom; return it with its outputs.

    Args:
        name: of the notebook, as "03_train".
        folder: for its data and its results; the executed notebook is written there, too.
        then: code that runs as a last cell and sees all variables of the notebook, as
            "assert score > 0.3".
        first: code that runs after the setup cell, to make something smaller that has no field.
        fields: values for fields of its forms, and for settings of the training, as EPOCHS=2.
            SHOW_SOLUTION=True runs the solutions.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell fails; its message has the traceback.
        ValueError: there is no such field; the message lists those there are.
    """
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    set_fields([notebook], fields)
    if first:
        notebook.cells.insert(2, nbformat.v4.new_code_cell(first))
    if then:
        notebook.cells.append(nbformat.v4.new_code_cell(then))
    execute(
        notebook,
        folder / f"{name}.ipynb",
        UNET_UTILS_DATA=str(folder / "data"),
        UNET_UTILS_RESULTS=str(folder / "results"),
        OMP_NUM_THREADS="1",
    )
    return notebook


def printed(notebook: nbformat.NotebookNode) -> str:
    """Return all that the cells of an executed notebook printed."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.get("text", "") for output in outputs)
