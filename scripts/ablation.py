"""The ruler: is one setting better than another? Measured on training cities that neither has seen.

    python scripts/ablation.py --data pairs.zip                                    # what it can see
    python scripts/ablation.py --data pairs.zip --b growth=0.75                    # against today's
    python scripts/ablation.py --data pairs.zip --a learning_rate=0.006 --b learning_rate=0.005
    python scripts/ablation.py --data pairs.zip --b code=../a-branch               # another code

The training cities are dealt into groups. For each group and seed, a setting is trained on the
other cities, for a fixed number of photos, and predicts the group. The pixels of all groups count
in one confusion matrix for each setting. The interval of a difference comes from drawing cities,
not frames: frames of one city are alike, and rare classes hang on a few objects. The validation
frames are not used.

First the ruler says what it can see: it compares the first setting with itself, one half of its
seeds with the other half. A difference that another setting makes has to be larger than what the
seed alone makes there; what is expected to be smaller is not worth a try. Then it trains the second
setting with the same seeds and groups, and prints the difference of the pairs.

Each training is kept in --out. So an interrupted comparison is resumed, and a setting is trained
once for all comparisons: name a new folder when the code has changed. What pays only in a long
training (augmentation) needs --photos of that length.

Other pairs than the Kaggle set have no cities: 18 blocks of consecutive frames take their place.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from unet_utils import (
    ConfusionMatrix,
    Frames,
    TrainConfig,
    evaluate,
    fit,
    load_trained,
    open_source,
    recipe,
    setup,
)
from unet_utils.platform.files import replacing, user_path

CITIES = {
    "aachen": 1,
    "bochum": 175,
    "bremen": 271,
    "cologne": 587,
    "darmstadt": 741,
    "dusseldorf": 826,
    "erfurt": 1047,
    "hamburg": 1156,
    "hanover": 1404,
    "jena": 1600,
    "krefeld": 1719,
    "monchengladbach": 1818,
    "strasbourg": 1912,
    "stuttgart": 2277,
    "tubingen": 2473,
    "ulm": 2617,
    "weimar": 2712,
    "zurich": 2854,
}
"""First file number of each training city of the Kaggle set: files are numbered in the alphabetical
order of the official names."""
KAGGLE_NUMBERS = tuple(range(1, 2976))
ROUNDS = 2000
FEW = 6
"""Below so many trainings, what the seed makes is known badly."""


class Measured(NamedTuple):
    """The result of a setting.

    Attributes:
        cities: names.
        group: of each city, `int64 [cities]`.
        matrices: confusion matrices, `int64 [cities, seeds, C, C]`.
        minutes: of all its trainings together.
    """

    cities: list[str]
    group: np.ndarray
    matrices: np.ndarray
    minutes: float


class Difference(NamedTuple):
    """The mIoU of two settings, and the difference with its 95 % interval."""

    a: float
    b: float
    low: float
    high: float

    @property
    def value(self) -> float:
        """How much better the second setting is."""
        return self.b - self.a


def cities_of(numbers: Sequence[int]) -> list[str]:
    """Return the city of each training frame, from the file numbers of the whole split."""
    if tuple(numbers) == KAGGLE_NUMBERS:
        return [
            [city for city, first in CITIES.items() if first <= number][-1] for number in numbers
        ]
    blocks = len(CITIES)
    return [f"block {1 + blocks * place // len(numbers)}" for place in range(len(numbers))]


def deal(cities: list[str], count: int) -> list[list[str]]:
    """Deal the cities into groups, one after another: each has large and small ones."""
    order = [city for city, _ in Counter(cities).most_common()]
    if not 2 <= count <= len(order):
        raise SystemExit(f"--groups is {count}: choose 2 to {len(order)}, the number of cities")
    return [order[group::count] for group in range(count)]


def choose(frames: Frames, keep: list[bool]) -> Frames:
    """Return the frames that are marked, as a copy in memory."""
    where = torch.tensor(keep).nonzero()[:, 0]
    numbers = tuple(frames.numbers[place] for place in where.tolist())
    return replace(
        frames, photos=frames.photos[where], label_ids=frames.label_ids[where], numbers=numbers
    )


def train(
    options: argparse.Namespace, setting: dict, group: list[str], seed: int, file: str
) -> None:
    """Train a setting on all other cities; write the confusion matrix of each city of the group."""
    env, frames = read_frames(options)
    cities = cities_of(frames.numbers)
    learn = choose(frames, [city not in group for city in cities])
    epochs = max(1, round(options.photos / len(learn)))
    settings = {"epochs": epochs} | setting | {"hold_out": False, "seed": seed}
    folder = Path(file).with_suffix("")
    history = fit(learn, recipe(options.recipe, **settings), folder, env.device, progress=False)
    trained = load_trained(folder / "best.pt", env.device)
    held_out = choose(frames, [city in group for city in cities])
    size = tuple(options.size) if options.size else trained.scene_size
    matrices = evaluate(trained.model, held_out, size)
    seen = [city for city in cities if city in group]
    by_city = {}
    for city in group:
        own = [matrix for matrix, where in zip(matrices, seen, strict=True) if where == city]
        by_city[city] = ConfusionMatrix.total(own).matrix.tolist()
    minutes = sum(row["seconds"] for row in history) / 60
    with replacing(file) as unfinished:
        unfinished.write_text(json.dumps({"matrices": by_city, "minutes": minutes}))


def read_frames(options: argparse.Namespace):
    """Return the environment and the training split."""
    env = setup()
    source = open_source(options.data, env.data, env.drive)
    return env, source.frames("train", env.prepared)


def measure(
    options: argparse.Namespace, frames: Frames, setting: dict, seeds: Sequence[int]
) -> Measured:
    """Return the result of a setting; train what is not kept yet, each in a process of its own."""
    names: list[str] = []
    numbers: list[int] = []
    matrices: list[list] = []
    minutes = 0.0
    # All settings, too: those of a recipe may change.
    config = config_of(options.recipe, setting)
    for number, group in enumerate(deal(cities_of(frames.numbers), options.groups)):
        if options.only and number >= options.only:
            break
        results = []
        for seed in seeds:
            facts = [options.recipe, options.photos, options.size, frames.data, group, seed]
            facts += [sorted(setting.items()), config.to_dict()]
            digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]
            file = user_path(options.out) / f"{digest}.json"
            if not file.exists():
                run_job([setting, group, seed, str(file)])
            results.append(json.loads(file.read_text()))
        minutes += sum(result["minutes"] for result in results)
        for city in group:
            names.append(city)
            numbers.append(number)
            matrices.append([result["matrices"][city] for result in results])
    return Measured(names, np.array(numbers), np.array(matrices), minutes)


def config_of(name: str, setting: dict) -> TrainConfig:
    """Return a recipe with a setting's changes.

    Raises:
        ValueError: there is no such recipe or setting, or an impossible value.
    """
    return recipe(name, **{key: value for key, value in setting.items() if key != "code"})


def run_job(job: list) -> None:
    """Call `train` in a process of its own, which may have the code of another folder."""
    code = job[0].get("code", str(Path(__file__).parent.parent))
    environment = os.environ | {"PYTHONPATH": str(user_path(code))}
    command = [sys.executable, __file__, *sys.argv[1:], "--job", json.dumps(job)]
    subprocess.run(command, check=True, env=environment, stdout=sys.stderr)


def mean_iou(matrices: np.ndarray) -> np.ndarray:
    """Return the mIoU of each matrix `[..., C, C]`; classes absent from the truth are left out."""
    hit = matrices.diagonal(axis1=-2, axis2=-1)
    truth = matrices.sum(-1)
    iou = hit / np.maximum(1, truth + matrices.sum(-2) - hit)
    return np.nanmean(np.where(truth > 0, iou, np.nan), -1)


def compare(a: np.ndarray, b: np.ndarray, group: np.ndarray) -> Difference:
    """Return the difference of two settings, paired by group and seed.

    In each round the pairs of trainings are drawn with replacement, and for each of them its
    cities: all cities of a group were predicted by the same training, and are better or worse
    together.

    Args:
        a, b: confusion matrices, `int64 [cities, seeds, C, C]`.
        group: of each city, `int64 [cities]`.
    """
    rng = np.random.default_rng(0)
    trainings = [(number, seed) for number in np.unique(group) for seed in range(a.shape[1])]
    differences = []
    for _ in range(ROUNDS):
        pooled_a = np.zeros(a.shape[2:])
        pooled_b = np.zeros(b.shape[2:])
        for drawn in rng.integers(len(trainings), size=len(trainings)):
            number, seed = trainings[drawn]
            cities = np.flatnonzero(group == number)
            cities = rng.choice(cities, size=len(cities))
            pooled_a += a[cities, seed].sum(0)
            pooled_b += b[cities, seed].sum(0)
        differences.append(mean_iou(pooled_b) - mean_iou(pooled_a))
    low, high = np.quantile(differences, [0.025, 0.975])
    score_a, score_b = (float(mean_iou(matrices.sum((0, 1)))) for matrices in (a, b))
    return Difference(score_a, score_b, float(low), float(high))


def smallest_difference(found: Measured) -> tuple[Difference, float]:
    """Compare a setting with itself under other seeds.

    Returns:
        The difference, and how far its interval reaches from 0: another setting must do more.
    """
    pairs = found.matrices.shape[1] // 2
    first, second = found.matrices[:, :pairs], found.matrices[:, pairs : 2 * pairs]
    same = compare(first, second, found.group)
    return same, max(abs(same.low), abs(same.high))


def read_setting(pairs: list[str]) -> dict:
    """Return `name=value` words as a dict; values are read as JSON where they are that."""
    setting = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        try:
            setting[name] = json.loads(value)
        except ValueError:
            setting[name] = value
    return setting


def main() -> None:
    """Train what is not kept yet; print what the ruler can see, then the comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="kaggle", help="the pairs: kaggle, an archive, a folder")
    parser.add_argument("--recipe", default="cpu", help="what both settings start from")
    parser.add_argument("--a", nargs="*", default=[], metavar="NAME=VALUE", help="first setting")
    parser.add_argument("--b", nargs="*", metavar="NAME=VALUE", help="second setting")
    parser.add_argument("--photos", type=int, default=8000, help="of each training")
    parser.add_argument("--groups", type=int, default=3, help="of cities (default: 3)")
    parser.add_argument("--only", type=int, default=0, help="use the first N groups only")
    parser.add_argument("--seeds", type=int, default=2, help="of each setting (default: 2)")
    parser.add_argument("--size", type=int, nargs=2, help="height and width seen in scoring")
    parser.add_argument("--out", default="runs/ablation", help="folder of the trainings")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        setting, group, seed, file = json.loads(options.job)
        setting.pop("code", None)
        train(options, setting, group, seed, file)
        return
    if options.seeds < 2:
        parser.error("--seeds is below 2: what the seed alone makes is what the ruler must know")
    for setting in (options.a, options.b or []):
        config_of(options.recipe, read_setting(setting))
    _, frames = read_frames(options)
    seeds = range(options.seeds)

    a = measure(options, frames, read_setting(options.a), seeds)
    same, smallest = smallest_difference(a)
    name_a = " ".join(options.a) or f"recipe {options.recipe}"
    trainings = a.matrices.shape[1] * len(set(a.group))
    print(
        f"{name_a} with other seeds: {same.a:.3f} and {same.b:.3f}, a difference of "
        f"{same.value:+.3f}, interval from {same.low:+.3f} to {same.high:+.3f} "
        f"({len(a.cities)} cities, {trainings} trainings)\n"
        f"The smallest difference that can be seen: {smallest:.3f}",
        flush=True,
    )
    if trainings < FEW:
        print(
            f"That is from {trainings} trainings, so another pair of seeds may differ by more: "
            "trust it from six on (--groups, --seeds)."
        )
    if options.b is None:
        return
    b = measure(options, frames, read_setting(options.b), seeds)
    found = compare(a.matrices, b.matrices, a.group)
    name_b = " ".join(options.b) or f"recipe {options.recipe}"
    print(
        f"{name_a}: {found.a:.3f}; {name_b}: {found.b:.3f}; better by {found.value:+.3f}, interval "
        f"from {found.low:+.3f} to {found.high:+.3f} (minutes of training: {a.minutes:.1f} and "
        f"{b.minutes:.1f})"
    )
    if found.low <= 0 <= found.high or abs(found.value) < smallest:
        print("The ruler cannot tell the two apart.")


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    main()
