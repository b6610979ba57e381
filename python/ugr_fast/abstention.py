"""When to answer: a threshold on the confidence, with a guarantee for the risk among those who get an answer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from ugr_fast.arrays import AnyArray, Array, like, to_numpy, truth

Testing = Literal["fixed_sequence", "bonferroni"]
Bools = npt.NDArray[np.bool_]

PLACING = 5
"""One user in so many places the candidates, and so cannot test them."""
CANDIDATES = 40
"""Shares of users, evenly spaced up to 1, whose thresholds are the candidates."""
STARTS = 4
"""Of the sequences of tests, evenly spaced from the highest candidate to the lowest: delta is shared among them."""


class Answered(NamedTuple):
    """What a threshold did to some users."""

    answered: int
    """Users with an answer."""
    share: float
    """Of all users; NaN if there are none."""
    risk: float
    """Errors among those answered; NaN if there are none."""


@dataclass(frozen=True)
class RiskThreshold:
    """A threshold on the confidence, and what the users that it was tested on say of the risk above it."""

    threshold: float | None
    """Users of at least this confidence are answered; -inf: all are, None: nobody is."""
    answered: int
    """Users of the test that are answered."""
    share: float
    """Of all users of the test."""
    risk: float
    """Errors among those answered; NaN if nobody is."""
    upper_bound: float
    """Clopper and Pearson's for their risk, at the level of its test; NaN if nobody is answered."""
    max_risk: float
    """What was asked for."""
    delta: float
    """Probability that the risk is above it after all."""
    num_users: int
    """Users of the test: without those who placed the candidates."""
    reason: str | None
    """Why nobody is answered; else None."""

    def answers(self, confidence: AnyArray) -> AnyArray:
        """Who is answered: bool, in the shape and kind of `confidence`."""
        array = to_numpy(confidence)
        return like(confidence, np.asarray(array >= (math.nan if self.threshold is None else self.threshold)))

    def realised(self, confidence: Any, correct: Any) -> Answered:
        """What it comes to on other users, to be reported beside the promise.

        Args:
            confidence: (N,) real numbers.
            correct: (N,) bool, or 0 and 1.

        Returns:
            The number and share of those answered, and the risk among them.

        Raises:
            ValueError: A NaN confidence, outcomes other than 0 and 1, shapes that do not fit.

        Example:
            >>> rule = risk_threshold(np.linspace(0, 1, 101), np.arange(101) >= 50, max_risk=0.2)
            >>> rule.realised([0.9, 0.8, 0.2], [1, 0, 0])
            Answered(answered=2, share=0.6666666666666666, risk=0.5)
        """
        c, wrong = _users(confidence, correct)
        kept = self.answers(c)
        share, risk = (float(x.mean()) if x.size else math.nan for x in (kept, wrong[kept]))
        return Answered(int(kept.sum()), share, risk)


def risk_threshold(
    confidence: Any,
    correct: Any,
    max_risk: float,
    delta: float = 0.1,
    *,
    thresholds: Any = None,
    testing: Testing = "fixed_sequence",
) -> RiskThreshold:
    """The threshold that answers the most users and keeps the risk among those answered at or below `max_risk`.

    With probability at least 1 - delta over the calibration users, P(wrong | confidence >= threshold) <= max_risk,
    whatever the confidences are worth. Each candidate t is tested by the m users with confidence >= t, k of them wrong:
    given m, k is binomial, so under risk > max_risk the tail P(Binomial(m, max_risk) <= k) falls below a level no more
    often than the level says. `"fixed_sequence"` tests downward from four candidates, the highest, the lowest and
    two between them, at level delta / 4, each time until one fails: a few errors of the most confident users then
    cost one sequence, not the promise. `"bonferroni"` tests all J at level delta / J. Where a risk can be promised, so
    can a higher one, and then to no fewer users.

    This needs candidates that do not depend on the users who test them: where those would set the thresholds as well,
    the first one that is too low would depend on whom it counts. So, unless `thresholds` are given, every
    fifth user lends a confidence and nothing else: candidates are what answers 2.5%, 5%, ..., all of those. The
    other four fifths test.

    It also needs users who are drawn independently and like those to come, and a confidence that was not fitted to
    their outcomes. A temporal split breaks the former: report `realised` on later users beside the promise.

    Args:
        confidence: (N,) real numbers, N >= 1, in any order but one that depends on the outcomes; users with equal
            confidence are answered together.
        correct: (N,) bool, or 0 and 1: hit@k of each user, for the k that the promise is to name.
        max_risk: Largest acceptable share of errors among those answered, in (0, 1): 1 - hit@k.
        delta: Acceptable probability that the promise fails, in (0, 1).
        thresholds: (J,) candidates, J >= 1, chosen without a look at these users, such as quantiles of the confidence
            on others. All users then test.
        testing: `"fixed_sequence"` or `"bonferroni"`, see above.

    Returns:
        The threshold, or None with the reason, and the numbers behind it.

    Raises:
        ValueError: NaN, outcomes other than 0 and 1, shapes that do not fit, no user, `max_risk` or `delta` out of
            range, an unknown `testing`.

    Example:
        >>> confidence, correct = np.linspace(0, 1, 101), np.arange(101) >= 50
        >>> rule = risk_threshold(confidence, correct, max_risk=0.2)
        >>> round(rule.threshold, 2), rule.answered, round(rule.risk, 3), round(rule.upper_bound, 3)
        (0.49, 41, 0.0, 0.086)
        >>> print(risk_threshold(confidence, correct, max_risk=0.01).reason[:68])
        no candidate passes: the 41 users at 0.49 or more have 0 errors; for

    Source: Angelopoulos et al., Learn then Test (arXiv 2110.01052) §2, multi-start fixed sequences; Geifman and
        El-Yaniv (arXiv 1705.08500); Clopper and Pearson (Biometrika 1934).
    """
    for name, value in (("max_risk", max_risk), ("delta", delta)):
        if not 0 < value < 1:
            raise ValueError(f"`{name}` must lie between 0 and 1, got {value}")
    if testing not in get_args(Testing):
        raise ValueError(f"`testing` must be one of {', '.join(get_args(Testing))}, got {testing!r}")
    c, wrong = _users(confidence, correct)
    if not len(c):
        raise ValueError("`confidence` must hold at least one user, got none")
    if thresholds is None:
        places = np.arange(len(c)) % PLACING == PLACING - 1
        candidates = _place(c[places])
        c, wrong = c[~places], wrong[~places]
    else:
        candidates = _given(thresholds)
    starts = np.unique(np.linspace(0, len(candidates) - 1, STARTS).round().astype(int))
    level = delta / (len(starts) if testing == "fixed_sequence" else len(candidates))
    tests = [_test(threshold, c, wrong, max_risk) for threshold in candidates]
    passes = [test.p_value <= level for test in tests]
    if testing == "fixed_sequence":
        passes = [any(all(passes[start : at + 1]) for start in starts if start <= at) for at in range(len(tests))]
    return _choose(tests, passes, level, len(c), max_risk, delta)


def binomial_cdf(k: int, n: int, p: float) -> float:
    """P(Binomial(n, p) <= k), to about 11 digits.

    The terms of the shorter tail, each from the one before it; the first by Loader's expansion, whose errors do not
    grow with n as those of log-gamma functions do.

    Args:
        k: Any whole number.
        n: Trials, >= 0.
        p: Probability of each, in [0, 1].

    Returns:
        In [0, 1].

    Example:
        >>> round(binomial_cdf(1, 3, 0.5), 12)
        0.5

    Source: Loader, Fast and Accurate Computation of Binomial Probabilities (2000).
    """
    if k < 0 or k >= n or p in (0, 1):
        return float(k >= (n if p == 1 else 0))
    if k > n * p:
        return 1 - binomial_cdf(n - k - 1, n, 1 - p)
    term = total = 1.0
    for i in range(k, 0, -1):
        term *= i * (1 - p) / ((n - i + 1) * p)
        total += term
        if term < 1e-17 * total:
            break
    return min(1.0, total * math.exp(_log_pmf(k, n, p)))


def risk_upper_bound(errors: int, answered: int, delta: float) -> float:
    """The largest risk under which so few errors come with a probability above `delta`: 1 without an answer.

    sup {r: P(Binomial(answered, r) <= errors) > delta}, by bisection down to neighbouring floats.

    Args:
        errors: In [0, answered].
        answered: Users, >= 0.
        delta: In (0, 1).

    Returns:
        In [0, 1]; the risk is at most this with probability at least 1 - delta.

    Example:
        >>> round(risk_upper_bound(0, 10, 0.05), 4), round(1 - 0.05 ** (1 / 10), 4)
        (0.2589, 0.2589)

    Source: Clopper and Pearson (Biometrika 1934).
    """
    low, high = 0.0, 1.0
    while errors < answered and low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if binomial_cdf(errors, answered, middle) > delta else (low, middle)
    return high


def _log_pmf(k: int, n: int, p: float) -> float:
    if k == 0:
        return n * math.log1p(-p)
    distance = _deviance(k, n * p) + _deviance(n - k, n * (1 - p))  # 0 < k < n
    return (
        _stirling_error(n)
        - _stirling_error(k)
        - _stirling_error(n - k)
        - distance
        + math.log(n / (2 * math.pi * k * (n - k))) / 2
    )


def _deviance(x: float, mean: float) -> float:
    """Of one outcome: x ln(x / mean) + mean - x, x > 0."""
    excess = (mean - x) / x
    return x * (excess - math.log1p(excess))


def _stirling_error(n: int) -> float:
    """What Stirling's formula leaves of ln n!, n > 0."""
    if n < 16:
        return math.lgamma(n + 1) - (n + 0.5) * math.log(n) + n - math.log(2 * math.pi) / 2
    return (1 / 12 - (1 / 360 - (1 / 1260 - 1 / (1680 * n * n)) / (n * n)) / (n * n)) / n


# ---- candidates and their tests


class _Test(NamedTuple):
    threshold: float
    answered: int
    errors: int
    p_value: float


def _test(threshold: float, confidence: Array, wrong: Bools, max_risk: float) -> _Test:
    kept = confidence >= threshold
    answered, errors = int(kept.sum()), int(wrong[kept].sum())
    return _Test(float(threshold), answered, errors, binomial_cdf(errors, answered, max_risk))


def _choose(
    tests: list[_Test], passes: list[bool], level: float, num_users: int, max_risk: float, delta: float
) -> RiskThreshold:
    """The last of the tests that passed: candidates come from the highest down."""
    passed = [test for test, well in zip(tests, passes, strict=True) if well]
    if passed:
        threshold, answered, errors, _ = passed[-1]
        share, risk, bound = answered / num_users, errors / answered, risk_upper_bound(errors, answered, level)
        return RiskThreshold(threshold, answered, share, risk, bound, max_risk, delta, num_users, None)
    threshold, answered, errors, _ = min(tests, key=lambda test: test.p_value)
    reason = (
        f"no candidate passes: the {answered} users at {threshold:g} or more have {errors} errors; for a risk of "
        f"{max_risk} it takes {_least(max_risk, level)} users without one, or more with few"
    )
    return RiskThreshold(None, 0, 0.0, math.nan, math.nan, max_risk, delta, num_users, reason)


def _least(max_risk: float, level: float) -> int:
    """Users without an error who would do."""
    return math.ceil(math.log(level) / math.log1p(-max_risk))


def _place(confidence: Array) -> Array:
    """Thresholds that answer evenly spaced shares of these users, up to all, highest first."""
    shares = np.arange(1, CANDIDATES) / CANDIDATES
    ranks = np.ceil(shares * len(confidence)).astype(np.intp) - 1
    falling = np.sort(confidence)[::-1]
    placed = falling[ranks] if len(falling) else falling
    return np.append(np.unique(placed)[::-1], -np.inf)


def _given(thresholds: Any) -> Array:
    candidates = to_numpy(thresholds)
    if candidates.ndim != 1 or not candidates.size or np.isnan(candidates).any():
        raise ValueError(f"`thresholds` must be (J,) numbers, J >= 1, without NaN; got shape {candidates.shape}")
    return np.unique(candidates)[::-1]


def _users(confidence: Any, correct: Any) -> tuple[Array, Bools]:
    """Confidences, and who is wrong."""
    c = to_numpy(confidence)
    if c.ndim != 1:
        raise ValueError(f"`confidence` must have shape (N,), got {c.shape}")
    if np.isnan(c).any():
        raise ValueError(f"`confidence` must not be NaN, got one at index {int(np.isnan(c).argmax())}")
    return c, ~truth("correct", correct, c.shape)
