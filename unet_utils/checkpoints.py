"""Checkpoints: files of tensors and plain values, and what made them."""

import csv
import hashlib
import io
import os
import pickle
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor, nn

from unet_utils.device import compute_dtype, first_line
from unet_utils.platform.files import replacing, user_path
from unet_utils.platform.version import commit, version

LAST = "last.pt"
"""File of a run with all that is needed to resume it."""
FORMAT = 1
"""Version of the checkpoint's layout."""
PARTS = ("format", "network", "scheme", "config", "scene_size", "epoch", "history", "model")
"""Keys that every checkpoint has."""
TENSORS = ("model", "averaged", "heads", "optimizer", "scaler", "logit_shift")
"""Keys whose values are tensors, or hold tensors."""
SET_BACK = "set it back, choose another run name, or switch resume off to begin again"
"""What to do about a change that makes another run."""


def read_checkpoint(path: str | Path, mmap: bool = False) -> dict:
    """Read a checkpoint of tensors and plain values; nothing in it is executed.

    Args:
        path: of the file.
        mmap: leave the tensors in the file until they are used.

    Raises:
        FileNotFoundError: there is none.
        OSError: it cannot be read (no permission, Drive has dropped).
        ValueError: the file is damaged, or not a checkpoint of this package.
    """
    path = user_path(path)
    if not os.path.isfile(path):  # Path.is_file raises an error for a Drive that has dropped
        raise FileNotFoundError(
            f"no checkpoint at {path}: train one first (notebook 03), or name another file"
        )
    try:
        if path.stat().st_size == 0:
            raise ValueError("it is empty")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        if missing := [part for part in PARTS if part not in checkpoint]:
            raise ValueError(f"it lacks {', '.join(missing)}")
        if checkpoint["format"] > FORMAT:
            raise ValueError("a newer version of unet_utils wrote it")
    except OSError:  # says nothing of the file
        raise
    except Exception as error:  # torch, pickle and zipfile have different errors for a damaged file
        reason = first_line(error)
        if isinstance(error, pickle.UnpicklingError):  # torch advises to execute what is in it
            reason = "it holds something other than tensors and plain values"
        raise ValueError(
            f"{path} is not a usable checkpoint of unet_utils ({reason}): name another file, or "
            "train again"
        ) from error
    return checkpoint


def read_facts(path: str | Path) -> dict:
    """Read a checkpoint without its tensors: settings, classes, history, what made it.

    They are a small part of the file, and no more of it is read. Raises as `read_checkpoint`,
    except that damaged tensors are not noticed.
    """
    checkpoint = read_checkpoint(path, mmap=True)
    return {name: value for name, value in checkpoint.items() if name not in TENSORS}


def packed_checkpoint(checkpoint: dict) -> memoryview:
    """Return the content of a checkpoint's file. Where torch itself writes a file, a full disk ends
    in errors such as "unexpected pos 576 vs 534"; Python says what it is."""
    file = io.BytesIO()
    torch.save(checkpoint, file)
    return file.getbuffer()


def saved_settings(folder: str | Path, backup: str | Path | None = None) -> dict | None:
    """Return the settings (`config`) of the run that `RunFiles(folder, backup)` would resume; None
    if there is none. Another process may be training it.

    Raises:
        ValueError: its `last.pt` is damaged.
    """
    for place in (folder, backup):
        if place and os.path.isfile(last := user_path(place) / LAST):
            return read_facts(last)["config"]
    return None


def check_same_data(checkpoint: dict, now: dict, folder: Path) -> None:
    """Check that a run learns from what it was begun with: classes, labels, frames.

    Args:
        checkpoint: of the run.
        now: what its next checkpoint will hold.
        folder: of the run.

    Raises:
        ValueError: something differs; the message names it.
    """
    for what, part, key in (
        ("class scheme", "scheme", "name"),
        ("classes", "scheme", "names"),
        ("cluster colours", "scheme", "cluster_colors"),
        ("labels", "data", "labels"),
        ("number of training frames", "data", "frames"),
        ("training files, by their fingerprint,", "data", "files"),
    ):
        was = checkpoint[part][key]
        is_now = now[part][key]
        if was != is_now:
            raise ValueError(
                f"the run in {folder} was begun with the {what} {was}, now it is {is_now}: "
                f"{SET_BACK}"
            )


def check_same_network(checkpoint: dict, model: nn.Module, folder: Path) -> None:
    """Check that the weights of a checkpoint are those of this network, by names and shapes.

    Raises:
        ValueError: they are of another one.
    """
    saved = {name: value.shape for name, value in checkpoint["model"].items()}
    own = {name: value.shape for name, value in model.state_dict().items()}
    if saved != own:
        other = [name for name in saved.keys() | own.keys() if saved.get(name) != own.get(name)]
        raise ValueError(
            f"the run in {folder} was begun with another network (it differs in "
            f"{sorted(other)[0]}): {SET_BACK}"
        )


def load_matching(model: nn.Module, checkpoint: dict, path: str | Path | None) -> None:
    """Load those weights of the checkpoint of another run, read from `path`, whose name and shape
    fit the model.

    Raises:
        ValueError: no weight fits.
    """
    own = model.state_dict()
    weights = checkpoint.get("averaged", checkpoint["model"])
    fitting = {
        name: value
        for name, value in weights.items()
        if name in own and own[name].shape == value.shape
    }
    if not any(value.ndim > 1 for value in fitting.values()):  # counters and biases fit by chance
        raise ValueError(
            f"no weight of {path} fits this network: choose a run with the same width and encoder"
        )
    model.load_state_dict(fitting, strict=False)
    print(f"Starting from {path}: {len(fitting)} of {len(own)} tensors fit.")


def made_by(device: torch.device | str, labels_hash: str = "") -> dict[str, str]:
    """Return what makes a checkpoint or a score: `version` and `commit` of this package, `torch`,
    `device`, `precision` (the data type of the computation), `date` (ISO, UTC), and `labels`, the
    hash of the labels."""
    device = torch.device(device)
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    elif device.type == "cpu":
        name = f"CPU ({torch.backends.cpu.get_cpu_capability()})"  # its kernels round differently
    else:
        name = str(device)
    return {
        "version": version(),
        "commit": commit(),
        "torch": str(torch.__version__),  # without its type, which no loader allows
        "device": name,
        "precision": str(compute_dtype(device)).removeprefix("torch."),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "labels": labels_hash,
    }


def weights_hash(state_dict: dict[str, Tensor]) -> str:
    """Return 16 hexadecimal digits that identify weights by name, type, shape and value, wherever
    they lie in memory."""
    sha = hashlib.sha256()
    for name in sorted(state_dict):
        value = state_dict[name].detach().cpu().contiguous()
        sha.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        sha.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()[:16]


def write_table(path: Path, rows: list[dict], told: bool = False) -> bool:
    """Write rows as CSV; the columns are those of the last row. Nothing depends on such a table, so
    a failure is only printed, unless the person was told before. Return whether it was written."""
    try:
        with (
            replacing(path) as unfinished,
            open(unfinished, "w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, rows[-1].keys(), extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
        return True
    except OSError as error:
        if not told:
            print(f"{path} could not be replaced ({error}): close it. All else is saved.")
        return False
