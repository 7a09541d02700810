import json

import numpy as np
import pytest
import torch

from unet_utils import UNet, get_scheme, recipe
from unet_utils.use.compare import compare_runs


def write_run(results, name, scores, file="last.pt", scheme="cityscapes19", **knobs):
    """A run of one minute per epoch, with these scores on the held-out cities."""
    config, model = recipe("demo", epochs=5, **knobs), UNet(3, 19, 2)
    history = [
        {"epoch": i, "loss": 1.0, "seconds": 60.0, "mean_iou": score}
        for i, score in enumerate(scores, 1)
    ]
    checkpoint = {
        "format": 1,
        "model": model.state_dict(),
        "model_config": model.config,
        "epoch": len(scores),
        "history": history,
        "config": config.to_dict(),
        "scheme": get_scheme(scheme).to_dict(),
    }
    (results / name).mkdir(exist_ok=True)
    torch.save(checkpoint, results / name / file)


@pytest.fixture
def results(tmp_path):
    write_run(tmp_path, "plain", [0.1, 0.3, 0.2])
    write_run(tmp_path, "wide", [0.2, 0.4], base_channels=32)
    (tmp_path / "wide" / "evaluation.json").write_text(
        json.dumps({"mean_iou": 0.35, "mean_iou_95": [0.3, 0.41]})
    )
    return tmp_path


def test_runs_are_side_by_side(results):
    comparison = compare_runs(results)
    assert comparison.table.splitlines() == [
        "| run | settings that differ | epochs | minutes | held-out mIoU | val mIoU (95 % interval) |",
        "|---|---|---|---|---|---|",
        "| wide | base_channels 32 | 2 of 5 | 2.0 | 0.400 | 0.350 (0.300 to 0.410) |",
        "| plain | base_channels 16 | 3 of 5 | 3.0 | 0.300 | – |",
    ]
    minutes, scores = comparison.curves["plain"]
    assert minutes.tolist() == [1, 2, 3]
    assert scores.tolist() == [0.1, 0.3, 0.2]
    assert list(compare_runs(results, ["plain"]).curves) == ["plain"]
    assert comparison.rows[1]["settings"] == {"base_channels": 16}


def test_only_settings_that_differ_are_shown(results):
    write_run(results, "seven", [0.5], scheme="categories7", learning_rate=0.01)
    settings = {row["run"]: row["settings"] for row in compare_runs(results).rows}
    assert settings["seven"] == {
        "classes": "categories7",
        "base_channels": 16,
        "learning_rate": 0.01,
    }
    assert (
        "| seven | classes categories7, base_channels 16, learning_rate 0.01 |"
        in compare_runs(results).table
    )
    assert (
        compare_runs(results, ["plain"]).table.splitlines()[2].startswith("| plain |  | 3 of 5 |")
    )


def test_damaged_and_foreign_runs_are_named_and_left_out(results, capsys):
    for name, content in (("damaged", b"no checkpoint"), ("empty", b"")):
        (results / name).mkdir()
        (results / name / "last.pt").write_bytes(content)
    (results / "foreign").mkdir()
    torch.save({"model": {}}, results / "foreign" / "best.pt")
    write_run(results, "odd", [0.1])
    checkpoint = torch.load(results / "odd" / "last.pt", weights_only=True)
    for part, value in (("history", None), ("config", {"epochs": -1}), ("scheme", {})):
        torch.save(checkpoint | {part: value}, results / "odd" / "last.pt")
        assert list(compare_runs(results).curves) == ["wide", "plain"]
        out = capsys.readouterr().out
        assert all(f"Left out: {name} (" in out for name in ("damaged", "empty", "foreign", "odd"))
    (results / ".ipynb_checkpoints").mkdir()
    (results / "notes.txt").touch()
    compare_runs(results)
    assert "ipynb" not in capsys.readouterr().out


def test_a_run_without_last_or_without_scores_counts(results, capsys):
    write_run(results, "best only", [0.1, 0.2], file="best.pt")
    write_run(results, "all frames", [np.nan], hold_out=False)
    (results / "all frames" / "evaluation.json").write_text(
        '{"mean_iou": null, "mean_iou_95": [null, null]}'
    )
    (results / "plain" / "evaluation.json").write_text('{"mean_iou": ')
    table = compare_runs(results).table
    assert "| best only | base_channels 16, hold_out True | 2 of 5 | 2.0 | 0.200 | – |" in table
    assert "| all frames | base_channels 16, hold_out False | 1 of 5 | 1.0 | – | – |" in table
    assert "evaluation.json cannot be read" in capsys.readouterr().out


def test_without_a_run_it_says_what_to_do(tmp_path):
    for folder in (tmp_path, tmp_path / "gone"):
        with pytest.raises(FileNotFoundError, match="train a model first"):
            compare_runs(folder)
