"""Ranking metrics, calibration bins and selective prediction, against counting by hand."""

import math
import threading

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st
from ugr_fast.metrics import (
    CalibrationAccumulator,
    Ranks,
    Samples,
    _harmonic,
    augrc,
    aurc,
    auroc,
    average_precision,
    calibration,
    calibration_sweep,
    catalogue_coverage,
    classwise_ece,
    coverage_at_risk,
    eaurc,
    log_loss,
    mean_popularity,
    mrr_at,
    ndcg_at,
    recall_at,
    risk_at_coverage,
    risk_coverage,
    wilson,
)

UNIT = st.floats(0, 1) | st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.6, 0.7, 1.0, -0.0])
SAMPLES = st.lists(st.tuples(UNIT, st.booleans()), min_size=1, max_size=30)
BINS = st.integers(1, 20)


def columns(samples):
    return np.array([c for c, _ in samples]), np.array([y for _, y in samples])


# ---- calibration


@given(SAMPLES, BINS, st.sampled_from([np.float32, np.float64]))
def test_equal_width_equals_the_reference(samples, bins, dtype):
    """C1."""
    confidence, correct = columns(samples)
    confidence = confidence.astype(dtype)
    groups = [[i for i, c in enumerate(confidence) if reference.width_bin(c, bins, dtype) == k] for k in range(bins)]
    result = calibration(confidence, correct, bins=bins)
    assert result.count.tolist() == [len(g) for g in groups]
    check_summary(result, [g for g in groups if g], confidence, correct)


@given(SAMPLES, BINS)
def test_equal_mass_equals_the_reference(samples, bins):
    """C1, C18."""
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
    """C7."""
    for bins in (*range(1, 130), 255, 256, 1000, 1023, 1024):
        edges = np.arange(bins, dtype=dtype) / dtype(bins)
        np.testing.assert_array_equal(calibration(edges, np.ones(bins), bins=bins).count, 1)
        below = np.nextafter(edges[1:], dtype(0))
        counts = calibration(below, np.ones(bins - 1), bins=bins).count
        np.testing.assert_array_equal(counts, [1] * (bins - 1) + [0])
    assert calibration(np.array([0, -0.0, 1], dtype), [1, 1, 1], bins=10).count[[0, 9]].tolist() == [2, 1]


def test_a_literal_follows_its_own_dtype():
    """C7, C48."""
    for literal in (0.1, 0.2, 0.3, 0.6, 0.7, 0.9):
        for dtype in (np.float32, np.float64):
            assert calibration(np.array([literal], dtype), [1], bins=10).count.argmax() == round(literal * 10)
    widened = np.array([0.7], np.float32).astype(np.float64)  # 0.699999988: another number
    assert calibration(widened, [1], bins=10).count.argmax() == 6


@given(SAMPLES, BINS, st.sampled_from(["width", "mass"]), st.randoms(use_true_random=False))
def test_order_changes_no_bit(samples, bins, binning, random):
    """C2, C18."""
    confidence, correct = columns(samples)
    order = random.sample(range(len(samples)), len(samples))
    a = calibration(confidence, correct, bins=bins, binning=binning)
    b = calibration(confidence[order], correct[order], bins=bins, binning=binning)
    same(a, b)


def same(a, b):
    """Two calibrations, bit for bit."""
    for name in vars(a):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


@given(SAMPLES, BINS)
def test_bounds(samples, bins):
    """C9, C11."""
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
    """C12."""
    c = np.array(confidence)
    assert calibration(c, c, bins=bins).ece == 0
    assert calibration(c, c, bins=bins, binning="mass").ece == 0
    hard = (c > 0.5).astype(float)
    assert calibration(hard, hard, bins=bins).ece == 0
    if bins > 1:
        assert calibration(hard, 1 - hard, bins=bins).ece == 1


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60, unique=True), BINS)
def test_equal_mass_without_ties_is_even(confidence, bins):
    """C18."""
    counts = calibration(np.array(confidence), np.ones(len(confidence)), bins=bins, binning="mass").count
    assert len(counts) == min(bins, len(confidence))
    assert counts.max() - counts.min() <= 1


def test_ties_share_a_bin():
    """C18."""
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


@pytest.mark.parametrize("kind", [bool, np.uint8, np.int32, np.int64, np.float32, np.float64])
def test_outcomes_of_any_type(kind):
    """C48."""
    expected = calibration([0.9, 0.8, 0.1], [True, False, False])
    assert calibration([0.9, 0.8, 0.1], np.array([1, 0, 0], kind)).ece == expected.ece


@pytest.mark.parametrize("binning", ["width", "mass"])
def test_no_samples(binning):
    """C47."""
    result = calibration([], [], bins=3, binning=binning)
    assert (result.n, int(result.count.sum())) == (0, 0)
    assert all(math.isnan(x) for x in (result.ece, result.mce, result.rmsce, result.brier))


@pytest.mark.parametrize("binning", ["width", "mass"])
@pytest.mark.parametrize("bad", [1.5, -0.1, float("nan"), float("inf")])
def test_confidence_outside_the_unit_interval(binning, bad):
    """C45, C46."""
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
        ([0.5], [1], {"closed": "both"}, "`closed`"),
        ([0.5], [1], {"closed": "right", "binning": "mass"}, "`weight` and `closed"),
        ([0.5], [1], {"weight": [1], "binning": "mass"}, "`weight` and `closed"),
        ([0.5], [1], {"weight": [1, 1]}, "`weight` must have length 1, got 2"),
        ([0.5], [1], {"weight": [-1]}, r"`weight` must lie in \[0, 65536\].*; got -1 at index 0"),
        ([0.5], [1], {"weight": [float("nan")]}, r"`weight` must lie in.*; got NaN at index 0"),
    ],
)
def test_bad_input(confidence, correct, options, text):
    with pytest.raises(ValueError, match=text):
        calibration(confidence, correct, **options)


@given(SAMPLES, BINS)
def test_closed_on_the_right(samples, bins):
    """C8, C13: the complement of every sample in the complement of its bin."""
    confidence = np.round(columns(samples)[0] * 4096) / 4096  # 1 - c is exact
    correct = columns(samples)[1]
    right = calibration(confidence, correct, bins=bins, closed="right")
    left = calibration(1 - confidence, ~correct, bins=bins)
    np.testing.assert_array_equal(right.count, left.count[::-1])
    assert right.ece == pytest.approx(left.ece, abs=1e-14)
    edges = np.arange(bins) / bins
    counts = calibration(edges, np.ones(bins), bins=bins, closed="right").count
    assert counts.tolist() == ([2] + [1] * (bins - 2) + [0] if bins > 1 else [1])


@given(SAMPLES, st.integers(1, 10), st.integers(2, 3))
def test_finer_bins_only_add_to_the_error(samples, bins, factor):
    """C10: k / B and its multiple are one number, rounded once."""
    coarse, fine = (calibration(*columns(samples), bins=b) for b in (bins, factor * bins))
    assert coarse.ece <= fine.ece + 1e-14
    assert coarse.rmsce <= fine.rmsce + 1e-14


@given(SAMPLES, BINS)
def test_a_strictly_increasing_map_keeps_the_members_of_equal_mass(samples, bins):
    """C18."""
    confidence, correct = columns(samples)
    mapped = np.unique(confidence, return_inverse=True)[1] / 64  # ranks
    a, b = (calibration(c, correct, bins=bins, binning="mass") for c in (confidence, mapped))
    np.testing.assert_array_equal(a.count, b.count)
    np.testing.assert_array_equal(a.accuracy, b.accuracy)


@given(SAMPLES)
def test_sweep(samples):
    """C19: as many bins as keep the accuracies in order, and with one more they are not."""
    confidence, correct = columns(samples)
    bins = 1
    while bins < len(set(confidence)):
        groups = reference.mass_bins(confidence.tolist(), bins + 1)
        if (np.diff([correct[group].mean() for group in groups]) < 0).any():
            break
        bins += 1
    same(calibration_sweep(confidence, correct), calibration(confidence, correct, bins=bins, binning="mass"))
    assert calibration_sweep([], []).n == 0


def spread(kind, n, random):
    """Confidences that crowd in many ways."""
    return {
        "even": lambda: random.random(n),
        "grid": lambda: random.integers(0, 101, n) / 100,
        "saturated": lambda: np.where(random.random(n) < 0.6, 1.0, random.random(n)),
        "tiny": lambda: random.random(n) * 1e-30,
        "close": lambda: 0.5 + random.random(n) * 1e-6,
    }[kind]()


@pytest.mark.parametrize("kind", ["even", "grid", "saturated", "tiny", "close"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equal_mass_of_many_equals_the_reference(kind, dtype):
    """C1, C18: buckets with cuts, without, and with nothing but one value."""
    random = np.random.default_rng(2)
    confidence = spread(kind, 5000, random).astype(dtype)
    correct = random.random(5000) < 0.4
    for bins in (1, 2, 15, 777, 6000):
        groups = reference.mass_bins(confidence.tolist(), bins)
        result = calibration(confidence, correct, bins=bins, binning="mass")
        assert result.count.tolist() == [len(group) for group in groups]
        assert result.lower.tolist() == [float(confidence[group[0]]) for group in groups]
        np.testing.assert_allclose(result.accuracy, [correct[group].mean() for group in groups], rtol=1e-14)


# ---- the accumulator


PARTS = st.lists(st.lists(st.tuples(UNIT, st.booleans(), st.floats(0, 65536)), max_size=8), max_size=5)


def parts_of(parts, dtype, weighted):
    for part in parts:
        c, y, w = (np.array(column) for column in zip(*part, strict=True)) if part else (np.empty(0),) * 3
        yield c.astype(dtype), y.astype(bool), w if weighted else None


@given(PARTS, BINS, st.sampled_from([np.float32, np.float64]), st.booleans(), st.sampled_from(["left", "right"]))
def test_parts_add_up_to_the_whole(parts, bins, dtype, weighted, closed):
    """C3, C4: in one accumulator or merged from either end, the same bits."""
    each = [CalibrationAccumulator(bins, closed=closed).update(*part) for part in parts_of(parts, dtype, weighted)]
    one, left, right = (CalibrationAccumulator(bins, closed=closed) for _ in range(3))
    for part in parts_of(parts, dtype, weighted):
        one.update(*part)
    for part in each:
        left = left.merge(part)
    for part in reversed(each):
        right = part.merge(right)
    (whole,) = parts_of([[sample for part in parts for sample in part]], dtype, weighted)
    bulk = CalibrationAccumulator(bins, closed=closed).update(*whole)
    for other in (one, left, right):
        np.testing.assert_array_equal(other._sums, bulk._sums)
        same(other.compute(), bulk.compute())
    summed = sum((part.to_arrays()["sums"] for part in each), CalibrationAccumulator(bins).to_arrays()["sums"])
    reduced = CalibrationAccumulator.from_arrays({**bulk.to_arrays(), "sums": summed})  # as an all-reduce would
    np.testing.assert_array_equal(reduced._sums, bulk._sums)


def test_state_goes_through_a_file(tmp_path):
    """C50."""
    before = CalibrationAccumulator(7, closed="right").update([0.9, 0.1], [True, False], [0.3, 65536])
    np.savez(tmp_path / "state.npz", **before.to_arrays())
    with np.load(tmp_path / "state.npz") as arrays:
        after = CalibrationAccumulator.from_arrays(arrays)
        assert (after.bins, after.closed) == (7, "right")
        same(after.compute(), before.compute())
        with pytest.raises(ValueError, match="must be of format 1, got 2"):
            CalibrationAccumulator.from_arrays({**arrays, "format": np.array(2)})
        with pytest.raises(ValueError, match=r"`sums` must be \(bins, 8, 4\) int64"):
            CalibrationAccumulator.from_arrays({**arrays, "sums": arrays["sums"][..., 0]})
    before.reset()
    assert before.compute().n == 0
    assert sum(array.nbytes for array in CalibrationAccumulator().to_arrays().values()) < 4096


def test_a_refused_part_changes_nothing():
    """C45."""
    accumulator = CalibrationAccumulator().update([0.5], [True])
    before = accumulator._sums.copy()
    with pytest.raises(ValueError, match="at index 2"):
        accumulator.update([0.1, 0.2, 2.0], [True, True, True])
    np.testing.assert_array_equal(accumulator._sums, before)
    with pytest.raises(ValueError, match="`other` must have 15 bins closed on the left, got 4 closed on the right"):
        accumulator.merge(CalibrationAccumulator(4, closed="right"))


def test_counts_beyond_single_precision():
    """C6."""
    part = CalibrationAccumulator().update(np.full(1024, 0.9), np.arange(1024) % 2)
    for _ in range(25):
        part = part.merge(part)
    result = part.compute()
    assert result.n == 1 << 35
    assert result.ece == pytest.approx(0.4, abs=1e-15)
    assert (result.accuracy[13] * result.n) == 1 << 34


@given(SAMPLES, UNIT, BINS)
def test_a_sample_changes_one_bin(samples, extra, bins):
    """C16."""
    before = CalibrationAccumulator(bins).update(*columns(samples))
    after = before.merge(CalibrationAccumulator(bins).update([extra], [True]))
    assert (before._sums != after._sums).any((1, 2)).sum() == 1


@given(st.lists(st.tuples(UNIT, st.booleans(), st.integers(0, 4)), min_size=1, max_size=20), BINS)
def test_weights(samples, bins):
    """C14: as often as the weight says, whatever their scale; one of 0 is not there."""
    c, y, w = (np.array(column) for column in zip(*samples, strict=True))
    weighted, scaled = calibration(c, y, w, bins=bins), calibration(c, y, w * 1e-3, bins=bins)
    repeated = calibration(np.repeat(c, w), np.repeat(y, w), bins=bins)
    assert weighted.n == (w > 0).sum()
    np.testing.assert_array_equal(weighted.weight, repeated.count)
    for name in ("ece", "mce", "rmsce", "brier", "confidence", "accuracy", "moments"):
        np.testing.assert_allclose(getattr(weighted, name), getattr(repeated, name), rtol=0, atol=1e-12)
        np.testing.assert_allclose(getattr(scaled, name), getattr(repeated, name), rtol=0, atol=1e-12)
    np.testing.assert_allclose(weighted.murphy, repeated.murphy, rtol=0, atol=1e-12)
    one = calibration(c, y, w, bins=1)
    assert one.effective[0] == pytest.approx(w.sum() ** 2 / (w**2).sum() if w.any() else 0)


def test_tiny_weights():
    """C14: one that rounds to 0 is not there; the effective samples never exceed the samples."""
    assert calibration([0.5], [1], [1e-300]).n == 0
    result = calibration([0.5, 0.5], [1, 0], [2.0**-40] * 2, bins=1)
    assert (result.n, result.effective.tolist()) == (2, [2.0])
    assert result.ece == 0


SOFT = st.lists(st.tuples(UNIT, UNIT), min_size=1, max_size=30)


@given(SAMPLES | SOFT, BINS, st.sampled_from(["width", "mass"]))
def test_murphy_parts_add_up(samples, bins, binning):
    """C21."""
    c, y = columns(samples)
    result = calibration(c, y, bins=bins, binning=binning)
    reliability, resolution, uncertainty, variance, covariance = result.murphy
    assert result.brier == pytest.approx(np.mean((c - y) ** 2), abs=1e-12)
    assert result.brier == pytest.approx(reliability - resolution + uncertainty + variance - covariance, abs=1e-12)
    assert min(reliability, resolution, variance) >= 0
    assert uncertainty == pytest.approx(np.var(y.astype(float)), abs=1e-12)
    assert resolution <= uncertainty + 1e-12
    constant = calibration(np.full(len(c), 0.3), y, bins=bins, binning=binning)
    assert constant.murphy.resolution == pytest.approx(0, abs=1e-15)


@given(SAMPLES, BINS)
def test_debiased_is_below_plain(samples, bins):
    """C17."""
    result = calibration(*columns(samples), bins=bins)
    if (result.count != 1).all():
        assert result.debiased <= result.rmsce + 1e-12
    if np.isin(result.accuracy[result.count > 0], (0, 1)).all() and (result.count != 1).all():
        assert result.debiased == pytest.approx(result.rmsce, abs=1e-12)


def test_debiased_has_no_bias():
    """C17: the mean over resampled outcomes is the true value, where the plain one is too large."""
    random = np.random.default_rng(3)
    confidence = np.repeat([0.1, 0.3, 0.5, 0.7], 50)
    results = [calibration(confidence, random.random(200) < confidence + 0.2, bins=5) for _ in range(400)]
    debiased, plain = (np.array([getattr(r, name) ** 2 for r in results]) for name in ("debiased", "rmsce"))
    error = debiased.std() / 20
    assert abs(debiased.mean() - 0.04) < 3 * error
    assert plain.mean() - 0.04 > 3 * error


def test_intervals():
    """C23, and an ECE between the ends of its own."""
    random = np.random.default_rng(4)
    confidence = random.random(4000)
    result = calibration(confidence, random.random(4000) < confidence**2)
    low, high = result.interval()
    expected = wilson(np.rint(result.accuracy * result.count), result.count)
    np.testing.assert_allclose((low, high), expected, rtol=1e-12)
    low, high = result.ece_interval(seed=1)
    assert low < result.ece < high
    assert high - low == pytest.approx(2 * 1.96 * 0.44 / math.sqrt(4000), rel=0.3)  # the gap has one sign
    assert (low, high) == result.ece_interval(seed=1) != result.ece_interval(seed=2)
    narrow = result.ece_interval(0.5, resamples=200)
    assert low < narrow[0] < narrow[1] < high
    weighted = calibration(confidence, random.random(4000) < confidence**2, np.full(4000, 7.0))
    assert np.diff(weighted.ece_interval()) == pytest.approx(high - low, rel=0.3)  # 4000 samples, not 28000
    with pytest.raises(ValueError, match="`level`"):
        result.ece_interval(1)
    assert all(math.isnan(end) for end in calibration([], []).ece_interval())
    assert all(math.isnan(part) for part in (*calibration([], []).murphy, calibration([], []).debiased))


@given(st.lists(st.tuples(UNIT, st.integers(0, 2)), min_size=1, max_size=20), BINS, st.permutations(range(3)))
def test_classwise(samples, bins, order):
    """C20."""
    c, y = columns(samples)
    two = np.stack((1 - c, c), 1)
    sides = [calibration(two[:, k], (y > 0) == k, bins=bins).ece for k in (0, 1)]
    np.testing.assert_array_equal(classwise_ece(two, y > 0, bins=bins), sides)
    three = np.stack((c, 1 - c, c / 2), 1)
    found = classwise_ece(three, y - 7, classes=[-7, -6, -5], bins=bins)
    permuted = classwise_ece(three[:, order], y - 7, classes=np.array([-7, -6, -5])[order], bins=bins)
    np.testing.assert_array_equal(permuted, found[order])


def test_classwise_refuses():
    for arguments, options, text in [
        (([0.5], [0]), {}, r"`probabilities` must be \(N, K\)"),
        (([[0.5, 0.5]], [2]), {}, "`labels` must be among the classes, got 2"),
        (([[0.5, 0.5]], [1]), {"classes": [1, 1]}, "`classes` must be 2 different labels"),
    ]:
        with pytest.raises(ValueError, match=text):
            classwise_ece(*arguments, **options)


@given(st.lists(st.tuples(st.floats(-30, 30), st.booleans() | UNIT), min_size=1, max_size=20))
def test_log_loss(samples):
    """C22."""
    z, y = columns(samples)
    c = np.array([1 / (1 + math.exp(-x)) for x in z])
    other = np.array([1 / (1 + math.exp(x)) for x in z])  # 1 - c, without cancellation
    expected = -np.mean(y * np.log(c) + (1 - y.astype(float)) * np.log(other))
    assert log_loss(z, y, from_logits=True) == pytest.approx(expected, rel=1e-12)
    c = np.clip(c, 1e-3, 0.999)
    expected = -np.mean(y * np.log(c) + (1 - y.astype(float)) * np.log1p(-c))
    assert log_loss(c, y) == pytest.approx(expected, rel=1e-12)


def test_log_loss_at_its_ends():
    """C22."""
    assert log_loss([1.0, 0.0], [1, 0]) == 0
    assert log_loss([0.0], [1]) == log_loss([1.0], [0]) == math.inf
    assert log_loss([1e4, -1e4], [0, 1], from_logits=True) == 1e4
    assert math.isnan(log_loss([], []))
    with pytest.raises(ValueError, match="`logits` must be finite; got inf at index 1"):
        log_loss([0.0, math.inf], [1, 1], from_logits=True)
    with pytest.raises(ValueError, match="`confidence` must lie in"):
        log_loss([2.0], [1])


def test_brier_and_log_loss_are_proper():
    """C22: least in expectation where the confidence is the probability."""
    grid = np.linspace(0.05, 0.95, 19)
    for p in grid:
        outcome = np.array([p])  # the expectation is linear in the outcome, but for a constant
        assert grid[np.argmin([calibration([q], outcome).brier for q in grid])] == p
        assert grid[np.argmin([log_loss([q], outcome) for q in grid])] == p


# ---- arrays of every kind


CALLS = {
    "width": lambda c, y: calibration(c, y).ece,
    "mass": lambda c, y: calibration(c, y, binning="mass").ece,
    "risk_coverage": lambda c, y: risk_coverage(c, y)[1].sum(),
    **{call.__name__: call for call in (log_loss, auroc, average_precision, aurc, eaurc, augrc)},
}


@pytest.mark.parametrize("call", list(CALLS.values()), ids=list(CALLS))
def test_any_layout_and_type(call):
    """C47, C48, C49."""
    c, y = np.array([0.9, 0.3, 0.6, 0.2], np.float32), np.array([True, False, False, True])
    expected = call(c, y)
    padded = np.zeros((4, 3), np.float32)
    padded[:, 1] = c
    frozen = c.copy()
    frozen.flags.writeable = False
    for same in (padded[:, 1], c[::-1].copy()[::-1], c.astype(">f4"), frozen):
        before = same.copy()
        assert call(same, y) == expected
        np.testing.assert_array_equal(same, before)
    for label in (np.uint8, np.int32, np.int64, np.float32, ">i8"):
        assert call(c, y.astype(label)) == expected
    half = c.astype(np.float16)
    assert call(half, y) == call(half.astype(np.float32), y)
    torch = pytest.importorskip("torch")
    assert call(torch.from_numpy(c).requires_grad_(), torch.from_numpy(y)) == expected
    for wrong in (y[:2], y[None]):
        with pytest.raises(ValueError, match="`correct`"):
            call(c, wrong)


def test_threads_see_the_same():
    """C5, C49: the interpreter is free meanwhile, and there is nothing to race for."""
    random = np.random.default_rng(5)
    c, y = random.random(200_000, np.float32), random.random(200_000) < 0.5
    expected, found = (calibration(c, y).ece, auroc(c, y)), []
    threads = [threading.Thread(target=lambda: found.append((calibration(c, y).ece, auroc(c, y)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4


# ---- discrimination and selective prediction


@given(SAMPLES)
def test_auroc_counts_pairs(samples):
    """C26, C27."""
    confidence, correct = columns(samples)
    got, expected = auroc(confidence, correct), reference.auroc(confidence.tolist(), correct.tolist())
    assert got == expected or (math.isnan(got) and math.isnan(expected))
    if not math.isnan(got):
        assert auroc(-confidence, correct) == pytest.approx(1 - got, abs=1e-15)


@given(st.lists(st.tuples(st.sampled_from([0.1, 0.5, 0.9]), st.booleans()), min_size=1, max_size=6))
def test_aurc_is_the_mean_over_orders_of_ties(samples):
    """C31."""
    confidence, correct = columns(samples)
    expected = reference.aurc(confidence.tolist(), correct.tolist())
    assert aurc(confidence, correct) == pytest.approx(expected, abs=1e-12)


@given(SAMPLES)
def test_risk_at_every_threshold(samples):
    """C29."""
    confidence, correct = columns(samples)
    coverage, risk, threshold = risk_coverage(confidence, correct)
    assert coverage[-1] == 1
    assert (np.diff(threshold) < 0).all()
    for c, r, t in zip(coverage, risk, threshold, strict=True):
        kept = confidence >= t
        assert c == pytest.approx(kept.mean())
        assert r == pytest.approx(1 - correct[kept].mean())


def test_aurc_at_its_ends():
    """C30."""
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
    with pytest.raises(ValueError, match=r"`correct` must hold booleans, or 0 and 1; got 0\.5"):
        call([0.5], [0.5])
    with pytest.raises(ValueError, match=r"`correct` must have shape \(1,\), got \(2,\)"):
        call([0.5], [1, 0])
    with pytest.raises(ValueError, match=r"`confidence` must not be NaN; got nan at index 1"):
        call([0.5, float("nan")], [1, 0], weight=[1, 1])
    with pytest.raises(ValueError, match=r"`weight` must be 0 or lie in \[1e-100, 1e100\]; got -1.0 at index 1"):
        call([0.5, 0.5], [1, 0], weight=[1, -1])
    with pytest.raises(ValueError, match="`weight` must have length 2, got 1"):
        call([0.5, 0.5], [1, 0], weight=[1])


SCORES = st.lists(
    st.tuples(st.floats(allow_nan=False) | st.sampled_from([0.0, -0.0, 0.5, -0.5]), st.booleans()),
    min_size=1,
    max_size=12,
)


@given(SCORES)
def test_scores_of_any_size_and_sign(samples):
    """C26, C27."""
    score, correct = columns(samples)
    got, expected = auroc(score, correct), reference.auroc(score.tolist(), correct.tolist())
    np.testing.assert_equal(got, expected)
    np.testing.assert_allclose(auroc(score, ~correct), 1 - got, atol=1e-15)


@given(SAMPLES)
def test_average_precision(samples):
    """C28."""
    confidence, correct = columns(samples)
    expected = reference.average_precision(confidence.tolist(), correct.tolist())
    np.testing.assert_allclose(average_precision(confidence, correct), expected, rtol=1e-12)
    tied = average_precision(np.ones(len(correct)), correct)
    np.testing.assert_allclose(tied, correct.mean() if correct.any() else math.nan, rtol=1e-15)
    if correct.any():
        assert average_precision(correct, correct) == 1


@given(SAMPLES)
def test_excess_and_generalized_risk(samples):
    """C30, C32, C33."""
    confidence, correct = columns(samples)
    ranks = Ranks(confidence, correct)
    n, k = ranks.n, ranks.errors
    best, worst = (aurc(order, correct) for order in (correct, ~correct))
    least = sum(max(0, j - (n - k)) / j for j in range(1, n + 1)) / n
    most = sum(min(1, k / j) for j in range(1, n + 1)) / n
    assert ranks._core.best_aurc() == pytest.approx(least, abs=1e-14)
    assert least - 1e-14 <= ranks.aurc() <= most + 1e-14
    assert least - 1e-14 <= best <= worst <= most + 1e-14
    assert ranks.eaurc() == pytest.approx(ranks.aurc() - least, abs=1e-14)
    assert ranks.eaurc() >= 0
    apart = not k or k == n or confidence[correct].min() > confidence[~correct].max()
    assert (ranks.eaurc() < 1e-14) == apart
    if 0 < k < n:
        expected = ((1 - ranks.auroc()) * k * (n - k) + k * (k + 1) / 2) / n**2
        assert ranks.augrc() == pytest.approx(expected, abs=1e-14)


@given(SAMPLES, UNIT, UNIT)
def test_coverage_and_risk_at_each_other(samples, first, second):
    """C34, C35."""
    confidence, correct = columns(samples)
    (low, _), (high, threshold) = (coverage_at_risk(confidence, correct, r) for r in sorted((first, second)))
    assert low <= high
    kept = confidence >= threshold
    assert kept.mean() == high
    if high > 0:
        assert 1 - correct[kept].mean() <= max(first, second) + 1e-15
        assert risk_at_coverage(confidence, correct, high) <= max(first, second)
    rate = (~correct).mean()
    assert coverage_at_risk(confidence, correct, rate)[0] == 1
    assert risk_at_coverage(confidence, correct, 1) == pytest.approx(rate, abs=1e-15)
    top = 1 - correct[confidence == confidence.max()].mean()
    assert risk_at_coverage(confidence, correct, 0) == pytest.approx(top, abs=1e-15)


RANKS = {call.__name__: call for call in (auroc, average_precision, aurc, eaurc, augrc, risk_coverage)}
REAL = st.sampled_from([0.0, 1.0, 0.25, 0.7, 3.5, 1e4])


@pytest.mark.parametrize("call", list(RANKS.values()), ids=list(RANKS))
@given(st.lists(st.tuples(UNIT, st.booleans(), st.integers(0, 4)), max_size=20), st.randoms(use_true_random=False))
def test_whole_weights_of_ranks_are_repetitions(call, samples, random):
    """C14, D12: ties in closed form, in any order; a weight of 0 is no sample."""
    c, y, w = (np.array([sample[i] for sample in samples], kind) for i, kind in enumerate((float, bool, int)))
    expected = call(np.repeat(c, w), np.repeat(y, w))
    weighted = call(c, y, w)
    np.testing.assert_allclose(weighted, expected, rtol=0, atol=1e-12)
    order = random.sample(range(len(c)), len(c))
    np.testing.assert_array_equal(call(c[order], y[order], w[order]), weighted)


@given(st.lists(st.tuples(UNIT, st.booleans(), st.integers(0, 4)), min_size=1, max_size=20), UNIT)
def test_weights_at_a_coverage_and_a_risk(samples, level):
    c, y, w = (np.array([sample[i] for sample in samples]) for i in range(3))
    repeated = np.repeat(c, w), np.repeat(y, w)
    np.testing.assert_allclose(coverage_at_risk(c, y, level, w), coverage_at_risk(*repeated, level), rtol=1e-14)
    np.testing.assert_allclose(risk_at_coverage(c, y, level, w), risk_at_coverage(*repeated, level), atol=1e-14)
    assert (Ranks(c, y, w).n, Ranks(c, y, w).errors) == (w.sum(), (w * ~y).sum())


@given(st.lists(st.tuples(UNIT, st.booleans(), REAL), min_size=1, max_size=20), st.sampled_from([1e-9, 0.3, 1e9]))
def test_only_ratios_of_weights_count(samples, factor):
    """C14: where nothing goes sample by sample. AUROC and risks are also what pairs and thresholds say."""
    c, y, w = (np.array([sample[i] for sample in samples]) for i in range(3))
    for call in (auroc, average_precision, risk_coverage):
        np.testing.assert_allclose(call(c, y, factor * w), call(c, y, w), rtol=0, atol=1e-13)
    pairs = np.outer(w[y], w[~y])
    wins = np.greater.outer(c[y], c[~y]) + np.equal.outer(c[y], c[~y]) / 2
    expected = (pairs * wins).sum() / pairs.sum() if pairs.sum() else math.nan
    np.testing.assert_allclose(auroc(c, y, w), expected, rtol=0, atol=1e-13)
    for share, risk, threshold in zip(*risk_coverage(c, y, w), strict=True):
        assert share == pytest.approx(w[c >= threshold].sum() / w.sum(), rel=1e-13)
        assert risk == pytest.approx(w[(c >= threshold) & ~y].sum() / w[c >= threshold].sum(), rel=1e-13, abs=1e-13)


@given(st.lists(st.tuples(UNIT, st.booleans(), REAL), min_size=1, max_size=20))
def test_areas_under_real_weights(samples):
    """C30, C33: bounds and the closed form hold between whole numbers too."""
    c, y, w = (np.array([sample[i] for sample in samples]) for i in range(3))
    ranks = Ranks(c, y, w)
    n, k = w.sum(), w[~y].sum()
    if n == 0:
        assert math.isnan(ranks.aurc())
        return
    assert -1e-12 <= ranks.eaurc() <= ranks.aurc() <= 1
    assert aurc(np.zeros(len(c)), y, w) == pytest.approx(k / n, abs=1e-12)
    if 0 < k < n:
        expected = ((1 - ranks.auroc()) * k * (n - k) + k * (k + 1) / 2) / n**2
        assert ranks.augrc() == pytest.approx(expected, rel=1e-12)


def test_the_harmonic_sum_between_whole_numbers():
    """Its recurrence and its value at halves: H(1/2) = 2 - 2 ln 2."""
    assert _harmonic(0, 0.5) == pytest.approx(2 - 2 * math.log(2), rel=1e-15)
    for start in (0.0, 0.3, 7.5, 1e6):
        for length in (0.5, 1.0, 2.7):
            whole = _harmonic(start, length) + 1 / (start + length + 1)
            assert _harmonic(start, length + 1) == pytest.approx(whole, rel=1e-14)
    terms = [1 / j for j in range(1001, 3001)]
    assert _harmonic(1000, 2000) == pytest.approx(math.fsum(terms), rel=1e-15)


def test_risk_at_coverage_counts_samples_exactly():
    """D13: 0.07 * 100 is 7.000000000000001, but seven samples."""
    for n in (7, 10, 100, 1000):
        confidence, correct = np.arange(n, 0, -1), np.arange(n) != 0  # the most confident one is wrong
        for k in range(1, n + 1):
            assert risk_at_coverage(confidence, correct, k / n) == pytest.approx(1 / k, abs=0)
    with pytest.raises(ValueError, match=r"`coverage` must lie in \[0, 1\], got 1\.5"):
        risk_at_coverage([0.5], [1], 1.5)
    assert math.isnan(risk_at_coverage([], [], 0.5))


@given(SAMPLES)
def test_a_strictly_increasing_map_changes_nothing(samples):
    """C25, C36: nor do two copies of every sample."""
    confidence, correct = columns(samples)
    mapped = np.unique(confidence, return_inverse=True)[1] - 3
    for metric in (auroc, average_precision, aurc, eaurc, augrc):
        np.testing.assert_equal(metric(mapped, correct), metric(confidence, correct))
    np.testing.assert_equal(auroc(np.tile(confidence, 2), np.tile(correct, 2)), auroc(confidence, correct))
    twice = calibration(np.tile(confidence, 2), np.tile(correct, 2))
    assert twice.ece == pytest.approx(calibration(confidence, correct).ece, abs=1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", ["probabilities", "ties", "signs", "infinities", "one value", "wide"])
def test_many_samples(kind, dtype):
    """C26, C29, C31: the radix sort, against NumPy's."""
    random = np.random.default_rng(6)
    n = 4097
    score = {
        "probabilities": lambda: random.random(n),
        "ties": lambda: random.integers(0, 50, n) / 50,
        "signs": lambda: random.normal(size=n),
        "infinities": lambda: np.where(random.random(n) < 0.1, -np.inf, random.normal(size=n)),
        "one value": lambda: np.full(n, 0.25),
        "wide": lambda: random.normal(size=n) * 10.0 ** random.integers(-37, 37, n),
    }[kind]().astype(dtype)
    correct = random.random(n) < 0.6
    coverage, risk, threshold = risk_coverage(score, correct)
    values, size = np.unique(score, return_counts=True)
    np.testing.assert_array_equal(threshold, values[::-1])
    assert threshold.dtype == dtype
    np.testing.assert_allclose(coverage * n, np.cumsum(size[::-1]), rtol=1e-14)
    order = np.argsort(-score, kind="stable")
    errors = np.cumsum(~correct[order])[np.cumsum(size[::-1]) - 1]
    np.testing.assert_allclose(risk * coverage * n, errors, rtol=1e-12)
    shuffled = random.permutation(n)
    for metric in (auroc, average_precision, aurc, eaurc, augrc):
        assert metric(score[shuffled], correct[shuffled]) == metric(score, correct)
    if len(values) == n:
        mean_risk = np.mean(np.cumsum(~correct[order]) / np.arange(1, n + 1))
        assert aurc(score, correct) == pytest.approx(mean_risk, rel=1e-13)
    hits, misses = np.sort(score[correct]), np.sort(score[~correct])
    below = np.searchsorted(misses, hits, "left").sum() + np.searchsorted(misses, hits, "right").sum()
    assert auroc(score, correct) == below / (2 * len(hits) * len(misses))


# ---- Wilson


@given(st.integers(0, 50), st.integers(0, 50))
def test_wilson(hits, misses):
    """C23."""
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


@pytest.mark.parametrize("n", [30, 100])
def test_wilson_covers(n):
    """C23: 95% within what whole counts allow, and narrower with more trials."""
    low, high = wilson(np.arange(n + 1), np.full(n + 1, n))
    for p in np.linspace(0.05, 0.95, 91):
        chance = [math.comb(n, h) * p**h * (1 - p) ** (n - h) for h in range(n + 1)]
        assert 0.91 <= np.dot(chance, (low <= p) & (p <= high)) <= 0.985
    widths = np.diff(wilson(np.arange(1, 50) * 3, np.arange(1, 50) * 4), axis=0)[0]
    assert (np.diff(widths) < 0).all()


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


@given(st.lists(st.lists(st.integers(-1, 5), min_size=3, max_size=3), min_size=1, max_size=5), st.integers(1, 3))
def test_what_is_recommended(lists, k):
    popularity = [0, 1, 10, 100, 1000, 10000]
    tops = [[item for item in row[:k] if item >= 0] for row in lists]
    assert catalogue_coverage(lists, 6, k) == len(set().union(*tops)) / 6
    expected = [np.mean([popularity[item] for item in top]) if top else math.nan for top in tops]
    np.testing.assert_allclose(mean_popularity(lists, popularity, k), expected)


def test_what_is_recommended_refuses():
    with pytest.raises(ValueError, match="`num_items` must be at least 2, the different items ranked, got 1"):
        catalogue_coverage([[1, 2]], 1, 2)
    with pytest.raises(ValueError, match=r"`k` must lie in \[1, 2\]"):
        catalogue_coverage([[1, 2]], 5, 3)
    for lists in ([[3]], [[-2]]):
        with pytest.raises(ValueError, match=r"`ranked` must hold ids of the \(3,\) items"):
            mean_popularity(lists, [1, 2, 3], 1)


# ---- the samples themselves


@given(PARTS, BINS, st.sampled_from([np.float32, np.float64]))
def test_held_samples_are_the_samples(parts, bins, dtype):
    """C3, C4 for bins of equal mass and for ranks: in parts, merged from either end, or as arrays, the same bits."""
    each = [Samples(dtype).update(c, y) for c, y, _ in parts_of(parts, dtype, False)]
    (c, y, _), one, left, right = *parts_of([[s for part in parts for s in part]], dtype, False), *[Samples(dtype)] * 3
    for part in each:
        left = left.merge(part)
    for part in reversed(each):
        right = right.merge(part)
    one = Samples(dtype).update(c, y)
    for held in (one, left, right, Samples.from_arrays(left.to_arrays())):
        same(held.calibration(bins), calibration(c, y, bins=bins, binning="mass"))
        assert (len(held), held.nbytes) == (len(c), len(c) * c.itemsize)
        for name in ("auroc", "average_precision", "aurc", "augrc"):
            np.testing.assert_array_equal(getattr(held.ranks(), name)(), getattr(Ranks(c, y), name)())


def test_samples_round_where_they_are_told_to_and_refuse_the_rest():
    held = Samples().update([0.1, -0.0], [True, False])
    assert held.ranks().risk_coverage()[2].tolist() == [np.float32(0.1), 0]
    before = held.to_arrays()["samples"]
    for confidence, correct, message in (
        ([0.5, 1.5], [1, 0], r"`confidence` must lie in \[0, 1\]; got 1.5 at index 1"),
        ([0.5, np.nan], [1, 0], "got nan at index 1"),
        ([0.5], [1, 0], r"`correct` must have shape \(1,\)"),
        ([[0.5]], [1], r"`confidence` must have shape \(N,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            held.update(confidence, correct)
    np.testing.assert_array_equal(held.to_arrays()["samples"], before)
    with pytest.raises(ValueError, match="`other` must hold float32, got float64"):
        held.merge(Samples(np.float64))
    with pytest.raises(ValueError, match="`dtype` must be float32 or float64, got"):
        Samples(np.int32)
    with pytest.raises(ValueError, match=r"`samples` must be \(N,\) uint32 or uint64, got \(2,\) int64"):
        Samples.from_arrays({"samples": before.astype(np.int64)})
    with pytest.raises(ValueError, match=r"`samples` must lie in \[0, 1\]"):
        Samples.from_arrays({"samples": np.array([2**32 - 1], np.uint32)})
    held.reset()
    assert len(held) == 0
