class Error(Exception):
    """The parent of what Colab's own functions raise."""
