"""The demo set: drawn street scenes in the format of the Kaggle pairs, to use without a download.

`street` draws a scene from the things in `objects` on a `canvas`; `pairs` writes the set."""
