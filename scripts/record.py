"""Run a row of docs/records.md again, and print the line to hand in.

    python scripts/record.py scratch --data pairs.zip
    python scripts/record.py scratch --data pairs.zip --seed 1    # one of its seeds
    python scripts/record.py scratch --data pairs.zip --trial     # a minute: does it run here?
    python scripts/record.py scratch --print                      # the line of what is kept

First it measures the clock: the time that our recipe from scratch takes for its photos on this
machine; on a GPU, it is 15 minutes. Then it trains each seed of the row, looks at the validation
frames once, and keeps the result in --out. A seed that is kept there is not trained again, so a row
can be made in parts, on several machines; the line is that of all seeds that are there.

The ways of others need `pip install ".[bench]"`.
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.data import DataLoader

sys.path.append(str(Path(__file__).resolve().parent.parent))  # benchmarks is not installed

from benchmarks.peers import CopiedDataset, NamedClusters, TextbookDataset, Trainer
from benchmarks.training import COPIED_BATCH, COPIED_CLUSTERS, copied_trainer, our_epoch
from unet_utils import CityscapesPairs, Environment, Frames, fit, load_trained, recipe, setup
from unet_utils.checkpoints import made_by
from unet_utils.config import TrainConfig
from unet_utils.device import autocast
from unet_utils.evaluation import score
from unet_utils.images import Size
from unet_utils.model import OtherNetwork
from unet_utils.platform.files import replacing, user_path
from unet_utils.restoring import reference_checksums
from unet_utils.sources import FULL_SET, Source, open_source
from unet_utils.use.reports import markdown_table, score_text

TRIAL = {"epochs": 1, "image_size": 64, "base_channels": 4, "batch_size": 4}
"""What a trial changes in any recipe; it learns from 16 photos."""
TRIAL_PHOTOS = 16
COPIED_EPOCHS = 10
COPIED_WIDTH = 16
"""The original has 64 channels in the first level: an epoch of that takes longer than the clock."""
HEADER = (
    "row",
    "track",
    "mIoU",
    "pixel accuracy",
    "seconds (share of the clock)",
    "command",
    "commit",
    "made by",
)


@dataclass(frozen=True)
class Job:
    """What a row gets.

    Attributes:
        env: device and folders.
        source: the pairs.
        seed: of everything that is drawn.
        clock: seconds of the clock on this machine.
        folder: for the files of a run.
        trial: only find out whether it runs.
    """

    env: Environment
    source: Source
    seed: int
    clock: float
    folder: Path
    trial: bool = False

    def frames(self, labels: str = "restored") -> Frames:
        """Return the training split."""
        frames = self.source.frames("train", self.env.prepared, labels=labels)
        return frames.part(slice(TRIAL_PHOTOS)) if self.trial else frames

    def paths(self) -> list[Path]:
        """Return the files of the training split."""
        return CityscapesPairs(self.source.root, "train").paths[: len(self.frames())]

    def config(self, **changes) -> TrainConfig:
        """Return the recipe `cpu` with these changes, learning from all training frames."""
        changes |= TRIAL if self.trial else {}
        return recipe("cpu", **changes, hold_out=False, seed=self.seed)


class Learned(NamedTuple):
    """What a row returns: a model, the size at which it sees frames, the seconds of training."""

    model: nn.Module
    size: Size
    seconds: float


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        title: what it is.
        track: `from scratch` or `ImageNet`.
        seeds: how many the table asks for.
        learn: trains it.
    """

    title: str
    track: str
    seeds: int
    learn: Callable[[Job], Learned]


def ours(labels: str = "restored", **changes) -> Callable[[Job], Learned]:
    """Return a function that trains by `fit`, which resumes after a break."""

    def learn(job: Job) -> Learned:
        frames = job.frames(labels)
        history = fit(frames, job.config(**changes), job.folder, job.env.device)
        trained = load_trained(job.folder / "best.pt", job.env.device)
        seconds = sum(row["seconds"] for row in history)
        return Learned(trained.model, trained.scene_size, seconds)

    return learn


def copied(job: Job) -> Learned:
    """Train the copied Kaggle recipe: clusters of random colours, Adam, no shuffle."""
    size = TRIAL["image_size"] if job.trial else 256
    dataset = CopiedDataset(job.paths(), size)
    trainer = copied_trainer(COPIED_WIDTH, job.env.device)
    epochs = 1 if job.trial else COPIED_EPOCHS
    seconds = trainer.train(DataLoader(dataset, COPIED_BATCH), epochs, job.clock)
    model = NamedClusters(trainer.model, dataset, job.frames(), COPIED_CLUSTERS)
    return Learned(model, size, seconds)


def textbook(job: Job) -> Learned:
    """Train a network of segmentation_models_pytorch with torchvision's transforms, a DataLoader,
    cross-entropy and AdamW, until the clock stops it."""
    import segmentation_models_pytorch as smp

    frames = job.frames()
    size = TRIAL["image_size"] if job.trial else 256
    model = smp.Unet("resnet34", encoder_weights=None, classes=frames.scheme.num_classes)
    model = model.to(job.env.device)
    loader = DataLoader(
        TextbookDataset(job.paths(), frames, size),
        batch_size=4 if job.trial else 8,
        shuffle=True,
        num_workers=0 if job.trial else 2,
        drop_last=True,
    )
    trainer = Trainer(model, torch.optim.AdamW(model.parameters(), lr=1e-3), autocast)
    seconds = trainer.train(loader, 1 if job.trial else sys.maxsize, job.clock)
    return Learned(model, size, seconds)


ROWS = {
    "scratch": Row("our recipe from scratch", "from scratch", 3, ours()),
    "encoder": Row(
        "our recipe with EfficientNet-Lite2",
        "ImageNet",
        1,
        ours(encoder="efficientnet_lite2"),
    ),
    "copied": Row("the copied Kaggle recipe, 16 channels", "from scratch", 1, copied),
    "textbook": Row("a textbook loop, smp's Unet on resnet34", "from scratch", 1, textbook),
    "nearest": Row("our recipe on labels by nearest colour", "from scratch", 1, ours("nearest")),
}
"""To add a row, add an entry: a function that takes a `Job` and returns `Learned`."""


def measure_clock(job: Job) -> float:
    """Return the seconds that our recipe from scratch takes for its photos on this machine: those
    of an epoch, times its epochs, which all cost the same. On a GPU, return 15 minutes."""
    if job.env.device.type == "cuda":
        return 15 * 60
    config = job.config()
    return our_epoch(job.frames(), config, job.env.device) * config.epochs


def is_kaggle(root: Path) -> bool:
    """Return whether these are the Kaggle pairs, file by file."""
    fingerprints = [CityscapesPairs(root, split).fingerprint for split in FULL_SET]
    return all(reference_checksums(fingerprint) is not None for fingerprint in fingerprints)


def begin(job: Job) -> tuple[float, dict]:
    """Return the clock, and what trains a seed. Both are kept in its folder: a training that was
    interrupted goes on only with the same code, on the same kind of machine."""
    facts: dict = made_by(job.env.device)
    facts |= {"cores": torch.get_num_threads(), "pairs": is_kaggle(job.source.root)}
    file = job.folder / "begun.json"
    if not job.folder.exists():
        content = {"clock": measure_clock(job), "made_by": facts}
        job.folder.mkdir()
        with replacing(file) as unfinished:
            unfinished.write_text(json.dumps(content))
    begun = json.loads(file.read_text()) if file.exists() else {"made_by": {}}
    for name, now in facts.items():
        was = begun["made_by"].get(name)
        if was != now and name != "date":
            sys.exit(
                f"{job.folder} holds a training that was begun with {name} {was}, now it is {now}: "
                "set it back, or delete that folder"
            )
    return begun["clock"], begun["made_by"]


def run(row: Row, job: Job, facts: dict) -> dict:
    """Train a row with one seed, score it once; return plain values. `facts` are of what trains."""
    torch.manual_seed(job.seed)
    learned = row.learn(job)
    frames = job.source.frames("val", job.env.prepared)
    model = learned.model
    if not hasattr(model, "divisor"):
        model = OtherNetwork(model, frames.scheme.num_classes)
    matrix = score(model.to(job.env.device).eval(), frames, learned.size)
    return {
        "seed": job.seed,
        "scores": matrix.summary(),
        "seconds": learned.seconds,
        "clock": job.clock,
        "trial": job.trial,
        "made_by": facts | {"labels": frames.label_hash()},
    }


def line(name: str, results: list[dict]) -> list[str]:
    """Return the cells of the table's line, from the results of all seeds that are there.

    Raises:
        ValueError: they were scored against different labels.
    """
    row = ROWS[name]
    facts = [result["made_by"] for result in results]
    if len({made["labels"] for made in facts}) > 1:
        raise ValueError("the seeds were scored against different labels: their mean says nothing")
    found = sorted(result["scores"]["mean_iou"] for result in results)
    accuracy = [result["scores"]["pixel_accuracy"] for result in results]
    seconds = sum(result["seconds"] for result in results) / len(results)
    share = sum(result["seconds"] / result["clock"] for result in results) / len(results)
    miou = score_text(sum(found) / len(found))
    if len(found) > 1:
        miou += f" ({score_text(found[0])} to {score_text(found[-1])}, {len(found)} seeds)"
    else:
        miou += " (one seed)"
    title = row.title
    if not all(made["pairs"] for made in facts):
        title += " **(not the Kaggle pairs)**"
    if any(result["trial"] for result in results):
        title += " **(a trial, not a record)**"
    origins = {
        f"{made['device']}, {made['cores']} threads, {made['precision']}, torch {made['torch']}, "
        f"{made['date'][:10]}"
        for made in facts
    }
    return [
        title,
        row.track,
        miou,
        score_text(sum(accuracy) / len(accuracy)),
        f"{seconds:.0f} ({share:.2f})",
        f"`python scripts/record.py {name} --data pairs.zip`",
        ", ".join(sorted({made["commit"] for made in facts})),
        f"{'; '.join(sorted(origins))}; labels {facts[0]['labels']}",
    ]


def main(arguments: list[str] | None = None) -> None:
    """Train what is not kept yet; print the line of the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("row", choices=ROWS)
    parser.add_argument("--data", default="kaggle", help="the pairs: kaggle, an archive, a folder")
    parser.add_argument("--seed", type=int, help="train this seed alone (default: all of the row)")
    parser.add_argument("--trial", action="store_true", help="16 photos, one epoch, small networks")
    parser.add_argument("--print", action="store_true", help="train nothing, only print the line")
    parser.add_argument("--out", default="runs/records", help="folder of the results")
    options = parser.parse_args(arguments)
    name = options.row
    out = user_path(options.out) / ("trial" if options.trial else "")
    if not options.print:
        measure(options, out)
    # Not those of a row whose name begins like this one's.
    files = [file for file in sorted(out.glob("*.json")) if file.stem.rpartition("-")[0] == name]
    if not files:
        parser.error(f"there is no result of {name} in {out}: train it, without --print")
    try:
        cells = line(name, [json.loads(file.read_text()) for file in files])
    except ValueError as error:
        parser.error(f"{out}: {error}. Delete those of the row that are of no use")
    print(f"\n{markdown_table(HEADER, [cells])}")


def measure(options: argparse.Namespace, out: Path) -> None:
    """Train and score the seeds that are not kept yet."""
    out.mkdir(parents=True, exist_ok=True)
    env = setup()
    source = open_source(options.data, env.data, env.drive)
    if source.own:
        sys.exit("records are for the pairs: photos of your own have other classes")
    row = ROWS[options.row]
    seeds = list(range(row.seeds)) if options.seed is None else [options.seed]
    if options.trial:
        seeds = seeds[:1]
    for seed in seeds:
        file = out / f"{options.row}-{seed}.json"
        if file.exists():
            print(f"{file} is there: seed {seed} is not trained again")
            continue
        job = Job(env, source, seed, 0.0, file.with_suffix(""), options.trial)
        clock, facts = begin(job)
        job = replace(job, clock=clock)
        print(f"{row.title}, seed {seed}; the clock: {job.clock / 60:.1f} minutes", flush=True)
        result = run(row, job, facts)
        with replacing(file) as unfinished:
            unfinished.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
