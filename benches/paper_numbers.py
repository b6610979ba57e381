"""Names of the arms of `paper.py`, and the intervals of docs/results.md."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from paper_records import Runs, refuse_other_users
from ugr_fast import decisions

Floats = NDArray[np.float64]
NAMES = {
    "sft": "SFT",
    "sft-continued": "SFT continued",
    "grpo": "GRPO 0/1",
    "ranking": "ranking reward",
    "ugr": "UGR as released",
    "grpo-last": "GRPO 0/1, last update",
    "ranking-last": "ranking reward, last update",
    "ugr-last": "UGR as released, last update",
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
LEVEL = 0.95


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


def difference(
    runs: Runs, arm: str, other: str, measure: Callable[[NDArray[np.int64]], Floats] = decisions.ndcg
) -> tuple[float, tuple[float, float], tuple[float, float]]:
    """Return the mean difference of a measure to another arm, its interval over users, and its interval over seeds.

    Raises:
        ValueError: runs of other users, or of other rows of them.
    """
    shared = sorted(runs[arm].keys() & runs[other].keys())
    refuse_other_users([runs[name][seed] for name in (arm, other) for seed in shared])
    rows = np.stack([measure(runs[arm][seed].rank) - measure(runs[other][seed].rank) for seed in shared])
    users = decisions.Bootstrap(runs[arm][shared[0]].users)
    [[_, low, high]] = users.means(rows.mean(0)[None])
    mean, half = student(rows.mean(1).tolist())
    return mean, (low, high), (mean - half, mean + half)


def curves(runs: Runs, arm: str) -> list[dict[int, float]]:
    """Return the validation NDCG@10 of each seed by update; 0 is the SFT that all begin with, where that is known."""
    found = []
    for seed, run in runs[arm].items():
        start = runs.get("sft", {}).get(seed)
        known = {0: max(start.curve("ndcg@10").values())} if start and arm != "sft" else {}
        found.append(dict(sorted({**known, **run.curve("ndcg@10")}.items())))
    return found
