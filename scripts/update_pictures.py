"""Update the pictures of the README and the notebooks: docs/NAME.png from each cell with the tag
`picture:NAME`.

Run `make pictures`, which executes the notebooks on the demo set first. The licence forbids
publishing the real pairs."""

import io
import sys

import nbformat
from PIL import Image
from run_notebooks import ROOT, find_figures, results_folder

WIDTH = 1000  # pixels; figures made for screens of high density are twice as wide


def main() -> None:
    """Reduce each picture in size and to 256 colours, and save it in docs/."""
    for path in sorted((results_folder() / "notebooks").glob("0*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        if notebook.metadata.fields["DATA"] != "demo":
            sys.exit(f"{path} was not run on the demo set: run `make pictures` without DATA")
        for name, figure in find_figures(notebook).items():
            if name.isdigit():
                continue
            file = ROOT / "docs" / f"{name}.png"
            with Image.open(io.BytesIO(figure)) as image:
                small = image.convert("RGB").reduce(max(1, -(-image.width // WIDTH)))
            # The usual method gives classes with few pixels the same colour.
            method = Image.Quantize.FASTOCTREE
            small.quantize(256, method, dither=Image.Dither.NONE).save(file, optimize=True)
            size = f"{small.width}x{small.height}, {file.stat().st_size / 1024:.0f} kB"
            print(f"docs/{name}.png {size}, from {path.name}")


if __name__ == "__main__":
    main()
