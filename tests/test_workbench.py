"""The workbench: short trainings side by side, what they teach, and the goals."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from unet_utils import UNet, fit, get_scheme, prepare, recipe
from unet_utils.classes import IGNORE
from unet_utils.plots.strip import plot_strip
from unet_utils.use.compare import compare_runs
from unet_utils.use.strip import Strip, run_strip
from unet_utils.use.workbench import KEPT, Tries, diverged

TINY = {"photos": 20, "base_channels": 2, "image_size": 32}
"""A try of a fraction of a second, which learns nothing."""


@pytest.fixture(scope="module")
def frames(demo, tmp_path_factory):
    return prepare(demo, "train", tmp_path_factory.mktemp("prepared"), progress=False)


@pytest.fixture
def tries(frames, tmp_path):
    return Tries(frames, tmp_path / "tries", "cpu", progress=False, **TINY)


def alt(strip):
    """Draw it; return its text for those who cannot see it."""
    return plot_strip(*strip).get_label()


def test_a_try_adds_a_column_named_by_what_differs(tries):
    tries.add(learning_rate=0.05)
    tries.add(skips=False, base_channels=4, optimizer="adam", photos=40)
    strip = tries.strip()
    assert list(strip.predictions) == [
        "baseline",
        "learning rate 0.05",
        "40 photos, width 4, no skips, Adam",
    ]
    assert strip.photos.shape == (2, 256, 256, 3)  # two frames are held out
    assert all(found.shape == strip.truth.shape for found in strip.predictions.values())
    assert strip.curves["baseline"][0][-1] == 20
    lines = tries.table.splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == [f"| {n}" for n in strip.predictions]
    assert "no skips" in alt(strip)


def test_the_baseline_and_a_repeated_try_are_trained_once(tries, monkeypatch):
    tries.add(learning_rate=0.05)
    tries.add(learning_rate=0.03)
    monkeypatch.setattr(Tries, "_train", None)
    tries.add(learning_rate=0.05)
    tries.add(augmentation=0)  # a form writes 0 for the 0.0 of the baseline
    assert list(tries.strip().predictions)[1:] == ["learning rate 0.03", "learning rate 0.05"]


def test_tries_survive_a_restart_for_the_same_data(tries, frames, tmp_path, monkeypatch, capsys):
    tries.add(learning_rate=0.05)
    before = tries.strip()
    monkeypatch.setattr(Tries, "_train", None)
    again = Tries(frames, tmp_path / "tries", "cpu", **TINY)
    after = again.strip()
    assert list(after.predictions) == list(before.predictions)
    for name, found in before.predictions.items():
        assert np.array_equal(after.predictions[name], found)
    assert after.curves == before.curves
    assert again.table == tries.table

    other = Tries(replace(frames, data="other"), tmp_path / "tries", "cpu", **TINY)
    assert not other._tries
    (file, *_) = (tmp_path / "tries").rglob("*.npz")
    assert file.stat().st_size < 2**16
    file.write_bytes(b"damaged")
    assert len(Tries(frames, tmp_path / "tries", "cpu", **TINY)._tries) == 1
    assert f"{file} cannot be read" in capsys.readouterr().out


def test_the_last_tries_stay(tries):
    for number in range(1, KEPT + 2):
        tries.add(learning_rate=number / 1000)
    names = list(tries.strip().predictions)
    assert names == ["baseline", *(f"learning rate {n / 1000:g}" for n in range(2, KEPT + 2))]
    alt(tries.strip())


def test_a_guess_is_answered_and_same_is_the_spread_of_three_seeds(tries, capsys):
    tries.add("better", learning_rate=0.0061)
    out = capsys.readouterr().out
    assert "the baseline is trained 2 more times" in out
    seeds = [tries._get(tries._settings(seed=seed)).mean_iou for seed in range(3)]
    spread = max(seeds) - min(seeds)
    assert f"Its seeds lie {spread:.3f} apart" in out
    assert list(tries.strip().predictions) == ["baseline", "learning rate 0.0061"]
    one = tries.add("same", learning_rate=1e-9)
    out = capsys.readouterr().out
    assert "more times" not in out
    change = one.mean_iou - seeds[0]
    found = "same" if abs(change) <= spread else "better" if change > 0 else "worse"
    assert (
        f"so this is {found}. You guessed same: {'right' if found == 'same' else 'not this time'}."
        in out
    )
    with pytest.raises(ValueError, match="choose better, worse or same"):
        tries.add("faster")
    with pytest.raises(ValueError, match="no setting 'learning_rat'"):
        tries.add(learning_rat=1)


def test_luck_with_another_seed_reaches_no_goal(tries):
    tries.add("same")
    for key, one in tries._tries.items():
        if one.settings["seed"]:
            tries._tries[key] = replace(one, mean_iou=1.0)
    assert tries.goals().count("Not yet") == 3


def test_what_takes_long_says_so_after_its_first_part(tries, capsys, monkeypatch):
    tries.add()
    assert "This takes" not in capsys.readouterr().out
    monkeypatch.setattr("unet_utils.use.workbench.LONG", 0)
    one = tries.add(photos=80)
    (seconds,) = re.findall(r"This takes about (\d+) seconds\.", capsys.readouterr().out)
    assert int(seconds) <= 4 * one.seconds + 1  # other programs disturb it


def test_it_works_for_few_frames_of_any_shape(frames, tmp_path):
    own = replace(
        frames.part(slice(0, 4)),
        photos=frames.photos[:4, :96, :160].clone(),
        label_ids=frames.label_ids[:4, :96, :160].clone(),
    )
    tries = Tries(own, tmp_path, "cpu", progress=False, **TINY)
    tries.add(augmentation=1.0)
    strip = tries.strip()
    assert strip.predictions["augmentation 1"].shape == (1, 96, 160)
    alt(strip)


def test_tries_are_no_runs(tries, tmp_path):
    tries.add()
    with pytest.raises(FileNotFoundError):
        compare_runs(tmp_path)


def test_the_strip_of_runs_has_the_best_earlier_one(frames, tmp_path, capsys):
    changed = {"base_channels": 2, "image_size": 32, "epochs": 2}
    for name, rate in (("good", 0.02), ("bad", 1e-9), ("now", 0.01)):
        config = recipe("demo", learning_rate=rate, **changed)
        fit(frames, config, tmp_path / name, "cpu", progress=False)
    _, held_out = frames.split(True)
    best = next(row["run"] for row in compare_runs(tmp_path).rows if row["run"] != "now")
    # The best run of all is of a network whose code is not here.
    checkpoint = torch.load(tmp_path / "good" / "best.pt")
    checkpoint["network"] = {"num_classes": 19, "other": "elsewhere.Net"}
    checkpoint["history"][0]["mean_iou"] = 0.99
    (tmp_path / "foreign").mkdir()
    torch.save(checkpoint, tmp_path / "foreign" / "best.pt")
    assert compare_runs(tmp_path).rows[0]["run"] == "foreign"
    strip = run_strip(tmp_path, ["now"], held_out, "cpu")
    assert list(strip.predictions) == [best, "now"]
    assert strip.curves["now"][0] == [1, 2]
    assert "now" in alt(strip)
    assert list(run_strip(tmp_path, ["bad", "good"], held_out, "cpu").predictions) == [
        "bad",
        "good",
    ]


def test_the_outline_encloses_what_changed():
    truth = np.zeros((1, 32, 64), dtype=np.uint8)
    truth[:, 30:] = IGNORE
    found = {"baseline": truth * 0, "try": truth * 0}
    found["try"][0, 4:8, 10:20] = 1
    found["try"][0, 30:] = 1  # void: not compared
    photos = np.zeros((1, 32, 64, 3), dtype=np.uint8)
    scheme = get_scheme("cityscapes19")
    strip = Strip(photos, truth, found, scheme, {"baseline": ([1], [1.0])}, "photos")
    figure = plot_strip(*strip)
    (line,) = [c for ax in figure.axes for c in ax.collections]
    (path,) = line.get_paths()
    (left, top), (right, bottom) = path.vertices.min(0), path.vertices.max(0)
    assert (left, right, top, bottom) == (9.5, 19.5, 3.5, 7.5)


@pytest.fixture(scope="module")
def small_tries(frames, tmp_path_factory):
    """Tries that learn something in a second or two."""
    folder = tmp_path_factory.mktemp("tries")
    baseline = {"photos": 120, "base_channels": 8, "image_size": 64}
    return Tries(frames, folder, "cpu", progress=False, **baseline)


def is_reached(tries, goal):
    return "Reached by" in next(line for line in tries.goals().splitlines() if goal in line)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("goal", "missed", "reached"),
    [
        ("diverge", {"learning_rate": 0.01}, {"learning_rate": 100.0}),
        (
            "good without skips",
            {"skips": False},
            {"skips": False, "photos": 400, "learning_rate": 0.05, "image_size": 128},
        ),
        ("a tenth more", {"photos": 160, "learning_rate": 0.07}, {"learning_rate": 0.06}),
    ],
    ids=["diverge", "skips", "photos"],
)
def test_a_goal_can_be_missed_and_reached_in_a_few_hundred_photos(
    small_tries, goal, missed, reached
):
    small_tries.add(**missed)
    assert not is_reached(small_tries, goal)
    small_tries.add(**reached)
    assert is_reached(small_tries, goal)


@pytest.mark.slow
def test_too_high_a_learning_rate_diverges_and_is_said_as_such(small_tries, capsys):
    one = small_tries.add("worse", learning_rate=1e4)
    out = capsys.readouterr().out
    assert diverged(one, 19)
    assert "It diverged: guessing has a loss of 2.94" in out
    assert "You guessed worse: right." in out
    assert small_tries.table.splitlines()[-1].endswith("| diverged |")
    alt(small_tries.strip())
    not_a_number = replace(one, history=[(40, math.nan)])
    assert diverged(not_a_number, 19)


@pytest.mark.slow
def test_without_skips_it_is_worse(small_tries):
    with_skips = small_tries.add(learning_rate=0.06, photos=300)
    without = small_tries.add(learning_rate=0.06, photos=300, skips=False)
    assert without.mean_iou < with_skips.mean_iou
    assert without.history[-1][1] > with_skips.history[-1][1]


def test_without_skips_the_contracting_path_is_seen_only_through_the_bottom():
    torch.manual_seed(0)
    with_skips = UNet(3, 5, 2).eval()
    torch.manual_seed(0)
    without = UNet(3, 5, 2, skips=False).eval()
    assert all(map(torch.equal, with_skips.state_dict().values(), without.state_dict().values()))
    x = torch.randn(1, 3, 32, 32)
    contracting, expanding = without.features(x)
    *_, bottom = contracting
    with torch.no_grad():
        y = bottom
        for up, skip in zip(without.up, contracting[-2::-1], strict=True):
            y = up(y, torch.zeros_like(skip))
    assert torch.equal(expanding[-1], y)
    assert not torch.allclose(with_skips(x), without(x))
    assert UNet(**without.config).config["skips"] is False
