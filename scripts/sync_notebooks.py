"""Writes the setup cell, and the repository's address, into all notebooks.

The text of the setup cell stands here, the address in pyproject.toml ([project.urls], Repository). After a fork:

    python scripts/sync_notebooks.py                                    # the address of the git remote "origin"
    python scripts/sync_notebooks.py --url https://github.com/me/mine   # or another one
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
import os, subprocess, sys  # noqa: E401, I001

REPO_URL = "{url}"
USE_DRIVE = True  # @param {{type:"boolean"}}
if USE_DRIVE and "google.colab" in sys.modules:
    sys.modules["google.colab"].drive.mount("/content/drive")
find = "timeout 60 find /content/drive/MyDrive/ -maxdepth 9 -path '*/unet_utils/demo.py' -printf %h/.. -quit 2>&-"
root = next((d for d in (".", "..", "repo") if os.path.isdir(f"{{d}}/unet_utils")), "") or subprocess.getoutput(find)
if not os.path.isdir(root or "repo"):
    subprocess.run(["git", "clone", "--depth", "1", REPO_URL, "repo"], check=True)
sys.path.insert(0, os.path.abspath(root or "repo"))
from unet_utils.platform import environment

env = environment.setup(use_drive=USE_DRIVE)"""
BADGE = re.compile(r"https://colab\.research\.google\.com/github/[^\s()\"']+/([\w-]+\.ipynb)")
PYPROJECT_LINE = re.compile(r'^Repository = "(.*)"$', re.MULTILINE)


def repository_url(root: Path = ROOT) -> str:
    """The repository's address as pyproject.toml has it."""
    return tomllib.loads((root / "pyproject.toml").read_text())["project"]["urls"]["Repository"]


def setup_cell(url: str) -> str:
    """The source of the setup cell."""
    return SETUP_CELL.format(url=url)


def github_url(address: str) -> str | None:
    """`https://github.com/owner/name` for any way to write a GitHub address, None for other places."""
    match = re.fullmatch(r"(?:https://|ssh://)?(?:[\w-]+@)?github\.com[/:]([\w.-]+)/([\w.-]+?)(?:\.git)?/?", address)
    return f"https://github.com/{match[1]}/{match[2]}" if match else None


def with_badges(text: str, url: str) -> str:
    """`text` with every "Open in Colab" address pointing at the notebook of the same name in `url`."""
    colab = url.replace("https://github.com/", "https://colab.research.google.com/github/")
    return BADGE.sub(lambda match: f"{colab}/blob/main/notebooks/{match[1]}", text)


def synced_notebook(text: str, url: str) -> str:
    """The text of a notebook file with its badge and the cells tagged "setup" brought up to date."""
    notebook = json.loads(text)
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            source = with_badges(source, url)
        elif "setup" in cell["metadata"].get("tags", []):
            source = setup_cell(url)
        cell["source"] = source.splitlines(keepends=True)
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def sync(url: str, root: Path = ROOT) -> list[Path]:
    """Write `url` into pyproject.toml, the README's badges and all notebooks; return the files that changed."""
    notebooks = sorted((root / "notebooks").glob("*.ipynb"))
    texts = {path: synced_notebook(path.read_text("utf-8"), url) for path in notebooks}
    pyproject, readme = root / "pyproject.toml", root / "README.md"
    texts[pyproject] = PYPROJECT_LINE.sub(lambda _: f'Repository = "{url}"', pyproject.read_text("utf-8"))
    if readme.exists():
        texts[readme] = with_badges(readme.read_text("utf-8"), url)
    changed = [path for path, text in texts.items() if path.read_text("utf-8") != text]
    for path in changed:
        path.write_text(texts[path], "utf-8", newline="\n")
    return changed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="address on GitHub (default: that of the git remote, else the present one)")
    address = parser.parse_args().url
    if address and not github_url(address):
        parser.error(f"{address} is not on GitHub: Colab's badges open notebooks from there only")
    if not address:
        command = ["git", "remote", "get-url", "origin"]
        address = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    url = github_url(address) or repository_url()
    changed = sync(url)
    print(f"{url}: " + (f"written into {', '.join(path.name for path in changed)}" if changed else "all up to date"))


if __name__ == "__main__":
    main()
