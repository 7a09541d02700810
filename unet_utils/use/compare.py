"""All runs in a folder side by side: the settings that differ, the time and the scores."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from unet_utils.checkpoints import read_checkpoint
from unet_utils.platform.files import user_path

ADVICE = "train a model first (notebook 03, or the command train)"


class Comparison(NamedTuple):
    """The result of `compare_runs`.

    Attributes:
        rows: one dict per run, best score on the held-out frames first: `run`, the `settings`
            (dict) that differ between the runs, `epochs` done and planned, `minutes` of training,
            `held_out` (best mIoU on the held-out frames), `val` (mIoU on the validation frames) and
            `interval` (its 95 % interval). None where not measured.
        curves: name of the run -> minutes since its start and mIoU on the held-out frames, `float
            [epochs]` each; NaN where not measured.
    """

    rows: list[dict]
    curves: dict[str, tuple[np.ndarray, np.ndarray]]

    @property
    def table(self) -> str:
        """The rows as a Markdown table."""
        header = ["run", "what differs", "epochs", "minutes", "held-out mIoU"]
        header += ["val mIoU (95 % interval)"]
        lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
        for row in self.rows:
            settings = []
            for name, value in row["settings"].items():
                settings.append(
                    f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
                )
            interval = f" ({' to '.join(map(_score, row['interval']))})" if row["interval"] else ""
            done, planned = row["epochs"]
            cells = [row["run"], ", ".join(settings), f"{done} of {planned}"]
            cells += [f"{row['minutes']:.1f}", _score(row["held_out"])]
            cells += [_score(row["val"]) + interval]
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        return "\n".join(lines)


def compare_runs(results: str | Path, names: Sequence[str] = ()) -> Comparison:
    """Compare the runs in a results folder. Only reads there.

    Folders without a usable checkpoint are left out, and a message names them.

    Args:
        results: folder that holds one folder per run.
        names: the runs to compare; by default all.

    Raises:
        FileNotFoundError: there is no such folder, or no run in it.
    """
    results = user_path(results)
    rows = []
    curves = {}
    for name in names or _folders(results):
        try:
            row, curves[name] = _read_run(results / name)
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            print(f"Left out: {name} ({error or type(error).__name__})")
            continue
        rows.append(row)
    if not rows:
        raise FileNotFoundError(f"no run in {results}: {ADVICE}")
    rows.sort(key=lambda row: -(row["held_out"] or 0))
    settings = [row["settings"] for row in rows]
    differ = [key for key in settings[0] if any(one[key] != settings[0][key] for one in settings)]
    for row in rows:
        row["settings"] = {key: row["settings"][key] for key in differ}
    return Comparison(rows, {row["run"]: curves[row["run"]] for row in rows})


def latest_run(results: str | Path, scheme: str = "", data: str = "") -> str | None:
    """Return the name of the run that was trained last, None if there is none that fits.

    Args:
        results: folder that holds one folder per run.
        scheme: name of the class scheme that it must have learned; empty for any.
        data: fingerprint of the training split that it must have learned from; empty for any.
    """
    found = []
    for name in _folders(user_path(results)):
        try:
            checkpoint = read_checkpoint(user_path(results) / name / "best.pt")
        except (OSError, ValueError):
            continue
        if scheme in ("", checkpoint["scheme"]["name"]) and data in (
            "",
            checkpoint["data"]["files"],
        ):
            found.append((checkpoint["made_by"]["date"], name))
    return max(found)[1] if found else None


def _folders(results: Path) -> list[str]:
    if not results.is_dir():
        return []
    folders = (path for path in results.iterdir() if path.is_dir() and not _only_scores(path))
    names = (path.name for path in folders)
    return sorted(name for name in names if not name.startswith("."))


def _only_scores(folder: Path) -> bool:
    """Return whether a folder has the scores of a model or of predictions from elsewhere."""
    checkpoints = ("best.pt", "last.pt")
    has_run = any((folder / name).exists() for name in checkpoints)
    return (folder / "evaluation.json").exists() and not has_run


def _read_run(folder: Path) -> tuple[dict, tuple[np.ndarray, np.ndarray]]:
    """Return the row and the curve of a run."""
    best = read_checkpoint(folder / "best.pt")
    try:
        last = read_checkpoint(folder / "last.pt")  # best.pt ends with the best epoch
    except (FileNotFoundError, ValueError):
        last = best
    history = last["history"]
    made_by = last["made_by"]
    settings = {
        "classes": last["scheme"]["name"],
        "labels": last["data"]["labels"],
        "data": last["data"]["files"],
        **last["config"],
        "version": made_by["version"],
        "device": made_by["device"],
    }
    planned = settings.pop("epochs")  # has a column of its own
    minutes = np.cumsum([row["seconds"] for row in history]) / 60
    held_out = np.array([row.get("mean_iou", math.nan) for row in history], dtype=float)
    val, interval = _read_scores(folder / "evaluation.json", best["made_by"]["weights"])
    row = {
        "run": folder.name,
        "settings": settings,
        "epochs": (len(history), planned),
        "minutes": float(minutes[-1]) if len(minutes) else 0.0,
        "held_out": None if np.isnan(held_out).all() else float(np.nanmax(held_out)),
        "val": val,
        "interval": interval,
    }
    return row, (minutes, held_out)


def _read_scores(file: Path, weights: str) -> tuple[float | None, list[float] | None]:
    """Return the mIoU of an evaluation and its interval; None if it is of another model."""
    try:
        scores = json.loads(file.read_text())
        if scores["made_by"]["weights"] != weights or scores["mean_iou"] is None:
            return None, None
        low, high = scores["mean_iou_95"]
        return float(scores["mean_iou"]), None if low is None else [float(low), float(high)]
    except FileNotFoundError:
        return None, None
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        print(f"Warning: {file} cannot be read ({error}): evaluate this run again")
        return None, None


def _score(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
