"""Functions in threads of their own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future

from processes import SECONDS


def in_threads(*functions: Callable) -> list:
    """Start the functions at once, each in a thread of its own; return their results, or raise what one has raised."""
    together, results = threading.Barrier(len(functions)), [Future() for _ in functions]

    def call(function: Callable, result: Future) -> None:
        try:
            together.wait(SECONDS)
            result.set_result(function())
        except BaseException as error:  # a panic of Rust is no `Exception`
            result.set_exception(error)

    for pair in zip(functions, results, strict=True):
        threading.Thread(target=call, args=pair, daemon=True).start()
    return [result.result(SECONDS) for result in results]
