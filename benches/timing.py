"""What the benchmarks share: medians, Markdown tables, messages, and memory measured in a fresh process.

Peak memory is Linux's (`VmHWM` of /proc/self/status, set back just before the call); elsewhere it is NaN, shown as
"n/a". `ru_maxrss` would not do: it can only rise, and a child process starts with its parent's.
"""

from __future__ import annotations

import gc
import math
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def say(message: str) -> None:
    """Tell on standard error what takes a while; the tables alone go to standard output."""
    print(message, file=sys.stderr, flush=True)


# ---- time


def timed(run: Callable[[], T]) -> tuple[T, float]:
    """Return what one call returned, and its seconds."""
    start = time.perf_counter()
    result = run()
    return result, time.perf_counter() - start


def seconds(run: Callable[[], object]) -> float:
    return timed(run)[1]


def median_ms(run: Callable[[], object], repeats: int) -> float:
    """Median milliseconds of a call, after one that is not counted."""
    run()
    return 1e3 * statistics.median(seconds(run) for _ in range(repeats))


def median_ms_from(prepare: Callable[[], T], run: Callable[[T], object], repeats: int) -> float:
    """Median milliseconds of `run(prepare())`, preparation left out."""

    def once() -> float:
        state = prepare()
        return seconds(lambda: run(state))

    once()
    return 1e3 * statistics.median(once() for _ in range(repeats))


def medians_in_turns(repeats: int, *runs: Callable[[], object]) -> list[float]:
    """Median seconds of each call, taken in turns so that noise hits all alike."""
    rounds = [[seconds(run) for run in runs] for _ in range(repeats)]
    return [statistics.median(spent) for spent in zip(*rounds, strict=True)]


# ---- memory


def fresh(function: Callable[..., T], *arguments: Any) -> T:
    """Call a module's function in a process of its own, where nothing has been allocated or imported before."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def memory_of(run: Callable[[], T]) -> tuple[T, float, float]:
    """Run in a fresh process: what it returned, and by how many MB memory grew at the peak and in the end."""
    gc.collect()
    if CLEAR.exists():
        CLEAR.write_text("5")  # sets the peak back to the present
    before = _resident("VmRSS")
    result = run()
    peak, after = _resident("VmHWM"), _resident("VmRSS")
    return result, peak - before, after - before


def _resident(field: str) -> float:
    if not CLEAR.exists():
        return math.nan
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024 / 1e6


# ---- tables


def table_head(*columns: str) -> str:
    """Head of a Markdown table: labels to the left, numbers to the right."""
    return f"{table_row(*columns)}\n|---{'|---:' * (len(columns) - 1)}|"


def table_row(*cells: str | float | None) -> str:
    return "| " + " | ".join(shown(cell) for cell in cells) + " |"


def shown(cell: str | float | None) -> str:
    """Three digits of a number; nothing for None."""
    if cell is None or isinstance(cell, str):
        return cell or ""
    if math.isnan(cell):
        return "n/a"
    return f"{cell:.0f}" if abs(cell) >= 100 else f"{cell:.3g}"


def peak_cell(peak: float, size: float) -> str:
    """Megabytes at the peak of a build, and in brackets how many times the result that is."""
    return f"{shown(peak)} ({shown(peak / size)}x)"


def ratio(theirs: float | None, ours: float) -> str | None:
    return None if theirs is None else f"{shown(theirs / ours)}x"
