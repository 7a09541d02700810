"""The Kaggle set: found where it lies already, or downloaded."""

import contextlib
import getpass
import http.client
import io
import json
import os
import socket
import tempfile
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from pathlib import Path

from unet_utils.platform.environment import KAGGLE_INPUT, find_platform, progress_bar
from unet_utils.platform.files import (
    copy_verified,
    explain_full_disk,
    is_disk_full,
    make_backup_folder,
    require_space,
    typed,
    unfinished_path,
)
from unet_utils.platform.unpacking import Check, is_unpacked, unpack

DATASET = "dansbecker/cityscapes-image-pairs"
ARCHIVE = "cityscapes-image-pairs.zip"
SERVER = "https://www.kaggle.com"
# Where Kaggle's client looks, too, when KAGGLE_API_ENVIRONMENT is LOCALHOST: for tests.
LOCAL_SERVER = "http://localhost"
PAGE = f"{SERVER}/datasets/{DATASET}"
KEY_VARIABLES = ("KAGGLE_API_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY")
RETRY_SECONDS = (1, 2, 4, 8)
TIMEOUT_SECONDS = 30


class DownloadError(RuntimeError):
    """Kaggle did not deliver the archive."""


class KeyNeededError(DownloadError):
    """Kaggle asks for an account, or refuses a key: another key may help."""


def get_kaggle(data_dir: Path, drive: Path | None, check: Check) -> Path:
    """Return the folder of the Kaggle set from the nearest place: unpacked, attached by Kaggle, an
    archive somewhere, a download.

    Args:
        data_dir: folder on the local disk, to unpack to.
        drive: our folder on Google Drive, which keeps a copy of the archive for the next machine.
        check: tells whether an unpacked folder holds the pairs.

    Raises:
        DownloadError: Kaggle refused or could not be reached; the message says what to do.
        OSError: the disk is full.
    """
    folder = data_dir / "kaggle"
    if is_unpacked(folder, check):
        print(f"Unpacked already: {folder}")
        return folder
    for name in (DATASET.split("/")[1], DATASET, f"datasets/{DATASET}"):
        if (attached := KAGGLE_INPUT / name).is_dir():
            print(f"Attached by Kaggle: {attached}")
            return attached
    # An archive put here by hand, our own copy on Drive, one uploaded to Drive by hand.
    places = [data_dir, drive, drive.parent] if drive else [data_dir]
    for archive in [place / ARCHIVE for place in places]:
        if os.path.isfile(archive):  # False, not an error, when Drive has dropped
            try:
                unpack(archive, folder, check)
                return folder
            except (ValueError, OSError) as error:
                if is_disk_full(error):
                    raise
                print(f"{error} Trying the next source.")
    with _partial_download(data_dir / f"{ARCHIVE}.part") as part:
        download(part)
        try:
            unpack(part, folder, check)
        except (ValueError, FileNotFoundError) as error:
            part.unlink()
            raise DownloadError(
                f"What arrived is not the dataset, and was deleted ({error}). Run this again."
            ) from error
        if drive:  # no copy there, or none that could be used
            _keep_copy(part, drive / ARCHIVE)
        part.unlink()
    return folder


@contextlib.contextmanager
def _partial_download(kept: Path) -> Iterator[Path]:
    """Yield a path of our own that starts with what an earlier try left in `kept`; at the end, what
    is there is kept for the next try."""
    part = unfinished_path(kept)
    with contextlib.suppress(FileNotFoundError):
        kept.rename(part)  # of several processes that try, one succeeds
    try:
        yield part
    finally:
        if part.exists():
            part.replace(kept)


def _keep_copy(archive: Path, copy: Path) -> None:
    """Copy the archive to Drive. A Drive that is full or gone must not stop anything."""
    try:
        make_backup_folder(copy.parent)
        copy_verified(archive, copy)
        print(f"A copy of the archive is kept at {copy}")
    except OSError as error:
        reason = error.strerror or error
        print(f"Warning: no copy of the archive could be kept at {copy} ({reason}).")


def download(path: Path) -> None:
    """Download the archive to `path`: without an account, since the dataset is public; if Kaggle
    asks for one, with the keys that are found, then with one that is typed.

    Keys are never printed and never written to a file.

    Raises:
        DownloadError: Kaggle refused or could not be reached; the message says what to do.
        OSError: the disk is full.
    """
    print(f"Downloading {DATASET} from Kaggle")
    try:
        return _download_public(path)
    except KeyNeededError as error:
        print(error)
    for source, keys in _find_keys():
        print(f"Downloading with {source}")
        try:
            return _download_with_client(path, source, keys)
        except KeyNeededError as error:
            print(error)
    raise DownloadError(
        "Kaggle did not deliver the archive in any of the ways above. Make a key at "
        f"{SERVER}/settings/api, set it as KAGGLE_API_TOKEN (an environment variable, or a secret "
        f"in Colab) and run this again; or download the archive yourself from {PAGE} and use the "
        "path of the .zip as the source."
    )


def _download_public(path: Path) -> None:
    """Download over HTTPS without an account; resume after each break."""
    problem: object = None
    for seconds in (0, *RETRY_SECONDS):
        if problem:
            arrived = path.stat().st_size / 2**20 if path.exists() else 0
            print(f"Interrupted after {arrived:.1f} MB ({problem}); resuming in {seconds} s")
            time.sleep(seconds)
        try:
            if _receive(path):
                return
            problem = "the connection ended early"
        except urllib.error.HTTPError as error:
            if error.code < 500:
                raise _explain_status(error.code) from None
            problem = f"error {error.code} at Kaggle"
        except (OSError, http.client.HTTPException) as error:  # a URLError is an OSError
            explain_full_disk(error, path.parent)
            problem = getattr(error, "reason", None) or error
            if find_platform() == "kaggle" and isinstance(problem, socket.gaierror):
                raise DownloadError(
                    "This Kaggle notebook has no internet: switch it on in Settings > Internet, or "
                    f"add {PAGE} to the notebook with Add Input. Then run this again."
                ) from None
    raise DownloadError(
        f"The download failed after {len(RETRY_SECONDS) + 1} tries ({problem}). Check the internet "
        "connection and run this again; what has arrived is kept."
    )


def _receive(path: Path) -> bool:
    """Fetch the archive, or what is missing of it, with a range request (RFC 9110, section 14).
    Return whether the file is complete."""
    server = LOCAL_SERVER if os.environ.get("KAGGLE_API_ENVIRONMENT") == "LOCALHOST" else SERVER
    have = path.stat().st_size if path.exists() else 0
    request = urllib.request.Request(f"{server}/api/v1/datasets/download/{DATASET}")
    request.add_header("User-Agent", "unet_utils")
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        if error.headers.get("Content-Range") == f"bytes */{have}":  # nothing left to fetch
            return True
        path.unlink()  # longer than Kaggle's file: part of something else
        return False
    with response:
        if response.headers.get_content_type() == "text/html":  # a page to log in, not a file
            raise _explain_status(401)
        if response.status != 206:
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        require_space(path.parent, int(length or 0))
        bar = progress_bar(
            total=total, initial=have, unit="B", unit_scale=True, unit_divisor=1024, desc=ARCHIVE
        )
        with open(path, "ab" if have else "wb") as file, bar:
            while chunk := response.read1(2**20):
                file.write(chunk)
                bar.update(len(chunk))
    return total is None or path.stat().st_size == total


def _download_with_client(path: Path, source: str, keys: dict[str, str]) -> None:
    """Download with Kaggle's own client, which knows every kind of key. It gets `keys`, and looks
    into its own files if they are empty."""
    with (
        tempfile.TemporaryDirectory(dir=path.parent) as folder,
        _in_environment(keys, folder),
    ):
        try:
            # Most versions log in while they are imported, and print a page of help, raise an error
            # or exit if there is no key.
            with contextlib.redirect_stdout(io.StringIO()):
                from kaggle.api.kaggle_api_extended import KaggleApi

                api = KaggleApi()
                # That would print the key.
                api.args = [option for option in api.args if option != "--verbose"]
                api.authenticate()
            api.dataset_download_files(DATASET, path=folder, force=True, quiet=False)
            os.replace(Path(folder) / ARCHIVE, path)
        except ImportError as error:
            raise KeyNeededError(
                f"Kaggle's client cannot be imported ({error}): run `pip install kaggle six` to "
                "use a key."
            ) from None
        except (Exception, SystemExit) as error:  # of the client, or of a library that it uses
            if isinstance(error, OSError):
                explain_full_disk(error, path.parent)
            status = getattr(getattr(error, "response", None), "status_code", None)
            if status:
                raise _explain_status(status, source) from None
            # Only the type: the text of some errors repeats the request's header, with the key.
            raise KeyNeededError(
                f"Kaggle's client could not use {source} ({type(error).__name__}): it needs "
                "KAGGLE_API_TOKEN, or KAGGLE_USERNAME and KAGGLE_KEY."
            ) from None


@contextlib.contextmanager
def _in_environment(keys: dict[str, str], folder: str) -> Iterator[None]:
    """Put these keys, and no others, where Kaggle's client looks first; restore everything at the
    end."""
    before = {name: os.environ.get(name) for name in (*KEY_VARIABLES, "HOME")}
    for name in KEY_VARIABLES:
        os.environ.pop(name, None)
    if os.path.expanduser("~") == "~":  # no home: the client would make a folder of that name
        os.environ["HOME"] = folder
    os.environ.update(keys)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _explain_status(status: int, source: str = "") -> DownloadError:
    """Return an error that says what an HTTP status means. `source` says where the key is from,
    empty without one."""
    if status in (401, 403) and not source:
        return KeyNeededError(f"Kaggle asks for an account ({status}).")
    if status == 401:
        return KeyNeededError(
            f"Kaggle does not accept {source} (401): it may be mistyped, expired or replaced by a "
            "newer one."
        )
    if status == 403:
        return KeyNeededError(
            f"Kaggle denies access with {source} (403): open {PAGE}, signed in, and accept what it "
            "asks for."
        )
    if status == 404:
        return DownloadError(
            f"Kaggle does not know {DATASET} (404): see whether {PAGE} still exists, or use the "
            "path of a .zip."
        )
    problem = "has had too many requests" if status == 429 else "answered with an error"
    return DownloadError(f"Kaggle {problem} ({status}): wait a few minutes and run this again.")


def _find_keys() -> Iterator[tuple[str, dict[str, str]]]:
    """Yield where keys are from, and the keys by the names of the variables that Kaggle's client
    reads."""
    own = {name: os.environ.get(name, "") for name in KEY_VARIABLES}
    # Without one in the environment, the client looks into its files.
    yield "the key in the environment or in ~/.kaggle", _plain_keys(own)
    if find_platform() == "colab" and (secrets := _colab_secrets()):
        yield "the key in Colab's secrets", secrets
    if answer := _ask_key():
        yield "the key that you typed", answer


def _colab_secrets() -> dict[str, str]:
    """Return Kaggle's names in Colab's secrets (key symbol, left), and print what is wrong with
    those that fail."""
    secrets = {}
    for name in KEY_VARIABLES:
        try:
            from google.colab import userdata

            secrets[name] = userdata.get(name) or ""
        # Compared by name: not every version of google.colab has all the types.
        except Exception as error:
            kind = type(error).__name__
            if kind == "NotebookAccessError":
                print(
                    f"The secret {name} exists, but not for this notebook: switch its access on "
                    "(key symbol, left)."
                )
            elif kind != "SecretNotFoundError":
                print(f"Colab's secrets cannot be read here ({kind}), only from Colab's own page.")
                break
    return _plain_keys(secrets)


def _ask_key() -> dict[str, str]:
    """Ask for a key without showing it: what is shown would be saved with the notebook."""
    print(f"Make a key at {SERVER}/settings/api, and type it here.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", getpass.GetPassWarning)  # it would show the key
            question = "Kaggle username (leave empty if you have an API token): "
            username = getpass.getpass(question)
            key = getpass.getpass("Kaggle key or API token: ")
    # A notebook that is run by a program, no terminal.
    except (EOFError, OSError, NotImplementedError, getpass.GetPassWarning):
        print("No key can be typed here: this notebook runs without a prompt.")
        return {}
    keys = _plain_keys({"KAGGLE_USERNAME": username, "KAGGLE_KEY": key})
    if len(keys) == 1:  # a token, at either question
        (token,) = keys.values()
        return {"KAGGLE_API_TOKEN": token}
    return keys


def _plain_keys(texts: dict[str, str]) -> dict[str, str]:
    """Return keys as Kaggle's client takes them from texts that a person copied to these variables;
    one of them may be a whole kaggle.json. Empty ones are left out."""
    keys = {name: typed(text) for name, text in texts.items() if typed(text)}
    for text in keys.values():
        with contextlib.suppress(ValueError, LookupError, TypeError):  # no JSON, or another one
            content = json.loads(text)
            return {"KAGGLE_USERNAME": content["username"], "KAGGLE_KEY": content["key"]}
    return keys
