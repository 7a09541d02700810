"""Execute a notebook in a folder: `execute.py NOTEBOOK EXECUTED FOLDER` writes it with its outputs.

A process of its own, which a test can end together with its kernel."""

import sys

import nbclient
import nbformat

source, executed, folder = sys.argv[1:]
notebook = nbformat.read(source, as_version=4)
client = nbclient.NotebookClient(
    notebook, timeout=None, kernel_name="python3", resources={"metadata": {"path": folder}}
)
try:
    client.execute()
finally:
    nbformat.write(notebook, executed)
