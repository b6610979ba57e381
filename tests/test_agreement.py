"""The installed libraries say the same where they mean the same, and what docs/confidence.md says of them elsewhere.

torchmetrics and scikit-learn come with the extra `dev`, the others with `compare`; what is not installed is skipped.
What ours says in each of the cases at the end stands in test_disagreements.py, under the same name.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ugr_fast import metrics
from ugr_fast.metrics import Ranks, calibration
from ugr_fast.recalibration import Recalibrator

torch = pytest.importorskip("torch")

COARSE = st.integers(0, 12).map(lambda k: k / 12)  # ties
SAMPLES = st.lists(st.tuples(COARSE | st.floats(0.001, 0.999), st.booleans()), min_size=2, max_size=40)
WEIGHTED = st.lists(st.tuples(COARSE, st.booleans(), st.sampled_from([0.5, 1.0, 3.0])), min_size=2, max_size=40)


@st.composite
def off_edges(draw):
    """Confidences in the middle of seventh parts of bins, their outcomes, and how many bins there are."""
    bins = draw(st.integers(1, 20))
    samples = draw(st.lists(st.tuples(st.integers(0, 7 * bins - 1), st.booleans()), min_size=1, max_size=40))
    places, correct = columns(samples)
    return (places + 0.5) / (7 * bins), correct, bins


def columns(samples):
    return tuple(np.array(column) for column in zip(*samples, strict=True))


def both_classes(samples):
    return len({sample[1] for sample in samples}) == 2


def tensors(confidence, correct):
    return torch.tensor(np.asarray(confidence)), torch.tensor(np.asarray(correct).astype(np.int64))


def drawn(n=2000, seed=0):
    """Confidences without ties, not calibrated, and their outcomes."""
    random = np.random.default_rng(seed)
    confidence = 1 / (1 + np.exp(-random.normal(0.5, 1.5, n)))
    return confidence, random.random(n) < confidence**1.5


# ---- calibration


@settings(max_examples=30)
@given(off_edges())
def test_torchmetrics_calibration(case):
    """Within the single precision of its sums."""
    theirs = pytest.importorskip("torchmetrics.functional.classification").binary_calibration_error
    confidence, correct, bins = case
    ours = calibration(confidence, correct, bins=bins)
    for norm, value in (("l1", ours.ece), ("max", ours.mce), ("l2", ours.rmsce)):
        other = theirs(*tensors(confidence.astype(np.float32), correct), n_bins=bins, norm=norm)
        power = 2 if norm == "l2" else 1  # a root of next to nothing has few digits
        assert value**power == pytest.approx(float(other) ** power, abs=1e-6)


@given(off_edges())
def test_netcal_calibration(case):
    netcal = pytest.importorskip("netcal.metrics")
    confidence, correct, bins = case
    ours = calibration(confidence, correct, bins=bins)
    assert ours.ece == pytest.approx(netcal.ECE(bins).measure(confidence, correct.astype(int)), abs=1e-12)
    assert ours.mce == pytest.approx(netcal.MCE(bins).measure(confidence, correct.astype(int)), abs=1e-12)


@given(off_edges())
def test_sklearn_calibration_curve(case):
    sklearn = pytest.importorskip("sklearn.calibration")
    confidence, correct, bins = case
    ours = calibration(confidence, correct, bins=bins)
    accuracy, mean = sklearn.calibration_curve(correct, confidence, n_bins=bins)
    np.testing.assert_allclose(ours.accuracy[ours.count > 0], accuracy, rtol=1e-12)
    np.testing.assert_allclose(ours.confidence[ours.count > 0], mean, rtol=1e-12)


@given(off_edges())
def test_relplot_calibration(case):
    relplot = pytest.importorskip("relplot")
    confidence, correct, bins = case
    theirs = relplot.metrics.binnedECE(confidence, correct.astype(int), nbins=bins)
    assert calibration(confidence, correct, bins=bins).ece == pytest.approx(theirs, abs=1e-12)


def test_uncertainty_calibration():
    """Bins closed on the right; the mean of a bin's squared gap less what chance adds is one estimator."""
    theirs = pytest.importorskip("calibration")
    confidence, correct = drawn()
    ours = calibration(confidence, correct, closed="right")
    assert ours.ece == pytest.approx(theirs.get_ece(confidence, correct.astype(int)), abs=1e-12)
    bins = [*(np.arange(1, 15) / 15), 1.0]
    binned = theirs.bin(list(zip(confidence, correct.astype(int), strict=True)), bins)
    assert ours.debiased == pytest.approx(theirs.unbiased_l2_ce(binned), abs=1e-12)


@given(WEIGHTED)
def test_sklearn_scores(samples):
    sklearn = pytest.importorskip("sklearn.metrics")
    confidence, correct, weight = columns(samples)
    confidence = 0.01 + 0.98 * confidence  # a log loss of scikit-learn is cut off
    brier = sklearn.brier_score_loss(correct, confidence, sample_weight=weight)
    assert calibration(confidence, correct, weight).brier == pytest.approx(brier, abs=1e-12)
    log_loss = sklearn.log_loss(correct, confidence, labels=[False, True])
    assert metrics.log_loss(confidence, correct) == pytest.approx(log_loss, abs=1e-12)


# ---- ranks


@given(WEIGHTED.filter(both_classes))
def test_sklearn_ranks(samples):
    """Average precision is the sum over thresholds of the recall gained times the precision, without interpolation."""
    sklearn = pytest.importorskip("sklearn.metrics")
    confidence, correct, weight = columns(samples)
    for w in (None, weight):
        ranks = Ranks(confidence, correct, w)
        assert ranks.auroc() == pytest.approx(sklearn.roc_auc_score(correct, confidence, sample_weight=w), abs=1e-12)
        other = sklearn.average_precision_score(correct, confidence, sample_weight=w)
        assert ranks.average_precision() == pytest.approx(other, abs=1e-12)


@given(SAMPLES.filter(both_classes))
def test_torchmetrics_ranks(samples):
    """Within its single precision; the same average precision as scikit-learn's."""
    theirs = pytest.importorskip("torchmetrics.functional.classification")
    confidence, correct = columns(samples)
    confidence = confidence.astype(np.float32)
    ranks = Ranks(confidence, correct)
    assert ranks.auroc() == pytest.approx(float(theirs.binary_auroc(*tensors(confidence, correct))), abs=1e-6)
    other = float(theirs.binary_average_precision(*tensors(confidence, correct)))
    assert ranks.average_precision() == pytest.approx(other, abs=1e-6)


def selective(metric, confidence, correct):
    """A metric of torch-uncertainty: it takes confidence for that of the likelier of two classes."""
    c, y = tensors(confidence, correct)
    metric.update(torch.stack((c, 1 - c), 1), 1 - y)
    return float(metric.compute())


def test_torch_uncertainty_selective_risk():
    """Of the same curve: its areas are trapezoids over coverages from 1 / n to 1, ours a mean over the samples."""
    theirs = pytest.importorskip("torch_uncertainty.metrics")
    confidence, correct = drawn()
    confidence = (1 + confidence) / 2
    ranks = Ranks(confidence, correct)
    coverage, risk, _ = ranks.risk_coverage()
    steps = (risk[1:] + risk[:-1]) / 2
    assert selective(theirs.AURC(), confidence, correct) == pytest.approx(steps.mean(), abs=1e-6)
    joint = risk * coverage
    steps = (joint[1:] + joint[:-1]) / 2
    assert selective(theirs.AUGRC(), confidence, correct) == pytest.approx(steps.mean(), abs=1e-6)
    for share in (0.2, 0.5, 0.8):
        other = selective(theirs.RiskAtxCov(share), confidence, correct)
        assert ranks.risk_at_coverage(share) == pytest.approx(other, abs=1e-6)
        other = selective(theirs.CovAtxRisk(share / 2), confidence, correct)
        assert ranks.coverage_at_risk(share / 2)[0] == pytest.approx(other, abs=1e-6)


def test_uncertainty_calibration_selective_risk():
    theirs = pytest.importorskip("calibration.utils").get_selective_stats
    confidence, correct = drawn()
    assert metrics.aurc(confidence, correct) == pytest.approx(1 - theirs(confidence, correct)[0], abs=1e-12)


# ---- recalibration


@given(WEIGHTED)
def test_sklearn_isotonic_regression(samples):
    regression = pytest.importorskip("sklearn.isotonic").IsotonicRegression(out_of_bounds="clip")
    confidence, correct, weight = columns(samples)
    between = np.linspace(0, 1, 41)
    for w in (None, weight):
        theirs = regression.fit(confidence, correct, sample_weight=w).predict(between)
        ours = Recalibrator("isotonic").fit(confidence, correct, w)(between)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


def logistic(columns, correct, *, offset):
    """Coefficients and offset of scikit-learn's logistic regression without a penalty."""
    linear = pytest.importorskip("sklearn.linear_model")
    model = linear.LogisticRegression(C=np.inf, fit_intercept=offset, solver="newton-cholesky", tol=1e-12)
    fitted = model.fit(np.stack(columns, 1), correct)
    return [*fitted.coef_[0], *fitted.intercept_]


def test_sklearn_logistic_regression():
    """Each of the three is one, of the logit or of its two halves."""
    confidence, correct = drawn()
    halves = np.log(confidence), -np.log1p(-confidence)
    for method, names, columns in (
        ("temperature", (), [sum(halves)]),
        ("platt", ("slope", "offset"), [sum(halves)]),
        ("beta", ("a", "b", "offset"), halves),
    ):
        found = Recalibrator(method).fit(confidence, correct).parameters
        ours = [found[name] for name in names] or [1 / found["temperature"], 0]
        theirs = logistic(columns, correct, offset=bool(names))
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("name", "version"), [("sigmoid", "1.6"), ("temperature", "1.8")])
def test_sklearn_calibrated_classifier(name, version):
    """Its "sigmoid" has Platt's smooth targets. Its optimisers stop within 1e-7."""
    pytest.importorskip("sklearn", minversion=version)
    linear, frozen = pytest.importorskip("sklearn.linear_model"), pytest.importorskip("sklearn.frozen")
    confidence, correct = drawn()
    z = (np.log(confidence) - np.log1p(-confidence))[:, None]
    stated = linear.LogisticRegression().fit(z, correct)
    stated.coef_, stated.intercept_ = np.array([[1.0]]), np.array([0.0])  # its decisions are the logits
    method = pytest.importorskip("sklearn.calibration").CalibratedClassifierCV
    theirs = method(frozen.FrozenEstimator(stated), method=name).fit(z, correct).predict_proba(z)[:, 1]
    recalibrate = Recalibrator("platt", smooth=True) if name == "sigmoid" else Recalibrator(name)
    np.testing.assert_allclose(recalibrate.fit(confidence, correct)(confidence), theirs, rtol=0, atol=1e-7)


@pytest.mark.filterwarnings("ignore:independent is deprecated:DeprecationWarning")  # of pyro
@pytest.mark.parametrize(
    ("method", "name"),
    [("temperature", "TemperatureScaling"), ("platt", "LogisticCalibration"), ("beta", "BetaCalibration")],
)
def test_netcal_scaling(method, name):
    """Its optimisers stop within 1e-5, and never at a better likelihood."""
    netcal = pytest.importorskip("netcal.scaling")
    confidence, correct = drawn()
    theirs = getattr(netcal, name)().fit(confidence, correct.astype(int)).transform(confidence)
    ours = Recalibrator(method).fit(confidence, correct)(confidence)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
    assert metrics.log_loss(ours, correct) <= metrics.log_loss(theirs, correct)


def test_netcal_histogram():
    netcal = pytest.importorskip("netcal.binning")
    confidence, correct = drawn()
    theirs = netcal.HistogramBinning(15).fit(confidence, correct.astype(int)).transform(confidence)
    ours = Recalibrator("histogram").fit(confidence, correct)(confidence)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


# ---- where they differ: the right-hand column of the table in docs/confidence.md


def torchmetrics_ece(confidence, correct, bins):
    theirs = pytest.importorskip("torchmetrics.functional.classification")
    preds = torch.tensor(confidence, dtype=torch.float32)
    return pytest.approx(float(theirs.binary_calibration_error(preds, torch.tensor(correct), n_bins=bins)), abs=1e-4)


def test_a_confidence_of_one_is_in_the_last_bin():
    assert torchmetrics_ece([0.95, 1.0], [1, 0], 10) == 0.525


def test_a_confidence_of_one_in_relplot():
    relplot = pytest.importorskip("relplot")
    assert relplot.metrics.binnedECE(np.array([0.95, 1.0]), np.array([1, 0]), nbins=10) == pytest.approx(0.525)


def test_the_closed_end_is_a_choice():
    """Of scikit-learn the bin of 0.5 tells: its accuracy is that of all up to 0.5."""
    sklearn = pytest.importorskip("sklearn.calibration")
    accuracy, mean = sklearn.calibration_curve([1, 0, 1], [0.5, 0.75, 0.25], n_bins=2)
    assert (accuracy.tolist(), mean.tolist()) == ([1.0, 0.0], [0.375, 0.75])


def test_the_closed_end_in_uncertainty_calibration():
    theirs = pytest.importorskip("calibration")
    assert theirs.get_ece([0.5, 0.75, 0.25], [1, 0, 1], num_bins=2) == pytest.approx(2 / 3)


def test_an_edge_is_the_fraction_that_it_stands_for():
    """One bin low, together with its lower neighbour: misses there and a hit here cancel out."""
    assert [int(np.histogram([c], np.linspace(0, 1, 11))[0].argmax()) for c in (0.3, 0.6, 0.7)] == [2, 5, 6]
    for edge in (0.2, 0.4, 7 / 15):
        low = edge - 0.01
        apart = calibration(np.array([low, edge], np.float32), [0, 1], bins=15).ece
        assert apart == pytest.approx((low + 1 - edge) / 2)
        assert torchmetrics_ece([low, edge], [0, 1], 15) == abs(low + edge - 1) / 2


@pytest.mark.parametrize(("dtype", "expected"), [(np.float32, [0.35, 0.8]), (np.float64, [0.8, 0.45])])
def test_counts_and_means_agree_on_the_bin(dtype, expected):
    netcal = pytest.importorskip("netcal.metrics")
    found = [
        netcal.ECE(10).measure(np.array(confidence, dtype), np.array(correct))
        for confidence, correct in (([0.9, 0.3], [0, 1]), ([0.9, 0.8], [1, 0]))
    ]
    assert found == pytest.approx(expected, abs=1e-6)


def test_equal_mass_of_saturated_confidences():
    netcal = pytest.importorskip("netcal.metrics")
    confidence, correct = np.array([0.1, 0.2, 0.3, 0.4] + [1.0] * 6), np.array([0] * 5 + [1] * 5)
    with pytest.raises(ValueError, match="The smallest edge difference is numerically 0"):
        netcal.ECE(5, equal_intervals=False).measure(confidence, correct)


def test_equal_mass_does_not_depend_on_the_order_of_ties():
    theirs = pytest.importorskip("torch_uncertainty.metrics")

    def ece(confidence, correct):
        metric = theirs.AdaptiveCalibrationError(task="binary", num_bins=5)
        metric.update(*tensors(np.float32(confidence), correct))
        return float(metric.compute())

    assert ece([0.7] * 10, [1] * 5 + [0] * 5) == pytest.approx(0.44)
    assert ece([0.7] * 10, [0, 1] * 5) == pytest.approx(0.2)
    assert math.isnan(ece([0.7, 0.2], [1, 0]))


def test_nothing_is_taken_for_a_logit():
    """All the others of a batch change with one; NaN does the same."""
    theirs = pytest.importorskip("torchmetrics.functional.classification")
    sigmoid = [1 / (1 + math.exp(-z)) for z in (0.2, 1.5, 0.3, 0.9)]
    assert torchmetrics_ece([0.2, 1.5, 0.3, 0.9], [0, 1, 1, 0], 15) == calibration(sigmoid, [0, 1, 1, 0]).ece
    assert torchmetrics_ece([math.nan, 0.3, 0.9], [1, 0, 1], 15) == 0.6212
    assert theirs.binary_auroc(torch.tensor([40.0, 41, 42, 43, 44]), torch.tensor([0, 0, 0, 1, 1])) == 0.5


def test_large_counts():
    theirs = pytest.importorskip("torchmetrics.functional.classification")
    correct = (torch.arange(2**25, dtype=torch.int32) % 2).to(torch.uint8)
    assert theirs.binary_calibration_error(torch.full((2**25,), 0.9), correct, validate_args=False) == 0


def test_what_is_undefined_says_so():
    theirs = pytest.importorskip("torchmetrics.functional.classification")
    with pytest.warns(UserWarning, match="No negative samples"):
        assert theirs.binary_auroc(torch.tensor([0.1, 0.2]), torch.tensor([1, 1])) == 0


def test_what_is_undefined_in_netcal():
    netcal = pytest.importorskip("netcal.metrics")
    assert netcal.ECE(10).measure(np.array([math.nan, 0.3, 0.9]), np.array([1, 0, 1])) == pytest.approx(0.2)
    with pytest.raises(AssertionError, match="No samples provided"):
        netcal.ECE(10).measure(np.array([]), np.array([]))


def test_selective_risk_does_not_depend_on_the_order_of_ties():
    theirs = pytest.importorskip("torch_uncertainty.metrics")
    for correct, area in (([1, 1, 1, 0, 0, 0], 0.18), ([0, 0, 0, 1, 1, 1], 0.82)):
        assert selective(theirs.AURC(), np.float32([0.75] * 6), correct) == pytest.approx(area)
    assert selective(theirs.RiskAtxCov(0.0), np.float32([0.9, 0.8, 0.7]), [1, 0, 0]) == pytest.approx(2 / 3)


def test_neighbours_are_two_confidences():
    regression = pytest.importorskip("sklearn.isotonic").IsotonicRegression()
    for gap, expected in ((6e-8, [0.5, 0.5]), (9e-7, [0.5, 0.5]), (2e-6, [0.0, 1.0])):
        pair = np.array([0.5, 0.5 + gap], np.float32)
        assert pair[0] < pair[1]
        assert regression.fit(pair, [0, 1]).predict(pair).tolist() == expected
