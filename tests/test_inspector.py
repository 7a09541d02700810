"""The inspector: a picture without a script, and in a real browser what it says and shows."""

import base64
import html
import io
import re

import numpy as np
import pytest
from PIL import Image
from web import one, page_of, serious, told, wait_until, wait_until_read

from unet_utils import IGNORE, get_scheme
from unet_utils.classes import ClassScheme
from unet_utils.demo.street import draw_scene
from unet_utils.plots.html_figure import distinct_colors, map_png, read_picture, shrink
from unet_utils.plots.inspector import LONGEST_SIDE, inspector

SCHEME = get_scheme("cityscapes19")
ROAD, CAR, BUS, TRAIN = (SCHEME.names.index(name) for name in ("road", "car", "bus", "train"))

# A black photo: what is seen are the colours of the classes alone.
PHOTO = np.zeros((64, 64, 3), dtype=np.uint8)
TRUTH = np.full((64, 64), ROAD, dtype=np.uint8)
TRUTH[:16] = IGNORE
TRUTH[40:, 32:] = BUS
FOUND = np.full((64, 64), ROAD, dtype=np.uint8)
FOUND[40:, 20:] = TRAIN
HINT = "Point at the picture"


# Without a browser.


def test_a_frame_takes_about_30_kilobytes():
    photo, label_ids = draw_scene(np.random.default_rng(3))
    photo, truth = shrink(photo, 256), shrink(SCHEME.encode(label_ids), 256)
    photo, truth = photo.repeat(2, axis=0), truth.repeat(2, axis=0)  # 256 x 256, like the pairs
    figure = inspector(photo, truth, np.roll(truth, 5, axis=1), SCHEME)
    assert 10_000 < len(figure.html) < 40_000


def test_a_notebook_gets_a_picture_and_a_text_beside_the_page():
    pytest.importorskip("IPython")
    data, metadata = inspector(PHOTO, TRUTH, FOUND, SCHEME)._repr_mimebundle_()
    assert set(data) == {"text/html", "image/png", "text/plain"}
    picture = Image.open(io.BytesIO(base64.b64decode(data["image/png"])))
    assert picture.width == 2 * metadata["image/png"]["width"]
    text = "A frame: truth and prediction. truth: road 56 %, bus 19 %; prediction: road 74 %, train"
    assert metadata["image/png"]["alt"].startswith(text)
    assert data["text/plain"].startswith(text)


def test_the_page_holds_all_it_needs_and_is_a_picture_without_its_script():
    page = inspector(PHOTO, TRUTH, FOUND, SCHEME).html
    assert not re.search(r"https?:|//\w+\.|@import|url\(", page.replace("data:image", ""))
    alts = re.findall(r'<img [^>]*alt="([^"]*)"', page)
    assert alts == [
        "the photo",
        "truth: road 56 %, bus 19 %",
        "prediction: road 74 %, train 26 %",
    ]
    legend = re.findall(r"</i>([^<]*)</li>", page)
    assert legend == ["road", "bus", "train", "void (no class)"]


def test_names_are_text_and_never_html():
    evil = '<img src=x onerror="alert(1)">&'
    scheme = ClassScheme("own", (evil,), ((9, 9, 9),), (0,) * 256)
    maps = np.zeros((8, 8), dtype=np.uint8)
    page = inspector(PHOTO[:8, :8], maps, maps, scheme, names=(evil, "b")).html
    assert "<img src=x" not in page
    assert html.escape(evil) in page


def test_classes_of_one_colour_are_told_apart_and_maps_are_kept_exactly():
    scheme = get_scheme("cityscapes30")  # its pole and polegroup are grey, static and void black
    colors = distinct_colors(scheme)
    assert len(set(colors.values())) == scheme.num_classes + 1
    assert all(
        np.abs(np.subtract(colors[i], scheme.colors[i])).max() <= 1
        for i in range(len(scheme.names))
    )
    classes = np.append(np.arange(scheme.num_classes), IGNORE).astype(np.uint8)[None]
    np.testing.assert_array_equal(read_picture(map_png(classes, scheme)), classes)


def test_large_photos_are_reduced():
    photo = np.full((1000, 3000, 3), 99, dtype=np.uint8)
    found = np.full((1000, 3000), CAR, dtype=np.uint8)
    found[:, :1500] = BUS
    page = inspector(photo, None, found, SCHEME).html
    picture = read_picture(re.search(r"image/png;base64,([^\"]*)", page)[1])
    assert picture.shape == (LONGEST_SIDE / 3, LONGEST_SIDE)
    assert set(np.unique(picture)) == {CAR, BUS}


def test_maps_of_another_size_are_refused():
    with pytest.raises(ValueError, match="the class map on the right"):
        inspector(PHOTO, TRUTH, FOUND[:32], SCHEME)


# In a browser.


def point_at(driver, column, row, kind="mouse"):
    """Point at a pixel of the frame, which has 64 x 64."""
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.actions.pointer_input import PointerInput

    frame = one(driver, ".frame")
    size = frame.rect
    x = round((column + 0.5 - 32) / 64 * size["width"])
    y = round((row + 0.5 - 32) / 64 * size["height"])
    actions = ActionChains(driver, devices=[PointerInput(kind, kind)], duration=0)
    actions.move_to_element_with_offset(frame, x, y)
    if kind == "touch":
        actions.click()
    actions.perform()


PLACES = [
    (40, 50, "truth: bus, prediction: train"),
    (25, 50, "truth: road, prediction: train"),
    (3, 30, "truth: road, prediction: road"),
    (60, 5, "truth: void, prediction: road"),
]


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("kind", ["mouse", "touch"])
def test_a_pointer_or_a_finger_on_a_pixel_tells_both_classes(show, width, kind):
    driver = show(page_of(inspector(PHOTO, TRUTH, FOUND, SCHEME)), width)
    assert told(driver).startswith(HINT)
    for column, row, text in PLACES:
        point_at(driver, column, row, kind)
        wait_until(lambda text=text: told(driver) == text)


def test_it_works_in_a_sandboxed_frame_and_twice_in_a_page(show):
    figure = inspector(PHOTO, TRUTH, FOUND, SCHEME)
    other = inspector(PHOTO, FOUND, TRUTH, SCHEME, names=("run <a>", "b"))
    inner = html.escape(page_of(figure, other))
    style = "width: 800px; height: 800px"
    driver = show(f'<iframe sandbox="allow-scripts" style="{style}" srcdoc="{inner}"></iframe>')
    driver.switch_to.frame(0)
    try:
        wait_until_read(driver)
        point_at(driver, 40, 50)
        wait_until(lambda: told(driver) == "truth: bus, prediction: train")
        second = driver.find_elements("css selector", ".unet-inspector")[1]
        frame = second.find_element("css selector", ".frame")
        frame.send_keys("\ue014")  # the right arrow
        text = second.find_element("css selector", ".told").text
        assert text == "run <a>: road, b: road"
    finally:
        driver.switch_to.default_content()


def color_at(driver, column, row):
    """The colour of a pixel of the frame, as the browser shows it."""
    with Image.open(io.BytesIO(one(driver, ".frame").screenshot_as_png)) as image:
        x, y = (column + 0.5) / 64 * image.width, (row + 0.5) / 64 * image.height
        return np.array(image.convert("RGB").getpixel((int(x), int(y))), dtype=int)


def test_the_wipe_moves_by_its_keys_and_shows_one_map_or_the_other(show):
    from selenium.webdriver.common.keys import Keys

    driver = show(page_of(inspector(PHOTO, TRUTH, FOUND, SCHEME)))
    opacity = float(one(driver, ".map").value_of_css_property("opacity"))
    bus, train = (opacity * np.array(SCHEME.colors[index]) for index in (BUS, TRAIN))
    assert np.abs(color_at(driver, 50, 55) - train).max() <= 2  # right of the wipe
    one(driver, "input").send_keys(Keys.END)
    assert np.abs(color_at(driver, 50, 55) - bus).max() <= 2
    one(driver, "input").send_keys(Keys.HOME)
    assert np.abs(color_at(driver, 50, 55) - train).max() <= 2


def test_a_photo_without_truth_is_shown_left_of_the_wipe(show):
    driver = show(page_of(inspector(PHOTO + 200, None, FOUND, SCHEME)))
    assert one(driver, ".names").text.split() == ["photo", "prediction"]
    assert np.abs(color_at(driver, 10, 55) - 200).max() <= 2
    assert np.abs(color_at(driver, 50, 55) - 200).max() > 20
    point_at(driver, 50, 55)
    wait_until(lambda: told(driver) == "prediction: train")


def test_arrow_keys_move_a_crosshair_that_can_be_seen(show):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    driver = show(page_of(inspector(PHOTO, TRUTH, FOUND, SCHEME)))
    keys = ActionChains(driver).send_keys(Keys.TAB)
    keys.send_keys(Keys.ARROW_DOWN * 7).perform()  # from the middle, row 32, to row 39
    frame = driver.switch_to.active_element
    assert frame == one(driver, ".frame")
    assert frame.value_of_css_property("outline-style") == "solid"
    assert told(driver) == "truth: road, prediction: road"
    frame.send_keys(Keys.ARROW_DOWN)
    assert told(driver) == "truth: bus, prediction: train"
    ActionChains(driver).key_down(Keys.SHIFT).send_keys(Keys.ARROW_LEFT).perform()  # to column 22
    assert told(driver) == "truth: road, prediction: train"
    ActionChains(driver).send_keys(Keys.ARROW_LEFT * 9).key_up(Keys.SHIFT).perform()
    assert told(driver) == "truth: road, prediction: road"
    cross = one(driver, ".cross").rect
    left = cross["x"] + cross["width"] / 2 - frame.rect["x"]
    assert left == pytest.approx(0.5 / 64 * frame.rect["width"], abs=2)  # it stops at the border
    assert one(driver, ".told").get_attribute("aria-live") == "polite"
    ActionChains(driver).send_keys(Keys.TAB).perform()
    assert driver.switch_to.active_element == one(driver, "input")


def test_frames_are_twice_as_wide_as_high_and_photos_have_their_own_shape(show):
    square = inspector(PHOTO, None, FOUND, SCHEME)
    driver = show(page_of(inspector(PHOTO, TRUTH, FOUND, SCHEME), square))
    frame, photo = (frame.rect for frame in driver.find_elements("css selector", ".frame"))
    assert frame["width"] / frame["height"] == pytest.approx(2, abs=0.01)
    assert photo["width"] / photo["height"] == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("width", [1280, 390])
def test_it_fits_the_page_and_keeps_its_colours_in_a_dark_one(show, width):
    dark = "<style>:root { color-scheme: dark } body { background: #111 } * { color: #eee }"
    figure = inspector(PHOTO, TRUTH, FOUND, SCHEME)
    driver = show(page_of(figure).replace("</head>", f"{dark}</style></head>"), width)
    page = driver.execute_script(
        "const page = document.documentElement; return [page.scrollWidth, page.clientWidth]"
    )
    assert page == [width, width]
    assert one(driver, ".unet-inspector").rect["width"] == min(760, width - 16)
    box = one(driver, ".unet-inspector")
    assert box.value_of_css_property("background-color") == "rgba(255, 255, 255, 1)"
    for selector in (".told", "li", ".names span"):
        assert one(driver, selector).value_of_css_property("color") == "rgba(34, 34, 34, 1)"


def test_an_accessibility_checker_finds_nothing_serious(show):
    assert serious(show(page_of(inspector(PHOTO, TRUTH, FOUND, SCHEME)))) == []
