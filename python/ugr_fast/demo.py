"""The main job on MovieLens-100K: events → semantic IDs → fine-tuning → UGR → readout → evaluation → report.

Each step is a command of its own with the settings below; a step whose result is there is not done again, so an
interrupted demo goes on where it stopped.
"""

from __future__ import annotations

from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ugr_fast import confide, data, evaluate, report, rl, sft, sids
from ugr_fast.configs import (
    ConfideConfig,
    DemoConfig,
    EvalConfig,
    PrepareConfig,
    ReportConfig,
    RlConfig,
    SftConfig,
    SidsConfig,
    check,
)
from ugr_fast.progress import say

NUM_BEAMS = 20


def run(config: DemoConfig) -> Path:
    """Run the demo and return the folder of its report.

    Raises:
        ImportError: MovieLens-100K is not installed; the message says how to get it.
    """
    check(config)
    out = config.out
    _prepare(config, out / "data")
    _sids(config, out / "data", out / "sids")
    say("3/7 supervised fine-tuning on whole user sequences")
    sft.train(_sft(config))
    say("4/7 reinforcement learning with UGR")
    rl.train(_rl(config))
    say("5/7 confidence: a readout of the states, fitted to half of the valid users")
    for name in ("sft", "rl"):
        _confide(config, out / name)
    say("6/7 evaluation: full ranking of the test users by beam search")
    for name in ("sft", "rl"):
        evaluate.evaluate(EvalConfig(run=out / name, data=out / "data", num_beams=NUM_BEAMS, threads=config.threads))
    say("7/7 report")
    settings = ReportConfig(runs=(out / "sft", out / "rl"), out=out / "report")
    report.write(settings)
    _print_table(report.table([*settings.runs], settings.split))
    Console().print(
        f"Report: {settings.out / 'report.html'} (and report.md beside it)\n"
        f"Next:   ugr-fast recommend --run {out / 'rl'} --history 'Star Wars (1977); Alien (1979)'",
        soft_wrap=True,
        highlight=False,
    )
    return settings.out


def _prepare(config: DemoConfig, out: Path) -> None:
    if (out / "meta.json").exists():
        return
    say("1/7 MovieLens-100K: GroupLens data for research use, read from the recbole package")
    events, items = data.movielens()
    data.prepare(
        PrepareConfig(
            events=events,
            out=out,
            user="user_id",
            item="item_id",
            time="timestamp",
            items=items,
            items_key="item_id",
            items_title="{movie_title} ({release_year})",
            items_text=("class",),
        )
    )


def _sids(config: DemoConfig, folder: Path, out: Path) -> None:
    if (out / "meta.json").exists():
        return
    say("2/7 semantic IDs: residual k-means on the co-occurrences of the training split")
    sids.build(SidsConfig(data=folder, out=out, source="cooccurrence", codes=64, seed=config.seed))


def _sft(config: DemoConfig) -> SftConfig:
    return SftConfig(
        data=config.out / "data",
        sids=config.out / "sids",
        out=config.out / "sft",
        hidden=128,
        dropout=0.2,
        epochs=1 if config.quick else 5,
        eval_every=1,
        valid_rows=100 if config.quick else 0,
        seed=config.seed,
        threads=config.threads,
    )


def _rl(config: DemoConfig) -> RlConfig:
    return RlConfig(
        run=config.out / "sft",
        data=config.out / "data",
        out=config.out / "rl",
        updates=10 if config.quick else 300,
        eval_every=10 if config.quick else 100,
        valid_rows=100 if config.quick else 0,
        confidence="brier",  # one that can be read as a probability; the released objective only orders
        seed=config.seed,
        threads=config.threads,
    )


def _confide(config: DemoConfig, run: Path) -> None:
    """Fit a readout, or say why there is none: a quick run may find too little to fit it to."""
    try:
        confide.confide(ConfideConfig(run=run, data=config.out / "data", num_beams=NUM_BEAMS, threads=config.threads))
    except ValueError as error:
        say(f"{run.name}: its confidence stays that of the two tokens: {error}")


def _print_table(rows: list[list[str]]) -> None:
    """Print the report's comparison, with names short enough for a terminal of 80 columns."""
    names = {"sft": "SFT", "rl": "UGR"}
    table = Table(
        title=f"MovieLens-100K, test users, beam width {NUM_BEAMS}",
        box=SIMPLE_HEAD,
        padding=(0, 1),
        pad_edge=False,
        collapse_padding=True,
    )
    for heading in ["", *rows[0][1:]]:
        table.add_column(
            heading.replace("HR@10 kept half", "kept\nHR@10"), no_wrap=True, justify="right" if heading else "left"
        )
    for name, *cells in rows[1:]:
        table.add_row(names.get(name.split(" ")[0], name), *(cell.removeprefix("0") for cell in cells))
    Console().print(table)
    if any("†" in cell for row in rows for cell in row):
        Console().print(report.FOOTNOTE, highlight=False)
