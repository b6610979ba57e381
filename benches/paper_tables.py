"""Tables and figures of docs/results.md, from the run directories of `paper.py` or from what is kept of them.

    python benches/paper_tables.py --out paper                            # print the tables
    python benches/paper_tables.py --out paper --into docs/results.md     # put them between their marks, figures beside
    python benches/paper_tables.py --out benches/records                  # from records: see paper_records.py

A table stands between `<!-- paper: NAME -->` and `<!-- end -->`. "a ± b" is the mean over seeds and half of its 95%
interval by Student's t; differences are of the same users and the same seed, their intervals once over users (a
bootstrap of each user's mean over seeds: what other users would change) and once over seeds (Student's t: what other
random numbers would). Ranks are those that `eval` found, never asked of a model again.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import paper_records
from numpy.typing import NDArray
from paper import SETS, readout_of
from paper_records import Runs
from ugr_fast import decisions
from ugr_fast.report.figures import axes_of, colour_of, draw, legend

Floats = NDArray[np.float64]
NAMES = {
    "sft": "SFT",
    "sft-continued": "SFT continued",
    "grpo": "GRPO 0/1",
    "ranking": "ranking reward",
    "ugr": "UGR as released",
    "ugr-reward": "… its reward alone",
    "ugr-weight": "… its weight alone",
    "ugr-confidence": "… its confidence alone",
    "ugr-sum": "UGR, summed scores",
    "ugr-logit": "UGR, logit confidence",
    "ugr-brier": "UGR, brier confidence",
    "ugr-allowed": "UGR, over allowed tokens",
    "ugr-stochastic": "UGR, stochastic beams",
    "ugr-similar": "UGR + .3 similarity",
    "sft-readout": "SFT + readout of states",
    "ugr-readout": "UGR + readout of states",
    "sft-evidence": "SFT + readout with evidence",
    "ugr-evidence": "UGR + readout with evidence",
}
BASELINES = {"popularity": "popularity", "markov": "last-item Markov", "cosine_markov": "cosine + Markov"}
LEVEL = 0.95


def load(out: Path, name: str) -> Runs:
    """Return the evaluated runs of a set, arms in the order of NAMES: what is kept of them, and those in OUT/SET."""
    found = paper_records.merged(paper_records.read(out, name), paper_records.load(out / name))
    return {arm: found[arm] for arm in NAMES if arm in found}


# ---- numbers


def student(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and half of its interval by Student's t; NaN for a single value.

    Example:
        >>> [round(x, 3) for x in student([1.0, 2.0, 3.0])]
        [2.0, 2.484]
    """
    from scipy.stats import t

    n = len(values)
    half = math.nan if n < 2 else t.ppf((1 + LEVEL) / 2, n - 1) * float(np.std(values, ddof=1)) / math.sqrt(n)
    return float(np.mean(values)), half


def short(value: float, digits: int = 4, sign: bool = False) -> str:
    """Write a number without its leading zero."""
    if math.isnan(value):
        return ""
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    return re.sub(r"^([+-]?)0\.", r"\1.", text).replace("-", "−")


def spread(values: Sequence[float], digits: int = 4) -> str:
    """Write "mean ± half"."""
    mean, half = student(values)
    return short(mean, digits) + (f" ± {short(half, digits)}" if half == half else "")


def between(low: float, high: float, digits: int = 4) -> str:
    """Write "[low, high]"."""
    return f"[{short(low, digits, True)}, {short(high, digits, True)}]"


def difference(
    runs: Runs, arm: str, other: str, measure: Callable[[NDArray[np.int64]], Floats] = decisions.ndcg
) -> tuple[float, tuple[float, float], tuple[float, float]]:
    """Return the mean difference of a measure to another arm, its interval over users, and its interval over seeds."""
    shared = sorted(runs[arm].keys() & runs[other].keys())
    rows = np.stack([measure(runs[arm][seed].rank) - measure(runs[other][seed].rank) for seed in shared])
    users = decisions.Bootstrap(runs[arm][shared[0]].users)
    [[_, low, high]] = users.means(rows.mean(0)[None])
    mean, half = student(rows.mean(1).tolist())
    return mean, (low, high), (mean - half, mean + half)


# ---- tables


def table(head: Sequence[str], rows: Iterator[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines)


def accuracy(runs: Runs) -> str:
    """HR and NDCG of the test split at item level, and what part of the catalogue is recommended."""

    def rows() -> Iterator[list[str]]:
        known = next(iter(next(iter(runs.values())).values())).test["baselines"]
        for name, label in BASELINES.items():
            if name in known:
                found = known[name]
                columns = [short(found[f"{kind}@{k}"]) for kind, k in COLUMNS]
                yield [label, "", *columns, f"{found['coverage@10']:.0%}", f"{found['popularity@10']:.0f}"]
        for arm, of in runs.items():
            columns = [
                spread([float(measure(run.rank, k).mean()) for run in of.values()])
                for measure, k in ((MEASURES[kind], k) for kind, k in COLUMNS)
            ]
            reach = [
                np.mean([run.test["reach"][name] for run in of.values()]) for name in ("coverage@10", "popularity@10")
            ]
            yield [NAMES[arm], str(len(of)), *columns, f"{reach[0]:.0%}", f"{reach[1]:.0f}"]

    labels = [f"{kind.upper()}@{k}" for kind, k in COLUMNS]
    return table(["test", "seeds", *labels, "catalogue", "popularity"], rows())


COLUMNS = (("hr", 1), ("hr", 3), ("hr", 5), ("hr", 10), ("ndcg", 3), ("ndcg", 5), ("ndcg", 10))
MEASURES: dict[str, Callable[[NDArray[np.int64], int], Floats]] = {
    "hr": lambda rank, k: decisions.hit(rank, k),
    "ndcg": lambda rank, k: np.where((rank >= 0) & (rank < k), decisions.ndcg(rank), 0.0),
}


def semantic(runs: Runs) -> str:
    """HR and NDCG at SID level, where items that share their codes count as one."""

    def rows() -> Iterator[list[str]]:
        for arm, of in runs.items():
            found = [run.test["ranking"] for run in of.values()]
            yield [NAMES[arm], *(spread([each[f"sid_{kind}@{k}"] for each in found]) for kind, k in COLUMNS)]

    return table(["test, SID level", *(f"{kind.upper()}@{k}" for kind, k in COLUMNS)], rows())


def paired(runs: Runs) -> str:
    """Differences in NDCG@10 to SFT and to UGR as released."""

    def rows() -> Iterator[list[str]]:
        for arm in runs:
            cells = [NAMES[arm]]
            for other in ("sft", "ugr"):
                if arm == other or not runs[arm].keys() & runs.get(other, {}).keys():
                    cells += ["", "", ""]
                    continue
                mean, users, seeds = difference(runs, arm, other)
                cells += [short(mean, sign=True), between(*users), between(*seeds) if seeds[0] == seeds[0] else ""]
            if any(cells[1:]):
                yield cells

    head = ["NDCG@10", "to SFT", "users", "seeds", "to UGR", "users", "seeds"]
    return table(head, rows())


SEEN = ("zero_advantage_groups", "entropy", "hit_rate")


def training(runs: Runs) -> str:
    """Validation NDCG@10 along training, and what training saw at its end."""

    def rows() -> Iterator[list[str]]:
        for arm, of in runs.items():
            curves = [run.curve("ndcg@10") for run in of.values()]
            if readout_of(arm) or any(0 not in curve for curve in curves):
                continue
            change = [curve[max(curve)] - curve[0] for curve in curves]
            logged = [[run.logged.get(name, math.nan) for run in of.values()] for name in SEEN]
            yield [
                NAMES[arm],
                spread([curve[0] for curve in curves]),
                spread([max(value for step, value in curve.items() if step) for curve in curves]),
                spread([curve[max(curve)] for curve in curves]),
                f"{short(student(change)[0], sign=True)} ± {short(student(change)[1])}",
                *(short(float(np.mean(values)), 2) for values in logged),
            ]

    return table(
        [
            "valid NDCG@10",
            "start",
            "best",
            "end",
            "end − start",
            "groups without advantage",
            "entropy",
            "groups with a hit",
        ],
        rows(),
    )


def confidence(runs: Runs) -> str:
    """What confidence and likelihood are worth at user level, before and after recalibration."""

    def rows() -> Iterator[list[str]]:
        for arm, of in runs.items():
            for source in ("confidence", "likelihood"):
                if source == "confidence" and not any(run.test["trained"] for run in of.values()):
                    continue
                levels = [run.test[source]["user"] for run in of.values()]
                cells = [
                    spread([level[stage][name] for level in levels], 3)
                    for name in ("ece", "brier_skill")
                    for stage in ("before", "after")
                ]
                cells += [spread([level["before"][name] for level in levels], 3) for name in ("auroc", "aurc")]
                yield [f"{NAMES[arm]}, {source}", *cells]

    return table(["user level, test", "ECE", "after", "Brier skill", "after", "AUROC", "AURC"], rows())


def aurc_difference(runs: Runs) -> str:
    """Confidence against likelihood: the difference in AURC, where lower is better, over seeds."""

    def rows() -> Iterator[list[str]]:
        for arm, of in runs.items():
            if not all(run.test["trained"] for run in of.values()):
                continue
            values = [
                run.test["confidence"]["user"]["before"]["aurc"] - run.test["likelihood"]["user"]["before"]["aurc"]
                for run in of.values()
            ]
            mean, half = student(values)
            yield [NAMES[arm], short(mean, 4, True), between(mean - half, mean + half) if half == half else ""]

    return table(["AURC, confidence − likelihood", "mean", "seeds"], rows())


def acting(runs: Runs) -> str:
    """The three decisions, each beside the likelihood and chance."""

    def rows() -> Iterator[list[str]]:
        for arm, of in runs.items():
            if not all(run.test["trained"] for run in of.values()):
                continue
            found = [run.test["decisions"] for run in of.values()]
            gain = [each["rerank"]["confidence"]["gain"][0] for each in found]
            cells = [f"{short(student(gain)[0], sign=True)} ± {short(student(gain)[1])}"]
            for source in ("confidence", "likelihood"):
                at = [each["reject"]["coverage"].index(0.2) for each in found]
                cells.append(
                    spread(
                        [each["reject"][source]["ndcg@10"]["value"][k] for each, k in zip(found, at, strict=True)], 3
                    )
                )
            for source in ("confidence", "likelihood", "fixed"):
                at = [each["cut"]["length"].index(3.0) for each in found]
                cells.append(
                    spread([each["cut"][source]["precision"]["value"][k] for each, k in zip(found, at, strict=True)], 3)
                )
            yield [NAMES[arm], *cells]

    head = [
        "",
        "re-ranking: NDCG@10",
        "surest fifth: NDCG@10",
        "… by likelihood",
        "3 a list: precision",
        "… likelihood",
        "… fixed",
    ]
    return table(head, rows())


def cost(sets: dict[str, Runs]) -> str:
    """Core-hours of each set."""

    def rows() -> Iterator[list[str]]:
        total = dict.fromkeys(STEPS, 0.0)
        for name, runs in sets.items():
            done = [each for of in runs.values() for run in of.values() for each in run.costs.items()]
            hours = {step: sum(cost["seconds"] for name, cost in done if name == step) / 3600 for step in STEPS}
            total = {step: total[step] + hours[step] for step in STEPS}
            yield [name, str(sum(map(len, runs.values()))), *_hours(hours)]
        yield ["all", "", *_hours(total)]

    return table(["core-hours", "runs", "training", "readouts", "evaluation", "all"], rows())


STEPS = ("train", "confide", "eval")


def _hours(of: dict[str, float]) -> list[str]:
    return [f"{hours:.2f}" for hours in (*of.values(), sum(of.values()))]


# ---- figures


def curves(runs: Runs, title: str) -> Any:
    """Draw validation NDCG@10 over updates, with intervals over seeds."""
    figure, axes = axes_of("", "update", "valid NDCG@10", (6.4, 3.6))
    shown = [arm for arm in runs if arm != "sft" and not readout_of(arm)]
    for number, arm in enumerate(shown[:7]):
        found = [run.curve("ndcg@10") for run in runs[arm].values()]
        steps = sorted(set.intersection(*(set(curve) for curve in found)))
        if len(steps) < 3:
            continue
        means, halves = np.array([student([curve[step] for curve in found]) for step in steps]).T
        axes.plot(steps, means, color=colour_of(number), label=NAMES[arm])
        axes.fill_between(steps, means - halves, means + halves, color=colour_of(number), alpha=0.12, linewidth=0)
    legend(figure, axes)
    return draw(f"paper-{title}", title, "", figure)


TABLES = {
    "accuracy": accuracy,
    "sid": semantic,
    "paired": paired,
    "training": training,
    "confidence": confidence,
    "aurc": aurc_difference,
    "decisions": acting,
}


def main() -> None:
    """Print the tables, or put them where they belong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("paper"), help="folder of the runs, or of records")
    parser.add_argument("--into", type=Path, help="Markdown file with marks to fill; figures go beside it")
    args = parser.parse_args()
    sets = {name: runs for name in SETS if (runs := load(args.out, name))}
    found = {f"{name} {kind}": make(runs) for name, runs in sets.items() for kind, make in TABLES.items()}
    found["cost"] = cost(sets)
    if args.into is None:
        for name, text in found.items():
            print(f"### {name}\n\n{text}\n")
        return
    for name, runs in sets.items():
        (args.into.parent / f"paper-{name}.png").write_bytes(curves(runs, name).png)
    args.into.write_text(filled(args.into.read_text(encoding="utf-8"), found), encoding="utf-8")


def filled(text: str, found: dict[str, str]) -> str:
    """Put the tables between their marks.

    Raises:
        ValueError: a mark names a table that is not there.
    """

    def replace(match: re.Match[str]) -> str:
        if match[1] not in found:
            raise ValueError(f"`--into` names the table {match[1]!r}, and there are {', '.join(found)}")
        return f"<!-- paper: {match[1]} -->\n{found[match[1]]}\n<!-- end -->"

    return re.sub(r"<!-- paper: (.*?) -->.*?<!-- end -->", replace, text, flags=re.DOTALL)


if __name__ == "__main__":
    main()
