"""A run before it begins: its name, its folders, its settings."""

import re
import shutil

import pytest
import torch

from unet_utils.evaluation import SMALL_MODEL
from unet_utils.plan import plan_run
from unet_utils.platform.environment import Environment


@pytest.fixture
def env(tmp_path):
    return Environment("local", torch.device("cpu"), tmp_path / "data", tmp_path / "runs")


def test_a_form_where_nothing_is_set_names_and_places_a_run_of_the_recipe(env):
    nothing = {"epochs": None, "base_channels": None, "learning_rate": None}
    plan = plan_run(env, "demo", "cityscapes19", "", "", **nothing)
    assert (plan.name, plan.recipe, plan.config.epochs) == ("demo", "demo", 20)
    assert (plan.folder, plan.backup) == (env.results / "demo", None)
    assert (plan.labels, plan.num_clusters, plan.resume) == ("restored", 20, True)
    assert plan.start_from is None
    assert "| epochs | 20 |  |" in plan.table


def test_what_is_set_is_in_the_name_and_in_the_settings(env):
    more = {"labels": "nearest", "num_clusters": 7, "image_size": 64}
    plan = plan_run(env, "kaggle", "clusters", start_from="small", skips=True, **more)
    assert plan.name == "kaggle_clusters7_nearest_from-small_image_size-64_skips-True"
    assert plan.recipe == "cpu"
    assert (plan.config.image_size, plan.labels, plan.num_clusters) == (64, "nearest", 7)
    assert plan.start_from == SMALL_MODEL
    assert plan.config.encoder == "efficientnet_lite2"  # the network of the small model
    long = plan_run(env, "kaggle", "cityscapes19", recipe="gpu")
    assert (long.recipe, long.config.epochs) == ("gpu", 60)


def test_spaces_capitals_and_quotes_around_what_is_typed_change_nothing(env):
    plan = plan_run(env, " Demo\n", "cityscapes19", " ", "'Small' ")
    assert (plan.name, plan.recipe, plan.start_from) == ("demo_from-small", "demo", SMALL_MODEL)
    assert plan_run(env, '"demo"', "cityscapes19", "mine ").name == "mine"


def test_a_model_to_start_from_that_is_not_there_is_answered_with_those_that_are(env):
    def plan(start_from):
        return plan_run(env, "demo", "cityscapes19", "mine", start_from)

    message = r"smal is no model to start from .*: give small, or the path of .*There are: "
    with pytest.raises(FileNotFoundError, match=f"{message}none"):
        plan("smal")
    other = env.results / "other" / "best.pt"
    other.parent.mkdir(parents=True)
    shutil.copy(SMALL_MODEL, other)
    for nothing in ("smal", str(other.parent)):
        with pytest.raises(FileNotFoundError, match=f"There are: {re.escape(str(other))}$"):
            plan(nothing)
    assert plan(f"'{other}'").start_from == str(other)
    # A run that is resumed does not need it any more.
    (env.results / "mine").mkdir()
    shutil.copy(SMALL_MODEL, env.results / "mine" / "last.pt")
    assert plan("smal").config.encoder == "efficientnet_lite2"


@pytest.mark.parametrize("name", ["a/b", "..", "run: 2", "/tmp"])
def test_a_name_that_leads_to_another_folder_is_refused(env, name):
    """Such a run would be trained, and found by nothing afterwards."""
    with pytest.raises(ValueError, match="is not a name for a run: choose one of letters"):
        plan_run(env, "demo", "cityscapes19", name)


def test_what_is_kept_is_on_drive_or_on_this_machine_if_drive_is_full(env, tmp_path):
    drive = tmp_path / "drive"
    env = Environment("colab", env.device, env.data, drive / "runs", drive)
    plan = plan_run(env, "demo", "cityscapes19")
    assert (plan.folder, plan.backup) == (env.data / "runs" / "demo", env.results / "demo")
    assert plan.kept == plan.folder  # nothing has arrived
    plan.backup.mkdir(parents=True)
    (plan.backup / "best.pt").write_bytes(b"x")
    assert plan.kept == plan.backup
