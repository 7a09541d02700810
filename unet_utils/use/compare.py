"""All runs in a folder side by side: the settings that differ, the time and the scores."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from unet_utils.checkpoints import read_checkpoint
from unet_utils.classes import ClassScheme
from unet_utils.config import TrainConfig
from unet_utils.platform.files import user_path


class Comparison(NamedTuple):
    """The result of `compare_runs`.

    Attributes:
        rows: one dict per run, best score on the held-out cities first: `run`, the `settings`
            (dict) that differ between the runs, `epochs` done and planned, `minutes` of training,
            `held_out` (best mIoU on the held-out cities), `val` (mIoU on the validation pairs) and
            `interval` (its 95 % interval). None where not measured.
        curves: name of the run -> minutes since its start and mIoU on the held-out cities, `float
            [epochs]` each; NaN where not measured.
    """

    rows: list[dict]
    curves: dict[str, tuple[np.ndarray, np.ndarray]]

    @property
    def table(self) -> str:
        """The rows as a Markdown table."""
        header = [
            "run",
            "settings that differ",
            "epochs",
            "minutes",
            "held-out mIoU",
            "val mIoU (95 % interval)",
        ]
        lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
        for row in self.rows:
            values = {
                key: f"{v:g}" if isinstance(v, float) else str(v)
                for key, v in row["settings"].items()
            }
            settings = ", ".join(f"{key} {value}" for key, value in values.items())
            interval = f" ({' to '.join(map(_score, row['interval']))})" if row["interval"] else ""
            done, planned = row["epochs"]
            cells = [row["run"], settings, f"{done} of {planned}", f"{row['minutes']:.1f}"]
            cells += [_score(row["held_out"]), _score(row["val"]) + interval]
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        return "\n".join(lines)


def compare_runs(results: str | Path, names: Sequence[str] = ()) -> Comparison:
    """Compare the runs in a results folder.

    Folders without a usable checkpoint are left out, and a message names them.

    Args:
        results: folder that holds one folder per run.
        names: the runs to compare; by default all.

    Raises:
        FileNotFoundError: there is no such folder, or no run in it.
    """
    results = user_path(results)
    if not results.is_dir():
        raise FileNotFoundError(f"no folder {results}: train a model first (notebook 03)")
    found = sorted(
        path.name for path in results.iterdir() if path.is_dir() and not path.name.startswith(".")
    )
    rows, curves = [], {}
    for name in names or found:
        try:
            row, curve = _read_run(results / name)
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            print(f"Left out: {name} ({error or type(error).__name__})")
            continue
        rows.append(row)
        curves[name] = curve
    if not rows:
        raise FileNotFoundError(f"no run in {results}: train a model first (notebook 03)")
    rows.sort(key=lambda row: -(row["held_out"] or 0))
    settings = [row["settings"] for row in rows]
    differ = [key for key in settings[0] if any(one[key] != settings[0][key] for one in settings)]
    for row in rows:
        row["settings"] = {key: row["settings"][key] for key in differ}
    return Comparison(rows, {row["run"]: curves[row["run"]] for row in rows})


def _read_run(folder: Path) -> tuple[dict, tuple[np.ndarray, np.ndarray]]:
    """Return the row and the curve of a run."""
    try:
        checkpoint = read_checkpoint(folder / "last.pt")  # best.pt ends with the best epoch
    except (FileNotFoundError, ValueError):
        checkpoint = read_checkpoint(folder / "best.pt")
    history, config = checkpoint["history"], TrainConfig.from_dict(checkpoint["config"])
    settings = {"classes": ClassScheme.from_dict(checkpoint["scheme"]).name} | config.to_dict()
    planned = settings.pop("epochs")  # has a column of its own
    minutes = np.cumsum([row["seconds"] for row in history]) / 60
    held_out = np.array([row.get("mean_iou", math.nan) for row in history], dtype=float)
    val, interval = _read_scores(folder / "evaluation.json", folder / "best.pt")
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


def _read_scores(file: Path, best: Path) -> tuple[float | None, list[float] | None]:
    """Return the mIoU of an evaluation and its interval; None for a run not evaluated since `best`
    was written."""
    try:
        if best.exists() and best.stat().st_mtime > file.stat().st_mtime:
            return None, None
        scores = json.loads(file.read_text())
        score, interval = scores["mean_iou"], scores.get("mean_iou_95") or [None, None]
        if score is None:  # no labelled pixel
            return None, None
        low, high = interval
        return float(score), None if low is None else [float(low), float(high)]
    except FileNotFoundError:
        return None, None
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        print(f"Warning: {file} cannot be read ({error}): evaluate this run again")
        return None, None


def _score(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
