"""All runs side by side: what differs, and only scores of the very model."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from unet_utils import ConfusionMatrix, UNet, find_clusters, get_scheme, recipe
from unet_utils.__main__ import main
from unet_utils.evaluation import SMALL_MODEL
from unet_utils.frames import Frames
from unet_utils.platform.environment import Environment
from unet_utils.use.compare import (
    choose_model,
    compare_results,
    compare_runs,
    latest_run,
    runs_like,
    save_result,
)
from unet_utils.use.reports import save_model_scores, save_scores, scores_folder

HEADER = "| run | what differs | epochs (min) | held-out mIoU | val mIoU (95 % interval) |"


def names(comparison):
    return [row["run"] for row in comparison.rows]


def write_run(results, name, scores, files=("best.pt", "last.pt"), date="2026-01-01", **changed):
    """A run of one minute per epoch, with these scores on the held-out frames."""
    data = {"files": "abc", "labels": changed.pop("labels", "restored"), "frames": 24}
    device = changed.pop("device", "CPU")
    start_from = changed.pop("start_from", "")
    scheme = get_scheme(changed.pop("scheme", "cityscapes19"))
    model = UNet(3, scheme.num_classes, 2)
    checkpoint = {
        "format": 1,
        "model": model.state_dict(),
        "network": changed.pop("network", model.config),
        "scene_size": [64, 64],
        "epoch": len(scores),
        "history": [
            {"epoch": epoch, "loss": 1.0, "seconds": 60.0, "mean_iou": score}
            for epoch, score in enumerate(scores, 1)
        ],
        "config": recipe("demo", epochs=5, **changed).to_dict(),
        "scheme": scheme.to_dict(),
        "data": data,
        "start_from": start_from,
        "made_by": {
            "version": "1",
            "device": device,
            "date": f"{date}T12:00:00+00:00",
            "weights": f"hash of {name}",
        },
    }
    (results / name).mkdir(parents=True, exist_ok=True)
    for file in files:
        torch.save(checkpoint, results / name / file)


def write_scores(folder, mean_iou, weights, **made_by):
    made_by["weights"] = weights
    scores = {"mean_iou": mean_iou, "mean_iou_95": [0.3, 0.41], "made_by": made_by}
    (folder / "evaluation.json").write_text(json.dumps(scores))


@pytest.fixture
def results(tmp_path):
    write_run(tmp_path, "plain", [0.1, 0.3, 0.2])
    write_run(tmp_path, "wide", [0.2, 0.4], base_channels=32)
    write_scores(tmp_path / "wide", 0.35, "hash of wide")
    return tmp_path


def test_runs_are_side_by_side(results):
    comparison = compare_runs(results)
    assert comparison.table.splitlines() == [
        HEADER,
        "|---|---|---|---|---|",
        "| wide | base_channels 32 | 2 of 5 (2.0) | 0.400 | 0.350 (0.300 to 0.410) |",
        "| plain | base_channels 16 | 3 of 5 (3.0) | 0.300 | – |",
    ]
    assert names(compare_runs(results, ["plain"])) == ["plain"]
    with pytest.raises(FileNotFoundError, match=r"no such run in .*; there are: plain, wide$"):
        compare_runs(results, ["plane", "wid"])


def test_only_what_differs_is_shown(results):
    write_run(results, "seven", [0.5], scheme="categories7", learning_rate=0.01, labels="nearest")
    settings = {row["run"]: row["settings"] for row in compare_runs(results).rows}
    assert settings["seven"] == {
        "classes": "categories7",
        "labels": "nearest",
        "base_channels": 16,
        "learning_rate": 0.01,
    }
    assert "labels nearest, base_channels 16, learning_rate 0.01 |" in compare_runs(results).table
    alone = compare_runs(results, ["plain"]).table.splitlines()[2]
    assert alone.startswith("| plain |  | 3 of 5 (")


def test_another_number_of_clusters_is_another_set_of_classes(tmp_path):
    colors = np.eye(3, dtype=np.uint8) * 200
    for name, count in (("two", 2), ("three", 3), ("again", 3)):
        scheme = find_clusters(colors, np.full(3, 100), count).scheme()
        write_run(tmp_path, name, [0.4], scheme=scheme)
    assert sorted(runs_like(tmp_path, "three")) == ["again", "three"]
    assert compare_runs(tmp_path, ["two", "three"]).rows[0]["settings"]["classes"] == "clusters2"


def test_what_made_a_run_and_its_scores_is_shown_where_it_differs(results):
    write_run(results, "gpu", [0.35], device="T4", date="2026-02-02")
    write_scores(results / "wide", 0.35, "hash of wide", device="CPU", labels="12ab", flip=False)
    write_scores(results / "gpu", 0.4, "hash of gpu", device="CPU", labels="34cd", flip=True)
    settings = {row["run"]: row["settings"] for row in compare_runs(results).rows}
    assert settings["gpu"] == {
        "base_channels": 16,
        "device": "T4",
        "date": "2026-02-02",
        "scored on labels": "34cd",
        "mirrored": True,
    }
    assert "scored on labels" not in settings["plain"]


def test_where_a_run_started_is_shown(results):
    write_run(results, "second", [0.5], start_from="plain/best.pt (0123abcd)")
    settings = {row["run"]: row["settings"] for row in compare_runs(results).rows}
    assert settings["second"]["start_from"] == "plain/best.pt (0123abcd)"
    assert settings["wide"]["start_from"] == "none"


def test_scores_of_another_model_are_never_shown(results):
    """Whatever the times of the files say: the scores belong to weights."""
    write_scores(results / "plain", 0.999, "hash of a model from elsewhere")
    assert "0.999" not in compare_runs(results).table
    write_scores(results / "plain", 0.888, "hash of plain", data="other than abc")
    assert "0.888" not in compare_runs(results).table
    write_scores(results / "plain", 0.222, "hash of plain", data="abc")
    assert "0.222" in compare_runs(results).table


def test_a_model_from_elsewhere_has_scores_of_its_own(results, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("downloads") / "wide" / "best.pt"

    def folder(checkpoint, weights):
        return scores_folder(results, checkpoint, weights).relative_to(results).as_posix()

    assert folder(results / "wide" / "best.pt", "hash of wide") == "wide"
    assert folder(elsewhere, "hash of wide") == "wide"  # a copy of the very model
    assert folder(elsewhere, "0123456789abcdef") == "wide-01234567"
    assert folder(results / "wide" / "last.pt", "0123456789abcdef") == "wide-01234567"
    assert (
        folder(elsewhere.parent.with_name("unknown") / "best.pt", "0123456789")
        == "unknown-01234567"
    )
    assert folder(SMALL_MODEL, "0123456789") == "small-model"

    before = compare_runs(results).table
    matrix = ConfusionMatrix(19)
    matrix.update(np.array([1, 2]), np.array([1, 3]))
    made_by = {"weights": "0123456789abcdef", "device": "CPU"}
    save_scores([matrix], get_scheme("cityscapes19"), results / "wide-01234567", made_by=made_by)
    scores = json.loads((results / "wide-01234567" / "evaluation.json").read_text())
    assert scores["made_by"] == made_by
    assert compare_runs(results).table == before


def test_scores_on_other_data_do_not_replace_those_of_the_run(results, tmp_path, capsys):
    env = Environment("local", torch.device("cpu"), tmp_path, results)
    scheme = get_scheme("cityscapes19")
    trained = SimpleNamespace(made_by={"weights": "hash of wide"}, data="abc", scheme=scheme)
    matrix = ConfusionMatrix(19)
    matrix.update(np.array([1, 2]), np.array([1, 3]))
    nothing = torch.zeros(1, 2, 2, dtype=torch.uint8)

    def folder(data):
        frames = Frames(nothing[..., None], nothing, scheme, (1,), source=data)
        checkpoint = results / "wide" / "best.pt"
        return save_model_scores([matrix], trained, checkpoint, frames, env).parent.name

    before = compare_runs(results).table
    assert folder("0123456789abcdef") == "wide-on-01234567"
    assert "learned from other data" in capsys.readouterr().out
    assert compare_runs(results).table == before
    assert folder("abc") == folder("") == "wide"
    assert compare_runs(results).table != before


def test_the_latest_run_that_fits(results, tmp_path):
    write_run(results, "seven", [0.5], scheme="categories7", date="2026-03-03")
    write_run(results, "wide", [0.5], date="2026-02-02")
    torch.save({"model": {}}, results / "plain" / "best.pt")
    assert latest_run(results) == "seven"
    assert latest_run(results, data="abc") == "seven"
    assert latest_run(results, data="other") is None
    assert latest_run(tmp_path / "none") is None


def test_a_network_of_somebody_else_is_told_apart_and_never_the_latest(results):
    write_run(results, "foreign", [0.9], date="2030-01-01", network={"other": "elsewhere.Net"})
    settings = {row["run"]: row["settings"] for row in compare_runs(results).rows}
    assert settings["foreign"]["network"] == "elsewhere.Net"
    assert settings["plain"]["network"] == "UNet"
    assert latest_run(results) in ("plain", "wide")


def test_a_model_is_chosen_by_its_name_or_as_the_latest_that_fits(results, tmp_path, capsys):
    env = Environment("local", torch.device("cpu"), tmp_path, results)
    write_run(results, "seven", [0.5], scheme="categories7", date="2026-03-03")
    assert choose_model(" wide\n", env) == results / "wide" / "best.pt"
    assert choose_model(" ", env, "abc") == results / "seven" / "best.pt"
    assert capsys.readouterr().out == "Run: wide\nRun: seven\n"
    assert choose_model("", env, "other") == SMALL_MODEL
    assert "the small model of the package" in capsys.readouterr().out
    write_run(results, "seven-10", [0.5])
    write_run(results, "seven-9", [0.5])
    runs = "plain, seven, seven-9, seven-10, wide"
    with pytest.raises(FileNotFoundError, match=rf"no run 'wid' .* there are: {runs}\."):
        choose_model("wid", env)
    assert choose_model("Small", env) == SMALL_MODEL
    write_run(results, "small", [0.5])
    assert choose_model("small", env) == results / "small" / "best.pt"


def test_runs_of_other_classes_or_data_are_not_alike(results):
    write_run(results, "seven", [0.5], scheme="categories7")
    write_run(results, "nearest", [0.5], labels="nearest")
    write_run(results, "better", [0.9])
    assert runs_like(results, "plain") == ["better", "wide", "plain"]
    assert runs_like(results, "seven") == ["seven"]
    with pytest.raises(FileNotFoundError, match="no usable run 'eight'"):
        runs_like(results, "eight")


def test_on_drive_the_backup_of_a_run_is_used(results, tmp_path):
    env = Environment("colab", torch.device("cpu"), tmp_path / "data", results, tmp_path)
    assert choose_model("wide", env) == results / "wide" / "best.pt"


def test_damaged_and_foreign_runs_are_named_and_left_out(results, capsys):
    for name, content in (("damaged", b"no checkpoint"), ("empty", b"")):
        (results / name).mkdir()
        (results / name / "best.pt").write_bytes(content)
    (results / "foreign").mkdir()
    torch.save({"model": {}}, results / "foreign" / "best.pt")
    write_run(results, "odd", [0.1])
    checkpoint = torch.load(results / "odd" / "last.pt", weights_only=True)
    for part, value in (("history", None), ("config", None), ("scheme", {})):
        torch.save(checkpoint | {part: value}, results / "odd" / "last.pt")
        assert names(compare_runs(results)) == ["wide", "plain"]
        out = capsys.readouterr().out
        assert all(f"Left out: {name} (" in out for name in ("damaged", "empty", "foreign", "odd"))
    for folder in (".ipynb_checkpoints", "figures", "tries/1"):  # no runs: not a word of them
        (results / folder).mkdir(parents=True)
    write_run(results / "tries", "2", [0.9])
    (results / "notes.txt").touch()
    compare_runs(results)
    assert capsys.readouterr().out.count("\n") == 4
    compare_runs(results, ["plain", "figures"])
    assert "Left out: figures (no checkpoint" in capsys.readouterr().out


def test_a_run_without_last_or_without_scores_counts(results, capsys):
    write_run(results, "best only", [0.1, 0.2], files=["best.pt"])
    write_run(results, "all frames", [np.nan], hold_out=False)
    (results / "plain" / "evaluation.json").write_text('{"mean_iou": ')
    table = compare_runs(results).table
    assert "| best only | base_channels 16, hold_out True | 2 of 5 (2.0) | 0.200 | – |" in table
    assert "| all frames | base_channels 16, hold_out False | 1 of 5 (1.0) | – | – |" in table
    assert "evaluation.json cannot be read" in capsys.readouterr().out


def test_without_a_run_it_says_what_to_do(tmp_path):
    for folder in (tmp_path, tmp_path / "gone"):
        with pytest.raises(FileNotFoundError, match="train a model first"):
            compare_runs(folder)


def test_a_result_holds_settings_seed_origin_and_scores(results, tmp_path_factory):
    path = save_result(results / "wide", results / "wide")
    assert path == results / "wide" / "result.json"
    result = json.loads(path.read_text())
    assert result["run"] == "wide"
    assert result["seed"] == 0
    assert result["settings"]["base_channels"] == 32
    assert result["settings"]["classes"] == "cityscapes19"
    assert result["epochs"] == [2, 5]
    assert result["made_by"]["weights"] == "hash of wide"
    assert result["scores"] == {"held_out": 0.4, "val": 0.35, "val_95": [0.3, 0.41]}

    backup = tmp_path_factory.mktemp("drive") / "wide"  # not scored there yet
    scores = json.loads(save_result(results / "wide", backup).read_text())["scores"]
    assert scores == {"held_out": 0.4, "val": None, "val_95": None}
    assert names(compare_runs(results)) == ["wide", "plain"]  # as before


def test_a_result_that_cannot_be_written_is_said_and_stops_nothing(results, tmp_path, capsys):
    """As on a Drive that is full or gone: a notebook goes on."""
    (tmp_path / "drive").write_text("no folder")
    assert save_result(results / "wide", tmp_path / "drive" / "wide") is None
    out = capsys.readouterr().out
    assert "result.json could not be written (" in out
    assert "free some space" in out
    save_result(results / "wide", tmp_path / "there")
    assert capsys.readouterr().out.endswith(f"{tmp_path / 'there' / 'result.json'}\n")


def test_a_folder_of_sixty_results_is_ranked(tmp_path, monkeypatch, capsys):
    """As a teacher has them: one folder or one file per student, and all kinds of other files."""
    write_run(tmp_path / "runs", "demo", [0.2], seed=3)
    handed_in = tmp_path / "handed in"
    result = json.loads(save_result(tmp_path / "runs" / "demo", handed_in / "anna").read_text())
    for number in range(59):
        scores = {"held_out": 0.3, "val": (number + 1) / 100, "val_95": [0.01, 0.99]}
        changed = {**result, "scores": scores}
        changed["settings"] = result["settings"] | {"learning_rate": number / 1000}
        (handed_in / f"student {number:02}.json").write_text(json.dumps(changed))
    (handed_in / "anna" / "evaluation.json").write_text('{"mean_iou": 0.99}')
    (handed_in / "broken.json").write_text("{")
    for hidden in (".ipynb_checkpoints/result-checkpoint.json", "anna/._result.json"):
        (handed_in / hidden).parent.mkdir(exist_ok=True)
        (handed_in / hidden).write_text(json.dumps(result))
    cheat = {**result, "scores": {"held_out": 0.3, "val": 17, "val_95": [0, 1]}}
    (handed_in / "cheat.json").write_text(json.dumps(cheat))
    monkeypatch.setenv("UNET_UTILS_RESULTS", str(tmp_path / "none"))
    main(["compare", str(handed_in)])
    out = capsys.readouterr().out
    assert "Left out: broken.json (" in out
    assert "Left out: cheat.json (a score is 17: it must be between 0 and 1)" in out
    names = [line.split(" | ")[0].removeprefix("| ") for line in out.splitlines() if "of 5" in line]
    assert names == [*(f"student {number:02}" for number in reversed(range(59))), "anna"]
    assert "| student 58 | learning_rate 0.058 | 1 of 5 (1.0) | 0.300 | 0.590 (" in out
    assert "2026-01-01" not in out


def test_results_of_other_classes_stand_apart(tmp_path):
    for name, score, changed in (
        ("one", 0.3, {}),
        ("two", 0.2, {}),
        ("seven", 0.7, {"scheme": "categories7"}),
    ):
        write_run(tmp_path / "runs", name, [score], **changed)
        save_result(tmp_path / "runs" / name, tmp_path / "results" / name)
    rows = compare_results(tmp_path / "results").rows
    assert [row["run"] for row in rows] == ["one", "two", "seven"]
    assert rows[2]["settings"] == {"classes": "categories7"}
    with pytest.raises(FileNotFoundError, match=r"no result\.json in"):
        compare_results(tmp_path / "runs")
