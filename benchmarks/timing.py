"""Contenders run in turn, ratios of their times, and the table of all ratios."""

import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch

Contender = Callable[[], object]
"""Does its work once. It may return the seconds that count, a float; otherwise all of its time does."""


@dataclass
class Comparison:
    """Our time (or memory) against another.

    Attributes:
        row: number in the table, such as `1a`.
        work: what is done.
        other: who else does it.
        ours: our seconds (or MB) in each turn.
        theirs: the other's in the same turns.
        at_most: target of the median ratio; None without one.
        at_least: lower end of the target, where too small is wrong as well.
        unit: of `ours` and `theirs`.
        note: said below the table.
    """

    row: str
    work: str
    other: str
    ours: list[float]
    theirs: list[float]
    at_most: float | None = None
    at_least: float | None = None
    unit: str = "s"
    note: str = ""
    ratios: list[float] = field(init=False)
    ratio: float = field(init=False)

    def __post_init__(self):
        self.ratios = [a / b for a, b in zip(self.ours, self.theirs, strict=True)]
        self.ratio = statistics.median(self.ratios)

    @property
    def met(self) -> bool | None:
        """Whether the median ratio is within the target; None without a target."""
        if self.at_most is None:
            return None
        return (self.at_least or 0) <= self.ratio <= self.at_most


@dataclass
class Result:
    """What a row of the benchmark found.

    Attributes:
        comparisons: lines of the table.
        text: Markdown below the table.
        data: numbers for the JSON file that are in no comparison.
    """

    comparisons: list[Comparison]
    text: str = ""
    data: dict = field(default_factory=dict)


def synchronize() -> None:
    """Waits until the GPU, if there is one, has done all that it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def interleave(
    contenders: dict[str, Contender], rounds: int, items: dict[str, int] | None = None, warm_up: bool = True
) -> dict[str, list[float]]:
    """Runs all contenders in turn.

    Args:
        contenders: by name, in the order of a turn.
        rounds: turns that are measured.
        items: what the times of a contender are divided by, where contenders do different amounts of the same work.
        warm_up: one turn more, before them, is not measured.

    Returns:
        Seconds (an item) in each turn, a list for every contender.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + warm_up):
        for name, run in contenders.items():
            synchronize()
            start = time.perf_counter()
            counted = run()
            synchronize()
            spent = counted if isinstance(counted, float) else time.perf_counter() - start
            if turn >= warm_up:
                seconds[name].append(spent / (items or {}).get(name, 1))
    return seconds


def in_fresh_process(function: Callable, *arguments) -> tuple:
    """Runs a module-level function in a process of its own, where no earlier work is in the way.

    Returns:
        What it returned, and the peak memory that it took beyond what was there before, MB: the GPU's if there is one.
    """
    context = multiprocessing.get_context("spawn")  # a fork would share what is in memory here
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_with_peak_memory, function, arguments).result()


def _with_peak_memory(function: Callable, arguments: tuple) -> tuple:
    if torch.cuda.is_available():
        result = function(*arguments)
        return result, torch.cuda.max_memory_allocated() / 2**20
    before = _peak_memory()
    result = function(*arguments)
    return result, max(_peak_memory() - before, 1)


def _peak_memory() -> float:
    status = Path("/proc/self/status")
    if status.exists():  # Linux, where the number below would count the parent's memory, too
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def table(comparisons: list[Comparison]) -> str:
    """A Markdown table with a row a comparison: median times, median ratio with its range, target."""
    lines = [
        "| | work | ours | compared with | theirs | ratio (range) | target | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for c in comparisons:
        ours, theirs = (amount(statistics.median(values), c.unit) for values in (c.ours, c.theirs))
        spread = f"{c.ratio:.2f} ({min(c.ratios):.2f} to {max(c.ratios):.2f})"
        target = "" if c.at_most is None else f"at most {c.at_most:.3g}"
        if c.at_least is not None:
            target = f"{c.at_least:.3g} to {c.at_most:.3g}"
        verdict = {None: "", True: "met", False: "**missed**"}[c.met]
        lines.append(f"| {c.row} | {c.work} | {ours} | {c.other} | {theirs} | {spread} | {target} | {verdict} |")
    return "\n".join(lines)


def amount(value: float, unit: str) -> str:
    """Three digits and a unit; seconds become milliseconds where that reads better."""
    if unit.startswith("s") and value < 1:
        value, unit = value * 1000, "ms" + unit[1:]
    return f"{value:.3g} {unit}" if value < 1000 else f"{value:.0f} {unit}"
