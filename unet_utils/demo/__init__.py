"""The demo set: drawn street scenes in the format of the Kaggle pairs, for use without a
download."""

from unet_utils.demo.pairs import demo_truth, make_demo

__all__ = ["demo_truth", "make_demo"]
