"""Run contenders in turn, take the ratios of their times, and write the table."""

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
"""Does its work once. If it returns a float, these are the seconds that count; otherwise its whole
time counts."""


@dataclass
class Comparison:
    """Our time (or memory) against another.

    Attributes:
        row: number in the table, such as `1a`.
        work: description of the work.
        other: name of the other contender.
        ours: our seconds (or MB) in each turn.
        theirs: those of the other contender in the same turns.
        at_most: target of the median ratio; None for no target.
        at_least: lower limit of the target, for rows in which a small ratio is wrong, too.
        unit: of `ours` and `theirs`.
    """

    row: str
    work: str
    other: str
    ours: list[float]
    theirs: list[float]
    at_most: float | None = None
    at_least: float | None = None
    unit: str = "s"
    ratios: list[float] = field(init=False)
    ratio: float = field(init=False)

    def __post_init__(self):
        self.ratios = [a / b for a, b in zip(self.ours, self.theirs, strict=True)]
        self.ratio = statistics.median(self.ratios)

    @property
    def met(self) -> bool | None:
        """Whether the median ratio meets the target; None without a target."""
        if self.at_most is None:
            return None
        return (self.at_least or 0) <= self.ratio <= self.at_most


@dataclass
class Result:
    """Result of a row of the benchmark.

    Attributes:
        comparisons: lines of the table.
        text: Markdown below the table.
        data: further numbers for the JSON file.
    """

    comparisons: list[Comparison]
    text: str = ""
    data: dict = field(default_factory=dict)


def synchronize() -> None:
    """Wait until the GPU, if there is one, has finished all its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def interleave(
    contenders: dict[str, Contender],
    rounds: int,
    items: dict[str, int] | None = None,
    warm_up: bool = True,
) -> dict[str, list[float]]:
    """Run all contenders in turn.

    Args:
        contenders: by name, in the order of a turn.
        rounds: number of measured turns.
        items: divisor of the times of each contender, for contenders that process different numbers
            of items.
        warm_up: run one more turn first, which is not measured.

    Returns:
        Seconds (per item) in each turn, one list per contender.
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
    """Run a module-level function in a new process, so that earlier work does not count.

    Returns:
        Its result, and the increase of peak memory, MB: of the GPU if there is one.
    """
    context = multiprocessing.get_context("spawn")  # a fork would share the memory of this process
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
    if status.exists():  # on Linux, the number below would include the memory of the parent
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def table(comparisons: list[Comparison]) -> str:
    """Return a Markdown table, one row per comparison: median times, median ratio and range,
    target."""
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
        cells = [c.row, c.work, ours, c.other, theirs, spread, target, verdict]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def amount(value: float, unit: str) -> str:
    """Return a number with three digits and its unit; seconds below 1 become milliseconds."""
    if unit.startswith("s") and value < 1:
        value, unit = value * 1000, "ms" + unit[1:]
    return f"{value:.3g} {unit}" if value < 1000 else f"{value:.0f} {unit}"
