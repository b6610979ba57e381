"""Thresholds with a guarantee: exact tails, and the promise kept over many draws of calibration users."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st
from ugr_fast.abstention import RiskThreshold, binomial_cdf, risk_threshold, risk_upper_bound

TRIALS = st.integers(0, 60)
PROBABILITY = st.floats(1e-6, 1 - 1e-6) | st.sampled_from([0.1, 0.5, 0.7])


# ---- tails


@given(TRIALS, TRIALS, PROBABILITY)
def test_tails_equal_exact_sums(k, n, p):
    assert binomial_cdf(k, n, p) == pytest.approx(float(reference.binomial_cdf(k, n, p)), rel=1e-9, abs=1e-14)


@pytest.mark.parametrize(
    ("k", "n", "p"), [(240, 1000, 1 / 4), (3, 2000, 1 / 256), (690, 1000, 11 / 16), (760, 1000, 11 / 16)]
)
def test_long_tails(k, n, p):
    assert binomial_cdf(k, n, p) == pytest.approx(float(reference.binomial_cdf(k, n, p)), rel=1e-11)


def test_tails_at_their_ends():
    assert [binomial_cdf(k, 3, 0.5) for k in (-1, 0, 3, 9)] == pytest.approx([0, 1 / 8, 1, 1])
    assert [binomial_cdf(2, 3, p) for p in (0, 1)] == [1, 0]
    assert binomial_cdf(0, 0, 0.5) == 1
    assert binomial_cdf(99_000, 1_000_000, 0.1) == pytest.approx(0.5 * math.erfc(10 / 3 / math.sqrt(2)), rel=0.02)


@given(TRIALS, TRIALS, st.floats(1e-4, 0.9999))
def test_the_bound_is_where_the_tail_is_delta(errors, others, delta):
    bound = risk_upper_bound(errors, errors + others, delta)
    if not others:
        assert bound == 1
        return
    at, below = (reference.binomial_cdf(errors, errors + others, r) for r in (bound * (1 + 1e-9), bound * (1 - 1e-9)))
    assert at <= Fraction(delta) <= below
    if not errors:
        assert bound == pytest.approx(1 - delta ** (1 / others), rel=1e-9)


# ---- thresholds


def plain(confidence, correct, max_risk, delta, candidates, testing):
    """The lowest candidate that passes, or None; exact."""
    falling = sorted(set(candidates), reverse=True)
    starts = sorted({round(i * (len(falling) - 1) / 3) for i in range(4)})
    level, best = delta / len(starts if testing == "fixed_sequence" else falling), []
    for start in starts if testing == "fixed_sequence" else range(len(falling)):
        for t in falling[start:]:
            kept = [y for c, y in zip(confidence, correct, strict=True) if c >= t]
            if reference.binomial_cdf(kept.count(False), len(kept), max_risk) > level:
                break
            best.append(t)
            if testing == "bonferroni":
                break
    return min(best, default=None)


@given(
    st.lists(st.tuples(st.sampled_from([0.1, 0.3, 0.6, 0.9]), st.booleans()), min_size=1, max_size=40),
    st.lists(st.sampled_from([-1.0, 0.3, 0.5, 0.9, 1.0]), min_size=1, max_size=4),
    st.sampled_from([0.2, 0.5, 0.8]),
    st.sampled_from(["fixed_sequence", "bonferroni"]),
)
def test_given_candidates_are_tested_as_the_reference_does(users, candidates, max_risk, testing):
    c, y = (np.array(column) for column in zip(*users, strict=True))
    rule = risk_threshold(c, y, max_risk, 0.3, thresholds=candidates, testing=testing)
    assert rule.threshold == plain(c.tolist(), y.tolist(), max_risk, 0.3, candidates, testing)
    assert (rule.num_users, rule.max_risk, rule.delta) == (len(users), max_risk, 0.3)
    if rule.threshold is None:
        assert (rule.answered, rule.share) == (0, 0)
        assert math.isnan(rule.risk)
        assert "no candidate passes" in rule.reason
        assert not rule.answers(c).any()
    else:
        kept = c >= rule.threshold
        assert (rule.answered, rule.share, rule.risk) == (kept.sum(), kept.mean(), pytest.approx(1 - y[kept].mean()))
        assert rule.risk <= rule.upper_bound <= max_risk + 1e-12
        assert rule.reason is None
        np.testing.assert_array_equal(rule.answers(c), kept)


def test_every_fifth_user_places_and_the_others_test():
    confidence, correct = np.linspace(0, 1, 101), np.arange(101) >= 50
    placing = np.arange(101) % 5 == 4
    rule = risk_threshold(confidence, correct, 0.2)
    assert rule.num_users == 81
    assert rule.threshold in confidence[placing]
    flipped = risk_threshold(confidence, np.where(placing, ~correct, correct), 0.2)
    assert flipped == rule  # their outcomes do not matter
    placed = np.sort(confidence[placing])[::-1]  # 20 users, for 39 shares and all
    same = risk_threshold(confidence[~placing], correct[~placing], 0.2, thresholds=[*placed, -np.inf])
    assert same == rule


def test_a_sure_model_answers_everyone():
    rule = risk_threshold(np.linspace(0, 1, 200), np.ones(200), 0.1)
    assert (rule.threshold, rule.share, rule.risk) == (-math.inf, 1, 0)
    assert rule.upper_bound == pytest.approx(1 - (0.1 / 4) ** (1 / 160))  # four sequences share delta
    assert rule.answers(np.array([-5.0, 0.5])).all()


@pytest.mark.parametrize("n", [1, 2, 5, 9, 24])
def test_few_users(n):
    rule = risk_threshold(np.full(n, 0.5), np.ones(n), 0.1)
    assert rule.threshold is None
    least = 22 if n < 5 else 29  # where some users place candidates, two sequences share delta: one confidence, and all
    assert rule.reason.endswith(f"for a risk of 0.1 it takes {least} users without one, or more with few")
    assert risk_threshold(np.full(n, 0.5), np.ones(n), 0.99).threshold is not None


@given(st.integers(0, 10**6), st.integers(20, 400), st.sampled_from(["fixed_sequence", "bonferroni"]))
def test_a_higher_risk_is_promised_to_no_fewer(seed, n, testing):
    random = np.random.default_rng(seed)
    confidence = random.random(n).round(2)
    correct = random.random(n) < confidence ** random.choice([0.0, 0.3, 1.0, 3.0])
    found = [risk_threshold(confidence, correct, risk / 20, testing=testing) for risk in range(1, 20)]
    shares = [rule.share for rule in found]
    assert shares == sorted(shares)


def test_errors_of_the_surest_do_not_cost_the_promise():
    """Two of the most confident are wrong, and everybody else is right three times in four."""
    confidence = np.linspace(1, 0, 400)
    correct = np.arange(400) % 4 != 0
    correct[:3] = False
    assert risk_threshold(confidence, correct, 0.4).share == 1


def test_equal_confidences_are_answered_together():
    confidence, correct = np.repeat([1.0, 0.5], 100), np.repeat([True, False], 100)
    shuffled = np.random.default_rng(0).permutation(200)
    rule = risk_threshold(confidence[shuffled], correct[shuffled], 0.1)
    assert rule.threshold == 1
    assert rule.answered == (confidence[shuffled][np.arange(200) % 5 != 4] == 1).sum()


def test_scores_of_any_kind():
    torch = pytest.importorskip("torch")
    score, correct = np.linspace(-9, 0, 300, dtype=np.float32), np.arange(300) > 100
    rule, same = (risk_threshold(s, y, 0.3) for s, y in ((score, correct), map(torch.from_numpy, (score, correct))))
    assert rule == same
    assert rule.threshold < 0
    answers = rule.answers(torch.from_numpy(score))
    assert answers.dtype == torch.bool
    np.testing.assert_array_equal(answers.numpy(), rule.answers(score))


def test_realised():
    rule = RiskThreshold(0.5, 9, 0.9, 0.1, 0.2, 0.2, 0.1, 10, None)
    assert rule.realised([0.5, 0.7, 0.2], [1, 0, 0]) == (2, pytest.approx(2 / 3), 0.5)
    assert math.isnan(rule.realised([0.1], [1]).risk)
    assert math.isnan(rule.realised([], []).share)
    with pytest.raises(ValueError, match="NaN"):
        rule.realised([math.nan], [1])


@pytest.mark.parametrize(
    ("confidence", "correct", "options", "text"),
    [
        ([0.5, math.nan], [1, 0], {}, "`confidence` must not be NaN, got one at index 1"),
        ([[0.5]], [1], {}, r"`confidence` must have shape \(N,\)"),
        ([0.5], [1, 0], {}, r"`correct` must have shape \(1,\)"),
        ([0.5], [0.5], {}, "`correct` must hold booleans"),
        ([], [], {}, "at least one user"),
        ([0.5], [1], {"max_risk": 0}, "`max_risk` must lie between 0 and 1, got 0"),
        ([0.5], [1], {"max_risk": math.nan}, "`max_risk` must lie"),
        ([0.5], [1], {"delta": 1}, "`delta` must lie"),
        ([0.5], [1], {"testing": "holm"}, "`testing` must be one of fixed_sequence, bonferroni, got 'holm'"),
        ([0.5], [1], {"thresholds": []}, "`thresholds` must be"),
        ([0.5], [1], {"thresholds": [math.nan]}, "`thresholds` must be"),
        ([0.5], [1], {"thresholds": 0.5}, "`thresholds` must be"),
    ],
)
def test_bad_input(confidence, correct, options, text):
    with pytest.raises(ValueError, match=text):
        risk_threshold(confidence, correct, **{"max_risk": 0.1, **options})


# ---- the promise, on laws whose risk at every threshold is known

LEVELS = np.arange(100) / 100
LAWS = {
    "calibrated": 1 - LEVELS,
    "overconfident": 1 - LEVELS**3,
    "just above": np.full(100, 0.302),
    "upside down": 0.1 + 0.5 * LEVELS,
    "zigzag": np.where(np.arange(100) // 10 % 2, 0.15, 0.46),
    "the surest are wrong": np.where(LEVELS > 0.95, 1, 0.2),
    "three values": np.repeat([0.6, 0.302, 0.31], [50, 30, 20]),
}
MAX_RISK, DELTA, DRAWS = 0.3, 0.1, 600


def draws(law, n, seed):
    """Samples of users, and the risk of a threshold; the law of three values has ties only."""
    random, error = np.random.default_rng(seed), LAWS[law]
    values = np.repeat([0.2, 0.6, 0.9], [50, 30, 20]) if law == "three values" else LEVELS

    def risk(threshold):
        return error[values >= threshold].mean() if threshold is not None and (values >= threshold).any() else 0.0

    for _ in range(DRAWS):
        k = random.integers(0, 100, n)
        yield values[k], random.random(n) >= error[k], risk


def broken(law, choose, n=250):
    """Share of draws in which the risk among those answered is too high."""
    return np.mean([risk(choose(c, y)) > MAX_RISK for c, y, risk in draws(law, n, 0)])


ALLOWED = DELTA + 3 * math.sqrt(DELTA * (1 - DELTA) / DRAWS)


@pytest.mark.parametrize("testing", ["fixed_sequence", "bonferroni"])
@pytest.mark.parametrize("law", LAWS)
def test_the_promise_is_kept(law, testing):
    assert broken(law, lambda c, y: risk_threshold(c, y, MAX_RISK, DELTA, testing=testing).threshold) <= ALLOWED


def test_the_promise_is_not_kept_by_far_more_than_it_must():
    """A single candidate whose risk is just too high passes nearly as often as it may."""
    share = broken("just above", lambda c, y: risk_threshold(c, y, MAX_RISK, DELTA, thresholds=[0.0]).threshold)
    assert 0.5 * DELTA <= share <= ALLOWED


@pytest.mark.parametrize("law", ["calibrated", "just above", "zigzag"])
def test_the_risk_that_was_observed_keeps_no_promise(law):
    """The control: the lowest threshold whose own users have few enough errors."""

    def naive(c, y):
        candidates = [t for t in np.unique(c) if (~y[c >= t]).mean() <= MAX_RISK]
        return min(candidates, default=None)

    assert broken(law, naive) > 3 * DELTA


def test_it_answers_many_where_it_can():
    """Calibrated confidence: the risk above t is (1 - t) / 2, so that 60% may be answered."""
    rules = [risk_threshold(c, y, MAX_RISK, DELTA) for c, y, _ in draws("calibrated", 1000, 1)]
    assert 0.45 < np.mean([rule.share for rule in rules]) < 0.6
    assert all(rule.upper_bound <= MAX_RISK + 1e-12 for rule in rules if rule.threshold is not None)
