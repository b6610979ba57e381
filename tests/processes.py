"""The command line in processes of its own that die when told, forked from one that has imported everything.

They get a real signal: as soon as the parent sees something, or right before a chosen change to the disk.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

KILL = getattr(signal, "SIGKILL", signal.SIGTERM)  # Windows lacks it, and the fork that all of this needs
SECONDS = 120.0  # what takes seconds hangs when it has taken this long
IMPORTED = ("processes", "ugr_fast.rl", "ugr_fast.sft", "transformers.models.qwen3.modeling_qwen3", "pyarrow.dataset")


@dataclass(frozen=True)
class Change:
    """A change to the disk: number `number`, from 0, among those whose description `fits` is found in."""

    number: int
    fits: str = ""


def live(arguments: list, messages: Path, change: Change | None = None, *, sent=KILL, until=None) -> int:
    """Run the command in a process and return its exit code.

    Args:
        arguments: of the command line.
        messages: file for what it prints.
        change: before which the signal `sent` comes; None for no signal.
        until: a function; the process is killed as soon as it returns true.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTED))
    child = context.Process(target=_live, args=([str(argument) for argument in arguments], messages, change, sent))
    child.start()
    try:
        waits(child.is_alive, until or (lambda: False))
    finally:
        if child.is_alive():
            child.kill()
        child.join(SECONDS)
    return child.exitcode


def waits(lives: Callable[[], bool], until: Callable[[], bool]) -> None:
    """Wait until a process has ended or `until()` is true."""
    started = time.monotonic()
    while lives() and not until():
        if time.monotonic() > started + SECONDS:
            raise TimeoutError(f"still running after {SECONDS} s")
        time.sleep(0.001)


def _live(arguments: list[str], messages: Path, change: Change | None, sent: int) -> None:
    with open(messages, "w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        from ugr_fast.cli import main

        if change is not None:
            _signal_before(change, sent)
        main(arguments)


def _signal_before(change: Change, sent: int) -> None:
    """Let this process get a signal right before it makes the change."""
    numbers = itertools.count()  # one signal, not one more before every change that follows

    def hook(event: str, args: tuple) -> None:
        described = _describe(event, args)
        if described and re.search(change.fits, described) and next(numbers) == change.number:
            os.kill(os.getpid(), sent)

    sys.addaudithook(hook)


def _describe(event: str, args: tuple) -> str:
    """Return what an audit event is about to change on the disk, "" for nothing."""
    if event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR):
        return f"open {args[0]}"
    return f"{event} {args[0]} {args[1]}" if event in ("os.mkdir", "os.remove", "os.rename", "os.rmdir") else ""
