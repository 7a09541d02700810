"""The settings of a run: known before anything uses them, and the same wherever they are used."""

import math
from dataclasses import replace

import pytest
import torch

from unet_utils import fit, recipe
from unet_utils.augment import draw_changes
from unet_utils.checkpoints import packed_checkpoint, read_checkpoint
from unet_utils.config import (
    RECIPES,
    SETTINGS,
    TrainConfig,
    recipe_for,
    run_name,
    run_settings,
    settings_table,
)
from unet_utils.schedule import Schedule

TINY = {"base_channels": 2, "fold": 1, "image_size": 32, "batch_size": 4, "epochs": 2}
NOTHING_SET = {setting.name: None for setting in SETTINGS}


@pytest.fixture
def run(frames, tmp_path):
    """A folder with a run of one epoch at 64 pixels that holds nothing out, and its settings."""
    changed = TINY | {"image_size": 64, "hold_out": False, "epochs": 1}
    config = run_settings(tmp_path, None, "demo", **NOTHING_SET | changed)
    fit(frames, config, tmp_path, "cpu", progress=False)
    return tmp_path, config


def test_a_second_session_with_nothing_set_uses_one_truth_everywhere(frames, run, monkeypatch):
    """Table, split, live pictures and training agree, although the recipe says otherwise."""
    from unet_utils.plots.live import LiveTraining

    folder, begun = run
    config = run_settings(folder, None, "demo", **NOTHING_SET)
    assert config == begun
    assert (config.image_size, config.hold_out) != (recipe("demo").image_size, True)
    assert "| image_size | 64 | 256 |" in settings_table(config, "demo")
    assert "| hold_out | False | True |" in settings_table(config, "demo")
    learn, held_out = frames.split(config.hold_out)
    assert len(learn) == len(frames)
    assert held_out is None

    seen = {}

    def train_epoch(state, learn, config, *rest):
        seen["learn"] = len(learn)
        seen["config"] = config
        return {"epoch": state.epoch + 1, "loss": 1.0, "seconds": 1.0, "images_per_second": 1.0}

    def predict_classes(model, photos, size):
        seen["live"] = size
        return torch.zeros(len(photos), 256, 256, dtype=torch.uint8)

    monkeypatch.setattr("unet_utils.training.train_epoch", train_epoch)
    monkeypatch.setattr("unet_utils.plots.live.predict_classes", predict_classes)
    monkeypatch.setattr(LiveTraining, "_show", lambda *_, **__: None)
    longer = run_settings(folder, None, "demo", **NOTHING_SET | {"epochs": 2})
    live = LiveTraining(held_out or learn, longer)
    fit(frames, longer, folder, "cpu", progress=False, on_epoch=live.epoch)
    assert seen["learn"] == len(frames)
    assert seen["config"] == longer == replace(begun, epochs=2)
    assert seen["live"] == longer.scene_size(256, 256) == (64, 64)


def test_a_resumed_run_keeps_its_settings_on_another_machine(run, capsys):
    folder, begun = run
    assert run_settings(folder, None, "cpu") == begun
    assert "changed" not in capsys.readouterr().out
    changed = {"batch_size": 2, "epochs": 3, "learning_rate": 1e-3, "augmentation": 0.0, "seed": 9}
    assert run_settings(folder, None, "gpu", **changed) == replace(begun, **changed)
    assert "changed: batch_size 2 (before: 4)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("base_channels", 3),
        ("fold", 2),
        ("encoder", "efficientnet_lite0"),
        ("skips", False),
        ("optimizer", "adam"),
        ("hold_out", True),
        ("auxiliary", 0.4),
        ("encoder_rate", 0.1),
    ],
)
def test_what_makes_another_network_or_another_judge_is_refused(frames, run, name, value):
    folder, begun = run
    changed = {name: value} | ({"fold": 1} if name == "encoder" else {})
    with pytest.raises(ValueError, match=f"begun with {name} .*another run name"):
        run_settings(folder, None, "demo", **changed)
    with pytest.raises(ValueError, match=f"begun with {name} "):
        fit(frames, replace(begun, **changed), folder, "cpu", progress=False)


def test_without_resuming_a_run_has_the_settings_of_its_recipe(run):
    folder, _ = run
    assert run_settings(folder, None, "demo", resume=False) == recipe("demo")


def test_the_settings_come_from_the_backup_when_the_machine_is_new(run, tmp_path):
    folder, begun = run
    assert run_settings(tmp_path / "new machine", folder, "demo") == begun


def test_a_run_names_itself_from_what_the_person_set(tmp_path, monkeypatch):
    assert run_name("kaggle", "cityscapes19", "restored", **NOTHING_SET) == "kaggle"
    name = run_name("demo", "categories7", "nearest", learning_rate=0.02, encoder="resnet34")
    assert name == "demo_categories7_nearest_encoder-resnet34_learning_rate-0.02"
    assert run_name("a/b/mine.zip", "cityscapes19", "restored", growth=0.5) == "mine_growth-0.5"
    for start_from in ("small", "runs/small/best.pt", "elsewhere/small.pt"):
        assert (
            run_name("mine", "own", "restored", start_from, seed=2) == "mine_own_from-small_seed-2"
        )
    longer = {"epochs": 90, "batch_size": 4, "compile": True}
    assert run_name("kaggle", "cityscapes19", "restored", **longer) == "kaggle"
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    assert run_name(".", "cityscapes19", "restored") == "mine"
    assert run_name("..", "cityscapes19", "restored") == tmp_path.name
    # No file may have a longer name.
    names = {run_name("\u8857" * 85, "cityscapes19", "restored", seed=seed) for seed in range(3)}
    assert len(names) == 3
    assert max(len(name.encode()) for name in names) < 255


def test_recipes_and_what_overrides_them():
    assert recipe("cpu", epochs=3, seed=None).epochs == 3
    assert replace(recipe("t4"), fold=1, epochs=60) == recipe("gpu")
    assert recipe("cpu", seed=None).seed == RECIPES["cpu"].seed
    assert recipe("cpu", encoder="efficientnet_lite2").image_size == 320
    assert recipe("cpu", encoder="efficientnet_lite2", image_size=256).image_size == 256
    assert recipe_for(torch.device("cuda"), "kaggle") == "t4"
    assert recipe_for(torch.device("cpu"), "kaggle") == "cpu"
    assert recipe_for(torch.device("cuda"), "demo") == "demo"
    with pytest.raises(ValueError, match="no recipe 'cuda': choose one of t4, gpu, cpu, demo"):
        recipe("cuda")
    with pytest.raises(ValueError, match="no setting 'image_sise': choose from base_channels"):
        recipe("cpu", image_sise=64)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("image_size", 100, "multiple of 32"),
        ("image_size", 16, "at least 32"),
        ("growth", 2, "at most 1"),
        ("final_rate", 1.5, "at most 1"),
        ("augmentation", 3, "at most 2"),
        ("epochs", 0, "at least 1"),
        ("epochs", "4", "must be of the type int"),
        ("batch_size", 2.5, "must be of the type int"),
        ("base_channels", True, "must be of the type int"),
        ("hold_out", 1, "must be of the type bool"),
        ("learning_rate", math.nan, "learning_rate is nan"),
        ("learning_rate", math.inf, "learning_rate is inf"),
        ("encoder", "vgg", "choose one of none, efficientnet_lite0"),
        ("optimizer", "sgd", "choose one of muon, adam"),
        ("skips", 0, "must be of the type bool"),
        ("seed", 2**64, "at most 9223372036854775807"),
    ],
)
def test_impossible_values_are_refused_by_name(name, value, message):
    with pytest.raises(ValueError, match=f"{name} is .*{message}|{message}"):
        recipe("demo", **{name: value})


def test_settings_that_do_not_fit_each_other_are_refused():
    with pytest.raises(ValueError, match="set fold to 1"):
        recipe("cpu", encoder="resnet34", fold=2)
    with pytest.raises(ValueError, match="set batch_size to 2"):
        TrainConfig(image_size=32, fold=2, batch_size=1)


def test_whole_frames_are_seen_as_much_larger_as_augmentation_zooms():
    plain = recipe("cpu", augmentation=0.0)
    assert plain.scene_size(256, 256) == (256, 256) == plain.input_size(1.0)
    assert plain.scene_size(256, 512) == (192, 352)
    zoomed = recipe("cpu", augmentation=1.0)
    drawn = draw_changes(10_000, torch.Generator().manual_seed(0), strength=1.0)
    zoom = 1 / drawn.matrix[:, :, :2].det().abs().sqrt()
    height, width = zoomed.scene_size(256, 256)
    assert 256 < height == width < 256 * zoom.mean()


def test_the_input_grows_and_the_time_left_follows():
    config = recipe("demo", image_size=128, growth=0.5, fold=1, epochs=10)
    schedule = Schedule(config, steps_per_epoch=100)
    sizes = [schedule.input_size(step) for step in range(1000)]
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[500], sizes[-1]) == ((64, 64), (128, 128), (128, 128))
    assert {height for height, _ in sizes} == {64, 80, 96, 112, 128}
    work = torch.tensor(sizes).double().prod(1).cumsum(0)
    for done in (0.1, 0.25, 0.5, 0.75, 0.99):
        share = float(work[round(done * 1000) - 1] / work[-1])  # counted, size by size
        assert schedule.time_left(share, 0, done) == pytest.approx(1 - share, abs=0.01)
    extended = Schedule(config, steps_per_epoch=100, first_epoch=5)
    assert extended.input_size(500) == (128, 128)
    flat = Schedule(recipe("demo", image_size=128), 100)
    assert {flat.input_size(step) for step in range(1000)} == {(128, 128)}
    assert flat.input_size(0, aspect=2.0) == (96, 192)  # as many pixels, rounded to 32
    assert flat.time_left(3.0, 0, 0.3) == pytest.approx(7.0)


def test_a_run_of_a_newer_version_is_named(run):
    folder, _ = run
    checkpoint = read_checkpoint(folder / "last.pt")
    checkpoint["config"]["invented_later"] = 1
    (folder / "last.pt").write_bytes(packed_checkpoint(checkpoint))
    with pytest.raises(ValueError, match="a newer version .* with the setting invented_later"):
        run_settings(folder, None, "demo", **NOTHING_SET)


@pytest.mark.parametrize("final", [0.0, 0.7, 1.0])
def test_the_learning_rate_ends_at_a_share_of_its_maximum(final):
    config = recipe("demo", epochs=40, final_rate=final)
    schedule = Schedule(config, steps_per_epoch=5)
    rates = [schedule.learning_rate(step) / config.learning_rate for step in range(201)]
    top = rates.index(max(rates))
    assert max(rates) == pytest.approx(1)
    assert top <= 20
    assert rates[0] == pytest.approx(1 / 20)
    assert rates[-1] == pytest.approx(final, abs=1e-9)
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[110] == pytest.approx((1 + final) / 2, abs=0.02)
