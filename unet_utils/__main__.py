"""The steps of the notebooks as commands: `python -m unet_utils COMMAND --help`."""

import argparse
import io
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from unet_utils.classes import ClassScheme
from unet_utils.clustering import choose_scheme
from unet_utils.config import RECIPES, SETTINGS, recipe, settings_table
from unet_utils.dataset import prepare
from unet_utils.evaluation import SMALL_MODEL, Trained, evaluate, find_checkpoint, load_trained
from unet_utils.frames import Frames
from unet_utils.metrics import ConfusionMatrix
from unet_utils.platform.environment import Environment, setup
from unet_utils.platform.files import user_path
from unet_utils.restoring import METHODS
from unet_utils.sources import get_pairs, is_full_set
from unet_utils.training import fit
from unet_utils.use.audit import audit, official_frames
from unet_utils.use.compare import compare_runs
from unet_utils.use.distributed import open_processes
from unet_utils.use.export import export_model, frames_per_second
from unet_utils.use.full_size import is_official, prepare_official
from unet_utils.use.photos import predict_photos, printable
from unet_utils.use.reports import class_table, save_scores, score_report, score_table
from unet_utils.use.tensorboard import TensorBoardLog
from unet_utils.use.video import is_video, segment_video


def main(arguments: list[str] | None = None) -> None:
    """Run one command; print user errors in one line."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(
            errors="backslashreplace"
        )  # names of files may not fit the terminal's encoding
    options = _parser().parse_args(arguments)
    try:
        with open_processes() as options.processes:
            options.command(options, setup())
    except (OSError, ValueError, RuntimeError, FloatingPointError) as error:
        sys.exit(f"Error: {printable(str(error))}")


def _root(options: argparse.Namespace, env: Environment) -> Path:
    return (
        user_path(options.data) if is_official(options.data) else get_pairs(options.data, env.data)
    )


def _frames(
    options: argparse.Namespace,
    env: Environment,
    root: Path,
    split: str,
    scheme: str | ClassScheme,
    clusters: int = 20,
) -> Frames:
    cache = env.data / "prepared"
    if is_official(root):
        return prepare_official(root, split, cache, scheme, options.height)
    if isinstance(scheme, str):
        scheme = choose_scheme(scheme, root, clusters)
    return prepare(root, split, cache, scheme, options.labels)


def _prepare(options: argparse.Namespace, env: Environment) -> None:
    root = _root(options, env)
    for split in ("train", "val"):
        frames = _frames(options, env, root, split, options.scheme)
        shares = frames.class_counts().double() / frames.label_ids.numel()
        print(f"{split}: {len(frames)} frames; void {100 * (1 - shares.sum()):.2f} % of the pixels")
        for name, share in zip(frames.scheme.names, shares.tolist(), strict=True):
            print(f"  {name:14} {100 * share:7.3f} %")


def _audit(options: argparse.Namespace, env: Environment) -> None:
    print(audit(options.official, get_pairs(options.data, env.data)))


def _train(options: argparse.Namespace, env: Environment) -> None:
    def load() -> Frames:
        return _frames(
            options, env, _root(options, env), "train", options.scheme, options.num_clusters
        )

    frames = options.processes.in_turn(load)
    if options.skip_first:
        frames = frames.part(slice(options.skip_first, None))
    name = options.recipe or ("demo" if options.data == "demo" else env.device.type)
    config = recipe(name, **{setting.name: getattr(options, setting.name) for setting in SETTINGS})
    print(settings_table(config, name))
    folder, _ = env.run_folders(options.run)
    log = TensorBoardLog(folder) if options.processes.rank == 0 else None
    fit(
        frames,
        config,
        folder,
        env.device,
        resume=options.resume,
        on_epoch=log,
        start_from=options.start_from,
        processes=options.processes,
    )


def _evaluate(options: argparse.Namespace, env: Environment) -> None:
    checkpoint = _checkpoint(options, env)
    trained = load_trained(checkpoint, env.device)
    root = _root(options, env)
    if options.official:
        frames = official_frames(options.official, root, trained.scheme)
    else:
        frames = _frames(options, env, root, "val", trained.scheme)
    matrices = evaluate(
        trained.model, frames, trained.scene_size, flip=options.flip, progress="evaluating"
    )
    matrix = ConfusionMatrix.total(matrices)
    print(class_table(matrix, trained.scheme), end="\n\n")
    if options.official:
        print(score_table({f"this model on {len(frames)} frames": matrix.summary()}))
        return
    published = not is_official(root) and is_full_set(root)
    print(score_report(matrix, trained.scheme, published))
    folder = env.results / ("small-model" if checkpoint == SMALL_MODEL else checkpoint.parent.name)
    report = save_scores(matrices, trained.scheme, folder, frames.numbers, published)
    print(f"\nsaved as {report}, and in the same folder as .json and .csv")


def _predict(options: argparse.Namespace, env: Environment) -> None:
    trained, problems = _trained(options, env), []
    videos = [path for path in options.photos if is_video(path)]
    for path in videos:
        try:
            print(printable(f"{path} -> {segment_video(trained, path, options.out, options.flip)}"))
        except (OSError, ValueError, RuntimeError) as error:
            problems.append(str(error))
    photos = [path for path in options.photos if path not in videos]
    problems += predict_photos(trained, photos, options.out, options.flip, options.label_ids)
    if problems:
        raise ValueError("\n".join(problems))


def _export(options: argparse.Namespace, env: Environment) -> None:
    trained = _trained(options, env)
    path = export_model(trained, options.out or env.results / options.run / "unet.torchscript")
    print(f"{path}: {path.stat().st_size / 2**20:.1f} MB")
    if path.suffix == ".torchscript":
        warnings.filterwarnings(
            "ignore", message=".*torch.jit"
        )  # newer torch deprecates what older torch can read
        model = torch.jit.load(path, map_location=env.device)
        for size in (1, 16):
            photos = torch.randint(256, (size, 3, 256, 256), dtype=torch.uint8)
            speed = frames_per_second(lambda batch: model(batch.to(env.device), True), photos)
            print(f"batches of {size}: {speed:.1f} frames per second on {env.device}")


def _compare(options: argparse.Namespace, env: Environment) -> None:
    print(compare_runs(env.results, options.runs).table)


def _checkpoint(options: argparse.Namespace, env: Environment) -> Path:
    return (
        user_path(options.checkpoint)
        if options.checkpoint
        else find_checkpoint(env.run_folders(options.run)[0])
    )


def _trained(options: argparse.Namespace, env: Environment) -> Trained:
    return load_trained(_checkpoint(options, env), env.device)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m unet_utils", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(name: str, run, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=run)
        return sub

    def data(sub: argparse.ArgumentParser) -> None:
        text = "kaggle (download), demo (drawn scenes), the path of a .zip or folder of pairs, or a folder with the "
        text += "official leftImg8bit/ and gtFine/ (default: kaggle)"
        sub.add_argument("--data", default="kaggle", help=text)
        text = "height of official frames in pixels, a multiple of 32 (default: 1024)"
        sub.add_argument("--height", type=int, default=1024, help=text)
        sub.add_argument(
            "--labels", choices=METHODS, default="restored", help="how masks become labels"
        )

    def run(sub: argparse.ArgumentParser) -> None:
        # Not --run: torchrun would take that for an abbreviation of its own options.
        text = "name of the run, a folder in the results (default: unet)"
        sub.add_argument("--run-name", dest="run", default="unet", help=text)

    def model(sub: argparse.ArgumentParser) -> None:
        run(sub)
        sub.add_argument("--checkpoint", help="file to use instead of the run's best.pt")

    def flip(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--flip", action="store_true", help="average with the mirrored photo; twice the time"
        )

    scheme: dict[str, Any] = {
        "choices": ("cityscapes19", "categories7", "cityscapes30", "clusters"),
        "default": "cityscapes19",
        "help": "the classes (default: cityscapes19)",
    }
    sub = command("prepare", _prepare, "restore the pairs once and print the share of each class")
    data(sub)
    sub.add_argument("--scheme", **scheme)
    sub = command("audit", _audit, "compare recovered labels with official ones that you have")
    data(sub)
    sub.add_argument(
        "--official", required=True, help="folder with *_labelIds.png files and pairs.csv"
    )
    sub = command("train", _train, "train a UNet, or continue an interrupted run")
    data(sub)
    sub.add_argument("--scheme", **scheme)
    run(sub)
    sub.add_argument(
        "--recipe", choices=RECIPES, help="default settings (default: by device, or demo)"
    )
    sub.add_argument(
        "--num-clusters", type=int, default=20, help="for the scheme clusters (default: 20)"
    )
    text = "continue an earlier run of this name; --no-resume renames its files and begins again (default: continue)"
    sub.add_argument("--resume", action=argparse.BooleanOptionalAction, default=True, help=text)
    sub.add_argument(
        "--start-from", metavar="CHECKPOINT", help="start a new run from the weights of another one"
    )
    sub.add_argument(
        "--skip-first", type=int, default=0, help="leave the first N training pairs out"
    )
    for setting in SETTINGS:
        kind: dict[str, Any] = {
            "type": setting.type,
            "metavar": getattr(setting.type, "__name__", "").upper(),
        }
        if setting.type is bool:
            kind = {"action": argparse.BooleanOptionalAction}
        sub.add_argument(
            f"--{setting.name.replace('_', '-')}",
            default=None,
            help="default: the recipe's",
            **kind,
        )
    sub = command("evaluate", _evaluate, "score a model on the validation pairs")
    data(sub)
    model(sub)
    flip(sub)
    sub.add_argument(
        "--official",
        help="score on the frames of this folder of official labels (see audit) instead",
    )
    sub = command("predict", _predict, "segment photos or videos")
    sub.add_argument(
        "photos", nargs="+", metavar="PHOTO", help="photos, folders of photos, and videos"
    )
    model(sub)
    flip(sub)
    sub.add_argument(
        "--out", default="predictions", help="folder for the results (default: predictions)"
    )
    text = "also write official label ids as PNG, for other tools to score"
    sub.add_argument("--label-ids", action="store_true", help=text)
    sub = command("export", _export, "write a model as one file that runs without this package")
    model(sub)
    text = "file ending in .torchscript, or in .onnx (needs the onnx package); default: unet.torchscript in the run"
    sub.add_argument("--out", help=text)
    sub = command(
        "compare",
        _compare,
        "compare the runs in the results folder: differing settings, time, scores",
    )
    sub.add_argument("runs", nargs="*", metavar="RUN", help="names of runs (default: all)")
    return parser


if __name__ == "__main__":
    main()
