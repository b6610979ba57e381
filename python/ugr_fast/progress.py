"""Progress of long work: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

SECONDS_BETWEEN_LINES = 15.0
Advance = Callable[..., None]


def is_main_process() -> bool:
    """Whether this process speaks: the first of those that a launcher started, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def say(message: str) -> None:
    """Print a line to standard error, above any bar."""
    if is_main_process():
        _console().print(message, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def bar(description: str, total: int, done: int = 0) -> Iterator[Advance]:
    """Yield `advance(count, note="")`, to be called as work gets done.

    Example:
        >>> with bar("counting", total=3) as advance:
        ...     for _ in range(3):
        ...         advance(1, note="so far so good")
    """
    console = _console()
    if not console.is_terminal or not is_main_process():
        yield _lines(description, total, done)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(description, total=total, completed=done, note="")

        def advance(count: int = 1, note: str | None = None) -> None:
            if note is None:
                progress.update(task, advance=count)
            else:
                progress.update(task, advance=count, note=note)

        yield advance


def _lines(description: str, total: int, done: int) -> Advance:
    """Return an `advance` that prints a line now and then."""
    last = time.monotonic()

    def advance(count: int = 1, note: str | None = None) -> None:
        nonlocal last, done
        done += count
        if time.monotonic() - last >= SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            say(f"{description}: {done}/{total} {note or ''}".rstrip())

    return advance


def _console() -> Console:
    return Console(file=sys.stderr)
