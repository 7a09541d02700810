"""Learn street-scene segmentation on the Kaggle Cityscapes image pairs: the functions that the
notebooks use."""

from unet_utils.classes import IGNORE, LABELS, PALETTE, ClassScheme, get_scheme
from unet_utils.clustering import Clusters, color_histogram, find_clusters
from unet_utils.config import TrainConfig, recipe
from unet_utils.dataset import CityscapesPairs, prepare
from unet_utils.evaluation import evaluate, load_trained, predict
from unet_utils.frames import Frames
from unet_utils.metrics import ConfusionMatrix, bootstrap_mean_iou
from unet_utils.model import UNet, count_parameters
from unet_utils.platform.environment import Environment, setup
from unet_utils.restoring import restore_labels
from unet_utils.sources import check_pairs, get_pairs, open_source
from unet_utils.training import fit

__all__ = [
    "IGNORE",
    "LABELS",
    "PALETTE",
    "CityscapesPairs",
    "ClassScheme",
    "Clusters",
    "ConfusionMatrix",
    "Environment",
    "Frames",
    "TrainConfig",
    "UNet",
    "bootstrap_mean_iou",
    "check_pairs",
    "color_histogram",
    "count_parameters",
    "evaluate",
    "find_clusters",
    "fit",
    "get_pairs",
    "get_scheme",
    "load_trained",
    "open_source",
    "predict",
    "prepare",
    "recipe",
    "restore_labels",
    "setup",
]
