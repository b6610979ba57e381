"""How each run was evaluated, where it ran, and the settings of its command."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from ugr_fast.report.blocks import Block, heading, numbers
from ugr_fast.report.read import EvaluatedRun, is_number
from ugr_fast.report.tables import DASH, Rows

Part: TypeAlias = Callable[[EvaluatedRun], dict[str, Any]]

EVALUATION = ("split", "num_rows", "num_beams", "normalize", "precision", "checkpoint", "step", "recalibration")


def section(runs: list[EvaluatedRun]) -> list[Block]:
    """Return the section on settings."""
    parts: list[tuple[str, Part]] = [
        ("evaluation", _evaluation),
        ("environment", _environment),
        ("setting", lambda run: {"command": run.command, **run.config["settings"]}),
    ]
    return [heading("Settings"), *(numbers(_table(runs, part, name), name.capitalize()) for name, part in parts)]


def _table(runs: list[EvaluatedRun], part: Part, name: str) -> Rows:
    keys = list(dict.fromkeys(key for run in runs for key in part(run)))
    rows = [[name, *(run.label for run in runs)]]
    return rows + [[key, *(_cell(part(run).get(key)) for run in runs)] for key in keys]


def _cell(value: Any) -> str:
    if value is None or value == "":
        return DASH
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _environment(run: EvaluatedRun) -> dict[str, Any]:
    """Return it with enough of the digest of the starting model to tell it from others; config.json has all of it."""
    found = run.config["environment"]
    return {key: str(value)[:12] if key == "start" and value else value for key, value in found.items()}


def _evaluation(run: EvaluatedRun) -> dict[str, Any]:
    seconds = [line["seconds"] for line in run.lines if is_number(line.get("seconds"))]
    time = {"training time": f"{seconds[-1] / 60:.1f} min"} if seconds else {}
    return {**{key: run.found.get(key) for key in EVALUATION}, "goes by": run.signal, **time}
