"""The lessons of notebook 02: the damage of the masks, what undoes it, phantoms, the classes."""

import nbformat
import pytest
import torch
from run_notebooks import ROOT
from series import printed, run_notebook

THEN = """
exact = counts[is_exact].sum() / counts.sum()
assert len(colors) > 1000 * len(PALETTE)
assert 0.05 < exact < 0.5, exact

# The pole is not found, and classes appear that nobody has drawn.
assert "pole" not in names
assert not set(names) <= {"car", "pole", "sky"}, names
assert (nearest_index == nearest_index[0]).all()


def names_of_stripes(width):
    stripes[:] = color_of["sky"]
    stripes[:, :1000] = color_of["car"]
    stripes[:, 1000 : 1000 + width] = color_of["pole"]
    row = damage(stripes)[100, 118:134]
    return [PALETTE[i].name for i in nearest_color(row, PALETTE_COLORS)]


assert "pole" in names_of_stripes(16)  # the Try box: wider poles are found

# JPEG does more damage than resizing.
damages = {row[0]: float(row[1]) for row in damage_rows}
assert damages["bicubic"] > 1
assert damages["JPEG"] > 2 * damages["bicubic"]
assert damages["both"] > damages["JPEG"]
assert all(int(row[2].split(":")[0]) >= 5 for row in damage_rows)

# Exercise 1: thin things are what the restorer is for.
assert poles["restored"] > 0.85
assert poles["nearest"] < 0.6
wrong = [(restore_label_ids(damaged[None], method)[0] != truth).mean() for method in shares]
assert wrong[1] < wrong[0] / 3, wrong

# Phantoms are found, and no class of the street is among them.
assert "trailer" in phantoms
assert not set(phantoms) & {"road", "car", "pole", "person", "rider", "traffic light"}

# Exercise 2: three classes are most of the pixels.
assert answer > 0.6
assert len(share) == 19

# k-means gives phantoms clusters, too, and more pixels than before.
assert by_kmeans > 1.5 * by_nearest, (by_kmeans, by_nearest)
# The centres that moved furthest are doubtful, also those of classes that are in the street.
assert len(rows) == 8
assert all(row[4] for row in rows), rows
assert any(float(row[3]) > 0.03 for row in rows), rows
# A phantom need not move.
assert clusters.moved[clusters.names.index("trailer")] < 30
"""


@pytest.fixture(scope="module")
def executed(demo, tmp_path_factory):
    """The notebook on a small demo set, with its solutions shown."""
    folder = tmp_path_factory.mktemp("notebook-02")
    return run_notebook("02_explore", folder, THEN, DATA=str(demo), SHOW_SOLUTION=True)


@pytest.mark.slow
def test_its_lessons_hold(executed):
    assert printed(executed).count("No answer yet") == 3


@pytest.mark.slow
def test_right_answers_are_accepted_and_wrong_ones_are_not(executed):
    """The exercises again, with answers."""
    text = printed(executed)
    assert text.count("Right!") == 3


def test_two_classes_are_enough_for_the_exercise_about_frequent_ones():
    """As with two clusters, or with data of one's own."""
    notebook = nbformat.read(ROOT / "notebooks" / "02_explore.ipynb", as_version=4)
    (source,) = [cell.source for cell in notebook.cells if "Divide the three" in cell.source]
    names = {"share": torch.tensor([0.7, 0.3]), "check": lambda *_: None}
    exec(source, names)
    assert names["expected"] == pytest.approx(1)


@pytest.mark.slow
def test_tables_are_markdown_and_the_maps_can_be_pointed_at(executed):
    data = [output.get("data", {}) for cell in executed.cells for output in cell.get("outputs", [])]
    tables = [each["text/markdown"] for each in data if "text/markdown" in each]
    assert [table.split(" | ")[0] for table in tables] == ["| damage", "| class", "| cluster"]
    pages = [each["text/html"] for each in data if "text/html" in each]
    assert len(pages) == 1
    assert "nearest" in pages[0]
    assert "restored" in pages[0]
