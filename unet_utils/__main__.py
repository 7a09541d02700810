"""The notebooks' steps without a notebook: `python -m unet_utils prepare|audit|train|evaluate|predict`."""

import argparse
import json
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from unet_utils.audit import audit, official_frames
from unet_utils.classes import IGNORE
from unet_utils.clustering import choose_scheme
from unet_utils.dataset import prepare
from unet_utils.decoding import METHODS
from unet_utils.download import get_pairs
from unet_utils.environment import Environment, setup
from unet_utils.evaluation import class_table, evaluate, load_trained, photo_size, predict, save_scores, score_table
from unet_utils.metrics import ConfusionMatrix
from unet_utils.plotting import overlay
from unet_utils.training import RECIPES, TrainConfig, fit, recipe


def main(arguments: list[str] | None = None) -> None:
    """Runs one command; errors that a person can mend are printed in one line."""
    options = _parser().parse_args(arguments)
    try:
        options.command(options, setup())
    except (OSError, ValueError, RuntimeError, FloatingPointError) as error:
        sys.exit(f"Error: {error}")


def _prepare(options: argparse.Namespace, env: Environment) -> None:
    root = get_pairs(options.data, env.data)
    for split in ("train", "val"):
        frames = prepare(root, split, env.data / "prepared", choose_scheme(options.scheme, root), options.labels)
        shares = frames.class_counts().double() / frames.codes.numel()
        print(f"{split}: {len(frames)} frames; void {100 * (1 - shares.sum()):.2f} % of the pixels")
        for name, share in zip(frames.scheme.names, shares.tolist(), strict=True):
            print(f"  {name:14} {100 * share:7.3f} %")


def _audit(options: argparse.Namespace, env: Environment) -> None:
    print(audit(options.official, get_pairs(options.data, env.data)))


def _train(options: argparse.Namespace, env: Environment) -> None:
    root = get_pairs(options.data, env.data)
    scheme = choose_scheme(options.scheme, root)
    frames = prepare(root, "train", env.data / "prepared", scheme, options.labels)
    if options.skip_first:
        frames = frames.part(slice(options.skip_first, None))
    knobs = {field.name: getattr(options, field.name) for field in fields(TrainConfig)}
    config = recipe(options.recipe or ("demo" if options.data == "demo" else env.device.type), **knobs)
    print(config)
    fit(frames, config, env.results / options.run, env.device, resume=options.resume)


def _evaluate(options: argparse.Namespace, env: Environment) -> None:
    trained = load_trained(options.checkpoint or env.results / options.run / "best.pt", env.device)
    root = get_pairs(options.data, env.data)
    if options.official:
        frames = official_frames(options.official, root, trained.scheme)
    else:
        frames = prepare(root, "val", env.data / "prepared", trained.scheme, options.labels)
    matrices = evaluate(trained.model, frames, trained.config["image_size"], flip=options.flip, progress="evaluating")
    matrix = ConfusionMatrix.total(matrices)
    print(class_table(matrix, trained.scheme), end="\n\n")
    print(score_table({f"this model on {len(frames)} frames": matrix.summary()}))
    if not options.official:
        print(f"\nsaved as {save_scores(matrices, trained.scheme, env.results / options.run)}")


def _predict(options: argparse.Namespace, env: Environment) -> None:
    trained = load_trained(options.checkpoint or env.results / options.run / "best.pt", env.device)
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    for path in options.photos:
        with Image.open(path) as image:
            photo = np.asarray(image.convert("RGB"))
        size = photo_size(*photo.shape[:2], trained.config["image_size"])
        batch = torch.from_numpy(photo.copy()).permute(2, 0, 1)[None]
        classes = predict(trained.model, batch, size, options.flip)[0].argmax(0).byte().cpu().numpy()
        shares = np.bincount(classes.ravel(), minlength=IGNORE) / classes.size
        for kind, pixels in {
            "classes": trained.scheme.colorize(classes),
            "overlay": overlay(photo, classes, trained.scheme),
        }.items():
            Image.fromarray(pixels).save(_free(out / f"{Path(path).stem}-{kind}.png"))
        found = {trained.scheme.names[index]: round(float(shares[index]), 4) for index in np.flatnonzero(shares)}
        print(f"{path}: {json.dumps(found)}")


def _free(path: Path) -> Path:
    """A name that no file has yet: nothing of the user's is overwritten."""
    number, free = 1, path
    while free.exists():
        number, free = number + 1, path.with_stem(f"{path.stem}-{number}")
    return free


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m unet_utils", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(name: str, run, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=run)
        return sub

    def data(sub: argparse.ArgumentParser) -> None:
        text = "kaggle (downloads), demo (drawn scenes), or the path of a .zip or folder (default: kaggle)"
        sub.add_argument("--data", default="kaggle", help=text)
        sub.add_argument("--labels", choices=METHODS, default="decoder", help="how masks become labels")

    def model(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--run", default="unet", help="name of the run, a folder in the results (default: unet)")
        sub.add_argument("--checkpoint", help="file to use instead of the run's best.pt")
        sub.add_argument("--flip", action="store_true", help="average with the mirrored photo; twice the time")

    scheme = {
        "choices": ("cityscapes19", "categories7", "cityscapes30", "clusters"),
        "default": "cityscapes19",
        "help": "the classes (default: cityscapes19)",
    }
    sub = command("prepare", _prepare, "decode the pairs once and print the share of each class")
    data(sub)
    sub.add_argument("--scheme", **scheme)
    sub = command("audit", _audit, "compare recovered labels with official ones that you have")
    data(sub)
    sub.add_argument("--official", required=True, help="folder with *_labelIds.png files and pairs.csv")
    sub = command("train", _train, "train a UNet, or go on with a run that was interrupted")
    data(sub)
    sub.add_argument("--scheme", **scheme)
    sub.add_argument("--run", default="unet", help="name of the run, a folder in the results (default: unet)")
    sub.add_argument("--recipe", choices=RECIPES, help="default settings (default: by device, or demo)")
    sub.add_argument("--no-resume", dest="resume", action="store_false", help="set an earlier run aside")
    sub.add_argument("--skip-first", type=int, default=0, help="leave the first N training pairs out")
    for field in fields(TrainConfig):
        if field.type is bool:
            kind = {"action": argparse.BooleanOptionalAction}
        else:
            kind = {"type": field.type, "metavar": field.type.__name__.upper()}
        sub.add_argument(f"--{field.name.replace('_', '-')}", default=None, help="default: the recipe's", **kind)
    sub = command("evaluate", _evaluate, "score a model on the validation pairs")
    data(sub)
    model(sub)
    sub.add_argument("--official", help="score on the frames of this folder of official labels (see audit) instead")
    sub = command("predict", _predict, "segment photos of your own")
    sub.add_argument("photos", nargs="+", help="JPEG or PNG files")
    model(sub)
    sub.add_argument("--out", default="predictions", help="folder for the pictures (default: predictions)")
    return parser


if __name__ == "__main__":
    main()
