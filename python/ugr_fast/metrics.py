"""Ranking quality, calibration and selective prediction."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from ugr_fast import _core
from ugr_fast.arrays import Array, at_least, column, confidences, outcomes, refuse, to_numpy, truth, unit, weights

Floats: TypeAlias = npt.NDArray[np.float64]
Closed: TypeAlias = Literal["left", "right"]

_FORMAT = 1  # of CalibrationAccumulator.to_arrays
_HALF, _LOW = np.uint64(32), np.uint64(0xFFFFFFFF)


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

    gap_k = |confidence_k - accuracy_k|, share_k = weight_k / sum of weights. Bins are [lower, upper), the last one
    closed, or the other way round; an empty one has count 0, means of NaN and no weight. Without any sample the
    scalars are NaN.
    """

    lower: Floats
    """(bins,) lower edges."""
    upper: Floats
    """(bins,) upper edges."""
    count: npt.NDArray[np.uint64]
    """(bins,) samples with a weight above 0."""
    weight: Floats
    """(bins,) sum of weights: the count, if there are none."""
    effective: Floats
    """(bins,) effective samples, (sum w)^2 / sum w^2: the count, if there are no weights."""
    confidence: Floats
    """(bins,) mean confidence."""
    accuracy: Floats
    """(bins,) mean outcome."""
    moments: Floats
    """(3, bins) means of confidence^2, confidence * correct and correct^2."""
    ece: float
    """Expected calibration error: sum_k share_k * gap_k."""
    mce: float
    """Maximum calibration error: max_k gap_k."""
    rmsce: float
    """Root mean square calibration error: sqrt(sum_k share_k * gap_k^2)."""
    brier: float
    """Mean of (confidence - correct)^2 over the samples."""
    n: int
    """Samples with a weight above 0."""

    @property
    def share(self) -> Floats:
        """(bins,) share of the weight of each bin."""
        return self.weight / self.weight.sum() if self.n else self.weight

    @property
    def debiased(self) -> float:
        """Root mean square calibration error without the bias of finite bins.

        sqrt(max(0, sum_k share_k (gap_k^2 - accuracy_k (1 - accuracy_k) / (n_k - 1)))), n_k the effective samples;
        a bin with fewer than two adds nothing.

        Source: Kumar, Liang and Ma (arXiv 1909.10155) §5.
        """
        if not self.n:
            return float("nan")
        many = self.effective >= 2
        a, gap = self.accuracy[many], (self.confidence - self.accuracy)[many]
        noise = a * (1 - a) / (self.effective[many] - 1)
        return math.sqrt(max(0.0, float(self.share[many] @ (gap**2 - noise))))

    @property
    def murphy(self) -> Murphy:
        """The Brier score in parts: brier = reliability - resolution + uncertainty + variance - covariance."""
        if not self.n:
            return Murphy(*[float("nan")] * 5)
        filled = self.count > 0
        share, c, y = self.share[filled], self.confidence[filled], self.accuracy[filled]
        cc, cy, yy = self.moments[:, filled]
        rate = share @ y
        parts = (
            share @ (c - y) ** 2,
            share @ (y - rate) ** 2,
            share @ yy - rate**2,
            max(0.0, float(share @ (cc - c**2))),
            2 * share @ (cy - c * y),
        )
        return Murphy(*map(float, parts))

    def interval(self, z: float = 1.959964) -> tuple[Floats, Floats]:
        """(bins,) ends of Wilson's interval of each bin's accuracy, from its effective samples; see :func:`wilson`."""
        return wilson(np.where(self.count > 0, self.accuracy, 0) * self.effective, self.effective, z)

    def ece_interval(self, level: float = 0.95, *, resamples: int = 1000, seed: int = 0) -> tuple[float, float]:
        """Percentile interval of the ECE over resampled bins: what it would be with other samples of this kind.

        Draws how many samples fall into each bin and outcome from their shares, and keeps their mean confidences:
        the cost does not depend on the number of samples. A resampled ECE has the bias of a finite sample twice, so
        of a small one even the lower end can lie above a true ECE of 0; :attr:`debiased` corrects for that.

        Args:
            level: Share of the resampled values within, in (0, 1).
            resamples: How many to draw.
            seed: Of the draws.

        Returns:
            Lower and upper end; NaN without samples.

        Raises:
            ValueError: `level` outside (0, 1), or no resample.

        Example:
            >>> result = calibration([0.9] * 50 + [0.3] * 50, [True] * 60 + [False] * 40)
            >>> low, high = result.ece_interval()
            >>> low < result.ece < high
            True

        Source: Efron and Tibshirani (1993) §13.
        """
        if not 0 < level < 1:
            raise ValueError(f"`level` must lie in (0, 1), got {level}")
        at_least(resamples, "resamples", 1)
        if not self.n:
            return float("nan"), float("nan")
        filled = self.count > 0
        c, y, cy = self.confidence[filled], self.accuracy[filled], self.moments[1, filled]
        share = self.share[filled] * np.stack((y, 1 - y))  # (2, bins): hits, misses
        mass = self.share[filled] * np.stack((cy, c - cy))
        gap = np.divide(mass, share, out=np.zeros_like(mass), where=share > 0) - [[1], [0]]
        squares = self.weight[filled] ** 2 / self.effective[filled]  # sum w^2 of each bin
        n = max(1, round(self.weight.sum() ** 2 / squares.sum()))
        draws = np.random.default_rng(seed).multinomial(n, share.ravel() / share.sum(), size=resamples)
        ece = np.abs((draws.reshape(-1, *gap.shape) * gap).sum(1)).sum(1) / n
        low, high = np.quantile(ece, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)


class Murphy(NamedTuple):
    """Parts of a Brier score: reliability - resolution + uncertainty + variance - covariance.

    Bar: mean over all samples; index k: mean over a bin; share_k: of the samples.

    Source: Murphy (1973); Stephenson, Coelho and Jolliffe (2008) for what varies within the bins.
    """

    reliability: float
    """sum_k share_k (confidence_k - accuracy_k)^2: what recalibration could gain."""
    resolution: float
    """sum_k share_k (accuracy_k - bar)^2: how far the bins tell hits from misses."""
    uncertainty: float
    """Variance of the outcomes: bar (1 - bar), if they are 0 and 1."""
    variance: float
    """sum_k share_k * variance of the confidences in bin k."""
    covariance: float
    """2 sum_k share_k * covariance of confidence and outcome in bin k."""


class CalibrationAccumulator:
    """Calibration of samples that come in parts: the same bits whatever the parts and their order.

    Holds eight integers per bin (2 kB for 15 bins) and no sample. Bins are of equal width; see :func:`calibration`.

    Args:
        bins: Number of bins, in [1, 65536].
        closed: `"left"`: bins [a, b), the last one closed. `"right"`: (a, b], the first one closed.

    Raises:
        ValueError: `bins` or `closed` out of range.

    Example:
        >>> first = CalibrationAccumulator(bins=2).update([0.9, 0.8], [True, False])
        >>> second = CalibrationAccumulator(bins=2).update([0.3], [False])
        >>> round(first.merge(second).compute().ece, 4)
        0.3333
    """

    def __init__(self, bins: int = 15, *, closed: Closed = "left") -> None:
        if closed not in ("left", "right"):
            raise ValueError(f'`closed` must be "left" or "right", got {closed!r}')
        self.closed: Closed = closed
        self._sums = np.zeros((_bins(bins), 8, 2), np.uint64)

    @property
    def bins(self) -> int:
        """Number of bins."""
        return len(self._sums)

    def update(self, confidence: Any, correct: Any, weight: Any = None) -> CalibrationAccumulator:
        """Add samples; when they are refused, nothing has changed.

        Args:
            confidence: (N,) in [0, 1]; float32 and float64 each have bin edges rounded to their own type.
            correct: (N,) bool, 0 and 1, or soft outcomes in [0, 1].
            weight: (N,) in [0, 65536], or None for 1. Rounded to multiples of 2^-64; only ratios count in the end.

        Returns:
            The accumulator itself.

        Raises:
            ValueError: A value out of its range or NaN (with its index), lengths that differ.
        """
        c, y = confidences(confidence), outcomes(correct)
        w = None if weight is None else column("weight", to_numpy(weight), np.float64)
        self._sums = _core.calibration_add(self._sums, c, y, w, self.closed == "right")
        return self

    def merge(self, other: CalibrationAccumulator) -> CalibrationAccumulator:
        """Return an accumulator with the samples of both; neither changes.

        Args:
            other: As many bins, closed at the same end.

        Raises:
            ValueError: Other bins.
        """
        if (other.bins, other.closed) != (self.bins, self.closed):
            raise ValueError(
                f"`other` must have {self.bins} bins closed on the {self.closed}, "
                f"got {other.bins} closed on the {other.closed}"
            )
        merged = CalibrationAccumulator(self.bins, closed=self.closed)
        merged._sums = _core.calibration_merge(self._sums, other._sums)
        return merged

    def compute(self) -> Calibration:
        """Return the bins and their summary so far; the edges are k / bins, in float64."""
        edges = np.arange(self.bins + 1) / self.bins
        return _summary(edges[:-1], edges[1:], self._sums)

    def reset(self) -> None:
        """Forget all samples."""
        self._sums = np.zeros_like(self._sums)

    def to_arrays(self) -> dict[str, Array]:
        """Return the state as plain arrays, to save or to send to another process.

        Returns:
            "sums", (bins, 8, 4) int64: digits to the base 2^32, the lowest first, so that an element-wise sum over
            processes (an all-reduce) is the sum of the numbers; "format" and "closed_right": what they mean.
        """
        digits = np.stack((self._sums & _LOW, self._sums >> _HALF), axis=-1)
        sums = digits.reshape(self.bins, 8, 4).astype(np.int64)
        return {"sums": sums, "format": np.array(_FORMAT), "closed_right": np.array(self.closed == "right")}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> CalibrationAccumulator:
        """Return the accumulator that :meth:`to_arrays` took apart, or the sum of several: carries are settled here.

        Args:
            arrays: As :meth:`to_arrays` returns them.

        Raises:
            ValueError: Another format, or another shape or type of the sums.

        Example:
            >>> one = CalibrationAccumulator(bins=2).update([0.9], [True])
            >>> arrays = one.to_arrays()
            >>> two = CalibrationAccumulator.from_arrays({**arrays, "sums": 2 * arrays["sums"]})
            >>> two.compute().count.tolist()
            [0, 2]
        """
        if (found := int(arrays["format"])) != _FORMAT:
            raise ValueError(f"`arrays` must be of format {_FORMAT}, got {found}: written by another version")
        sums = to_numpy(arrays["sums"])
        if sums.ndim != 3 or sums.shape[1:] != (8, 4) or sums.dtype != np.int64 or (sums < 0).any():
            raise ValueError(f"`sums` must be (bins, 8, 4) int64 and >= 0, got {sums.shape} {sums.dtype}")
        digits = sums.astype(np.uint64)
        for i in range(3):
            digits[..., i + 1] += digits[..., i] >> _HALF
        digits &= _LOW
        result = cls(len(sums), closed="right" if arrays["closed_right"] else "left")
        result._sums = digits[..., ::2] | digits[..., 1::2] << _HALF
        return result


def calibration(
    confidence: Any,
    correct: Any,
    weight: Any = None,
    *,
    bins: int = 15,
    binning: Literal["width", "mass"] = "width",
    closed: Closed = "left",
) -> Calibration:
    """Bins of confidence against accuracy: ECE = sum_k share_k * |confidence_k - accuracy_k|.

    One pass, with integer sums: the order of the samples does not change a bit of the result.

    Args:
        confidence: (N,) in [0, 1]; float32 and float64 each have bin edges rounded to their own type.
        correct: (N,) bool, 0 and 1, or soft outcomes in [0, 1].
        weight: (N,) in [0, 65536], or None for 1; with bins of equal width only.
        bins: Number of bins, in [1, 65536].
        binning: `"width"` has edges k / bins. `"mass"` cuts at ranks floor(k N / bins), never inside a run of
            equal confidences, and drops empty bins.
        closed: Which end of a bin of equal width belongs to it: `"left"`, and the last one closed; or `"right"`, and
            the first one closed.

    Returns:
        The bins and their summary.

    Raises:
        ValueError: A value out of its range or NaN (with its index), lengths that differ, `bins` out of range,
            a `weight` or `closed="right"` with equal mass.

    Example:
        >>> result = calibration(np.array([0.9, 0.8, 0.3]), np.array([1, 0, 0]), bins=2)
        >>> result.count.tolist(), round(result.ece, 4)
        ([1, 2], 0.3333)

    Source: Guo et al. (arXiv 1706.04599) §2; Naeini et al. (AAAI 2015); Brier (1950).
    """
    if binning not in ("width", "mass"):
        raise ValueError(f'`binning` must be "width" or "mass", got {binning!r}')
    if binning == "mass":
        if weight is not None or closed != "left":
            raise ValueError('`weight` and `closed="right"` need `binning="width"`: ranks have neither')
        lower, last, sums = _core.calibration_mass(confidences(confidence), outcomes(correct), _bins(bins))
        return _summary(lower, np.append(lower[1:], last)[: len(lower)], sums)
    c = confidences(confidence)
    bulk = CalibrationAccumulator(bins, closed=closed).update(c, correct, weight)
    edges = np.arange(bins + 1, dtype=c.dtype) / c.dtype.type(bins)
    return _summary(edges[:-1].astype(np.float64), edges[1:].astype(np.float64), bulk._sums)


def calibration_sweep(confidence: Any, correct: Any) -> Calibration:
    """Calibration in as many bins of equal mass as keep their accuracies in order: its `ece` is ECE_SWEEP.

    The largest B such that with 2, 3, ..., B bins no accuracy falls from one bin to the next.

    Args:
        confidence: (N,) in [0, 1].
        correct: (N,) bool, or 0 and 1.

    Returns:
        The bins and their summary; at most a bin per distinct confidence.

    Raises:
        ValueError: A confidence outside [0, 1] or NaN, outcomes other than 0 and 1, lengths that differ.

    Example:
        >>> calibration_sweep([0.1, 0.2, 0.3, 0.4], [0, 1, 0, 1]).count.tolist()
        [2, 2]

    Source: Roelofs et al. (arXiv 2012.08668).
    """
    ranks = Ranks(confidence, correct)
    kept, errors, _ = ranks._core.curve()
    below = np.append(ranks.n - kept[::-1], ranks.n)[1:].astype(np.int64)  # samples up to each distinct confidence
    hits = below - np.append(ranks.errors - errors[::-1], ranks.errors)[1:].astype(np.int64)
    bins = 1
    while bins < min(len(below), 65536):
        ends = np.unique(np.searchsorted(below, np.arange(1, bins + 2) * ranks.n // (bins + 1)))
        accuracy = np.diff(hits[ends], prepend=0) / np.diff(below[ends], prepend=0)
        if (np.diff(accuracy) < 0).any():
            break
        bins += 1
    return calibration(confidence, correct, bins=bins, binning="mass")


def classwise_ece(probabilities: Any, labels: Any, *, classes: Any = None, bins: int = 15) -> Floats:
    """ECE of each class against all others: of (probability of class k, [label = k]).

    Args:
        probabilities: (N, K) in [0, 1], a column per class.
        labels: (N,) integers.
        classes: (K,) the label of each column, any integers; None for 0..K-1.
        bins: Number of bins of equal width, in [1, 65536].

    Returns:
        (K,) in [0, 1]; its mean is the metric.

    Raises:
        ValueError: Shapes that do not fit, a class named twice, a label that is no class, a probability out of range.

    Example:
        >>> classwise_ece([[0.9, 0.1], [0.6, 0.4]], [7, -1], classes=[7, -1], bins=1).round(2).tolist()
        [0.25, 0.25]

    Source: Kull et al. (arXiv 1910.12656) §2.
    """
    p, y = to_numpy(probabilities), to_numpy(labels)
    if p.ndim != 2 or y.shape != p.shape[:1]:
        raise ValueError(f"`probabilities` must be (N, K) and `labels` (N,), got {p.shape} and {y.shape}")
    named = np.arange(p.shape[1]) if classes is None else to_numpy(classes)
    if named.shape != p.shape[1:] or len(np.unique(named)) != len(named):
        raise ValueError(f"`classes` must be {p.shape[1]} different labels, one per column, got {named.tolist()}")
    if not (known := np.isin(y, named)).all():
        raise ValueError(f"`labels` must be among the classes, got {y[~known][0]}")
    return np.array([calibration(p[:, k], y == label, bins=bins).ece for k, label in enumerate(named)])


def log_loss(confidence: Any, correct: Any, *, from_logits: bool = False) -> float:
    """Mean of -correct * ln(confidence) - (1 - correct) * ln(1 - confidence): nothing is clipped.

    Args:
        confidence: (N,) in [0, 1]; with `from_logits`, their logits, any finite numbers.
        correct: (N,) bool, 0 and 1, or soft outcomes in [0, 1].
        from_logits: Whether `confidence` holds logits. It is never guessed from the values.

    Returns:
        At least 0; infinite when a certainty is wrong, NaN without samples.

    Raises:
        ValueError: A value out of its range or NaN (with its index), lengths that differ.

    Example:
        >>> round(log_loss([0.5, 0.25], [True, False]), 4), log_loss([1.0], [False])
        (0.4904, inf)

    Source: Good (1952).
    """
    return _core.log_loss(confidences(confidence), outcomes(correct), from_logits)


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


class Samples:
    """Confidences and outcomes that come in parts, for bins of equal mass and for ranks: the same bits in any order.

    Both need all of the confidences, so they are held, confidence and outcome in the bits of one integer: 4 bytes a
    sample, or 8 in double precision.

    Args:
        dtype: float32, or float64 to hold confidences as they are; others are rounded to it.

    Raises:
        ValueError: Another `dtype`.

    Example:
        >>> first = Samples().update([0.9, 0.8], [True, False])
        >>> both = first.merge(Samples().update([0.3], [False]))
        >>> both.ranks().auroc(), both.calibration(bins=3).count.tolist(), both.nbytes
        (1.0, [1, 1, 1], 12)
    """

    def __init__(self, dtype: npt.DTypeLike = np.float32) -> None:
        self._floats = np.dtype(dtype)
        if self._floats not in (np.dtype(np.float32), np.dtype(np.float64)):
            raise ValueError(f"`dtype` must be float32 or float64, got {dtype}")
        self._parts: list[Array] = []

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    @property
    def nbytes(self) -> int:
        """Bytes that the samples take."""
        return sum(part.nbytes for part in self._parts)

    def update(self, confidence: Any, correct: Any) -> Samples:
        """Add samples; when they are refused, nothing has changed.

        Args:
            confidence: (N,) in [0, 1].
            correct: (N,) bool, or 0 and 1.

        Returns:
            The samples themselves.

        Raises:
            ValueError: A value out of its range or NaN (with its index), lengths that differ.
        """
        c = unit("confidence", column("confidence", to_numpy(confidence), self._floats))
        y = truth("correct", correct, c.shape)
        bits = (c + 0).view(f"u{c.itemsize}")  # + 0: of two zeros, the one without a sign; the sign bit is free
        self._parts.append(bits << 1 | y)
        return self

    def merge(self, other: Samples) -> Samples:
        """Return the samples of both; neither changes.

        Raises:
            ValueError: Another dtype.
        """
        if other._floats != self._floats:
            raise ValueError(f"`other` must hold {self._floats}, got {other._floats}")
        merged = Samples(self._floats)
        merged._parts = [*self._parts, *other._parts]
        return merged

    def calibration(self, bins: int = 15) -> Calibration:
        """Return :func:`calibration` in bins of equal mass."""
        return calibration(*self._columns(), bins=bins, binning="mass")

    def ranks(self) -> Ranks:
        """Return their :class:`Ranks`."""
        return Ranks(*self._columns())

    def reset(self) -> None:
        """Forget all samples."""
        self._parts = []

    def to_arrays(self) -> dict[str, Array]:
        """Return the state as plain arrays, to save or to send to another process.

        Returns:
            "samples", (N,) uint32 or uint64: the bits of each confidence, and in the lowest one the outcome.
        """
        return {"samples": self._packed()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> Samples:
        """Return the samples that :meth:`to_arrays` took apart.

        Raises:
            ValueError: Another shape or type, or a confidence outside [0, 1].

        Example:
            >>> arrays = Samples().update([0.9, 0.8], [True, False]).to_arrays()
            >>> len(Samples.from_arrays(arrays))
            2
        """
        packed = to_numpy(arrays["samples"])
        if packed.ndim != 1 or packed.dtype not in (np.uint32, np.uint64):
            raise ValueError(f"`samples` must be (N,) uint32 or uint64, got {packed.shape} {packed.dtype}")
        found = cls(f"f{packed.itemsize}")
        found._parts = [packed]
        unit("samples", found._columns()[0])
        return found

    def _packed(self) -> Array:
        return np.concatenate([np.empty(0, f"u{self._floats.itemsize}"), *self._parts])

    def _columns(self) -> tuple[Array, Array]:
        packed = self._packed()
        return (packed >> 1).view(self._floats), (packed & 1).astype(np.bool_)


class Ranks:
    """Samples in the order of their confidences: what that order says about the outcomes, from one sort.

    Samples with equal confidences count as their expectation over all orders, in closed form: the order in which they
    come does not change a bit. Every method is one scan of the sorted samples.

    A weight says how many samples one stands for: whole weights are repetitions. In AUROC, average precision, coverage
    and risk only their ratios count. AURC, E-AURC, AUGRC and the risk at a coverage go sample by sample, so there a
    weight of 2 is two samples, not one that counts twice: do not scale weights to add up to 1.

    Args:
        confidence: (N,) float32 or float64, any order and range, +-inf allowed; only the order counts.
        correct: (N,) bool, or 0 and 1.
        weight: (N,) 0 or in [1e-100, 1e100], or None for 1; slower than None.

    Raises:
        ValueError: A NaN confidence, outcomes other than 0 and 1, a weight out of range, lengths that differ.

    Example:
        >>> ranks = Ranks([0.9, 0.8, 0.8, 0.1], [1, 1, 0, 0])
        >>> ranks.auroc(), round(ranks.aurc(), 4)
        (0.875, 0.2708)
        >>> Ranks([0.9, 0.8, 0.1], [1, 0, 1], weight=[3, 1, 1]).auroc()
        0.75

    Source: Geifman, Uziel and El-Yaniv (arXiv 1805.08206); Traub et al. (arXiv 2407.01032).
    """

    def __init__(self, confidence: Any, correct: Any, weight: Any = None) -> None:
        c = confidences(confidence)
        y = np.ascontiguousarray(truth("correct", correct, c.shape))
        self._dtype = to_numpy(confidence).dtype
        self._core = _core.Ranks(c, y) if weight is None else _WeightedRanks(c, y, weights(weight, len(c)))

    @property
    def n(self) -> float:
        """Samples, or the sum of their weights."""
        return self._core.num_samples

    @property
    def errors(self) -> float:
        """Samples that are wrong, or the sum of their weights."""
        return self._core.num_errors

    def auroc(self) -> float:
        """See :func:`auroc`."""
        return self._core.auroc()

    def average_precision(self) -> float:
        """See :func:`average_precision`."""
        return self._core.average_precision()

    def aurc(self) -> float:
        """See :func:`aurc`."""
        return self._core.aurc()

    def eaurc(self) -> float:
        """See :func:`eaurc`."""
        return float(np.maximum(self._core.aurc() - self._core.best_aurc(), 0))  # keeps a NaN

    def augrc(self) -> float:
        """See :func:`augrc`."""
        return self._core.augrc()

    def risk_coverage(self) -> tuple[Floats, Floats, Floats]:
        """See :func:`risk_coverage`."""
        kept, errors, threshold = self._core.curve()
        return kept / kept[-1:], errors / kept, threshold.astype(self._dtype, copy=False)

    def coverage_at_risk(self, risk: float) -> tuple[float, float]:
        """See :func:`coverage_at_risk`."""
        coverage, found, threshold = self.risk_coverage()
        fit = np.flatnonzero(found <= risk)
        return (float(coverage[fit[-1]]), float(threshold[fit[-1]])) if fit.size else (0.0, float("nan"))

    def risk_at_coverage(self, coverage: float) -> float:
        """See :func:`risk_at_coverage`."""
        if not 0 <= coverage <= 1:
            raise ValueError(f"`coverage` must lie in [0, 1], got {coverage}")
        if not self.n:
            return float("nan")
        kept, errors, _ = self._core.curve()
        wanted = min(self.n, max(1, math.ceil(coverage * self.n * (1 - 1e-12))))  # q n, but for the rounding of q
        block = int(np.searchsorted(kept, wanted))
        end, wrong = kept[block].item(), errors[block].item()
        start, before = (kept[block - 1].item(), errors[block - 1].item()) if block else (0, 0)
        return float((before + (wrong - before) * (wanted - start) / (end - start)) / wanted)


def auroc(score: Any, correct: Any, weight: Any = None) -> float:
    """P(score of a correct sample > score of a wrong one), ties counting half; NaN with one class only.

    Without weights counted in integers, so exact up to the last division.

    Args:
        score: (N,) any order; +-inf allowed.
        correct: (N,) bool, or 0 and 1.
        weight: (N,) what each sample counts, or None for 1; see :class:`Ranks`.

    Returns:
        In [0, 1], or NaN.

    Raises:
        ValueError: A NaN score, outcomes other than 0 and 1, a weight out of range, lengths that differ.

    Example:
        >>> auroc([0.9, 0.8, 0.8, 0.1], [1, 1, 0, 0])
        0.875

    Source: Mann and Whitney (1947); Fawcett (2006).
    """
    return Ranks(score, correct, weight).auroc()


def average_precision(score: Any, correct: Any, weight: Any = None) -> float:
    """Sum over thresholds of the recall gained there times the precision; NaN without a correct sample.

    Tied samples share a threshold: all tied gives the share of correct ones.

    Args:
        score: (N,) any order; +-inf allowed.
        correct: (N,) bool, or 0 and 1.
        weight: (N,) what each sample counts, or None for 1; see :class:`Ranks`.

    Returns:
        In (0, 1], or NaN.

    Raises:
        ValueError: A NaN score, outcomes other than 0 and 1, a weight out of range, lengths that differ.

    Example:
        >>> round(average_precision([0.9, 0.8, 0.7, 0.1], [1, 0, 1, 0]), 4)
        0.8333

    Source: Davis and Goadrich (ICML 2006).
    """
    return Ranks(score, correct, weight).average_precision()


def risk_coverage(confidence: Any, correct: Any, weight: Any = None) -> tuple[Floats, Floats, Floats]:
    """Risk (error rate) of the samples kept, against the share kept, at every threshold that can be chosen.

    Args:
        confidence: (N,) any order; only the order counts.
        correct: (N,) bool, or 0 and 1.
        weight: (N,) what each sample counts, or None for 1; see :class:`Ranks`.

    Returns:
        coverage, risk and threshold, one entry per distinct confidence, from the most confident: keeping the
        samples with confidence >= threshold[j] keeps a share coverage[j] with error rate risk[j].

    Raises:
        ValueError: A NaN confidence, outcomes other than 0 and 1, a weight out of range, lengths that differ.

    Example:
        >>> [column.tolist() for column in risk_coverage([0.9, 0.5, 0.5, 0.2], [1, 1, 0, 0])]
        [[0.25, 0.75, 1.0], [0.0, 0.3333333333333333, 0.5], [0.9, 0.5, 0.2]]

    Source: El-Yaniv and Wiener (JMLR 2010); Geifman and El-Yaniv (arXiv 1705.08500).
    """
    return Ranks(confidence, correct, weight).risk_coverage()


def aurc(confidence: Any, correct: Any, weight: Any = None) -> float:
    """Mean over j = 1..n of the risk of the j most confident samples; NaN without samples.

    Ties count as their expectation over all orders, in closed form: after a samples with E errors, a block of
    m with k errors adds (E - k/m a)(H_{a+m} - H_a) + k, where H is the harmonic number.

    Args:
        confidence: (N,) any order; only the order counts.
        correct: (N,) bool, or 0 and 1.
        weight: (N,) what each sample counts, or None for 1; see :class:`Ranks`.

    Returns:
        In [0, 1]; lower is better.

    Raises:
        ValueError: A NaN confidence, outcomes other than 0 and 1, a weight out of range, lengths that differ.

    Example:
        >>> aurc([0.5, 0.5], [1, 0])
        0.5

    Source: Geifman, Uziel and El-Yaniv (arXiv 1805.08206).
    """
    return Ranks(confidence, correct, weight).aurc()


def eaurc(confidence: Any, correct: Any, weight: Any = None) -> float:
    """:func:`aurc` less that of the best order, all correct samples first; NaN without samples.

    Args:
        confidence: (N,) any order; only the order counts.
        correct: (N,) bool, or 0 and 1.
        weight: (N,) what each sample counts, or None for 1; see :class:`Ranks`.

    Returns:
        At least 0, up to rounding 0 for the best order; lower is better.

    Raises:
        ValueError: A NaN confidence, outcomes other than 0 and 1, a weight out of range, lengths that differ.

    Example:
        >>> eaurc([0.9, 0.2], [1, 0]), eaurc([0.9, 0.2], [0, 1])
        (0.0, 0.5)

    Source: Geifman, Uziel and El-Yaniv (arXiv 1805.08206) §5.
    """
    return Ranks(confidence, correct, weight).eaurc()


def augrc(confidence: Any, correct: Any, weight: Any = None) -> float:
    """Mean over j = 1..n of the errors among the j most confident samples, over n; NaN without samples.

    With k errors among n: ((1 - AUROC) k (n - k) + k (k + 1) / 2) / n^2, ties included. Without weights
    counted in integers.

    Args:
        confidence: (N,) any order; only the order counts.
        correct: (N,) bool, or 0 and 1.
        weight: (N,) what each sample counts, or None for 1; see :class:`Ranks`.

    Returns:
        In [0, (n + 1) / 2n]; lower is better.

    Raises:
        ValueError: A NaN confidence, outcomes other than 0 and 1, a weight out of range, lengths that differ.

    Example:
        >>> augrc([0.9, 0.2], [1, 0])
        0.25

    Source: Traub et al. (arXiv 2407.01032).
    """
    return Ranks(confidence, correct, weight).augrc()


def coverage_at_risk(confidence: Any, correct: Any, risk: float, weight: Any = None) -> tuple[float, float]:
    """Largest share that a threshold can keep with an error rate of at most `risk`.

    Args:
        confidence: (N,) any order; only the order counts.
        correct: (N,) bool, or 0 and 1.
        risk: Largest error rate.
        weight: (N,) what each sample counts, or None for 1; see :class:`Ranks`.

    Returns:
        The share, 0 where no threshold does, and the threshold: keep confidences at or above it; NaN for none.

    Raises:
        ValueError: A NaN confidence, outcomes other than 0 and 1, a weight out of range, lengths that differ.

    Example:
        >>> coverage_at_risk([0.9, 0.8, 0.5, 0.2], [1, 1, 0, 0], 0.4)
        (0.75, 0.5)

    Source: Geifman and El-Yaniv (arXiv 1705.08500).
    """
    return Ranks(confidence, correct, weight).coverage_at_risk(risk)


def risk_at_coverage(confidence: Any, correct: Any, coverage: float, weight: Any = None) -> float:
    """Error rate of the ceil(coverage * n) most confident samples, at least one; NaN without samples.

    Where the cut falls into a run of ties, its expectation over their orders.

    Args:
        confidence: (N,) any order; only the order counts.
        correct: (N,) bool, or 0 and 1.
        coverage: Share to keep, in [0, 1].
        weight: (N,) what each sample counts, or None for 1; see :class:`Ranks`.

    Returns:
        In [0, 1]; lower is better.

    Raises:
        ValueError: A NaN confidence, outcomes other than 0 and 1, a weight or `coverage` out of range, lengths that
            differ.

    Example:
        >>> risk_at_coverage([0.9, 0.8, 0.5, 0.2], [1, 1, 0, 0], 0.5)
        0.0

    Source: Geifman and El-Yaniv (arXiv 1705.08500).
    """
    return Ranks(confidence, correct, weight).risk_at_coverage(coverage)


def catalogue_coverage(ranked: Any, num_items: int, k: int) -> float:
    """Share of the catalogue that appears in the first k of any list.

    Args:
        ranked: (N, K) integer ids, best first; -1 is padding.
        num_items: Items in the catalogue.
        k: Cut, in [1, K].

    Returns:
        In [0, 1].

    Raises:
        ValueError: Shapes that do not fit, `k` out of range, more different items than there are.

    Example:
        >>> catalogue_coverage([[4, 9], [9, -1]], num_items=10, k=2)
        0.2

    Source: Ge, Delgado-Battenfeld and Jannach (RecSys 2010).
    """
    top = _top(ranked, k)
    shown = len(np.unique(top[top != -1]))
    if shown > at_least(num_items, "num_items", 1):
        raise ValueError(f"`num_items` must be at least {shown}, the different items ranked, got {num_items}")
    return shown / num_items


def mean_popularity(ranked: Any, popularity: Any, k: int) -> Floats:
    """Mean popularity of the first k items of each list: the average recommendation popularity.

    Args:
        ranked: (N, K) integer ids, best first; -1 is padding and does not count.
        popularity: (num_items,) of each item: interactions in the training data, or their share.
        k: Cut, in [1, K].

    Returns:
        (N,) in the unit of `popularity`, NaN for a list without items; its mean is the metric.

    Raises:
        ValueError: Shapes that do not fit, `k` or an id out of range.

    Example:
        >>> mean_popularity([[0, 2], [1, -1]], [30, 20, 10], k=2).tolist()
        [20.0, 20.0]

    Source: Yin et al. (arXiv 1205.6700); Abdollahpouri et al. (arXiv 1901.07555).
    """
    top, values = _top(ranked, k), np.asarray(to_numpy(popularity), np.float64)
    if values.ndim != 1 or ((top < -1) | (top >= len(values))).any():
        raise ValueError(f"`ranked` must hold ids of the {values.shape} items of `popularity`, or -1")
    there = top != -1
    return _mean(np.where(there, np.append(values, 0)[top], 0).sum(1), there.sum(1, dtype=np.float64))


def _rank(ranked: Any, target: Any, k: int) -> npt.NDArray[np.int64]:
    """0-based rank of each target, K where it is not among the ranked."""
    lists, wanted = to_numpy(ranked), to_numpy(target)
    if lists.ndim != 2 or wanted.shape != lists.shape[:1]:
        raise ValueError(f"`ranked` must be (N, K) and `target` (N,), got {lists.shape} and {wanted.shape}")
    _top(lists, k)
    hit = (lists == wanted[:, None]) & (lists != -1)  # (N, K)
    rank: npt.NDArray[np.int64] = np.where(hit.any(1), hit.argmax(1), lists.shape[1])
    return rank


def _top(ranked: Any, k: int) -> Array:
    """The first k of each list."""
    lists = to_numpy(ranked)
    if lists.ndim != 2:
        raise ValueError(f"`ranked` must be (N, K), got {lists.shape}")
    if not 1 <= k <= lists.shape[1]:
        raise ValueError(f"`k` must lie in [1, {lists.shape[1]}], the number of ranked items, got {k}")
    top: Array = lists[:, :k]
    return top


def _bins(bins: int) -> int:
    if not 1 <= bins <= 65536:
        raise ValueError(f"`bins` must lie in [1, 65536], got {bins}")
    return bins


def _summary(lower: Floats, upper: Floats, sums: npt.NDArray[np.uint64]) -> Calibration:
    count, (w, ww, c, y, cc, cy, yy, difference) = _core.calibration_totals(sums)
    n, filled = int(count.sum()), count > 0
    gap, share = np.abs(difference)[filled] / w[filled], w[filled] / w.sum()
    error = np.sum(cc - 2 * cy + yy) / w.sum() if n else 0
    scalars = (share @ gap, gap.max(initial=0), np.sqrt(share @ gap**2), np.maximum(error, 0))
    ece, mce, rmsce, brier = (float(scalar) if n else float("nan") for scalar in scalars)
    return Calibration(
        lower=lower,
        upper=upper,
        count=count,
        weight=w,
        effective=np.divide(w, _mean(ww, w), out=count.astype(np.float64), where=ww > 0).clip(filled, count),
        confidence=_mean(c, w),
        accuracy=_mean(y, w),
        moments=np.stack([_mean(square, w) for square in (cc, cy, yy)]),
        ece=ece,
        mce=mce,
        rmsce=rmsce,
        brier=brier,
        n=n,
    )


def _mean(terms: Floats, weight: Floats) -> Floats:
    """`terms` over `weight`, NaN where that is 0."""
    return np.divide(terms, weight, out=np.full_like(terms, np.nan), where=weight > 0)


class _WeightedRanks:
    """What `_core.Ranks` says, of samples that stand for as many as their weights."""

    def __init__(self, score: Array, correct: Array, weight: Floats) -> None:
        refuse("confidence", score, ~np.isnan(score), "must not be NaN")
        order = np.lexsort((weight, correct, -score))  # by all of it: no sum depends on the order of the samples
        order = order[weight[order] > 0]
        s, y, w = score[order], correct[order], weight[order]
        start = np.flatnonzero(np.append(True, s[1:] != s[:-1])[: len(s)])
        self._threshold = s[start].astype(np.float64)
        self._hits, self._errors = (np.add.reduceat(np.where(own, w, 0), start) for own in (y, y == 0))
        self._size = self._hits + self._errors
        self._kept, self._wrong = np.cumsum(self._size), np.cumsum(self._errors)

    @property
    def num_samples(self) -> float:
        return float(self._kept[-1:].sum())

    @property
    def num_errors(self) -> float:
        return float(self._wrong[-1:].sum())

    def auroc(self) -> float:
        below = self.num_errors - self._wrong
        return _part(self._hits @ (below + self._errors / 2), self._hits.sum() * self.num_errors)

    def average_precision(self) -> float:
        return _part(self._hits @ (np.cumsum(self._hits) / self._kept), self._hits.sum())

    def aurc(self) -> float:
        kept, wrong = self._kept - self._size, self._wrong - self._errors  # above each block
        risks = (wrong - self._errors / self._size * kept) * _harmonic(kept, self._size) + self._errors
        return _part(risks.sum(), self.num_samples)

    def best_aurc(self) -> float:
        hits = self._hits.sum()
        return _part(self.num_errors - hits * _harmonic(hits, self.num_errors), self.num_samples)

    def augrc(self) -> float:
        twice = 2 * self._size * (self._wrong - self._errors) + self._errors * (self._size + 1)
        return float(twice.sum() / 2 / self.num_samples**2) if len(twice) else float("nan")

    def curve(self) -> tuple[Floats, Floats, Floats]:
        return self._kept, self._wrong, self._threshold


def _part(part: Any, whole: Any) -> float:
    """`part` of `whole`, not above 1 by rounding; NaN of nothing."""
    return min(float(part / whole), 1.0) if whole else float("nan")


def _harmonic(start: Any, length: Any) -> Any:
    """1 / (start + 1) + ... + 1 / (start + length), and between whole numbers digamma's difference.

    Twenty steps of its recurrence, from where on its series is exact; one logarithm, so that little cancels.

    Source: NIST DLMF 5.5.2, and 5.11.8 at h = 1/2, derived.
    """
    end, steps = start + length, 20
    head = sum(length / ((start + i) * (end + i)) for i in range(1, steps + 1))

    def series(x: Any) -> Any:
        square = 1 / (x * x)
        return square * (1 / 24 - square * (7 / 960 - square * (31 / 8064 - square * (127 / 30720))))

    low, high = start + steps + 0.5, end + steps + 0.5
    return head + np.log1p(length / low) + series(high) - series(low)
