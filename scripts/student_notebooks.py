"""Write a copy of the notebooks for students: without the solutions.

    python scripts/student_notebooks.py                  into student/
    python scripts/student_notebooks.py --out exercises

Exercises stay, with the cells that check an answer; of each solution, its title stays. The rest of
a notebook is the same. Run it again after a new version: files of the same name are replaced."""

import argparse
from pathlib import Path

import nbformat

from unet_utils.platform.files import user_path

ROOT = Path(__file__).resolve().parent.parent
INSTEAD = "# Your teacher has the solution."


def main() -> None:
    """Write all notebooks without solutions."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", default="student", help="folder to write to (default: student)")
    try:
        out = user_path(parser.parse_args().out)
    except ValueError as error:
        parser.error(str(error))
    if out == ROOT / "notebooks":
        parser.error(f"{out} holds the notebooks with the solutions: choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    for path in sorted((ROOT / "notebooks").glob("0*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        count = empty_solutions(notebook)
        nbformat.write(notebook, out / path.name)
        print(f"{out / path.name}: solutions removed: {count}")


def empty_solutions(notebook: nbformat.NotebookNode) -> int:
    """Remove the code of the cells with the tag `solution`; return their number."""
    count = 0
    for cell in notebook.cells:
        if "solution" in cell.metadata.get("tags", []):
            title = cell.source.splitlines()[0]
            cell.source = f"{title}\n{INSTEAD}"
            count += 1
    return count


if __name__ == "__main__":
    main()
