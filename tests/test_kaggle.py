"""Downloading from Kaggle: with every kind of key and without, every way to fail, and where a key
may not turn up."""

import errno
import importlib.metadata
import io
import json
import os
import re
import shutil
import socket
import sys
import threading
from pathlib import Path

import pytest
from helpers import TINY, answer, leftovers, make_zip, use_colab
from kaggle_server import CLIENT_PATH, KEY, PUBLIC_PATH, STORAGE_PATH, TOKEN, USERNAME

from unet_utils.platform import files
from unet_utils.platform import kaggle as kaggle_access
from unet_utils.sources import check_pairs, get_pairs
from unet_utils.platform.kaggle import ARCHIVE, DownloadError

pytest_plugins = ["machines"]

# Downloading without a key.


def test_public_download(machine, kaggle, capfd):
    drive = machine.parent / "MyDrive" / "unet_utils"
    drive.parent.mkdir()
    root = get_pairs("kaggle", machine, drive)
    printed, bar = capfd.readouterr()
    assert check_pairs(root) == TINY
    assert leftovers(machine) == []
    assert (drive / ARCHIVE).read_bytes() == kaggle.body
    assert len(list(drive.iterdir())) == 1
    assert "without an account" in printed
    assert ARCHIVE in bar
    assert "B/s" in bar
    assert [request[:3] for request in kaggle.requests] == [
        ("GET", PUBLIC_PATH, ""),
        ("GET", STORAGE_PATH, ""),
    ]
    kaggle.requests.clear()
    assert get_pairs("kaggle", machine, drive) == root
    shutil.rmtree(machine)  # a new machine: only Drive survives
    assert check_pairs(get_pairs("kaggle", machine, drive)) == TINY
    assert kaggle.requests == []


def test_a_broken_download_goes_on_where_it_was(machine, kaggle, capsys):
    kaggle.cut_after = [10_000, 5_000]
    assert check_pairs(get_pairs("kaggle", machine)) == TINY
    assert [request[3] for request in kaggle.asked(STORAGE_PATH)] == [
        None,
        "bytes=10000-",
        "bytes=15000-",
    ]
    assert "Interrupted" in capsys.readouterr().out


def test_a_broken_download_starts_again_where_ranges_are_unknown(machine, kaggle):
    kaggle.cut_after, kaggle.ranges = [10_000], False
    assert check_pairs(get_pairs("kaggle", machine)) == TINY


def test_a_download_that_keeps_breaking_is_kept_for_the_next_time(machine, kaggle):
    kaggle.cut_after = [1000] * 5
    with pytest.raises(
        DownloadError, match=r"5 tries \(the connection ended early\).* run this again"
    ):
        get_pairs("kaggle", machine)
    assert not (machine / "kaggle").exists()
    assert check_pairs(get_pairs("kaggle", machine)) == TINY
    assert kaggle.requests[-1][3] == "bytes=5000-"


@pytest.mark.parametrize("extra", [b"", b"more"])
def test_a_finished_or_overlong_part(machine, kaggle, extra):
    (machine / "download").mkdir(parents=True)
    (machine / "download" / f"{ARCHIVE}.part").write_bytes(kaggle.body + extra)
    assert check_pairs(get_pairs("kaggle", machine)) == TINY


def test_a_part_of_something_else_is_thrown_away(machine, kaggle):
    (machine / "download").mkdir(parents=True)
    (machine / "download" / f"{ARCHIVE}.part").write_bytes(b"x" * 20_000)
    with pytest.raises(DownloadError, match=r"was deleted .* Run this again"):
        get_pairs("kaggle", machine)
    assert check_pairs(get_pairs("kaggle", machine)) == TINY


def test_a_slow_trickle(machine, kaggle):
    kaggle.chunk, kaggle.pause = len(kaggle.body) // 10, 0.05
    assert check_pairs(get_pairs("kaggle", machine)) == TINY


def test_a_stalled_connection_is_given_up_and_resumed(machine, kaggle, monkeypatch, capsys):
    monkeypatch.setattr(kaggle_access, "TIMEOUT_SECONDS", 0.2)
    kaggle.chunk, kaggle.pause = len(kaggle.body) // 2 + 1, 0.5
    assert check_pairs(get_pairs("kaggle", machine)) == TINY
    assert "(timed out); going on in 1 s" in capsys.readouterr().out


@pytest.mark.parametrize(("status", "words"), [(404, "does not know"), (429, "wait a few minutes")])
def test_answers_that_end_it(machine, kaggle, status, words):
    kaggle.public_status = status
    with pytest.raises(DownloadError, match=words):
        get_pairs("kaggle", machine)
    assert len(kaggle.requests) == 1


def test_a_server_in_trouble_is_asked_again(machine, kaggle):
    kaggle.public_status = 500
    with pytest.raises(DownloadError, match="error 500"):
        get_pairs("kaggle", machine)
    assert len(kaggle.requests) == 5


def test_no_connection(machine, kaggle, monkeypatch):
    monkeypatch.setattr(kaggle_access, "LOCAL_SERVER", "http://127.0.0.1:9")
    with pytest.raises(DownloadError, match=r"Connection refused.* Check the internet connection"):
        get_pairs("kaggle", machine)


def test_a_kaggle_notebook_without_internet(machine, kaggle, monkeypatch, capsys):
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")

    def unknown(*_, **__):
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(
        DownloadError,
        match=r"has no internet: switch it on in Settings > Internet, or add https://www",
    ):
        get_pairs("kaggle", machine)
    assert "Interrupted" not in capsys.readouterr().out  # not tried again and again


def test_two_notebooks_download_at_once(machine, kaggle):
    """Each writes to a file of its own; the second finds what the first unpacked."""
    kaggle.chunk, kaggle.pause = len(kaggle.body) // 4, 0.1
    roots = []
    threads = [
        threading.Thread(target=lambda: roots.append(get_pairs("kaggle", machine)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert roots == [machine / "kaggle" / "cityscapes_data"] * 2
    assert check_pairs(roots[0]) == TINY
    assert leftovers(machine) == []


def test_no_space_for_the_download(machine, kaggle, monkeypatch):
    monkeypatch.setattr(
        files.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(100, 99, 1)
    )
    with pytest.raises(OSError, match=r"Not enough space .*UNET_UTILS_DATA"):
        get_pairs("kaggle", machine)


@pytest.mark.parametrize("files", [{"readme.txt": b"x"}, None])
def test_a_wrong_zip_is_deleted(machine, kaggle, files):
    good, wrong = kaggle.body, io.BytesIO(b"not a zip" * 100)
    kaggle.body = make_zip(wrong, files) and wrong.getvalue() if files else wrong.getvalue()
    with pytest.raises(DownloadError, match=r"not the dataset, and was deleted.* Run this again"):
        get_pairs("kaggle", machine)
    kaggle.body = good
    assert check_pairs(get_pairs("kaggle", machine)) == TINY


def test_a_full_drive_is_no_reason_to_stop(machine, kaggle, monkeypatch, capsys):
    def full(source, target):
        Path(target).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    drive = machine.parent / "MyDrive" / "unet_utils"
    drive.parent.mkdir()
    monkeypatch.setattr(shutil, "copyfile", full)
    assert check_pairs(get_pairs("kaggle", machine, drive)) == TINY
    assert "no copy of the archive" in capsys.readouterr().out
    assert list(drive.iterdir()) == []


# Downloading with a key, through Kaggle's own client.


def keys_environment_token(monkeypatch, home):
    monkeypatch.setenv("KAGGLE_API_TOKEN", TOKEN)


def keys_environment_token_file(monkeypatch, home):
    (home / "token.txt").write_text(f"{TOKEN}\n")
    monkeypatch.setenv("KAGGLE_API_TOKEN", str(home / "token.txt"))


def keys_environment_pair(monkeypatch, home):
    monkeypatch.setenv("KAGGLE_USERNAME", USERNAME)
    monkeypatch.setenv("KAGGLE_KEY", f"{KEY}\n")


def keys_json(monkeypatch, home):
    (home / ".kaggle").mkdir()
    (home / ".kaggle" / "kaggle.json").write_text(json.dumps({"username": USERNAME, "key": KEY}))


def keys_json_elsewhere(monkeypatch, home):
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(home))
    (home / "kaggle.json").write_text(json.dumps({"username": USERNAME, "key": KEY}))


def keys_token_file(monkeypatch, home):
    (home / ".kaggle").mkdir()
    (home / ".kaggle" / "access_token").write_text(TOKEN)


def keys_colab_token(monkeypatch, home):
    use_colab(monkeypatch, {"KAGGLE_API_TOKEN": TOKEN})


def keys_colab_pair(monkeypatch, home):
    use_colab(monkeypatch, {"KAGGLE_USERNAME": USERNAME, "KAGGLE_KEY": KEY})


def keys_typed_pair(monkeypatch, home):
    answer(monkeypatch, USERNAME, KEY)


def keys_typed_token(monkeypatch, home):
    answer(monkeypatch, "", TOKEN)


NOT_BEFORE_1_8 = pytest.mark.skipif(
    tuple(map(int, importlib.metadata.version("kaggle").split(".")[:2])) < (1, 8),
    reason="before 1.8 Kaggle's client knew no tokens and did not retry",
)
ALL_KEYS = [
    pytest.param(value, marks=[NOT_BEFORE_1_8] if "token" in name else [])
    for name, value in sorted(globals().items())
    if name.startswith("keys_")
]


def files_with_a_key(folder):
    """Every file below a folder with a planted key in it."""
    keys = (KEY.encode(), TOKEN.encode())
    return [
        path
        for path in folder.rglob("*")
        if path.is_file() and any(key in path.read_bytes() for key in keys)
    ]


@pytest.mark.parametrize("plant", ALL_KEYS)
def test_download_with_every_kind_of_key(machine, kaggle, monkeypatch, capfd, plant):
    home = machine.parent / "home"
    plant(monkeypatch, home)
    kaggle.public_status = 401  # so that only the key opens the door
    intended = files_with_a_key(machine.parent)
    before = dict(os.environ)
    assert check_pairs(get_pairs("kaggle", machine)) == TINY
    printed = "".join(capfd.readouterr())
    assert KEY not in printed
    assert TOKEN not in printed
    assert USERNAME not in printed
    assert files_with_a_key(machine.parent) == intended
    assert dict(os.environ) == before
    assert leftovers(machine) == []
    assert (
        sum(bool(request[2]) for request in kaggle.asked(CLIENT_PATH) + kaggle.asked(PUBLIC_PATH))
        == 1
    )


@NOT_BEFORE_1_8
@pytest.mark.parametrize("plant", [keys_environment_pair, keys_environment_token])
def test_a_cut_is_mended_with_a_key_too(machine, kaggle, monkeypatch, plant):
    plant(monkeypatch, machine.parent / "home")
    large = {
        "train/1.jpg": os.urandom(3 * 2**20),
        "val/1.jpg": b"x",
    }  # the client works in pieces of 1 MB
    kaggle.body = make_zip(machine.parent / "large.zip", large).read_bytes()
    kaggle.cut_after, kaggle.public_status = [1_500_000], 401
    assert check_pairs(get_pairs("kaggle", machine)) == {"train": 1, "val": 1}
    assert kaggle.asked(STORAGE_PATH)[-1][3] == f"bytes={2**20}-"


def test_a_stale_key_does_not_stop_the_public_download(machine, kaggle, monkeypatch, capfd):
    monkeypatch.setenv("KAGGLE_API_TOKEN", "KGAT_stale")
    monkeypatch.setenv("KAGGLE_USERNAME", USERNAME)
    monkeypatch.setenv("KAGGLE_KEY", "stale-key")
    assert check_pairs(get_pairs("kaggle", machine)) == TINY
    printed = "".join(capfd.readouterr())
    assert re.search(
        r"(does not accept|failed with) KAGGLE_API_TOKEN of the environment \((401|OSError)\)",
        printed,
    )
    assert "does not accept KAGGLE_USERNAME and KAGGLE_KEY of the environment (401)" in printed
    assert "KGAT_stale" not in printed
    assert "stale-key" not in printed


@pytest.mark.parametrize("public", [401, 403])
def test_nobody_to_ask(machine, kaggle, public, capsys):
    kaggle.public_status = public
    with pytest.raises(
        DownloadError, match=r"set it as KAGGLE_API_TOKEN .* or download the archive yourself"
    ):
        get_pairs("kaggle", machine)
    printed = capsys.readouterr().out
    assert f"Kaggle requires an account for this download ({public})" in printed
    assert "No key can be typed here" in printed


def test_a_page_to_log_in_counts_as_refused(machine, kaggle, monkeypatch):
    kaggle.html = True
    with pytest.raises(DownloadError, match="in any of the ways above"):
        get_pairs("kaggle", machine)


def test_a_wrong_key_is_typed(machine, kaggle, monkeypatch, capfd):
    kaggle.public_status = 403
    answer(monkeypatch, USERNAME, "wrong-key")
    with pytest.raises(DownloadError, match="in any of the ways above"):
        get_pairs("kaggle", machine)
    printed = "".join(capfd.readouterr())
    assert "does not accept what you typed" in printed
    assert "wrong-key" not in printed


@pytest.mark.parametrize(
    ("status", "words"),
    [(403, "accept what it asks for"), (404, "does not know"), (429, "wait a few minutes")],
)
def test_what_kaggle_answers_to_a_good_key(machine, kaggle, monkeypatch, status, words, capsys):
    keys_environment_pair(monkeypatch, None)
    kaggle.account_status, kaggle.public_status = status, status
    with pytest.raises(DownloadError) as caught:
        get_pairs("kaggle", machine)
    assert words in str(caught.value) + capsys.readouterr().out


def test_a_key_that_breaks_the_request_is_not_repeated(machine, kaggle, monkeypatch, capfd):
    monkeypatch.setenv("KAGGLE_API_TOKEN", f"{TOKEN}\n{TOKEN}")  # pasted twice
    assert check_pairs(get_pairs("kaggle", machine)) == TINY
    assert "planted" not in "".join(capfd.readouterr())


def test_a_talkative_client_does_not_print_the_key(machine, kaggle, monkeypatch, capfd, caplog):
    monkeypatch.setenv("VERBOSE", "true")
    for plant in (keys_environment_pair, keys_environment_token):
        plant(monkeypatch, None)
    kaggle.public_status = 401
    assert check_pairs(get_pairs("kaggle", machine)) == TINY
    printed = "".join(capfd.readouterr()) + caplog.text
    assert "Authorization" not in printed
    assert TOKEN not in printed


@pytest.mark.parametrize("missing", ["kaggle", "six"])
def test_without_the_client_the_public_download_is_left(
    machine, kaggle, monkeypatch, capsys, missing
):
    keys_environment_pair(monkeypatch, None)
    monkeypatch.setitem(sys.modules, missing, None)
    for name in [name for name in sys.modules if name.startswith("kaggle.")]:
        monkeypatch.delitem(sys.modules, name)
    assert check_pairs(get_pairs("kaggle", machine)) == TINY
    printed = capsys.readouterr().out
    if missing == "kaggle":
        assert "`pip install kaggle six`" in printed


@pytest.mark.parametrize(
    ("secrets", "words"),
    [
        (
            {"KAGGLE_API_TOKEN": None},
            "The secret KAGGLE_API_TOKEN exists, but not for this notebook",
        ),
        ({"KAGGLE_USERNAME": USERNAME}, "KAGGLE_KEY is missing in Colab's secrets"),
        ({}, "without an account"),
    ],
)
def test_colab_secrets_that_are_no_use(machine, kaggle, monkeypatch, capsys, secrets, words):
    use_colab(monkeypatch, secrets)
    assert check_pairs(get_pairs("kaggle", machine)) == TINY
    assert words in capsys.readouterr().out


@pytest.mark.parametrize(
    ("variable", "kind"),
    [("FAKE_COLAB_NO_ANSWER", "TimeoutException"), ("FAKE_COLAB_NO_PAGE", "MessageError")],
)
def test_colab_secrets_outside_colabs_page(machine, kaggle, monkeypatch, capsys, variable, kind):
    use_colab(monkeypatch, {"KAGGLE_API_TOKEN": TOKEN})
    monkeypatch.setenv(variable, "1")
    assert check_pairs(get_pairs("kaggle", machine)) == TINY
    assert capsys.readouterr().out.count(f"Colab's secrets cannot be read here ({kind})") == 1


def test_colab_without_colabs_package(machine, kaggle, monkeypatch, capsys):
    monkeypatch.setenv("COLAB_RELEASE_TAG", "test")
    monkeypatch.setitem(sys.modules, "google.colab", None)
    assert check_pairs(get_pairs("kaggle", machine)) == TINY
    assert "Colab's secrets cannot be read here" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text", ["", "not json", "[]", '{"username": "a"}', '{"username": 1, "key": 2}']
)
def test_a_kaggle_json_that_is_no_use(machine, kaggle, capsys, text):
    path = machine.parent / "home" / ".kaggle" / "kaggle.json"
    path.parent.mkdir()
    path.write_text(text)
    assert check_pairs(get_pairs("kaggle", machine)) == TINY
    assert not text or f"{path} cannot be used" in capsys.readouterr().out
    assert path.read_text() == text


def test_credentials_do_not_show_their_keys():
    assert repr(kaggle_access.Credentials("x", USERNAME, KEY, TOKEN)) == "Credentials(source='x')"
