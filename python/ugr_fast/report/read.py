"""What run directories say, read once and checked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeGuard

import numpy as np
import numpy.typing as npt

from ugr_fast.configs import RlConfig
from ugr_fast.decisions import Outcomes, hit, ndcg, read_outcomes
from ugr_fast.files import read_json, read_json_lines, read_object
from ugr_fast.report.shape import EVALUATION, check_shape

Split = Literal["valid", "test"]
Floats: TypeAlias = npt.NDArray[np.float64]

TOLD = ("reward_score", "scale", "loss", "rollout", "beta", "drop_constant_groups", "lora")  # where not the default
REWARDS = {"uncertainty_weighted": "uncertainty-weighted reward", "ranking": "ranking reward", "match": "0/1 reward"}
HALF = 0.5


@dataclass(frozen=True)
class EvaluatedRun:
    """What a run directory says about a run."""

    label: str
    """Shortest name that tells it from the others: its folder, with as many parents as that takes."""
    number: int
    """Its place among the runs of the report, from 0."""
    config: dict[str, Any]
    """Command, settings, environment."""
    lines: list[dict[str, Any]]
    """metrics.jsonl."""
    best: dict[str, Any]
    """best.json, empty where there is none."""
    found: dict[str, Any]
    """eval-SPLIT.json."""
    ranks: npt.NDArray[np.int64]
    """(N,) place of each row's next item in the list, from 0; -1 where it is absent."""
    users: npt.NDArray[np.int64]
    """(N,) whose row it is."""

    @property
    def command(self) -> str:
        """The command that made it: sft or rl."""
        return str(self.config["command"])

    @property
    def name(self) -> str:
        """The label, and in words what was trained."""
        words = _describe(self.command, self.config["settings"])
        return f"{self.label} ({words}, readout)" if self.readout else f"{self.label} ({words})"

    @property
    def trained(self) -> bool:
        """Whether anything taught the confidence of the checkpoint that was evaluated."""
        return bool(self.found["trained"])

    @property
    def readout(self) -> bool:
        """Whether its confidence was read off its states by what `ugr-fast confide` fitted, not off two tokens."""
        return bool(self.found.get("readout", False))  # evaluations from before there were any lack it

    @property
    def at_start(self) -> bool:
        """Whether the checkpoint that was evaluated is the model that reinforcement learning started from."""
        return self.command == "rl" and self.found.get("step") == 0

    @property
    def signal(self) -> str:
        """What it goes by to say how sure it is, chosen on valid rows: its confidence or the beam's likelihood."""
        return str(self.found["signal"])

    @property
    def sources(self) -> tuple[str, ...]:
        """What is worth drawing: the confidence where it was trained, and the likelihood, its control."""
        return ("confidence", "likelihood") if self.trained else ("likelihood",)

    @property
    def hit10(self) -> Floats:
        """(N,) HR@10 of each row: 1 where the next item is among the first ten."""
        return hit(self.ranks)

    @property
    def ndcg10(self) -> Floats:
        """(N,) NDCG@10 of each row."""
        return ndcg(self.ranks)

    def kept_half(self, source: str, key: str) -> tuple[Any, Any, Any]:
        """Return HR@10 or NDCG@10 of the half of the users of which `source` is most sure, and its interval."""
        found = self.found["decisions"]["reject"]
        half = int(np.argmin(np.abs(np.asarray(found["coverage"]) - HALF)))
        value, low, high = (found[source][key][part][half] for part in ("value", "low", "high"))
        return value, low, high

    def series(self, key: str) -> tuple[list[float], list[float]]:
        """Return where (epochs of sft, updates of rl) `key` was logged, and its values; "valid.…" is one on valid."""
        at = "epoch" if self.command == "sft" else "step"
        on_valid = key.startswith("valid.")
        pairs = [
            (line.get(at), (line.get("valid", {}) if on_valid else line).get(key.removeprefix("valid.")))
            for line in self.lines
        ]
        kept = [(float(x), float(y)) for x, y in pairs if is_number(x) and is_number(y)]
        return [x for x, _ in kept], [y for _, y in kept]


def read_runs(folders: Sequence[Path], split: Split = "test") -> list[EvaluatedRun]:
    """Read run directories that were evaluated on the same rows.

    Raises:
        FileNotFoundError: a folder is no run, or was not evaluated on `split`; the message names the command.
        ValueError: no folder or one twice, an unreadable or older file, runs that were evaluated on different rows.
    """
    paths = [Path(folder).resolve() for folder in folders]
    if not paths or len(set(paths)) < len(paths):
        raise ValueError(f"`runs` must name at least one run directory, each once, got {[*map(str, folders)]}")
    named = zip(map(Path, folders), _labels(paths), strict=True)
    runs = [_read_run(folder, label, number, split) for number, (folder, label) in enumerate(named)]
    seen = [_rows_seen(run) for run in runs]
    for run, rows in zip(runs, seen, strict=True):
        if rows != seen[0]:
            raise ValueError(
                f"`runs` must be evaluated on the same rows, and {run.label} and {runs[0].label} were not; "
                "evaluate both again on one `data`"
            )
    return runs


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value of a file is there and finite."""
    return isinstance(value, int | float) and math.isfinite(value)


def _read_run(folder: Path, label: str, number: int, split: Split) -> EvaluatedRun:
    config = read_json(folder / "config.json", "ugr-fast sft")
    _require(config, ("command", "settings", "environment"), folder / "config.json", "train again")
    if not (isinstance(config["settings"], dict) and isinstance(config["environment"], dict)):
        raise ValueError(f"{folder / 'config.json'} must have objects for settings and environment; train again")
    command = f"ugr-fast eval --run {folder} --data {config['settings'].get('data', 'DATA')}"
    command += "" if split == "test" else f" --split {split}"
    path = folder / f"eval-{split}.json"
    found = read_json(path, command)
    _require(found, EVALUATION, path, f"make it again with `{command}`")
    try:
        check_shape(found, EVALUATION)
    except ValueError as error:
        raise ValueError(f"{path} is altered: {error}; make it again with `{command}`") from error
    best, told = folder / "best.json", _read_outcomes(folder / f"outcomes-{split}.safetensors", found, command)
    return EvaluatedRun(
        label=label,
        number=number,
        config=config,
        lines=_read_lines(folder / "metrics.jsonl"),
        best=read_object(best, "ugr-fast sft") if best.exists() else {},
        found=found,
        ranks=told.rank,
        users=told.users,
    )


def _require(value: Any, keys: Iterable[str], path: Path, remedy: str) -> None:
    missing = [key for key in keys if not isinstance(value, dict) or key not in value]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}; {remedy}")


def _read_outcomes(path: Path, found: dict[str, Any], command: str) -> Outcomes:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; `{command}` makes it")
    try:
        how, told = read_outcomes(path)
    except ValueError as error:
        raise ValueError(f"{error}: `{command}`") from error
    if how != found["how"] or len(told) != found["num_rows"]:
        raise ValueError(f"{path} must be of the evaluation in eval-*.json, got one of {how}; repeat `{command}`")
    return told


def _labels(paths: Sequence[Path]) -> list[str]:
    """Return the shortest ends of the paths that tell all apart; none starts with "_", which legends leave out."""
    depth, labels = 0, [""]
    while not depth or len(set(labels)) < len(paths) or any(label.startswith("_") for label in labels):
        depth += 1
        labels = ["/".join(path.parts[-depth:]) for path in paths]
    return labels


def _read_lines(path: Path) -> list[dict[str, Any]]:
    lines = read_json_lines(path)
    for number, line in enumerate(lines, start=1):
        if not isinstance(line.get("valid", {}), dict):
            raise ValueError(f"{path} must hold an object for `valid` in line {number}; remove that line")
    return lines


def _rows_seen(run: EvaluatedRun) -> tuple[Any, ...]:
    shown = [(example["user"], example["target"]) for example in run.found["examples"]]
    return run.users.tolist(), run.found["baselines"].get("popularity"), shown


def _describe(command: str, settings: dict[str, Any]) -> str:
    """Return in words what a command with these settings trains."""
    if command != "rl":
        of = f" of {Path(str(settings['model'])).name}" if settings.get("model") else ""
        lora = [f"lora {settings['lora']}"] if settings.get("lora") else []
        return ", ".join([f"supervised fine-tuning{of}", *lora])
    reward, difficulty, confidence = (settings.get(key) for key in ("reward", "difficulty", "confidence"))
    known = {field.name: field.default for field in fields(RlConfig)}
    more = [f"{name} {settings[name]}" for name in TOLD if settings.get(name, known[name]) != known[name]]
    if reward == "uncertainty_weighted" and difficulty == "rank" and confidence != "none":
        return ", ".join([f"UGR, {confidence} confidence", *more])
    if reward == "match" and difficulty == confidence == "none":
        return ", ".join(["GRPO, 0/1 reward", *more])
    weight = {"none": [], "rank": ["difficulty weight"]}.get(str(difficulty), [f"difficulty by {difficulty}"])
    objective = ["no confidence" if confidence == "none" else f"{confidence} confidence"]
    return ", ".join([REWARDS.get(str(reward), str(reward)), *weight, *objective, *more])
