"""What the confidence is worth: calibration before and after recalibration, hits against misses, risk and coverage.

The unit is always said. At *user level* the confidence of the top recommendation stands against whether that is the
next item. At *candidate level* all K items count, nearly all of them misses, so that a constant near 0 looks
calibrated: the Brier skill and AUROC stand beside each ECE.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ugr_fast.report.blocks import Block, gallery, heading, note, numbers, paragraph
from ugr_fast.report.figures import (
    INK,
    MUTED,
    PAPER,
    SIZE,
    SMALL,
    SOURCES,
    Picture,
    axes_of,
    colour_of,
    draw,
    legend,
)
from ugr_fast.report.read import EvaluatedRun
from ugr_fast.report.tables import MARK, Rows, measured, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEVELS = {"user": "user level: the top recommendation", "candidate": "candidate level: every item listed"}
FEWEST_USERS = 20  # a risk over fewer users is noise, and would set the scale of the plot


def section(runs: list[EvaluatedRun]) -> list[Block]:
    """Return the section on confidence."""
    untrained = [] if all(run.trained for run in runs) else [note(f"{MARK} Untrained confidence tokens.")]
    return [
        heading("Confidence"),
        paragraph(
            "A confidence is calibrated when recommendations of confidence c are right in a share c of cases: dots on "
            "the diagonal. Below it the model is over-confident, above it too modest. Recalibration, fitted on valid "
            "rows, mends the level; it cannot mend the order."
        ),
        heading("User level", 3),
        numbers(confidence_table(runs, "user"), "Confidence at user level", bold=True),
        *untrained,
        *_sources(runs),
        note(
            "Unit: one user, whose top recommendation is right when it is the next item. With an ECE stands its "
            "95% interval. Brier skill is 0 for always saying the base rate, and negative for worse. AURC is the mean "
            "error rate over all coverages; lower is better. The likelihood, the beam's exp(score), is the control "
            "that needs no training."
        ),
        gallery([reliability_picture(run, "user") for run in runs]),
        gallery([histogram_picture(run) for run in runs]),
        heading("Candidate level", 3),
        numbers(confidence_table(runs, "candidate"), "Confidence at candidate level", bold=True),
        *untrained,
        note(
            "Unit: one item of one list. Nearly all of them are misses, so a constant near 0 looks calibrated and says "
            "nothing: read the Brier skill and AUROC beside each ECE."
        ),
        gallery([reliability_picture(run, "candidate") for run in runs], "small"),
        heading("Risk and coverage", 3),
        paragraph(
            "Reject the least confident users, recommend to the rest: a useful confidence leaves fewer errors the "
            "fewer users are kept. Only confidences that were trained are drawn."
        ),
        gallery([risk_picture(run) for run in runs]),
    ]


def _sources(runs: list[EvaluatedRun]) -> list[Block]:
    """Say whose confidence is a readout, where any is."""
    read = ", ".join(run.label for run in runs if run.readout)
    rest = ", ".join(run.label for run in runs if not run.readout)
    told = f"Confidence by readout, fitted to valid rows: {read}."
    return [note(told + (f" By the two confidence tokens: {rest}." if rest else ""))] if read else []


def headline(run: EvaluatedRun) -> str:
    """Return how well a run knows when it is right."""
    before, after = (run.found[run.signal]["user"][when] for when in ("before", "after"))
    others = [source for source in run.sources if source != run.signal]
    beside = "".join(f" ({other}: {number(run.found[other]['user']['before'].get('auroc'), 3)})" for other in others)
    return (
        f"{run.label}, {run.signal} of the top recommendation: AUROC {number(before.get('auroc'), 3)}{beside}, ECE "
        f"{number(before.get('ece'), 3)}, after recalibration {number(after.get('ece'), 3)}."
    )


def confidence_table(runs: list[EvaluatedRun], level: str) -> Rows:
    """Return what each run's confidence is worth at a level, and beside it the beam's likelihood."""
    aurc = ["AURC"] if level == "user" else []
    rows = [["model: source", "ECE", "ECE recalibrated", "Brier skill", "recalibrated", "AUROC", *aurc, "base rate"]]
    for run in runs:
        for source in ("confidence", "likelihood"):
            mark = MARK if source == "confidence" and not run.trained else ""
            before, after = (run.found[source][level][when] for when in ("before", "after"))
            rows.append(
                [
                    f"{run.label}: {source}{mark}",
                    *(measured(at.get("ece"), at.get("ece_low"), at.get("ece_high"), 3) for at in (before, after)),
                    *(number(at.get("brier_skill"), 3) for at in (before, after)),
                    *(number(before.get(key), 3) for key in ["auroc", *(["aurc"] if aurc else []), "base_rate"]),
                ]
            )
    return rows


def reliability_picture(run: EvaluatedRun, level: str) -> Picture:
    """Draw how often recommendations of like confidence are right, before and after recalibration."""
    title = f"Reliability of {run.label}" if level == "user" else f"{run.label}, every item"
    source = run.sources[0]
    what = f"{source} of the top recommendation" if level == "user" else f"{source} of an item"
    figure, axes = axes_of(title, what, "share that is right", SIZE if level == "user" else SMALL)
    axes.plot([0, 1], [0, 1], "--", lw=1, color=MUTED, label="calibrated")
    found = run.found[source][level]["reliability"]
    ends = [_plot_bins(axes, found[when], run.number, when) for when in ("before", "after")]
    right, top = (1.06 * max(end) or 1.0 for end in zip(*ends, strict=True))
    axes.set(xlim=(-0.03 * right, right), ylim=(-0.03 * top, top))
    legend(figure, axes)
    caption = (
        f"{LEVELS[level].capitalize()}. Bins of equal numbers, with 95% Wilson intervals; hollow before, filled after "
        "recalibration."
    )
    return draw(f"reliability {level} {run.number} {run.label}", title, caption, figure)


def _plot_bins(axes: Axes, bins: dict[str, Any], run: int, when: str) -> tuple[float, float]:
    """Plot the bins of a reliability diagram and return how far they reach, right and up."""
    ink, face, marker = (MUTED, PAPER, "s") if when == "before" else (colour_of(run), colour_of(run), "o")
    drawn = ("confidence", "accuracy", "accuracy_low", "accuracy_high")
    said, right, low, high = (np.asarray(bins[name], np.float64) for name in drawn)
    bars = np.abs([right - low, high - right])
    axes.errorbar(said, right, bars, fmt=marker, ms=5, mfc=face, lw=1.1, color=ink, label=when)
    return float(said.max(initial=0)), float(high.max(initial=0))


def histogram_picture(run: EvaluatedRun) -> Picture:
    """Draw which values the signal takes where the top recommendation is right, and where it is wrong."""
    title, source = f"Hits and misses of {run.label}", run.sources[0]
    found = run.found[source]["user"]["histogram"]
    edges, hits, misses = (np.asarray(found[key], np.float64) for key in ("edges", "hits", "misses"))
    figure, axes = axes_of(title, f"{source} of the top recommendation", "share of the group")
    for name, counts, fill in (("misses", misses, False), ("hits", hits, True)):
        ink = colour_of(run.number) if fill else INK
        share = counts / max(counts.sum(), 1)
        axes.stairs(share, edges, fill=fill, color=ink, alpha=0.45 if fill else 1, lw=1.3, label=name)
    used = np.flatnonzero(hits + misses)
    if len(used):
        axes.set_xlim(edges[used[0]], edges[used[-1] + 1])
    axes.set_ylim(0, None)
    axes.locator_params(axis="x", nbins=6)
    legend(figure, axes)
    caption = f"User level, before recalibration. Filled: {hits.sum():.0f} hits; line: {misses.sum():.0f} misses."
    return draw(f"histogram {run.number} {run.label}", title, caption, figure)


def risk_picture(run: EvaluatedRun) -> Picture:
    """Draw the share of wrong top recommendations among the users kept, against the share kept."""
    title = f"Risk and coverage of {run.label}"
    figure, axes = axes_of(title, "coverage (share of users kept)", "risk (1 − HR@1)")
    base, rows = (float(run.found[run.signal]["user"]["before"][key]) for key in ("base_rate", "n"))
    drawn = [1 - base]
    for source in run.sources:
        curve = run.found[source]["user"]["risk_coverage"]
        coverage, risk = (np.asarray(curve[key], np.float64) for key in ("coverage", "risk"))
        kept = coverage * rows >= min(FEWEST_USERS, rows)
        axes.plot(coverage[kept], risk[kept], SOURCES[source], color=colour_of(run.number), label=source)
        drawn.extend(risk[kept])
    axes.axhline(1 - base, ls="--", lw=1.2, color=MUTED, label="random")
    coverage = np.linspace(0.005, 1, 200)
    axes.plot(coverage, np.maximum(0, 1 - base / coverage), "-.", lw=1.2, color=MUTED, label="oracle")
    room = 0.01 + 0.1 * (max(drawn) - min(drawn))  # the oracle runs out of the frame
    axes.set(xlim=(0, 1), ylim=(min(drawn) - room, max(drawn) + room))
    legend(figure, axes)
    caption = (
        f"User level; lower is better. The curves start at {FEWEST_USERS} users; the oracle keeps all hits before any "
        "miss."
    )
    return draw(f"risk {run.number} {run.label}", title, caption, figure)
