"""Runs when Python starts with this folder on its path: Colab's kernel, too, has imported
google.colab by then."""

import google.colab  # noqa: F401
