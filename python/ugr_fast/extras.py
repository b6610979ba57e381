"""The package's extras: what each brings, and which one to install where something is not there.

`import ugr_fast` needs numpy alone. What needs more imports it where it is used, below `needed_for`; submodules about
torch import it first thing, and `Signpost` speaks before Python would.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

EXTRAS = {
    "data": ("pyarrow",),
    "train": ("torch", "transformers", "peft", "accelerate"),
    "sids": ("faiss", "vector_quantize_pytorch"),
    "plot": ("matplotlib",),
}
"""Modules by the extra that brings them."""

NEED_TORCH = {
    *("model", "engines", "readout", "decode", "device", "losses", "lora", "muon", "team"),
    *("run", "recommend", "sft", "rl", "confide", "evaluate", "demo"),
}
"""Submodules that cannot be imported without torch."""


def install(module: str | None) -> str:
    """Return the command that installs the extra with `module`; "" if none has it.

    Example:
        >>> install("faiss"), install("numpy")
        ("pip install 'ugr-fast[sids]'", '')
    """
    package = (module or "").partition(".")[0]
    return next((f"pip install 'ugr-fast[{extra}]'" for extra, brought in EXTRAS.items() if package in brought), "")


@contextmanager
def needed_for(what: str) -> Iterator[None]:
    """Say what a module imported in here is for, and how to get it, where it is not installed.

    Raises:
        ImportError: it is not installed.

    Example:
        >>> with needed_for("a report"):
        ...     raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")
        Traceback (most recent call last):
        ...
        ImportError: a report needs matplotlib: pip install 'ugr-fast[plot]'
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if not (command := install(error.name)):
            raise
        raise ImportError(f"{what} needs {error.name}: {command}") from error


class Signpost:
    """Asked by Python for every module before it looks for it; answers only for submodules that lack torch."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: Any = None) -> None:
        """Return None, which sends Python on.

        Raises:
            ImportError: `name` is a submodule that needs torch, which is not installed.
        """
        package, _, module = name.partition(".")
        if package == "ugr_fast" and module in NEED_TORCH and find_spec("torch") is None:
            raise ImportError(f"{name} needs torch: {install('torch')}", name=name)
