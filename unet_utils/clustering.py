"""Mask colours -> clusters -> named classes, by weighted k-means over the exact colour histogram of
all masks.

Started from the official palette, each cluster keeps the name of its colour. Started by k-means++
(Arthur and Vassilvitskii, 2007), the clusters come from the data alone and are named afterwards.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unet_utils.classes import PALETTE, PALETTE_COLORS, ClassScheme, cluster_scheme, get_scheme
from unet_utils.dataset import CityscapesPairs
from unet_utils.restoring import pack_colors


def color_histogram(pairs: CityscapesPairs) -> tuple[np.ndarray, np.ndarray]:
    """Count every distinct colour of all masks. Nothing is sampled.

    Args:
        pairs: the split whose masks are counted; all of its files are read.

    Returns:
        colors `uint8 [M, 3]`, sorted, and pixel counts `int64 [M]`.
    """
    counts = torch.zeros(1 << 24, dtype=torch.int32)
    one = torch.ones((), dtype=torch.int32)
    for _, _, masks in pairs.blocks():
        packed = torch.from_numpy(pack_colors(masks).ravel())
        counts.index_add_(0, packed, one.expand(len(packed)))
    cube = counts.view(256, 256, 256).permute(2, 1, 0)  # [red, green, blue]
    colors = cube.nonzero()
    return colors.byte().numpy(), cube[tuple(colors.T)].long().numpy()


@dataclass(frozen=True)
class Clusters:
    """The result of k-means: K clusters; those named after a void colour come last.

    Attributes:
        names: official name of each cluster, all different.
        centers: mean colour of each cluster, `float64 [K, 3]`, 0 to 255.
        shares: share of all pixels in each cluster, `float64 [K]`.
        moved: distance of each centre from its start, `float64 [K]`, grey levels.
        remarks: for each cluster, what makes its name doubtful, or an empty string. A name without
            a remark can be wrong, too.
        inertia: sum over all pixels of the squared distance to their centre.
    """

    names: tuple[str, ...]
    centers: np.ndarray
    shares: np.ndarray
    moved: np.ndarray
    remarks: tuple[str, ...]
    inertia: float

    def scheme(self) -> ClassScheme:
        """Return the class scheme `clusters`: one class per cluster; those named after a void
        colour are ignored."""
        by_name = {label.name: label.id for label in PALETTE}
        return cluster_scheme([by_name[name] for name in self.names], self.centers)


def choose_scheme(name: str, root: str | Path, num_clusters: int) -> ClassScheme:
    """Return the class scheme of that name; `clusters` is found in the training masks below
    `root`."""
    if name != "clusters":
        return get_scheme(name)
    return find_clusters(*color_histogram(CityscapesPairs(root, "train")), num_clusters).scheme()


def find_clusters(
    colors: np.ndarray,
    counts: np.ndarray,
    num_clusters: int | None = None,
    seed: int = 0,
    max_iterations: int = 300,
) -> Clusters:
    """Run weighted k-means (Lloyd, 1982, https://doi.org/10.1109/TIT.1982.1056489) until no centre
    moves.

    Args:
        colors: distinct colours, `uint8 [M, 3]`.
        counts: pixels of each colour, `int64 [M]`.
        num_clusters: None starts at the 29 official colours; a number K starts with k-means++ from
            the data alone.
        seed: of the k-means++ start; the same seed gives the same clusters.
        max_iterations: maximum number of rounds; real data converges earlier.

    Raises:
        ValueError: `num_clusters` is smaller than 2 or larger than 29 or than the number of
            colours.
    """
    most = min(len(PALETTE), len(colors))
    if num_clusters is not None and most < 2:
        raise ValueError("the masks have a single colour: there is nothing to cluster")
    if num_clusters is not None and not 2 <= num_clusters <= most:
        raise ValueError(
            f"num_clusters is {num_clusters}: choose 2 to {most} "
            f"({len(PALETTE)} official colours, {len(colors)} distinct colours in these masks)"
        )
    x = torch.from_numpy(colors).float()
    weights = torch.from_numpy(counts).double()
    if num_clusters is None:
        start = torch.from_numpy(PALETTE_COLORS).double()
    else:
        start = _kmeans_plus_plus(x, weights, num_clusters, seed)
    centers, sizes, inertia = _lloyd(x, weights, start, max_iterations)
    distances = np.linalg.norm(centers[:, None] - PALETTE_COLORS.astype(float), axis=2)
    named = np.arange(len(PALETTE)) if num_clusters is None else _match_palette(distances)
    is_void = np.array([PALETTE[index].category == "void" for index in named])
    order = np.lexsort((named, is_void))  # by void first, then in the order of the palette
    return Clusters(
        names=tuple(PALETTE[named[k]].name for k in order),
        centers=centers[order],
        shares=(sizes / sizes.sum())[order],
        moved=np.linalg.norm(centers - start.numpy(), axis=1)[order],
        remarks=tuple(_remark(distances[k], named[k]) for k in order),
        inertia=inertia,
    )


def _lloyd(
    x: Tensor, weights: Tensor, centers: Tensor, max_iterations: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """Assign each colour to its nearest centre, move each centre to the mean of its colours,
    repeat.

    Returns:
        centers `float64 [K, 3]`, pixels of each cluster `float64 [K]`, inertia.
    """
    weighted = torch.cat([x.double(), torch.ones_like(weights)[:, None]], dim=1) * weights[:, None]
    nearest = torch.empty(len(x), dtype=torch.int64)
    for _ in range(max_iterations):
        c = centers.float()
        # |x - c|^2 = |x|^2 - 2 x.c + |c|^2, and |x|^2 does not change which centre is nearest.
        # Pieces of 64 k colours fit in the processor's cache.
        squares = c.square().sum(1, keepdim=True)
        for piece, found in zip(x.split(1 << 16), nearest.split(1 << 16), strict=True):
            found[:] = torch.addmm(squares, c, piece.T, alpha=-2).min(0).indices
        sums = torch.zeros(len(c), 4, dtype=torch.float64).index_add_(0, nearest, weighted)
        sizes = sums[:, 3:]
        # A cluster without pixels keeps its centre: a palette colour that no mask shows is not an
        # error.
        moved = torch.where(sizes > 0, sums[:, :3] / sizes.clamp(min=1), centers)
        step = (moved - centers).norm(dim=1).max().item()
        centers = moved
        if step < 1e-3:
            break
    inertia = ((x - centers[nearest]).square().sum(1) * weights).sum().item()
    return centers.numpy(), sizes[:, 0].numpy(), inertia


def _kmeans_plus_plus(x: Tensor, weights: Tensor, k: int, seed: int) -> Tensor:
    """Draw each next centre with probability proportional to weight times squared distance to the
    nearest centre."""
    rng = np.random.default_rng(seed)
    nearest = torch.ones(len(x))  # for the first centre the weights alone count
    chosen: list[int] = []
    for _ in range(k):
        total = (weights * nearest).cumsum(0)
        drawn = torch.searchsorted(total, rng.random() * total[-1].item(), right=True)
        chosen.append(min(int(drawn), len(x) - 1))
        squares = (x - x[chosen[-1]]).square().sum(1)  # integers: exact in float32
        nearest = squares if len(chosen) == 1 else torch.minimum(nearest, squares)
    return x[chosen].double()


def _match_palette(distances: np.ndarray) -> np.ndarray:
    """Return the index of the palette colour that names each cluster: one to one, closest pair
    first."""
    free = distances.copy()
    match = np.empty(len(free), dtype=int)
    for _ in free:
        cluster, color = np.unravel_index(np.argmin(free), free.shape)
        match[cluster] = color
        free[cluster] = np.inf
        free[:, color] = np.inf
    return match


def _remark(distances: np.ndarray, named: int) -> str:
    """Say what makes the name of a cluster doubtful, given its distances to all palette colours."""
    first, second = np.argsort(distances)[:2]
    if distances[first] > 20:  # JPEG alone does not move a mean that far
        return "mostly mixed colours"
    if first != named:
        return f"nearer to {PALETTE[first].name}"
    if distances[second] < 2 * distances[first]:
        return f"may be {PALETTE[second].name} as well"
    return ""
