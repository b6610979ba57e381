"""The command line: one subcommand per settings dataclass, and one-line errors with exit code 2."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ugr_fast import extras
from ugr_fast.configs import (
    ConfideConfig,
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

The usual order: prepare -> sids -> sft -> rl -> confide -> eval -> report, then recommend; `demo` does it all on
MovieLens-100K, and `migrate` stands for the first two where MiniOneRec or UGR has done them; `doctor` tells what is
installed.
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


def confide(config: ConfideConfig) -> None:
    """Fit how sure a run is to rows that training has not seen."""
    from ugr_fast import confide

    _print_counts(confide.confide(config))


def evaluate(config: EvalConfig) -> None:
    """Rank the whole catalogue for every row of a split."""
    from ugr_fast import evaluate

    _print_evaluation(evaluate.evaluate(config))
    print(
        f"Written: {config.run / f'eval-{config.split}.json'}, with all other numbers\n"
        f"Next:    ugr-fast report {config.run}{' --split valid' * (config.split == 'valid')}\n"
        f"         ugr-fast recommend --run {config.run} --history '...'"
    )


def recommend(config: RecommendConfig) -> None:
    """Recommend items after a history."""
    from ugr_fast import data

    check(config)
    titles, ids = data.load_names(config.run)
    history = [data.find_item(name, titles, ids) for name in config.history.split(";") if name.strip()]
    if not history:
        raise ValueError(f"`history` must name at least one item, got {config.history!r}")
    from ugr_fast.recommend import Recommender  # with torch, which takes seconds that a misspelt title need not

    recommender = Recommender.load(config.run, config.device)
    found = recommender(
        [history],
        k=config.k,
        num_beams=config.num_beams or None,
        hide_seen=config.hide_seen,
        rerank=config.rerank,
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
    "confide": (ConfideConfig, confide),
    "eval": (EvalConfig, evaluate),
    "recommend": (RecommendConfig, recommend),
    "report": (ReportConfig, report),
    "doctor": (DoctorConfig, doctor),
}


def main(args: Sequence[str] | None = None) -> None:
    """Run the command that `args` (by default the process's arguments) names.

    Exits with 2 after a one-line message when a file, a setting or a value is wrong, with 130 when interrupted, and
    with 1, silently, when nobody reads on.
    """
    with _while_somebody_reads():
        _main(sys.argv[1:] if args is None else list(args))


def _main(args: list[str]) -> None:
    if args == ["--version"]:
        print(version("ugr-fast"))
        return
    try:
        command = _parse(args)
        with open(os.devnull, "w") as nowhere, nullcontext() if is_main_process() else redirect_stdout(nowhere):
            command()
    except BrokenPipeError:
        raise
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


@contextmanager
def _while_somebody_reads() -> Iterator[None]:
    """End without a word where the reader of a pipe has gone: `ugr-fast rl --help | head`."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left in the buffer goes nowhere
        sys.exit(1)


def _parse(args: Sequence[str]) -> Callable[[], None]:
    """Return the command with its settings.

    Raises:
        ValueError: the arguments are wrong; in a line what tyro says in a box.
    """
    try:
        with redirect_stderr(io.StringIO()) as box:
            return _parse_with_tyro(args)
    except SystemExit as stop:
        if not stop.code:
            raise
        command = [*args[:1]] if args and args[0] in COMMANDS else []
        raise ValueError(f"{_line_of(box.getvalue())}; see: {' '.join(['ugr-fast', *command, '--help'])}") from None


def _line_of(box: str) -> str:
    r"""Return what is drawn in a box as one line: a title, then parts that rules divide, then where to get help.

    Example:
        >>> _line_of("╭─ Title ─────╮\n│ Missing:      │\n│     --run     │\n│         A run.│\n╰───────────────╯")
        'Missing: --run'
    """
    lines = [line.strip("│").rstrip() for line in re.sub(r"\x1b\[[\d;]*m", "", box).splitlines()[1:-1]]
    shown = [line for line in lines if not line.startswith(8 * " ")]  # no more than the names of options
    parts = [" ".join(part.split()).rstrip(".") for part in re.split(r"\n *[─-]+\n", "\n".join(["", *shown]))]
    return "; ".join(part for part in parts if part and not part.startswith(("For full help", "Argument help")))


def _parse_with_tyro(args: Sequence[str]) -> Callable[[], None]:
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


def _print_evaluation(found: dict[str, Any]) -> None:
    """Print what eval-SPLIT.json says of accuracy and of confidence, with 95% intervals."""
    from ugr_fast.report.comparison import RANKING
    from ugr_fast.report.tables import measured, number

    ranking, bands = found["ranking"], found["intervals"]
    names = {"popularity": "popular", "markov": "last-item\nMarkov", "cosine_markov": "cosine +\nMarkov"}
    simple = {names[key]: values for key, values in found["baselines"].items()}
    rows = [["", "item level", "SID level", *simple]]
    for name in RANKING:
        keys = (name.lower(), f"sid_{name.lower()}")
        cells = (measured(ranking[key], *bands[key]) for key in keys)
        rows.append([name, *cells, *(number(values[name.lower()]) for values in simple.values())])
    _print_table(f"Accuracy: {found['num_rows']} {found['split']} rows, beam width {found['num_beams']}", rows)
    rows = [["that the first is the next", "ECE", "ECE recalibrated", "AUROC"]]
    for source in ("confidence", "likelihood"):
        untrained = source == "confidence" and not found["trained"]
        before, after = (found[source]["user"][stage] for stage in ("before", "after"))
        eces = [measured(at["ece"], at["ece_low"], at["ece_high"], 3) for at in (before, after)]
        rows.append([source + " (untrained)" * untrained, *eces, number(before["auroc"], 3)])
    _print_table(f"Confidence: {found['decisions']['rows']} {found['split']} rows, goes by {found['signal']}", rows)


def _print_table(title: str, rows: list[list[str]]) -> None:
    """Print rows of cells, header first, narrow enough for a terminal of 80 columns."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    narrow = {"box": SIMPLE_HEAD, "show_edge": False, "pad_edge": False, "collapse_padding": True}
    table = Table(title=title, title_justify="left", **narrow)  # type: ignore[arg-type]
    for column, heading in enumerate(rows[0]):
        table.add_column(heading, no_wrap=True, justify="right" if column else "left")
    for row in rows[1:]:
        table.add_row(*(re.sub(r"\b0\.", ".", cell) for cell in row))
    Console(highlight=False).print(table, "")


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
                f"The first is the next one with probability {found.first[0]:.4g}, what --min-confidence goes by.",
                soft_wrap=True,
            )


if __name__ == "__main__":
    main()
