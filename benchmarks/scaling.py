"""Measure how training speeds up with processes, and what wrapping the model for them costs.

    python benchmarks/scaling.py --processes 2

Trains on the demo set in turn: in one process without torchrun, in one process with it (the model
is then wrapped in DistributedDataParallel), and in several. Each process has its own GPU, or its
own CPU core. All use batches of the same size. The first epoch warms up; medians and ranges over
the others are printed."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from unet_utils import fit, prepare, recipe
from unet_utils.device import find_device
from unet_utils.sources import get_pairs
from unet_utils.use.several_gpus import open_processes


def train(options: argparse.Namespace) -> None:
    """Train in one of the processes, and write the speed of each epoch to `speeds.json`."""
    device = find_device()
    with open_processes() as processes:
        if device.type == "cpu":
            torch.set_num_threads(1)
            os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[processes.rank]})
        root = processes.first(lambda: get_pairs(options.data, options.folder))
        frames = processes.first(
            lambda: prepare(root, "train", options.folder, method="nearest", progress=False)
        )
        config = recipe(
            "demo" if device.type == "cpu" else "gpu",
            batch_size=options.batch_size,
            epochs=options.epochs + 1,
            hold_out=False,
        )
        run = options.folder / "run"
        history = fit(
            frames, config, run, device, resume=False, progress=False, processes=processes
        )
        speeds = [row["images_per_second"] for row in history[1:]]
        if processes.rank == 0:
            (options.folder / "speeds.json").write_text(json.dumps(speeds))


def main() -> None:
    """Measure all rows in turn, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data",
        default="demo",
        help="demo, kaggle, or the path of a .zip or folder (default: demo)",
    )
    parser.add_argument(
        "--processes", type=int, default=2, help="number of processes in the last row (default: 2)"
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        default=16,
        help="photos per step, over all processes (default: 16)",
    )
    parser.add_argument(
        "--epochs", type=int, default=2, help="measured epochs per round (default: 2)"
    )
    parser.add_argument(
        "--rounds", type=int, default=3, help="measurements of each row (default: 3)"
    )
    parser.add_argument(
        "--folder", type=Path, help=argparse.SUPPRESS
    )  # set for the processes that train
    options = parser.parse_args()
    if options.folder:
        train(options)
        return
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    rows = {"one process": [], "one process, wrapped": [*launcher, "1"]}
    rows[f"{options.processes} processes"] = [*launcher, str(options.processes)]
    speeds: dict[str, list[float]] = {name: [] for name in rows}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.rounds):
            for name, launch in rows.items():
                command = [sys.executable, *launch, __file__, *sys.argv[1:], "--folder", folder]
                subprocess.run(
                    command,
                    check=True,
                    stdout=subprocess.DEVNULL,
                    env=os.environ | {"OMP_NUM_THREADS": "1"},
                )
                speeds[name] += json.loads((Path(folder) / "speeds.json").read_text())
    first = statistics.median(speeds["one process"])
    print(f"{'':22} {'images/s: median (range)':>32} {'times one process':>18}")
    for name, values in speeds.items():
        middle = statistics.median(values)
        speed = f"{middle:.1f} ({min(values):.1f} to {max(values):.1f})"
        print(f"{name:22} {speed:>32} {middle / first:18.2f}")


if __name__ == "__main__":
    main()
