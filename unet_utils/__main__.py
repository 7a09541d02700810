"""The steps of the notebooks as commands: `python -m unet_utils COMMAND --help`."""

import argparse
import io
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from unet_utils.classes import SCHEMES, ClassScheme
from unet_utils.config import RECIPES, SETTINGS
from unet_utils.evaluation import evaluate, load_trained
from unet_utils.frames import Frames
from unet_utils.metrics import ConfusionMatrix
from unet_utils.pictures import printable
from unet_utils.plan import plan_run
from unet_utils.platform.environment import Environment, setup
from unet_utils.platform.files import user_path
from unet_utils.restoring import METHODS, SIDE
from unet_utils.sources import Source, get_pairs, open_source
from unet_utils.training import fit
from unet_utils.use.audit import audit, official_frames
from unet_utils.use.calibration import fit_temperature
from unet_utils.use.compare import choose_model, compare_results, compare_runs
from unet_utils.use.exchange import (
    IDS,
    export_folder,
    export_labels,
    licence_sentence,
    score_predictions,
)
from unet_utils.use.export import default_name, export_model, frames_per_second
from unet_utils.use.int8 import check_int8, export_int8
from unet_utils.use.photos import expand_patterns, predict_photos
from unet_utils.use.reports import (
    class_table,
    save_model_scores,
    save_scores,
    score_report,
    score_table,
    scores_folder,
)
from unet_utils.use.self_check import SECTIONS, self_check
from unet_utils.use.several_gpus import open_processes
from unet_utils.use.video import is_video, segment_video


def main(arguments: list[str] | None = None) -> None:
    """Run one command; print user errors in one line."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Names of files may not fit the terminal's encoding.
        sys.stdout.reconfigure(errors="backslashreplace")
    options = _parser().parse_args(arguments)
    try:
        with open_processes() as options.processes:
            only_reads = options.command in (_predict, _export, _compare)
            options.command(options, setup(writes=not only_reads))
    except (OSError, ValueError, RuntimeError, FloatingPointError, MemoryError) as error:
        sys.exit(f"Error: {printable(str(error) or 'the memory is full')}")


def _check(options: argparse.Namespace, env: Environment) -> None:
    root = get_pairs(options.data, env.data, env.drive) if options.data else None
    rows = self_check(env.device, env.results, root, options.sections)
    if any(row.state == "not ok" for row in rows):
        sys.exit(1)


def _prepare(options: argparse.Namespace, env: Environment) -> None:
    if options.export:
        export_folder(options.export)  # refuses one that is in use before the work, not after it
    source = _source(options, env)
    splits = {}
    scheme: str | ClassScheme = options.scheme
    for split in ("train", "val"):
        frames = _frames(options, env, source, split, scheme)
        scheme = frames.scheme  # clusters are found once
        splits[split] = frames
        shares = frames.class_counts().double() / frames.label_ids.numel()
        void = 100 * (1 - shares.sum())
        print(f"{split}: {len(frames)} frames; void {void:.2f} % of the pixels")
        for name, share in zip(frames.scheme.names, shares.tolist(), strict=True):
            print(f"  {name:14} {100 * share:7.3f} %")
    if options.export:
        print(f"Labels: {export_labels(options.export, source, splits)}")
        if frames.licence:
            print(licence_sentence(frames.licence))


def _audit(options: argparse.Namespace, env: Environment) -> None:
    result = audit(options.official, get_pairs(options.data, env.data))
    print(f"Against the official labels of {result.frames} frames:\n\n{result.table}")


def _train(options: argparse.Namespace, env: Environment) -> None:
    def load() -> Frames:
        return _frames(options, env, _source(options, env), "train", options.scheme)

    frames = options.processes.first(load)
    if not 0 <= options.skip_first < len(frames):
        raise ValueError(f"--skip-first is {options.skip_first}, of {len(frames)} training frames")
    frames = frames.part(slice(options.skip_first, None))
    plan = plan_run(
        env,
        options.data,
        options.scheme,
        options.run,
        options.start_from,
        options.labels,
        options.num_clusters,
        options.resume,
        options.recipe,
        **{setting.name: getattr(options, setting.name) for setting in SETTINGS},
    )
    print(plan.table)
    fit(
        frames,
        plan.config,
        plan.folder,
        env.device,
        resume=plan.resume,
        backup=plan.backup,
        start_from=plan.start_from,
        processes=options.processes,
    )
    if options.processes.rank == 0:
        temperature = fit_temperature(plan.folder / "best.pt", frames, env.device, plan.backup)
        if temperature:
            print(f"Temperature of its probabilities: {temperature:.2f}, kept with the model.")


def _evaluate(options: argparse.Namespace, env: Environment) -> None:
    if options.predictions:
        _evaluate_predictions(options, env)
        return
    if options.ids or options.scheme:
        raise ValueError("--ids and --scheme belong to --predictions: a model has its own classes")
    source = _source(options, env)
    checkpoint = _checkpoint(options, env, source)
    trained = load_trained(checkpoint, env.device)
    if options.official:
        frames = official_frames(options.official, source.root, trained.scheme)
    else:
        frames = _frames(options, env, source, "val", trained.scheme)
    matrices = evaluate(
        trained.model, frames, trained.scene_size, options.flip, progress="evaluating"
    )
    matrix = ConfusionMatrix.total(matrices)
    print(class_table(matrix, trained.scheme), end="\n\n")
    if options.official:
        print(score_table({f"this model on {len(frames)} frames": matrix.summary()}))
        return
    published = source.is_published  # looks at all files
    print(score_report(matrix, frames.scheme, published))
    report = save_model_scores(matrices, trained, checkpoint, frames, env, published, options.flip)
    print(f"\nsaved as {report}, and in the same folder as .json and .csv")


def _evaluate_predictions(options: argparse.Namespace, env: Environment) -> None:
    if options.run or options.checkpoint or options.official or options.flip:
        raise ValueError(
            "--predictions are scored without a model, on the validation split: leave out "
            "--run-name, --checkpoint, --official and --flip"
        )
    if not options.ids:
        raise ValueError(
            "say with --ids what the numbers in the predictions are: class (indices, road is 0) or "
            "official (label ids, road is 7). 0 to 18 can be either"
        )
    source = _source(options, env)
    frames = _frames(options, env, source, "val", options.scheme or "cityscapes19")
    names = [photo.stem for photo in source.files("val")]
    matrices, origin = score_predictions(
        options.predictions, frames, options.ids, "evaluating", names
    )
    print(class_table(ConfusionMatrix.total(matrices), frames.scheme), end="\n\n")
    published = source.is_published  # looks at all files
    print(score_report(ConfusionMatrix.total(matrices), frames.scheme, published))
    folder = env.results / f"{origin['predictions']}-predictions-{origin['hash'][:8]}"
    report = save_scores(matrices, frames.scheme, folder, frames.numbers, published, origin)
    print(f"\nsaved as {report}, and in the same folder as .json and .csv")


def _predict(options: argparse.Namespace, env: Environment) -> None:
    trained = load_trained(_checkpoint(options, env), env.device)
    problems = []
    paths = expand_patterns(options.photos)
    videos = [path for path in paths if is_video(path)]
    for path in videos:
        try:
            print(printable(f"{path} -> {segment_video(trained, path, options.out, options.flip)}"))
        except (OSError, ValueError, RuntimeError) as error:
            problems.append(str(error))
    photos = [path for path in paths if path not in videos]
    problems += predict_photos(trained, photos, options.out, options.flip, options.label_ids)
    if problems:
        raise ValueError("\n".join(problems))


def _export(options: argparse.Namespace, env: Environment) -> None:
    checkpoint = _checkpoint(options, env)
    trained = load_trained(checkpoint, env.device)
    folder = scores_folder(env.results, checkpoint, trained.made_by["weights"])
    if options.int8:
        if options.logits:
            raise ValueError("--int8 is scored, and needs classes: leave --logits out")
        path = check_int8(options.out or folder / "unet-int8.onnx")  # before the work
        source = open_source(options.data, env.data, env.drive, trained.scene_size)
        train = source.frames("train", env.prepared, trained.scheme, keep=env.prepared_copy)
        val = source.frames("val", env.prepared, trained.scheme, keep=env.prepared_copy)
        report = export_int8(trained, path, train, val, options.size)
        print(f"{path}: {report}")
        return
    path = export_model(
        trained, options.out or folder / default_name(), options.size, options.logits
    )
    print(f"{path}: {path.stat().st_size / 2**20:.1f} MB")
    if path.suffix == ".torchscript":
        # Newer torch deprecates what older torch can read.
        warnings.filterwarnings("ignore", message=".*torch.jit")
        model = torch.jit.load(path, map_location=env.device)
        for size in (1, 16):
            photos = torch.randint(256, (size, 3, 256, 256), dtype=torch.uint8)
            speed = frames_per_second(lambda batch: model(batch.to(env.device), True), photos)
            print(f"batches of {size}: {speed:.1f} frames per second on {env.device}")


def _compare(options: argparse.Namespace, env: Environment) -> None:
    runs = options.runs
    is_folder = len(runs) == 1 and user_path(runs[0]).is_dir()
    if is_folder and not (env.results / runs[0] / "best.pt").exists():
        print(compare_results(runs[0]).table)
    else:
        print(compare_runs(env.results, runs).table)


def _source(options: argparse.Namespace, env: Environment) -> Source:
    source = open_source(options.data, env.data, env.drive, options.size)
    if source.own is None and options.size != (SIDE, SIDE):
        raise ValueError(
            "--size is for photos of your own, and pairs have 256x256 pixels: --image-size says "
            "how large a network sees them in training"
        )
    return source


def _frames(
    options: argparse.Namespace,
    env: Environment,
    source: Source,
    split: str,
    scheme: str | ClassScheme,
) -> Frames:
    return source.frames(
        split, env.prepared, scheme, options.labels, env.prepared_copy, options.num_clusters
    )


def _size(text: str) -> tuple[int, int]:
    """Read WIDTHxHEIGHT, or one number for a square, as height and width."""
    found = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", text.lower())
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: write WIDTHxHEIGHT, as in 640x480")
    return int(found[2] or found[1]), int(found[1])


def _checkpoint(
    options: argparse.Namespace, env: Environment, source: Source | None = None
) -> Path:
    """Return the checkpoint that the person means: a file, a run, the latest run that fits.

    Raises:
        FileNotFoundError: there is no run of the name that was given; the message lists the runs.
    """
    if options.checkpoint:
        return user_path(options.checkpoint)
    return choose_model(options.run, env, source.fingerprint if source else "")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m unet_utils", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(name: str, run, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=run)
        return sub

    def data(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--data",
            default="kaggle",
            help="kaggle (download), demo (drawn scenes), an archive or folder of pairs, or photos "
            "and masks of your own (default: kaggle)",
        )
        sub.add_argument(
            "--size",
            type=_size,
            default=(SIDE, SIDE),
            metavar="WIDTHxHEIGHT",
            help="to which photos of your own are brought (default: 256, a square)",
        )

    def labels(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--labels", choices=METHODS, default="restored", help="how masks become labels"
        )

    def scheme(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--scheme",
            choices=(*SCHEMES, "clusters"),
            default="cityscapes19",
            help="the classes (default: cityscapes19)",
        )
        sub.add_argument(
            "--num-clusters", type=int, default=20, help="for the scheme clusters (default: 20)"
        )

    def run(sub: argparse.ArgumentParser, default: str) -> None:
        # Not --run: torchrun would take that for an abbreviation of its own options.
        text = f"name of the run, a folder in the results (default: {default})"
        sub.add_argument("--run-name", dest="run", default="", help=text)

    def model(sub: argparse.ArgumentParser) -> None:
        run(sub, "the latest")
        sub.add_argument("--checkpoint", help="file to use instead of the run's best.pt")

    def flip(sub: argparse.ArgumentParser) -> None:
        text = "average with the mirrored photo; twice the time"
        sub.add_argument("--flip", action="store_true", help=text)

    sub = command("check", _check, "check that everything works on this machine, and how fast")
    text = "kaggle, or an archive or folder of pairs, to restore their masks (default: drawn ones)"
    sub.add_argument("--data", default="", help=text)
    text = "the sections to do, 1 to 7 (default: all)"
    sub.add_argument(
        "--sections", type=int, nargs="+", choices=SECTIONS, default=[], metavar="N", help=text
    )

    sub = command("prepare", _prepare, "restore all labels once, print the share of each class")
    data(sub)
    labels(sub)
    scheme(sub)
    text = "also write the labels as PNG files, with checksums, to this new folder"
    sub.add_argument("--export", metavar="FOLDER", help=text)

    sub = command("audit", _audit, "compare restored labels with official ones that you have")
    sub.add_argument("--data", default="kaggle", help="pairs, as in train (default: kaggle)")
    text = "folder with *_labelIds.png files and pairs.csv"
    sub.add_argument("--official", required=True, help=text)

    sub = command("train", _train, "train a UNet, or resume an interrupted run")
    data(sub)
    labels(sub)
    scheme(sub)
    run(sub, "from what you set")
    text = "settings (default: t4 on a GPU, cpu, or demo); gpu takes longer than t4"
    sub.add_argument("--recipe", choices=RECIPES, help=text)
    sub.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="resume an earlier run of this name; --no-resume renames its files and begins again",
    )
    text = "start a new run from the weights of another one, or from the small model"
    sub.add_argument("--start-from", metavar="CHECKPOINT|small", help=text)
    text = "leave the first N training pairs out"
    sub.add_argument("--skip-first", type=int, default=0, metavar="N", help=text)
    for setting in SETTINGS:
        option = f"--{setting.name.replace('_', '-')}"
        text = "default: the recipe's, or that of the run"
        if setting.type is bool:
            sub.add_argument(option, action=argparse.BooleanOptionalAction, help=text)
        else:
            kind: Any = setting.type
            sub.add_argument(option, type=kind, metavar=kind.__name__.upper(), help=text)

    sub = command("evaluate", _evaluate, "score a model on the validation pairs")
    data(sub)
    labels(sub)
    model(sub)
    flip(sub)
    text = "score on the frames of this folder of official labels (see audit) instead"
    sub.add_argument("--official", help=text)
    text = "score the PNG files of this folder (1.png, ...), from any framework, instead of a model"
    sub.add_argument("--predictions", metavar="FOLDER", help=text)
    text = "what their numbers are: class indices, or official label ids (own data: mask values)"
    sub.add_argument("--ids", choices=IDS, help=text)
    scheme(sub)
    sub.set_defaults(scheme=None)  # a model has classes of its own

    sub = command("predict", _predict, "segment photos or videos")
    text = "photos, folders of photos, and videos; demo: a street drawn by this package"
    sub.add_argument("photos", nargs="+", metavar="PHOTO", help=text)
    model(sub)
    flip(sub)
    text = "folder for the results (default: predictions)"
    sub.add_argument("--out", default="predictions", help=text)
    text = "also write official label ids as PNG, for other tools to score"
    sub.add_argument("--label-ids", action="store_true", help=text)

    sub = command("export", _export, "write a model as one file that runs without this package")
    model(sub)
    text = "file ending in .onnx or .torchscript (default: unet.onnx in the run's folder)"
    sub.add_argument("--out", help=text)
    text = "an .onnx file for photos of this size only, which OpenCV can read"
    sub.add_argument("--size", type=_size, metavar="WIDTHxHEIGHT", help=text)
    text = "an .onnx file that gives logits at the network's size, not classes at the photo's"
    sub.add_argument("--logits", action="store_true", help=text)
    text = "an .onnx file in 8 bits, calibrated and scored on --data"
    sub.add_argument("--int8", action="store_true", help=text)
    sub.add_argument("--data", default="kaggle", help="for --int8, as in train (default: kaggle)")

    sub = command("compare", _compare, "compare runs: settings that differ, time, scores")
    text = "names of runs (default: all); or a folder that holds result.json files, of many people"
    sub.add_argument("runs", nargs="*", metavar="RUN|FOLDER", help=text)
    return parser


if __name__ == "__main__":
    main()
