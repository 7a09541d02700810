"""The lessons of notebook 01: a result first, the check of the data, the colours of one mask."""

import pytest
from series import printed, run_notebook

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def executed(demo, tmp_path_factory):
    """The notebook on a small demo set, with its solution shown and wrong and right answers."""
    then = """
from unet_utils.classes import PALETTE

assert right > 0.8, right  # a result that convinces
large = [(found == index)[truth == index].mean() for index in (0, 2, 13)]  # road, building, car
thin = [(found == index)[truth == index].mean() for index in (5, 6)]  # pole, traffic light
assert min(large) > max(thin), (large, thin)
as_bus = (found == 15)[truth == 13].mean()  # the van
assert as_bus > 0.15, as_bus
road = pairs[0][1][:, 200, 128].int() - torch.tensor([128, 64, 128])
assert road.abs().max() < 20, road  # nearly the official colour
assert not both
assert answer == expected
assert expected > 50 * len(PALETTE), expected
check(len(PALETTE), expected, "that is the table")
"""
    folder = tmp_path_factory.mktemp("notebook-01")
    return run_notebook("01_download", folder, then, DATA=str(demo), SHOW_SOLUTION=True)


def test_the_first_cells_show_a_street_before_any_data_is_asked_for(executed):
    sources = [cell.source for cell in executed.cells]
    first = next(i for i, source in enumerate(sources) if "inspector(photo" in source)
    data = next(i for i, source in enumerate(sources) if "open_source(DATA" in source)
    assert first < data
    output = executed.cells[first].outputs[-1]
    for name in ("road", "car", "person", "photo", "prediction"):
        assert name in output.data["text/html"]
    assert "image/png" in output.data


def test_the_truth_is_told_with_void_and_a_share(executed):
    cell = next(cell for cell in executed.cells if "inspector(street" in cell.source)
    assert "% of the pixels are right" in cell.outputs[0].text
    for name in ("road", "person", "traffic light"):
        assert name in cell.outputs[0].text
    assert "void (no class)" in cell.outputs[-1].data["text/html"]


def test_the_splits_are_counted_and_compared(executed):
    text = printed(executed)
    assert "train    24 files" in text
    assert "0 files are in both splits" in text


def test_the_exercise_tells_wrong_from_right(executed):
    text = printed(executed)
    assert "No answer yet" in text
    assert "Right!" in text
    assert text.rstrip().endswith("Not yet. that is the table")
