"""Download the archive from Kaggle: with the keys that are found, without a key, or with one that
is typed."""

import contextlib
import getpass
import http.client
import itertools
import json
import os
import shutil
import socket
import tempfile
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from unet_utils.platform.environment import find_platform, progress_bar
from unet_utils.platform.files import explain_full_disk, is_disk_full, require_space, user_path

DATASET = "dansbecker/cityscapes-image-pairs"
ARCHIVE = "cityscapes-image-pairs.zip"
SERVER = "https://www.kaggle.com"
LOCAL_SERVER = (
    "http://localhost"  # where Kaggle's client looks too when KAGGLE_API_ENVIRONMENT is LOCALHOST
)
PAGE = f"{SERVER}/datasets/{DATASET}"
KEY_ADVICE = f"Make a key at {SERVER}/settings/api"
CREDENTIAL_VARIABLES = ("KAGGLE_API_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY")
NO_INTERNET = (
    f"This Kaggle notebook has no internet: switch it on in Settings > Internet, or add {PAGE} to the notebook with "
    "Add Input. Then run this again."
)
RETRY_SECONDS = (1, 2, 4, 8)
TIMEOUT_SECONDS = 30
MEGABYTE = 2**20


class DownloadError(RuntimeError):
    """Kaggle did not deliver the archive. `try_next` says whether another key, or none, may
    help."""

    def __init__(self, message: str, try_next: bool = False):
        super().__init__(message)
        self.try_next = try_next


@dataclass(frozen=True)
class Credentials:
    """A Kaggle login: a username and key, or a token. The repr shows only where it comes from."""

    source: str
    username: str = field(default="", repr=False)
    key: str = field(default="", repr=False)
    token: str = field(default="", repr=False)


def download(path: Path) -> None:
    """Download the archive to `path`: try the keys that are found, then no key, then a key that is
    typed.

    The dataset is public, so most people need no key. Kaggle's own client gets keys through the
    environment, for the duration of the call; they are never printed and never written to a file.

    Raises:
        DownloadError: Kaggle refused or could not be reached; the message says what to do.
        OSError: the disk is full.
    """
    for credentials in itertools.chain(find_credentials(), [None], _ask_credentials()):
        try:
            if credentials is None:
                print(f"Downloading {DATASET} from Kaggle without an account: it is public")
                return _download_public(path)
            print(f"Downloading {DATASET} from Kaggle with {credentials.source}")
            return _download_with_client(path, credentials)
        except DownloadError as error:
            if not error.try_next:
                raise
            print(error)
    raise DownloadError(
        f"Kaggle did not deliver the archive in any of the ways above. {KEY_ADVICE}, set it as KAGGLE_API_TOKEN (an "
        "environment variable, or a secret in Colab) and run this again; or download the archive yourself from "
        f"{PAGE} and use the path of the .zip as the source."
    )


def _download_public(path: Path) -> None:
    """Download over HTTPS without a login; continue a partial file with range requests (RFC 9110,
    section 14)."""
    server = LOCAL_SERVER if os.environ.get("KAGGLE_API_ENVIRONMENT") == "LOCALHOST" else SERVER
    url = f"{server}/api/v1/datasets/download/{DATASET}"
    problem: object = None
    for seconds in (*RETRY_SECONDS, None):
        try:
            if _receive(url, path):
                return
            problem = "the connection ended early"
        except urllib.error.HTTPError as error:
            if error.code < 500:
                raise _explain_status(error.code) from None
            problem = f"error {error.code} at Kaggle"
        except (OSError, http.client.HTTPException) as error:  # a URLError is an OSError
            if is_disk_full(error):
                explain_full_disk(error, path.parent)
                raise
            problem = getattr(error, "reason", None) or error
            if find_platform() == "kaggle" and isinstance(problem, socket.gaierror):
                raise DownloadError(NO_INTERNET) from None
        if seconds:
            arrived = path.stat().st_size / MEGABYTE if path.exists() else 0
            print(f"Interrupted after {arrived:.1f} MB ({problem}); going on in {seconds} s")
            time.sleep(seconds)
    raise DownloadError(
        f"The download failed after {len(RETRY_SECONDS) + 1} tries ({problem}). Check the internet connection (in "
        f"Kaggle notebooks: Settings > Internet) and run this again; what has arrived is kept."
    )


def _receive(url: str, path: Path) -> bool:
    """Fetch `url`, or what is missing of it, to `path`. Return whether the file is complete."""
    have = path.stat().st_size if path.exists() else 0
    headers = {"User-Agent": "unet_utils"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=TIMEOUT_SECONDS
        )
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
            while chunk := response.read1(MEGABYTE):
                file.write(chunk)
                bar.update(len(chunk))
    return total is None or path.stat().st_size == total


def _download_with_client(path: Path, credentials: Credentials) -> None:
    """Download to `path` with Kaggle's own client, which knows every kind of key, retries, and
    shows a bar."""
    folder = Path(tempfile.mkdtemp(dir=path.parent))
    try:
        with _in_environment(credentials):
            # Imported here, because some versions log in while they are imported, and exit if that
            # fails.
            from kaggle.api.kaggle_api_extended import KaggleApi

            api = KaggleApi()
            api.args = [
                option for option in api.args if option != "--verbose"
            ]  # that would print the key
            api.authenticate()
            api.dataset_download_files(DATASET, path=str(folder), force=True, quiet=False)
        os.replace(folder / ARCHIVE, path)
    except ImportError as error:
        raise DownloadError(
            f"Kaggle's client cannot be imported ({error}): run `pip install kaggle six` to use {credentials.source}.",
            try_next=True,
        ) from None
    except SystemExit:  # the client does that if a key is not accepted
        raise _explain_status(401, credentials.source) from None
    except Exception as error:  # of the client, or of a library that it uses
        if isinstance(error, OSError):
            explain_full_disk(error, path.parent)
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status:
            raise _explain_status(status, credentials.source) from None
        # Only the type: the text of some errors repeats the request's header, and with it the key.
        message = f"Kaggle's client failed with {credentials.source} ({type(error).__name__})."
        raise DownloadError(message, try_next=True) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _explain_status(status: int, source: str = "") -> DownloadError:
    """Return an error that says what an HTTP status means. `source` says where the key is from,
    empty without one."""
    if status in (401, 403) and not source:
        return DownloadError(
            f"Kaggle requires an account for this download ({status}).", try_next=True
        )
    messages = {
        401: f"Kaggle does not accept {source} (401): it may be mistyped, expired or replaced by a newer one.",
        403: f"Kaggle denies access with {source} (403): open {PAGE}, signed in, and accept what it asks for.",
        404: f"Kaggle does not know {DATASET} (404): see whether {PAGE} still exists, or use the path of a .zip.",
        429: "Too many requests to Kaggle (429): wait a few minutes and run this again.",
    }
    message = messages.get(
        status, f"Kaggle answered with error {status}: wait a few minutes and run this again."
    )
    return DownloadError(message, try_next=status in (401, 403))


def find_credentials() -> Iterator[Credentials]:
    """Yield the Kaggle keys on this machine one by one, and print what is wrong with those that
    cannot be used.

    The order is that of Kaggle's client: the environment, its files, then Colab's secrets; in each,
    a token comes before a username and key
    (https://github.com/Kaggle/kaggle-cli/blob/main/docs/README.md#authentication)."""
    yield from _from_mapping(os.environ, "the environment")
    folders = [Path.home() / ".kaggle", Path.home() / ".config" / "kaggle"]
    if os.environ.get("KAGGLE_CONFIG_DIR"):
        folders.insert(0, user_path(os.environ["KAGGLE_CONFIG_DIR"]))
    for folder in folders:
        for name in ("access_token", "access_token.txt"):
            if token := _read(folder / name):
                yield Credentials(f"the token in {folder / name}", token=token)
        if text := _read(folder / "kaggle.json"):
            yield from _from_json(text, folder / "kaggle.json")
    if find_platform() == "colab":
        yield from _from_mapping(_colab_secrets(), "Colab's secrets")


def _from_mapping(values: Mapping[str, str], place: str) -> Iterator[Credentials]:
    """Yield credentials from a mapping with the names of the environment variables."""
    token, username, key = (values.get(name, "").strip() for name in CREDENTIAL_VARIABLES)
    if token:
        with contextlib.suppress(
            OSError, ValueError
        ):  # the variable may also hold the path of a file with the token
            token = Path(token).read_text().strip() or token
        yield Credentials(f"KAGGLE_API_TOKEN of {place}", token=token)
    if username and key:
        yield Credentials(f"KAGGLE_USERNAME and KAGGLE_KEY of {place}", username, key)
    elif username or key:
        print(
            f"{'KAGGLE_KEY' if username else 'KAGGLE_USERNAME'} is missing in {place}: both are needed"
        )


def _from_json(text: str, path: Path) -> Iterator[Credentials]:
    """Yield the credentials in the text of a kaggle.json."""
    try:
        values = json.loads(text)
        yield Credentials(f"the key in {path}", values["username"].strip(), values["key"].strip())
    except (ValueError, KeyError, TypeError, AttributeError):
        print(
            f'{path} cannot be used: it should read {{"username": "...", "key": "..."}}. {KEY_ADVICE}'
        )


def _read(path: Path) -> str:
    """Return the stripped text of a file, empty if it is missing or cannot be read."""
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        return ""
    except (OSError, ValueError) as error:
        print(f"{path} cannot be read ({getattr(error, 'strerror', None) or 'not a text file'})")
        return ""


def _colab_secrets() -> dict[str, str]:
    """Return Kaggle's names in Colab's secrets (key symbol, left), and print what is wrong with
    those that fail."""
    secrets = {}
    for name in CREDENTIAL_VARIABLES:
        try:
            from google.colab import userdata

            secrets[name] = userdata.get(name) or ""
        except (
            Exception
        ) as error:  # compared by name: not every version of google.colab has all the types
            kind = type(error).__name__
            if kind == "NotebookAccessError":
                print(
                    f"The secret {name} exists, but not for this notebook: switch its access on (key symbol, left)."
                )
            elif kind != "SecretNotFoundError":
                print(f"Colab's secrets cannot be read here ({kind}), only from Colab's own page.")
                break
    return secrets


@contextlib.contextmanager
def _in_environment(credentials: Credentials) -> Iterator[None]:
    """Put these credentials, and no others, where Kaggle's client looks for them; restore
    everything afterwards."""
    # VERBOSE makes the client print its requests, and with them the key.
    before = {
        name: os.environ.pop(name, None)
        for name in (*CREDENTIAL_VARIABLES, "VERBOSE", "VERBOSE_OUTPUT")
    }
    values = zip(
        CREDENTIAL_VARIABLES,
        (credentials.token, credentials.username, credentials.key),
        strict=True,
    )
    os.environ.update({name: value for name, value in values if value})
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _ask_credentials() -> Iterator[Credentials]:
    """Ask for a username and key without showing them: what is shown would be saved with the
    notebook."""
    print(f"Kaggle asks for an account. {KEY_ADVICE}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", getpass.GetPassWarning)  # it would show the key
            username = getpass.getpass(
                "Kaggle username (leave empty if you have an API token): "
            ).strip()
            key = getpass.getpass("Kaggle key or API token: ").strip()
    except (
        EOFError,
        OSError,
        NotImplementedError,
        getpass.GetPassWarning,
    ):  # a notebook run by a program, no terminal
        print("No key can be typed here: this notebook runs without a prompt.")
        return
    if key:
        yield (
            Credentials("what you typed", username, key)
            if username
            else Credentials("what you typed", token=key)
        )
