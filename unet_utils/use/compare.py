"""All runs in a folder side by side: the settings that differ, the time and the scores.

`save_result` writes what a run came to into one small file, `result.json`, that can be handed in;
`compare_results` ranks such files, whoever made them.
"""

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from unet_utils.checkpoints import LAST, read_facts
from unet_utils.device import first_line
from unet_utils.evaluation import SMALL_MODEL
from unet_utils.platform.environment import Environment
from unet_utils.platform.files import natural_order, replacing, typed, user_path
from unet_utils.use.reports import markdown_table, score_text

RESULT = "result.json"
ADVICE = "train a model first (notebook 03, or the command train)"
# What a file of somebody else, or of another kind, may end in.
UNUSABLE = (OSError, ValueError, LookupError, TypeError, AttributeError)


class Comparison(NamedTuple):
    """The result of `compare_runs`.

    Attributes:
        rows: one dict per run, best score on the held-out frames first: `run`, the `settings`
            (dict) that differ between the runs, `epochs` done and planned, `minutes` of training,
            `held_out` (best mIoU on the held-out frames), `val` (mIoU on the validation frames) and
            `interval` (its 95 % interval). None where not measured.
    """

    rows: list[dict]

    @property
    def table(self) -> str:
        """The rows as a Markdown table."""
        lines = []
        for row in self.rows:
            settings = []
            for name, value in row["settings"].items():
                text = f"{value:g}" if isinstance(value, float) else " ".join(str(value).split())
                settings.append(f"{name} {text}")
            done, planned = row["epochs"]
            val = score_text(row["val"])
            if row["interval"]:
                val += f" ({' to '.join(map(score_text, row['interval']))})"
            epochs = f"{done} of {planned} ({row['minutes']:.1f})"
            differ = ", ".join(settings)
            lines.append([row["run"], differ, epochs, score_text(row["held_out"]), val])
        header = ["run", "what differs", "epochs (min)", "held-out mIoU"]
        return markdown_table([*header, "val mIoU (95 % interval)"], lines)


def compare_runs(results: str | Path, names: Sequence[str] = ()) -> Comparison:
    """Compare the runs in a results folder. Only reads there.

    Runs without a usable checkpoint are left out, and a message names them.

    Args:
        results: folder that holds one folder per run.
        names: the runs to compare; by default all.

    Raises:
        FileNotFoundError: there is no such folder, or no such run in it; the message lists those
            there are.
    """
    results = user_path(results)
    rows = []
    for name in names or _find_runs(results):
        try:
            rows.append(_read_run(results / name, results / name))
        except UNUSABLE as error:
            print(f"Left out: {name} ({first_line(error)})")
    if not rows and names:
        raise FileNotFoundError(f"no such run in {results}; {_there_are(results)}")
    if not rows:
        raise FileNotFoundError(f"no run in {results}: {ADVICE}")
    rows.sort(key=lambda row: -(row["held_out"] or 0))
    _keep_what_differs(rows)
    return Comparison(rows)


def _keep_what_differs(rows: list[dict]) -> None:
    """Leave out the settings that all rows share."""
    # What a run does not have (it is not scored yet) is no difference.
    values: dict[str, set[str]] = {}
    for row in rows:
        for key, value in row["settings"].items():
            values.setdefault(key, set()).add(str(value))
    for row in rows:
        row["settings"] = {k: value for k, value in row["settings"].items() if len(values[k]) > 1}


def save_result(run: str | Path, folder: str | Path) -> Path | None:
    """Write what a run came to as `result.json`: its settings and seed, what made it, its scores.

        save_result(plan.folder, plan.kept)

    One line says where it is, or why it could not be written: that stops nothing.

    Args:
        run: folder of the run, with `best.pt`.
        folder: where the file goes. If the scores of this very model on the validation frames are
            there (`reports.save_scores`), they are in it; else only those on the held-out frames.

    Returns:
        The path of the file, None if it could not be written. Its `scores` are mIoU and None where
        not measured, `epochs` are those done and planned.

    Raises:
        FileNotFoundError, ValueError: as `read_checkpoint`.
    """
    run = user_path(run)
    folder = user_path(folder)
    row = _read_run(run, folder)
    result = {
        "kind": "result of a run",
        "run": row["run"],
        "seed": row["settings"]["seed"],
        "settings": row["settings"],
        "epochs": row["epochs"],
        "minutes": round(row["minutes"], 2),
        "made_by": read_facts(run / "best.pt")["made_by"],
        "scores": {
            "held_out": row["held_out"],
            "val": row["val"],
            "val_95": row["interval"],
        },
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / RESULT) as file:
            file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    except OSError as error:  # Drive is full or gone
        print(
            f"{folder / RESULT} could not be written ({first_line(error)}): free some space there, "
            "and save the result again."
        )
        return None
    print(f"Settings and scores of the run: {folder / RESULT}")
    return folder / RESULT


def compare_results(folder: str | Path) -> Comparison:
    """Rank the result files in a folder and below it, as `save_result` writes them.

    They may have any name that ends in `.json`. Those of the same classes and data stand together,
    the largest such group first: scores of different ones do not compare. In a group, the best mIoU
    on the validation frames comes first, then the runs that have none, by their held-out frames.

    Args:
        folder: for example one folder or one file per student.

    Raises:
        FileNotFoundError: there is no such folder, or no result in it.
    """
    folder = user_path(folder)
    rows = []
    for file in natural_order(folder.rglob("*.json")):
        if any(part.startswith(".") for part in file.relative_to(folder).parts):
            continue  # copies by Jupyter, and what macOS adds
        try:
            row = _read_result(file)
        except UNUSABLE as error:
            print(f"Left out: {file.relative_to(folder)} ({first_line(error)})")
            continue
        if row:
            # The folder tells whose it is, unless the file has a name of its own.
            named = file.parent if file.name == RESULT and file.parent != folder else file
            row["run"] = named.relative_to(folder).as_posix().removesuffix(".json")
            rows.append(row)
    if not rows:
        raise FileNotFoundError(f"no {RESULT} in {folder}: notebooks 03 and 04 write it")

    def learned(row: dict) -> tuple[str, ...]:
        return tuple(str(row["settings"].get(key)) for key in ("classes", "data"))

    sizes = Counter(map(learned, rows))
    rows.sort(
        key=lambda row: (
            -sizes[learned(row)],
            learned(row),
            row["val"] is None,
            -(row["val"] or row["held_out"] or 0),
        )
    )
    for row in rows:
        del row["settings"]["date"]  # differs always
    _keep_what_differs(rows)
    return Comparison(rows)


def _read_result(file: Path) -> dict | None:
    """Return the row of a result file; None for JSON of another kind.

    Raises:
        One of `UNUSABLE`: it is damaged, or has no result of the expected form.
    """
    result = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(result, dict) or result.get("kind") != "result of a run":
        return None
    scores = result["scores"]
    done, planned = map(int, result["epochs"])
    val = _score(scores["val"])
    return {
        "settings": {"date": "", **result["settings"]},
        "epochs": (done, planned),
        "minutes": float(result["minutes"]),
        "held_out": _score(scores["held_out"]),
        "val": val,
        "interval": None if val is None else tuple(map(float, scores["val_95"])),
    }


def _score(value: float | None) -> float | None:
    """Check a score of a file that anybody may have changed."""
    if value is None:
        return None
    if not 0 <= value <= 1:
        raise ValueError(f"a score is {value}: it must be between 0 and 1")
    return float(value)


def choose_model(run: str, env: Environment, data: str = "") -> Path:
    """Return the model to use, and print which it is: of the named run; without a name, of the
    latest run that fits; without any, the small model of the package.

    Args:
        run: name of a run, or empty; "small" for the small model, if no run has this name.
        env: of this machine; on Google Drive, the backup of the run is used.
        data: fingerprint of the training split that the latest run must have learned from
            (`Source.fingerprint`); empty for any.

    Raises:
        FileNotFoundError: there is no run of that name; the message lists the runs there are.
    """
    run = typed(run)
    if not run:
        env.copy_attached_runs()
    name = run or latest_run(env.results, data=data)
    if not name:
        which = "No run of our network" + " that learned from this data" * bool(data)
        print(f"{which} in {env.results}: using the small model of the package, {SMALL_MODEL}")
        return SMALL_MODEL
    folder, backup = env.run_folders(name)
    best = (backup or folder) / "best.pt"
    if name.lower() == "small" and not best.exists():
        print(f"The small model of the package, {SMALL_MODEL}")
        return SMALL_MODEL
    if not best.exists():
        raise FileNotFoundError(
            f"there is no run {name!r} in {env.results}; {_there_are(env.results)}. "
            "Name one of them, or none for the latest"
        )
    print(f"Run: {name}")
    return best


def latest_run(results: str | Path, data: str = "") -> str | None:
    """Return the name of the run that was trained last, None if there is none that fits. Networks
    of somebody else are left out: they cannot be loaded without their code.

    Args:
        results: folder that holds one folder per run.
        data: fingerprint of the training split that it must have learned from; empty for any.
    """
    results = user_path(results)
    found = []
    for name in _find_runs(results):
        try:
            checkpoint = read_facts(results / name / "best.pt")
            is_ours = not checkpoint["network"].get("other")
            if is_ours and data in ("", checkpoint["data"]["files"]):
                found.append((checkpoint["made_by"]["date"], name))
        except UNUSABLE:
            continue
    return max(found)[1] if found else None


def runs_like(results: str | Path, name: str) -> list[str]:
    """Return the runs whose scores compare with those of a run, and that run: they learned the same
    classes from the same data and labels. The best score on the held-out frames comes first.

    Args:
        results: folder that holds one folder per run.
        name: of the run.

    Raises:
        FileNotFoundError: there is no such run in the folder, or it has no usable checkpoint.
    """
    rows = {row["run"]: row["settings"] for row in compare_runs(results).rows}
    if name not in rows:
        raise FileNotFoundError(f"no usable run {name!r} in {results}: {ADVICE}")
    own = rows[name]
    same = ("classes", "labels", "data")
    return [run for run in rows if all(rows[run].get(key) == own.get(key) for key in same)]


def _find_runs(results: Path, file: str = "*.pt") -> list[str]:
    """Return the names of the folders that hold checkpoints."""
    folders = {path.parent for path in results.glob(f"[!.]*/{file}")}
    return [folder.name for folder in natural_order(folders)]


def _there_are(results: Path) -> str:
    return f"there are: {', '.join(_find_runs(results, 'best.pt')) or 'none'}"


def _read_run(folder: Path, scored: Path) -> dict:
    """Return the row of the run in a folder; its scores on the validation frames are in
    `scored`."""
    best = read_facts(folder / "best.pt")
    try:
        last = read_facts(folder / LAST)  # best.pt ends with the best epoch
    except (FileNotFoundError, ValueError):
        last = best
    data = last["data"]["files"]
    scores = _read_scores(scored / "evaluation.json", best["made_by"]["weights"], data)
    # Other numbers of clusters are other classes.
    clusters = len(last["scheme"]["cluster_colors"])
    settings = {
        "classes": last["scheme"]["name"] + (str(clusters) if clusters else ""),
        "labels": last["data"]["labels"],
        "data": data,
        "network": last["network"].get("other", "UNet"),
        **last["config"],
        "start_from": last.get("start_from") or "none",
        "version": last["made_by"]["version"],
        "device": last["made_by"]["device"],
        "date": last["made_by"]["date"][:10],
    }
    planned = settings.pop("epochs")  # has a column of its own
    if scores:
        settings["scored on labels"] = scores["made_by"].get("labels")
        settings["scored by"] = scores["made_by"].get("device")
        settings["mirrored"] = scores["made_by"].get("flip")
    history = last["history"]
    held_out = np.array([row.get("mean_iou", math.nan) for row in history], dtype=float)
    return {
        "run": folder.name,
        "settings": settings,
        "epochs": (len(history), planned),
        "minutes": sum(row["seconds"] for row in history) / 60,
        "held_out": None if np.isnan(held_out).all() else float(np.nanmax(held_out)),
        "val": scores.get("mean_iou"),
        "interval": scores.get("mean_iou_95"),
    }


def _read_scores(file: Path, weights: str, data: str) -> dict:
    """Return what an evaluation wrote; empty without one, and if it was of another model, or on
    other data than the model learned from."""
    try:
        scores = json.loads(file.read_text(encoding="utf-8"))
        origin = scores["made_by"]
        is_own = origin["weights"] == weights and (origin.get("data") or data) == data
        if is_own and scores["mean_iou"] is not None:
            low, high = map(float, scores["mean_iou_95"])
            return scores | {"mean_iou": float(scores["mean_iou"]), "mean_iou_95": (low, high)}
    except FileNotFoundError:
        pass
    except UNUSABLE as error:
        print(f"Warning: {file} cannot be read ({error}): evaluate this run again")
    return {}
