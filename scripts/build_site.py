"""Build the website: a front page, the executed notebooks as pages, and the small model in the
browser.

    python scripts/build_site.py                            runs the notebooks on the demo set first
    python scripts/build_site.py --executed runs/notebooks  takes those of `make run`

It goes to build/site: plain files, nothing of which needs another host. To look at it:

    python -m http.server --directory build/site

The sources of the pages are in docs/site. npm fetches what runs the network in the browser."""

import argparse
import base64
import html
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import onnx
from jinja2 import FileSystemLoader
from nbconvert import HTMLExporter
from PIL import Image
from run_notebooks import ROOT, find_figures
from sync_notebooks import PICTURES, repository_url

from unet_utils.evaluation import SMALL_MODEL, load_trained
from unet_utils.platform.files import user_path
from unet_utils.plots.html_figure import distinct_colors, fill, map_png
from unet_utils.plots.inspector import TEMPLATE as INSPECTOR
from unet_utils.use.export import export_model
from unet_utils.use.photos import drawn_street

SOURCES = ROOT / "docs" / "site"
SITE = ROOT / "build" / "site"
RUNS = ROOT / "build" / "runs"
"""Results of the notebooks that are executed for the site."""
RUNTIME = ("ort.wasm.min.js", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
"""The files of npm's onnxruntime-web that the browser loads."""
POLICY = (
    "default-src 'self' 'unsafe-inline'; img-src 'self' data:; media-src 'self' data:; "
    "script-src 'self' 'unsafe-inline' 'wasm-unsafe-eval'; worker-src 'self' blob:"
)
"""What the browser allows the pages: their own files, and what stands in them."""
# What makes a browser load something from another host. Links are no such thing.
FOREIGN = re.compile(
    r"""<(?!a\b)[^<>]*\s(?:src|srcset|href|data|poster)\s*=\s*["']?\s*(?:https?:)?//[^"'\s>]+"""
    r"""|url\(\s*["']?(?:https?:)?//|@import""",
    re.IGNORECASE,
)
COLAB = re.compile(r"https://colab\.research\.google\.com/github/[^\s()]+")
FRONT_PICTURE = "street"


def main() -> None:
    """Build the site."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--executed", help="folder of notebooks that were run on the demo set (default: run them)"
    )
    arguments = parser.parse_args()
    folder = user_path(arguments.executed) if arguments.executed else execute_series()
    try:
        build(folder, SITE)
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    print(f"{SITE}: look at it with python -m http.server --directory {SITE}")


def execute_series() -> Path:
    """Run all notebooks on the demo set; return their folder."""
    command = [sys.executable, str(ROOT / "scripts" / "run_notebooks.py"), "--data", "demo"]
    # The runs of the person who builds the site stay as they are.
    shutil.rmtree(RUNS, ignore_errors=True)
    subprocess.run(command, check=True, env=os.environ | {"UNET_UTILS_RESULTS": str(RUNS)})
    return RUNS / "notebooks"


def build(executed: Path, site: Path) -> None:
    """Write the site.

    Args:
        executed: folder of the executed notebooks.
        site: is replaced.

    Raises:
        ValueError: the notebooks are not there or were not run on the demo set, a picture is
            missing, or a page would load something from another host.
    """
    notebooks = read_notebooks(executed)
    shutil.rmtree(site, ignore_errors=True)
    (site / "pictures").mkdir(parents=True)
    for name in ("site.css", "try.js"):
        shutil.copy(SOURCES / name, site)
    copy_runtime(site / "ort")
    write_model(site / "model")
    figures: dict[str, bytes] = {}
    for notebook in notebooks.values():
        figures |= find_figures(notebook)
    wanted = {FRONT_PICTURE: ""}
    for name, notebook in notebooks.items():
        wanted |= make_local(notebook)
        write_page(site, f"{name}.html", notebook_page(name, notebook, notebooks))
    for name in wanted:
        drawn = ROOT / "docs" / f"{name}.png"
        if name not in figures and not drawn.exists():
            raise ValueError(f"no notebook makes the picture {name}, and there is no {drawn}")
        picture = figures[name] if name in figures else drawn.read_bytes()
        (site / "pictures" / f"{name}.png").write_bytes(picture)
    shared = {
        "policy": html.escape(POLICY),
        "url": repository_url(),
        "footer": footer(),
    }
    front = {
        "nav": navigation(notebooks, "index.html"),
        "alt": html.escape(wanted[FRONT_PICTURE]),
        "notebooks": "\n".join(map(contents_entry, notebooks, notebooks.values())),
    }
    write_page(site, "index.html", fill(SOURCES / "front.html", shared | front))
    about = json.loads((site / "model" / "about.json").read_text("utf-8"))
    loaded = [*(site / "ort").iterdir(), site / "model" / "small.onnx"]
    trial = {
        "nav": navigation(notebooks, "try.html"),
        "megabytes": f"{sum(file.stat().st_size for file in loaded) / 1e6:.0f}",
        "height": about["height"],
        "licence": html.escape(about["licence"]),
    }
    write_page(site, "try.html", fill(SOURCES / "try.html", shared | trial))


def read_notebooks(folder: Path) -> dict[str, nbformat.NotebookNode]:
    """Return the executed notebooks of the series by name.

    Raises:
        ValueError: one is missing, or was not run on the demo set: the licence of the real pairs
            forbids publishing them.
    """
    notebooks = {}
    for path in sorted((ROOT / "notebooks").glob("0*.ipynb")):
        executed = folder / path.name
        if not executed.exists():
            raise ValueError(f"no {executed}: run `make run`, or leave --executed out")
        notebook = nbformat.read(executed, as_version=4)
        if notebook.metadata.get("fields", {}).get("DATA") != "demo":
            raise ValueError(f"{executed} was not run on the demo set: run `make run`")
        notebooks[path.stem] = notebook
    return notebooks


def write_page(site: Path, name: str, page: str) -> None:
    """Write a page.

    Raises:
        ValueError: it would load something from another host.
    """
    # What stands in a script or a comment is no tag.
    tags = re.sub(r"<!--.*?-->|(<script\b[^>]*>).*?</script>", r"\1", page, flags=re.DOTALL)
    if found := FOREIGN.search(tags):
        raise ValueError(f"{name} would load something from another host: {found[0][-200:]}")
    (site / name).write_text(page, "utf-8")


# What all pages share.


def navigation(notebooks: dict[str, nbformat.NotebookNode], here: str) -> str:
    """Return the links to all pages; `here` is the name of the present one."""
    pages = {"index.html": "Start", "try.html": "Try it"}
    for name in notebooks:
        number, _, word = name.partition("_")
        pages[f"{name}.html"] = f"{int(number)} {word}"
    items = []
    for page, title in pages.items():
        current = ' aria-current="page"' if page == here else ""
        items.append(f'<li><a href="{page}"{current}>{title}</a></li>')
    return f'<nav aria-label="Pages"><ul>{"".join(items)}</ul></nav>'


def footer() -> str:
    """Return the end of all pages."""
    return (
        f'<footer>The code is on <a href="{repository_url()}">GitHub</a>, under the MIT licence. '
        "All street scenes shown here are drawn by a program.</footer>"
    )


# The notebooks.


def make_local(notebook: nbformat.NotebookNode) -> dict[str, str]:
    """Point the pictures in the text of a notebook to the site, and write the badges as links.

    Returns:
        The texts of the pictures, by their names.
    """
    pictures = {}
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            text = PICTURES.sub("pictures/", cell.source)
            pictures |= {
                name: alt for alt, name in re.findall(r"!\[(.*?)\]\(pictures/([\w-]+)\.png\)", text)
            }
            cell.source = re.sub(r"!\[(.*?)\]\(https?://[^)]*\)", r"\1", text)
    return pictures


def notebook_page(
    name: str,
    notebook: nbformat.NotebookNode,
    notebooks: dict[str, nbformat.NotebookNode],
) -> str:
    """Return a notebook as a page."""
    exporter = HTMLExporter(
        extra_loaders=[FileSystemLoader(str(SOURCES))],
        template_file="notebook.html.j2",
        template_name="basic",
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        exclude_anchor_links=True,
    )
    resources = {
        "title": title_of(notebook),
        "policy": html.escape(POLICY),
        "nav": navigation(notebooks, f"{name}.html"),
        "footer": footer(),
    }
    page = exporter.from_notebook_node(notebook, resources)[0]
    page = page.replace(f"{ROOT}/", "")  # of folders that were printed
    # A wide table is moved in a box of its own, with the keyboard, too.
    box = '<div class="table" role="group" aria-label="table" tabindex="0"><table'
    return re.sub(r"<table\b", box, page).replace("</table>", "</table></div>")


def title_of(notebook: nbformat.NotebookNode) -> str:
    """Return the title in the first line of a notebook."""
    return notebook.cells[0].source.split("\n")[0].removeprefix("# ")


def contents_entry(name: str, notebook: nbformat.NotebookNode) -> str:
    """Return a notebook's entry in the list of the front page: its title and first words."""
    opening = notebook.cells[0].source
    paragraphs = [part for part in opening.split("\n\n") if part[:1].isalpha()]
    about = re.sub(r"\[(.*?)\]\(.*?\)", r"\1", paragraphs[0]) if paragraphs else ""
    title = html.escape(re.sub(r"^\d+\. ", "", title_of(notebook)))
    colab = COLAB.search(opening)[0]
    return (
        f'<li><a href="{name}.html">{title}</a><br>{html.escape(about)}<br>'
        f'<a href="{colab}">Open notebook {int(name[:2])} in Colab</a></li>'
    )


# The small model.


def copy_runtime(folder: Path) -> None:
    """Copy what runs a network in a browser into a new folder; npm fetches it if it is not there.

    Raises:
        ValueError: npm is not there, or failed.
    """
    distribution = SOURCES / "node_modules" / "onnxruntime-web" / "dist"
    if not distribution.exists():
        npm = shutil.which("npm")
        if not npm:
            raise ValueError("npm is missing, which fetches ONNX Runtime Web: install Node.js")
        command = [npm, "ci", "--prefix", str(SOURCES), "--ignore-scripts", "--no-audit"]
        if subprocess.run(command, check=False).returncode:
            raise ValueError("npm could not fetch ONNX Runtime Web: its messages are above")
    folder.mkdir()
    for name in RUNTIME:
        shutil.copy(distribution / name, folder)


def write_model(folder: Path) -> None:
    """Write what *Try it* loads into a new folder: the network, what is known about it, the
    inspector, and the drawn street with its true classes."""
    folder.mkdir()
    trained = load_trained(SMALL_MODEL, "cpu")
    scheme = trained.scheme
    network = onnx.load(export_model(trained, folder / "small.onnx", logits=True))
    halve(network)
    onnx.save(network, folder / "small.onnx")
    metadata = {entry.key: entry.value for entry in network.metadata_props}
    colors = distinct_colors(scheme)
    about = {
        "names": scheme.names,
        "colors": [colors[index] for index in range(scheme.num_classes)],
        "block": int(metadata["block"]),
        "height": str(trained.scene_size[0]),
        "licence": trained.licence,
    }
    (folder / "about.json").write_text(json.dumps(about), "utf-8")
    shutil.copy(INSPECTOR, folder)
    photo, label_ids = drawn_street()
    Image.fromarray(photo).save(folder / "street.png", optimize=True)
    truth = map_png(scheme.encode(label_ids), scheme)
    (folder / "truth.png").write_bytes(base64.b64decode(truth))


def halve(network: onnx.ModelProto) -> None:
    """Store the weights of a network with 16 bits. It turns them back into 32 when it is loaded,
    and computes with these: half as much to load, the same classes but for a few pixels."""
    graph = network.graph
    casts = []
    for weights in graph.initializer:
        values = onnx.numpy_helper.to_array(weights)
        if values.dtype != np.float32 or values.size < 1000:
            continue
        name = weights.name
        stored = onnx.numpy_helper.from_array(values.astype(np.float16), f"{name} stored")
        weights.CopyFrom(stored)
        casts.append(onnx.helper.make_node("Cast", [f"{name} stored"], [name], to=1))
    nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend([*casts, *nodes])


if __name__ == "__main__":
    main()
