"""How good the recommendations are: runs beside simple baselines and beside each other, and what they reach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ugr_fast.decisions import Bootstrap, Ints
from ugr_fast.report.blocks import Block, heading, note, numbers
from ugr_fast.report.read import EvaluatedRun, Floats, Split, read_runs
from ugr_fast.report.tables import DASH, MARK, Rows, gained, measured, number, percent

FOOTNOTE = f"{MARK} By the beam's likelihood, exp(score): the confidence is untrained, or told less on valid rows."
BASELINES = {"popularity": "popularity", "markov": "last-item Markov", "cosine_markov": "cosine + Markov"}
RANKING = ("HR@1", "HR@5", "HR@10", "NDCG@5", "NDCG@10")
NO_BAND = (None, None)
NOT_TOLD = "no difference can be told"
FEWEST = 10  # of 9 rows that differ, all but one one way, a sign test is not sure either


class Difference(NamedTuple):
    """The mean difference between two runs on the same users, and its 95% interval."""

    value: float
    low: float
    high: float
    few: bool = False
    """Fewer than `FEWEST` rows differ: resampling cannot tell how far chance alone would take so few."""

    @property
    def verdict(self) -> str:
        """What may be said of it: nothing where the interval holds 0, or too few rows differ."""
        if self.few or self.low <= 0 <= self.high:
            return NOT_TOLD
        return "higher" if self.value > 0 else "lower"

    @property
    def cell(self) -> str:
        """The numbers as a cell of a table."""
        return gained(*self[:3])


def difference(ours: Floats, theirs: Floats, user: Ints | None = None) -> Difference:
    """Return the mean of the paired differences with its bootstrap interval over users.

    Args:
        ours: (N,) a metric of each row.
        theirs: (N,) the same metric of the same rows, by the run to compare with.
        user: (N,) whose each row is; None: each is of a user of its own.

    Returns:
        The mean of ours - theirs, and the ends of its 95% interval.

    Example:
        >>> import numpy as np
        >>> difference(np.array([1.0, 1.0, 0.0, 1.0]), np.array([0.0, 0.0, 0.0, 1.0]))
        Difference(value=0.5, low=0.0, high=1.0, few=True)
    """
    users = np.arange(len(ours)) if user is None else user
    apart = np.count_nonzero(ours != theirs)
    value, low, high = Bootstrap(users).means((ours - theirs)[None])[0]
    return Difference(value, low, high, bool(apart < FEWEST))


def table(runs: Sequence[Path], split: Split = "test") -> Rows:
    """Return the comparison table: the simple baselines, then every run.

    Args:
        runs: run directories, evaluated on the same rows.
        split: which evaluation to show.

    Returns:
        Rows of cells, the header first; a missing value is an en dash. HR and NDCG are at item level; ECE, AUROC and
        the last column are those of the signal that the run goes by, marked where that is the likelihood: `FOOTNOTE`.

    Raises:
        FileNotFoundError: a folder is no run, or was not evaluated.
        ValueError: runs that were evaluated on different rows, or by an older version.
    """
    return comparison_table(read_runs(runs, split), intervals=False)


def comparison_table(runs: list[EvaluatedRun], *, intervals: bool = True) -> Rows:
    """Return `table` of runs already read, with the 95% intervals in brackets."""
    widths = {run.found["num_beams"] for run in runs}
    same = f" (beam width {min(widths)})" if len(widths) == 1 else ""
    rows = [[f"model{same}", *RANKING, "ECE", "AUROC", "HR@10 kept half"]]
    for key, name in BASELINES.items():
        values = runs[0].found["baselines"].get(key)
        if values is not None:
            rows.append([name, *_ranking_cells(values, {}), DASH, DASH, DASH])
    for run in runs:
        bands = run.found["intervals"] if intervals else {}
        name = run.name if same else f"{run.name}, beam width {run.found['num_beams']}"
        rows.append([name, *_ranking_cells(run.found["ranking"], bands), *_confidence_cells(run, intervals)])
    return rows


def _ranking_cells(values: Mapping[str, Any], bands: Mapping[str, Any], prefix: str = "") -> list[str]:
    keys = [prefix + column.lower() for column in RANKING]
    return [measured(values.get(key), *bands.get(key, NO_BAND)) for key in keys]


def _confidence_cells(run: EvaluatedRun, intervals: bool) -> list[str]:
    level = run.found[run.signal]["user"]["before"]
    half = run.kept_half(run.signal, "hr@10")
    low, high = (level.get("ece_low"), level.get("ece_high")) if intervals else NO_BAND
    cells = [
        measured(level.get("ece"), low, high, 3),
        number(level.get("auroc"), 3),
        measured(*half) if intervals else number(half[0]),
    ]
    return cells if run.signal == "confidence" else [_marked(cell) for cell in cells]


def _marked(cell: str) -> str:
    value, gap, band = cell.partition(" ")
    return cell if cell == DASH else f"{value}{MARK}{gap}{band}"


def paired_table(runs: list[EvaluatedRun]) -> Rows:
    """Return how every other run differs from the first on the same users, and what that allows to say."""
    first, *others = runs
    rows = [[f"difference to {first.label}", "NDCG@10", "HR@10", "in words"]]
    for run in others:
        ndcg = difference(run.ndcg10, first.ndcg10, run.users)
        hit = difference(run.hit10, first.hit10, run.users)
        if ndcg.verdict == hit.verdict == NOT_TOLD:
            words = NOT_TOLD
        else:
            words = f"NDCG@10: {ndcg.verdict}; HR@10: {hit.verdict}"
        rows.append([run.label, ndcg.cell, hit.cell, words])
    return rows


def reach_table(runs: list[EvaluatedRun]) -> Rows:
    """Return how much of the catalogue anybody is shown, and how popular it is."""
    named = [(name, runs[0].found["baselines"].get(key)) for key, name in BASELINES.items()]
    named += [(run.label, run.found["reach"]) for run in runs]
    rows = [["model, first ten of each user", "catalogue coverage", "mean training count"]]
    return rows + [
        [name, percent(found.get("coverage@10")), number(found.get("popularity@10"), 1)]
        for name, found in named
        if found
    ]


def sid_table(runs: list[EvaluatedRun]) -> Rows:
    """Return HR and NDCG at the level of semantic IDs: any item with the target's semantic ID is a hit."""
    rows = [["model, semantic-ID level", *RANKING]]
    return rows + [
        [run.label, *_ranking_cells(run.found["ranking"], run.found["intervals"], prefix="sid_")] for run in runs
    ]


def best_of(runs: list[EvaluatedRun]) -> EvaluatedRun:
    """Return the run of the highest NDCG@10, the first of equals."""
    return max(runs, key=_score)


def _score(run: EvaluatedRun) -> float:
    return float(run.found["ranking"].get("ndcg@10") or 0)


def headline(runs: list[EvaluatedRun]) -> list[str]:
    """Return the most important findings: who is first, and whether that is more than chance."""
    scores = [_score(run) for run in runs]
    simple = {key: float(values.get("ndcg@10") or 0) for key, values in runs[0].found["baselines"].items()}
    strongest = max(simple, key=lambda key: simple[key], default="")
    name = BASELINES.get(strongest, strongest)
    baseline = f"; strongest simple baseline: {name}, {simple[strongest]:.4f}" if simple else ""
    texts = [f"Highest NDCG@10: {best_of(runs).label}, {max(scores):.4f}{baseline}."]
    below = [run.label for run, score in zip(runs, scores, strict=True) if score <= simple.get(strongest, -1)]
    start = [run.label for run in runs if run.at_start]
    if below:
        texts.append(f"Not above that baseline, so not working yet: {', '.join(below)}.")
    if start:
        texts.append(f"Evaluated at update 0, the best on valid, so the same model as before: {', '.join(start)}.")
    return texts + _compared(runs)


def _compared(runs: list[EvaluatedRun]) -> list[str]:
    first = runs[0]
    found = {run.label: difference(run.ndcg10, first.ndcg10, run.users) for run in runs[1:]}
    told = [
        f"{label} against {first.label}, same users: NDCG@10 {each.verdict}, {each.cell}."
        for label, each in found.items()
        if each.verdict != NOT_TOLD
    ]
    alike = ", ".join(f"{label} {each.cell}" for label, each in found.items() if each.verdict == NOT_TOLD)
    return [*told, f"No difference in NDCG@10 to {first.label} can be told on these users: {alike}."] if alike else told


def section(runs: list[EvaluatedRun], split: Split) -> list[Block]:
    """Return the section on accuracy and reach."""
    footnote = [] if all(run.signal == "confidence" for run in runs) else [note(FOOTNOTE)]
    return [
        heading("Comparison"),
        numbers(comparison_table(runs), "Comparison of models", bold=True),
        *footnote,
        note(_guide(runs, split)),
        *(_paired(runs) if len(runs) > 1 else []),
        heading("What is recommended", 3),
        numbers(reach_table(runs), "Catalogue coverage and popularity"),
        note(
            "Catalogue coverage: the share of all items that is among the first ten of anybody. Mean training count: "
            "how often what is recommended was interacted with in the training split; higher is more popular."
        ),
        heading("At the level of semantic IDs", 3),
        numbers(sid_table(runs), "Accuracy at semantic-ID level", bold=True),
        note("Differs from item level only where several items share a semantic ID."),
    ]


def _paired(runs: list[EvaluatedRun]) -> list[Block]:
    return [
        heading("Differences on the same users", 3),
        numbers(paired_table(runs), "Paired differences"),
        note(
            f"Mean over the rows of the difference to {runs[0].label}. With it stands its 95% interval, a paired "
            f"bootstrap over users. Where the interval holds 0, or fewer than {FEWEST} rows differ, these users do not "
            "tell the two apart. How much another seed of training would change is not in it."
        ),
    ]


def _guide(runs: list[EvaluatedRun], split: Split) -> str:
    rows, users = runs[0].found["num_rows"], runs[0].found["num_users"]
    return (
        f"{rows} rows of the {split} split, each one next item, of {users} users; every run ranks the whole catalogue "
        "by beam search over its semantic IDs. HR@k is the share of rows whose next item is among the first k, NDCG@k "
        "also rewards a high rank; both at item level. With a value stands its 95% interval, a bootstrap over users. "
        "ECE (lower is better) is how far the confidence of the top recommendation lies from how often it is right, "
        "before recalibration; AUROC how well it tells right from wrong (0.5 is chance). Last column: HR@10 of those "
        "left when the least confident half is rejected. The baselines are counted on the training split. Bold is the "
        "best value, which need not be more than chance."
    )
