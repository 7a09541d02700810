"""The Cityscapes label table, and the class schemes made from it.

One number means one thing everywhere in this package: a *label id* is the official Cityscapes id (0 to 33).
Masks are decoded to label ids, label ids are cached, and a `ClassScheme` turns them into the class indices
that a network learns. The table is the one of the Cityscapes paper (https://arxiv.org/abs/1604.01685) and of
the `labels.py` that the data set's authors publish.
"""

from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np

IGNORE = 255
"""Class index of pixels that neither the loss nor the metrics look at."""


class Label(NamedTuple):
    """One row of the Cityscapes label table."""

    name: str
    id: int
    train_id: int
    category: str
    color: tuple[int, int, int]


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

# Colour cannot tell static from unlabeled, or polegroup from pole: the first id with a colour stands for all of them.
_BY_COLOR = {label.color: label for label in reversed(LABELS)}
PALETTE: tuple[Label, ...] = tuple(sorted(_BY_COLOR.values(), key=lambda label: label.id))
"""The 29 labels whose colours differ: all that a colour mask can say."""
PALETTE_IDS = np.array([label.id for label in PALETTE], dtype=np.uint8)
PALETTE_COLORS = np.array([label.color for label in PALETTE], dtype=np.uint8)


@dataclass(frozen=True)
class ClassScheme:
    """Which classes a network learns, and how label codes become class indices.

    Attributes:
        name: `cityscapes19`, `categories7`, `cityscapes30` or `clusters`.
        names: class names, one per class index.
        colors: RGB colour of each class, 0 to 255. In `clusters`, the colours of the void clusters follow.
        lookup: 256 class indices; entry `i` is the class of label code `i`, `IGNORE` for void. The codes are
            official label ids, except in `clusters`, where they are the cluster numbers themselves.
    """

    name: str
    names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    lookup: tuple[int, ...]

    @property
    def num_classes(self) -> int:
        return len(self.names)

    def encode(self, codes: np.ndarray) -> np.ndarray:
        """Turns label codes `uint8 [...]` into class indices `uint8 [...]`."""
        return np.array(self.lookup, dtype=np.uint8)[codes]

    def colorize(self, classes: np.ndarray) -> np.ndarray:
        """Paints class indices `uint8 [...]` in the classes' colours, `uint8 [..., 3]`; ignored pixels are black."""
        table = np.zeros((256, 3), dtype=np.uint8)
        table[: self.num_classes] = self.colors[: self.num_classes]
        return table[classes]

    def to_dict(self) -> dict:
        """Plain lists and strings, for checkpoints and JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict) -> "ClassScheme":
        """The inverse of `to_dict`."""
        colors = tuple(tuple(int(v) for v in color) for color in fields["colors"])
        return cls(fields["name"], tuple(fields["names"]), colors, tuple(int(v) for v in fields["lookup"]))


def _lookup(class_of_id: dict[int, int]) -> tuple[int, ...]:
    return tuple(class_of_id.get(code, IGNORE) for code in range(256))


def _cityscapes19() -> ClassScheme:
    kept = sorted((label for label in LABELS if label.train_id != IGNORE), key=lambda label: label.train_id)
    lookup = _lookup({label.id: label.train_id for label in kept})
    return ClassScheme("cityscapes19", tuple(k.name for k in kept), tuple(k.color for k in kept), lookup)


def _categories7() -> ClassScheme:
    # As in the official evaluation of categories: made of the 19 evaluated classes, everything else ignored.
    evaluated = [label for label in LABELS if label.train_id != IGNORE]
    names = tuple(dict.fromkeys(label.category for label in evaluated))
    first = {name: next(label.color for label in evaluated if label.category == name) for name in names}
    lookup = _lookup({label.id: names.index(label.category) for label in evaluated})
    return ClassScheme("categories7", names, tuple(first.values()), lookup)


def _cityscapes30() -> ClassScheme:
    # All 30 annotated classes, in the order of their ids. Two of them, static and polegroup, share a colour with
    # another label, so they never occur in labels recovered from colour masks and are reported as absent.
    kept = [label for label in LABELS if label.id >= 4]
    lookup = _lookup({label.id: index for index, label in enumerate(kept)})
    return ClassScheme("cityscapes30", tuple(k.name for k in kept), tuple(k.color for k in kept), lookup)


_SCHEMES = {"cityscapes19": _cityscapes19, "categories7": _categories7, "cityscapes30": _cityscapes30}


def get_scheme(scheme: str | ClassScheme) -> ClassScheme:
    """Returns the class scheme of that name; a `ClassScheme` is returned as it is.

    Raises:
        ValueError: the name is not one of the schemes. `clusters` is not known by name alone: it is found in
            the data by `clustering.find_clusters`.
    """
    if isinstance(scheme, ClassScheme):
        return scheme
    if scheme not in _SCHEMES:
        hint = " Build it with unet_utils.find_clusters(...)." if scheme == "clusters" else ""
        raise ValueError(f"unknown class scheme {scheme!r}: choose one of {', '.join(_SCHEMES)} or clusters.{hint}")
    return _SCHEMES[scheme]()
