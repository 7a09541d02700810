"""What notebook 04 teaches: each lesson comes out as its text says, for pairs and for one's own
data, with a run and without one."""

import json

import numpy as np
import pytest
from PIL import Image
from series import printed, run_notebook
from test_own_data import COLORS, draw

from unet_utils import fit, load_trained, prepare, recipe
from unet_utils.checkpoints import packed_checkpoint, read_checkpoint
from unet_utils.evaluation import SMALL_MODEL
from unet_utils.sources import open_source
from unet_utils.use.calibration import best_temperature, sample_pixels

NAME = "04_evaluate"
TINY = {"base_channels": 4, "image_size": 64, "epochs": 1}
FACTS = """
import json

regions = region_recall(predicted, truth)
curves = calibration_curves(trained, frames)
doubtful = wrong[ranked[-2:]]
certain = (predicted == truth)[ranked[-2:]]
facts = {
    "size": trained.scene_size,
    "guess": matrix.guessing(matrix.matrix.sum(1) / matrix.matrix.sum()).mean_iou,
    "score": [low, matrix.mean_iou, high],
    "ways": [float(value) for value in ways.values()],
    "ranked": [int(wrong[i].sum()) for i in ranked],
    "near": [float(near[wrong].mean()), float(near[truth != IGNORE].mean())],
    "small": float(regions.recall[regions.areas < 16].mean()),
    "large": float(regions.recall[regions.areas > 255].mean()),
    "errors": [curve.error for curve in curves.values()],
    "bits": [float(bits[certain].mean()), float(bits[doubtful].mean())],
    "rows": [list(row) for row in rows],
    "pairs": [[pair.truth, pair.predicted, pair.pixels] for pair in (pairs[0], most)],
    "merged": [matrix.mean_iou, merged.mean_iou],
    "right": right_shares,
}
print("FACTS", json.dumps(facts))
"""


@pytest.fixture(scope="module")
def scored(demo, tmp_path_factory):
    """The notebook executed with the solutions, where two runs are: a good one, the latest, and a
    bad one. The good one is the small model, with a temperature of its own."""
    folder = tmp_path_factory.mktemp("scored")
    frames = prepare(demo, "train", folder / "data" / "prepared", progress=False)
    results = folder / "results"
    fit(frames, recipe("demo", **TINY), results / "bad", "cpu", progress=False)
    bad = read_checkpoint(results / "bad" / "best.pt")
    some = sample_pixels(load_trained(SMALL_MODEL, "cpu"), frames.part(slice(0, 6)))
    good = read_checkpoint(SMALL_MODEL)
    good |= {"data": bad["data"], "temperature": best_temperature(some)}
    good["made_by"] |= {"date": "2999-01-01T00:00:00+00:00"}
    (results / "good").mkdir()
    (results / "good" / "best.pt").write_bytes(packed_checkpoint(good))
    notebook = run_notebook(NAME, folder, FACTS, DATA=str(demo), SHOW_SOLUTION=True)
    return notebook, results


@pytest.fixture(scope="module")
def text(scored):
    return printed(scored[0])


@pytest.fixture(scope="module")
def facts(text):
    return json.loads(text.split("FACTS ")[1].splitlines()[0])


pytestmark = pytest.mark.slow


def tables(notebook):
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "\n".join(output.get("data", {}).get("text/markdown", "") for output in outputs)


def test_without_a_name_the_latest_run_is_scored_and_it_is_said_what_it_sees(text, facts):
    assert "Run: good\n" in text
    height, width = facts["size"]
    assert f"{height} x {width} pixels" in text


def test_the_score_lies_in_its_interval_and_above_guessing(facts):
    low, score, high = facts["score"]
    assert low < score < high
    assert score > 3 * facts["guess"]


def test_each_way_to_get_the_score_wrong_differs_visibly(facts):
    right, zeros, ones, void = facts["ways"]
    assert zeros < right - 0.02
    assert ones > right + 0.02
    assert void < right - 0.01


def test_no_score_is_shown_twice(scored):
    shown = tables(scored[0])
    assert "| IoU |" not in shown  # the bars have it
    assert "| severity |" not in shown


def test_frames_are_ranked_by_what_the_eye_sees(facts):
    pixels = facts["ranked"]
    places = np.argsort(np.argsort(pixels))
    assert np.corrcoef(places, range(len(pixels)))[0, 1] > 0.9


def test_many_wrong_pixels_lie_along_borders_and_small_things_are_missed(facts):
    wrong, all_pixels = facts["near"]
    assert wrong > 1.5 * all_pixels
    assert facts["large"] > 2 * facts["small"]


def test_the_temperature_mends_the_confidence(facts):
    before, after = facts["errors"]
    assert after < 0.7 * before
    if_right, if_wrong = facts["bits"]
    assert if_wrong > 2 * if_right


def test_the_score_falls_with_the_severity(facts):
    (_, _, unchanged, _), *changed = facts["rows"]
    for (change, _, mild, _), (_, _, strong, _) in zip(changed[::2], changed[1::2], strict=True):
        assert strong < min(mild, unchanged)
        # A mild night changes little for a model that has not learned from drawn streets.
        assert mild < (1.03 if change == "night" else 1.0) * unchanged


def test_the_runs_are_side_by_side_and_the_result_is_written(scored, facts):
    notebook, results = scored
    assert "| good |" in tables(notebook)
    assert "| bad |" in tables(notebook)
    result = json.loads((results / "good" / "result.json").read_text())
    assert result["scores"]["val"] == pytest.approx(facts["score"][1])
    assert "The same frames; outlined: what differs from bad" in str(notebook)


def test_the_exercises_come_out_as_they_say(text, facts):
    assert text.count("No answer yet") == 3
    assert text.count("Right!") == 3
    assert "Not yet" not in text
    by_share, by_pixels = facts["pairs"]
    assert by_pixels[2] >= by_share[2]
    apart, merged = facts["merged"]
    assert merged > apart
    assert facts["right"] == sorted(facts["right"])
    assert facts["right"][2] > facts["right"][0] + 0.01


def test_own_data_with_a_model_that_held_nothing_out(tmp_path):
    for part in ("images", "masks"):
        (tmp_path / "own" / part).mkdir(parents=True)
    for number in range(12):
        photo, labels = draw((96, 64), number)
        Image.fromarray(photo).save(tmp_path / "own" / "images" / f"{number}.jpg")
        Image.fromarray(labels).save(tmp_path / "own" / "masks" / f"{number}.png")
    (tmp_path / "own" / "classes.txt").write_text("\n".join(COLORS))
    source = open_source(tmp_path / "own", tmp_path / "data")
    frames = source.frames("train", tmp_path / "data" / "prepared")
    config = recipe("demo", hold_out=False, **TINY)
    fit(frames, config, tmp_path / "results" / "mine", "cpu", progress=False)
    notebook = run_notebook(NAME, tmp_path, DATA=str(tmp_path / "own"), FLIP=True)
    text = printed(notebook)
    assert "It knows 3 classes: road, car, sky." in text
    assert "This model has no temperature" in text
    assert (tmp_path / "results" / "mine" / "result.json").is_file()
    assert "The same frames" not in str(notebook)  # there is no second run
