"""The demo set: drawn street scenes in the format of the Kaggle pairs, to use without a download.

`street` draws a scene from the things in `objects` on a `canvas`; `pairs` writes the set."""

from unet_utils.demo.pairs import demo_truth, make_demo

__all__ = ["demo_truth", "make_demo"]
