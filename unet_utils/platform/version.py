"""Which code runs here: its version, its commit, its address."""

import re
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]


def version() -> str:
    """Return the version of the package: a checkout need not be installed."""
    project = CHECKOUT / "pyproject.toml"
    if project.is_file():
        return tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"]
    return metadata.version("unet-utils")


def commit() -> str:
    """Return the commit of the checkout, with `-dirty` if files differ from it; "" without one."""
    return _ask_git("describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")


def describe_code() -> str:
    """Return where the code comes from: `ADDRESS @ commit`, or its folder and its version."""
    if found := commit():
        address = _ask_git("remote", "get-url", "origin") or str(CHECKOUT)
        # An address may hold a key, as in https://key@github.com/me/mine.
        return f"{re.sub('//[^/]*@', '//', address)} @ {found}"
    return f"{CHECKOUT}, version {version()}"


def _ask_git(*question: str) -> str:
    """Return the answer of git about the checkout; "" without one."""
    if not (CHECKOUT / ".git").exists():  # git would look in the folders above
        return ""
    try:
        answer = subprocess.run(
            ["git", *question], cwd=CHECKOUT, capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.strip()
