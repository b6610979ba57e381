"""Recalibration against exact fractions, against grids, and by what each method promises (C37 to C49)."""

from __future__ import annotations

import hashlib
import json
import math
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
import pytest
import reference
import ugr_fast as uf
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from ugr_fast.recalibration import Recalibrator

METHODS = ["temperature", "platt", "beta", "isotonic", "histogram"]
LIKELIHOOD = METHODS[:3]
UNIT = st.floats(0, 1) | st.sampled_from([0.0, -0.0, 5e-324, 0.1, 0.3, 0.30000000000000004, 0.7, 1.0])
INNER = st.floats(1e-4, 1 - 1e-4) | st.sampled_from([0.1, 0.5, 0.9])
SOFT = st.sampled_from([0.0, 1.0]) | st.floats(0, 1)
WEIGHT = st.sampled_from([1.0, 2.0, 0.3, 1e-5, 1e5])
SOFT_SAMPLES = st.lists(st.tuples(UNIT, SOFT, WEIGHT), min_size=1, max_size=12)
HARD_SAMPLES = st.lists(st.tuples(UNIT, st.booleans()), min_size=1, max_size=30)
INNER_SAMPLES = st.lists(st.tuples(INNER, st.booleans()), min_size=2, max_size=30)
each_method = pytest.mark.parametrize("method", METHODS)


def columns(samples):
    return tuple(np.array(column) for column in zip(*samples, strict=True))


def sigmoid(z):
    return 1 / (1 + np.exp(-np.asarray(z, np.float64)))


def drawn(n, seed=0, temperature=2.0, offset=0.3):
    """Confidences sigmoid(z), and outcomes of probability sigmoid(z / temperature + offset)."""
    random = np.random.default_rng(seed)
    z = random.normal(0.5, 2, n)
    return sigmoid(z), random.random(n) < sigmoid(z / temperature + offset)


def loss(recalibrate, confidence, correct):
    return reference.log_loss(recalibrate(confidence), correct, np.ones(len(correct)))


# ---- isotonic


@given(SOFT_SAMPLES)
def test_isotonic_equals_the_reference(samples):
    """C39: the formula is optimal; C37 follows from it."""
    c, y, w = columns(samples)
    points, values = reference.isotonic(c.tolist(), y.tolist(), w.tolist())
    fitted = Recalibrator("isotonic").fit(c, y, w)(np.array(points))
    np.testing.assert_allclose(fitted, [float(v) for v in values], rtol=0, atol=1e-15)
    assert y.min() <= fitted.min() <= fitted.max() <= y.max()  # C37
    assert (np.diff(fitted) >= 0).all()


def test_isotonic_stays_between_the_smallest_outcomes():
    fitted = Recalibrator("isotonic").fit([0.0], [5e-324], [0.3])
    assert fitted(np.array([0.0]))[0] == 5e-324
    c, y, w = np.zeros(2), [0.0, 1.1125369292536007e-308], [1e-5, 1e-5]
    once = Recalibrator("isotonic").fit(c, y, w)(c)
    assert Recalibrator("isotonic").fit(c, once, w)(c).tolist() == once.tolist() == [0, 0]


@given(HARD_SAMPLES, st.sampled_from([np.float32, np.float64]))
def test_isotonic_of_hits_is_exact(samples, dtype):
    c, y = columns(samples)
    c = c.astype(dtype)
    points, values = reference.isotonic(c.tolist(), y.tolist(), [1] * len(y))
    recalibrate = Recalibrator("isotonic").fit(c, y)
    assert recalibrate(np.array(points)).tolist() == [float(v) for v in values]
    soft = Recalibrator("isotonic").fit(c, y.astype(np.float64), np.full(len(y), 3.0))
    for name, array in recalibrate.parameters.items():
        np.testing.assert_array_equal(array, soft.parameters[name])


def test_isotonic_is_no_worse_than_any_map_on_a_grid():
    """C39, once more without the formula: all non-decreasing maps with values in twelfths."""
    c, y = np.array([0.2, 0.4, 0.6, 0.8]), np.array([1, 0, 1, 0])
    best = math.inf
    for a in range(13):
        for b in range(a, 13):
            for d in range(b, 13):
                best = min(best, *(sum((np.array([a, b, d, e]) / 12 - y) ** 2) for e in range(d, 13)))
    assert sum((Recalibrator("isotonic").fit(c, y)(c) - y) ** 2) == pytest.approx(best, abs=1e-12)


@given(SOFT_SAMPLES)
def test_isotonic_twice_is_once(samples):
    """C38."""
    c, y, w = columns(samples)
    once = Recalibrator("isotonic").fit(c, y, w)(c)
    np.testing.assert_array_equal(Recalibrator("isotonic").fit(c, once, w)(c), once)


@given(SOFT_SAMPLES)
def test_isotonic_keeps_the_mean_and_lowers_the_brier_score(samples):
    """C39."""
    c, y, w = columns(samples)
    fitted, share = Recalibrator("isotonic").fit(c, y, w)(c), w / w.sum()
    assert share @ fitted == pytest.approx(share @ y, abs=1e-12)
    assert share @ (fitted - y) ** 2 <= share @ (c - y) ** 2 + 1e-12


@given(HARD_SAMPLES)
def test_isotonic_sees_only_the_order(samples):
    """C40."""
    c, y = columns(samples)
    ranks = np.unique(c, return_inverse=True)[1] / len(c)
    fitted = Recalibrator("isotonic").fit(c, y)(c)
    np.testing.assert_array_equal(Recalibrator("isotonic").fit(ranks, y)(ranks), fitted)


def test_isotonic_keeps_neighbours_apart():
    """C40."""
    low = np.float32(0.5)
    c = np.array([low, np.nextafter(low, np.float32(1))])
    assert Recalibrator("isotonic").fit(c, [0, 1])(c).tolist() == [0, 1]
    assert Recalibrator("isotonic").fit(c.astype(np.float64), [0, 1])(c.astype(np.float64)).tolist() == [0, 1]


@given(HARD_SAMPLES, st.lists(UNIT, min_size=1, max_size=8), st.booleans())
def test_isotonic_between_its_knots(samples, others, step):
    """C41."""
    c, y = columns(samples)
    recalibrate = Recalibrator("isotonic", step=step).fit(c, y)
    points, values = reference.isotonic(c.tolist(), y.tolist(), [1] * len(y))
    x = np.sort(np.array([*others, *c]))
    got = recalibrate(x)
    expected = [float(reference.interpolated(v, points, values, step)) for v in x.tolist()]
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-15)
    assert (np.diff(got) >= 0).all()


def test_isotonic_has_both_ends_of_each_block_as_knots():
    fitted = Recalibrator("isotonic").fit([0.1, 0.2, 0.3, 0.4, 0.5], [0, 1, 0, 0, 1])
    assert fitted.parameters["confidence"].tolist() == [0.1, 0.2, 0.4, 0.5]
    assert fitted.parameters["value"].tolist() == [0, 1 / 3, 1 / 3, 1]
    assert fitted(np.array([0.0, 0.3, 0.45, 0.9])).tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert Recalibrator("isotonic", step=True).fit([0.1, 0.5], [0, 1])(np.array([0.49, 0.5])).tolist() == [0, 1]


# ---- temperature, Platt, beta


def test_temperature_is_the_best_on_a_fine_grid():
    confidence, correct = drawn(300)
    fitted = Recalibrator("temperature").fit(confidence, correct)
    best, t = loss(fitted, confidence, correct), float(fitted.parameters["temperature"])
    z = np.log(confidence / (1 - confidence))
    for other in (*np.geomspace(0.1, 20, 50), t * (1 - 1e-4), t * (1 + 1e-4)):
        assert best <= reference.log_loss(sigmoid(z / other), correct, np.ones(len(z)))
    assert 1.5 < t < 2.5


@given(INNER_SAMPLES, st.sampled_from([0.25, 0.5, 1.7]))
def test_temperature(samples, factor):
    """C42."""
    c, y = columns(samples)
    z = np.log(c) - np.log1p(-c)
    fitted, scaled = Recalibrator("temperature").fit(c, y), Recalibrator("temperature").fit(sigmoid(factor * z), y)
    t = float(fitted.parameters["temperature"])
    assert t > 0
    assert loss(fitted, c, y) <= reference.log_loss(c, y, np.ones(len(y))) + 1e-12
    if z.any() and not (fitted.at_bound or scaled.at_bound):
        assert float(scaled.parameters["temperature"]) == pytest.approx(factor * t, rel=1e-6)


def test_temperature_at_its_ends():
    """C42."""
    level = Recalibrator("temperature").fit([0.5, 0.5], [1, 0])
    assert (float(level.parameters["temperature"]), level.at_bound) == (1, False)
    apart = Recalibrator("temperature").fit([0.9, 0.1], [1, 0])
    assert (float(apart.parameters["temperature"]), apart.at_bound) == (pytest.approx(math.exp(-10)), True)
    assert apart(np.array([0.4, 0.6])).tolist() == pytest.approx([0, 1])
    wrong = Recalibrator("temperature").fit([0.9, 0.1], [0, 1])
    assert (float(wrong.parameters["temperature"]), wrong.at_bound) == (pytest.approx(math.exp(10)), True)


@given(INNER_SAMPLES, st.sampled_from(["platt", "beta"]))
def test_likelihood_is_at_least_that_of_identity_and_constant(samples, method):
    """C43."""
    c, y = columns(samples)
    fitted = Recalibrator(method).fit(c, y)
    ones = np.ones(len(y))
    known = min(reference.log_loss(c, y, ones), reference.log_loss(ones * y.mean(), y, ones))
    assert loss(fitted, c, y) <= known + 1e-11


@pytest.mark.parametrize("method", ["platt", "beta"])
def test_no_step_away_is_better(method):
    confidence, correct = drawn(400, seed=1)
    fitted = Recalibrator(method).fit(confidence, correct)
    assert not fitted.at_bound
    best = loss(fitted, confidence, correct)
    for name, value in fitted.parameters.items():
        for change in (-1e-4, 1e-4):
            moved = {
                **fitted.to_arrays(),
                f"{method}.{name}": max(value + change, 0) if name != "offset" else value + change,
            }
            if name != "at_bound":
                assert loss(Recalibrator.from_arrays(moved), confidence, correct) >= best - 1e-15


@given(INNER_SAMPLES)
def test_beta_is_monotone(samples):
    """C43."""
    c, y = columns(samples)
    fitted = Recalibrator("beta").fit(c, y)
    assert min(fitted.parameters["a"], fitted.parameters["b"]) >= 0
    assert (np.diff(fitted(np.linspace(0, 1, 101))) >= -1e-15).all()


def test_beta_holds_what_would_be_negative_at_zero():
    confidence, correct = drawn(400, seed=2, temperature=-2.0)  # the more confident, the worse
    fitted = Recalibrator("beta").fit(confidence, correct)
    assert (fitted.parameters["a"], fitted.parameters["b"], fitted.at_bound) == (0, 0, False)
    np.testing.assert_allclose(fitted(confidence), correct.mean(), atol=1e-9)
    assert Recalibrator("platt").fit(confidence, correct).parameters["slope"] < 0


def test_the_truth_is_found():
    """Data drawn from each model, with parameters within a few standard errors."""
    confidence, correct = drawn(20_000, seed=3)
    platt = Recalibrator("platt").fit(confidence, correct).parameters
    assert (float(platt["slope"]), float(platt["offset"])) == pytest.approx((0.5, 0.3), abs=0.05)
    beta = Recalibrator("beta").fit(confidence, correct).parameters
    assert [float(beta[name]) for name in ("a", "b", "offset")] == pytest.approx([0.5, 0.5, 0.3], abs=0.1)
    confidence, correct = drawn(20_000, seed=4, offset=0)
    assert float(Recalibrator("temperature").fit(confidence, correct).parameters["temperature"]) == pytest.approx(
        2, abs=0.1
    )


def test_smooth_targets_keep_separable_data_finite():
    """The targets of Lin, Lin and Weng: (3 + 1) / (3 + 2) and 1 / (2 + 2)."""
    confidence, correct = [0.1, 0.2, 0.7, 0.8, 0.9], [0, 0, 1, 1, 1]
    assert Recalibrator("platt").fit(confidence, correct).at_bound
    smooth = Recalibrator("platt", smooth=True).fit(confidence, correct)
    assert not smooth.at_bound
    soft = Recalibrator("platt").fit(confidence, [1 / 4, 1 / 4, 4 / 5, 4 / 5, 4 / 5])
    assert smooth.parameters["slope"] == pytest.approx(soft.parameters["slope"], rel=1e-9)
    assert smooth.parameters["offset"] == pytest.approx(soft.parameters["offset"], rel=1e-9)
    twice = Recalibrator("platt", smooth=True).fit(confidence * 2, correct * 2)
    weighted = Recalibrator("platt", smooth=True).fit(confidence, correct, [2] * 5)
    assert weighted.parameters["slope"] == pytest.approx(twice.parameters["slope"], rel=1e-9)


@pytest.mark.parametrize("method", LIKELIHOOD)
@pytest.mark.parametrize(
    ("confidence", "correct", "finite"),
    [
        ([0.0, 1.0], [0, 1], ""),
        ([0.5, 0.5, 0.9], [0, 1, 1], ""),
        ([0.3], [1], ""),
        ([1.0, 1.0], [0, 0], ""),
        ([0.0, 1.0], [1, 0], "beta"),  # constant: a and b do not go below 0
        ([0.5, 0.5], [1, 0], "temperature platt beta"),
        ([0.1, 0.6, 0.7, 0.8], [0, 1, 0, 1], "temperature platt beta"),
    ],
)
def test_without_a_finite_maximum_it_says_so(method, confidence, correct, finite):
    fitted = Recalibrator(method).fit(confidence, correct)
    got = fitted(np.array(confidence))
    assert ((got >= 0) & (got <= 1)).all()
    assert fitted.at_bound == (method not in finite)


def test_certainty_has_a_logit_where_a_sigmoid_rounds_to_it():
    for dtype, z in ((np.float32, 25 * math.log(2)), (np.float64, 54 * math.log(2))):
        halved = Recalibrator.from_arrays({"temperature.temperature": 2, "temperature.at_bound": 0})
        got = halved(np.array([0, 1], dtype))
        np.testing.assert_allclose(got, sigmoid([-z / 2, z / 2]), rtol=1e-6)


@given(st.lists(UNIT, min_size=2, max_size=20), st.sampled_from(["temperature", "beta", "isotonic"]))
def test_order_is_kept(confidence, method):
    correct_of, correct = drawn(200, seed=5)
    got = Recalibrator(method).fit(correct_of, correct)(np.sort(confidence))
    assert (np.diff(got) >= -1e-15).all()


# ---- histogram


@given(HARD_SAMPLES, st.integers(1, 20), st.sampled_from([np.float32, np.float64]))
def test_histogram_equals_the_reference(samples, bins, dtype):
    """C44: bins by the rule of the calibration metric, in fit and afterwards; nothing left to correct within them."""
    c, y = columns(samples)
    c = c.astype(dtype)
    fitted = Recalibrator("histogram", bins=bins).fit(c, y)
    groups = [[y[i] for i in range(len(c)) if reference.width_bin(c[i], bins, dtype) == k] for k in range(bins)]
    expected = [sum(group) / len(group) if group else (k + 0.5) / bins for k, group in enumerate(groups)]
    np.testing.assert_allclose(fitted.parameters["value"], expected, rtol=0, atol=1e-15)
    assert fitted.parameters["weight"].tolist() == [len(group) for group in groups]
    own = [dtype(expected[reference.width_bin(x, bins, dtype)]) for x in c]
    np.testing.assert_allclose(fitted(c), own, rtol=1e-6 if dtype is np.float32 else 1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_histogram_edges(dtype):
    """C44."""
    for bins in (*range(1, 40), 255, 1000):
        edges = np.arange(bins, dtype=dtype) / dtype(bins)
        fitted = Recalibrator("histogram", bins=bins).fit(edges, np.arange(bins) % 2)
        assert fitted.parameters["weight"].tolist() == [1] * bins
        assert fitted(edges).tolist() == [k % 2 for k in range(bins)]
        assert fitted(np.nextafter(edges[1:], dtype(0))).tolist() == [k % 2 for k in range(bins - 1)]


def test_histogram_on_one_edge():
    assert Recalibrator("histogram", bins=2).fit([0.5], [1])(np.array([0.5, 0.49])).tolist() == [1, 0.25]


# ---- input and output


@each_method
def test_numpy_and_torch(method):
    torch = pytest.importorskip("torch")
    confidence, correct = drawn(60)
    fitted = Recalibrator(method).fit(confidence, correct)
    same = Recalibrator(method).fit(torch.from_numpy(confidence), torch.from_numpy(correct))
    table = confidence.reshape(6, 10)
    for dtype in (np.float16, np.float32, np.float64):
        got = fitted(table.astype(dtype))
        assert (got.dtype, got.shape) == (dtype, (6, 10))
        tensor = same(torch.from_numpy(table.astype(dtype)))
        assert isinstance(tensor, torch.Tensor)
        np.testing.assert_array_equal(tensor.numpy(), got)
    half = fitted(torch.tensor([0.25], dtype=torch.bfloat16))
    assert half.dtype == torch.bfloat16
    assert fitted([0, 1]).dtype == np.float64
    assert fitted(0.5).shape == ()
    assert fitted(np.empty((0, 3))).shape == (0, 3)


@each_method
def test_saved_and_loaded(method):
    options = {"isotonic": {"step": True}, "histogram": {"bins": 4}}.get(method, {})
    confidence, correct = drawn(60)
    fitted = Recalibrator(method, **options).fit(confidence, correct)
    arrays = fitted.to_arrays()
    assert all(array.dtype == np.float64 for array in arrays.values())
    text = json.dumps({name: array.tolist() for name, array in arrays.items()})
    for loaded in (Recalibrator.from_arrays(arrays), Recalibrator.from_arrays(json.loads(text))):
        np.testing.assert_array_equal(loaded(confidence), fitted(confidence))
        assert repr(loaded) == repr(fitted)


@each_method
@settings(max_examples=40)
@given(st.lists(st.tuples(INNER, st.booleans(), st.integers(0, 3)), min_size=3, max_size=12))
def test_weights_are_repetitions(method, samples):
    """C14, C40: and a weight of 0 is removal."""
    c, y, w = columns(samples)
    assume(w.sum())
    repeated = Recalibrator(method).fit(np.repeat(c, w), np.repeat(y, w))
    weighted = Recalibrator(method).fit(c, y, w)
    assert weighted.at_bound == repeated.at_bound
    if not weighted.at_bound and len(np.unique(c[w > 0])) > 3:  # else many parameters are as good
        np.testing.assert_allclose(weighted(c), repeated(c), atol=1e-6)


@each_method
def test_order_of_samples_changes_nothing(method):
    confidence, correct = drawn(500)
    confidence = confidence.round(2)
    order = np.random.default_rng(0).permutation(500)
    a, b = (Recalibrator(method).fit(c, y) for c, y in ((confidence, correct), (confidence[order], correct[order])))
    exact = method in ("isotonic", "histogram")
    np.testing.assert_allclose(a(confidence), b(confidence), rtol=0 if exact else 1e-9)


@each_method
def test_outcomes_of_any_type(method):
    """C48."""
    confidence, correct = drawn(50)
    expected = Recalibrator(method).fit(confidence, correct)(confidence)
    for kind in (np.uint8, np.int64, np.float32, np.float64):
        got = Recalibrator(method).fit(confidence, correct.astype(kind))(confidence)
        np.testing.assert_allclose(got, expected, rtol=1e-12)


@each_method
def test_arrays_of_any_layout(method):
    """C47, C49: and none is written to."""
    confidence, correct = drawn(40)
    expected = Recalibrator(method).fit(confidence, correct)(confidence)
    wide = np.repeat(confidence, 2)
    frozen = confidence.copy()
    frozen.flags.writeable = False
    for layout in (wide[::2], confidence[::-1].copy()[::-1], confidence.astype(">f8"), frozen):
        before = hashlib.sha256(layout.tobytes()).digest()
        np.testing.assert_array_equal(Recalibrator(method).fit(layout, correct)(layout), expected)
        assert hashlib.sha256(layout.tobytes()).digest() == before


def test_two_threads():
    """C49."""
    confidence, correct = drawn(20_000)
    fit = lambda _: Recalibrator("isotonic").fit(confidence, correct)(confidence)  # noqa: E731
    with ThreadPoolExecutor(2) as pool:
        first, *others = pool.map(fit, range(4))
    for other in others:
        np.testing.assert_array_equal(other, first)


@each_method
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, -1e-9, 1 + 1e-6])
def test_confidence_outside_the_unit_interval(method, bad):
    """C45, C46."""
    confidence, correct = drawn(30)
    fitted = Recalibrator(method).fit(confidence, correct)
    confidence[17] = bad
    for call in (lambda: Recalibrator(method).fit(confidence, correct), lambda: fitted(confidence.reshape(5, 6))):
        with pytest.raises(ValueError, match=r"`confidence` must lie in \[0, 1\]; got .* at index 17"):
            call()


@each_method
@pytest.mark.parametrize(
    ("samples", "text"),
    [
        (([], []), "at least one sample"),
        (([0.5], [1], [0]), "at least one sample"),
        (([0.5], [1, 0]), "`correct` must have length 1, got 2"),
        (([0.5], [1], [1, 1]), "`weight` must have length 1, got 2"),
        (([[0.5]], [1]), r"`confidence` must have shape \(N,\), got \(1, 1\)"),
        (([0.5], [2]), r"`correct` must lie in \[0, 1\]; got 2 at index 0"),
        (([0.5, 0.5], [0, 1.5]), r"`correct` must lie in \[0, 1\]; got 1.5 at index 1"),
        (([0.5], [math.nan]), "`correct` must lie in"),
        (([0.5], [1], [-1]), "`weight` must be 0 or lie in"),
        (([0.5], [1], [math.inf]), "`weight` must be 0 or lie in"),
        (([0.5], [1], [math.nan]), "`weight` must be 0 or lie in"),
    ],
)
def test_fit_refuses(method, samples, text):
    with pytest.raises(ValueError, match=text):
        Recalibrator(method).fit(*samples)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "text"),
    [
        (["sigmoid"], {}, ValueError, "`method` must be one of temperature, platt, beta, isotonic, histogram"),
        (["histogram"], {"bins": 0}, ValueError, "`bins` must be at least 1"),
        (["histogram"], {"bins": 1 << 17}, ValueError, r"`bins` must lie in \[1, 65536\]"),
        (["histogram"], {"bins": 2.5}, TypeError, "`bins` must be a whole number"),
        (["isotonic"], {"bins": 10}, ValueError, "`bins` is an option of histogram, not of isotonic"),
        (["platt"], {"step": True}, ValueError, "`step` is an option of isotonic"),
        (["beta"], {"smooth": True}, ValueError, "`smooth` is an option of platt"),
    ],
)
def test_bad_options(arguments, options, error, text):
    with pytest.raises(error, match=text):
        Recalibrator(*arguments, **options)


def test_before_fit():
    with pytest.raises(RuntimeError, match="was not fitted; call `fit`"):
        Recalibrator("platt")(np.array([0.5]))
    with pytest.raises(RuntimeError, match="was not fitted"):
        Recalibrator("platt").to_arrays()
    assert not Recalibrator("platt").at_bound


TEMPERATURE = {"temperature.temperature": 2.0, "temperature.at_bound": 0.0}
ISOTONIC = {"isotonic.confidence": [0.1, 0.5], "isotonic.value": [0.2, 0.2], "isotonic.step": 0.0}
HISTOGRAM = {"histogram.value": [0.2, 0.4], "histogram.weight": [1.0, 0.0]}


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({}, "parameters of one method"),
        ({"a.b": 1.0}, "parameters of one method"),
        ({**TEMPERATURE, "platt.slope": 1.0}, "parameters of one method"),
        ({"temperature.temperature": 2.0}, "must hold"),
        ({**TEMPERATURE, "temperature.extra": 2.0}, "must hold"),
        ({**TEMPERATURE, "temperature.temperature": -1.0}, "must lie in"),
        ({**TEMPERATURE, "temperature.temperature": math.nan}, "must lie in"),
        ({**TEMPERATURE, "temperature.temperature": [2.0]}, "a scalar"),
        ({**ISOTONIC, "isotonic.confidence": [0.1]}, "as long as the others"),
        ({**ISOTONIC, "isotonic.confidence": [0.5, 0.5]}, "must rise; got 0.5 at index 1"),
        ({**ISOTONIC, "isotonic.value": [0.2, 0.1]}, "must not fall; got 0.1 at index 1"),
        ({**ISOTONIC, "isotonic.value": [0.2, 1.1]}, "must lie in"),
        ({**ISOTONIC, "isotonic.confidence": [], "isotonic.value": []}, "as long as the others"),
        ({**HISTOGRAM, "histogram.weight": [[1.0, 0.0]]}, "as long as the others"),
        ({**HISTOGRAM, "histogram.weight": [1.0, -1.0]}, "must lie in"),
    ],
)
def test_damaged_arrays_are_refused(arrays, text):
    with pytest.raises(ValueError, match=text):
        Recalibrator.from_arrays(arrays)


def test_it_is_at_the_top():
    assert uf.Recalibrator is Recalibrator
    for arrays in (TEMPERATURE, ISOTONIC, HISTOGRAM):
        assert 0 <= Recalibrator.from_arrays(arrays)(0.3) <= 1
    assert Fraction(1, 2) == reference.interpolated(0.5, [0.0, 1.0], [Fraction(0), Fraction(1)], step=False)
