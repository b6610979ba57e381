"""The paper's claims on real data, with seeds: every run that docs/results.md reports, made and evaluated.

    make paper DATA=folder                                 # everything, and the tables; hours
    python benches/paper.py --data folder --out paper      # the runs
    python benches/paper.py --data folder --list           # what there is to do, what it cost where it is done
    python benches/paper.py --quick                        # a smoke version on MovieLens-100K: ten minutes

`folder` holds for each set below a data folder of `ugr-fast prepare`, or items.parquet and sequences.parquet (user,
items) to be split leave-one-out, with a file of semantic IDs and embeddings.npy; MovieLens-100K comes from the recbole
package. Every step is one command of the CLI, in a process and a log of its own, with one thread; `--jobs` of them run
at a time. Stopped and repeated, it goes on where it was. What a step cost stands in costs.json of its run. Everything
is tuned on valid; the test split is read once per run, by its `eval`.

A run is OUT/SET/ARM-SEED. All arms of a seed begin with the same fine-tuned model and are trained for equally many
updates, those of RL on the same prompts in the same order; what is measured is the checkpoint that validation chose of
them, and in arms named last the last one.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from timing import say
from ugr_fast import data as ugr_data
from ugr_fast.files import new_folder, write_json

Flags = dict[str, str]

UPDATES, BEAMS, HISTORY = 150, 20, 10
GRPO = {"reward": "match", "difficulty": "none", "confidence": "none"}
RL: dict[str, Flags] = {
    "grpo": GRPO,
    "ranking": {**GRPO, "reward": "ranking"},
    "ugr": {},
    "ugr-reward": {"difficulty": "none", "confidence": "none"},
    "ugr-weight": {"reward": "match", "confidence": "none"},
    "ugr-confidence": {"reward": "match", "difficulty": "none"},
    "ugr-sum": {"reward-score": "sum"},
    "ugr-logit": {"confidence": "logit"},
    "ugr-brier": {"confidence": "brier"},
    "ugr-allowed": {"normalize": "allowed"},
    "ugr-stochastic": {"normalize": "allowed", "rollout": "stochastic"},
    "ugr-similar": {"reward": "uncertainty_weighted + 0.3*similarity"},
}
"""What differs from UGR as released."""
CONFIDE: dict[str, Flags] = {"-readout": {"no-evidence": ""}, "-evidence": {}}
"""Endings of arms that are another with a readout: of its states alone, and of the evidence of the data too."""
CONFIDENT = tuple(f"{arm}{kind}" for kind in CONFIDE for arm in ("sft", "ugr"))
MAIN = ("sft", "sft-continued", "grpo", "ranking", "ugr", *CONFIDENT)
LAST = "-last"
"""Ending of arms that are another at its last update, where that one is measured at its best by validation."""
LASTS = tuple(f"{arm}{LAST}" for arm in ("grpo", "ranking", "ugr"))
REST = tuple(name for name in RL if name not in MAIN)
FEWER = ("sft", "grpo", "ugr", "sft-evidence", "ugr-evidence")


@dataclass(frozen=True)
class Set:
    """Data, the model, and how many seeds each arm gets."""

    folder: str
    """Of the data, below `--data`."""
    sids: Flags
    """How semantic IDs are made; `file` lies in the data folder."""
    sequences: int
    """Of the training split: one update of sft-continued takes as many as go into the number of updates."""
    arms: dict[str, int]
    """Of each, how many seeds."""
    sft: Flags = field(default_factory=dict)
    """Settings of fine-tuning."""
    updates: int = UPDATES


def arms(main: int, rest: int = 0, names: tuple[str, ...] = MAIN) -> dict[str, int]:
    """How many seeds each arm gets."""
    return {**dict.fromkeys(names, main), **(dict.fromkeys(REST, rest) if rest else {})}


INDUSTRIAL = {"source": "file", "file": "items.parquet", "columns": "sid_a sid_b sid_c"}
SCIENTIFIC = {"source": "file", "file": "sids.parquet", "columns": "a b c d", "variant": "letter_native"}
MOVIELENS = {"source": "cooccurrence", "codes": "64"}
SMALL = {"hidden": "128", "dropout": "0.2", "epochs": "14", "valid-rows": "1500"}
LARGE = {"epochs": "14", "valid-rows": "1500"}
SETS = {
    "industrial": Set("industrial", INDUSTRIAL, 5350, {**arms(5, 3), **arms(5, names=LASTS)}, SMALL),
    "scientific": Set("scientific", SCIENTIFIC, 8317, {**arms(5), **arms(5, names=LASTS)}, SMALL),
    "industrial-256": Set("industrial", INDUSTRIAL, 5350, arms(3, names=FEWER), LARGE),
    "movielens": Set("", MOVIELENS, 943, arms(3), {"epochs": "5", "hidden": "128", "dropout": "0.2"}),
}
QUICK = {"movielens": Set("", MOVIELENS, 943, arms(2), {"epochs": "3", "hidden": "64"}, updates=25)}


@dataclass(frozen=True)
class Step:
    """One command, which makes or measures the run in `folder`."""

    folder: Path
    name: str
    command: tuple[str, ...]
    """Of `ugr-fast`, with its arguments."""
    needs: tuple[Path, ...] = ()
    """Folders of which all earlier steps must be done, beside its own."""
    copies: Path | None = None
    """A run that the folder begins as a copy of."""

    @property
    def cost(self) -> dict[str, Any] | None:
        """What it cost; None if it is not done."""
        return costs(self.folder).get(self.name)

    def __str__(self) -> str:
        return f"{self.folder.parent.name}/{self.folder.name} {self.name}"


def costs(folder: Path) -> dict[str, Any]:
    """Return what the steps of a run cost: of each its command, and the seconds of processor and of wall clock."""
    path = folder / "costs.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def flags(settings: Flags) -> tuple[str, ...]:
    """Return settings as arguments."""
    return tuple(part for name, value in settings.items() for part in (f"--{name}", *_words(name, value)))


def _words(name: str, value: str) -> list[str]:
    return value.split() if name == "columns" or not value else [value]


# ---- what there is to do


def steps(out: Path, data: Path, sets: dict[str, Set]) -> list[Step]:
    """Return all steps, in an order in which they can be done: first seeds first."""
    found: list[Step] = []
    places = {name: Place(out / name, data / each.folder if each.folder else None) for name, each in sets.items()}
    for name, each in sets.items():
        found += prepare(places[name], each)
    for seed in range(max(count for each in sets.values() for count in each.arms.values())):
        for name, each in sets.items():
            for arm, count in each.arms.items():
                if seed < count:
                    found += run_steps(places[name], each, arm, seed)
    return found


@dataclass(frozen=True)
class Place:
    """Where the runs of a set lie, and what they are made from."""

    out: Path
    source: Path | None
    """Folder of what was given; None for MovieLens."""

    @property
    def data(self) -> Path:
        """The data folder."""
        ready = self.source is not None and (self.source / "train.parquet").exists()
        return self.source if ready and self.source else self.out / "data"

    @property
    def embeddings(self) -> Flags:
        """The setting that names the embeddings of the items, where there are some."""
        path = None if self.source is None else self.source / "embeddings.npy"
        return {"embeddings": str(path)} if path and path.exists() else {}


def prepare(place: Place, each: Set) -> Iterator[Step]:
    """Make the semantic IDs, and the data folder where none was given."""
    if place.source is None:
        events, items = ugr_data.movielens()
        columns = {"user": "user_id", "item": "item_id", "time": "timestamp", "items-key": "item_id"}
        settings = {"events": str(events), "items": str(items), **columns, "items-text": "class"}
        title = {"items-title": "{movie_title} ({release_year})", "out": str(place.data)}
        yield Step(place.data, "prepare", ("prepare", *flags({**settings, **title})))
    elif place.data != place.source and not place.data.exists():
        leave_one_out(place.source, place.data)
    settings = {**each.sids, **place.embeddings}
    if "file" in settings:
        settings["file"] = str(place.source / settings["file"])  # type: ignore[operator]
    sids = place.out / "sids"
    command = ("sids", *flags({"data": str(place.data), "out": str(sids), **settings}))
    yield Step(sids, "sids", command, () if place.source else (place.data,))


def leave_one_out(source: Path, folder: Path) -> None:
    """Make a data folder of whole sequences: the last item is test, the one before valid, the others train."""
    sequences = pq.read_table(source / "sequences.parquet").to_pydict()
    splits: dict[str, list[tuple[int, list[int], int]]] = {"train": [], "valid": [], "test": []}
    for user, items in zip(sequences["user"], sequences["items"], strict=True):
        for place in range(1, len(items)):
            split = {len(items) - 1: "test", len(items) - 2: "valid"}.get(place, "train")
            splits[split].append((user, items[max(0, place - HISTORY) : place], items[place]))
    with new_folder(folder) as temporary:
        shutil.copy(source / "items.parquet", temporary)
        for name, rows in splits.items():
            columns = dict(zip(("user", "history", "item"), map(list, zip(*rows, strict=True)), strict=True))
            pq.write_table(pa.table(columns), temporary / f"{name}.parquet")


def run_steps(place: Place, each: Set, arm: str, seed: int) -> Iterator[Step]:
    """Make and measure one run."""
    out, data = place.out, place.data
    folder = out / f"{arm}-{seed}"
    normalize = RL.get(arm, {}).get("normalize", "full")
    found = {"run": str(folder), "data": str(data), "normalize": normalize, "threads": "1"}
    if kind := readout_of(arm):
        of, known = out / f"{arm.removesuffix(kind)}-{seed}", place.embeddings if kind == "-evidence" else {}
        yield Step(folder, "confide", ("confide", *flags({**found, **CONFIDE[kind], **known})), (of,), copies=of)
    elif arm not in LASTS:
        start = out / f"sft-{seed}"
        needs = (out / "sids",) if arm == "sft" else (out / "sids", start)
        yield Step(folder, "train", training(place, each, arm, seed), needs)
    measured = {**found, **place.embeddings, "num-beams": str(BEAMS)}
    if arm in LASTS:
        of = out / f"{arm.removesuffix(LAST)}-{seed}"
        yield Step(folder, "eval", ("eval", *flags({**measured, "checkpoint": "last"})), (of,), copies=of)
    else:
        yield Step(folder, "eval", ("eval", *flags(measured)))


def readout_of(arm: str) -> str:
    """Return the ending in CONFIDE of an arm; "" for one whose confidence, if any, is that of the two tokens."""
    return next((kind for kind in CONFIDE if arm.endswith(kind)), "")


def trains(arm: str) -> bool:
    """Whether an arm trains a model, and does not say more of one that another has trained."""
    return not readout_of(arm) and arm not in LASTS


def training(place: Place, each: Set, arm: str, seed: int) -> tuple[str, ...]:
    """Return the command that trains a run."""
    out, data = place.out, place.data
    common = {"data": str(data), "out": str(out / f"{arm}-{seed}"), "seed": str(seed), "threads": "1"}
    start = {"run": str(out / f"sft-{seed}")}
    rows = {"valid-rows": each.sft.get("valid-rows", "0")}
    if arm in RL:
        settings = {**start, "updates": str(each.updates), "eval-every": "25", **rows, **RL[arm]}
        known = place.embeddings if "similarity" in settings.get("reward", "") else {}
        return "rl", *flags({**common, **settings, **known})
    settings = {"sids": str(out / "sids"), **each.sft}
    if arm == "sft-continued":
        once = {"epochs": "1", "batch-size": str(-(-each.sequences // each.updates)), "eval-every": "1"}
        settings |= {**start, **once, "lr": "1e-4", "muon-lr": "0", "average": "0"}
    return "sft", *flags({**common, **settings})


# ---- doing it


def do(todo: list[Step], jobs: int) -> None:
    """Do the steps, `jobs` at a time, each as soon as what it needs is done; stop at the first that fails."""
    waiting = [step for step in todo if step.cost is None]
    running: dict[Future[float], Step] = {}
    done, total, started = len(todo) - len(waiting), len(todo), time.monotonic()
    first = done
    with ThreadPoolExecutor(jobs) as pool:
        while waiting or running:
            for step in ready(waiting, [*running.values()])[: jobs - len(running)]:
                waiting.remove(step)
                running[pool.submit(perform, step)] = step
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                step, seconds = running.pop(future), future.result()
                done += 1
                left = (time.monotonic() - started) / (done - first) * (total - done) / 3600
                say(f"{done}/{total} {step}: {seconds / 60:.1f} min; about {left:.1f} h left")


def ready(waiting: list[Step], running: list[Step]) -> list[Step]:
    """Return the steps of which nothing that they need is still to be done, each folder's first alone."""
    unfinished = [step.folder for step in running]
    found = []
    for step in waiting:
        if not {step.folder, *step.needs} & set(unfinished):
            found.append(step)
        unfinished.append(step.folder)
    return found


def perform(step: Step) -> float:
    """Run one command, note what it cost, and return its seconds of wall clock."""
    if step.copies is not None and not step.folder.exists():
        copy_run(step.copies, step.folder)
    log = step.folder.parent / "logs" / f"{step.folder.name}-{step.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with open(log, "a", encoding="utf-8") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "ugr_fast.cli", *step.command],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{step} failed, exit {process.returncode}: {' '.join(step.command)}; see {log}")
    wall = time.monotonic() - started
    cost = {"command": [*step.command], "seconds": usage.ru_utime + usage.ru_stime, "wall": wall}
    write_json(step.folder / "costs.json", {**costs(step.folder), step.name: cost})
    return wall


def copy_run(source: Path, target: Path) -> None:
    """Copy a run without what was found of it; files that never change are linked."""
    temporary = target.with_name(f".{target.name}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    found = shutil.ignore_patterns("eval-*", "outcomes-*", "confidence.*", "readout.*", "costs.json", ".*")
    shutil.copytree(source, temporary, ignore=found, copy_function=os.link)
    temporary.rename(target)


def main() -> None:
    """Do what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the data folders")
    parser.add_argument("--out", type=Path, default=Path("paper"), help="folder of the runs")
    parser.add_argument("--sets", nargs="+", choices=[*SETS], default=[*SETS], help="data and models to run")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="steps at a time, one thread each")
    parser.add_argument("--quick", action="store_true", help="a smoke version on MovieLens-100K")
    parser.add_argument("--list", action="store_true", help="tell what there is to do, and do nothing")
    args = parser.parse_args()
    sets = QUICK if args.quick else {name: SETS[name] for name in args.sets}
    for each in sets.values():
        if each.folder and not (args.data / each.folder).is_dir():
            parser.error(f"--data must hold {each.folder}, a data folder of `ugr-fast prepare`; {args.data} does not")
    todo = steps(args.out, args.data, sets)
    if args.list:
        for step in todo:
            minutes = "-" if step.cost is None else format(step.cost["seconds"] / 60, ".1f")
            print(f"{minutes:>6} min  {step}: ugr-fast {' '.join(step.command)}")
    else:
        do(todo, max(1, args.jobs))
    known = [cost for folder in {step.folder for step in todo} for cost in costs(folder).values()]
    print(f"{len(known)} of {len(todo)} steps done, {sum(cost['seconds'] for cost in known) / 3600:.2f} core-hours")


if __name__ == "__main__":
    main()
