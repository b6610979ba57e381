"""What the tables of docs/results.md need of each run: read off its directory, or kept in a few kilobytes a run.

    python benches/paper_records.py --out paper --into benches/records

A set of runs is kept as SET.json, with the cost, the validations and the test metrics of each run, and SET.npz, with
the place of each test row's next item in each run's list. Whoever wants other intervals or other comparisons needs no
model for it. Runs that are there already and not in `--out` stay.
"""

from __future__ import annotations

import argparse
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from paper import SETS, costs, readout_of
from ugr_fast import decisions
from ugr_fast.files import new_file, read_json_lines

KEPT = (
    *("step", "num_rows", "num_beams", "normalize", "trained", "readout", "signal"),
    *("ranking", "reach", "baselines"),
)
VALID = ("hr@1", "hr@10", "ndcg@10", "confidence_auroc", "likelihood_auroc")
LOGGED = ("zero_advantage_groups", "entropy", "hit_rate", "confidence_mean")
LAST = 25
"""Updates at the end of training over which LOGGED are averaged."""


@dataclass(frozen=True)
class Record:
    """An evaluated run."""

    test: dict[str, Any]
    """Of eval-test.json what KEPT names, the scalars at user level, decisions and promises without intervals."""
    valid: list[dict[str, Any]]
    """Step and VALID of each validation during training."""
    logged: dict[str, float]
    """LOGGED, where training logs it."""
    costs: dict[str, Any]
    """Of each step its command, and its seconds of processor and of wall clock."""
    rank: NDArray[np.int64]
    """(N,) place of the next item in each test row's list, -1 where absent; with a readout, re-ranked as valid rows
    chose, which is what it is for."""
    users: NDArray[np.int64]
    """(N,) whose row it is."""

    def curve(self, name: str) -> dict[int, float]:
        """A validation metric by update."""
        return {line["step"]: line[name] for line in self.valid}


Runs = dict[str, dict[int, Record]]
"""By arm and seed."""


def read_run(folder: Path) -> Record:
    """Return the record of a run directory."""
    test = json.loads((folder / "eval-test.json").read_text())
    outcomes = decisions.read_outcomes(folder / "outcomes-test.safetensors")[1]
    rank = outcomes.rank
    if readout_of(folder.name.rpartition("-")[0]):
        weight = test["decisions"]["rerank"]["confidence"]["weight"]
        rank = decisions.reranked(outcomes, outcomes.said("confidence"), weight)
    lines = read_json_lines(folder / "metrics.jsonl")
    logged = {name: [line[name] for line in lines if name in line][-LAST:] for name in LOGGED}
    known = costs(folder)
    for cost in known.values():
        cost["command"] = _without_folders(cost["command"])
    return Record(
        {
            **{name: test[name] for name in KEPT if name in test},
            **_confidences(test),
            "decisions": _acts(test),
            "promises": [_promise(each) for each in test["promises"]],
        },
        [
            {"step": line["step"], **{name: line["valid"].get(name) for name in VALID}}
            for line in lines
            if "valid" in line
        ],
        {name: float(np.mean(values)) for name, values in logged.items() if values},
        known,
        rank,
        outcomes.users,
    )


def _without_folders(command: list[str]) -> list[str]:
    """Write paths as their last two names, which is what tells them apart."""
    return ["/".join(Path(word).parts[-2:]) if word.startswith("/") else word for word in command]


def _confidences(test: dict[str, Any]) -> dict[str, Any]:
    names = ("confidence", "likelihood")
    return {name: {"user": {stage: test[name]["user"][stage] for stage in ("before", "after")}} for name in names}


def _promise(made: dict[str, Any]) -> dict[str, Any]:
    tested, realised = made["calibration"], made["realised"]
    return {
        **{name: made[name] for name in ("k", "max_risk", "threshold")},
        "calibration": {name: tested[name] for name in ("share", "risk")},
        "realised": {name: realised[name] for name in ("share", "risk")},
    }


def _acts(test: dict[str, Any]) -> Any:
    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(each) for name, each in value.items() if name not in ("low", "high", "by_weight")}
        return value

    return plain(test["decisions"])


def load(out: Path) -> Runs:
    """Return the evaluated runs in a folder of run directories, OUT/SET.

    Raises:
        FileNotFoundError: a run has a cost of its evaluation, and not what that found.
    """
    found: Runs = {}
    for folder in sorted(out.glob("*-*")):
        arm, _, seed = folder.name.rpartition("-")
        if "eval" in costs(folder):
            found.setdefault(arm, {})[int(seed)] = read_run(folder)
    return found


# ---- kept


def refuse_other_users(runs: Sequence[Record]) -> None:
    """Refuse runs that were not measured on rows of the same users."""
    if any(not np.array_equal(run.users, runs[0].users) for run in runs):
        raise ValueError("`runs` must be of the same users, and some were evaluated on other data; keep those apart")


def write(folder: Path, name: str, runs: Runs) -> None:
    """Keep the runs of a set as NAME.json and NAME.npz.

    Raises:
        ValueError: runs of other users.
    """
    refuse_other_users([run for of in runs.values() for run in of.values()])
    numbers, places = {}, {}
    for arm, of in sorted(runs.items()):
        for seed, run in sorted(of.items()):
            fields = {"costs": run.costs, "logged": run.logged, "valid": run.valid, "test": run.test}
            numbers[f"{arm}-{seed}"], places[f"{arm}-{seed}"] = _rounded(fields), run.rank.astype(np.int8)
            users = run.users
    lines = ",\n".join(f"{json.dumps(run)}: {json.dumps(fields)}" for run, fields in numbers.items())
    folder.mkdir(parents=True, exist_ok=True)
    with new_file(folder / f"{name}.json") as path:
        path.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
    with new_file(folder / f"{name}.npz") as path:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, users=users, **places)
        path.write_bytes(buffer.getvalue())


def _rounded(value: Any, digits: int = 7) -> Any:
    """Round to so many significant digits."""
    if isinstance(value, dict):
        return {name: _rounded(each, digits) for name, each in value.items()}
    if isinstance(value, list):
        return [_rounded(each, digits) for each in value]
    if isinstance(value, float) and math.isfinite(value) and value:
        return float(f"{value:.{digits}g}")
    return value


def read(folder: Path, name: str) -> Runs:
    """Return what `write` kept; nothing where nothing was."""
    if not (folder / f"{name}.json").exists():
        return {}
    found: Runs = {}
    with np.load(folder / f"{name}.npz", allow_pickle=False) as arrays:
        users = arrays["users"]
        for run, fields in json.loads((folder / f"{name}.json").read_text()).items():
            arm, _, seed = run.rpartition("-")
            found.setdefault(arm, {})[int(seed)] = Record(**fields, rank=arrays[run].astype(np.int64), users=users)
    return found


def merged(old: Runs, new: Runs) -> Runs:
    """Return the runs of both, the new where both have one."""
    return {arm: {**old.get(arm, {}), **new.get(arm, {})} for arm in {*old, *new}}


def main() -> None:
    """Keep the runs of a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("paper"), help="folder of the runs")
    parser.add_argument("--into", type=Path, default=Path("benches/records"), help="folder of the records")
    args = parser.parse_args()
    for name in SETS:
        if runs := load(args.out / name):
            runs = merged(read(args.into, name), runs)
            write(args.into, name, runs)
            print(f"{name}: {sum(map(len, runs.values()))} runs in {args.into / name}.json")


if __name__ == "__main__":
    main()
