"""`group_advantages`: the properties that other implementations break."""

import numpy as np
import pytest
import reference
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from ugr_fast import group_advantages

SCALES = ["std", "none", "leave_one_out", "batch"]
REWARD = st.floats(-2, 2, width=32) | st.sampled_from([0.0, 1.0, float("nan")])
GROUP = st.lists(REWARD, min_size=1, max_size=9)


def tables(low=-2.0, high=2.0, step=None):
    """(B, G) rewards, on a grid if `step` is given."""
    cell = st.floats(low, high) if step is None else st.integers(int(low), int(high)).map(lambda k: k * step)
    shape = st.tuples(st.integers(1, 4), st.integers(2, 9))
    return shape.flatmap(lambda s: hnp.arrays(np.float64, s, elements=cell))


@given(st.lists(GROUP, min_size=1, max_size=5), st.sampled_from(SCALES), st.integers(0, 1))
def test_equals_the_reference_on_ragged_groups(groups, scale, ddof):
    flat = np.array([r for group in groups for r in group])
    ids = np.repeat(np.arange(len(groups)), [len(g) for g in groups])
    assume(scale != "batch" or np.isfinite(flat).sum() > 1)
    expected = [a for g in groups for a in reference.advantages(g, scale, ddof=ddof, batch=flat.tolist())]
    got = group_advantages(flat, ids, scale=scale, ddof=ddof)
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("scale", SCALES)
def test_a_constant_group_is_exactly_zero(scale):
    random = np.random.default_rng(0)
    bits = random.integers(0, 2**32, 20_000, dtype=np.uint32).view(np.float32)
    for size in (2, 3, 5, 8, 12, 16, 65):
        constants = bits[np.abs(bits) < 1e37][:2000]
        got = group_advantages(np.repeat(constants[:, None], size, 1), scale=scale, eps=0.0)
        assert not got.any()
        assert not np.signbit(got).any()


@given(tables(), st.sampled_from(SCALES), st.randoms(use_true_random=False))
def test_permutation(rewards, scale, random):
    order = list(range(rewards.shape[1]))
    random.shuffle(order)
    a, b = group_advantages(rewards, scale=scale)[:, order], group_advantages(rewards[:, order], scale=scale)
    np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


@given(tables(-8, 8, step=1 / 8), st.integers(-1000, 1000), st.sampled_from(SCALES))
def test_an_exact_shift_changes_no_bit(rewards, shift, scale):
    np.testing.assert_array_equal(
        group_advantages(rewards + shift, scale=scale), group_advantages(rewards, scale=scale)
    )


@given(tables(), st.sampled_from(SCALES))
def test_zero_sum_and_order(rewards, scale):
    got = group_advantages(rewards, scale=scale)
    assert (np.abs(got.sum(1)) <= 1e-9 * rewards.shape[1] * np.maximum(1, np.abs(got).max(1))).all()
    order = np.argsort(rewards, axis=1, kind="stable")
    assert (np.diff(np.take_along_axis(got, order, 1)) >= 0).all()


@given(tables(-1e6, 1e6), st.integers(0, 1))
def test_bound_even_without_eps(rewards, ddof):
    # The mean of [0, 2e-313, 2e-313, 2e-313] has no float64 of 12 digits: the bound needs normal numbers.
    spread = np.ptp(rewards, axis=1)
    assume(((spread == 0) | (spread > 1e-290)).all())
    size = rewards.shape[1]
    bound = (size - 1) / np.sqrt(size) if ddof else np.sqrt(size - 1)
    got = group_advantages(rewards, eps=0.0, ddof=ddof)
    assert (np.abs(got) <= bound * (1 + 1e-12)).all()  # NaN fails this too


@given(tables(), st.floats(0.1, 10))
def test_scale(rewards, factor):
    scaled = group_advantages(rewards * factor, eps=factor * 1e-2)
    np.testing.assert_allclose(scaled, group_advantages(rewards, eps=1e-2), rtol=1e-6, atol=1e-9)
    np.testing.assert_array_equal(group_advantages(-rewards), -group_advantages(rewards))


@given(st.integers(1, 15), st.integers(1, 15))
def test_binary_closed_form(hits, misses):
    size, p = hits + misses, hits / (hits + misses)
    got = group_advantages(np.array([[1.0] * hits + [0.0] * misses]))[0]
    divisor = np.sqrt(size / (size - 1) * p * (1 - p)) + 1e-4
    np.testing.assert_allclose(got, [(1 - p) / divisor] * hits + [-p / divisor] * misses, rtol=1e-12)


@given(tables())
def test_leave_one_out_subtracts_the_mean_of_the_others(rewards):
    others = (rewards.sum(1, keepdims=True) - rewards) / (rewards.shape[1] - 1)
    np.testing.assert_allclose(group_advantages(rewards, scale="leave_one_out"), rewards - others, atol=1e-12)


@given(GROUP, st.sampled_from(SCALES))
def test_unscorable_rows_are_as_if_absent(group, scale):
    rewards = np.array(group)
    kept = ~np.isnan(rewards)
    got = group_advantages(rewards, len(group), scale=scale)
    assert not got[~kept].any()
    if kept.any():
        np.testing.assert_array_equal(got[kept], group_advantages(rewards[kept], int(kept.sum()), scale=scale))


@given(tables(), st.sampled_from(SCALES), st.randoms(use_true_random=False))
def test_interleaved_ids_of_any_value(rewards, scale, random):
    num_groups, size = rewards.shape
    ids = np.repeat([-(2**63), -7, 0, 2**63 - 1][:num_groups], size)
    order = np.array(random.sample(range(rewards.size), rewards.size))
    got = group_advantages(rewards.ravel()[order], ids[order], scale=scale)
    np.testing.assert_allclose(got, group_advantages(rewards, scale=scale).ravel()[order], rtol=1e-9, atol=1e-12)


@given(tables(), st.sampled_from(["std", "none", "leave_one_out"]))
def test_a_group_does_not_depend_on_the_others(rewards, scale):
    got = group_advantages(rewards, scale=scale)
    for b in range(len(rewards)):
        np.testing.assert_array_equal(got[b], group_advantages(rewards[b : b + 1], scale=scale)[0])


def test_a_large_offset_costs_no_digits():
    small = np.array([[0.0, 0.1, 0.2, 0.3]])
    for offset in (1e3, 1e6):
        np.testing.assert_allclose(group_advantages(small + offset), group_advantages(small), rtol=1e-3)


def test_squares_that_underflow():
    got = group_advantages(np.array([[0.0, 1e-300]]), eps=0.0)
    np.testing.assert_allclose(got, [[-(0.5**0.5), 0.5**0.5]])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_tensors(dtype):
    torch = pytest.importorskip("torch")
    rewards = torch.tensor([[1.0, 0.0, 0.0]], dtype=getattr(torch, dtype), requires_grad=True)
    got = group_advantages(rewards)
    assert (got.dtype, got.shape, got.requires_grad) == (rewards.dtype, rewards.shape, False)
    expected = group_advantages(np.array([[1.0, 0.0, 0.0]]))
    np.testing.assert_allclose(got.double().numpy(), expected, rtol=1e-2)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f8"])
def test_arrays_keep_their_dtype_and_are_not_changed(dtype):
    rewards = np.array([[1, 0, 0, 3]], dtype)[:, ::2]
    before = rewards.copy()
    assert group_advantages(rewards).dtype == rewards.dtype
    np.testing.assert_array_equal(rewards, before)


def test_empty():
    assert group_advantages(np.empty((0, 4))).shape == (0, 4)
    assert group_advantages(np.empty((3, 0))).shape == (3, 0)
    assert group_advantages(np.empty(0), np.empty(0, np.int64)).shape == (0,)


TWO = np.array([[1.0, 0.0]])


@pytest.mark.parametrize(
    ("rewards", "groups", "options", "error", "text"),
    [
        (np.array([[1.0, np.inf]]), None, {}, ValueError, "`rewards` must be finite.*inf at index 1"),
        (np.array([[1.0, -1e38]]), None, {}, ValueError, "at most 1e37"),
        (np.array([[1, 0]]), None, {}, TypeError, "`rewards` must be floating, got int64"),
        (TWO[0], None, {}, ValueError, r"shape \(B, G\)"),
        (TWO, 2, {}, ValueError, "flat"),
        (TWO[0], 3, {}, ValueError, "divides 2 rewards, got 3"),
        (TWO[0], 0, {}, ValueError, "got 0"),
        (TWO[0], np.array([1.0, 2.0]), {}, TypeError, "integer ids"),
        (TWO[0], np.array([1]), {}, ValueError, "one id per reward"),
        (TWO, None, {"scale": "mean"}, ValueError, '`scale` must be "std"'),
        (TWO, None, {"eps": -1.0}, ValueError, "`eps`"),
        (TWO, None, {"eps": float("nan")}, ValueError, "`eps`"),
        (TWO, None, {"ddof": 2}, ValueError, "`ddof` must be 0 or 1"),
        (TWO, None, {"ddof": -1}, ValueError, "`ddof` must be 0 or 1; got -1"),
    ],
)
def test_bad_input(rewards, groups, options, error, text):
    with pytest.raises(error, match=text):
        group_advantages(rewards, groups, **options)
