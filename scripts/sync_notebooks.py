"""Write the setup cell, the badges, the repository's address and the version into all notebooks and
the README.

The text of the setup cell stands here, address and version in pyproject.toml. A notebook names the
tag of its version where the repository has that tag and the package has not changed since; else
the default branch, so a copy without tags and the time between two releases need no care. After a
push, the workflow .github/workflows/address.yml runs this on GitHub. By hand:

    python scripts/sync_notebooks.py                                    the git remote "origin"
    python scripts/sync_notebooks.py --url https://github.com/me/mine   another address
    python scripts/sync_notebooks.py --release                          the tag, before it is made
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
# @markdown Keep the results on your Google Drive? Colab then asks for access to it.
USE_DRIVE = False  # @param {type:"boolean"}
import glob
import os
import sys

REPOSITORY = "https://github.com/OWNER/NAME"
VERSION = "main"

# Everything works without Drive, too.
if USE_DRIVE and "google.colab" in sys.modules and not os.path.isdir("/content/drive/MyDrive"):
    try:
        os.makedirs("/content/drive", exist_ok=True)
        sys.modules["google.colab"].drive.mount("/content/drive")
    except Exception as error:
        print(f"Google Drive was not mounted ({type(error).__name__}).")

# Is the code here already? Look in this folder and the one above, on Drive, in what Kaggle has
# attached, and in what this cell has fetched before.
places = [".", ".."]
if USE_DRIVE:
    drive = "/content/drive/MyDrive"
    places += [drive, f"{drive}/*", f"{drive}/unet*/*", f"{drive}/Colab Notebooks/*"]
places += ["/kaggle/input/*", "/kaggle/input/*/*", "/kaggle/input/*/*/*", "/kaggle/input/*/*/*/*"]
places += ["repo"]
found = []
for place in places:
    found += sorted(glob.glob(f"{place}/unet_utils"))

# If not, fetch the version that this notebook was written for.
if not found:
    clone = "git -c core.askPass=true -c advice.detachedHead=false clone --quiet --depth 1"
    if os.system(f"{clone} --branch {VERSION} {REPOSITORY} repo"):
        print(f"Not found: {VERSION} of {REPOSITORY}. Now its newest code is tried.", flush=True)
        os.system(f"{clone} {REPOSITORY} repo")
    found = glob.glob("repo/unet_utils")
if not found:
    sys.exit(
        f"Cannot fetch {REPOSITORY}: correct REPOSITORY if it says OWNER. "
        "On Kaggle, switch on Settings > Internet, or attach a copy of the code."
    )

sys.path.insert(0, os.path.abspath(os.path.dirname(found[0])))
from unet_utils.platform import environment, version

print("code:", version.describe_code())
if "google.colab" in sys.modules and not USE_DRIVE:
    print("With USE_DRIVE on, a copy of the code on your Drive is used instead, if there is one.")
env = environment.setup(use_drive=USE_DRIVE)"""
WITH_DRIVE = ("03_train", "04_evaluate", "05_use")
"""Notebooks that keep something worth a question about Drive."""
# In Colab; in JupyterLab, VS Code and Kaggle.
FOLDED = {"cellView": "form", "jupyter": {"source_hidden": True}}
BADGES = re.compile(
    r"\[!\[Open in Colab\]\([^()]*\)\]"
    r"\(https://colab\.research\.google\.com/github/[^\s()]+/([\w-]+\.ipynb)\)"
    r"( *\[!\[Open in Kaggle\]\([^()]*\)\]\([^()]*\))?"
)
PICTURES = re.compile(
    r"https://raw\.githubusercontent\.com/[\w.-]+/[\w.-]+/[^\s()]+?/docs/(?=[\w-]+\.png)"
)
# pip install "git+https://github.com/OWNER/NAME@v1.2.3"
PIP = re.compile(r"git\+https://github\.com/[\w.-]+/[\w.-]+?@[\w./-]+")
WEBSITE = re.compile(r"(?<=\[try it in the browser\]\()https://[^\s()]+", re.IGNORECASE)
FILES = ("README.md", "CONTRIBUTING.md", "CITATION.cff", "pyproject.toml")
"""What names the address, beside the notebooks."""


def repository_url(root: Path = ROOT) -> str:
    """Return the repository's address in pyproject.toml."""
    return _project(root)["urls"]["Repository"]


def release_tag(root: Path = ROOT) -> str:
    """Return the tag of the version in pyproject.toml, as "v0.3.0"."""
    return f"v{_project(root)['version']}"


def _project(root: Path) -> dict:
    return tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]


def named_version(root: Path = ROOT, branch: str = "") -> str:
    """Return what the notebooks name: the tag of their version where the repository has it and the
    package is still that of the tag, else the default branch.

    Args:
        root: folder of the repository.
        branch: the default branch; "" asks git, and takes "main" if git does not know.
    """
    tag = release_tag(root)
    if _git(root, "diff", "--quiet", tag, "--", "unet_utils") is not None:
        return tag
    remote = _git(root, "symbolic-ref", "--short", "refs/remotes/origin/HEAD") or "origin/main"
    return branch or remote.removeprefix("origin/")


def _git(root: Path, *command: str) -> str | None:
    """Return what a command of git printed, None if it failed."""
    done = subprocess.run(["git", *command], cwd=root, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def setup_cell(url: str, version: str, use_drive: bool) -> str:
    """Return the source of the setup cell."""
    cell = SETUP_CELL.replace("https://github.com/OWNER/NAME", url)
    cell = cell.replace('VERSION = "main"', f'VERSION = "{version}"')
    return cell.replace("USE_DRIVE = False", f"USE_DRIVE = {use_drive}")


def github_url(address: str) -> str | None:
    """Return `https://github.com/owner/name` for any form of a GitHub address, None for other
    addresses."""
    match = re.fullmatch(
        r"(?:https://|ssh://)?(?:[\w-]+@)?github\.com[/:]([\w.-]+)/([\w.-]+?)(?:\.git)?/?", address
    )
    return f"https://github.com/{match[1]}/{match[2]}" if match else None


def with_badges(text: str, url: str, version: str) -> str:
    """Return `text` with the badges ("Open in Colab", "Open in Kaggle"), pictures and pip addresses
    of a version of the repository `url`."""

    def badges(match: re.Match) -> str:
        page = f"{url}/blob/{version}/notebooks/{match[1]}"
        colab = page.replace("https://github.com/", "https://colab.research.google.com/github/")
        kaggle = f"https://kaggle.com/kernels/welcome?src={page}"
        return (
            "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
            f"({colab}) "
            "[![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)]"
            f"({kaggle})"
        )

    raw = url.replace("https://github.com/", "https://raw.githubusercontent.com/")
    owner, name = url.split("/")[-2:]
    text = PIP.sub(f"git+{url}@{version}", BADGES.sub(badges, text))
    text = WEBSITE.sub(f"https://{owner}.github.io/{name}/try.html", text)
    return PICTURES.sub(f"{raw}/{version}/docs/", text)


def synced_notebook(text: str, name: str, url: str, version: str) -> str:
    """Return the text of a notebook file with its badges and the cells tagged "setup" brought up to
    date.

    Args:
        text: of the file.
        name: of the notebook, as "03_train".
        url, version: of the repository.
    """
    notebook = json.loads(text)
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            source = with_badges(source, url, version)
        elif "setup" in cell["metadata"].get("tags", []):
            source = setup_cell(url, version, name in WITH_DRIVE)
            cell["metadata"] |= FOLDED
        cell["source"] = source.splitlines(keepends=True)
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def synced_file(text: str, old: str, url: str, version: str) -> str:
    """Return the text of a file beside the notebooks with the address `url` in place of `old`."""
    # Not in the address of a repository whose name only begins like this one's.
    text = re.sub(rf"{re.escape(old)}(?![\w-]|\.\w)", lambda _: url, text)
    return with_badges(text, url, version)


def sync(url: str, version: str, root: Path = ROOT) -> list[Path]:
    """Write `url` and `version` everywhere; return the files that changed."""
    texts = {}
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        texts[path] = synced_notebook(path.read_text("utf-8"), path.stem, url, version)
    old = repository_url(root)
    for path in [root / name for name in FILES]:
        if path.exists():
            texts[path] = synced_file(path.read_text("utf-8"), old, url, version)
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
    parser.add_argument("--branch", default="", help="the default branch (default: ask git)")
    parser.add_argument(
        "--release",
        action="store_true",
        help="name the tag, which is not made yet",
    )
    arguments = parser.parse_args()
    address = arguments.url
    if address and not github_url(address):
        parser.error(f"{address} is not on GitHub: Colab and Kaggle open notebooks from there only")
    address = address or _git(ROOT, "remote", "get-url", "origin") or ""
    url = github_url(address) or repository_url()
    version = release_tag() if arguments.release else named_version(branch=arguments.branch)
    changed = [path.name for path in sync(url, version)]
    done = f"written into {', '.join(changed)}" if changed else "all up to date"
    print(f"{url}, {version}: {done}")


if __name__ == "__main__":
    main()
