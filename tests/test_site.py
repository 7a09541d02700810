"""The website, served from a sub-path as GitHub Pages does, in a browser without a network."""

import base64
import functools
import io
import json
import re
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import build_site
import nbformat
import numpy as np
import pytest
import torch
from helpers import require
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait
from web import one, serious, wait_until_read

from unet_utils import get_scheme
from unet_utils.demo.street import draw_scene
from unet_utils.device import computing_in
from unet_utils.plots.html_figure import distinct_colors
from unet_utils.plots.inspector import inspector
from unet_utils.plots.results import plot_photo
from unet_utils.plots.style import notebook_image
from unet_utils.plots.time_lapse import record, time_lapse
from unet_utils.use.photos import drawn_street, read_photo, segment

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.slow
NAMES = [path.stem for path in sorted((ROOT / "notebooks").glob("0*.ipynb"))]
PAGES = ["index.html", "try.html", f"{NAMES[0]}.html"]
SCHEME = get_scheme("cityscapes19")
BADGE = "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
COLAB = "https://colab.research.google.com/github/OWNER/unet-street-scenes/blob/main/notebooks/"
PICTURE = "https://raw.githubusercontent.com/OWNER/unet-street-scenes/main/docs/street.png"


def shown(figure, *tags):
    """A cell that shows a figure."""
    data, metadata = figure._repr_mimebundle_()
    output = new_output("display_data", data, metadata=metadata)
    return new_code_cell("figure", outputs=[output], metadata={"tags": list(tags)})


def stand_ins(folder: Path, data: str = "demo") -> Path:
    """Write small notebooks in the place of the executed series."""
    photo, label_ids = draw_scene(np.random.default_rng(1))
    photo = photo[::8, ::8]
    truth = SCHEME.encode(label_ids)[::8, ::8]
    record(folder, photo[None], truth[None], truth[None], SCHEME, [{"epoch": 1, "loss": 1.0}])
    folded = {"jupyter": {"source_hidden": True}}
    table = "| class | IoU |\n|---|---|\n| road | 0.9 |"
    notebook = new_notebook(
        cells=[
            new_markdown_cell(f"# 1. A title\n\n{BADGE}({COLAB}{NAMES[0]}.ipynb)\n\nSome words."),
            new_markdown_cell(f"![A street]({PICTURE})"),
            new_code_cell("# @title Setup\nimport os", metadata=folded),
            new_code_cell("1", outputs=[new_output("display_data", {"text/markdown": table})]),
            shown(notebook_image(plot_photo(photo, truth, SCHEME)), "picture:street"),
            shown(inspector(photo, truth, truth, SCHEME)),
            shown(time_lapse(folder)),
        ],
        metadata={"fields": {"DATA": data}},
    )
    for name in NAMES:
        nbformat.write(notebook, folder / f"{name}.ipynb")
    return folder


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    return stand_ins(tmp_path_factory.mktemp("executed"))


@pytest.fixture(scope="module")
def address(executed, tmp_path_factory):
    """Address of the site, which is built once."""
    runtime = build_site.SOURCES / "node_modules"
    require(runtime.exists(), "ONNX Runtime Web is not installed: npm ci --prefix docs/site")
    folder = tmp_path_factory.mktemp("server")
    build_site.build(executed, folder / "unet-street-scenes")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *message):
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/unet-street-scenes/"
        server.shutdown()


@pytest.fixture
def visit(driver, address):
    def open_page(page, width=1280):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        driver.get(address + page)
        wait_until_read(driver)
        return driver

    return open_page


def answer(driver):
    """What the page says when it is done."""
    read = "return document.querySelector('#status').textContent"
    done = WebDriverWait(driver, 120, poll_frequency=0.05)
    return done.until(
        lambda driver: (text := driver.execute_script(read)) and "..." not in text and text
    )


def choose(driver, path):
    """Choose a photo; return what the page says."""
    driver.execute_script("document.querySelector('#status').textContent = ''")
    one(driver, "#photo").send_keys(str(path))
    return answer(driver)


def classes_shown(driver):
    """The class of each pixel of the prediction, `uint8 [H, W]`."""
    source = one(driver, "#result .map.right").get_attribute("src")
    with Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))) as image:
        pixels = np.array(image.convert("RGB"))
    classes = np.full(pixels.shape[:2], 200, dtype=np.uint8)
    for index, color in distinct_colors(SCHEME).items():
        classes[(pixels == color).all(axis=2)] = index
    return classes


def predicted(small_model, photo):
    with computing_in(torch.float32):
        return segment(small_model, photo)


@pytest.mark.parametrize("width", [1280, 390])
def test_the_pages_fit_and_a_checker_finds_nothing_serious(visit, width):
    for page in PAGES:
        driver = visit(page, width)
        widths = "const page = document.documentElement; return [page.scrollWidth, innerWidth]"
        assert driver.execute_script(widths)[0] <= width, page
        broken = "return [...document.images].filter(image => !image.naturalWidth).length"
        assert driver.execute_script(broken) == 0, page
        assert serious(driver) == [], page


def test_colours_stay_in_a_dark_theme(visit):
    driver = visit("index.html")
    dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
    try:
        for page in PAGES:
            visit(page)
            color = one(driver, "h1").value_of_css_property("color")
            ground = one(driver, "html").value_of_css_property("background-color")
            assert (color, ground) == ("rgba(34, 34, 34, 1)", "rgba(255, 255, 255, 1)")
    finally:
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_notebooks_keep_their_figures_and_fold_what_was_folded(visit):
    driver = visit(f"{NAMES[0]}.html")
    assert one(driver, "summary").text == "Setup"
    assert driver.find_elements("css selector", "details[open]") == []
    assert one(driver, "img[src='pictures/street.png']").get_attribute("alt") == "A street"
    figure = one(driver, ".output_png img").get_attribute("alt")
    assert "road" in figure
    assert one(driver, "main a").text == "Open in Colab"
    assert one(driver, ".table td").text == "road"
    one(driver, ".unet-inspector .frame").send_keys(Keys.ARROW_RIGHT)
    assert one(driver, ".unet-inspector .told").text.startswith("truth: ")


def test_the_drawn_street_by_keyboard_gives_what_predict_gives_and_asks_no_other_host(
    visit, address, small_model
):
    driver = visit("try.html", 390)
    driver.get_log("performance")
    driver.refresh()
    one(driver, "#street").send_keys(Keys.ENTER)
    said = answer(driver)
    assert re.match(r"Done in \d+\.\d seconds: road \d+ %, building", said)
    assert one(driver, "#status").get_attribute("role") == "status"
    wait_until_read(driver)
    same = classes_shown(driver) == predicted(small_model, drawn_street()[0])
    assert same.mean() >= 0.99
    frame = one(driver, "#result .frame")
    ActionChains(driver).send_keys_to_element(frame, Keys.ARROW_DOWN * 3).perform()
    assert re.match("truth: .*, prediction: ", one(driver, "#result .told").text)
    assert serious(driver) == []
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    requests = [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    ]
    assert address + "model/small.onnx" in requests
    assert {url.split(":")[0] for url in requests} <= {"http", "data", "blob"}
    assert all(url.startswith(address) for url in requests if url.startswith("http"))


@pytest.fixture(scope="module")
def photo():
    """A street of an odd size, and not twice as wide as high."""
    return drawn_street()[0][:401, 100:701]


def test_photos_of_all_kinds(visit, small_model, photo, tmp_path):
    driver = visit("try.html")
    rgba = np.dstack([photo, np.full(photo.shape[:2], 255, dtype=np.uint8)])
    rgba[:200, :200, 3] = 0
    turned = Image.fromarray(photo).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    Image.fromarray(photo).save(tmp_path / "plain.png")
    Image.fromarray(rgba).save(tmp_path / "transparent.png")
    turned.save(tmp_path / "turned.jpg", quality=95, exif=exif)
    Image.fromarray(photo).resize((4000, 3000)).save(tmp_path / "phone.jpg")
    (tmp_path / "notes.jpg").write_text("no photo")

    for name in ("plain.png", "transparent.png", "turned.jpg"):
        assert choose(driver, tmp_path / name).startswith("Done"), name
        expected = predicted(small_model, read_photo(tmp_path / name))
        assert (classes_shown(driver) == expected).mean() >= 0.99, name
    assert "notes.jpg is not a photo" in choose(driver, tmp_path / "notes.jpg")
    assert choose(driver, tmp_path / "phone.jpg").startswith("Done")
    expected = predicted(small_model, read_photo(tmp_path / "phone.jpg"))
    found = classes_shown(driver)
    assert found.shape == (768, 1024)
    rows = ((np.arange(768) + 0.5) * 3000 / 768).astype(int)
    columns = ((np.arange(1024) + 0.5) * 4000 / 1024).astype(int)
    assert (found == expected[rows][:, columns]).mean() >= 0.99


def test_a_browser_without_webassembly_gets_a_sentence(driver, visit):
    first = {"source": "delete globalThis.WebAssembly"}
    added = driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", first)
    try:
        visit("try.html")
        one(driver, "#street").click()
        assert "no WebAssembly" in answer(driver)
    finally:
        driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)


def test_a_lost_connection_gets_a_sentence_and_the_next_click_tries_again(visit):
    driver = visit("try.html")
    driver.execute_script("window.kept = fetch; window.fetch = () => Promise.reject('offline')")
    one(driver, "#street").click()
    assert "Check the connection" in answer(driver)
    driver.execute_script("window.fetch = window.kept")
    driver.execute_script("document.querySelector('#status').textContent = ''")
    one(driver, "#street").click()
    assert answer(driver).startswith("Done")


def test_real_pairs_are_not_published(tmp_path):
    with pytest.raises(ValueError, match="was not run on the demo set"):
        build_site.read_notebooks(stand_ins(tmp_path, data="kaggle"))


@pytest.mark.parametrize(
    "tag",
    [
        '<img alt="x" src="https://example.org/x.png">',
        "<script src='//example.org/x.js'></script>",
        '<link rel="stylesheet" href="http://example.org/x.css">',
        "<style>p { background: url(https://example.org/x.png) }</style>",
    ],
)
def test_a_page_that_loads_from_elsewhere_is_refused(tag, tmp_path):
    build_site.write_page(tmp_path, "x.html", '<a href="https://example.org">a link</a>')
    with pytest.raises(ValueError, match=r"x\.html would load something from another host"):
        build_site.write_page(tmp_path, "x.html", f"<p>{tag}</p>")
