"""Notebook 05 says what happens: its claims, on its defaults."""

import pytest
from series import printed, run_notebook

pytestmark = pytest.mark.slow

CHECKS = """
from unet_utils.own_data.masks import open_picture

assert same > 0.99, same
assert run_file(photos).shape == photos[:, 0].shape
assert model.model.config["other"].endswith("Sequential")
assert own_score > 0.7, own_score  # one class everywhere scores below 0.25
assert 0.35 < network_score < own_score - 0.1, network_score
assert len(learn) == 20 and len(unseen) == 4
assert unseen.scheme.names == ("rest", "road", "car")
assert open_picture(mine / "masks" / "0.png").size == open_picture(mine / "images" / "0.jpg").size
print("times as fast:", ratio)
"""


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    return run_notebook("05_use", tmp_path_factory.mktemp("use"), CHECKS)


def test_what_it_claims_holds(notebook):
    text = printed(notebook)
    assert "% of the pixels get the same class" in text
    assert "photos that it has not seen" in text
    assert "times as fast:" in text


def test_it_shows_the_inspector_and_a_video(notebook):
    pages = [
        output["data"]["text/html"]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "text/html" in output.get("data", {})
    ]
    assert any("unet-inspector" in page for page in pages)
    assert any("segmented video" in page or "<video" in page for page in pages)


def test_it_is_short(notebook):
    assert len(notebook.cells) - 1 <= 18  # the last one is ours
    assert not any("exercise" in cell.metadata.get("tags", []) for cell in notebook.cells)
