"""Where libraries disagree or are wrong, one line each: what ours says, and beside it what others say.

None of the others is needed to run this; that they do say so is in test_agreement.py, under the same names. "Guo" is
the definition of arXiv 1706.04599, with bins ((m - 1) / M, m / M].
"""

import itertools
import math

import numpy as np
import pytest
from ugr_fast.metrics import (
    CalibrationAccumulator,
    Ranks,
    aurc,
    auroc,
    calibration,
    coverage_at_risk,
    risk_at_coverage,
)


def ece(confidence, correct, bins, **options):
    return pytest.approx(calibration(confidence, correct, bins=bins, **options).ece, abs=1e-7)


def bin_of(confidence, bins):
    return calibration(np.array([confidence]), [1], bins=bins).count.argmax()


def test_a_confidence_of_one_is_in_the_last_bin():
    """1. torchmetrics and relplot give it a bin of its own: 0.525."""
    assert ece([0.95, 1.0], [1, 0], 10) == 0.475


def test_a_confidence_of_zero_counts():
    """2. Guo's bins leave the sample out: 0.02."""
    assert ece([0.0, 0.04], [1, 0], 10) == 0.48


def test_the_closed_end_is_a_choice():
    """3. uncertainty-calibration and Guo close on the right, the others on the left, and none lets you choose."""
    assert ece([0.5, 0.75, 0.25], [1, 0, 1], 2) == 1 / 3
    assert ece([0.5, 0.75, 0.25], [1, 0, 1], 2, closed="right") == 2 / 3


def test_an_edge_is_the_fraction_that_it_stands_for():
    """4. Edges from `linspace` put these one bin low: NumPy's the first three, torch's (torchmetrics) the others."""
    assert [bin_of(c, 10) for c in (0.3, 0.6, 0.7)] == [3, 6, 7]
    assert [bin_of(np.float32(c), 15) for c in (0.2, 0.4, 7 / 15)] == [3, 6, 7]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_counts_and_means_agree_on_the_bin(dtype):
    """5. netcal bins counts and means apart: in float32 these are 0.35 and 0.80."""
    assert ece(np.array([0.9, 0.3], dtype), [0, 1], 10) == 0.8
    assert ece(np.array([0.9, 0.8], dtype), [1, 0], 10) == 0.45


def test_equal_mass_of_saturated_confidences():
    """6. netcal raises "The smallest edge difference is numerically 0"."""
    result = calibration([0.1, 0.2, 0.3, 0.4] + [1.0] * 6, [0] * 5 + [1] * 5, bins=5, binning="mass")
    assert result.count.tolist() == [2, 2, 6]


def test_equal_mass_does_not_depend_on_the_order_of_ties():
    """7. torch-uncertainty: 0.44 with the correct ones first, and NaN for fewer samples than bins."""
    for correct in ([1] * 5 + [0] * 5, [0, 1] * 5):
        assert ece([0.7] * 10, correct, 5, binning="mass") == 0.2
    assert ece([0.7, 0.2], [1, 0], 5, binning="mass") == 0.25


def test_nothing_is_taken_for_a_logit():
    """8. torchmetrics applies a sigmoid to every value of a batch that holds one outside [0, 1], or NaN."""
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]; got 1.5 at index 1"):
        CalibrationAccumulator().update([0.2, 1.5], [0, 1])
    assert auroc([40, 41, 42, 43, 44], [0, 0, 0, 1, 1]) == 1  # torchmetrics: 0.5, the sigmoid is 1 for all


def test_large_counts():
    """9. torchmetrics counts in float32, which stops at 2^24: 0.0 for these 2^25 samples."""
    part = CalibrationAccumulator().update([0.9, 0.9], [0, 1])
    for _ in range(24):
        part = part.merge(part)
    assert part.compute().ece == pytest.approx(0.4, abs=1e-15)


def test_what_is_undefined_says_so():
    """10. netcal: 0.2 for the NaN, and an AssertionError for no samples; torchmetrics: 0.0 for one class."""
    with pytest.raises(ValueError, match="got NaN at index 0"):
        calibration([math.nan, 0.3, 0.9], [1, 0, 1])
    assert math.isnan(calibration([], []).ece)
    assert math.isnan(auroc([0.1, 0.2], [1, 1]))


def test_selective_risk_does_not_depend_on_the_order_of_ties():
    """11. torch-uncertainty: an AURC of 0.82 or 0.18 for six ties, and the full risk at coverage 0."""
    assert {aurc([0.5] * 6, correct) for correct in set(itertools.permutations([1, 1, 1, 0, 0, 0]))} == {0.5}
    assert risk_at_coverage([0.9, 0.5, 0.1], [1, 0, 0], 0) == 0
    assert coverage_at_risk([0.9, 0.5, 0.1], [0, 1, 1], 0.4) == (1, 0.1)


def test_neighbours_are_two_confidences():
    """12. scikit-learn's IsotonicRegression takes float32 confidences within 1e-6 of each other for one."""
    low = np.float32(0.5)
    pair = np.array([low, np.nextafter(low, np.float32(1))])
    assert auroc(pair, [0, 1]) == 1
    assert Ranks(pair, [0, 1]).risk_coverage()[2].tolist() == pair[::-1].tolist()
    assert calibration(pair, [0, 1], bins=2, binning="mass").count.tolist() == [1, 1]
