"""Check that a release is ready, and print its notes.

    python scripts/release.py v0.3.0 > notes.md

The workflow .github/workflows/release.yml runs this for every tag. A tag is refused if the version
in pyproject.toml is another one, if its notes in CHANGELOG.md have no date, or if a notebook or the
README name another version or no address. CONTRIBUTING.md says how to make a release."""

import argparse
import re
import sys
from pathlib import Path

from sync_notebooks import ROOT, release_tag, repository_url, synced_file, synced_notebook


def main() -> None:
    """Print the notes of a release, or what is wrong with it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "tag", nargs="?", default=release_tag(), help="as v0.3.0 (default: that of the version)"
    )
    tag = parser.parse_args().tag
    if problems := find_problems(tag):
        sys.exit("\n".join(problems))
    print(release_notes((ROOT / "CHANGELOG.md").read_text("utf-8"), tag.removeprefix("v")))


def find_problems(tag: str, root: Path = ROOT) -> list[str]:
    """Return what is wrong with a release, one line each."""
    problems = []
    if release_tag(root) != tag:
        problems.append(f"pyproject.toml: its version makes the tag {release_tag(root)}, not {tag}")
    url = repository_url(root)
    if "/OWNER/" in url:
        problems.append("pyproject.toml: the address says OWNER, run scripts/sync_notebooks.py")
    paths = [root / "README.md", *sorted((root / "notebooks").glob("*.ipynb"))]
    for path in paths:
        text = path.read_text("utf-8")
        if path.suffix == ".ipynb":
            right = synced_notebook(text, path.stem, url, tag)
        else:
            right = synced_file(text, url, url, tag)
        if text != right:
            problems.append(
                f"{path.name}: not of {tag} in {url}, run scripts/sync_notebooks.py --release"
            )
    try:
        release_notes((root / "CHANGELOG.md").read_text("utf-8"), tag.removeprefix("v"))
    except ValueError as error:
        problems.append(str(error))
    return problems


def release_notes(changelog: str, version: str) -> str:
    """Return the section of a version in the changelog, without its title.

    Raises:
        ValueError: there is none, it is empty, or it has no date.
    """
    section = re.search(
        rf"^## {re.escape(version)}(?![\w.])(.*)\n((?:(?!## ).*\n?)*)", changelog, re.MULTILINE
    )
    if section is None or not section[2].strip():
        raise ValueError(f"CHANGELOG.md: there are no notes for {version}")
    if not re.match(r", \d{4}-\d\d-\d\d", section[1]):
        raise ValueError(f"CHANGELOG.md: write the date, as ## {version}, 2026-01-31")
    return section[2].strip()


if __name__ == "__main__":
    main()
