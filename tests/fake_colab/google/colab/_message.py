"""Messages to the browser, and what comes instead of an answer."""

import os

from google.colab import errors


class MessageError(errors.Error):
    """The browser answered with an error."""


def check_page():
    if os.environ.get("FAKE_COLAB_NO_PAGE"):
        raise MessageError("Error: the page cannot be reached")
