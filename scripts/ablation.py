"""The ruler: is one setting better than another? Measured on training cities that neither has seen.

    python scripts/ablation.py --data pairs.zip                                    # what it can see
    python scripts/ablation.py --data pairs.zip --b growth=0                       # against today's
    python scripts/ablation.py --data pairs.zip --a learning_rate=0.006 --b learning_rate=0.005
    python scripts/ablation.py --data pairs.zip --b code=../a-branch               # another code

The training cities are dealt into groups. For each group and seed, both settings are trained on
the other cities, for the same number of photos, and predict the group. The pixels of all groups
count in one confusion matrix for each setting. The interval of the difference comes from drawing
cities, not frames: frames of one city are alike, and rare classes hang on a few objects. The
validation frames are not used.

Without --b, the setting is compared with itself under another seed: half of that interval is the
smallest difference that this ruler can see.

Each training is kept in --out, so an interrupted comparison is resumed, and every setting is
trained once for all comparisons. What pays only in a long training (augmentation) needs --photos of
that length.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from unet_utils import ConfusionMatrix, Frames, evaluate, fit, load_trained, prepare, recipe, setup
from unet_utils.platform.files import replacing, user_path
from unet_utils.sources import get_pairs

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
"""First file number of each training city: files are numbered in the alphabetical order of the
official names."""
ROUNDS = 2000


def city_of(number: int) -> str:
    """Return the city of a training file."""
    return [city for city, first in CITIES.items() if first <= number][-1]


def deal(count: int) -> list[list[str]]:
    """Deal the cities into groups, one after another: each has large and small ones."""
    ends = [*list(CITIES.values())[1:], 2976]
    sizes = {city: end - CITIES[city] for city, end in zip(CITIES, ends, strict=True)}
    order = sorted(CITIES, key=lambda city: -sizes[city])
    return [order[group::count] for group in range(count)]


def choose(frames: Frames, cities: list[str], inside: bool) -> Frames:
    """Return the frames of these cities, or those of all others."""
    keep = [n for n, file in enumerate(frames.numbers) if (city_of(file) in cities) == inside]
    numbers = tuple(frames.numbers[n] for n in keep)
    return Frames(frames.photos[keep], frames.label_ids[keep], frames.scheme, numbers)


def train(
    options: argparse.Namespace, setting: dict, cities: list[str], seed: int, file: str
) -> None:
    """Train a setting on all other cities, and write the confusion matrix of each of these."""
    env = setup()
    root = get_pairs(options.data, env.data)
    frames = prepare(root, "train", env.data / "prepared")
    learn = choose(frames, cities, inside=False)
    epochs = max(1, round(options.photos / len(learn)))
    config = recipe(
        options.recipe, **{"epochs": epochs, **setting, "hold_out": False, "seed": seed}
    )
    folder = Path(file).with_suffix("")
    fit(learn, config, folder, env.device, progress=False)
    trained = load_trained(folder / "best.pt", env.device)
    held_out = choose(frames, cities, inside=True)
    size = tuple(options.size) if options.size else trained.scene_size
    matrices = evaluate(trained.model, held_out, size)
    by_city = {}
    for city in cities:
        own = [
            matrix
            for matrix, number in zip(matrices, held_out.numbers, strict=True)
            if city_of(number) == city
        ]
        by_city[city] = ConfusionMatrix.total(own).matrix.tolist()
    with replacing(file) as unfinished:
        unfinished.write_text(json.dumps(by_city))


def result_file(options: argparse.Namespace, setting: dict, cities: list[str], seed: int) -> Path:
    """Return where the result of a training is kept: a name for all that decides it."""
    facts = [options.recipe, options.photos, options.size, sorted(setting.items()), cities, seed]
    digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]
    return user_path(options.out) / f"{digest}.json"


def measure(
    options: argparse.Namespace, setting: dict, seeds: list[int]
) -> dict[str, list[np.ndarray]]:
    """Return the confusion matrices of each city, `int64 [C, C]`, one per seed."""
    code = setting.get("code", str(Path(__file__).parent.parent))
    found: dict[str, list[np.ndarray]] = {}
    for cities in deal(options.groups)[: options.only or None]:
        for seed in seeds:
            file = result_file(options, setting, cities, seed)
            if not file.exists():
                job = json.dumps([setting, cities, seed, str(file)])
                environment = os.environ | {"PYTHONPATH": str(user_path(code))}
                command = [sys.executable, __file__, *sys.argv[1:], "--job", job]
                subprocess.run(command, check=True, env=environment, stdout=sys.stderr)
            for city, matrix in json.loads(file.read_text()).items():
                found.setdefault(city, []).append(np.array(matrix))
    return found


def mean_iou(matrices: np.ndarray) -> np.ndarray:
    """Return the mIoU of each matrix `[..., C, C]`; classes absent from the truth are left out."""
    hit = matrices.diagonal(axis1=-2, axis2=-1)
    truth = matrices.sum(-1)
    iou = hit / np.maximum(1, truth + matrices.sum(-2) - hit)
    return np.nanmean(np.where(truth > 0, iou, np.nan), -1)


def compare(
    a: dict[str, list[np.ndarray]], b: dict[str, list[np.ndarray]]
) -> tuple[float, float, float, float, float]:
    """Return the mIoU of both settings, the difference and its 95 % interval.

    In each round cities are drawn with replacement, and for each of them one of its seeds, the same
    for both settings.
    """
    rng = np.random.default_rng(0)
    cities = list(a)
    first, second = (np.stack([np.stack(found[city]) for city in cities]) for found in (a, b))
    seeds = first.shape[1]
    differences = []
    for _ in range(ROUNDS):
        city = rng.integers(len(cities), size=len(cities))
        seed = rng.integers(seeds, size=len(cities))
        pooled = [matrices[city, seed].sum(0) for matrices in (first, second)]
        differences.append(mean_iou(pooled[1]) - mean_iou(pooled[0]))
    low, high = np.quantile(differences, [0.025, 0.975])
    score_a, score_b = (float(mean_iou(matrices.sum((0, 1)))) for matrices in (first, second))
    return score_a, score_b, score_b - score_a, float(low), float(high)


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
    """Train what is not kept yet, and print the comparison."""
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
    parser.add_argument("--seeds", type=int, default=1, help="of each setting (default: 1)")
    parser.add_argument("--size", type=int, nargs=2, help="height and width seen in scoring")
    parser.add_argument("--out", default="runs/ablation", help="folder of the trainings")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        setting, cities, seed, file = json.loads(options.job)
        setting.pop("code", None)
        return train(options, setting, cities, seed, file)
    seeds = list(range(options.seeds))
    a = measure(options, read_setting(options.a), seeds)
    if options.b is None:
        name = "the same with another seed"
        b = measure(options, read_setting(options.a), [seed + 100 for seed in seeds])
    else:
        name = " ".join(options.b) or "the recipe"
        b = measure(options, read_setting(options.b), seeds)
    score_a, score_b, difference, low, high = compare(a, b)
    print(
        f"{' '.join(options.a) or 'the recipe'}: {score_a:.3f}; {name}: {score_b:.3f}; better by "
        f"{difference:+.3f}, interval from {low:+.3f} to {high:+.3f} ({len(a)} cities)"
    )
    if options.b is None:
        print(f"The smallest difference that can be seen: {(high - low) / 2:.3f}")
    return None


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    main()
