"""Progress of long work: a live view on a terminal, plain lines elsewhere.

rich draws one display at a time, so a bar within a bar shares its display and goes when it is done, and `say` prints
above. A training hands its numbers to a `Watch`, which the view shows below the bar and the plain lines behind it.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from fractions import Fraction
from typing import NamedTuple

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table
from rich.text import Text

SECONDS_BETWEEN_LINES = 15.0
SECONDS_OF_SPEED = 3600.0  # that the time left is told from: several steps, however slow, and their validations
ROOM_FOR_INTERRUPT = 3  # columns kept free, where a terminal writes ^C: it would begin a new line in the last one
NAME_WIDTH = 11  # at least, so that bars that come and go move nothing
RECENT = 24  # steps that a curve shows
BLOCKS = "▁▂▃▄▅▆▇█"
Advance = Callable[..., None]


class Step(NamedTuple):
    """What one step of a training shows of itself.

    Attributes:
        curves: values by name, shown with those of the recent steps.
        rate: what is counted, such as "prompts/s", and how many.
        shares: of the step's time, by what it went to.
    """

    curves: Mapping[str, float]
    rate: tuple[str, float]
    shares: Mapping[str, float] = {}


class Validation(NamedTuple):
    """What a validation found, beside the best so far.

    Attributes:
        best_at: where the best so far was; 0 for the start, which is no candidate.
        best: its NDCG@10.
        stale: validations since, none better.
        at: where the last one was, None if that is not known.
        ndcg: its NDCG@10.
        auroc: its AUROCs, by what was asked to tell hits from misses.
    """

    best_at: int
    best: float
    stale: int
    at: int | None = None
    ndcg: float = math.nan
    auroc: Mapping[str, float] = {}


@dataclass
class Watch:
    """What a training shows of itself besides its bar; a thread of the display reads it at any moment.

    Attributes:
        unit: what validations are counted in, such as "update".
        patience: validations without a better one that end the training; 0 for any number.
        recent: the last steps.
        valid: the last validation.
    """

    unit: str
    patience: int = 0
    recent: tuple[Step, ...] = field(default=(), init=False)
    valid: Validation | None = field(default=None, init=False)

    def step(self, step: Step) -> None:
        """Take in one more step."""
        self.recent = (*self.recent[1 - RECENT :], step)


class Row(NamedTuple):
    """A line of the view: a name, its number, and what there is to say about it."""

    name: str
    value: str
    rest: str


def rows(watch: Watch, curves: bool = True) -> list[Row]:
    """Return the lines of the view, without those that nothing is known of yet.

    Args:
        watch: a training's numbers.
        curves: whether to draw the recent values.

    Example:
        >>> watch = Watch("update")
        >>> for reward in (0.1, 0.4, 0.3):
        ...     watch.step(Step({"reward": reward}, ("prompts/s", 512.0), {"rollout": 0.6, "update": 0.375}))
        >>> for row in rows(watch):
        ...     print(*row)
        reward 0.300 ▁█▆
        prompts/s 512 (60% rollout, 38% update)
    """
    step_rows = _step_rows(watch.recent, curves) if watch.recent else []
    return [*step_rows, *(_valid_rows(watch, watch.valid) if watch.valid else [])]


def curve(values: Sequence[float]) -> str:
    """Return a block for each value, the lowest for the least and for all of a constant, a space where unknown.

    Differences that three decimals do not show are none.

    Example:
        >>> curve([0.1, float("nan"), 0.2, 0.4])
        '▁ ▃█'
    """
    shown = [round(value, 3) for value in values]
    known = [value for value in shown if math.isfinite(value)]
    low, high = min(known, default=0.0), max(known, default=0.0)
    scale = (len(BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(BLOCKS[round((value - low) * scale)] if math.isfinite(value) else " " for value in shown)


def _step_rows(recent: Sequence[Step], curves: bool) -> Iterator[Row]:
    for name in recent[-1].curves:
        values = [step.curves[name] for step in recent]
        yield Row(name, _number(values[-1], 3), curve(values) if curves else "")
    name = recent[-1].rate[0]
    speed = sum(step.rate[1] for step in recent) / len(recent)
    shares = {part: sum(step.shares[part] for step in recent) / len(recent) for part in recent[-1].shares}
    parts = ", ".join(f"{share:.0%} {part}" for part, share in shares.items())
    yield Row(name, _number(speed, 0 if speed >= 10 else 1), f"({parts})" if parts else "")


def _valid_rows(watch: Watch, valid: Validation) -> Iterator[Row]:
    told = [] if valid.at is None else [f"at {watch.unit} {valid.at}"]
    if valid.best_at and valid.best_at == valid.at:
        told.append("the best")
    elif valid.best_at:
        told.append(f"best {_number(valid.best, 4)} at {valid.best_at}")
    if watch.patience:
        told.append(f"stale {valid.stale} of {watch.patience}")
    yield Row("NDCG@10", _number(valid.ndcg, 4), ", ".join(told))
    if valid.auroc:
        (name, value), *others = valid.auroc.items()
        told = [f"of {name}", *(f"{_number(value, 3)} of {name}" for name, value in others)]
        yield Row("AUROC", _number(value, 3), ", ".join(told))


def _number(value: float, digits: int) -> str:
    """Return `value` without the sign of a rounded zero, "-" where unknown."""
    return f"{round(value, digits) + 0.0:.{digits}f}" if math.isfinite(value) else "-"


def is_main_process() -> bool:
    """Whether this process speaks: the first of those that a launcher started, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def say(message: str) -> None:
    """Print a line to standard error, above any bar."""
    if is_main_process():
        _console().print(message, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def bar(description: str, total: int, done: int = 0, watch: Watch | None = None) -> Iterator[Advance]:
    """Yield `advance(count, note="")`, to be called as work gets done; a `Fraction` counts parts that add up exactly.

    Args:
        description: what the work is.
        total: how much there is.
        done: how much of it was done before.
        watch: numbers to show with it; on a terminal those of the outermost bar.

    Example:
        >>> with bar("counting", total=3) as advance:
        ...     for _ in range(3):
        ...         advance(1, note="so far so good")
    """
    if not is_main_process() or not _can_draw(_console()):
        yield _lines(description, total, done, watch)
        return
    inner = _display is not None
    with _shared_display(watch) as display:
        task = display.add_task(description, total=total, completed=done, note="")

        def advance(count: int | Fraction = 1, note: str | None = None) -> None:
            noted = {} if note is None else {"note": note}
            display.update(task, advance=count, **noted)  # type: ignore[arg-type]

        try:
            yield advance
        finally:
            if inner:
                display.remove_task(task)


class _Display(Progress):
    """Bars and a watch that are drawn together."""

    watch: Watch | None = None

    def get_renderables(self) -> Iterable[RenderableType]:
        bars = [(task.description, self.make_tasks_table([task])) for task in self.tasks]
        yield _Frame(bars[:1], self.watch, bars[1:])


class _Frame(NamedTuple):
    """What is drawn: the outermost bar, the watch below it, and below that the bars of what is done meanwhile."""

    outer: list[tuple[str, Table]]
    watch: Watch | None
    inner: list[tuple[str, Table]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = max(1, options.max_width - ROOM_FOR_INTERRUPT)
        columns = Column(no_wrap=True, min_width=min(NAME_WIDTH, width // 2)), Column(no_wrap=True, ratio=1)
        table = Table.grid(*columns, padding=(0, 2, 0, 0), expand=True)
        for description, drawn in self.outer:
            table.add_row(Text(description), drawn)
        for name, value, rest in rows(self.watch) if self.watch else ():
            table.add_row(name, f"{value:>7}  {rest}")
        for description, drawn in self.inner:
            table.add_row(Text(description), drawn)
        yield from console.render(table, options.update_width(width))


_display: _Display | None = None  # the one that is up


@contextmanager
def _shared_display(watch: Watch | None) -> Iterator[_Display]:
    """Yield the display that is up, or else a new one."""
    global _display
    if _display is not None:
        yield _display
        return
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("left {task.fields[note]}", markup=False),
    )
    display = _Display(*columns, console=_console(), refresh_per_second=4, speed_estimate_period=SECONDS_OF_SPEED)
    display.watch = watch
    with display:
        _display = display
        try:
            yield display
        finally:
            _display = None


def _can_draw(console: Console) -> bool:
    """Whether lines can be drawn over, of blocks: not in a file, even one that was asked to have colours."""
    return console.is_interactive and console.file.isatty() and not console.options.ascii_only


def _lines(description: str, total: int, done: int, watch: Watch | None) -> Advance:
    """Return an `advance` that prints a line now and then."""
    started, moved = time.monotonic(), Fraction(0)
    last = started

    def advance(count: int | Fraction = 1, note: str | None = None) -> None:
        nonlocal last, moved
        moved += count
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES:
            last = now
            seconds_left = (now - started) / (moved or 1) * (total - done - moved)
            say(", ".join(filter(None, [line(description, total, int(done + moved), seconds_left, watch), note])))

    return advance


def line(description: str, total: int, done: int, seconds_left: float, watch: Watch | None = None) -> str:
    """Return the view as one line.

    Example:
        >>> line("rl", 200, 50, 90)
        'rl: 50/200, 0:01:30 left'
    """
    parts = [f"{description}: {done}/{total}", f"{timedelta(seconds=round(seconds_left))} left"]
    return ", ".join(parts + [" ".join(filter(None, row)) for row in (rows(watch, curves=False) if watch else [])])


def _console() -> Console:
    return _display.console if _display else Console(file=sys.stderr)
