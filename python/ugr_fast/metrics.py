"""Ranking quality, calibration and selective prediction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ugr_fast import _core
from ugr_fast.arrays import Array, to_numpy

Floats = npt.NDArray[np.float64]


def recall_at(ranked: Any, target: Any, k: int) -> Floats:
    """1 where the target is among the first k: HR@k, or recall@k with one relevant item.

    Args:
        ranked: (N, K) integer ids, best first; -1 is padding and never a hit.
        target: (N,) integer ids.
        k: Cut, in [1, K].

    Returns:
        (N,) 0 or 1; its mean is the metric.

    Raises:
        ValueError: Shapes that do not fit, `k` out of range.

    Example:
        >>> recall_at([[4, 9], [9, 4]], [4, 4], k=1).tolist()
        [1.0, 0.0]
    """
    return (_rank(ranked, target, k) < k).astype(np.float64)


def ndcg_at(ranked: Any, target: Any, k: int) -> Floats:
    """1 / log2(rank + 2) of the target at 0-based `rank` < k, else 0: NDCG@k with one relevant item.

    Args:
        ranked: (N, K) integer ids, best first; -1 is padding and never a hit.
        target: (N,) integer ids.
        k: Cut, in [1, K].

    Returns:
        (N,) in [0, 1]; its mean is the metric.

    Raises:
        ValueError: Shapes that do not fit, `k` out of range.

    Example:
        >>> ndcg_at([[4, 9], [9, 4]], [4, 4], k=2).round(4).tolist()
        [1.0, 0.6309]

    Source: Järvelin and Kekäläinen (TOIS 2002).
    """
    rank = _rank(ranked, target, k)
    return np.where(rank < k, 1 / np.log2(rank + 2), 0.0)


def mrr_at(ranked: Any, target: Any, k: int) -> Floats:
    """1 / (rank + 1) of the target at 0-based `rank` < k, else 0: MRR@k.

    Args:
        ranked: (N, K) integer ids, best first; -1 is padding and never a hit.
        target: (N,) integer ids.
        k: Cut, in [1, K].

    Returns:
        (N,) in [0, 1]; its mean is the metric.

    Raises:
        ValueError: Shapes that do not fit, `k` out of range.

    Example:
        >>> mrr_at([[4, 9], [9, 4]], [4, 4], k=2).tolist()
        [1.0, 0.5]
    """
    rank = _rank(ranked, target, k)
    return np.where(rank < k, 1 / (rank + 1), 0.0)


@dataclass(frozen=True)
class Calibration:
    """Bins of confidence against accuracy, lowest first, and what they add up to.

    gap_k = |confidence_k - accuracy_k|. Bins are [lower, upper), the last one closed; an empty one has
    count 0, means of NaN and no weight. Without any sample the scalars are NaN.
    """

    lower: Floats
    """(bins,) lower edges."""
    upper: Floats
    """(bins,) upper edges."""
    count: npt.NDArray[np.uint64]
    """(bins,) samples."""
    confidence: Floats
    """(bins,) mean confidence."""
    accuracy: Floats
    """(bins,) mean outcome."""
    ece: float
    """Expected calibration error: sum_k count_k / n * gap_k."""
    mce: float
    """Maximum calibration error: max_k gap_k."""
    rmsce: float
    """Root mean square calibration error: sqrt(sum_k count_k / n * gap_k^2)."""
    brier: float
    """Mean of (confidence - correct)^2 over the samples."""
    n: int
    """Samples."""


def calibration(
    confidence: Any, correct: Any, *, bins: int = 15, binning: Literal["width", "mass"] = "width"
) -> Calibration:
    """Bins of confidence against accuracy: ECE = sum_k count_k / n * |confidence_k - accuracy_k|.

    One pass, with integer sums: the order of the samples does not change a bit of the result.

    Args:
        confidence: (N,) in [0, 1]; float32 and float64 each have bin edges rounded to their own type.
        correct: (N,) bool, 0 and 1, or soft outcomes in [0, 1].
        bins: Number of bins, in [1, 65536].
        binning: `"width"` has edges k / bins. `"mass"` cuts at ranks floor(k N / bins), never inside a run of
            equal confidences, and drops empty bins.

    Returns:
        The bins and their summary.

    Raises:
        ValueError: A value outside [0, 1] or NaN (with its index), lengths that differ, `bins` out of range.

    Example:
        >>> result = calibration(np.array([0.9, 0.8, 0.3]), np.array([1, 0, 0]), bins=2)
        >>> result.count.tolist(), round(result.ece, 4)
        ([1, 2], 0.3333)

    Source: Guo et al. (arXiv 1706.04599) §2; Naeini et al. (AAAI 2015); Brier (1950).
    """
    if binning not in ("width", "mass"):
        raise ValueError(f'`binning` must be "width" or "mass", got {binning!r}')
    if not 1 <= bins <= 65536:
        raise ValueError(f"`bins` must lie in [1, 65536], got {bins}")
    c, y = _confidence(confidence), _outcome(correct)
    lower, upper, count, mean, accuracy, brier = _core.calibration_bins(c, y, bins, binning == "mass")
    filled = count > 0
    gap, weight = np.abs(mean - accuracy)[filled], count[filled] / max(c.size, 1)
    ece, mce, rmsce = float(weight @ gap), float(gap.max(initial=0)), float(np.sqrt(weight @ gap**2))
    if not c.size:
        ece = mce = rmsce = float("nan")
    return Calibration(lower, upper, count, mean, accuracy, ece, mce, rmsce, brier, c.size)


def wilson(hits: Any, counts: Any, z: float = 1.959964) -> tuple[Floats, Floats]:
    """Wilson's interval of a proportion; [0, 1] where there is no trial.

    centre (p + z^2/2n) / (1 + z^2/n), half-width z / (1 + z^2/n) * sqrt(p (1 - p) / n + z^2 / 4n^2).

    Args:
        hits: Successes, any shape, in [0, counts].
        counts: Trials, same shape, >= 0.
        z: Standard normal quantile; the default is 95%.

    Returns:
        Lower and upper ends, in [0, 1].

    Raises:
        ValueError: More hits than counts, or fewer than none.

    Example:
        >>> [round(float(end), 4) for end in wilson(8, 10)]
        [0.4902, 0.9433]

    Source: Wilson (JASA 1927).
    """
    h, n = np.asarray(to_numpy(hits), np.float64), np.asarray(to_numpy(counts), np.float64)
    if not ((h >= 0) & (h <= n)).all():
        raise ValueError("`hits` must lie in [0, counts]")
    trials = np.maximum(n, 1)
    p = h / trials
    centre, half = p + z * z / (2 * trials), z * np.sqrt(p * (1 - p) / trials + z * z / (4 * trials**2))
    shrink = 1 + z * z / trials
    low, high = np.clip((centre - half) / shrink, 0, p), np.clip((centre + half) / shrink, p, 1)
    return np.where(n > 0, low, 0.0), np.where(n > 0, high, 1.0)


def auroc(score: Any, correct: Any) -> float:
    """P(score of a correct sample > score of a wrong one), ties counting half; NaN with one class only.

    Counted in integers, so exact up to the last division.

    Args:
        score: (N,) any order; +-inf allowed.
        correct: (N,) bool, or 0 and 1.

    Returns:
        In [0, 1], or NaN.

    Raises:
        ValueError: A NaN score, outcomes other than 0 and 1, lengths that differ.

    Example:
        >>> auroc([0.9, 0.8, 0.8, 0.1], [1, 1, 0, 0])
        0.875

    Source: Mann and Whitney (1947); Fawcett (2006).
    """
    _, size, errors = _blocks(score, correct)
    hits = size - errors
    num_errors, num_hits = int(errors.sum()), int(hits.sum())
    if not (num_errors and num_hits):
        return float("nan")
    below = num_errors - np.cumsum(errors)  # errors with a lower score than each block
    return int((hits * (2 * below + errors)).sum()) / (2 * num_errors * num_hits)


def risk_coverage(confidence: Any, correct: Any) -> tuple[Floats, Floats, Floats]:
    """Risk (error rate) of the samples kept, against the share kept, at every threshold that can be chosen.

    Args:
        confidence: (N,) any order; only the order counts.
        correct: (N,) bool, or 0 and 1.

    Returns:
        coverage, risk and threshold, one entry per distinct confidence, from the most confident: keeping the
        samples with confidence >= threshold[j] keeps a share coverage[j] with error rate risk[j].

    Raises:
        ValueError: A NaN confidence, outcomes other than 0 and 1, lengths that differ.

    Example:
        >>> [column.tolist() for column in risk_coverage([0.9, 0.5, 0.5, 0.2], [1, 1, 0, 0])]
        [[0.25, 0.75, 1.0], [0.0, 0.3333333333333333, 0.5], [0.9, 0.5, 0.2]]

    Source: El-Yaniv and Wiener (JMLR 2010); Geifman and El-Yaniv (arXiv 1705.08500).
    """
    threshold, size, errors = _blocks(confidence, correct)
    kept = np.cumsum(size)
    return kept / max(int(size.sum()), 1), np.cumsum(errors) / kept, threshold


def aurc(confidence: Any, correct: Any) -> float:
    """Mean over j = 1..n of the risk of the j most confident samples; NaN without samples.

    Ties count as their expectation over all orders, in closed form: after a samples with E errors, a block of
    m with k errors adds (E - k/m a)(H_{a+m} - H_a) + k, where H is the harmonic number.

    Args:
        confidence: (N,) any order; only the order counts.
        correct: (N,) bool, or 0 and 1.

    Returns:
        In [0, 1]; lower is better.

    Raises:
        ValueError: A NaN confidence, outcomes other than 0 and 1, lengths that differ.

    Example:
        >>> aurc([0.5, 0.5], [1, 0])
        0.5

    Source: Geifman, Uziel and El-Yaniv (arXiv 1805.08206).
    """
    _, size, errors = _blocks(confidence, correct)
    n = int(size.sum())
    if n == 0:
        return float("nan")
    harmonic = np.concatenate(([0.0], np.cumsum(1 / np.arange(1, n + 1))))
    end = np.cumsum(size)
    start, before = end - size, np.cumsum(errors) - errors
    partial = (before - errors / size * start) * (harmonic[end] - harmonic[start])
    return float((partial + errors).sum() / n)


def _rank(ranked: Any, target: Any, k: int) -> npt.NDArray[np.int64]:
    """0-based rank of each target, K where it is not among the ranked."""
    lists, wanted = to_numpy(ranked), to_numpy(target)
    if lists.ndim != 2 or wanted.shape != lists.shape[:1]:
        raise ValueError(f"`ranked` must be (N, K) and `target` (N,), got {lists.shape} and {wanted.shape}")
    if not 1 <= k <= lists.shape[1]:
        raise ValueError(f"`k` must lie in [1, {lists.shape[1]}], the number of ranked items, got {k}")
    hit = (lists == wanted[:, None]) & (lists != -1)  # (N, K)
    rank: npt.NDArray[np.int64] = np.where(hit.any(1), hit.argmax(1), lists.shape[1])
    return rank


def _blocks(score: Any, correct: Any) -> tuple[Array, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Runs of equal score, highest first: the score, the number of samples and of errors among them."""
    s, y = to_numpy(score), _outcome(correct)
    if s.shape != y.shape:
        raise ValueError(f"`correct` must have the shape of the scores {s.shape}, got {y.shape}")
    if np.isnan(s).any():
        raise ValueError(f"`confidence` must not be NaN, got one at index {int(np.isnan(s).argmax())}")
    if y.dtype != np.uint8 and not np.isin(y, (0, 1)).all():
        raise ValueError(f"`correct` must be 0 or 1, got {y[~np.isin(y, (0, 1))][0]}")
    order = np.argsort(s)[::-1]
    s, wrong = s[order], y[order] == 0
    starts = np.flatnonzero(np.concatenate(([True], s[1:] != s[:-1]))) if s.size else np.empty(0, np.int64)
    size = np.diff(np.append(starts, s.size))
    errors = np.add.reduceat(wrong, starts, dtype=np.int64) if s.size else size
    return s[starts], size, errors


def _confidence(confidence: Any) -> Array:
    c = to_numpy(confidence)
    if c.ndim != 1:
        raise ValueError(f"`confidence` must have shape (N,), got {c.shape}")
    wide = c.dtype.kind != "f" or c.itemsize > 4
    return np.ascontiguousarray(c, np.float64 if wide else np.float32)


def _outcome(correct: Any) -> Array:
    """Outcomes as uint8 (bool and integers) or float64."""
    y = to_numpy(correct)
    if y.ndim != 1:
        raise ValueError(f"`correct` must have shape (N,), got {y.shape}")
    if y.dtype.kind in "iu" and not ((y >= 0) & (y <= 1)).all():
        raise ValueError(f"`correct` must lie in [0, 1], got {y[(y < 0) | (y > 1)][0]}")
    return np.ascontiguousarray(y, np.float64 if y.dtype.kind == "f" else np.uint8)
