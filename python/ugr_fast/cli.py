"""The command line: one subcommand per settings dataclass, and one-line errors with exit code 2."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ugr_fast import extras
from ugr_fast.configs import (
    DemoConfig,
    DoctorConfig,
    EvalConfig,
    MigrateConfig,
    PrepareConfig,
    RecommendConfig,
    ReportConfig,
    RlConfig,
    SftConfig,
    SidsConfig,
    check,
)
from ugr_fast.files import finite
from ugr_fast.progress import is_main_process, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ugr_fast.recommend import Recommendations

DESCRIPTION = """Generative recommendation that knows how sure it is.

The usual order: prepare -> sids -> sft -> rl -> eval -> report, then recommend; `demo` does it all on MovieLens-100K,
and `migrate` stands for the first two where MiniOneRec or UGR has done them; `doctor` tells what is installed.
Each command has its own --help."""


def prepare(config: PrepareConfig) -> None:
    """Filter and split events into a data folder."""
    from ugr_fast import data

    _print_counts(data.prepare(config))


def migrate(config: MigrateConfig) -> None:
    """Take over data and semantic IDs from MiniOneRec or UGR."""
    from ugr_fast import migrate

    _print_counts(migrate.migrate(config))


def sids(config: SidsConfig) -> None:
    """Give every item a semantic ID."""
    from ugr_fast import sids

    _print_counts(sids.build(config))


def sft(config: SftConfig) -> None:
    """Fine-tune a model on user sequences."""
    from ugr_fast import sft

    _print_best(sft.train(config))


def rl(config: RlConfig) -> None:
    """Train a fine-tuned run further with UGR."""
    from ugr_fast import rl

    _print_best(rl.train(config))


def evaluate(config: EvalConfig) -> None:
    """Rank the whole catalogue for every row of a split."""
    from ugr_fast import evaluate

    found = evaluate.evaluate(config)
    print(json.dumps(found["ranking"], indent=1))
    print(f"written to {config.run / f'eval-{config.split}.json'}")


def recommend(config: RecommendConfig) -> None:
    """Recommend items after a history."""
    from ugr_fast.recommend import Recommender

    check(config)
    names = [name for name in config.history.split(";") if name.strip()]
    recommender = Recommender.load(config.run, config.device)
    found = recommender(
        [names],
        k=config.k,
        num_beams=config.num_beams or None,
        hide_seen=config.hide_seen,
        min_confidence=config.min_confidence,
        max_risk=config.max_risk,
        delta=config.risk_delta,
    )
    if config.json:
        print(json.dumps(finite(_as_json(found)), ensure_ascii=False, indent=1))
    else:
        _print_recommendations(found)
    if recommender.confidence is None:
        say(f"confidences are as the model states them, not calibrated: {recommender.uncalibrated}")


def report(config: ReportConfig) -> None:
    """Compare evaluated runs in one report."""
    from ugr_fast import report

    print(f"report: {report.write(config)}")


def demo(config: DemoConfig) -> None:
    """Run everything on MovieLens-100K."""
    from ugr_fast import demo

    demo.run(config)


def doctor(config: DoctorConfig) -> None:
    """Tell what is installed, and what is wrong with it."""
    from ugr_fast import doctor

    found = doctor.examine()
    print(json.dumps(dataclasses.asdict(found), indent=1) if config.json else doctor.text(found))
    if found.problems:
        raise ValueError("; ".join(found.problems))


COMMANDS: dict[str, tuple[type, Callable[[Any], None]]] = {
    "demo": (DemoConfig, demo),
    "prepare": (PrepareConfig, prepare),
    "migrate": (MigrateConfig, migrate),
    "sids": (SidsConfig, sids),
    "sft": (SftConfig, sft),
    "rl": (RlConfig, rl),
    "eval": (EvalConfig, evaluate),
    "recommend": (RecommendConfig, recommend),
    "report": (ReportConfig, report),
    "doctor": (DoctorConfig, doctor),
}


def main(args: Sequence[str] | None = None) -> None:
    """Run the command that `args` (by default the process's arguments) names.

    Exits with 2 after a one-line message when a file, a setting or a value is wrong, and with 130 when interrupted.
    """
    args = sys.argv[1:] if args is None else list(args)
    if args == ["--version"]:
        print(version("ugr-fast"))
        return
    command = _parse(args)
    try:
        with open(os.devnull, "w") as nowhere, nullcontext() if is_main_process() else redirect_stdout(nowhere):
            command()
    except (ValueError, TypeError, OSError, ImportError) as error:
        if os.environ.get("UGR_FAST_TRACEBACK"):
            raise
        message = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, ModuleNotFoundError) and (remedy := extras.install(error.name)):
            message += f"; {remedy}"
        print(f"ugr-fast: {message}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("ugr-fast: interrupted; repeat the command to go on from the last checkpoint", file=sys.stderr)
        sys.exit(130)


def _parse(args: Sequence[str]) -> Callable[[], None]:
    def subcommand(name: str) -> Any:
        config, function = COMMANDS[name]
        description = (config.__doc__ or "").strip()
        marked = Annotated[config, tyro.conf.arg(name="")]  # type: ignore[valid-type]

        def build(config: Any) -> Callable[[], None]:
            return partial(function, config)

        build.__annotations__["config"] = marked
        build.__doc__ = description
        return build

    commands = {name: subcommand(name) for name in COMMANDS}
    parsed: Callable[[], None] = tyro.extras.subcommand_cli_from_dict(
        commands, prog="ugr-fast", description=DESCRIPTION, args=args
    )
    return parsed


def _print_counts(found: dict[str, Any]) -> None:
    print(json.dumps(found, indent=1, ensure_ascii=False, default=str))


def _print_best(found: dict[str, Any]) -> None:
    shown = {key: value for key, value in found.items() if value is not None and not key.startswith("sid_")}
    print("best on valid: " + ", ".join(f"{key} {value:.4g}" for key, value in shown.items()))


def _as_json(found: Recommendations) -> dict[str, Any]:
    """The answer to the first history."""
    return {
        "abstained": bool(found.abstained[0]),
        "reason": found.reasons[0] or None,
        "first": float(found.first[0]),
        "promise": None if found.promise is None else dataclasses.asdict(found.promise),
        "items": [item._asdict() for item in found[0]],
    }


def _print_recommendations(found: Recommendations) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table("#", "title", "next with", "model says", "log-prob", "id")
    for number, item in enumerate(found[0], start=1):
        sure = "–" if item.calibrated is None else f"{item.calibrated:.1%}"
        table.add_row(str(number), item.title, sure, f"{item.confidence:.3f}", f"{item.score:.2f}", item.id)
    if found.promise is not None and found.promise.threshold is not None:
        rule = found.promise
        console.print(
            f"Of valid users, {rule.share:.0%} get an answer at risk {rule.max_risk}: {rule.risk:.1%} of their lists "
            f"lack the next item, at most {rule.upper_bound:.1%} with probability {1 - rule.delta:g}.",
            markup=False,
            soft_wrap=True,
        )
    if found.abstained[0]:
        console.print(f"No recommendation: {found.reasons[0]}.", markup=False, soft_wrap=True)
    else:
        console.print(table)
        if found.first[0] == found.first[0]:
            console.print(
                f"The first is next with probability {found.first[0]:.4g} (user level, what --min-confidence goes by); "
                "the column is of each item by itself (candidate level).",
                soft_wrap=True,
            )


if __name__ == "__main__":
    main()
