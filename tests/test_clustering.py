import numpy as np
import pytest
from sklearn.cluster import KMeans

from unet_utils import IGNORE, PALETTE, CityscapesPairs, color_histogram, find_clusters
from unet_utils.classes import PALETTE_COLORS
from unet_utils.clustering import choose_scheme
from unet_utils.dataset import read_pair


@pytest.fixture(scope="module")
def histogram(demo):
    return color_histogram(CityscapesPairs(demo, "train"))


def test_the_histogram_is_exact(demo, histogram):
    pairs = CityscapesPairs(demo, "train")
    pixels = np.concatenate([read_pair(path)[1].reshape(-1, 3) for path in pairs.paths])
    colors, counts = np.unique(pixels, axis=0, return_counts=True)
    assert (histogram[0] == colors).all()
    assert (histogram[1] == counts).all()


@pytest.mark.parametrize("num_clusters", [None, 12])
def test_it_agrees_with_scikit_learn(histogram, num_clusters):
    colors, counts = histogram
    # One round of ours gives scikit-learn its start: the draws of k-means++ are our own.
    start = find_clusters(colors, counts, num_clusters, max_iterations=1)
    ours = find_clusters(colors, counts, num_clusters)
    theirs = KMeans(len(start.centers), init=start.centers, n_init=1, tol=0, max_iter=300)
    theirs.fit(colors.astype(float), sample_weight=counts)
    nearest = np.linalg.norm(ours.centers[:, None] - theirs.cluster_centers_[None], axis=2)
    used = ours.shares > 0
    assert nearest[used].min(1).max() < 0.5
    assert ours.inertia == pytest.approx(theirs.inertia_, rel=1e-3)


def test_palette_clusters_keep_their_names(histogram):
    clusters = find_clusters(*histogram)
    assert sorted(clusters.names) == sorted(label.name for label in PALETTE)
    road = clusters.names.index("road")
    assert clusters.moved[road] < 5
    assert clusters.shares.sum() == pytest.approx(1)
    assert clusters.shares[road] > 0.2


def test_a_cluster_whose_colour_no_mask_holds_stays_where_it_is():
    colors, counts = PALETTE_COLORS[:2], np.array([3, 5])
    clusters = find_clusters(colors, counts)
    assert (clusters.moved == 0).all()
    assert np.count_nonzero(clusters.shares) == 2


def test_clusters_from_the_data_alone_repeat_and_get_different_names(histogram):
    first, second = (find_clusters(*histogram, 12, seed=3) for _ in range(2))
    assert (first.centers == second.centers).all()
    assert len(set(first.names)) == 12


def test_doubtful_names_are_said_aloud():
    colors = np.array([[128, 64, 128], [70, 70, 70], [0, 0, 78], [64, 35, 75]], dtype=np.uint8)
    clusters = find_clusters(colors, np.array([100, 100, 100, 100]), 4)
    remarks = dict(
        zip(clusters.centers.round().astype(int)[:, 0].tolist(), clusters.remarks, strict=True)
    )
    assert remarks[128] == remarks[70] == ""
    assert remarks[0] == "may be caravan as well"  # nearly halfway between truck and caravan
    assert "mixed colours" in remarks[64]


def test_a_cluster_at_the_colour_of_another_class_says_which():
    persons = np.array([[220, 20, 60], [214, 26, 66]], dtype=np.uint8)
    clusters = find_clusters(persons, np.array([100, 100]), 2)
    remarks = dict(zip(clusters.names, clusters.remarks, strict=True))
    assert remarks.pop("person") == ""
    assert list(remarks.values()) == ["nearer to person"]


def test_void_clusters_are_ignored_by_the_scheme(demo, histogram):
    clusters = find_clusters(*histogram, 12)
    scheme = choose_scheme("clusters", demo, 12)
    assert scheme == clusters.scheme()
    void = sum(name in ("unlabeled", "dynamic", "ground") for name in clusters.names)
    assert scheme.num_classes == 12 - void
    ids = np.array(
        [label.id for name in clusters.names for label in PALETTE if label.name == name],
        dtype=np.uint8,
    )
    assert scheme.encode(ids).tolist() == [*range(12 - void)] + [IGNORE] * void
    assert scheme.cluster_ids == tuple(ids.tolist())


def test_a_single_colour_cannot_be_clustered():
    with pytest.raises(ValueError, match="single colour"):
        find_clusters(PALETTE_COLORS[:1], np.array([5]), 2)


@pytest.mark.parametrize("num_clusters", [1, 30])
def test_impossible_numbers_of_clusters_are_refused(histogram, num_clusters):
    with pytest.raises(ValueError, match="choose 2 to 29"):
        find_clusters(*histogram, num_clusters)
