"""All figures: they say what they show, fit a phone, and survive data without a labelled pixel."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.text import Text

from unet_utils import IGNORE, ConfusionMatrix, TrainConfig, UNet, find_clusters, get_scheme
from unet_utils.classes import PALETTE, PALETTE_COLORS
from unet_utils.frames import Frames
from unet_utils.plots import data as data_plots
from unet_utils.plots import live, style
from unet_utils.plots import results as result_plots
from unet_utils.plots import robustness as robustness_plots
from unet_utils.plots import strip as strip_plots
from unet_utils.plots import training as training_plots
from unet_utils.schedule import Schedule
from unet_utils.use.calibration import CalibrationCurve

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


def history(scored, epochs=3):
    scores = {"pixel_accuracy": 0.8, "class_accuracy": 0.5, "mean_iou": 0.4} if scored else {}
    return [
        {"epoch": e, "learning_rate": 1e-3 / e, "loss": 1 / e, "seconds": 12.3} | scores
        for e in range(1, epochs + 1)
    ]


REGIONS = (np.array([5, 5, 0], dtype=np.uint8), np.array([3, 4, 1600]), np.array([1.0, 0.5, 1.0]))
NAN = float("nan")
CURVE = CalibrationCurve(*torch.tensor([[NAN, 0.5, 0.9], [NAN, 0.4, 0.8], [0, 0.25, 0.75]]))
NO_REGIONS = (np.empty(0, dtype=np.uint8), np.empty(0, dtype=np.int64), np.empty(0))


def draw_all(data):
    photos, classes, predicted, matrix = data
    ids = np.array([label.id for label in PALETTE], dtype=np.uint8)[classes % 29]
    counts = np.arange(1, 30)
    half = (slice(0, 32), slice(32, 64))
    one = {"prediction": predicted}
    yield data_plots.plot_pairs(photos, photos, ["1", "2"])
    yield data_plots.plot_pixels(
        {"one": photos[0, :4, :16], "two": photos[1, :4, :16]}, ["car"] * 16
    )
    yield data_plots.plot_labels(photos, classes, SCHEME)
    clusters = find_clusters(PALETTE_COLORS, counts)
    yield data_plots.plot_clusters(PALETTE_COLORS, counts, clusters, ["tunnel"])
    yield data_plots.plot_label_methods(
        photos[0], photos[0], ids[0], np.roll(ids[0], 2), half, "train/1.jpg"
    )
    shares = {"a": counts / 100, "b": counts[::-1] / 100}
    yield data_plots.plot_class_shares(shares, NAMES, ["tunnel"])
    yield training_plots.plot_history(history(True))
    yield training_plots.plot_history(history(False, 1))
    with torch.no_grad():
        maps = UNet(3, 19, 2).eval().features(torch.rand(1, 3, 64, 64))
    yield training_plots.plot_u(photos[0], *maps, classes[0], SCHEME)
    yield result_plots.plot_predictions(photos, classes, one, SCHEME)
    yield result_plots.plot_predictions(photos[:1], classes[:1], {"a": predicted[:1]}, SCHEME)
    yield result_plots.plot_predictions(
        photos, classes, {"before": predicted, "after": classes}, SCHEME, all_classes=True
    )
    yield result_plots.plot_photo(photos[0], classes[0], SCHEME)
    yield result_plots.plot_photo(photos[0, :, :9], classes[0, :, :9], SCHEME)
    grid = np.array([[0, 1, 2, IGNORE]] * 4)
    small = ConfusionMatrix(3)
    small.update(grid, grid)
    yield result_plots.plot_label_grids(grid, grid, small, ["road", "car", "sky"])
    yield result_plots.plot_confidence(photos, classes, predicted, np.ones(classes.shape), 19)
    yield result_plots.plot_class_iou(matrix, SCHEME)
    yield result_plots.plot_confusion(matrix, SCHEME)
    yield result_plots.plot_error_map(np.random.default_rng(0).random((8, 8)))
    yield result_plots.plot_region_recall(REGIONS, SCHEME)
    scores = [("unchanged", 0, 0.9, 0.5), ("fog", 1, 0.8, 0.45), ("fog", 3, 0.4, 0.12345)]
    examples = dict.fromkeys(("unchanged", "fog"), (photos[0], predicted[0]))
    yield robustness_plots.plot_robustness(scores, examples, classes[0], SCHEME)
    yield robustness_plots.plot_calibration({"as trained": CURVE, "temperature 1.25": CURVE})
    names = ("all skips", "without the finest", "without two", "without three", "without any")
    without = dict.fromkeys(names, predicted[0])
    yield robustness_plots.plot_without_skips(photos[0], classes[0], without, SCHEME)
    curves = {"mine": ([1, 2], [2.5, 1.5]), "other": ([1, 2], [2.5, NAN])}
    tries = {"mine": predicted, "other": classes}
    yield strip_plots.plot_strip(photos, classes, tries, SCHEME, curves, "epochs")


@pytest.fixture(scope="module")
def figures(data):
    return list(draw_all(data))


def test_every_function_that_plots_is_drawn_here():
    files = Path(style.__file__).parent.glob("*.py")
    names = {
        name for file in files for name in re.findall(r"^def (plot_\w+)", file.read_text(), re.M)
    }
    assert len(names) > 10
    assert names <= set(draw_all.__code__.co_names)


def test_every_figure_has_a_title_and_a_text_and_draws(figures, tmp_path):
    for number, figure in enumerate(figures):
        title = figure.get_suptitle()
        assert title
        sentence = title if title.endswith("?") else f"{title}."
        assert figure.get_label().startswith(f"{sentence} ")
        assert len(figure.get_label()) > len(title) + 10
        figure.savefig(tmp_path / f"{number}.png", dpi=50)
        assert (tmp_path / f"{number}.png").stat().st_size > 1000


def test_figures_fit_a_phone_and_legends_stay_off_the_curves(figures):
    for figure in figures:
        figure.draw_without_rendering()
        width, height = figure.get_size_inches()
        box = figure.get_tightbbox()
        assert box.x0 > -0.02, figure.get_suptitle()
        assert box.y0 > -0.02, figure.get_suptitle()
        assert box.x1 < width + 0.02, figure.get_suptitle()
        assert box.y1 < height + 0.02, figure.get_suptitle()
        for text in figure.findobj(Text):  # in pixels of a screen that is 390 wide
            assert text.get_fontsize() / 72 * 390 / width > 7.5 or not text.get_text(), text
        for key in figure.findobj(Legend):
            box = key.get_window_extent()
            assert not any(box.overlaps(ax.get_window_extent()) for ax in figure.axes), (
                figure.get_suptitle()
            )


def test_no_title_of_a_panel_reaches_the_next_one(figures):
    for figure in figures:
        figure.draw_without_rendering()
        titles = [ax._left_title for ax in figure.axes if ax.get_title(loc="left")]
        boxes = [title.get_window_extent() for title in titles]
        for first, second in itertools.combinations(boxes, 2):
            assert not first.overlaps(second), figure.get_suptitle()


def test_a_notebook_shows_a_sharp_picture_with_its_text(monkeypatch):
    display = pytest.importorskip("IPython.display")
    shown = []
    monkeypatch.setattr(display, "display", shown.append)
    figure = training_plots.plot_history(history(True))
    figure._ipython_display_()
    data, metadata = shown[0]._repr_png_()
    assert data.startswith("iVBOR")  # PNG in base64
    assert metadata["width"] == 720
    assert (
        metadata["alt"] == "Training. After epoch 3: loss 0.333, mIoU 0.400 on the held-out frames."
    )


def test_the_ipython_of_colab_shows_figures(monkeypatch):
    display = pytest.importorskip("IPython.display")

    def of_ipython_7(data, *, width, height, metadata):  # among others, but there is no `alt`
        return data

    monkeypatch.setattr(display, "Image", of_ipython_7)
    assert style.notebook_image(Figure((1, 1)))[1:4] == b"PNG"


def test_the_legend_names_the_classes_that_occur_and_no_others(data):
    photos, classes, _, _ = data
    speck = classes.copy()
    speck[0, 20, 20] = 18
    figure = data_plots.plot_labels(photos, speck, SCHEME)
    named = {text.get_text() for text in figure.legends[0].get_texts()}
    assert named == {"road", "sidewalk", "building", "wall", "void (no class)"}


def test_pairs_name_the_colours_that_are_near_to_an_official_one(data):
    mask = np.empty((64, 64, 3), dtype=np.uint8)
    mask[:] = (130, 60, 125)  # nearly road
    figure = data_plots.plot_pairs([mask], [mask], ["train/1.jpg"])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["road"]


def test_pixels_have_the_names_of_their_classes():
    pixels = np.zeros((2, 3, 3), dtype=np.uint8)
    figure = data_plots.plot_pixels({"one": pixels, "two": pixels}, ["car", "trailer", "sky"])
    assert texts(figure) == []
    shown = {text.get_text(): text.get_position()[0] for text in figure.axes[1].texts}
    assert shown == {"car": 0.5, "trailer": 1.5, "sky": 2.5}
    assert figure.get_label().endswith("car, trailer, sky")


def test_phantoms_are_marked():
    counts = np.arange(1, 30)
    clusters = find_clusters(PALETTE_COLORS, counts)
    figure = data_plots.plot_clusters(PALETTE_COLORS, counts, clusters, ["tunnel", "trailer"])
    dots, classes, phantoms = figure.axes[0].collections
    assert len(dots.get_offsets()) == 29
    assert len(classes.get_offsets()) == 27
    assert len(phantoms.get_offsets()) == 2
    named = {text.get_text(): text.get_color() for text in figure.axes[0].texts}
    assert len(named) >= 25
    assert {name for name, color in named.items() if color == style.ORANGE} == {"tunnel", "trailer"}

    figure = data_plots.plot_class_shares({"a": counts / 100}, NAMES, ["tunnel"])
    rows = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert [name for name in rows if "phantom" in name] == ["tunnel (phantom)"]
    assert "Phantoms: tunnel." in figure.get_label()


def test_no_name_of_a_cluster_lies_on_another():
    counts = np.arange(1, 30)
    figure = data_plots.plot_clusters(
        PALETTE_COLORS, counts, find_clusters(PALETTE_COLORS, counts), ["tunnel"]
    )
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    for first, second in itertools.combinations(boxes, 2):
        assert not first.overlaps(second)


def test_a_class_is_named_inside_of_it_where_there_is_room():
    classes = np.zeros((256, 256), dtype=np.uint8)
    classes[:, :20] = IGNORE
    classes[60:120, 50:110] = 7  # "traffic sign" is longer than that
    classes[120:198, 150:206] = 13  # "car" is not
    classes[200:203] = 13
    _, axes = style.new_figure(1, 4, 2, "names", "")
    style.class_map(axes[0, 0], classes, SCHEME, "map")
    names = {text.get_text(): text.get_position() for text in axes[0, 0].texts}
    assert set(names) == {"road", "car"}
    assert names["car"] == pytest.approx((178, 159), abs=8)
    x, y = names["road"]
    assert classes[int(y), int(x)] == 0


def test_predictions_are_void_where_the_truth_is(data):
    photos, classes, predicted, _ = data
    figure = result_plots.plot_predictions(photos, classes, {"a": predicted}, SCHEME)
    found = figure.axes[2].images[0].get_array()
    assert (found[:8] == 0).all()
    assert (found[8:] == SCHEME.colorize(predicted[0])[8:]).all()
    assert figure.axes[3].get_title(loc="left").endswith(" % wrong (red)")


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def test_iou_bars_tell_precision_recall_the_share_of_the_pixels_and_what_is_absent():
    matrix = ConfusionMatrix(19)
    matrix.update(
        np.repeat([0, 2, 0, 1], [1_499_900, 100, 300, 500_000]),
        np.repeat([0, 0, 1, 1], [1_499_900, 100, 300, 500_000]),
    )
    figure = result_plots.plot_class_iou(matrix, SCHEME)
    precision, recall, _ = figure.axes[0].lines
    assert precision.get_xdata()[-1] == pytest.approx(1_499_900 / 1_500_200)
    assert recall.get_xdata()[-1] == pytest.approx(1_499_900 / 1_500_000)
    # No mark beside "absent", not even for class 2, which is predicted.
    assert np.isfinite(precision.get_xdata()).sum() == 2
    shown = texts(figure)
    assert "75 %" in shown
    assert shown.count("absent") == 17


def test_regions_are_grouped_by_powers_of_16_and_it_is_said_which_are_too_few():
    classes, areas = np.repeat([5, 5, 0], [5, 5, 1]), np.repeat([3, 16, 1600], [5, 5, 1])
    figure = result_plots.plot_region_recall(
        (classes, areas, np.repeat([1, 0.5, 1], [5, 5, 1])), SCHEME
    )
    ax = figure.axes[0]
    columns = [label.get_text() for label in ax.get_xticklabels()]
    assert columns == ["1 to 15\n(5)", "16 to 255\n(5)", "256 to 4,095\n(1)"]
    rows = [label.get_text() for label in ax.get_yticklabels()]
    shown = {
        (rows[round(text.get_position()[1])], round(text.get_position()[0])): text.get_text()
        for text in ax.texts
    }
    assert shown == {
        ("all classes", 0): "100",
        ("all classes", 1): "50",
        ("pole", 0): "100",
        ("pole", 1): "50",
    }
    assert rows == ["all classes", "pole"]
    assert ax.get_xlabel().endswith("fewer than 5 regions. Too few of any size: road.")


@pytest.mark.filterwarnings("error::UserWarning", "error::RuntimeWarning")
def test_void_frames_and_perfect_models_have_figures(data, tmp_path):
    photos, classes, predicted, _ = data
    void, none = np.full_like(classes, IGNORE), np.zeros(29)
    perfect = ConfusionMatrix(19)
    perfect.update(classes, classes)
    drawn = [
        data_plots.plot_labels(photos, void, SCHEME),
        data_plots.plot_class_shares({"a": none, "b": none}, NAMES),
        result_plots.plot_predictions(photos, void, {"prediction": predicted}, SCHEME),
        result_plots.plot_photo(photos[0], void[0], SCHEME),
        result_plots.plot_class_iou(ConfusionMatrix(19), SCHEME),
        result_plots.plot_confusion(ConfusionMatrix(19), SCHEME),
        result_plots.plot_confusion(perfect, SCHEME),
        result_plots.plot_error_map(np.full((8, 8), np.nan)),
        result_plots.plot_error_map(np.zeros((8, 8))),
        result_plots.plot_region_recall(NO_REGIONS, SCHEME),
        result_plots.plot_confidence(photos, void, predicted, np.zeros(void.shape), 19),
        robustness_plots.plot_robustness(
            [("unchanged", 0, np.nan, np.nan)],
            {"unchanged": (photos[0], predicted[0])},
            void[0],
            SCHEME,
        ),
        robustness_plots.plot_without_skips(photos[0], void[0], {"all": predicted[0]}, SCHEME),
        training_plots.plot_history([row | {"mean_iou": None} for row in history(True, 1)]),
    ]
    for figure in drawn:
        figure.savefig(tmp_path / "figure.png", dpi=50)
    titles = [ax.get_title(loc="left") for ax in drawn[2].axes[3::4]]
    assert titles == ["no labelled pixel (red)"] * 2


def test_the_windows_with_the_most_differences_are_found():
    first = np.zeros((3, 128, 128), dtype=np.uint8)
    second = first.copy()
    second[1, 70:100, 10:40] = 1
    second[2, 10:20, 70:80] = 1
    places = data_plots.most_different(first, second, count=2)
    assert places == [(1, slice(64, 128), slice(0, 64)), (2, slice(0, 64), slice(64, 128))]


class Page:
    """Stands in for the notebook: each display has a place, and an update replaces what is
    there."""

    def __init__(self, monkeypatch):
        display = pytest.importorskip("IPython.display")
        self.places, self.updates = [], 0
        monkeypatch.setattr(display, "display", self.display)

    def display(self, content, display_id, raw=False):
        assert display_id is True
        self.places.append(content)
        return Handle(self, len(self.places) - 1)

    @property
    def html(self):
        return self.places[0]["text/html"]


class Handle:
    def __init__(self, page, place):
        self.page, self.place = page, place

    def update(self, content, raw=False):
        self.page.places[self.place] = content
        self.page.updates += 1


@pytest.fixture
def page(monkeypatch):
    return Page(monkeypatch)


def frames(count):
    label_ids = torch.full((count, 64, 64), 7, dtype=torch.uint8)
    label_ids[-1:] = 0  # a frame without a labelled pixel
    return Frames(
        torch.zeros(count, 64, 64, 3, dtype=torch.uint8),
        label_ids,
        SCHEME,
        tuple(range(1, count + 1)),
    )


@pytest.fixture
def model():
    return UNet(3, 19, base_channels=4).eval()


def test_a_training_is_shown_in_three_places_that_keep_their_size(page, model):
    config = TrainConfig(image_size=64, epochs=2)
    shown = live.LiveTraining(frames(5), config)
    sizes, rows = [], []
    for epoch in (1, 2):
        shown.step(epoch, 8, 16, Schedule(config, 1))
        shown.epoch(history(True, epoch), model)
        sizes.append([(image.width, image.height, image.data[16:24]) for image in page.places[1:]])
        rows.append(page.html.count("<tr>"))
    assert len(page.places) == 3  # status and table, curves, predictions
    assert sizes[0] == sizes[1]
    assert rows == [3, 3]
    assert "2 epochs finished, 25 s of training" in page.html
    assert "value='1.0000'" in page.html


def test_the_status_has_a_bar_the_time_left_and_plain_text(page, monkeypatch):
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(live.time, "monotonic", lambda: next(clock))
    schedule = Schedule(TrainConfig(image_size=64, epochs=4), 1)
    shown = live.LiveTraining(frames(5), schedule.config)
    shown.step(1, 10, 100, schedule)  # at 0 s, 1/40 of the training is over
    shown.step(2, 10, 100, schedule)  # 10/40 more, 29/40 are left
    assert "epoch 2 of 4, 10 of 100 photos, about" in page.html
    assert " left" in page.html
    assert "value='0.2750'" in page.html
    text = page.places[0]["text/plain"]
    assert text.startswith("epoch 2 of 4, 10 of 100 photos, about")
    assert "<" not in text
    assert "nbsp" not in text


def test_the_time_left_knows_that_a_growing_input_slows_the_training_down(page, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: now[0])
    schedule = Schedule(TrainConfig(image_size=64, growth=1.0, epochs=2), 1)
    shown = live.LiveTraining(frames(5), schedule.config)
    shown.step(1, 0, 100, schedule)
    now[0] = 100.0
    # Half of the photos, which took (0.75 ** 3 - 0.5 ** 3) / (1 - 0.5 ** 3) = 19/56 of the time.
    shown.step(2, 0, 100, schedule)
    assert "about 3 min left" in page.html  # 100 s * 37 / 19 = 195 s


def test_an_extended_run_stays_at_full_size_and_so_does_its_time_left(page, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: now[0])
    config = TrainConfig(image_size=64, growth=1.0, epochs=4)
    schedule = Schedule(config, 1, first_epoch=2)
    shown = live.LiveTraining(frames(5), config)
    shown.step(3, 0, 100, schedule)
    now[0] = 100.0
    shown.step(4, 0, 100, schedule)
    assert "about 2 min left" in page.html  # as long as the epoch before


def test_the_status_is_updated_at_most_twice_per_second(page, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: now[0])
    schedule = Schedule(TrainConfig(image_size=64, epochs=1), 1)
    shown = live.LiveTraining(frames(5), schedule.config)
    for step in range(1, 101):
        now[0] = step / 100
        shown.step(1, step, 100, schedule)
    assert len(page.places) + page.updates == 2


def test_quick_epochs_do_not_wait_for_their_pictures(page, model, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(live, "plot_history", lambda history: Figure((1, 1)))
    monkeypatch.setattr(live, "plot_predictions", lambda *_, **__: Figure((1, 1)))
    shown = live.LiveTraining(frames(2), TrainConfig(image_size=64, epochs=100))
    drawn = []
    for epoch in range(1, 101):
        now[0] += 1
        before = page.places[-1] if page.places else None
        shown.epoch(history(True, epoch), model)
        if page.places[-1] is not before:
            drawn.append(epoch)
    assert drawn == [1, 11, 21, 31, 41, 51, 61, 71, 81, 91, 100]


def test_a_run_that_had_ended_shows_its_curves_once(page, model):
    shown = live.LiveTraining(frames(2), TrainConfig(image_size=64, epochs=1))
    shown.end(history(True, 1))
    assert len(page.places) == 1
    assert "mIoU" in page.places[0].metadata["alt"]

    trained = live.LiveTraining(frames(2), TrainConfig(image_size=64, epochs=1))
    trained.epoch(history(True, 1), model)
    shown_before = len(page.places)
    trained.end(history(True, 1))
    assert len(page.places) == shown_before


def test_a_long_training_shows_its_last_epochs_and_the_best_one(page, model):
    rows = history(True, 30)
    rows[3]["mean_iou"] = 0.9
    shown = live.LiveTraining(frames(2), TrainConfig(image_size=64, epochs=40))
    shown.epoch(rows, model)
    lines = page.places[0]["text/plain"].splitlines()[2:]
    assert [line.split()[:2] for line in lines[:2]] == [["best:", "4"], ["21", "0.048"]]
    assert lines[-1].split()[0] == "30"
    assert len(lines) == 11


@pytest.mark.filterwarnings("error::UserWarning", "error::RuntimeWarning")
@pytest.mark.parametrize("count", [1, 2])
def test_few_frames_and_no_scores_can_be_shown(page, model, count):
    shown = live.LiveTraining(frames(count), TrainConfig(image_size=64, epochs=1))
    shown.epoch(history(False, 1), model)
    assert len(page.places) == 3
