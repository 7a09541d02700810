"""The ruler: groups of cities, pairing, the smallest difference that it can see."""

import argparse
import sys

import ablation
import numpy as np
import pytest
from ablation import KAGGLE_NUMBERS, Measured, cities_of, compare, deal


def matrices(accuracy, cities=12, seeds=2, noise=0.0, seed=0):
    """Confusion matrices of three classes, `int64 [cities, seeds, 3, 3]`; the noise is the same for
    all cities of a group."""
    rng = np.random.default_rng(seed)
    shift = rng.normal(0, noise, (3, seeds))[np.arange(cities) % 3]
    right = np.clip(accuracy + shift, 0, 1)[..., None, None]
    same = np.eye(3)
    counts = 10_000 * (right * same + (1 - right) * (1 - same) / 2)
    return counts.round().astype(np.int64)


GROUP = np.arange(12) % 3


def test_each_file_has_its_city():
    cities = cities_of(KAGGLE_NUMBERS)
    assert len(set(cities)) == 18
    assert (cities[0], cities[173], cities[174]) == ("aachen", "aachen", "bochum")
    assert cities[2711] == "weimar"
    assert cities[-1] == "zurich"


def test_other_pairs_have_blocks_of_consecutive_frames():
    cities = cities_of(range(1, 241))
    assert len(set(cities)) == 18
    assert cities == sorted(cities, key=lambda name: int(name.split()[1]))


def test_groups_share_no_city_and_have_about_as_many_frames():
    cities = cities_of(KAGGLE_NUMBERS)
    groups = deal(cities, 3)
    assert sorted(city for group in groups for city in group) == sorted(set(cities))
    sizes = [sum(city in group for city in cities) for group in groups]
    assert max(sizes) < 1.4 * min(sizes)
    with pytest.raises(SystemExit, match="2 to 18"):
        deal(cities, 19)


def test_settings_that_differ_are_told_apart():
    found = compare(matrices(0.80, noise=0.005), matrices(0.85, noise=0.005, seed=1), GROUP)
    assert found.low > 0
    assert found.low < found.value < found.high
    # In three balanced classes, an accuracy of p is an IoU of p / (2 - p).
    assert found.value == pytest.approx(0.85 / 1.15 - 0.80 / 1.20, abs=0.02)


def test_pairs_of_equal_trainings_do_not_differ_at_all():
    same = matrices(0.8, noise=0.1)
    assert compare(same, same, GROUP)[2:] == (0.0, 0.0)


def test_the_interval_knows_that_the_cities_of_a_training_differ_together(monkeypatch):
    monkeypatch.setattr(ablation, "ROUNDS", 200)
    contains_0 = 0
    for number in range(30):
        a = matrices(0.8, noise=0.01, seed=2 * number)
        b = matrices(0.8, noise=0.01, seed=2 * number + 1)
        found = compare(a, b, GROUP)
        contains_0 += found.low <= 0 <= found.high
    assert contains_0 >= 24  # 95 % of many; six trainings are few, so it is less


def test_the_smallest_difference_grows_with_what_the_seed_makes():
    smallest = []
    for noise in (0.0, 0.01, 0.05):
        found = Measured([], GROUP, matrices(0.8, noise=noise), 0.0)
        smallest.append(ablation.smallest_difference(found)[1])
    assert smallest[0] == 0
    assert smallest[0] < smallest[1] < smallest[2]


def test_one_seed_is_refused_before_anything_is_trained(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ablation.py", "--data", "nowhere", "--seeds", "1"])
    with pytest.raises(SystemExit):
        ablation.main()
    assert "--seeds" in capsys.readouterr().err


@pytest.mark.slow
def test_the_ruler_tells_a_network_that_learns_from_one_that_does_not(
    demo, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("UNET_UTILS_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("UNET_UTILS_RESULTS", str(tmp_path / "runs"))

    options = argparse.Namespace(photos=24, size=None, data=str(demo), recipe="demo")
    monkeypatch.setattr(ablation, "run_job", lambda job: ablation.train(options, *job))
    small = ["base_channels=4", "image_size=64", "batch_size=4", "augmentation=0"]
    settings = ["--a", "learning_rate=1e-9", *small, "--b", "learning_rate=0.01", *small]
    size = ["--photos", "24", "--groups", "2", "--out", str(tmp_path / "out")]
    command = ["ablation.py", "--data", str(demo), "--recipe", "demo", *settings, *size]
    monkeypatch.setattr(sys, "argv", command)
    ablation.main()
    first, second = capsys.readouterr().out.strip().split("The smallest difference")
    assert "with other seeds" in first
    assert "better by +" in second
    assert "from 4 trainings" in second
    monkeypatch.setattr(ablation, "run_job", lambda job: pytest.fail("trained again"))
    ablation.main()
