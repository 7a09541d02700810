"""The workbench: short trainings with a setting turned, side by side on the same frames.

A try takes a fixed number of photos and half a minute, and uses the package's own `train_epoch`.
Tries are no runs: they have a folder of their own, with a small file each.
"""

import hashlib
import json
import math
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from unet_utils.checkpoints import made_by
from unet_utils.config import SETTINGS, TrainConfig, recipe
from unet_utils.device import explain_errors, first_line
from unet_utils.evaluation import predict_classes, score
from unet_utils.frames import Frames
from unet_utils.model import UNet
from unet_utils.platform.files import list_folder, replacing, user_path
from unet_utils.schedule import Schedule
from unet_utils.training import OneProcess, TrainingState, train_epoch
from unet_utils.use.reports import markdown_table, score_text
from unet_utils.use.strip import SHOWN, Strip

BASELINE = {
    "fold": 1,
    "image_size": 128,
    "batch_size": 4,
    "learning_rate": 0.02,
    "augmentation": 0.0,
}
"""How the baseline differs from the recipe of the demo set: small. Small batches make more steps of
few photos."""
PHOTOS = 400
"""How many photos the baseline learns from."""
PART = 40  # photos between two points of the loss curve
SCORED = 32  # held-out frames that are scored, at most
KEPT = 5  # tries in the strip, beside the baseline
LONG = 30  # seconds: a longer try says so after its first part
SEEDS = (0, 1, 2)  # of the baseline, for the spread
NAMES = {"base_channels": "width", "image_size": "size"}


@dataclass(frozen=True)
class Try:
    """A short training and what came of it.

    Attributes:
        settings: `photos` and all settings of `TrainConfig` that may be turned.
        history: photos used and mean loss since the point before, one pair per point.
        mean_iou: on a fixed part of the held-out frames.
        seconds: of the training.
        device: that trained.
        date: seconds since 1970; the latest tries are shown.
        predictions: of the shown frames, class indices, `uint8 [N, H, W]`.
    """

    settings: dict
    history: list[tuple[int, float]]
    mean_iou: float
    seconds: float
    device: str
    date: float
    predictions: np.ndarray


class Tries:
    """The tries for some data: a baseline, and what was turned since.

        tries = Tries(frames, env.results / "tries", env.device)
        tries.add("better", learning_rate=0.02)
        plot_strip(*tries.strip())

    They are kept, and found again for the same data, classes and labels.

    Args:
        frames: the training split, at least two frames; some are held out, as in a run.
        folder: for the files of all tries, a few 10 kB each.
        device: where to train.
        progress: show a bar.
        baseline: settings of the baseline, where it differs from `BASELINE`.
    """

    def __init__(
        self,
        frames: Frames,
        folder: str | Path,
        device: torch.device | str,
        progress: bool = True,
        **baseline,
    ):
        self._learn, held_out = frames.split(hold_out=True)
        assert held_out is not None
        self._scored = held_out.part(slice(None, None, math.ceil(len(held_out) / SCORED)))
        self._photos, self._truth = held_out.batch(held_out.spread(SHOWN))
        self._device = torch.device(device)
        self._device_name = made_by(device)["device"]
        self._progress = progress
        self._usual = BASELINE | {"photos": PHOTOS} | baseline
        classes = json.dumps(frames.scheme.to_dict(), sort_keys=True)
        self._folder = user_path(folder) / _key(frames.data, frames.label_hash(), classes)
        self._tries = {}
        for file in list_folder(self._folder):
            if kept := _read(file):
                self._tries[file.stem] = kept

    @explain_errors("lower the size (TRY_SIZE), then the width (TRY_WIDTH)")
    def add(self, guess: str = "", **changed) -> Try:
        """Train with some settings changed, and say what came of it beside the baseline.

        The first call trains the baseline as well, and the first guess two more of it: how far
        three seeds lie apart is what *same* means. A try that was made before is not made again.
        One that takes longer than 30 seconds says so after its first part.

        Args:
            guess: what the mIoU will be beside the baseline: `better`, `worse`, `same`, or nothing.
            changed: `photos` (rounded to whole points of the curve) and settings of
                `TrainConfig`; None counts as not changed.

        Raises:
            ValueError: no such setting or guess, or an impossible value.
        """
        if guess not in ("", "better", "worse", "same"):
            raise ValueError(f"the guess is {guess!r}: choose better, worse or same")
        settings = self._settings(**changed)
        baseline = self._get(self._settings())
        if guess:
            spread = self._spread()
        tried = self._get(settings, again=True)
        print(f"{self._name(tried)}: {_outcome(tried, self._num_classes)}")
        if guess:
            change = tried.mean_iou - baseline.mean_iou
            found = "same"
            if abs(change) > spread:
                found = "better" if change > 0 else "worse"
            print(
                f"The baseline scored {baseline.mean_iou:.3f}. Its seeds lie {spread:.3f} apart, "
                f"so this is {found}. You guessed {guess}: "
                f"{'right' if guess == found else 'not this time'}."
            )
        return tried

    def strip(self) -> Strip:
        """Return the baseline and the last tries, for `plots.strip.plot_strip`."""
        shown = {self._name(one): one for one in self._last()}
        return Strip(
            self._photos.permute(0, 2, 3, 1).numpy(),
            self._truth.numpy(),
            {name: one.predictions for name, one in shown.items()},
            self._learn.scheme,
            {
                name: ([p for p, _ in one.history], [loss for _, loss in one.history])
                for name, one in shown.items()
            },
            "photos",
        )

    @property
    def table(self) -> str:
        """The baseline and the last tries as a Markdown table."""
        rows = []
        for one in self._last():
            remark = "diverged" if diverged(one, self._num_classes) else ""
            rows.append([self._name(one), score_text(one.mean_iou), f"{one.seconds:.0f}", remark])
        return markdown_table(["try", "mIoU", "seconds", ""], rows)

    def goals(self) -> str:
        """Return three goals as a Markdown list: which are reached, and by which try."""
        baseline = self._get(self._settings())
        photos = baseline.settings["photos"]
        score_to_beat = baseline.mean_iou
        goals = {
            "Make it diverge: a mean loss above that of a network that finds all classes equally "
            f"likely, {math.log(self._num_classes):.2f}.": lambda one: diverged(
                one, self._num_classes
            ),
            "Make it good without skips: at least the mIoU of the baseline, "
            f"{score_to_beat:.3f}.": lambda one: (
                not one.settings["skips"] and one.mean_iou >= score_to_beat
            ),
            f"With at most {photos} photos, score {1.1 * score_to_beat:.3f}, a tenth more than the "
            "baseline.": lambda one: (
                one.settings["photos"] <= photos and one.mean_iou >= 1.1 * score_to_beat
            ),
        }
        lines = []
        for text, is_reached in goals.items():
            by = [self._name(one) for one in self._changed() if is_reached(one)]
            lines.append(f"* {text} **{f'Reached by: {by[0]}' if by else 'Not yet'}.**")
        return "\n".join(lines)

    @property
    def _num_classes(self) -> int:
        return self._learn.scheme.num_classes

    def _settings(self, **changed) -> dict:
        """Return all settings of a try, the baseline's with some changed."""
        given = self._usual | {key: value for key, value in changed.items() if value is not None}
        photos = given.pop("photos")
        if not isinstance(photos, int) or photos < 1:
            raise ValueError(f"photos is {photos!r}: give a whole number, at least 1")
        settings = recipe("demo", **given).to_dict()
        del settings["epochs"]  # follow from the photos
        for setting in SETTINGS:
            if setting.type is float:  # a form writes 1 for 1.0
                settings[setting.name] = float(settings[setting.name])
        # Few frames of one's own give smaller batches and parts.
        settings["batch_size"] = min(settings["batch_size"], len(self._learn))
        part = self._part(settings)
        return {"photos": max(1, round(photos / part)) * part, **settings}

    def _part(self, settings: dict) -> int:
        """Return the photos between two points of the loss curve, a multiple of the batch size."""
        batch = settings["batch_size"]
        return max(1, min(PART, len(self._learn)) // batch) * batch

    def _get(self, settings: dict, again: bool = False) -> Try:
        """Return the try with these settings; make it if there is none. `again` makes it the
        latest."""
        key = _key(json.dumps(settings, sort_keys=True))
        tried = self._tries.get(key)
        if tried and not again:
            return tried
        if tried is None:
            tried = self._train(settings)
        self._tries[key] = replace(tried, date=time.time())
        self._folder.mkdir(parents=True, exist_ok=True)
        _write(self._tries[key], self._folder / f"{key}.npz")
        return self._tries[key]

    def _spread(self) -> float:
        """Return how far the scores of the baseline lie apart with three seeds."""
        wanted = [self._settings(seed=seed) for seed in SEEDS]
        keys = [_key(json.dumps(settings, sort_keys=True)) for settings in wanted]
        if missing := [key for key in keys if key not in self._tries]:
            seconds = len(missing) * self._get(self._settings()).seconds
            print(
                f"To answer a guess, the baseline is trained {len(missing)} more times, with other "
                f"random numbers: about {seconds:.0f} seconds, once."
            )
        scores = [self._get(settings).mean_iou for settings in wanted]
        return max(scores) - min(scores)

    def _train(self, settings: dict) -> Try:
        learn = self._learn
        part = self._part(settings)
        epochs = settings["photos"] // part
        plain = {key: value for key, value in settings.items() if key != "photos"}
        config = TrainConfig(**plain, epochs=epochs)
        parts = min(epochs, len(learn) // part)
        # Spread over all frames: each part has frames of all cities.
        chosen = learn.part(slice(None, None, len(learn) // (parts * part)))

        torch.manual_seed(config.seed)
        model = UNet(**config.network(self._num_classes), pretrained=True)
        state = TrainingState(model, chosen, config, self._device, OneProcess())
        history = []
        started = time.perf_counter()
        for number in range(epochs):
            frames = chosen.part(slice(number % parts, parts * part, parts))
            row = train_epoch(state, frames, config, OneProcess(), self._progress)
            state.epoch += 1
            history.append((state.epoch * part, row["loss"]))
            if number == 0:
                passed = time.perf_counter() - started
                left = Schedule(config, 1).time_left(passed, 0, 1 / epochs)
                if passed + left > LONG:
                    print(f"This takes about {passed + left:.0f} seconds.")
            if not math.isfinite(row["loss"]):
                break
        seconds = time.perf_counter() - started
        averaged = state.model_to_use()
        size = config.scene_size(*learn.photos.shape[1:3])
        return Try(
            settings,
            history,
            score(averaged, self._scored, size).mean_iou,
            seconds,
            self._device_name,
            time.time(),
            predict_classes(averaged, self._photos, size).cpu().numpy(),
        )

    def _changed(self) -> list[Try]:
        """Return the tries in which more than the seed differs from the baseline."""
        return [one for one in self._tries.values() if self._differ(one) - {"seed"}]

    def _last(self) -> list[Try]:
        """Return the baseline and the last tries."""
        baseline = self._get(self._settings())
        return [baseline, *sorted(self._changed(), key=lambda one: one.date)[-KEPT:]]

    def _differ(self, one: Try) -> set[str]:
        usual = self._settings()
        return {name for name, value in one.settings.items() if value != usual[name]}

    def _name(self, one: Try) -> str:
        """Name a try by what differs from the baseline, such as "learning rate 0.02, no skips"."""
        differ = self._differ(one)
        words = []
        for name, value in one.settings.items():
            if name not in differ:
                continue
            text = NAMES.get(name, name).replace("_", " ")
            if name in ("photos", "optimizer"):
                words.append(f"{value} photos" if name == "photos" else value.title())
            elif isinstance(value, bool):
                words.append(text if value else f"no {text}")
            else:
                words.append(f"{text} {value:g}" if isinstance(value, float) else f"{text} {value}")
        return ", ".join(words) or "baseline"


def diverged(one: Try, num_classes: int) -> bool:
    """Return whether a loss is not a number, or their mean is above that of a network that finds
    all classes equally likely."""
    losses = [loss for _, loss in one.history]
    return not sum(losses) / len(losses) <= math.log(num_classes)


def _outcome(one: Try, num_classes: int) -> str:
    text = f"scored {one.mean_iou:.3f} in {one.seconds:.0f} s, loss {one.history[-1][1]:.2f}"
    if diverged(one, num_classes):
        text += f". It diverged: guessing has a loss of {math.log(num_classes):.2f}"
    return text


def _key(*texts: str) -> str:
    return hashlib.blake2b("\n".join(texts).encode(), digest_size=8).hexdigest()


def _write(one: Try, file: Path) -> None:
    facts = asdict(one)
    predictions = facts.pop("predictions")
    with replacing(file) as unfinished:
        np.savez_compressed(unfinished, predictions=predictions, facts=json.dumps(facts))


def _read(file: Path) -> Try | None:
    """Return a kept try; a file that cannot be read is left where it is, with a message."""
    try:
        with np.load(file) as kept:
            return Try(**json.loads(str(kept["facts"])), predictions=kept["predictions"])
    except Exception as error:  # zipfile, zlib, json and numpy have different errors
        print(f"Warning: {file} cannot be read ({first_line(error)}): it is left out.")
        return None
