"""Write the setup cell, the badges and the repository's address into all notebooks and the README.

The text of the setup cell stands here, the address in pyproject.toml ([project.urls], Repository).
After a fork, the workflow .github/workflows/address.yml runs this on GitHub. By hand:

    python scripts/sync_notebooks.py                                    the git remote "origin"
    python scripts/sync_notebooks.py --url https://github.com/me/mine   another address
"""

import argparse
import json
import re
import subprocess
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SETUP_CELL = """\
# @title Setup
import contextlib, glob, os, re, sys, urllib.parse, urllib.request  # noqa: E401, I001

REPO_URL = "REPOSITORY"
USE_DRIVE = True  # @param {type:"boolean"}
# Everything works without Drive. Nobody is asked twice, because mkdir fails then.
with contextlib.suppress(Exception):
    if USE_DRIVE and "google.colab" in sys.modules and not os.mkdir("/content/drive"):
        sys.modules["google.colab"].drive.mount("/content/drive")
drive = [f"/content/drive/MyDrive{end}" for end in ("", "/*", "/unet*/*", "/Colab Notebooks/*")]
places = [".", "..", "repo", *drive]
# A notebook that Colab opened from GitHub takes the code from there.
with contextlib.suppress(Exception):
    api = "http://{COLAB_JUPYTER_IP}:{KMP_TARGET_PORT}/api/sessions".format(**os.environ)
    opened = urllib.parse.unquote(urllib.request.urlopen(api, timeout=3).read().decode())
    REPO_URL, places = re.search("https://github.com/[^/]+/[^/]+", opened)[0], places[:3]
folders = (path for place in places for path in glob.iglob(place))
root = next((path for path in folders if os.path.isdir(f"{path}/unet_utils")), "")
clone = f"git -c core.askPass=true clone -q --depth 1 {REPO_URL} repo"
if not root and os.system(f"{clone} && cd repo/unet_utils"):
    sys.exit(
        f"Cannot fetch {REPO_URL}: correct REPO_URL if it says OWNER; "
        "on Kaggle, switch on Settings > Internet."
    )
sys.path.insert(0, os.path.abspath(root or "repo"))
from unet_utils.platform import environment

env = environment.setup(use_drive=USE_DRIVE)"""
# In Colab; in JupyterLab, VS Code and Kaggle.
FOLDED = {"cellView": "form", "jupyter": {"source_hidden": True}}
BADGES = re.compile(
    r"\[!\[Open in Colab\]\([^()]*\)\]"
    r"\(https://colab\.research\.google\.com/github/[^\s()]+/([\w-]+\.ipynb)\)"
    r"( *\[!\[Open in Kaggle\]\([^()]*\)\]\([^()]*\))?"
)
PICTURES = re.compile(r"https://raw\.githubusercontent\.com/[\w.-]+/[\w.-]+/main/docs/")
PYPROJECT_LINE = re.compile(r'^Repository = "(.*)"$', re.MULTILINE)


def repository_url(root: Path = ROOT) -> str:
    """Return the repository's address in pyproject.toml."""
    return tomllib.loads((root / "pyproject.toml").read_text())["project"]["urls"]["Repository"]


def setup_cell(url: str) -> str:
    """Return the source of the setup cell."""
    return SETUP_CELL.replace("REPOSITORY", url)


def github_url(address: str) -> str | None:
    """Return `https://github.com/owner/name` for any form of a GitHub address, None for other
    addresses."""
    match = re.fullmatch(
        r"(?:https://|ssh://)?(?:[\w-]+@)?github\.com[/:]([\w.-]+)/([\w.-]+?)(?:\.git)?/?", address
    )
    return f"https://github.com/{match[1]}/{match[2]}" if match else None


def with_badges(text: str, url: str) -> str:
    """Return `text` with the badges ("Open in Colab", "Open in Kaggle") and pictures of the
    repository `url`."""

    def badges(match: re.Match) -> str:
        page = f"{url}/blob/main/notebooks/{match[1]}"
        colab = page.replace("https://github.com/", "https://colab.research.google.com/github/")
        kaggle = f"https://kaggle.com/kernels/welcome?src={page}"
        return (
            "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
            f"({colab}) "
            "[![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)]"
            f"({kaggle})"
        )

    raw = url.replace("https://github.com/", "https://raw.githubusercontent.com/")
    return PICTURES.sub(f"{raw}/main/docs/", BADGES.sub(badges, text))


def synced_notebook(text: str, url: str) -> str:
    """Return the text of a notebook file with its badges and the cells tagged "setup" brought up to
    date."""
    notebook = json.loads(text)
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            source = with_badges(source, url)
        elif "setup" in cell["metadata"].get("tags", []):
            source = setup_cell(url)
            cell["metadata"] |= FOLDED
        cell["source"] = source.splitlines(keepends=True)
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def sync(url: str, root: Path = ROOT) -> list[Path]:
    """Write `url` into pyproject.toml, the README and all notebooks; return the files that
    changed."""
    notebooks = sorted((root / "notebooks").glob("*.ipynb"))
    texts = {path: synced_notebook(path.read_text("utf-8"), url) for path in notebooks}
    pyproject, readme = root / "pyproject.toml", root / "README.md"
    texts[pyproject] = PYPROJECT_LINE.sub(
        lambda _: f'Repository = "{url}"', pyproject.read_text("utf-8")
    )
    if readme.exists():
        texts[readme] = with_badges(readme.read_text("utf-8"), url)
    changed = [path for path, text in texts.items() if path.read_text("utf-8") != text]
    for path in changed:
        path.write_text(texts[path], "utf-8", newline="\n")
    return changed


def main() -> None:
    """Write the address given on the command line, or that of the git remote, everywhere."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--url", help="address on GitHub (default: that of the git remote, else the present one)"
    )
    address = parser.parse_args().url
    if address and not github_url(address):
        parser.error(f"{address} is not on GitHub: Colab and Kaggle open notebooks from there only")
    if not address:
        command = ["git", "remote", "get-url", "origin"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        address = done.stdout.strip()
    url = github_url(address) or repository_url()
    changed = [path.name for path in sync(url)]
    print(f"{url}: {'written into ' + ', '.join(changed) if changed else 'all up to date'}")


if __name__ == "__main__":
    main()
