"""The time-lapse of a training: what is kept in the folder of a run, and how it is shown."""

import base64
import html
import json

import numpy as np
import pytest
import torch
from web import one, page_of, serious, told

from unet_utils import IGNORE, TrainConfig, UNet, get_scheme
from unet_utils.frames import Frames
from unet_utils.plots import live
from unet_utils.plots.time_lapse import MOST_EPOCHS, record, time_lapse
from unet_utils.run_files import TIME_LAPSE

SCHEME = get_scheme("cityscapes19")
ROAD, CAR = SCHEME.names.index("road"), SCHEME.names.index("car")
PHOTOS = np.zeros((3, 64, 64, 3), dtype=np.uint8)
TRUTH = np.full((3, 64, 64), CAR, dtype=np.uint8)
TRUTH[:, 50:] = IGNORE


def history(epochs, scored=True):
    rows = []
    for epoch in range(1, epochs + 1):
        row = {"epoch": epoch, "loss": 1 / epoch, "seconds": 1.0}
        rows.append(row | ({"mean_iou": epoch / 100} if scored else {}))
    return rows


def predicted(epoch):
    """In each epoch, one more row of pixels is a car."""
    classes = np.full((3, 64, 64), ROAD, dtype=np.uint8)
    classes[:, :epoch] = CAR
    return classes


def train(folder, epochs, first=1, scored=True):
    for epoch in range(first, epochs + 1):
        record(folder, PHOTOS, TRUTH, predicted(epoch), SCHEME, history(epoch, scored))


def kept(folder):
    return [int(epoch) for epoch in json.loads((folder / TIME_LAPSE).read_text())["maps"]]


def test_at_most_twenty_epochs_are_kept_evenly_with_the_first_and_the_last(tmp_path):
    for epoch in range(1, 60):
        train(tmp_path, epoch, first=epoch)
        epochs = kept(tmp_path)
        assert len(epochs) <= MOST_EPOCHS
        assert epochs[0] == 1
        assert epochs[-1] == epoch
        gaps = np.diff(epochs[:-1])
        assert len(set(gaps)) <= 1  # only the last one may be nearer
        if epoch > 3:
            assert len(epochs) >= min(epoch, MOST_EPOCHS // 2)


def test_a_run_that_goes_back_drops_what_came_after(tmp_path):
    train(tmp_path, 6)
    train(tmp_path, 4, first=4)
    assert kept(tmp_path) == [1, 2, 3, 4]
    train(tmp_path, 1)  # a new run
    assert kept(tmp_path) == [1]


def test_a_notebook_gets_a_picture_and_a_text_beside_the_page(tmp_path):
    pytest.importorskip("IPython")
    train(tmp_path, 24)
    data, metadata = time_lapse(tmp_path)._repr_mimebundle_()
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
    assert metadata["image/png"]["alt"] == data["text/plain"]
    assert "epoch 1 of 24, mIoU 0.01; epoch 13 of 24, mIoU 0.13; epoch 24" in data["text/plain"]
    page = data["text/html"]
    assert 'alt="truth: car 78 %"' in page
    assert "epoch 24 of 24, mIoU 0.24" in page.split("<script>")[0]  # without a script, the last


def test_no_time_lapse_and_a_damaged_one_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="it is recorded while notebook 03 trains"):
        time_lapse(tmp_path)
    (tmp_path / TIME_LAPSE).write_text("{}")
    with pytest.raises(ValueError, match="time-lapse.json is damaged"):
        time_lapse(tmp_path)


def test_without_held_out_frames_the_curve_is_the_loss(tmp_path):
    train(tmp_path, 2, scored=False)
    page = time_lapse(tmp_path).html
    assert "epoch 2 of 2, loss 0.50" in page
    assert "loss over the epochs, from 0 to 1.00" in page


@pytest.mark.filterwarnings("error::UserWarning", "error::RuntimeWarning")
def test_one_epoch_without_a_score_can_be_shown(tmp_path):
    rows = [{"epoch": 1, "loss": float("nan")}]
    record(tmp_path, PHOTOS[:1], TRUTH[:1], predicted(1)[:1], SCHEME, rows)
    assert "epoch 1 of 1<" in time_lapse(tmp_path).html


class Shown:
    """Stands in for the notebook's display."""

    def update(self, content, raw=False):
        pass


@pytest.fixture
def watched(monkeypatch):
    """Returns a function that watches a training of three frames for one epoch."""
    display = pytest.importorskip("IPython.display")
    monkeypatch.setattr(display, "display", lambda *_, **__: Shown())
    label_ids = torch.full((3, 64, 64), 7, dtype=torch.uint8)
    frames = Frames(torch.zeros(3, 64, 64, 3, dtype=torch.uint8), label_ids, SCHEME, (1, 2, 3))
    model = UNet(3, 19, base_channels=4).eval()
    config = TrainConfig(image_size=64, epochs=9)

    def watch(folder, *epochs):
        training = live.LiveTraining(frames, config, folder)
        for epoch in epochs:
            training.epoch(history(epoch), model)

    return watch


def test_a_training_that_is_watched_records_each_epoch_and_resumes(watched, tmp_path):
    watched(tmp_path, 1, 2)
    watched(tmp_path, 3)
    assert kept(tmp_path) == [1, 2, 3]
    assert time_lapse(tmp_path).html.count("<figure>") == 6  # truth and prediction of three frames


def test_a_time_lapse_that_cannot_be_written_does_not_stop_the_training(watched, tmp_path, capsys):
    watched(tmp_path / "missing", 1, 2)
    assert capsys.readouterr().out.count("The time-lapse is not recorded any more: ") == 1


# In a browser.


def state(driver):
    return (
        told(driver),
        one(driver, ".prediction").get_attribute("src"),
        one(driver, ".dot").get_attribute("d"),
    )


@pytest.mark.parametrize("width", [1280, 390])
def test_the_slider_shows_each_epoch_by_keys_pointer_and_finger(show, tmp_path, width):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.actions.pointer_input import PointerInput
    from selenium.webdriver.common.keys import Keys

    train(tmp_path, 3)
    driver = show(page_of(time_lapse(tmp_path)), width)
    assert driver.execute_script("return document.documentElement.scrollWidth") == width
    slider = one(driver, "input")
    last = state(driver)
    assert last[0] == "epoch 3 of 3, mIoU 0.03"
    assert last[2] == "M100.00 0.00h0"
    slider.send_keys(Keys.HOME)
    first = state(driver)
    assert first[0] == slider.get_attribute("aria-valuetext") == "epoch 1 of 3, mIoU 0.01"
    assert first[2] == "M0.00 66.67h0"
    assert first[1] != last[1]
    # Void is left out.
    assert one(driver, ".prediction").get_attribute("alt") == "prediction: road 77 %, car 2 %"
    assert one(driver, ".told").get_attribute("aria-live") == "polite"
    end = slider.rect["width"] // 2 - 3
    for kind, offset, expected in (("mouse", end, last), ("touch", -end, first)):
        pointer = ActionChains(driver, devices=[PointerInput(kind, kind)], duration=0)
        pointer.move_to_element_with_offset(slider, offset, 0).click().perform()
        assert state(driver) == expected


def test_it_works_in_a_sandboxed_frame(show, tmp_path):
    train(tmp_path, 2)
    inner = html.escape(page_of(time_lapse(tmp_path)))
    style = "width: 800px; height: 800px"
    driver = show(f'<iframe sandbox="allow-scripts" style="{style}" srcdoc="{inner}"></iframe>')
    driver.switch_to.frame(0)
    try:
        one(driver, "input").send_keys("\ue012")  # the left arrow
        assert told(driver) == "epoch 1 of 2, mIoU 0.01"
    finally:
        driver.switch_to.default_content()


def test_an_accessibility_checker_finds_nothing_serious(show, tmp_path):
    train(tmp_path, 3)
    assert serious(show(page_of(time_lapse(tmp_path)))) == []
