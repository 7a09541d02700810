"""Run the rows of the benchmark, print the table, write `benchmarks.json`, `benchmarks.md` and a
figure."""

import argparse
import contextlib
import importlib
import importlib.metadata
import json
import os
import platform
import sys
import time
import traceback
from dataclasses import asdict, replace
from pathlib import Path

import matplotlib.pyplot as plt
import torch

import benchmarks
from benchmarks.setting import Setting
from benchmarks.timing import Result, table
from unet_utils import CityscapesPairs, recipe, setup
from unet_utils.checkpoints import made_by
from unet_utils.config import recipe_for
from unet_utils.device import compute_dtype
from unet_utils.sources import get_pairs

ROWS = {
    "1": "labels.preparing",
    "2": "training.epochs",
    "3": "networks.networks",
    "4": "metrics.metrics",
    "5": "labels.clustering",
    "6": "growth.growth",
    "7": "training.accuracy",
}
"""Module and function of each row, imported when it runs: a missing package must not stop the other
rows."""
PACKAGES = (
    "torch",
    "torchvision",
    "numpy",
    "pillow",
    "scikit-learn",
    "torchmetrics",
    "segmentation-models-pytorch",
)
FIGURE = "benchmarks-accuracy.png"


def main(arguments: list[str] | None = None) -> int:
    """Run the chosen rows. A row that fails is reported, and the others are still run.

    Returns:
        1 if a row failed, else 0.
    """
    options = _parser().parse_args(arguments)
    setting, data = _setting(options)
    results: dict[str, Result] = {}
    failures: dict[str, str] = {}
    begun = time.perf_counter()
    for name in options.rows:
        start = time.perf_counter()
        module, function = ROWS[name].split(".")
        print(f"row {name}, {function} ...", flush=True)
        try:
            results[name] = getattr(importlib.import_module(f"benchmarks.{module}"), function)(
                setting
            )
            if results[name].comparisons:
                print(table(results[name].comparisons))
            print(results[name].text)
        except Exception as error:
            traceback.print_exc()
            failures[name] = f"{type(error).__name__}: {error}".splitlines()[0]
        now = time.perf_counter()
        print(f"... {now - start:.0f} s, {(now - begun) / 60:.1f} min in all", flush=True)
    _write(Path(options.out), options, data, _machine(setting.device), results, failures)
    return 1 if failures else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m benchmarks",
        description=benchmarks.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--data",
        default="demo",
        help="demo, kaggle, or the path of a .zip or folder (default: demo)",
    )
    parser.add_argument(
        "--rows", nargs="+", choices=ROWS, default=list(ROWS), help="which rows (default: all)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="measured turns (default: 3)")
    parser.add_argument(
        "--pairs", type=int, default=2975, help="maximum number of training pairs (default: 2975)"
    )
    parser.add_argument(
        "--images", type=int, help="images per epoch in row 2 (default: 128, on a GPU 2048)"
    )
    parser.add_argument(
        "--minutes", type=float, default=3, help="training time per contender in row 7 (default: 3)"
    )
    parser.add_argument("--out", default="docs", help="folder of the report (default: docs)")
    parser.add_argument(
        "--tiny", action="store_true", help="tiny sizes: only check that all rows run"
    )
    return parser


def _setting(options: argparse.Namespace) -> tuple[Setting, str]:
    """Return the setting, and a description of the data."""
    env = setup()
    try:
        root = get_pairs(options.data, env.data)
    except (OSError, ValueError, RuntimeError) as error:
        print(f"{options.data} cannot be used, so the demo set is used instead: {error}")
        options.data = "demo"
        root = get_pairs("demo", env.data)
    # The full width of the CPU recipe would take an hour.
    name = recipe_for(env.device, "kaggle")
    config = recipe(name, base_channels=16 if name == "cpu" else None)
    if options.tiny:
        config = replace(config, base_channels=4, image_size=64, batch_size=4)
        options.pairs = 40
        options.images = 8
        options.rounds = 1
        options.minutes = 0.05
    options.pairs = min(options.pairs, len(CityscapesPairs(root, "train")))
    images = options.images or (2048 if env.device.type == "cuda" else 128)
    setting = Setting(
        root,
        env.prepared,
        env.device,
        config,
        options.rounds,
        options.pairs,
        images,
        options.minutes,
    )
    kind = "demo" if options.data == "demo" else "real"
    return setting, f"{options.pairs} pairs of the {kind} set"


def _machine(device: torch.device) -> dict[str, str]:
    """Return processor, cores, GPU and versions; no name of the machine."""
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(
            (line.split(":")[1].strip() for line in lines if line.startswith("model name")), model
        )
    package = made_by(device)
    machine = {
        "unet_utils": f"{package['version']}, commit {package['commit'] or 'unknown'}",
        "processor": model,
        "cores": str(os.cpu_count()),
        "Python": platform.python_version(),
    }
    machine["networks run in"] = str(compute_dtype(device)).removeprefix("torch.")
    if torch.cuda.is_available():
        machine["GPU"] = torch.cuda.get_device_name()
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            machine[name] = importlib.metadata.version(name)
    return machine


def _write(
    folder: Path,
    options: argparse.Namespace,
    data: str,
    machine: dict,
    results: dict,
    failures: dict,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    comparisons = [comparison for result in results.values() for comparison in result.comparisons]
    # The report does not contain the path of the data.
    given = {
        "data": "demo" if options.data == "demo" else "pairs.zip",
        "rows": " ".join(options.rows),
        "rounds": options.rounds,
    }
    given |= {
        name: value
        for name in ("pairs", "images", "minutes")
        if (value := getattr(options, name)) is not None
    }
    command = "python -m benchmarks " + " ".join(
        f"--{name} {value}" for name, value in given.items()
    )
    command += " --tiny" if options.tiny else ""
    parts = [
        "# Benchmarks",
        benchmarks.__doc__.split("Method. ")[1].strip(),
        table(comparisons),
        *(result.text for result in results.values() if result.text),
    ]
    if "7" in results:
        _plot(results["7"].data["minutes and mIoU"], folder / FIGURE)
        parts.append(f"![mIoU on the held-out frames against minutes of training]({FIGURE})")
    if failures:
        parts.append(
            "Failed: " + "; ".join(f"row {name} ({error})" for name, error in failures.items())
        )
    parts += [
        f"Data: {data}. " + ", ".join(f"{name} {value}" for name, value in machine.items()),
        f"    {command}",
    ]
    (folder / "benchmarks.md").write_text("\n\n".join(parts) + "\n")
    report = {
        "machine": machine,
        "command": command,
        "data": data,
        "comparisons": [asdict(comparison) | {"met": comparison.met} for comparison in comparisons],
        "rows": {name: result.data for name, result in results.items()},
        "failures": failures,
    }
    (folder / "benchmarks.json").write_text(json.dumps(report, indent=1) + "\n")
    missed = [
        f"{c.row} {c.work} vs {c.other}: {c.ratio:.2f}" for c in comparisons if c.met is False
    ]
    print(f"\n{parts[2]}\n\nreport in {folder}")
    print(f"missed: {'; '.join(missed) or 'none'}; failed: {failures or 'none'}")


def _plot(curves: dict[str, list[tuple[float, float]]], file: Path) -> None:
    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for name, curve in curves.items():
        axes.plot(*zip((0, 0), *curve, strict=True), marker=".", label=name)
    axes.set(
        xlabel="minutes of training", ylabel="mIoU, held-out frames", ylim=(0, None), xlim=(0, None)
    )
    axes.legend()
    figure.savefig(file, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
