"""Records: each row runs from its command, and its line says what it is."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import model_card
import pytest
import record
import torch
from torch import nn

from benchmarks.peers import CopiedDataset, NamedClusters, Trainer
from unet_utils import load_trained, prepare
from unet_utils.evaluation import SMALL_MODEL
from unet_utils.use import robustness

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(autouse=True)
def folders(data, tmp_path, monkeypatch):
    monkeypatch.setenv("UNET_UTILS_DATA", str(data))
    monkeypatch.setenv("UNET_UTILS_RESULTS", str(tmp_path / "runs"))


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A folder for results, in which each row is trained once for all tests."""
    return tmp_path_factory.mktemp("records")


def run_trial(row, demo, out):
    record.main([row, "--data", str(demo), "--trial", "--out", str(out)])
    return json.loads((out / "trial" / f"{row}-0.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("row", list(record.ROWS))
def test_each_row_runs_from_its_command(row, demo, kept, capsys):
    result = run_trial(row, demo, kept)
    assert 0 < result["scores"]["pixel_accuracy"] < 1
    assert result["seconds"] > 0
    assert result["clock"] > 0
    text = capsys.readouterr().out
    last = text.strip().splitlines()[-1]
    assert last.startswith(f"| {record.ROWS[row].title}")
    assert "not the Kaggle pairs" in last
    assert "a trial" in last


@pytest.mark.slow
def test_labels_by_nearest_colour_are_learned_but_not_scored_on(demo, kept):
    nearest = run_trial("nearest", demo, kept)
    restored = run_trial("scratch", demo, kept)
    assert nearest["made_by"]["labels"] == restored["made_by"]["labels"]
    runs = [
        torch.load(kept / "trial" / f"{row}-0" / "best.pt", weights_only=True)
        for row in ("nearest", "scratch")
    ]
    assert [run["data"]["labels"] for run in runs] == ["nearest", "restored"]


@pytest.mark.slow
def test_a_seed_that_is_kept_is_not_trained_again(demo, kept, monkeypatch):
    first = run_trial("scratch", demo, kept)
    monkeypatch.setattr(record, "run", lambda *_: pytest.fail("trained again"))
    assert run_trial("scratch", demo, kept) == first


@pytest.mark.slow
def test_an_interrupted_training_goes_on_only_as_it_was_begun(demo, tmp_path, monkeypatch):
    """The clock and the code are those of its beginning."""

    def interrupted(row, job, facts):
        seen.append((job.clock, facts["commit"]))
        raise KeyboardInterrupt

    def start(commit, clock):
        monkeypatch.setattr(record, "made_by", lambda device: {"commit": commit})
        monkeypatch.setattr(record, "measure_clock", lambda job: clock)
        record.main(["scratch", "--data", str(demo), "--trial", "--out", str(tmp_path / "out")])

    seen = []
    monkeypatch.setattr(record, "run", interrupted)
    for clock in (100.0, 200.0):
        with pytest.raises(KeyboardInterrupt):
            start("1234", clock)
    assert seen == [(100.0, "1234"), (100.0, "1234")]
    with pytest.raises(SystemExit, match="begun with commit 1234, now it is 5678"):
        start("5678", 100.0)
    (tmp_path / "out" / "trial" / "scratch-0" / "begun.json").unlink()  # of an older version
    with pytest.raises(SystemExit, match="begun with commit None"):
        start("1234", 100.0)


def test_the_clock_of_a_gpu_is_15_minutes():
    env = SimpleNamespace(device=torch.device("cuda"))
    assert record.measure_clock(record.Job(env, None, 0, 0.0, ROOT)) == 900


def result(seed, mean_iou, labels="abc", **changes):
    made_by = {"device": "CPU", "cores": 2, "precision": "float32", "torch": "2.11.0"}
    made_by |= {"date": "2026-01-01T00:00", "labels": labels, "commit": "1234", "pairs": True}
    return {
        "seed": seed,
        "scores": {"mean_iou": mean_iou, "pixel_accuracy": 0.9},
        "seconds": 1800,
        "clock": 3600,
        "trial": False,
        "made_by": made_by,
    } | changes


def test_the_line_has_the_mean_and_the_range_of_the_seeds():
    cells = record.line("scratch", [result(0, 0.5), result(1, 0.53), result(2, 0.52)])
    assert cells[2] == "0.517 (0.500 to 0.530, 3 seeds)"
    assert cells[3:5] == ["0.900", "1800 (0.50)"]
    assert cells[6] == "1234"
    assert record.line("scratch", [result(0, 0.5)])[2] == "0.500 (one seed)"


def test_the_line_tells_of_each_seed_what_made_it():
    other = result(1, 0.5)
    other["made_by"] |= {"commit": "5678", "cores": 8, "pairs": False}
    cells = record.line("scratch", [result(0, 0.5), other])
    assert "not the Kaggle pairs" in cells[0]
    assert cells[6] == "1234, 5678"
    assert "2 threads" in cells[7]
    assert "8 threads" in cells[7]
    with pytest.raises(ValueError, match="different labels"):
        record.line("scratch", [result(0, 0.5), result(1, 0.5, labels="def")])


def test_the_line_is_printed_again_without_data(tmp_path, capsys):
    (tmp_path / "scratch-wide-0.json").write_text("of another row")
    with pytest.raises(SystemExit):
        record.main(["scratch", "--print", "--out", str(tmp_path)])
    assert "no result of scratch" in capsys.readouterr().err
    for seed in (0, 1):
        text = json.dumps(result(seed, 0.5 + seed / 100))
        (tmp_path / f"scratch-{seed}.json").write_text(text)
    record.main(["scratch", "--print", "--out", str(tmp_path)])
    assert "0.505 (0.500 to 0.510, 2 seeds)" in capsys.readouterr().out


def test_the_workflow_offers_the_rows_that_there_are():
    workflow = (ROOT / ".github" / "workflows" / "record.yml").read_text()
    [options] = re.findall(r"options: \[(.*)\]", workflow)
    assert options.split(", ") == list(record.ROWS)


def test_a_record_is_no_trial():
    assert record.line("scratch", [result(0, 0.5)])[0] == "our recipe from scratch"
    assert "not a record" in record.line("scratch", [result(0, 0.5, trial=True)])[0]


def test_the_clock_stops_the_ways_of_others():
    model = nn.Conv2d(3, 2, 1)
    trainer = Trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        lambda device: torch.autocast(device.type, enabled=False),
    )
    used = []

    def batches():
        for number in range(5):
            used.append(number)
            yield torch.randn(1, 3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.long)

    trainer.train(batches(), epochs=1, seconds=0)
    assert used == [0]
    trainer.train(batches(), epochs=1, seconds=1000)
    assert used == [0, *range(5)]


def test_clusters_count_as_the_most_frequent_class_of_their_pixels(demo, data):
    frames = prepare(demo, "train", data / "prepared", progress=False).part(slice(4))
    paths = sorted((demo / "train").glob("*.jpg"), key=lambda path: int(path.stem))[:4]
    named = NamedClusters(nn.Identity(), CopiedDataset(paths, 256), frames, 10)
    counts = frames.class_counts()
    # The clusters of the copied recipe have no names: the large classes take most of them.
    assert counts.argmax().item() in named.classes
    clusters = torch.full((1, 10, 2, 2), -5.0)
    clusters[0, 3] = 5.0
    assert named(clusters).argmax(1).unique().tolist() == [named.classes[3]]


@pytest.mark.slow
def test_the_figures_of_the_model_card_come_from_one_command(demo, capsys):
    model_card.main(["--data", str(demo)])
    text = capsys.readouterr().out
    assert "calibration error" in text
    assert f"| temperature {load_trained(SMALL_MODEL, 'cpu').temperature:.2f} |" in text
    scores = dict(re.findall(r"^\| (.*) \| ([\d.]+) \|$", text, re.MULTILINE))
    whole, *cut = [scores[camera] for camera in model_card.CAMERAS]
    assert re.search(rf"^\| unchanged \|.*\| {whole} \|$", text, re.MULTILINE)
    assert all(0.2 < float(score) < 1 for score in cut)
    for change in robustness.CHANGES:
        assert text.count(f"| {change} |") == 2
