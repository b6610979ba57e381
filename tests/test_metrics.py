"""Ranking metrics, calibration bins and selective prediction, against counting by hand."""

import math

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st
from ugr_fast.metrics import aurc, auroc, calibration, mrr_at, ndcg_at, recall_at, risk_coverage, wilson

UNIT = st.floats(0, 1) | st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.6, 0.7, 1.0, -0.0])
SAMPLES = st.lists(st.tuples(UNIT, st.booleans()), min_size=1, max_size=30)
BINS = st.integers(1, 20)


def columns(samples):
    return np.array([c for c, _ in samples]), np.array([y for _, y in samples])


# ---- calibration


@given(SAMPLES, BINS, st.sampled_from([np.float32, np.float64]))
def test_equal_width_equals_the_reference(samples, bins, dtype):
    confidence, correct = columns(samples)
    confidence = confidence.astype(dtype)
    groups = [[i for i, c in enumerate(confidence) if reference.width_bin(c, bins, dtype) == k] for k in range(bins)]
    result = calibration(confidence, correct, bins=bins)
    assert result.count.tolist() == [len(g) for g in groups]
    check_summary(result, [g for g in groups if g], confidence, correct)


@given(SAMPLES, BINS)
def test_equal_mass_equals_the_reference(samples, bins):
    confidence, correct = columns(samples)
    groups = reference.mass_bins(confidence.tolist(), bins)
    result = calibration(confidence, correct, bins=bins, binning="mass")
    assert result.count.tolist() == [len(g) for g in groups]
    assert result.lower.tolist() == [min(confidence[g]) for g in groups]
    assert result.upper[-1] == confidence.max()
    check_summary(result, groups, confidence, correct)


def check_summary(result, groups, confidence, correct):
    gaps = reference.gaps(groups, confidence, correct)
    assert result.n == len(correct)
    assert result.ece == pytest.approx(float(sum(share * gap for share, gap in gaps)), abs=1e-12)
    assert result.mce == pytest.approx(float(max(gap for _, gap in gaps)), abs=1e-12)
    assert result.rmsce == pytest.approx(math.sqrt(sum(share * gap**2 for share, gap in gaps)), abs=1e-12)
    assert result.brier == pytest.approx(np.mean((confidence.astype(np.float64) - correct) ** 2), abs=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_edge_opens_its_bin(dtype):
    for bins in (*range(1, 130), 255, 256, 1000, 1023, 1024):
        edges = np.arange(bins, dtype=dtype) / dtype(bins)
        np.testing.assert_array_equal(calibration(edges, np.ones(bins), bins=bins).count, 1)
        below = np.nextafter(edges[1:], dtype(0))
        counts = calibration(below, np.ones(bins - 1), bins=bins).count
        np.testing.assert_array_equal(counts, [1] * (bins - 1) + [0])
    assert calibration(np.array([0, -0.0, 1], dtype), [1, 1, 1], bins=10).count[[0, 9]].tolist() == [2, 1]


def test_a_literal_follows_its_own_dtype():
    for literal in (0.1, 0.2, 0.3, 0.6, 0.7, 0.9):
        for dtype in (np.float32, np.float64):
            assert calibration(np.array([literal], dtype), [1], bins=10).count.argmax() == round(literal * 10)
    widened = np.array([0.7], np.float32).astype(np.float64)  # 0.699999988: another number
    assert calibration(widened, [1], bins=10).count.argmax() == 6


@given(SAMPLES, BINS, st.sampled_from(["width", "mass"]), st.randoms(use_true_random=False))
def test_order_changes_no_bit(samples, bins, binning, random):
    confidence, correct = columns(samples)
    order = random.sample(range(len(samples)), len(samples))
    a = calibration(confidence, correct, bins=bins, binning=binning)
    b = calibration(confidence[order], correct[order], bins=bins, binning=binning)
    for name in vars(a):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


@given(SAMPLES, BINS)
def test_bounds(samples, bins):
    confidence, correct = columns(samples)
    result, slack = calibration(confidence, correct, bins=bins), 1e-12
    assert abs(confidence.mean() - correct.mean()) <= result.ece + slack
    assert result.ece <= np.abs(confidence - correct).mean() + slack
    assert result.ece <= result.rmsce + slack
    assert result.rmsce <= result.mce + slack <= 1 + 2 * slack
    one = calibration(confidence, correct, bins=1)
    assert one.ece == pytest.approx(abs(confidence.mean() - correct.mean()), abs=1e-12)


@given(st.lists(UNIT, min_size=1, max_size=30), BINS)
def test_perfect_and_worst(confidence, bins):
    c = np.array(confidence)
    assert calibration(c, c, bins=bins).ece == 0
    assert calibration(c, c, bins=bins, binning="mass").ece == 0
    hard = (c > 0.5).astype(float)
    assert calibration(hard, hard, bins=bins).ece == 0
    if bins > 1:
        assert calibration(hard, 1 - hard, bins=bins).ece == 1


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60, unique=True), BINS)
def test_equal_mass_without_ties_is_even(confidence, bins):
    counts = calibration(np.array(confidence), np.ones(len(confidence)), bins=bins, binning="mass").count
    assert len(counts) == min(bins, len(confidence))
    assert counts.max() - counts.min() <= 1


def test_ties_share_a_bin():
    result = calibration(np.full(10, 0.7), np.arange(10) % 2, bins=15, binning="mass")
    assert result.count.tolist() == [10]
    assert result.ece == pytest.approx(0.2, abs=1e-15)


def test_blocks_join_seamlessly():
    random = np.random.default_rng(1)
    confidence, correct = random.random(10_001, np.float32), random.random(10_001) < 0.5
    result = calibration(confidence, correct, bins=7)
    k = np.searchsorted(np.arange(7, dtype=np.float32) / np.float32(7), confidence, "right") - 1
    np.testing.assert_array_equal(result.count, np.bincount(k))
    sums = np.bincount(k, confidence)
    np.testing.assert_allclose(result.confidence * result.count, sums, rtol=1e-12)


@pytest.mark.parametrize("kind", [bool, np.uint8, np.int64, np.float32, np.float64])
def test_outcomes_of_any_type(kind):
    expected = calibration([0.9, 0.8, 0.1], [True, False, False])
    assert calibration([0.9, 0.8, 0.1], np.array([1, 0, 0], kind)).ece == expected.ece


@pytest.mark.parametrize("binning", ["width", "mass"])
def test_no_samples(binning):
    result = calibration([], [], bins=3, binning=binning)
    assert (result.n, int(result.count.sum())) == (0, 0)
    assert all(math.isnan(x) for x in (result.ece, result.mce, result.rmsce, result.brier))


@pytest.mark.parametrize("binning", ["width", "mass"])
@pytest.mark.parametrize("bad", [1.5, -0.1, float("nan"), float("inf")])
def test_confidence_outside_the_unit_interval(binning, bad):
    confidence = np.full(3000, 0.5)
    confidence[2500] = bad
    with pytest.raises(ValueError, match=r"`confidence` must lie in \[0, 1\]; got .* at index 2500"):
        calibration(confidence, np.ones(3000), binning=binning)


@pytest.mark.parametrize(
    ("confidence", "correct", "options", "text"),
    [
        ([0.5], [2], {}, "`correct` must lie in"),
        ([0.5], [1.5], {}, r"`correct` must lie in \[0, 1\]; got 1.5 at index 0"),
        ([0.5], [1, 0], {}, "`correct` must have length 1, got 2"),
        ([[0.5]], [1], {}, r"`confidence` must have shape \(N,\)"),
        ([0.5], [[1]], {}, r"`correct` must have shape \(N,\)"),
        ([0.5], [1], {"bins": 0}, "`bins`"),
        ([0.5], [1], {"bins": 1 << 17}, "`bins`"),
        ([0.5], [1], {"binning": "depth"}, "`binning`"),
    ],
)
def test_bad_input(confidence, correct, options, text):
    with pytest.raises(ValueError, match=text):
        calibration(confidence, correct, **options)


# ---- discrimination and selective prediction


@given(SAMPLES)
def test_auroc_counts_pairs(samples):
    confidence, correct = columns(samples)
    got, expected = auroc(confidence, correct), reference.auroc(confidence.tolist(), correct.tolist())
    assert got == expected or (math.isnan(got) and math.isnan(expected))
    if not math.isnan(got):
        assert auroc(-confidence, correct) == pytest.approx(1 - got, abs=1e-15)


@given(st.lists(st.tuples(st.sampled_from([0.1, 0.5, 0.9]), st.booleans()), min_size=1, max_size=6))
def test_aurc_is_the_mean_over_orders_of_ties(samples):
    confidence, correct = columns(samples)
    expected = reference.aurc(confidence.tolist(), correct.tolist())
    assert aurc(confidence, correct) == pytest.approx(expected, abs=1e-12)


@given(SAMPLES)
def test_risk_at_every_threshold(samples):
    confidence, correct = columns(samples)
    coverage, risk, threshold = risk_coverage(confidence, correct)
    assert coverage[-1] == 1
    assert (np.diff(threshold) < 0).all()
    for c, r, t in zip(coverage, risk, threshold, strict=True):
        kept = confidence >= t
        assert c == pytest.approx(kept.mean())
        assert r == pytest.approx(1 - correct[kept].mean())


def test_aurc_at_its_ends():
    assert aurc([0.1, 0.2, 0.3], [1, 1, 1]) == 0
    assert aurc([0.1, 0.2, 0.3], [0, 0, 0]) == pytest.approx(1)
    assert aurc([0.5] * 4, [0, 1, 1, 1]) == pytest.approx(0.25)
    assert math.isnan(aurc([], []))
    assert math.isnan(auroc([], []))
    assert risk_coverage([], [])[0].shape == (0,)


@pytest.mark.parametrize("call", [auroc, aurc, risk_coverage])
def test_selective_prediction_refuses(call):
    with pytest.raises(ValueError, match=r"NaN.*index 1"):
        call([0.5, float("nan")], [1, 0])
    with pytest.raises(ValueError, match=r"`correct` must be 0 or 1, got 0\.5"):
        call([0.5], [0.5])
    with pytest.raises(ValueError, match="`correct` must have the shape"):
        call([0.5], [1, 0])


# ---- Wilson


@given(st.integers(0, 50), st.integers(0, 50))
def test_wilson(hits, misses):
    low, high = wilson(hits, hits + misses)
    n, z = hits + misses, 1.959964
    assert 0 <= low <= high <= 1
    if n == 0:
        assert (low, high) == (0, 1)
        return
    p = hits / n
    assert low <= p <= high
    for end in (low, high):  # the ends solve (p - end)^2 = z^2 end (1 - end) / n
        if 0 < end < 1:
            assert (p - end) ** 2 == pytest.approx(z * z * end * (1 - end) / n, abs=1e-12)


def test_wilson_refuses():
    np.testing.assert_allclose(wilson([0, 8], [10, 10]), [[0, 0.4902], [0.2775, 0.9433]], atol=5e-5)
    with pytest.raises(ValueError, match="`hits` must lie in"):
        wilson(3, 2)


# ---- ranking


@given(
    st.integers(1, 6).flatmap(
        lambda k: st.tuples(
            st.lists(st.lists(st.integers(-1, 5), min_size=k, max_size=k), min_size=1, max_size=5),
            st.integers(1, k),
        )
    )
)
def test_ranking_metrics(case):
    lists, k = case
    target = np.arange(len(lists)) - 1  # includes -1, which is never a hit
    for b, row in enumerate(lists):
        top = row[:k]
        rank = top.index(target[b]) if target[b] >= 0 and target[b] in top else None
        assert recall_at(lists, target, k)[b] == (rank is not None)
        assert ndcg_at(lists, target, k)[b] == pytest.approx(0 if rank is None else 1 / math.log2(rank + 2))
        assert mrr_at(lists, target, k)[b] == pytest.approx(0 if rank is None else 1 / (rank + 1))


@pytest.mark.parametrize("metric", [recall_at, ndcg_at, mrr_at])
def test_ranking_metrics_refuse(metric):
    with pytest.raises(ValueError, match=r"`k` must lie in \[1, 2\]"):
        metric([[1, 2]], [1], 3)
    with pytest.raises(ValueError, match="`ranked`"):
        metric([1, 2], [1], 1)
