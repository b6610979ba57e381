"""What a confidence is used for: to re-rank, to reject users, to cut lists, and to promise a risk.

Every choice (the weight, the aggregate, the threshold) was made on valid rows; shown is what it comes to on the rows of
the evaluation, beside the controls that need no training: the beam's likelihood, random, and one length for everybody.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from ugr_fast.report.blocks import Block, gallery, heading, note, numbers, paragraph
from ugr_fast.report.comparison import Difference
from ugr_fast.report.figures import (
    MUTED,
    SOURCES,
    Picture,
    axes_of,
    colour_of,
    draw,
    legend,
    marker_of,
    plot_bands,
)
from ugr_fast.report.read import EvaluatedRun, is_number
from ugr_fast.report.tables import DASH, Rows, measured, number, percent

AGGREGATES = {
    "top": "{} of the first entry",
    "max": "highest {} of an entry",
    "mean": "mean {} of the list",
    "gap": "{} of the first entry above that of the second",
}


def section(runs: list[EvaluatedRun]) -> list[Block]:
    """Return the section on the three decisions."""
    found = runs[0].found["decisions"]
    return [
        heading("Decisions"),
        paragraph(
            f"Three uses of a confidence, at item level. Every choice was made on {found['chosen_on']} valid rows and "
            f"is measured here on {found['rows']} other rows. Shades, and ranges with values, are 95% intervals over "
            "users."
        ),
        heading("To re-rank", 3),
        numbers(rerank_table(runs), "Re-ranking"),
        note(
            "Lists in the order of exp(score) + λ · confidence; λ = 0 is the beam's order, the likelihood alone. Gain: "
            "the paired difference to λ = 0. A gain whose interval holds 0 is none that these rows can tell."
        ),
        *([gallery([rerank_picture(trained)])] if (trained := [run for run in runs if run.trained]) else []),
        heading("To reject users", 3),
        paragraph("Answer the users of which one is most sure, refuse the rest; higher is better."),
        gallery([reject_picture(run, key) for run in runs for key in ("ndcg@10", "hr@10")], "pairs"),
        heading("To cut lists", 3),
        paragraph(
            "Show the recommendations of which one is most sure, over all users, so that lists differ in length; "
            "higher is better. The control gives everybody the same length."
        ),
        gallery([cut_picture(run, key) for run in runs for key in ("precision", "recall")], "pairs"),
    ]


def rerank_table(runs: list[EvaluatedRun]) -> Rows:
    """Return what re-ranking by each source comes to, and whether that is a gain."""
    rows = [["model: re-ranked by", "λ chosen", "NDCG@10", "HR@10", "gain in NDCG@10", "in words"]]
    for run in runs:
        for source in ("confidence", "likelihood", "random"):
            found = run.found["decisions"]["rerank"].get(source)
            if found is None or (source == "confidence" and not run.trained):
                continue
            weight = found.get("weight")
            gain = Difference(*found["gain"]) if weight and "gain" in found else None
            rows.append(
                [
                    f"{run.label}: {source if source != 'likelihood' else 'likelihood alone'}",
                    f"{weight:g}" if is_number(weight) else DASH,
                    *(measured(*found[key]) for key in ("ndcg@10", "hr@10")),
                    gain.cell if gain else DASH,
                    gain.verdict if gain else "the order of the beam",
                ]
            )
    return rows


def rerank_picture(runs: list[EvaluatedRun]) -> Picture:
    """Draw NDCG@10 against the weight of the confidence, of runs that trained it, with the weight that was chosen."""
    title = "Re-ranking: NDCG@10 against λ"
    figure, axes = axes_of(title, "λ, weight of the confidence (not to scale)", "NDCG@10")
    weights = sorted({float(weight) for run in runs for weight in run.found["decisions"]["rerank"]["weights"]})
    for run in runs:
        for source in ("confidence", "random"):
            _plot_weights(axes, weights, run, source)
    axes.set_xticks(range(len(weights)), [re.sub(r"^0\.", ".", f"{weight:g}") for weight in weights])
    values = [value for run in runs for value in run.found["decisions"]["rerank"]["confidence"]["by_weight"]]
    room = 0.5 * max(max(values) - min(values), 0.04 * max(values)) or 0.01
    axes.set_ylim(min(values) - room, max(values) + room)
    legend(figure, axes)
    caption = (
        "On the rows measured here; the large mark is the λ that the valid rows chose. Random confidences are the "
        "control, and leave the frame where they do harm."
    )
    return draw("rerank", title, caption, figure)


def _plot_weights(axes: Any, weights: list[float], run: EvaluatedRun, source: str) -> None:
    """Draw a run's curve at the places that its own weights have among all."""
    own, reranked = source == "confidence", run.found["decisions"]["rerank"]
    found, places = reranked[source], [weights.index(float(weight)) for weight in reranked["weights"]]
    marker, colour = marker_of(run.number), colour_of(run.number) if own else MUTED
    values = np.asarray(found["by_weight"], np.float64)
    style = {"color": colour, "marker": marker, "ms": 3.5, "lw": 1.8 if own else 1.2}
    axes.plot(places, values, SOURCES[source], label=f"{run.label}: {source}", **style)
    if own and found["weight"] in reranked["weights"]:
        chosen = reranked["weights"].index(found["weight"])
        axes.plot([places[chosen]], [values[chosen]], marker, ms=9, color=colour)


def reject_picture(run: EvaluatedRun, key: str) -> Picture:
    """Draw HR@10 or NDCG@10 of the users answered, against the share answered."""
    title = f"{key.upper()} of those {run.label} answers"
    found = run.found["decisions"]["reject"]
    figure, axes = axes_of(title, "coverage (share of users answered)", key.upper())
    plot_bands(axes, found["coverage"], {source: found[source][key] for source in _drawn(run, "random")}, run.number)
    axes.set(xlim=(0, 1.02), ylim=(0, None))
    legend(figure, axes)
    sure = run.sources[0]
    aggregate = found[sure]["aggregate"]
    how = AGGREGATES.get(aggregate, aggregate + " {}").format(sure)
    caption = f"User level. How sure: {how}, chosen on valid rows."
    return draw(f"reject {key} {run.number} {run.label}", title, caption, figure)


def cut_picture(run: EvaluatedRun, key: str) -> Picture:
    """Draw precision or recall of the lists cut, against their mean length."""
    title = f"{key.capitalize()} of {run.label}'s cut lists"
    found = run.found["decisions"]["cut"]
    figure, axes = axes_of(title, "mean length of a list (items)", key)
    bands = {source: found[source][key] for source in _drawn(run, "fixed", "random")}
    plot_bands(axes, found["length"], bands, run.number)
    axes.set(xlim=(0, None), ylim=(0, None))
    legend(figure, axes)
    what = {"precision": "Share of what is shown that is right.", "recall": "Share of users shown their next item."}
    caption = f"{what[key]} Fixed: the same length for everybody."
    return draw(f"cut {key} {run.number} {run.label}", title, caption, figure)


def _drawn(run: EvaluatedRun, *controls: str) -> tuple[str, ...]:
    return (*run.sources, *controls)


def promises(runs: list[EvaluatedRun]) -> list[Block]:
    """Return the section on abstention with a guarantee."""
    return [
        heading("Promises"),
        paragraph(
            "Answer only where the risk may be promised. Risk is the share of those answered whose next item is not "
            "among the first k. A threshold is chosen so that, with probability at least 1 − δ over the valid rows, "
            "the risk on users like them is at most the one asked for; where no threshold passes the test, nobody is "
            "answered."
        ),
        numbers(promise_table(runs), "Abstention with a guarantee"),
        note(
            "The guarantee speaks of users like those of the valid rows, each with one row. Those measured here may "
            "differ, since they came later: so the realised risk stands beside it, and may be above. Each line is a "
            "promise of its own, which fails with probability δ at most; of all of them together nothing is promised."
        ),
    ]


def promise_table(runs: list[EvaluatedRun]) -> Rows:
    """Return what was asked, what the valid rows allow, and what it came to on these rows.

    Risks that cannot be promised are one row, that of the highest.
    """
    rows = [
        ["model", "k", "risk asked", "δ", "answered, valid", "risk, valid", "answered", "realised risk", "in words"]
    ]
    for run in runs:
        refused: dict[int, dict[str, Any]] = {}  # of each k, the highest risk that cannot be promised
        for made in run.found["promises"]:
            if made["reason"] is not None:
                refused[made["k"]] = max(made, refused.get(made["k"], made), key=lambda made: float(made["max_risk"]))
        for made in run.found["promises"]:
            if made["reason"] is None:
                rows.append(_promise_row(run, made, f"{made['max_risk']:g}"))
            elif made is refused[made["k"]]:
                rows.append(_promise_row(run, made, f"{made['max_risk']:g} or less"))
    return rows


def _promise_row(run: EvaluatedRun, made: Mapping[str, Any], asked: str) -> list[str]:
    tested, realised = made["calibration"], made["realised"]
    return [
        run.label,
        str(made["k"]),
        asked,
        f"{made['delta']:g}",
        percent(tested["share"]),
        _tested_risk(tested),
        percent(realised["share"]),
        number(realised["risk"], 3),
        _kept(made),
    ]


def _tested_risk(tested: Mapping[str, Any]) -> str:
    bound = tested.get("upper_bound")
    return number(tested["risk"], 3) + (f" (at most {number(bound, 3)})" if is_number(bound) else "")


def _kept(made: Mapping[str, Any]) -> str:
    if made["reason"] is not None:
        return f"nobody answered ({made['reason']})"
    if not is_number(made["realised"]["risk"]):
        return "nobody here is above the threshold"
    return "within what was asked" if made["realised"]["risk"] <= made["max_risk"] else "above what was asked"


def headline(run: EvaluatedRun) -> str:
    """Return the boldest promise of a run that answers anybody."""
    answered = [made for made in run.found["promises"] if made["reason"] is None]
    if not answered:
        return f"{run.label}: no risk that was asked for can be promised, so nobody is answered."
    made = min(answered, key=lambda made: (made["max_risk"], -made["realised"]["share"]))
    return (
        f"{run.label}, asked that at most {100 * made['max_risk']:g}% of those answered miss their next item among the "
        f"first {made['k']}: answers {percent(made['realised']['share'])} of the users, of whom "
        f"{percent(made['realised']['risk'])} miss it, {_kept(made)}."
    )
