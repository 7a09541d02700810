"""Mask colours -> clusters -> named classes: weighted k-means over the exact colour histogram of all masks.

Two starts, one algorithm. Started from the official palette, each cluster keeps the name of its colour. Started by
k-means++ (Arthur and Vassilvitskii, 2007), the clusters come from the data alone and are named afterwards.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unet_utils.classes import IGNORE, PALETTE, PALETTE_COLORS, ClassScheme, get_scheme
from unet_utils.dataset import CityscapesPairs
from unet_utils.decoding import color_codes


def color_histogram(pairs: CityscapesPairs) -> tuple[np.ndarray, np.ndarray]:
    """Every distinct colour of all masks and how many pixels have it. Nothing is sampled.

    Args:
        pairs: the split whose masks are counted; all of its files are read, in as many threads as there are cores.

    Returns:
        colors `uint8 [M, 3]`, sorted, and pixel counts `int64 [M]`.
    """
    counts = torch.zeros(1 << 24, dtype=torch.int32)
    one = torch.ones((), dtype=torch.int32)
    for _, _, masks in pairs.blocks():
        codes = torch.from_numpy(color_codes(masks).ravel())
        counts.index_add_(0, codes, one.expand(len(codes)))
    reversed_codes = torch.nonzero(counts)[:, 0].int()
    red, green, blue = (reversed_codes >> shift & 255 for shift in (0, 8, 16))
    codes = (red << 16 | green << 8 | blue).sort().values  # sorted as the colours are
    red, green, blue = (codes >> shift & 255 for shift in (16, 8, 0))
    colors = torch.stack([red, green, blue], dim=1).byte().numpy()
    return colors, counts[red | green << 8 | blue << 16].long().numpy()


@dataclass(frozen=True)
class Clusters:
    """What k-means found: K clusters, those with the name of a class first, those named after a void colour last.

    Attributes:
        names: official name of each cluster; the matching is one to one, so each name occurs once.
        centers: mean colour of each cluster, `float64 [K, 3]`, 0 to 255.
        shares: share of all pixels in each cluster, `float64 [K]`.
        moved: distance of each centre from where it started, `float64 [K]`, grey levels.
        remarks: for each cluster, why its name is doubtful, or an empty string.
        inertia: sum over all pixels of the squared distance to their centre.
        iterations: rounds until no centre moved any more.
    """

    names: tuple[str, ...]
    centers: np.ndarray
    shares: np.ndarray
    moved: np.ndarray
    remarks: tuple[str, ...]
    inertia: float
    iterations: int

    def scheme(self) -> ClassScheme:
        """The `clusters` class scheme: one class a cluster; those named after a void colour are ignored."""
        classes = sum(name not in _VOID for name in self.names)
        lookup = [index if index < classes else IGNORE for index in range(256)]
        # Colours of the void clusters stay in the list: a mask's pixel must be able to fall to them.
        colors = tuple(tuple(color) for color in self.centers.round().astype(int).tolist())
        return ClassScheme("clusters", self.names[:classes], colors, tuple(lookup))

    def table(self) -> str:
        """One line a cluster: name, centre, share, how far the centre moved, remark."""
        lines = [f"{'cluster':>14} {'centre (R, G, B)':>18} {'share %':>8} {'moved':>6}"]
        for name, center, share, moved, remark in zip(
            self.names, self.centers, self.shares, self.moved, self.remarks, strict=True
        ):
            rgb = ", ".join(f"{value:3.0f}" for value in center)
            lines.append(f"{name:>14} {'(' + rgb + ')':>18} {100 * share:8.3f} {moved:6.1f}  {remark}".rstrip())
        return "\n".join(lines)


_VOID = {label.name for label in PALETTE if label.category == "void"}


def choose_scheme(name: str, root: str | Path, num_clusters: int = 20) -> ClassScheme:
    """The class scheme of that name; `clusters` is found in the training masks below `root`."""
    if name != "clusters":
        return get_scheme(name)
    return find_clusters(*color_histogram(CityscapesPairs(root, "train")), num_clusters).scheme()


def find_clusters(
    colors: np.ndarray, counts: np.ndarray, num_clusters: int | None = None, seed: int = 0, max_iterations: int = 300
) -> Clusters:
    """Weighted k-means (Lloyd, 1982), run until no centre moves.

    Args:
        colors: distinct colours, `uint8 [M, 3]`.
        counts: pixels of each colour, `int64 [M]`.
        num_clusters: None starts at the 29 official colours; a number K starts with k-means++ from the data alone.
        seed: of the k-means++ start; the same seed gives the same clusters.
        max_iterations: a bound that real data never reaches.

    Raises:
        ValueError: more clusters are asked for than there are colours, or fewer than 2, or more than 29.
    """
    x = torch.from_numpy(colors).float()
    weights = torch.from_numpy(counts).double()
    if num_clusters is None:
        start = torch.from_numpy(PALETTE_COLORS).double()
    elif 2 <= num_clusters <= min(len(PALETTE), len(colors)):
        start = _kmeans_plus_plus(x, weights, num_clusters, seed)
    else:
        raise ValueError(
            f"num_clusters is {num_clusters}: choose 2 to {min(len(PALETTE), len(colors))} "
            f"({len(PALETTE)} official colours, {len(colors)} distinct colours in these masks)"
        )
    centers, sums, iterations = _lloyd(x, weights, start, max_iterations)
    sizes = sums[:, 3].round()
    # The sum of |x - c|^2, multiplied out: the sums over each cluster are known already.
    spread = sizes * centers.square().sum(1) - 2 * (centers * sums[:, :3]).sum(1)
    inertia = ((x.double().square().sum(1) * weights).sum() + spread.sum()).item()
    centers, start = centers.numpy(), start.numpy()
    match = np.arange(len(PALETTE)) if num_clusters is None else _match_palette(centers)
    remarks = [_remark(row, named) for row, named in zip(_palette_distances(centers), match, strict=True)]
    order = sorted(range(len(match)), key=lambda k: (PALETTE[match[k]].name in _VOID, match[k]))
    return Clusters(
        names=tuple(PALETTE[match[k]].name for k in order),
        centers=centers[order],
        shares=(sizes / sizes.sum()).numpy()[order],
        moved=np.linalg.norm(centers - start, axis=1)[order],
        remarks=tuple(remarks[k] for k in order),
        inertia=inertia,
        iterations=iterations,
    )


_CHUNK = 1 << 16  # few enough colours for the processor's cache, enough to share out among its cores


def _lloyd(x: Tensor, weights: Tensor, centers: Tensor, max_iterations: int) -> tuple[Tensor, Tensor, int]:
    """Lloyd's algorithm; exact, though most colours are skipped in most rounds.

    A colour's nearest centre cannot change while that centre and the fastest other one have moved less than the margin
    between its nearest and second nearest (the triangle inequality; Hamerly, 2010): only the others are measured again.
    """
    k = len(centers)
    assigned = torch.zeros(len(x), dtype=torch.int64)
    margin = torch.zeros(len(x))
    ones = torch.ones(len(x), 1)
    columns = torch.cat([x, x.square().sum(1, keepdim=True), ones], dim=1).T.contiguous()  # x, |x|^2 and 1
    weighted = torch.cat([x, ones], dim=1) * weights[:, None]  # one product, sums and sizes
    sums = torch.zeros(k, 4, dtype=torch.float64).index_add_(0, assigned, weighted)
    iteration = 0
    while iteration < max_iterations:
        iteration += 1
        c = centers.float()
        c = torch.cat([-2 * c, torch.ones(k, 1), c.square().sum(1, keepdim=True)], dim=1)
        for chunk in torch.nonzero(margin <= 0)[:, 0].split(_CHUNK):
            own = assigned.index_select(0, chunk)
            # |x - c|^2 for all pairs in one matrix product; one row a centre, so that minima run along memory.
            squares = c @ columns.index_select(1, chunk)
            distance = squares.gather(0, own[None])[0]
            others = squares.scatter_(0, own[None], torch.inf).amin(0)  # which one it is matters only if it is nearer
            margin[chunk] = others.clamp(min=0).sqrt() - distance.clamp(min=0).sqrt()
            changed = torch.nonzero(others < distance)[:, 0]
            rows, nearest = chunk[changed], squares.index_select(1, changed).min(0).indices
            sums.index_add_(0, own[changed], weighted[rows], alpha=-1)
            sums.index_add_(0, nearest, weighted[rows])
            assigned[rows] = nearest
        # An empty cluster keeps its centre: a colour that no mask holds is not an error.
        sizes = sums[:, 3:]
        moved = torch.where(sizes > 0.5, sums[:, :3] / sizes.clamp(min=1), centers)
        steps = (moved - centers).norm(dim=1).float()
        centers = moved
        (fastest, second), (first, _) = steps.topk(2)
        if fastest < 1e-3:
            break
        others = fastest.repeat(k)  # of each centre, how far another one has moved at most
        others[first] = second
        margin -= (steps + others).index_select(0, assigned)
    return centers, sums, iteration


def _kmeans_plus_plus(x: Tensor, weights: Tensor, k: int, seed: int) -> Tensor:
    """Each next centre is a colour drawn with probability proportional to weight times squared distance."""
    rng = np.random.default_rng(seed)
    columns = x.T.contiguous()
    nearest = torch.full((len(x),), torch.inf)  # squared distances between colours are integers: exact in float32
    chosen: list[int] = []
    for _ in range(k):
        total = (weights * nearest if chosen else weights).cumsum(0)
        chosen.append(int(torch.searchsorted(total, rng.random() * total[-1].item(), right=True).clamp(max=len(x) - 1)))
        nearest = torch.minimum(nearest, (columns - columns[:, chosen[-1:]]).square_().sum(0))
    return x[chosen].double()


def _match_palette(centers: np.ndarray) -> np.ndarray:
    """Index of the palette colour that names each cluster: one to one, closest pair first."""
    free = _palette_distances(centers)
    match = np.empty(len(centers), dtype=int)
    for _ in centers:
        cluster, color = np.unravel_index(np.argmin(free), free.shape)
        match[cluster] = color
        free[cluster], free[:, color] = np.inf, np.inf
    return match


def _remark(distances: np.ndarray, named: int) -> str:
    """Why the name of a cluster is doubtful, given its distances to all palette colours; empty if it is not."""
    first, second = np.argsort(distances)[:2]
    if distances[named] > 30:  # further than any JPEG noise: pixels between two colours, along the edges of objects
        return f"{distances[named]:.0f} from that colour: a mixture found along edges"
    if first != named:
        return f"nearer to {PALETTE[first].name}, a name that another cluster has"
    return f"may be {PALETTE[second].name} as well" if distances[second] < 2 * distances[first] else ""


def _palette_distances(centers: np.ndarray) -> np.ndarray:
    return np.linalg.norm(centers[:, None] - PALETTE_COLORS[None].astype(float), axis=2)
