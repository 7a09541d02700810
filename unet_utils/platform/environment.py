"""The machine: Colab, Kaggle or a laptop; its folders, and a one-line report."""

import contextlib
import glob
import os
import platform as python_platform
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from unet_utils.checkpoints import LAST
from unet_utils.device import find_device, first_line, reuse_memory
from unet_utils.platform.files import copy_verified, make_backup_folder, user_path, writable_folder
from unet_utils.platform.version import CHECKOUT

# Colab's machine is wiped at the end of a session; Google Drive, if the person agrees to mount it,
# is not.
COLAB_MACHINE = Path("/content")
COLAB_DRIVE = COLAB_MACHINE / "drive" / "MyDrive"
DRIVE_FOLDER = "unet_street_scenes"  # our folder in MyDrive: the archive, runs/ and prepared/
KAGGLE_INPUT = Path("/kaggle/input")
KAGGLE_RESULTS = Path("/kaggle/working")

GPU_ADVICE = {
    "colab": "Runtime > Change runtime type > T4 GPU switches one on (this restarts the notebook).",
    "kaggle": "Settings > Accelerator > GPU T4 x2 switches one on (this restarts the notebook); "
    "the P100 is too old for PyTorch.",
}


@dataclass(frozen=True)
class Environment:
    """What a notebook needs to know about the machine that it runs on.

    Attributes:
        platform: "colab", "kaggle" or "local".
        device: where the model and the prepared arrays live.
        data: folder for the unpacked pairs and caches, on the machine's own disk (Drive is far too
            slow for that).
        results: folder for checkpoints and figures; on Drive when it is mounted, so that it
            survives the machine.
        drive: our folder on Google Drive, None without one.
    """

    platform: str
    device: torch.device
    data: Path
    results: Path
    drive: Path | None = None

    @property
    def prepared(self) -> Path:
        """The folder for prepared frames, on the machine's own disk."""
        return self.data / "prepared"

    @property
    def prepared_copy(self) -> Path | None:
        """The folder on Drive that keeps the labels of prepared frames, None without Drive."""
        return self.drive / "prepared" if self.drive else None

    def run_folders(self, name: str) -> tuple[Path, Path | None]:
        """Return the folder of the training run `name`, and the folder for its backup.

        With Drive mounted, a run is written to the machine's own disk and copied to Drive. On
        Kaggle, a run that an attached notebook output holds is copied to the results first, unless
        it is there already.

        Raises:
            ValueError: the name is empty, hidden, or leads to no folder in `results`.
        """
        # No list of runs shows what begins with a dot, and Windows drops those at the end.
        if not name or name != name.strip(" .") or any(sign in name for sign in '/\\:*?"<>|\0'):
            raise ValueError(
                f"{name!r} is not a name for a run: choose one of letters, digits, - and _ (RUN), "
                "for example unet-2"
            )
        if self.drive is not None:
            return self.data / "runs" / name, self.results / name
        if self.platform == "kaggle":
            _copy_attached_run(name, self.results / name)
        return self.results / name, None

    def copy_attached_runs(self) -> None:
        """On Kaggle, copy all runs that attached notebook outputs hold to the results, as
        `run_folders` copies one."""
        if self.platform == "kaggle":
            for name in sorted({folder.name for folder in _attached_runs("*")}):
                _copy_attached_run(name, self.results / name)


def setup(use_drive: bool = False, writes: bool = True) -> Environment:
    """Find out where this runs, make the folders, and print one line about it all.

    The environment variables `UNET_UTILS_DATA` and `UNET_UTILS_RESULTS` override the folders.

    Args:
        use_drive: keep results (and a copy of the archive) on Google Drive. Asks for permission
            unless Drive is mounted, or was refused on this machine. Ignored outside Colab.
        writes: False for what only reads there: the folders are not made, and need no right to
            write.

    Raises:
        OSError: a folder cannot be written to; the message names it and the variable that moves it.
    """
    platform = find_platform()
    drive = _mount_drive() if use_drive and platform == "colab" else None
    data, results = _default_folders(platform, drive)
    env = Environment(
        platform=platform,
        device=find_device(),
        data=_chosen_folder("UNET_UTILS_DATA", data, writes),
        results=_chosen_folder("UNET_UTILS_RESULTS", results, writes),
        drive=drive,
    )
    if writes:
        print(describe(env))
    if env.device.type == "cpu":
        reuse_memory()
        if platform in GPU_ADVICE:
            print(f"Warning: no GPU is used, so training will be slow. {GPU_ADVICE[platform]}")
    return env


def find_platform() -> str:
    """Return "colab", "kaggle" or "local"."""
    # Asked first: Kaggle's machines are built on Colab's image.
    if "KAGGLE_KERNEL_RUN_TYPE" in os.environ:
        return "kaggle"
    if "google.colab" in sys.modules or "COLAB_RELEASE_TAG" in os.environ:
        return "colab"
    return "local"


def progress_bar(**options) -> tqdm:
    """Return a plain-text tqdm bar, `options` as in `tqdm`. Widget bars break notebooks that are
    saved in Colab."""
    # Notebooks show stderr as if it were an error.
    file = sys.stdout if "ipykernel" in sys.modules else sys.stderr
    return tqdm(file=file, mininterval=0.5, **options)


def describe(env: Environment) -> str:
    """Return one line: Python, torch, device and its memory, CPUs, RAM, free disk space, data and
    results folders."""
    device = "CPU, no GPU"
    if env.device.type == "cuda":
        gpu = torch.cuda.get_device_properties(env.device)
        device = f"{gpu.name} ({gpu.total_memory / 2**30:.1f} GB)"
    elif env.device.type == "mps":
        device = "Apple GPU (memory shared with the CPU)"
    # In a container, a process may use fewer CPUs than the machine has. Not every system tells
    # that, or the size of its memory.
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = ""
    with contextlib.suppress(AttributeError, ValueError, OSError):
        size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        memory = f"{size / 2**30:.1f} GB RAM | "
    return (
        f"Python {python_platform.python_version()} | torch {torch.__version__} | {device} | "
        f"{cpus} CPUs | {memory}{shutil.disk_usage(env.data).free / 2**30:.1f} GB disk free | "
        f"data in {env.data} | results in {env.results}"
    )


def _default_folders(platform: str, drive: Path | None) -> tuple[Path, Path]:
    """Return the folders for data and results on this platform, if no environment variable names
    others."""
    if platform == "colab":
        return COLAB_MACHINE / "data", (drive or COLAB_MACHINE / "data") / "runs"
    if platform == "kaggle":
        # /kaggle/working is published with the notebook: the photos must not end up there, their
        # licence forbids it.
        return Path(tempfile.gettempdir()) / "unet_utils_data", KAGGLE_RESULTS / "runs"
    is_checkout = (CHECKOUT / "notebooks").is_dir()  # else installed as a package
    root = CHECKOUT if is_checkout else Path.cwd()
    return root / "data", root / "runs"


def _chosen_folder(variable: str, default: Path, writes: bool) -> Path:
    """Return the folder that an environment variable names, or the default; make it if it is
    missing and something is written there."""
    chosen = os.environ.get(variable)
    if not writes:
        return user_path(chosen or default)
    folder = writable_folder(chosen or default, variable)
    if chosen:  # from now on absolute: later calls and child processes may run in other folders
        os.environ[variable] = str(folder)
    return folder


def _mount_drive() -> Path | None:
    """Mount Google Drive if it is not mounted yet; return our folder on it, or None if that is not
    possible.

    Colab's `mount` asks for permission on every call, before it looks whether Drive is mounted. So
    it is called only if there is no mount point yet: an empty one means that the setup cell, or an
    earlier call, has asked in vain."""
    mount_point = COLAB_DRIVE.parent
    try:
        # os.path is False for a Drive that has dropped ("Transport endpoint is not connected"),
        # where Path may raise.
        if not os.path.isdir(COLAB_DRIVE):
            if os.path.isdir(mount_point):
                raise OSError("it was refused, could not be mounted, or has been unmounted")
            mount_point.mkdir()
            from google.colab import drive

            drive.mount(str(mount_point))
        folder = COLAB_DRIVE / DRIVE_FOLDER
        for name in ("runs", "prepared"):
            make_backup_folder(folder / name)
        with tempfile.TemporaryFile(dir=folder):  # fails if Drive is full
            return folder
    # Refused, forbidden by a company, timed out, not in Colab's own page, full, ...
    except Exception as error:
        reason = first_line(error)
        print(
            f"Warning: Google Drive is not used ({reason}): results stay on this machine and are "
            "lost with it. To use Drive after all, run this cell again, or mount Drive in the "
            "Files panel (folder symbol, left) before that."
        )
        return None


def _attached_runs(name: str) -> list[Path]:
    """Return the folders of the runs of that name, or pattern, in attached notebook outputs."""
    return [
        path.parent
        for depth in ("*", "*/*", "*/*/*")
        for path in KAGGLE_INPUT.glob(f"{depth}/runs/{name}/{LAST}")
    ]


def _copy_attached_run(name: str, folder: Path) -> None:
    """Copy a run from the output of an earlier Kaggle notebook (Add Input > Notebooks); of several,
    the one that came furthest."""
    if (folder / LAST).exists():
        return
    found = _attached_runs(glob.escape(name))
    if not found:
        return
    source = max(found, key=_history_size)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # last.pt after all others: without it the run does not count as there.
        files = [path for path in source.iterdir() if path.is_file()]
        for file in sorted(files, key=lambda path: path.name == LAST):
            copy_verified(file, folder / file.name)
        print(f"Found the run {name} in {source}, and copied it to {folder}.")
    except OSError as error:
        print(
            f"Warning: the run in {source} could not be copied to {folder} ({error}): it is not "
            "used."
        )


def _history_size(folder: Path) -> int:
    """Return the size of the table with one line per epoch, 0 without one."""
    history = folder / "history.csv"
    return history.stat().st_size if history.exists() else 0
