"""What tests have in common, fixtures aside."""

import getpass
import json
import os
import zipfile
from pathlib import Path

import pytest

TINY = {"train": 6, "val": 3}  # pairs in the fixtures `tiny_pairs` and `tiny_archive`
FAKE_COLAB = Path(__file__).parent / "fake_colab"


def require(condition, reason):
    """Skip a test for want of a tool. Where CI is set, all tools have to be there:
    `scripts/install_test_tools.sh` installs them."""
    if not condition:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


def answer(monkeypatch, *answers):
    """Let somebody type `answers` at the hidden prompts; nobody is there when they are used up."""
    left = list(answers)

    def hidden(prompt=""):
        if not left:
            raise EOFError
        return left.pop(0)

    monkeypatch.setattr(getpass, "getpass", hidden)


def use_colab(monkeypatch, secrets):
    """Pretend to be in Colab with these secrets."""
    monkeypatch.syspath_prepend(str(FAKE_COLAB))
    monkeypatch.setenv("COLAB_RELEASE_TAG", "test")
    monkeypatch.setenv("FAKE_COLAB_SECRETS", json.dumps(secrets))


def make_zip(path, files):
    """A zip of `{name: bytes}`."""
    with zipfile.ZipFile(path, "w") as file:
        for name, content in files.items():
            file.writestr(name, content)
    return path


def leftovers(folder):
    """Names of everything temporary in a data folder."""
    return [path.name for path in folder.iterdir() if path.name.startswith(".") or path.is_file()]
