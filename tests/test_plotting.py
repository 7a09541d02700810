import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from unet_utils import IGNORE, ConfusionMatrix, find_clusters, get_scheme
from unet_utils.classes import PALETTE, PALETTE_COLORS
from unet_utils.extras.error_analysis import Confusion, error_map, most_confused, region_recall
from unet_utils.plots import data as data_plots
from unet_utils.plots import results as result_plots
from unet_utils.plots import style as plotting

SCHEME = get_scheme("cityscapes19")
NAMES = [label.name for label in PALETTE]


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    photos = rng.integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    classes = np.repeat(np.repeat(rng.integers(0, 4, (2, 4, 4), dtype=np.uint8), 16, 1), 16, 2)
    classes[:, :8] = IGNORE
    predicted = np.roll(classes, 3, axis=1) % 19
    matrix = ConfusionMatrix(19)
    matrix.update(predicted, classes)
    return photos, classes, predicted, matrix


def history(scored):
    scores = {"pixel_accuracy": 0.8, "class_accuracy": 0.5, "mean_iou": 0.4} if scored else {}
    return [{"epoch": e, "learning_rate": 1e-3 / e, "loss": 1 / e} | scores for e in (1, 2, 3)]


def single_panels(data, axes=(None,) * 7):
    _, classes, predicted, matrix = data
    counts = np.arange(1, 30)
    yield data_plots.plot_clusters(find_clusters(PALETTE_COLORS, counts), axes[0])
    yield data_plots.plot_class_shares({"a": counts / 100, "b": counts[::-1] / 100}, NAMES, axes[1])
    yield result_plots.plot_class_iou(matrix, SCHEME, axes[2])
    yield result_plots.plot_confusion(matrix, SCHEME, axes[3])
    yield result_plots.plot_confused(most_confused(matrix), SCHEME, axes[4])
    yield result_plots.plot_error_map(error_map(predicted, classes), 64, axes[5])
    yield result_plots.plot_region_recall(region_recall(predicted, classes), SCHEME, ax=axes[6])


def figures(data):
    photos, classes, predicted, _ = data
    ids = np.array([label.id for label in PALETTE], dtype=np.uint8)[classes % 29]
    clusters = find_clusters(PALETTE_COLORS, np.arange(1, 30))
    half = (slice(0, 32), slice(32, 64))
    yield data_plots.plot_pairs(photos, photos, ["1", "2"])
    yield data_plots.plot_pixels({"one": photos[0, :4, :16], "two": photos[1, :4, :16]})
    yield data_plots.plot_labels(photos, classes, SCHEME)
    yield data_plots.plot_color_space(PALETTE_COLORS, np.arange(1, 30), clusters)
    yield data_plots.plot_label_methods(photos[0], photos[0], ids[0], np.roll(ids[0], 2), half, "train/1.jpg")
    yield result_plots.plot_history(history(True))
    yield result_plots.plot_history(history(False))
    yield result_plots.plot_predictions(photos, classes, predicted, SCHEME)
    yield result_plots.plot_confidence(photos, classes, predicted, np.ones(classes.shape), 19)
    yield from single_panels(data)


def test_every_figure_has_a_title_draws_and_leaves_nothing_open(data, tmp_path):
    number = 0
    for number, figure in enumerate(figures(data), 1):
        assert isinstance(figure, Figure)
        assert figure.get_suptitle()
        figure.savefig(tmp_path / f"{number}.png", dpi=50)
        assert (tmp_path / f"{number}.png").stat().st_size > 1000
    assert number == 16
    assert plt.get_fignums() == []


def test_nothing_is_cut_off_and_text_is_legible_on_a_phone(data):
    for figure in figures(data):
        figure.draw_without_rendering()
        width, height = figure.get_size_inches()
        box = figure.get_tightbbox()
        assert box.x0 > -0.02, figure.get_suptitle()
        assert box.y0 > -0.02, figure.get_suptitle()
        assert box.x1 < width + 0.02, figure.get_suptitle()
        assert box.y1 < height + 0.02, figure.get_suptitle()
        for text in figure.findobj(Text):  # in pixels of a screen that is 390 wide
            assert text.get_fontsize() / 72 * 390 / width > 5.5 or not text.get_text(), text


def test_a_single_panel_is_drawn_where_it_is_wanted(data):
    whole = Figure(figsize=(8, 40), layout="constrained")
    axes = whole.subplots(7)
    assert list(single_panels(data, axes)) == [whole] * 7
    assert all(ax.get_title(loc="left") and ax.has_data() for ax in axes)
    assert whole.get_suptitle() == ""
    assert plt.get_fignums() == []


def test_the_legend_names_the_classes_that_occur_and_no_others(data):
    photos, classes, _, _ = data
    figure = data_plots.plot_labels(photos, classes, SCHEME)
    named = {text.get_text() for text in figure.legends[0].get_texts()}
    assert named == {"0 road", "1 sidewalk", "2 building", "3 wall", "void (ignored)"}


def test_a_class_is_numbered_inside_its_thickest_part():
    classes = np.zeros((256, 256), dtype=np.uint8)
    classes[:, :20] = IGNORE
    classes[100:140, 50:90] = 7
    classes[200:203] = 13  # too thin to hold a number
    _, axes = plotting.new_figure(1, 1, 4, 4, "numbers")
    plotting.class_map(axes[0, 0], classes, SCHEME, "map")
    numbers = {int(text.get_text()): text.xy for text in axes[0, 0].texts}
    assert set(numbers) == {0, 7}
    assert numbers[7][0] == pytest.approx(70, abs=1.5)
    assert numbers[7][1] == pytest.approx(120, abs=1.5)
    assert classes[int(numbers[0][1]), int(numbers[0][0])] == 0


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def test_iou_bars_tell_share_and_number_of_pixels_and_what_is_absent():
    matrix = ConfusionMatrix(19)
    matrix.update(np.repeat([0, 0, 1], [1_500_000, 300, 500_000]), np.repeat([0, 1, 1], [1_500_000, 300, 500_000]))
    shown = texts(result_plots.plot_class_iou(matrix, SCHEME))
    assert "75 %" in shown
    assert "1.5 M" in shown
    assert "500.3 k" in shown
    assert shown.count("absent from the truth") == 17


def test_confused_pairs_say_what_was_called_what_and_how_many():
    pairs = [Confusion(3, 2, 41_000, 0.375), Confusion(17, 13, 12, 0.25)]
    figure = result_plots.plot_confused(pairs, SCHEME)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["motorcycle called car", "wall called building"]  # from the bottom up
    assert [bar.get_width() for bar in figure.axes[0].patches] == [25, 37.5]
    assert texts(figure) == ["25 %, 12", "38 %, 41.0 k"]


def test_regions_are_grouped_by_powers_of_four_and_few_are_not_shown():
    truth = np.full((1, 64, 64), IGNORE, dtype=np.uint8)
    for i in range(5):
        truth[0, 2 * i, :3] = 5  # five regions of 3 pixels
        truth[0, 2 * i, 10:14] = 5  # five of 4
    truth[0, 20:60, :40] = 0  # a single one of 1600
    predicted = np.where(truth == 0, 0, 5).astype(np.uint8)
    predicted[0, :, 12:14] = 9  # half of the regions of 4
    figure = result_plots.plot_region_recall(region_recall(predicted, truth), SCHEME)
    ax = figure.axes[0]
    columns = [label.get_text() for label in ax.get_xticklabels()]
    assert columns[:2] == ["1\nto 3\n(5)", "4\nto 15\n(5)"]
    assert columns[-1] == "1,024\nto 4,095\n(1)"
    rows = [label.get_text() for label in ax.get_yticklabels()]
    shown = {(rows[round(text.get_position()[1])], round(text.get_position()[0])): text.get_text() for text in ax.texts}
    assert shown == {("all classes", 0): "100", ("all classes", 1): "50", ("pole", 0): "100", ("pole", 1): "50"}


@pytest.mark.filterwarnings("error::UserWarning", "error::RuntimeWarning")
def test_a_model_without_errors_has_figures_too(data, tmp_path):
    _, classes, _, _ = data
    matrix = ConfusionMatrix(19)
    matrix.update(classes, classes)
    assert texts(result_plots.plot_confused(most_confused(matrix), SCHEME)) == []
    errors = result_plots.plot_error_map(error_map(classes, classes), 64)
    errors.savefig(tmp_path / "errors.png")
    assert errors.axes[0].images[0].get_clim() == (0, 1)


def test_overlay_keeps_void_and_marks_borders(data):
    photos, classes, _, _ = data
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
    places = data_plots.telling_places(first, second, count=2)
    assert places == [(1, slice(64, 128), slice(0, 64)), (2, slice(0, 64), slice(64, 128))]
