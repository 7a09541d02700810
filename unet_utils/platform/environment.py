"""Where am I: Colab, Kaggle, a laptop? Folders, device and a one-line report."""

import ctypes
import os
import platform as python_platform
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from unet_utils.platform.files import explain_full_disk, require_space, writable_folder  # noqa: F401

# What Colab gives us: a machine that is wiped, and (if the person agrees) a Drive that is not.
COLAB_MACHINE = Path("/content")
COLAB_DRIVE = COLAB_MACHINE / "drive" / "MyDrive"
DRIVE_FOLDER = "unet_street_scenes"  # our folder in MyDrive: the archive and runs/
KAGGLE_RESULTS = Path("/kaggle/working")

GPU_ADVICE = {
    "colab": "Runtime > Change runtime type > T4 GPU switches one on (this restarts the notebook).",
    "kaggle": "Settings > Accelerator switches one on (this restarts the notebook).",
}


@dataclass(frozen=True)
class Environment:
    """What a notebook needs to know about the machine that it runs on.

    Attributes:
        platform: "colab", "kaggle" or "local".
        device: where the model and the prepared arrays live.
        data: folder for the unpacked pairs and caches, on the machine's own disk (Drive is far too slow for that).
        results: folder for checkpoints and figures; on Drive when it is mounted, so that it survives the machine.
        drive: our folder on Google Drive, None without one.
    """

    platform: str
    device: torch.device
    data: Path
    results: Path
    drive: Path | None = None

    def run_folders(self, name: str) -> tuple[Path, Path | None]:
        """Folder of the training run `name`, and the folder for its second copy.

        With Drive mounted a run is written to the machine's own disk, and copied to Drive where it outlives it.
        """
        if self.drive is None:
            return self.results / name, None
        return self.data / "runs" / name, self.results / name


def setup(use_drive: bool = False) -> Environment:
    """Find out where we are, make the folders, and print one line about it all.

    The environment variables `UNET_UTILS_DATA` and `UNET_UTILS_RESULTS` override the folders.

    Args:
        use_drive: keep results (and a copy of the archive) on Google Drive. Asks for permission when it is not
            mounted yet. Means nothing outside Colab.

    Raises:
        OSError: a folder cannot be written to; the message names it and the variable that moves it.
    """
    platform = find_platform()
    drive = _mount_drive() if use_drive and platform == "colab" else None
    data, results = _default_folders(platform, drive)
    env = Environment(
        platform=platform,
        device=find_device(),
        data=writable_folder(os.environ.get("UNET_UTILS_DATA") or data, "UNET_UTILS_DATA"),
        results=writable_folder(os.environ.get("UNET_UTILS_RESULTS") or results, "UNET_UTILS_RESULTS"),
        drive=drive,
    )
    print(describe(env))
    if env.device.type == "cpu":
        reuse_memory()
    if env.device.type == "cpu" and platform in GPU_ADVICE:
        print(f"Warning: no GPU on this machine, so training will be slow. {GPU_ADVICE[platform]}")
    return env


def reuse_memory() -> None:
    """Makes training on a CPU up to twice as fast on Linux: the memory of freed tensors is kept for the next ones.

    By default glibc hands each large block back to the system and gets it anew, filled with zeros page by page, for
    every layer of every step. Now it keeps them, and torch asks for pages of 2 MB where the system has them.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # read by torch when it makes its first tensor
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # not Linux, or another C library
        return
    no_separate_maps, never_trim = (-4, 0), (-1, 2**31 - 1)  # M_MMAP_MAX and M_TRIM_THRESHOLD of malloc.h
    mallopt(*no_separate_maps)
    mallopt(*never_trim)


def find_platform() -> str:
    """Return "colab", "kaggle" or "local"."""
    if "KAGGLE_KERNEL_RUN_TYPE" in os.environ:  # asked first: Kaggle's machines are built on Colab's image
        return "kaggle"
    if "google.colab" in sys.modules or "COLAB_RELEASE_TAG" in os.environ:
        return "colab"
    return "local"


def find_device() -> torch.device:
    """Return the first of: CUDA GPU, Apple GPU, CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def progress_bar(**options) -> tqdm:
    """A plain-text tqdm bar, `options` as in `tqdm`. Widget bars leave broken cells in notebooks saved by Colab."""
    file = sys.stdout if "ipykernel" in sys.modules else sys.stderr  # notebooks paint stderr as if it were an error
    return tqdm(file=file, mininterval=0.5, **options)


def beside(file: Path) -> Path:
    """Where a file is written until it is complete: same folder, same suffix (NumPy adds one otherwise)."""
    return file.with_name("unfinished-" + file.name)


def describe(env: Environment) -> str:
    """One line: Python, torch, device and its memory, CPUs, RAM, free disk space, where data and results go."""
    parts = [f"Python {python_platform.python_version()}", f"torch {torch.__version__}", _device_name(env.device)]
    parts.append(f"{_cpu_count()} CPUs")
    if memory := _total_memory():
        parts.append(f"{memory / 2**30:.1f} GB RAM")
    parts.append(f"{shutil.disk_usage(env.data).free / 2**30:.1f} GB disk free")
    parts += [f"data in {env.data}", f"results in {env.results}"]
    return " | ".join(parts)


def _default_folders(platform: str, drive: Path | None) -> tuple[Path, Path]:
    """Folders for data and results on this platform, before the environment variables have their say."""
    if platform == "colab":
        return COLAB_MACHINE / "data", (drive or COLAB_MACHINE) / "runs"
    if platform == "kaggle":
        # /kaggle/working is published with the notebook: the photos must not end up there, their licence forbids it.
        return Path(tempfile.gettempdir()) / "unet_utils_data", KAGGLE_RESULTS / "runs"
    root = Path(__file__).resolve().parents[2]
    if not (root / "notebooks").is_dir():  # installed as a package, not run from a checkout
        root = Path.cwd()
    return root / "data", root / "runs"


def _mount_drive() -> Path | None:
    """Mount Google Drive if it is not mounted yet; return our folder on it, or None when the person refuses."""
    # os.path.isdir answers False for a Drive that has dropped ("Transport endpoint is not connected"), Path may raise.
    if not os.path.isdir(COLAB_DRIVE):
        try:
            from google.colab import drive

            drive.mount(str(COLAB_DRIVE.parent))
        except Exception as error:
            print(
                f"Warning: Google Drive is not mounted ({error}). Results stay on this machine and are lost with it; "
                "run this cell again and allow access, or untick USE_DRIVE."
            )
            return None
    return COLAB_DRIVE / DRIVE_FOLDER


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        return f"{gpu.name} ({gpu.total_memory / 2**30:.1f} GB)"
    return {"mps": "Apple GPU (memory shared with the CPU)"}.get(device.type, "CPU, no GPU")


def _cpu_count() -> int:
    """CPUs that this process may use: in a container these can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _total_memory() -> int | None:
    """RAM in bytes, None where the system does not say (Windows has no sysconf)."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
