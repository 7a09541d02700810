"""The notebooks' steps without a notebook: `python -m unet_utils prepare|audit|train|evaluate|predict|export`."""

import argparse
import json
import sys
import warnings
from dataclasses import fields
from pathlib import Path

import torch

from unet_utils.classes import ClassScheme
from unet_utils.clustering import choose_scheme
from unet_utils.config import RECIPES, TrainConfig, recipe
from unet_utils.dataset import Frames, prepare
from unet_utils.decoding import METHODS
from unet_utils.evaluation import Trained, evaluate, find_checkpoint, load_trained
from unet_utils.extras.audit import audit, official_frames
from unet_utils.extras.distributed import open_world
from unet_utils.extras.export import export_model, frames_per_second
from unet_utils.extras.full_size import is_official, prepare_official
from unet_utils.extras.photos import class_shares, find_photos, read_photo, save_pictures, segment
from unet_utils.extras.reports import class_table, save_scores, score_table
from unet_utils.metrics import ConfusionMatrix
from unet_utils.platform.archive import get_pairs
from unet_utils.platform.environment import Environment, setup
from unet_utils.training import fit


def main(arguments: list[str] | None = None) -> None:
    """Runs one command; errors that a person can mend are printed in one line."""
    options = _parser().parse_args(arguments)
    try:
        with open_world() as options.world:
            options.command(options, setup())
    except (OSError, ValueError, RuntimeError, FloatingPointError) as error:
        sys.exit(f"Error: {error}")


def _root(options: argparse.Namespace, env: Environment) -> Path:
    return Path(options.data) if is_official(options.data) else get_pairs(options.data, env.data)


def _frames(
    options: argparse.Namespace,
    env: Environment,
    root: Path,
    split: str,
    scheme: str | ClassScheme,
    num_clusters: int = 20,
) -> Frames:
    cache = env.data / "prepared"
    if is_official(root):
        return prepare_official(root, split, cache, scheme, options.height)
    return prepare(root, split, cache, choose_scheme(scheme, root, num_clusters), options.labels)


def _prepare(options: argparse.Namespace, env: Environment) -> None:
    root = _root(options, env)
    for split in ("train", "val"):
        frames = _frames(options, env, root, split, options.scheme)
        shares = frames.class_counts().double() / frames.codes.numel()
        print(f"{split}: {len(frames)} frames; void {100 * (1 - shares.sum()):.2f} % of the pixels")
        for name, share in zip(frames.scheme.names, shares.tolist(), strict=True):
            print(f"  {name:14} {100 * share:7.3f} %")


def _audit(options: argparse.Namespace, env: Environment) -> None:
    print(audit(options.official, get_pairs(options.data, env.data)))


def _train(options: argparse.Namespace, env: Environment) -> None:
    def load() -> Frames:
        return _frames(options, env, _root(options, env), "train", options.scheme, options.num_clusters)

    frames = options.world.in_turn(load)
    if options.skip_first:
        frames = frames.part(slice(options.skip_first, None))
    knobs = {field.name: getattr(options, field.name) for field in fields(TrainConfig)}
    config = recipe(options.recipe or ("demo" if options.data == "demo" else env.device.type), **knobs)
    print(config)
    fit(frames, config, env.results / options.run, env.device, resume=options.resume, world=options.world)


def _evaluate(options: argparse.Namespace, env: Environment) -> None:
    trained = _trained(options, env)
    root = _root(options, env)
    if options.official:
        frames = official_frames(options.official, root, trained.scheme)
    else:
        frames = _frames(options, env, root, "val", trained.scheme)
    batch_size = frames.at_once(trained.scene_size)
    matrices = evaluate(trained.model, frames, trained.scene_size, batch_size, options.flip, "evaluating")
    matrix = ConfusionMatrix.total(matrices)
    print(class_table(matrix, trained.scheme), end="\n\n")
    print(score_table({f"this model on {len(frames)} frames": matrix.summary()}))
    if not options.official:
        run = Path(options.checkpoint).absolute().parent.name if options.checkpoint else options.run
        report = save_scores(matrices, trained.scheme, env.results / run, frames.numbers)
        print(f"\nsaved as {report}, and beside it as .json and .csv")


def _predict(options: argparse.Namespace, env: Environment) -> None:
    trained, unreadable = _trained(options, env), []
    for path in find_photos(options.photos):
        try:
            photo = read_photo(path)
        except ValueError as error:
            unreadable.append(str(error))
            continue
        classes = segment(trained, photo, options.flip)
        overlay = save_pictures(photo, classes, trained.scheme, Path(options.out), path.stem)[1]
        shares = {name: round(share, 4) for name, share in class_shares(classes, trained.scheme).items()}
        print(f"{path} -> {overlay}: {json.dumps(shares)}")
    if unreadable:
        raise ValueError("\n".join(unreadable))


def _export(options: argparse.Namespace, env: Environment) -> None:
    trained = _trained(options, env)
    path = export_model(trained, options.out or env.results / options.run / "unet.torchscript")
    print(f"{path}: {path.stat().st_size / 2**20:.1f} MB")
    if path.suffix == ".torchscript":
        warnings.filterwarnings("ignore", message=".*torch.jit")  # newer torch prefers what older torch cannot read
        model = torch.jit.load(path, map_location=env.device)
        for size in (1, 16):
            photos = torch.randint(256, (size, 3, 256, 256), dtype=torch.uint8)
            speed = frames_per_second(lambda batch: model(batch.to(env.device), True), photos)
            print(f"batches of {size}: {speed:.1f} frames a second on {env.device}")


def _trained(options: argparse.Namespace, env: Environment) -> Trained:
    return load_trained(options.checkpoint or find_checkpoint(env.results / options.run), env.device)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m unet_utils", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(name: str, run, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=run)
        return sub

    def data(sub: argparse.ArgumentParser) -> None:
        text = "kaggle (downloads), demo (drawn scenes), the path of a .zip or folder of pairs, or a folder with the "
        text += "official leftImg8bit/ and gtFine/ (default: kaggle)"
        sub.add_argument("--data", default="kaggle", help=text)
        text = "pixels that official frames are high, a multiple of 32 (default: 1024)"
        sub.add_argument("--height", type=int, default=1024, help=text)
        sub.add_argument("--labels", choices=METHODS, default="decoder", help="how masks become labels")

    def run(sub: argparse.ArgumentParser) -> None:
        # Not --run: torchrun would take that for an abbreviation of options of its own.
        text = "name of the run, a folder in the results (default: unet)"
        sub.add_argument("--run-name", dest="run", default="unet", help=text)

    def model(sub: argparse.ArgumentParser) -> None:
        run(sub)
        sub.add_argument("--checkpoint", help="file to use instead of the run's best.pt")

    def flip(sub: argparse.ArgumentParser) -> None:
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
    run(sub)
    sub.add_argument("--recipe", choices=RECIPES, help="default settings (default: by device, or demo)")
    sub.add_argument("--num-clusters", type=int, default=20, help="with the scheme clusters (default: 20)")
    text = "go on with an earlier run, or set it aside (default: go on)"
    sub.add_argument("--resume", action=argparse.BooleanOptionalAction, default=True, help=text)
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
    flip(sub)
    sub.add_argument("--official", help="score on the frames of this folder of official labels (see audit) instead")
    sub = command("predict", _predict, "segment photos of your own")
    sub.add_argument("photos", nargs="+", metavar="PHOTO", help="JPEG or PNG files, and folders of them")
    model(sub)
    flip(sub)
    sub.add_argument("--out", default="predictions", help="folder for the pictures (default: predictions)")
    sub = command("export", _export, "write a model as one file that runs without this package")
    model(sub)
    text = "file ending in .torchscript, or in .onnx (needs the onnx package); default: unet.torchscript in the run"
    sub.add_argument("--out", help=text)
    return parser


if __name__ == "__main__":
    main()
