import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure

from unet_utils import IGNORE, ConfusionMatrix, find_clusters, get_scheme, plotting
from unet_utils.classes import PALETTE, PALETTE_COLORS

SCHEME = get_scheme("cityscapes19")


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    photos = rng.integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    classes = np.repeat(np.repeat(rng.integers(0, 4, (2, 4, 4), dtype=np.uint8), 16, 1), 16, 2)
    classes[:, :8] = IGNORE
    matrix = ConfusionMatrix(19)
    matrix.update(np.roll(classes, 3, axis=1) % 19, classes)
    return photos, classes, matrix


def history(scored):
    scores = {"pixel_accuracy": 0.8, "class_accuracy": 0.5, "mean_iou": 0.4} if scored else {}
    return [{"epoch": e, "learning_rate": 1e-3 / e, "loss": 1 / e} | scores for e in (1, 2, 3)]


def figures(data):
    photos, classes, matrix = data
    ids = np.array([label.id for label in PALETTE], dtype=np.uint8)[classes % 29]
    counts = np.arange(1, 30)
    clusters = find_clusters(PALETTE_COLORS, counts)
    half = (slice(0, 32), slice(32, 64))
    yield plotting.plot_pairs(photos, photos, ["1", "2"])
    yield plotting.plot_pixels({"one": photos[0, :4, :16], "two": photos[1, :4, :16]})
    yield plotting.plot_labels(photos, classes, SCHEME)
    yield plotting.plot_color_space(PALETTE_COLORS, counts, clusters)
    yield plotting.plot_clusters(clusters)
    yield plotting.plot_class_shares({"a": counts / 100, "b": counts[::-1] / 100}, [label.name for label in PALETTE])
    yield plotting.plot_label_methods(photos[0], photos[0], ids[0], np.roll(ids[0], 2), half, "train/1.jpg")
    yield plotting.plot_history(history(True))
    yield plotting.plot_history(history(False))
    yield plotting.plot_predictions(photos, classes, np.roll(classes, 2), SCHEME)
    yield plotting.plot_class_iou(matrix, SCHEME)
    yield plotting.plot_confusion(matrix, SCHEME)


def test_every_figure_has_a_title_draws_and_leaves_nothing_open(data, tmp_path):
    number = 0
    for number, figure in enumerate(figures(data), 1):
        assert isinstance(figure, Figure)
        assert figure.get_suptitle()
        figure.savefig(tmp_path / f"{number}.png", dpi=50)
        assert (tmp_path / f"{number}.png").stat().st_size > 1000
    assert number == 12
    assert plt.get_fignums() == []


def test_the_legend_names_the_classes_that_occur_and_no_others(data):
    photos, classes, _ = data
    figure = plotting.plot_labels(photos, classes, SCHEME)
    named = {text.get_text() for text in figure.legends[0].get_texts()}
    assert named == {"road", "sidewalk", "building", "wall", "void (ignored)"}


def test_overlay_keeps_void_and_marks_borders(data):
    photos, classes, _ = data
    blended = plotting.overlay(photos[0], classes[0], SCHEME)
    edge = plotting.borders(classes[0])
    void = (classes[0] == IGNORE) & ~edge
    assert (blended[void] == photos[0][void]).all()
    assert (blended[edge] == 255).all()
    inside = ~edge & ~void
    mixed = 0.5 * photos[0][inside] + 0.5 * SCHEME.colorize(classes[0])[inside]
    assert np.abs(blended[inside] - mixed).max() <= 0.5


def test_telling_places_are_where_the_labels_differ():
    first = np.zeros((3, 128, 128), dtype=np.uint8)
    second = first.copy()
    second[1, 70:100, 10:40] = 1
    second[2, 10:20, 70:80] = 1
    places = plotting.telling_places(first, second, count=2)
    assert places == [(1, slice(64, 128), slice(0, 64)), (2, slice(0, 64), slice(64, 128))]
