"""Street scenes drawn by this package, in the format of the Kaggle pairs."""

from unet_utils.demo.pairs import demo_truth, make_demo

__all__ = ["demo_truth", "make_demo"]
