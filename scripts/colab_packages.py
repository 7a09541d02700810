"""Write the package versions that Colab has today into tests/constraints/colab.txt.

    python scripts/colab_packages.py          then: make test-colab

The versions are those of https://github.com/googlecolab/backend-info. The packages stay: each one
that the file names already. Prints Colab's version of Python, as `python=3.13`, for the workflow
.github/workflows/colab.yml."""

import re
import sys
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "tests" / "constraints" / "colab.txt"
SOURCE = "https://raw.githubusercontent.com/googlecolab/backend-info/main"


def main() -> None:
    """Fetch Colab's lists, and write the constraints anew."""
    try:
        versions = read_versions(fetch("pip-freeze.txt"))
        python = read_python(fetch("os-info.txt"))
        text = new_constraints(CONSTRAINTS.read_text("utf-8"), versions, python)
    except (OSError, ValueError) as error:
        sys.exit(f"{SOURCE}: {error}")
    CONSTRAINTS.write_text(text, "utf-8")
    print(f"python={python}")


def fetch(name: str) -> str:
    """Return a file of Colab's lists."""
    with urllib.request.urlopen(f"{SOURCE}/{name}", timeout=60) as answer:
        return answer.read().decode("utf-8")


def read_versions(freeze: str) -> dict[str, str]:
    """Return the version of each package in the output of `pip freeze`, by name in lower case.

    torch stands there with the address of its file: `torch @ https://.../torch-2.11.0%2Bcpu-...`.
    """
    versions = {}
    for line in freeze.splitlines():
        match = re.match(r"([\w.-]+)==([\w.]+)", line)
        match = match or re.match(r"([\w.-]+) @ \S+/\1-([\d.]+\d)", line)
        if match:
            versions[match[1].lower()] = match[2]
    return versions


def read_python(info: str) -> str:
    """Return major and minor version of Python, as "3.13".

    Raises:
        ValueError: there is none.
    """
    match = re.search(r"^Python (\d+\.\d+)", info, re.MULTILINE)
    if match is None:
        raise ValueError("os-info.txt names no version of Python")
    return match[1]


def new_constraints(text: str, versions: dict[str, str], python: str) -> str:
    """Return the text of the constraints with new versions.

    Args:
        text: the present one; its packages are kept.
        versions: of all packages, by name.
        python: version of Python, for the first line.

    Raises:
        ValueError: Colab no longer has one of the packages.
    """
    names = re.findall(r"^([\w.-]+)==", text, re.MULTILINE)
    missing = [name for name in names if name.lower() not in versions]
    if missing:
        raise ValueError(f"pip-freeze.txt has no {', '.join(missing)}")
    lines = [f"# What a notebook meets in Colab (Python {python}); from scripts/colab_packages.py."]
    lines += [f"{name}=={versions[name.lower()]}" for name in names]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
