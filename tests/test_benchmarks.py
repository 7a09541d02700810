"""The benchmark's own tools: turns, ratios, the table, a failing row. Not speed."""

import json

import pytest
import torch

import benchmarks.__main__ as bench
from benchmarks.timing import Comparison, Result, in_fresh_process, interleave, table


def test_contenders_run_in_turn_after_one_unmeasured_turn():
    calls = []
    times = interleave(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b") or 6.0}, 3, {"b": 2}
    )
    assert calls == ["a", "b"] * 4
    assert times["b"] == [3.0, 3.0, 3.0]  # the seconds that it returned, per item
    assert len(times["a"]) == 3
    assert 0 < sum(times["a"]) < 1


def test_ratios_are_taken_turn_by_turn():
    slow_moment = Comparison("1", "work", "other", [1.0, 10.0, 1.2], [2.0, 20.0, 2.0], at_most=0.5)
    assert slow_moment.ratios == [0.5, 0.5, 0.6]
    assert slow_moment.ratio == 0.5
    assert slow_moment.met
    assert Comparison("1", "work", "other", [1.0], [2.0]).met is None
    assert not Comparison("6", "work", "other", [0.8], [1.0], at_most=1.1, at_least=0.9).met


def test_the_table_says_what_was_missed():
    rows = [
        Comparison(
            "1a",
            "labels",
            "restoring",
            [0.003, 0.002],
            [0.001, 0.001],
            at_most=1.5,
            unit="s per pair",
        ),
        Comparison("6", "epoch", "an eighth", [1.0], [1.0], at_most=1.1, at_least=0.9),
    ]
    lines = table(rows).splitlines()
    ours = "| 1a | labels | 2.5 ms per pair | restoring | 1 ms per pair | "
    assert lines[2].startswith(f"{ours}2.50 (2.00 to 3.00) | at most 1.5")
    assert "**missed**" in lines[2]
    assert lines[3].endswith("| 0.9 to 1.1 | met |")


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there, the memory of the GPU is measured")
def test_peak_memory_is_that_of_the_work_alone():
    ballast = torch.ones(64 * 2**20)  # 256 MB that are none of the other process's business
    result, peak = in_fresh_process(torch.ones, 16 * 2**20)  # 64 MB
    assert len(result) == 16 * 2**20
    assert 60 < peak < 200
    assert len(ballast)


def test_a_failing_row_is_reported_and_the_others_go_on(tmp_path, demo, monkeypatch, capsys):
    monkeypatch.setenv("UNET_UTILS_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("UNET_UTILS_RESULTS", str(tmp_path / "results"))
    monkeypatch.setattr(bench, "ROWS", {"1": "nowhere.nothing", "2": "working.row"})
    row = Result(
        [Comparison("2", "work", "other", [1.0], [2.0], at_most=1.0)], "Row 2: text.", {"number": 1}
    )
    monkeypatch.setitem(
        bench.sys.modules, "benchmarks.working", type("module", (), {"row": lambda setting: row})
    )
    assert (
        bench.main(["--data", str(demo), "--tiny", "--out", str(tmp_path), "--rows", "1", "2"]) == 1
    )
    report = json.loads((tmp_path / "benchmarks.json").read_text())
    assert list(report["failures"]) == ["1"]
    assert report["comparisons"][0]["met"] is True
    text = (tmp_path / "benchmarks.md").read_text()
    assert "Row 2: text." in text
    assert "row 1 (ModuleNotFoundError" in text
    assert str(tmp_path) not in text
    assert "failed: {'1'" in capsys.readouterr().out
