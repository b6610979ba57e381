"""A tiny run of every command, for the tests of what lies around the learning: files, messages, resuming."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from pathlib import Path

import numpy as np

SFT = "--hidden 32 --layers 1 --heads 2 --epochs 2 --eval-every 1 --threads 1 --device cpu".split()  # noqa: SIM905  (as one types it)
RL = "--updates 3 --eval-every 2 --group 4 --batch-size 8 --threads 1 --device cpu".split()  # noqa: SIM905


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a command left behind in its process."""

    code: int
    out: str
    err: str


def call(*args) -> Outcome:
    """Run the command line in this process."""
    from ugr_fast.cli import main

    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(arg) for arg in args])
        except SystemExit as stop:
            code = stop.code
    return Outcome(code, out.getvalue(), err.getvalue())


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Every file below `folder` with its bytes, every folder with None."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """Where the results of the commands lie."""

    root: Path

    def __getattr__(self, name: str) -> Path:
        return self.root / name  # events, items, data, sids, sft, rl, report

    def sft_args(self, out: Path, *more) -> list:
        return ["sft", "--data", self.data, "--sids", self.sids, "--out", out, *SFT, *more]

    def rl_args(self, out: Path, *more) -> list:
        return ["rl", "--run", self.sft, "--data", self.data, "--out", out, *RL, *more]


def write_events(folder: Path, num_users=60, num_events=12, num_items=40, size=8) -> None:
    """Users who walk round one cluster of items each: the next item is one or two steps on."""
    rng = np.random.default_rng(0)
    lines = ["user,item,timestamp"]
    for user in range(num_users):
        item = int(rng.integers(num_items))
        for time in range(num_events):
            lines.append(f"u{user},i{item},{time}")
            item = item // size * size + (item + int(rng.integers(1, 3))) % size
    (folder / "events.csv").write_text("\n".join(lines) + "\n")
    titles = [f"i{item},Film {item:02d} ({1980 + item})" for item in range(num_items)]
    (folder / "items.csv").write_text("\n".join(["item,title", *titles]) + "\n")


def run(root: Path) -> Pipeline:
    """Run prepare, sids, sft, rl and eval; `root` is an empty folder."""
    made = Pipeline(root)
    write_events(root)
    commands = [
        ["prepare", "--events", root / "events.csv", "--items", root / "items.csv", "--out", made.data, "--core", 1],
        ["sids", "--data", made.data, "--out", made.sids, "--source", "cooccurrence", "--codes", 8],
        made.sft_args(made.sft),
        made.rl_args(made.rl),
        *(
            ["eval", "--run", folder, "--data", made.data, "--split", split, "--num-beams", 10, "--threads", 1]
            for folder in (made.sft, made.rl)
            for split in ("valid", "test")
        ),
    ]
    for command in commands:
        outcome = call(*command)
        assert outcome.code == 0, outcome.err
    return made
