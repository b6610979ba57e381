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
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import paper_figures
import paper_records
from numpy.typing import NDArray
from paper import SETS, readout_of, trains
from paper_numbers import NAMES, curves, difference, student
from paper_records import Record, Runs
from ugr_fast import decisions

Floats = NDArray[np.float64]
SOURCES = ("confidence", "likelihood")
COSINE = "cosine_markov"
BASELINES = {"popularity": "popularity", "markov": "last-item Markov", "cosine_markov": "cosine + Markov"}


def load(out: Path, name: str) -> Runs:
    """Return the evaluated runs of a set, arms in the order of NAMES: what is kept of them, and those in OUT/SET."""
    found = paper_records.merged(paper_records.read(out, name), paper_records.load(out / name))
    return {arm: found[arm] for arm in NAMES if arm in found}


def load_sasrec(out: Path, name: str) -> list[dict[str, float]]:
    """Return what sasrec.py measured on the test split of a set, OUT/sasrec-SET.json; nothing where it did not."""
    path = out / f"sasrec-{name}.json"
    return [run["test"] for run in json.loads(path.read_text())["runs"]] if path.exists() else []


def load_baseline(out: Path, name: str) -> Record | None:
    """Return what paper_baseline.py found of a set, OUT/baseline-SET.npz; None where it did not."""
    path = out / f"baseline-{name}.npz"
    if not path.exists():
        return None
    with np.load(path, allow_pickle=False) as arrays:
        return Record({}, [], {}, {}, arrays["rank"].astype(np.int64), arrays["users"])


# ---- numbers


def short(value: float, digits: int = 4, sign: bool = False) -> str:
    """Write a number without its leading zero."""
    if math.isnan(value):
        return ""
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    return re.sub(r"^([+-]?)0\.", r"\1.", text).replace("-", "−")


def spread(values: Sequence[float | None], digits: int = 4, sign: bool = False) -> str:
    """Write "mean ± half"; nothing where a value is undefined, or there is none."""
    if not values:
        return ""
    mean, half = student([math.nan if value is None else value for value in values])
    return short(mean, digits, sign) + (f" ± {short(half, digits)}" if half == half else "")


def between(low: float, high: float, digits: int = 4) -> str:
    """Write "[low, high]"."""
    return f"[{short(low, digits, True)}, {short(high, digits, True)}]"


# ---- tables


def table(head: Sequence[str], rows: Iterator[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines)


def accuracy(runs: Runs, sasrec: Sequence[dict[str, float]] = ()) -> str:
    """HR and NDCG of the test split at item level, and what part of the catalogue is recommended.

    Args:
        runs: of a set.
        sasrec: what sasrec.py measured, a seed each.
    """

    def rows() -> Iterator[list[str]]:
        known = next(iter(next(iter(runs.values())).values())).test["baselines"]
        for name, label in BASELINES.items():
            if name in known:
                found = known[name]
                columns = [short(found[f"{kind}@{k}"]) for kind, k in COLUMNS]
                yield [label, "", *columns, f"{found['coverage@10']:.0%}", f"{found['popularity@10']:.0f}"]
        if sasrec:
            columns = [spread([each[f"{kind}@{k}"] for each in sasrec]) for kind, k in COLUMNS]
            yield ["SASRec", str(len(sasrec)), *columns, "", ""]
        for arm, of in runs.items():
            columns = [
                spread([float(measure(run.rank, k).mean()) for run in of.values()])
                for measure, k in ((MEASURES[kind], k) for kind, k in COLUMNS)
            ]
            reach = [
                np.mean([run.test["reach"][name] for run in of.values()]) for name in ("coverage@10", "popularity@10")
            ]
            reached = ["", ""] if readout_of(arm) else [f"{reach[0]:.0%}", f"{reach[1]:.0f}"]  # of lists as searched
            yield [NAMES[arm], str(len(of)), *columns, *reached]

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
        for arm, of in ((arm, of) for arm, of in runs.items() if trains(arm)):
            found = [run.test["ranking"] for run in of.values()]
            yield [NAMES[arm], *(spread([each[f"sid_{kind}@{k}"] for each in found]) for kind, k in COLUMNS)]

    return table(["test, SID level", *(f"{kind.upper()}@{k}" for kind, k in COLUMNS)], rows())


def paired(runs: Runs, baseline: Record | None = None) -> str:
    """Differences in NDCG@10 to SFT, to UGR as released and, where it is given, to a baseline, equal for all seeds."""
    others = {"sft": "to SFT", "ugr": "to UGR"} | ({COSINE: "to cosine + Markov"} if baseline else {})
    seeds_of_all = {seed for of in runs.values() for seed in of}
    among = {**runs, COSINE: dict.fromkeys(seeds_of_all, baseline)} if baseline else runs

    def rows() -> Iterator[list[str]]:
        for arm in runs:
            cells = [NAMES[arm]]
            for other in others:
                if arm == other or not runs[arm].keys() & among.get(other, {}).keys():
                    cells += ["", "", ""]
                    continue
                mean, users, seeds = difference(among, arm, other)
                cells += [short(mean, sign=True), between(*users), between(*seeds) if seeds[0] == seeds[0] else ""]
            if any(cells[1:]):
                yield cells

    return table(["NDCG@10", *(cell for label in others.values() for cell in (label, "users", "seeds"))], rows())


def ends(runs: Runs, arm: str, other: str) -> list[float]:
    """Return by how much the last validation of each seed lies above that of another arm; none for the arm itself."""
    if arm == other or other not in runs:
        return []
    last = [dict(zip(runs[name], curves(runs, name), strict=True)) for name in (arm, other)]
    return [mine[max(mine)] - (of := last[1][seed])[max(of)] for seed, mine in last[0].items() if seed in last[1]]


SEEN = ("zero_advantage_groups", "entropy", "hit_rate")


def training(runs: Runs) -> str:
    """Validation NDCG@10 along training, and what training saw at its end."""

    def rows() -> Iterator[list[str]]:
        for arm, of in runs.items():
            found = curves(runs, arm)
            if not trains(arm) or any(0 not in curve for curve in found):
                continue
            change = [curve[max(curve)] - curve[0] for curve in found]
            logged = [[run.logged.get(name, math.nan) for run in of.values()] for name in SEEN]
            yield [
                NAMES[arm],
                spread([curve[0] for curve in found]),
                spread([max(value for step, value in curve.items() if step) for curve in found]),
                spread([curve[max(curve)] for curve in found]),
                spread(change, sign=True),
                spread(ends(runs, arm, "grpo"), sign=True),
                f"{np.mean([run.test['step'] for run in of.values()]):.0f}",
                *(short(float(np.mean(values)), 2) for values in logged),
            ]

    return table(
        [
            "valid NDCG@10",
            "start",
            "best",
            "end",
            "end − start",
            "end − GRPO's",
            "measured at",
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
            for source in SOURCES:
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
            levels = [[run.test[source]["user"]["before"]["aurc"] for source in SOURCES] for run in of.values()]
            said, likely = np.array(levels, np.float64).T  # None becomes NaN
            mean, half = student((said - likely).tolist())
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
            cells = [spread(gain, sign=True)]
            for source in SOURCES:
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


def promises(runs: Runs) -> str:
    """What was promised of those answered on valid users, and what came of it on the test split, later in time."""

    def rows() -> Iterator[list[str]]:
        for arm in ("sft", "sft-evidence"):
            of = [run.test["promises"] for run in runs.get(arm, {}).values()]
            for rule in zip(*of, strict=True):
                given = [each for each in rule if each["threshold"] is not None]
                if not given:
                    continue
                asked = rule[0]["max_risk"]
                risks = [each["realised"]["risk"] for each in given if each["realised"]["risk"] is not None]
                yield [
                    NAMES[arm],
                    f"{asked:g}",
                    str(rule[0]["k"]),
                    f"{len(given)} of {len(rule)}",
                    f"{np.mean([each['calibration']['share'] for each in given]):.0%}",
                    short(float(np.mean([each["calibration"]["risk"] for each in given])), 3),
                    spread(risks, 3),
                    f"{sum(risk > asked for risk in risks)} of {len(risks)}",
                ]

    return table(
        ["", "risk asked", "k", "promised by", "answered", "risk on valid", "realised on test", "above"], rows()
    )


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


TABLES = {
    "accuracy": accuracy,
    "sid": semantic,
    "paired": paired,
    "training": training,
    "confidence": confidence,
    "aurc": aurc_difference,
    "decisions": acting,
    "promises": promises,
}


def main() -> None:
    """Print the tables, or put them where they belong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("paper"), help="folder of the runs, or of records")
    parser.add_argument("--into", type=Path, help="Markdown file with marks to fill; figures go beside it")
    args = parser.parse_args()
    sets = {name: runs for name in SETS if (runs := load(args.out, name))}
    found = {f"{name} accuracy": accuracy(runs, load_sasrec(args.out, name)) for name, runs in sets.items()}
    found |= {f"{name} paired": paired(runs, load_baseline(args.out, name)) for name, runs in sets.items()}
    rest = {kind: make for kind, make in TABLES.items() if kind not in ("accuracy", "paired")}
    found |= {f"{name} {kind}": make(runs) for name, runs in sets.items() for kind, make in rest.items()}
    found["cost"] = cost(sets)
    if args.into is None:
        for name, text in found.items():
            print(f"### {name}\n\n{text}\n")
        return
    for picture in (picture for name, runs in sets.items() for picture in paper_figures.draw_all(runs, name)):
        (args.into.parent / f"{picture.name}.png").write_bytes(picture.png)
    args.into.write_text(filled(args.into.read_text(encoding="utf-8"), found), encoding="utf-8")


def filled(text: str, found: dict[str, str]) -> str:
    """Put the tables between their marks; those of a set without runs stay as they are.

    Raises:
        ValueError: a mark names a table that there never is.
    """
    possible = {"cost", *(f"{name} {kind}" for name in SETS for kind in TABLES)}

    def replace(match: re.Match[str]) -> str:
        if match[1] not in possible:
            raise ValueError(f"`--into` names the table {match[1]!r}, which is none of {', '.join(sorted(possible))}")
        if match[1] not in found:
            return match[0]
        return f"<!-- paper: {match[1]} -->\n{found[match[1]]}\n<!-- end -->"

    return re.sub(r"<!-- paper: (.*?) -->.*?<!-- end -->", replace, text, flags=re.DOTALL)


if __name__ == "__main__":
    main()
