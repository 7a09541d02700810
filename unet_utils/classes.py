"""The Cityscapes label table, and the class schemes made from it.

A number in an array is one of two things. A *label id* is the official Cityscapes id of a pixel, 0
to 33: masks are restored to label ids, and these are cached. A *class index* is what a network
predicts. A `ClassScheme` turns label ids into class indices. The table is the one of the Cityscapes
paper (https://arxiv.org/abs/1604.01685) and of the file `labels.py` in
https://github.com/mcordts/cityscapesScripts."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np

IGNORE = 255
"""Class index of pixels that the loss and the metrics ignore."""


class Label(NamedTuple):
    """One row of the Cityscapes label table."""

    name: str
    id: int
    train_id: int
    category: str
    color: tuple[int, ...]


_V = IGNORE
LABELS: tuple[Label, ...] = (
    Label("unlabeled", 0, _V, "void", (0, 0, 0)),
    Label("ego vehicle", 1, _V, "void", (0, 0, 0)),
    Label("rectification border", 2, _V, "void", (0, 0, 0)),
    Label("out of roi", 3, _V, "void", (0, 0, 0)),
    Label("static", 4, _V, "void", (0, 0, 0)),
    Label("dynamic", 5, _V, "void", (111, 74, 0)),
    Label("ground", 6, _V, "void", (81, 0, 81)),
    Label("road", 7, 0, "flat", (128, 64, 128)),
    Label("sidewalk", 8, 1, "flat", (244, 35, 232)),
    Label("parking", 9, _V, "flat", (250, 170, 160)),
    Label("rail track", 10, _V, "flat", (230, 150, 140)),
    Label("building", 11, 2, "construction", (70, 70, 70)),
    Label("wall", 12, 3, "construction", (102, 102, 156)),
    Label("fence", 13, 4, "construction", (190, 153, 153)),
    Label("guard rail", 14, _V, "construction", (180, 165, 180)),
    Label("bridge", 15, _V, "construction", (150, 100, 100)),
    Label("tunnel", 16, _V, "construction", (150, 120, 90)),
    Label("pole", 17, 5, "object", (153, 153, 153)),
    Label("polegroup", 18, _V, "object", (153, 153, 153)),
    Label("traffic light", 19, 6, "object", (250, 170, 30)),
    Label("traffic sign", 20, 7, "object", (220, 220, 0)),
    Label("vegetation", 21, 8, "nature", (107, 142, 35)),
    Label("terrain", 22, 9, "nature", (152, 251, 152)),
    Label("sky", 23, 10, "sky", (70, 130, 180)),
    Label("person", 24, 11, "human", (220, 20, 60)),
    Label("rider", 25, 12, "human", (255, 0, 0)),
    Label("car", 26, 13, "vehicle", (0, 0, 142)),
    Label("truck", 27, 14, "vehicle", (0, 0, 70)),
    Label("bus", 28, 15, "vehicle", (0, 60, 100)),
    Label("caravan", 29, _V, "vehicle", (0, 0, 90)),
    Label("trailer", 30, _V, "vehicle", (0, 0, 110)),
    Label("train", 31, 16, "vehicle", (0, 80, 100)),
    Label("motorcycle", 32, 17, "vehicle", (0, 0, 230)),
    Label("bicycle", 33, 18, "vehicle", (119, 11, 32)),
)

# Some labels share a colour (static and unlabeled; pole and polegroup): the first id stands for all
# of them.
_BY_COLOR = {label.color: label for label in reversed(LABELS)}
PALETTE: tuple[Label, ...] = tuple(sorted(_BY_COLOR.values(), key=lambda label: label.id))
"""The 29 labels with different colours: what a colour mask can tell apart."""
PALETTE_IDS = np.array([label.id for label in PALETTE], dtype=np.uint8)
PALETTE_COLORS = np.array([label.color for label in PALETTE], dtype=np.uint8)


@dataclass(frozen=True)
class ClassScheme:
    """The classes that a network learns, and how label ids become class indices.

    Attributes:
        name: `cityscapes19`, `categories7`, `cityscapes30`, `clusters`, or `own` for one's own.
        names: class names, one per class index.
        colors: RGB colour of each class, 0 to 255.
        lookup: 256 class indices; entry `i` is the class of label id `i`, `IGNORE` for void.
        cluster_colors: centre of each colour cluster, RGB, 0 to 255; only in the scheme `clusters`.
        cluster_ids: official label id of the colour that each cluster is named after.
    """

    name: str
    names: tuple[str, ...]
    colors: tuple[tuple[int, ...], ...]
    lookup: tuple[int, ...]
    cluster_colors: tuple[tuple[int, ...], ...] = ()
    cluster_ids: tuple[int, ...] = ()

    @property
    def num_classes(self) -> int:
        """Number of classes, void not counted."""
        return len(self.names)

    def encode(self, label_ids: np.ndarray) -> np.ndarray:
        """Turn label ids `uint8 [...]` into class indices `uint8 [...]`."""
        return np.array(self.lookup, dtype=np.uint8)[label_ids]

    def colorize(self, classes: np.ndarray) -> np.ndarray:
        """Return the colours `uint8 [..., 3]` of class indices `uint8 [...]`; ignored pixels are
        black."""
        table = np.zeros((256, 3), dtype=np.uint8)
        table[: self.num_classes] = self.colors
        return table[classes]

    def overlay(self, photo: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """Return a photo `uint8 [H, W, 3]` and the colours of its classes `uint8 [H, W]`, half of
        each, with white borders between classes; void shows the photo."""
        strength = np.where(classes[..., None] == IGNORE, 0, 0.5)
        blended = photo * (1 - strength) + self.colorize(classes) * strength
        border = np.zeros(classes.shape, dtype=bool)  # the class changes to the right or below
        border[:, :-1] |= classes[:, :-1] != classes[:, 1:]
        border[:-1] |= classes[:-1] != classes[1:]
        blended[border] = 255
        return blended.round().astype(np.uint8)

    def to_dict(self) -> dict:
        """Return the fields for a checkpoint: strings, numbers, and tuples of them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict) -> "ClassScheme":
        """Return the scheme that `to_dict` described."""
        return cls(**fields)


def cluster_scheme(label_ids: Sequence[int], centers: np.ndarray) -> ClassScheme:
    """Return the scheme `clusters`: one class per colour cluster; those named after a void colour
    are ignored.

    Args:
        label_ids: official label id of the palette colour that each cluster is named after, all
            different.
        centers: mean colour of each cluster, `float [K, 3]`, 0 to 255.
    """
    named = {label.id: label.name for label in PALETTE if label.category != "void"}
    colors = tuple(tuple(color) for color in centers.round().astype(int).tolist())
    kept = [pair for pair in zip(label_ids, colors, strict=True) if pair[0] in named]
    return ClassScheme(
        name="clusters",
        names=tuple(named[label_id] for label_id, _ in kept),
        colors=tuple(color for _, color in kept),
        lookup=_lookup({label_id: index for index, (label_id, _) in enumerate(kept)}),
        cluster_colors=colors,
        cluster_ids=tuple(int(label_id) for label_id in label_ids),
    )


def _lookup(class_of_id: dict[int, int]) -> tuple[int, ...]:
    return tuple(class_of_id.get(label_id, IGNORE) for label_id in range(256))


def _official_scheme(scheme: str, labels: Sequence[Label], column: str) -> ClassScheme:
    """One class for each value in a column of the label table, in the colour of its first label."""
    name_of_id = {label.id: getattr(label, column) for label in labels}
    names = tuple(dict.fromkeys(name_of_id.values()))
    color_of_name = {getattr(label, column): label.color for label in reversed(labels)}
    lookup = _lookup({label_id: names.index(name) for label_id, name in name_of_id.items()})
    return ClassScheme(scheme, names, tuple(color_of_name[name] for name in names), lookup)


_EVALUATED = [label for label in LABELS if label.train_id != IGNORE]
SCHEMES = {
    "cityscapes19": _official_scheme("cityscapes19", _EVALUATED, "name"),
    # As in the official evaluation of categories, only labels that are evaluated count.
    "categories7": _official_scheme("categories7", _EVALUATED, "category"),
    # All annotated labels. Static and polegroup share a colour with another label, so labels
    # restored from colour masks never contain them, and reports show them as absent.
    "cityscapes30": _official_scheme("cityscapes30", LABELS[4:], "name"),
}
"""The class schemes that are known by name."""


def get_scheme(scheme: str | ClassScheme) -> ClassScheme:
    """Return the class scheme of that name; a `ClassScheme` is returned as it is.

    Raises:
        ValueError: unknown name. `clusters` is not known by name: `clustering.find_clusters` finds
            it in the data.
    """
    if isinstance(scheme, ClassScheme):
        return scheme
    if scheme not in SCHEMES:
        hint = " Build it with unet_utils.find_clusters(...)." if scheme == "clusters" else ""
        raise ValueError(
            f"unknown class scheme {scheme!r}: choose one of {', '.join(SCHEMES)} or "
            f"clusters.{hint}"
        )
    return SCHEMES[scheme]
