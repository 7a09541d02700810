"""Fixtures for tests that get the pairs: an empty machine, and a stand-in for Kaggle."""

import sys
import time

import pytest
from helpers import answer
from kaggle_server import KaggleServer

from unet_utils.platform import download


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """An empty machine: no keys, no Colab, nobody at the keyboard, no waiting. Returns its folder
    for data."""
    for name in (*download.KEY_VARIABLES, "KAGGLE_CONFIG_DIR", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name in ("COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "home").mkdir()
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setattr(download, "KAGGLE_INPUT", tmp_path / "kaggle_input")
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    answer(monkeypatch)
    return tmp_path / "data"


@pytest.fixture
def kaggle(machine, tiny_archive, monkeypatch):
    """A running stand-in for Kaggle that both our download and Kaggle's client find."""
    with KaggleServer(tiny_archive.read_bytes()) as server:
        monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "LOCALHOST")
        monkeypatch.setenv("no_proxy", "*")
        monkeypatch.setattr(download, "LOCAL_SERVER", server.url)
        kaggle_env = pytest.importorskip("kagglesdk.kaggle_env")
        monkeypatch.setitem(kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.LOCAL, server.url)
        for name in list(sys.modules):
            if name == "kaggle" or name.startswith("kaggle."):
                monkeypatch.delitem(sys.modules, name)  # importing it logs in: every test sees that
        yield server
