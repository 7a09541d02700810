"""Secrets, with the kinds of failure that Colab has."""

import json
import os

from google.colab import errors
from google.colab._message import check_page


class NotebookAccessError(Exception):
    """The secret exists, but access is switched off for this notebook."""

    def __init__(self, key):
        super().__init__(f"Notebook does not have access to secret {key}")


class SecretNotFoundError(errors.Error):
    """No such secret."""

    def __init__(self, key):
        super().__init__(f"Secret {key} does not exist.")


class TimeoutException(errors.Error):
    """Nobody answered: the notebook does not run in Colab's own page."""

    def __init__(self, key):
        super().__init__(
            f"Requesting secret {key} timed out. Secrets can only be fetched when running from the "
            "Colab UI."
        )


def get(key):
    if " " in key:
        raise ValueError("Secret names cannot contain spaces.")
    check_page()
    if os.environ.get("FAKE_COLAB_NO_ANSWER"):
        raise TimeoutException(key)
    secrets = json.loads(os.environ.get("FAKE_COLAB_SECRETS") or "{}")
    if key not in secrets:
        raise SecretNotFoundError(key)
    if secrets[key] is None:
        raise NotebookAccessError(key)
    return secrets[key]
