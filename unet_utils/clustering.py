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

_VOID = {label.name for label in PALETTE if label.category == "void"}


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
    packed = torch.nonzero(counts)[:, 0].int()
    red, green, blue = (packed >> shift & 255 for shift in (0, 8, 16))
    order = (red << 16 | green << 8 | blue).argsort()
    colors = torch.stack([red, green, blue], dim=1)[order].byte().numpy()
    return colors, counts[packed[order]].long().numpy()


@dataclass(frozen=True)
class Clusters:
    """The result of k-means: K clusters; those named after a void colour come last.

    Attributes:
        names: official name of each cluster, all different.
        centers: mean colour of each cluster, `float64 [K, 3]`, 0 to 255.
        shares: share of all pixels in each cluster, `float64 [K]`.
        moved: distance of each centre from its start, `float64 [K]`, grey levels.
        remarks: for each cluster, why its name is doubtful, or an empty string.
        inertia: sum over all pixels of the squared distance to their centre.
        iterations: number of rounds.
    """

    names: tuple[str, ...]
    centers: np.ndarray
    shares: np.ndarray
    moved: np.ndarray
    remarks: tuple[str, ...]
    inertia: float
    iterations: int

    def scheme(self) -> ClassScheme:
        """Return the class scheme `clusters`: one class per cluster; those named after a void
        colour are ignored."""
        by_name = {label.name: label.id for label in PALETTE}
        return cluster_scheme([by_name[name] for name in self.names], self.centers)

    def table(self) -> str:
        """Return a text table, one line per cluster: name, centre, share, distance moved,
        remark."""
        lines = [f"{'cluster':>14} {'centre (R, G, B)':>18} {'share %':>8} {'moved':>6}"]
        for name, center, share, moved, remark in zip(
            self.names, self.centers, self.shares, self.moved, self.remarks, strict=True
        ):
            rgb = ", ".join(f"{value:3.0f}" for value in center)
            lines.append(
                f"{name:>14} {'(' + rgb + ')':>18} {100 * share:8.3f} {moved:6.1f}  {remark}".rstrip()
            )
        return "\n".join(lines)


def choose_scheme(name: str, root: str | Path, num_clusters: int = 20) -> ClassScheme:
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
    x, weights = torch.from_numpy(colors).float(), torch.from_numpy(counts).double()
    if num_clusters is None:
        start = torch.from_numpy(PALETTE_COLORS).double()
    else:
        start = _kmeans_plus_plus(x, weights, num_clusters, seed)
    centers, sizes, inertia, iterations = _lloyd(x, weights, start, max_iterations)
    match = np.arange(len(PALETTE)) if num_clusters is None else _match_palette(centers)
    remarks = [
        _remark(row, named) for row, named in zip(_palette_distances(centers), match, strict=True)
    ]
    order = sorted(range(len(match)), key=lambda k: (PALETTE[match[k]].name in _VOID, match[k]))
    return Clusters(
        names=tuple(PALETTE[match[k]].name for k in order),
        centers=centers[order],
        shares=(sizes / sizes.sum())[order],
        moved=np.linalg.norm(centers - start.numpy(), axis=1)[order],
        remarks=tuple(remarks[k] for k in order),
        inertia=inertia,
        iterations=iterations,
    )


def _lloyd(
    x: Tensor, weights: Tensor, centers: Tensor, max_iterations: int
) -> tuple[np.ndarray, np.ndarray, float, int]:
    """Assign each colour to its nearest centre, move each centre to the mean of its colours,
    repeat.

    Returns:
        centers `float64 [K, 3]`, pixels of each cluster `float64 [K]`, inertia, number of rounds.
    """
    weighted = (
        torch.cat([x.double(), torch.ones(len(x), 1, dtype=torch.float64)], dim=1)
        * weights[:, None]
    )
    columns = x.T.contiguous()
    nearest = torch.empty(len(x), dtype=torch.int64)
    iterations, step = 0, torch.inf
    while step >= 1e-3 and iterations < max_iterations:
        iterations += 1
        c = centers.float()
        # |x - c|^2 = |x|^2 - 2 x.c + |c|^2, and |x|^2 does not change which centre is nearest.
        # Pieces of 64 k colours fit in the processor's cache.
        for start in range(0, len(x), 1 << 16):
            piece = slice(start, start + (1 << 16))
            nearest[piece] = (
                torch.addmm(c.square().sum(1, keepdim=True), c, columns[:, piece], alpha=-2)
                .min(0)
                .indices
            )
        sums = torch.zeros(len(c), 4, dtype=torch.float64).index_add_(0, nearest, weighted)
        sizes = sums[:, 3:]
        # A cluster without pixels keeps its centre: a palette colour that no mask shows is not an
        # error.
        moved = torch.where(sizes > 0, sums[:, :3] / sizes.clamp(min=1), centers)
        step, centers = (moved - centers).norm(dim=1).max().item(), moved
    inertia = ((x - centers[nearest]).square().sum(1) * weights).sum().item()
    return centers.numpy(), sizes[:, 0].numpy(), inertia, iterations


def _kmeans_plus_plus(x: Tensor, weights: Tensor, k: int, seed: int) -> Tensor:
    """Draw each next centre with probability proportional to weight times squared distance to the
    nearest centre."""
    rng = np.random.default_rng(seed)
    columns = x.T.contiguous()
    nearest = torch.full(
        (len(x),), torch.inf
    )  # squared distances between colours are integers: exact in float32
    chosen: list[int] = []
    for _ in range(k):
        total = (weights * nearest if chosen else weights).cumsum(0)
        chosen.append(
            int(
                torch.searchsorted(total, rng.random() * total[-1].item(), right=True).clamp(
                    max=len(x) - 1
                )
            )
        )
        nearest = torch.minimum(nearest, (columns - columns[:, chosen[-1:]]).square_().sum(0))
    return x[chosen].double()


def _match_palette(centers: np.ndarray) -> np.ndarray:
    """Return the index of the palette colour that names each cluster: one to one, closest pair
    first."""
    free = _palette_distances(centers)
    match = np.empty(len(centers), dtype=int)
    for _ in centers:
        cluster, color = np.unravel_index(np.argmin(free), free.shape)
        match[cluster] = color
        free[cluster], free[:, color] = np.inf, np.inf
    return match


def _remark(distances: np.ndarray, named: int) -> str:
    """Explain why the name of a cluster is doubtful, given its distances to all palette colours;
    empty if it is not."""
    first, second = np.argsort(distances)[:2]
    if (
        distances[named] > 30
    ):  # larger than JPEG noise: pixels between two colours, at the edges of objects
        return f"{distances[named]:.0f} from that colour: a mixture found along edges"
    if first != named:
        return f"nearer to {PALETTE[first].name}, a name that another cluster has"
    return (
        f"may be {PALETTE[second].name} as well" if distances[second] < 2 * distances[first] else ""
    )


def _palette_distances(centers: np.ndarray) -> np.ndarray:
    return np.linalg.norm(centers[:, None] - PALETTE_COLORS[None].astype(float), axis=2)
