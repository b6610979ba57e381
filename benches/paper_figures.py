"""Figures of docs/results.md: curves along training, gains with their intervals, what a confidence is good for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from paper import readout_of
from paper_numbers import NAMES, curves, difference, student
from paper_records import Runs
from ugr_fast.decisions import Source
from ugr_fast.report.figures import MUTED, SOURCES, STYLE, Picture, axes_of, colour_of, draw, legend

CURVES = ("sft-continued", "grpo", "ranking", "ugr")
ANSWERED: tuple[tuple[str, Source], ...] = (
    ("ugr", "confidence"),
    ("sft", "likelihood"),
    ("sft-readout", "confidence"),
    ("sft-evidence", "confidence"),
)


def draw_all(runs: Runs, name: str) -> Iterator[Picture]:
    """Draw what the runs of a set allow."""
    import matplotlib

    kinds = {
        "training": (training, any(_shown(runs, arm) for arm in CURVES)),
        "gains": (gains, "sft" in runs and len(runs) > 1),
        "answered": (answered, any(arm in runs for arm, _ in ANSWERED)),
    }
    for kind, (make, possible) in kinds.items():
        if possible:
            with matplotlib.rc_context(STYLE):
                yield draw(f"paper-{name}-{kind}", name, "", make(runs))


def _shown(runs: Runs, arm: str) -> bool:
    return arm in runs and all(len(curve) > 1 and 0 in curve for curve in curves(runs, arm))


def training(runs: Runs) -> Any:
    """Draw how validation NDCG@10 changes over updates; bands are 95% intervals over seeds, which start apart."""
    figure, axes = axes_of("", "update", "valid NDCG@10, change since SFT", (6.4, 3.6))
    for number, arm in enumerate(CURVES):
        if not _shown(runs, arm):
            continue
        of = curves(runs, arm)
        length = min(map(len, of))  # an epoch of sft-continued is a few updates longer or shorter, by seed
        steps = np.mean([[*curve][:length] for curve in of], axis=0)
        changes = np.array([[*curve.values()][:length] for curve in of]) - [[curve[0]] for curve in of]
        means, halves = np.array([student(column.tolist()) for column in changes.T]).T
        axes.plot(steps, means, color=colour_of(number), label=NAMES[arm])
        axes.fill_between(steps, means - halves, means + halves, color=colour_of(number), alpha=0.12, linewidth=0)
    legend(figure, axes)
    return figure


def gains(runs: Runs) -> Any:
    """Draw each arm's difference to SFT in test NDCG@10; thick over seeds, thin over users."""
    arms = [arm for arm in runs if arm != "sft" and runs[arm].keys() & runs["sft"].keys()][::-1]
    figure, axes = axes_of("", "test NDCG@10, difference to SFT", "", (6.4, 0.6 + 0.27 * len(arms)))
    axes.axvline(0, color=MUTED, linewidth=1)
    for place, arm in enumerate(arms):
        mean, users, seeds = difference(runs, arm, "sft")
        colour = colour_of(1 if readout_of(arm) else 0)
        axes.plot(users, [place, place], color=colour, linewidth=1)
        axes.plot(seeds, [place, place], color=colour, linewidth=4, alpha=0.5, solid_capstyle="butt")
        axes.plot(mean, place, "o", color=colour, markersize=4)
    axes.set_yticks(range(len(arms)), [NAMES[arm] for arm in arms])
    axes.locator_params(axis="x", nbins=5)
    return figure


def answered(runs: Runs) -> Any:
    """Draw NDCG@10 of the users answered by the share of them, the least certain rejected; means over seeds."""
    figure, axes = axes_of("", "share of users answered", "NDCG@10 of those answered", (6.4, 3.6))
    for number, (arm, source) in enumerate(ANSWERED):
        if arm in runs:
            found = [run.test["decisions"]["reject"] for run in runs[arm].values()]
            values = np.mean([each[source]["ndcg@10"]["value"] for each in found], axis=0)
            label = f"{NAMES[arm]}, {source}"
            axes.plot(found[0]["coverage"], values, SOURCES[source], color=colour_of(number), label=label)
    legend(figure, axes)
    return figure
