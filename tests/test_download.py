"""Downloading from Kaggle: without a key and with every kind of key, every way to fail, and where a
key may not turn up."""

import importlib.metadata
import json
import os
import shutil
import socket
import sys
import threading

import pytest
from helpers import TINY, answer, leftovers, make_zip, use_colab
from kaggle_server import CLIENT_PATH, KEY, PUBLIC_PATH, STORAGE_PATH, TOKEN, USERNAME

from unet_utils.platform import download
from unet_utils.platform.download import ARCHIVE, DownloadError
from unet_utils.sources import check_pairs, get_pairs

pytest_plugins = ["machines"]

# Without a key.


def test_public_download(machine, kaggle, capfd):
    drive = machine.parent / "MyDrive" / "unet_utils"
    drive.parent.mkdir()
    root = get_pairs("kaggle", machine, drive)
    _, bar = capfd.readouterr()
    assert check_pairs(root) == TINY
    assert leftovers(machine) == []
    assert (drive / ARCHIVE).read_bytes() == kaggle.body
    assert len(list(drive.iterdir())) == 1
    assert ARCHIVE in bar
    assert "B/s" in bar
    paths = [("GET", PUBLIC_PATH, ""), ("GET", STORAGE_PATH, "")]
    assert [request[:3] for request in kaggle.requests] == paths
    assert get_pairs("kaggle", machine, drive) == root
    shutil.rmtree(machine)  # a new machine: only Drive survives
    assert check_pairs(get_pairs("kaggle", machine, drive)) == TINY
    assert len(kaggle.requests) == 2


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_download_is_resumed(machine, kaggle, capsys, ranges):
    kaggle.cut_after, kaggle.ranges = [10_000, 5_000] if ranges else [10_000], ranges
    assert check_pairs(get_pairs("kaggle", machine)) == TINY
    asked = [request[3] for request in kaggle.asked(STORAGE_PATH)]
    assert asked == [None, "bytes=10000-", "bytes=15000-"][: len(asked)]
    assert "Interrupted after 0.0 MB (the connection ended early)" in capsys.readouterr().out


def test_a_download_that_keeps_breaking_is_kept_for_the_next_time(machine, kaggle):
    kaggle.cut_after = [1000] * 5
    with pytest.raises(DownloadError, match=r"5 tries \(the connection ended early\).* run this"):
        get_pairs("kaggle", machine)
    assert not (machine / "kaggle").exists()
    assert check_pairs(get_pairs("kaggle", machine)) == TINY
    assert kaggle.requests[-1][3] == "bytes=5000-"


@pytest.mark.parametrize("extra", [b"", b"more"])
def test_a_finished_or_overlong_part(machine, kaggle, extra):
    machine.mkdir()
    (machine / f"{ARCHIVE}.part").write_bytes(kaggle.body + extra)
    assert check_pairs(get_pairs("kaggle", machine)) == TINY
    assert leftovers(machine) == []


@pytest.mark.parametrize("wrong", ["a part of something else", "another zip", "no zip"])
def test_what_is_not_the_dataset_is_thrown_away(machine, kaggle, wrong):
    good = kaggle.body
    machine.mkdir()
    if wrong == "another zip":
        kaggle.body = make_zip(machine.parent / "x", {"readme.txt": b"x"}).read_bytes()
    elif wrong == "no zip":
        kaggle.body = b"not a zip" * 100
    else:
        (machine / f"{ARCHIVE}.part").write_bytes(b"x" * 20_000)
    with pytest.raises(DownloadError, match=r"not the dataset, and was deleted.* Run this again"):
        get_pairs("kaggle", machine)
    assert leftovers(machine) == []
    kaggle.body = good
    assert check_pairs(get_pairs("kaggle", machine)) == TINY


def test_a_stalled_connection_is_given_up_and_resumed(machine, kaggle, monkeypatch, capsys):
    monkeypatch.setattr(download, "TIMEOUT_SECONDS", 0.2)
    kaggle.chunk, kaggle.pause = len(kaggle.body) // 2 + 1, 0.5
    assert check_pairs(get_pairs("kaggle", machine)) == TINY
    assert "(timed out); resuming in 1 s" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("status", "words", "requests"),
    [(404, "does not know", 1), (429, "wait a few minutes", 1), (500, "error 500 at Kaggle", 5)],
)
def test_a_kaggle_in_trouble(machine, kaggle, status, words, requests):
    kaggle.public_status = status
    with pytest.raises(DownloadError, match=words):
        get_pairs("kaggle", machine)
    assert len(kaggle.requests) == requests


def test_no_connection(machine, kaggle, monkeypatch, capsys):
    monkeypatch.setattr(download, "LOCAL_SERVER", "http://127.0.0.1:9")
    with pytest.raises(DownloadError, match=r"Connection refused.* Check the internet connection"):
        get_pairs("kaggle", machine)
    capsys.readouterr()
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")

    def unknown(*_, **__):
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setattr(download, "LOCAL_SERVER", "http://kaggle.invalid")
    with pytest.raises(DownloadError, match="has no internet: switch it on .* or add https://www"):
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
    usage = shutil.disk_usage(machine.parent)._replace(free=1)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(OSError, match=r"Not enough space .*UNET_UTILS_DATA"):
        get_pairs("kaggle", machine)
    assert len(kaggle.asked(STORAGE_PATH)) == 1


# With a key, through Kaggle's own client, if Kaggle asks for an account.

KNOWS_TOKENS = tuple(map(int, importlib.metadata.version("kaggle").split(".")[:2])) >= (1, 8)
PAIR = {"KAGGLE_USERNAME": USERNAME, "KAGGLE_KEY": KEY}


def plant(place, monkeypatch, home):
    """Put a key where it may be."""
    kind, _, where = place.partition(" ")
    keys = {"KAGGLE_API_TOKEN": TOKEN} if kind == "token" else PAIR
    name, text = "kaggle.json", json.dumps({"username": USERNAME, "key": KEY})
    if kind == "token":
        name, text = "access_token", TOKEN
    if where == "typed":
        answer(monkeypatch, *(("", TOKEN) if kind == "token" else (USERNAME, KEY)))
    elif where == "in Colab":
        use_colab(monkeypatch, keys)
    elif where == "in the environment":
        for variable, value in keys.items():
            monkeypatch.setenv(variable, f'"{value}"\n')  # as some copy it
    elif where == "in a file":
        (home / ".kaggle").mkdir()
        (home / ".kaggle" / name).write_text(text)
    elif where == "in a file elsewhere":
        (home / name).write_text(text)
        if kind == "token":
            monkeypatch.setenv("KAGGLE_API_TOKEN", str(home / name))
        else:
            monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(home))


PLACES = [
    f"{kind} {where}"
    for kind in (["pair", "token"] if KNOWS_TOKENS else ["pair"])
    for where in ("typed", "in Colab", "in the environment", "in a file", "in a file elsewhere")
]


def files_with_a_key(folder):
    """Every file below a folder with a planted key in it."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [p for p in files if any(key.encode() in p.read_bytes() for key in (KEY, TOKEN))]


@pytest.mark.parametrize("place", PLACES)
def test_download_with_every_kind_of_key(machine, kaggle, monkeypatch, capfd, caplog, place):
    plant(place, monkeypatch, machine.parent / "home")
    monkeypatch.setenv("VERBOSE", "true")  # with it, Kaggle's client prints the key
    kaggle.public_status = 403  # so that only the key opens the door
    intended = files_with_a_key(machine.parent)
    before = dict(os.environ)
    assert check_pairs(get_pairs("kaggle", machine)) == TINY
    printed = "".join(capfd.readouterr()) + caplog.text
    assert "Kaggle asks for an account (403)" in printed
    for secret in (KEY, TOKEN, USERNAME, "Authorization"):
        assert secret not in printed
    assert files_with_a_key(machine.parent) == intended
    assert dict(os.environ) == before
    assert leftovers(machine) == []
    asked = kaggle.asked(CLIENT_PATH) + kaggle.asked(PUBLIC_PATH)
    assert sum(bool(request[2]) for request in asked) == 1


@pytest.mark.skipif(not KNOWS_TOKENS, reason="before 1.8 Kaggle's client did not retry")
def test_a_cut_is_mended_with_a_key_too(machine, kaggle, monkeypatch):
    plant("pair in the environment", monkeypatch, None)
    # The client works in pieces of 1 MB.
    large = {"train/1.jpg": os.urandom(3 * 2**20), "val/1.jpg": b"x"}
    kaggle.body = make_zip(machine.parent / "large.zip", large).read_bytes()
    kaggle.cut_after, kaggle.public_status = [1_500_000], 401
    assert check_pairs(get_pairs("kaggle", machine)) == {"train": 1, "val": 1}
    assert kaggle.asked(STORAGE_PATH)[-1][3] == f"bytes={2**20}-"


def test_a_key_is_not_needed_where_kaggle_does_not_ask(machine, kaggle, monkeypatch):
    plant("token in the environment", monkeypatch, None)
    monkeypatch.setitem(sys.modules, "kaggle", None)
    assert check_pairs(get_pairs("kaggle", machine)) == TINY
    assert not [request for request in kaggle.requests if request[2]]


@pytest.mark.parametrize("html", [False, True])
def test_nobody_to_ask(machine, kaggle, html, capfd):
    """No key anywhere; and a page to log in counts as refused."""
    kaggle.public_status, kaggle.html = (200, True) if html else (401, False)
    with pytest.raises(DownloadError, match=r"set it as KAGGLE_API_TOKEN .* or download the arch"):
        get_pairs("kaggle", machine)
    printed = "".join(capfd.readouterr())
    assert "Kaggle asks for an account (401)" in printed
    assert "could not use the key in the environment or in ~/.kaggle" in printed
    assert "No key can be typed here" in printed
    assert len(printed.splitlines()) < 10  # without the client's pages of help


@pytest.mark.parametrize(
    "keys",
    [
        {"KAGGLE_API_TOKEN": "KGAT_stale"},
        {"KAGGLE_API_TOKEN": f"{TOKEN}\n{TOKEN}"},  # pasted twice
        {"KAGGLE_USERNAME": USERNAME, "KAGGLE_KEY": "stale-key"},
        {"KAGGLE_USERNAME": USERNAME},
    ],
)
def test_after_a_key_that_does_not_work_one_is_typed(machine, kaggle, monkeypatch, capfd, keys):
    for name, value in keys.items():
        monkeypatch.setenv(name, value)
    kaggle.public_status = 403
    answer(monkeypatch, USERNAME, "wrong-key")
    with pytest.raises(DownloadError, match="in any of the ways above"):
        get_pairs("kaggle", machine)
    printed = "".join(capfd.readouterr())
    assert "the key in the environment or in ~/.kaggle (" in printed
    assert "does not accept the key that you typed (401)" in printed
    for secret in ("stale", "wrong-key", "planted"):
        assert secret not in printed
    answer(monkeypatch, USERNAME, KEY)
    assert check_pairs(get_pairs("kaggle", machine)) == TINY


@pytest.mark.parametrize("answers", [("", TOKEN), (f" '{TOKEN}'\n", "")])
def test_a_token_is_taken_at_either_question(monkeypatch, answers):
    answer(monkeypatch, *answers)
    assert download._ask_key() == {"KAGGLE_API_TOKEN": TOKEN}


@pytest.mark.parametrize("where", ["username", "key", "environment", "Colab"])
def test_a_whole_kaggle_json_is_taken_apart(monkeypatch, where):
    whole = json.dumps({"username": USERNAME, "key": KEY}, indent=1) + "\n"
    answer(monkeypatch, *((whole, "") if where == "username" else ("", whole)))
    if where == "environment":
        monkeypatch.setenv("KAGGLE_API_TOKEN", whole)
    if where == "Colab":
        use_colab(monkeypatch, {"KAGGLE_KEY": whole})
    found = [keys for _, keys in download._find_keys() if keys]
    assert found == [PAIR] * (2 if where in ("environment", "Colab") else 1)


@pytest.mark.parametrize(
    ("status", "words"),
    [(403, "accept what it asks for"), (404, "does not know"), (429, "wait a few minutes")],
)
def test_what_kaggle_answers_to_a_good_key(machine, kaggle, monkeypatch, status, words, capsys):
    plant("pair in the environment", monkeypatch, None)
    kaggle.account_status, kaggle.public_status = status, 403
    with pytest.raises(DownloadError) as caught:
        get_pairs("kaggle", machine)
    assert words in str(caught.value) + capsys.readouterr().out


@pytest.mark.parametrize("missing", ["kaggle", "requests"])
def test_without_the_client(machine, kaggle, monkeypatch, capsys, missing):
    plant("pair in the environment", monkeypatch, None)
    kaggle.public_status = 401
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(DownloadError, match="in any of the ways above"):
        get_pairs("kaggle", machine)
    assert "`pip install kaggle six` to use a key" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("secrets", "variable", "words"),
    [
        ({"KAGGLE_API_TOKEN": None}, "", "The secret KAGGLE_API_TOKEN exists, but not for this"),
        ({"KAGGLE_USERNAME": USERNAME}, "", "could not use the key in Colab's secrets"),
        ({}, "", "No key can be typed here"),
        (PAIR, "FAKE_COLAB_NO_ANSWER", "secrets cannot be read here (TimeoutException)"),
        (PAIR, "FAKE_COLAB_NO_PAGE", "secrets cannot be read here (MessageError)"),
        (PAIR, "google.colab", "secrets cannot be read here (ModuleNotFoundError)"),
    ],
)
def test_colab_secrets_that_are_no_use(
    machine, kaggle, monkeypatch, capsys, secrets, variable, words
):
    use_colab(monkeypatch, secrets)
    if variable == "google.colab":
        monkeypatch.setitem(sys.modules, variable, None)
    elif variable:
        monkeypatch.setenv(variable, "1")
    kaggle.public_status = 403
    with pytest.raises(DownloadError, match="in any of the ways above"):
        get_pairs("kaggle", machine)
    assert capsys.readouterr().out.count(words) == 1


@pytest.mark.parametrize("text", ["", "not json", "[]", '{"username": 1, "key": 2}'])
def test_a_kaggle_json_that_is_no_use(machine, kaggle, text):
    path = machine.parent / "home" / ".kaggle" / "kaggle.json"
    path.parent.mkdir()
    path.write_text(text)
    kaggle.public_status = 403
    with pytest.raises(DownloadError, match="in any of the ways above"):
        get_pairs("kaggle", machine)
    assert path.read_text() == text


def test_a_container_without_a_home(machine, kaggle, monkeypatch):
    """No HOME, and a user number without a name: nothing is needed from there, and no folder `~` is
    made."""
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    monkeypatch.chdir(machine.parent)
    kaggle.public_status = 401
    answer(monkeypatch, USERNAME, KEY)
    assert check_pairs(get_pairs("kaggle", machine)) == TINY
    assert not (machine.parent / "~").exists()
