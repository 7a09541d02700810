"""A run before it begins: its name, its folders and its settings, from what a person chose."""

import os
from dataclasses import dataclass
from pathlib import Path

from unet_utils.config import TrainConfig, recipe_for, run_name, run_settings, settings_table
from unet_utils.evaluation import SMALL_MODEL
from unet_utils.platform.environment import Environment
from unet_utils.platform.files import natural_order, some_of, typed
from unet_utils.sources import data_name


@dataclass(frozen=True)
class Plan:
    """What a run will be.

    Attributes:
        name: of the run.
        recipe: name of the recipe that fills in what the person left open.
        config: its settings.
        labels, num_clusters: of its frames, as in `sources.Source.frames`.
        folder, backup, resume, start_from: as in `training.fit`.
    """

    name: str
    recipe: str
    config: TrainConfig
    labels: str
    num_clusters: int
    folder: Path
    backup: Path | None
    resume: bool
    start_from: str | Path | None

    @property
    def table(self) -> str:
        """The settings as a Markdown table."""
        return settings_table(self.config, self.recipe)

    @property
    def kept(self) -> Path:
        """The folder of the run that outlasts this machine; the other one if Drive is full or
        gone."""
        # os.path is False for a Drive that has dropped, where Path raises.
        if self.backup and os.path.isfile(self.backup / "best.pt"):
            return self.backup
        return self.folder


def plan_run(
    env: Environment,
    data: str | Path,
    scheme: str,
    name: str = "",
    start_from: str | Path | None = None,
    labels: str = "restored",
    num_clusters: int = 20,
    resume: bool = True,
    recipe: str | None = None,
    **changed,
) -> Plan:
    """Return what a run will be, before anything uses it.

    Args:
        env: of this machine.
        data: as in `sources.open_source`.
        scheme, labels, num_clusters: as in `sources.Source.frames`.
        name: of the run; empty for one that is made from all that is chosen here, see
            `config.run_name`.
        start_from: as in `training.fit`; also "small", for the small model of the package.
        resume: as in `training.fit`.
        recipe: name of the recipe; None for that of the machine and the data.
        changed: settings that the person set; None counts as not set.

    Raises:
        ValueError: an impossible name; or as `config.run_settings`.
        FileNotFoundError: there is no checkpoint to start from; the message lists those there are.
    """
    data = data_name(data)
    name = typed(name)
    begin = typed(start_from or "")
    if begin.lower() == "small":
        begin = "small"
    recipe = recipe or recipe_for(env.device, data)
    classes = f"{scheme}{num_clusters}" if scheme == "clusters" else scheme
    name = name or run_name(data, classes, labels, begin, **changed)
    folder, backup = env.run_folders(name)
    start_from = SMALL_MODEL if begin == "small" else begin or None
    try:
        config = run_settings(folder, backup, recipe, resume, start_from, **changed)
    except FileNotFoundError as error:  # a run that is resumed does not need the file any more
        there = natural_order(env.results.glob("[!.]*/best.pt"))
        raise FileNotFoundError(
            f"{begin} is no model to start from (START_FROM): give small, or the path of the "
            f"best.pt of a run. There are: {some_of([str(path) for path in there]) or 'none'}"
        ) from error
    return Plan(name, recipe, config, labels, num_clusters, folder, backup, resume, start_from)
