"""Does everything work on this machine, and how fast? `python -m unet_utils check`.

Seven sections, in order of worth. Each one runs in a process of its own with a time limit, so one
that fails, hangs or breaks the GPU's driver does not stop the others. The table is written after
every section.
"""

import json
import multiprocessing
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from unet_utils.checkpoints import made_by
from unet_utils.device import first_line, reuse_memory
from unet_utils.platform.files import replacing
from unet_utils.use import check_sections
from unet_utils.use.check_job import Job, draw_scenes
from unet_utils.use.reports import markdown_table

START_SECONDS = 120
"""How long a process may take to import torch."""


@dataclass(frozen=True)
class Section:
    """A part of the check.

    Attributes:
        title: what it asks.
        work: does it.
        seconds: time limit. Those of all sections make 15 minutes, those of 1, 2, 3 and 7, and
            those of 4, 5 and 6, less than 10.
    """

    title: str
    work: Callable[[Job], None]
    seconds: float


SECTIONS = {
    1: Section("Does it compute?", check_sections.computing, 60),
    2: Section("Are restored labels the same?", check_sections.restored_labels, 120),
    3: Section("Does it learn in each precision?", check_sections.learning, 120),
    4: Section("Does the host wait in a step?", check_sections.waiting, 90),
    5: Section("How fast are the recipes?", check_sections.speed, 270),
    6: Section("Encoders, and a full memory", check_sections.encoders, 120),
    7: Section("Scores, export, a large photo", check_sections.using, 120),
}


@dataclass
class Row:
    """What became of a section.

    Attributes:
        number, title: of the section.
        state: "ok", "not ok" or "skipped".
        seconds: that it took.
        figures: what it found, sentence by sentence.
        details: for below the table.
    """

    number: int
    title: str
    state: str = "skipped"
    seconds: float = 0.0
    figures: list[str] = field(default_factory=list)
    details: list[str] = field(default_factory=list)

    def add(self, kind: str, text: str) -> None:
        """Take what a section sent."""
        if kind == "detail":
            self.details.append(text)
        elif kind == "fault":
            self.state = "not ok"
            self.figures.append(f"**{text}**")
        else:
            self.figures.append(text)


def self_check(
    device: torch.device,
    results: str | Path,
    root: Path | None = None,
    numbers: Sequence[int] = (),
) -> list[Row]:
    """Check a machine, print the table, and write it to `check.json` and `check.md`.

    Args:
        device: what is checked.
        results: folder for the table.
        root: folder of the real pairs, whose masks are restored; without it, drawn ones are.
        numbers: the sections to do; by default all. Where only some are done, the files are named
            after them (`check-123.json`).

    Returns:
        One row per section.
    """
    results = Path(results)
    numbers = sorted(numbers) or list(SECTIONS)
    name = "check" if len(numbers) == len(SECTIONS) else f"check-{''.join(map(str, numbers))}"
    rows = {number: Row(number, section.title) for number, section in SECTIONS.items()}
    origin = made_by(device) | {"python": platform.python_version(), "system": platform.platform()}
    with tempfile.TemporaryDirectory() as folder:
        draw_scenes(Path(folder), 8 if device.type == "cpu" else 86, root)
        for number in numbers:
            section = SECTIONS[number]
            row = rows[number]
            print(f"{number} of {len(SECTIONS)}: {section.title}", flush=True)
            run_apart(section.work, section.seconds, device, Path(folder), row)
            print(f"   {row.state}, {row.seconds:.0f} s: {'; '.join(row.figures)}", flush=True)
            _write(results, name, list(rows.values()), origin)
    print(f"\n{_markdown(list(rows.values()), origin)}")
    print(f"Written to {results / name}.md and .json")
    return list(rows.values())


def run_apart(
    work: Callable[[Job], None], limit: float, device: torch.device, folder: Path, row: Row
) -> None:
    """Do the work of a section in a process of its own.

    Args:
        work: a function of a module, which the process can import.
        limit: seconds after which it is ended, counted from the start of the work.
        device: what is checked.
        folder: of the scenes; the work may write there.
        row: takes what is found.
    """
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(work, device, folder, sender), daemon=True)
    begun = time.perf_counter()
    process.start()
    sender.close()
    row.state = "ok"
    kind = ""
    allowed: float = START_SECONDS
    deadline = begun + allowed
    while kind != "end":
        if not receiver.poll(max(0.0, deadline - time.perf_counter())):
            row.add("fault", f"not done after {allowed:g} s")
            break
        try:
            kind, text = receiver.recv()
        except EOFError:
            process.join(10)
            row.add("fault", f"the process ended with exit code {process.exitcode}")
            break
        if kind == "begin":
            allowed = limit
            deadline = time.perf_counter() + allowed
        elif kind != "end":
            row.add(kind, text)
    if kind != "end":
        process.kill()
    process.join(10)
    row.seconds = round(time.perf_counter() - begun, 1)


def _work(
    work: Callable[[Job], None], device: torch.device, folder: Path, sender: Connection
) -> None:
    """Do a section in this process, and send what it finds; nothing else is printed."""
    if device.type == "cpu":
        reuse_memory()
    with open(os.devnull, "w") as nowhere:
        for stream in (1, 2):  # libraries write there, too
            os.dup2(nowhere.fileno(), stream)
        sender.send(("begin", ""))
        report(work, Job(device, folder, sender.send))


def report(work: Callable[[Job], None], job: Job) -> None:
    """Do a section; an error is one of its findings."""
    try:
        work(job)
    except Exception as error:
        job.send(("fault", f"{type(error).__name__}: {first_line(error)}"))
    job.send(("end", ""))


def _write(results: Path, name: str, rows: list[Row], origin: dict) -> None:
    results.mkdir(parents=True, exist_ok=True)
    content = {"made_by": origin, "rows": [asdict(row) for row in rows]}
    with replacing(results / f"{name}.json") as unfinished:
        unfinished.write_text(json.dumps(content, indent=2), encoding="utf-8")
    with replacing(results / f"{name}.md") as unfinished:
        unfinished.write_text(_markdown(rows, origin), encoding="utf-8")


def _markdown(rows: list[Row], origin: dict) -> str:
    """Return the table, what made it, and the details."""
    cells = []
    for row in rows:
        figures = "; ".join(row.figures)
        cells.append([str(row.number), row.title, row.state, f"{row.seconds:.0f}", figures])
    text = markdown_table(["", "section", "state", "s", "figure"], cells) + "\n\n"
    text += ", ".join(f"{name} {value}" for name, value in origin.items() if value) + "\n"
    for row in rows:
        if row.details:
            text += f"\n{row.title}\n\n" + "".join(f"* {line}\n" for line in row.details)
    return text
